"""``Mask``: a dropout mask as a value.

A mask is (seed, stream, shape, p), a few words, whose element i is kept or dropped by a pure function of its flat
C-order index i.  Nothing is generated when one is made.  A part of a mask is the same value with another origin, so
here a mask is always (seed, stream, shape, p) seen through `_offset` and `_strides` (in elements of the stream),
exactly as a NumPy view sees its buffer; a broadcast axis has stride 0.  A mask that a user made himself keeps packed
bits (`_stored`) in place of (seed, stream); nothing else about it differs.

What is kept is decided by the backends alone: this file holds no bit of it.
"""

from __future__ import annotations

import math
import operator
from contextlib import suppress
from typing import TYPE_CHECKING, overload

import numpy as np

from . import rng as rngs
from .arguments import check_allocatable, check_shape, explained, fit_p, joint_shape
from .arrays import as_array, as_native, broadcast_to_mask, check_out, output_like, sum_dtype
from .backends import in_use
from .borders.host import view
from .compiled import _core
from .dispatch import operation
from .dtypes import FLOATS
from .memory import allocate, new_array
from .rng import draw
from .rule import MASK64, scale_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray
    from typing_extensions import Never

    from .typing import (
        ArrayLike,
        Bools,
        Buffer,
        Dtype,
        Floats,
        FloatT,
        Foreign,
        FrameT,
        MaskKey,
        Numbers,
        OutT,
        Probability,
        RngLike,
        Shape,
        Tensor,
        TensorT,
    )

if TYPE_CHECKING:
    from ._core import Fields, make
elif _core is not None:  # in C they are quick to make and to read
    Fields, make = _core.Fields, _core.make
else:

    class Fields:
        """The fields of a mask; stands for the compiled class where there is none."""

        __slots__ = ("_offset", "_p", "_seed", "_shape", "_stored", "_stream", "_strides")

        def __buffer__(self, flags):  # Python 3.12 and later ask here
            raise TypeError(
                "a mask exports no buffer: mask.bits() is an array of its packed bits, mask.keep() of bools"
            )

    def make(cls, seed, stream, shape, p, offset=0, strides=None, stored=None):
        """Return a new mask of class ``cls``."""
        self = Fields.__new__(cls)
        self._seed = seed
        self._stream = stream
        self._shape = shape
        self._p = p
        self._offset = offset
        self._strides = strides
        self._stored = stored
        return self


def _c_strides(shape):
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _none_if_c_order(strides, shape):
    return None if all(n == 1 or s == c for n, s, c in zip(shape, strides, _c_strides(shape))) else strides


CAN = (
    "a mask multiplies, x * mask or mask.apply(x); mask.keep() is its array of bools, np.asarray(mask) that of its "
    "multipliers"
)


class Mask(Fields):
    """A dropout mask: which elements are kept, as a value of a few words.

    Made by `fastdrop.mask`, `Rng.mask`, `fastdrop.dropout` or `Mask.from_keep`, not by hand. Masks are immutable, can
    be compared, hashed and pickled, and take no memory that grows with their shape (those of `from_keep` apart).

    Attributes
    ----------
    seed, stream : int or None
        The two numbers of the generator; None for a mask made by `from_keep`.
    shape : tuple of int
    p : float or ndarray of float64
        Probability to drop; an array has the shape ``shape[:k]``.
    scale : float or ndarray of float64
        ``1/(1-p)``, what a kept element is multiplied by; inf where p is 1, where nothing is kept.

    See Also
    --------
    fastdrop.mask, fastdrop.dropout

    Notes
    -----
    ``mask.apply(x)``, ``x * mask``, ``mask * x`` and ``np.multiply(x, mask)`` are the same operation. It is a
    selection, not a multiplication: a dropped NaN or Inf becomes 0. ``np.asarray(mask)`` holds the multipliers, 0 or
    `scale`. A mask exports no buffer itself: ``memoryview(mask.bits())`` is one of its packed bits.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> mask = fd.mask((2, 4), p=0.5, rng=0)
    >>> mask.keep()
    array([[False, False,  True,  True],
           [False, False, False, False]])
    >>> np.ones((2, 4)) * mask
    array([[0., 0., 2., 2.],
           [0., 0., 0., 0.]])
    >>> (mask[0, 2:] == fd.mask((2, 4), 0.5, rng=0)[0, 2:])
    True
    """

    __slots__ = ()

    # `_strides` is None where the mask's elements follow one another in C order, the common case.

    def __new__(cls, *args: Never, **kwargs: Never) -> Mask:
        raise TypeError("a Mask is made by fastdrop.mask(shape, p, rng=...), Rng.mask or Mask.from_keep")

    _make = classmethod(make)

    @classmethod
    @explained
    def from_keep(cls, keep: Bools | Tensor, p: Probability) -> Mask:
        """Make a mask from the user's own decisions.

        Parameters
        ----------
        keep : array_like of bool
            True where an element is kept. Stored as packed bits, one bit an element.
        p : float or array_like
            Probability to drop that `scale` follows from; an array has the shape ``keep.shape[:k]``. Below 1 where
            anything is kept: at 1 the scale would be infinite.

        Returns
        -------
        Mask
            With the same methods as any other; its `seed` and `stream` are None.

        Raises
        ------
        TypeError
            If ``keep`` does not hold bools.
        ValueError
            If ``p`` is out of [0, 1], 1 where something is kept, or an array of another shape.

        Examples
        --------
        >>> import numpy as np, fastdrop as fd
        >>> mask = fd.Mask.from_keep([True, False, True], p=0.5)
        >>> mask.apply(np.array([1.0, 2.0, np.nan]))
        array([ 2.,  0., nan])
        """
        array = view(keep, "keep")
        shape, dtype = array.shape, array.dtype
        stored = np.packbits(array, axis=None, bitorder="little") if dtype == np.bool_ else None
        del array  # the traceback of an error would keep the caller's buffer by it
        if stored is None:
            raise TypeError(f"keep must hold bools, got dtype {dtype}; convert it, with np.asarray(keep, bool)")
        stored.flags.writeable = False
        mask = cls._make(None, None, shape, fit_p(p, shape), stored=stored)
        mask._check_scale()
        return mask

    def _check_scale(self) -> None:
        """Raise ValueError where stored bits keep something and p is 1: its scale would be infinite."""
        certain = np.equal(self._p, 1)
        if certain.any() and self.keep()[certain].any():
            raise ValueError("p must be below 1 where something is kept: the scale 1/(1-p) is infinite at p = 1")

    @property
    def seed(self) -> int | None:
        return self._seed

    @property
    def stream(self) -> int | None:
        return self._stream

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def size(self) -> int:
        return math.prod(self._shape)

    @property
    def p(self) -> float | NDArray[np.float64]:
        return self._p

    @property
    def scale(self) -> float | NDArray[np.float64]:
        return scale_of(self._p)

    # -- the value itself ----------------------------------------------------------------------------------------------

    def _value(self):
        p = self._p if type(self._p) is float else (self._p.shape, self._p.tobytes())
        stored = None if self._stored is None else self._stored.tobytes()
        strides = self._strides and tuple(s if n > 1 else 0 for s, n in zip(self._strides, self._shape))
        return self._seed, self._stream, self._shape, p, self._offset, strides, stored

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._value() == other._value()

    def __hash__(self) -> int:
        return hash(self._value())

    def __copy__(self) -> Mask:
        return self  # it is immutable

    def __deepcopy__(self, memo: object) -> Mask:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self._seed, self._stream, self._shape, self._p, self._offset, self._strides, self._stored
        return _restore, fields

    def __repr__(self) -> str:
        source = "stored bits" if self._stored is not None else f"seed={self._seed}, stream={self._stream}"
        part = "" if self._strides is None and self._offset == 0 else f", part from element {self._offset}"
        return f"<fastdrop.Mask shape={self._shape} p={self.p} {source}{part}>"

    def __len__(self) -> int:
        if not self._shape:
            raise TypeError(f"len() of a 0-d mask; {CAN}")
        return self._shape[0]

    def __iter__(self) -> Iterator[Mask]:
        if not self._shape:
            raise TypeError(f"iteration over a 0-d mask; {CAN}")
        return (self[i] for i in range(self._shape[0]))

    def __getitem__(self, key: MaskKey) -> Mask:
        """Part of the mask, equal to the same part of its array: integers, slices of step 1, one Ellipsis."""
        keys = key if isinstance(key, tuple) else (key,)
        ndim = len(self._shape)
        if any(k is Ellipsis for k in keys):
            at = next(i for i, k in enumerate(keys) if k is Ellipsis)
            rest = keys[at + 1 :]
            keys = keys[:at] + (slice(None),) * (ndim - at - len(rest)) + rest
        if len(keys) > ndim:
            raise IndexError(f"too many indices for a mask of {ndim} dimensions: {len(keys)}")
        keys += (slice(None),) * (ndim - len(keys))
        offset = self._offset
        shape, strides, p_key = [], [], []
        for axis, (k, n, stride) in enumerate(zip(keys, self._shape, self._strides or _c_strides(self._shape))):
            if isinstance(k, slice):
                start, stop, step = k.indices(n)
                if step != 1:
                    raise IndexError(f"a mask takes slices of step 1, got step {step} on axis {axis}")
                shape.append(max(0, stop - start))
                strides.append(stride)
                p_key.append(slice(start, max(start, stop)))
            else:
                start = _index(k, axis)
                if not -n <= start < n:
                    raise IndexError(f"index {start} is out of bounds for axis {axis} of a mask with size {n}")
                start %= n
                p_key.append(start)
            offset += start * stride
        p = self._p
        if type(p) is not float:
            p = p[tuple(p_key[: p.ndim])]
            p = p if p.ndim else float(p)
        shape = tuple(shape)
        strides = _none_if_c_order(tuple(strides), shape)
        return Mask._make(self._seed, self._stream, shape, p, offset & MASK64, strides, self._stored)

    def strides_for(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Step in the stream along each axis of ``shape``, which the mask broadcasts to: 0 along a shared axis."""
        strides = self._strides or _c_strides(self._shape)
        lead = len(shape) - len(self._shape)
        own = (0 if m == 1 else s for m, s in zip(self._shape, strides))  # that of a single element may be 2**64
        return (0,) * lead + tuple(own)

    def broadcast_p(self) -> float | NDArray[np.float64]:
        """p as NumPy broadcasts it against the mask: the float, or a view of the array with an axis for each of
        the mask's."""
        p = self._p
        return p if type(p) is float else p[(..., *(np.newaxis,) * (len(self._shape) - p.ndim))]

    # -- arrays of it --------------------------------------------------------------------------------------------------

    def keep(self) -> NDArray[np.bool_]:
        """Return the decisions as an array.

        Returns
        -------
        ndarray of bool, of the mask's shape
            True = kept.
        """
        check_allocatable(self._shape, 1)
        out = new_array(self._shape, np.dtype(np.bool_))
        if out.size:
            in_use.backend.keep(out, self)
        return out

    def bits(self) -> NDArray[np.uint8]:
        """Return the decisions packed, one bit an element, in an array, which has the buffer protocol.

        Returns
        -------
        ndarray of uint8, shape ((size + 7) // 8,)
            Bit b of byte k is element ``8 * k + b`` in C order, as ``numpy.packbits(..., bitorder="little")`` has it;
            1 = kept, and the bits past the end are 0.

        Examples
        --------
        >>> import fastdrop as fd
        >>> fd.mask(64, 0.5, rng=0).bits().tobytes().hex()
        '0c19c5322905b53c'
        """
        out = new_array(((self.size + 7) // 8,), np.dtype(np.uint8))
        if out.size:
            in_use.backend.keep_bits(out, self)
        return out

    def stored(self) -> Mask:
        """Return a mask of the same decisions that keeps them as packed bits, one bit an element.

        The forward and the backward pass then read bits in place of making them. That pays where an array is in cache
        and the mask is used several times; from memory, making them costs next to nothing (``fastdrop bench``).

        Returns
        -------
        Mask
            As by `from_keep`: its `seed` and `stream` are None.

        Examples
        --------
        >>> import numpy as np, fastdrop as fd
        >>> mask = fd.mask(1000, 0.1, rng=0)
        >>> bool((mask.stored().keep() == mask.keep()).all())
        True
        """
        bits = self.bits()
        bits.flags.writeable = False
        return Mask._make(None, None, self._shape, self._p, stored=bits)

    def __array__(self, dtype: Dtype = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a mask holds no array: np.asarray(mask, copy=False) cannot be had")
        dtype = np.dtype(np.float64 if dtype is None else dtype)
        if dtype.name in FLOATS:
            return self.apply(np.ones((), dtype))
        return self.__array__().astype(dtype)

    # -- what it is for ------------------------------------------------------------------------------------------------

    @overload
    def apply(self, x: NDArray[FloatT], out: None = None, *, dtype: Dtype = None) -> NDArray[FloatT]: ...
    @overload
    def apply(self, x: TensorT, out: None = None, *, dtype: Dtype = None) -> TensorT: ...
    @overload
    def apply(self, x: Foreign, out: None = None, *, dtype: Dtype = None) -> Floats: ...
    @overload
    def apply(self, x: ArrayLike, out: OutT, *, dtype: Dtype = None) -> OutT: ...
    @operation("x", out=("x",))
    def apply(self, x: ArrayLike, out: Any = None, *, dtype: Dtype = None) -> Any:
        """Drop elements of ``x`` and scale the others.

        Parameters
        ----------
        x : array_like of floats
            Any shape that broadcasts with the mask's. Any object with the buffer protocol or CPU DLPack is read in
            place.
        out : array_like, optional
            Where to write: of the result's shape and x's dtype, not overlapping x unless it is x.
        dtype : dtype, optional
            What the bytes of ``x`` (and ``out``) are, where the object cannot say (``bytes``, ``mmap``).

        Returns
        -------
        ndarray or ``out``
            ``x * scale`` where kept, +0.0 where dropped, of the broadcast shape and in x's memory layout.

        Raises
        ------
        TypeError
            If x's dtype is none of the four.
        ValueError
            If shapes do not fit, or ``out`` is read-only or overlaps ``x``.

        Examples
        --------
        >>> import numpy as np, fastdrop as fd
        >>> fd.mask((1, 4), 0.5, rng=0).apply(np.ones((2, 4), np.float32))
        array([[0., 0., 2., 2.],
               [0., 0., 2., 2.]], dtype=float32)
        """
        x = broadcast_to_mask(x, self._shape, "x")
        y = output_like(x, out)
        if y.size:
            apply_into(y, x, self)
        return y

    @overload
    def backward(
        self, dy: NDArray[FloatT], x_shape: Shape | None = None, out: None = None, *, dtype: Dtype = None
    ) -> NDArray[FloatT]: ...
    @overload
    def backward(
        self, dy: TensorT, x_shape: Shape | None = None, out: None = None, *, dtype: Dtype = None
    ) -> TensorT: ...
    @overload
    def backward(
        self, dy: Foreign, x_shape: Shape | None = None, out: None = None, *, dtype: Dtype = None
    ) -> Floats: ...
    @overload
    def backward(self, dy: ArrayLike, x_shape: Shape | None = None, *, out: OutT, dtype: Dtype = None) -> OutT: ...
    @overload
    def backward(self, dy: ArrayLike, x_shape: Shape | None, out: OutT, *, dtype: Dtype = None) -> OutT: ...
    @operation("dy", out=("dy",))
    def backward(self, dy: ArrayLike, x_shape: Shape | None = None, out: Any = None, *, dtype: Dtype = None) -> Any:
        """Gradient of `apply`: the same kernel on ``dy``, the same mask made again.

        Parameters
        ----------
        dy : array_like
            Gradient of the loss with respect to ``apply(x)``; of that result's shape.
        x_shape : tuple of int, optional
            x's shape where it was broadcast up to the mask's; the gradient is summed over those axes. Default: dy's
            shape.
        out : array_like, optional
            Where to write the gradient; may be ``dy`` itself where nothing is summed.
        dtype : dtype, optional
            As in `apply`.

        Returns
        -------
        ndarray or ``out``
            Gradient with respect to x, in dy's dtype.

        Raises
        ------
        TypeError, ValueError
            As `apply`; ValueError too if ``dy`` is not of the shape that ``x_shape`` and the mask give.

        Examples
        --------
        >>> import numpy as np, fastdrop as fd
        >>> mask = fd.mask((3, 4), 0.5, rng=0)
        >>> mask.backward(np.ones((3, 4)), x_shape=(4,))
        array([2., 0., 2., 4.])
        """
        return gradient(self, dy, x_shape, out)

    # -- in other people's expressions ---------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        if ufunc is not np.multiply or method != "__call__" or kwargs or len(inputs) != 2:
            raise TypeError(f"numpy.{ufunc.__name__} is not defined for a mask; {CAN}")
        x, mask = inputs if isinstance(inputs[1], Mask) else inputs[::-1]
        return mask * x if out is None else mask.apply(x, out[0])

    @overload
    def __mul__(self, x: NDArray[FloatT]) -> NDArray[FloatT]: ...
    @overload
    def __mul__(self, x: TensorT) -> TensorT: ...
    @overload
    def __mul__(self, x: FrameT) -> FrameT: ...
    @overload
    def __mul__(self, x: Numbers | Buffer | bytes) -> Floats: ...
    def __mul__(self, x: Any) -> Any:
        if type(x) is np.ndarray:
            return self.apply(x)
        if isinstance(x, Mask):
            raise TypeError(f"the product of two masks is not defined: take one of x * mask; {CAN}")
        if hasattr(type(x), "__pandas_priority__") and hasattr(x, "axes"):
            return self._times_frame(x)
        return self.apply(x)

    __rmul__ = __mul__

    __pandas_priority__ = 5000  # above a DataFrame's 4000: it would hand over its blocks, which lie transposed

    def _times_frame(self, x):
        """`apply` of a pandas DataFrame or Series, with its labels."""
        y = self.apply(x.to_numpy())
        if y.shape != x.shape:
            raise ValueError(f"a {type(x).__name__} of shape {x.shape} cannot hold its product with {self!r}")
        return x._constructor(y, *x.axes, copy=False).__finalize__(x)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """torch calls this for each of its functions that is given a mask."""
        name, kwargs = func.__name__, dict(kwargs or ())
        out = kwargs.pop("out", None)
        inputs = (*args, *kwargs.values())
        if name.strip("_") not in ("mul", "multiply", "rmul", "imul") or len(inputs) != 2:
            raise TypeError(f"torch's {name} is not defined for a mask; {CAN}")
        x, mask = inputs if isinstance(inputs[1], Mask) else inputs[::-1]
        if name in ("mul_", "multiply_", "__imul__"):
            out = x
        return mask * x if out is None else mask.apply(x, out)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return np.asarray(self).__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0  # the CPU's

    if not TYPE_CHECKING:  # these raise: for checkers they are not there

        @property
        def dtype(self) -> Never:
            """No such thing. It must not be an AttributeError: that ``df.mul(mask)`` ends here keeps pandas from taking
            the mask for one number, which it would apply to its transposed blocks."""
            raise TypeError(
                f"a mask has no dtype, x * mask has that of x (of a DataFrame: df * mask, not df.mul); {CAN}"
            )

        @property
        def _data(self):
            """What numpy.ma asks for in ``masked_array * mask``, before it goes on with the array of multipliers."""
            raise TypeError("x must not be a masked array: dropout would lose its mask; pass x.filled(0)")

        def __bool__(self):
            raise TypeError(f"a mask is neither true nor false (is there one: mask is not None); {CAN}")

        def __getattr__(self, name):
            raise AttributeError(f"a fastdrop.Mask has no {name!r}; {CAN}")


if _core is not None:
    _core.Mask = Mask


def _refuse(operation):
    def refuse(self, *_):
        raise TypeError(f"{operation} is not defined for a mask; {CAN}")

    return refuse


# Those that are not there would end in an error that says no more than that, or in one of the other operand's.
for _operation, _names in {
    "+": "add radd",
    "-": "sub rsub neg",
    "/": "truediv rtruediv",
    "//": "floordiv rfloordiv",
    "%": "mod rmod",
    "**": "pow rpow",
    "@": "matmul rmatmul",
    "&": "and rand",
    "|": "or ror",
    "^": "xor rxor",
    "~": "invert",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "in": "contains",
    "abs": "abs",
    "float": "float",
    "int": "int",
    "to index with it": "index",
    "complex": "complex",
}.items():
    for _name in _names.split():
        setattr(Mask, f"__{_name}__", _refuse(_operation))


def _restore(*fields):
    """Make a mask of what `Mask.__reduce__` gave: nothing of it is believed, files get damaged."""

    def check(right, name, value):
        if not right:
            raise ValueError(f"the pickle of a fastdrop.Mask is damaged: {name} is {value!r}")

    def is_uint64(n):
        return type(n) is int and 0 <= n <= MASK64

    check(len(fields) == 7, "the number of its fields", len(fields))
    seed, stream, shape, p, offset, strides, stored = fields
    check(type(shape) is tuple and all(type(n) is int for n in shape), "shape", shape)
    try:
        check_shape(shape)
        p = fit_p(p, shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the pickle of a fastdrop.Mask is damaged: {error}") from None
    check(is_uint64(offset), "offset", offset)
    last = 0  # the place of the last element, counted from the first
    if strides is None:
        last = math.prod(shape) - 1
    else:
        check(type(strides) is tuple and len(strides) == len(shape), "shape, strides", (shape, strides))
        for n, stride in zip(reversed(shape), reversed(strides)):
            apart = n < 2 or 0 in shape or stride > last  # no two elements in one place
            check(type(stride) is int and stride >= 0 and apart, "shape, strides", (shape, strides))
            last += max(0, n - 1) * stride
        strides = _none_if_c_order(strides, shape)
    if stored is None:
        check(is_uint64(seed) and is_uint64(stream), "seed, stream, stored", (seed, stream, None))
        size = MASK64 + 1
    else:
        check(seed is None and stream is None, "seed, stream beside stored bits", (seed, stream))
        check(type(stored) is np.ndarray and stored.dtype == np.uint8 and stored.ndim == 1, "stored", stored)
        stored = np.frombuffer(stored.tobytes(), np.uint8)  # a copy: the buffers of protocol 5 are the caller's
        size = 8 * len(stored)
    reach = shape, offset, strides, size
    check(
        0 in shape or offset + last < size,
        "shape, offset, strides, number of bits (stored)",
        reach,
    )
    mask = Mask._make(seed, stream, shape, p, offset, strides, stored)
    if stored is not None:
        mask._check_scale()
    return mask


def _index(k, axis):
    if not isinstance(k, (bool, np.bool_)):
        with suppress(TypeError):
            return operator.index(k)
    raise TypeError(f"a mask takes integers and slices of step 1, got {k!r} on axis {axis}; {CAN}")


def apply_into(y, x, mask):
    """Backend call of `apply` on checked arrays of one shape; copies only where x or y is unaligned or byte-swapped."""
    x = as_native(x)
    if y.flags.aligned and y.dtype.isnative:
        in_use.backend.apply(y, x, mask)
    else:
        whole = new_array(y.shape, y.dtype.newbyteorder("="))
        in_use.backend.apply(whole, x, mask)
        y[...] = whole


def gradient(mask, dy, x_shape, out):
    """`Mask.backward` of ndarrays."""
    as_array(dy, "dy")
    if x_shape is None:
        x_shape, name = dy.shape, "dy of shape"
    else:
        x_shape, name = check_shape(x_shape, "x_shape"), "x_shape"
    shape = mask._shape
    if x_shape != shape:
        shape = joint_shape(x_shape, shape, dy.itemsize, name, "the mask's shape")
    if dy.shape != shape:
        raise ValueError(f"dy must have the shape of apply(x), {shape}, got {dy.shape}")
    if x_shape == shape:
        dy = broadcast_to_mask(dy, mask._shape, "dy")
        dx = output_like(dy, out)
        if dx.size:
            apply_into(dx, dy, mask)
        return dx
    dy = as_native(dy)
    dx = new_array(x_shape, dy.dtype) if out is None else check_out(out, "out", x_shape, dy.dtype)
    total = allocate(np.zeros, (1,) * (dy.ndim - dx.ndim) + dx.shape, sum_dtype(dy.dtype))
    if dy.size:
        in_use.backend.apply_sum(total, dy, mask)
    dx[...] = total.reshape(dx.shape)
    return dx


@explained
def mask(shape: Shape, p: Probability, *, rng: RngLike = None) -> Mask:
    """Make a dropout mask: O(1), nothing is generated.

    Parameters
    ----------
    shape : int or tuple of int
    p : float or array_like
        Probability to drop, in [0, 1]. An array gives each leading index its own: its shape is ``shape[:k]``.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        None: the process-wide generator, seeded from the OS. An int: ``Rng(int)``, so the same mask at each call. An
        `Rng` moves on by one stream. NumPy's own give the seed (one 64-bit draw), with stream 0.

    Returns
    -------
    Mask

    Raises
    ------
    TypeError, ValueError
        If ``p`` is not in [0, 1] or an array whose shape is not ``shape[:k]``; if ``shape`` or ``rng`` is none of
        these.

    Examples
    --------
    >>> import fastdrop as fd
    >>> fd.mask((2, 3), 0.1, rng=fd.Rng(seed=1))
    <fastdrop.Mask shape=(2, 3) p=0.1 seed=1, stream=0>
    """
    shape = check_shape(shape)
    p = fit_p(p, shape)
    return Mask._make(*draw(rng), shape, p)


rngs.new_mask = mask
