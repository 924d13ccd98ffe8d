"""The Numba backend on the CPU against the reference backend and the answer file, to the bit."""

import doctest
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd

numba = pytest.importorskip("numba", reason="numba is not installed")

from fastdrop import numba as rule  # noqa: E402
from fastdrop.backends import numba_cpu, reference  # noqa: E402
from fastdrop.backends.numba_cpu import parts  # noqa: E402
from fastdrop.operations import OPERATIONS  # noqa: E402

pytestmark = pytest.mark.slow
ANSWERS = json.loads((Path(__file__).parent / "data" / "stream-v1.json").read_text())
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def dtype_of(name):
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)


@pytest.fixture(autouse=True)
def _two_threads():
    with fd.threads(2):
        yield


def bits_of(array):
    """The array's memory as integers, NaNs made one."""
    array = np.where(array != array, array.dtype.type("nan"), array)
    return array.view(f"u{array.itemsize}")


def made_mask(case):
    """The mask of an answer: a slice of a longer one where the answer starts at an offset."""
    offset, n = case["offset"], case["n"]
    return fd.Mask._make(case["seed"], case["stream"], (n,), float(case["p"]), offset=offset)


def masks(rng):
    """Masks of every kind with an x shape that they broadcast to."""
    p_row = rng.random(5)
    yield fd.mask(10, 0.3, rng=1), (10,)
    yield fd.mask((), 0.3, rng=1), ()
    yield fd.mask((3, 70_001), 0.1, rng=2), (3, 70_001)
    yield fd.mask((3, 70_001), 0.1, rng=2)[1:, 5:69_000], (2, 68_995)
    yield fd.mask((40, 50, 60), 0.5, rng=3)[3:, 7, 5:], (37, 55)
    yield fd.mask((40, 50, 60), 0.5, rng=3)[:, :, 11], (40, 50)
    yield fd.mask((5, 7, 1, 1), 0.4, rng=4), (5, 7, 9, 11)
    yield fd.mask((1, 7, 1, 11), 0.4, rng=4), (5, 7, 9, 11)
    yield fd.mask((1,), 0.4, rng=5), (3, 100)
    yield fd.mask((5, 1000), p_row, rng=6), (5, 1000)
    yield fd.mask((5, 1, 30), p_row, rng=6), (2, 5, 40, 30)
    yield fd.mask((5, 6), rng.random((5, 6)), rng=6), (5, 6)
    yield fd.mask((5, 6), rng.random((5, 6)), rng=6)[1:4, 2:], (3, 4)
    yield fd.mask((9, 9), 0.0, rng=7), (9, 9)
    yield fd.mask((9, 9), 1.0, rng=7), (9, 9)
    yield fd.mask((300,), 1 - 2**-32, rng=7), (300,)
    yield fd.Mask.from_keep(rng.random((30, 40)) < 0.5, 0.5), (30, 40)
    yield fd.Mask.from_keep(rng.random((30, 40)) < 0.5, 0.5)[3:9, 5:], (6, 35)
    yield fd.Mask.from_keep(rng.random((30, 1)) < 0.5, rng.random(30)), (30, 40)
    yield fd.Mask._make(3, 4, (5000,), 0.25, offset=2**64 - 5000), (5000,)


