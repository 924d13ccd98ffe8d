"""CUDA kernels on rows: attention weights, losses on pairs of logits. The rest stands in `ops`.

A row is one block of threads, which sums in an order that is fixed by the row's length: the same bits at each run.
"""

import math
from functools import cache

import numpy as np
from numba import cuda, types

from ..numba_common import rule
from ..reference.rows import NOTHING
from .parts import (
    AXES,
    DTYPES,
    PER_INDEX_P,
    THREADS,
    flags4,
    jit,
    kept_byte,
    launch_rows,
    locate,
    p_steps,
    real,
    source,
    stored_bits,
    thresholds_and_scales,
    wide,
)

ALLOW, ADD = 1, 2  # kinds of attention mask
_GREAT = 2.0**64  # exponentials of two rows are made this much larger: exp itself loses digits near its least number

# -- kernels -----------------------------------------------------------------------------------------------------------


@rule.inline
def _row_of_block():
    """The row of a block of threads; the last blocks may have none."""
    return np.int64(cuda.blockIdx.y) * np.int64(cuda.gridDim.x) + np.int64(cuda.blockIdx.x)


@rule.inline
def _total(shared, value):
    """The sum of all threads' values, by a tree: every thread has it."""
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
def _largest(shared, value):
    """The largest of all threads' values: every thread has it."""
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


# What follows makes the kernels of one dtype: arithmetic in the type ``computed``, numbers brought there by ``widen``
# and back by ``narrow``.


def _shared_type(computed):
    return types.float64 if computed is np.float64 else types.float32


def _score(widen, computed):
    """Function of a place: a score under its attention mask."""

    @rule.inline
    def score(scores, seen, kind, at, there):
        """A score under its attention mask: none, bools that allow, or numbers to add."""
        if kind == ALLOW and not seen[there]:
            return computed(-np.inf)
        if kind == ADD:
            return widen(scores[at]) + computed(seen[there])
        return widen(scores[at])

    return score


def _softmax_kernel(widen, narrow, computed):
    """Softmax over a row, with dropout."""
    exp, shared_type, score = math.exp, _shared_type(computed), _score(widen, computed)

    @jit
    def softmax_dropout(
        y, saved, scores, rows, columns, seen, seen_kind, lead, steps, each_steps,
        offset, seed, stream, threshold, scale, thresholds, scales, stored, kind,
    ):  # fmt: skip
        # Attention weights. `saved` takes the largest score and 1 / sum of each row, which the backward needs.
        shared = cuda.shared.array(THREADS, shared_type)
        row = _row_of_block()
        if row >= rows:
            return
        start = row * columns
        there = locate(row, lead, steps)
        step = steps[AXES]
        if kind & PER_INDEX_P:
            each = locate(row, lead, each_steps)
            threshold, scale = np.uint64(thresholds[each]), scales[each]
        top = computed(-np.inf)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            top = max(top, score(scores, seen, seen_kind, start + c, there + c * step))
        top = _largest(shared, top)
        if top < computed(NOTHING):
            top = computed(0)  # a row with nothing to look at: every term below is 0, and so is the row
        part = computed(0)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            part += exp(score(scores, seen, seen_kind, start + c, there + c * step) - top)
        whole = _total(shared, part)
        share = computed(1) / whole if whole != computed(0) else computed(0)
        if cuda.threadIdx.x == 0:
            saved[2 * row] = top
            saved[2 * row + 1] = share
        skew = np.int64((offset + np.uint64(start)) & np.uint64(3))
        aligned = offset + np.uint64(start) - np.uint64(skew)
        for g in range(4 * cuda.threadIdx.x, columns + skew, 4 * THREADS):
            flags = flags4(seed, stream, aligned + np.uint64(g), threshold, stored, kind)
            for k in range(4):
                c = g + k - skew
                if 0 <= c < columns:
                    p = exp(score(scores, seen, seen_kind, start + c, there + c * step) - top) * share
                    y[start + c] = narrow(rule.select(kept_byte(flags, k), p, scale))

    return softmax_dropout


