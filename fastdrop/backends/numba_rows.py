"""Row kernels of the Numba backend on the CPU: R-Drop's losses with their gradients, softmax with dropout.

A row is read once into float64 buffers that stay in cache, and its gradient written once; the arithmetic is that of
`reference_rows`, whose functions take what has no kernel here (other divergences, labels that are probabilities).
Threads take ranges of whole rows, so results do not depend on their number.
"""

import math
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
from numba import njit
from numba.extending import register_jitable

from ..mask import scale_of
from . import numba_cpu as cpu
from . import reference_rows

_SOURCES = cpu._SOURCES + sha256(Path(__file__).read_bytes()).hexdigest()
_locate, _scratch, _tile, TILE = cpu._locate, cpu._scratch, cpu._tile, cpu.TILE
COST = 16  # an element here costs about what 16 cost in a plain dropout: fewer of them make a second thread pay


@register_jitable
def _exponentials(e, x):
    """e = exp(x - largest); returns the largest (0 where all are -inf) and the sum."""
    top = -np.inf
    for i in range(x.size):
        if not x[i] <= top:  # a NaN becomes the largest and spreads
            top = x[i]
    if top == -np.inf:
        top = 0.0
    total = 0.0
    for i in range(x.size):
        e[i] = math.exp(x[i] - top)
        total += e[i]
    return top, total


@register_jitable
def _log_ratio(log_p, log_q):
    """log(p / q): 0 where neither allows a class."""
    return 0.0 if log_p == log_q else log_p - log_q


def _losses_kernel(sources, widen, narrow):
    @njit(nogil=True, cache=True)
    def losses(
        da, db, loss, kl, a, b, starts, steps, n, label, skip, with_ce, temperature, weight, alpha, smoothing,
        first, last,
    ):  # fmt: skip
        assert sources
        x, y, p, q = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        for row in range(first, last):
            at_da, at_db = starts[0] + row * steps[0], starts[1] + row * steps[1]
            at_a, at_b = starts[2] + row * steps[2], starts[3] + row * steps[3]
            if skip.size and skip[row]:
                for i in range(n):
                    da[at_da + i] = narrow(type(widen(a[at_a]))(0))
                    db[at_db + i] = narrow(type(widen(a[at_a]))(0))
                continue
            for i in range(n):
                x[i] = np.float64(widen(a[at_a + i])) / temperature
                y[i] = np.float64(widen(b[at_b + i])) / temperature
            top_a, sum_a = _exponentials(p, x)
            top_b, sum_b = _exponentials(q, y)
            empty = sum_a == 0 and sum_b == 0
            share_a, log_a = (1 / sum_a, top_a + math.log(sum_a)) if sum_a != 0 else (0.0, top_a)
            share_b, log_b = (1 / sum_b, top_b + math.log(sum_b)) if sum_b != 0 else (0.0, top_b)
            mean_p = mean_q = all_logs = 0.0
            one_sided = False
            for i in range(n):
                p[i] *= share_a
                q[i] *= share_b
                one_sided |= (x[i] == -np.inf) != (y[i] == -np.inf)
                if with_ce and smoothing > 0:
                    all_logs += (x[i] - log_a) + (y[i] - log_b)
                t = _log_ratio(x[i] - log_a, y[i] - log_b)
                if p[i] != 0:
                    mean_p += p[i] * t
                if q[i] != 0:
                    mean_q += q[i] * t
            divergence = np.inf if one_sided else (mean_p - mean_q) / 2
            if divergence < 0:
                divergence = 0.0
            loss[row] = divergence
            if with_ce:
                kl[row] = divergence
                target = label[row]
                ce = 0.0
                if smoothing < 1:
                    ce -= (1 - smoothing) * ((x[target] - log_a) + (y[target] - log_b)) / 2
                if smoothing > 0:
                    ce -= smoothing / n * all_logs / 2
                loss[row] = 0.0 if empty else ce
            share = 0.0 if one_sided else alpha / 2
            for i in range(n):
                ga = gb = 0.0
                if share != 0:
                    t = _log_ratio(x[i] - log_a, y[i] - log_b)
                    if p[i] != 0:
                        ga = share * p[i] * (t - mean_p)
                    if q[i] != 0:
                        gb = -share * q[i] * (t - mean_q)
                    ga += share * (p[i] - q[i])
                    gb -= share * (p[i] - q[i])
                if with_ce and not empty:
                    wanted = smoothing / n + (1 - smoothing if i == label[row] else 0.0)
                    ga += (p[i] - wanted) / 2
                    gb += (q[i] - wanted) / 2
                zero = widen(a[at_a])
                da[at_da + i] = narrow(type(zero)(ga * weight / temperature))
                db[at_db + i] = narrow(type(zero)(gb * weight / temperature))

    return losses


