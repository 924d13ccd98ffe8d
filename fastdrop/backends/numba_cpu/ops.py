"""Elementwise kernels of the Numba backend on the CPU, and those over several samples.

The mask's decisions on a tile of 4096 elements are made in a buffer in L1, one byte each (`parts`), and then an
elementwise body consumes them.
"""

from functools import cache

import numpy as np

from ...operations import OPERATIONS
from ...rule import scale_of, threshold
from .. import reference
from ..numba_common import rule
from .operands import as_flat, source, steps_of, thresholds_of, walk
from .parts import DTYPES, TILE, decide, decide_tile, jit, new_scratch, part_of, scatter
from .threads import run

# -- kernels -----------------------------------------------------------------------------------------------------------


@jit
def _keep_bytes(out, start, shape, steps, mask, thresholds, first, last):
    scratch = new_scratch()
    while first < last:
        n, _ = decide_tile(scratch, 0, first, last, mask, thresholds)
        scatter(out, scratch[0], start, first, n, shape, steps)
        first += n


@jit
def _keep_bits(out, mask, thresholds, first, last):
    scratch = new_scratch()
    keep = scratch[0]
    eights = keep.view(np.uint64)
    while first < last:
        n = min(TILE, last - first)
        at = 0
        while at < n:
            at += decide_tile(scratch, at, first + at, first + n, mask, thresholds)[0]
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
    def kernel(y, a, b, c, count, starts, shape, steps, in_order, in_place, mask, thresholds, scales, first, last):
        scratch = new_scratch()
        keep = scratch[0]
        ty, ta = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype)
        tb, tc = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype)
        while first < last:
            n, p = decide_tile(scratch, 0, first, last, mask, thresholds)
            pa = part_of(ta, a, 1, starts, first, n, shape, steps, in_order)
            pb = part_of(tb, b, 2, starts, first, n, shape, steps, in_order) if count > 1 else pa
            pc = part_of(tc, c, 3, starts, first, n, shape, steps, in_order) if count > 2 else pa
            if in_order[0] and not in_place:
                body(y[starts[0] + first : starts[0] + first + n], pa, pb, pc, keep, scales[p])
            else:  # by way of a tile: a loop whose arrays overlap runs unvectorised
                body(ty[:n], pa, pb, pc, keep, scales[p])
                scatter(y, ty, starts[0], first, n, shape, steps[0])
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
        keep, made, have, words, words1 = new_scratch()
        ty, tx, total = np.empty(TILE, y.dtype), np.empty(TILE, y.dtype), np.empty(TILE, weights.dtype)
        seed, stream, offset, mask_shape, mask_steps, stored = mask
        while first < last:
            n = min(TILE - first % TILE, last - first)
            total[:n] = 0
            for s in range(thresholds.size):
                part = seed, stream, offset + np.uint64(s) * mask_step, mask_shape, mask_steps, stored
                have[1] = np.uint64(0)
                decide(keep, made, have, words, words1, first, n, part, thresholds[s])
                if mean:
                    add_weight(total[:n], keep, weights[s])
                else:
                    here = starts.copy()
                    here[1] += s * x_step
                    add_dropped(total[:n], part_of(tx, x, 1, here, first, n, shape, steps, in_order), keep, weights[s])
            if mean:
                weigh(ty[:n], part_of(tx, x, 1, starts, first, n, shape, steps, in_order), total, factor)
            else:
                round_once(ty[:n], total)
            scatter(y, ty, starts[0], first, n, shape, steps[0])
            first += n

    return kernel


@cache
def _kernel(dtype, op):
    return _float_kernel(*DTYPES[dtype][2:], rule.element(OPERATIONS[op], in_double=True))


@cache
def _samples(dtype, mean):
    return _sample_kernel(*DTYPES[dtype][2:], mean)


# -- the functions of the backend --------------------------------------------------------------------------------------


def keep(out, mask):
    """Write the decisions: ``out`` is bool, of the mask's shape."""
    flat, start = as_flat(out, np.uint8, True)
    shape, (steps,) = walk(out.shape, steps_of(out))
    run(_keep_bytes, out.size, (flat, start, shape, steps, source(mask, out.shape), thresholds_of(mask, out.shape)))


def keep_bits(out, mask):
    """Write the decisions packed: ``out`` is uint8, (size + 7) // 8 of them, C-contiguous."""
    run(_keep_bits, mask.size, (out, source(mask, mask.shape), thresholds_of(mask, mask.shape)))


def apply(y, x, mask):
    """y = drop(x): the forward pass, and on dy the backward pass. ``y`` may be ``x``."""
    elementwise("apply", y, (x,), mask)


def elementwise(op, y, inputs, mask):
    """y = the operation of that name; ``y`` may be one of the inputs."""
    seen_as, computed_in, _, _ = DTYPES[y.dtype.name]
    arrays = [y, *inputs]
    memory, starts = zip(as_flat(y, seen_as, True), *(as_flat(one, seen_as) for one in inputs), strict=True)
    memory += memory[1:2] * (4 - len(memory))
    shape, steps = walk(y.shape, *map(steps_of, arrays))
    in_order = np.array([one.flags.c_contiguous for one in arrays])
    in_place = any(np.may_share_memory(y, one) for one in inputs)
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(scale_of(mask.p)).astype(computed_in).ravel()
    layout = len(inputs), np.array(starts), shape, np.array(steps), in_order, in_place
    arguments = *memory, *layout, source(mask, y.shape), thresholds_of(mask, y.shape), scales
    run(_kernel(y.dtype.name, op), y.size, arguments)


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
    seen_as, computed_in, _, _ = DTYPES[y.dtype.name]
    (y1, y_start), (x1, x_start) = as_flat(y, seen_as, True), as_flat(x, seen_as)
    one = x if mean else x[0]
    shape, steps = walk(y.shape, steps_of(y), steps_of(one))
    in_order = np.array([y.flags.c_contiguous, one.flags.c_contiguous])
    samples = len(mask)
    p = np.broadcast_to(mask.p, (samples,))
    thresholds = np.array([threshold(float(each)) for each in p], np.uint64)
    with np.errstate(over="ignore"):
        weights = np.broadcast_to(np.asarray(weights, np.float64), (samples,)).astype(computed_in)
        factor = computed_in(factor)
    x_step = 0 if mean else x.strides[0] // x.itemsize
    mask_step = np.uint64(mask.strides_for(mask.shape)[0])
    arguments = y1, x1, x_step, np.array([y_start, x_start]), shape, np.array(steps), in_order
    run(
        _samples(y.dtype.name, mean),
        y.size,
        (*arguments, source(mask[0], y.shape), mask_step, thresholds, weights, factor),
    )
