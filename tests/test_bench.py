"""The benchmark harness at tiny sizes: what is timed is proved, what is missing says why, the table tells the truth.

No time is asserted anywhere: that is what ``fastdrop bench`` is for.
"""

import json
import math
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.bench import cases, measure, report, rivals, targets, values, worker
from fastdrop.cli import main

LARGEST = 4096
TWO = {"one": 1, "all": 2}


def small(shape):
    return worker.Job("dropout", shape).cut(LARGEST).shape


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=pytest.mark.slow) if "numba" in op else op for op in cases.CASES]
)
def test_every_case_equals_the_reference(op):
    case = cases.CASES[op]
    if "numba" in op and not {"native", "numba"} <= set(fd.backends.available()):
        pytest.skip("compares two backends that are not both here")
    for dtype in case.dtypes:
        for p in case.p:
            cases.prove(case, small(case.shapes[-1]), dtype, p)


def test_proof_fails_on_one_wrong_bit():
    def prepare(shape, dtype, p):
        x = cases.normal(shape, dtype)

        def call(rng):
            y = fd.dropout(x, p, rng=rng)[0]
            if fd.get_backend() != "reference":
                y.view(np.uint32)[3] ^= 1
            return (y,)

        return cases.Prepared(call, {})

    wrong = cases.Case("wrong", "fresh", prepare, "", 2, ((16,),))
    if fd.get_backend() == "reference":
        pytest.skip("only the reference is here: nothing to compare")
    with pytest.raises(cases.NotEqual, match=r"at \(3,\).* 1 elements differ"):
        cases.prove(wrong, (16,), "float32", 0.5)


def test_a_case_counts_the_bytes_it_moves():
    assert cases.CASES["dropout"].bytes((10, 10), "float16") == 400  # 100 read, 100 written, 2 bytes each
    assert cases.CASES["bits"].bytes((1024,), "float32") == 128  # one bit an element


def test_cut_keeps_trailing_axes():
    assert worker.Job("spatial", (64, 64, 64, 64)).cut(4096).shape == (1, 1, 64, 64)
    assert worker.Job("dropout", (1000,)).cut(4096).shape == (1000,)


def test_interleave_takes_functions_in_turn():
    calls = []
    taken = measure.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=1e-9)
    assert {name: len(times) for name, times in taken.items()} == {"a": measure.FEWEST, "b": measure.FEWEST}
    runs = [name for name, before in zip(calls, [None, *calls[:-1]], strict=True) if name != before]
    assert runs == ["a", "b"] * (measure.FEWEST + 1)  # the first of them to warm up


def test_ratio_is_that_of_neighbours():
    assert measure.ratio([1.0, 10.0, 4.0], [0.5, 5.0, 1.0]) == 2.0  # 2, 2, 4; medians alone would give 4 / 1


@pytest.mark.slow
@pytest.mark.parametrize("library", rivals.RIVALS)
def test_rival_measures_or_says_why_not(library):
    jobs = [worker.Job(op, (16, 256), library=library) for op in rivals.RIVALS[library].ops]
    for job, row in zip(jobs, worker.run(jobs, 1, 0.01), strict=True):
        assert (row["op"], row["library"], row["threads"]) == (job.op, library, 1)
        if "skipped" in row:
            assert row["skipped"].startswith("not installed here: ")
        else:
            assert row["bytes"] >= 2 * 16 * 256 * 4
            assert row["seconds"] > 0
            assert row["ratios"]["copy"] > 0
            assert row["version"]


def test_rivals_must_drop_out():
    x = cases.normal((100_000,))
    with pytest.raises(AssertionError, match="kept at p="):
        rivals.plausible("dropout", x * 2, x, 0.5)
    y, _ = fd.dropout(x, 0.5, rng=0)
    rivals.plausible("dropout", y, x, 0.5)
    with pytest.raises(AssertionError, match="Mismatched"):
        rivals.plausible("dropout", y / 2, x, 0.5)


