"""What runs: threads, instruction set, backend, from environment and calls; and what `show_config` says of it."""

import io
import json
import os

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import backends, config
from fastdrop.config import _core

SAY = """
import json, fastdrop as fd
from fastdrop.config import config
print(json.dumps({**config(), "bits": fd.mask(64, 0.5, rng=0).bits().tobytes().hex()}))
"""
BITS = "0c19c5322905b53c"  # of stream-v1.json


def said(run):
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def affinity():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


# -- threads -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"FASTDROP_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "5"}, 5),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "6,2"}, 6),
        ({"FASTDROP_NUM_THREADS": " 7 ", "OMP_NUM_THREADS": ""}, 7),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "100000"}, 1024),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "0"}, affinity()),  # what OpenMP ignores is ignored
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "-1"}, affinity()),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "two"}, affinity()),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": "9" * 5000}, affinity()),
        ({"FASTDROP_NUM_THREADS": "2", "OMP_NUM_THREADS": "two"}, 2),
        ({"FASTDROP_NUM_THREADS": "", "OMP_NUM_THREADS": ""}, affinity()),
    ],
)
def test_threads_at_start(fresh_python, environment, threads):
    assert said(fresh_python(SAY, **environment))["threads"] == threads


def test_threads_at_start_are_the_cpus_this_process_may_use(fresh_python):
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system does not bind processes to a CPU")
    one = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})"
    assert said(fresh_python(one + SAY, FASTDROP_NUM_THREADS="", OMP_NUM_THREADS=""))["threads"] == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "1025", "100000", "2,3", "9" * 5000])
def test_bad_threads_at_start(fresh_python, text):
    run = fresh_python(SAY, FASTDROP_NUM_THREADS=text)
    assert run.returncode != 0
    rule = "FASTDROP_NUM_THREADS must be an integer of at least 1 and at most 1024"
    assert f"ValueError: {rule}, got '{text}'" in run.stderr


@pytest.mark.parametrize("text", ["-1", "half", "1.5", "9" * 20, "9" * 5000])
def test_bad_buffer_limit_at_start(fresh_python, text):
    run = fresh_python(SAY, FASTDROP_BUFFER_MB=text)
    assert run.returncode != 0
    assert "ValueError: FASTDROP_BUFFER_MB must be an integer of at least 0 and at most " in run.stderr
    assert f"got '{text}'" in run.stderr


def test_set_num_threads():
    before = fd.get_num_threads()
    try:
        for n in (1, 3, np.int64(2)):
            fd.set_num_threads(n)
            assert fd.get_num_threads() == n
            assert type(fd.get_num_threads()) is int
    finally:
        fd.set_num_threads(before)


@pytest.mark.parametrize(
    ("n", "error"),
    [(0, ValueError), (-3, ValueError), (1025, ValueError), (1.0, TypeError), ("2", TypeError), (None, TypeError)],
)
def test_bad_threads(n, error):
    before = fd.get_num_threads()
    with pytest.raises(error, match=r"n must be an integer of at least 1.* got"):
        fd.set_num_threads(n)
    with pytest.raises(error, match=r"n must be an integer of at least 1.* got"), fd.threads(n):
        pass
    assert fd.get_num_threads() == before


def test_threads_for_a_block():
    before = fd.get_num_threads()
    with fd.threads(5):
        with fd.threads(2):
            assert fd.get_num_threads() == 2
        assert fd.get_num_threads() == 5
    assert fd.get_num_threads() == before
    with pytest.raises(KeyError, match="of the block"), fd.threads(4):
        raise KeyError("of the block")
    assert fd.get_num_threads() == before


def test_threads_are_started(fresh_python, isas):
    """As many as said, and none for small arrays."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not list a process's threads")
    run = fresh_python(
        """
import os, json, numpy as np, fastdrop as fd
count = lambda: len(os.listdir("/proc/self/task"))
base = count()
x, small = np.ones(1 << 20, np.float32), np.ones(1000, np.float32)
got = []
for n in (1, 4):
    with fd.threads(n):
        fd.dropout(small)
        got.append(count() - base)
        fd.dropout(x)
        got.append(count() - base)
