"""Dropout, and what stands beside it, on device arrays: checked here, launched by the Numba CUDA backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..arguments import check_p, check_samples, check_shape, joint_shape
from ..borders.cuda import array_of, broadcast, contiguous, deliver, kernels_on, result_of, stream_of
from ..dtypes import FLOATS
from ..functional import check_mask, draw_mask, requested_mask
from ..operations import ACTIVATIONS

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from ..masks import Mask
    from ..typing import MaskShape, Probability, RngLike, Shape, TensorT, Training


def mask_for(shape, p, rng, mask, training, mask_shape=None):
    shape, p, mask = requested_mask(shape, p, mask, training, mask_shape)
    keeps_all = type(p) is float and p == 0.0 and (mask is None or mask._stored is None)
    return shape, p, lambda: draw_mask(rng, shape, p) if mask is None else mask, keeps_all


def _spread(a, shape, name):
    """``a`` broadcast with a mask's ``shape``: itself where that changes nothing."""
    if a.shape == shape:
        return a
    shape = joint_shape(a.shape, shape, a.itemsize, f"{name} of shape", "the mask's shape")
    return a if a.shape == shape else broadcast(a, shape, name)


# -- dropout -----------------------------------------------------------------------------------------------------------


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
    stream = stream_of(stream, x)
    a = _spread(array_of(x, "x", stream), mask.shape, "x")
    return _apply(a, out, stream, lambda: mask)[0]


def _apply(a, out, stream, take):
    y = result_of(out, "out", stream, a, a.shape, (a,))
    mask = take()
    if a.size:
        with kernels_on(stream, a, y) as kernels:
            kernels.elementwise("apply", y, (a,), mask, stream)
    return deliver(y, stream), mask


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
    stream = stream_of(stream, x)
    a = array_of(x, "x", stream)
    shape, _, take, keeps_all = mask_for(a.shape, p, rng, mask, training, mask_shape)
    spread = _spread(a, shape, "x")
    if keeps_all and out is None and spread is a:
        return x, take()
    return _apply(spread, out, stream, take)


