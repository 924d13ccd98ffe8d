"""Dropout on arrays: every way to apply a mask gives the same bits, whatever the shape, memory layout and dtype.

The oracle `expected` is the rule of DESIGN in whole-array NumPy on decisions from the slow specification: it knows no
tiles, strides or slices.
"""

import functools
import itertools
import math
import os
import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fastdrop as fd
from fastdrop import rule
from fastdrop.backends import reference

SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65504.0, 65519.0, 65520.0, 3e38, 6e-8, 1e-7, 1e-40, 5e-324]
LAYOUTS = ["C", "Fortran", "permuted", "strided", "reversed", "broadcast", "unaligned", "swapped"]


# -- the oracle --------------------------------------------------------------------------------------------------------


def decisions(seed, stream, shape, p):
    """Which elements of a whole mask are kept."""
    index = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    t = np.vectorize(rule.threshold, otypes=[np.uint64])(p)
    return reference.uniform32(seed, stream, index) < t.reshape(t.shape + (1,) * (len(shape) - t.ndim))


def expected(x, keep, p):
    """kept: x * scale, rounded once; dropped: +0.0.  ``p`` has leading axes of ``keep``, which broadcasts with x."""
    p = np.asarray(p, np.float64)
    p = p.reshape(p.shape + (1,) * (keep.ndim - p.ndim))
    dtype = x.dtype.newbyteorder("=")
    wide = np.dtype(np.float64 if x.dtype.itemsize == 8 else np.float32)
    with np.errstate(all="ignore"):
        y = x.astype(wide) * (1 / (1 - p)).astype(wide)
        wide_y, y = y, np.array(y.astype(dtype))
    if dtype.name == "bfloat16":  # ml_dtypes makes all NaNs one: here they keep sign and payload, and are quiet
        bits = np.asarray(wide_y).view(np.uint32) >> np.uint32(16) | np.uint32(0x40)
        y.view(np.uint16)[np.isnan(wide_y)] = bits[np.isnan(wide_y)].astype(np.uint16)
    y[~np.broadcast_to(keep, y.shape)] = 0
    return y


# -- arrays and masks of every kind ------------------------------------------------------------------------------------


def numbers(draw, shape, dtype):
    """Normal numbers of all sizes, and one in five of them special."""
    with np.errstate(over="ignore"):
        x = draw.standard_normal(shape) * 10.0 ** draw.integers(-8, 5, shape)
        return np.where(draw.random(shape) < 0.2, draw.choice(SPECIAL, shape), x).astype(dtype)


def laid_out(x, layout, draw):
    """An array with the elements of ``x`` (broadcast: of its first slice along one axis) in another place in memory."""
    if layout == "Fortran" and x.ndim:
        return np.asfortranarray(x)
    if layout == "permuted" and x.ndim:
        axes = draw.permutation(x.ndim)
        return np.ascontiguousarray(x.transpose(axes)).transpose(np.argsort(axes))
    if layout == "strided":
        y = np.zeros([2 * n + 1 for n in x.shape], x.dtype)[(..., *(slice(1, None, 2) for _ in x.shape))]
    elif layout == "reversed":
        y = np.zeros(x.shape, x.dtype)[(..., *[slice(None, None, -1)] * x.ndim)]
    elif layout == "broadcast" and x.ndim:
        axis = int(draw.integers(x.ndim))
        return np.broadcast_to(x.take([0] if x.shape[axis] else [], axis), x.shape)
    elif layout == "unaligned":
        y = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    elif layout == "swapped" and x.dtype.name != "bfloat16":  # ml_dtypes has one byte order
        return x.astype(x.dtype.newbyteorder("S"))
    else:
        return x
    y[...] = x
    return y


