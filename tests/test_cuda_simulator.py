"""Every CUDA kernel, run by Numba's simulator, against the reference backend: in a process of its own.

The simulator must be chosen before numba is first imported, so `test_in_its_own_process` runs this file again with
NUMBA_ENABLE_CUDASIM=1; there, and only there, the other tests run.
"""

import json
import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.dtypes import FLOATS
from fastdrop.operations import ACTIVATIONS, DIVERGENCES

pytestmark = pytest.mark.slow
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
ANSWERS = json.loads((Path(__file__).parent / "data" / "stream-v1.json").read_text())
DTYPES = list(FLOATS)

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

if SIMULATED:
    sys.setswitchinterval(2e-5)  # at a barrier all threads wait for one that polls and holds the interpreter
    from numba import cuda as device

    from fastdrop import cuda
    from fastdrop import numba as rule
    from fastdrop.backends import reference
    from fastdrop.borders import cuda as arrays
else:

    def test_in_its_own_process():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]

    def test_benchmark_runs_in_the_simulator(tmp_path):
        """bench/gpu.py proves equality with the CPU before it times anything; here its times mean nothing."""
        script = Path(__file__).parents[1] / "bench" / "gpu.py"
        command = [sys.executable, script, "--out", tmp_path / "gpu.json"]
        environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "equal to the CPU bit by bit" in done.stdout
        what = {row["what"] for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]}
        assert what == {"copy", "forward", "forward + backward", "bias + dropout + residual", "r_drop"}


