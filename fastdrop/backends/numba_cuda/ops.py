"""Elementwise CUDA kernels, those over several samples and those that sum, and their launches.

Contiguous arrays under one p are worked on lane by lane (`parts`), 16 elements and one Philox call a thread.
Everything else, strides, broadcasting, parts of masks, a p for each part, users' own decisions, goes element by element
through one kernel, `anywhere`.  No mask is ever stored, nothing here waits for the device, every size is 64-bit.
Kernels on rows stand in `rows`.
"""

import math
from functools import cache

import numpy as np
from numba import cuda

from ...operations import OPERATIONS
from ...rule import scale_of
from ..numba_common import rule
from .parts import (
    AXES,
    BLOCKS,
    DTYPES,
    LOW60,
    PER_INDEX_P,
    THREADS,
    decide,
    first_of,
    flags4,
    jit,
    kept_byte,
    launch,
    load16,
    locate,
    locate3,
    mask_steps,
    numba_stream,
    p_steps,
    pick,
    real,
    source,
    store16,
    stored_bits,
    threshold_and_scale,
    threshold_at,
    thresholds_and_scales,
    wide,
    wrap,
)

PART = 1 << 16  # elements under one p from which on a launch for each p is quicker than deciding one by one

# -- kernels -----------------------------------------------------------------------------------------------------------


@jit
def bits_lanes(out, n, head, base, seed, stream, threshold):
    # Two neighbouring lanes a thread: a byte of each of the four words. `head` is a multiple of 8.
    thread = np.int64(cuda.grid(1))
    first = first_of(thread, head, 3)
    call = base + np.uint64(2 * thread)
    f0, f1, f2, f3 = rule.keep_flags(seed, stream, call & np.uint64(LOW60), threshold)
    g0, g1, g2, g3 = rule.keep_flags(seed, stream, (call + np.uint64(1)) & np.uint64(LOW60), threshold)
    for word in range(4):
        at = first + 64 * word
        if 0 <= at < n:
            low = rule.nibble(pick(f0, f1, f2, f3, word))
            high = rule.nibble(pick(g0, g1, g2, g3, word))
            byte = np.uint32(low | high << np.uint32(4))
            if n - at < 8:
                byte = np.uint32(byte & np.uint32((1 << (n - at)) - 1))
            out[at >> 3] = np.uint8(byte)


@jit
def bits_anywhere(out, n, shape, steps, each, offset, seed, stream, threshold, thresholds, stored, kind):
    # Any mask: a byte a thread, eight decisions one by one.
    thread = np.int64(cuda.grid(1))
    byte = np.uint32(0)
    for bit in range(8):
        at = 8 * thread + bit
        if at < n:
            index = offset + np.uint64(locate(at, shape, steps))
            t = threshold_at(thresholds, locate(at, shape, each), threshold, kind)
            if decide(seed, stream, index, t, stored, kind):
                byte = np.uint32(byte | np.uint32(1 << bit))
    if 8 * thread < n:
        out[thread] = np.uint8(byte)


# What follows makes the kernels of one dtype: ``lanes`` of the layout a thread, arithmetic in the type ``computed``,
# numbers brought there by ``widen`` and back by ``narrow``.


@cache
def _lane_parts(computed, lanes):
    """(load, store, flags_of, kept_in): how a thread gets at the elements of a word, and at its decisions."""
    if lanes == 2 or computed is np.float32:
        load, store = load16, store16
    else:

        @rule.inline
        def load(x, at):
            return load16(x, at) + load16(x, at + 2)

        @rule.inline
        def store(y, at, v):
            store16(y, at, v[:2])
            store16(y, at + 2, v[2:])

    @rule.inline
    def flags_of(thread, base, seed, stream, threshold):
        """Flags of a thread's lane, four words, and of its second lane or again of its only one."""
        call = base + np.uint64(lanes * thread)
        f = rule.keep_flags(seed, stream, call & np.uint64(LOW60), threshold)
        if lanes == 1:
            return f + f
        return f + rule.keep_flags(seed, stream, (call + np.uint64(1)) & np.uint64(LOW60), threshold)

    @rule.inline
    def kept_in(flags, word, k):
        """Is element ``k`` of a thread's group in ``word`` kept?"""
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        return kept_byte(pick(f0, f1, f2, f3, word) if k < 4 else pick(g0, g1, g2, g3, word), k & 3)

    return load, store, flags_of, kept_in