def _softmax_backward_kernel(widen, narrow, computed):
    """Its gradient."""
    exp, shared_type, score = math.exp, _shared_type(computed), _score(widen, computed)

    @jit
    def softmax_dropout_backward(
        dscores, dy, saved, scores, rows, columns, seen, seen_kind, lead, steps, each_steps,
        offset, seed, stream, threshold, scale, thresholds, scales, stored, kind,
    ):  # fmt: skip
        # With p the softmax and g = select(mask, dy): dscores = p * (g - sum(g * p)).
        shared = cuda.shared.array(THREADS, shared_type)
        row = _row_of_block()
        if row >= rows:
            return
        start = row * columns
        there = locate(row, lead, steps)
        step = steps[AXES]
        if kind & PER_INDEX_P:
            each = locate(row, lead, each_steps)
            threshold, scale = np.uint64(thresholds[each]), scales[each]
        top, share = saved[2 * row], saved[2 * row + 1]
        skew = np.int64((offset + np.uint64(start)) & np.uint64(3))
        aligned = offset + np.uint64(start) - np.uint64(skew)
        dot = computed(0)
        for sweep in range(2):
            part = computed(0)
            for g in range(4 * cuda.threadIdx.x, columns + skew, 4 * THREADS):
                flags = flags4(seed, stream, aligned + np.uint64(g), threshold, stored, kind)
                for k in range(4):
                    c = g + k - skew
                    if 0 <= c < columns:
                        p = exp(score(scores, seen, seen_kind, start + c, there + c * step) - top) * share
                        kept = rule.select(kept_byte(flags, k), widen(dy[start + c]), scale)
                        if sweep == 0:
                            part += kept * p
                        else:
                            dscores[start + c] = narrow(p * (kept - dot))
            if sweep == 0:
                dot = _total(shared, part)

    return softmax_dropout_backward


def _pair_comparison(computed):
    """Function of one class's logits in both rows: see `compared`; its exponentials are ``_GREAT`` times too large."""
    exp, expm1, great = math.exp, math.expm1, computed(_GREAT)
    lowest = computed(np.finfo(computed).min)

    @rule.inline
    def below(x, top):
        """x - top as a rounded difference and what the rounding took off; for no class that is allowed -inf."""
        high = x - top
        if lowest < high:
            back = high - x
            return high, (x - (high - back)) - (top + back)
        return (lowest if x > computed(-np.inf) else high), computed(0)

    @rule.inline
    def exponential(high, low, inv_temperature):
        """exp((high + low) * inv_temperature) * great, which has its digits where exp itself has lost some."""
        root = exp(computed(0.5) * inv_temperature * high)
        return root * great * (root + root * (low * inv_temperature))

    @rule.inline
    def compared(a, b, top_a, top_b, inv_temperature):
        """Exponentials of one class of both logits, their difference, and the logarithm of their ratio.

        What nearly agrees is never subtracted once it has been rounded.
        """
        high_a, low_a = below(a, top_a)
        high_b, low_b = below(b, top_b)
        ea, eb = exponential(high_a, low_a, inv_temperature), exponential(high_b, low_b, inv_temperature)
        d = computed(0)
        if high_a != high_b or low_a != low_b:
            d = ((high_a - high_b) + (low_a - low_b)) * inv_temperature
            if abs(d) == computed(np.inf) and a > computed(-np.inf) and b > computed(-np.inf):
                d = lowest if d < computed(0) else -lowest
        return ea, eb, (-ea if d > computed(0) else eb) * expm1(-abs(d)), d

    return compared


