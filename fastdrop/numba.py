"""The rule of the masks as functions for your own Numba kernels, `@njit` and `@cuda.jit` alike.

A kernel that calls `keep` decides by itself which elements a mask keeps, so it can fuse dropout with whatever it does,
and its backward kernel makes the same decisions again: no mask is stored or passed.  ``index`` is the flat C-order
position in the mask's own shape; ``seed`` and ``stream`` are those of the `fastdrop.Mask`, or any two integers below
2**64.

    keep(seed, stream, index, threshold)             one element; one Philox call, two once in 256
    keep_lane(seed, stream, call, threshold)         the 16 elements of one call: for a CUDA thread
    keep_bits64(seed, stream, word_index, threshold) 64 consecutive elements: for a CPU loop
    uniform32(seed, stream, index)                   the number that is compared with threshold; four calls
    threshold(p), scale(p)                           what p, the probability to drop, becomes; take them out of loops

They also run as plain Python, slowly, on NumPy's scalars.

What is no integer in the place of one, p for ``threshold`` say, is refused: compiling the call fails with a
`numba.core.errors.TypingError`, plain Python raises `TypeError`. `threshold` and `scale` raise `ValueError` for a p
that is NaN or not in [0, 1], in `@njit` code too. A CUDA kernel cannot: as at every exception in one, the thread ends
there, and the launch raises only under ``@cuda.jit(debug=True, opt=False)``; check p before the launch.

Examples
--------
>>> import fastdrop as fd, numpy as np
>>> from numba import njit
>>> from fastdrop.numba import keep, keep_bits64, keep_lane, scale, threshold, uniform32
>>> mask = fd.mask(640, 0.25, rng=42)
>>> key, t = (np.uint64(mask.seed), np.uint64(mask.stream)), threshold(mask.p)

One element, as its number and as a decision:

>>> one = njit(lambda seed, stream, index, t: (keep(seed, stream, index, t), uniform32(seed, stream, index) < t))
>>> bool(mask[137].keep()), one(*key, 137, t), scale(mask.p)
(True, (True, True), 1.3333333333333333)

64 consecutive elements, bit j of word w for element 64 * w + j, and the 16 of call 24, which lie in groups of four 64
apart, from 256 * (24 // 16) + 4 * (24 % 16) on:

>>> word = njit(lambda seed, stream, w, t: keep_bits64(seed, stream, w, t))
>>> int(word(*key, 2, t)) == int(mask.bits().view(np.uint64)[2])
True
>>> lane = njit(lambda seed, stream, call, t: keep_lane(seed, stream, call, t))
>>> at = 288 + 64 * (np.arange(16) // 4) + np.arange(16) % 4
>>> [lane(*key, 24, t) >> bit & 1 for bit in range(16)] == mask.keep()[at].astype(int).tolist()
True
"""

try:
    from .backends.numba_common.rule import keep, keep_bits64, keep_lane, scale, threshold, uniform32
except ImportError as error:
    raise ImportError(f"fastdrop.numba needs the package numba ({error}): pip install numba") from error

__all__ = ["keep", "keep_bits64", "keep_lane", "scale", "threshold", "uniform32"]
