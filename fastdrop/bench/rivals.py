"""The same operations by others, written as their users write them, and one step better where there is a step.

Each runs in a process of its own (`worker`), on float32, with the CPUs and threads that fastdrop gets.  What others
allocate at each call is theirs to allocate: only NumPy and Numba can be given an output.  What is not installed is
reported as such, never left out.
"""

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

KEPT_SIGMA = 6  # how far a rival's kept share may be from 1-p before it is no dropout


@dataclass(frozen=True)
class Rival:
    """A library, or one way of using it."""

    title: str
    module: str
    output: str  # "fresh" or "reused"
    ops: dict  # op of `cases.CASES` -> (x, p, threads) -> callable without arguments
    threads: Callable = lambda module, threads: None

    def start(self, threads):
        """Import the library, set its threads, return its version; ImportError where it is not installed."""
        self.threads(importlib.import_module(self.module), threads)
        return importlib.metadata.version(self.module)


def plausible(op, result, x, p):
    """Raise unless a rival's forward result is a dropout of x; other ops are not looked at."""
    if op != "dropout":
        return
    y = np.asarray(result)
    kept = y != 0
    if abs(kept.sum() - (1 - p) * y.size) > KEPT_SIGMA * (p * (1 - p) * y.size) ** 0.5:
        raise AssertionError(f"{kept.mean():.6f} of the elements kept at p={p}")
    np.testing.assert_allclose(y[kept], (x / (1 - p))[kept], rtol=1e-5)


# -- NumPy -------------------------------------------------------------------------------------------------------------


def numpy_binomial(x, p, threads):
    """The book's way: one draw of 64 bits an element, the product in float64."""
    return lambda: x * (np.random.binomial(1, 1 - p, x.shape) / (1 - p))  # noqa: NPY002 - as the book has it


def numpy_random(x, p, threads):
    """float32 uniforms, compared and multiplied in buffers that stay, 64k elements at a time: they fit the cache."""
    rng = np.random.default_rng(0)
    y = np.zeros_like(x)
    u = np.empty(min(x.size, 1 << 16), np.float32)
    p, scale = np.float32(p), np.float32(1 / (1 - p))
    flat, flat_y = x.reshape(-1), y.reshape(-1)

    def call():
        for start in range(0, flat.size, u.size):
            part = flat[start : start + u.size]
            m = u[: part.size]
            rng.random(dtype=np.float32, out=m)
            np.greater_equal(m, p, out=m)
            np.multiply(m, scale, out=m)
            np.multiply(part, m, out=flat_y[start : start + u.size])
        return y

    return call


