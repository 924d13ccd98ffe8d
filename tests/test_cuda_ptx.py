"""The CUDA kernels compiled for compute capability 9.0, which needs no GPU: what their code must and must not hold.

Compiled in a process of its own (this file as a script): importing numba.cuda would start a driver if there is one.
"""

import json
import re
import subprocess
import sys

import pytest

from fastdrop.dtypes import FLOATS
from fastdrop.operations import OPERATIONS

pytestmark = pytest.mark.slow
CAPABILITY = (9, 0)
MISSING = "the compiler of CUDA kernels is not installed: pip install numba-cuda[cu13]"
DTYPES = tuple(FLOATS)
LANES = [f"lanes {op.name}" for op in OPERATIONS.values() if not op.residual]
ANYWHERE = [f"anywhere {op}" for op in OPERATIONS]
KERNELS = (
    *LANES, "lanes add", *ANYWHERE, "sum_anywhere", "sample_mean",
    "softmax_dropout", "softmax_dropout_backward", "pair_loss", "bias_parts", "sum_parts", "count_rows", "sum_rows",
)  # fmt: skip
# 16-byte accesses of the path that all whole threads take, at least
WIDE = {f"lanes {op.name}": 4 * len(op.inputs) + 4 for op in OPERATIONS.values() if not op.residual} | {"lanes add": 16}

# Registers a thread may use. A multiprocessor has 65536: 48 leave room for 1280 threads, 64 for 1024, 80 for 768. It
# takes some 40 kB in flight a multiprocessor to hide the delay of memory, and 640 threads of `lanes apply` have that;
# of an inexact gradient, which reads two arrays, half as many.
REGISTERS = {
    "lanes apply": 48, "anywhere": 88, "sum_anywhere": 80, "softmax_dropout": 80, "softmax_dropout_backward": 80,
    "float64": 128, "otherwise": 64,
    **{f"lanes {op.name}": 80 for op in OPERATIONS.values() if op.tolerance and len(op.inputs) == 2},
}  # fmt: skip


def signatures(store, compute):
    """What the launches of `numba_cuda` pass, by kernel."""
    from numba import types
    from numba.types import boolean, int64, uint8, uint64

    from fastdrop.backends.numba_cuda.parts import AXES

    def array(dtype):
        return types.Array(dtype, 1, "C")

    def places(n):
        return types.UniTuple(int64, n)

    x, real, axes = array(store), array(compute), places(AXES)
    chance = uint64, uint64, uint64, compute  # seed, stream, threshold, scale
    stored = array(uint8), int64
    mask = uint64, *chance, array(int64), real, *stored  # any mask, from its offset on
    lanes = int64, int64, boolean, uint64, *chance
    marks = array(int64), array(uint8)
    attention = array(uint8), int64, axes, places(AXES + 1), axes
    return {
        **dict.fromkeys(LANES, (x, x, x, *lanes)),
        "lanes add": (x, x, x, x, int64, *lanes),
        **dict.fromkeys(ANYWHERE, (x, x, x, x, places(4), int64, *(axes,) * 7, *mask)),
        "sum_anywhere": (x, x, places(2), int64, *(axes,) * 5, int64, *(axes,) * 4, *mask),
        "sample_mean": (x, x, int64, int64, uint64, *chance, array(int64), real, *stored),
        "softmax_dropout": (x, real, x, int64, int64, *attention, *mask),
        "softmax_dropout_backward": (x, x, real, x, int64, int64, *attention, *mask),
        "pair_loss": (
            real, real, real, x, x, x, x, *marks, real, int64, int64, boolean, boolean, int64,
            compute, compute, compute, compute, boolean,
        ),
        "bias_parts": (real, x, int64, int64, int64, uint64, *chance),
        "sum_parts": (x, real, int64, int64),
        "count_rows": (real, *marks, int64, boolean, boolean, int64),
        "sum_rows": (real, real, real, real, real, real, int64, compute, compute, boolean),
    }  # fmt: skip


