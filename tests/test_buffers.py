"""Other people's memory: read and written in place, whoever owns it, and given back on every path.

That nothing is copied is seen twice: the backend is handed the very address, and no memory is taken (tracemalloc counts
NumPy's).  That nothing is kept is seen by the owner: a bytearray or array that somebody still looks at refuses to be
resized, an mmap or a shared memory to be closed, a memoryview to be released.
"""

import array
import ctypes
import gc
import mmap
import re
import subprocess
import sys
import tracemalloc
import weakref
from multiprocessing import shared_memory

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import backends
from fastdrop.borders import host

N = 24
X = np.linspace(1, 2, N, dtype=np.float32)
MASK = fd.mask(N, 0.5, rng=0)
Y = np.where(MASK.keep(), X * np.float32(2), np.float32(0))


class Lent:
    """An object with float32 memory: what to pass, its address, whether ``dtype=`` must say what the bytes are."""

    def __init__(self, obj, address, dtype=None, writable=True, close=None):
        self.obj, self.address, self.writable, self.close = obj, address, writable, close
        self.dtype = {} if dtype is None else {"dtype": dtype}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.close:
            self.close()


def address_of(buffer):
    return np.frombuffer(buffer, np.uint8).ctypes.data


def anonymous_map():
    pages = mmap.mmap(-1, X.nbytes)
    pages[:] = X.tobytes()
    return pages


def lend_ndarray():
    x = X.copy()
    return Lent(x, x.ctypes.data)


def lend_memoryview():
    x = X.copy()
    view = memoryview(x)
    return Lent(view, x.ctypes.data, close=view.release)


def lend_bytearray():
    x = bytearray(X)
    return Lent(x, address_of(x), "float32", close=lambda: x.append(0))


def lend_bytes():
    x = X.tobytes()
    return Lent(x, address_of(x), "float32", writable=False)


def lend_bytes_view():
    x = memoryview(bytearray(X)).cast("f")
    return Lent(x, address_of(x), close=x.release)


def lend_read_only_view():
    owner = bytearray(X)
    x = memoryview(owner).toreadonly()
    return Lent(x, address_of(x), "float32", writable=False, close=lambda: (x.release(), owner.append(0)))


def lend_array():
    x = array.array("f", X)
    return Lent(x, x.buffer_info()[0], close=lambda: x.append(0))


def lend_ctypes():
    x = (ctypes.c_float * N)(*X)
    return Lent(x, ctypes.addressof(x))


def lend_mmap():
    x = anonymous_map()
    return Lent(x, address_of(x), np.float32, close=x.close)


def lend_memmap(tmp_path):
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=N)
    x[:] = X
    return Lent(x, x.ctypes.data)


def lend_read_only_mmap(tmp_path):
    (tmp_path / "x").write_bytes(X.tobytes())
    with (tmp_path / "x").open("rb") as file:
        x = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Lent(x, address_of(x), "f4", writable=False, close=x.close)


def lend_shared_memory():
    shared = shared_memory.SharedMemory(create=True, size=X.nbytes)
    x = shared.buf[: X.nbytes]
    x[:] = X.tobytes()
    return Lent(x, address_of(x), "float32", close=lambda: (x.release(), shared.close(), shared.unlink()))


class DLPack:
    """The least that an array library must have; ``device`` is what it says of where its memory is."""

    def __init__(self, x, device=(1, 0)):
        self.x, self.device = x, device

    def __dlpack__(self, **kwargs):
        return self.x.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self.device


def lend_dlpack():
    x = X.copy()
    return Lent(DLPack(x), x.ctypes.data)


def lend_read_only_dlpack():
    if np.lib.NumpyVersion(np.__version__) < "2.1.0":
        pytest.skip("NumPy before 2.1 exports no read-only arrays through DLPack")
    x = X.copy()
    x.flags.writeable = False
    return Lent(DLPack(x), x.ctypes.data, writable=False)


def lend_torch():
    x = pytest.importorskip("torch", reason="torch is not installed").from_numpy(X.copy())
    return Lent(x, x.data_ptr())


class Interface:
    def __init__(self, x):
        self.x = x
        self.__array_interface__ = x.__array_interface__


def lend_interface():
    x = X.copy()
    return Lent(Interface(x), x.ctypes.data)


LENDERS = [value for name, value in list(globals().items()) if name.startswith("lend_")]