def _pair_sums(widen, computed):
    """The three sweeps over two rows that come before their gradients: largest, sums, means."""
    great, compared = computed(_GREAT), _pair_comparison(computed)

    @rule.inline
    def tops(shared, a, b, start, columns):
        """The largest of each row, 0 where no class is allowed."""
        top_a = top_b = computed(-np.inf)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            top_a = max(top_a, widen(a[start + c]))
            top_b = max(top_b, widen(b[start + c]))
        top_a, top_b = _largest(shared, top_a), _largest(shared, top_b)
        return (
            computed(0) if top_a == computed(-np.inf) else top_a,
            computed(0) if top_b == computed(-np.inf) else top_b,
        )

    @rule.inline
    def sums(shared, a, b, start, columns, top_a, top_b, inv_temperature):
        """Of both rows' exponentials: how many are the largest, the sum of the others; the difference of the sums."""
        small_a = small_b = largest_a = largest_b = more = computed(0)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            x, z = widen(a[start + c]), widen(b[start + c])
            ea, eb, gap, _ = compared(x, z, top_a, top_b, inv_temperature)
            more += gap
            if x - top_a == computed(0):
                largest_a += computed(1)
            else:
                small_a += ea
            if z - top_b == computed(0):
                largest_b += computed(1)
            else:
                small_b += eb
        small_a, small_b = _total(shared, small_a) / great, _total(shared, small_b) / great
        return small_a, small_b, _total(shared, largest_a), _total(shared, largest_b), _total(shared, more) / great

    @rule.inline
    def means(shared, a, b, start, columns, top_a, top_b, inv_temperature, share_a, share_b, more, shift):
        """Sum of (p - q) * log(p / q), mean of log(p / q) under p and under q; is a class allowed on one side alone?"""
        both = mean_p = mean_q = one_sided = computed(0)
        for c in range(cuda.threadIdx.x, columns, THREADS):
            x, z = widen(a[start + c]), widen(b[start + c])
            if (x == computed(-np.inf)) != (z == computed(-np.inf)):
                one_sided = computed(1)
            else:
                ea, eb, gap, d = compared(x, z, top_a, top_b, inv_temperature)
                t = d - shift  # log(p / q)
                both += (gap - eb * share_b * more) * share_a * t
                mean_p += ea * share_a * t
                mean_q += eb * share_b * t
        both, mean_p, mean_q = _total(shared, both), _total(shared, mean_p), _total(shared, mean_q)
        return both / great, mean_p / great, mean_q / great, _largest(shared, one_sided) > computed(0)

    return tops, sums, means


def _entropy_of(widen, computed):
    """Twice the mean cross entropy of a label on both rows."""

    @rule.inline
    def entropy(shared, a, b, start, columns, label, top_a, top_b, log_a, log_b, inv_temperature, smoothing):
        logits = computed(0)
        if smoothing > computed(0):
            for c in range(cuda.threadIdx.x, columns, THREADS):
                x, z = widen(a[start + c]) - top_a, widen(b[start + c]) - top_b
                logits += x * inv_temperature + z * inv_temperature
            logits = _total(shared, logits)
        if not 0 <= label < columns:
            return computed(np.nan)
        hard = computed(0)
        if smoothing < computed(1):
            on_a, on_b = widen(a[start + label]) - top_a, widen(b[start + label]) - top_b
            hard_a, hard_b = log_a - on_a * inv_temperature, log_b - on_b * inv_temperature
            hard += (computed(1) - smoothing) * (hard_a + hard_b)
        if smoothing > computed(0):
            hard += smoothing / computed(columns) * (computed(columns) * (log_a + log_b) - logits)
        return hard

    return entropy