def dropout_backward(dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
    """Gradient of `dropout`: the same kernel on ``dy``, the same mask made again."""
    check_mask(mask)
    return backward(mask, dy, out=out, stream=stream)


def backward(
    mask: Mask, dy: TensorT, x_shape: Shape | None = None, out: TensorT | None = None, *, stream: Any = None
) -> TensorT:
    """``mask.backward(dy, x_shape)`` on the device: the sum over the axes along which x was broadcast up."""
    stream = stream_of(stream, dy)
    a = array_of(dy, "dy", stream)
    x_shape = a.shape if x_shape is None else check_shape(x_shape, "x_shape")
    joint = joint_shape(x_shape, mask.shape, a.itemsize, "x_shape", "the mask's shape")
    if a.shape != joint:
        raise ValueError(f"dy must have the shape of apply(x), {joint}, got {a.shape}")
    if x_shape == joint:
        return _apply(a, out, stream, lambda: mask)[0]
    dx = result_of(out, "out", stream, a, x_shape, (a,))
    if out is not None and out is dy:
        raise ValueError("out must not overlap dy where the gradient is summed")
    return _sum(dx, a, mask, stream)


def _sum(dx, a, mask, stream):
    """dx = the sum of what the mask keeps of ``a``, over the axes along which dx is shorter."""
    if dx.size:
        with kernels_on(stream, a, dx) as kernels:
            kernels.apply_sum(dx, a, mask, stream)
    return deliver(dx, stream)


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
    stream = stream_of(stream, given)
    a = array_of(given, name, stream, (*FLOATS, "uint8"))
    packed = result_of(out, "out", stream, a, ((mask.size + 7) // 8,), dtype="uint8")
    contiguous((packed, "out"))
    if packed.size:
        with kernels_on(stream, packed) as kernels:
            kernels.keep_bits(packed, mask, stream)
    return deliver(packed, stream)


# -- fused with what stands beside it ----------------------------------------------------------------------------------


def _inputs(x, name, more, stream):
    """Describe x and ``more``: names and arrays of x's dtype that broadcast to its shape."""
    a = array_of(x, name, stream)
    inputs = [a]
    for other, one in more.items():
        b = array_of(one, other, stream, (a.dtype,), a)
        inputs.append(b if b.shape == a.shape else broadcast(b, a.shape, other))
    return inputs


def _fused(op, x, name, more, p, rng, mask, training, mask_shape, out, stream):
    stream = stream_of(stream, x)
    inputs = _inputs(x, name, more, stream)
    a = inputs[0]
    shape, _, take, _ = mask_for(a.shape, p, rng, mask, training, mask_shape)
    if joint_shape(a.shape, shape, a.itemsize, f"{name} of shape", "the mask's shape") != a.shape:
        raise ValueError(f"mask of shape {shape} does not broadcast to {name}'s shape {a.shape}")
    y = result_of(out, "out", stream, a, a.shape, inputs)
    mask = take()
    if a.size:
        with kernels_on(stream, *inputs, y) as kernels:
            if op == "dropout_add":
                kernels.dropout_add(y, *inputs, *[None] * (3 - len(inputs)), mask, stream)
            else:
                kernels.elementwise(op, y, inputs, mask, stream)
    return deliver(y, stream), mask


def dropout_add(
    x: TensorT, residual: TensorT, p: Probability = 0.5, *, bias: TensorT | None = None, rng: RngLike = None,
    mask: Mask | None = None, training: Training = True, mask_shape: MaskShape = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.dropout_add` for device arrays: ``dropout(x + bias) + residual``, one pass.

    Quickest where x and residual are contiguous, and bias lies along the last axis of x.
    """
    more = {"residual": residual} if bias is None else {"residual": residual, "bias": bias}
    return _fused("dropout_add", x, "x", more, p, rng, mask, training, mask_shape, out, stream)


def dropout_add_backward(
    dy: TensorT, mask: Mask, *, bias_shape: Shape | None = None, out: TensorT | None = None, stream: Any = None
) -> tuple[TensorT, TensorT | None]:
    """`fastdrop.dropout_add_backward` for device arrays: dx, and dbias or None."""
    check_mask(mask)
    stream = stream_of(stream, dy)
    a = array_of(dy, "dy", stream)
    if bias_shape is None:
        return backward(mask, dy, out=out, stream=stream), None
    bias_shape = check_shape(bias_shape, "bias_shape")
    for name, shape in (("bias_shape", bias_shape), ("mask", mask.shape)):
        if joint_shape(shape, a.shape, a.itemsize, name, "dy of shape") != a.shape:
            raise ValueError(f"{name} of shape {shape} does not broadcast to dy's shape {a.shape}")
    dx = result_of(out, "out", stream, a, a.shape, (a,))  # checked before anything is queued
    dbias = result_of(None, "dbias", stream, a, bias_shape)
    whole = mask.shape == a.shape and mask._strides is None and mask._stored is None and type(mask.p) is float
    if whole and a.shape and a.size and a.contiguous and bias_shape == a.shape[-1:]:
        columns = a.shape[-1]
        height = max(1, min(256, a.size // columns // 64))
        with kernels_on(stream, a, dbias) as kernels:
            parts = result_of(None, "parts", stream, a, (height, columns), dtype=a.computed_in)
            kernels.bias_gradient(dbias, a, mask, parts, stream)
        dbias = deliver(dbias, stream)
    else:
        dbias = _sum(dbias, a, mask, stream)
    if a.size:  # last: it may be written over dy
        with kernels_on(stream, a, dx) as kernels:
            kernels.elementwise("apply", dx, (a,), mask, stream)
    return deliver(dx, stream), dbias


def _activation(name):
    """The functions of `fastdrop` that drop of an activation, and its gradient, for device arrays."""
    op, works_in = (
        ACTIVATIONS[name].name,
        "in float32 for all but float64" if ACTIVATIONS[name].tolerance else "to the bit",
    )

    def forward(x, p=0.5, *, rng=None, mask=None, training=True, mask_shape=None, out=None, stream=None):
        return _fused(op, x, "x", {}, p, rng, mask, training, mask_shape, out, stream)

    def backward(dy: TensorT, x: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
        check_mask(mask)
        return _fused(f"{op}_backward", dy, "dy", {"x": x}, 0.5, None, mask, True, None, out, stream)[0]

    forward.__annotations__ = dropout.__annotations__
    for function, own in ((forward, name), (backward, f"{name}_backward")):
        function.__name__ = function.__qualname__ = own
        function.__doc__ = f"`fastdrop.{own}` for device arrays; {works_in}."
        yield own, function


FUNCTIONS = dict(function for name in ACTIVATIONS for function in _activation(name))
globals().update(FUNCTIONS)


def r_drop_pair(
    x: TensorT, p: Probability, *, rng: RngLike = None, out: TensorT | None = None, stream: Any = None
) -> tuple[TensorT, Mask]:
    """`fastdrop.r_drop_pair` for device arrays."""
    return dropout(x, p, rng=rng, mask_shape=(2, *x.shape), out=out, stream=stream)


# -- several samples ---------------------------------------------------------------------------------------------------


def _samples_for(a, p, samples, rng):
    """`mask_for` of a mask with a leading axis of samples."""
    samples = check_samples(samples)
    p = check_p(p)
    if type(p) is not float and p.shape != (samples,):
        raise ValueError(f"p must be one number or one for each of {samples} samples, got an array of shape {p.shape}")
    shape, _, take, keeps_all = mask_for(check_shape((samples, *a.shape)), p, rng, None, True)
    return shape, take, keeps_all


def multi_sample_dropout(
    x: TensorT, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.multi_sample_dropout` for device arrays."""
    stream = stream_of(stream, x)
    a = array_of(x, "x", stream)
    shape, take, _ = _samples_for(a, p, samples, rng)
    return _apply(_spread(a, shape, "x"), out, stream, take)


def multi_sample_dropout_backward(
    dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None
) -> TensorT:
    """`fastdrop.multi_sample_dropout_backward` for device arrays: added in the order of the samples."""
    check_mask(mask)
    stream = stream_of(stream, dy)
    a = array_of(dy, "dy", stream)
    if not mask.ndim or a.shape != mask.shape:
        raise ValueError(f"dy must have the mask's shape, {mask.shape}, got {a.shape}")
    return _sum(result_of(out, "out", stream, a, a.shape[1:], (a,)), a, mask, stream)


def multi_sample_mean(
    x: TensorT, p: Probability, samples: SupportsIndex, *, rng: RngLike = None, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask]:  # fmt: skip
    """`fastdrop.multi_sample_mean` for contiguous device arrays: x is read once, y written once."""
    stream = stream_of(stream, x)
    a = array_of(x, "x", stream)
    shape, take, keeps_all = _samples_for(a, p, samples, rng)
    if keeps_all and out is None:
        return x, take()
    return _mean(a, shape, take, out, stream, "x")


def multi_sample_mean_backward(dy: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None) -> TensorT:
    """Gradient of `multi_sample_mean`: the same kernel on ``dy``."""
    check_mask(mask)
    stream = stream_of(stream, dy)
    return _mean(array_of(dy, "dy", stream), mask.shape, lambda: mask, out, stream, "dy")[0]


def _mean(a, shape, take, out, stream, name):
    if shape[1:] != a.shape or not shape or shape[0] < 1:
        raise ValueError(f"{name} must have the mask's shape {shape} without its samples, got {a.shape}")
    y = result_of(out, "out", stream, a, a.shape, (a,))
    contiguous((a, name), (y, "out"))
    mask = whole(take())
    if type(mask.p) is not float and mask.p.ndim != 1:
        raise ValueError(f"mask must have one p or one for each sample, got p of shape {mask.p.shape}")
    if a.size:
        with kernels_on(stream, a, y) as kernels:
            kernels.sample_mean(y, a, mask, stream)
    return deliver(y, stream), mask


def whole(mask):
    """The mask, whose elements must follow one another."""
    if mask._strides is not None:
        raise ValueError(f"mask must be no part of another on the device for this, got {mask}")
    return mask