def mask_of(draw, shape, kind):
    """(mask, its decisions, its p) of a shape; ``kind``: what it is made from."""
    seed, stream = (int(n) for n in draw.integers(0, 2**64, 2, dtype=np.uint64))
    p = float(draw.choice([0.0, 1.0, 0.5, 0.1, 0.3, 1e-9, 0.999, draw.random()]))
    if kind == "array p" and shape:
        p = draw.choice([0.0, 1.0, 0.5, *draw.random(3)], shape[: int(draw.integers(1, len(shape) + 1))])
    if kind == "from_keep":
        keep = (draw.random(shape) < 0.5) & (p < 1)  # what is kept has a scale
        return fd.Mask.from_keep(keep, p), keep, p
    if kind == "part" and shape:
        whole = tuple(n + int(draw.integers(0, 4)) for n in shape)
        lead = int(draw.integers(0, len(shape)))
        p = draw.random(whole[:lead]) if lead else p
        at = tuple(
            slice(a, a + n)
            for a, n in ((int(draw.integers(0, w - n + 1)), n) for w, n in zip(whole, shape, strict=True))
        )
        mask = fd.Rng(seed, stream).mask((*whole, 3), p)[(*at, 1)]
        return mask, decisions(seed, stream, (*whole, 3), p)[(*at, 1)], p[at[:lead]] if lead else p
    return fd.Rng(seed, stream).mask(shape, p), decisions(seed, stream, shape, p), p


KINDS = ["rng", "array p", "from_keep", "part"]


def broadcasts_to(draw, shape):
    """A shape that broadcasts to ``shape``: without some leading axes, with ones."""
    shape = shape[int(draw.integers(0, len(shape) + 1)) :] if draw.random() < 0.4 else shape
    return tuple(1 if draw.random() < 0.25 else n for n in shape)


shapes = st.lists(st.integers(0, 7), max_size=5).map(tuple) | st.lists(st.integers(1, 70), max_size=2).map(tuple)
seeds = st.integers(0, 2**32 - 1)


# -- one operation, many ways ------------------------------------------------------------------------------------------


@given(shape=shapes, layout=st.sampled_from(LAYOUTS), kind=st.sampled_from(KINDS), seed=seeds)
@example(shape=(), layout="C", kind="rng", seed=0)
@example(shape=(3, 0, 2), layout="Fortran", kind="array p", seed=0)
def test_all_ways_to_apply_are_one(engine, dtype, identical, shape, layout, kind, seed):
    draw = np.random.default_rng(seed)
    x = laid_out(numbers(draw, shape, dtype), layout, draw)
    mask, keep, p = mask_of(draw, broadcasts_to(draw, shape), kind)
    assert mask.shape == keep.shape
    y = expected(x, keep, p)
    before = x.copy()
    ways = {
        "apply": mask.apply(x),
        "x * mask": x * mask,
        "mask * x": mask * x,
        "multiply": np.multiply(x, mask),
        "multiply the other way": np.multiply(mask, x),
        "dropout": fd.dropout(x, mask=mask)[0],
        "backward": mask.backward(x),
        "dropout_backward": fd.dropout_backward(x, mask),
    }
    for way, got in ways.items():
        if way == "dropout" and not isinstance(p, np.ndarray) and p == 0 and kind != "from_keep":
            assert got is x
            continue
        identical(got, y)
        assert got.strides == np.empty_like(x).strides, way
        assert type(got) is np.ndarray
    identical(x, before)

    out = laid_out(np.full(shape, 7, dtype), "strided", draw)
    assert mask.apply(x, out) is out
    identical(out, y)
    out = laid_out(np.full(shape, 7, dtype), "unaligned", draw)
    assert np.multiply(x, mask, out=out) is out
    identical(out, y)
    if layout != "broadcast":  # in place
        view = x
        view *= mask
        assert view is x
        identical(x.astype(dtype), y)
    assert np.array_equal(mask.keep(), keep)
    assert np.array_equal(mask.bits(), np.packbits(keep, axis=None, bitorder="little"))