def launched(dtype):
    """The types of what the backend's functions really pass, by kernel, from arrays that are nowhere."""
    import numpy as np
    from numba import typeof

    import fastdrop as fd
    from fastdrop.backends.numba_cuda import ops
    from fastdrop.backends.numba_cuda import rows as row_kernels
    from fastdrop.borders.cuda import DeviceArray

    kernels = ops.kernels_of(dtype) | row_kernels.kernels_of(dtype)
    names = {id(kernel): name for name, kernel in kernels.items()}
    found = {}

    def record(kernel, threads, stream, *arguments):
        found[names[id(kernel)]] = tuple(map(typeof, arguments))

    class Nowhere(DeviceArray):
        def __init__(self, dtype, *shape):
            super().__init__(None, 0, shape, None, dtype, 0)

        def kernel_argument(self):
            stored = {"bool": np.uint8} | {name: each.stored for name, each in FLOATS.items()}
            return np.zeros(1, stored.get(self.dtype, self.dtype))

        def stand_in(self, dtype):
            return np.zeros(1, dtype)

        def upload(self, host, stream):
            return host

    ops.launch = row_kernels.launch_rows = record
    x = Nowhere(dtype, 4, 6)
    real, mask = x.computed_in, fd.mask((4, 6), 0.1, rng=0)
    rows, one, labels, ignored = (Nowhere(name, *s) for name, *s in ((real, 4), (real,), ("int64", 4), ("bool", 4)))
    for each in (mask, mask.stored(), fd.mask((4, 6), [0.1, 0.2, 0.3, 0.4], rng=0)):
        for op in OPERATIONS.values():
            if not op.residual:
                ops.elementwise(op.name, x, (x,) * len(op.inputs), each, 0)
        ops.dropout_add(x, x, x, None, each, 0)
        ops.dropout_add(x, x, x, x, each, 0)
        ops.apply_sum(Nowhere(dtype, 6), x, each, 0)
        ops.sample_mean(Nowhere(dtype, 6), Nowhere(dtype, 6), each, 0)
        row_kernels.softmax_dropout(x, Nowhere(real, 4, 2), x, Nowhere("bool", 4, 6), each, 0)
        row_kernels.softmax_dropout_backward(x, x, Nowhere(real, 4, 2), x, None, each, 0)
    for marks in ((None, None), (labels, ignored)):
        row_kernels.pair_loss(
            (one, one, one), rows, rows, rows, one, x, x, x, x, *marks, 0,
            alpha=1.0, reduction="mean", ignore_index=-100, smoothing=0.1, inv_temperature=1.0,
        )  # fmt: skip
    return found


def compile_all():
    """Print {dtype: {kernel: {"ptx": ..., "log": assembler's report}}} as JSON."""
    import numba.cuda.dispatcher
    from numba import cuda, types

    from fastdrop.backends.numba_cuda import ops
    from fastdrop.backends.numba_cuda import rows as row_kernels
    from fastdrop.backends.numba_cuda.parts import AXES

    class Device:
        compute_capability = CAPABILITY

    numba.cuda.dispatcher.get_current_device = lambda: Device  # functions within a kernel are compiled for that one
    result = {}
    for dtype in DTYPES:
        store = types.uint16 if dtype.endswith("16") else getattr(types, dtype)
        compute = types.float64 if dtype == "float64" else types.float32
        kernels = ops.kernels_of(dtype) | row_kernels.kernels_of(dtype)
        result[dtype] = {}
        really = launched(dtype)
        assert set(kernels) - set(really) == {"bias_parts", "sum_parts"}  # whose grid has two axes
        for name, signature in signatures(store, compute).items():
            assert really.get(name, signature) == signature, f"{dtype} {name}: {really[name]}, compiled {signature}"
            ptx, _ = cuda.compile_ptx(kernels[name].py_func, signature, cc=CAPABILITY)
            result[dtype][name] = {"ptx": ptx, "log": assemble(ptx)}
        assert set(result[dtype]) == set(kernels) == set(KERNELS)
    out, axes, i, u = types.Array(types.uint8, 1, "C"), types.UniTuple(types.int64, AXES), types.int64, types.uint64
    lanes, anywhere = (out, i, i, u, u, u, u), (out, i, axes, axes, axes, u, u, u, u, types.Array(i, 1, "C"), out, i)
    for kernel, signature in ((ops.bits_lanes, lanes), (ops.bits_anywhere, anywhere)):
        ptx, _ = cuda.compile_ptx(kernel.py_func, signature, cc=CAPABILITY)
        result["float32"][kernel.py_func.__name__] = {"ptx": ptx, "log": assemble(ptx)}
    kernel, signature = users_kernel()
    ptx, _ = cuda.compile_ptx(kernel, signature, cc=CAPABILITY)
    result["user"] = {"ptx": ptx, "log": assemble(ptx)}
    print(json.dumps(result))


