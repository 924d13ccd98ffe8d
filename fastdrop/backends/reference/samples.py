"""Means and sums over the samples of a mask, which lie along its first axis."""

import numpy as np

from ...dtypes import FLOATS
from ...rule import scale_of
from .stream import decisions, pieces


def sample_mean(y, x, mask, keep=decisions):
    """y = the mean over samples of select(mask[s], x); the mask has shape (S, *x.shape) and one p, or one a sample.

    One p: y = x * (count of kept * T(scale / S)). One a sample: y = x * (sum of the kept T(scale) in order * T(1 / S)).
    T rounds to float32 (float64 for float64). An element that no sample keeps is +0.0 by selection.
    """
    wide, weights = _weights(x.dtype, 1.0 if type(mask.p) is float else scale_of(mask.p), len(mask))
    with np.errstate(all="ignore"):
        factor = wide((scale_of(mask.p) if type(mask.p) is float else 1.0) / len(mask))
        for piece in pieces(x.shape):
            total, kept = wide(0), False
            for s, weight in enumerate(weights):
                k = keep(mask[(s, *piece)], x[piece].shape)
                total = total + np.where(k, weight, wide(0))
                kept = kept | k
            y[piece] = np.where(kept, x[piece].astype(wide) * (total * factor), wide(0)).astype(y.dtype)


def sample_sum(dx, dy, mask, keep=decisions):
    """dx = the sum over samples, in order, of select(mask[s], dy[s]), rounded once; p as in `sample_mean`."""
    wide, scales = _weights(dx.dtype, scale_of(mask.p), len(mask))
    with np.errstate(all="ignore"):
        for piece in pieces(dx.shape):
            total = wide(0)
            for s, scale in enumerate(scales):
                k = keep(mask[(s, *piece)], dx[piece].shape)
                total = total + np.where(k, dy[(s, *piece)].astype(wide) * scale, wide(0))
            dx[piece] = total.astype(dx.dtype)


def _weights(dtype, weights, samples):
    """The type that sums of ``dtype`` are made in, and in it one weight for each sample."""
    wide = FLOATS[dtype.name].computed_in
    with np.errstate(over="ignore"):
        return wide, np.broadcast_to(np.asarray(weights, np.float64).astype(wide), (samples,))