def _group(op, widen, narrow, lanes):
    """op on a thread's group in one word: a function of two words of flags, three inputs and the scale."""

    @rule.inline
    def four(flags, a, b, c, scale):
        return (
            narrow(op(kept_byte(flags, 0), widen(a[0]), widen(b[0]), widen(c[0]), scale)),
            narrow(op(kept_byte(flags, 1), widen(a[1]), widen(b[1]), widen(c[1]), scale)),
            narrow(op(kept_byte(flags, 2), widen(a[2]), widen(b[2]), widen(c[2]), scale)),
            narrow(op(kept_byte(flags, 3), widen(a[3]), widen(b[3]), widen(c[3]), scale)),
        )

    if lanes == 1:
        return rule.inline(lambda f, g, a, b, c, scale: four(f, a, b, c, scale))
    return rule.inline(  # 16-bit numbers: a group is eight of them
        lambda f, g, a, b, c, scale: four(f, a[:4], b[:4], c[:4], scale) + four(g, a[4:], b[4:], c[4:], scale)
    )


def _lane_kernel(op, count, widen, narrow, computed, lanes):
    """y = op(kept, a, b, -, scale); ``count`` of a and b are inputs of it."""
    load, store, flags_of, kept_in = _lane_parts(computed, lanes)
    run = _group(op, widen, narrow, lanes)
    group, shift = 4 * lanes, 5 - lanes  # elements of a thread in each word; 2**shift threads decide 256 elements

    @jit
    def kernel(y, a, b, n, head, aligned, base, seed, stream, threshold, scale):
        thread = np.int64(cuda.grid(1))
        first = first_of(thread, head, shift)
        if first >= n:
            return
        flags = flags_of(thread, base, seed, stream, threshold)
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        if aligned and first >= 0 and first + 192 + group <= n:
            v0, v1 = load(a, first), load(a, first + 64)
            v2, v3 = load(a, first + 128), load(a, first + 192)
            w0, w1, w2, w3 = v0, v1, v2, v3
            if count > 1:
                w0, w1 = load(b, first), load(b, first + 64)
                w2, w3 = load(b, first + 128), load(b, first + 192)
            store(y, first, run(f0, g0, v0, w0, v0, scale))
            store(y, first + 64, run(f1, g1, v1, w1, v1, scale))
            store(y, first + 128, run(f2, g2, v2, w2, v2, scale))
            store(y, first + 192, run(f3, g3, v3, w3, v3, scale))
        else:
            for i in range(4 * group):
                word, k = i // group, i % group
                at = first + 64 * word + k
                if 0 <= at < n:
                    v = widen(a[at])
                    w = widen(b[at]) if count > 1 else v
                    y[at] = narrow(op(kept_in(flags, word, k), v, w, v, scale))

    return kernel


def _add_kernel(widen, narrow, computed, lanes):
    """y = residual + select(mask, x + bias), lane by lane."""
    load, store, flags_of, kept_in = _lane_parts(computed, lanes)
    add, run = rule.select_add, _group(rule.select_add, widen, narrow, lanes)
    group, shift = 4 * lanes, 5 - lanes
    minus_zero = np.uint16(0x8000) if lanes == 2 else computed(-0.0)
    nothing = (minus_zero,) * group  # what no bias adds: x + -0.0 is x

    @jit
    def dropout_add(y, x, residual, bias, columns, n, head, aligned, base, seed, stream, threshold, scale):
        # bias: along the last axis, `columns` long; 0: none
        thread = np.int64(cuda.grid(1))
        first = first_of(thread, head, shift)
        if first >= n:
            return
        flags = flags_of(thread, base, seed, stream, threshold)
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        if aligned and first >= 0 and first + 192 + group <= n:
            b0 = b1 = b2 = b3 = nothing
            if columns:
                c0 = first % columns
                c1 = wrap(c0 + 64, columns)
                c2 = wrap(c1 + 64, columns)
                b0, b1 = load(bias, c0), load(bias, c1)
                b2, b3 = load(bias, c2), load(bias, wrap(c2 + 64, columns))
            v0, v1 = load(x, first), load(x, first + 64)
            v2, v3 = load(x, first + 128), load(x, first + 192)
            r0, r1 = load(residual, first), load(residual, first + 64)
            r2, r3 = load(residual, first + 128), load(residual, first + 192)
            store(y, first, run(f0, g0, v0, b0, r0, scale))
            store(y, first + 64, run(f1, g1, v1, b1, r1, scale))
            store(y, first + 128, run(f2, g2, v2, b2, r2, scale))
            store(y, first + 192, run(f3, g3, v3, b3, r3, scale))
        else:
            for i in range(4 * group):
                word, k = i // group, i % group
                at = first + 64 * word + k
                if 0 <= at < n:
                    b = bias[at % columns] if columns else minus_zero
                    y[at] = narrow(add(kept_in(flags, word, k), widen(x[at]), widen(b), widen(residual[at]), scale))

    return dropout_add


