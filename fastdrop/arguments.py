"""Checks of arguments that are no arrays of numbers to work on: p, shapes, counts. Each says the rule and the value."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from functools import wraps
from typing import TYPE_CHECKING

import numpy as np

from .dtypes import FLOATS
from .rule import MASK64

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

# What other libraries call an argument -> what it is here.
_ELSEWHERE = {
    **dict.fromkeys(("rate", "drop_prob", "dropout_p", "drop_rate", "prob"), "p, the probability to drop, not to keep"),
    **dict.fromkeys(("keep_prob", "keep", "keep_rate"), "p, the probability to drop: p = 1 - keep_prob"),
    **dict.fromkeys(("seed", "random_state", "generator", "key"), "rng: an int, a fastdrop.Rng or a NumPy generator"),
    "noise_shape": "mask_shape",
    **dict.fromkeys(("inplace", "in_place"), "out: out=x works in place"),
    **dict.fromkeys(("dim", "class_dim"), "axis"),
    **dict.fromkeys(("train", "is_training", "test"), "training: True or False"),
    "deterministic": "training = not deterministic",
    "weight": "W",
    "num_samples": "samples",
    "ignore_label": "ignore_index",
}


def check_keywords(function, keywords, known):
    """Raise TypeError if a keyword is none of those ``known``, with the name it has here where that can be told."""
    for keyword in keywords:
        if keyword not in known:
            here = _ELSEWHERE.get(keyword, "")
            if here.partition(",")[0].partition(":")[0].partition(" ")[0] in known:
                cure = f"here it is {here}"
            else:
                cure = f"it takes {', '.join(sorted(set(known) - {'self', 'cls'}))}"
            raise TypeError(f"{function}() has no argument {keyword!r}; {cure}")


def explained(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function without array arguments so that its unknown keywords raise `check_keywords`'s error."""
    known = frozenset(inspect.signature(function).parameters)
    name = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except TypeError:
            if known.issuperset(kwargs):
                raise
        check_keywords(name, kwargs, known)

    return call


MAX_AXES = 64  # NumPy's limit too


def check_p(p):
    """Return ``p`` as a Python float, or as a read-only float64 array; raise unless all of it lies in [0, 1]."""
    if type(p) is not float:
        if isinstance(p, (str, bytes, np.ma.MaskedArray)) or p is None or type(p).__name__ == "Mask":
            cure = "; a mask goes in as mask=" if type(p).__name__ == "Mask" else ""
            raise TypeError(f"p must be a number or an array of numbers in [0, 1], got {p!r}{cure}")
        try:
            array = np.array(p)
            if array.dtype.kind not in "fiu" and array.dtype.name not in FLOATS:
                raise TypeError
            array = array.astype(np.float64)
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: tensors that require grad
            raise TypeError(f"p must be a number or an array of numbers in [0, 1], got {p!r}") from None
        if array.ndim:
            wrong = ~((array >= 0) & (array <= 1))
            if wrong.any():
                raise ValueError(
                    f"p is a probability to drop and must be in [0, 1], got {array[wrong][0]} in its array"
                )
            return np.frombuffer(array.tobytes()).reshape(array.shape)  # over bytes: nobody can make it writable
        p = float(array)
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p is a probability to drop and must be in [0, 1], got {p}")
    return p


def check_shape(shape, name="shape"):
    """Return ``shape`` as a tuple of at most 64 ints; raise unless each is at least 0, their product below 2**64."""
    try:
        shape = tuple(map(operator.index, shape)) if isinstance(shape, (tuple, list)) else (operator.index(shape),)
    except TypeError:
        raise TypeError(f"{name} must be an integer or a tuple of integers, got {shape!r}") from None
    if len(shape) > MAX_AXES:
        raise ValueError(f"{name} must have at most {MAX_AXES} axes, got {len(shape)}")
    if shape and not 0 <= min(shape) <= max(shape) <= MASK64 + 1:
        raise ValueError(f"{name} must hold numbers from 0 to 2**64, got {shape}")
    if math.prod(shape) > MASK64 + 1:
        raise ValueError(f"{name} must have at most 2**64 elements, got {shape}")
    return shape


def check_mask_shape(shape, x_shape):
    """`check_shape` for an argument ``mask_shape``, where None stands for x's size on that axis."""
    if isinstance(shape, (tuple, list)) and None in shape:
        lead = len(x_shape) - len(shape)
        if lead < 0 and None in shape[:-lead]:
            raise ValueError(f"mask_shape must have None only where x has an axis, got {shape} for x's shape {x_shape}")
        shape = tuple(x_shape[lead + i] if n is None else n for i, n in enumerate(shape))
    return check_shape(shape, "mask_shape")


def fit_p(p, shape):
    """`check_p` for a mask of ``shape``: an array p must have its leading axes."""
    if type(p) is float and 0.0 <= p <= 1.0:
        return p
    p = check_p(p)
    if type(p) is float:
        return p
    if p.ndim == 0:
        return float(p)
    if p.shape != shape[: p.ndim]:
        raise ValueError(f"an array p must have the leading axes of the mask's shape {shape}, got shape {p.shape}")
    return p


def joint_shape(a, b, item, a_name, b_name):
    """Return the shape that ``a`` and ``b`` broadcast to; raise if there is none, or it cannot be allocated."""
    wide, narrow = (a, b) if len(a) >= len(b) else (b, a)
    lead = len(wide) - len(narrow)
    joint = wide[:lead] + tuple(n if m == 1 else m for m, n in zip(wide[lead:], narrow, strict=True))
    if any(n not in (1, m) for m, n in zip(joint[lead:], narrow, strict=True)):
        raise ValueError(f"{a_name} {a} does not broadcast with {b_name} {b}")
    check_allocatable(joint, item)
    return joint


def check_allocatable(shape, item):
    """Raise MemoryError where NumPy has a ValueError: an array of more bytes than an address can count."""
    if math.prod(shape) * item > sys.maxsize:
        raise MemoryError(f"cannot allocate an array of shape {shape} with {item} bytes an element")


def check_samples(samples, name="samples"):
    """Return ``samples`` as an int; raise unless it is an integer of at least 1."""
    try:
        number = operator.index(samples)
    except TypeError:
        raise TypeError(f"{name} must be an integer of at least 1, got {samples!r}") from None
    if number < 1 or isinstance(samples, (bool, np.bool_)):
        raise ValueError(f"{name} must be an integer of at least 1, got {samples!r}")
    return number


def check_flag(value, name):
    """Raise TypeError unless ``value`` is a bool: a word such as "eval" or "no" would count as True."""
    if value is not True and value is not False and not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_axis(axis, shape, name):
    """Return ``axis`` as an int from 0 on; raise unless it is one of those of the array ``name`` of this shape."""
    try:
        number = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None
    if not -len(shape) <= number < len(shape):
        raise ValueError(f"axis must be an axis of {name}, whose shape is {shape}, got {axis}")
    return number % len(shape)


def check_number(value, name):
    """Return ``value`` as a float; raise if it is none."""
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
