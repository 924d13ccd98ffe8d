"""Memory: what runs out, what changes while a call is under way, and how much stack there must be.

What could crash runs in a process of its own.
"""

import sys

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.operations import ACTIVATIONS

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits are set, and read back, as Linux has it")


# -- arrays that change during a call ----------------------------------------------------------------------------------

CHANGES = {
    "longer": lambda a: a.resize(a.size * 40, refcheck=False),
    "shorter": lambda a: a.resize(8, refcheck=False),
    "empty": lambda a: a.resize(0, refcheck=False),
    "another shape": lambda a: setattr(a, "shape", (4, a.size // 4)),
    "no axis": lambda a: a.resize((), refcheck=False),
    "wider dtype": lambda a: setattr(a, "dtype", np.float64),
    "bools": lambda a: setattr(a, "dtype", np.bool_),
    "another dtype of that size": lambda a: setattr(a, "dtype", np.int32),
    "strides": lambda a: (setattr(a, "shape", (a.size // 2,)), setattr(a, "strides", (8,))),
    "read-only": lambda a: a.setflags(write=False),
}


class Meddler(fd.Rng):
    """A generator that changes an array when a mask is taken."""

    def take(self):
        self.change(self.array)
        return super().take()


def meddler(array, change):
    rng = Meddler(3)
    rng.array, rng.change = array, CHANGES[change]
    return rng


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("which", ["x", "out", "x in place"])
def test_a_generator_that_changes_the_arrays(isas, which, change):
    """An error, or y of what the arrays are then; nothing beside them is read or written."""
    n = 1 << 16
    x, y = np.ones(n, np.float32), np.zeros(n, np.float32)
    rng = meddler(x if "x" in which else y, change)
    out = {"x": None, "out": y, "x in place": x}[which]
    try:
        result, mask = fd.dropout(x, 0.5, rng=rng, out=out)
    except (ValueError, TypeError):
        return
    assert (mask.shape, result.shape, result.dtype) == (x.shape, x.shape, x.dtype)
    assert (result[~mask.keep()] == 0).all()
    assert result is x or np.array_equal(result, mask.apply(x))


OPERATIONS = {
    "dropout": lambda x, rng: fd.dropout(x, [0.5], mask_shape=(1,), rng=rng),
    "dropout_add": lambda x, rng: fd.dropout_add(x, x.copy(), 0.5, rng=rng),
    **{name: lambda x, rng, name=name: getattr(fd, name)(x, 0.5, rng=rng, out=x) for name in ACTIVATIONS},
    "softmax_dropout": lambda x, rng: fd.softmax_dropout(x, 0.5, rng=rng),
    "multi_sample_dropout": lambda x, rng: fd.multi_sample_dropout(x, 0.5, 3, rng=rng),
    "multi_sample_mean": lambda x, rng: fd.multi_sample_mean(x, 0.5, 3, rng=rng),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_other_operations_do_not_crash(fresh_python, change):
    """An error or a result, of whatever is left."""
    run = fresh_python(
        f"""
import sys
sys.path.insert(0, {__file__.rpartition("/")[0]!r})
import numpy as np
from test_memory import OPERATIONS, meddler
from fastdrop import backends
import fastdrop as fd
for backend in [name for name in backends.available() if name != "numba"]:
    fd.use_backend(backend)
    for operation in OPERATIONS.values():
        x = np.ones(1 << 16, np.float32)
        try:
            operation(x, meddler(x, {change!r}))
        except (ValueError, TypeError, IndexError):
            pass
print("done")
"""
    )
    assert run.stdout == "done\n", run.stderr


def test_a_generator_that_raises_takes_no_mask():
    class Broken(fd.Rng):
        def take(self):
            raise KeyError("its own")

    x = np.ones(8, np.float32)
    with pytest.raises(KeyError, match="its own"):
        fd.dropout(x, 0.5, rng=Broken(0), out=x)
    assert (x == 1).all()


@pytest.mark.parametrize(
    ("taken", "error", "words"),
    [
        ((-1, 0), ValueError, "seed must be an integer in .* got -1"),
        ((2**64, 0), ValueError, "seed must be an integer in .* got 18446744073709551616"),
        ((0, None), TypeError, "stream must be an integer in .* got NoneType"),
        ((1, 2, 3), TypeError, "takes from 1 to 3 positional arguments"),
        (7, TypeError, "must be an iterable, not int"),
    ],
)
def test_a_generator_whose_numbers_are_none(isas, taken, error, words):
    class Wrong(fd.Rng):
        def take(self):
            return taken

    x = np.ones(8, np.float32)
    with pytest.raises(error, match=words):
        fd.dropout(x, 0.5, rng=Wrong(0), out=x)
    assert (x == 1).all()


# -- memory that runs out ----------------------------------------------------------------------------------------------

MIB = 1 << 20
ROOM = """
import resource
import numpy as np
import fastdrop as fd
from fastdrop import _core

MIB = 1 << 20
fd.set_num_threads(1)

def keep(mib):
    fd.dropout(np.ones(mib * MIB, np.uint8).view(np.float32), 0.5)
    assert _core.kept_bytes() == mib * MIB, _core.kept_bytes()

def room(mib):
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + mib * MIB, resource.RLIM_INFINITY))
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("a new y", "fd.dropout(x, 0.5)"),
        ("y in another layout", "fd.dropout(x[::2], 0.5)"),
        ("y of swapped bytes", "fd.dropout(x.view('>f4'), 0.5, mask_shape=(1,))"),
        ("mask.apply", "mask.apply(x)"),
        (
            "a sum",
            "x = x[: 5 * MIB]; fd.mask((3, 5 * MIB), 0.5).backward(np.broadcast_to(x, (3, 5 * MIB)), x_shape=x.shape)",
        ),
        ("softmax", "x = x[: 5 * MIB].reshape(-1, 64); fd.softmax_dropout(x.T, 0.5, axis=0)"),
        ("ReLU of swapped bytes", "x = x[: 5 * MIB]; fd.relu_dropout(x.view('>f4'), 0.5)"),
        ("samples", "x = x[: 5 * MIB].reshape(5, -1); fd.multi_sample_mean(x.T, 0.5, 3)"),
        ("keep", "fd.mask(60 * MIB, 0.5).keep()"),
        ("bits", "fd.mask(480 * MIB, 0.5).bits()"),
        ("larger than the limit", "fd.set_buffer_limit(59 * MIB); keep(58); fd.dropout(x, 0.5)"),
        ("keep, by the reference", "fd.use_backend('reference'); fd.mask(60 * MIB, 0.5).keep()"),
    ],
)
def test_what_is_kept_goes_back_when_memory_runs_out(fresh_python, isas, name, call):
    """100 MiB are kept and 40 more to be had: enough for 60 if what is kept is given up."""
    room = "room(25)" if "limit" in name else "room(40)"
    *first, last = call.split(";")
    run = fresh_python(
        ROOM
        + f"""
x = np.ones(15 * MIB, np.float32)
mask = fd.mask(x.shape, 0.5)
keep(100)
{"; ".join(first)}
{room}
try:
    np.empty(60 * MIB, np.uint8)
except MemoryError:
    print("full")
{last.strip()}
print("done")
"""
    )
    assert run.stdout == "full\ndone\n", run.stderr


@linux
def test_no_memory_at_all(fresh_python, isas):
    """MemoryError, and no mask is taken."""
    run = fresh_python(
        ROOM
        + """
x, rng = np.ones(60 * MIB, np.float32), fd.Rng(1)
keep(100)
room(40)
try:
    fd.dropout(x, 0.5, rng=rng)
except MemoryError:
    print(rng.stream, _core.kept_bytes())
"""
    )
    assert run.stdout == "0 0\n", run.stderr


# -- stack -------------------------------------------------------------------------------------------------------------

STACK = """
import sys, threading
import numpy as np
import fastdrop as fd
from fastdrop import _core

def cases(dtype):
    numbers = lambda *shape: np.random.default_rng(0).standard_normal(shape).astype(dtype)
    x, other, long = numbers(64, 700), numbers(64, 700), numbers(16, 5000)
    turned, spread = numbers(1000, 600).T, numbers(3000, 4)[:, ::2]
    mask, turned_mask, labels = fd.mask(long.shape, 0.1, rng=1), fd.mask(turned.shape, 0.1, rng=1), np.arange(64)
    y, soft, log_sum = fd.softmax_dropout(long, 0.1, rng=0)
    sample_mask = fd.mask((4, *long.shape), 0.1, rng=0)
    return [
        lambda: fd.dropout(x, 0.1),
        lambda: fd.dropout(turned, 0.1, out=np.empty(turned.shape, dtype)),
        lambda: turned_mask.apply(turned),
        lambda: turned_mask.apply(turned.copy(), out=np.empty((1000, 600, 2), dtype)[:, :, 0].T),
        lambda: fd.dropout(spread, 0.1),
        lambda: fd.dropout_add(turned, turned.copy(), 0.1, bias=numbers(1000)),
        lambda: fd.dropout_add_backward(long, mask, bias_shape=(5000,)),
        lambda: fd.relu_dropout_backward(long, long, mask),
        lambda: fd.gelu_dropout_backward(turned, turned, turned_mask),
        lambda: fd.softmax_dropout(long, 0.1, attention_mask=long > 0),
        lambda: fd.softmax_dropout(long, 0.1, attention_mask=long),
        lambda: fd.softmax_dropout_backward(long, long, log_sum, soft),
        lambda: fd.kl_div(long, long[::-1].copy()),
        lambda: fd.js_div(x, other),
        lambda: fd.r_drop(x, other, labels, alpha=1.0),
        lambda: fd.cross_entropy(x, labels, label_smoothing=0.1),
        lambda: fd.multi_sample_dropout(long, 0.1, 4),
        lambda: fd.multi_sample_mean(long, 0.1, 4),
        lambda: fd.multi_sample_dropout_backward(np.stack([long] * 4), sample_mask),
        lambda: fd.max_norm_(long.copy(), 1.0),
        lambda: fd.max_norm_(long.copy(), 1.0, axis=0),
        lambda: (turned_mask.keep(), mask.bits(), turned_mask[3:, 5:].keep(), turned_mask[3:, 5:].bits()),
    ]

done = 0
for isa in _core.isa_found():
    _core.use_isa(isa)
    for dtype in (np.float32, np.float64, np.float16):
        for case in cases(dtype):
            case()  # what Python does only once, imports above all, takes more
            threading.stack_size(KIB << 10)
            thread = threading.Thread(target=case)
            thread.start()
            thread.join()
            threading.stack_size(0)
            done += 1
print(done)
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_thread_with_little_stack(fresh_python, isas, threads):
    """56 KiB for the kernels (48 at most, see fastdrop.h) and for what Python takes; musl gives a thread 128."""
    run = fresh_python(f"KIB = 56\n{STACK}", FASTDROP_NUM_THREADS=str(threads), timeout=200)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) == len(isas) * 3 * 22


def rows_of(y, x):
    """The arguments of a mean over samples."""
    return y, x, np.array(0.5), fd.Rng(1).mask((3, *x.shape), 0.5), True


def test_the_border_refuses_arrays_that_became_other_ones():
    """As another thread could make them after the checks: strided, read-only, of another dtype."""
    core = pytest.importorskip("fastdrop._core")
    a, apart = np.ones((2, 5), np.float32), np.zeros((2, 10), np.float32)[:, ::2]
    fixed, loss, labels = np.zeros_like(a), np.zeros(2), np.zeros(2, np.int64)
    fixed.flags.writeable = False
    mask, p = fd.Rng(1).mask((2, 5), 0.5), np.array([0.5])
    calls = [
        (core.samples, rows_of(apart, a)),
        (core.samples, rows_of(np.zeros_like(a), apart)),
        (core.row_losses, ("cross_entropy", a, None, fixed, None, labels, None, None, loss, None, 1, 1, 1, 0)),
        (core.softmax_dropout, (np.zeros_like(a), loss, None, a, apart, None, mask, p)),
        (core.softmax_dropout, (np.zeros_like(a), loss, None, a, a.astype(np.float16), None, mask, p)),
        (core.softmax_dropout, (np.zeros_like(a), loss, None, a, None, apart, mask, p)),
    ]
    for kernel, arguments in calls:
        with pytest.raises(ValueError, match="an array changed its shape, dtype or layout during the call"):
            kernel(*arguments)
    assert not apart.base.any()
    assert not fixed.any()
