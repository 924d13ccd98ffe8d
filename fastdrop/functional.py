"""``dropout`` and ``dropout_backward``: masks on arrays, in one call; and which mask a call is asked to use."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from .arguments import check_flag, check_mask_shape, fit_p, joint_shape
from .arrays import broadcast_to_mask, output_like
from .dispatch import operation
from .masks import Mask, apply_into, gradient
from .rng import draw

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .typing import (
        ArrayLike,
        DropoutOptions,
        Dtype,
        Floats,
        FloatT,
        Foreign,
        MaskShape,
        OutT,
        Probability,
        RngLike,
        TensorT,
        Training,
    )


def check_mask(mask: object) -> None:
    """Raise TypeError unless ``mask`` is a `Mask`."""
    if not isinstance(mask, Mask):
        raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")


def requested_mask(shape, p, mask, training, mask_shape=None):
    """Which mask a call on an array of ``shape`` is asked to use.

    Returns
    -------
    shape : tuple of int
        The mask's.
    p : float or ndarray
        The mask's.
    mask : Mask or None
        None: it is still to be drawn by `draw_mask`, last, when nothing can fail any more: a call that raises takes
        none of its generator.
    """
    if training is not True and training is not False:
        check_flag(training, "training")
    if mask is not None:
        check_mask(mask)
        shape, p = mask._shape, mask._p
    else:
        if mask_shape is not None:
            given, shape = shape, check_mask_shape(mask_shape, shape)
            joint_shape(shape, given, 1, "mask_shape", "x's shape")
        p = fit_p(p, shape)
    return (shape, p, mask) if training else (shape, 0.0, Mask._make(0, 0, shape, 0.0))


def draw_mask(rng, shape, p):
    """Take a mask of ``rng``; shape and p have been checked."""
    return Mask._make(*draw(rng), shape, p)


@overload
def dropout(
    x: NDArray[FloatT], p: Probability = 0.5, *, out: None = None, **options: Unpack[DropoutOptions]
) -> tuple[NDArray[FloatT], Mask]: ...
@overload
def dropout(
    x: TensorT, p: Probability = 0.5, *, out: None = None, **options: Unpack[DropoutOptions]
) -> tuple[TensorT, Mask]: ...
@overload
def dropout(
    x: Foreign, p: Probability = 0.5, *, out: None = None, **options: Unpack[DropoutOptions]
) -> tuple[Floats, Mask]: ...
@overload
def dropout(
    x: ArrayLike, p: Probability = 0.5, *, out: OutT, **options: Unpack[DropoutOptions]
) -> tuple[OutT, Mask]: ...
@operation("x", out=("x",), fast_path=True)
def dropout(
    x: ArrayLike, p: Probability = 0.5, *, rng: RngLike = None, mask: Mask | None = None, training: Training = True,
    mask_shape: MaskShape = None, out: Any = None, dtype: Dtype = None,
) -> tuple[Any, Mask]:  # fmt: skip
    """Drop each element of ``x`` with probability ``p`` and scale the others by ``1/(1-p)``.

    Parameters
    ----------
    x : array_like of floats: float16, bfloat16, float32 or float64
        Any shape, strides and byte order. Any object with the buffer protocol or CPU DLPack is read in place. An array
        in CUDA memory is worked on there, and the result belongs to its library: see `fastdrop.cuda`.
    p : float or array_like, default 0.5
        Probability to drop, in [0, 1]; an array has the mask's shape ``[:k]`` (one p per sample, per time step, ...).
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator
        Where the mask comes from, see `fastdrop.mask`.
    mask : Mask, optional
        Use this mask; ``p``, ``rng`` and ``mask_shape`` are then not looked at.
    training : bool, default True
        If False, nothing is dropped and no mask is taken from ``rng``.
    mask_shape : tuple of int or None, optional
        Shape of the mask, which broadcasts with x's: 1 on the axes that share a decision, None for
        x's own size on that axis (Keras's noise_shape).
    out : array_like, optional
        Where to write: any writable buffer of the result's shape and x's dtype. ``out=x`` works in place.
    dtype : dtype, optional
        What the bytes of ``x`` and ``out`` are, where the objects cannot say (``bytes``, ``mmap``).

    Returns
    -------
    y : array of x's kind, or ``out``
        An ndarray, or a torch or JAX array where x is one. ``x`` itself, not a copy, where nothing can be dropped
        (``p == 0`` or not ``training``) and ``out`` is not given.
    mask : Mask
        What `dropout_backward` needs.

    Raises
    ------
    TypeError
        If x's dtype is none of the four, or an argument is of the wrong type.
    ValueError
        If ``p`` is not in [0, 1], shapes do not fit, or ``out`` is read-only or overlaps ``x`` without being it.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> x = np.ones((2, 4), np.float32)
    >>> y, mask = fd.dropout(x, p=0.5, rng=0)
    >>> y
    array([[0., 0., 2., 2.],
           [0., 0., 0., 0.]], dtype=float32)
    >>> fd.dropout_backward(np.full_like(y, 3), mask)
    array([[0., 0., 6., 6.],
           [0., 0., 0., 0.]], dtype=float32)
    """
    shape, p, mask = requested_mask(x.shape, p, mask, training, mask_shape)
    wide = broadcast_to_mask(x, shape, "x")
    keeps_all = type(p) is float and p == 0.0 and (mask is None or mask._stored is None)
    as_it_is = keeps_all and out is None and wide is x
    y = x if as_it_is else output_like(wide, out)
    mask = draw_mask(rng, shape, p) if mask is None else mask
    if y.size and not as_it_is:
        apply_into(y, wide, mask)
    return y, mask


@overload
def dropout_backward(dy: NDArray[FloatT], mask: Mask, *, out: None = None, dtype: Dtype = None) -> NDArray[FloatT]: ...
@overload
def dropout_backward(dy: TensorT, mask: Mask, *, out: None = None, dtype: Dtype = None) -> TensorT: ...
@overload
def dropout_backward(dy: Foreign, mask: Mask, *, out: None = None, dtype: Dtype = None) -> Floats: ...
@overload
def dropout_backward(dy: ArrayLike, mask: Mask, *, out: OutT, dtype: Dtype = None) -> OutT: ...
@operation("dy", out=("dy",))
def dropout_backward(dy: ArrayLike, mask: Mask, *, out: Any = None, dtype: Dtype = None) -> Any:
    """Gradient of `dropout` with respect to ``x``.

    Parameters
    ----------
    dy : array_like
        Gradient of the loss with respect to y.
    mask : Mask
        What `dropout` returned.
    out : array_like, optional
        Where to write; may be ``dy``.
    dtype : dtype, optional
        As in `dropout`.

    Returns
    -------
    ndarray or ``out``
        ``dy * scale`` where kept, +0.0 where dropped. For an x that was broadcast up to the mask's shape use
        ``mask.backward(dy, x_shape=x.shape)``.

    Raises
    ------
    TypeError, ValueError
        As `dropout`.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.dropout(np.ones(4), p=0.5, rng=0)
    >>> fd.dropout_backward(np.ones(4), mask)
    array([0., 0., 2., 2.])
    """
    check_mask(mask)
    return gradient(mask, dy, None, out)
