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
"""

from .backends.numba_rule import keep, keep_bits64, keep_lane, scale, threshold, uniform32

__all__ = ["keep", "keep_bits64", "keep_lane", "scale", "threshold", "uniform32"]