@given(shape=shapes, kind=st.sampled_from(KINDS), seed=seeds)
def test_part_of_the_mask_on_part_of_the_array(engine, dtype, identical, shape, kind, seed):
    draw = np.random.default_rng(seed)
    x = numbers(draw, shape, dtype)
    mask, keep, p = mask_of(draw, shape, kind)
    whole = expected(x, keep, p)
    key = []
    for n in shape[: int(draw.integers(0, len(shape) + 1))]:
        a, b = (int(i) for i in draw.integers(-n - 2, n + 3, 2))
        key.append(int(draw.integers(-n, n)) if n and draw.random() < 0.4 else slice(a, b))
    key = tuple(key)
    if draw.random() < 0.3:
        key = (..., *key) if len(key) == len(shape) else (*key, ...)
    identical(mask[key].apply(np.asarray(x[key])), np.asarray(whole[key]))
    assert np.array_equal(mask[key].keep(), keep[key])
    assert np.array_equal(mask[key].bits(), np.packbits(keep[key], axis=None, bitorder="little"))


@given(shape=shapes, kind=st.sampled_from(KINDS), seed=seeds)
def test_broadcasting_both_ways(engine, dtype, identical, shape, kind, seed):
    """A mask larger than x, smaller, and each larger along some axis."""
    draw = np.random.default_rng(seed)
    x = numbers(draw, broadcasts_to(draw, shape), dtype)
    mask, keep, p = mask_of(draw, broadcasts_to(draw, shape), kind)
    joint = np.broadcast_shapes(x.shape, mask.shape)
    y = expected(np.broadcast_to(x, joint), keep, p)
    identical(mask.apply(x), y)
    identical(x * mask, y)
    out = np.full(joint, 7, dtype)
    assert fd.dropout(x, mask=mask, out=out)[0] is out
    identical(out, y)


@functools.cache
def large_cases(shape):
    draw = np.random.default_rng(math.prod(shape))
    return [(layout, *mask_of(draw, broadcasts_to(draw, shape), KINDS[i % 4])) for i, layout in enumerate(LAYOUTS)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(20_000,), (8191,), (300, 301), (67, 1099), (4100, 18), (1, 70_001), (5, 90, 160)])
def test_larger_than_tiles(engine, dtype, identical, shape):
    """Arrays of many tiles and 64 x 64 squares, in every layout, on one thread and on three."""
    draw = np.random.default_rng(0)
    for layout, mask, keep, p in large_cases(shape):
        x = laid_out(numbers(draw, shape, dtype), layout, draw)
        y = expected(x, keep, p)
        for threads in (1, 3):
            with fd.threads(threads):
                identical(mask.apply(x), y)
                assert np.array_equal(mask.keep(), keep)
                assert np.array_equal(mask.bits(), np.packbits(keep, axis=None, bitorder="little"))


def test_slices_of_a_large_mask_on_threads(engine, identical):
    x = np.random.default_rng(0).standard_normal((400, 700)).astype(np.float32)
    mask = fd.mask((450, 3, 720), 0.3, rng=5)
    keep = decisions(5, 0, mask.shape, 0.3)[25:425, 1, 11:711]
    for threads in (1, 2, 4):
        with fd.threads(threads):
            identical(mask[25:425, 1, 11:711].apply(x), expected(x, keep, 0.3))


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_16_bit_pattern(engine, identical, name, p):
    """All 65536 numbers, kept: scaled in float32 and rounded once, to nearest even; overflow is Inf, NaN stays NaN."""
    dtype = np.dtype(np.float16) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    keep = np.ones(x.shape, bool)
    y = fd.Mask.from_keep(keep, p).apply(x)
    identical(y, expected(x, keep, p))
    with np.errstate(over="ignore", invalid="ignore"):
        number = ~np.isnan(x)
        identical(y[number], (x[number].astype(np.float32) * np.float32(1 / (1 - p))).astype(dtype))
        assert np.array_equal(np.isnan(y), ~number)
    assert np.array_equal(y.view(np.uint16) >> 15, x.view(np.uint16) >> 15)  # NaNs too
    offset = fd.Mask.from_keep(keep[1:], p).apply(x[1:])  # the same numbers, one lane further on
    identical(offset, y[1:])


def test_dropped_is_plus_zero(engine, dtype, identical):
    with np.errstate(over="ignore", under="ignore"):
        x = np.resize(np.array(SPECIAL).astype(dtype), 400)
    identical(fd.mask(400, 1.0, rng=0).apply(x), np.zeros(400, dtype))
    keep = np.arange(400) % 3 == 0
    y = fd.Mask.from_keep(keep, 0.5).apply(x)
    identical(y[~keep], np.zeros(np.sum(~keep), dtype))
    identical(y, expected(x, keep, 0.5))