@pytest.fixture(params=LENDERS, ids=lambda lender: lender.__name__[5:])
def lent(request, tmp_path):
    make = request.param
    with make(tmp_path) if make.__code__.co_argcount else make() as it:
        yield it


@pytest.fixture
def seen(monkeypatch):
    """Addresses that the backend's `apply` gets: a list of (y, x)."""
    addresses, module = [], backends.current()
    apply = module.apply

    def note(y, x, mask):
        addresses.append((y.ctypes.data, x.ctypes.data))
        apply(y, x, mask)

    monkeypatch.setattr(module, "apply", note)
    return addresses


# -- read and written in place -----------------------------------------------------------------------------------------


def test_read_in_place(lent, seen):
    calls = [
        lambda: fd.dropout(lent.obj, mask=MASK, **lent.dtype)[0],
        lambda: MASK.apply(lent.obj, **lent.dtype),
        lambda: MASK.backward(lent.obj, **lent.dtype),
        lambda: fd.dropout_backward(lent.obj, MASK, **lent.dtype),
    ]
    if not lent.dtype:
        calls.append(lambda: MASK * lent.obj)
    for call in calls:
        assert np.array_equal(call(), Y)
    assert [x for _, x in seen] == [lent.address] * len(calls)


def test_written_in_place(lent, seen):
    if not lent.writable:
        with pytest.raises(ValueError, match="out must be writable, got a read-only"):
            MASK.apply(X, lent.obj, **lent.dtype)
        assert seen == []
        return
    for call in (
        lambda out: fd.dropout(X, mask=MASK, out=out, **lent.dtype)[0],
        lambda out: MASK.apply(X, out, **lent.dtype),
        lambda out: MASK.backward(X, out=out, **lent.dtype),
        lambda out: fd.dropout_backward(X, MASK, out=out, **lent.dtype),
    ):
        ctypes.memset(lent.address, 1, X.nbytes)
        assert call(lent.obj) is lent.obj
        assert ctypes.string_at(lent.address, X.nbytes) == Y.tobytes()
    assert seen == [(lent.address, X.ctypes.data)] * 4


def test_in_place(lent, seen):
    if not lent.writable:
        with pytest.raises(ValueError, match="out must be writable"):
            fd.dropout(lent.obj, mask=MASK, out=lent.obj, **lent.dtype)
        return
    y, _ = fd.dropout(lent.obj, mask=MASK, out=lent.obj, **lent.dtype)
    assert y is lent.obj
    assert ctypes.string_at(lent.address, X.nbytes) == Y.tobytes()
    assert seen == [(lent.address, lent.address)]


def test_nothing_to_drop_returns_the_object_itself(lent):
    for arguments in ({"p": 0.0}, {"p": 0.5, "training": False}):
        assert fd.dropout(lent.obj, **arguments, **lent.dtype)[0] is lent.obj


def test_gradient_summed_from_and_into_any_buffer(lent):
    mask = fd.mask((3, 8), 0.5, rng=0)
    dy = host.view(lent.obj, "dy", lent.dtype.get("dtype")).reshape(3, 8)
    want = mask.backward(dy.copy(), x_shape=(8,))
    out = bytearray(32)
    assert mask.backward(dy, x_shape=(8,), out=out, dtype="float32") is out
    assert out == want.tobytes()
    del dy
    assert np.array_equal(fd.mask((1, N), 0.5, rng=0).backward(X.reshape(1, N), x_shape=(N,)), Y)


@pytest.mark.parametrize("code", ["e", "f", "d"])
def test_formats_of_memoryviews(code):
    x = np.arange(6, dtype=code).reshape(2, 3)
    mask = fd.mask((2, 3), 0.5, rng=0)
    y = mask.apply(memoryview(x))
    assert (y.dtype, y.shape) == (x.dtype, (2, 3))
    assert np.array_equal(y, mask.apply(x))
    assert np.array_equal(
        fd.mask((2, 2), 0.5, rng=0).apply(memoryview(x[:, ::2])), fd.mask((2, 2), 0.5, rng=0).apply(x[:, ::2])
    )


def test_ctypes_of_two_dimensions():
    x = (ctypes.c_double * 3 * 2)((1, 2, 3), (4, 5, 6))
    y, mask = fd.dropout(x, 0.5, rng=0)
    assert np.array_equal(y, mask.apply(np.array([[1.0, 2, 3], [4, 5, 6]])))


