"""Every public function and class used as it is documented: type checkers find the kind of each result, and no fault.

`test_typing.py` calls each function, with tensors of torch, arrays of JAX and frames of pandas for the classes that
stand for them here, and compares what comes with what `assert_type` says.
"""

# pyright: strict

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import fastdrop as fd
from fastdrop.inference import MonteCarlo, Sample
from fastdrop.layers import Dropout, MultiSampleDropout
from fastdrop.losses import RDrop

if TYPE_CHECKING:
    import array

    from typing_extensions import assert_type

    from fastdrop.typing import Probability, RngLike
else:

    def assert_type(value, kind):
        """Replaced by the test."""


F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]


class Tensor:
    """Has what tells a torch tensor."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise AttributeError


class JaxArray:
    """Has what tells an array of JAX."""

    def block_until_ready(self) -> JaxArray:
        return self


class Frame:
    """Has what tells a frame of pandas."""

    @property
    def axes(self) -> list[Any]:
        return []

    def to_numpy(self) -> F64:
        return np.zeros(3)


# -- masks and generators ----------------------------------------------------------------------------------------------


def masks(x: F32, some: NDArray[Any]) -> None:
    mask = fd.mask((2, 4), 0.5, rng=0)
    assert_type(mask, fd.Mask)
    assert_type(mask.seed, int | None)
    assert_type(mask.stream, int | None)
    assert_type(mask.shape, tuple[int, ...])
    assert_type((mask.ndim, mask.size, len(mask)), tuple[int, int, int])
    assert_type(mask.p, float | F64)
    assert_type(mask.scale, float | F64)
    assert_type(mask.keep(), NDArray[np.bool_])
    assert_type(mask.bits(), NDArray[np.uint8])
    assert_type(mask.stored(), fd.Mask)
    assert_type(mask == mask[0], bool)
    assert_type({mask: 1}, dict[fd.Mask, int])
    for row in mask:
        assert_type(row, fd.Mask)

    assert_type(mask[0], fd.Mask)
    assert_type(mask[np.int64(1), 1:3], fd.Mask)
    assert_type(mask[..., -1], fd.Mask)

    assert_type(np.asarray(mask), NDArray[Any])
    assert_type(np.asarray(mask, np.float32), F32)
    assert_type(x * mask, F32)
    assert_type(mask * x, F32)
    assert_type(mask * some, NDArray[Any])
    assert_type(some * mask, NDArray[Any])
    assert_type(np.multiply(x, mask), NDArray[Any])
    assert_type(mask * [1.0, 2.0, 3.0, 4.0], Floats)
    assert_type(mask * 2.0, Floats)
    x *= mask

    assert_type(mask.apply(x), F32)
    assert_type(mask.apply(x, x), F32)
    assert_type(mask.apply(some, out=some), NDArray[Any])
    assert_type(mask.apply([1.0, 2.0, 3.0, 4.0]), Floats)
    assert_type(mask.apply(bytes(16), dtype=np.float32), Floats)
    assert_type(mask.backward(x), F32)
    assert_type(mask.backward(x, x_shape=(4,)), F32)
    assert_type(mask.backward(x, out=x), F32)

    assert_type(fd.mask(8, np.float64(0.5)), fd.Mask)
    assert_type(fd.mask([2, 4], [0.1, 0.9], rng=np.random.default_rng(0)), fd.Mask)
    assert_type(fd.mask(x.shape, np.linspace(0, 1, 2), rng=np.random.SeedSequence(1)), fd.Mask)
    assert_type(fd.Mask.from_keep([True, False], 0.5), fd.Mask)
    assert_type(fd.Mask.from_keep(x > 0, p=0.5), fd.Mask)


def masks_of_others(mask: fd.Mask, t: Tensor, j: JaxArray, df: Frame) -> None:
    assert_type(mask.apply(t), Tensor)
    assert_type(mask.backward(t, out=t), Tensor)
    assert_type(mask * t, Tensor)
    assert_type(t * mask, Tensor)
    assert_type(j * mask, JaxArray)
    assert_type(mask * df, Frame)
    assert_type(df * mask, Frame)


def generators(n: np.int64) -> None:
    rng = fd.Rng(seed=42, stream=n)
    assert_type((rng.seed, rng.stream), tuple[int, int])
    assert_type(rng.take(), tuple[int, int])
    assert_type(rng.mask((2, 3), p=0.5), fd.Mask)
    assert_type(rng.spawn(2), list[fd.Rng])
    some: list[RngLike] = [None, 0, n, rng, np.random.SeedSequence(0), np.random.PCG64(0), np.random.default_rng(0)]
    for one in some:
        fd.mask(3, 0.5, rng=one)
    others: list[Probability] = [0, 0.5, np.float32(0.5), [0.1, 0.2, 0.3], np.zeros(3), np.zeros(3, int)]
    for p in others:
        fd.mask(3, p)


# -- dropout and what stands beside it ---------------------------------------------------------------------------------


def dropout(x: F32, some: NDArray[Any], buffer: array.array[float]) -> None:
    y, mask = fd.dropout(x, p=0.5, rng=0)
    assert_type(y, F32)
    assert_type(mask, fd.Mask)
    assert_type(fd.dropout(x, 0.1, mask_shape=(None, 1), training=False), tuple[F32, fd.Mask])
    assert_type(fd.dropout(x, mask=mask, out=x), tuple[F32, fd.Mask])
    assert_type(fd.dropout(some), tuple[NDArray[Any], fd.Mask])
    assert_type(fd.dropout([[1.0, 2.0]]), tuple[Floats, fd.Mask])
    assert_type(fd.dropout(1.0), tuple[Floats, fd.Mask])
    assert_type(fd.dropout(buffer), tuple[Floats, fd.Mask])
    same: array.array[float] = fd.dropout(buffer, rng=fd.Rng(7), out=buffer)[0]
    assert same is buffer
    assert_type(fd.dropout(bytes(8), dtype="float32"), tuple[Floats, fd.Mask])
    assert_type(fd.dropout(bytearray(8), dtype=np.float32, out=bytearray(8)), tuple[bytearray, fd.Mask])
    assert_type(fd.dropout_backward(x, mask), F32)
    assert_type(fd.dropout_backward(x, mask, out=x), F32)
    assert_type(fd.dropout_backward([1.0], fd.mask(1, 0.5), dtype=None), Floats)


def dropout_of_others(t: Tensor, j: JaxArray, df: Frame) -> None:
    y, mask = fd.dropout(t, 0.1, rng=fd.Rng(0))
    assert_type(y, Tensor)
    assert_type(fd.dropout(t, out=t), tuple[Tensor, fd.Mask])
    assert_type(fd.dropout(j), tuple[JaxArray, fd.Mask])
    assert_type(fd.dropout(df), tuple[Floats, fd.Mask])
    assert_type(fd.dropout_backward(t, mask), Tensor)
    assert_type(fd.dropout_backward(j, mask, out=None), JaxArray)


def fused(x: F32, bias: F32) -> None:
    y, mask = fd.dropout_add(x, x, 0.5, bias=bias, rng=0)
    assert_type(y, F32)
    assert_type(fd.dropout_add(x, x, mask=mask, out=x), tuple[F32, fd.Mask])
    dx, dbias = fd.dropout_add_backward(x, mask, bias_shape=bias.shape)
    assert_type(dx, F32)
    assert_type(dbias, F32)
    assert_type(fd.dropout_add_backward(x, mask), tuple[F32, None])
    assert_type(fd.dropout_add_backward(x, mask, bias_shape=4, out=x)[0], F32)

    assert_type(fd.relu_dropout(x, 0.5, rng=0), tuple[F32, fd.Mask])
    assert_type(fd.relu_dropout(x, training=False, out=x), tuple[F32, fd.Mask])
    assert_type(fd.relu_dropout([[1.0]], mask_shape=(1, 1)), tuple[Floats, fd.Mask])
    assert_type(fd.relu_dropout_backward(x, y, mask), F32)
    assert_type(fd.relu_dropout_backward(x, y, mask, out=x), F32)
    assert_type(fd.gelu_dropout(x, rng=np.random.PCG64(0)), tuple[F32, fd.Mask])
    assert_type(fd.gelu_dropout(x, out=x), tuple[F32, fd.Mask])
    assert_type(fd.gelu_dropout_backward(x, x, mask), F32)
    assert_type(fd.silu_dropout(x), tuple[F32, fd.Mask])
    assert_type(fd.silu_dropout_backward(x, x, mask, out=x), F32)


def fused_of_others(t: Tensor, j: JaxArray) -> None:
    y, mask = fd.dropout_add(t, t, 0.1, bias=t)
    assert_type(y, Tensor)
    assert_type(fd.dropout_add_backward(t, mask, bias_shape=(4,)), tuple[Tensor, Tensor])
    assert_type(fd.relu_dropout(j), tuple[JaxArray, fd.Mask])
    assert_type(fd.gelu_dropout_backward(t, t, mask), Tensor)


def attention(scores: F32) -> None:
    y, mask, log_sum = fd.softmax_dropout(scores, 0.1, rng=0)
    assert_type(y, F32)
    assert_type(mask, fd.Mask)
    assert_type(log_sum, F64)
    assert_type(fd.softmax_dropout(scores, attention_mask=scores > 0, axis=0)[2], F64)
    assert_type(fd.softmax_dropout([[0.0, 1.0]], attention_mask=[[True, False]])[0], Floats)
    assert_type(fd.softmax_dropout(scores, training=False, out=scores)[0], F32)
    assert_type(fd.softmax_dropout_backward(scores, scores, log_sum, mask), F32)
    assert_type(fd.softmax_dropout_backward(scores, scores, log_sum, mask, axis=-1, out=scores), F32)


def attention_of_others(t: Tensor) -> None:
    y, mask, log_sum = fd.softmax_dropout(t, attention_mask=t)
    assert_type((y, log_sum), tuple[Tensor, Tensor])
    assert_type(fd.softmax_dropout_backward(t, t, log_sum, mask), Tensor)


def weights(W: F32) -> None:
    assert_type(fd.max_norm_(W, 3.0), F32)
    assert_type(fd.max_norm_(W, 3, axis=(0, 1)), F32)


def weights_of_others(t: Tensor) -> None:
    assert_type(fd.max_norm_(t, 3.0, axis=1), Tensor)


# -- several samples ---------------------------------------------------------------------------------------------------


def samples(x: F32, W: F32, b: F32) -> None:
    y, mask = fd.multi_sample_dropout(x, 0.5, samples=3, rng=0)
    assert_type(y, F32)
    assert_type(mask, fd.Mask)
    assert_type(fd.multi_sample_dropout([1.0], [0.1, 0.2], 2), tuple[Floats, fd.Mask])
    assert_type(fd.multi_sample_dropout(x, 0.5, 3, out=y), tuple[F32, fd.Mask])
    assert_type(fd.multi_sample_dropout_backward(y, mask), F32)
    assert_type(fd.multi_sample_mean(x, np.linspace(0.1, 0.5, 3), 3), tuple[F32, fd.Mask])
    assert_type(fd.multi_sample_mean(x, 0.5, 3, out=x), tuple[F32, fd.Mask])
    assert_type(fd.multi_sample_mean_backward(x, mask), F32)
    logits, mask = fd.multi_sample_linear(x, W, b, 0.5, samples=3, average="losses")
    assert_type(logits, F32)
    assert_type(fd.multi_sample_linear(x, W, None, 0.5, 3, rng=1, average="logits"), tuple[F32, fd.Mask])
    assert_type(fd.multi_sample_linear_backward(logits, x, W, mask), tuple[F32, F32, F32])


def samples_of_others(t: Tensor, tW: Tensor, tb: Tensor) -> None:
    y, mask = fd.multi_sample_dropout(t, 0.5, 3)
    assert_type(y, Tensor)
    assert_type(fd.multi_sample_dropout_backward(y, mask), Tensor)
    assert_type(fd.multi_sample_mean(t, 0.5, 3), tuple[Tensor, fd.Mask])
    logits, mask = fd.multi_sample_linear(t, tW, tb, 0.5, 3)
    assert_type(logits, Tensor)
    assert_type(fd.multi_sample_linear_backward(logits, t, tW, mask), tuple[Tensor, Tensor, Tensor])


# -- losses ------------------------------------------------------------------------------------------------------------


def losses(a: F32, c: F32, labels: NDArray[np.int64]) -> None:
    loss, da, db = fd.kl_div(a, c)
    assert_type(loss, float)
    assert_type((da, db), tuple[F32, F32])
    assert_type(fd.symmetric_kl(a, c, reduction="batchmean", temperature=2.0, axis=-1), tuple[float, F32, F32])
    assert_type(fd.js_div(a, c, pad_mask=[True, False]), tuple[float, F32, F32])
    rows, _, _ = fd.kl_div(a, c, reduction="none", pad_mask=labels == 0)
    assert_type(rows, Floats)
    assert_type(fd.js_div(a, c, out=(a, c))[1:], tuple[F32, F32])
    assert_type(fd.kl_div([[0.0, 1.0]], [[1.0, 0.0]])[1:], tuple[Floats, Floats])
    assert_type(fd.cross_entropy(a, labels), tuple[float, F32])
    assert_type(fd.cross_entropy(a, [0, 1], label_smoothing=0.1, ignore_index=-1), tuple[float, F32])
    assert_type(fd.cross_entropy(a, np.abs(c), reduction="none"), tuple[Floats, F32])
    assert_type(fd.cross_entropy(a, labels, out=a)[1], F32)
    result = fd.r_drop(a, c, labels, alpha=1.0)
    assert_type(result, RDrop[float, F32])
    assert_type(result.loss, float)
    assert_type((result.ce, result.kl), tuple[float, float])
    assert_type((result.da, result.db), tuple[F32, F32])
    loss, ce, kl, da, db = result
    assert_type((loss + ce + kl, da), tuple[float, F32])
    assert_type(fd.r_drop(a, c, labels, alpha=1, reduction="none").loss, Floats)
    assert_type(fd.r_drop(a, c, labels, alpha=1, out=(a, c)).da, F32)
    assert_type(fd.r_drop_pair(a, 0.5, rng=0), tuple[F32, fd.Mask])
    both: F32 = np.stack([a, c])
    assert_type(fd.r_drop_pair(a, 0.5, out=both), tuple[F32, fd.Mask])


def losses_of_others(t: Tensor) -> None:
    _, da, db = fd.symmetric_kl(t, t)
    assert_type((da, db), tuple[Tensor, Tensor])
    assert_type(fd.cross_entropy(t, t)[1], Tensor)
    assert_type(fd.r_drop(t, t, t, alpha=1.0).db, Tensor)
    assert_type(fd.r_drop_pair(t, 0.5), tuple[Tensor, fd.Mask])


# -- inference and layers ----------------------------------------------------------------------------------------------


def predictions(x: F32) -> None:
    layer = Dropout(0.5)

    def predict(x: F32, sample: Sample) -> F32:
        h = np.exp(layer(x, training=sample))
        assert_type(sample.dropout(x, 0.5), F32)
        assert_type(sample.mask(x.shape, 0.5), fd.Mask)
        assert_type(sample.number, int)
        probabilities: F32 = h / h.sum(axis=-1, keepdims=True)
        return probabilities

    result = fd.mc_dropout(predict, x, 20, rng=0)
    assert_type((result.mean, result.variance), tuple[F64, F64])
    assert_type(result.entropy, F64 | None)
    assert_type(result.samples, NDArray[np.int64])
    assert_type(result, MonteCarlo)
    mean, variance, entropy, information = fd.mc_dropout(
        predict, x, 20, batch_size=1, per_row=True, first_row=2, tolerance=0.5, progress=False, probabilities=True
    )
    assert_type((mean, variance), tuple[F64, F64])
    assert_type((entropy, information), tuple[F64 | None, F64 | None])


def layers(x: F32, W: F32, b: F32) -> None:
    layer = Dropout(0.5, rng=0)
    y = layer(x)
    assert_type(y, F32)
    assert_type(layer(x, training=False), F32)
    assert_type(layer.backward(y), F32)
    assert_type(layer.mask, fd.Mask | None)
    assert_type(layer.p, float | F64)
    assert_type(layer.rng, fd.Rng | None)
    layer.p = 0.25
    layer.p = [0.1, 0.2]
    z, mask = layer([[1.0], [2.0]]), layer.mask
    assert_type(z, Floats)
    layer.backward(z, mask=mask)

    head = MultiSampleDropout(W, b, p=0.5, samples=4, average="losses", rng=0)
    logits = head(x)
    assert_type(logits, F32)
    assert_type(head.backward(logits), F32)
    assert_type((head.dW, head.db), tuple[NDArray[Any], NDArray[Any]])
    assert_type(fd.layers.MultiSampleDropout(W, None).samples, int)


def layers_of_others(t: Tensor) -> None:
    layer = Dropout(0.5)
    assert_type(layer(t), Tensor)
    assert_type(layer.backward(t), Tensor)


# -- the process -------------------------------------------------------------------------------------------------------


def process(n: int) -> None:
    before = fd.get_num_threads()
    assert_type(before, int)
    fd.set_num_threads(n)
    with fd.threads(2):
        fd.set_num_threads(before)
    fd.set_buffer_limit(512 << 20)
    fd.release_buffers()
    fd.show_config(io.StringIO())
    fd.show_config(file=None)
    fd.use_backend(fd.get_backend())
    assert_type(fd.__version__, str)


# -- kernels of one's own, and device arrays ---------------------------------------------------------------------------


def numba_rule(mask: fd.Mask) -> None:
    from fastdrop.numba import keep, keep_bits64, keep_lane, scale, threshold, uniform32

    t = threshold(0.25)
    assert_type(t, np.uint64)
    assert_type(scale(0.25), float)
    assert_type(keep(42, 0, np.uint64(137), t), bool | np.bool_)
    assert_type(uniform32(42, 0, 137), np.uint64)
    assert_type(keep_lane(42, 0, 24, t), np.uint32)
    assert_type(keep_bits64(42, 0, 2, t), np.uint64)


def cuda_of_others(x: Tensor, labels: Tensor, stream: int) -> None:
    from fastdrop import cuda

    y, mask = cuda.dropout(x, 0.1, rng=0, stream=stream)
    assert_type(y, Tensor)
    assert_type(mask, fd.Mask)
    assert_type(cuda.is_device_array(x), bool)
    assert_type(cuda.apply(mask, x, out=y), Tensor)
    assert_type(cuda.backward(mask, x, x_shape=(4,)), Tensor)
    assert_type(cuda.bits(mask, like=x), Tensor)
    assert_type(cuda.dropout_backward(y, mask, out=y), Tensor)
    assert_type(cuda.dropout_add(x, x, 0.1, bias=x, mask_shape=(None, 1)), tuple[Tensor, fd.Mask])
    assert_type(cuda.dropout_add_backward(y, mask, bias_shape=4), tuple[Tensor, Tensor | None])
    assert_type(cuda.relu_dropout(x, training=False), tuple[Tensor, fd.Mask])
    assert_type(cuda.relu_dropout_backward(y, x, mask), Tensor)
    assert_type(cuda.gelu_dropout(x), tuple[Tensor, fd.Mask])
    assert_type(cuda.gelu_dropout_backward(y, x, mask, out=y), Tensor)
    assert_type(cuda.silu_dropout(x), tuple[Tensor, fd.Mask])
    assert_type(cuda.silu_dropout_backward(y, x, mask), Tensor)
    assert_type(cuda.multi_sample_dropout(x, 0.1, 3), tuple[Tensor, fd.Mask])
    assert_type(cuda.multi_sample_dropout_backward(y, mask), Tensor)
    assert_type(cuda.multi_sample_mean(x, 0.1, 3, out=y), tuple[Tensor, fd.Mask])
    assert_type(cuda.multi_sample_mean_backward(y, mask), Tensor)
    assert_type(cuda.r_drop_pair(x, 0.1), tuple[Tensor, fd.Mask])
    assert_type(cuda.softmax_dropout(x, 0.1, attention_mask=x), tuple[Tensor, fd.Mask, Tensor])
    assert_type(cuda.softmax_dropout_backward(y, x, x, mask), Tensor)
    assert_type(cuda.symmetric_kl(x, x, out=(x, x)), tuple[Tensor, Tensor, Tensor])
    assert_type(cuda.r_drop(x, x, labels, alpha=1.0).loss, Tensor)