def test_subnormals_are_not_flushed(engine):
    x = np.full(100, 2**-149, np.float32)
    assert np.all(fd.Mask.from_keep(np.ones(100, bool), 0.5).apply(x) == np.float32(2**-148))
    x = np.full(100, 5e-324)
    assert np.all(fd.Mask.from_keep(np.ones(100, bool), 0.5).apply(x) == 1e-323)


def test_p_of_one(engine, dtype, identical):
    """No NaN from 0 * inf: all +0.0, forward and backward, by array p too."""
    x = np.array([[1.0, -1.0, np.inf], [np.nan, -0.0, 2.0]], np.float32).astype(dtype)
    zero = np.zeros_like(x)
    y, mask = fd.dropout(x, 1.0, rng=0)
    identical(y, zero)
    identical(fd.dropout_backward(x, mask), zero)
    assert mask.scale == np.inf
    assert not mask.keep().any()
    y = fd.dropout(x, [1.0, 0.0], rng=0)[0]
    identical(y[0], zero[0])
    identical(y[1, 1:], x[1, 1:])
    assert np.array_equal(np.asarray(mask), np.zeros(x.shape))


def test_scale_is_rounded_once(engine):
    """float32: the double 1/(1-p) rounded to float32; float64: as it is."""
    p = 0.1
    keep = fd.Mask.from_keep(np.ones(64, bool), p)
    assert np.all(keep.apply(np.ones(64, np.float32)) == np.float32(1 / 0.9))
    assert np.all(keep.apply(np.ones(64)) == 1 / 0.9)
    assert keep.scale == 1 / 0.9


# -- the table of edge cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"p": 0}, {"p": 0.5, "training": False}])
def test_nothing_to_drop_returns_x_itself(engine, arguments):
    x = np.array([np.nan, 1, -0.0], np.float32)
    y, mask = fd.dropout(x, **arguments)
    assert y is x
    assert mask.keep().all()
    assert mask.scale == 1
    y, _ = fd.dropout(x, **arguments, out=(out := np.zeros_like(x)))
    assert y is out
    assert np.array_equal(out.view(np.uint32), x.view(np.uint32))
    assert np.array_equal(fd.dropout_backward(np.ones(3), mask), np.ones(3))


def test_not_training_takes_no_mask():
    rng = fd.Rng(0)
    fd.dropout(np.ones(3), 0.5, rng=rng, training=False)
    assert rng.stream == 0


def test_not_training_with_a_mask_of_the_users(engine):
    x = np.ones((2, 3))
    for mask in (fd.Mask.from_keep(x < 0, 0.5), fd.mask((2, 3), 0.5, rng=0), fd.mask((2, 3), [0.1, 1.0], rng=0)):
        y, same = fd.dropout(x, mask=mask, training=False)
        assert y is x
        assert same.keep().all()
        assert np.array_equal(fd.dropout_backward(x, same), x)


def test_stored_decisions_hold_at_p_of_zero(engine):
    mask = fd.Mask.from_keep([True, False], 0.0)
    assert np.array_equal(fd.dropout(np.ones(2), mask=mask)[0], [1, 0])


@pytest.mark.parametrize(
    "p", [-0.1, 1.1, math.nan, math.inf, -math.inf, np.float32(1.5), np.array([0.5, 2.0]), [math.nan]]
)
@pytest.mark.parametrize("training", [True, False])
def test_p_out_of_range(p, training):
    with pytest.raises(ValueError, match=r"p is a probability to drop and must be in \[0, 1\], got (-?\d|nan|-?inf)"):
        fd.dropout(np.ones(2), p, training=training)


@pytest.mark.parametrize("p", ["0.5", b"0.5", None, 1j, True, [True], [None], {}, object(), np.array(["a"])])
def test_p_not_a_number(p):
    with pytest.raises(TypeError, match=r"p must be a number or an array of numbers in \[0, 1\], got "):
        fd.dropout(np.ones(2), p)


