"""The CUDA border: anybody's device arrays as the kernels take them, and results as their owners do.

An array may belong to torch, CuPy, Numba, JAX, or anything with ``__cuda_array_interface__`` or CUDA DLPack.  It is
read in place, and kept alive until the call returns; work still queued then is ordered before the memory's next use,
by the library's own rules for its streams.
"""

import ctypes
import math
import sys
from collections import deque
from importlib.util import find_spec

import numpy as np

from ..arrays import raise_overlap
from ..backends.numba_common.axes import c_steps
from ..dtypes import FLOATS, NAMES
from ..locks import new_lock
from .host import check_grad

# -- arrays ------------------------------------------------------------------------------------------------------------


class DeviceArray:
    """A device array as the kernels need it: where it starts, its shape and steps (in elements), and whose it is."""

    def __init__(self, owner, pointer, shape, steps, dtype, device, readonly=False, library=None):
        self.owner, self.pointer, self.shape, self.dtype, self.device = owner, pointer, tuple(shape), dtype, device
        self.steps = c_steps(self.shape) if steps is None else tuple(steps)
        self.readonly, self.library = readonly, library
        self.size = math.prod(self.shape)
        self.itemsize = FLOATS[dtype].itemsize if dtype in FLOATS else np.dtype(dtype).itemsize
        reach = [(n - 1) * step for n, step in zip(self.shape, self.steps, strict=True)]
        self.before = -sum(step for step in reach if step < 0)  # elements below the first one
        self.span = self.before + sum(step for step in reach if step > 0) + 1 if self.size else 0

    @property
    def contiguous(self):
        steps = zip(self.shape, self.steps, c_steps(self.shape), strict=True)
        return not self.size or all(n == 1 or step == c_step for n, step, c_step in steps)

    @property
    def aligned16(self):
        return self.pointer % 16 == 0

    @property
    def computed_in(self):
        """The dtype that the numbers are computed and summed in."""
        return FLOATS[self.dtype].computed_in.__name__ if self.dtype in FLOATS else "float32"

    def kernel_argument(self):
        """All the memory that the array spans, as one dimension; 16-bit floats as uint16."""
        dtype = np.dtype(np.uint16 if self.itemsize == 2 else np.uint8 if self.dtype == "bool" else self.dtype)
        return self.library.flat(self, dtype)

    def stand_in(self, dtype):
        """A kernel's argument of ``dtype`` that it will not look at."""
        return DeviceArray(
            self.owner, self.pointer, (1,), None, dtype, self.device, True, self.library
        ).kernel_argument()

    def upload(self, host, stream):
        """A copy of a small host array on this device, queued on ``stream``, as a kernel's argument."""
        from numba import cuda

        array = self.library.new(self, host.shape, host.dtype.name, stream).kernel_argument()
        array.copy_to_device(host, stream=numba_stream(stream) or cuda.default_stream())  # 0 would wait for the device
        return array

    def take(self, axis, i):
        """The part at ``i`` along ``axis``."""
        shape, steps = list(self.shape), list(self.steps)
        del shape[axis], steps[axis]
        pointer = self.pointer + i * self.steps[axis] * self.itemsize
        return DeviceArray(self.owner, pointer, shape, steps, self.dtype, self.device, self.readonly, self.library)

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
        return DeviceArray(x, view.ptr, view.shape, view.strides, dtype, view.device_id, view.readonly, self)

    def current_stream(self, x):
        return 0

    def new(self, like, shape, dtype, stream):
        """A new array on the device of ``like``; here one of Numba's."""
        from numba import cuda

        if dtype == "bfloat16":
            raise TypeError(
                f"out must be given where x is a bfloat16 {type(like.owner).__name__}: Numba has no such arrays"
            )
        with cuda.gpus[like.device]:
            memory = cuda.device_array(shape, np.dtype(dtype), stream=numba_stream(stream))
            return _ANY.describe(memory, "out", stream)

    def deliver(self, array, stream):
        """What the user gets for an array made by `new`, once the work on it is queued."""
        return array.owner

    def hold(self, arrays, stream):
        """Called when work on ``arrays`` has been queued: their memory may be used again only after it."""

    def flat(self, array, dtype):
        from numba import cuda

        low, _ = array.range()
        face = {"shape": (array.span,), "strides": None, "data": (low, False), "typestr": dtype.str, "version": 3}
        return cuda.from_cuda_array_interface(face, owner=array.owner, sync=False)