def _pair_kernel(widen, narrow, computed):
    """R-Drop's loss of two rows and its gradients; the symmetric KL is that without labels."""
    log1p, great, shared_type = math.log1p, computed(_GREAT), _shared_type(computed)
    compared, entropy = _pair_comparison(computed), _entropy_of(widen, computed)
    tops, sums, means = _pair_sums(widen, computed)

    @rule.inline
    def normalised(largest, small):
        """The sum, that less 1, the largest's own term, which keeps what the others add to it, 1 / sum, log(sum)."""
        whole, rest = largest + small, small + (largest - computed(1))
        if whole == computed(0):
            return whole, rest, computed(0), computed(0)
        return whole, rest, computed(1) / whole, log1p(rest)

    @jit
    def pair_loss(
        loss, ce, kl, da, db, a, b, labels, ignored, count, rows, columns,
        has_labels, has_ignored, ignore_index, smoothing, alpha, inv_temperature, factor, divide,
    ):  # fmt: skip
        # Of each row, of the logits times `inv_temperature`: ce = (CE(a) + CE(b)) / 2 if there are labels,
        # kl = (KL(a || b) + KL(b || a)) / 2, and the gradients of factor * (ce + alpha * kl), over count[0] if asked.
        shared = cuda.shared.array(THREADS, shared_type)
        row = _row_of_block()
        if row >= rows:
            return
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
        top_a, top_b = tops(shared, a, b, start, columns)
        small_a, small_b, largest_a, largest_b, more = sums(shared, a, b, start, columns, top_a, top_b, inv_temperature)
        sum_a, rest_a, share_a, log_a = normalised(largest_a, small_a)
        sum_b, rest_b, share_b, log_b = normalised(largest_b, small_b)
        shift = log1p(more / sum_b) if abs(more) < computed(0.5) * sum_b else log_a - log_b
        both, mean_p, mean_q, one_sided = means(
            shared, a, b, start, columns, top_a, top_b, inv_temperature, share_a, share_b, more, shift
        )
        # Where a class is allowed on one side alone, the gradient of kl has no value, and is left out.
        infinite = one_sided and not math.isnan(sum_a + sum_b)
        empty = sum_a == computed(0) and sum_b == computed(0)  # every class is masked: no distribution, no loss
        hard = computed(0)
        if has_labels:
            hard = entropy(shared, a, b, start, columns, label, top_a, top_b, log_a, log_b, inv_temperature, smoothing)
        if thread == 0:
            kl[row] = computed(np.inf) if infinite else computed(0.5) * (computed(0) if both < computed(0) else both)
            ce[row] = computed(0) if empty else computed(0.5) * hard
            loss[row] = ce[row] + (alpha * kl[row] if alpha > computed(0) else computed(0))
        cuda.syncthreads()  # da may be a, whose label has been read
        half = computed(0.5) * inv_temperature * (factor / computed(count[0]) if divide else factor)
        share_kl = computed(0) if infinite else alpha
        smooth = smoothing / computed(columns)
        for c in range(thread, columns, THREADS):
            x, z = widen(a[start + c]), widen(b[start + c])
            ea, eb, gap, d = compared(x, z, top_a, top_b, inv_temperature)
            p, q = ea * share_a, eb * share_b
            ga = gb = computed(0)
            if share_kl > computed(0):
                t = d - shift
                gap = (gap - q * more) * share_a
                ga = share_kl * (p * (t - mean_p) + gap) / great
                gb = -share_kl * (q * (t - mean_q) + gap) / great
            if has_labels and not empty:
                p, q = p / great, q / great
                if c == label:
                    p = -rest_a * share_a if x == top_a else p - computed(1)
                    q = -rest_b * share_b if z == top_b else q - computed(1)
                    ga += smoothing
                    gb += smoothing
                ga += p - smooth
                gb += q - smooth
            da[start + c] = narrow(half * ga)
            db[start + c] = narrow(half * gb)

    return pair_loss


