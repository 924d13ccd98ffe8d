"""The Numba backend on NVIDIA GPUs: the kernels and how each is launched. `fastdrop.cuda` brings users' arrays in.

One thread is one lane of the stream's layout: one Philox call decides its 16 elements, which lie in four groups of 4,
so a float32 group is one 16-byte load and one 16-byte store, and 16 threads touch 256 consecutive bytes.  A thread of a
16-bit dtype is two neighbouring lanes, so that its groups of 8 are 16 bytes too.  Decisions are compared four to a word
(see `numba_rule.keep_flags`), ties included, and no mask is ever stored.

Kernels on rows (softmax, losses) take one block a row and sum in an order that is fixed by the row's length.  Nothing
here synchronises or copies.  Every size is 64-bit.

In Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the kernels run as plain Python.
"""

import math
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numba import config, cuda, types
from numba.extending import intrinsic, overload

from ..mask import scale_of
from . import numba_rule as rule
from .axes import join
from .reference import threshold

NAME = "cuda"
THREADS = 32 if config.ENABLE_CUDASIM else 256  # a block; the simulator starts a Python thread for each
ALLOW, ADD = 1, 2  # kinds of attention mask
AXES = 8  # of an array with strides, once axes that follow one another are joined

_SOURCES = sha256(Path(__file__).read_bytes() + Path(rule.__file__).read_bytes()).hexdigest()
_LOW60 = (1 << 60) - 1

# -- 16 bytes at once --------------------------------------------------------------------------------------------------
# Four scalar loads stay four loads: nothing tells NVVM that an array is aligned. And a vector load of eight 16-bit
# numbers becomes two of four, whatever type it is written in: so the instruction itself is written down. 16-bit numbers
# go in pairs, as words.

_ASM = {32: ("v4.f32", "f", rule.ir.FloatType(), 4), 64: ("v2.f64", "d", rule.ir.DoubleType(), 2)}
_ASM[16] = "v4.u32", "r", rule.ir.IntType(32), 4


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [index])
    return builder.ptrtoint(builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(1)), rule.ir.IntType(64))


