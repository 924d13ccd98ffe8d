"""What ``fastdrop bench`` judges that is no ratio of times taken in turn: numbers that a function returns.

A job of kind "value" names one of `VALUES`; like every job it runs in a process of its own.
"""

import subprocess
import sys
from time import perf_counter

import numpy as np

import fastdrop as fd
from fastdrop import backends

from ..operations import DIVERGENCES, LOSSES
from . import accuracy
from .cases import backend, normal

FIRST_CALL = """
from time import perf_counter
import numpy as np, fastdrop as fd
x = np.ones(1000, np.float32)
start = perf_counter()
fd.use_backend("numba")
fd.dropout(x, 0.1, rng=0)
print(perf_counter() - start)
"""


def first_call():
    """Seconds of the Numba backend's first call in a new process, Numba's import with it, kernels on disk already."""
    times = []
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", FIRST_CALL], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ImportError(done.stderr.strip().rpartition("\n")[2])
        times.append(float(done.stdout))
    return sorted(times[1:])[1]  # of the first process, which may compile, nothing


def losses_apart():
    """How far the float32 losses of the backends are from the reference's, at most: in parts of a million."""
    a, b = normal((256, 1000)), normal((256, 1000), seed=1)
    labels = np.arange(256)

    def losses():
        one = fd.r_drop(a, b, labels, alpha=0.7, label_smoothing=0.1)
        more = (getattr(fd, function)(a, b)[0] for function in DIVERGENCES)
        each = fd.symmetric_kl(a, b, reduction="none")[0].astype(np.float64)
        return np.array([one.loss, one.ce, one.kl, *more, fd.cross_entropy(a, labels)[0], *each])

    with backend("reference"):
        right = losses()
    worst = 0.0
    for name in backends.available():
        with backend(name):
            worst = max(worst, float(np.max(np.abs(losses() / right - 1))))
    return worst * 1e6


def loss_error():
    """Worst relative error of a float32 loss on `accuracy.inputs`, in parts of a million."""
    return max(accuracy.worst(op, 1000)["loss_error"] for op in LOSSES) * 1e6


def gradient_error():
    """The same of the gradients, relative to their row's largest."""
    return max(accuracy.worst(op, 1000)["gradient_error"] for op in LOSSES) * 1e6


VALUES = {
    "first call, numba": first_call,
    "losses across backends": losses_apart,
    "losses, exact": loss_error,
    "gradients, exact": gradient_error,
}


def measure(job):
    """A row's figures: the value, and how long it took to have it."""
    start = perf_counter()
    return {"value": VALUES[job.op](), "seconds": perf_counter() - start}
