"""What several test files share: the engines that must agree, equality to the bit, and Python in a fresh process.

An engine is a backend or, for the native one, an instruction set of it; both lists come from the package itself.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastdrop as fd
from fastdrop import backends
from fastdrop.dtypes import FLOATS

try:
    from fastdrop import _core
except ImportError:
    _core = None

# Fixed examples, and an engine that stays the same for all examples of a test.
settings.register_profile(
    "fastdrop", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("fastdrop")

ISAS = _core.isa_found() if _core else []
ENGINES = [f"native-{isa}" for isa in ISAS] + [
    pytest.param(name, marks=pytest.mark.slow) if name == "numba" else name  # it compiles
    for name in backends.available()
    if name != "native"
]


@pytest.fixture(params=ENGINES)
def engine(request):
    """The name of the backend or instruction set that runs during the test: each in turn."""
    backend, _, isa = request.param.partition("-")
    before = fd.get_backend(), _core and _core.isa()
    fd.use_backend(backend)
    if isa:
        _core.use_isa(isa)
        assert _core.isa() == isa
    assert fd.get_backend() == backend
    yield request.param
    fd.use_backend(before[0])
    if isa:
        _core.use_isa(before[1])


@pytest.fixture(scope="session")
def isas():
    """Instruction sets of the native backend on this machine, best first."""
    if not ISAS:
        pytest.skip("the compiled extension is not here")
    return ISAS


@pytest.fixture(params=list(FLOATS))
def dtype(request):
    """Each of the dtypes."""
    if not hasattr(np, request.param):
        pytest.importorskip("ml_dtypes")
    return FLOATS[request.param].dtype


def _identical(a, b):
    """Fail unless two arrays have the same shape, dtype and bits: signed zeros and NaNs are not equal to others."""
    a, b = np.asarray(a), np.asarray(b)
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    bits = np.dtype(f"u{a.itemsize}")
    differ = np.flatnonzero(np.ascontiguousarray(a).ravel().view(bits) != np.ascontiguousarray(b).ravel().view(bits))
    if differ.size:
        at = differ[0]
        pytest.fail(f"{differ.size} of {a.size} elements differ, the first at {at}: {a.flat[at]!r} and {b.flat[at]!r}")


@pytest.fixture(scope="session")
def identical():
    """Function of two arrays: see `_identical`."""
    return _identical


def _fresh_python(code, timeout=60, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=timeout)


@pytest.fixture(scope="session")
def fresh_python():
    """Function that runs code in a new interpreter, with more environment variables; a hang raises TimeoutExpired."""
    return _fresh_python


def _hard_pairs(dtype):
    """Pairs of rows of logits on which losses lose digits: near equal, far apart, one class with nearly everything."""
    one, other = np.random.default_rng(11).standard_normal((2, 6))
    peak = np.eye(6)[0]
    pairs = [
        (one, other), (30 * one, 30 * other), (100 * one, 100 * other), (one, one + 1e-3 * other),
        (one + 12, one + 1000 + 0.04 * peak), (40 * peak, 38 * peak), (40 * peak, 38 * peak + 1e-3 * one),
        (60 * peak + one, 60 * peak + one + 0.01 * other), (80 * peak, 81 * peak), (-20 * peak, -21 * peak),
        (88 * peak, 89 * peak), (0 * one, 0.01 * peak),
    ]  # fmt: skip
    return [np.array(pair, dtype) for pair in pairs]


def _exact_losses(a, b, label):
    """Of one pair of rows: symmetric KL, its gradients, mean cross entropy, its gradients, by mpmath."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(200):
        logs = []
        for row in a, b:
            x = [mpmath.mpf(float(v)) for v in row]
            whole = mpmath.log(sum(map(mpmath.exp, x)))
            logs.append([v - whole for v in x])
        x, y = (np.array(row, object) for row in logs)
        p, q = (np.array([mpmath.exp(v) for v in row], object) for row in logs)
        t, own = x - y, np.arange(len(a)) == label
        da, db = (p * (t - (p * t).sum()) + p - q) / 2, -(q * (t - (q * t).sum()) + p - q) / 2
        exact = ((p - q) * t).sum() / 2, da, db, -(x[label] + y[label]) / 2, (p - own) / 2, (q - own) / 2
        return [np.asarray(one).astype(np.float64) for one in exact]


@pytest.fixture(scope="session")
def hard_pairs():
    """Function of a dtype: see `_hard_pairs`."""
    return _hard_pairs


@pytest.fixture(scope="session")
def exact_losses():
    """Function of two rows of logits and a label: see `_exact_losses`."""
    return _exact_losses
