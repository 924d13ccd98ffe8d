"""THE rule of stream version 1 for Numba, on the CPU and on CUDA: is element i of a mask kept?

Scalar functions, written once: `fastdrop.numba` shows them to users, and the kernels of both Numba backends are made of
them.  ``src/stream.h`` says the rule in words.  They are plain Python functions that Numba compiles into whatever calls
them, `@njit` or `@cuda.jit`, and that also run as they are, slowly, which is how the CUDA simulator runs them.

Every constant is cast: Numba makes ``uint64 (op) int64`` a float64.  Words are held in 32 bits, the width in which LLVM
turns a loop over lanes into vpmuludq; every step that could overflow is done in 64 bits and masked, since NumPy's
scalars, which the plain functions work on, warn where machine integers wrap.
"""

from __future__ import annotations

import math
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, errors
from numba.extending import intrinsic, overload, register_jitable

from ... import operations

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    from ...typing import Integer

    P = ParamSpec("P")
    R = TypeVar("R")

# -- names of compiled code ------------------------------------------------------------------------------------------
# Numba calls machine code by module, __qualname__, argument types and a count of what the process has compiled so far.
# Two closures of one function, compiled by two processes that share a disk cache, can get one name, and in a third
# process, which loads both, the first runs in the place of the second. And that cache looks at the time of one source
# file only. So every kernel and every closure is compiled under a name that no other code has, of any version.

_FILES = Path(operations.__file__), *sorted(Path(__file__).parents[1].rglob("*.py"))
_SOURCES = sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()
_NAMES = set()  # given so far


def named(function):
    """Give a function a ``__qualname__`` of its own, made of the sources, its line and what it closes over."""
    contents = [_content(cell.cell_contents) for cell in function.__closure__ or ()]
    made_of = _SOURCES, function.__code__.co_firstlineno, contents
    function.__qualname__ += f"_{sha256(repr(made_of).encode()).hexdigest()[:16]}"
    _NAMES.add(function.__qualname__)
    return function


def _content(value):
    """What code closes over, as something whose repr is the same in every process."""
    if isinstance(value, tuple):
        return tuple(map(_content, value))
    if value is None or isinstance(value, (bool, int, float, str, types.Type)):
        return repr(value)
    if isinstance(value, np.generic):
        return value.dtype.name, value.item()
    if not callable(value) or ("<locals>" in value.__qualname__ and value.__qualname__ not in _NAMES):
        raise TypeError(f"kernels may close over numbers, types and functions with a name of their own, got {value!r}")
    return value.__module__, value.__qualname__


def jitable(function, forceinline=False):
    """For a function that kernels call; one of a module has a name of its own."""
    return register_jitable(forceinline=forceinline)(
        named(function) if "<locals>" in function.__qualname__ else function
    )


def inline(function: Callable[P, R]) -> Callable[P, R]:
    """For a function that is never called: LLVM leaves one of Philox's size uninlined and then cannot vectorise the
    loop around it."""
    return jitable(function, forceinline=True)


LOW = 0xFFFFFFFF
HIGH_BITS = 0x80808080  # one flag a byte
LOW_BITS = 0x7F7F7F7F
INTEGERS = "seed, stream, places and threshold must be integers, the threshold threshold(p) and not p, got {}"


@intrinsic
def _product(typing_context, a, b):
    def generate(context, builder, signature, args):
        word, wide = ir.IntType(32), ir.IntType(64)
        if "nvptx" in builder.module.triple:  # left to itself, NVVM takes two instructions: one for each half
            return builder.asm(ir.FunctionType(wide, [word, word]), "mul.wide.u32 $0, $1, $2;", "=l,r,r", args, False)
        return builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))

    return types.uint64(types.uint32, types.uint32), generate


def product(a, b):
    """The 64-bit product of two uint32."""
    return np.uint64(a) * np.uint64(b)


@overload(product)
def _(a, b):
    return named(lambda a, b: _product(a, b))


def uint64(value):
    """An integer argument as a uint64. A float is refused where the call is compiled: p in the threshold's place."""
    if not isinstance(value, (int, np.integer)):
        raise TypeError(INTEGERS.format(value))
    return np.uint64(value)


