"""The row kernels of the reference backend: losses, softmax with dropout, max-norm, as formulas in float64.

Every backend exports functions of these names and arguments.  They write into the arrays that come first and return
nothing; rows are worked through a few at a time, so that temporaries stay small.

What holds for losses on every backend:

- A row with a NaN or +inf among its logits, or a NaN among its label's probabilities, has loss NaN and gradients NaN.
  Rows that are skipped have loss 0 and gradients 0, whatever they hold.
- A class at -inf has probability 0. Where both sides have it, it takes no part. Where only one has: KL is infinite if
  it is the second, the symmetric KL in any case, their gradients then 0; Jensen-Shannon is finite. A cross entropy
  whose label wants it is infinite, its gradient is finite.
- A row of nothing but -inf has no distribution: cross entropy 0. Of two such rows every divergence is 0; of one and a
  row with classes KL(none || q) is 0, Jensen-Shannon log(2), and the others are infinite, all with gradient 0.
- All finite numbers are numbers: a row of nothing but the dtype's lowest is uniform, and no difference overflows.

With x = (a - max a) / T, e = exp(x), r the sum of e without the largest: p = e / (1 + r), log p = x - log1p(r), and
1 - p of the largest class is r / (1 + r).  Of two rows e - f is made from expm1(x - y), and so are the difference of
the sums, p - q and log(p / q).  x - y is (a - b) - (max a - max b), each with what its rounding left; and of
p * (l - E_p[l]), whose sum is 0, the largest class has what the others leave.  So nothing that is nearly equal is
subtracted after it has been rounded.
"""

import numpy as np

from ...operations import LOSSES_BY_NAME
from ...rule import scale_of

CHUNK = 1 << 18  # elements whose temporaries are alive at a time
NOTHING = -1e30  # a row whose largest score is below this has nothing to attend to


