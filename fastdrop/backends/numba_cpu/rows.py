"""Row kernels of the Numba backend on the CPU: R-Drop's losses with their gradients, softmax with dropout.

A row is read once into float64 buffers that stay in cache, and its gradient written once; the arithmetic is that of
`reference.rows`, whose functions take what has no kernel here (other divergences, labels that are probabilities).
Threads take ranges of whole rows, so results do not depend on their number.
"""

import math
from functools import cache

import numpy as np

from ...rule import scale_of
from ..numba_common import rule
from ..reference import rows as reference_rows
from ..reference.rows import NOTHING
from .operands import as_flat, read_only, source, steps_of, thresholds_of, walk
from .parts import DTYPES, decide_tile, jit, locate, new_scratch
from .threads import run

COST = 8  # an element here costs about what 8 cost in a plain dropout: fewer of them make a second thread pay


# Loops are kept to one thing each: LLVM vectorises those, and no call of libm's exp, and no sum of floats in order.

_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_LOWEST = -1.7976931348623157e308
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10


@rule.inline
def _exp_parts(x):
    """(exp(r) - 1, 2**k) for x = k * log(2) + r, where -708 <= x <= 700, to 2e-16."""
    shifted = x * _LOG2E + _MAGIC
    k = shifted - _MAGIC
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW  # |r| <= ln(2) / 2, where this series is right to the last bit
    series = 1 / 6227020800.0
    series = series * r + 1 / 479001600.0
    series = series * r + 1 / 39916800.0
    series = series * r + 1 / 3628800.0
    series = series * r + 1 / 362880.0
    series = series * r + 1 / 40320.0
    series = series * r + 1 / 5040.0
    series = series * r + 1 / 720.0
    series = series * r + 1 / 120.0
    series = series * r + 1 / 24.0
    series = series * r + 1 / 6.0
    series = series * r + 0.5
    exponent = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    return series * r * r + r, np.int64(exponent).view(np.float64)


@rule.inline
def _exp(x):
    """exp(x) for x <= 700; below -708 it is 0."""
    less_one, power = _exp_parts(x)
    return 0.0 if x < -708.0 else (less_one + 1.0) * power


@rule.inline
def _expm1(x):
    """exp(x) - 1 for x <= 700."""
    less_one, power = _exp_parts(x)
    return -1.0 if x < -708.0 else less_one * power + (power - 1.0)


@rule.jitable
def _sum(x):
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = x.size - x.size % 8
    for i in range(0, whole, 8):
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
        s4 += x[i + 4]
        s5 += x[i + 5]
        s6 += x[i + 6]
        s7 += x[i + 7]
    for i in range(whole, x.size):
        s0 += x[i]
    return ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7))


@rule.jitable
def _largest(x):
    """The largest that is no NaN, 0 if all are -inf: a NaN comes back in every sum."""
    top = -np.inf
    for i in range(x.size):
        if x[i] > top:
            top = x[i]
    return 0.0 if top == -np.inf else top


@rule.jitable
def _exponentials(p, x, top, temperature):
    """x = (x - top) / temperature, p = exp(x); (where the largest is, or -1; the sum of p without it; with it).

    Without it, for of 1 + rest neither rest nor log1p(rest) could be told where rest is small.
    """
    place = -1
    for i in range(x.size):
        if x[i] == top:
            place = i
            break
    factor = 1 / temperature
    for i in range(x.size):
        below = (x[i] - top) * factor
        x[i] = _LOWEST if below < _LOWEST and x[i] != -np.inf else below  # -inf: a class that is not allowed
    for i in range(x.size):
        p[i] = _exp(x[i])
    if place < 0:
        rest = _sum(p)
        return place, rest, rest
    largest = p[place]  # 1, or NaN for an infinite logit
    p[place] = 0.0
    rest = _sum(p) + (largest - 1.0)
    p[place] = largest
    return place, rest, 1.0 + rest


@rule.jitable
def _log_of_sum(place, rest):
    return math.log1p(rest) if place >= 0 else 0.0 if rest == 0.0 else math.log(rest)


@rule.inline
def _minus(x, y):
    """x - y and what its rounding left."""
    difference = x - y
    part = difference - x
    return difference, (x - (difference - part)) - (y + part)


@rule.jitable
def _apart(d, x, y, top_x, top_y, temperature):
    """d = ((x - y) - (top_x - top_y)) / temperature, with what the subtractions' rounding left; may overflow."""
    tops, tops_rest = _minus(top_x, top_y)
    factor = 1 / temperature
    for i in range(d.size):
        difference, rest = _minus(x[i], y[i])
        d[i] = ((difference - tops) + (rest - tops_rest)) * factor


@rule.jitable
def _differences(u, d, p, q, x, y):
    """d as it was, 0 where the classes are equal or none, x - y where it overflowed; u = p - q of exponentials."""
    for i in range(u.size):
        d[i] = 0.0 if x[i] == y[i] else d[i] if abs(d[i]) < np.inf else x[i] - y[i]
    for i in range(u.size):
        u[i] = _expm1(-abs(d[i])) * (-p[i] if d[i] > 0 else q[i])