@pytest.mark.parametrize("p", [np.float32(0.25), np.float16(0.25), np.float64(0.25), np.array(0.25), 0.25])
def test_kinds_of_numbers(p):
    mask = fd.mask(10, p, rng=0)
    assert mask == fd.mask(10, 0.25, rng=0)
    assert type(mask.p) is float


@pytest.mark.parametrize("bad", ["int64", "int8", "uint16", "bool", "object", "complex64", "longdouble", "S4", "M8"])
def test_dtypes_that_do_not_work(bad):
    x = np.zeros(3, bad)
    for call in (lambda: fd.dropout(x), lambda: fd.mask(3, 0.5).apply(x), lambda: x * fd.mask(3, 0.5)):
        with pytest.raises(
            TypeError, match=r"x must be float16, bfloat16, float32 or float64, got dtype " + re.escape(str(x.dtype))
        ):
            call()
    with pytest.raises(TypeError, match=r"dy must be float16, bfloat16, float32 or float64, got dtype"):
        fd.dropout_backward(x, fd.mask(3, 0.5))


@pytest.mark.parametrize("x", [None, "text", {}, [[1.0], [1.0, 2.0]], [1, 2], object()])
def test_what_is_no_array(x):
    with pytest.raises((TypeError, ValueError), match=r"x must be|inhomogeneous"):
        fd.dropout(x)