def _anywhere_kernel(op, count, widen, narrow):
    """y = op(kept, a, b, c, scale) with ``count`` inputs, any strides and any mask: four elements a thread."""

    @jit
    def kernel(
        y, a, b, c, starts, n, shape, y_steps, a_steps, b_steps, c_steps, m_steps, each_steps,
        offset, seed, stream, threshold, scale, thresholds, scales, stored, kind,
    ):  # fmt: skip
        e = 4 * np.int64(cuda.grid(1))
        if e >= n:
            return
        inner = AXES - 1
        together = e % shape[inner] + 4 <= shape[inner]  # along the last axis, a step from each to the next
        y_at, a_at, m_at = locate3(e, shape, y_steps, a_steps, m_steps)
        b_at, c_at, each = np.int64(0), np.int64(0), np.int64(0)
        if count > 1 or kind & PER_INDEX_P:
            b_at, c_at, each = locate3(e, shape, b_steps, c_steps, each_steps)
        index = offset + np.uint64(m_at)
        t = threshold_at(thresholds, each, threshold, kind)
        one = m_steps[inner] == 0  # decision for all four
        at_once = (
            together
            and each_steps[inner] == 0
            and (one or (m_steps[inner] == 1 and index & np.uint64(3) == np.uint64(0)))
        )
        flags = np.uint32(0)
        if at_once and one:
            flags = np.uint32(rule.HIGH_BITS if decide(seed, stream, index, t, stored, kind) else 0)
        elif at_once:
            flags = flags4(seed, stream, index, t, stored, kind)
        for k in range(4):
            if e + k < n:
                if k > 0 and together:
                    y_at, a_at, m_at = y_at + y_steps[inner], a_at + a_steps[inner], m_at + m_steps[inner]
                    b_at, c_at, each = b_at + b_steps[inner], c_at + c_steps[inner], each + each_steps[inner]
                elif k > 0:
                    y_at, a_at, m_at = locate3(e + k, shape, y_steps, a_steps, m_steps)
                    if count > 1 or kind & PER_INDEX_P:
                        b_at, c_at, each = locate3(e + k, shape, b_steps, c_steps, each_steps)
                kept = kept_byte(flags, k)
                if not at_once:
                    t = threshold_at(thresholds, each, threshold, kind)
                    kept = decide(seed, stream, offset + np.uint64(m_at), t, stored, kind)
                u = widen(a[starts[1] + a_at])
                v = widen(b[starts[2] + b_at]) if count > 1 else u
                w = widen(c[starts[3] + c_at]) if count > 2 else u
                y[starts[0] + y_at] = narrow(op(kept, u, v, w, scales[each] if kind & PER_INDEX_P else scale))

    return kernel