@pytest.mark.parametrize("case", ANSWERS["masks"], ids=lambda c: f"p{c['p']}-n{c['n']}-at{c['offset']}")
def test_backend_gives_the_answers(case):
    mask = made_mask(case)
    out = np.empty((case["n"] + 7) // 8, np.uint8)
    numba_cpu.keep_bits(out, mask)
    assert out.tobytes().hex() == case["bits"]
    keep = np.empty(case["n"], np.bool_)
    numba_cpu.keep(keep, mask)
    assert keep.sum() == case["kept"]
    x = np.ones(case["n"], np.float32)
    numba_cpu.apply(x, x, mask)
    np.testing.assert_array_equal(x != 0, keep)


@pytest.mark.parametrize("case", ANSWERS["masks"], ids=lambda c: f"p{c['p']}-n{c['n']}-at{c['offset']}")
def test_scalar_rule_gives_the_answers_compiled_and_plain(case):
    want = np.unpackbits(np.frombuffer(bytes.fromhex(case["bits"]), np.uint8), bitorder="little")[: case["n"]]
    seed, stream, t = np.uint64(case["seed"]), np.uint64(case["stream"]), np.uint64(case["threshold"])
    assert rule.threshold(case["p"]) == t

    @numba.njit
    def three_ways(out, seed, stream, first, t):
        for i in range(out.shape[1]):
            at = first + np.uint64(i)
            out[0, i] = rule.keep(seed, stream, at, t)
            out[1, i] = (rule.keep_bits64(seed, stream, at >> np.uint64(6), t) >> (at & np.uint64(63))) & np.uint64(1)
            call = (at >> np.uint64(8)) * np.uint64(16) + ((at >> np.uint64(2)) & np.uint64(15))
            bit = np.uint64(4) * ((at >> np.uint64(6)) & np.uint64(3)) + (at & np.uint64(3))
            out[2, i] = (np.uint64(rule.keep_lane(seed, stream, call, t)) >> bit) & np.uint64(1)

    got = np.empty((3, case["n"]), np.uint8)
    three_ways(got, seed, stream, np.uint64(case["offset"]), t)
    np.testing.assert_array_equal(got, np.broadcast_to(want, got.shape))
    plain = [rule.keep(case["seed"], case["stream"], (case["offset"] + i) % 2**64, t) for i in range(20)]
    np.testing.assert_array_equal(plain[: case["n"]], want[:20])


def test_uniforms_are_the_answers():
    compiled = numba.njit(lambda seed, stream, index: rule.uniform32(seed, stream, index))
    for case in ANSWERS["uniforms"]:
        where = np.uint64(case["seed"]), np.uint64(case["stream"]), np.uint64(case["index"])
        assert compiled(*where) == rule.uniform32(*where) == case["U"]


@pytest.mark.parametrize("p", [0.0, 2**-33, 0.1, 0.5, 0.9, 1 - 2**-33, 1.0])
def test_threshold_and_scale_are_the_reference_s(p):
    both = numba.njit(lambda p: (rule.threshold(p), rule.scale(p)))
    want = rule.threshold(p), fd.mask(1, p, rng=0).scale
    assert both(p) == (rule.threshold(p), rule.scale(p)) == want


@pytest.mark.parametrize("p", [float("nan"), -0.1, 1.5, float("inf"), -1, 2])
def test_p_that_is_no_probability_is_refused(p):
    for function in rule.threshold, rule.scale:
        for call in function, numba.njit(lambda p, function=function: function(p)):
            with pytest.raises(ValueError, match="p must be at least 0 and at most 1"):
                call(p)


def test_threshold_of_a_float32_is_that_of_the_same_double():
    p = np.float32(0.1)
    assert rule.threshold(p) == numba.njit(lambda p: rule.threshold(p))(p) == rule.threshold(float(p))


CALLS = [
    lambda x: rule.keep(1, 2, 3, x), lambda x: rule.keep(1, 2, x, 3), lambda x: rule.keep(1, x, 2, 3),
    lambda x: rule.keep(x, 1, 2, 3), lambda x: rule.keep_lane(1, 2, 3, x), lambda x: rule.keep_lane(1, 2, x, 3),
    lambda x: rule.keep_bits64(1, 2, 3, x), lambda x: rule.keep_bits64(1, 2, x, 3), lambda x: rule.uniform32(1, 2, x),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_p_in_the_place_of_an_integer_is_refused(call):
    wanted = r"the threshold threshold\(p\) and not p, got "
    with pytest.raises(TypeError, match=wanted + "0.3"):
        call(0.3)
    with pytest.raises(numba.core.errors.TypingError, match=wanted + "float64"):
        numba.njit(call)(0.3)
    for x in 5, np.int32(5), np.uint64(5):
        assert numba.njit(call)(x) == call(x)


@pytest.mark.parametrize("index", range(20))
@pytest.mark.parametrize("name", DTYPES)
def test_every_mask_on_every_dtype_is_the_reference(name, index):
    mask, shape = list(masks(np.random.default_rng(0)))[index]
    x = np.asarray(np.random.default_rng(1).standard_normal(shape)).astype(dtype_of(name))
    x.reshape(-1)[::7] = np.nan
    x.reshape(-1)[::11] = np.inf
    want, got = np.empty_like(x), np.full_like(x, 9)
    reference.apply(want, x, mask)
    numba_cpu.apply(got, x, mask)
    np.testing.assert_array_equal(bits_of(got), bits_of(want))
    numba_cpu.apply(x, x, mask)
    np.testing.assert_array_equal(bits_of(x), bits_of(want))


@pytest.mark.parametrize("index", range(20))
def test_decisions_of_every_mask_are_the_reference_s(index):
    mask, _ = list(masks(np.random.default_rng(0)))[index]
    want, got = np.empty(mask.shape, np.bool_), np.zeros((*mask.shape, 2), np.bool_)[..., 0]
    reference.keep(want, mask)
    numba_cpu.keep(got, mask)
    np.testing.assert_array_equal(got, want)
    packed = np.full((mask.size + 7) // 8, 0xFF, np.uint8)
    numba_cpu.keep_bits(packed, mask)
    np.testing.assert_array_equal(packed, np.packbits(want, axis=None, bitorder="little"))


@pytest.mark.parametrize("name", DTYPES)
def test_memory_layout_changes_nothing(name):
    base = np.random.default_rng(2).standard_normal((12, 14, 16)).astype(dtype_of(name))
    for x in (base.T, base[::-1, ::2], base[:, 3, ::-1], np.broadcast_to(base[0, 0], (5, 16)), base.transpose(1, 0, 2)):
        mask = fd.mask(x.shape, 0.3, rng=9)
        want = np.empty(x.shape, x.dtype)
        reference.apply(want, np.ascontiguousarray(x), mask)
        for y in (np.empty_like(x), np.empty(x.shape, x.dtype), np.empty((*x.shape, 3), x.dtype)[..., 1][..., ::-1]):
            numba_cpu.apply(y, x, mask)
            np.testing.assert_array_equal(bits_of(y), bits_of(want))


EXACT = [op for op in OPERATIONS if not OPERATIONS[op].tolerance]
PAIRS = [  # a kernel is a formula between two conversions: apply has every conversion, the others two each, in turn
    (name, op) for i, op in enumerate(EXACT) for j, name in enumerate(DTYPES) if op == "apply" or (i + j) % 2
]


@pytest.mark.parametrize(("name", "op"), PAIRS)
def test_operations_are_the_reference(name, op):
    rng = np.random.default_rng(3)
    x, b, c = rng.standard_normal((3, 60, 71)).astype(dtype_of(name))
    x[::5, ::7] = np.nan
    x[1::5, ::3] = -0.0
    mask, others = fd.mask(x.shape, 0.3, rng=4), (b, c)[: len(OPERATIONS[op].inputs) - 1]
    turned, shared = [other[::-1] for other in others], [np.broadcast_to(other[0], x.shape) for other in others]
    for inputs in ((x, *others), (np.asfortranarray(x), *others), (x, *turned), (x, *shared)):
        want, got = np.empty_like(inputs[0]), np.empty_like(inputs[0])
        reference.elementwise(op, want, inputs, mask)
        numba_cpu.elementwise(op, got, inputs, mask)
        np.testing.assert_array_equal(bits_of(got), bits_of(want))
        copy = inputs[0].copy(order="K")
        numba_cpu.elementwise(op, copy, (copy, *inputs[1:]), mask)
        np.testing.assert_array_equal(bits_of(copy), bits_of(want))


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("p", [0.3, [0.1, 0.5, 0.9], 1.0])
def test_samples_are_the_reference(name, p):
    rng = np.random.default_rng(3)
    mask = fd.mask((3, 50, 101), p, rng=4)
    dy = rng.standard_normal((3, 50, 101)).astype(dtype_of(name))
    dy[0, ::5, ::7] = np.nan
    part = mask[:, 3:40, 5:]
    for m, all_x in ((mask, dy), (mask, np.asfortranarray(dy)), (part, dy[:, 3:40, 5:]), (mask, dy[:, ::-1])):
        for op, x in (("sample_mean", all_x[0]), ("sample_sum", all_x)):
            want, got = np.empty(m.shape[1:], dy.dtype), np.empty(m.shape[1:], dy.dtype)
            getattr(reference, op)(want, x, m)
            getattr(numba_cpu, op)(got, x, m)
            np.testing.assert_array_equal(bits_of(got), bits_of(want))


def test_gradient_of_a_broadcast_x_is_summed():
    mask = fd.mask((6, 5, 4), 0.5, rng=3)
    dy = np.random.default_rng(0).standard_normal((6, 5, 4))
    want, got = np.empty((1, 5, 1)), np.empty((1, 5, 1))
    reference.apply_sum(want, dy, mask)
    numba_cpu.apply_sum(got, dy, mask)
    np.testing.assert_allclose(got, want, rtol=1e-14)


def test_number_of_threads_changes_nothing():
    x = np.random.default_rng(0).standard_normal(300_001).astype(np.float32)
    mask = fd.mask(x.shape, 0.1, rng=0)
    results = []
    for n in (1, 2, 3, 7):
        with fd.threads(n):
            y = np.empty_like(x)
            numba_cpu.apply(y, x, mask)
            results.append(y)
    for y in results[1:]:
        np.testing.assert_array_equal(y, results[0])


def test_several_python_threads_may_call():
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    mask = fd.mask(x.shape, 0.1, rng=0)
    want = np.empty_like(x)
    reference.apply(want, x, mask)
    results = [np.empty_like(x) for _ in range(8)]
    callers = [threading.Thread(target=numba_cpu.apply, args=(y, x, mask)) for y in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for y in results:
        np.testing.assert_array_equal(y, want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_computes_too():
    code = """
        import os
        import numpy as np
        import fastdrop as fd
        fd.use_backend("numba")
        with fd.threads(3):
            x = np.ones(300_000, np.float32)
            mask = fd.mask(x.shape, 0.5, rng=0)
            want = mask.apply(x)
            child = os.fork()
            same = np.array_equal(mask.apply(x), want)
            if child == 0:
                os._exit(0 if same else 1)
            print("parent", same, "child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == ["parent", "True", "child", "0"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for an x86-64 instruction")
def test_loop_over_lanes_runs_as_vectors():
    """Scalar multiplies there would cost a factor of four, and nothing else would show it."""
    kernel = numba.njit(lambda words, block: numba_cpu.parts._bytes_of_blocks(words, block, 1, block, block, 0))
    kernel(np.empty(64, np.uint32), np.uint64(1))
    (code,) = kernel.inspect_asm().values()
    vectors = re.findall(r"vpmuludq.*%[yz]mm", code)
    assert len(vectors) >= 20


def test_package_import_leaves_numba_alone():
    """numba.cuda starts the driver and breaks fork; numba is half a second, wanted only where it is the backend."""
    code = "import sys, fastdrop; print(fastdrop.get_backend(), 'numba' in sys.modules, 'numba.cuda' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    backend, imported, cuda = done.stdout.split()
    assert imported == str(backend == "numba")
    assert cuda == "False"


@pytest.mark.parametrize("example", ["numba_fused", "cuda_fused"])
def test_example_agrees_with_numpy(example):
    """cuda_fused runs in Numba's simulator, for which numba-cuda must be there."""
    if example == "cuda_fused":
        pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    script = Path(__file__).parents[1] / "examples" / f"{example}.py"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": str(int(example == "cuda_fused"))}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    differences = [float(line.rpartition(" by ")[2]) for line in done.stdout.splitlines()]
    assert len(differences) >= 2
    assert max(differences) < 2e-6


def test_examples_of_the_rule_for_users_run():
    failed, tried = doctest.testmod(rule)
    assert tried >= 8
    assert failed == 0


def test_kernels_divide_by_zero_as_ieee_arithmetic_does():
    """Python's ZeroDivisionError would stop at the first row without a class."""
    assert parts.jit(lambda x: 1 / x)(0.0) == float("inf")