def test_missing_library_is_a_reason(monkeypatch, tmp_path):
    (tmp_path / "jax.py").write_text("raise ImportError('no jax today')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    (row,) = worker.run([worker.Job("dropout", (64,), library="jax")], 1, 0.01)
    assert row["skipped"] == "not installed here: no jax today"


def test_crash_costs_only_the_rows_after_it(monkeypatch, tmp_path):
    (tmp_path / "numba.py").write_text("import os\nos.write(2, b'out of luck\\n')\nos._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    job = worker.Job("dropout", (64,), library="numba-random")
    (row,) = worker.run([job], 1, 0.01)
    assert row["skipped"] == "the process ended with 7: out of luck"


def test_too_large_is_a_reason():
    if measure.memory_free() is None:
        pytest.skip("this system does not say how much memory is free")
    (row,) = worker.run([worker.Job("dropout", (1 << 50,))], 1, 0.01)
    assert "GiB, " in row["skipped"]


def test_worker_gets_the_cpus_and_threads_it_is_told():
    if len(measure.cpus()) < 2:
        pytest.skip("one CPU here")
    before = measure.cpus()
    rows = list(worker.run([worker.Job("dropout", (64,))], 1, 0.01))
    assert rows[0]["cpus"] == [before[-1]]
    assert rows[0]["threads_used"] == 1
    assert measure.cpus() == before


def test_memory_of_a_call_is_measured():
    (row,) = worker.run([worker.Job("train, fresh", (1 << 20,), kind="memory")], 1, 0.01)
    if "skipped" in row:
        assert "does not tell" in row["skipped"]
    else:
        assert row["extra_bytes"] < 1 << 20
        assert 0 < row["mask_bytes"] <= 200


@pytest.mark.slow
def test_losses_of_the_backends_are_compared_and_differ_by_rounding_alone(monkeypatch):
    assert 0 <= values.losses_apart() <= 2  # in a million
    wrong = fd.js_div

    def off_by_a_thousandth(a, b):
        loss, da, db = wrong(a, b)
        return loss * (1.001 if fd.get_backend() == "native" else 1), da, db

    if "native" in fd.backends.available():
        monkeypatch.setattr(fd, "js_div", off_by_a_thousandth)
        assert 900 < values.losses_apart() < 1100


def test_every_check_has_its_cases_and_rivals():
    for check in targets.CHECKS:
        assert check.sense in ("<=", ">=")
        for job in check.jobs:
            known = values.VALUES if job.kind == "value" else cases.CASES
            assert job.op in (known if job.library == "fastdrop" else rivals.RIVALS[job.library].ops)
    assert {str(n) for n in range(1, 17)} <= {check.number for check in targets.CHECKS}


def test_table_says_met_missed_and_why_missing():
    def check(number, sense, goal, job):
        return targets.Check(number, f"what {number}", sense, goal, (job,), lambda rows: rows[0]["ratios"]["copy"])

    here, gone = worker.Job("dropout", (1,)), worker.Job("dropout", (2,))
    rows = {
        (here, 1): {"ratios": {"copy": 1.0}},
        (here, 2): {"ratios": {"copy": 3.0}},
        (gone, 1): {"skipped": "no such thing"},
        (gone, 2): {"skipped": "no such thing"},
    }
    checks = [
        check("1", "<=", 2, here),
        check("1", ">=", 0.5, here),
        check("2", "<=", 0.1, here),
        check("3", "<=", 1, gone),
        check("4", "<=", None, here),
    ]
    text = report.table(report.results(checks, rows, TWO), TWO)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert lines[0] == ["#", "what", "target", "one thread", "2 threads", "met"]
    assert lines[2] == ["1", "what 1", "<= 2", "1.00", "3.00", "one only"]
    assert lines[3] == ["", "what 1", ">= 0.5", "1.00", "3.00", "yes"]
    assert lines[4] == ["2", "what 2", "<= 0.1", "1.00", "3.00", "no"]
    assert lines[5] == ["3", "what 3", "<= 1", "skipped (1)", "skipped (1)", ""]
    assert lines[6] == ["4", "what 4", "", "1.00", "3.00", ""]
    assert text.endswith("(1) skipped: no such thing")


def test_labels_keep_apart():
    placed = report.spaced([1.0, 1.01, 1.02, 5.0], 0.1)
    assert all(b - a >= 0.1 - 1e-12 for a, b in pairwise(placed))
    assert placed[3] == 5.0


@pytest.mark.slow
@pytest.mark.parametrize("only", ["1,3", "15"])
def test_command(only, tmp_path):
    saved = tmp_path / "rows.json"
    command = [sys.executable, "-m", "fastdrop", "bench", "--largest", str(LARGEST), "--only", only, "--json", saved]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert measure.cpu_name() in done.stdout
    for number in only.split(","):
        assert f"\n| {number} " in done.stdout
    rows = json.loads(saved.read_text())["rows"]
    assert rows
    assert all(math.prod(row["shape"]) <= LARGEST for row in rows)


@pytest.mark.parametrize("option", [["--only", "1,99"], ["--only", ""], ["--only", "1,"]])
def test_command_names_the_targets_there_are(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *option])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert f"got {option[1]!r}" in err
    assert all(f" {check.number}," in err for check in targets.CHECKS)


@pytest.mark.parametrize("option", [["--largest", "0"], ["--out", "no/such/folder/x"], ["--json", "."]])
def test_command_refuses_what_would_fail_after_minutes(option, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *option])
    assert stop.value.code == 2
    assert f"argument {option[0]}: must be " in capsys.readouterr().err


def test_help_says_what_it_does_and_which_targets_there_are(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "Measure every kernel on this machine" in said
    for check in targets.CHECKS:
        assert f"  {check.number:8} {check.what}\n" in said


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    job, gone = worker.Job("dropout", (1 << 10,)), worker.Job("dropout", (1 << 10,), library="jax")
    row = {"shape": [1 << 10], "ns_per_element": 2.0, "yardsticks": {"copy": 1e-6}}
    path = tmp_path / "picture.png"
    rows = {(job, 1): row, (gone, 1): {"skipped": "why"}}
    report.picture({"fastdrop, out=": (job,), "JAX jit": (gone,)}, rows, {"one": 1}, "CPU", path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