def _sum_kernel(widen, narrow, computed):
    """dx = the sum of select(mask, dy) over some axes."""

    @jit
    def sum_anywhere(
        dx, dy, starts, n, shape, dx_steps, dy_steps, m_steps, each_steps, terms, inner, dy_inner, m_inner, each_inner,
        offset, seed, stream, threshold, scale, thresholds, scales, stored, kind,
    ):  # fmt: skip
        # dx = the sum of select(mask, dy) over the axes `inner`, in order, rounded once: an element of dx a thread.
        e = np.int64(cuda.grid(1))
        if e < n:
            dy_at, m_at, each_at = locate3(e, shape, dy_steps, m_steps, each_steps)
            whole = computed(0)
            for i in range(terms):
                dy_more, m_more, each_more = locate3(i, inner, dy_inner, m_inner, each_inner)
                each = each_at + each_more
                t = threshold_at(thresholds, each, threshold, kind)
                kept = decide(seed, stream, offset + np.uint64(m_at + m_more), t, stored, kind)
                value = widen(dy[starts[1] + dy_at + dy_more])
                whole += rule.select(kept, value, scales[each] if kind & PER_INDEX_P else scale)
            dx[starts[0] + locate(e, shape, dx_steps)] = narrow(whole)

    return sum_anywhere


def _mean_kernel(widen, narrow, computed):
    """The mean of several masks' dropout of one x."""

    @rule.inline
    def add_sample(sums, weight, index, seed, stream, threshold, stored, kind):
        """The sums of four elements, ``weight`` added where one more sample keeps them; decisions from ``index`` on."""
        if index & np.uint64(3) == np.uint64(0):
            flags = flags4(seed, stream, index, threshold, stored, kind)
        else:  # they lie in two calls
            flags = np.uint32(0)
            for k in range(4):
                if decide(seed, stream, index + np.uint64(k), threshold, stored, kind):
                    flags = np.uint32(flags | np.uint32(128 << 8 * k))
        return (
            sums[0] + (weight if kept_byte(flags, 0) else computed(0)),
            sums[1] + (weight if kept_byte(flags, 1) else computed(0)),
            sums[2] + (weight if kept_byte(flags, 2) else computed(0)),
            sums[3] + (weight if kept_byte(flags, 3) else computed(0)),
        )

    @jit
    def sample_mean(y, x, n, samples, offset, seed, stream, threshold, factor, thresholds, weights, stored, kind):
        # y = x * (sum of the weights of the samples that keep it * factor), four elements a thread; one p: weight 1
        e = 4 * np.int64(cuda.grid(1))
        if e < n:
            sums = (computed(0), computed(0), computed(0), computed(0))
            for s in range(samples):
                index = offset + np.uint64(s) * np.uint64(n) + np.uint64(e)
                t = threshold_at(thresholds, s, threshold, kind)
                weight = weights[s] if kind & PER_INDEX_P else computed(1)
                sums = add_sample(sums, weight, index, seed, stream, t, stored, kind)
            y[e] = narrow(rule.weigh(widen(x[e]), sums[0], factor))
            if e + 1 < n:
                y[e + 1] = narrow(rule.weigh(widen(x[e + 1]), sums[1], factor))
            if e + 2 < n:
                y[e + 2] = narrow(rule.weigh(widen(x[e + 2]), sums[2], factor))
            if e + 3 < n:
                y[e + 3] = narrow(rule.weigh(widen(x[e + 3]), sums[3], factor))

    return sample_mean


def _bias_kernels(widen, narrow, computed):
    """The gradient of a bias, in two steps: sums of parts of the rows, and the sum of these."""

    @jit
    def bias_parts(parts, dy, rows, columns, height, offset, seed, stream, threshold, scale):
        # parts[i] = sum of select(mask, dy) over the i-th `height` rows, a column a thread
        c = np.int64(cuda.blockIdx.x) * THREADS + cuda.threadIdx.x
        part = np.int64(cuda.blockIdx.y)
        if c >= columns:
            return
        whole = computed(0)
        for row in range(part * height, min(rows, (part + 1) * height)):
            at = row * columns + c
            kept = rule.keep(seed, stream, offset + np.uint64(at), threshold)
            whole += rule.select(kept, widen(dy[at]), scale)
        parts[part * columns + c] = whole

    @jit
    def sum_parts(db, parts, height, columns):
        c = np.int64(cuda.grid(1))
        if c < columns:
            whole = computed(0)
            for part in range(height):
                whole += parts[part * columns + c]
            db[c] = narrow(whole)

    return bias_parts, sum_parts


