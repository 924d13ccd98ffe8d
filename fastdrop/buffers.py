"""Other people's memory as NumPy arrays, without a copy, and given back on every path.

Functions of the package work on ``ndarray``.  Anything else comes in through `lend`, which views it as one (buffer
protocol, DLPack, array interface; a list is converted), calls the function, and leaves no reference behind: not even
in an exception's traceback, whose frames would keep a ``bytearray`` from being resized.
"""

import math
import sys
from importlib.util import find_spec

import numpy as np

try:
    from . import _core
except ImportError:
    _core = None

FLOATS = ("float16", "bfloat16", "float32", "float64")


def on_device(x):
    """Does ``x`` lie in CUDA memory? Asks its type, and no driver."""
    kind = type(x)
    device = getattr(kind, "__dlpack_device__", None)
    if device is not None:
        return int(device(x)[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
    return hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__cuda_ndarray__")


def on_cuda(dtype=None):
    """The functions for arrays that are `on_device`, imported when the first of them comes."""
    if "numba_cuda" not in sys.modules and find_spec("numba_cuda") is None:
        raise ImportError("arrays in CUDA memory need the package numba-cuda: pip install 'fastdrop[cuda]'")
    from . import cuda  # which imports this file

    if dtype is not None:
        raise TypeError(f"dtype must not be given for a device array, which says what it holds, got {dtype!r}")
    return cuda


def on_host(function, x):
    """Raise TypeError if ``x`` is a device array: ``function`` is not there for them."""
    if type(x) is not np.ndarray and on_device(x):
        raise TypeError(f"{function} is not there for arrays in CUDA memory, got a {type(x).__name__}")


def lend(function, *inputs, out=None, dtype=None, names=("x",), **kwargs):
    """Call ``function(*inputs, out=out)`` with ndarrays over the memory of ``out`` and of the inputs with ``names``.

    What ``function`` returns comes back, with the caller's own object in its place where it returned that array.
    """
    try:
        views = [view(x, name, dtype) for x, name in zip(inputs, names, strict=False)]
        target = None if out is None else view(out, "out", dtype, writable=True)
        return _own(function(*views, *inputs[len(names) :], out=target, **kwargs), (target, *views), (out, *inputs))
    except Exception as error:  # noqa: BLE001 (goes on as it is, without the frames that hold the buffers)
        if error.__suppress_context__:  # raised from None: the error it replaces has such frames too
            error.__context__ = None
        raise error.with_traceback(None)  # noqa: B904
    finally:
        views = target = None


def _own(result, views, objects):
    if isinstance(result, tuple):
        return tuple(_own(part, views, objects) for part in result)
    for v, o in zip(views, objects):
        if result is v and v is not None:
            return o
    return result


def view(obj, name, dtype=None, writable=False):
    """Return an ndarray over the memory of ``obj``; a copy only where it has none (numbers, lists).

    Parameters
    ----------
    obj : object
        ndarray, or an object with the buffer protocol, ``__dlpack__`` on the CPU, or ``__array_interface__``.
    name : str
        The argument's name, for errors.
    dtype : dtype, optional
        What the bytes are, for an object that has only bytes.
    writable : bool
        Refuse what cannot be written to.
    """
    if isinstance(obj, np.ma.MaskedArray):
        raise TypeError(f"{name} must not be a masked array: dropout would lose its mask; pass {name}.filled(0)")
    if isinstance(obj, np.ndarray):
        array = obj if type(obj) is np.ndarray else obj.view(np.ndarray)
        array = array if dtype is None else _reread(array, name, dtype)
    else:
        array = _foreign(obj, name, dtype, writable)
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only {type(obj).__name__}")
    return array


def _foreign(obj, name, dtype, writable):
    try:
        buffer = memoryview(obj)
    except (TypeError, BufferError):
        buffer = None
    if buffer is not None:
        if dtype is None:
            return np.asarray(buffer)
        if not buffer.c_contiguous:
            raise ValueError(f"{name} must be contiguous to be read as {np.dtype(dtype)}, got strides {buffer.strides}")
        return _reread(np.frombuffer(buffer, np.uint8), name, dtype)
    if on_device(obj):  # NumPy would copy some of these without a word
        raise TypeError(f"{name} must lie in CPU memory, got a {type(obj).__name__} in CUDA memory")
    if hasattr(obj, "__dlpack__"):
        array = _from_dlpack(obj, name)
        return array if dtype is None else _reread(array, name, dtype)
    if writable and not hasattr(obj, "__array_interface__"):
        raise TypeError(f"{name} must be an array or a writable buffer, got {type(obj).__name__}")
    return np.asarray(obj, dtype)


def _reread(array, name, dtype):
    try:
        return array.view(dtype)
    except ValueError:
        shape = f"shape {array.shape} and strides {array.strides}"
        raise ValueError(f"{name} cannot be read as {np.dtype(dtype)}: got {array.dtype} of {shape}") from None


def _from_dlpack(obj, name):
    kind, _ = obj.__dlpack_device__()
    if kind not in (1, 3):  # kDLCPU, kDLCUDAHost: pinned memory
        raise TypeError(f"{name} must lie in CPU memory, got a {type(obj).__name__} on DLPack device type {int(kind)}")
    if getattr(obj, "requires_grad", False):
        raise TypeError(f"{name} must not require grad: NumPy arrays carry no gradient; pass {name}.detach()")
    try:
        return np.from_dlpack(obj)
    except (BufferError, RuntimeError, TypeError) as error:  # bfloat16 has no NumPy DLPack
        raise TypeError(f"{name} cannot be read through DLPack: {error}") from None


def as_array(x, name):
    """Return ``x`` if its dtype is one the kernels know; raise TypeError if not."""
    if x.dtype.char not in "fde" and x.dtype.name not in FLOATS:  # names are slow to make
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got dtype {x.dtype}")
    return x


def wide_dtype(dtype):
    """Return the dtype in which sums of ``dtype`` are made: float32, or float64 for float64."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)


def new_array(shape, dtype):
    """Return an empty array, in recycled memory where it is large."""
    if _core is None:
        return np.empty(shape, dtype)
    return _core.new_bytes(math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)


def new_like(x):
    """Return an empty array in x's memory layout and native byte order."""
    if not x.dtype.isnative:
        return np.empty_like(x, x.dtype.newbyteorder("="))
    return np.empty_like(x) if _core is None else _core.new_like(x)


def check_out(out, name, shape, dtype):
    """Return ``out`` if it can take a result of ``shape`` and ``dtype``; raise if not."""
    if out.dtype != dtype.newbyteorder("=") and out.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only array")
    return out


def overlaps(out, x, name):
    """Raise ValueError if ``out`` shares memory with ``x`` in any way but being the same elements in the same
    places."""
    if not np.may_share_memory(out, x):
        return
    same = (
        out.__array_interface__["data"][0] == x.__array_interface__["data"][0]
        and out.shape == x.shape  # an x still to be broadcast is read again after out has been written
        and all(a == b or n == 1 for a, b, n in zip(out.strides, x.strides, x.shape, strict=True))
    )
    if same and out.dtype == x.dtype:
        return
    try:
        shared = np.shares_memory(out, x, max_work=10_000)
    except np.exceptions.TooHardError:
        shared = True
    if shared:
        raise ValueError(f"out must be {name} itself or not overlap it, got arrays that share memory")
