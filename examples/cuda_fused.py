"""Your own fused kernel on a GPU: bias + GELU + dropout + residual in one pass, and a backward that stores no mask.

A thread is one lane of the stream's layout: `keep_lane` makes one Philox call and gives the decisions of 16 elements,
four groups of 4 that lie 64 apart, so that 16 threads work on 256 consecutive elements.

    python examples/cuda_fused.py                              on a GPU
    NUMBA_ENABLE_CUDASIM=1 python examples/cuda_fused.py       in Numba's simulator, without one
"""

import math

import numpy as np
from numba import cuda

import fastdrop as fd
from fastdrop.numba import keep_lane, scale, threshold

HALF, ONE, ROOT, NORM = (
    np.float32(0.5),
    np.float32(1),
    np.float32(math.sqrt(0.5)),
    np.float32(1 / math.sqrt(2 * math.pi)),
)


@cuda.jit(device=True)
def gelu(u):
    return HALF * u * (ONE + math.erf(u * ROOT))


@cuda.jit(device=True)
def gelu_slope(u):
    return HALF * (ONE + math.erf(u * ROOT)) + u * math.exp(-HALF * u * u) * NORM


@cuda.jit
def forward(y, x, bias, residual, seed, stream, t, s):
    call = cuda.grid(1)
    kept = keep_lane(seed, stream, call, t)
    first = (call // 16) * 256 + (call % 16) * 4
    for bit in range(16):
        i = first + 64 * (bit // 4) + bit % 4
        if i < x.shape[0]:
            y[i] = residual[i]
            if kept & (1 << bit):
                y[i] += gelu(x[i] + bias[i % bias.shape[0]]) * s


@cuda.jit
def backward(dx, dy, x, bias, seed, stream, t, s):
    call = cuda.grid(1)
    kept = keep_lane(seed, stream, call, t)
    first = (call // 16) * 256 + (call % 16) * 4
    for bit in range(16):
        i = first + 64 * (bit // 4) + bit % 4
        if i < x.shape[0]:
            dx[i] = np.float32(0)
            if kept & (1 << bit):
                dx[i] = dy[i] * s * gelu_slope(x[i] + bias[i % bias.shape[0]])


def main():
    rows, columns, p, rng = 10, 300, 0.1, fd.Rng(seed=1)
    numbers = np.random.default_rng(0)
    x, residual, dy = numbers.standard_normal((3, rows * columns), np.float32)
    bias = numbers.standard_normal(columns, np.float32)
    mask = rng.mask((rows, columns), p)

    blocks = -(-x.size // 1024)  # of 64 threads with 16 elements each
    key = np.uint64(mask.seed), np.uint64(mask.stream), threshold(p), np.float32(scale(p))
    on_device = [cuda.to_device(a) for a in (x, bias, residual, dy)]
    y, dx = cuda.to_device(np.empty_like(x)), cuda.to_device(np.empty_like(x))
    forward[blocks, 64](y, *on_device[:3], *key)
    backward[blocks, 64](dx, on_device[3], *on_device[:2], *key)

    # The same mask as a NumPy array says the same.
    multipliers = np.asarray(mask).ravel()
    u = (x + np.tile(bias, rows)).astype(np.float64)
    erf = np.array([math.erf(one * math.sqrt(0.5)) for one in u])
    slope = 0.5 * (1 + erf) + u * np.exp(-0.5 * u * u) / math.sqrt(2 * math.pi)
    print(
        "forward  differs from NumPy by", abs(y.copy_to_host() - (residual + multipliers * 0.5 * u * (1 + erf))).max()
    )
    print("backward differs from NumPy by", abs(dx.copy_to_host() - dy * multipliers * slope).max())


if __name__ == "__main__":
    main()
