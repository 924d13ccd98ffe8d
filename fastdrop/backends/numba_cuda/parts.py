"""Pieces that the CUDA kernels are made of: 16-byte accesses, places in arrays, decisions, launches.

One thread is one lane of the stream's layout: one Philox call decides its 16 elements, which lie in four groups of 4,
so a float32 group is one 16-byte load and one 16-byte store, and 16 threads touch 256 consecutive bytes.  A thread of a
16-bit dtype is two neighbouring lanes, so that its groups of 8 are 16 bytes too.  Decisions are compared four to a word
(see `numba_common.rule.keep_flags`), ties included.

In Numba's simulator (NUMBA_ENABLE_CUDASIM=1) the kernels run as plain Python.
"""

from functools import lru_cache

import numpy as np
from numba import config, cuda, types
from numba.extending import intrinsic, overload

from ...dtypes import FLOATS
from ...rule import scale_of, threshold
from ..numba_common import rule
from ..numba_common.axes import c_steps, join

THREADS = 8 if config.ENABLE_CUDASIM else 256  # a block; the simulator starts a Python thread for each
AXES = 8  # of an array with strides, once axes that follow one another are joined
BLOCKS = 1 if config.ENABLE_CUDASIM else 128  # of every launch, at least: Numba warns of fewer
LOW60 = (1 << 60) - 1
PER_INDEX_P, USER_BITS = 1, 2  # kinds of mask: a p for each part, decisions of the user's own

# dtype -> how a number gets to what it is computed in and back, what that is, and a thread's lanes of the layout
DTYPES = {name: (*rule.CONVERSIONS[name], each.computed_in, 1 + (each.itemsize == 2)) for name, each in FLOATS.items()}


def jit(function):
    """A kernel: compiled at first use and kept on disk."""
    return cuda.jit(cache=True)(rule.named(function))


# -- 16 bytes at once --------------------------------------------------------------------------------------------------
# Four scalar loads stay four loads: nothing tells NVVM that an array is aligned. And a vector load of eight 16-bit
# numbers becomes two of four, whatever type it is written in: so the instruction itself is written down. 16-bit numbers
# go in pairs, as words.

_ASM = {32: ("v4.f32", "f", rule.ir.FloatType(), 4), 64: ("v2.f64", "d", rule.ir.DoubleType(), 2)}
_ASM[16] = "v4.u32", "r", rule.ir.IntType(32), 4


def _address(context, builder, array_type, array, index):
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [index])
    return builder.ptrtoint(builder.addrspacecast(pointer, pointer.type.pointee.as_pointer(1)), rule.ir.IntType(64))


