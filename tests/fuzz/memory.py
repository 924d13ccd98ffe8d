"""Arrays of any layout in memory that is watched: a ``bytearray`` with random bytes around and between the elements."""

import numpy as np

try:
    import ml_dtypes

    BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = None

FLOATS = [np.dtype(name) for name in ("float16", "float32", "float64")] + ([BFLOAT16] if BFLOAT16 else [])
WORD = {2: np.uint16, 4: np.uint32, 8: np.uint64}  # the bits of a number of so many bytes


class Subclass(np.ndarray):
    """What `np.memmap` and its like are."""


class DLPack:
    """The least that an array library has."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **kwargs):
        return self.array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return 1, 0


class Interface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Argument:
    """An array argument: ``view`` its elements in ``owner``'s bytes, ``given`` what the function gets.

    ``plain`` is a contiguous copy for the reference, ``offset`` where in ``owner`` the first element lies.
    ``role`` says what an ``out`` over the same elements means: "in place" (allowed), "copied" (refused or harmless)
    or "read" (refused).
    """

    def __init__(self, owner, view, offset, role="read"):
        self.owner, self.view, self.offset, self.role = owner, view, offset, role
        self.plain = self.given = None

    def places(self):
        """Index into ``owner`` of each element's first byte."""
        at = np.array(self.offset)
        for n, stride in zip(self.view.shape, self.view.strides):
            at = np.add.outer(at, np.arange(n) * stride)
        return at

    def bytes_of(self):
        """True at each byte of ``owner`` that is an element's."""
        mark = np.zeros(len(self.owner), bool)
        at = self.places().ravel()
        for b in range(self.view.itemsize):
            mark[at + b] = True
        return mark

    def overlaps_itself(self):
        return bool(self.view.size) and int(self.bytes_of().sum()) < self.view.nbytes

    def shares(self, other):
        """ "no", "same" (the same elements in the same places), "swapped" (in another byte order) or "some" bytes."""
        if self.owner is not other.owner or not (self.bytes_of() & other.bytes_of()).any():
            return "no"
        a, b = self.view, other.view
        if a.shape != b.shape or not np.array_equal(self.places(), other.places()):
            return "some"
        return "same" if a.dtype == b.dtype else "swapped" if a.dtype == b.dtype.newbyteorder() else "some"

    def copy(self):
        """The elements in C order and native byte order."""
        return np.array(self.view, self.view.dtype.newbyteorder("="), order="C")


LAYOUTS = ("C", "C", "C", "C", "F", "permuted", "strided", "negative", "mixed", "mixed")


def strides_of(draw, shape, item, layout):
    """Random strides of an array of ``shape``, in the style of ``layout``."""
    axes = list(range(len(shape)))[::-1]  # from the innermost
    if layout == "F":
        axes.reverse()
    elif layout in ("permuted", "mixed"):
        draw.shuffle(axes)
    strides, step = [0] * len(shape), item
    for axis in axes:
        gap = draw.choice((1, 1, 2, 3)) if layout in ("strided", "mixed") else 1
        sign = draw.choice((1, 1, -1)) if layout in ("negative", "mixed") else 1
        strides[axis] = sign * step * gap
        step *= max(1, shape[axis]) * gap
    return strides


def place(draw, shape, dtype, layout, unaligned=False, room=None):
    """Return an `Argument` of uninitialised elements, with ``room`` bytes before and after, or a few."""
    item = dtype.itemsize
    if layout == "broadcast":
        strides = strides_of(draw, shape, item, "permuted")
        strides = [draw.choice((0, s)) for s in strides]
    elif layout == "window":
        strides = strides_of(draw, shape, item, "C")
        strides = [draw.choice((item, s)) for s in strides]
    else:
        strides = strides_of(draw, shape, item, layout)
    low = sum((n - 1) * s for n, s in zip(shape, strides) if s < 0 and n)
    high = sum((n - 1) * s for n, s in zip(shape, strides) if s > 0 and n)
    before, after = (room, room) if room is not None else (item * draw.choice((0, 1, 5)), draw.choice((1, 8, 40)))
    before += unaligned
    offset = before - low
    owner = bytearray(draw.bytes(offset + high + item + after))
    return Argument(owner, seen(owner, shape, dtype, offset, strides), offset)


def seen(owner, shape, dtype, offset, strides):
    """An array over ``owner``'s bytes; ``np.ndarray(buffer=owner)`` itself would not keep it from being resized."""
    whole = np.frombuffer(owner, np.uint8) if owner else b""
    return np.ndarray(shape, dtype, whole, offset, strides)


def hand_over(draw, view, torch, output=False):
    """Return an object of some kind over the memory of ``view``; an ndarray most of the time."""
    kinds = ["subclass"]
    native = view.dtype.isnative and view.flags.aligned
    standard = native and view.dtype.char in "efdl?"
    if standard:
        kinds += ["memoryview", "interface"]
        if view.flags.writeable:
            kinds.append("dlpack")
    if not output and view.dtype.char in "dl?" and 0 < view.size < 500 and view.ndim:
        kinds.append("list")
    if torch and native and view.flags.writeable and view.dtype.char in "efdl?" and min(view.strides, default=0) >= 0:
        kinds += ["torch"] * 3
    if torch and native and view.flags.writeable and view.dtype == BFLOAT16 and min(view.strides, default=0) >= 0:
        kinds += ["torch"] * 3
    kind = draw.choice(kinds)
    if kind == "subclass":
        return view.view(Subclass)
    if kind == "memoryview":
        return memoryview(view)
    if kind == "interface":
        return Interface(view)
    if kind == "dlpack":
        return DLPack(view)
    if kind == "list":
        return view.tolist()
    if view.dtype == BFLOAT16:
        return torch.from_numpy(view.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(view)


def as_ndarray(result, dtype):
    """Return a result of the caller's own kind (`hand_over`) as an ndarray; None if it is no array."""
    if isinstance(result, np.ndarray):
        return result.view(np.ndarray)
    if isinstance(result, np.generic):
        return np.asarray(result)
    if isinstance(result, (Interface, DLPack)):
        return result.array
    if isinstance(result, bytearray):
        return np.frombuffer(result, dtype)
    if isinstance(result, memoryview):
        return np.asarray(result)
    if isinstance(result, list):  # given as one, and given back where nothing is dropped
        return np.asarray(result, dtype)
    if type(result).__module__ == "torch":
        if str(result.dtype) == "torch.bfloat16":
            import torch

            return result.detach().view(torch.int16).numpy().view(BFLOAT16)
        return result.detach().numpy()
    return None
