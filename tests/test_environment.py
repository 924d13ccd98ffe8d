"""The processor's floating-point environment: flush to zero and rounding modes that other code has set.

Masks are the same in every environment, on every backend. The compiled kernels compute y to nearest, with subnormal
numbers, in every environment, and leave it as it was. What NumPy and Python compute around them, as the sums of losses,
is in the caller's.
"""

import ctypes
import inspect
import json
import platform
import sys
from contextlib import contextmanager

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.backends import reference
from fastdrop.rule import threshold

X86 = platform.machine() in ("x86_64", "AMD64")
pytestmark = pytest.mark.skipif(sys.platform != "linux" or not X86, reason="how to set it is written for x86-64 Linux")

LIBM = "libm.so.6"
MODES = {"to nearest": 0x1F80, "down": 0x3F80, "up": 0x5F80, "to zero": 0x7F80, "flush": 0x9FC0}  # of MXCSR


def set_mode(value):
    environment = (ctypes.c_uint32 * 8)()
    ctypes.CDLL(LIBM).fegetenv(environment)
    environment[7] = value
    ctypes.CDLL(LIBM).fesetenv(environment)


def get_mode():
    environment = (ctypes.c_uint32 * 8)()
    ctypes.CDLL(LIBM).fegetenv(environment)
    return environment[7] & ~0x3F  # without what has happened


@contextmanager
def mode(name):
    set_mode(MODES[name])
    try:
        yield
        assert get_mode() == MODES[name]
    finally:
        set_mode(MODES["to nearest"])


def test_the_mode_is_set():
    third, tiny = [np.float64(3.0)], [np.float64(1e-310)]
    usual = 1 / third[0]
    with mode("up"):
        up = 1 / third[0]
    with mode("flush"):
        flushed = tiny[0] * 1.0
    assert up > usual
    assert flushed == 0