@intrinsic
def _load16(typing_context, array, index):
    bits = array.dtype.bitwidth
    result = types.UniTuple(array.dtype, 128 // bits)

    def generate(context, builder, signature, args):
        name, letter, kind, count = _ASM[bits]
        into = ", ".join(f"${i}" for i in range(count))
        code = f"ld.global.{name} {{{into}}}, [${count}];"
        shape = rule.ir.FunctionType(rule.ir.LiteralStructType([kind] * count), [rule.ir.IntType(64)])
        constraints = ",".join([f"={letter}"] * count + ["l"])
        address = _address(context, builder, array, *args)
        loaded = builder.asm(shape, code, constraints, [address], True)
        items = [builder.extract_value(loaded, i) for i in range(count)]
        if bits == 16:
            short = rule.ir.IntType(16)
            halves = [(builder.trunc(w, short), builder.trunc(builder.lshr(w, w.type(16)), short)) for w in items]
            items = [half for pair in halves for half in pair]
        return context.make_tuple(builder, result, items)

    return result(array, types.int64), generate


@intrinsic
def _store16(typing_context, array, index, values):
    bits = array.dtype.bitwidth

    def generate(context, builder, signature, args):
        name, letter, kind, count = _ASM[bits]
        items = [builder.extract_value(args[2], i) for i in range(values.count)]
        if bits == 16:
            words = [builder.zext(item, kind) for item in items]
            items = [builder.or_(a, builder.shl(b, kind(16))) for a, b in zip(words[::2], words[1::2], strict=True)]
        given = ", ".join(f"${i + 1}" for i in range(count))
        shape = rule.ir.FunctionType(rule.ir.VoidType(), [rule.ir.IntType(64)] + [kind] * count)
        constraints = ",".join(["l"] + [letter] * count)
        address = _address(context, builder, array, *args[:2])
        builder.asm(shape, f"st.global.{name} [$0], {{{given}}};", constraints, [address, *items], True)
        return context.get_dummy_value()

    return types.void(array, types.int64, values), generate


def load16(array, index):
    """The elements of ``array`` in the 16 bytes from ``index`` on, which must be aligned."""
    return tuple(array[index + i] for i in range(16 // array.dtype.itemsize))


def store16(array, index, values):
    """Write 16 bytes of elements from ``index`` on, which must be aligned."""
    for i in range(len(values)):
        array[index + i] = values[i]


@overload(load16)
def _(array, index):
    return rule.named(lambda array, index: _load16(array, np.int64(index)))


@overload(store16)
def _(array, index, values):
    return rule.named(lambda array, index, values: _store16(array, np.int64(index), values))


# -- pieces of kernels -------------------------------------------------------------------------------------------------


@rule.inline
def locate(index, shape, steps):
    """Where element ``index`` (C order) of an array of ``shape`` lies, in steps."""
    at = np.int64(0)
    for i in range(AXES):
        axis = AXES - 1 - i
        rest = index // shape[axis]
        at += (index - rest * shape[axis]) * steps[axis]
        index = rest
        if index == 0:  # the axes before it are of length 1, or this is their first element
            break
    return at


@rule.inline
def locate3(index, shape, steps0, steps1, steps2):
    """`locate` in three arrays of one shape, for one division an axis."""
    at0, at1, at2 = np.int64(0), np.int64(0), np.int64(0)
    for i in range(AXES):
        axis = AXES - 1 - i
        rest = index // shape[axis]
        here = index - rest * shape[axis]
        at0 += here * steps0[axis]
        at1 += here * steps1[axis]
        at2 += here * steps2[axis]
        index = rest
        if index == 0:
            break
    return at0, at1, at2


@rule.inline
def wrap(column, columns):
    return column if column < columns else column % columns


@rule.inline
def pick(k0, k1, k2, k3, word):
    low = k1 if word & 1 else k0
    high = k3 if word & 1 else k2
    return high if word & 2 else low


@rule.inline
def kept_byte(flags, byte):
    return (flags >> np.uint32(8 * byte + 7)) & np.uint32(1) != np.uint32(0)


@rule.inline
def flags4(seed, stream, index, threshold, stored, kind):
    """Flags (0x80 in every kept byte) of the four elements from ``index``, a multiple of 4, on."""
    if kind & USER_BITS:
        four = np.uint32(stored[np.int64(index >> np.uint64(3))]) >> np.uint32(index & np.uint64(4))
        low = (four & np.uint32(1)) << np.uint32(7) | (four & np.uint32(2)) << np.uint32(14)
        return np.uint32(low | (four & np.uint32(4)) << np.uint32(21) | (four & np.uint32(8)) << np.uint32(28))
    k0, k1, k2, k3 = rule.keep_flags(seed, stream, rule.call_of(index), threshold)
    return pick(k0, k1, k2, k3, np.int64((index >> np.uint64(6)) & np.uint64(3)))


@rule.inline
def decide(seed, stream, index, threshold, stored, kind):
    """Is one element kept?"""
    if kind & USER_BITS:
        byte = np.uint32(stored[np.int64(index >> np.uint64(3))])
        return (byte >> np.uint32(index & np.uint64(7))) & np.uint32(1) != np.uint32(0)
    return rule.keep(seed, stream, index, threshold)


@rule.inline
def threshold_at(thresholds, at, threshold, kind):
    """The threshold of one element: its own where every part has its p."""
    return np.uint64(thresholds[at]) if kind & PER_INDEX_P else threshold


@rule.inline
def first_of(thread, head, shift):
    """First of a thread's elements, in an array whose element 0 is element ``head`` of a block of 256."""
    return (thread >> shift) * 256 + (thread & ((1 << shift) - 1)) * (64 >> shift) - head


# -- launches ----------------------------------------------------------------------------------------------------------
# Arrays are `DeviceArray`s of `fastdrop.cuda` that have been checked; ``stream`` is the address of a CUDA stream.


@lru_cache(maxsize=64)
def numba_stream(stream):
    """A stream as Numba has it: the same object for the same one, which makes the next launch quicker."""
    return cuda.external_stream(stream) if stream else 0


def launch(kernel, threads, stream, *arguments):
    """Run ``kernel`` on a line of threads, a few too many; 2**31 blocks of 256 threads are more than memory holds."""
    kernel[max(BLOCKS, -(-threads // THREADS)), THREADS, numba_stream(stream)](*arguments)


def launch_rows(kernel, rows, stream, *arguments):
    """Run ``kernel`` on ``rows`` blocks, or a few more, in a grid of two axes: 2**31 is the most of one."""
    wide = min(max(BLOCKS, rows), 2**31 - 1)
    kernel[(wide, -(-rows // wide)), THREADS, numba_stream(stream)](*arguments)


def real(dtype):
    """The type that numbers of ``dtype`` are computed and summed in; of bits, which are not, any."""
    return FLOATS[dtype].computed_in if dtype in FLOATS else np.float32


def wide(shape, *steps):
    """Joined axes, filled up to what a kernel takes."""
    joined = join(shape, *steps)
    if len(joined[0]) > AXES:
        raise ValueError(
            f"arrays on the device may have at most {AXES} axes that cannot be joined, got {len(joined[0])}"
        )
    missing = AXES - len(joined[0])
    return [(fill,) * missing + tuple(axes) for fill, axes in zip((1, *[0] * len(steps)), joined, strict=True)]


def mask_steps(mask, shape):
    """Steps in the stream along each axis of ``shape``, modulo 2**64 as an int64 has them."""
    return [step - (1 << 64) if step >> 63 else step for step in mask.strides_for(shape)]


def source(mask):
    """Where a mask's decisions come from, as kernels take it: seed and stream."""
    return np.uint64(mask.seed or 0), np.uint64(mask.stream or 0)


def thresholds_and_scales(mask, like, stream):
    """Thresholds and scales as kernels take them: one of each, then tables on the device of ``like`` for an array p."""
    if type(mask.p) is float:
        return *threshold_and_scale(mask.p, like.dtype), like.stand_in("int64"), like.stand_in(like.computed_in)
    flat = np.ascontiguousarray(mask.p).ravel()
    thresholds = np.array([threshold(p) for p in flat], np.int64)
    with np.errstate(over="ignore"):
        scales = scale_of(flat).astype(real(like.dtype))
    return *threshold_and_scale(0.0, like.dtype), like.upload(thresholds, stream), like.upload(scales, stream)


def threshold_and_scale(p, dtype):
    """Threshold and scale of one p."""
    with np.errstate(over="ignore"):
        return np.uint64(threshold(p)), real(dtype)(scale_of(p))


def stored_bits(mask, like, stream):
    """The packed decisions of a mask of `Mask.from_keep`, copied to the device, and the kind of the mask."""
    kind = PER_INDEX_P * (type(mask.p) is not float)
    if mask._stored is None:
        return like.stand_in("uint8"), kind
    padded = np.append(mask._stored, np.uint8(0))  # four at a time look past the end
    return like.upload(padded, stream), kind | USER_BITS


def p_steps(mask, shape):
    """Steps in the tables of `thresholds_and_scales` along each axis of ``shape``, which the mask broadcasts to."""
    if type(mask.p) is float:
        return (0,) * len(shape)
    own = tuple(0 if n == 1 else step for n, step in zip(mask.p.shape, c_steps(mask.p.shape), strict=True))
    return (0,) * (len(shape) - mask.ndim) + own + (0,) * (mask.ndim - mask.p.ndim)
