"""What only a GPU can show: `pytest -m gpu`. Everything else about the CUDA backend is tested in its simulator.

Arrays of every library that is installed go through the real border, on the real device.
"""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import fastdrop as fd
import fastdrop.cuda
from fastdrop.dtypes import FLOATS
from fastdrop.operations import ACTIVATIONS

DTYPES = list(FLOATS)


def gpus():
    """How many GPUs there are, asked in another process: one that has started the driver must not fork."""
    code = (
        "import ctypes; c = ctypes.CDLL('libcuda.so.1'); n = ctypes.c_int(); "
        "assert c.cuInit(0) == 0 and c.cuDeviceGetCount(ctypes.byref(n)) == 0; print(n.value)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0


COUNT = gpus() if importlib.util.find_spec("numba_cuda") else 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not COUNT, reason="needs an NVIDIA GPU, its driver and numba-cuda")]


class Numba:
    names = ("float32", "float64", "float16")

    def __init__(self):
        self.cuda = pytest.importorskip("numba.cuda")

    def put(self, array):
        return self.cuda.to_device(array)

    def get(self, array):
        return array.copy_to_host()

    def stream(self):
        return self.cuda.stream()


class Torch:
    names = DTYPES

    def __init__(self):
        self.torch = pytest.importorskip("torch")

    def put(self, array):
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).cuda().view(self.torch.bfloat16)
        return self.torch.from_numpy(array).cuda()

    def get(self, tensor):
        if tensor.dtype is self.torch.bfloat16:
            return tensor.view(self.torch.int16).cpu().numpy().view(bfloat16())
        return tensor.cpu().numpy()

    def stream(self):
        return self.torch.cuda.Stream()


class Cupy:
    names = ("float32", "float64", "float16")

    def __init__(self):
        self.cupy = pytest.importorskip("cupy")

    def put(self, array):
        return self.cupy.asarray(array)

    def get(self, array):
        return self.cupy.asnumpy(array)

    def stream(self):
        return self.cupy.cuda.Stream(non_blocking=True)


class Jax:
    names = ("float32", "float16", "bfloat16")

    def __init__(self):
        self.jax = pytest.importorskip("jax")

    def put(self, array):
        return self.jax.device_put(array, self.jax.devices("gpu")[0])

    def get(self, array):
        return np.asarray(array)


@pytest.fixture(params=[Numba, Torch, Cupy, Jax], ids=lambda kind: kind.__name__.lower())
def library(request):
    return request.param()


def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def random(shape, name="float32", seed=0):
    dtype = bfloat16() if name == "bfloat16" else np.dtype(name)
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(f"u{a.itemsize}"), b.view(f"u{b.itemsize}"))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("n", [1, 1000, 1 << 20, (1 << 20) + 13])
def test_dropout_is_the_cpu_s(library, name, n):
    if name not in library.names:
        pytest.skip(f"no {name} there on the GPU")
    x = random(n, name)
    for p in (0.1, 0.5):
        y, mask = fd.dropout(library.put(x), p, rng=7)
        assert type(y) is type(library.put(x))
        same_bits(library.get(y), mask.apply(x))
        same_bits(library.get(fd.dropout_backward(library.put(x), mask)), mask.apply(x))


def test_out_and_stream(library):
    if isinstance(library, Jax):
        pytest.skip("JAX arrays are immutable and have no stream to give: nothing to test on the GPU")
    x = random(1 << 20)
    mask = fd.mask(x.shape, 0.1, rng=1)
    on_device, out, stream = library.put(x), library.put(np.zeros_like(x)), library.stream()
    library.get(out)
    assert fd.cuda.apply(mask, on_device, out, stream=stream) is out
    stream.synchronize()
    same_bits(library.get(out), mask.apply(x))


def test_jax_result_is_ordered_after_the_kernel():
    jax = Jax()
    x = random(1 << 24)
    mask = fd.mask(x.shape, 0.1, rng=1)
    for _ in range(5):
        same_bits(jax.get(fd.cuda.apply(mask, jax.put(x)) + 0), mask.apply(x))


def test_nothing_waits_for_the_device():
    library = Torch()
    torch = library.torch
    x = library.put(random(1 << 24))
    mask = fd.mask(tuple(x.shape), 0.1, rng=1)
    out = torch.empty_like(x)
    for _ in range(2):  # compiles, and leaves torch's allocator with the memory that it will be asked for
        fd.cuda.apply(mask, x, out)
        fd.dropout(x, 0.1, rng=2)
    torch.cuda.synchronize()
    begun, done = torch.cuda.Event(), torch.cuda.Event()
    torch.cuda._sleep(1_000_000_000)  # half a second of device time before it
    begun.record()
    fd.cuda.apply(mask, x, out)
    y, _ = fd.dropout(x, 0.1, rng=2)
    done.record()
    assert not begun.query()
    assert not done.query()
    torch.cuda.synchronize()
    same_bits(library.get(out), mask.apply(library.get(x)))
    assert y.shape == x.shape


