"""The one list of what is measured: every kernel, how it is called, the bytes it moves, the sizes.

``fastdrop bench``, the pytest-benchmark suites and the tests all read `CASES`.  A case makes its own arrays and gives
back the call to be timed, as a function of ``rng``, beside the yardsticks it is held against.  Its slow twin is the
same call on the reference backend: `prove` runs both and compares every bit, or, for sums, within a stated tolerance.
"""

import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

import fastdrop as fd
from fastdrop.dtypes import FLOATS
from fastdrop.operations import ACTIVATIONS

M = 1 << 20
SEED = 1905  # of every mask that is proved or timed
BLOCK = 1 << 20


class NotEqual(AssertionError):
    """A backend's result is not the reference's."""


@dataclass
class Prepared:
    """Arrays made and touched: ``call(rng)`` is what is timed, and returns what is compared with the reference."""

    call: Callable
    yardsticks: dict  # name -> callable without arguments, timed in turn with ``call``


@dataclass(frozen=True)
class Case:
    """One kernel, called in one way."""

    op: str
    output: str  # "reused", "fresh" or "in place": who pays the page faults
    prepare: Callable  # (shape, dtype, p) -> Prepared
    moved: str  # what the bytes are, in words
    arrays: float  # arrays of x's size that are read or written
    shapes: tuple
    dtypes: tuple = ("float32",)
    p: tuple = (0.1,)
    tolerance: float = 0.0  # relative to the largest element; 0: bit for bit
    proved: int = (
        16 * M
    )  # elements that ``fastdrop bench`` has patience to prove; the suites prove every size they time

    def bytes(self, shape, dtype):
        """Bytes that the call has to read and write."""
        return int(self.arrays * math.prod(shape) * FLOATS[dtype].dtype.itemsize)


def instruction_set():
    """Instruction set of the kernels in use: "" where the backend is not the native one."""
    if fd.get_backend() != "native":
        return ""
    from fastdrop import _core  # exists where the backend is native

    return _core.isa()


def normal(shape, dtype="float32", seed=0):
    """Normal numbers, the same ones again and again: drawing 4 GiB of them would take longer than all else."""
    block = np.random.default_rng(seed).standard_normal(BLOCK, dtype=np.float32).astype(FLOATS[dtype].dtype)
    flat = np.empty(math.prod(shape), block.dtype)
    for start in range(0, flat.size, BLOCK):
        flat[start : start + BLOCK] = block[: flat.size - start]
    return flat.reshape(shape)


def touched(x):
    """An output for x, its pages already there."""
    y = np.empty_like(x)
    y[...] = 0
    return y


# -- how each kernel is called -----------------------------------------------------------------------------------------