def test_lists_and_numbers(engine):
    mask = fd.Mask.from_keep([True, False], 0.5)
    assert np.array_equal(mask.apply([1.0, 2.0]), [2, 0])
    assert np.array_equal(3.0 * mask, [6, 0])
    assert np.array_equal(np.float32(3) * mask, np.array([6, 0], np.float32))
    assert (np.float32(3) * mask).dtype == np.float32


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1,), (1, 1, 1)])
def test_empty_and_0d(engine, dtype, shape):
    x = np.full(shape, 3, dtype)
    y, mask = fd.dropout(x, 0.5, rng=0)
    assert (y.shape, y.dtype, mask.shape) == (shape, dtype, shape)
    assert np.array_equal(y, np.where(mask.keep(), 2 * x, 0 * x))
    assert mask.bits().shape == ((x.size + 7) // 8,)
    assert fd.dropout_backward(y, mask).shape == shape
    if 0 in shape:
        out = np.empty(shape, dtype)
        assert mask.apply(x, out) is out


@pytest.mark.parametrize("layout", ["Fortran", "permuted", "strided", "reversed"])
def test_layout_is_that_of_empty_like(layout):
    draw = np.random.default_rng(1)
    x = laid_out(np.ones((3, 4, 5, 6), np.float32), layout, draw)
    y, mask = fd.dropout(x, 0.5, rng=0)
    assert y.strides == np.empty_like(x).strides
    assert np.array_equal(y, mask.apply(np.ascontiguousarray(x)))


def test_byte_order_becomes_native():
    x = np.ones(3, np.dtype(np.float32).newbyteorder("S"))
    assert fd.dropout(x, 0.5, rng=0)[0].dtype == np.dtype(np.float32)
    out = np.empty_like(x)
    assert np.array_equal(fd.dropout(x, 0.5, rng=0, out=out)[0], fd.mask(3, 0.5, rng=0).apply(np.ones(3)))


def test_read_only_input(engine):
    x = np.ones(5)
    x.flags.writeable = False
    assert fd.dropout(x, 0.5, rng=0)[0].flags.writeable


@pytest.mark.parametrize("shape", [(3, 1030, 70), (5, 7, 37, 30), (2, 3, 40, 41), (9, 8, 6, 5, 4)])
@pytest.mark.parametrize("kind", ["whole", "part", "spatial", "stored"])
def test_every_order_of_axes_in_memory(engine, identical, shape, kind):
    """Large enough that runs, columns and rows of axes are joined, cut and left with a rest."""
    x = np.linspace(1, 2, math.prod(shape), dtype=np.float32).reshape(shape)
    mask = fd.mask(shape, 0.3, rng=6)
    if kind == "part":
        mask = fd.mask((*shape[:-1], shape[-1] + 9), 0.3, rng=6)[..., 5:-4]
    elif kind == "spatial":
        mask = fd.mask(shape[:2] + (1,) * (len(shape) - 2), 0.3, rng=6)
    elif kind == "stored":
        mask = mask.stored()
    wanted = np.where(np.broadcast_to(mask.keep(), shape), x * np.float32(1 / 0.7), np.float32(0))
    for order in itertools.permutations(range(len(shape))):
        there = np.argsort(order)
        a = np.ascontiguousarray(x.transpose(order)).transpose(there)
        y = mask.apply(a)
        assert y.strides == a.strides
        identical(y, wanted)
        identical(mask.apply(a, np.empty_like(x)), wanted)


def test_in_place(engine, dtype, identical):
    x = np.linspace(1, 2, 9000).astype(dtype).reshape(90, 100)
    mask = fd.mask(x.shape, 0.3, rng=0)
    for way in (
        lambda a: fd.dropout(a, 0.3, rng=0, out=a)[0],
        lambda a: mask.apply(a, a),
        lambda a: mask.backward(a, out=a),
    ):
        for view in (lambda a: a, lambda a: a.T.copy().T, lambda a: a[:, ::-1]):
            a = view(x.copy())
            assert way(a) is a
            identical(a, mask.apply(view(x)))


def test_in_place_through_another_object_of_the_same_memory():
    x = np.ones((4, 5))
    same = x[:]
    fd.dropout(x, 0.5, rng=0, out=same)
    assert np.array_equal(x, fd.mask((4, 5), 0.5, rng=0).apply(np.ones((4, 5))))


@pytest.mark.parametrize(
    ("x", "out"),
    [
        (lambda a: a[:-1], lambda a: a[1:]),
        (lambda a: a, lambda a: a[::-1]),
        (lambda a: a[:6].reshape(2, 3), lambda a: a[:6].reshape(3, 2).T),
        (lambda a: a[:4], lambda a: a[0:8:2]),
        (lambda a: a[:2], lambda a: np.lib.stride_tricks.as_strided(a, (3, 2), (16, 8))),
        (lambda a: a[:6].view(np.float32), lambda a: a[:6].view(">f4")),
    ],
    ids=["shifted", "reversed", "transposed", "spread", "wider", "other byte order"],
)
def test_overlap_is_refused(x, out):
    a = np.arange(10.0)
    x, out = x(a), out(a)
    mask = fd.mask(out.shape, 0.5, rng=0)
    with pytest.raises((ValueError, TypeError), match="out must"):
        mask.apply(x, out)
    assert np.array_equal(a, np.arange(10.0))


def test_interleaved_without_overlap_is_fine():
    a = np.arange(20.0)
    fd.dropout(a[::2], 0.5, rng=0, out=a[1::2])
    assert np.array_equal(a[::2], np.arange(0, 20, 2))
    assert np.array_equal(a[1::2], fd.mask(10, 0.5, rng=0).apply(np.arange(0.0, 20, 2)))


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.full(3, 7.0), ValueError, r"out must have shape \(2, 3\), got \(3,\)"),
        (np.full((2, 3), 7, np.float32), TypeError, "out must have dtype float64, got float32"),
        (np.broadcast_to(np.full(3, 7.0), (2, 3)), ValueError, "out must be writable, got a read-only"),
        ([[7.0] * 3] * 2, TypeError, "out must be an array or a writable buffer, got list"),
        (np.ma.masked_all((2, 3)), TypeError, "out must not be a masked array"),
    ],
    ids=["shape", "dtype", "read-only", "list", "masked"],
)
def test_bad_out_is_named_and_untouched(out, error, message):
    before = np.array(out)
    rng, generator = fd.Rng(0), np.random.default_rng(0)
    state = generator.bit_generator.state
    x = np.ones((2, 3))
    for call in (
        lambda: fd.dropout(x, 0.5, rng=rng, out=out),
        lambda: fd.dropout(x, 0.5, rng=generator, out=out),
        lambda: fd.dropout(x, 0.0, rng=rng, out=out),
        lambda: fd.mask((2, 3), 0.5, rng=0).apply(x, out),
        lambda: fd.mask((2, 3), 0.5, rng=0).backward(x, out=out),
        lambda: fd.dropout_backward(x, fd.mask((4, 2, 3), 0.5, rng=0)[0], out=out),
        lambda: fd.mask((4, 2, 3), 0.5, rng=0).backward(np.ones((4, 2, 3)), x_shape=(2, 3), out=out),
    ):
        with pytest.raises(error, match=message):
            call()
    assert np.array_equal(np.array(out), before)
    assert rng.stream == 0
    assert generator.bit_generator.state == state


