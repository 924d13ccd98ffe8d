"""Row kernels of the Numba backend on the CPU: R-Drop's losses with their gradients, softmax with dropout.

A row is read once into float64 buffers that stay in cache, and its gradient written once; the arithmetic is that of
`reference_rows`, whose functions take what has no kernel here (other divergences, labels that are probabilities).
Threads take ranges of whole rows, so results do not depend on their number.
"""

import math
from functools import cache

import numpy as np

from ..rule import scale_of
from . import numba_cpu as cpu
from . import numba_rule as rule
from . import reference_rows
from .reference_rows import NOTHING

jit, _locate, _scratch, _tile, TILE = cpu.jit, cpu._locate, cpu._scratch, cpu._tile, cpu.TILE
COST = 8  # an element here costs about what 8 cost in a plain dropout: fewer of them make a second thread pay


# Loops are kept to one thing each: LLVM vectorises those, and no call of libm's exp, and no sum of floats in order.

_MAGIC = 6755399441055744.0  # 1.5 * 2**52: adding it leaves the nearest integer in the low bits
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.6931471803691238, 1.9082149292705877e-10


@rule.inline
def _exp(x):
    """exp(x) for x <= 700, to 2e-16; below -708 it is 0."""
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
    series = series * r * r + r + 1.0
    exponent = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    two_to_k = np.int64(exponent).view(np.float64)
    return 0.0 if x < -708.0 else series * two_to_k


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
    """The largest, NaN if there is one, 0 if all are -inf."""
    top = -np.inf
    for i in range(x.size):
        if not x[i] <= top:
            top = x[i]
    return 0.0 if top == -np.inf else top


@rule.jitable
def _softmax(p, x):
    """p = softmax(x), x = its logarithm; returns whether any class is allowed (p is 0 if none is)."""
    top = _largest(x)
    for i in range(x.size):
        p[i] = _exp(x[i] - top)
    total = _sum(p)
    share, log_sum = (1.0 / total, top + math.log(total)) if total != 0.0 else (0.0, top)
    for i in range(x.size):
        p[i] *= share
    for i in range(x.size):
        x[i] -= log_sum
    return total != 0.0


@rule.jitable
def _times_ratio(out, p, x, y, mean):
    """out = p * (log(p / q) - mean): 0 where p is 0; x and y are the logarithms of p and q."""
    for i in range(out.size):
        t = 0.0 if x[i] == y[i] else x[i] - y[i]
        out[i] = 0.0 if p[i] == 0.0 else p[i] * (t - mean)


@rule.jitable
def _one_sided(x, y):
    count = 0
    for i in range(x.size):
        count += (x[i] == -np.inf) != (y[i] == -np.inf)
    return count > 0


@rule.jitable
def _add_cross_entropy(g, p, label, smoothing):
    each = smoothing / g.size
    for i in range(g.size):
        g[i] += (p[i] - each) / 2
    g[label] -= (1 - smoothing) / 2


def _losses_kernel(widen, narrow):
    @rule.jitable
    def read(x, a, at, temperature):
        for i in range(x.size):
            x[i] = np.float64(widen(a[at + i])) / temperature

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
        x, y, p, q, u, v = np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        for row in range(first, last):
            at = starts + row * steps
            if skip.size and skip[row]:
                u[:] = 0
                write(da, at[0], u, weight)
                write(db, at[1], u, weight)
                continue
            read(x, a, at[2], temperature)
            read(y, b, at[3], temperature)
            some_a, some_b = _softmax(p, x), _softmax(q, y)
            some = some_a or some_b
            _times_ratio(u, p, x, y, 0.0)
            _times_ratio(v, q, x, y, 0.0)
            mean_p, mean_q = _sum(u), _sum(v)
            one_sided = _one_sided(x, y)
            divergence = np.inf if one_sided else (mean_p - mean_q) / 2
            if divergence < 0:
                divergence = 0.0
            loss[row] = divergence
            share = 0.0 if one_sided else alpha / 2
            if share != 0.0:
                _times_ratio(u, p, x, y, mean_p)
                _times_ratio(v, q, x, y, mean_q)
                for i in range(n):
                    u[i] = share * (u[i] + (p[i] - q[i]))
                for i in range(n):
                    v[i] = -share * (v[i] + (p[i] - q[i]))
            else:
                u[:] = 0
                v[:] = 0
            if with_ce:
                kl[row] = divergence
                ce = 0.0
                if some and smoothing < 1:
                    ce -= (1 - smoothing) * (x[label[row]] + y[label[row]]) / 2
                if some and smoothing > 0:
                    ce -= smoothing / n * (_sum(x) + _sum(y)) / 2
                loss[row] = ce
                if some:
                    _add_cross_entropy(u, p, label[row], smoothing)
                    _add_cross_entropy(v, q, label[row], smoothing)
            write(da, at[0], u, weight / temperature)
            write(db, at[1], v, weight / temperature)

    return losses


