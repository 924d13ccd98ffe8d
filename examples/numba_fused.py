"""Your own fused kernel on the CPU: bias + GELU + dropout + residual in one loop, and a backward that stores no mask.

`fastdrop.numba` is the rule of the masks as a function for `@njit` kernels.  The forward asks it for 64 decisions at a
time; the backward asks again, with the same seed and stream, and gets the same ones.

    python examples/numba_fused.py
"""

import math

import numpy as np
from numba import njit

import fastdrop as fd
from fastdrop.numba import keep_bits64, scale, threshold


@njit
def gelu(u):
    return 0.5 * u * (1.0 + math.erf(u * math.sqrt(0.5)))


@njit
def gelu_slope(u):
    return 0.5 * (1.0 + math.erf(u * math.sqrt(0.5))) + u * math.exp(-0.5 * u * u) / math.sqrt(2.0 * math.pi)


@njit(nogil=True)
def forward(y, x, bias, residual, seed, stream, p):
    t, s = threshold(p), scale(p)
    for start in range(0, x.size, 64):
        bits = keep_bits64(seed, stream, start // 64, t)
        for i in range(start, min(start + 64, x.size)):
            y[i] = residual[i]
            if (bits >> np.uint64(i - start)) & np.uint64(1):
                y[i] += gelu(x[i] + bias[i % bias.size]) * s


@njit(nogil=True)
def backward(dx, dbias, dy, x, bias, seed, stream, p):
    t, s = threshold(p), scale(p)
    dbias[:] = 0
    for start in range(0, x.size, 64):
        bits = keep_bits64(seed, stream, start // 64, t)
        for i in range(start, min(start + 64, x.size)):
            dx[i] = 0
            if (bits >> np.uint64(i - start)) & np.uint64(1):
                dx[i] = dy[i] * s * gelu_slope(x[i] + bias[i % bias.size])
                dbias[i % bias.size] += dx[i]


def main():
    rows, columns, p, rng = 200, 300, 0.1, fd.Rng(seed=1)
    numbers = np.random.default_rng(0)
    x, residual, dy = numbers.standard_normal((3, rows * columns))
    bias = numbers.standard_normal(columns)
    mask = rng.mask((rows, columns), p)  # only its two numbers are used: no array is made

    y, dx, dbias = np.empty_like(x), np.empty_like(x), np.empty_like(bias)
    forward(y, x, bias, residual, mask.seed, mask.stream, p)
    backward(dx, dbias, dy, x, bias, mask.seed, mask.stream, p)

    # The same mask as a NumPy array says the same.
    multipliers = np.asarray(mask).ravel()
    u = x + np.tile(bias, rows)
    want = residual + multipliers * [gelu(one) for one in u]
    print("forward  differs from NumPy by", abs(y - want).max())
    step = 1e-6
    slope = (np.array([gelu(one + step) for one in u]) - [gelu(one - step) for one in u]) / (2 * step)
    print("backward differs from central differences by", abs(dx - dy * multipliers * slope).max())
    print("bias gradient differs by", abs(dbias - (dy * multipliers * slope).reshape(rows, columns).sum(0)).max())


if __name__ == "__main__":
    main()
