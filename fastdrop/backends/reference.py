"""The reference backend: plain NumPy, the executable specification of every kernel.

What a kernel must give, to the bit, is written here in the fewest words; the C, Numba and CUDA kernels are tested
against it.  It is also the fallback where nothing was compiled, so long arrays are worked through in chunks.  Every
other backend exports functions of the same names and arguments.
"""

import numpy as np

from ..buffers import new_array, with_room
from ..operations import OPERATIONS
from ..rule import scale_of, threshold
from .reference_rows import max_norm, row_losses, softmax_dropout  # noqa: F401  (functions of every backend)

NAME = "reference"
CHUNK = 1 << 20  # elements whose temporaries are alive at a time

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# -- the rule: stream version 1 ----------------------------------------------------------------------------------------


def philox4x32(counter, key):
    """Philox4x32-10 (Salmon et al., SC 2011) on arrays.

    Parameters
    ----------
    counter : sequence of 4 arrays of uint64 holding 32-bit numbers
    key : sequence of 2 ints

    Returns
    -------
    list of 4 arrays of uint64 holding 32-bit numbers
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (b >> _32) ^ c1 ^ np.uint64(k0), b & _LOW, (a >> _32) ^ c3 ^ np.uint64(k1), a & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


def philox_call(seed, stream, call, tag):
    """The four words of call number ``call`` (array of uint64) with ``tag``, in the stream's counter layout."""
    c1 = (call >> _32) | np.uint64(tag << 28)
    counter = call & _LOW, c1, np.full_like(call, stream & 0xFFFFFFFF), np.full_like(call, stream >> 32)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))


def uniform32(seed, stream, index):
    """U(index): uniform on 32 bits, for an array of uint64 indices."""
    index = np.asarray(index, np.uint64)
    call = (index >> np.uint64(8)) * np.uint64(16) + ((index >> np.uint64(2)) & np.uint64(15))
    word = (index >> np.uint64(6)) & np.uint64(3)
    shift = np.uint64(8) * (index & np.uint64(3))
    u = np.zeros_like(index)
    for tag in range(4):
        words = philox_call(seed, stream, call, tag)
        u = u << np.uint64(8) | (np.choose(word.astype(np.intp), words) >> shift) & np.uint64(255)
    return u


def keep_at(seed, stream, index, p):
    """Is element ``index`` kept: U(index) < T."""
    return uniform32(seed, stream, index) < np.uint64(threshold(p))


def keep_range(seed, stream, offset, n, p):
    """`keep_at` for ``n`` consecutive elements from ``offset``, one Philox call for 16 of them: U only where byte
    0 ties."""
    t = threshold(p)
    if t == 0 or t == 2**32:
        return np.full(n, t != 0)
    first, last = offset >> 8, (offset + n + 255) >> 8
    block = np.arange(last - first, dtype=np.uint64) + np.uint64(first)
    call = (block[:, None] * np.uint64(16) + np.arange(16, dtype=np.uint64)).ravel()
    words = np.stack(philox_call(seed, stream, call, 0)).astype("<u4")  # [word, block * 16 + lane]
    byte = words.reshape(4, -1, 16).transpose(1, 0, 2).copy().view(np.uint8).ravel()  # [block, word, lane, byte]
    byte = byte[offset & 255 :][:n]
    keep = byte < (t >> 24)
    tie = np.flatnonzero(byte == (t >> 24))
    keep[tie] = keep_at(seed, stream, tie.astype(np.uint64) + np.uint64(offset), p)
    return keep


# -- masks -------------------------------------------------------------------------------------------------------------


def _index(mask, shape):
    """Positions of a mask's elements in its stream (uint64, modulo 2**64), broadcast to ``shape``."""
    index = np.full((1,) * len(shape), mask._offset, np.uint64)
    for axis, (n, stride) in enumerate(zip(shape, mask.strides_for(shape))):
        steps = np.arange(n, dtype=np.uint64) * np.uint64(stride)
        index = index + steps.reshape((n,) + (1,) * (len(shape) - 1 - axis))
    return index


