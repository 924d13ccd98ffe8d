"""The rule of stream version 1 in NumPy: which elements a mask keeps, whatever part of it, array-valued p and all."""

import numpy as np

from ...memory import allocate
from ...rule import threshold

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


def decisions(mask, shape):
    """The decisions of ``mask`` as an array that broadcasts to ``shape``; chunked by `pieces`."""
    return allocate(_decide, mask, shape)


def _decide(mask, shape):
    if mask._stored is not None:
        index = _index(mask, shape)
        return (mask._stored[index >> np.uint64(3)] >> (index & np.uint64(7)).astype(np.uint8) & 1).astype(bool)
    if type(mask.p) is float:
        if mask._strides is None and shape == mask.shape:
            return keep_range(mask.seed, mask.stream, mask._offset, mask.size, mask.p).reshape(shape)
        return keep_at(mask.seed, mask.stream, _index(mask, shape), mask.p)
    uniform = uniform32(mask.seed, mask.stream, _index(mask, shape))
    return uniform < np.vectorize(threshold, otypes=[np.uint64])(mask.broadcast_p())


def pieces(shape):
    """Index tuples that cut ``shape`` along leading axes into parts of about CHUNK elements."""
    size = int(np.prod(shape, dtype=object))
    if size <= CHUNK or not shape:
        yield ()
        return
    inner = size // shape[0]
    if inner > CHUNK:
        for i in range(shape[0]):
            for rest in pieces(shape[1:]):
                yield (slice(i, i + 1), *rest)
        return
    step = max(1, CHUNK // inner)
    for i in range(0, shape[0], step):
        yield (slice(i, min(i + step, shape[0])),)


def part_of(mask, shape, piece):
    """The part of a mask that lies on ``piece`` of an array of ``shape`` that it broadcasts to."""
    own = piece[max(0, len(shape) - mask.ndim) :]
    return mask[tuple(slice(None) if n == 1 else k for k, n in zip(own, mask.shape))]


def keep(out, mask):
    """Write the decisions: ``out`` is bool, of the mask's shape."""
    for piece in pieces(out.shape):
        out[piece] = decisions(mask[piece], out[piece].shape)


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