def numpy_raw(x, p, threads):
    """The fastest that NumPy can: the generator's raw words as 32-bit integers, against a threshold."""
    source = np.random.SFC64(0)
    y = np.zeros_like(x)
    keep = np.empty(min(x.size, 1 << 16), np.bool_)
    threshold, scale = np.uint32(round((1 - p) * 2**32)), np.float32(1 / (1 - p))
    flat, flat_y = x.reshape(-1), y.reshape(-1)

    def call():
        for start in range(0, flat.size, keep.size):
            part, to = flat[start : start + keep.size], flat_y[start : start + keep.size]
            k = keep[: part.size]
            np.less(source.random_raw((part.size + 1) // 2).view(np.uint32)[: part.size], threshold, out=k)
            np.multiply(part, k, out=to)
            np.multiply(to, scale, out=to)
        return y

    return call


# -- torch -------------------------------------------------------------------------------------------------------------


def torch_dropout(x, p, threads):
    import torch

    t = torch.from_numpy(x)
    return lambda: torch.nn.functional.dropout(t, p, True)


def torch_train(x, p, threads):
    import torch

    t, dy = torch.from_numpy(x).requires_grad_(), torch.ones(x.shape)
    return lambda: torch.autograd.grad(torch.nn.functional.dropout(t, p, True), t, dy)


def torch_softmax_dropout(x, p, threads):
    import torch

    t, dy = torch.from_numpy(x).requires_grad_(), torch.ones(x.shape)
    return lambda: torch.autograd.grad(torch.nn.functional.dropout(torch.softmax(t, -1), p, True), t, dy)


def torch_pair(x):
    import torch

    a = torch.from_numpy(x).requires_grad_()
    b = torch.from_numpy(np.ascontiguousarray(x[::-1])).requires_grad_()
    labels = torch.arange(x.shape[0]) % x.shape[1]
    return a, b, labels


def torch_both_ways(a, b):
    """Symmetric KL as R-Drop's readers write it: two log-softmax, two softmax, two kl_div."""
    from torch.nn.functional import kl_div, log_softmax, softmax

    there = kl_div(log_softmax(a, -1), softmax(b, -1), reduction="batchmean")
    back = kl_div(log_softmax(b, -1), softmax(a, -1), reduction="batchmean")
    return (there + back) / 2


def torch_symmetric_kl(x, p, threads):
    import torch

    a, b, _ = torch_pair(x)
    return lambda: torch.autograd.grad(torch_both_ways(a, b), (a, b))


def torch_r_drop(x, p, threads):
    import torch
    from torch.nn.functional import cross_entropy

    a, b, labels = torch_pair(x)

    def call():
        loss = (cross_entropy(a, labels) + cross_entropy(b, labels)) / 2 + 5.0 * torch_both_ways(a, b)
        return torch.autograd.grad(loss, (a, b))

    return call


def torch_multi_sample_mean(x, p, threads, samples=8):
    import torch

    t = torch.from_numpy(x)
    return lambda: torch.stack([torch.nn.functional.dropout(t, p, True) for _ in range(samples)]).mean(0)


# -- JAX and Keras -----------------------------------------------------------------------------------------------------


def jax_dropout(x, p, threads):
    import jax

    @jax.jit
    def drop(key, x):
        return jax.numpy.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0)

    key, t = jax.random.key(0), jax.numpy.asarray(x)
    return lambda: drop(key, t).block_until_ready()


def keras_dropout(x, p, threads):
    import jax
    import keras

    seed, t = keras.random.SeedGenerator(0), keras.ops.convert_to_tensor(x)
    return lambda: jax.block_until_ready(keras.random.dropout(t, p, seed=seed))


# -- Numba, by hand ----------------------------------------------------------------------------------------------------


def numba_random(x, p, threads):
    """The loop that one writes first: ``np.random.random()`` for each element, a Mersenne twister for each thread."""
    import numba

    @numba.njit(parallel=threads > 1)
    def drop(y, x, p, scale):
        for i in numba.prange(x.size):
            y[i] = x[i] * scale if np.random.random() >= p else np.float32(0)  # noqa: NPY002 - all that Numba has

    flat, y = x.reshape(-1), np.zeros(x.size, x.dtype)
    scale = np.float32(1 / (1 - p))

    def call():
        drop(y, flat, p, scale)
        return y.reshape(x.shape)

    return call


def numba_xoroshiro(x, p, threads):
    """The loop that one writes second: xoroshiro128+ in two local variables, a seed for each 64k elements."""
    import numba

    step = 1 << 16

    @numba.njit(inline="always")
    def scramble(z):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    @numba.njit(parallel=threads > 1)
    def drop(y, x, threshold, scale, seed):
        for chunk in numba.prange((x.size + step - 1) // step):
            s0 = scramble(seed + np.uint64(2 * chunk + 1) * np.uint64(0x9E3779B97F4A7C15))
            s1 = scramble(seed + np.uint64(2 * chunk + 2) * np.uint64(0x9E3779B97F4A7C15))
            for i in range(chunk * step, min(x.size, (chunk + 1) * step)):
                u = (s0 + s1) >> np.uint64(32)
                s1 ^= s0
                s0 = ((s0 << np.uint64(24)) | (s0 >> np.uint64(40))) ^ s1 ^ (s1 << np.uint64(16))
                s1 = (s1 << np.uint64(37)) | (s1 >> np.uint64(27))
                y[i] = x[i] * scale if u < threshold else np.float32(0)

    flat, y = x.reshape(-1), np.zeros(x.size, x.dtype)
    threshold, scale, calls = np.uint64(round((1 - p) * 2**32)), np.float32(1 / (1 - p)), iter(range(2**62))

    def call():
        drop(y, flat, threshold, scale, np.uint64(next(calls)))
        return y.reshape(x.shape)

    return call


RIVALS = {
    "numpy-binomial": Rival("NumPy binomial", "numpy", "fresh", {"dropout": numpy_binomial}),
    "numpy-random": Rival("NumPy random(float32)", "numpy", "reused", {"dropout": numpy_random}),
    "numpy-raw": Rival("NumPy random_raw", "numpy", "reused", {"dropout": numpy_raw}),
    "torch": Rival(
        "PyTorch",
        "torch",
        "fresh",
        {
            "dropout": torch_dropout,
            "train": torch_train,
            "softmax_dropout": torch_softmax_dropout,
            "symmetric_kl": torch_symmetric_kl,
            "r_drop": torch_r_drop,
            "multi_sample_mean": torch_multi_sample_mean,
        },
        lambda torch, threads: torch.set_num_threads(threads),
    ),
    "jax": Rival("JAX jit", "jax", "fresh", {"dropout": jax_dropout}),
    "keras": Rival("Keras on JAX", "keras", "fresh", {"dropout": keras_dropout}),
    "numba-random": Rival("Numba np.random", "numba", "reused", {"dropout": numba_random}),
    "numba-xoroshiro": Rival("Numba xoroshiro", "numba", "reused", {"dropout": numba_xoroshiro}),
}