BAD_CALLS = {
    "p": ({"p": 2.0}, "p is a probability"),
    "p shape": ({"p": [0.1, 0.2, 0.3]}, "p must have the leading axes"),
    "mask_shape": ({"mask_shape": (3, 3)}, "mask_shape .* does not broadcast"),
    "mask_shape type": ({"mask_shape": "ab"}, "mask_shape must be"),
    "mask": ({"mask": np.ones((2, 3))}, "mask must be a fastdrop"),
    "mask's shape": ({"mask": fd.mask((5, 3), 0.5, rng=0)}, "does not broadcast with the mask's shape"),
    "dtype": ({"dtype": "int32"}, "x must be float16"),
}


@pytest.mark.parametrize(("bad", "words"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_call_that_fails_changes_nothing(bad, words):
    rng, out = fd.Rng(0), np.full((2, 3), 7.0)
    with pytest.raises((TypeError, ValueError), match=words):
        fd.dropout(np.ones((2, 3)), **{"rng": rng, "out": out, **bad})
    assert rng.stream == 0
    assert np.all(out == 7)


def test_errors_name_shapes():
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"x of shape \(2, 3\) does not broadcast with the mask's shape \(4, 3\)"):
        fd.mask((4, 3), 0.5).apply(x)
    with pytest.raises(ValueError, match=r"mask_shape \(4, 3\) does not broadcast with x's shape \(2, 3\)"):
        fd.dropout(x, mask_shape=(4, 3))
    with pytest.raises(
        ValueError, match=r"an array p must have the leading axes of the mask's shape \(2, 3\), got .*\(3,\)"
    ):
        fd.dropout(x, [0.1, 0.2, 0.3])
    with pytest.raises(TypeError, match=r"must be a fastdrop\.Mask, got ndarray"):
        fd.dropout(x, mask=x)
    with pytest.raises(TypeError, match=r"must be a fastdrop\.Mask, got ndarray"):
        fd.dropout_backward(x, x)


def test_mask_shape(engine):
    x = np.ones((4, 5, 6), np.float32)
    for mask_shape, shape in [
        ((None, 1, None), (4, 1, 6)),  # None is x's size there, as in Keras's noise_shape
        ((4, 1, 1), (4, 1, 1)),
        ([4, None, 6], (4, 5, 6)),
        ((None, 1), (5, 1)),
        (6, (6,)),
    ]:
        y, mask = fd.dropout(x, 0.5, rng=3, mask_shape=mask_shape)
        assert mask.shape == shape
        assert mask == fd.mask(shape, 0.5, rng=3)
        assert np.array_equal(y, np.broadcast_to(2 * decisions(3, 0, shape, 0.5), x.shape))
    y, mask = fd.dropout(x[0], 0.5, rng=3, mask_shape=(7, 5, 6))  # larger than x
    assert y.shape == (7, 5, 6)
    y, _ = fd.dropout(x[0], 0.5, rng=3, mask_shape=(7, 5, 6), training=False)
    assert np.array_equal(y, np.ones((7, 5, 6)))


def test_subclasses_are_plain_arrays():
    class Mine(np.ndarray):
        pass

    x = np.ones((2, 3)).view(Mine)
    for y in (fd.dropout(x, 0.5, rng=0)[0], fd.mask((2, 3), 0.5, rng=0).apply(x), x * fd.mask((2, 3), 0.5, rng=0)):
        assert type(y) is np.ndarray
        assert np.array_equal(y, fd.mask((2, 3), 0.5, rng=0).apply(np.ones((2, 3))))
    out = np.zeros((2, 3)).view(Mine)
    assert fd.dropout(x, 0.5, rng=0, out=out)[0] is out
    assert np.array_equal(out, y)


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix_is_a_plain_array():
    x = np.matrix(np.ones((2, 3)))
    mask = fd.mask((2, 3), 0.5, rng=0)
    for y in (fd.dropout(x, 0.5, rng=0)[0], mask.apply(x), x * mask, mask * x):
        assert type(y) is np.ndarray
        assert np.array_equal(y, mask.apply(np.ones((2, 3))))


def test_masked_arrays_keep_their_mask_or_raise():
    x = np.ma.array([1.0, 2.0], mask=[True, False])
    mask = fd.mask(2, 0.5, rng=0)
    for call in (lambda: fd.dropout(x), lambda: mask.apply(x), lambda: mask * x, lambda: np.multiply(x, mask)):
        with pytest.raises(TypeError, match=r"x must not be a masked array: .*pass x.filled\(0\)"):
            call()
    with pytest.raises(TypeError, match="dy must not be a masked array"):
        mask.backward(x)
    with pytest.raises(TypeError, match="x must not be a masked array"):
        x * mask


def test_ufuncs_that_masks_do_not_take():
    x, mask = np.ones(3), fd.mask(3, 0.5)
    for call in (
        lambda: x + mask,
        lambda: x / mask,
        lambda: mask / x,
        lambda: x @ mask,
        lambda: mask * mask,
        lambda: np.multiply(mask, mask),
        lambda: np.multiply(x, mask, where=x > 0),
        lambda: np.multiply.reduce(mask),
        lambda: np.multiply.outer(x, mask),
        lambda: np.multiply(x, mask, dtype=np.float32),
    ):
        with pytest.raises(TypeError, match=r"is not defined.*; a mask multiplies, x \* mask or mask.apply\(x\)"):
            call()


# -- large -------------------------------------------------------------------------------------------------------------


def free_memory():
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return 0


@pytest.mark.slow
def test_more_than_2_to_31_elements(isas):
    """One float16 array in place, and the bits of 2**32 elements; windows of both are checked."""
    if free_memory() < 6 << 30:
        pytest.skip("needs 6 GiB of free memory")
    n = 2**31 + 70_000
    x = np.ones(n, np.float16)
    mask = fd.Rng(1, 2).mask(n, 0.3)
    fd.dropout(x, mask=mask, out=x)
    for at in (0, 12345, 2**30 - 500, 2**31 - 500, n - 1000):
        keep = reference.keep_at(1, 2, np.arange(at, at + 1000, dtype=np.uint64), 0.3)
        assert np.array_equal(x[at : at + 1000], np.where(keep, np.float16(1 / 0.7), 0))
    del x
    bits = fd.Rng(1, 2).mask((3, 2**31), 0.3)[1:].bits()
    for at in (2**31 - 8000, 2**32 - 8000):
        keep = reference.keep_at(1, 2, np.arange(2**31 + at, 2**31 + at + 8000, dtype=np.uint64), 0.3)
        assert np.array_equal(bits[at // 8 : at // 8 + 1000], np.packbits(keep, bitorder="little"))


@pytest.mark.parametrize("size", [2**60, 2**62, 2**64])
def test_memory_that_cannot_be_had(engine, size):
    mask = fd.mask(size, 0.5, rng=0)
    for call in (
        mask.bits,
        mask.keep,
        lambda: np.asarray(mask),
        lambda: mask.apply(np.float16(1)),
        lambda: mask.apply(np.ones((2, 1))),
        lambda: 3.0 * mask,
    ):
        with pytest.raises(MemoryError, match="llocate"):
            call()
    rng = fd.Rng(0)
    with pytest.raises(MemoryError, match="llocate"):
        fd.dropout(np.ones(1), 0.5, rng=rng, mask_shape=size)
    assert rng.stream == 0
    assert mask[5:70].bits().size == 9  # and the mask is as good as before
