"""The Numba backend on the CPU: every kernel of the reference, compiled at first use and kept on disk, no C compiler.

Built as the C kernels are.  The mask's decisions on a tile of 4096 elements are made in a buffer in L1, one byte each,
from blocks of 256 elements whose 16 lanes LLVM runs as vectors; then an elementwise body consumes them.  A tile is a
run of *logical* (C-order) elements, so broadcasting and slices concern only `_decide`, and strides of x and y only
`_gather` and `_scatter`.

Threads are our own: each runs a nogil kernel on a range of whole tiles, so results do not depend on their number.
Numba's `parallel=True` is not used: its omp layer kills forked children, its workqueue layer aborts when two Python
threads enter it.  A forked child drops the pool and makes its own.
"""

import math
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache

import numpy as np
from numba import njit

from .. import config
from ..locks import after_fork, new_lock
from ..operations import OPERATIONS
from ..rule import scale_of
from . import numba_rule as rule
from . import reference
from .axes import join
from .reference_rows import max_norm  # noqa: F401  (no Numba kernel)

NAME = "numba"
TILE = 4096
SERIAL = 1 << 16  # elements below which a second thread costs more than it saves

_philox, _LOW = rule.philox, rule.LOW


def jit(function):
    """A kernel: compiled at first use, kept on disk, and run without Python's lock."""
    return njit(nogil=True, cache=True, error_model="numpy")(rule.named(function))


# -- making decisions: one byte an element, 1 = kept -------------------------------------------------------------------


@rule.jitable
def _bytes_of_blocks(words, block, count, seed, stream, tag):
    """Byte ``tag`` of U for ``count`` blocks of 256 elements, in element order once ``words`` is seen as bytes."""
    for b in range(count):
        word0, word1 = words[b * 64 : b * 64 + 16], words[b * 64 + 16 : b * 64 + 32]
        word2, word3 = words[b * 64 + 32 : b * 64 + 48], words[b * 64 + 48 : b * 64 + 64]
        first = ((block + np.uint64(b)) * np.uint64(16)) & np.uint64((1 << 60) - 1)
        for lane in range(16):
            w0, w1, w2, w3 = _philox(seed, stream, first + np.uint64(lane), tag)
            word0[lane] = w0
            word1[lane] = w1
            word2[lane] = w2
            word3[lane] = w3


@rule.jitable
def _decide_blocks(keep, words, words1, block, count, seed, stream, threshold):
    """Decisions of ``count`` whole blocks: by one byte where it suffices, by two and, once in 65536, by all four."""
    n = count * 256
    if threshold == np.uint64(0) or threshold > np.uint64(_LOW):
        keep[:n] = threshold != np.uint64(0)
        return
    t0 = np.uint8(threshold >> np.uint64(24))
    t1 = np.uint8((threshold >> np.uint64(16)) & np.uint64(255))
    _bytes_of_blocks(words, block, count, seed, stream, 0)
    first = words.view(np.uint8)
    if threshold & np.uint64(0xFFFFFF) == np.uint64(0):
        for i in range(n):
            keep[i] = first[i] < t0
        return
    _bytes_of_blocks(words1, block, count, seed, stream, 1)
    second = words1.view(np.uint8)
    ties = False
    for i in range(n):
        keep[i] = (first[i] < t0) | ((first[i] == t0) & (second[i] < t1))
        ties |= (first[i] == t0) & (second[i] == t1)
    if ties and threshold & np.uint64(0xFFFF) != np.uint64(0):
        for i in range(n):
            if first[i] == t0 and second[i] == t1:
                keep[i] = rule.keep(seed, stream, (block << np.uint64(8)) + np.uint64(i), threshold)


@rule.jitable
def _locate(index, shape, steps):
    """Where element ``index`` (C order) of an array of ``shape`` lies, in steps."""
    at = steps[0] * steps.dtype.type(0)
    for axis in range(shape.size - 1, -1, -1):
        rest = index // shape[axis]
        at += steps[axis] * steps.dtype.type(index - rest * shape[axis])
        index = rest
    return at