@overload(uint64, jit_options={"forceinline": True})
def _(value):
    if not isinstance(value, types.Integer):
        raise errors.TypingError(INTEGERS.format(value))
    return named(lambda value: np.uint64(value))


@inline
def _round(c0, c1, c2, c3, k0, k1):
    a = product(c0, np.uint32(0xD2511F53))
    b = product(c2, np.uint32(0xCD9E8D57))
    return (
        np.uint32(np.uint32(b >> np.uint64(32)) ^ c1 ^ k0),
        np.uint32(b & np.uint64(LOW)),
        np.uint32(np.uint32(a >> np.uint64(32)) ^ c3 ^ k1),
        np.uint32(a & np.uint64(LOW)),
        np.uint32((np.uint64(k0) + np.uint64(0x9E3779B9)) & np.uint64(LOW)),
        np.uint32((np.uint64(k1) + np.uint64(0xBB67AE85)) & np.uint64(LOW)),
    )


@inline
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 (Salmon et al., SC 2011) of a counter of four and a key of two uint32: four uint32."""
    # Written out: a loop here would be the innermost one, and the loop over lanes would not be vectorised.
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    c0, c1, c2, c3, k0, k1 = _round(c0, c1, c2, c3, k0, k1)
    return c0, c1, c2, c3


@inline
def philox(seed, stream, call, tag):
    """The four words of call number ``call`` (< 2**60) with ``tag``: a byte of each of 16 elements."""
    seed, stream, call = uint64(seed), uint64(stream), uint64(call)
    return philox4x32(
        np.uint32(call & np.uint64(LOW)),
        np.uint32((call >> np.uint64(32)) | np.uint64(tag) << np.uint64(28)),
        np.uint32(stream & np.uint64(LOW)),
        np.uint32(stream >> np.uint64(32)),
        np.uint32(seed & np.uint64(LOW)),
        np.uint32(seed >> np.uint64(32)),
    )


@inline
def call_of(index):
    """Number of the Philox call that decides element ``index``; 15 others share it."""
    index = uint64(index)
    return (index >> np.uint64(8)) * np.uint64(16) + ((index >> np.uint64(2)) & np.uint64(15))


@inline
def byte_of(seed, stream, index, tag):
    """Byte ``tag`` (0, most significant, to 3) of U(index)."""
    index = uint64(index)
    w0, w1, w2, w3 = philox(seed, stream, call_of(index), tag)
    word = (index >> np.uint64(6)) & np.uint64(3)
    low = w1 if word & np.uint64(1) else w0
    high = w3 if word & np.uint64(1) else w2
    chosen = np.uint64(high if word & np.uint64(2) else low)
    return (chosen >> (np.uint64(8) * (index & np.uint64(3)))) & np.uint64(255)


@inline
def uniform32(seed: Integer, stream: Integer, index: Integer) -> np.uint64:
    """Return U(index), uniform on 32 bits, as a uint64. See `fastdrop.numba`."""
    u = np.uint64(0)
    for tag in range(4):
        u = (u << np.uint64(8)) | byte_of(seed, stream, index, tag)
    return u


@inline
def keep(seed: Integer, stream: Integer, index: Integer, threshold: Integer) -> bool | np.bool_:
    """Is element ``index`` kept: U(index) < threshold, by as many bytes of U as it takes. See `fastdrop.numba`."""
    t = uint64(threshold)
    kept = t > np.uint64(LOW)
    undecided = not kept
    tag = 0
    while undecided:
        b = byte_of(seed, stream, index, tag)
        limit = (t >> np.uint64(24 - 8 * tag)) & np.uint64(255)
        kept = b < limit
        tag += 1
        undecided = b == limit and tag < 4
    return kept


# -- 16 elements at once: 4 bytes to a word, no byte ever taken out --------------------------------------------------


@inline
def _less(x, y):
    """0x80 in every byte where x's is less than y's."""
    d = np.uint32((x | np.uint32(HIGH_BITS)) - (y & np.uint32(LOW_BITS)))
    return np.uint32(((~x & y) | (~(x ^ y) & ~d)) & np.uint32(HIGH_BITS))


@inline
def _equal(x, y):
    """0x80 in every byte where x's is equal to y's."""
    z = np.uint32(x ^ y)
    return np.uint32(~(((z & np.uint32(LOW_BITS)) + np.uint32(LOW_BITS)) | z) & np.uint32(HIGH_BITS))


@inline
def keep_flags(seed, stream, call, threshold):
    """The decisions of one call's 16 elements: a uint32 for each word of the layout, 0x80 in every kept byte."""
    t = uint64(threshold)
    full = np.uint32(HIGH_BITS) if t > np.uint64(LOW) else np.uint32(0)
    k0 = k1 = k2 = k3 = full
    e0 = e1 = e2 = e3 = np.uint32(np.uint32(HIGH_BITS) ^ full)  # what no byte has decided yet
    rest = t
    tag = 0
    while np.uint32(e0 | e1 | e2 | e3) != np.uint32(0) and rest != np.uint64(0):
        w0, w1, w2, w3 = philox(seed, stream, call, tag)
        rest = (rest << np.uint64(8)) & np.uint64(0xFFFFFFFFFF)
        y = np.uint32((rest >> np.uint64(32)) * np.uint64(0x01010101))
        rest = rest & np.uint64(LOW)
        k0, e0 = np.uint32(k0 | (e0 & _less(w0, y))), np.uint32(e0 & _equal(w0, y))
        k1, e1 = np.uint32(k1 | (e1 & _less(w1, y))), np.uint32(e1 & _equal(w1, y))
        k2, e2 = np.uint32(k2 | (e2 & _less(w2, y))), np.uint32(e2 & _equal(w2, y))
        k3, e3 = np.uint32(k3 | (e3 & _less(w3, y))), np.uint32(e3 & _equal(w3, y))
        tag += 1
    return k0, k1, k2, k3


