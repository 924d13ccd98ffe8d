"""``softmax_dropout``: attention weights in one pass, and back.

Frameworks write the softmax, the bits and the product to memory one after another, and read all of them again in the
backward pass.  Here a row of scores stays in cache from its maximum to its dropped probabilities; what the backward
pass needs is the scores and one number a row, from which the probabilities are made again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from .arguments import check_axis
from .arrays import as_array, as_native, axis_last, output_like, sum_dtype
from .backends import in_use
from .dispatch import operation
from .dtypes import FLOATS
from .functional import check_mask, draw_mask, requested_mask
from .masks import Mask
from .memory import allocate, new_like

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .typing import (
        ArrayLike,
        ArrayT,
        AttentionMask,
        Floats,
        FloatT,
        Foreign,
        MaskOptions,
        OutT,
        Probability,
        RngLike,
        TensorT,
        Training,
    )

__all__ = ["softmax_dropout", "softmax_dropout_backward"]


@overload
def softmax_dropout(
    scores: NDArray[FloatT], p: Probability = 0.5, *, axis: SupportsIndex = -1,
    attention_mask: AttentionMask | None = None, out: None = None, **options: Unpack[MaskOptions],
) -> tuple[NDArray[FloatT], Mask, NDArray[np.float64]]: ...  # fmt: skip
@overload
def softmax_dropout(
    scores: TensorT, p: Probability = 0.5, *, axis: SupportsIndex = -1, attention_mask: AttentionMask | None = None,
    out: None = None, **options: Unpack[MaskOptions],
) -> tuple[TensorT, Mask, TensorT]: ...  # fmt: skip
@overload
def softmax_dropout(
    scores: Foreign, p: Probability = 0.5, *, axis: SupportsIndex = -1, attention_mask: AttentionMask | None = None,
    out: None = None, **options: Unpack[MaskOptions],
) -> tuple[Floats, Mask, NDArray[np.float64]]: ...  # fmt: skip
@overload
def softmax_dropout(
    scores: ArrayLike, p: Probability = 0.5, *, axis: SupportsIndex = -1, attention_mask: AttentionMask | None = None,
    out: OutT, **options: Unpack[MaskOptions],
) -> tuple[OutT, Mask, Any]: ...  # fmt: skip
@operation("scores", "attention_mask", out=("scores",))
def softmax_dropout(
    scores: ArrayLike, p: Probability = 0.5, *, axis: SupportsIndex = -1, attention_mask: AttentionMask | None = None,
    rng: RngLike = None, mask: Mask | None = None, training: Training = True, out: Any = None,
) -> tuple[Any, Mask, Any]:  # fmt: skip
    """Softmax over one axis, then dropout: attention weights.

    Parameters
    ----------
    scores : array_like of floats
        Attention scores, such as ``q @ k.T / sqrt(d)``, of any shape.
    p : float or array_like, default 0.5
        Probability to drop, in [0, 1]; an array has the scores' shape ``[:k]`` and does not vary along ``axis``.
    axis : int, default -1
        The axis whose softmaxes sum to 1. The last is the fast one; for others the scores are copied.
    attention_mask : array_like, optional
        Broadcasts to the scores. Bools: True = may attend, False = counts as -inf. Floats are added to the scores, of
        which the lowest finite number of their own dtype counts as -inf; sums that are all below -1e30 do too.
    rng, mask, training
        As in `fastdrop.dropout`; the mask has the scores' shape.
    out : array, optional
        Where to write; may be ``scores``, unless these are still needed for the backward pass.

    Returns
    -------
    y : ndarray or ``out``
        Of the scores' shape. Rows that may attend to nothing are 0.
    mask : Mask
    log_sum : ndarray of float64
        log(sum(exp(scores))) of each softmax, of the scores' shape without ``axis``; inf where nothing is allowed.
        Together with ``scores`` and ``mask`` all that `softmax_dropout_backward` needs.

    Raises
    ------
    TypeError
        If a dtype is not one of those named.
    ValueError
        If ``p`` is not in [0, 1] or shapes do not fit.

    Notes
    -----
    A NaN or +inf among the scores that count, or a sum with an additive mask that overflows (float32; float64 for
    float64), makes its softmax NaN, log_sum too.

    Before dropout and before it is rounded to 16 bits, y is right to 5e-6 of its softmax's largest, the gradient to
    5e-6 of that times the largest dy; twice that with the scalar kernels. In float64 it is 1e-9.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> scores = np.zeros((2, 4))
    >>> y, mask, log_sum = fd.softmax_dropout(scores, 0.5, rng=0)
    >>> y
    array([[0. , 0. , 0.5, 0.5],
           [0. , 0. , 0. , 0. ]])
    >>> fd.softmax_dropout_backward(np.eye(2, 4, 2), scores, log_sum, mask)
    array([[-0.125, -0.125,  0.375, -0.125],
           [ 0.   ,  0.   ,  0.   ,  0.   ]])
    """
    as_array(scores, "scores")
    axis = check_axis(axis, scores.shape, "scores")
    shape, p, mask = requested_mask(scores.shape, p, mask, training)
    _check_mask(shape, p, scores, axis)
    bias, allow = _attention(attention_mask, scores, axis)
    y = output_like(scores, out)
    mask = draw_mask(rng, shape, p) if mask is None else mask
    log_sum = np.empty(scores.shape[:axis] + scores.shape[axis + 1 :])
    _run(y, log_sum, None, scores, bias, allow, mask, axis)
    return y, mask, log_sum


@overload
def softmax_dropout_backward(
    dy: ArrayT, scores: ArrayLike, log_sum: ArrayLike, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: AttentionMask | None = None, out: None = None,
) -> ArrayT: ...  # fmt: skip
@overload
def softmax_dropout_backward(
    dy: Foreign, scores: ArrayLike, log_sum: ArrayLike, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: AttentionMask | None = None, out: None = None,
) -> Floats: ...  # fmt: skip
@overload
def softmax_dropout_backward(
    dy: ArrayLike, scores: ArrayLike, log_sum: ArrayLike, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: AttentionMask | None = None, out: OutT,
) -> OutT: ...  # fmt: skip
@operation("dy", "scores", "log_sum", "attention_mask", out=("dy", "scores"))
def softmax_dropout_backward(
    dy: ArrayLike, scores: ArrayLike, log_sum: ArrayLike, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: AttentionMask | None = None, out: Any = None,
) -> Any:  # fmt: skip
    """Gradient of `softmax_dropout` with respect to the scores.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    scores, attention_mask, axis
        As they were given to `softmax_dropout`.
    log_sum, mask
        What it returned.
    out : array, optional
        Where to write; may be ``dy`` or ``scores``.

    Returns
    -------
    ndarray or ``out``
        In the scores' dtype. An additive ``attention_mask`` has the same gradient, summed where it was broadcast.

    Raises
    ------
    TypeError, ValueError
        As `softmax_dropout`.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> scores = np.zeros((1, 2))
    >>> y, mask, log_sum = fd.softmax_dropout(scores, 0.0, rng=0)
    >>> fd.softmax_dropout_backward(np.array([[1.0, 0.0]]), scores, log_sum, mask)
    array([[ 0.25, -0.25]])
    """
    as_array(scores, "scores")
    as_array(dy, "dy")
    axis = check_axis(axis, scores.shape, "scores")
    if dy.shape != scores.shape:
        raise ValueError(f"dy must have the scores' shape {scores.shape}, got {dy.shape}")
    if dy.dtype.newbyteorder("=") != scores.dtype.newbyteorder("="):
        raise TypeError(f"dy must have the scores' dtype {scores.dtype}, got {dy.dtype}")
    check_mask(mask)
    _check_mask(mask.shape, mask.p, scores, axis)
    rows = scores.shape[:axis] + scores.shape[axis + 1 :]
    if log_sum.dtype != np.float64 or log_sum.shape != rows:
        raise ValueError(
            f"log_sum must be what softmax_dropout returned, float64 of shape {rows}, "
            f"got {log_sum.dtype} of shape {log_sum.shape}"
        )
    bias, allow = _attention(attention_mask, scores, axis)
    dx = output_like(scores, out)
    _run(dx, np.ascontiguousarray(as_native(log_sum)), dy, scores, bias, allow, mask, axis)
    return dx


def _check_mask(shape, p, scores, axis):
    if shape != scores.shape:
        raise ValueError(f"mask must have the scores' shape {scores.shape}, got {shape}")
    if type(p) is not float and p.ndim > axis and shape[axis] != 1:
        raise ValueError(f"an array p must not vary along axis {axis}, got shape {p.shape}")


def _attention(attention_mask, scores, axis):
    """Return (bias, allow), one of them or both None: of the scores' shape, ``axis`` last and consecutive."""
    if attention_mask is None:
        return None, None
    given = attention_mask
    is_bool = given.dtype == np.bool_
    if not is_bool and given.dtype.kind != "f" and given.dtype.name not in FLOATS:
        raise TypeError(f"attention_mask must hold bools (True = may attend) or floats to add, got dtype {given.dtype}")
    if given.ndim > scores.ndim or any(m not in (1, n) for m, n in zip(given.shape[::-1], scores.shape[::-1])):
        raise ValueError(f"attention_mask must broadcast to the scores' shape {scores.shape}, got {given.shape}")
    if is_bool:
        given = given.view(np.uint8) != 0  # bytes that are not 0 or 1 would mix up neighbours
    else:
        given = _as_bias(given, sum_dtype(scores.dtype).type)
    wide = axis_last(given.reshape((1,) * (scores.ndim - given.ndim) + given.shape), axis)
    shape = axis_last(scores, axis).shape
    wide = np.broadcast_to(wide, (*wide.shape[:-1], shape[-1]))  # whole rows: kernels read consecutive numbers
    wide = np.broadcast_to(np.ascontiguousarray(as_native(wide)).reshape(wide.shape), shape)
    return (None, wide) if is_bool else (wide, None)