def _total_kernels(computed):
    """What the losses of all rows are summed by."""
    shared_type = _shared_type(computed)

    @rule.inline
    def add(whole, lost, value):
        """Kahan's sum: a thread may have thousands of terms. What an infinity loses is no number."""
        value = value - lost
        more = whole + value
        return more, ((more - whole) - value if abs(more) < computed(np.inf) else computed(0))

    @jit
    def count_rows(count, labels, ignored, rows, has_labels, has_ignored, ignore_index):
        # How many rows are not ignored, at least 1; the first block's work.
        if cuda.blockIdx.x > 0:
            return
        shared = cuda.shared.array(THREADS, shared_type)
        n = computed(0)
        for row in range(cuda.threadIdx.x, rows, THREADS):
            skip = has_ignored and ignored[row] != 0
            if has_labels:
                skip = skip or np.int64(labels[row]) == ignore_index
            n += computed(0) if skip else computed(1)
        n = _total(shared, n)
        if cuda.threadIdx.x == 0:
            count[0] = max(n, computed(1))

    @jit
    def sum_rows(loss, whole_ce, whole_kl, ce, kl, count, rows, alpha, factor, divide):
        # The first block's work.
        if cuda.blockIdx.x > 0:
            return
        shared = cuda.shared.array(THREADS, shared_type)
        part_ce = part_kl = lost_ce = lost_kl = computed(0)
        for row in range(cuda.threadIdx.x, rows, THREADS):
            part_ce, lost_ce = add(part_ce, lost_ce, ce[row])
            part_kl, lost_kl = add(part_kl, lost_kl, kl[row])
        part_ce, part_kl = _total(shared, part_ce), _total(shared, part_kl)
        if cuda.threadIdx.x == 0:
            scale = factor / computed(count[0]) if divide else factor
            whole_ce[0] = part_ce * scale
            whole_kl[0] = part_kl * scale
            loss[0] = whole_ce[0] + (alpha * whole_kl[0] if alpha > computed(0) else computed(0))

    return count_rows, sum_rows


@cache
def kernels_of(dtype):
    """The kernels of one dtype by name."""
    number = DTYPES[dtype][:3]
    makers = _softmax_kernel, _softmax_backward_kernel, _pair_kernel
    kernels = *(make(*number) for make in makers), *_total_kernels(number[2])
    return {kernel.py_func.__name__: kernel for kernel in kernels}


# -- launches ----------------------------------------------------------------------------------------------------------


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
    seen, seen_kind, seen_steps = scores.stand_in("uint8"), 0, (0,) * len(scores.shape)
    if attention is not None:
        seen, seen_kind = attention.kernel_argument(), ALLOW if attention.dtype == "bool" else ADD
        seen_steps = attention.steps
    *each_steps, _ = p_steps(mask, scores.shape)
    shape, steps, each_steps = wide(lead, seen_steps[:-1], each_steps)
    launch_rows(
        kernels_of(scores.dtype)[name], math.prod(lead), stream, *arrays, math.prod(lead), columns,
        seen, seen_kind, shape, (*steps, seen_steps[-1]), each_steps,
        np.uint64(mask._offset), *source(mask),
        *thresholds_and_scales(mask, scores, stream), *stored_bits(mask, scores, stream),
    )  # fmt: skip


def pair_loss(
    totals, loss, ce, kl, count, da, db, a, b, labels, ignored, stream,
    *, alpha, reduction, ignore_index, smoothing, inv_temperature,
):  # fmt: skip
    """Per-row ce and kl of two logits, their gradients, and then the totals loss, ce and kl, unless they are None."""
    kernels, number = kernels_of(a.dtype), real(a.dtype)
    columns = a.shape[-1]
    rows = a.size // columns
    divide = reduction == "mean"
    factor = number(1.0 / max(1, a.shape[0]) if reduction == "batchmean" and len(a.shape) > 1 else 1.0)
    flags = labels is not None, ignored is not None
    marks = [
        kl.stand_in(dtype) if one is None else one.kernel_argument()
        for one, dtype in ((labels, "int64"), (ignored, "uint8"))
    ]
    counted = count.kernel_argument()
    if divide:
        launch_rows(kernels["count_rows"], 1, stream, counted, *marks, rows, *flags, ignore_index)
    arrays = [one.kernel_argument() for one in (loss, ce, kl, da, db, a, b)]
    numbers = number(smoothing), number(alpha), number(inv_temperature), factor, divide
    if rows:
        launch_rows(
            kernels["pair_loss"], rows, stream, *arrays, *marks, counted, rows, columns, *flags, ignore_index, *numbers
        )
    if totals is not None:
        whole = [one.kernel_argument() for one in totals]
        launch_rows(kernels["sum_rows"], 1, stream, *whole, *arrays[1:3], counted, rows, number(alpha), factor, divide)
