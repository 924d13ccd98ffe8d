"""The fuzzer finds faults that are planted here, of each kind that it looks for, and none where there are none."""

import ctypes
import re
import sys
from functools import wraps
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import backends
from fastdrop.borders import host

ROOT = Path(__file__).parent.parent


@pytest.fixture
def fuzz(monkeypatch):
    """The fuzzer's worker, in this process; what it sets is put back."""
    monkeypatch.syspath_prepend(ROOT)
    from tests.fuzz import worker

    before = fd.get_backend(), fd.get_num_threads()
    yield worker
    fd.use_backend(before[0])
    fd.set_num_threads(before[1])


def faults(worker, functions, calls=150):
    """What the fuzzer says of some calls on the fastest backend."""
    options = worker.Options([backends.available()[0]], functions, torch=False, large=0.0)
    found = [worker.one(1, number, options) for number in range(calls)]
    return [one["fault"] for one in found if one]


APPLY = ["Mask.apply", "dropout_backward"]


def test_every_public_function_has_a_generator(fuzz):
    from tests.fuzz.functions import missing

    assert missing() == []


def test_nothing_is_found_where_nothing_is_wrong(fuzz):
    assert faults(fuzz, APPLY) == []


def planted(monkeypatch, change):
    """Let the backend's `apply` do ``change(y)`` as well."""
    module = backends.current()
    apply = module.apply

    def wrong(y, x, mask):
        apply(y, x, mask)
        change(y)

    monkeypatch.setattr(module, "apply", wrong)


def test_one_wrong_bit_is_found(fuzz, monkeypatch):
    def flip(y):
        last = y[(slice(-1, None),) * y.ndim]
        last[...] = np.where(last == 0, y.dtype.type(1), -last)

    planted(monkeypatch, flip)
    assert any(re.match("result 0 is wrong in 1 of", fault) for fault in faults(fuzz, APPLY))


def test_a_byte_written_past_the_end_is_found(fuzz, monkeypatch):
    def overrun(y):
        if y.base is not None and y.flags.c_contiguous:  # one of the fuzzer's, with room behind it
            end = y.ctypes.data + y.nbytes
            ctypes.memset(end, ctypes.string_at(end, 1)[0] ^ 1, 1)

    planted(monkeypatch, overrun)
    monkeypatch.setattr("tests.fuzz.case.Case.bytes_chance", 0.0)  # memory without a byte behind it
    assert any(fault.startswith("wrote outside out") for fault in faults(fuzz, APPLY))


def test_memory_that_is_held_is_found(fuzz, monkeypatch):
    held = []
    planted(monkeypatch, held.append)
    assert any(fault.startswith("memory of the caller's is held") for fault in faults(fuzz, APPLY))


def test_an_overlap_that_is_accepted_is_found(fuzz, monkeypatch):
    monkeypatch.setattr(host.Border, "check_overlap", lambda *args, **kwargs: None)
    monkeypatch.setattr(host.Border, "check_places", lambda *args: None)
    found = faults(fuzz, APPLY, 400)
    assert any(re.match(r"accepted, though out overlaps (x|dy)", fault) for fault in found)
    assert "accepted, though out overlaps itself" in found


@pytest.mark.parametrize("error", [ValueError("mask"), ZeroDivisionError("mask")])
def test_an_error_that_must_not_be_is_found(fuzz, monkeypatch, error):
    def fail(y):
        raise error

    planted(monkeypatch, fail)
    assert any(fault.startswith("refused what is right") for fault in faults(fuzz, APPLY))


def test_traces_of_a_call_that_raises_are_found(fuzz, monkeypatch):
    dropout = fd.dropout

    @wraps(dropout)
    def late(**kwargs):
        try:
            return dropout(**kwargs)
        except ValueError:
            x, rng = kwargs["x"], kwargs.get("rng")
            if isinstance(rng, fd.Rng):
                rng.take()
            elif type(x) is np.ndarray and x.flags.writeable:
                x[...] = -x - 1
            raise

    monkeypatch.setattr(fd, "dropout", late)
    found = faults(fuzz, ["dropout"], 400)
    assert any(fault.startswith("raised, but moved rng on") for fault in found)
    assert any(fault.startswith("raised, but wrote") for fault in found)


def test_a_crash_is_reported_with_its_call(fuzz, monkeypatch, tmp_path):
    from tests.fuzz import __main__ as command

    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    names = dict.fromkeys(("seed", "backend", "functions", "dtypes", "large", "torch", "every"))
    run = command.Run(SimpleNamespace(**names), ROOT, {})
    assert run.go(5, 7, 60.0) == 7
    assert [fault["number"] for fault in run.faults] == [5, 6]
    assert all("the process died, -11" in fault["fault"] for fault in run.faults)
