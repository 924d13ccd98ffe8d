"""The host border: anybody's memory on the CPU as NumPy arrays, without a copy, and results as their owners have them.

Functions of the package work on ``ndarray``.  `dispatch.operation` brings everything else in through `view` (buffer
protocol, DLPack, array interface; a list is converted) and gives results back through `deliver`: a torch tensor to the
owner of a torch tensor, an ``ndarray`` to the owners of plain buffers.  Only torch and JAX need code of their own, in
`_OWNERS`; both are known by the module of their types, and never imported from here.
"""

import sys
from functools import lru_cache

import numpy as np

from ..arrays import check_overlap, check_places


def on_device(x: object) -> bool:
    """Does ``x`` lie in CUDA memory? Asks its type, and no driver."""
    kind = type(x)
    if _owner_of(x) is _Torch:
        return x.device.type == "cuda"
    device = getattr(kind, "__dlpack_device__", None)
    if device is not None:
        return int(device(x)[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
    return hasattr(kind, "__cuda_array_interface__") or hasattr(kind, "__cuda_ndarray__")


# -- arrays in ---------------------------------------------------------------------------------------------------------


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
        raise TypeError(f"{name} must not be a masked array: its mask would be lost; pass {name}.filled(0)")
    if isinstance(obj, np.ndarray):
        array = obj if type(obj) is np.ndarray else obj.view(np.ndarray)
        array = array if dtype is None else _reread(array, name, dtype)
    else:
        array = _foreign(obj, name, dtype, writable)
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} must be writable, got a read-only {type(obj).__name__}")
    return array


def shape_of(obj, name):
    """Return the shape of an array of anybody's, on a device too."""
    shape = getattr(obj, "shape", None)
    return tuple(shape) if isinstance(shape, tuple) else view(obj, name).shape


def _foreign(obj, name, dtype, writable):
    if _is_tracer(type(obj)):
        raise TypeError(
            f"{name} must be an array with values, got a JAX tracer: call this outside of jax.jit, or in it through "
            "jax.pure_callback"
        )
    owner = _owner_of(obj)
    if owner is not None:
        array = owner.view(obj, name, writable)
        return array if dtype is None else _reread(array, name, dtype)
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
    if hasattr(obj, "__dlpack__") and not isinstance(obj, type):
        array = _from_dlpack(obj, name)
        return array if dtype is None else _reread(array, name, dtype)
    if writable and not hasattr(obj, "__array_interface__"):
        raise TypeError(f"{name} must be an array or a writable buffer, got {type(obj).__name__}")
    try:
        array = np.asarray(obj, dtype)
    except ValueError:  # a list of lists of several lengths
        raise ValueError(f"{name} must be an array or have the shape of one, got {type(obj).__name__}") from None
    if array.dtype == object and not array.ndim:  # NumPy sees no array in it
        cure = f"; {name}.toarray() is one" if hasattr(obj, "toarray") else ""
        raise TypeError(f"{name} must be an array, got {type(obj).__name__}{cure}")
    return array


def _reread(array, name, dtype):
    try:
        return array.view(dtype)
    except (TypeError, ValueError) as error:
        shape = f"shape {array.shape} and strides {array.strides}"
        raise type(error)(f"{name} cannot be read as {np.dtype(dtype)}: got {array.dtype} of {shape}") from None


def _from_dlpack(obj, name):
    kind, _ = obj.__dlpack_device__()
    if kind not in (1, 3):  # kDLCPU, kDLCUDAHost: pinned memory
        raise TypeError(f"{name} must lie in CPU memory, got a {type(obj).__name__} on DLPack device type {int(kind)}")
    try:
        return np.from_dlpack(obj)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name} cannot be read through DLPack: {error}") from None


# -- owners with rules of their own ------------------------------------------------------------------------------------


def as_dtype(dtype):
    """Return what an argument ``dtype`` stands for; raise TypeError if it is no dtype."""
    try:
        return _bfloat16() if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype must be a NumPy dtype or the name of one, got {dtype!r}") from None


