"""Dropout, and what stands beside it, on device arrays: checked here, launched by the Numba CUDA backend.

Bodies see `DeviceArray`s, and the ``stream`` as the border that makes outputs on it and has the kernels:
`borders.cuda.Border`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import check_shape, joint_shape
from ..borders import on_device
from ..borders.cuda import Border, broadcast, check_contiguous, check_dtype
from ..dispatch import device_operation
from ..dtypes import FLOATS
from ..functional import check_mask, draw_mask, requested_mask
from ..multi_sample import samples_mask
from ..operations import ACTIVATIONS

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from ..masks import Mask
    from ..typing import MaskShape, Probability, RngLike, Shape, TensorT, Training


def _broadcast_to_mask(a, shape, name):
    """``a`` broadcast with a mask's ``shape``: itself where that changes nothing."""
    check_dtype(a, name)
    if a.shape == shape:
        return a
    shape = joint_shape(a.shape, shape, a.itemsize, f"{name} of shape", "the mask's shape")
    return a if a.shape == shape else broadcast(a, shape, name)


# -- dropout -----------------------------------------------------------------------------------------------------------


@device_operation
def apply(mask: Mask, x: TensorT, out: TensorT | None = None, *, stream: Any = None) -> TensorT:
    """``mask.apply(x)`` on the device.

    Parameters
    ----------
    mask : Mask
    x : device array of floats
        Any strides; broadcasts with the mask.
    out : device array, optional
        Where to write; may be ``x``.
    stream : stream of torch, CuPy, Numba or cuda.core, or its address, optional
        Default: the current stream of x's library.

    Returns
    -------
    device array of x's library, or ``out``
    """
    return _apply(_broadcast_to_mask(x, mask.shape, "x"), out, mask, stream)


def _apply(x, out, mask, stream):
    y = stream.output(out, "out", x, x.shape)
    if x.size:
        stream.kernels.elementwise("apply", y, (x,), mask, stream.address)
    return y


def _drop(x, out, rng, shape, p, mask, stream):
    """`_apply` of a mask that may still have to be drawn, last."""
    y = stream.output(out, "out", x, x.shape)
    mask = draw_mask(rng, shape, p) if mask is None else mask
    return _apply(x, y, mask, stream), mask