class _Torch(_Library):
    def describe(self, x, name, stream):
        check_grad(x, name)
        if str(x.layout) != "torch.strided":
            raise TypeError(f"{name} must be a strided tensor, got layout {x.layout}")
        if x.is_neg():
            raise TypeError(f"{name} must not be a view that negates lazily, got one: pass {name}.resolve_neg()")
        if stream != self.current_stream(x):  # x may be freed, and its memory used again, before our work is done
            x.record_stream(sys.modules["torch"].cuda.ExternalStream(stream, device=x.device))
        dtype = str(x.dtype).removeprefix("torch.")
        return DeviceArray(x, x.data_ptr(), x.shape, x.stride(), dtype, x.device.index, library=self)

    def current_stream(self, x):
        return sys.modules["torch"].cuda.current_stream(x.device).cuda_stream

    def new(self, like, shape, dtype, stream):
        torch = sys.modules["torch"]
        memory = torch.empty(shape, dtype=getattr(torch, dtype), device=like.owner.device)
        return self.describe(memory, "out", stream)


class _Cupy(_Library):
    def current_stream(self, x):
        return sys.modules["cupy"].cuda.get_current_stream(x.device.id).ptr

    def new(self, like, shape, dtype, stream):
        cupy = sys.modules["cupy"]
        with like.owner.device, cupy.cuda.ExternalStream(stream):  # its pool gives memory out by stream
            memory = cupy.empty(shape, like.owner.dtype if dtype == like.dtype else dtype)
        return self.describe(memory, "out", stream)


class _Jax(_Library):
    """JAX arrays are immutable: never ``out``. A result is a new array over memory of Numba's, through DLPack.

    JAX does not say on which stream it frees memory, so what kernels read is held until an event says they are done.
    """

    def __init__(self):
        self.held, self.lock = deque(), new_lock()

    def describe(self, x, name, stream):
        array = super().describe(x, name, stream)
        array.readonly = True
        return array

    def new(self, like, shape, dtype, stream):
        array = super().new(like, shape, "uint16" if dtype == "bfloat16" else dtype, stream)
        array.dtype, array.library = dtype, self
        return array

    def hold(self, arrays, stream):
        from numba import cuda

        done = cuda.event(timing=False)
        done.record(numba_stream(stream))
        with self.lock:
            self.held.append((done, [array.owner for array in arrays]))
            while self.held and self.held[0][0].query():
                self.held.popleft()

    def deliver(self, array, stream):
        if not array.size:  # no memory to lend
            return sys.modules["jax"].numpy.zeros(array.shape, array.dtype)
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

        ours, theirs = self._stream or 1, 1 if stream is None else stream  # 1 is the default stream in DLPack
        if theirs not in (ours, -1):
            with cuda.gpus[self._view.device_id]:
                done = cuda.event(timing=False)
                done.record(numba_stream(ours))
                done.wait(numba_stream(theirs))
        return self._view.__dlpack__(stream=-1, **kwargs)