@cache
def kernels_of(dtype):
    """The kernels of one dtype by name."""
    number = DTYPES[dtype]
    kernels = {"lanes add": _add_kernel(*number)}
    for name, operation in OPERATIONS.items():
        op, count = rule.element(operation, in_double=False), len(operation.inputs)
        kernels[f"anywhere {name}"] = _anywhere_kernel(op, count, *number[:2])
        if not operation.residual:
            kernels[f"lanes {name}"] = _lane_kernel(op, count, *number)
    sums = _sum_kernel(*number[:3]), _mean_kernel(*number[:3]), *_bias_kernels(*number[:3])
    return kernels | {kernel.py_func.__name__: kernel for kernel in sums}


# -- launches ----------------------------------------------------------------------------------------------------------
# Arrays are `DeviceArray`s of `fastdrop.cuda` that have been checked; ``stream`` is the address of a CUDA stream.


def _plain(mask):
    """Is it made of seed and stream under one p, its elements one after another?"""
    return mask._strides is None and mask._stored is None and type(mask.p) is float


def _lane_arguments(mask, aligned, group):
    offset = mask._offset
    head = offset & 255
    return head, bool(aligned and head % group == 0), np.uint64((offset >> 8) * 16), *source(mask)


def keep_bits(out, mask, stream):
    """Write the decisions packed: ``out`` is uint8, (size + 7) // 8 of them."""
    n, head = mask.size, mask._offset & 255
    if _plain(mask) and head % 8 == 0:
        arguments = _lane_arguments(mask, True, 8)
        threshold, _ = threshold_and_scale(mask.p, "float32")
        threads = 8 * -(-(head + n) // 256)
        launch(bits_lanes, threads, stream, out.kernel_argument(), n, head, *arguments[2:], threshold)
    else:
        walk = wide(mask.shape, mask_steps(mask, mask.shape), p_steps(mask, mask.shape))
        threshold, _, thresholds, _ = thresholds_and_scales(mask, out, stream)
        stored, kind = stored_bits(mask, out, stream)
        arguments = np.uint64(mask._offset), *source(mask), threshold, thresholds, stored, kind
        launch(bits_anywhere, out.size, stream, out.kernel_argument(), n, *walk, *arguments)


def elementwise(op, y, inputs, mask, stream):
    """y = op on the decisions of ``mask`` and on ``inputs``, one to three arrays of y's shape; y may be one of them."""
    in_order = y.contiguous and all(one.contiguous for one in inputs)
    if in_order and _plain(mask) and mask.size == y.size and f"lanes {op}" in (kernels := kernels_of(y.dtype)):
        lanes = DTYPES[y.dtype][3]
        aligned = all(one.aligned16 for one in (y, *inputs))
        head, *rest = _lane_arguments(mask, aligned, 4 * lanes)
        arrays = [one.kernel_argument() for one in (y, *inputs)]
        arrays += arrays[1:2] * (3 - len(arrays))
        threads = -(-(head + y.size) // 256) * (16 // lanes)
        chance = threshold_and_scale(mask.p, y.dtype)
        launch(kernels[f"lanes {op}"], threads, stream, *arrays, y.size, head, *rest, *chance)
    elif type(mask.p) is not float and mask.shape[0] == y.shape[0] <= y.size // PART and mask.ndim == len(y.shape):
        for i in range(mask.shape[0]):
            elementwise(op, y.take(0, i), [one.take(0, i) for one in inputs], mask[i], stream)
    else:
        _anywhere(op, y, inputs, mask, stream)


def _anywhere(op, y, inputs, mask, stream):
    arrays = [y, *inputs]
    arrays += [inputs[0]] * (4 - len(arrays))
    steps = [one.steps for one in arrays]
    walk = wide(y.shape, *steps, mask_steps(mask, y.shape), p_steps(mask, y.shape))
    memory = [one.kernel_argument() for one in arrays]
    starts = tuple(one.before for one in arrays)
    launch(
        kernels_of(y.dtype)[f"anywhere {op}"], -(-y.size // 4), stream, *memory, starts, y.size, *walk,
        np.uint64(mask._offset), *source(mask), *thresholds_and_scales(mask, y, stream), *stored_bits(mask, y, stream),
    )  # fmt: skip


def dropout_add(y, x, residual, bias, mask, stream):
    """y = residual + select(mask, x + bias); ``bias`` may be None, or broadcast along all axes but the last."""
    in_order = all(one.contiguous for one in (y, x, residual))
    rows = bias is None or (bias.steps[-1:] == (1,) and not any(bias.steps[:-1]))
    if not (in_order and rows and _plain(mask) and mask.size == y.size):
        op, inputs = ("add", (x, residual)) if bias is None else ("bias_add", (x, residual, bias))
        return elementwise(op, y, inputs, mask, stream)
    lanes = DTYPES[y.dtype][3]
    columns = 0 if bias is None else y.shape[-1]
    arrays = [one for one in (y, x, residual, bias) if one is not None]
    aligned = all(one.aligned16 for one in arrays) and columns % (4 * lanes) == 0
    head, *rest = _lane_arguments(mask, aligned, 4 * lanes)
    threads = -(-(head + x.size) // 256) * (16 // lanes)
    memory = [one.kernel_argument() for one in (y, x, residual, bias or residual)]
    chance = threshold_and_scale(mask.p, x.dtype)
    launch(kernels_of(x.dtype)["lanes add"], threads, stream, *memory, columns, x.size, head, *rest, *chance)


def bias_gradient(db, dy, mask, parts, stream):
    """db = the sum of select(mask, dy) over all axes but the last; ``parts`` is (height, columns), for sums."""
    columns = dy.shape[-1]
    rows, height = dy.size // columns, parts.shape[0]
    kernels = kernels_of(dy.dtype)
    arguments = parts.kernel_argument(), dy.kernel_argument(), rows, columns, -(-rows // height)
    chance = np.uint64(mask._offset), *source(mask), *threshold_and_scale(mask.p, dy.dtype)
    grid = max(-(-columns // THREADS), -(-BLOCKS // height)), height
    kernels["bias_parts"][grid, THREADS, numba_stream(stream)](*arguments, *chance)
    launch(kernels["sum_parts"], columns, stream, db.kernel_argument(), parts.kernel_argument(), height, columns)


def apply_sum(dx, dy, mask, stream):
    """dx = the sum of select(mask, dy) over the axes along which dx is shorter than dy, rounded once."""
    lead = len(dy.shape) - len(dx.shape)
    shared = [i < lead or dx.shape[i - lead] != n for i, n in enumerate(dy.shape)]
    dx_steps = (0,) * lead + dx.steps
    all_steps = dx_steps, dy.steps, mask_steps(mask, dy.shape), p_steps(mask, dy.shape)

    def axes(which):
        shape, *steps = ([at for at, here in zip(one, shared) if here == which] for one in (dy.shape, *all_steps))
        return math.prod(shape), wide(shape, *steps)

    n, outer = axes(False)
    terms, inner = axes(True)
    launch(
        kernels_of(dy.dtype)["sum_anywhere"], n, stream, dx.kernel_argument(), dy.kernel_argument(),
        (dx.before, dy.before), n, *outer, terms, inner[0], *inner[2:],
        np.uint64(mask._offset), *source(mask),
        *thresholds_and_scales(mask, dy, stream), *stored_bits(mask, dy, stream),
    )  # fmt: skip


def sample_mean(y, x, mask, stream):
    """y = the mean over s of select(mask[s], x): the forward pass, and on dy the backward pass."""
    samples, threads = mask.shape[0], -(-x.size // 4)
    threshold, _, thresholds, weights = thresholds_and_scales(mask, x, stream)
    with np.errstate(over="ignore"):
        factor = real(x.dtype)((scale_of(mask.p) if type(mask.p) is float else 1.0) / samples)
    arguments = y.kernel_argument(), x.kernel_argument(), x.size, samples, np.uint64(mask._offset), *source(mask)
    tables = thresholds, weights, *stored_bits(mask, x, stream)
    launch(kernels_of(x.dtype)["sample_mean"], threads, stream, *arguments, threshold, factor, *tables)