@device_operation
def dropout(
    x: TensorT, p: Probability = 0.5, *, rng: RngLike = None, mask: Mask | None = None, training: Training = True,
    mask_shape: MaskShape = None, out: TensorT | None = None, stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.dropout` for device arrays; arguments and results as there and in `apply`.

    Returns
    -------
    y : device array of x's library, or ``out``
        ``x`` itself where nothing can be dropped and ``out`` is not given.
    mask : Mask
    """
    check_dtype(x, "x")
    shape, p, mask = requested_mask(x.shape, p, mask, training, mask_shape)
    wide = _broadcast_to_mask(x, shape, "x")
    keeps_all = type(p) is float and p == 0.0 and (mask is None or mask._stored is None)
    if keeps_all and out is None and wide is x:
        return x, draw_mask(rng, shape, p) if mask is None else mask
    return _drop(wide, out, rng, shape, p, mask, stream)


@device_operation
def dropout_backward(dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
    """Gradient of `dropout`: the same kernel on ``dy``, the same mask made again."""
    check_mask(mask)
    return _gradient(mask, dy, None, out, stream)


@device_operation
def backward(
    mask: Mask, dy: TensorT, x_shape: Shape | None = None, out: TensorT | None = None, *, stream: Any = None
) -> TensorT:
    """``mask.backward(dy, x_shape)`` on the device: the sum over the axes along which x was broadcast up."""
    return _gradient(mask, dy, x_shape, out, stream)


def _gradient(mask, dy, x_shape, out, stream):
    check_dtype(dy, "dy")
    x_shape = dy.shape if x_shape is None else check_shape(x_shape, "x_shape")
    joint = joint_shape(x_shape, mask.shape, dy.itemsize, "x_shape", "the mask's shape")
    if dy.shape != joint:
        raise ValueError(f"dy must have the shape of apply(x), {joint}, got {dy.shape}")
    if x_shape == joint:
        return _apply(dy, out, mask, stream)
    return _sum(stream.output(out, "out", dy, x_shape), dy, mask, stream)


def _sum(dx, dy, mask, stream):
    """dx = the sum of what the mask keeps of ``dy``, over the axes along which dx is shorter."""
    if dx.size:
        stream.kernels.apply_sum(dx, dy, mask, stream.address)
    return dx


def bits(mask: Mask, *, like: TensorT | None = None, out: TensorT | None = None, stream: Any = None) -> TensorT:
    """``mask.bits()`` made on the device.

    Parameters
    ----------
    mask : Mask
    like : device array, optional
        An array of the library and the device for the result.
    out : device array of uint8, optional
        Where to write: (mask.size + 7) // 8 elements.

    Returns
    -------
    device array of uint8
    """
    given, name = (out, "out") if like is None else (like, "like")
    if not on_device(given):
        raise TypeError(f"{name} must be a device array, got a {type(given).__name__} in host memory")
    border = Border(given, stream=stream)
    a = check_dtype(border.take(given, name), name, *FLOATS, "uint8")
    packed = None if out is None else border.take(out, "out", writable=True)
    packed = border.run(_bits, mask, a, packed)
    return border.deliver(packed) if out is None else out


def _bits(mask, like, out, stream):
    packed = stream.output(out, "out", like, ((mask.size + 7) // 8,), "uint8")
    check_contiguous((packed, "out"))
    if packed.size:
        stream.kernels.keep_bits(packed, mask, stream.address)
    return packed


# -- fused with what stands beside it ----------------------------------------------------------------------------------


def _fused(op, inputs, p, rng, mask, training, mask_shape, out, stream):
    """y = op(inputs), named arrays of one dtype, of which all broadcast to the first one's shape."""
    (name, x), *others = inputs.items()
    check_dtype(x, name)
    arrays = [x]
    for other, a in others:
        check_dtype(a, other, x.dtype)
        arrays.append(a if a.shape == x.shape else broadcast(a, x.shape, other))
    shape, p, mask = requested_mask(x.shape, p, mask, training, mask_shape)
    if joint_shape(x.shape, shape, x.itemsize, f"{name} of shape", "the mask's shape") != x.shape:
        raise ValueError(f"mask of shape {shape} does not broadcast to {name}'s shape {x.shape}")
    y = stream.output(out, "out", x, x.shape)
    mask = draw_mask(rng, shape, p) if mask is None else mask
    if x.size and op == "dropout_add":
        stream.kernels.dropout_add(y, *arrays, *[None] * (3 - len(arrays)), mask, stream.address)
    elif x.size:
        stream.kernels.elementwise(op, y, arrays, mask, stream.address)
    return y, mask


@device_operation
def dropout_add(
    x: TensorT, residual: TensorT, p: Probability = 0.5, *, bias: TensorT | None = None, rng: RngLike = None,
    mask: Mask | None = None, training: Training = True, mask_shape: MaskShape = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.dropout_add` for device arrays: ``dropout(x + bias) + residual``, one pass.

    Quickest where x and residual are contiguous, and bias lies along the last axis of x.
    """
    inputs = {"x": x, "residual": residual} if bias is None else {"x": x, "residual": residual, "bias": bias}
    return _fused("dropout_add", inputs, p, rng, mask, training, mask_shape, out, stream)


@device_operation
def dropout_add_backward(
    dy: TensorT, mask: Mask, *, bias_shape: Shape | None = None, out: TensorT | None = None, stream: Any = None
) -> tuple[TensorT, TensorT | None]:
    """`fastdrop.dropout_add_backward` for device arrays: dx, and dbias or None."""
    check_mask(mask)
    if bias_shape is None:
        return _gradient(mask, dy, None, out, stream), None
    check_dtype(dy, "dy")
    bias_shape = check_shape(bias_shape, "bias_shape")
    for name, shape in (("bias_shape", bias_shape), ("mask", mask.shape)):
        if joint_shape(shape, dy.shape, dy.itemsize, name, "dy of shape") != dy.shape:
            raise ValueError(f"{name} of shape {shape} does not broadcast to dy's shape {dy.shape}")
    dx = stream.output(out, "out", dy, dy.shape)  # checked before anything is queued
    dbias = stream.new(dy, bias_shape)
    whole = mask.shape == dy.shape and mask._strides is None and mask._stored is None and type(mask.p) is float
    if whole and dy.shape and dy.size and dy.contiguous and bias_shape == dy.shape[-1:]:
        columns = dy.shape[-1]
        height = max(1, min(256, dy.size // columns // 64))
        parts = stream.new(dy, (height, columns), dy.computed_in)
        stream.kernels.bias_gradient(dbias, dy, mask, parts, stream.address)
    else:
        _sum(dbias, dy, mask, stream)
    return _apply(dy, dx, mask, stream), dbias  # last: it may be written over dy


def _activation(name):
    """The functions of `fastdrop` that drop of an activation, and its gradient, for device arrays."""
    op, works_in = (
        ACTIVATIONS[name].name,
        "in float32 for all but float64" if ACTIVATIONS[name].tolerance else "to the bit",
    )

    def forward(x, p=0.5, *, rng=None, mask=None, training=True, mask_shape=None, out=None, stream=None):
        return _fused(op, {"x": x}, p, rng, mask, training, mask_shape, out, stream)

    def backward(dy: TensorT, x: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
        check_mask(mask)
        return _fused(f"{op}_backward", {"dy": dy, "x": x}, 0.5, None, mask, True, None, out, stream)[0]

    forward.__annotations__ = dropout.__annotations__
    for function, own in ((forward, name), (backward, f"{name}_backward")):
        function.__name__ = function.__qualname__ = own
        function.__doc__ = f"`fastdrop.{own}` for device arrays; {works_in}."
        yield own, device_operation(function)


FUNCTIONS = dict(function for name in ACTIVATIONS for function in _activation(name))
globals().update(FUNCTIONS)


@device_operation
def r_drop_pair(
    x: TensorT, p: Probability, *, rng: RngLike = None, out: TensorT | None = None, stream: Any = None
) -> tuple[TensorT, Mask]:
    """`fastdrop.r_drop_pair` for device arrays."""
    shape, p, _ = requested_mask((2, *x.shape), p, None, True)
    return _drop(_broadcast_to_mask(x, shape, "x"), out, rng, shape, p, None, stream)


# -- several samples ---------------------------------------------------------------------------------------------------


@device_operation
def multi_sample_dropout(
    x: TensorT, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.multi_sample_dropout` for device arrays."""
    shape, p = samples_mask(check_dtype(x, "x"), p, samples)
    return _drop(_broadcast_to_mask(x, shape, "x"), out, rng, shape, p, None, stream)


@device_operation
def multi_sample_dropout_backward(
    dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None
) -> TensorT:
    """`fastdrop.multi_sample_dropout_backward` for device arrays: added in the order of the samples."""
    check_mask(mask)
    check_dtype(dy, "dy")
    if not mask.ndim or dy.shape != mask.shape:
        raise ValueError(f"dy must have the mask's shape, {mask.shape}, got {dy.shape}")
    return _sum(stream.output(out, "out", dy, dy.shape[1:]), dy, mask, stream)


@device_operation
def multi_sample_mean(
    x: TensorT, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.multi_sample_mean` for contiguous device arrays: x is read once, y written once."""
    shape, p = samples_mask(check_dtype(x, "x"), p, samples)
    if type(p) is float and p == 0.0 and out is None:
        return x, draw_mask(rng, shape, p)
    y = _mean_output(x, "x", shape, out, stream)
    mask = draw_mask(rng, shape, p)
    return _mean(y, x, mask, stream), mask


@device_operation
def multi_sample_mean_backward(dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
    """Gradient of `multi_sample_mean`: the same kernel on ``dy``."""
    check_mask(mask)
    return _mean(_mean_output(dy, "dy", mask.shape, out, stream), dy, mask, stream)


def _mean_output(x, name, shape, out, stream):
    check_dtype(x, name)
    if shape[1:] != x.shape or not shape or shape[0] < 1:
        raise ValueError(f"{name} must have the mask's shape {shape} without its samples, got {x.shape}")
    y = stream.output(out, "out", x, x.shape)
    check_contiguous((x, name), (y, "out"))
    return y


def _mean(y, x, mask, stream):
    check_whole(mask)
    if type(mask.p) is not float and mask.p.ndim != 1:
        raise ValueError(f"mask must have one p or one for each sample, got p of shape {mask.p.shape}")
    if x.size:
        stream.kernels.sample_mean(y, x, mask, stream.address)
    return y


def check_whole(mask):
    """Return the mask; raise ValueError unless its elements follow one another."""
    if mask._strides is not None:
        raise ValueError(f"mask must be no part of another on the device for this, got {mask}")
    return mask