@rule.jitable
def _made(made, have, words, words1, index, n, mask, threshold):
    """Place in ``made`` of ``n`` decisions from ``index`` on, made now unless ``have`` (start, length) has them."""
    seed, stream, stored = mask[0], mask[1], mask[5]
    ahead = index - have[0]
    if ahead < have[1] and ahead + np.uint64(n) <= have[1]:
        return np.int64(ahead)
    if stored.size:
        for i in range(n):
            at = index + np.uint64(i)
            made[i] = (stored[at >> np.uint64(3)] >> np.uint8(at & np.uint64(7))) & np.uint8(1)
        have[0], have[1] = index, np.uint64(n)
        return 0
    inside = np.int64(index & np.uint64(255))
    count = (inside + n + 255) >> 8
    _decide_blocks(made, words, words1, index >> np.uint64(8), count, seed, stream, threshold)
    have[0], have[1] = index - np.uint64(inside), np.uint64(count * 256)
    return inside


@rule.jitable
def _decide(keep, made, have, words, words1, first, n, mask, threshold):
    """Decisions of the ``n`` logical elements from ``first`` on, whatever the mask's steps."""
    seed, stream, offset, shape, steps, stored = mask
    if shape.size == 1 and steps[0] == np.uint64(1) and not stored.size:
        index = offset + np.uint64(first)
        if index & np.uint64(255) == np.uint64(0):
            _decide_blocks(keep, words, words1, index >> np.uint64(8), (n + 255) >> 8, seed, stream, threshold)
            return
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        index = offset + _locate(row, shape[:-1], steps[:-1]) + np.uint64(column) * step
        if step == np.uint64(1):
            at = _made(made, have, words, words1, index, run, mask, threshold)
            keep[done : done + run] = made[at : at + run]
        elif step == np.uint64(0):
            keep[done : done + run] = made[_made(made, have, words, words1, index, 1, mask, threshold)]
        else:
            for i in range(run):
                keep[done + i] = made[_made(made, have, words, words1, index, 1, mask, threshold)]
                index += step
        done += run


# -- arrays of any strides ---------------------------------------------------------------------------------------------


