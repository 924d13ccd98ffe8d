"""fastdrop on NVIDIA GPUs: the border between users' device arrays and the kernels of the Numba CUDA backend.

An array may belong to anybody: torch, CuPy, Numba, JAX, or anything with ``__cuda_array_interface__`` or CUDA DLPack.
It is read in place and the result belongs to the same library, or is written to ``out``.  `fastdrop.dropout` and the
others come here by themselves when they are given a device array; the functions here take ``stream=`` too.

Work is queued on ``stream``, by default the library's current one, and never waited for: nothing here synchronises with
the device or copies to or from the host.  The driver is not touched, nor numba.cuda imported, before the first call.
The masks are the CPU's, bit for bit.
"""

import ctypes
import math
import sys
from collections import namedtuple
from contextlib import contextmanager

import numpy as np

from .backends.axes import c_steps
from .mask import Mask, _fit_p, check_p
from .rng import as_rng

__all__ = [
    "RDrop",
    "bits",
    "dropout",
    "dropout_add",
    "dropout_add_backward",
    "dropout_backward",
    "is_device_array",
    "multi_sample_mean",
    "multi_sample_mean_backward",
    "r_drop",
    "softmax_dropout",
    "softmax_dropout_backward",
    "symmetric_kl",
]

FLOATS = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
RDrop = namedtuple("RDrop", "loss ce kl da db")