def _attention_kernel(sources, widen, narrow):
    @register_jitable
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

    @njit(nogil=True, cache=True)
    def attention(y, log_sum, dy, x, n, bias, allow, walks, mask, chances, scales, forward, first, last):
        assert sources
        scratch = _scratch()
        keep = scratch[0]
        s, p, g = np.empty(n), np.empty(n), np.empty(n)
        zero = widen(x[0])
        for row in range(first, last):
            scores_of(s, x, row, n, bias, allow, *walks)
            if forward:
                top, total = _exponentials(p, s)
                log_sum[row] = top + math.log(total) if total != 0 else np.inf
            scale = scales[row if scales.size > 1 else 0]
            dot = 0.0
            done = 0
            while done < n:
                many, _ = _tile(scratch, 0, row * n + done, (row + 1) * n, mask, chances)
                for i in range(done, done + many):
                    p[i] = math.exp(s[i] - log_sum[row])
                    if forward:
                        y[row * n + i] = narrow(type(zero)(p[i] * scale if keep[i - done] else 0.0))
                    else:
                        g[i] = np.float64(widen(dy[row * n + i])) * scale if keep[i - done] else 0.0
                        dot += p[i] * g[i]
                done += many
            if not forward:
                for i in range(n):
                    y[row * n + i] = narrow(type(zero)(p[i] * (g[i] - dot)))

    return attention


@cache
def _losses(dtype):
    return _losses_kernel(_SOURCES, *cpu._DTYPES[dtype][2:])


@cache
def _attention(dtype):
    return _attention_kernel(_SOURCES, *cpu._DTYPES[dtype][2:])


def row_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    """Write each row's loss, and the gradient of ``weight * loss``: see `reference_rows.row_losses`."""
    if op not in ("symmetric_kl", "r_drop") or target is not None:
        everything = op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing
        return reference_rows.row_losses(*everything)
    seen_as = cpu._DTYPES[a.dtype.name][0]
    memory, starts = zip(*(cpu._flat(one, seen_as) for one in (da, db, a, b)), strict=True)
    steps = np.array([one.strides[0] // one.itemsize for one in (da, db, a, b)])
    rows, n = a.shape
    label = np.empty(0, np.int64) if label is None else label
    skip = np.empty(0, np.bool_) if skip is None else np.ascontiguousarray(skip, np.bool_)
    arguments = (
        *memory[:2], loss, loss if kl is None else kl, *memory[2:], np.array(starts), steps, n, label, skip,
        op == "r_drop", float(temperature), float(weight), float(alpha) if op == "r_drop" else 1.0, float(smoothing),
    )  # fmt: skip
    cpu._run(_losses(a.dtype.name), rows, arguments, 1, COST * n)


def softmax_dropout(y, log_sum, dy, x, bias, allow, mask, p):
    """Softmax over the last axis and dropout, or its gradient: see `reference_rows.softmax_dropout`."""
    seen_as = cpu._DTYPES[x.dtype.name][0]
    n = x.shape[-1]
    y1, x1, dy1 = (cpu._flat(one, seen_as)[0] for one in (y, x, x if dy is None else dy))
    extra, walks = [], []
    for one, dtype in ((bias, np.float64), (allow, np.uint8)):
        if one is None:
            extra.append(np.empty(0, dtype))
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