def test_bytes_as_any_dtype(dtype):
    x = np.arange(40).astype(dtype)
    mask = fd.mask(40, 0.5, rng=0)
    y = mask.apply(x.tobytes() if dtype.name != "bfloat16" else x.view(np.uint16).tobytes(), dtype=dtype)
    assert y.dtype == dtype
    assert np.array_equal(y, mask.apply(x))


def test_bfloat16_is_known_by_name():
    """In a process that has not imported ml_dtypes, which tells NumPy the name."""
    pytest.importorskip("ml_dtypes", reason="bfloat16 needs ml_dtypes")
    code = "import sys, fastdrop as fd; assert 'ml_dtypes' not in sys.modules; "
    code += "print(fd.dropout(bytes(8), dtype='bfloat16')[0].dtype)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "bfloat16"


@pytest.mark.parametrize("x", [b"12345678", X[:2], [1.0]], ids=["bytes", "array", "list"])
@pytest.mark.parametrize("wrong", ["nope", 3, (1, 2)])
def test_dtypes_that_are_none(x, wrong):
    with pytest.raises(TypeError, match=rf"dtype must be a NumPy dtype .*, got {re.escape(repr(wrong))}"):
        fd.dropout(x, 0.5, dtype=wrong)


def test_bytes_are_no_objects():
    with pytest.raises(TypeError, match="x cannot be read as object: got uint8"):
        fd.dropout(bytes(8), 0.5, dtype=object)


def test_what_is_no_array_is_named():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for wrong in (torch.nn.Linear(2, 2), torch.float32, torch.device("cpu"), torch.Tensor, np.ndarray):
        kind = type(wrong).__name__
        for call in (fd.dropout, fd.relu_dropout, MASK.apply):
            with pytest.raises(TypeError, match=f"x must be an array, got {kind}"):
                call(wrong)
        with pytest.raises(TypeError, match=f"residual must be an array, got {kind}"):
            fd.dropout_add(X, wrong)
        with pytest.raises(TypeError, match=f"out must be an array.*, got {kind}"):
            fd.dropout(X, out=wrong)


def test_types_are_not_held():
    kind = type("Kind", (list,), {})
    there = weakref.WeakSet([kind])
    fd.dropout(kind([1.0]))
    for i in range(200):  # more than are remembered
        fd.dropout(type(f"Kind{i}", (list,), {})([1.0]))
    del kind
    gc.collect()
    assert not there


def test_dtype_of_arrays_of_bytes():
    x = X.view(np.uint8).copy()
    assert np.array_equal(MASK.apply(x, dtype="float32"), Y)
    assert MASK.apply(X, out := x, dtype="float32") is out
    assert np.array_equal(x.view(np.float32), Y)


def test_unaligned_bytes():
    raw = bytearray(b"?") + bytearray(X) + bytearray(b"??")
    view = memoryview(raw)[1:-2]
    assert np.array_equal(MASK.apply(view, view, dtype="float32").cast("f"), Y)
    assert (raw[:1], raw[-2:]) == (b"?", b"??")
    view.release()


def test_nothing_in_it():
    for empty in (b"", bytearray(), memoryview(b""), np.empty(0, np.uint8)):
        assert fd.dropout(empty, 0.5, dtype="float32")[0].shape == (0,)
    assert fd.dropout(array.array("d"), 0.5)[0].dtype == np.float64


