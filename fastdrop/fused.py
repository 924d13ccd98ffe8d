"""Dropout together with what stands next to it in a network: one pass over memory instead of two or three.

Each is elementwise, keeps nothing for the backward but what the caller has anyway, and works on the same masks as
`dropout`: ``fd.dropout_add(x, r, mask=mask)`` drops what ``fd.dropout(x, mask=mask)`` drops. float16 and bfloat16 are
worked on in float32 and rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

import numpy as np

from .arguments import check_shape
from .arrays import as_array, as_native, output_like, sum_dtype
from .backends import in_use
from .dispatch import like, operation
from .functional import check_mask, draw_mask, dropout, requested_mask
from .masks import gradient
from .memory import allocate, new_array

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .masks import Mask
    from .typing import (
        ArrayLike,
        ArrayT,
        DropoutOptions,
        Dtype,
        Floats,
        FloatT,
        Foreign,
        MaskShape,
        OutT,
        Probability,
        RngLike,
        Shape,
        TensorT,
        Training,
    )

__all__ = ["dropout_add", "dropout_add_backward"]


@overload
def dropout_add(
    x: ArrayT, residual: ArrayLike, p: Probability = 0.5, *, bias: ArrayLike | None = None, out: None = None,
    **options: Unpack[DropoutOptions],
) -> tuple[ArrayT, Mask]: ...  # fmt: skip
@overload
def dropout_add(
    x: Foreign, residual: ArrayLike, p: Probability = 0.5, *, bias: ArrayLike | None = None, out: None = None,
    **options: Unpack[DropoutOptions],
) -> tuple[Floats, Mask]: ...  # fmt: skip
@overload
def dropout_add(
    x: ArrayLike, residual: ArrayLike, p: Probability = 0.5, *, bias: ArrayLike | None = None, out: OutT,
    **options: Unpack[DropoutOptions],
) -> tuple[OutT, Mask]: ...  # fmt: skip
@operation("x", "residual", "bias", out=("x", "residual", "bias"))
def dropout_add(
    x: ArrayLike, residual: ArrayLike, p: Probability = 0.5, *, bias: ArrayLike | None = None, rng: RngLike = None,
    mask: Mask | None = None, training: Training = True, mask_shape: MaskShape = None, out: Any = None,
    dtype: Dtype = None,
) -> tuple[Any, Mask]:  # fmt: skip
    """Bias, dropout and residual connection in one pass: ``dropout(x + bias) + residual``.

    Parameters
    ----------
    x : array_like of floats
    residual : array_like
        Of x's dtype; broadcasts to x's shape.
    p : float or array_like, default 0.5
        Probability to drop, in [0, 1].
    bias : array_like, optional
        Of x's dtype; broadcasts to x's shape (usually one number a feature, of shape ``x.shape[-1:]``).
    rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x`` or ``residual``.

    Returns
    -------
    y : ndarray or ``out``
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`; also if ``residual`` or ``bias`` has another dtype or does not broadcast to x's shape.

    See Also
    --------
    dropout_add_backward

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x = np.ones((2, 4))
    >>> y, mask = fd.dropout_add(x, np.full((2, 4), 10.0), 0.5, bias=np.arange(4.0), rng=0)
    >>> y
    array([[10., 10., 16., 18.],
           [10., 10., 10., 10.]])
    """
    inputs = {"x": x, "residual": residual} if bias is None else {"x": x, "residual": residual, "bias": bias}
    return _forward("add" if bias is None else "bias_add", inputs, p, rng, mask, training, mask_shape, out)


@overload
def dropout_add_backward(
    dy: ArrayT, mask: Mask, *, bias_shape: None = None, out: None = None, dtype: Dtype = None
) -> tuple[ArrayT, None]: ...
@overload
def dropout_add_backward(
    dy: NDArray[FloatT], mask: Mask, *, bias_shape: Shape, out: None = None, dtype: Dtype = None
) -> tuple[NDArray[FloatT], NDArray[FloatT]]: ...
@overload
def dropout_add_backward(
    dy: TensorT, mask: Mask, *, bias_shape: Shape, out: None = None, dtype: Dtype = None
) -> tuple[TensorT, TensorT]: ...
@overload
def dropout_add_backward(
    dy: Foreign, mask: Mask, *, bias_shape: Shape | None = None, out: None = None, dtype: Dtype = None
) -> tuple[Floats, Any]: ...
@overload
def dropout_add_backward(
    dy: ArrayLike, mask: Mask, *, bias_shape: Shape | None = None, out: OutT, dtype: Dtype = None
) -> tuple[OutT, Any]: ...
@operation("dy", out=("dy",))
def dropout_add_backward(
    dy: ArrayLike, mask: Mask, *, bias_shape: Shape | None = None, out: Any = None, dtype: Dtype = None
) -> tuple[Any, Any]:
    """Gradients of `dropout_add`; that of the residual is ``dy`` itself.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    mask : Mask
        What `dropout_add` returned.
    bias_shape : tuple of int, optional
        The bias's shape, if there was one.
    out : array_like, optional
        Where to write dx; may be ``dy`` where the caller needs it no more.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    dx : ndarray or ``out``
    dbias : ndarray or None
        dx summed over the axes along which the bias was shared, part by part while they are in cache, in float32
        (float64 for float64) and in an order that does not depend on the number of threads.

    Raises
    ------
    TypeError, ValueError
        As `dropout_backward`; also if ``bias_shape`` does not broadcast to dy's shape.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x = np.ones((2, 4))
    >>> y, mask = fd.dropout_add(x, x, 0.5, bias=np.zeros(4), rng=0)
    >>> fd.dropout_add_backward(np.ones((2, 4)), mask, bias_shape=(4,))[1]
    array([0., 0., 2., 2.])
    """
    check_mask(mask)
    if bias_shape is None:
        return gradient(mask, dy, None, out), None
    bias_shape = check_shape(bias_shape, "bias_shape")
    as_array(dy, "dy")
    _fits("bias_shape", bias_shape, "dy", dy.shape)
    _fits("mask", mask.shape, "dy", dy.shape)
    dx = output_like(dy, out)
    dbias = allocate(np.zeros, (1,) * (dy.ndim - len(bias_shape)) + bias_shape, sum_dtype(dy.dtype))
    if dy.size:
        whole = dx if dx.flags.aligned and dx.dtype.isnative else new_array(dx.shape, dx.dtype.newbyteorder("="))
        in_use.backend.apply_sum(dbias, as_native(dy), mask, whole)
        if whole is not dx:
            dx[...] = whole
    return dx, dbias.reshape(bias_shape).astype(dy.dtype)


__all__ += ["relu_dropout", "relu_dropout_backward"]


@like(dropout)
@operation("x", out=("x",))
def relu_dropout(
    x: ArrayLike, p: Probability = 0.5, *, rng: RngLike = None, mask: Mask | None = None, training: Training = True,
    mask_shape: MaskShape = None, out: Any = None, dtype: Dtype = None,
) -> tuple[Any, Mask]:  # fmt: skip
    """ReLU and dropout in one pass: ``dropout(max(x, 0))``.

    Parameters
    ----------
    x : array_like of floats
    p, rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x``.

    Returns
    -------
    y : ndarray or ``out``
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    See Also
    --------
    relu_dropout_backward

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.relu_dropout(np.array([[1.0, -1.0, 2.0, -2.0]]), 0.5, rng=0)
    >>> y
    array([[0., 0., 4., 0.]])
    >>> fd.relu_dropout_backward(np.ones((1, 4)), y, mask)
    array([[0., 0., 2., 0.]])
    """
    return _forward("relu", {"x": x}, p, rng, mask, training, mask_shape, out)


@overload
def relu_dropout_backward(dy: ArrayT, x: ArrayLike, mask: Mask, *, out: None = None, dtype: Dtype = None) -> ArrayT: ...
@overload
def relu_dropout_backward(
    dy: Foreign, x: ArrayLike, mask: Mask, *, out: None = None, dtype: Dtype = None
) -> Floats: ...
@overload
def relu_dropout_backward(dy: ArrayLike, x: ArrayLike, mask: Mask, *, out: OutT, dtype: Dtype = None) -> OutT: ...
@operation("dy", "x", out=("dy", "x"))
def relu_dropout_backward(dy: ArrayLike, x: ArrayLike, mask: Mask, *, out: Any = None, dtype: Dtype = None) -> Any:
    """Gradient of `relu_dropout` with respect to its input.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    x : array_like
        The input of `relu_dropout`, or its result y, which is positive in the same kept places: so x need not be kept.
    mask : Mask
        What `relu_dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy`` or ``x``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``
        ``dy * scale`` where x is positive and kept, +0.0 elsewhere.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """
    return _backward("relu_backward", dy, x, mask, out)


__all__ += ["gelu_dropout", "gelu_dropout_backward"]


@like(dropout)
@operation("x", out=("x",))
def gelu_dropout(
    x: ArrayLike, p: Probability = 0.5, *, rng: RngLike = None, mask: Mask | None = None, training: Training = True,
    mask_shape: MaskShape = None, out: Any = None, dtype: Dtype = None,
) -> tuple[Any, Mask]:  # fmt: skip
    """GELU and dropout in one pass: ``dropout(x * Phi(x))``, Phi the normal distribution function (no tanh in its
    place).

    Parameters
    ----------
    x : array_like of floats
    p, rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x``, if the backward is not wanted.

    Returns
    -------
    y : ndarray or ``out``
        Right to 2e-7 of max(1, abs(x)), in float64 to 4e-16.
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    See Also
    --------
    gelu_dropout_backward

    References
    ----------
    Hendrycks and Gimpel, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.gelu_dropout(np.array([[1.0, -1.0, 2.0, -2.0]]), 0.5, rng=0)
    >>> y.round(4)
    array([[ 0.   ,  0.   ,  3.909, -0.091]])
    """
    return _forward("gelu", {"x": x}, p, rng, mask, training, mask_shape, out)


@like(relu_dropout_backward)
@operation("dy", "x", out=("dy", "x"))
def gelu_dropout_backward(dy: ArrayLike, x: ArrayLike, mask: Mask, *, out: Any = None, dtype: Dtype = None) -> Any:
    """Gradient of `gelu_dropout` with respect to x.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    x : array_like
        The input of `gelu_dropout`.
    mask : Mask
        What `gelu_dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy`` or ``x``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """
    return _backward("gelu_backward", dy, x, mask, out)


__all__ += ["silu_dropout", "silu_dropout_backward"]


@like(dropout)
@operation("x", out=("x",))
def silu_dropout(
    x: ArrayLike, p: Probability = 0.5, *, rng: RngLike = None, mask: Mask | None = None, training: Training = True,
    mask_shape: MaskShape = None, out: Any = None, dtype: Dtype = None,
) -> tuple[Any, Mask]:  # fmt: skip
    """SiLU (swish) and dropout in one pass: ``dropout(x * sigmoid(x))``.

    Parameters
    ----------
    x : array_like of floats
    p, rng, mask, training, mask_shape, dtype
        As in `dropout`; the mask must broadcast to x's shape.
    out : array_like, optional
        Where to write; may be ``x``, if the backward is not wanted.

    Returns
    -------
    y : ndarray or ``out``
        Right to 2e-7 of max(1, abs(x)), in float64 to 4e-16.
    mask : Mask

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    See Also
    --------
    silu_dropout_backward

    References
    ----------
    Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in reinforcement
    learning", arXiv 1702.03118.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.silu_dropout(np.array([[1.0, -1.0, 2.0, -2.0]]), 0.5, rng=0)
    >>> y.round(4)
    array([[ 0.    ,  0.    ,  3.5232, -0.4768]])
    """
    return _forward("silu", {"x": x}, p, rng, mask, training, mask_shape, out)


@like(relu_dropout_backward)
@operation("dy", "x", out=("dy", "x"))
def silu_dropout_backward(dy: ArrayLike, x: ArrayLike, mask: Mask, *, out: Any = None, dtype: Dtype = None) -> Any:
    """Gradient of `silu_dropout` with respect to x.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    x : array_like
        The input of `silu_dropout`.
    mask : Mask
        What `silu_dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy`` or ``x``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``

    Raises
    ------
    TypeError, ValueError
        As `dropout`.
    """
    return _backward("silu_backward", dy, x, mask, out)


# -- what they share: inputs checked, a mask taken last, one call of the backend -------------------------------------


def _forward(op, inputs, p, rng, mask, training, mask_shape, out):
    (name, x), *others = inputs.items()
    arrays = [as_array(x, name)]
    for other, a in others:
        if a.dtype != x.dtype and a.dtype.newbyteorder("=") != x.dtype.newbyteorder("="):
            raise TypeError(f"{other} must have {name}'s dtype {x.dtype}, got {a.dtype}")
        if a.shape != x.shape:
            _fits(other, a.shape, name, x.shape)
            a = np.broadcast_to(a, x.shape)
        arrays.append(a)
    shape, p, mask = requested_mask(x.shape, p, mask, training, mask_shape)
    if shape != x.shape:
        _fits("mask" if mask_shape is None else "mask_shape", shape, name, x.shape)
    y = output_like(x, out)
    mask = draw_mask(rng, shape, p) if mask is None else mask
    if y.size:
        whole = y if y.flags.behaved and y.dtype.isnative else new_array(y.shape, y.dtype.newbyteorder("="))
        in_use.backend.elementwise(op, whole, tuple(map(as_native, arrays)), mask)
        if whole is not y:
            y[...] = whole
    return y, mask


def _backward(op, dy, x, mask, out):
    check_mask(mask)
    return _forward(op, {"dy": dy, "x": x}, 0.5, None, mask, True, None, out)[0]


def _fits(name, shape, whole_name, whole):
    lead = len(whole) - len(shape)
    if lead < 0 or any(m not in (1, n) for m, n in zip(shape, whole[lead:], strict=True)):
        raise ValueError(f"{name} of shape {shape} does not broadcast to {whole_name}'s shape {whole}")