@rule.jitable
def _add_centred(g, p, t, place, weight, out):
    """g += weight * p * (t - E_p[t]), from distances to the largest class, which has what the others leave."""
    top = t[place] if place >= 0 else 0.0
    for i in range(out.size):
        out[i] = p[i] * (t[i] - top)
    mean = _sum(out)
    for i in range(out.size):
        g[i] += weight * (out[i] - p[i] * mean)


@rule.jitable
def _dot(out, p, t):
    """The sum of p * t; ``out`` is room for the products."""
    for i in range(out.size):
        out[i] = p[i] * t[i]
    return _sum(out)


@rule.jitable
def _one_sided(x, y):
    count = 0
    for i in range(x.size):
        count += (x[i] == -np.inf) != (y[i] == -np.inf)
    return count > 0


@rule.jitable
def _cross_entropy(x, log_sum, label, smoothing):
    """Of one row; x are logits less the largest."""
    ce = 0.0
    if smoothing < 1:
        ce += (1 - smoothing) * (log_sum - x[label])
    if smoothing > 0:
        ce += smoothing * (log_sum - _sum(x) / x.size)
    return ce


@rule.jitable
def _add_cross_entropy(g, p, label, smoothing, place, missing):
    """g += half the gradient; ``missing`` is 1 - p[place]."""
    each = smoothing / g.size
    at_label = g[label] + ((-missing if label == place else p[label] - 1) + (smoothing - each)) / 2
    for i in range(g.size):
        g[i] += (p[i] - each) / 2
    g[label] = at_label


def _losses_kernel(widen, narrow):
    @rule.jitable
    def read(x, a, at):
        for i in range(x.size):
            x[i] = np.float64(widen(a[at + i]))

    @rule.jitable
    def write(da, at, g, weight):
        zero = widen(da[at])
        for i in range(g.size):
            da[at + i] = narrow(type(zero)(g[i] * weight))

    @jit
    def losses(
        da, db, loss, kl, a, b, starts, steps, n, label, skip, with_ce, temperature, weight, alpha, smoothing,
        first, last,
    ):  # fmt: skip
        x, y, p, q = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        u, v, t = np.empty(n), np.empty(n), np.empty(n)
        for row in range(first, last):
            at = starts + row * steps
            if skip.size and skip[row]:
                u[:] = 0
                write(da, at[0], u, weight)
                write(db, at[1], u, weight)
                continue
            read(x, a, at[2])
            read(y, b, at[3])
            top_a, top_b = _largest(x), _largest(y)
            _apart(t, x, y, top_a, top_b, temperature)
            place_a, rest_a, sum_a = _exponentials(p, x, top_a, temperature)
            place_b, rest_b, sum_b = _exponentials(q, y, top_b, temperature)
            share_a = 1 / sum_a if sum_a != 0 else 0.0
            share_b = 1 / sum_b if sum_b != 0 else 0.0
            some = sum_a != 0 or sum_b != 0
            one_sided = _one_sided(x, y) and not math.isnan(sum_a + sum_b)
            ce = 0.0
            if with_ce and some:
                ce += _cross_entropy(x, _log_of_sum(place_a, rest_a), label[row], smoothing) / 2
                ce += _cross_entropy(y, _log_of_sum(place_b, rest_b), label[row], smoothing) / 2
            _differences(u, t, p, q, x, y)
            more = _sum(u)  # sum_a - sum_b
            if abs(more) < 0.5 * sum_b:
                log_ratio = math.log1p(more / sum_b)
            else:
                log_ratio = _log_of_sum(place_a, rest_a) - _log_of_sum(place_b, rest_b)
            for i in range(n):
                p[i] *= share_a
            for i in range(n):
                q[i] *= share_b
            for i in range(n):
                u[i] = (u[i] - q[i] * more) * share_a  # p - q
            for i in range(n):
                t[i] -= log_ratio  # log(p / q)
            divergence = np.inf if one_sided else _dot(x, u, t) / 2
            if divergence < 0:
                divergence = 0.0
            loss[row] = divergence
            share = 0.0 if one_sided else alpha / 2
            if share != 0.0:
                for i in range(n):
                    u[i] *= share
                for i in range(n):
                    v[i] = -u[i]
                _add_centred(u, p, t, place_a, share, x)
                _add_centred(v, q, t, place_b, -share, x)
            else:
                u[:] = 0
                v[:] = 0
            if with_ce:
                kl[row] = divergence
                loss[row] = ce
                if some:
                    _add_cross_entropy(u, p, label[row], smoothing, place_a, rest_a * share_a)
                    _add_cross_entropy(v, q, label[row], smoothing, place_b, rest_b * share_b)
            write(da, at[0], u, weight / temperature)
            write(db, at[1], v, weight / temperature)

    return losses