@pytest.mark.parametrize("layout", ["C", "Fortran", "strided"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_torch(name, layout):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.linspace(1, 2, 60, dtype=getattr(torch, name)).reshape(6, 10)
    x = {"C": x, "Fortran": x.T.contiguous().T, "strided": torch.stack([x, x], 2)[:, :, 0]}[layout]
    mask = fd.mask((6, 10), 0.5, rng=0)
    y = mask.keep() * x.double().numpy() * 2
    got = mask.apply(x)
    assert (type(got), got.dtype) == (torch.Tensor, x.dtype)
    assert np.array_equal(got.double().numpy(), y)
    before = x.data_ptr()
    assert mask.apply(x, out=x) is x
    assert x.data_ptr() == before
    assert torch.equal(x, got)


def test_torch_that_requires_grad():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match=r"x must not require grad: .* pass x\.detach\(\)"):
        fd.dropout(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize("device", [4, 8, 10, 14])  # OpenCL, Metal, ROCm, oneAPI; CUDA's goes to fastdrop.cuda
def test_memory_of_another_device_is_not_touched(device):
    with pytest.raises(TypeError, match=f"x must lie in CPU memory, got a DLPack on DLPack device type {device}"):
        fd.dropout(DLPack(None, (device, 0)))
    with pytest.raises(TypeError, match="out must lie in CPU memory"):
        MASK.apply(X, DLPack(None, (device, 0)))


def test_pinned_memory_is_cpu_memory():
    np.testing.assert_array_equal(fd.dropout(DLPack(X, (3, 0)), mask=MASK)[0], MASK.apply(X))


def test_cuda_memory_is_no_out_for_an_array_in_cpu_memory():
    with pytest.raises(TypeError, match="out must lie in CPU memory, got a DLPack in CUDA memory"):
        MASK.apply(X, DLPack(None, (2, 0)))


def test_cuda_memory_without_numba_cuda_says_what_to_install(fresh_python):
    code = """
import sys
class Array:
    def __dlpack_device__(self):
        return 2, 0
import fastdrop as fd
fd.borders.cuda.find_spec = lambda name: None
try:
    fd.dropout(Array())
except ImportError as error:
    assert "pip install numba-cuda" in str(error), error
else:
    raise AssertionError
"""
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr


def test_arrays_in_cpu_memory_import_no_numba(fresh_python):
    code = """
import sys, torch, fastdrop as fd
fd.use_backend("reference")
x = torch.ones(8)
y, mask = fd.dropout(x, 0.5, rng=0)
fd.dropout_add(x, x, mask=mask)
fd.softmax_dropout(x, 0.5, rng=0)
fd.symmetric_kl(x, x)
assert not [name for name in sys.modules if name.startswith(("numba", "fastdrop.cuda"))]
"""
    pytest.importorskip("torch")
    done = fresh_python(code)
    assert done.returncode == 0, done.stderr


# -- nothing is copied -------------------------------------------------------------------------------------------------


def extra_memory(call):
    """Most bytes that NumPy and Python had at once during a call, beyond those before it."""
    call()  # what is imported and cached at a first call
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


LARGE = 1 << 20


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.reshape(1024, 1024).T,
        lambda x: x[::-1],
        lambda x: x[::2],
        lambda x: x.reshape(64, 128, 128)[:, 1:, ::3],
        lambda x: np.broadcast_to(x[:1024], (1024, 1024)),
    ],
    ids=["C", "transposed", "reversed", "strided", "part", "broadcast"],
)
def test_no_hidden_copy(isas, dtype, view):
    x = view(np.ones(LARGE, dtype))
    out = np.empty(x.shape, dtype)
    mask = fd.mask(x.shape, 0.3, rng=0)
    assert extra_memory(lambda: fd.dropout(x, 0.3, rng=0, out=out)) < 8192
    assert extra_memory(lambda: mask.apply(x, out)) < 8192
    assert extra_memory(lambda: mask.backward(x, out=out)) < 8192
    assert extra_memory(lambda: mask.apply(out, out)) < 8192
    assert extra_memory(lambda: mask.apply(x)) < out.nbytes + 8192  # the result alone
    assert extra_memory(lambda: fd.mask((x.shape[0],) + (1,) * (x.ndim - 1), 0.3).apply(x, out)) < 8192
    p = np.full(x.shape[:-1], 0.3)
    assert extra_memory(lambda: fd.dropout(x, p, rng=0, out=out)) < 8192 + 4 * p.nbytes


def test_no_hidden_copy_of_foreign_memory(isas):
    x, out = bytearray(4 * LARGE), mmap.mmap(-1, 4 * LARGE)
    assert extra_memory(lambda: fd.dropout(x, 0.3, rng=0, out=out, dtype="float32")) < 8192


def test_bits_take_an_eighth(isas):
    mask = fd.mask(8 * LARGE, 0.3, rng=0)
    assert LARGE <= extra_memory(mask.bits) < LARGE + 8192
    assert extra_memory(lambda: fd.mask(2**63, 0.3, rng=0)[5:, ...]) < 8192


# -- given back --------------------------------------------------------------------------------------------------------

THREE = fd.mask((3, 8), 0.5, rng=0)

