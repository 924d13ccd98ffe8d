"""Multi-sample dropout (Inoue, 2019): S masks on one input, and none of the S copies where they are not asked for.

The S masks are one mask with a leading sample axis: sample s is ``mask[s]``, and backward passes make them again.

Two averages go by one name. The paper takes the mean of the S **losses**: every sample's logits are needed, and
`multi_sample_linear` gives them. Much code takes the mean of the S **logits** instead, which trains something else;
with a linear head that is one product with ``x`` times the mean mask, at an S-th of the cost: ``average="logits"``.

[S, B, F], the S masked copies in front of a linear head, never exists: it is made in blocks that fit a bounded buffer,
each of them used up by the matrix product (NumPy's, so its BLAS and its threads) before the next. A product inside the
kernels, masks made in its packing, would save that buffer too; it was left out because a second BLAS has to be as fast
as the first on every machine, and the buffer costs some percent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from .arguments import check_allocatable, check_p, check_samples, check_shape
from .arrays import as_array, as_native, broadcast_to_mask, check_out, output_like
from .backends import in_use
from .dispatch import like, operation
from .functional import check_mask, draw_mask
from .masks import Mask, apply_into
from .memory import allocate, new_array, new_like

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from numpy.typing import NDArray

    from .typing import ArrayLike, Average, Floats, FloatT, Foreign, OutT, Probability, RngLike, TensorT

SCRATCH = 6  # the buffer is one part of so many of [S, B, F]: larger blocks are better matrix products
MIN_SCRATCH = 1 << 20  # bytes that it may have in any case


@overload
def multi_sample_dropout(
    x: NDArray[FloatT], p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: None = None
) -> tuple[NDArray[FloatT], Mask]: ...
@overload
def multi_sample_dropout(
    x: TensorT, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: None = None
) -> tuple[TensorT, Mask]: ...
@overload
def multi_sample_dropout(
    x: Foreign, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: None = None
) -> tuple[Floats, Mask]: ...
@overload
def multi_sample_dropout(
    x: ArrayLike, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: OutT
) -> tuple[OutT, Mask]: ...
@operation("x", out=("x",))
def multi_sample_dropout(
    x: ArrayLike, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: Any = None
) -> tuple[Any, Mask]:
    """Make ``samples`` dropped copies of ``x``.

    Parameters
    ----------
    x : array_like of floats
    p : float or array_like
        Probability to drop, or one for each sample (``np.linspace(0.1, 0.5, samples)``, say).
    samples : int
        How many copies, at least 1.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        Where the mask comes from, see `fastdrop.mask`. One mask is taken, whatever ``samples``.
    out : array_like, optional
        Where to write y.

    Returns
    -------
    y : ndarray of shape (samples, *x.shape)
        ``y[s]`` is ``mask[s].apply(x)``.
    mask : Mask
        Of y's shape.

    Raises
    ------
    TypeError, ValueError
        If ``samples`` is not an integer of at least 1, ``p`` is neither one number in [0, 1] nor ``samples`` of them,
        or x's dtype is none of the four.

    See Also
    --------
    multi_sample_mean : their mean, without the copies.
    multi_sample_linear : what a linear layer makes of them, without the copies.

    References
    ----------
    Inoue, "Multi-sample dropout for accelerated training and better generalization", arXiv:1905.09788 (2019).

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.multi_sample_dropout(np.ones(4), 0.5, samples=3, rng=0)
    >>> y
    array([[0., 0., 2., 2.],
           [0., 0., 0., 0.],
           [2., 0., 0., 2.]])
    >>> fd.multi_sample_dropout_backward(np.ones((3, 4)), mask)
    array([2., 0., 2., 4.])
    """
    shape, p = samples_mask(as_array(x, "x"), p, samples)
    x = broadcast_to_mask(x, shape, "x")
    y = output_like(x, out)
    mask = draw_mask(rng, shape, p)
    if y.size:
        apply_into(y, x, mask)
    return y, mask


@overload
def multi_sample_dropout_backward(dy: NDArray[FloatT], mask: Mask, *, out: None = None) -> NDArray[FloatT]: ...
@overload
def multi_sample_dropout_backward(dy: TensorT, mask: Mask, *, out: None = None) -> TensorT: ...
@overload
def multi_sample_dropout_backward(dy: Foreign, mask: Mask, *, out: None = None) -> Floats: ...
@overload
def multi_sample_dropout_backward(dy: ArrayLike, mask: Mask, *, out: OutT) -> OutT: ...
@operation("dy", out=("dy",))
def multi_sample_dropout_backward(dy: ArrayLike, mask: Mask, *, out: Any = None) -> Any:
    """Gradient of `multi_sample_dropout` with respect to ``x``: the sum over samples, in one pass.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to y, of the mask's shape.
    mask : Mask
        What `multi_sample_dropout` returned, or a part of it.
    out : array_like, optional
        Where to write the gradient.

    Returns
    -------
    ndarray of dy's shape without its first axis
        Added in the order of the samples, in float32 (float64 for float64), rounded once.

    Raises
    ------
    TypeError, ValueError
        If ``dy`` or ``mask`` is of another type or shape.
    """
    _check_mask(mask)
    as_array(dy, "dy")
    if dy.shape != mask.shape:
        raise ValueError(f"dy must have the mask's shape, {mask.shape}, got {dy.shape}")
    dy = allocate(np.ascontiguousarray, as_native(dy)) if dy.ndim > 1 else as_native(dy)
    dx = new_array(dy.shape[1:], dy.dtype) if out is None else check_out(out, "out", dy.shape[1:], dy.dtype)
    if dx.size:
        _whole(dx, lambda whole: in_use.backend.sample_sum(whole, dy, mask))
    return dx


@like(multi_sample_dropout)
@operation("x", out=("x",))
def multi_sample_mean(
    x: ArrayLike, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: Any = None
) -> tuple[Any, Mask]:
    """Mean of ``samples`` dropped copies of ``x``: ``x`` is read once, the mean written once, no copy is made.

    Parameters
    ----------
    x : array_like of floats
    p : float or array_like
        Probability to drop, or one for each sample.
    samples : int
        At least 1.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        As in `multi_sample_dropout`, whose masks these are for the same ``rng``.
    out : array_like, optional
        Where to write y; may be ``x``.

    Returns
    -------
    y : ndarray of x's shape and dtype
        ``x`` times the mean of the multipliers; +0.0, whatever x is, where every sample drops. ``x`` itself where
        ``p == 0``.
    mask : Mask
        Of shape ``(samples, *x.shape)``.

    Raises
    ------
    TypeError, ValueError
        As `multi_sample_dropout`.

    Notes
    -----
    One multiplication by a mean mask, not a mean of S products, so it differs from
    ``multi_sample_dropout(...)[0].mean(axis=0)`` by rounding, and where x is Inf or NaN and only some
    samples drop it. It is the same to the bit on every backend, instruction set and thread count; src/samples.h has the
    rule.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.multi_sample_mean(np.ones(4), 0.5, samples=4, rng=0)
    >>> y
    array([1. , 0. , 0.5, 1. ])
    >>> bool((fd.multi_sample_mean_backward(np.ones(4), mask) == y).all())
    True
    """
    shape, p = samples_mask(as_array(x, "x"), p, samples)
    if out is not None:
        check_out(out, "out", x.shape, x.dtype)
    mask = draw_mask(rng, shape, p)
    return _mean(x, mask, out), mask


@like(multi_sample_dropout_backward)
@operation("dy", out=("dy",))
def multi_sample_mean_backward(dy: ArrayLike, mask: Mask, *, out: Any = None) -> Any:
    """Gradient of `multi_sample_mean` with respect to ``x``: the same kernel on ``dy``.

    Parameters
    ----------
    dy : array_like
        Gradient with respect to y, of y's shape.
    mask : Mask
        What `multi_sample_mean` returned, or a part of it: its shape is ``(samples, *dy.shape)``.
    out : array_like, optional
        Where to write the gradient; may be ``dy``.

    Returns
    -------
    ndarray of dy's shape and dtype

    Raises
    ------
    TypeError, ValueError
        If ``dy`` or ``mask`` is of another type or shape.
    """
    _check_mask(mask)
    as_array(dy, "dy")
    if dy.shape != mask.shape[1:]:
        raise ValueError(f"dy must have the shape {mask.shape[1:]} of the mask without its samples, got {dy.shape}")
    if out is not None:
        check_out(out, "out", dy.shape, dy.dtype)
    dx = _mean(dy, mask, out)
    return dx.copy() if dx is dy and out is None else dx


@overload
def multi_sample_linear(
    x: NDArray[FloatT], W: ArrayLike, b: ArrayLike | None, p: Probability, samples: SupportsIndex, *,
    rng: RngLike = None, average: Average = "losses",
) -> tuple[NDArray[FloatT], Mask]: ...  # fmt: skip
@overload
def multi_sample_linear(
    x: TensorT, W: ArrayLike, b: ArrayLike | None, p: Probability, samples: SupportsIndex, *,
    rng: RngLike = None, average: Average = "losses",
) -> tuple[TensorT, Mask]: ...  # fmt: skip
@overload
def multi_sample_linear(
    x: Foreign, W: ArrayLike, b: ArrayLike | None, p: Probability, samples: SupportsIndex, *,
    rng: RngLike = None, average: Average = "losses",
) -> tuple[Floats, Mask]: ...  # fmt: skip
@operation("x", "W", "b", optional=("b",))
def multi_sample_linear(
    x: ArrayLike, W: ArrayLike, b: ArrayLike | None, p: Probability, samples: SupportsIndex, *, rng: RngLike = None,
    average: Average = "losses",
) -> tuple[Any, Mask]:  # fmt: skip
    """Drop ``x`` in ``samples`` ways and put each through one linear layer: ``y[s] @ W + b``.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (..., F)
    W : array_like of x's dtype, shape (F, C)
    b : array_like of shape (C,), or None
    p : float or array_like
        Probability to drop, or one for each sample.
    samples : int
        At least 1.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        As in `multi_sample_dropout`, whose masks these are for the same ``rng``.
    average : {"losses", "logits"}, keyword only
        What the caller will average; see Notes.

    Returns
    -------
    logits : ndarray
        ``average="losses"``: (samples, ..., C), one set for each sample. ``average="logits"``: their mean, (..., C).
    mask : Mask
        Of shape ``(samples, *x.shape)``; `multi_sample_linear_backward` needs it, ``x`` and ``W``.

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit, or as `multi_sample_dropout`.

    Notes
    -----
    The paper averages the S losses: with ``average="losses"``, take the loss of every sample against the same labels
    and average. Averaging the logits first is another training signal (a loss is not linear), often found in code. A
    linear layer and a mean can change places, so that needs one matrix product, with `multi_sample_mean`.

    An [S, ..., F] array is never made; the working memory is a fifth of one, or 1 MiB where that is less.

    References
    ----------
    Inoue, "Multi-sample dropout for accelerated training and better generalization", arXiv:1905.09788 (2019).

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x, W, b = np.ones((2, 6)), np.full((6, 3), 0.5), np.zeros(3)
    >>> logits, mask = fd.multi_sample_linear(x, W, b, 0.5, samples=4, rng=0)
    >>> logits.shape, mask.shape
    ((4, 2, 3), (4, 2, 6))
    >>> mean, _ = fd.multi_sample_linear(x, W, b, 0.5, samples=4, rng=0, average="logits")
    >>> bool(np.allclose(mean, logits.mean(axis=0)))
    True
    """
    x, W = _operands(x, W)
    if b is not None:
        if b.shape != W.shape[1:]:
            raise ValueError(f"b must have the shape {W.shape[1:]} of W's second axis, got {b.shape}")
        if b.dtype.newbyteorder("=") != x.dtype:
            raise TypeError(f"b must have x's dtype {x.dtype}, got {b.dtype}")
    if average not in ("losses", "logits"):
        raise ValueError(f"average must be 'losses' or 'logits', got {average!r}")
    shape, p = samples_mask(x, p, samples)
    masks = draw_mask(rng, shape, p)
    if average == "logits":
        logits = _mean(x, masks) @ W
    else:
        logits = new_array((*masks.shape[:-1], W.shape[1]), x.dtype)
        _forward(_rows(logits, 3), _rows(x, 2), W, masks)
    if b is not None:
        logits += b
    return logits, masks


@overload
def multi_sample_linear_backward(
    dlogits: NDArray[FloatT], x: ArrayLike, W: ArrayLike, mask: Mask
) -> tuple[NDArray[FloatT], NDArray[FloatT], NDArray[FloatT]]: ...
@overload
def multi_sample_linear_backward(
    dlogits: TensorT, x: ArrayLike, W: ArrayLike, mask: Mask
) -> tuple[TensorT, TensorT, TensorT]: ...
@overload
def multi_sample_linear_backward(
    dlogits: Foreign, x: ArrayLike, W: ArrayLike, mask: Mask
) -> tuple[Floats, Floats, Floats]: ...
@operation("dlogits", "x", "W")
def multi_sample_linear_backward(dlogits: ArrayLike, x: ArrayLike, W: ArrayLike, mask: Mask) -> tuple[Any, Any, Any]:
    """Gradients of `multi_sample_linear`.

    Parameters
    ----------
    dlogits : array_like
        Gradient with respect to the logits. Its shape says which average they were for: (samples, ..., C) or (..., C).
    x, W : array_like
        What `multi_sample_linear` was given.
    mask : Mask
        What it returned; the masked copies are made again from it.

    Returns
    -------
    dx, dW, db : ndarray

    Raises
    ------
    TypeError, ValueError
        If shapes or dtypes do not fit.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x, W = np.ones((2, 6)), np.full((6, 3), 0.5)
    >>> logits, mask = fd.multi_sample_linear(x, W, None, 0.5, samples=4, rng=0)
    >>> dx, dW, db = fd.multi_sample_linear_backward(np.ones_like(logits), x, W, mask)
    >>> dx.shape, dW.shape, db
    ((2, 6), (6, 3), array([8., 8., 8.]))
    """
    x, W = _operands(x, W)
    _check_mask(mask)
    if mask.shape[1:] != x.shape:
        raise ValueError(f"mask must have the shape (samples, *{x.shape}) that x gives, got {mask.shape}")
    if dlogits.dtype.newbyteorder("=") != x.dtype:
        raise TypeError(f"dlogits must have x's dtype {x.dtype}, got {dlogits.dtype}")
    one = (*x.shape[:-1], W.shape[1])
    kept_apart = (len(mask), *one)
    if dlogits.shape not in (one, kept_apart):
        raise ValueError(f"dlogits must have shape {kept_apart}, or {one} of averaged logits, got {dlogits.shape}")
    db = dlogits.sum(axis=tuple(range(dlogits.ndim - 1)))
    if dlogits.shape == one:
        dx = multi_sample_mean_backward(dlogits @ W.T, mask)
        return dx, _rows(_mean(x, mask), 2).T @ _rows(dlogits, 2), db
    dx, dW = new_array(x.shape, x.dtype), new_array(W.shape, W.dtype)
    _backward(_rows(dx, 2), dW, _rows(allocate(np.ascontiguousarray, dlogits), 3), _rows(x, 2), W, mask)
    return dx, dW, db


# -- the blocks --------------------------------------------------------------------------------------------------------


def _forward(logits, x, W, mask):
    """logits[s] = mask[s].apply(x) @ W, for as many rows at a time as the buffer holds, whatever their samples.

    A matrix product copies W into an order of its own first: the fewer products, the better.
    """
    samples, (rows, features) = len(mask), x.shape
    mask = _reshaped(mask, (samples, rows, features))
    whole = logits.reshape(samples * rows, W.shape[1])
    scratch = _scratch(x, samples, features)
    block = max(1, min(len(whole), len(scratch) // max(1, features)))
    block = max(1, -(-len(whole) // max(1, -(-len(whole) // block))))  # of about the same size
    scratch = scratch[: block * features].reshape(block, features)
    for start in range(0, len(whole), block):
        stop = min(start + block, len(whole))
        for s in range(start // rows, -(-stop // rows)):
            first, last = max(start, s * rows), min(stop, (s + 1) * rows)
            part = slice(first - s * rows, last - s * rows)
            mask[s, part].apply(x[part], out=scratch[first - start : last - start])
        np.matmul(scratch[: stop - start], W, out=whole[start:stop])


def _backward(dx, dW, dlogits, x, W, mask):
    """Both gradients, a block of features after the other: each sums over all samples, so no sum has to wait."""
    samples, (rows, features) = len(mask), x.shape
    mask = _reshaped(mask, (samples, rows, features))
    flat = dlogits.reshape(samples * rows, W.shape[1])
    scratch = _scratch(x, samples, samples * rows)
    block = max(1, min(features, len(scratch) // max(1, samples * rows)))
    if block > 256:
        block -= block % 256  # a block of the stream, made whole
    for at in range(0, features, block):
        part = slice(at, min(at + block, features))
        width = part.stop - at
        masked = scratch[: samples * rows * width].reshape(samples, rows, width)
        wide = masked.reshape(samples * rows, width)
        np.matmul(flat, W[part].T, out=wide)
        if wide.size:
            in_use.backend.sample_sum(dx[:, part], masked, mask[:, :, part])
        mask[:, :, part].apply(x[:, part], out=masked)
        np.matmul(wide.T, flat, out=dW[part])


def _scratch(x, samples, least):
    """The buffer, of one size forward and backward: the memory of one serves the other. At least ``least`` long."""
    return new_array((max(least, max(MIN_SCRATCH, samples * x.nbytes // SCRATCH) // x.itemsize),), x.dtype)


def _rows(array, ndim):
    """The array with its axes between the first (of ``ndim == 3``) and the last as one."""
    return array.reshape(*array.shape[: ndim - 2], -1 if array.size else _count(array, ndim), array.shape[-1])


def _count(array, ndim):
    return int(np.prod(array.shape[ndim - 2 : -1]))


def _reshaped(mask, shape):
    """The same mask in another shape, that of a part too where it has these three axes already."""
    if mask.shape == shape:
        return mask
    if mask._strides is not None:
        raise ValueError(f"mask must be whole, or of three axes, got a part of shape {mask.shape}")
    return Mask._make(mask._seed, mask._stream, shape, mask._p, mask._offset, None, mask._stored)


# -- the arguments -----------------------------------------------------------------------------------------------------


def samples_mask(x, p, samples):
    """The shape and p of the mask of ``samples`` copies of x: to be drawn when nothing can fail any more."""
    samples = check_samples(samples)
    shape = check_shape((samples, *x.shape))
    p = check_p(p)
    if type(p) is not float and p.shape != (samples,):
        raise ValueError(f"p must be one number or one for each of {samples} samples, got an array of shape {p.shape}")
    check_allocatable(shape, x.itemsize)
    return shape, p


def _check_mask(mask):
    check_mask(mask)
    if not mask.ndim or len(mask) < 1:
        raise ValueError(f"mask must have a first axis of at least 1 sample, got shape {mask.shape}")
    if type(mask.p) is not float and mask.p.ndim != 1:
        raise ValueError(f"mask must have one p or one for each sample, got p of shape {mask.p.shape}")


def _mean(x, mask, out=None):
    """x times the mean multiplier, in ``out``: a new array if that is None, or x itself where nothing is dropped."""
    if type(mask.p) is float and mask.p == 0.0 and mask._stored is None:
        if out is None:
            return x
        out[...] = x
        return out
    y = new_like(x) if out is None else out
    if x.size:
        x = allocate(np.ascontiguousarray, as_native(x)).reshape(x.shape)
        _whole(y, lambda whole: in_use.backend.sample_mean(whole, x, mask))
    return y


def _whole(y, kernel):
    """Run ``kernel`` on y, or on an array that is copied to y where the kernels cannot write there."""
    if y.flags.carray and y.dtype.isnative:
        return kernel(y)
    whole = new_array(y.shape, y.dtype.newbyteorder("="))
    kernel(whole)
    y[...] = whole


def _operands(x, W):
    for name, array in (("x", x), ("W", W)):
        if array.dtype.newbyteorder("=") not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64, as matrix products are, got dtype {array.dtype}")
    if W.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
        raise TypeError(f"W must have x's dtype {x.dtype}, got {W.dtype}")
    if W.ndim != 2:
        raise ValueError(f"W must have the shape (F, C), got {W.shape}")
    if not x.ndim or x.shape[-1] != W.shape[0]:
        raise ValueError(f"x must have {W.shape[0]} features, W's first axis, on its last axis, got shape {x.shape}")
    return allocate(np.ascontiguousarray, as_native(x)), as_native(W)