def dropout(shape, dtype, p):
    x = normal(shape, dtype)
    y = touched(x)
    yardsticks = {"copy": lambda: np.copyto(y, x)}
    if x.dtype != np.float32:  # as many bytes of float32
        wide = normal((x.nbytes // 4,))
        wide_y, rng32 = touched(wide), fd.Rng(SEED)
        yardsticks["float32"] = lambda: fd.dropout(wide, p, rng=rng32, out=wide_y)
    return Prepared(lambda rng: (fd.dropout(x, p, rng=rng, out=y)[0],), yardsticks)


def dropout_numba(shape, dtype, p):
    """Dropout on the Numba backend (proved there: on the reference where that is in use), beside the native one."""
    x = normal(shape, dtype)
    y, native_rng = touched(x), fd.Rng(SEED)
    with backend("native"):  # is it there?
        pass
    with backend("numba"):
        fd.dropout(x, p, rng=0, out=y)  # compiles, or reads what was compiled

    def on(name, rng):
        with backend(name):
            return (fd.dropout(x, p, rng=rng, out=y)[0],)

    return Prepared(
        lambda rng: on("reference" if fd.get_backend() == "reference" else "numba", rng),
        {"native": lambda: on("native", native_rng), "copy": lambda: np.copyto(y, x)},
    )


def dropout_fresh(shape, dtype, p):
    x = normal(shape, dtype)
    m = np.asarray(fd.mask(shape, p, rng=SEED)).astype(x.dtype)
    return Prepared(
        lambda rng: (fd.dropout(x, p, rng=rng)[0],),
        {"copy": lambda: x.copy(), "multiply": lambda: np.multiply(x, m)},
    )


def dropout_in_place(shape, dtype, p):
    x = normal(shape, dtype)  # soon nothing but zeros, which cost the same
    return Prepared(
        lambda rng: (fd.dropout(x, p, rng=rng, out=x)[0],),
        {"multiply": lambda: np.multiply(x, 1, out=x)},  # by 2 costs the same, and overflows in the end
    )


def bits(shape, dtype, p):
    x = normal(shape, dtype)
    y = touched(x)
    return Prepared(lambda rng: (fd.mask(shape, p, rng=rng).bits(),), {"copy": lambda: np.copyto(y, x)})


def train(shape, dtype, p):
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    y, dx = touched(x), touched(x)

    def call(rng):
        mask = fd.dropout(x, p, rng=rng, out=y)[1]
        return y, fd.dropout_backward(dy, mask, out=dx)

    return Prepared(call, {"copy": lambda: np.copyto(y, x)})


def train_fresh(shape, dtype, p):
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)

    def call(rng):
        y, mask = fd.dropout(x, p, rng=rng)
        return y, fd.dropout_backward(dy, mask)

    return Prepared(call, {"copy": lambda: x.copy()})


def layout(arrange):
    """Dropout of an array that ``arrange`` laid out, beside the same on a contiguous one."""

    def prepare(shape, dtype, p):
        x = arrange(shape, dtype)
        y = touched(x)
        flat = normal(shape, dtype)
        flat_y, flat_rng = touched(flat), fd.Rng(SEED)
        return Prepared(
            lambda rng: (fd.dropout(x, p, rng=rng, out=y)[0],),
            {
                "contiguous": lambda: fd.dropout(flat, p, rng=flat_rng, out=flat_y),
                "copy": lambda: np.copyto(flat_y, flat),
            },
        )

    return prepare


def fortran(shape, dtype):
    return np.asfortranarray(normal(shape, dtype))


def transposed(shape, dtype):
    swapped = (*shape[:-2], shape[-1], shape[-2])
    return normal(swapped, dtype).swapaxes(-1, -2)


def channels_last(shape, dtype):
    return np.moveaxis(normal((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


def every_other(shape, dtype):
    return normal((2 * shape[0], *shape[1:]), dtype)[::2]


def shared(own):
    """Dropout by a mask smaller than x, beside a multiplication with an array of the mask's shape."""

    def prepare(shape, dtype, p):
        x = normal(shape, dtype)
        y = touched(x)
        m = np.asarray(fd.mask(own(shape), p, rng=SEED)).astype(x.dtype)
        return Prepared(
            lambda rng: (fd.dropout(x, p, rng=rng, mask_shape=own(shape), out=y)[0],),
            {"multiply": lambda: np.multiply(x, m, out=y), "copy": lambda: np.copyto(y, x)},
        )

    return prepare


def dropout_add(shape, dtype, p):
    x, residual, bias = normal(shape, dtype), normal(shape, dtype, seed=1), normal(shape[-1:], dtype, seed=2)
    y = touched(x)
    return Prepared(
        lambda rng: (fd.dropout_add(x, residual, p, bias=bias, rng=rng, out=y)[0],),
        {"add": lambda: np.add(x, residual, out=y), "copy": lambda: np.copyto(y, x)},
    )


def dropout_add_backward(shape, dtype, p):
    dy = normal(shape, dtype)
    dx, residual = touched(dy), normal(shape, dtype, seed=1)
    return Prepared(
        lambda rng: fd.dropout_add_backward(dy, fd.mask(shape, p, rng=rng), bias_shape=shape[-1:], out=dx),
        {"add": lambda: np.add(dy, residual, out=dx), "copy": lambda: np.copyto(dx, dy)},
    )


def activation(name):
    """The cases of an activation and dropout in one pass, and of its gradient, beside an addition."""
    forward, backward = getattr(fd, name), getattr(fd, f"{name}_backward")

    def prepare(shape, dtype, p):
        x, residual = normal(shape, dtype), normal(shape, dtype, seed=1)
        y = touched(x)
        return Prepared(
            lambda rng: (forward(x, p, rng=rng, out=y)[0],),
            {"add": lambda: np.add(x, residual, out=y), "copy": lambda: np.copyto(y, x)},
        )

    def prepare_backward(shape, dtype, p):
        dy, x = normal(shape, dtype), normal(shape, dtype, seed=1)
        dx = touched(dy)
        return Prepared(
            lambda rng: (backward(dy, x, fd.mask(shape, p, rng=rng), out=dx),),
            {"add": lambda: np.add(x, dy, out=dx), "copy": lambda: np.copyto(dx, dy)},
        )

    near = {"tolerance": 1e-6, "proved": M} if ACTIVATIONS[name].tolerance else {}
    yield Case(name, "reused", prepare, READ_WRITE, 2, ROWS, **near)
    yield Case(f"{name}, backward", "reused", prepare_backward, "dy, x read, dx written", 3, ROWS, **near)


def softmax_dropout(shape, dtype, p):
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    y, dx = touched(x), touched(x)

    def call(rng):
        _, mask, log_sum = fd.softmax_dropout(x, p, rng=rng, out=y)
        return y, fd.softmax_dropout_backward(dy, x, log_sum, mask, out=dx)

    return Prepared(call, {"copy": lambda: np.copyto(y, x)})


def train_stored(shape, dtype, p):
    x, dy = normal(shape, dtype), normal(shape, dtype, seed=1)
    y, dx = touched(x), touched(x)
    drawn_rng = fd.Rng(SEED)

    def call(rng):
        mask = fd.mask(shape, p, rng=rng).stored()
        return mask.apply(x, y), mask.backward(dy, out=dx)

    def drawn():
        mask = fd.dropout(x, p, rng=drawn_rng, out=y)[1]
        return fd.dropout_backward(dy, mask, out=dx)

    return Prepared(call, {"drawn": drawn})


def apply_stored(shape, dtype, p):
    x = normal(shape, dtype)
    y = touched(x)
    mask = fd.mask(shape, p, rng=SEED)
    stored = mask.stored()
    return Prepared(lambda rng: (stored.apply(x, y),), {"drawn": lambda: mask.apply(x, y)})


def between_products(shape, dtype, p):
    """A layer's dropout: the threads of the BLAS library have just been at work, and may still be waiting for more."""
    x = normal(shape, dtype)
    y = touched(x)
    a = normal((512, 512), dtype)
    product = touched(a)

    def call(rng):
        np.matmul(a, a, out=product)
        return (fd.dropout(x, p, rng=rng, out=y)[0],)

    def copy():
        np.matmul(a, a, out=product)
        np.copyto(y, x)

    return Prepared(call, {"copy": copy})


# -- losses, several samples -------------------------------------------------------------------------------------------


def two_logits(shape, dtype):
    """Logits and room for their gradients: a, b, da, db."""
    a, b = normal(shape, dtype), np.ascontiguousarray(normal(shape, dtype)[::-1])
    return a, b, touched(a), touched(b)


def copies(a, b, da, db):
    return {"copies": lambda: (np.copyto(da, a), np.copyto(db, b)), "copy": lambda: np.copyto(da, a)}


def symmetric_kl(shape, dtype, p):
    a, b, da, db = two_logits(shape, dtype)

    def call(rng):
        loss, *gradients = fd.symmetric_kl(a, b, out=(da, db))
        return np.array(loss), *gradients

    return Prepared(call, copies(a, b, da, db))


def r_drop(shape, dtype, p):
    a, b, da, db = two_logits(shape, dtype)
    labels = np.arange(shape[0]) % shape[1]

    def call(rng):
        result = fd.r_drop(a, b, labels, alpha=5.0, out=(da, db))
        return np.array([result.loss, result.ce, result.kl]), da, db

    return Prepared(call, copies(a, b, da, db))


def multi_sample_mean(shape, dtype, p):
    x = normal(shape, dtype)
    y, rng8 = touched(x), fd.Rng(SEED)
    return Prepared(
        lambda rng: (fd.multi_sample_mean(x, p, SAMPLES, rng=rng)[0],),
        {
            "dropouts": lambda: [fd.dropout(x, p, rng=rng8, out=y) for _ in range(SAMPLES)],
            "copy": lambda: np.copyto(y, x),
        },
    )


def multi_sample_linear(shape, dtype, p):
    """A head and its gradients with the samples' losses kept apart, beside its three matrix products alone."""
    rows, features = shape
    x, weights, bias = (
        normal(shape, dtype),
        normal((features, CLASSES), dtype, seed=1),
        normal((CLASSES,), dtype, seed=2),
    )
    dlogits = normal((SAMPLES, rows, CLASSES), dtype, seed=3)
    flat = dlogits.reshape(-1, CLASSES)
    wide, logits, dweights = np.empty((SAMPLES * rows, features), dtype), np.empty_like(flat), np.empty_like(weights)

    def call(rng):
        logits, mask = fd.multi_sample_linear(x, weights, bias, p, SAMPLES, rng=rng)
        return logits, *fd.multi_sample_linear_backward(dlogits, x, weights, mask)

    def products():
        np.matmul(wide, weights, out=logits)
        np.matmul(flat, weights.T, out=wide)
        np.matmul(wide.T, flat, out=dweights)

    return Prepared(call, {"products": products})


def mc_dropout(shape, dtype, p):
    """A network of two layers predicting with dropout on, beside the same predictions with nothing made of them."""
    x, first = normal(shape, dtype), normal((shape[1], HIDDEN), dtype, seed=1)
    second, last = (
        normal((HIDDEN, HIDDEN), dtype, seed=2) / HIDDEN**0.5,
        normal((HIDDEN, 10), dtype, seed=3) / HIDDEN**0.5,
    )
    rng_alone = fd.Rng(SEED)

    def network(x, drop):
        h = drop(np.maximum(x @ first, 0))
        h = drop(np.maximum(h @ second, 0)) @ last
        e = np.exp(h - h.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def call(rng):
        return tuple(fd.mc_dropout(lambda x, sample: network(x, lambda h: sample.dropout(h, p)), x, PASSES, rng=rng))

    def alone():
        for _ in range(PASSES):
            network(x, lambda h: fd.dropout(h, p, rng=rng_alone, mask_shape=(1, HIDDEN))[0])

    return Prepared(call, {"predict": alone})


SAMPLES, CLASSES = 8, 1000  # of multi-sample dropout
HIDDEN, PASSES = 512, 30  # of Monte Carlo dropout
FLAT = ((1000,), (64 * 1024,), (M,), (16 * M,))
ROWS = ((64, 1024), (16 * 1024, 1024))
SQUARE = ((256, 256), (4096, 4096))
IMAGES = ((4, 16, 32, 32), (64, 64, 64, 64))
SEQUENCES = ((4, 32, 512), (64, 512, 512))
KEYS = ((64, 512), (6144, 512))
LOGITS = ((4096, 1000), (1024, 32000))
READ_WRITE = "x read, y written"

CASES = {
    case.op: case
    for case in [
        Case("dropout", "reused", dropout, READ_WRITE, 2, FLAT, tuple(FLOATS), (0.1, 0.5)),
        Case("dropout, numba", "reused", dropout_numba, READ_WRITE, 2, FLAT[2:]),
        Case("dropout, fresh", "fresh", dropout_fresh, READ_WRITE, 2, FLAT),
        Case("dropout, in place", "in place", dropout_in_place, "x read and written", 2, FLAT),
        Case("bits", "fresh", bits, "one bit an element written", 1 / 32, FLAT[1:]),
        Case("train", "reused", train, "x, dy read, y, dx written", 4, FLAT),
        Case("train, fresh", "fresh", train_fresh, "x, dy read, y, dx written", 4, FLAT),
        Case("transposed", "reused", layout(transposed), READ_WRITE, 2, SQUARE),
        Case("Fortran", "reused", layout(fortran), READ_WRITE, 2, IMAGES),
        Case("channels last", "reused", layout(channels_last), READ_WRITE, 2, IMAGES),
        Case("[::2]", "reused", layout(every_other), READ_WRITE, 2, FLAT[1:]),
        Case("spatial", "reused", shared(lambda s: (*s[:2], 1, 1)), READ_WRITE, 2, IMAGES, proved=M),
        Case("locked", "reused", shared(lambda s: (s[0], 1, s[2])), READ_WRITE, 2, SEQUENCES, proved=M),
        Case("drop path", "reused", shared(lambda s: (s[0], 1, 1)), READ_WRITE, 2, SEQUENCES, proved=M),
        Case("dropout_add", "reused", dropout_add, "x, residual read, y written", 3, ROWS),
        Case("dropout_add, backward", "reused", dropout_add_backward, READ_WRITE, 2, ROWS, tolerance=1e-6),
        *[case for name in ACTIVATIONS for case in activation(name)],
        Case(
            "softmax_dropout",
            "reused",
            softmax_dropout,
            "x read, y written, x, dy read, dx written",
            5,
            KEYS,
            p=(0.1, 0.5),
            tolerance=1e-6,
        ),
        Case("train, stored", "reused", train_stored, "x, dy read, y, dx written, bits", 4 + 3 / 32, FLAT[1:]),
        Case("apply, stored", "reused", apply_stored, "x and bits read, y written", 2 + 1 / 32, FLAT[1:]),
        Case("between products", "reused", between_products, "x read, y written, beside a product", 2, FLAT[2:3]),
        Case("symmetric_kl", "reused", symmetric_kl, "a, b read, da, db written", 4, LOGITS, tolerance=1e-6, proved=M),
        Case("r_drop", "reused", r_drop, "a, b read, da, db written", 4, LOGITS, tolerance=1e-6, proved=M),
        Case("multi_sample_mean", "fresh", multi_sample_mean, READ_WRITE, 2, FLAT[1:], p=(0.1, 0.5), proved=M),
        Case(
            "multi_sample_linear",
            "fresh",
            multi_sample_linear,
            "x read twice, dx written, and what the matrix products move",
            3,
            ((512, 4096),),
            tolerance=1e-5,
            proved=M // 4,
        ),
        Case("mc_dropout", "fresh", mc_dropout, "x read a sample", PASSES, ((100, 64), (1000, 64)), tolerance=1e-5),
    ]
}


# -- equality before speed ---------------------------------------------------------------------------------------------


@contextmanager
def backend(name):
    """Run on another backend for a while."""
    before = fd.get_backend()
    fd.use_backend(name)
    try:
        yield
    finally:
        fd.use_backend(before)


def prove(case, shape, dtype, p):
    """Run a case on the backend in use and on the reference.

    Raises
    ------
    NotEqual
        Naming the case and the first element that differs.
    """
    found = case.prepare(shape, dtype, p).call(fd.Rng(SEED))
    with backend("reference"):
        wanted = case.prepare(shape, dtype, p).call(fd.Rng(SEED))
    for which, (a, b) in enumerate(zip(found, wanted, strict=True)):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            raise NotEqual(f"{case.op}: result {which} is {a.dtype} {a.shape}, by the reference {b.dtype} {b.shape}")
        if case.tolerance:
            wrong = np.abs(a - b) > case.tolerance * np.abs(b).max(initial=0)
        else:
            wrong = a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")
        if wrong.any():
            at = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), a.shape))
            raise NotEqual(
                f"{case.op} {shape} {dtype} p={p} on {fd.get_backend()}: result {which} is {a[at]!r} at {at}, "
                f"by the reference {b[at]!r}; {int(wrong.sum())} elements differ"
            )