GOOD = {
    "dropout": lambda x: fd.dropout(x, 0.5, dtype="f4"),
    "dropout out": lambda x: fd.dropout(X, 0.5, out=x, dtype="f4"),
    "in place": lambda x: fd.dropout(x, 0.5, out=x, dtype="f4"),
    "not training": lambda x: fd.dropout(x, 0.5, training=False, dtype="f4"),
    "apply": lambda x: MASK.apply(x, dtype="f4"),
    "broadcast": lambda x: fd.mask((3, N), 0.5).apply(x, dtype="f4"),
    "backward": lambda x: MASK.backward(x, dtype="f4"),
    "backward out": lambda x: MASK.backward(X, out=x, dtype="f4"),
    "dropout_backward": lambda x: fd.dropout_backward(x, MASK, dtype="f4"),
    "sum": lambda x: fd.mask((3, N), 0.5).backward(np.ones((3, N), np.float32), x_shape=(N,), out=x, dtype="f4"),
}

BAD = {  # a call that fails, what its error says
    "p": (lambda x: fd.dropout(x, 2.0, dtype="f4"), "p is a probability"),
    "p type": (lambda x: fd.dropout(x, "a", dtype="f4"), "p must be a number"),
    "p shape": (lambda x: fd.dropout(x, [0.1, 0.2], dtype="f4"), "p must have the leading axes"),
    "rng": (lambda x: fd.dropout(x, 0.5, rng="a", dtype="f4"), "rng must be None, an int"),
    "rng value": (lambda x: fd.dropout(x, 0.5, rng=-1, dtype="f4"), "rng must be an integer"),
    "mask": (lambda x: fd.dropout(x, mask=3, dtype="f4"), "mask must be a fastdrop"),
    "mask's shape": (lambda x: fd.dropout(x, mask=THREE, dtype="f4"), "does not broadcast with the mask's shape"),
    "mask_shape": (lambda x: fd.dropout(x, mask_shape=(7,), dtype="f4"), "mask_shape .* does not broadcast"),
    "mask_shape type": (
        lambda x: fd.dropout(x, mask_shape="a", dtype="f4"),
        "mask_shape must be an integer or a tuple",
    ),
    "no dtype": (lambda x: fd.dropout(x), "x must be float16.* got dtype uint8"),
    "dtype": (lambda x: fd.dropout(x, dtype="int32"), "x must be float16.* got dtype int32"),
    "no such dtype": (lambda x: fd.dropout(x, dtype="nothing"), "dtype must be a NumPy dtype .* got 'nothing'"),
    "size": (lambda x: fd.dropout(x, dtype="V5"), "x cannot be read as"),
    "read-only out": (lambda x: fd.dropout(x, out=b"1" * 96, dtype="f4"), "out must be writable"),
    "out of another kind": (lambda x: fd.dropout(x, out=[], dtype="f4"), "out must be an array or a writable buffer"),
    "out's dtype": (lambda x: fd.dropout(x, out=np.zeros(N), dtype="f4"), "out must have shape .*24.*48"),
    "out's size": (lambda x: fd.dropout(x, out=bytearray(44), dtype="f4"), "out must have shape .*24.*11"),
    "as out, shape": (lambda x: fd.dropout(X[1:], out=x, dtype="f4"), "out must have shape .*23.*24"),
    "as out, dtype": (lambda x: fd.dropout(X, out=x), "out must have dtype float32"),
    "as out, rng": (lambda x: fd.dropout(X, rng=-1, out=x, dtype="f4"), "rng must be an integer"),
    "as out, p": (lambda x: fd.dropout(X, 2.0, out=x, dtype="f4"), "p is a probability"),
    "apply": (lambda x: THREE.apply(x, dtype="f4"), "x of shape .* does not broadcast"),
    "x * mask": (lambda x: x * MASK, "x must be float16"),
    "mask * x": (lambda x: MASK * x, "x must be float16"),
    "multiply": (lambda x: np.multiply(x, MASK), "x must be float16"),
    "multiply out": (lambda x: np.multiply(X, MASK, out=x), "out must have dtype float32"),
    "backward": (lambda x: fd.dropout_backward(x, THREE, dtype="f4"), "dy of shape .* does not broadcast"),
    "backward's mask": (lambda x: fd.dropout_backward(x, None, dtype="f4"), "mask must be a fastdrop"),
    "x_shape": (lambda x: THREE.backward(x, x_shape=(8,), dtype="f4"), "dy must have the shape of apply"),
    "x_shape that does not fit": (
        lambda x: THREE.backward(x, x_shape=(7,), dtype="f4"),
        "x_shape .* does not broadcast",
    ),
    "x_shape type": (lambda x: THREE.backward(x, x_shape="a", dtype="f4"), "x_shape must be an integer or a tuple"),
    "sum's out": (
        lambda x: THREE.backward(np.ones((3, 8), np.float32), x_shape=(8,), out=x, dtype="f4"),
        "out must have shape .*8.*24",
    ),
    "memory": (lambda x: fd.dropout(x, mask_shape=(2**50, 1), dtype="f4"), "allocate"),
    "more memory": (lambda x: fd.mask((2**62, 1), 0.5).apply(x, dtype="f4"), "allocate"),
    "from_keep": (lambda x: fd.Mask.from_keep(x, 0.5), "keep must hold bools"),
}