def _attention_kernel(widen, narrow):
    @rule.jitable
    def scores_of(s, x, row, n, bias, allow, bias_shape, bias_steps, allow_shape, allow_steps):
        for i in range(n):
            s[i] = widen(x[row * n + i])
        if bias.size:
            at, step = _locate(row, bias_shape, bias_steps[:-1]), bias_steps[-1]
            for i in range(n):
                s[i] += bias[at + i * step]
        if allow.size:
            at, step = _locate(row, allow_shape, allow_steps[:-1]), allow_steps[-1]
            for i in range(n):
                if not allow[at + i * step]:
                    s[i] = -np.inf

    @rule.jitable
    def write(y, at, g):
        zero = widen(y[at])
        for i in range(g.size):
            y[at + i] = narrow(type(zero)(g[i]))

    @jit
    def attention(y, log_sum, dy, x, n, bias, allow, walks, mask, chances, scales, forward, first, last):
        scratch = _scratch()
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
                many, _ = _tile(scratch, 0, row * n + done, (row + 1) * n, mask, chances)
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
    return _losses_kernel(*cpu._DTYPES[dtype][2:])


@cache
def _attention(dtype):
    return _attention_kernel(*cpu._DTYPES[dtype][2:])


def row_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    """Write each row's loss, and the gradient of ``weight * loss``: see `reference_rows.row_losses`."""
    if op not in ("symmetric_kl", "r_drop") or target is not None:
        everything = op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing
        return reference_rows.row_losses(*everything)
    seen_as = cpu._DTYPES[a.dtype.name][0]
    outputs, inputs = [cpu._flat(one, seen_as, True) for one in (da, db)], [cpu._flat(one, seen_as) for one in (a, b)]
    memory, starts = zip(*outputs, *inputs, strict=True)
    steps = np.array([one.strides[0] // one.itemsize for one in (da, db, a, b)])
    rows, n = a.shape
    label = cpu._read_only(np.empty(0, np.int64) if label is None else label)
    skip = cpu._read_only(np.empty(0, np.bool_) if skip is None else np.ascontiguousarray(skip, np.bool_))
    arguments = (
        *memory[:2], loss, loss if kl is None else kl, *memory[2:], np.array(starts), steps, n, label, skip,
        op == "r_drop", float(temperature), float(weight), float(alpha) if op == "r_drop" else 1.0, float(smoothing),
    )  # fmt: skip
    cpu._run(_losses(a.dtype.name), rows, arguments, 1, COST * n)


def softmax_dropout(y, log_sum, dy, x, bias, allow, mask, p):
    """Softmax over the last axis and dropout, or its gradient: see `reference_rows.softmax_dropout`."""
    seen_as = cpu._DTYPES[x.dtype.name][0]
    n = x.shape[-1]
    y1, _ = cpu._flat(y, seen_as, True)
    x1, dy1 = (cpu._flat(one, seen_as)[0] for one in (x, x if dy is None else dy))
    extra, walks = [], []
    for one, dtype in ((bias, np.float64), (allow, np.uint8)):
        if one is None:
            extra.append(cpu._read_only(np.empty(0, dtype)))
            walks += [np.array([1]), np.array([0, 0])]
        else:
            *lead, step = cpu._steps(one)
            shape, (steps,) = cpu._walk(x.shape[:-1], lead)
            extra.append(cpu._flat(one, one.dtype if one.dtype.kind == "f" else dtype)[0])
            walks += [shape, np.array([*steps, step])]
    with np.errstate(over="ignore"):
        scales = np.atleast_1d(scale_of(p)).astype(np.float64).ravel()
    arguments = (
        y1, log_sum.reshape(-1), dy1, x1, n, *extra, tuple(walks), cpu._source(mask, x.shape),
        cpu._chances(mask, x.shape), scales, dy is None,
    )  # fmt: skip
    cpu._run(_attention(x.dtype.name), x.size // n, arguments, 1, COST * n)