@pytest.mark.parametrize("name", DTYPES)
def test_fused_and_packed_are_the_cpu_s(name):
    library = Torch()
    x, r, bias = random((500, 768), name), random((500, 768), name, 1), random(768, name, 2)
    y, mask = fd.dropout_add(library.put(x), library.put(r), 0.1, bias=library.put(bias), rng=3)
    same_bits(library.get(y), fd.dropout_add(x, r, mask=mask, bias=bias)[0])
    packed = fd.cuda.bits(mask, like=library.put(x))
    np.testing.assert_array_equal(library.get(packed), mask.bits())
    part = mask[3:77, 5:700]
    np.testing.assert_array_equal(library.get(fd.cuda.bits(part, like=library.put(x))), part.bits())
    y, mask = fd.multi_sample_mean(library.put(x), [0.1, 0.3, 0.5], 3, rng=3)
    want, _ = fd.multi_sample_mean(x, [0.1, 0.3, 0.5], 3, rng=3)
    same_bits(library.get(y), want)
    y, mask = fd.dropout(library.put(x)[::2], 0.3, rng=1, mask_shape=(1, 768))
    same_bits(library.get(y), mask.apply(np.ascontiguousarray(x[::2])))


@pytest.mark.parametrize("name", DTYPES)
def test_rows_are_the_cpu_s(name):
    library = Torch()
    a, b = random((64, 1000), name), random((64, 1000), name, 1)
    labels = np.arange(64) * 7
    rtol = {"float64": 1e-11, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}[name]
    result = fd.r_drop(library.put(a), library.put(b), library.put(labels), alpha=0.5, label_smoothing=0.1)
    want = fd.r_drop(a, b, labels, alpha=0.5, label_smoothing=0.1)
    loss_rtol = 1e-11 if name == "float64" else 2e-6
    for got, right in ((result.loss, want.loss), (result.ce, want.ce), (result.kl, want.kl)):
        np.testing.assert_allclose(float(got), right, rtol=loss_rtol)
    for got, right in ((result.da, want.da), (result.db, want.db)):
        right = right.astype(np.float64)
        np.testing.assert_allclose(library.get(got).astype(np.float64), right, rtol=rtol, atol=rtol * abs(right).max())
    y, mask, saved = fd.softmax_dropout(library.put(a), 0.2, rng=1)
    right, _, log_sum = fd.softmax_dropout(a, 0.2, mask=mask)
    np.testing.assert_allclose(library.get(y).astype(np.float64), right.astype(np.float64), rtol=rtol)
    ds = fd.softmax_dropout_backward(library.put(b), library.put(a), saved, mask)
    right = fd.softmax_dropout_backward(b, a, log_sum, mask).astype(np.float64)
    np.testing.assert_allclose(library.get(ds).astype(np.float64), right, rtol=rtol, atol=rtol * abs(right).max())


def test_every_kind_of_mask_is_the_cpu_s(library):
    """Parts, a p for each row, the user's own bits, shared decisions: what goes element by element."""
    x = random((37, 70))
    mask = fd.mask((37, 70), 0.3, rng=1)
    each = np.linspace(0, 1, 37)
    for m in (
        mask, mask.stored(), fd.mask((50, 90), 0.3, rng=2)[5:42, 11:81], fd.mask((37, 70), each, rng=3),
        fd.mask((37, 70), each, rng=3).stored(), fd.mask((37, 1), 0.5, rng=4), fd.mask((3, 37, 70), 0.5, rng=5),
    ):  # fmt: skip
        same_bits(library.get(m.apply(library.put(x))), m.apply(x))
    same_bits(library.get(library.put(x) * mask if isinstance(library, Torch) else mask * library.put(x)), mask * x)


def test_other_functions_are_the_cpu_s(library):
    x, dy = random((37, 70)), random((37, 70), seed=1)
    mask = fd.mask(x.shape, 0.3, rng=1)
    on_device, gradient = library.put(x), library.put(dy)
    for name, op in ACTIVATIONS.items():
        forward, backward = getattr(fd, name), getattr(fd, f"{name}_backward")
        for got, right, size in (
            (forward(on_device, mask=mask)[0], forward(x, mask=mask)[0], abs(x).max()),
            (backward(gradient, on_device, mask), backward(dy, x, mask), 4 * abs(dy).max()),
        ):
            if op.tolerance:
                np.testing.assert_allclose(library.get(got), right, atol=4e-7 * size)
            else:
                same_bits(library.get(got), right)
    y, samples = fd.multi_sample_dropout(on_device, 0.3, 4, rng=1)
    want = samples.apply(x)
    same_bits(library.get(y), want)
    same_bits(
        library.get(fd.multi_sample_dropout_backward(y, samples)), fd.multi_sample_dropout_backward(want, samples)
    )
    for bias_shape in ((70,), (37, 1)):
        dx, dbias = fd.dropout_add_backward(gradient, mask, bias_shape=bias_shape)
        want, want_bias = fd.dropout_add_backward(dy, mask, bias_shape=bias_shape)
        same_bits(library.get(dx), want)
        np.testing.assert_allclose(library.get(dbias), want_bias, rtol=1e-5, atol=1e-5)
    y, pair = fd.r_drop_pair(on_device, 0.3, rng=1)
    same_bits(library.get(y), pair.apply(x))
    loss, _, _ = fd.symmetric_kl(on_device, gradient)
    np.testing.assert_allclose(library.get(loss), fd.symmetric_kl(x, dy)[0], rtol=2e-6)