@pytest.fixture
def no_gc():
    """Buffers must come back by themselves, not when the collector finds a cycle."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("call", GOOD.values(), ids=GOOD)
def test_given_back(no_gc, call):
    x = bytearray(X)
    kept = call(x)
    x.append(0)
    assert kept is not None


@pytest.mark.parametrize(("call", "words"), BAD.values(), ids=BAD)
def test_given_back_after_an_error(no_gc, call, words):
    """Also while the exception is held, and with it whatever its traceback and the errors before it hold."""
    x = bytearray(X)
    with pytest.raises((TypeError, ValueError, MemoryError), match=words) as held:
        call(x)
    assert x == X.tobytes()
    x.append(0)
    del held


def test_the_callers_own_error_keeps_its_traceback():
    """Frames are cleared of the library's errors alone, not of one that is being handled meanwhile."""
    outer = None
    try:
        try:
            raise KeyError("outer")
        except KeyError as error:
            outer = error
            fd.dropout(bytearray(X), "a", dtype="f4")
    except TypeError as inner:
        innermost = inner
    assert innermost.__context__ in (outer, None)
    assert outer.__traceback__ is not None


def test_overlap_gives_back(no_gc):
    x = bytearray(X)
    front, back = memoryview(x)[:-4], memoryview(x)[4:]
    with pytest.raises(ValueError, match="out must be x itself or not overlap it") as held:
        fd.dropout(front, 0.5, out=back, dtype="f4")
    front.release()
    back.release()
    x.append(0)
    del held


def test_not_contiguous_bytes(no_gc):
    x = memoryview(bytearray(X))[::2]
    with pytest.raises(ValueError, match=r"x must be contiguous to be read as float32, got strides \(2,\)") as held:
        fd.dropout(x, dtype="f4")
    x.release()
    del held


def test_from_keep_reads_any_buffer_of_bools(no_gc):
    owner = bytearray([1, 0, 0, 1])
    x = memoryview(owner).cast("?")
    assert fd.Mask.from_keep(x, 0.5).keep().tolist() == [True, False, False, True]
    with pytest.raises(ValueError, match="p is a probability to drop") as held:
        fd.Mask.from_keep(x, 2)
    x.release()
    owner.append(0)
    del held
    with pytest.raises(TypeError, match="keep must not be a masked array"):
        fd.Mask.from_keep(np.ma.array([True]), 0.5)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (b"1234567", r"x cannot be read as float32: got uint8 of shape \(7,\)"),
        (
            np.zeros((4, 8), np.uint8)[:, :6],
            r"x cannot be read as float32: got uint8 of shape \(4, 6\) and strides \(8, 1\)",
        ),
    ],
)
def test_bytes_that_do_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        fd.dropout(x, dtype="f4")


@pytest.mark.parametrize("n", [N, 1 << 20])
def test_result_has_its_own_memory(no_gc, n):
    x = bytearray(4 * n)
    y = fd.Mask.from_keep(np.ones(n, bool), 0.5).apply(x, dtype="f4")
    x.extend(b"1234")
    y[:] = 1
    assert not any(x[: 4 * n])


def test_a_result_is_nobody_elses_while_it_is_held(engine):
    """Memory of results that are gone is used again; that of the others, and of views of them, is not."""
    draw = np.random.default_rng(0)
    held = []
    for i in range(60):
        n = int(draw.choice([100, 70_000, 600_000, 1_300_000]))
        y = fd.Mask.from_keep(np.ones(1, bool), 0.5).apply(np.full(n, i, np.float32))
        held.append((i, n, y if draw.random() < 0.5 else y[::2].reshape(-1, 1)))
        del y
        if len(held) > 12:
            for _ in range(6):
                i, n, y = held.pop(int(draw.integers(len(held))))
                assert np.all(y == 2 * i)
                assert y.size in (n, n // 2)
            del y