def is_device_array(x):
    """Does ``x`` lie in CUDA memory? Cheap, and asks no driver."""
    kind = type(x)
    device = getattr(kind, "__dlpack_device__", None)
    if device is not None:
        return int(device(x)[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
    return hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__cuda_ndarray__")


# -- arrays ------------------------------------------------------------------------------------------------------------


class _Array:
    """A device array as the kernels need it: where it starts, its shape and steps (in elements), and whose it is."""

    def __init__(self, owner, pointer, shape, steps, dtype, device, readonly=False, library=None):
        self.owner, self.pointer, self.shape, self.dtype, self.device = owner, pointer, tuple(shape), dtype, device
        self.steps = c_steps(self.shape) if steps is None else tuple(steps)
        self.readonly, self.library, self.result = readonly, library, owner
        self.size = math.prod(self.shape)
        self.itemsize = FLOATS[dtype] if dtype in FLOATS else np.dtype(dtype).itemsize
        reach = [(n - 1) * step for n, step in zip(self.shape, self.steps, strict=True)]
        self.before = -sum(step for step in reach if step < 0)  # elements below the first one
        self.span = self.before + sum(step for step in reach if step > 0) + 1 if self.size else 0

    @property
    def contiguous(self):
        return all(n == 1 or s == c for n, s, c in zip(self.shape, self.steps, c_steps(self.shape), strict=True))

    @property
    def aligned16(self):
        return self.pointer % 16 == 0

    def kernel_argument(self):
        """All the memory that the array spans, as one dimension; 16-bit floats as uint16."""
        dtype = np.dtype(np.uint16 if self.itemsize == 2 else np.uint8 if self.dtype == "bool" else self.dtype)
        return self.library.flat(self, dtype)

    def take(self, axis, i):
        """The part at ``i`` along ``axis``."""
        shape, steps = list(self.shape), list(self.steps)
        del shape[axis], steps[axis]
        pointer = self.pointer + i * self.steps[axis] * self.itemsize
        return _Array(self.owner, pointer, shape, steps, self.dtype, self.device, self.readonly, self.library)

    def range(self):
        low = self.pointer - self.before * self.itemsize
        return low, low + self.span * self.itemsize


class _Library:
    """How one library's arrays are described, made, and ordered among other work on the device."""

    def describe(self, x, name, stream):
        """Any object with CUDA DLPack or ``__cuda_array_interface__``: ``stream`` is ordered after its producer's."""
        from cuda.core.utils import StridedMemoryView

        view = StridedMemoryView.from_any_interface(x, stream_ptr=stream or 1)  # in DLPack 1 is the default stream
        dtype = view.dtype.name
        return _Array(x, view.ptr, view.shape, view.strides, dtype, view.device_id, view.readonly, self)

    def current_stream(self, x):
        return 0

    def new(self, like, shape, dtype, stream):
        """A new array on the device of ``like``; here one of Numba's."""
        from numba import cuda

        memory = cuda.device_array(shape, np.dtype(dtype), stream=_numba_stream(stream))
        return _ANY.describe(memory, "out", stream)

    def deliver(self, array, stream):
        """What the user gets for an array made by `new`, once the work on it is queued."""
        return array.owner

    def flat(self, array, dtype):
        from numba import cuda

        low, _ = array.range()
        face = {"shape": (array.span,), "strides": None, "data": (low, False), "typestr": dtype.str, "version": 3}
        return cuda.from_cuda_array_interface(face, owner=array.owner, sync=False)


class _Torch(_Library):
    def describe(self, x, name, stream):
        if x.requires_grad:
            raise TypeError(
                f"{name} must not require grad, which these functions would lose: use fastdrop's torch adapter, "
                f"or pass {name}.detach()"
            )
        dtype = str(x.dtype).removeprefix("torch.")
        return _Array(x, x.data_ptr(), x.shape, x.stride(), dtype, x.device.index, library=self)

    def current_stream(self, x):
        return sys.modules["torch"].cuda.current_stream(x.device).cuda_stream

    def new(self, like, shape, dtype, stream):
        torch = sys.modules["torch"]
        memory = torch.empty(shape, dtype=getattr(torch, dtype), device=like.owner.device)
        if stream != self.current_stream(like.owner):
            memory.record_stream(torch.cuda.ExternalStream(stream, device=like.owner.device))
        return self.describe(memory, "out", stream)


class _Cupy(_Library):
    def current_stream(self, x):
        return sys.modules["cupy"].cuda.get_current_stream(x.device.id).ptr

    def new(self, like, shape, dtype, stream):
        cupy = sys.modules["cupy"]
        with cupy.cuda.ExternalStream(stream):
            memory = cupy.empty(shape, like.owner.dtype if dtype == like.dtype else dtype)
        return self.describe(memory, "out", stream)


class _Jax(_Library):
    """JAX arrays are immutable: never ``out``. A result is a new array over memory of Numba's, through DLPack."""

    def describe(self, x, name, stream):
        array = super().describe(x, name, stream)
        array.readonly = True
        return array

    def new(self, like, shape, dtype, stream):
        array = super().new(like, shape, "uint16" if dtype == "bfloat16" else dtype, stream)
        array.dtype, array.library = dtype, self
        return array

    def deliver(self, array, stream):
        return sys.modules["jax"].dlpack.from_dlpack(_Export(array, stream))


class _Export:
    """A DLPack exporter of memory of Numba's, which orders its consumer's stream after ours."""

    def __init__(self, array, stream):
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        dtype = np.dtype(sys.modules["ml_dtypes"].bfloat16 if array.dtype == "bfloat16" else array.dtype)
        buffer = Buffer.from_handle(array.pointer, array.size * array.itemsize, owner=array.owner)
        self._view = StridedMemoryView.from_buffer(buffer, array.shape, dtype=dtype)
        self._stream = stream

    def __dlpack_device__(self):
        return self._view.__dlpack_device__()

    def __dlpack__(self, *, stream=None, **kwargs):
        from numba import cuda

        if stream is not None and stream != self._stream:
            done = cuda.event(timing=False)
            done.record(_numba_stream(self._stream))
            done.wait(_numba_stream(stream))
        return self._view.__dlpack__(stream=-1, **kwargs)


class _Simulated(_Library):
    """Arrays of Numba's simulator, which are NumPy's in disguise."""

    def describe(self, x, name, stream):
        memory = x._ary
        pointer = memory.__array_interface__["data"][0]
        steps = [step // memory.itemsize for step in memory.strides]
        return _Array(x, pointer, memory.shape, steps, memory.dtype.name, 0, not memory.flags.writeable, self)

    def new(self, like, shape, dtype, stream):
        from numba import cuda

        memory = cuda.to_device(np.empty(shape, like.owner._ary.dtype if dtype == like.dtype else dtype))
        return self.describe(memory, "out", stream)

    def flat(self, array, dtype):
        memory = (ctypes.c_char * (array.span * array.itemsize)).from_address(array.range()[0])
        return type(array.owner)(np.frombuffer(memory, dtype))


_LIBRARIES = {"torch": _Torch(), "cupy": _Cupy(), "jax": _Jax(), "jaxlib": _Jax()}
_ANY, _SIMULATED = _Library(), _Simulated()


def _library_of(x):
    if hasattr(type(x), "__cuda_ndarray__") and not hasattr(type(x), "__cuda_array_interface__"):
        return _SIMULATED
    return _LIBRARIES.get(type(x).__module__.partition(".")[0], _ANY)


def _numba_stream(pointer):
    from numba import cuda

    return cuda.external_stream(pointer) if pointer else 0


def _stream_of(stream, x):
    """The stream to work on as an integer: the caller's, or the current one of x's library."""
    if stream is None:
        return int(_library_of(x).current_stream(x))
    if hasattr(stream, "__cuda_stream__"):
        face = stream.__cuda_stream__
        return int((face() if callable(face) else face)[1])
    for name in ("cuda_stream", "ptr", "handle"):  # torch, CuPy, Numba and cuda.core
        value = getattr(stream, name, None)
        if value is not None:
            return int(getattr(value, "value", value) or 0)
    if isinstance(stream, int):
        return stream
    raise TypeError(
        f"stream must be a CUDA stream of torch, CuPy or Numba, or its address, got {type(stream).__name__}"
    )


def _array(x, name, stream, dtypes=tuple(FLOATS), like=None):
    """Describe ``x`` after checking that the kernels can take it."""
    if not is_device_array(x):
        raise TypeError(f"{name} must be a device array, got a {type(x).__name__} in host memory")
    array = _library_of(x).describe(x, name, stream)
    if array.dtype not in dtypes:
        raise TypeError(f"{name} must be {', '.join(dtypes)}, got dtype {array.dtype}")
    if array.pointer % array.itemsize:
        raise ValueError(
            f"{name} must be aligned to its {array.itemsize}-byte elements, got address {array.pointer:#x}"
        )
    if like is not None and array.device != like.device:
        raise ValueError(f"{name} must lie on device {like.device}, got device {array.device}")
    return array


def _like(x, name, stream, like):
    """Describe ``x``, which must have the dtype and shape of ``like``."""
    array = _array(x, name, stream, (like.dtype,), like)
    if array.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {array.shape}")
    return array


def _result(out, name, stream, like, shape, inputs=(), dtype=None):
    """Describe ``out`` after checking it, or a new array."""
    dtype = dtype or like.dtype
    if out is None:
        array = like.library.new(like, shape, dtype, stream)
        array.result = None  # `_deliver` asks the library
        return array
    array = _array(out, name, stream, (dtype,), like)
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {array.shape}")
    if array.readonly:
        raise ValueError(f"{name} must be writable, got a read-only {type(out).__name__}")
    low, high = array.range()
    for one in inputs:
        first, last = one.range()
        same = one.pointer == array.pointer and one.steps == array.steps and one.dtype == array.dtype
        if low < last and first < high and not same:
            raise ValueError(f"{name} must be an input itself or not overlap it, got arrays that share memory")
    return array


def _deliver(array, stream):
    return array.library.deliver(array, stream) if array.result is None else array.result


def _contiguous(*arrays):
    for array, name in arrays:
        if array is not None and not array.contiguous:
            raise ValueError(f"{name} must be C-contiguous here, got steps {array.steps} for shape {array.shape}")


@contextmanager
def _on(array, stream):
    """The kernels, array's device current, and the stream as Numba has it."""
    from numba import cuda

    from .backends import numba_cuda

    with cuda.gpus[array.device]:
        yield numba_cuda, _numba_stream(stream)


def _mask_for(shape, p, rng, mask, training, mask_shape=None):
    """The mask's shape, and a function that gives the mask: a call that raises takes none of ``rng``."""
    if mask is not None:
        if not isinstance(mask, Mask):
            raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")
        if not training:
            mask = Mask._make(0, 0, mask.shape, 0.0)
        return mask.shape, lambda: mask
    own = shape if mask_shape is None else tuple(1 if n is None else n for n in mask_shape)
    p = _fit_p(check_p(p), own)
    if not training:
        return own, lambda: Mask._make(0, 0, own, 0.0)
    return own, lambda: Mask._make(*as_rng(rng).take(), own, p)


# -- dropout -----------------------------------------------------------------------------------------------------------


def apply(mask, x, out=None, *, stream=None):
    """``mask.apply(x)`` on the device.

    Parameters
    ----------
    mask : Mask
        Broadcasts to x's shape.
    x : device array of float16, bfloat16, float32 or float64
        Any strides.
    out : device array, optional
        Where to write; may be ``x``.
    stream : stream of torch, CuPy, Numba or cuda.core, or its address, optional
        Default: the current stream of x's library.

    Returns
    -------
    device array of x's library, or ``out``
    """
    return _apply(x, out, stream, mask.shape, lambda: mask)[0]


def _apply(x, out, stream, shape, take):
    stream = _stream_of(stream, x)
    a = _array(x, "x", stream)
    try:
        fits = np.broadcast_shapes(a.shape, shape) == a.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"the mask's shape {shape} must broadcast to x's on the device, {a.shape}")
    y = _result(out, "out", stream, a, a.shape, (a,))
    mask = take()
    if a.size:
        with _on(a, stream) as (kernels, queue):
            kernels.apply(y, a, mask, queue)
    return _deliver(y, stream), mask


def dropout(x, p=0.5, *, rng=None, mask=None, training=True, mask_shape=None, out=None, stream=None):
    """`fastdrop.dropout` for device arrays; arguments and results as there and in `apply`.

    Returns
    -------
    y : device array of x's library, or ``out``
        ``x`` itself where nothing can be dropped and ``out`` is not given.
    mask : Mask
    """
    if not is_device_array(x):
        raise TypeError(f"x must be a device array, got a {type(x).__name__} in host memory")
    shape, take = _mask_for(tuple(x.shape), p, rng, mask, training, mask_shape)
    nothing = not training or (mask is None and type(p) in (int, float) and p == 0)
    if out is None and nothing:
        return x, take()
    return _apply(x, out, stream, shape, take)


def dropout_backward(dy, mask, *, out=None, stream=None):
    """Gradient of `dropout`: the same kernel on ``dy``, the same mask made again."""
    return apply(mask, dy, out, stream=stream)


def bits(mask, *, like=None, out=None, stream=None):
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
    given = out if like is None else like
    stream = _stream_of(stream, given)
    a = _array(given, "like" if out is None else "out", stream, (*FLOATS, "uint8"))
    packed = _result(out, "out", stream, a, ((mask.size + 7) // 8,), dtype="uint8")
    _contiguous((packed, "out"))
    if packed.size:
        with _on(a, stream) as (kernels, queue):
            kernels.keep_bits(packed, mask, queue)
    return _deliver(packed, stream)


# -- fused with what stands beside it ----------------------------------------------------------------------------------


def dropout_add(
    x, residual, p=0.5, *, bias=None, rng=None, mask=None, training=True, out=None, stream=None
):  # fmt: skip
    """y = residual + dropout(x + bias), one pass.

    Parameters
    ----------
    x, residual : contiguous device arrays of one shape and dtype
    p, rng, mask, training : as in `dropout`
        The mask has x's shape.
    bias : device array, optional
        Along the last axis of x.
    out : device array, optional
        May be ``x`` or ``residual``.

    Returns
    -------
    y : device array of x's library, or ``out``
    mask : Mask
    """
    stream = _stream_of(stream, x)
    a = _array(x, "x", stream)
    r = _like(residual, "residual", stream, a)
    b = None if bias is None else _array(bias, "bias", stream, (a.dtype,), a)
    if b is not None and b.shape != a.shape[-1:]:
        raise ValueError(f"bias must have shape {a.shape[-1:]}, got {b.shape}")
    shape, take = _mask_for(a.shape, p, rng, mask, training)
    y = _result(out, "out", stream, a, a.shape, (a, r))
    _contiguous((a, "x"), (r, "residual"), (b, "bias"), (y, "out"))
    mask = _own_mask(take, shape, a.shape)
    if a.size:
        with _on(a, stream) as (kernels, queue):
            kernels.dropout_add(y, a, r, b, mask, queue)
    return _deliver(y, stream), mask


def dropout_add_backward(dy, mask, *, bias=False, out=None, stream=None):
    """Gradient of `dropout_add` with respect to x, and to bias if asked; that of residual is ``dy`` itself.

    Returns
    -------
    dx : device array, or (dx, dbias) if ``bias``
    """
    stream = _stream_of(stream, dy)
    dx = apply(mask, dy, None if out is dy else out, stream=stream)
    if not bias:
        return dx
    a = _array(dy, "dy", stream)
    _contiguous((a, "dy"))
    _own_mask(lambda: mask, mask.shape, a.shape)
    columns = a.shape[-1]
    height = max(1, min(256, a.size // max(columns, 1) // 64))
    db = _result(None, "dbias", stream, a, (columns,))
    with _on(a, stream) as (kernels, queue):
        parts = _result(None, "parts", stream, a, (height, columns), dtype=kernels.computed_in(a.dtype))
        kernels.bias_gradient(db, a, mask, parts, queue)
    return dx, _deliver(db, stream)


def _own_mask(take, shape, wanted):
    """The mask, which must have the shape that is wanted and be no part of another."""
    if shape != wanted:
        raise ValueError(f"the mask must have the array's own shape {wanted} here, got {shape}")
    mask = take()
    if mask._strides is not None:
        raise ValueError(f"the mask must be no part of another here, got {mask}")
    return mask


def multi_sample_mean(x, p, samples, *, rng=None, out=None, stream=None):
    """Mean over ``samples`` masked copies of x, which are never made: x is read once, y written once.

    Parameters
    ----------
    x : contiguous device array
    p : float or array_like
        One number, or one for each sample.
    samples : int

    Returns
    -------
    y : device array of x's library, or ``out``
    mask : Mask
        Of shape [samples, *x.shape].
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    return _mean(x, *_mask_for((samples, *x.shape), p, rng, None, True), out, stream, "x")


def multi_sample_mean_backward(dy, mask, *, out=None, stream=None):
    """Gradient of `multi_sample_mean`: the same kernel on ``dy``."""
    return _mean(dy, mask.shape, lambda: mask, out, stream, "dy")[0]


def _mean(x, shape, take, out, stream, name):
    stream = _stream_of(stream, x)
    a = _array(x, name, stream)
    y = _result(out, "out", stream, a, a.shape, (a,))
    _contiguous((a, name), (y, "out"))
    mask = _own_mask(take, shape, (*shape[:1], *a.shape))
    if type(mask.p) is not float and mask.p.ndim != 1:
        raise ValueError(f"p must be a number or one for each sample on the device, got shape {mask.p.shape}")
    if a.size:
        with _on(a, stream) as (kernels, queue):
            kernels.sample_mean(y, a, mask, queue)
    return _deliver(y, stream), mask


def softmax_dropout(scores, p=0.5, *, attention_mask=None, rng=None, mask=None, training=True, out=None, stream=None):
    """Attention weights: softmax along the last axis, then dropout. A row with nothing to look at gives zeros.

    Parameters
    ----------
    scores : contiguous device array
    attention_mask : device array of bool, or of float32 (float64 for float64), optional
        True = may be looked at; numbers are added to the scores. Broadcasts to scores' shape.

    Returns
    -------
    y : device array of scores' library, or ``out``
    mask : Mask
    saved : device array of shape [*rows, 2]
        What the backward needs beside ``scores``: the largest score of each row and 1 / the sum of its exponentials.
    """
    stream = _stream_of(stream, scores)
    a = _array(scores, "scores", stream)
    shape, take = _mask_for(a.shape, p, rng, mask, training)
    attention = _attention(attention_mask, stream, a)
    y = _result(out, "out", stream, a, a.shape, (a,))
    _contiguous((a, "scores"), (y, "out"))
    mask = _own_mask(take, shape, a.shape)
    with _on(a, stream) as (kernels, queue):
        saved = _result(None, "saved", stream, a, (*a.shape[:-1], 2), dtype=kernels.computed_in(a.dtype))
        if a.size:
            kernels.softmax_dropout(y, saved, a, attention, mask, queue)
    return _deliver(y, stream), mask, _deliver(saved, stream)


def softmax_dropout_backward(dy, scores, saved, mask, *, attention_mask=None, out=None, stream=None):
    """Gradient of `softmax_dropout` with respect to scores; ``out`` may be ``dy``."""
    stream = _stream_of(stream, dy)
    a = _array(dy, "dy", stream)
    b = _like(scores, "scores", stream, a)
    _own_mask(lambda: mask, mask.shape, a.shape)
    attention = _attention(attention_mask, stream, a)
    dscores = _result(out, "out", stream, a, a.shape, (a, b))
    _contiguous((a, "dy"), (b, "scores"), (dscores, "out"))
    with _on(a, stream) as (kernels, queue):
        two = _array(saved, "saved", stream, (kernels.computed_in(a.dtype),), a)
        if two.shape != (*a.shape[:-1], 2):
            raise ValueError(f"saved must have shape {(*a.shape[:-1], 2)}, got {two.shape}")
        if a.size:
            kernels.softmax_dropout_backward(dscores, a, two, b, attention, mask, queue)
    return _deliver(dscores, stream)


def _attention(attention_mask, stream, scores):
    if attention_mask is None:
        return None
    numbers = "float64" if scores.dtype == "float64" else "float32"
    attention = _array(attention_mask, "attention_mask", stream, ("bool", numbers), scores)
    return _broadcast(attention, scores.shape, "attention_mask")


def _broadcast(array, shape, name):
    """``array`` with the steps it has when broadcast to ``shape``."""
    try:
        if np.broadcast_shapes(array.shape, shape) != shape:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} must broadcast to {shape}") from None
    if any(step < 0 for step in array.steps):
        raise ValueError(f"{name} must have no negative steps, got {array.steps}")
    lead = len(shape) - len(array.shape)
    steps = [0 if m == 1 else step for m, step in zip(array.shape, array.steps, strict=True)]
    return _Array(
        array.owner, array.pointer, shape, (*[0] * lead, *steps), array.dtype, array.device, True, array.library
    )  # fmt: skip


# -- losses ------------------------------------------------------------------------------------------------------------

REDUCTIONS = ("none", "sum", "mean", "batchmean")


def symmetric_kl(a, b, *, pad_mask=None, reduction="mean", temperature=1.0, stream=None):
    """(KL(a || b) + KL(b || a)) / 2 of the softmaxes of two logits, with both gradients.

    Parameters
    ----------
    a, b : contiguous device arrays of one shape and dtype
        Logits; classes along the last axis.
    pad_mask : device array of bool, optional
        True = row ignored; of shape a.shape[:-1].
    reduction : {"none", "sum", "mean", "batchmean"}
        "mean" is over the rows that are not ignored.
    temperature : float
        Divides the logits.

    Returns
    -------
    loss, da, db : device arrays
        The loss has no axes, or those of the rows where ``reduction`` is "none".
    """
    loss, _, _, da, db = _pair(a, b, None, pad_mask, reduction, stream, 1.0, temperature, 0.0, 0)
    return loss, da, db


def r_drop(
    a, b, labels, *, alpha, pad_mask=None, reduction="mean", label_smoothing=0.0, ignore_index=-100, temperature=1.0,
    stream=None,
):  # fmt: skip
    """R-Drop: the mean cross-entropy of two passes and ``alpha`` times their `symmetric_kl`, with both gradients.

    Parameters
    ----------
    a, b, pad_mask, reduction : as in `symmetric_kl`
    labels : device array of int32 or int64, of shape a.shape[:-1]
        A label that is no class gives a loss of NaN: nothing waits for the device to check.
    alpha : float
        At least 0.
    temperature : float
        Divides the logits.

    Returns
    -------
    RDrop
        loss = ce + alpha * kl, the two parts, and the gradients of the loss.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    options = alpha, temperature, label_smoothing, ignore_index
    return RDrop(*_pair(a, b, labels, pad_mask, reduction, stream, *options))


def _pair(a, b, labels, pad_mask, reduction, stream, alpha, temperature, smoothing, ignore_index):
    """Loss, ce, kl, da and db."""
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    stream = _stream_of(stream, a)
    one = _array(a, "a", stream)
    two = _like(b, "b", stream, one)
    if not one.shape or not one.size:
        raise ValueError(f"a must have classes along its last axis and no axis of length 0, got shape {one.shape}")
    rows = one.shape[:-1]
    marks = []
    for mark, name, dtypes in ((labels, "labels", ("int32", "int64")), (pad_mask, "pad_mask", ("bool",))):
        mark = None if mark is None else _array(mark, name, stream, dtypes, one)
        if mark is not None and mark.shape != rows:
            raise ValueError(f"{name} must have shape {rows}, got {mark.shape}")
        marks.append(mark)
    _contiguous((one, "a"), (two, "b"), (marks[0], "labels"), (marks[1], "pad_mask"))
    with _on(one, stream) as (kernels, queue):
        real = kernels.computed_in(one.dtype)
        each = [_result(None, name, stream, one, rows, dtype=real) for name in ("loss", "ce", "kl")]
        *totals, count = (_result(None, "loss", stream, one, (), dtype=real) for _ in range(4))
        da, db = (_result(None, name, stream, one, one.shape) for name in ("da", "db"))
        kernels.pair_loss(
            None if reduction == "none" else totals, *each, count, da, db, one, two, *marks, queue, alpha=alpha,
            reduction=reduction, ignore_index=ignore_index, smoothing=smoothing, sharpness=1.0 / temperature,
        )  # fmt: skip
    losses = each if reduction == "none" else totals
    return [_deliver(array, stream) for array in (*losses, da, db)]