def _as_bias(given, dtype):
    """Cast to ``dtype``, with -inf for the lowest number of the dtype that it comes in: what users mask with."""
    lowest = np.nextafter(given.dtype.type(-np.inf), given.dtype.type(0))
    with np.errstate(over="ignore"):
        return np.where(given <= lowest, dtype(-np.inf), given.astype(dtype))


def _run(out, log_sum, dy, scores, bias, allow, mask, axis):
    if not out.size:
        log_sum[...] = np.inf
        return
    p = mask.broadcast_p()
    if type(p) is not float:
        p = axis_last(p.reshape(p.shape + (1,) * (scores.ndim - p.ndim)), axis)
        p = np.broadcast_to(p[..., 0], axis_last(scores, axis).shape[:-1])
    x = allocate(np.ascontiguousarray, as_native(axis_last(scores, axis)))
    gradient = None if dy is None else allocate(np.ascontiguousarray, as_native(axis_last(dy, axis)))
    last = axis == scores.ndim - 1
    y = out if last and out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative else new_like(x)
    if not last or mask._strides is not None:
        mask = Mask.from_keep(axis_last(mask.keep(), axis), mask.p if type(mask.p) is float else 0.0)
    p = np.ascontiguousarray(p, np.float64).ravel()
    in_use.backend.softmax_dropout(y, log_sum, gradient, x, bias, allow, mask, p)
    if y is not out:
        axis_last(out, axis)[...] = y