def _keep(mask, shape):
    """The decisions of ``mask`` as an array that broadcasts to ``shape``; chunked by `_pieces`."""
    return with_room(_decisions, mask, shape)


def _decisions(mask, shape):
    if mask._stored is not None:
        index = _index(mask, shape)
        return (mask._stored[index >> np.uint64(3)] >> (index & np.uint64(7)).astype(np.uint8) & 1).astype(bool)
    if type(mask.p) is float:
        if mask._strides is None and shape == mask.shape:
            return keep_range(mask.seed, mask.stream, mask._offset, mask.size, mask.p).reshape(shape)
        return keep_at(mask.seed, mask.stream, _index(mask, shape), mask.p)
    uniform = uniform32(mask.seed, mask.stream, _index(mask, shape))
    return uniform < np.vectorize(threshold, otypes=[np.uint64])(mask.wide_p())


def _pieces(shape):
    """Index tuples that cut ``shape`` along leading axes into parts of about CHUNK elements."""
    size = int(np.prod(shape, dtype=object))
    if size <= CHUNK or not shape:
        yield ()
        return
    inner = size // shape[0]
    if inner > CHUNK:
        for i in range(shape[0]):
            for rest in _pieces(shape[1:]):
                yield (slice(i, i + 1), *rest)
        return
    step = max(1, CHUNK // inner)
    for i in range(0, shape[0], step):
        yield (slice(i, min(i + step, shape[0])),)


def _part(mask, shape, piece):
    """The part of a mask that lies on ``piece`` of an array of ``shape`` that it broadcasts to."""
    own = piece[max(0, len(shape) - mask.ndim) :]
    return mask[tuple(slice(None) if n == 1 else k for k, n in zip(own, mask.shape))]


def keep(out, mask):
    """Write the decisions: ``out`` is bool, of the mask's shape."""
    for piece in _pieces(out.shape):
        out[piece] = _keep(mask[piece], out[piece].shape)


def keep_bits(out, mask):
    """Write the decisions packed: ``out`` is uint8, (size + 7) // 8 of them, C-contiguous."""
    if mask._strides is None and type(mask.p) is float and mask._stored is None:
        for start in range(0, mask.size, CHUNK):
            n = min(CHUNK, mask.size - start)
            part = keep_range(mask.seed, mask.stream, mask._offset + start, n, mask.p)
            out[start // 8 : (start + n + 7) // 8] = np.packbits(part, bitorder="little")
    else:
        pack_bits(out, mask)


def pack_bits(out, mask):
    """`keep_bits` by way of an array of bools, for parts of masks and array-valued p."""
    out[:] = np.packbits(mask.keep(), axis=None, bitorder="little")


# -- dropout -----------------------------------------------------------------------------------------------------------


def widen(x):
    """The precision that x is worked on in: float32 for the 16-bit dtypes."""
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def narrow(y, dtype):
    """Round once, to nearest even, to the dtype of the result."""
    return bfloat16(y, dtype) if dtype.name == "bfloat16" else y.astype(dtype)


def select(keep, x, scale):
    """kept: x * scale, dropped: +0.0, for x as `widen` gives it; ``scale`` is a double or an array of them."""
    return np.where(keep, x * np.asarray(scale, np.float64).astype(x.dtype), x.dtype.type(0))


def bfloat16(a, dtype):
    """float32 to bfloat16, to nearest even. A NaN keeps sign and payload, as in every other conversion between floats;
    ml_dtypes makes all NaNs one."""
    bits = a.view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1)))
    quiet = bits | np.uint32(0x400000)
    return (np.where(np.isnan(a), quiet, rounded) >> np.uint32(16)).astype(np.uint16).view(dtype)