@pytest.mark.parametrize("name", list(MODES))
def test_thresholds_halfway_between_integers(engine, name):
    """p where (1 - p) * 2**32 is U(i) + 1/2: what decides element i is how that is rounded, half to even."""
    n = 200
    u = reference.uniform32(7, 3, np.arange(n, dtype=np.uint64)).astype(np.int64)
    p = 1 - (u + 0.5) / 2**32
    expected = u % 2 == 1  # U < T where T is the even one of U and U + 1
    rng = fd.Rng(7, 3)
    mask = rng.mask(n, p)
    masks = [fd.Rng(7, 3).mask(n, float(p[i])) for i in range(0, n, 20)]
    with mode(name):
        got = mask.keep()
        decided = [m.keep()[i] for m, i in zip(masks, range(0, n, 20))]
        packed = [m.bits()[i // 8] >> i % 8 & 1 for m, i in zip(masks, range(0, n, 20))]
    assert np.array_equal(got, expected)
    assert np.array_equal(decided, expected[::20])
    assert np.array_equal(packed, expected[::20])


@pytest.mark.parametrize("name", list(MODES))
def test_threshold_is_its_formula(name):
    rng = np.random.default_rng(0)
    ps = [0.0, 1.0, 0.5, 5e-324, 2.0**-54, 3 * 2.0**-54, 1 - 2.0**-53, 0.1, 0.3]
    ps += [
        *rng.random(200),
        *(rng.random(200) * 2.0 ** -rng.integers(0, 70, 200)),
        *((rng.integers(0, 2**32, 200) + 0.5) / 2**32),
    ]
    ps = [float(p) for p in ps]
    expected = [round((1.0 - p) * 2**32) for p in ps]
    with mode(name):
        got = [threshold(p) for p in ps]
    assert got == expected


RESULTS = (
    f"""
import ctypes
LIBM, MODES = {LIBM!r}, {MODES}
{inspect.getsource(set_mode)}
{inspect.getsource(get_mode)}
"""
    + """
import hashlib, json, sys
import numpy as np
import ml_dtypes
import fastdrop as fd
from fastdrop import _core
from fastdrop.operations import ACTIVATIONS

rng = np.random.default_rng(0)
def numbers(shape, dtype):
    wide = rng.standard_normal(shape)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    return np.where(rng.random(shape) < 0.5, wide, wide * tiny).astype(dtype)  # half of them subnormal, or nearly

def cases(dtype):
    rows, n = 300, 1000
    x, r, dy = (numbers((rows, n), dtype) for _ in range(3))
    mask, labels = fd.mask(x.shape, 0.3, rng=1), np.arange(rows) % 7
    y, soft, log_sum = fd.softmax_dropout(x, 0.3, rng=2)
    samples = fd.mask((3, *x.shape), 0.3, rng=3)
    few = fd.mask((3, *x.shape), [0.1, 0.2, 0.3], rng=3)
    many = fd.mask(x.shape, np.linspace(0, 1, rows), rng=0)
    return {
        "dropout": lambda: fd.dropout(x, 0.3, rng=0)[0],
        "apply transposed": lambda: mask.apply(np.asfortranarray(x)),
        "p an array": lambda: many.apply(x),
        "dropout_add": lambda: fd.dropout_add(x, r, 0.3, bias=r[0], rng=0)[0],
        "dropout_add_backward": lambda: fd.dropout_add_backward(dy, mask, bias_shape=(n,)),
        **{name: lambda f=getattr(fd, name): f(x, 0.3, rng=0)[0] for name in ACTIVATIONS},
        **{f"{name}, backward": lambda f=getattr(fd, f"{name}_backward"): f(dy, x, mask) for name in ACTIVATIONS},
        "softmax_dropout": lambda: fd.softmax_dropout(x, 0.3, rng=2)[::2],
        "softmax_dropout_backward": lambda: fd.softmax_dropout_backward(dy, x, log_sum, soft),
        "multi_sample_mean": lambda: fd.multi_sample_mean_backward(x, samples),
        "multi_sample_mean, three p": lambda: fd.multi_sample_mean_backward(x, few),
        "symmetric_kl": lambda: fd.symmetric_kl(x, r, reduction="none")[1:],
        "js_div": lambda: fd.js_div(x, r, reduction="none")[1:],
        "cross_entropy": lambda: fd.cross_entropy(x, labels, reduction="none")[1],
        "max_norm_": lambda: fd.max_norm_(x.copy(), 1.0),
    }

def digest(result):
    parts = result if isinstance(result, tuple) else (result,)
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in parts if a is not None)).hexdigest()[:16]

def all_digests(of, threads, name):
    fd.set_num_threads(threads)
    got = {}
    for key, case in of.items():
        set_mode(MODES[name])
        try:
            result = case()
            assert get_mode() == MODES[name], key
        finally:
            set_mode(MODES["to nearest"])
        got[key] = digest(result)
    return got

inherited = sys.argv[1]
dtypes = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
set_mode(MODES[inherited])
fd.set_num_threads(2)
fd.dropout(np.ones(1 << 19, np.float32))  # starts the thread that helps, which inherits the mode
set_mode(MODES["to nearest"])
wrong = []
for isa in _core.isa_found():
    _core.use_isa(isa)
    for dtype in dtypes:
        of = cases(dtype)
        usual = all_digests(of, 1, "to nearest")
        for threads, name in [(2, "to nearest"), (2, "flush"), *((1, name) for name in MODES if name != "to nearest")]:
            got = all_digests(of, threads, name)
            wrong += [(isa, np.dtype(dtype).name, threads, name, key) for key in of if got[key] != usual[key]]
print(json.dumps(wrong))
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("inherited", ["flush", "up"])
def test_y_is_the_same_in_every_environment(fresh_python, isas, inherited):
    """Set in the calling thread, or when the helping threads were started, on each instruction set."""
    pytest.importorskip("ml_dtypes")
    run = fresh_python(RESULTS.replace("sys.argv[1]", repr(inherited)), timeout=200)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []
