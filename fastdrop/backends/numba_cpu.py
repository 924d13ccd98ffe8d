"""The Numba backend on the CPU: every kernel of the reference, compiled at first use and kept on disk, no C compiler needed.

Architecture as in the C kernels.  The mask's decisions of a tile of 4096 elements are made in a buffer in L1, one byte
each, from blocks of 256 elements whose 16 lanes LLVM runs as vectors; then an elementwise body consumes them.  A tile is a
run of *logical* (C-order) elements, so broadcasting, slices and array p concern only `_decide`, and strides of x and y only
`_gather` and `_scatter`.

Threads are our own: each runs a nogil kernel on a range of whole tiles, so results do not depend on their number.  Numba's
`parallel=True` is not used: its omp layer kills forked children, its workqueue layer aborts when two Python threads enter
it.  The pool is dropped in a forked child, which makes its own.

Numba's disk cache looks at the time of one source file only; the kernels close over a digest of this file and of the rule,
which is part of the cache's key.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from hashlib import sha256
from pathlib import Path

import numpy as np
from numba import njit
from numba.extending import register_jitable

from . import numba_rule as rule
from ..mask import scale_of

NAME = "numba"
TILE = 4096
SERIAL = 1 << 16  # elements below which a second thread costs more than it saves

_SOURCES = sha256(Path(__file__).read_bytes() + Path(rule.__file__).read_bytes()).hexdigest()
_philox, _LOW = rule.philox, rule.LOW

# -- making decisions: one byte an element, 1 = kept -------------------------------------------------------------------


@register_jitable
def _bytes_of_blocks(words, block, count, seed, stream, tag):
    """Byte ``tag`` of U for ``count`` blocks of 256 elements, in element order once ``words`` is seen as bytes."""
    for b in range(count):
        word0, word1 = words[b * 64 : b * 64 + 16], words[b * 64 + 16 : b * 64 + 32]
        word2, word3 = words[b * 64 + 32 : b * 64 + 48], words[b * 64 + 48 : b * 64 + 64]
        first = ((block + np.uint64(b)) * np.uint64(16)) & np.uint64((1 << 60) - 1)
        for lane in range(16):
            w0, w1, w2, w3 = _philox(seed, stream, first + np.uint64(lane), tag)
            word0[lane] = w0
            word1[lane] = w1
            word2[lane] = w2
            word3[lane] = w3


@register_jitable
def _decide_blocks(keep, words, words1, block, count, seed, stream, threshold):
    """Decisions of ``count`` whole blocks: by one byte where it suffices, by two and, once in 65536, by all four."""
    n = count * 256
    if threshold == np.uint64(0) or threshold > np.uint64(_LOW):
        keep[:n] = threshold != np.uint64(0)
        return
    t0 = np.uint8(threshold >> np.uint64(24))
    t1 = np.uint8((threshold >> np.uint64(16)) & np.uint64(255))
    _bytes_of_blocks(words, block, count, seed, stream, 0)
    first = words.view(np.uint8)
    if threshold & np.uint64(0xFFFFFF) == np.uint64(0):
        for i in range(n):
            keep[i] = first[i] < t0
        return
    _bytes_of_blocks(words1, block, count, seed, stream, 1)
    second = words1.view(np.uint8)
    ties = False
    for i in range(n):
        keep[i] = (first[i] < t0) | ((first[i] == t0) & (second[i] < t1))
        ties |= (first[i] == t0) & (second[i] == t1)
    if ties and threshold & np.uint64(0xFFFF) != np.uint64(0):
        for i in range(n):
            if first[i] == t0 and second[i] == t1:
                keep[i] = rule.keep(seed, stream, (block << np.uint64(8)) + np.uint64(i), threshold)


@register_jitable
def _locate(index, shape, steps):
    """Where element ``index`` (C order) of an array of ``shape`` lies, in steps."""
    at = steps[0] * steps.dtype.type(0)
    for axis in range(shape.size - 1, -1, -1):
        rest = index // shape[axis]
        at += steps[axis] * steps.dtype.type(index - rest * shape[axis])
        index = rest
    return at


@register_jitable
def _made(made, have, words, words1, index, n, mask, threshold):
    """Position in ``made`` of the decisions from ``index`` on, making them if ``have`` (start, length) has not ``n``."""
    seed, stream, offset, shape, steps, stored = mask
    ahead = index - have[0]
    if ahead < have[1] and ahead + np.uint64(n) <= have[1]:
        return np.int64(ahead)
    if stored.size:
        for i in range(n):
            at = index + np.uint64(i)
            made[i] = (stored[at >> np.uint64(3)] >> np.uint8(at & np.uint64(7))) & np.uint8(1)
        have[0], have[1] = index, np.uint64(n)
        return 0
    inside = np.int64(index & np.uint64(255))
    count = (inside + n + 255) >> 8
    _decide_blocks(made, words, words1, index >> np.uint64(8), count, seed, stream, threshold)
    have[0], have[1] = index - np.uint64(inside), np.uint64(count * 256)
    return inside


@register_jitable
def _decide(keep, made, have, words, words1, first, n, mask, threshold):
    """Decisions of the ``n`` logical elements from ``first`` on, whatever the mask's steps."""
    seed, stream, offset, shape, steps, stored = mask
    if shape.size == 1 and steps[0] == np.uint64(1) and not stored.size:
        index = offset + np.uint64(first)
        if index & np.uint64(255) == np.uint64(0):
            _decide_blocks(keep, words, words1, index >> np.uint64(8), (n + 255) >> 8, seed, stream, threshold)
            return
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        index = offset + _locate(row, shape[:-1], steps[:-1]) + np.uint64(column) * step
        if step == np.uint64(1):
            at = _made(made, have, words, words1, index, run, mask, threshold)
            keep[done : done + run] = made[at : at + run]
        elif step == np.uint64(0):
            keep[done : done + run] = made[_made(made, have, words, words1, index, 1, mask, threshold)]
        else:
            for i in range(run):
                keep[done + i] = made[_made(made, have, words, words1, index, 1, mask, threshold)]
                index += step
        done += run