@intrinsic
def _load16(typing_context, array, index):
    bits = array.dtype.bitwidth
    result = types.UniTuple(array.dtype, 128 // bits)

    def generate(context, builder, signature, args):
        name, letter, kind, count = _ASM[bits]
        into = ", ".join(f"${i}" for i in range(count))
        code = f"ld.global.{name} {{{into}}}, [${count}];"
        shape = rule.ir.FunctionType(rule.ir.LiteralStructType([kind] * count), [rule.ir.IntType(64)])
        constraints = ",".join([f"={letter}"] * count + ["l"])
        address = _address(context, builder, array, *args)
        loaded = builder.asm(shape, code, constraints, [address], True)
        items = [builder.extract_value(loaded, i) for i in range(count)]
        if bits == 16:
            short = rule.ir.IntType(16)
            halves = [(builder.trunc(w, short), builder.trunc(builder.lshr(w, w.type(16)), short)) for w in items]
            items = [half for pair in halves for half in pair]
        return context.make_tuple(builder, result, items)

    return result(array, types.int64), generate


@intrinsic
def _store16(typing_context, array, index, values):
    bits = array.dtype.bitwidth

    def generate(context, builder, signature, args):
        name, letter, kind, count = _ASM[bits]
        items = [builder.extract_value(args[2], i) for i in range(values.count)]
        if bits == 16:
            words = [builder.zext(item, kind) for item in items]
            items = [builder.or_(a, builder.shl(b, kind(16))) for a, b in zip(words[::2], words[1::2], strict=True)]
        given = ", ".join(f"${i + 1}" for i in range(count))
        shape = rule.ir.FunctionType(rule.ir.VoidType(), [rule.ir.IntType(64)] + [kind] * count)
        constraints = ",".join(["l"] + [letter] * count)
        address = _address(context, builder, array, *args[:2])
        builder.asm(shape, f"st.global.{name} [$0], {{{given}}};", constraints, [address, *items], True)
        return context.get_dummy_value()

    return types.void(array, types.int64, values), generate


def load16(array, index):
    """The elements of ``array`` in the 16 bytes from ``index`` on, which must be aligned."""
    return tuple(array[index + i] for i in range(16 // array.dtype.itemsize))


def store16(array, index, values):
    """Write 16 bytes of elements from ``index`` on, which must be aligned."""
    for i in range(len(values)):
        array[index + i] = values[i]


@overload(load16)
def _(array, index):
    return lambda array, index: _load16(array, np.int64(index))


@overload(store16)
def _(array, index, values):
    return lambda array, index, values: _store16(array, np.int64(index), values)


# -- pieces of kernels -------------------------------------------------------------------------------------------------


@rule.inline
def _locate(index, shape, steps):
    """Where element ``index`` (C order) of an array of ``shape`` lies, in steps."""
    at = np.int64(0)
    for i in range(AXES):
        axis = AXES - 1 - i
        rest = index // shape[axis]
        at += (index - rest * shape[axis]) * steps[axis]
        index = rest
    return at


@rule.inline
def _wrap(column, columns):
    return column if column < columns else column % columns


@rule.inline
def _pick(k0, k1, k2, k3, word):
    low = k1 if word & 1 else k0
    high = k3 if word & 1 else k2
    return high if word & 2 else low


@rule.inline
def _kept(flags, byte):
    return (flags >> np.uint32(8 * byte + 7)) & np.uint32(1) != np.uint32(0)


@rule.inline
def _flags4(seed, stream, index, threshold):
    """Flags of the four elements from ``index`` (a multiple of 4) on."""
    k0, k1, k2, k3 = rule.keep_flags(seed, stream, rule.call_of(index), threshold)
    return _pick(k0, k1, k2, k3, np.int64((index >> np.uint64(6)) & np.uint64(3)))


@rule.inline
def _first_of(thread, head, shift):
    """First of a thread's elements, in an array whose element 0 is element ``head`` of a block of 256."""
    return (thread >> shift) * 256 + (thread & ((1 << shift) - 1)) * (64 >> shift) - head


def _build(sources):
    """Kernels that do not know dtypes."""

    @cuda.jit(cache=True)
    def bits_lanes(out, n, head, base, seed, stream, threshold):
        # Two neighbouring lanes a thread: a byte of each of the four words. `head` is a multiple of 8.
        assert sources
        thread = np.int64(cuda.grid(1))
        first = _first_of(thread, head, 3)
        call = base + np.uint64(2 * thread)
        f0, f1, f2, f3 = rule.keep_flags(seed, stream, call & np.uint64(_LOW60), threshold)
        g0, g1, g2, g3 = rule.keep_flags(seed, stream, (call + np.uint64(1)) & np.uint64(_LOW60), threshold)
        for word in range(4):
            at = first + 64 * word
            if 0 <= at < n:
                low = rule.nibble(_pick(f0, f1, f2, f3, word))
                high = rule.nibble(_pick(g0, g1, g2, g3, word))
                byte = np.uint32(low | high << np.uint32(4))
                if n - at < 8:
                    byte = np.uint32(byte & np.uint32((1 << (n - at)) - 1))
                out[at >> 3] = np.uint8(byte)

    @cuda.jit(cache=True)
    def bits_anywhere(out, n, shape, steps, offset, seed, stream, threshold):
        # Any part of a mask: a byte a thread, eight decisions one by one.
        assert sources
        thread = np.int64(cuda.grid(1))
        byte = np.uint32(0)
        for bit in range(8):
            at = 8 * thread + bit
            if at < n:
                index = offset + np.uint64(_locate(at, shape, steps))
                if rule.keep(seed, stream, index, threshold):
                    byte = np.uint32(byte | np.uint32(1 << bit))
        if 8 * thread < n:
            out[thread] = np.uint8(byte)

    return bits_lanes, bits_anywhere


def _build_for(sources, widen, narrow, computed, lanes):
    """Kernels of one dtype: ``lanes`` of the layout a thread, arithmetic in the type ``computed``."""
    group = 4 * lanes  # consecutive elements of a thread, in each of the four words
    shift = 4 if lanes == 1 else 3  # 2**shift threads make the decisions of a block of 256 elements
    real = types.float64 if computed is np.float64 else types.float32
    minus_zero = np.uint16(0x8000) if lanes == 2 else computed(-0.0)
    nothing = (minus_zero,) * group  # what no bias adds: x + -0.0 is x
    exp, log, expm1 = math.exp, math.log, math.expm1

    @rule.inline
    def drop4(flags, v, scale):
        return (
            narrow(rule.select(_kept(flags, 0), widen(v[0]), scale)),
            narrow(rule.select(_kept(flags, 1), widen(v[1]), scale)),
            narrow(rule.select(_kept(flags, 2), widen(v[2]), scale)),
            narrow(rule.select(_kept(flags, 3), widen(v[3]), scale)),
        )

    @rule.inline
    def drop4_add(flags, v, b, r, scale):
        return (
            narrow(rule.select_add(_kept(flags, 0), widen(v[0]), widen(b[0]), widen(r[0]), scale)),
            narrow(rule.select_add(_kept(flags, 1), widen(v[1]), widen(b[1]), widen(r[1]), scale)),
            narrow(rule.select_add(_kept(flags, 2), widen(v[2]), widen(b[2]), widen(r[2]), scale)),
            narrow(rule.select_add(_kept(flags, 3), widen(v[3]), widen(b[3]), widen(r[3]), scale)),
        )

    if lanes == 2:  # 16-bit numbers: a group is eight of them
        load, store = load16, store16

        @rule.inline
        def drop(f, g, v, scale):
            return drop4(f, v[:4], scale) + drop4(g, v[4:], scale)

        @rule.inline
        def drop_add(f, g, v, b, r, scale):
            return drop4_add(f, v[:4], b[:4], r[:4], scale) + drop4_add(g, v[4:], b[4:], r[4:], scale)

    else:

        @rule.inline
        def drop(f, g, v, scale):
            return drop4(f, v, scale)

        @rule.inline
        def drop_add(f, g, v, b, r, scale):
            return drop4_add(f, v, b, r, scale)

        if computed is np.float64:

            @rule.inline
            def load(x, at):
                return load16(x, at) + load16(x, at + 2)

            @rule.inline
            def store(y, at, v):
                store16(y, at, v[:2])
                store16(y, at + 2, v[2:])

        else:
            load, store = load16, store16

    @rule.inline
    def flags_of(thread, base, seed, stream, threshold):
        """Flags of a thread's lane, four words, and of its second lane or again of its only one."""
        call = base + np.uint64(lanes * thread)
        f = rule.keep_flags(seed, stream, call & np.uint64(_LOW60), threshold)
        if lanes == 1:
            return f + f
        return f + rule.keep_flags(seed, stream, (call + np.uint64(1)) & np.uint64(_LOW60), threshold)

    @rule.inline
    def kept_in(flags, word, k):
        """Is element ``k`` of a thread's group in ``word`` kept?"""
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        return _kept(_pick(f0, f1, f2, f3, word) if k < 4 else _pick(g0, g1, g2, g3, word), k & 3)

    @cuda.jit(cache=True)
    def dropout(y, x, n, head, aligned, base, seed, stream, threshold, scale):
        assert sources
        thread = np.int64(cuda.grid(1))
        first = _first_of(thread, head, shift)
        if first >= n:
            return
        flags = flags_of(thread, base, seed, stream, threshold)
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        if aligned and first >= 0 and first + 192 + group <= n:
            v0, v1 = load(x, first), load(x, first + 64)
            v2, v3 = load(x, first + 128), load(x, first + 192)
            store(y, first, drop(f0, g0, v0, scale))
            store(y, first + 64, drop(f1, g1, v1, scale))
            store(y, first + 128, drop(f2, g2, v2, scale))
            store(y, first + 192, drop(f3, g3, v3, scale))
        else:
            for i in range(4 * group):
                word, k = i // group, i % group
                at = first + 64 * word + k
                if 0 <= at < n:
                    y[at] = narrow(rule.select(kept_in(flags, word, k), widen(x[at]), scale))

    @cuda.jit(cache=True)
    def dropout_add(y, x, residual, bias, columns, n, head, aligned, base, seed, stream, threshold, scale):
        # bias: along the last axis, `columns` long; 0: none
        assert sources
        thread = np.int64(cuda.grid(1))
        first = _first_of(thread, head, shift)
        if first >= n:
            return
        flags = flags_of(thread, base, seed, stream, threshold)
        f0, f1, f2, f3, g0, g1, g2, g3 = flags
        if aligned and first >= 0 and first + 192 + group <= n:
            b0 = b1 = b2 = b3 = nothing
            if columns:
                c0 = first % columns
                c1 = _wrap(c0 + 64, columns)
                c2 = _wrap(c1 + 64, columns)
                b0, b1 = load(bias, c0), load(bias, c1)
                b2, b3 = load(bias, c2), load(bias, _wrap(c2 + 64, columns))
            v0, v1 = load(x, first), load(x, first + 64)
            v2, v3 = load(x, first + 128), load(x, first + 192)
            r0, r1 = load(residual, first), load(residual, first + 64)
            r2, r3 = load(residual, first + 128), load(residual, first + 192)
            store(y, first, drop_add(f0, g0, v0, b0, r0, scale))
            store(y, first + 64, drop_add(f1, g1, v1, b1, r1, scale))
            store(y, first + 128, drop_add(f2, g2, v2, b2, r2, scale))
            store(y, first + 192, drop_add(f3, g3, v3, b3, r3, scale))
        else:
            for i in range(4 * group):
                word, k = i // group, i % group
                at = first + 64 * word + k
                if 0 <= at < n:
                    kept = kept_in(flags, word, k)
                    b = bias[at % columns] if columns else nothing[0]
                    y[at] = narrow(rule.select_add(kept, widen(x[at]), widen(b), widen(residual[at]), scale))

    @cuda.jit(cache=True)
    def anywhere(
        y, x, y_start, x_start, n, shape, y_steps, x_steps, m_steps, offset, seed, stream, threshold, scale
    ):  # fmt: skip
        # Any strides of y, x and mask: an element a thread.
        assert sources
        e = np.int64(cuda.grid(1))
        if e < n:
            index = offset + np.uint64(_locate(e, shape, m_steps))
            kept = rule.keep(seed, stream, index, threshold)
            value = widen(x[x_start + _locate(e, shape, x_steps)])
            y[y_start + _locate(e, shape, y_steps)] = narrow(rule.select(kept, value, scale))

    @rule.inline
    def add_sample(sums, weight, index, seed, stream, threshold):
        """The sums of four elements, ``weight`` added where one more sample keeps them; decisions from ``index`` on."""
        if index & np.uint64(3) == np.uint64(0):
            flags = _flags4(seed, stream, index, threshold)
        else:  # they lie in two calls
            flags = np.uint32(0)
            for k in range(4):
                if rule.keep(seed, stream, index + np.uint64(k), threshold):
                    flags = np.uint32(flags | np.uint32(128 << 8 * k))
        return (
            sums[0] + (weight if _kept(flags, 0) else computed(0)),
            sums[1] + (weight if _kept(flags, 1) else computed(0)),
            sums[2] + (weight if _kept(flags, 2) else computed(0)),
            sums[3] + (weight if _kept(flags, 3) else computed(0)),
        )

    @rule.inline
    def write_mean(y, x, e, n, sums, factor):
        y[e] = narrow(rule.weigh(widen(x[e]), sums[0], factor))
        if e + 1 < n:
            y[e + 1] = narrow(rule.weigh(widen(x[e + 1]), sums[1], factor))
        if e + 2 < n:
            y[e + 2] = narrow(rule.weigh(widen(x[e + 2]), sums[2], factor))
        if e + 3 < n:
            y[e + 3] = narrow(rule.weigh(widen(x[e + 3]), sums[3], factor))

    @cuda.jit(cache=True)
    def sample_mean(y, x, n, samples, offset, seed, stream, threshold, factor):
        # y = x * (number of samples that keep it * factor), four elements a thread
        assert sources
        e = 4 * np.int64(cuda.grid(1))
        if e < n:
            sums = (computed(0), computed(0), computed(0), computed(0))
            for s in range(samples):
                index = offset + np.uint64(s) * np.uint64(n) + np.uint64(e)
                sums = add_sample(sums, computed(1), index, seed, stream, threshold)
            write_mean(y, x, e, n, sums, factor)

    @cuda.jit(cache=True)
    def sample_mean_each(y, x, n, samples, offset, seed, stream, thresholds, weights, factor):
        # The same with a p for each sample.
        assert sources
        e = 4 * np.int64(cuda.grid(1))
        if e < n:
            sums = (computed(0), computed(0), computed(0), computed(0))
            for s in range(samples):
                index = offset + np.uint64(s) * np.uint64(n) + np.uint64(e)
                sums = add_sample(sums, weights[s], index, seed, stream, thresholds[s])
            write_mean(y, x, e, n, sums, factor)

    # -- rows: one block each, sums by a tree over its threads ---------------------------------------------------------

    @rule.inline
    def total(shared, value):
        thread = cuda.threadIdx.x
        cuda.syncthreads()
        shared[thread] = value
        width = THREADS // 2
        while width > 0:
            cuda.syncthreads()
            if thread < width:
                shared[thread] += shared[thread + width]
            width //= 2
        cuda.syncthreads()
        return shared[0]

    @rule.inline
    def largest(shared, value):
        thread = cuda.threadIdx.x
        cuda.syncthreads()
        shared[thread] = value
        width = THREADS // 2
        while width > 0:
            cuda.syncthreads()
            if thread < width:
                shared[thread] = max(shared[thread], shared[thread + width])
            width //= 2
        cuda.syncthreads()
        return shared[0]

    @rule.inline
    def score(scores, seen, kind, at, there):
        """A score under its attention mask: none, bools that allow, or numbers to add."""
        if kind == ALLOW and not seen[there]:
            return computed(-np.inf)
        if kind == ADD:
            return widen(scores[at]) + computed(seen[there])
        return widen(scores[at])

    @cuda.jit(cache=True)
    def softmax_dropout(y, saved, scores, columns, seen, kind, lead, steps, offset, seed, stream, threshold, scale):
        # Attention weights. `saved` takes the largest score and 1 / sum of each row, which the backward needs.
        assert sources
        shared = cuda.shared.array(THREADS, real)
        row = np.int64(cuda.blockIdx.x)
        start = row * columns
        there = _locate(row, lead, steps)
        step = steps[AXES]
        top = computed(-np.inf)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            top = max(top, score(scores, seen, kind, start + c, there + c * step))
        top = largest(shared, top)
        if top == computed(-np.inf):
            top = computed(0)  # a row with nothing to look at: every term below is 0, and so is the row
        part = computed(0)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            part += exp(score(scores, seen, kind, start + c, there + c * step) - top)
        whole = total(shared, part)
        share = computed(1) / whole if whole != computed(0) else computed(0)
        if cuda.threadIdx.x == 0:
            saved[2 * row] = top
            saved[2 * row + 1] = share
        skew = np.int64((offset + np.uint64(start)) & np.uint64(3))
        aligned = offset + np.uint64(start) - np.uint64(skew)
        for g in range(4 * cuda.threadIdx.x, columns + skew, 4 * THREADS):
            flags = _flags4(seed, stream, aligned + np.uint64(g), threshold)
            for k in range(4):
                c = g + k - skew
                if 0 <= c < columns:
                    p = exp(score(scores, seen, kind, start + c, there + c * step) - top) * share
                    y[start + c] = narrow(rule.select(_kept(flags, k), p, scale))

    @cuda.jit(cache=True)
    def softmax_dropout_backward(
        dscores, dy, saved, scores, columns, seen, kind, lead, steps, offset, seed, stream, threshold, scale
    ):
        # With p the softmax and g = select(mask, dy): dscores = p * (g - sum(g * p)).
        assert sources
        shared = cuda.shared.array(THREADS, real)
        row = np.int64(cuda.blockIdx.x)
        start = row * columns
        there = _locate(row, lead, steps)
        step = steps[AXES]
        top, share = saved[2 * row], saved[2 * row + 1]
        skew = np.int64((offset + np.uint64(start)) & np.uint64(3))
        aligned = offset + np.uint64(start) - np.uint64(skew)
        dot = computed(0)
        for sweep in range(2):
            part = computed(0)
            for g in range(4 * cuda.threadIdx.x, columns + skew, 4 * THREADS):
                flags = _flags4(seed, stream, aligned + np.uint64(g), threshold)
                for k in range(4):
                    c = g + k - skew
                    if 0 <= c < columns:
                        p = exp(score(scores, seen, kind, start + c, there + c * step) - top) * share
                        kept = rule.select(_kept(flags, k), widen(dy[start + c]), scale)
                        if sweep == 0:
                            part += kept * p
                        else:
                            dscores[start + c] = narrow(p * (kept - dot))
            if sweep == 0:
                dot = total(shared, part)

    @rule.inline
    def terms(a, b, top_a, top_b, share_a, share_b, shift_ab):
        """p, q, p - q and t = log(p / q) of one class; all 0 where both logits are -inf.

        p - q comes from expm1(t), so that it keeps its digits where the two distributions nearly agree.
        """
        p = exp(a - top_a) * share_a
        q = exp(b - top_b) * share_b
        t = computed(0) if a == b else a - b
        t = t - shift_ab if p != computed(0) or q != computed(0) else computed(0)
        gap = computed(0)
        if t < computed(0):
            gap = q * expm1(t)
        elif t > computed(0):
            gap = -p * expm1(-t)
        return p, q, gap, t

    @cuda.jit(cache=True)
    def pair_loss(
        loss, ce, kl, da, db, a, b, labels, ignored, count, columns,
        has_labels, has_ignored, ignore_index, smoothing, alpha, sharpness, factor, divide,
    ):  # fmt: skip
        # Of each row, of the logits times `sharpness`: ce = (CE(a) + CE(b)) / 2 if there are labels,
        # kl = (KL(a || b) + KL(b || a)) / 2, and the gradients of factor * (ce + alpha * kl), over count[0] if asked.
        assert sources
        shared = cuda.shared.array(THREADS, real)
        row = np.int64(cuda.blockIdx.x)
        start = row * columns
        thread = cuda.threadIdx.x
        label = np.int64(-1)
        skip = has_ignored and ignored[row] != 0
        if has_labels:
            label = np.int64(labels[row])
            skip = skip or label == ignore_index
        if skip:
            for c in range(thread, columns, THREADS):
                da[start + c] = narrow(computed(0))
                db[start + c] = narrow(computed(0))
            if thread == 0:
                loss[row] = ce[row] = kl[row] = computed(0)
            return
        top_a = top_b = computed(-np.inf)
        for c in range(thread, columns, THREADS):
            top_a = max(top_a, widen(a[start + c]) * sharpness)
            top_b = max(top_b, widen(b[start + c]) * sharpness)
        top_a = largest(shared, top_a)
        top_b = largest(shared, top_b)
        if top_a == computed(-np.inf):
            top_a = computed(0)
        if top_b == computed(-np.inf):
            top_b = computed(0)
        sum_a = sum_b = all_a = all_b = computed(0)
        for c in range(thread, columns, THREADS):
            la, lb = widen(a[start + c]) * sharpness, widen(b[start + c]) * sharpness
            sum_a += exp(la - top_a)
            sum_b += exp(lb - top_b)
            if smoothing > computed(0):
                all_a += la
                all_b += lb
        sum_a, sum_b = total(shared, sum_a), total(shared, sum_b)
        share_a = computed(1) / sum_a if sum_a > computed(0) else computed(0)
        share_b = computed(1) / sum_b if sum_b > computed(0) else computed(0)
        log_a = log(sum_a) if sum_a > computed(0) else computed(0)
        log_b = log(sum_b) if sum_b > computed(0) else computed(0)
        shift_ab = (top_a - top_b) + (log_a - log_b)
        both = mean_p = mean_q = one_sided = computed(0)
        for c in range(thread, columns, THREADS):
            la, lb = widen(a[start + c]) * sharpness, widen(b[start + c]) * sharpness
            p, q, gap, t = terms(la, lb, top_a, top_b, share_a, share_b, shift_ab)
            if (la == computed(-np.inf)) != (lb == computed(-np.inf)):
                one_sided = computed(1)
            else:
                both += gap * t
                mean_p += p * t
                mean_q += q * t
        both, mean_p, mean_q = total(shared, both), total(shared, mean_p), total(shared, mean_q)
        infinite = largest(shared, one_sided) > computed(0)  # then the gradient of kl has no value, and is left out
        smooth = smoothing / computed(columns)
        all_a, all_b = total(shared, all_a), total(shared, all_b)
        empty = sum_a == computed(0) and sum_b == computed(0)  # every class is masked: no distribution, no loss
        if thread == 0:
            kl[row] = computed(np.inf) if infinite else computed(0.5) * both
            ce[row] = computed(0)
            if has_labels and not empty:
                ce[row] = computed(np.nan)  # a label that is no class
                if 0 <= label < columns:
                    hard = (top_a + log_a) + (top_b + log_b)
                    if smoothing < computed(1):
                        on_label = widen(a[start + label]) * sharpness + widen(b[start + label]) * sharpness
                        hard -= (computed(1) - smoothing) * on_label
                    if smoothing > computed(0):
                        hard -= smooth * (all_a + all_b)
                    ce[row] = computed(0.5) * hard
            loss[row] = ce[row] + (alpha * kl[row] if alpha > computed(0) else computed(0))
        half = computed(0.5) * sharpness * (factor / computed(count[0]) if divide else factor)
        share_kl = computed(0) if infinite else alpha
        for c in range(thread, columns, THREADS):
            la, lb = widen(a[start + c]) * sharpness, widen(b[start + c]) * sharpness
            p, q, gap, t = terms(la, lb, top_a, top_b, share_a, share_b, shift_ab)
            ga = gb = computed(0)
            if share_kl > computed(0):
                ga = share_kl * (p * (t - mean_p) + gap)
                gb = -share_kl * (q * (t - mean_q) + gap)
            if has_labels and not empty:
                target = smooth + (computed(1) - smoothing if c == label else computed(0))
                ga += p - target
                gb += q - target
            da[start + c] = narrow(half * ga)
            db[start + c] = narrow(half * gb)

    @cuda.jit(cache=True)
    def bias_parts(parts, dy, rows, columns, height, offset, seed, stream, threshold, scale):
        # parts[i] = sum of select(mask, dy) over the i-th `height` rows, a column a thread
        assert sources
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

    @cuda.jit(cache=True)
    def sum_parts(db, parts, height, columns):
        assert sources
        c = np.int64(cuda.grid(1))
        if c < columns:
            whole = computed(0)
            for part in range(height):
                whole += parts[part * columns + c]
            db[c] = narrow(whole)

    @cuda.jit(cache=True)
    def count_rows(count, labels, ignored, rows, has_labels, has_ignored, ignore_index):
        # How many rows are not ignored, at least 1; one block.
        assert sources
        shared = cuda.shared.array(THREADS, real)
        n = computed(0)
        for row in range(cuda.threadIdx.x, rows, THREADS):
            skip = has_ignored and ignored[row] != 0
            if has_labels:
                skip = skip or np.int64(labels[row]) == ignore_index
            n += computed(0) if skip else computed(1)
        n = total(shared, n)
        if cuda.threadIdx.x == 0:
            count[0] = max(n, computed(1))

    @cuda.jit(cache=True)
    def sum_rows(loss, whole_ce, whole_kl, ce, kl, count, rows, alpha, factor, divide):
        # One block.
        assert sources
        shared = cuda.shared.array(THREADS, real)
        part_ce = part_kl = computed(0)
        for row in range(cuda.threadIdx.x, rows, THREADS):
            part_ce += ce[row]
            part_kl += kl[row]
        part_ce, part_kl = total(shared, part_ce), total(shared, part_kl)
        if cuda.threadIdx.x == 0:
            scale = factor / computed(count[0]) if divide else factor
            whole_ce[0] = part_ce * scale
            whole_kl[0] = part_kl * scale
            loss[0] = whole_ce[0] + (alpha * whole_kl[0] if alpha > computed(0) else computed(0))

    return {kernel.py_func.__name__: kernel for kernel in (
        dropout, dropout_add, anywhere, sample_mean, sample_mean_each, softmax_dropout,
        softmax_dropout_backward, pair_loss, bias_parts, sum_parts, count_rows, sum_rows,
    )}  # fmt: skip


_bits_lanes, _bits_anywhere = _build(_SOURCES)


@cache
def _kernels(dtype):
    if dtype == "float16":
        return _build_for(_SOURCES, rule.f16_to_f32, rule.f32_to_f16, np.float32, 2)
    if dtype == "bfloat16":
        return _build_for(_SOURCES, rule.bf16_to_f32, rule.f32_to_bf16, np.float32, 2)
    return _build_for(_SOURCES, rule.same, rule.same, np.dtype(dtype).type, 1)


# -- launches ----------------------------------------------------------------------------------------------------------
# Arrays are `fastdrop.cuda._Array`s that have been checked; `stream` is one of Numba's.


def computed_in(dtype):
    """The name of the type that numbers of ``dtype`` are computed and summed in."""
    return "float64" if dtype == "float64" else "float32"


def _launch(kernel, threads, stream, *arguments):
    kernel[-(-threads // THREADS), THREADS, stream](*arguments)


def _stream_of(mask):
    if mask._stored is not None:
        raise TypeError("a mask made by Mask.from_keep lies in host memory: on the device, multiply by your own array")
    return np.uint64(mask.seed), np.uint64(mask.stream)


def _chance(p, dtype):
    with np.errstate(over="ignore"):
        return np.uint64(threshold(p)), np.dtype(computed_in(dtype)).type(scale_of(p))


def _one_p(mask, what):
    if type(mask.p) is not float:
        raise TypeError(f"p must be one number for {what} on the device, got an array of shape {mask.p.shape}")
    return mask.p


def _lies_along(mask, shape):
    """Are the mask's elements, in C order, those of an array of ``shape``?"""
    return mask._strides is None and mask.size == math.prod(shape)


def _rng_arguments(mask):
    seed, stream = _stream_of(mask)
    return np.uint64(mask._offset), seed, stream


def _lane_arguments(mask, aligned, group):
    offset = mask._offset
    head = offset & 255
    seed, stream = _stream_of(mask)
    return head, bool(aligned and head % group == 0), np.uint64((offset >> 8) * 16), seed, stream


def _wide(shape, *steps):
    """Joined axes, filled up to what a kernel takes."""
    joined = join(shape, *steps)
    if len(joined[0]) > AXES:
        raise ValueError(
            f"arrays on the device may have at most {AXES} axes that cannot be joined, got {len(joined[0])}"
        )
    missing = AXES - len(joined[0])
    return [(fill,) * missing + tuple(axes) for fill, axes in zip((1, *[0] * len(steps)), joined, strict=True)]


def keep_bits(out, mask, stream):
    """Write the decisions packed: ``out`` is uint8, (size + 7) // 8 of them."""
    seed, which = _stream_of(mask)
    t = np.uint64(threshold(_one_p(mask, "packed bits")))
    n = mask.size
    head = mask._offset & 255
    if mask._strides is None and head % 8 == 0:
        base = np.uint64((mask._offset >> 8) * 16)
        _launch(_bits_lanes, 8 * -(-(head + n) // 256), stream, out.kernel_argument(), n, head, base, seed, which, t)
    else:
        shape, steps = _wide(mask.shape, mask.strides_for(mask.shape))
        offset = np.uint64(mask._offset)
        _launch(_bits_anywhere, out.size, stream, out.kernel_argument(), n, shape, steps, offset, seed, which, t)


def apply(y, x, mask, stream):
    """y = select(mask, x): the forward pass, and on dy the backward pass. ``y`` may be ``x``."""
    if type(mask.p) is not float:
        return _apply_each(y, x, mask, stream)
    kernels, lanes = _kernels(x.dtype), 2 if x.itemsize == 2 else 1
    chance = _chance(mask.p, x.dtype)
    if x.contiguous and y.contiguous and _lies_along(mask, x.shape):
        head, *rest = _lane_arguments(mask, x.aligned16 and y.aligned16, 4 * lanes)
        threads = -(-(head + x.size) // 256) * (16 // lanes)
        arrays = y.kernel_argument(), x.kernel_argument(), x.size
        _launch(kernels["dropout"], threads, stream, *arrays, head, *rest, *chance)
    else:
        walk = _wide(x.shape, y.steps, x.steps, mask.strides_for(x.shape))
        arrays = y.kernel_argument(), x.kernel_argument(), y.before, x.before, x.size
        _launch(kernels["anywhere"], x.size, stream, *arrays, *walk, *_rng_arguments(mask), *chance)


def _apply_each(y, x, mask, stream):
    """Array p: a launch for each of its numbers, so that none has to be copied to the device."""
    axis = len(x.shape) - mask.ndim
    if mask.shape[0] == 1:
        return apply(y, x, mask[0], stream)
    for i in range(mask.shape[0]):
        apply(y.take(axis, i), x.take(axis, i), mask[i], stream)


def dropout_add(y, x, residual, bias, mask, stream):
    """y = residual + select(mask, x + bias); ``bias`` may be None."""
    lanes = 2 if x.itemsize == 2 else 1
    arrays = [one for one in (y, x, residual, bias) if one is not None]
    columns = bias.size if bias else 0
    aligned = all(one.aligned16 for one in arrays) and columns % (4 * lanes) == 0
    head, *rest = _lane_arguments(mask, aligned, 4 * lanes)
    threads = -(-(head + x.size) // 256) * (16 // lanes)
    arguments = [one.kernel_argument() for one in (y, x, residual, bias or residual)]
    chance = _chance(_one_p(mask, "dropout_add"), x.dtype)
    _launch(_kernels(x.dtype)["dropout_add"], threads, stream, *arguments, columns, x.size, head, *rest, *chance)


def bias_gradient(db, dy, mask, parts, stream):
    """db = the sum of select(mask, dy) over all axes but the last; ``parts`` is (height, columns), for sums."""
    columns = dy.shape[-1]
    rows, height = dy.size // columns, parts.shape[0]
    arguments = parts.kernel_argument(), dy.kernel_argument(), rows, columns, -(-rows // height)
    chance = _chance(_one_p(mask, "dropout_add"), dy.dtype)
    kernels = _kernels(dy.dtype)
    grid = -(-columns // THREADS), height
    kernels["bias_parts"][grid, THREADS, stream](*arguments, *_rng_arguments(mask), *chance)
    _launch(kernels["sum_parts"], columns, stream, db.kernel_argument(), parts.kernel_argument(), height, columns)


def sample_mean(y, x, mask, stream):
    """y = the mean over s of select(mask[s], x): the forward pass, and on dy the backward pass."""
    kernels = _kernels(x.dtype)
    real = np.dtype(computed_in(x.dtype)).type
    samples, threads = mask.shape[0], -(-x.size // 4)
    arguments = y.kernel_argument(), x.kernel_argument(), x.size, samples, *_rng_arguments(mask)
    with np.errstate(over="ignore"):
        if type(mask.p) is float:
            factor = real(scale_of(mask.p) / samples)
            _launch(kernels["sample_mean"], threads, stream, *arguments, np.uint64(threshold(mask.p)), factor)
        else:  # 16 bytes a sample go to the device, queued like the kernel
            table = np.array([threshold(p) for p in mask.p], np.uint64), scale_of(mask.p).astype(real)
            table = [cuda.to_device(column, stream=stream) for column in table]
            _launch(kernels["sample_mean_each"], threads, stream, *arguments, *table, real(1 / samples))


def _rows(kernel, rows, stream, *arguments):
    kernel[rows, THREADS, stream](*arguments)


def softmax_dropout(y, saved, scores, attention, mask, stream):
    """y = select(mask, softmax of scores along the last axis); ``saved``, two numbers a row, is for the backward."""
    arrays = y.kernel_argument(), saved.kernel_argument(), scores.kernel_argument()
    _attention_rows("softmax_dropout", arrays, scores, attention, mask, stream)


def softmax_dropout_backward(dscores, dy, saved, scores, attention, mask, stream):
    """dscores from dy and from what `softmax_dropout` was given and saved."""
    arrays = [one.kernel_argument() for one in (dscores, dy, saved, scores)]
    _attention_rows("softmax_dropout_backward", arrays, scores, attention, mask, stream)


def _attention_rows(name, arrays, scores, attention, mask, stream):
    *lead, columns = scores.shape
    if attention is None:
        seen, kind, steps, step = scores.kernel_argument(), 0, (0,) * len(lead), 0
    else:
        seen, kind, (*steps, step) = (
            attention.kernel_argument(),
            ALLOW if attention.dtype == "bool" else ADD,
            attention.steps,
        )
    shape, steps = _wide(lead, steps)
    chance = _chance(_one_p(mask, "softmax_dropout"), scores.dtype)
    arguments = *arrays, columns, seen, kind, shape, (*steps, step), *_rng_arguments(mask), *chance
    _rows(_kernels(scores.dtype)[name], math.prod(lead), stream, *arguments)


def pair_loss(
    totals, loss, ce, kl, count, da, db, a, b, labels, ignored, stream,
    *, alpha, reduction, ignore_index, smoothing, sharpness,
):  # fmt: skip
    """Per-row ce and kl of two logits, their gradients, and then the totals loss, ce and kl, unless they are None."""
    kernels = _kernels(a.dtype)
    real = np.dtype(computed_in(a.dtype)).type
    columns = a.shape[-1]
    rows = a.size // columns
    divide = reduction == "mean"
    factor = real(1.0 / a.shape[0] if reduction == "batchmean" else 1.0)
    nothing = kl.kernel_argument()
    flags = labels is not None, ignored is not None
    marks = [nothing if one is None else one.kernel_argument() for one in (labels, ignored)]
    counted = count.kernel_argument()
    if divide:
        kernels["count_rows"][1, THREADS, stream](counted, *marks, rows, *flags, ignore_index)
    arrays = [one.kernel_argument() for one in (loss, ce, kl, da, db, a, b)]
    numbers = real(smoothing), real(alpha), real(sharpness), factor, divide
    _rows(kernels["pair_loss"], rows, stream, *arrays, *marks, counted, columns, *flags, ignore_index, *numbers)
    if totals is not None:
        whole = [one.kernel_argument() for one in totals]
        kernels["sum_rows"][1, THREADS, stream](*whole, *arrays[1:3], counted, rows, real(alpha), factor, divide)
