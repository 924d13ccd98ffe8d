"""The row kernels of the reference backend: losses, softmax with dropout, max-norm, as plain formulas in float64.

Every backend exports functions of these names and arguments.  They write into the arrays that come first and return
nothing; rows are worked through a few at a time, so that temporaries stay small.
"""

import numpy as np

from ..rule import scale_of

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
    op : {"kl", "symmetric_kl", "js", "r_drop", "cross_entropy"}
    a, b : array of shape [rows, classes]
        Logits; ``b`` is None for the cross entropy.
    da, db : array
        Gradients, of the same shapes; may be ``a`` and ``b``.
    label : array of int64 of shape [rows], or None
    target : array of a's shape and dtype, or None
        Probabilities in place of labels.
    skip : array of bool of shape [rows], or None
        True where a row is left out: loss 0, gradient 0.
    loss, kl : array of float64 of shape [rows]
        For "r_drop" the cross entropy and the symmetric KL divergence, else the loss and None.
    temperature, weight, alpha, smoothing : float
    """
    for i in _pieces(*a.shape):
        with np.errstate(all="ignore"):
            _some_losses(
                op, *(None if x is None else x[i] for x in (a, b, da, db, label, target, skip, loss, kl)),
                temperature, weight, alpha, smoothing,
            )  # fmt: skip


def _some_losses(op, a, b, da, db, label, target, skip, loss, kl, temperature, weight, alpha, smoothing):
    used = np.ones(len(a), bool) if skip is None else ~skip.astype(bool)
    a, p, log_p = _softmax(a, temperature)
    if op == "cross_entropy":
        some = p.any(-1, keepdims=True)  # classes that are allowed; none: the row has no softmax, loss 0
        y = _distribution(label, target, smoothing, used, a.shape)
        rows = np.where(some, -_plogq(y, log_p), 0).sum(-1)
        _write(loss, rows, used)
        _write(da, np.where(some, weight / temperature * (p * y.sum(-1, keepdims=True) - y), 0), used)
        return
    b, q, log_q = _softmax(b, temperature)
    some = p.any(-1, keepdims=True) | q.any(-1, keepdims=True)
    divergence, dp, dq = _DIVERGENCES[op](p, q, log_p, log_q)
    infinite = np.isinf(divergence)[:, None]
    dp, dq = np.where(infinite, 0, dp), np.where(infinite, 0, dq)
    if op == "r_drop":
        y = _distribution(label, target, smoothing, used, a.shape)
        mass = y.sum(-1, keepdims=True)
        _write(loss, np.where(some, -_plogq(y, log_p) - _plogq(y, log_q), 0).sum(-1) / 2, used)
        _write(kl, divergence, used)
        dp = np.where(some, alpha * dp + (p * mass - y) / 2, 0)
        dq = np.where(some, alpha * dq + (q * mass - y) / 2, 0)
    else:
        _write(loss, divergence, used)
    _write(da, weight / temperature * dp, used)
    _write(db, weight / temperature * dq, used)


def _write(out, values, used):
    out[...] = np.where(used.reshape((-1,) + (1,) * (values.ndim - 1)), values, 0)


def _softmax(x, temperature):
    """Logits in float64 over the temperature, their softmax (zeros in a row of nothing but -inf) and its logarithm."""
    x = x.astype(np.float64) / temperature
    top = x.max(-1, keepdims=True)
    top = np.where(top == -np.inf, 0, top)
    e = np.exp(x - top)
    total = e.sum(-1, keepdims=True)
    empty = total == 0
    return x, e / np.where(empty, 1, total), x - top - np.log(np.where(empty, 1, total))


def _plogq(p, log_q):
    """p * log(q), 0 where p is 0."""
    return np.where(p == 0, 0, p * log_q)


def _distribution(label, target, smoothing, used, shape):
    if target is None:
        y = np.zeros(shape)
        y[np.arange(len(y))[used], label[used]] = 1
    else:
        y = target.astype(np.float64)
    return y * (1 - smoothing) + smoothing / shape[-1]


def _log_ratio(log_p, log_q):
    """log(p / q): 0 where neither allows a class."""
    return np.where(log_p == log_q, 0, log_p - log_q)


def _kl(p, q, log_p, log_q):
    ratio = _log_ratio(log_p, log_q)
    beyond = np.where(p == 0, q, 0).sum(-1)
    kl = _dot(p, ratio + np.expm1(-ratio)) + beyond  # with the sum of q - p, which is 0: what cancels is never summed
    kl = _infinite(kl, np.isneginf(log_q) & ~np.isneginf(log_p))
    return kl, _times(p, ratio - kl[:, None]), q - p


def _symmetric_kl(p, q, log_p, log_q):
    ratio = _log_ratio(log_p, log_q)
    a, b = _dot(p, ratio), _dot(q, ratio)
    j = _infinite((a - b) / 2, np.isneginf(log_q) != np.isneginf(log_p))
    dp = (_times(p, ratio - a[:, None]) + p - q) / 2
    dq = (_times(q, b[:, None] - ratio) + q - p) / 2
    return j, dp, dq


def _js(p, q, log_p, log_q):
    ratio = _log_ratio(log_p, log_q)
    larger = -np.log1p(np.expm1(-np.abs(ratio)) / 2)
    p_log, q_log = larger + np.minimum(ratio, 0), larger - np.maximum(ratio, 0)  # log(p / m), log(q / m)
    a, b = _dot(p, p_log), _dot(q, q_log)
    return np.maximum((a + b) / 2, 0), _times(p, p_log - a[:, None]) / 2, _times(q, q_log - b[:, None]) / 2


_DIVERGENCES = {"kl": _kl, "symmetric_kl": _symmetric_kl, "js": _js, "r_drop": _symmetric_kl}


def _times(p, x):
    return np.where(p == 0, 0, p * x)


def _dot(p, x):
    return _times(p, x).sum(-1)


def _infinite(divergence, one_sided):
    return np.where(one_sided.any(-1), np.inf, np.where(divergence < 0, 0, divergence))


# -- softmax with dropout ----------------------------------------------------------------------------------------------


def softmax_dropout(y, log_sum, dy, x, bias, allow, mask, p):
    """Softmax over the last axis, and dropout; or, where ``dy`` is not None, its gradient.

    Parameters
    ----------
    y : array of x's shape
        Where to write: the result, or the gradient with respect to ``x``.
    log_sum : array of float64, one a row
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
    n, log_sum = x.shape[-1], log_sum.reshape(-1)
    keep = mask.keep().reshape(-1, n)
    scale = np.broadcast_to(scale_of(p), (len(keep),))[:, None]
    y, x, dy = (None if a is None else a.reshape(-1, n) for a in (y, x, dy))
    bias, allow = (None if a is None else a.reshape(-1, n) for a in (bias, allow))
    for i in _pieces(*x.shape):
        with np.errstate(all="ignore"):
            s = x[i].astype(np.float64)
            if bias is not None:
                s = s + bias[i]
            if allow is not None:
                s = np.where(allow[i], s, -np.inf)
            if dy is None:
                top = s.max(-1, keepdims=True)
                top = np.where(top < NOTHING, 0, top)
                total = np.exp(s - top).sum(-1, keepdims=True)
                log_sum[i] = np.where(total == 0, np.inf, top + np.log(total))[:, 0]
                y[i] = np.where(keep[i], np.exp(s - log_sum[i, None]) * scale[i], 0)
            else:
                probability = np.exp(s - log_sum[i, None])
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