# -- arrays of any strides ---------------------------------------------------------------------------------------------


@register_jitable
def _gather(tile, x, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + _locate(row, shape[:-1], steps[:-1]) + column * step
        for i in range(run):
            tile[done + i] = x[at + i * step]
        done += run


@register_jitable
def _scatter(y, tile, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + _locate(row, shape[:-1], steps[:-1]) + column * step
        for i in range(run):
            y[at + i * step] = tile[done + i]
        done += run


@register_jitable
def _is_flat(shape, steps):
    return shape.size == 1 and steps[0] == 1


# -- kernels -----------------------------------------------------------------------------------------------------------
# `mask` is (seed, stream, offset, shape, steps, stored), `chances` (thresholds, run, shape, steps): one p serves `run`
# logical elements, and which one follows from the axes before them.


@register_jitable
def _scratch():
    """Buffers of one thread: decisions of the tile; decisions made and where they start; words of two bytes of U."""
    size = TILE + 256
    keep, made, have = np.empty(size, np.uint8), np.empty(size, np.uint8), np.zeros(3, np.uint64)
    return keep, made, have, np.empty(size // 4, np.uint32), np.empty(size // 4, np.uint32)


@register_jitable
def _tile(scratch, at, first, last, mask, chances):
    """Make decisions from element ``first`` on, at ``at`` in the tile: (how many elements of one p, that p's number)."""
    keep, made, have, words, words1 = scratch
    thresholds, run, shape, steps = chances
    n = min(TILE - at, last - first, run - first % run)
    p = _locate(first // run, shape, steps)
    if have[2] != np.uint64(p):
        have[1], have[2] = np.uint64(0), np.uint64(p)
    _decide(keep[at:], made, have, words, words1, first, n, mask, thresholds[p])
    return n, p


def _bit_kernels(sources):
    @njit(nogil=True, cache=True)
    def keep_bytes(out, start, shape, steps, mask, chances, first, last):
        assert sources
        scratch = _scratch()
        while first < last:
            n, _ = _tile(scratch, 0, first, last, mask, chances)
            _scatter(out, scratch[0], start, first, n, shape, steps)
            first += n

    @njit(nogil=True, cache=True)
    def keep_bits(out, mask, chances, first, last):
        assert sources
        scratch = _scratch()
        keep = scratch[0]
        eights = keep.view(np.uint64)
        while first < last:
            n = min(TILE, last - first)
            at = 0
            while at < n:
                at += _tile(scratch, at, first + at, first + n, mask, chances)[0]
            keep[n : n + 8] = 0
            packed = out[first // 8 : (first + n + 7) // 8]
            for i in range(packed.size):
                packed[i] = np.uint8((eights[i] * np.uint64(0x0102040810204080)) >> np.uint64(56))
            first += n

    return keep_bytes, keep_bits


def _float_kernels(sources, widen, narrow):
    @rule.inline  # for LLVM to see which arrays are the same one: it vectorises no loop whose arrays may overlap
    def body(y, x, keep, scale):
        for i in range(y.size):
            y[i] = narrow(rule.select(keep[i] != 0, widen(x[i]), scale))

    @njit(nogil=True, cache=True)
    def apply(y, x, y_start, x_start, shape, y_steps, x_steps, in_place, mask, chances, scales, first, last):
        assert sources
        scratch = _scratch()
        keep = scratch[0]
        flat = _is_flat(shape, x_steps) and _is_flat(shape, y_steps)
        tile = np.empty(TILE, y.dtype)
        while first < last:
            n, p = _tile(scratch, 0, first, last, mask, chances)
            if not flat:
                _gather(tile, x, x_start, first, n, shape, x_steps)
                body(tile[:n], tile[:n], keep, scales[p])
                _scatter(y, tile, y_start, first, n, shape, y_steps)
            elif in_place:
                part = y[y_start + first : y_start + first + n]
                body(part, part, keep, scales[p])
            else:
                body(y[y_start + first : y_start + first + n], x[x_start + first : x_start + first + n], keep, scales[p])
            first += n

    return apply