@rule.jitable
def _gather(tile, x, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + _locate(row, shape[:-1], steps[:-1]) + column * step
        if step == 1:
            tile[done : done + run] = x[at : at + run]
        else:
            for i in range(run):
                tile[done + i] = x[at + i * step]
        done += run


@rule.jitable
def _part(tile, x, which, starts, first, n, shape, steps, in_order):
    """Elements of an input as a run: its own memory where that is one, a copy in ``tile`` where not."""
    if in_order[which]:
        return x[starts[which] + first : starts[which] + first + n]
    _gather(tile, x, starts[which], first, n, shape, steps[which])
    return tile[:n]


@rule.jitable
def _scatter(y, tile, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + _locate(row, shape[:-1], steps[:-1]) + column * step
        if step == 1:
            y[at : at + run] = tile[done : done + run]
        else:
            for i in range(run):
                y[at + i * step] = tile[done + i]
        done += run


# -- kernels -----------------------------------------------------------------------------------------------------------
# `mask` is (seed, stream, offset, shape, steps, stored), `chances` (thresholds, run, shape, steps): one p serves `run`
# logical elements, and which one follows from the axes before them.


@rule.jitable
def _scratch():
    """Buffers of one thread: decisions of the tile; decisions made and where they start; words of two bytes of U."""
    size = TILE + 256
    keep, made, have = np.empty(size, np.uint8), np.empty(size, np.uint8), np.zeros(3, np.uint64)
    return keep, made, have, np.empty(size // 4, np.uint32), np.empty(size // 4, np.uint32)


@rule.jitable
def _tile(scratch, at, first, last, mask, chances):
    """Make decisions from element ``first`` on, at ``at`` in the tile: (how many elements of one p, which p)."""
    keep, made, have, words, words1 = scratch
    thresholds, run, shape, steps = chances
    n = min(TILE - at, last - first, run - first % run)
    p = _locate(first // run, shape, steps)
    if have[2] != np.uint64(p):
        have[1], have[2] = np.uint64(0), np.uint64(p)
    _decide(keep[at:], made, have, words, words1, first, n, mask, thresholds[p])
    return n, p


@jit
def _keep_bytes(out, start, shape, steps, mask, chances, first, last):
    scratch = _scratch()
    while first < last:
        n, _ = _tile(scratch, 0, first, last, mask, chances)
        _scatter(out, scratch[0], start, first, n, shape, steps)
        first += n


@jit
def _keep_bits(out, mask, chances, first, last):
    scratch = _scratch()
    keep = scratch[0]
    eights = keep.view(np.uint64)
    while first < last:
        n = min(TILE, last - first)
        at = 0
        while at < n:
            at += _tile(scratch, at, first + at, first + n, mask, chances)[0]
        keep[n : n + 8] = 0
        packed = out[first // 8 : (first + n + 7) // 8]
        for i in range(packed.size):
            packed[i] = np.uint8((eights[i] * np.uint64(0x0102040810204080)) >> np.uint64(56))
        first += n


def _float_kernel(widen, narrow, op):
    """The kernel y = op(kept, a, b, c, scale), element by element; ``count`` of a, b and c are inputs of it."""

    @rule.jitable
    def body(y, a, b, c, keep, scale):
        for i in range(y.size):
            y[i] = narrow(op(keep[i] != 0, widen(a[i]), widen(b[i]), widen(c[i]), scale))

    @jit
    def kernel(y, a, b, c, count, starts, shape, steps, in_order, in_place, mask, chances, scales, first, last):
        scratch = _scratch()
        keep = scratch[0]
        ty, ta = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype)
        tb, tc = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype)
        while first < last:
            n, p = _tile(scratch, 0, first, last, mask, chances)
            pa = _part(ta, a, 1, starts, first, n, shape, steps, in_order)
            pb = _part(tb, b, 2, starts, first, n, shape, steps, in_order) if count > 1 else pa
            pc = _part(tc, c, 3, starts, first, n, shape, steps, in_order) if count > 2 else pa
            if in_order[0] and not in_place:
                body(y[starts[0] + first : starts[0] + first + n], pa, pb, pc, keep, scales[p])
            else:  # by way of a tile: a loop whose arrays overlap runs unvectorised
                body(ty[:n], pa, pb, pc, keep, scales[p])
                _scatter(y, ty, starts[0], first, n, shape, steps[0])
            first += n

    return kernel


def _sample_kernel(widen, narrow, mean):
    """``mean``: y = x * (sum of the weights of those that keep it * factor), else y = sum of drop(x[s])."""

    @rule.jitable
    def weigh(y, x, total, factor):
        for i in range(y.size):
            y[i] = narrow(rule.weigh(widen(x[i]), total[i], factor))

    @rule.jitable
    def add_weight(total, keep, weight):
        for i in range(total.size):
            total[i] += weight if keep[i] != 0 else type(weight)(0)

    @rule.jitable
    def add_dropped(total, x, keep, scale):
        for i in range(total.size):
            total[i] += rule.select(keep[i] != 0, widen(x[i]), scale)

    @rule.jitable
    def round_once(y, total):
        for i in range(y.size):
            y[i] = narrow(total[i])

    @jit
    def kernel(y, x, x_step, starts, shape, steps, in_order, mask, mask_step, thresholds, weights, factor, first, last):
        keep, made, have, words, words1 = _scratch()
        ty, tx, total = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype), np.empty(TILE, weights.dtype)
        seed, stream, offset, mask_shape, mask_steps, stored = mask
        while first < last:
            n = min(TILE - first % TILE, last - first)
            total[:n] = 0
            for s in range(thresholds.size):
                part = seed, stream, offset + np.uint64(s) * mask_step, mask_shape, mask_steps, stored
                have[1] = np.uint64(0)
                _decide(keep, made, have, words, words1, first, n, part, thresholds[s])
                if mean:
                    add_weight(total[:n], keep, weights[s])
                else:
                    here = starts.copy()
                    here[1] += s * x_step
                    add_dropped(total[:n], _part(tx, x, 1, here, first, n, shape, steps, in_order), keep, weights[s])
            if mean:
                weigh(ty[:n], _part(tx, x, 1, starts, first, n, shape, steps, in_order), total, factor)
            else:
                round_once(ty[:n], total)
            _scatter(y, ty, starts[0], first, n, shape, steps[0])
            first += n

    return kernel


# dtype's name -> what its memory is seen as, what it is computed in, and how it gets there and back
_DTYPES = {
    "float32": (np.float32, np.float32, np.float32, np.float32),
    "float64": (np.float64, np.float64, np.float64, np.float64),
    "float16": (np.uint16, np.float32, rule.f16_to_f32, rule.f32_to_f16),
    "bfloat16": (np.uint16, np.float32, rule.bf16_to_f32, rule.f32_to_bf16),
}


@cache
def _kernel(dtype, op):
    return _float_kernel(*_DTYPES[dtype][2:], rule.element(OPERATIONS[op], in_double=True))


@cache
def _samples(dtype, mean):
    return _sample_kernel(*_DTYPES[dtype][2:], mean)


# -- the functions of the backend --------------------------------------------------------------------------------------


def keep(out, mask):
    """Write the decisions: ``out`` is bool, of the mask's shape."""
    flat, start = _flat(out, np.uint8, True)
    shape, (steps,) = _walk(out.shape, _steps(out))
    _run(_keep_bytes, out.size, (flat, start, shape, steps, _source(mask, out.shape), _chances(mask, out.shape)))


def keep_bits(out, mask):
    """Write the decisions packed: ``out`` is uint8, (size + 7) // 8 of them, C-contiguous."""
    _run(_keep_bits, mask.size, (out, _source(mask, mask.shape), _chances(mask, mask.shape)))


def apply(y, x, mask):
    """y = drop(x): the forward pass, and on dy the backward pass. ``y`` may be ``x``."""
    elementwise("apply", y, (x,), mask)


def elementwise(op, y, inputs, mask):
    """y = the operation of that name; ``y`` may be one of the inputs."""
    seen_as, computed_in, _, _ = _DTYPES[y.dtype.name]
    arrays = [y, *inputs]
    memory, starts = zip(_flat(y, seen_as, True), *(_flat(one, seen_as) for one in inputs), strict=True)
    memory += memory[1:2] * (4 - len(memory))
    shape, steps = _walk(y.shape, *map(_steps, arrays))
    in_order = np.array([one.flags.c_contiguous for one in arrays])
    in_place = any(np.may_share_memory(y, one) for one in inputs)
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(scale_of(mask.p)).astype(computed_in).ravel()
    layout = len(inputs), np.array(starts), shape, np.array(steps), in_order, in_place
    arguments = *memory, *layout, _source(mask, y.shape), _chances(mask, y.shape), scales
    _run(_kernel(y.dtype.name, op), y.size, arguments)


def apply_sum(total, dy, mask, dx=None):
    """total = the sum of select(mask, dy) over the axes where total has length 1; dx, if given, gets what is summed."""
    reference.apply_sum(total, dy, mask, dx, apply)


def sample_mean(y, x, mask):
    """y = the mean over samples of drop(x) by mask[s]; one p, or one a sample."""
    if type(mask.p) is float:
        _run_samples(True, y, x, mask, 1.0, scale_of(mask.p) / len(mask))
    else:
        _run_samples(True, y, x, mask, scale_of(mask.p), 1.0 / len(mask))


def sample_sum(dx, dy, mask):
    """dx = the sum over samples, in order, of drop(dy[s]) by mask[s]; one p, or one a sample."""
    _run_samples(False, dx, dy, mask, scale_of(mask.p), 1.0)


def _run_samples(mean, y, x, mask, weights, factor):
    seen_as, computed_in, _, _ = _DTYPES[y.dtype.name]
    (y1, y_start), (x1, x_start) = _flat(y, seen_as, True), _flat(x, seen_as)
    one = x if mean else x[0]
    shape, steps = _walk(y.shape, _steps(y), _steps(one))
    in_order = np.array([y.flags.c_contiguous, one.flags.c_contiguous])
    samples = len(mask)
    p = np.broadcast_to(mask.p, (samples,))
    thresholds = np.array([reference.threshold(float(each)) for each in p], np.uint64)
    with np.errstate(over="ignore"):
        weights = np.broadcast_to(np.asarray(weights, np.float64), (samples,)).astype(computed_in)
        factor = computed_in(factor)
    x_step = 0 if mean else x.strides[0] // x.itemsize
    mask_step = np.uint64(mask.strides_for(mask.shape)[0])
    arguments = y1, x1, x_step, np.array([y_start, x_start]), shape, np.array(steps), in_order
    _run(
        _samples(y.dtype.name, mean),
        y.size,
        (*arguments, _source(mask[0], y.shape), mask_step, thresholds, weights, factor),
    )


# -- what the kernels take ---------------------------------------------------------------------------------------------


def _flat(array, dtype, writable=False):
    """All memory that ``array`` spans, as one dimension of ``dtype``, and where its first element is in it.

    Whether an array can be written is part of its type: no input can, so each kernel is compiled once.
    """
    low = tuple(-1 if step < 0 else 0 for step in array.strides)
    reach = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    before = -sum(step for step in reach if step < 0)
    after = sum(step for step in reach if step > 0)
    span = (before + after) // array.itemsize + 1
    first = array[(*[slice(at, None) if at else slice(0, 1) for at in low], ...)]
    flat = np.lib.stride_tricks.as_strided(first, (span,), (array.itemsize,), writeable=writable)
    return flat.view(dtype), before // array.itemsize


def _read_only(array):
    array = array.view()
    array.flags.writeable = False
    return array


def _steps(array):
    return tuple(step // array.itemsize for step in array.strides)


def _walk(shape, *steps, dtype=np.int64):
    shape, *steps = join(shape, *steps)
    return np.array(shape, np.int64), [np.array(at, dtype) for at in steps]


_NOTHING_STORED = _read_only(np.empty(0, np.uint8))


def _source(mask, shape):
    """The kernels' `mask`, broadcast to ``shape``."""
    shape, (steps,) = _walk(shape, mask.strides_for(shape), dtype=np.uint64)
    stored = _NOTHING_STORED if mask._stored is None else _read_only(mask._stored)
    return np.uint64(mask.seed or 0), np.uint64(mask.stream or 0), np.uint64(mask._offset), shape, steps, stored


def _chances(mask, shape):
    """The kernels' `chances`, broadcast to ``shape``."""
    p = mask.wide_p()
    if type(p) is float:
        steps = (0,) * len(shape)
    else:
        p = np.ascontiguousarray(p)
        steps = _steps(np.broadcast_to(p, shape))
    thresholds = np.array([reference.threshold(one) for one in np.ravel(p)], np.uint64)
    axes = max((axis + 1 for axis, step in enumerate(steps) if step), default=0)
    run = math.prod(shape[axes:])
    p_shape, (p_steps,) = _walk(shape[:axes], steps[:axes])
    return thresholds, run, p_shape, p_steps


# -- threads -----------------------------------------------------------------------------------------------------------

_pool, _pool_size = None, 0
_pool_lock = new_lock()


def _run(kernel, size, arguments, grain=TILE, cost=1):
    """Run ``kernel`` on ``size`` items in ranges of whole grains, on as many threads as are allowed and pay."""
    threads = config.get_num_threads() if size * cost >= SERIAL else 1
    part = -(-size // (threads * grain)) * grain
    rest = [(first, min(first + part, size)) for first in range(part, size, part)]
    tasks = [_executor(threads - 1).submit(kernel, *arguments, first, last) for first, last in rest]
    try:
        kernel(*arguments, 0, min(part, size))
    finally:
        wait(tasks)
    for task in tasks:
        task.result()


def _executor(workers):
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < workers:
            _pool, _pool_size = ThreadPoolExecutor(workers, "fastdrop-numba"), workers
        return _pool


@after_fork
def _forget_pool():
    """In a forked child its threads are gone."""
    global _pool
    _pool = None


from .numba_rows import row_losses, softmax_dropout  # noqa: E402, F401  (made of what stands above)