print(json.dumps(got))
"""
    )
    assert said(run) == [0, 0, 0, 3]


# -- instruction sets --------------------------------------------------------------------------------------------------


def test_each_instruction_set_can_be_forced(fresh_python, isas):
    for isa in isas:
        config = said(fresh_python(SAY, FASTDROP_ISA=isa))
        assert (config["isa"], config["isa forced"], config["bits"]) == (isa, isa, BITS)
    assert said(fresh_python(SAY, FASTDROP_ISA=""))["isa"] == isas[0]
    assert isas[-1] == "scalar"


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "scalar "])
def test_unknown_instruction_set(fresh_python, isas, isa):
    run = fresh_python(SAY, FASTDROP_ISA=isa)
    assert run.returncode != 0
    assert f"ValueError: FASTDROP_ISA must be one of {isas} on this machine, got '{isa}'" in run.stderr


def test_the_best_instruction_set_at_first_use(fresh_python, isas):
    """Of a C program that has chosen none."""
    run = fresh_python(
        f"""
import ctypes
library = ctypes.CDLL({_core.__file__!r})
library.fd_isa.restype = ctypes.c_char_p
print(library.fd_isa().decode())
assert library.fd_use_isa(b"no such") == -1
assert library.fd_use_isa(b"scalar") == 0
print(library.fd_isa().decode())
"""
    )
    assert run.stdout.split() == [isas[0], "scalar"], run.stderr


# -- backends ----------------------------------------------------------------------------------------------------------

WITHOUT = "import sys\nfor name in {}: sys.modules[name] = None\n"


def test_use_backend():
    before = fd.get_backend()
    for name in backends.available():
        fd.use_backend(name)
        assert fd.get_backend() == name
        assert fd.mask(64, 0.5, rng=0).bits().tobytes().hex() == BITS
    with pytest.raises(ValueError, match=r"name must be one of .*'native'.*'reference'.*, got 'fortran'"):
        fd.use_backend("fortran")
    assert fd.get_backend() == name
    fd.use_backend(before)


def test_fastest_backend_is_first():
    assert backends.available()[-1] == "reference"


@pytest.mark.parametrize(
    ("gone", "backend"),
    [(["fastdrop._core"], "numba"), (["fastdrop._core", "numba"], "reference"), (["numba"], "native")],
)
def test_without_some_of_them(fresh_python, gone, backend):
    """The next one runs, with the same results; a warning says so, once."""
    if backend not in backends.available():
        pytest.skip(f"the {backend} backend is not here")
    run = fresh_python(WITHOUT.format(gone) + SAY + "import fastdrop", FASTDROP_ISA="")
    config = said(run)
    assert (config["backend"], config["bits"]) == (backend, BITS)
    if backend == "native":
        assert run.stderr == ""
    else:
        assert run.stderr.count(f"RuntimeWarning: fastdrop runs on its {backend} backend") == 1
        assert config["isa"] is None
        assert "native" not in config["backends found"]


def test_a_backend_that_is_not_here(fresh_python):
    run = fresh_python(
        WITHOUT.format(["fastdrop._core", "numba"])
        + """
import fastdrop as fd
for name in ("native", "numba"):
    try:
        fd.use_backend(name)
    except ImportError:
        print(fd.get_backend())
""",
        FASTDROP_ISA="",
    )
    assert run.stdout.split() == ["reference", "reference"], run.stderr


def test_forced_instruction_set_needs_the_extension(fresh_python):
    run = fresh_python(WITHOUT.format(["fastdrop._core"]) + SAY, FASTDROP_ISA="scalar")
    assert "ImportError: FASTDROP_ISA=scalar needs the compiled extension" in run.stderr


def test_import_is_lean(fresh_python):
    """NumPy alone: no framework, no Numba (and so no CUDA driver), no plotting, where the extension is there."""
    run = fresh_python("import fastdrop, sys; print(*sys.modules)")
    loaded = set(run.stdout.split())
    assert not loaded & {"numba", "torch", "jax", "matplotlib", "sklearn", "tqdm", "ml_dtypes", "scipy"} or (
        "native" not in backends.available()
    )


# -- what it says ------------------------------------------------------------------------------------------------------


def test_show_config(capsys):
    fd.show_config()
    out = capsys.readouterr().out
    file = io.StringIO()
    fd.show_config(file)
    assert capsys.readouterr().out == ""
    for text in (out, file.getvalue()):
        lines = dict(line.split(":", 1) for line in text.splitlines())
        lines = {name: value.strip() for name, value in lines.items()}
        assert lines["fastdrop"] == fd.__version__
        assert lines["stream version"] == "1"
        assert lines["threads"] == str(fd.get_num_threads())
        assert lines["backend"] == fd.get_backend()
        assert lines["backends found"] == str(backends.available())
        assert lines["isa"] in (*lines["isa found"], lines["isa"])
        assert lines["isa found"] == str(config.config()["isa found"])


def test_names():
    """Every public name is there and is documented."""
    for name in fd.__all__:
        assert name == "__version__" or getattr(fd, name).__doc__