def users_kernel():
    """Every function of `fastdrop.numba` in a kernel, with its signature."""
    from numba import cuda, types

    from fastdrop.numba import keep, keep_bits64, keep_lane, scale, threshold, uniform32

    def kernel(out, p, seed, stream):
        i = cuda.grid(1)
        t = threshold(p)
        out[4 * i] = keep(seed, stream, i, t) + uniform32(seed, stream, i) * scale(p)
        out[4 * i + 1] = keep_lane(seed, stream, i, t)
        out[4 * i + 2] = keep_bits64(seed, stream, i, t)

    return kernel, (types.Array(types.float64, 1, "C"), types.float64, types.uint64, types.uint64)


def assemble(ptx):
    """The assembler's report on registers and stack; nvJitLink has the assembler of nvcc in it, and comes from PyPI."""
    from cuda.bindings import nvjitlink

    handle = nvjitlink.create(3, ["-arch=sm_{}{}".format(*CAPABILITY), "-verbose", "-Xptxas=-v"])
    code = ptx.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    nvjitlink.destroy(handle)
    return log.decode()


if __name__ == "__main__":
    compile_all()


@pytest.fixture(scope="module")
def compiled():
    pathfinder = pytest.importorskip("cuda.pathfinder", reason=MISSING)
    for library in ("nvvm", "nvrtc", "nvJitLink"):
        try:
            pathfinder.load_nvidia_dynamic_lib(library)
        except pathfinder.DynamicLibNotFoundError:
            pytest.skip(MISSING)
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def instructions(code, pattern):
    return [line.strip() for line in code["ptx"].splitlines() if re.match(rf"\s*(@\S+\s+)?{pattern}", line)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
class TestEveryKernel:
    def test_uses_no_local_memory(self, compiled, dtype, name):
        code = compiled[dtype][name]
        assert not instructions(code, r"(ld|st)\.local|\.local")
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in code["log"]

    def test_uses_few_registers(self, compiled, dtype, name):
        (used,) = set(re.findall(r"Used (\d+) registers", compiled[dtype][name]["log"]))
        kind = "float64" if dtype == "float64" else "anywhere" if name.startswith("anywhere") else name
        bound = REGISTERS.get(kind, REGISTERS["otherwise"])
        assert int(used) <= bound

    def test_does_no_double_arithmetic(self, compiled, dtype, name):
        doubles = instructions(compiled[dtype][name], r"\S*\.f64")
        assert bool(doubles) == (dtype == "float64")

    def test_calls_nothing(self, compiled, dtype, name):
        assert not instructions(compiled[dtype][name], "call")


def test_no_two_kernels_share_a_name(compiled):
    """By the digest in it, and not by the count of what the process has compiled: the disk cache knows no count."""
    digests = [
        re.search(r"\.entry \w*_([0-9a-f]{16})\w*\(", compiled[dtype][name]["ptx"])[1]
        for dtype in DTYPES
        for name in compiled[dtype]
        if not (name in ("count_rows", "sum_rows") and dtype.endswith("float16"))  # those of float32
    ]
    assert len(set(digests)) == len(digests) > 80


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accesses_are_of_16_bytes(compiled, dtype, name):
    wide = instructions(compiled[dtype][name], r"(ld|st)\.global\S*\.(v4\.[bfu]32|v2\.[bfu]64)")
    groups = 2 if dtype == "float64" else 1
    assert len(wide) >= WIDE[name] * groups
    loads = sum(line.startswith("ld") for line in wide)
    assert loads * 2 >= len(wide)


@pytest.mark.parametrize("dtype", DTYPES)
def test_y_takes_a_multiply_of_its_own(compiled, dtype):
    """Fused with the addition it would be rounded once less than on the CPU."""
    for name in (*LANES, "lanes add", *ANYWHERE):
        if OPERATIONS[name.split()[1]].tolerance:
            continue
        assert instructions(compiled[dtype][name], r"mul\.rn\.f")
        assert not instructions(compiled[dtype][name], r"fma")


def test_philox_is_one_multiply_a_product(compiled):
    """Twenty products a call, each one instruction for both halves."""
    code = compiled["float32"]["lanes apply"]
    assert len(instructions(code, r"mul\.wide\.u32")) == 20
    assert len(instructions(code, r"mul\.(lo|hi)\.")) <= 4


@pytest.mark.parametrize("name", ["bits_lanes", "bits_anywhere"])
def test_bits_kernels_use_no_local_memory(compiled, name):
    code = compiled["float32"][name]
    assert "0 bytes stack frame, 0 bytes spill stores" in code["log"]
    assert not instructions(code, r"\S*\.f64")


def test_the_rule_compiles_in_users_kernels(compiled):
    assert "0 bytes stack frame, 0 bytes spill stores" in compiled["user"]["log"]
    assert not instructions(compiled["user"], "call")