def elementwise(op, y, inputs, mask):
    """y = the operation of that name, chunk by chunk; ``y`` may be one of the inputs."""
    operation = OPERATIONS[op]
    for piece in _pieces(y.shape):
        part = _part(mask, y.shape, piece)
        keep, scale = _keep(part, part.shape), scale_of(part.wide_p())
        with np.errstate(all="ignore"):  # dropped NaN and Inf, p = 1, and overflow to Inf are all in the rule
            given = [widen(x[piece]) for x in inputs]
            wide = [x.astype(np.float64) for x in given] if operation.tolerance else given
            result = select(keep, operation.value(*wide).astype(given[0].dtype, copy=False), scale)
            y[piece] = narrow(result + given[1] if operation.residual else result, y.dtype)


def apply(y, x, mask):
    """y = drop(x): the forward pass, and on dy the backward pass."""
    elementwise("apply", y, (x,), mask)


def apply_sum(total, dy, mask, dx=None, apply=apply):
    """total = the sum of select(mask, dy) over the axes where total has length 1; dx, if given, gets what is summed.

    total is float32, float64 for float64, and has as many axes as dy.
    """
    total[...] = 0
    shared = tuple(a for a, n in enumerate(total.shape) if n == 1)
    rows = dy.shape[0] if dy.ndim else 1
    step = max(1, CHUNK // 4 * rows // dy.size)
    for start in range(0, rows, step):
        at = slice(start, start + step) if dy.ndim else ...  # dy[...] of a 0-d array is an array still, dy[()] a number
        part = mask if mask.ndim < dy.ndim or mask.shape[:1] == (1,) else mask[at]
        if dx is None or dx.dtype != total.dtype:  # products of 16-bit numbers are summed before they are rounded
            wide = dy[at].astype(total.dtype, copy=False)
            summed = new_array(wide.shape, wide.dtype)
            apply(summed, wide, part)
        if dx is not None:  # after that: dx may be dy
            apply(dx[at], dy[at], part)
            summed = dx[at] if dx.dtype == total.dtype else summed
        to = total if 0 in shared or not dy.ndim else total[at]
        to += summed.sum(axis=shared, dtype=total.dtype, keepdims=True)


# -- several samples ---------------------------------------------------------------------------------------------------


def sample_mean(y, x, mask, keep=_keep):
    """y = the mean over samples of select(mask[s], x); the mask has shape (S, *x.shape) and one p, or one a sample.

    One p: y = x * (count of kept * T(scale / S)). One a sample: y = x * (sum of the kept T(scale) in order * T(1 / S)).
    T rounds to float32 (float64 for float64). An element that no sample keeps is +0.0 by selection.
    """
    wide, weights = _weights(x.dtype, 1.0 if type(mask.p) is float else scale_of(mask.p), len(mask))
    with np.errstate(all="ignore"):
        factor = wide((scale_of(mask.p) if type(mask.p) is float else 1.0) / len(mask))
        for piece in _pieces(x.shape):
            total, kept = wide(0), False
            for s, weight in enumerate(weights):
                k = keep(mask[(s, *piece)], x[piece].shape)
                total = total + np.where(k, weight, wide(0))
                kept = kept | k
            y[piece] = np.where(kept, x[piece].astype(wide) * (total * factor), wide(0)).astype(y.dtype)


def sample_sum(dx, dy, mask, keep=_keep):
    """dx = the sum over samples, in order, of select(mask[s], dy[s]), rounded once; p as in `sample_mean`."""
    wide, scales = _weights(dx.dtype, scale_of(mask.p), len(mask))
    with np.errstate(all="ignore"):
        for piece in _pieces(dx.shape):
            total = wide(0)
            for s, scale in enumerate(scales):
                k = keep(mask[(s, *piece)], dx[piece].shape)
                total = total + np.where(k, dy[(s, *piece)].astype(wide) * scale, wide(0))
            dx[piece] = total.astype(dx.dtype)


def _weights(dtype, weights, samples):
    """The type that sums of ``dtype`` are made in, and in it one weight for each sample."""
    wide = np.float64 if dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore"):
        return wide, np.broadcast_to(np.asarray(weights, np.float64).astype(wide), (samples,))