def _pieces(rows, n):
    step = max(1, CHUNK // n)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


# -- losses ------------------------------------------------------------------------------------------------------------


def row_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    """Write each row's loss, and the gradient of ``weight * loss`` with respect to the logits.

    Parameters
    ----------
    op : str
        Name of one of `operations.LOSSES`.
    a, b : array of shape [rows, classes]
        Logits; ``b`` is None for the cross entropy. Those of long double are worked on in it, for the truth that
        others are judged by: `fastdrop.bench.accuracy`.
    da, db : array
        Gradients, of the same shapes; may be ``a`` and ``b``.
    label : array of int64 of shape [rows], or None
    target : array of a's shape and dtype, or None
        Probabilities in place of labels.
    skip : array of bool of shape [rows], or None
        True where a row is left out: loss 0, gradient 0.
    loss, kl : array of float64 of shape [rows]
        Of two sides with labels the cross entropy and the divergence, else the loss and None.
    temperature, weight, alpha, smoothing : float
    """
    for i in _pieces(*a.shape):
        with np.errstate(all="ignore"):
            _some_losses(
                op, *(None if x is None else x[i] for x in (a, b, da, db, label, target, skip, loss, kl)),
                temperature, weight, alpha, smoothing,
            )  # fmt: skip


def _some_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    op = LOSSES_BY_NAME[op]
    used = np.ones(len(a), bool) if skip is None else ~skip.astype(bool)
    y = wanted(label, target, smoothing, used, a.shape) if op.labels else None
    sides = [Side(x, temperature) for x in (a, b) if x is not None]
    broken = np.any([side.broken for side in sides], axis=0)
    kl_rows, gradients = np.zeros(len(a)), [0.0, 0.0]
    rows = kl_rows
    if op.sides == 2:
        kl_rows, *gradients = _divergence(op, *sides)
        rows = kl_rows
    if y is not None:
        some = np.any([side.some for side in sides], axis=0)
        entropies = [_entropy(side, y) for side in sides]
        rows = np.where(some, sum(loss for loss, _ in entropies) / len(sides), 0)
        broken |= np.isnan(y).any(-1)
        share = 1 / len(sides)
        gradients = [
            (alpha * g if op.sides == 2 else 0) + np.where(some[:, None], share * slope, 0)
            for g, (_, slope) in zip(gradients, entropies)
        ]
    _write(loss, np.where(broken, np.nan, rows), used)
    if kl is not None:
        _write(kl, np.where(broken, np.nan, kl_rows), used)
    for out, gradient in zip((da, db), gradients):
        if out is not None:
            _write(out, np.where(broken[:, None], np.nan, weight / temperature * gradient), used)


def _write(out, values, used):
    out[...] = np.where(used.reshape((-1,) + (1,) * (values.ndim - 1)), values, 0)


class Side:
    """Some rows of logits: x, p and what the module's docstring calls r, and which of them are broken or empty."""

    def __init__(self, a, temperature):
        a = a.astype(np.longdouble if a.dtype == np.longdouble else np.float64)
        self.broken = np.isnan(a).any(-1) | (a == np.inf).any(-1)
        top = a.max(-1, keepdims=True)
        self.some = top[:, 0] > -np.inf
        half = a / 2 - np.where(np.isfinite(top), top, 0) / 2  # halves: no finite difference overflows
        x = np.maximum(half * (2 / temperature), -np.finfo(np.float64).max)
        self.a, self.max, self.temperature = a, top, temperature
        self.x = np.where(a == -np.inf, -np.inf, x)
        self.top = (np.arange(a.shape[-1]) == a.argmax(-1)[:, None]) & self.some[:, None]
        self.e = np.exp(self.x)
        self.rest = np.where(self.top, 0, self.e).sum(-1, keepdims=True)
        self.share = np.where(self.some[:, None], 1 / (1 + self.rest), 0)
        self.p = self.e * self.share
        self.log_sum = np.log1p(self.rest)


def wanted(label, target, smoothing, used, shape):
    """What each row's label wants of each class, with the smoothing."""
    if target is None:
        y = np.zeros(shape)
        y[np.arange(len(y))[used], label[used]] = 1
    else:
        y = target.astype(np.float64)
    return y * (1 - smoothing) + smoothing / shape[-1]


def _entropy(side, y):
    """Cross entropy of each row, and p * (sum of y) - y."""
    mass, others = y.sum(-1, keepdims=True), np.where(side.top, 0, y).sum(-1, keepdims=True)
    slope = np.where(side.top, others - mass * (side.rest * side.share), side.p * mass - y)
    return (mass * side.log_sum)[:, 0] - _dot(y, side.x), slope


def _divergence(op, a, b):
    """Of each row the divergence and its two gradients with respect to the logits over the temperature."""
    d = _apart(a, b)
    difference = np.expm1(-np.abs(d)) * np.where(d > 0, -np.exp(a.x), np.exp(b.x))  # exp(x) - exp(y)
    more = difference.sum(-1, keepdims=True)
    sums = more * b.share
    near = np.abs(sums) < 0.5
    log_ratio = np.where(near, np.log1p(np.where(near, sums, 0)), a.log_sum - b.log_sum)
    neither = (a.x == -np.inf) & (b.x == -np.inf)
    less = np.where(neither, 0, (difference - b.p * more) * a.share)  # p - q
    ratio = np.where(neither, 0, d - log_ratio)  # log(p / q)
    rows, dp, dq = (_js if op.middle else _mixture)(op, a, b, less, ratio)
    rows = np.maximum(rows, 0)
    both = a.some & b.some
    dp, dq = np.where(both[:, None], dp, 0), np.where(both[:, None], dq, 0)
    rows = np.where(both, rows, 0)
    if op.middle:
        return np.where(a.some != b.some, op.middle * np.log(2), rows), dp, dq
    infinite = (op.forward > 0) & (a.x > -np.inf) & (b.x == -np.inf)
    infinite |= (op.reverse > 0) & (a.x == -np.inf) & (b.x > -np.inf)
    infinite = infinite.any(-1)
    return np.where(infinite, np.inf, rows), np.where(infinite[:, None], 0, dp), np.where(infinite[:, None], 0, dq)


def _apart(a, b):
    """x - y of two sides, 0 where they are equal."""
    first, first_rest = _minus(a.a, b.a)
    second, second_rest = _minus(a.max, b.max)
    d = ((first - second) + (first_rest - second_rest)) / a.temperature
    return np.where(a.x == b.x, 0, np.where(np.isfinite(d), d, a.x - b.x))


def _minus(x, y):
    """x - y and what its rounding left."""
    difference = x - y
    part = difference - x
    return difference, (x - (difference - part)) - (y + part)


def _kl(p, less, ratio):
    exact = _times(p, ratio) - less  # with the sum of q - p, which is 0, no term is negative
    series = p * ratio * ratio * _series(-ratio, [1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040])
    return np.where(np.abs(ratio) > 1e-2, exact, series).sum(-1)


def _mixture(op, a, b, less, ratio):
    """forward * KL(p || q) + reverse * KL(q || p)"""
    if op.forward == op.reverse:  # the normalisers cancel
        rows = op.forward * _dot(less, ratio)
    else:
        rows = _part(op.forward, _kl(a.p, less, ratio)) + _part(op.reverse, _kl(b.p, -less, -ratio))
    return (
        rows,
        _part(op.forward, _centred(a, ratio)) + _part(op.reverse, less),
        _part(op.reverse, _centred(b, -ratio)) - _part(op.forward, less),
    )


def _part(weight, x):
    """weight * x, 0 where the weight is, whatever x."""
    return weight * x if weight else np.zeros_like(x)


def _js(op, a, b, less, ratio):
    w = ratio * ratio / 4
    series = (a.p + b.p) * w * _series(-w, [1 / 2, 1 / 4, 1 / 9, 17 / 360, 31 / 1575])  # of u tanh(u) - log(cosh(u))
    exact = _times(a.p, _js_log(ratio)) + _times(b.p, _js_log(-ratio))
    rows = np.where(np.abs(ratio) < 0.1, series, exact).sum(-1) / 2  # u = ratio / 2
    dp, dq = _centred(a, _js_above(a, ratio)) / 2, _centred(b, _js_above(b, -ratio)) / 2
    return op.middle * rows, op.middle * dp, op.middle * dq


def _js_log(ratio):
    """log(p / m), m = (p + q) / 2."""
    return np.minimum(ratio, 0) - np.log1p(np.expm1(-np.abs(ratio)) / 2)


def _js_above(side, ratio):
    """log(p / m) less that of p's largest class: directly, where both are near log(2) and would nearly agree."""
    top = np.where(side.top, ratio, 0).sum(-1, keepdims=True)
    d = top - ratio
    close = (np.abs(d) < 1) | ((top > 0) & (d < 700))
    share = np.where(close, np.expm1(np.where(close, d, 0)) / (1 + np.exp(top)), 0)
    return np.where(close, -np.log1p(share), _js_log(ratio) - _js_log(top))


def _centred(side, x):
    """p * (x - E_p[x]), from distances to the largest class: there nothing but what the others have is summed."""
    x = x - np.where(side.top, x, 0).sum(-1, keepdims=True)
    return _times(side.p, x - _mean(side.p, x))


def _series(x, terms):
    sum_ = np.zeros_like(x)
    for term in reversed(terms):
        sum_ = sum_ * x + term
    return sum_


def _times(p, x):
    """p * x, 0 where p is."""
    return np.where(p == 0, 0, p * x)


def _dot(p, x):
    return _times(p, x).sum(-1)


def _mean(p, x):
    return _times(p, x).sum(-1, keepdims=True)


# -- softmax with dropout ----------------------------------------------------------------------------------------------


def softmax_dropout(y, logsumexp, dy, x, bias, allow, mask, p):
    """Softmax over the last axis, and dropout; or, where ``dy`` is not None, its gradient.

    Parameters
    ----------
    y : array of x's shape
        Where to write: the result, or the gradient with respect to ``x``.
    logsumexp : array of float64, one a row
        log(sum(exp)) of each row, inf where nothing is allowed: written forward, read backward.
    dy : array or None
        Gradient with respect to the result.
    x : array
        Scores, C-contiguous.
    bias : array or None
        To add to the scores; of their shape (by broadcasting).
    allow : array of bool or None
        False where a score counts as -inf; of their shape (by broadcasting).
    mask : Mask
        Of x's shape, its elements consecutive.
    p : array of float64
        The mask's probability to drop: one, or one a row.
    """
    n, logsumexp = x.shape[-1], logsumexp.reshape(-1)
    keep = mask.keep().reshape(-1, n)
    scale = np.broadcast_to(scale_of(p), (len(keep),))[:, None]
    y, x, dy = (None if a is None else a.reshape(-1, n) for a in (y, x, dy))
    bias, allow = (None if a is None else a.reshape(-1, n) for a in (bias, allow))
    for i in _pieces(*x.shape):
        with np.errstate(all="ignore"):
            s = x[i] if bias is None else x[i].astype(bias.dtype) + bias[i]
            s = s.astype(np.float64)
            if allow is not None:
                s = np.where(allow[i], s, -np.inf)
            if dy is None:
                top = s.max(-1, keepdims=True)
                top = np.where(top < NOTHING, 0, top)
                weights = np.exp(s - top)
                total = weights.sum(-1, keepdims=True)
                logsumexp[i] = np.where(total == 0, np.inf, top + np.log(total))[:, 0]
                y[i] = np.where(keep[i] & (total != 0), weights / total * scale[i], 0)
            else:
                probability = np.exp(s - logsumexp[i, None])
                gradient = np.where(keep[i], dy[i].astype(np.float64) * scale[i], 0)
                y[i] = probability * (gradient - (probability * gradient).sum(-1, keepdims=True))


# -- max-norm ----------------------------------------------------------------------------------------------------------


def max_norm(w, limit):
    """Scale vectors of ``w`` along its middle axis, whose norm is above ``limit``, to that norm; in place.

    By way of a power of two that brings a vector's largest element near 1, so that no square is lost, nor any scale.
    """
    for part in w:
        for j in _pieces(part.shape[1], part.shape[0]):
            with np.errstate(all="ignore"):
                wide = part[:, j].astype(np.float64)
                _, exponent = np.frexp(np.abs(wide).max(0))
                exponent = exponent.clip(-1000, 1022)
                unit = np.ldexp(wide, -exponent)
                norm = np.sqrt((unit * unit).sum(0))
                rest = limit / norm
                scale = np.ldexp(rest, -exponent)
                scaled = np.where(scale >= np.finfo(np.float64).tiny, wide * scale, unit * rest)
                part[:, j] = np.where(norm > np.ldexp(limit, -exponent), scaled, wide)