def _attention_kernel(widen, narrow):
    @rule.jitable
    def scores_of(s, x, row, n, bias, allow, bias_shape, bias_steps, allow_shape, allow_steps):
        for i in range(n):
            s[i] = widen(x[row * n + i])
        if bias.size:
            at, step = locate(row, bias_shape, bias_steps[:-1]), bias_steps[-1]
            for i in range(n):
                s[i] = widen(x[row * n + i]) + bias[at + i * step]
        if allow.size:
            at, step = locate(row, allow_shape, allow_steps[:-1]), allow_steps[-1]
            for i in range(n):
                if not allow[at + i * step]:
                    s[i] = -np.inf

    @rule.jitable
    def write(y, at, g):
        zero = widen(y[at])
        for i in range(g.size):
            y[at + i] = narrow(type(zero)(g[i]))

    @jit
    def attention(y, log_sum, dy, x, n, bias, allow, walks, mask, thresholds, scales, forward, first, last):
        scratch = new_scratch()
        keep = scratch[0]
        s, p, g = np.empty(n), np.empty(n), np.empty(n)
        for row in range(first, last):
            scores_of(s, x, row, n, bias, allow, *walks)
            if forward:
                top = _largest(s)
                if top < NOTHING:
                    top = 0.0
                for i in range(n):
                    p[i] = _exp(s[i] - top)
                total = _sum(p)
                log_sum[row] = top + math.log(total) if total != 0 else np.inf
            minus = log_sum[row]
            for i in range(n):
                p[i] = _exp(s[i] - minus)
            scale = scales[row if scales.size > 1 else 0]
            done = 0
            while done < n:
                many, _ = decide_tile(scratch, 0, row * n + done, (row + 1) * n, mask, thresholds)
                if forward:
                    for i in range(many):
                        g[done + i] = p[done + i] * scale if keep[i] != 0 else 0.0
                else:
                    for i in range(many):
                        g[done + i] = np.float64(widen(dy[row * n + done + i])) * scale if keep[i] != 0 else 0.0
                done += many
            if not forward:
                for i in range(n):
                    s[i] = p[i] * g[i]
                dot = _sum(s)
                for i in range(n):
                    g[i] = p[i] * (g[i] - dot)
            write(y, row * n, g)

    return attention


@cache
def _losses(dtype):
    return _losses_kernel(*DTYPES[dtype][2:])


@cache
def _attention(dtype):
    return _attention_kernel(*DTYPES[dtype][2:])


def row_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    """Write each row's loss, and the gradient of ``weight * loss``: see `reference_rows.row_losses`."""
    if op not in ("symmetric_kl", "r_drop") or target is not None:
        everything = op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing
        return reference_rows.row_losses(*everything)
    seen_as = DTYPES[a.dtype.name][0]
    outputs, inputs = [as_flat(one, seen_as, True) for one in (da, db)], [as_flat(one, seen_as) for one in (a, b)]
    memory, starts = zip(*outputs, *inputs, strict=True)
    steps = np.array([one.strides[0] // one.itemsize for one in (da, db, a, b)])
    rows, n = a.shape
    label = read_only(np.empty(0, np.int64) if label is None else label)
    skip = read_only(np.empty(0, np.bool_) if skip is None else np.ascontiguousarray(skip, np.bool_))
    arguments = (
        *memory[:2], loss, loss if kl is None else kl, *memory[2:], np.array(starts), steps, n, label, skip,
        op == "r_drop", float(temperature), float(weight), float(alpha) if op == "r_drop" else 1.0, float(smoothing),
    )  # fmt: skip
    run(_losses(a.dtype.name), rows, arguments, 1, COST * n)


def softmax_dropout(y, logsumexp, dy, x, bias, allow, mask, p):
    """Softmax over the last axis and dropout, or its gradient: see `reference_rows.softmax_dropout`."""
    seen_as = DTYPES[x.dtype.name][0]
    n = x.shape[-1]
    y1, _ = as_flat(y, seen_as, True)
    x1, dy1 = (as_flat(one, seen_as)[0] for one in (x, x if dy is None else dy))
    extra, walks = [], []
    for one, dtype in ((bias, np.float64), (allow, np.uint8)):
        if one is None:
            extra.append(read_only(np.empty(0, dtype)))
            walks += [np.array([1]), np.array([0, 0])]
        else:
            *lead, step = steps_of(one)
            shape, (steps,) = walk(x.shape[:-1], lead)
            extra.append(as_flat(one, one.dtype if one.dtype.kind == "f" else dtype)[0])
            walks += [shape, np.array([*steps, step])]
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(scale_of(p)).astype(np.float64).ravel()
    arguments = (
        y1, logsumexp.reshape(-1), dy1, x1, n, *extra, tuple(walks), source(mask, x.shape),
        thresholds_of(mask, x.shape), scales, dy is None,
    )  # fmt: skip
    run(_attention(x.dtype.name), x.size // n, arguments, 1, COST * n)
