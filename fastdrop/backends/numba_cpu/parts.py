"""What every kernel here is made of: a tile's decisions, and arrays of any strides as runs of logical elements."""

import numpy as np
from numba import njit

from ...dtypes import FLOATS
from ..numba_common import rule

TILE = 4096

_philox, _LOW = rule.philox, rule.LOW


def jit(function):
    """A kernel: compiled at first use, kept on disk, and run without Python's lock."""
    return njit(nogil=True, cache=True, error_model="numpy")(rule.named(function))


# -- making decisions: one byte an element, 1 = kept -------------------------------------------------------------------


@rule.jitable
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


@rule.jitable
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


@rule.jitable
def locate(index, shape, steps):
    """Where element ``index`` (C order) of an array of ``shape`` lies, in steps."""
    at = steps[0] * steps.dtype.type(0)
    for axis in range(shape.size - 1, -1, -1):
        rest = index // shape[axis]
        at += steps[axis] * steps.dtype.type(index - rest * shape[axis])
        index = rest
    return at


@rule.jitable
def _made(made, have, words, words1, index, n, mask, threshold):
    """Place in ``made`` of ``n`` decisions from ``index`` on, made now unless ``have`` (start, length) has them."""
    seed, stream, stored = mask[0], mask[1], mask[5]
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


@rule.jitable
def decide(keep, made, have, words, words1, first, n, mask, threshold):
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
        index = offset + locate(row, shape[:-1], steps[:-1]) + np.uint64(column) * step
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


@rule.jitable
def gather(tile, x, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + locate(row, shape[:-1], steps[:-1]) + column * step
        if step == 1:
            tile[done : done + run] = x[at : at + run]
        else:
            for i in range(run):
                tile[done + i] = x[at + i * step]
        done += run


@rule.jitable
def part_of(tile, x, which, starts, first, n, shape, steps, in_order):
    """Elements of an input as a run: its own memory where that is one, a copy in ``tile`` where not."""
    if in_order[which]:
        return x[starts[which] + first : starts[which] + first + n]
    gather(tile, x, starts[which], first, n, shape, steps[which])
    return tile[:n]


@rule.jitable
def scatter(y, tile, start, first, n, shape, steps):
    inner, step = shape[shape.size - 1], steps[shape.size - 1]
    done = 0
    while done < n:
        row = (first + done) // inner
        column = first + done - row * inner
        run = min(inner - column, n - done)
        at = start + locate(row, shape[:-1], steps[:-1]) + column * step
        if step == 1:
            y[at : at + run] = tile[done : done + run]
        else:
            for i in range(run):
                y[at + i * step] = tile[done + i]
        done += run


# -- what a kernel decides with ---------------------------------------------------------------------------------------
# `mask` is (seed, stream, offset, shape, steps, stored), `thresholds` (values, run, shape, steps): one p serves `run`
# logical elements, and which one follows from the axes before them.


@rule.jitable
def new_scratch():
    """Buffers of one thread: decisions of the tile; decisions made and where they start; words of two bytes of U."""
    size = TILE + 256
    keep, made, have = np.empty(size, np.uint8), np.empty(size, np.uint8), np.zeros(3, np.uint64)
    return keep, made, have, np.empty(size // 4, np.uint32), np.empty(size // 4, np.uint32)


@rule.jitable
def decide_tile(scratch, at, first, last, mask, thresholds):
    """Make decisions from element ``first`` on, at ``at`` in the tile: (how many elements of one p, which p)."""
    keep, made, have, words, words1 = scratch
    values, run, shape, steps = thresholds
    n = min(TILE - at, last - first, run - first % run)
    p = locate(first // run, shape, steps)
    if have[2] != np.uint64(p):
        have[1], have[2] = np.uint64(0), np.uint64(p)
    decide(keep[at:], made, have, words, words1, first, n, mask, values[p])
    return n, p


# dtype's name -> what its memory is seen as, what it is computed in, and how it gets there and back
DTYPES = {name: (each.stored, each.computed_in, *rule.CONVERSIONS[name]) for name, each in FLOATS.items()}