def _bfloat16():
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise ImportError("arrays of bfloat16 need the package ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(bfloat16)


class _Torch:
    """Tensors: autograd's flags are looked at, lazy signs made real, bfloat16 goes through uint16."""

    @staticmethod
    def view(x, name, writable):
        torch = sys.modules["torch"]
        check_grad(x, name)
        if x.layout is not torch.strided or x.device.type != "cpu":
            raise TypeError(f"{name} must be a strided tensor in CPU memory, got {x.layout} on {x.device}")
        if x.is_conj() or x.is_neg():
            if writable:
                raise ValueError(f"{name} must hold its numbers, got a tensor that conjugates or negates lazily")
            x = x.resolve_conj().resolve_neg()
        x = x.detach()
        try:
            if x.dtype is torch.bfloat16:
                return x.view(torch.uint16).numpy().view(_bfloat16())
            return x.numpy()
        except (RuntimeError, TypeError) as error:  # fake tensors, those of torch.func, and dtypes that NumPy lacks
            raise TypeError(f"{name} cannot be read as an array: {error}") from None

    @staticmethod
    def deliver(array):
        torch = sys.modules["torch"]
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)

    @staticmethod
    def written(x):
        """Let autograd know that somebody else has written to ``x``."""
        if not x.is_inference():
            sys.modules["torch"].autograd.graph.increment_version(x)


class _Jax:
    """JAX arrays: read in place, never written; a result is theirs without a copy where its memory suits them."""

    @staticmethod
    def view(x, name, writable):
        try:
            return np.asarray(x)  # bfloat16 as that of ml_dtypes, which JAX brings along
        except (RuntimeError, TypeError) as error:  # deleted, sharded over machines, keys
            raise TypeError(f"{name} cannot be read as an array: {error}") from None

    @staticmethod
    def deliver(array):
        numpy = sys.modules["jax"].numpy
        if array.dtype.name == "bfloat16":
            return numpy.asarray(array)
        if array.dtype == np.float64 and not sys.modules["jax"].config.jax_enable_x64:
            return array  # it would be rounded to float32
        return numpy.from_dlpack(array)


_OWNERS = {"torch": _Torch, "jax": _Jax, "jaxlib": _Jax}


def _owner_of(obj):
    return _owner_of_type(type(obj))


@lru_cache(128)  # types are few, but a program may make new ones for ever
def _owner_of_type(kind):
    roots = (base.__module__.partition(".")[0] for base in kind.__mro__)
    owner = next((_OWNERS[root] for root in roots if root in _OWNERS and root in sys.modules), None)
    if owner is _Torch and not issubclass(kind, sys.modules["torch"].Tensor):  # a module, a dtype, a size
        return None
    return owner


def _is_tracer(kind):
    return "jax" in sys.modules and issubclass(kind, sys.modules["jax"].core.Tracer)


def check_grad(x, name):
    """Raise TypeError if the tensor ``x`` requires grad where that counts: results would be cut off from it."""
    if x.requires_grad and sys.modules["torch"].is_grad_enabled():
        raise TypeError(f"{name} must not require grad: the result would have no gradient; pass {name}.detach()")


# -- results out -------------------------------------------------------------------------------------------------------


def deliver(array, owner):
    """Return the ndarray ``array`` as an array of the kind of ``owner``, an argument of the call that made it."""
    owner = _owner_of(owner)
    return array if owner is None else owner.deliver(array)


def written(obj):
    """To be called when ``obj``, an argument that is no ndarray, has been written to."""
    owner = _owner_of(obj)
    if owner is _Torch:
        owner.written(obj)


class Border:
    """One call's way over the border: ``dtype`` says what the bytes are of objects that have only bytes."""

    place = "CPU"
    Array = np.ndarray

    check_places = staticmethod(check_places)
    check_overlap = staticmethod(check_overlap)
    written = staticmethod(written)

    def __init__(self, first, dtype=None, stream=None):
        self.first, self.dtype = first, None if dtype is None else as_dtype(dtype)

    def take(self, x, name, writable=False):
        return view(x, name, self.dtype, writable)

    @staticmethod
    def copies(array):
        """Do operations that copy integers and bools before they write copy this?"""
        return array.dtype.kind in "iub"

    def run(self, body, *args, **kwargs):
        return body(*args, **kwargs)

    def deliver(self, array):
        return deliver(array, self.first)