class _Simulated(_Library):
    """Arrays of Numba's simulator, which are NumPy's in disguise."""

    def describe(self, x, name, stream):
        memory = x._ary
        pointer = memory.__array_interface__["data"][0]
        steps = [step // memory.itemsize for step in memory.strides]
        return DeviceArray(x, pointer, memory.shape, steps, memory.dtype.name, 0, not memory.flags.writeable, self)

    def new(self, like, shape, dtype, stream):
        from numba import cuda

        memory = cuda.to_device(np.empty(shape, like.owner._ary.dtype if dtype == like.dtype else dtype))
        return self.describe(memory, "out", stream)

    def flat(self, array, dtype):
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        memory = (ctypes.c_char * (array.span * array.itemsize)).from_address(array.range()[0])
        flat = FakeCUDAArray(np.frombuffer(memory, dtype))
        flat.owner = array.owner  # whose memory it is
        return flat


_LIBRARIES = {"torch": _Torch(), "cupy": _Cupy(), "jax": _Jax(), "jaxlib": _Jax()}
_ANY, _SIMULATED = _Library(), _Simulated()


def _library_of(x):
    if hasattr(type(x), "__cuda_ndarray__") and not hasattr(type(x), "__cuda_array_interface__"):
        return _SIMULATED
    return _LIBRARIES.get(type(x).__module__.partition(".")[0], _ANY)


def numba_stream(stream):
    from ..backends.numba_cuda.parts import numba_stream

    return numba_stream(stream)


def stream_of(stream, x):
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


def overlap(a, b):
    """Do the memory ranges of two arrays meet? What lies between an array's elements counts."""
    (a_low, a_high), (b_low, b_high) = a.range(), b.range()
    return a_low < b_high and b_low < a_high


class Border:
    """One call's way over the border: its arrays, and the stream and the device that its work is queued on."""

    place = "CUDA"
    Array = DeviceArray

    def __init__(self, first, dtype=None, stream=None):
        if find_spec("numba_cuda") is None:
            raise ImportError("arrays in CUDA memory need the package numba-cuda: pip install numba-cuda")
        if dtype is not None:
            raise TypeError(f"dtype must not be given for a device array, which says what it holds, got {dtype!r}")
        self.address = stream_of(stream, first)
        self.arrays = []

    def take(self, x, name, writable=False):
        """Describe ``x`` after checking that the kernels can reach it."""
        array = _library_of(x).describe(x, name, self.address)
        if array.pointer % array.itemsize:
            raise ValueError(
                f"{name} must be aligned to its {array.itemsize}-byte elements, got address {array.pointer:#x}"
            )
        if self.arrays and array.device != self.arrays[0].device:
            raise ValueError(f"{name} must lie on device {self.arrays[0].device}, got device {array.device}")
        if writable and array.readonly:
            raise ValueError(f"{name} must be writable, got a read-only {type(x).__name__}")
        self.arrays.append(array)
        return array

    def new(self, like, shape, dtype=None):
        """A new array of the library, and on the device, of ``like``."""
        self.arrays.append(like.library.new(like, shape, dtype or like.dtype, self.address))
        return self.arrays[-1]

    def output(self, out, name, like, shape, dtype=None):
        """``out`` after checking that it can take a result, or a new array."""
        if out is None:
            return self.new(like, shape, dtype)
        check_dtype(out, name, dtype or like.dtype)
        if out.shape != tuple(shape):
            raise ValueError(f"{name} must have shape {tuple(shape)}, got {out.shape}")
        return out

    def check_places(self, out, name):
        """Raise ValueError if two elements of ``out`` share memory by a step of 0."""
        if any(step == 0 and n > 1 for n, step in zip(out.shape, out.steps)):
            raise ValueError(f"{name} must have a place for each element, got steps {out.steps} for shape {out.shape}")

    def check_overlap(self, out, x, name, out_name, same):
        """Raise ValueError if ``out`` meets ``x`` in any way but (where that is allowed, by ``same``) being it."""
        equal = (out.pointer, out.shape, out.steps, out.dtype) == (x.pointer, x.shape, x.steps, x.dtype)
        if overlap(out, x) and not (same and equal):
            raise_overlap(name, out_name, same)

    def copies(self, array):
        return False

    def run(self, body, *args, **kwargs):
        """Queue the work of ``body``, with the arrays' device current."""
        from numba import cuda

        with cuda.gpus[self.arrays[0].device]:
            result = body(*args, **kwargs, stream=self)
            for library in {array.library for array in self.arrays}:
                library.hold(self.arrays, self.address)
        return result

    @property
    def kernels(self):
        from ..backends import numba_cuda

        return numba_cuda

    def deliver(self, array):
        return array.library.deliver(array, self.address)

    def written(self, x):
        """Streams order what comes after."""


def check_dtype(array, name, *dtypes):
    """Return ``array`` if its dtype is one of these, by default one the kernels know; raise TypeError if not."""
    if array.dtype not in (dtypes or FLOATS):
        raise TypeError(f"{name} must be {' or '.join(dtypes) if dtypes else NAMES}, got dtype {array.dtype}")
    return array


def check_like(x, name, like):
    """Return ``x`` if it has the dtype and shape of ``like``; raise if not."""
    check_dtype(x, name, like.dtype)
    if x.shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, got {x.shape}")
    return x


def check_contiguous(*arrays):
    for array, name in arrays:
        if array is not None and not array.contiguous:
            raise ValueError(f"{name} must be C-contiguous here, got steps {array.steps} for shape {array.shape}")


def broadcast(array, shape, name):
    """``array`` with the steps it has when broadcast to ``shape``."""
    try:
        if np.broadcast_shapes(array.shape, shape) != shape:
            raise ValueError
    except ValueError:
        raise ValueError(f"{name} of shape {array.shape} must broadcast to {shape}") from None
    lead = len(shape) - len(array.shape)
    steps = [0 if m == 1 else step for m, step in zip(array.shape, array.steps, strict=True)]
    return DeviceArray(
        array.owner, array.pointer, shape, (*[0] * lead, *steps), array.dtype, array.device, True, array.library
    )  # fmt: skip