if SIMULATED:

    def dtype_of(name):
        return np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)

    def put(array):
        return device.to_device(np.array(array, order="C"))

    def got(array):
        return array.copy_to_host()

    def same_bits(a, b):
        a, b = (np.where(x != x, x.dtype.type("nan"), x).view(f"u{x.itemsize}") for x in (a, b))
        np.testing.assert_array_equal(a, b)

    def random(shape, name="float32", seed=0):
        x = np.asarray(np.random.default_rng(seed).standard_normal(shape)).astype(dtype_of(name))
        x.reshape(-1)[::37] = np.inf
        return x

    @pytest.fixture(autouse=True)
    def _numpy_s_scalars():
        """The plain rule must not even warn of overflow; what overflows in the floats is part of the test data."""
        with warnings.catch_warnings(), np.errstate(all="ignore", over="warn"):
            warnings.simplefilter("error")
            yield

    # -- masks and dropout: to the bit ---------------------------------------------------------------------------------

    @pytest.mark.parametrize("case", ANSWERS["masks"], ids=lambda c: f"p{c['p']}-n{c['n']}-at{c['offset']}")
    def test_packed_bits_are_the_answers(case):
        mask = fd.Mask._make(case["seed"], case["stream"], (case["n"],), float(case["p"]), offset=case["offset"])
        packed = got(cuda.bits(mask, like=put(np.zeros(1, np.float32))))
        assert packed.tobytes().hex() == case["bits"]

    @pytest.mark.parametrize("name", DTYPES)
    @pytest.mark.parametrize("n", [1, 255, 256, 1000])
    @pytest.mark.parametrize("p", [0.5, 0.1])
    def test_dropout_is_the_reference(name, n, p):
        x = random(n, name)
        mask = fd.mask(n, p, rng=n)
        y, used = fd.dropout(put(x), mask=mask)
        want = np.empty_like(x)
        reference.apply(want, x, mask)
        assert used == mask
        same_bits(got(y), want)
        same_bits(got(fd.dropout_backward(put(x), mask)), want)
        in_place = put(x)
        assert mask.apply(in_place, in_place) is in_place
        same_bits(got(in_place), want)

    @pytest.mark.parametrize("name", ["float32", "bfloat16"])
    @pytest.mark.parametrize("offset", [3, 4, 8, 250, 2**36 - 100])
    def test_parts_of_a_mask_are_the_reference(name, offset):
        mask = fd.Mask._make(5, 6, (700,), 0.3, offset=offset)
        x = random(700, name)
        want = np.empty_like(x)
        reference.apply(want, x, mask)
        same_bits(got(mask.apply(put(x))), want)

    @pytest.mark.parametrize(
        ("mask_shape", "key", "x_shape", "p"),
        [
            ((4, 3, 1, 1), (), (4, 3, 2, 5), 0.4),
            ((1, 3, 1, 5), (), (4, 3, 2, 5), 0.4),
            ((5,), (), (4, 3, 2, 5), 0.4),
            ((6, 40), (slice(2, 5), slice(3, 33)), (3, 30), 0.4),
            ((6, 5, 7), (slice(None), 2), (6, 7), 0.4),
            ((3, 40), (), (3, 40), [0.1, 0.5, 0.9]),
            ((3, 1, 4), (), (2, 3, 5, 4), [0.0, 0.5, 1.0]),
            ((), (), (7,), 0.5),
            ((9,), (), (9,), 0.0),
            ((9,), (), (9,), 1.0),
        ],
    )
    def test_broadcast_masks_slices_and_array_p(mask_shape, key, x_shape, p):
        mask = fd.mask(mask_shape, p, rng=3)[key]
        x = random(x_shape)
        want = np.empty_like(x)
        reference.apply(want, x, mask)
        same_bits(got(mask.apply(put(x))), want)

    def test_any_strides():
        base = random((6, 10, 8))
        for x in (base.T, base[::2, ::-1], base[:, 3, ::-1], np.broadcast_to(base[0, 0], (4, 8))):
            mask = fd.mask(x.shape, 0.3, rng=9)
            want = np.empty(x.shape, x.dtype)
            reference.apply(want, np.ascontiguousarray(x), mask)
            y = np.zeros((*x.shape, 2), np.float32)[..., 1]
            mask.apply(type(put(base))(x), type(put(base))(y))
            same_bits(y, want)

    def test_sliced_bits():
        mask = fd.mask((6, 40), 0.4, rng=3)[2:5, 3:33]
        packed = got(cuda.bits(mask, like=put(np.zeros(1, np.float32))))
        keep = np.empty(mask.shape, np.bool_)
        reference.keep(keep, mask)
        np.testing.assert_array_equal(packed, np.packbits(keep, axis=None, bitorder="little"))

    def test_mask_shape_and_training():
        x = random((4, 6))
        y, mask = fd.dropout(put(x), 0.5, rng=1, mask_shape=(None, 1))
        assert mask.shape == (4, 1)
        same_bits(got(y), fd.dropout(x, mask=mask)[0])
        given = put(x)
        assert fd.dropout(given, 0.5, training=False)[0] is given

    # -- fused ---------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", DTYPES)
    @pytest.mark.parametrize("shape", [(3, 200), (5, 64), (40, 13), (700,)])
    def test_dropout_add_rounds_three_times(name, shape):
        with_bias = len(shape) > 1
        x, r = random(shape, name), random(shape, name, 1)
        bias = random(shape[-1:], name, 2) if with_bias else None
        wide = np.float64 if name == "float64" else np.float32
        y, mask = fd.dropout_add(put(x), put(r), 0.3, bias=put(bias) if with_bias else None, rng=4)
        with np.errstate(all="ignore"):
            value = x.astype(wide) + bias.astype(wide) if with_bias else x.astype(wide)
            kept = np.where(mask.keep(), value * wide(mask.scale), wide(0))
            want = (kept + r.astype(wide)).astype(x.dtype)
        same_bits(got(y), want)

    @pytest.mark.parametrize("name", DTYPES)
    def test_bias_gradient(name):
        dy = np.random.default_rng(0).standard_normal((300, 9)).astype(dtype_of(name))
        mask = fd.mask((300, 9), 0.3, rng=4)
        dx, db = fd.dropout_add_backward(put(dy), mask, bias_shape=(9,))
        masked = mask.apply(dy)
        same_bits(got(dx), masked)
        want = masked.astype(np.float64).sum(0)
        rounding = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 2e-1}[name]
        np.testing.assert_allclose(got(db).astype(np.float64), want, atol=rounding)

    @pytest.mark.parametrize("name", DTYPES)
    @pytest.mark.parametrize(("n", "p"), [(256, 0.3), (101, 0.3), (64, [0.1, 0.3, 0.5])])
    def test_multi_sample_mean(name, n, p):
        x = np.random.default_rng(0).standard_normal(n).astype(dtype_of(name))
        y, mask = fd.multi_sample_mean(put(x), p, 3, rng=2)
        assert mask.shape == (3, n)
        want = np.empty_like(x)
        reference.sample_mean(want, x, mask)
        same_bits(got(y), want)
        np.testing.assert_array_equal(got(fd.multi_sample_mean_backward(put(x), mask)), got(y))

    def softmax(scores, allowed=None):
        scores = scores.astype(np.float64)
        if allowed is not None:
            scores = np.where(allowed, scores, -np.inf)
        top = scores.max(-1, keepdims=True)
        e = np.exp(scores - np.where(np.isfinite(top), top, 0))
        whole = e.sum(-1, keepdims=True)
        return np.divide(e, whole, out=np.zeros_like(e), where=whole > 0)

    @pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
    @pytest.mark.parametrize("attention", [None, "allow", "add"])
    def test_softmax_dropout_and_its_gradient(name, attention):
        shape = (2, 3, 37)
        rng = np.random.default_rng(0)
        scores = rng.standard_normal(shape).astype(dtype_of(name))
        allowed = extra = None
        if attention:
            allowed = rng.random((2, 1, 37)) < 0.7
            allowed[1] = False
            extra = allowed if attention == "allow" else np.where(allowed, 0, -np.inf)
            extra = put(extra.astype(bool if attention == "allow" else "f8" if name == "float64" else "f4"))
        y, mask, saved = fd.softmax_dropout(put(scores), 0.3, attention_mask=extra, rng=5)
        p = softmax(scores, allowed)
        keep = np.asarray(mask)
        rounding = {"float64": 1e-14, "float32": 1e-6, "bfloat16": 1e-2}[name]
        np.testing.assert_allclose(got(y).astype(np.float64), p * keep, rtol=rounding)
        dy = rng.standard_normal(shape).astype(dtype_of(name))
        g = dy.astype(np.float64) * keep
        want = p * (g - (g * p).sum(-1, keepdims=True))
        ds = fd.softmax_dropout_backward(put(dy), put(scores), saved, mask, attention_mask=extra)
        np.testing.assert_allclose(got(ds).astype(np.float64), want, rtol=rounding * 10, atol=rounding)

    # -- losses --------------------------------------------------------------------------------------------------------

    def log_softmax(a):
        a = a.astype(np.float64)
        top = a.max(-1, keepdims=True)
        return a - top - np.log(np.exp(a - top).sum(-1, keepdims=True))

    @pytest.mark.parametrize(
        ("name", "reduction"),
        [("float32", r) for r in ("none", "sum", "mean", "batchmean")] + [(name, "mean") for name in DTYPES[1:]],
    )
    @pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (2.0, 0.1)])
    def test_r_drop_is_the_cpu_s(name, reduction, temperature, smoothing):
        rng = np.random.default_rng(1)
        a, b = rng.standard_normal((2, 6, 40)).astype(dtype_of(name))
        a[2, :3] = b[2, :3] = -np.inf if smoothing == 0 else 0
        labels = np.array([0, 4, 9, -100, 39, 3])
        pad = np.array([False, True, False, False, False, False])
        options = {
            "alpha": 0.7, "reduction": reduction, "label_smoothing": smoothing, "temperature": temperature,
        }  # fmt: skip
        with np.errstate(all="ignore"):
            want = fd.r_drop(a, b, labels, pad_mask=pad, **options)
            kl = fd.symmetric_kl(a, b, pad_mask=pad, reduction=reduction, temperature=temperature)
        result = fd.r_drop(put(a), put(b), put(labels), pad_mask=put(pad), **options)
        rtol = 1e-12 if name == "float64" else 2e-6
        np.testing.assert_allclose(got(result.loss), want.loss, rtol=rtol)
        np.testing.assert_allclose(got(result.ce), want.ce, rtol=rtol)
        np.testing.assert_allclose(got(result.kl), want.kl, rtol=rtol)
        rounding = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[name]
        both = fd.symmetric_kl(put(a), put(b), pad_mask=put(pad), reduction=reduction, temperature=temperature)
        np.testing.assert_allclose(got(both[0]), kl[0], rtol=rtol)
        for grad, right in ((result.da, want.da), (result.db, want.db), (both[1], kl[1]), (both[2], kl[2])):
            right = right.astype(np.float64)
            np.testing.assert_allclose(
                got(grad).astype(np.float64), right, rtol=rounding, atol=rounding * abs(right).max()
            )

    @pytest.mark.parametrize("gap", [1.0, 1e-3])
    def test_symmetric_kl_of_near_equal_logits_keeps_its_digits(gap):
        rng = np.random.default_rng(1)
        a = rng.standard_normal((3, 300)).astype(np.float32)
        b = (a + gap * rng.standard_normal((3, 300))).astype(np.float32)
        la, lb = log_softmax(a), log_softmax(b)
        want = ((np.exp(la) - np.exp(lb)) * (la - lb)).sum(-1) / 2
        loss, _, _ = fd.symmetric_kl(put(a), put(b), reduction="none")
        np.testing.assert_allclose(got(loss), want, rtol=2e-6)

    @pytest.mark.parametrize(("name", "case"), [*(("float32", case) for case in range(12)), ("float64", 3)])
    def test_losses_of_hard_rows(name, case, hard_pairs, exact_losses):
        a, b = hard_pairs(name)[case]
        label = 3 * (case % 2)
        kl = fd.symmetric_kl(put(a[None]), put(b[None]), reduction="none")
        result = fd.r_drop(put(a[None]), put(b[None]), put(np.array([label])), alpha=0.0, reduction="none")
        results = [got(one).ravel() for one in (*kl, result.ce, result.da, result.db)]
        for i, (right, found) in enumerate(zip(exact_losses(a, b, label), results, strict=True)):
            bound = 1e-10 if name == "float64" else 1.5e-6 if i in (0, 3) else 1e-5  # gradients: eps * spread
            assert abs(found - right).max() <= bound * abs(right).max() + (1e-44 if name == "float32" else 0)

    @pytest.mark.parametrize("at", [0, 3])
    def test_a_nan_in_a_row_makes_its_losses_nan_and_no_other_s(at):
        a = np.array([[0.0, 80, 1, -np.inf]] * 3, np.float32)
        b = a.copy()
        b[1, at] = np.nan
        nan = [False, True, False]
        for alpha in 0.0, 1.0:
            result = fd.r_drop(put(a), put(b), put(np.array([2, 2, 2])), alpha=alpha, reduction="none")
            np.testing.assert_array_equal(np.isnan(got(result.ce)), nan)
            np.testing.assert_array_equal(np.isnan(got(result.loss)), nan)
            np.testing.assert_array_equal(np.isnan(got(result.db)).all(axis=1), nan)
        np.testing.assert_array_equal(np.isnan(got(fd.symmetric_kl(put(a), put(b), reduction="none")[0])), nan)
        np.testing.assert_array_equal(np.isnan(got(fd.softmax_dropout(put(b), 0.0, rng=0)[0])).any(axis=1), nan)

    def test_huge_numbers_are_numbers():
        low = np.finfo(np.float32).min
        equal = put(np.full((1, 3), low, np.float32))
        loss, da, _ = fd.symmetric_kl(equal, put(np.zeros((1, 3), np.float32)))
        assert got(loss) == 0
        assert not got(da).any()
        loss = fd.r_drop(equal, equal, put(np.array([1])), alpha=1.0).loss
        np.testing.assert_allclose(got(loss), np.log(3), rtol=1e-6)
        one = put(np.array([[1, low]], np.float32))
        result = fd.r_drop(one, one, put(np.array([0])), alpha=1.0)
        assert got(result.loss) == 0
        assert not got(result.da).any()

    def test_hard_logits_give_no_nan():
        a = np.array([[1e4, -1e4, 0], [-np.inf, 1, 2], [5, 5, 5]], np.float32)
        b = np.array([[9e3, -1e4, 0], [-np.inf, 2, 1], [5, 5, 5]], np.float32)
        loss, da, db = fd.symmetric_kl(put(a), put(b), reduction="none")
        assert np.isfinite(got(loss)).all()
        assert np.isfinite(got(da)).all()
        assert np.isfinite(got(db)).all()
        assert got(da)[1, 0] == got(db)[1, 0] == got(loss)[2] == 0
        b[1, 0] = 0  # allowed on one side only
        loss, da, db = fd.symmetric_kl(put(a), put(b), reduction="none")
        assert got(loss)[1] == np.inf
        assert (got(da)[1] == 0).all()
        assert (got(db)[1] == 0).all()
        one = np.ones((2, 1), np.float32)
        loss, da, _ = fd.symmetric_kl(put(one), put(one * 3))
        assert got(loss) == 0
        assert (got(da) == 0).all()

    def test_rows_all_ignored_and_a_label_that_is_no_class():
        a = random((2, 4)) * 0 + 1
        a[~np.isfinite(a)] = 1
        none = fd.r_drop(put(a), put(a), put(np.array([-100, -100])), alpha=1.0)
        assert got(none.loss) == 0
        assert (got(none.da) == 0).all()
        wrong = fd.r_drop(put(a), put(a), put(np.array([0, 7])), alpha=1.0, reduction="none")
        np.testing.assert_array_equal(np.isnan(got(wrong.loss)), [False, True])

    # -- users' own kernels --------------------------------------------------------------------------------------------

    def test_rule_in_a_user_s_kernel():
        @device.jit
        def kernel(out, seed, stream, threshold):
            i = device.grid(1)
            if i < out.shape[0]:
                out[i] = rule.keep(seed, stream, i, threshold)

        out = put(np.zeros(300, np.uint8))
        mask = fd.mask(300, 0.1, rng=fd.Rng(42, 7))
        kernel[3, 128](out, np.uint64(42), np.uint64(7), rule.threshold(0.1))
        np.testing.assert_array_equal(got(out), mask.keep())

    # -- bad input -----------------------------------------------------------------------------------------------------

    def test_bad_input_is_named():
        mask = fd.mask(8, 0.5, rng=0)
        x = put(np.ones(8, np.float32))
        with pytest.raises(TypeError, match="x must be a device array, got a ndarray in host memory"):
            cuda.apply(mask, np.ones(8, np.float32))
        with pytest.raises(TypeError, match="out must lie in CUDA memory, got a ndarray in CPU memory"):
            mask.apply(x, np.ones(8, np.float32))
        with pytest.raises(TypeError, match=r"x must be float16.* got dtype int32"):
            mask.apply(put(np.ones(8, np.int32)))
        with pytest.raises(TypeError, match="out must be float32, got dtype float64"):
            mask.apply(x, put(np.ones(8)))
        with pytest.raises(ValueError, match=r"out must have shape \(8,\), got \(7,\)"):
            mask.apply(x, put(np.ones(7, np.float32)))
        with pytest.raises(ValueError, match=r"x of shape \(9,\) does not broadcast with the mask's shape \(8,\)"):
            mask.apply(put(np.ones(9, np.float32)))
        memory = np.zeros(12, np.float32)
        fake = type(x)
        with pytest.raises(ValueError, match="out must be x itself or not overlap"):
            mask.apply(fake(memory[:8]), fake(memory[2:10]))
        odd = np.zeros(40, np.uint8)[1:33].view(np.float32)
        with pytest.raises(ValueError, match="aligned to its 4-byte elements"):
            mask.apply(fake(odd))
        frozen = np.ones(8, np.float32)
        frozen.flags.writeable = False
        with pytest.raises(ValueError, match="writable"):
            mask.apply(x, fake(frozen))
        with pytest.raises(ValueError, match=r"residual of shape \(7,\) must broadcast to \(8,\)"):
            fd.dropout_add(x, put(np.ones(7, np.float32)), 0.5)
        with pytest.raises(ValueError, match=r"alpha must be at least 0 and finite, got -1"):
            fd.r_drop(x, x, x, alpha=-1)
        with pytest.raises(ValueError, match="reduction must be one of"):
            fd.symmetric_kl(x, x, reduction="average")
        with pytest.raises(ValueError, match="samples must be an integer of at least 1"):
            fd.multi_sample_mean(x, 0.5, 0)
        with pytest.raises(TypeError, match="stream must be a CUDA stream"):
            cuda.apply(mask, x, stream="fast")

    def test_a_call_that_raises_takes_no_mask():
        rng, x, short = fd.Rng(3), put(np.ones(8, np.float32)), put(np.ones(7, np.float32))
        for call in (fd.dropout, fd.softmax_dropout):
            with pytest.raises(ValueError, match="out must have shape"):
                call(x, 0.5, rng=rng, out=short)
        with pytest.raises(ValueError, match=r"residual of shape \(7,\) must broadcast to \(8,\)"):
            fd.dropout_add(x, short, 0.5, rng=rng)
        with pytest.raises(ValueError, match="out must have shape"):
            cuda.multi_sample_mean(x, 0.5, 2, rng=rng, out=short)
        assert rng.stream == 0

    def test_wrong_device_is_named(monkeypatch):
        x, residual = put(np.ones(8, np.float32)), put(np.ones(8, np.float32))
        describe = arrays._Simulated.describe

        def elsewhere(self, x, name, stream):
            array = describe(self, x, name, stream)
            array.device = int(name == "residual")
            return array

        monkeypatch.setattr(arrays._Simulated, "describe", elsewhere)
        with pytest.raises(ValueError, match="residual must lie on device 0, got device 1"):
            fd.dropout_add(x, residual, 0.5)

    def test_what_is_not_there_is_named():
        x = put(np.ones((2, 4), np.float32))
        mask = fd.mask((2, 6), 0.5, rng=0)
        with pytest.raises(ValueError, match=r"axis must be the last one on the device, got 0 for shape \(2, 4\)"):
            fd.softmax_dropout(x, 0.5, axis=0)
        with pytest.raises(ValueError, match="mask must be no part of another on the device for this"):
            fd.softmax_dropout(x, mask=mask[:, 1:5], p=None)
        for function in (getattr(fd, name) for name in DIVERGENCES if name not in cuda.__all__):
            with pytest.raises(TypeError, match=rf"{function.__name__} is not there for arrays in CUDA memory"):
                function(x, x)
        with pytest.raises(TypeError, match="cross_entropy is not there for arrays in CUDA memory"):
            fd.cross_entropy(x, [0, 1])
        with pytest.raises(TypeError, match="multi_sample_linear is not there for arrays in CUDA memory"):
            fd.multi_sample_linear(x, x, None, 0.5, 2)
        with pytest.raises(TypeError, match="mc_dropout is not there for arrays in CUDA memory"):
            fd.mc_dropout(lambda x, sample: x, x, 2)
        with pytest.raises(TypeError, match="max_norm_ is not there for arrays in CUDA memory"):
            fd.max_norm_(x, 1.0)
        with pytest.raises(TypeError, match="residual must lie in CPU memory, got a FakeCUDAArray in CUDA memory"):
            fd.dropout_add(np.ones((2, 4), np.float32), x)
        with pytest.raises(TypeError, match="out must lie in CPU memory, got a FakeCUDAArray in CUDA memory"):
            fd.dropout(np.ones((2, 4), np.float32), out=x)
        with pytest.raises(TypeError, match="dtype must not be given for a device array"):
            fd.dropout(x, 0.5, dtype="float32")
        turned = type(x)(np.ones((4, 2), np.float32).T)
        with pytest.raises(ValueError, match="a must be C-contiguous here"):
            fd.symmetric_kl(turned, x)
        with pytest.raises(ValueError, match="p must be one number or one for each of 2 samples"):
            fd.multi_sample_mean(x, [0.1, 0.2, 0.3], 2)

    def test_out_that_cannot_be_written_to_is_named():
        x = put(np.ones((2, 4), np.float32))
        wide = type(x)(np.lib.stride_tricks.as_strided(np.ones(4, np.float32), (2, 4), (0, 4)))
        with pytest.raises(ValueError, match=r"out must have a place for each element, got steps \(0, 1\)"):
            fd.dropout(x, 0.5, out=wide)
        a, b, labels = put(np.ones((2, 4), np.float32)), put(np.ones((2, 4), np.float32)), put(np.zeros(2, np.int64))
        with pytest.raises(ValueError, match=r"out\[0\] must not overlap b"):
            fd.r_drop(a, b, labels, alpha=1, out=(b, a))
        with pytest.raises(TypeError, match="out must be a pair of arrays"):
            fd.symmetric_kl(a, b, out=a)
        with pytest.raises(TypeError, match="out must lie in CUDA memory, got a ndarray in CPU memory"):
            fd.dropout(x, 0.5, out=np.ones((2, 4), np.float32))
        with pytest.raises(TypeError, match="labels must lie in CUDA memory, got a ndarray in CPU memory"):
            fd.r_drop(a, b, np.zeros(2, np.int64), alpha=1)

    @pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), ()])
    def test_empty_and_0d_arrays(shape):
        on_host = np.full(shape, 3.0, np.float32)
        x = put(on_host)
        mask = fd.mask(shape, 0.5, rng=0)
        for y in (
            mask.apply(x), mask.backward(x), fd.dropout(x, 0.5, rng=0)[0], fd.relu_dropout(x, mask=mask)[0],
            fd.gelu_dropout_backward(x, x, mask), fd.dropout_add(x, x, mask=mask)[0],
        ):  # fmt: skip
            assert got(y).shape == shape
        np.testing.assert_array_equal(got(mask.apply(x)), mask.apply(on_host))
        assert got(fd.multi_sample_dropout(x, 0.5, 2, rng=0)[0]).shape == (2, *shape)
        np.testing.assert_array_equal(
            got(fd.multi_sample_mean(x, 0.5, 2, rng=0)[0]), fd.multi_sample_mean(on_host, 0.5, 2, rng=0)[0]
        )
        np.testing.assert_array_equal(
            got(fd.dropout_add_backward(x, mask, bias_shape=shape[-1:])[1]),
            fd.dropout_add_backward(on_host, mask, bias_shape=shape[-1:])[1],
        )
        if shape:
            y, _, saved = fd.softmax_dropout(x, mask=mask, p=None)
            assert got(y).shape == got(fd.softmax_dropout_backward(x, x, saved, mask)).shape == shape
        if shape == (0, 3):
            result = fd.r_drop(x, x, put(np.zeros(0, np.int64)), alpha=1.0)
            assert got(result.loss) == got(result.kl) == 0
            assert got(result.da).shape == shape

    # -- the public functions on everything that goes element by element -----------------------------------------------

    MASKS = {
        "plain": ((3, 40), 0.3),
        "p for each row": ((3, 40), [0.1, 0.5, 0.9]),
        "p for each element": ((3, 2), [[0.0, 0.5], [0.5, 1.0], [0.2, 0.7]]),
        "shared": ((1, 40), 0.3),
        "a decision for each row": ((3, 1), 0.5),
    }

    def masks_for(kind):
        shape, p = MASKS[kind]
        mask = fd.mask(shape, p, rng=fd.Rng(2**63 + 5, 2**40))
        return [mask, mask.stored(), fd.mask((5, 60), 0.3, rng=8)[1 : 1 + shape[0], 7 : 7 + shape[1]]]

    def calls(mask, x, other, row):
        """(name, result) of each elementwise function of the package, on the host or on the device."""
        wide = x[:, : mask.shape[1]] if 1 < mask.shape[1] < 40 else x
        other = other[:, : wide.shape[1]]
        yield mask.apply(wide)
        yield mask.backward(wide)
        yield fd.dropout(wide, mask=mask)[0]
        yield fd.dropout_add(wide, other, mask=mask)[0]
        yield fd.dropout_add(wide, other, mask=mask, bias=row[: wide.shape[1]])[0]
        yield fd.dropout_add(wide, other[:1], mask=mask, bias=other[:, :1])[0]
        for name in (name for name, op in ACTIVATIONS.items() if not op.tolerance):
            yield getattr(fd, name)(wide, mask=mask)[0]
            yield getattr(fd, f"{name}_backward")(other, wide, mask)

    @pytest.mark.parametrize("kind", MASKS)
    @pytest.mark.parametrize("name", ["float32", "bfloat16"])
    def test_every_mask_in_every_elementwise_function(kind, name):
        x, other, row = random((3, 40), name), random((3, 40), name, 1), random(40, name, 2)
        for mask in masks_for(kind):
            found = calls(mask, put(x), put(other), put(row))
            with np.errstate(all="ignore"):
                wanted = list(calls(mask, x, other, row))
            for a, b in zip(found, wanted, strict=True):
                same_bits(got(a), b)

    @pytest.mark.parametrize("op", [op for op in ACTIVATIONS if ACTIVATIONS[op].tolerance])
    @pytest.mark.parametrize("name", DTYPES)
    def test_activations_are_the_cpu_s_within_their_tolerance(name, op):
        forward, backward = getattr(fd, op), getattr(fd, f"{op}_backward")
        x = np.linspace(-9, 9, 120).astype(dtype_of(name)).reshape(3, 40)
        dy = random((3, 40), name, 1)
        dy[~np.isfinite(dy)] = 1
        mask = fd.mask((3, 40), 0.3, rng=1)
        y = got(forward(put(x), mask=mask)[0]).astype(np.float64)
        dx = got(backward(put(dy), put(x), mask)).astype(np.float64)
        rounding = {"float64": 1e-15, "float32": 4e-7, "float16": 1e-3, "bfloat16": 8e-3}[name]
        atol = rounding * 1.5 * np.maximum(1, abs(x.astype(np.float64)))
        assert (abs(y - forward(x, mask=mask)[0].astype(np.float64)) <= atol).all()
        want = backward(dy, x, mask).astype(np.float64)
        assert (abs(dx - want) <= 4 * rounding * np.maximum(1, abs(want))).all()

    @pytest.mark.parametrize("name", DTYPES)
    def test_samples_apart_and_their_gradient(name):
        x = random((3, 13), name)
        for p in (0.4, [0.1, 0.5, 0.9, 0.0]):
            y, mask = fd.multi_sample_dropout(put(x), p, 4, rng=3)
            with np.errstate(all="ignore"):
                want, same = fd.multi_sample_dropout(x, p, 4, rng=3)
                gradient = fd.multi_sample_dropout_backward(want, mask)
            assert mask == same
            same_bits(got(y), want)
            same_bits(got(fd.multi_sample_dropout_backward(put(want), mask)), gradient)
            same_bits(got(fd.multi_sample_mean(put(x), p, 4, rng=3)[0]), fd.multi_sample_mean(x, p, 4, rng=3)[0])
        y, mask = fd.r_drop_pair(put(x), 0.4, rng=3)
        same_bits(got(y), fd.r_drop_pair(x, 0.4, rng=3)[0])

    def test_a_stored_mask_of_samples():
        x = random(70)
        mask = fd.mask((3, 70), 0.4, rng=3).stored()
        same_bits(got(fd.multi_sample_mean_backward(put(x), mask)), fd.multi_sample_mean_backward(x, mask))

    @pytest.mark.parametrize("x_shape", [(7,), (1, 7), (4, 1), (1, 1), ()])
    @pytest.mark.parametrize("mask_shape", [(4, 7), (3, 4, 7)])
    def test_gradient_of_an_x_that_was_broadcast(x_shape, mask_shape):
        mask = fd.mask(mask_shape, 0.4, rng=3)
        x, dy = random(x_shape), np.random.default_rng(0).standard_normal(mask_shape)
        same_bits(got(mask.apply(put(x))), mask.apply(x))
        dx = got(mask.backward(put(dy), x_shape=x_shape))
        assert dx.shape == x_shape
        np.testing.assert_allclose(dx, mask.backward(dy, x_shape=x_shape), rtol=1e-12, atol=1e-12)
        out = put(np.empty(x_shape))
        assert mask.backward(put(dy), x_shape=x_shape, out=out) is out
        np.testing.assert_array_equal(got(out), dx)

    @pytest.mark.parametrize("bias_shape", [(9,), (30, 1), (1, 1), (30, 9), ()])
    def test_gradient_of_any_bias(bias_shape):
        dy = np.random.default_rng(0).standard_normal((30, 9))
        for mask in (fd.mask((30, 9), 0.3, rng=4), fd.mask((30, 9), 0.3, rng=4).stored(), fd.mask((30, 1), 0.3, rng=4)):
            given = put(dy)
            dx, dbias = fd.dropout_add_backward(given, mask, bias_shape=bias_shape, out=given)
            want, want_bias = fd.dropout_add_backward(dy, mask, bias_shape=bias_shape)
            assert dx is given
            same_bits(got(dx), want)
            np.testing.assert_allclose(got(dbias), want_bias, rtol=1e-12, atol=1e-12)
        assert fd.dropout_add_backward(given, mask)[1] is None

    @pytest.mark.parametrize("source", ["a p for each head", "stored"])
    def test_masks_of_attention(source):
        scores = np.random.default_rng(0).standard_normal((2, 3, 37))
        mask = fd.mask(scores.shape, [[0.1, 0.2, 0.3], [0.5, 0.9, 0.0]] if source != "stored" else 0.3, rng=5)
        mask = mask.stored() if source == "stored" else mask
        y, _, saved = fd.softmax_dropout(put(scores), mask=mask, p=None)
        want, _, log_sum = fd.softmax_dropout(scores, mask=mask, p=None)
        np.testing.assert_allclose(got(y), want, rtol=1e-12)
        dy = np.random.default_rng(1).standard_normal(scores.shape)
        want = fd.softmax_dropout_backward(dy, scores, log_sum, mask)
        found = fd.softmax_dropout_backward(put(dy), put(scores), saved, mask)
        np.testing.assert_allclose(got(found), want, rtol=1e-9, atol=1e-12)

    def test_gradients_over_their_logits():
        a, b = np.random.default_rng(1).standard_normal((2, 4, 70)).astype(np.float32)
        labels = np.array([0, 69, 3, -100])
        want = fd.r_drop(a, b, labels, alpha=0.7)
        on_device = put(a), put(b)
        result = fd.r_drop(*on_device, put(labels), alpha=0.7, out=on_device)
        assert result.da is on_device[0]
        assert result.db is on_device[1]
        np.testing.assert_allclose(got(result.loss), want.loss, rtol=2e-6)
        np.testing.assert_allclose(got(result.da), want.da, atol=1e-7)
        np.testing.assert_allclose(got(result.db), want.db, atol=1e-7)

    def test_packed_bits_of_any_mask():
        for kind in MASKS:
            for mask in masks_for(kind):
                packed = got(cuda.bits(mask, like=put(np.zeros(1, np.float32))))
                np.testing.assert_array_equal(packed, mask.bits())

    def test_steps_that_fit_no_int64():
        x = random((2, 20))
        mask = fd.mask((2, 2**63), 0.3, rng=1)[:, 5:25]
        same_bits(got(mask.apply(put(x))), mask.apply(x))

    def test_layers_take_device_arrays():
        x = random((4, 30))
        layer, same = fd.layers.Dropout(0.3, rng=fd.Rng(1)), fd.layers.Dropout(0.3, rng=fd.Rng(1))
        same_bits(got(layer(put(x), training=True)), same(x, training=True))
        same_bits(got(layer.backward(put(x))), same.backward(x))

    def test_a_launch_for_each_p_is_the_same(monkeypatch):
        from fastdrop.backends.numba_cuda import ops

        x = random((3, 40))
        mask = fd.mask((3, 40), [0.1, 0.5, 0.9], rng=1)
        monkeypatch.setattr(ops, "PART", 40)
        same_bits(got(mask.apply(put(x))), mask.apply(x))

    # -- torch's way through the border, with its tensors in host memory -----------------------------------------------

    @pytest.fixture
    def torch(monkeypatch):
        module = pytest.importorskip("torch")

        class OnHost(arrays._Torch):
            def current_stream(self, x):
                return 0

            def describe(self, x, name, stream):
                array = super().describe(x, name, stream)
                array.device = 0
                return array

            flat = arrays._Simulated.flat

        monkeypatch.setitem(arrays._LIBRARIES, "torch", OnHost())
        monkeypatch.setattr(fd.dispatch, "on_device", lambda x: True)
        return module

    @pytest.mark.parametrize("name", DTYPES)
    def test_torch_in_torch_out(torch, name):
        x = torch.linspace(-2, 2, 60, dtype=getattr(torch, name)).reshape(5, 12)
        on_host = x.view(torch.int16).numpy().view(dtype_of(name)) if name == "bfloat16" else x.numpy()
        y, mask = cuda.dropout(x, 0.3, rng=1)
        assert type(y) is torch.Tensor
        assert y.dtype is x.dtype
        np.testing.assert_array_equal(y.double().numpy(), mask.apply(on_host).astype(np.float64))
        y = cuda.apply(mask[:, 3:9], x[:, 3:9].T.contiguous().T)  # strides
        np.testing.assert_array_equal(y.double().numpy(), mask[:, 3:9].apply(on_host[:, 3:9]).astype(np.float64))
        result = cuda.r_drop(x, x.flip(0), torch.arange(5), alpha=1.0)
        want = fd.r_drop(on_host, on_host[::-1].copy(), np.arange(5), alpha=1.0)
        assert result.loss.shape == ()
        np.testing.assert_allclose(float(result.loss), want.loss, rtol=2e-6)

    def test_torch_tensors_that_cannot_be_taken(torch):
        x = torch.ones(8)
        with pytest.raises(TypeError, match=r"x must not require grad.* pass x.detach\(\)"):
            cuda.dropout(x.clone().requires_grad_())
        with torch.no_grad():
            assert cuda.dropout(x.clone().requires_grad_(), rng=0)[0].requires_grad is False
        with pytest.raises(TypeError, match=r"negates lazily.* pass x.resolve_neg\(\)"):
            cuda.dropout(torch.ones(8, dtype=torch.complex64).conj().imag)
        with pytest.raises(TypeError, match="x must be a strided tensor, got layout torch"):
            cuda.dropout(x.to_sparse())
        with pytest.raises(TypeError, match=r"x must be float16.* got dtype int64"):
            cuda.dropout(x.long())
        with pytest.raises(ValueError, match="out must be x itself or not overlap it"):
            cuda.dropout(x[:6], out=x[2:])

    # -- streams, and owners of memory that nobody has heard of --------------------------------------------------------

    class Handle:
        def __init__(self, **fields):
            self.__dict__.update(fields)

    class Streamed:
        def __cuda_stream__(self):
            return 0, 12

    @pytest.mark.parametrize(
        ("stream", "address"),
        [
            (Handle(cuda_stream=10), 10), (Handle(ptr=11), 11), (Streamed(), 12), (Handle(__cuda_stream__=(0, 13)), 13),
            (Handle(handle=Handle(value=14)), 14), (Handle(handle=Handle(value=None)), 0), (15, 15), (0, 0), (None, 0),
        ],
    )  # fmt: skip
    def test_every_library_s_stream_is_taken(stream, address, monkeypatch):
        from fastdrop.backends.numba_cuda import ops, parts

        taken = []
        for module in (ops, parts):
            monkeypatch.setattr(module, "numba_stream", lambda stream: taken.append(stream) or 0)
        x = random((4, 8))
        mask = fd.mask((4, 8), [0.1, 0.2, 0.3, 0.4], rng=1)
        same_bits(got(cuda.apply(mask, put(x), stream=stream)), mask.apply(x))
        cuda.dropout_add_backward(put(x), fd.mask((4, 8), 0.1, rng=1), bias_shape=(8,), stream=stream)
        assert set(taken) == {address}
        assert len(taken) >= 5  # two tables, three kernels

    class Owner:
        """Host memory that says that it lies on a device."""

        def __init__(self, memory, **changes):
            self.memory, self.changes = memory, changes

        @property
        def __cuda_array_interface__(self):
            return {**self.memory.__array_interface__, **self.changes}

    @pytest.fixture
    def consumer_streams(monkeypatch):
        """cuda.core's view of anybody's array, without a driver; gives the streams that producers were told of."""
        streams = []

        class View:
            def __init__(self, face):
                self.ptr, self.readonly = face["data"]
                self.shape, self.dtype, self.device_id = face["shape"], np.dtype(face["typestr"]), face.get("device", 0)
                steps = face["strides"]
                self.strides = steps and tuple(step // self.dtype.itemsize for step in steps)

            @classmethod
            def from_any_interface(cls, x, stream_ptr):
                streams.append(stream_ptr)
                return cls(x._ary.__array_interface__ if hasattr(x, "_ary") else x.__cuda_array_interface__)

        monkeypatch.setitem(sys.modules, "cuda.core.utils", types.SimpleNamespace(StridedMemoryView=View))
        monkeypatch.setattr(arrays._Library, "flat", arrays._Simulated.flat)
        return streams

    def test_any_owner_s_memory_is_read_in_place(consumer_streams):
        x = random((6, 9))
        mask = fd.mask((6, 9), 0.3, rng=1)
        same_bits(got(mask.apply(Owner(x))), mask.apply(x))
        same_bits(got(fd.dropout_backward(Owner(x[::-1, ::2]), mask[:, :5])), mask[:, :5].apply(x[::-1, ::2]))
        out = Owner(np.zeros_like(x))
        assert mask.apply(Owner(x), out) is out
        same_bits(out.memory, mask.apply(x))
        assert set(consumer_streams) == {1}  # DLPack's number of the default stream
        with pytest.raises(RuntimeError, match="External streams"):  # the simulator has none
            cuda.apply(mask, Owner(x), stream=99)
        assert 99 in consumer_streams

    def test_wrong_interfaces_are_named(consumer_streams):
        mask, x = fd.mask(8, 0.5, rng=0), np.ones(8, np.float32)
        address = x.__array_interface__["data"][0]
        with pytest.raises(ValueError, match="x must be aligned to its 4-byte elements, got address 0x"):
            mask.apply(Owner(x, data=(address + 2, False)))
        with pytest.raises(ValueError, match="out must be writable, got a read-only Owner"):
            mask.apply(Owner(x), Owner(x.copy(), data=(address, True)))
        with pytest.raises(ValueError, match="out must lie on device 0, got device 3"):
            mask.apply(Owner(x), Owner(x.copy(), device=3))
        with pytest.raises(TypeError, match=r"x must be float16.*, got dtype int32"):
            mask.apply(Owner(np.ones(8, np.int32)))
        with pytest.raises(ValueError, match="out must be x itself or not overlap it"):
            mask.apply(Owner(x), Owner(x, data=(address + 4, False)))
        with pytest.raises(TypeError, match=r"mask must be a fastdrop\.Mask, got ndarray"):
            fd.dropout(Owner(x), mask=x)