@inline
def nibble(flags):
    """Four decisions packed: bit b is byte b's."""
    f = np.uint32(flags) >> np.uint32(7)
    return np.uint32((f | f >> np.uint32(7) | f >> np.uint32(14) | f >> np.uint32(21)) & np.uint32(15))


@inline
def keep_lane(seed: Integer, stream: Integer, call: Integer, threshold: Integer) -> np.uint32:
    """The decisions of one call's 16 elements in 16 bits. See `fastdrop.numba`."""
    k0, k1, k2, k3 = keep_flags(seed, stream, call, threshold)
    return np.uint32(nibble(k0) | nibble(k1) << np.uint32(4) | nibble(k2) << np.uint32(8) | nibble(k3) << np.uint32(12))


@inline
def keep_bits64(seed: Integer, stream: Integer, word_index: Integer, threshold: Integer) -> np.uint64:
    """The decisions of elements 64*word_index ... 64*word_index + 63, bit j = element j. See `fastdrop.numba`."""
    w = uint64(word_index)
    word = w & np.uint64(3)
    bits = np.uint64(0)
    for lane in range(16):
        k0, k1, k2, k3 = keep_flags(seed, stream, (w >> np.uint64(2)) * np.uint64(16) + np.uint64(lane), threshold)
        low = k1 if word & np.uint64(1) else k0
        high = k3 if word & np.uint64(1) else k2
        bits |= np.uint64(nibble(high if word & np.uint64(2) else low)) << np.uint64(4 * lane)
    return bits


# -- p becomes these two numbers -------------------------------------------------------------------------------------


@inline
def _checked(p):
    if not 0.0 <= p <= 1.0:  # NaN too
        raise ValueError("p must be at least 0 and at most 1")
    return float(p)


@inline
def threshold(p: float) -> np.uint64:
    """T = round((1 - p) * 2**32), half to even. See `fastdrop.numba`."""
    exact = (1.0 - _checked(p)) * 4294967296.0
    return np.uint64((exact + 4503599627370496.0) - 4503599627370496.0)  # 2**52: the adder rounds to an integer


@inline
def scale(p: float) -> float:
    """1 / (1 - p), in double; inf at p = 1. See `fastdrop.numba`."""
    kept = 1.0 - _checked(p)
    return 1.0 / kept if kept > 0.0 else np.inf


# -- float16, bfloat16 and one multiply ------------------------------------------------------------------------------
# Each plain function is the meaning; the overload beside it emits the one instruction.


@intrinsic
def _f16_to_f32(typing_context, bits):
    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def _f32_to_f16(typing_context, value):
    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate


@intrinsic
def _multiply(typing_context, a, b):
    def generate(context, builder, signature, args):
        if "nvptx" not in builder.module.triple:
            return builder.fmul(*args)
        suffix = "f" if signature.return_type is types.float32 else "d"
        kind = ir.FunctionType(args[0].type, [args[0].type] * 2)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.nvvm.mul.rn.{suffix}"), args)

    return a(a, a), generate


def f16_to_f32(bits):
    """The float32 equal to the float16 with these bits."""
    return np.float32(np.uint16(bits).view(np.float16))


def f32_to_f16(value):
    """The bits of the nearest float16, ties to even."""
    return np.float16(value).view(np.uint16)


def multiply(a, b):
    """a * b rounded once: NVVM would otherwise fuse it with a later addition, and y would differ from the CPU's."""
    return a * b


@overload(f16_to_f32)
def _(bits):
    return named(lambda bits: _f16_to_f32(np.uint16(bits)))


@overload(f32_to_f16)
def _(value):
    return named(lambda value: _f32_to_f16(value))


@overload(multiply)
def _(a, b):
    return named(lambda a, b: _multiply(a, b))


@inline
def bf16_to_f32(bits):
    """The float32 equal to the bfloat16 with these bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inline
def f32_to_bf16(value):
    """The bits of the nearest bfloat16, ties to even; a NaN stays one."""
    u = np.uint64(np.float32(value).view(np.uint32))
    top = u >> np.uint64(16)
    if u & np.uint64(0x7FFFFFFF) > np.uint64(0x7F800000):
        return np.uint16(top | np.uint64(0x40))
    return np.uint16((u + np.uint64(0x7FFF) + (top & np.uint64(1))) >> np.uint64(16))


# dtype's name -> how a number gets to what it is computed in, and back
CONVERSIONS = {
    "float16": (f16_to_f32, f32_to_f16),
    "bfloat16": (bf16_to_f32, f32_to_bf16),
    "float32": (np.float32, np.float32),
    "float64": (np.float64, np.float64),
}


# -- op bodies: what a kernel does to one element --------------------------------------------------------------------


@inline
def select(kept, value, scale):
    """kept: value * scale; dropped: +0.0, by selection, so that a dropped NaN or Inf is 0."""
    scaled = multiply(value, scale)
    return scaled if kept else type(scaled)(0)


@inline
def select_add(kept, value, bias, residual, scale):
    """`select` of value + bias, and residual added: three roundings, never a fused multiply-add."""
    return select(kept, value + bias, scale) + residual


@inline
def weigh(value, total, factor):
    """value * (total * factor) where any sample keeps it, +0.0 where none does."""
    return select(total > type(total)(0), value, multiply(total, factor))


# -- the elementwise operations, from their formulas -------------------------------------------------------------------


@overload(operations.like, jit_options={"forceinline": True})
def _(x, number):
    return named(lambda x, number: type(x)(number))


@overload(operations.where, jit_options={"forceinline": True})
def _(condition, a, b):
    return named(lambda condition, a, b: a if condition else b)


@overload(operations.exp, jit_options={"forceinline": True})
def _(x):
    return named(lambda x: type(x)(math.exp(x)))


@overload(operations.erfc, jit_options={"forceinline": True})
def _(x):
    return named(lambda x: type(x)(math.erfc(x)))


for _formula in operations.FORMULAS:
    inline(_formula)


@cache
def element(operation, in_double):
    """An operation as kernels call it: op(kept, a, b, c, scale); what it has no use for may be anything.

    ``in_double``: what is not right to the bit is worked on in double, of which GPUs are slow.
    """
    value, count = operation.value, len(operation.inputs)
    if count == 1:
        of = inline(lambda a, b, c: value(a))
    elif count == 2:
        of = inline(lambda a, b, c: value(a, b))
    else:
        of = inline(lambda a, b, c: value(a, b, c))
    if in_double and operation.tolerance:
        of_inputs = of
        of = inline(lambda a, b, c: type(a)(of_inputs(np.float64(a), np.float64(b), np.float64(c))))
    if operation.residual:
        return inline(lambda kept, a, b, c, scale: select(kept, of(a, b, c), scale) + b)
    return inline(lambda kept, a, b, c, scale: select(kept, of(a, b, c), scale))