@pytest.mark.parametrize("shape", [(0,), (0, 3), ()])
def test_empty_and_0d_arrays(library, shape):
    x = np.full(shape, 3, np.float32)
    mask = fd.mask(shape, 0.5, rng=3)
    assert library.get(fd.dropout(library.put(x), mask=mask)[0]).shape == shape
    np.testing.assert_array_equal(library.get(mask.apply(library.put(x))), mask.apply(x))


def test_the_current_stream_of_torch_is_taken():
    torch = Torch().torch
    x = torch.zeros(1 << 20, device="cuda")
    mask = fd.mask(x.shape, 0.5, rng=1)
    fd.dropout(x, mask=mask)  # compiles
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
        y = fd.dropout(x, mask=mask)[0].cpu().numpy()  # runs after fill_, if on its stream
    np.testing.assert_array_equal(y != 0, mask.keep())


class OnlyInterface:
    """The least that an owner of CUDA memory must have: version 3 of the array interface, with its stream."""

    def __init__(self, tensor, **changes):
        self.tensor, self.changes = tensor, changes

    @property
    def __cuda_array_interface__(self):
        return {**self.tensor.__cuda_array_interface__, "version": 3, "stream": None, **self.changes}


def test_any_owner_s_array_is_ordered_after_its_producer():
    torch = Torch().torch
    x = torch.zeros(1 << 20, device="cuda")
    mask = fd.mask(x.shape, 0.5, rng=1)
    fd.dropout(OnlyInterface(x), mask=mask)  # compiles
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.fill_(1)
    y = fd.dropout(OnlyInterface(x, stream=stream.cuda_stream), mask=mask)[0]
    np.testing.assert_array_equal(y.copy_to_host() != 0, mask.keep())  # Numba's array


def test_wrong_interfaces_are_named():
    torch = Torch().torch
    x = torch.ones(8, device="cuda")
    mask = fd.mask(8, 0.5, rng=0)
    with pytest.raises(ValueError, match="x must be aligned to its 4-byte elements"):
        mask.apply(OnlyInterface(torch.ones(9, device="cuda"), shape=(8,), data=(x.data_ptr() + 2, False)))
    with pytest.raises(ValueError, match="out must be writable, got a read-only OnlyInterface"):
        mask.apply(x, OnlyInterface(torch.ones(8, device="cuda"), data=(x.data_ptr(), True)))
    with pytest.raises(TypeError, match="got dtype int32"):
        mask.apply(OnlyInterface(torch.ones(8, device="cuda", dtype=torch.int32)))


def test_more_than_2_to_the_31_elements():
    torch = Torch().torch
    n = 2**31 + 1000
    if torch.cuda.mem_get_info()[0] < 3 * n:
        pytest.skip("needs 6 GB of free memory on the GPU")
    x = torch.ones(n, dtype=torch.float16, device="cuda")
    mask = fd.mask(n, 0.1, rng=1)
    fd.cuda.apply(mask, x, x)
    np.testing.assert_array_equal(x[-2000:].cpu().numpy() != 0, mask[n - 2000 :].keep())
    x.fill_(1)
    part = fd.mask((2, n // 2 + 5), 0.1, rng=2)[:, 3:-2]  # goes element by element
    fd.cuda.apply(part, x.view(2, -1), x.view(2, -1))
    np.testing.assert_array_equal(x[-2000:].cpu().numpy() != 0, part[1, -2000:].keep())


def test_wrong_arrays_are_named():
    torch = Torch().torch
    x = torch.ones(8, device="cuda")
    mask = fd.mask(8, 0.5, rng=0)
    with pytest.raises(TypeError, match="host memory"):
        fd.cuda.apply(mask, x.cpu())
    with pytest.raises(TypeError, match="host memory"):
        fd.cuda.apply(mask, x, np.ones(8, np.float32))
    with pytest.raises(TypeError, match="got dtype int64"):
        fd.cuda.apply(mask, x.long())
    with pytest.raises(TypeError, match="require grad"):
        fd.cuda.apply(mask, x.requires_grad_())
    memory = torch.ones(12, device="cuda")
    with pytest.raises(ValueError, match="overlap"):
        fd.cuda.apply(mask, memory[:8], memory[2:10])
    if COUNT > 1:
        with pytest.raises(ValueError, match="must lie on device 0, got device 1"):
            fd.cuda.apply(mask, memory[:8], torch.ones(8, device="cuda:1"))


def test_memory_kept_for_the_backward_is_none():
    torch = Torch().torch
    x = torch.ones(1 << 24, device="cuda")
    out = torch.empty_like(x)
    before = torch.cuda.memory_allocated()
    _, mask = fd.dropout(x, 0.1, rng=1, out=out)
    fd.dropout_backward(out, mask, out=out)
    assert torch.cuda.memory_allocated() == before
