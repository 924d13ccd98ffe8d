"""One call made and judged: what it returns or raises, what it writes, what it keeps.

`fault` returns None, or in words what is wrong.
"""

import inspect
import re

import numpy as np

import fastdrop as fd
from fastdrop.dtypes import FLOATS
from fastdrop.operations import LOSSES

from .case import Twin, with_backend
from .memory import BFLOAT16, WORD, Argument, as_ndarray

ERRORS = (TypeError, ValueError, MemoryError, IndexError)


class Fault(Exception):
    """Something that must not be, in words."""


def judge(case):
    """Make the call; raise `Fault` if anything is wrong with it."""
    memory = {id(a.owner): a.owner for a in arguments_of(case)}
    before = {key: bytes(owner) for key, owner in memory.items()}
    written = {key: np.zeros(len(owner), bool) for key, owner in memory.items()}
    expected = None if case.refusals else reference(case)
    result, error = call(case)
    if error is not None:
        check_error(case, error)
        check_untouched(memory, before, written)
        check_unmoved(case, error)
    else:
        if case.refusals:
            raise Fault("accepted, though " + case.refusals[0])
        mark(case, written)
        check_untouched(memory, before, written)
        check_result(case, result, expected)
    if error is not None and not case.as_bytes:
        error = ""  # the caller's own arrays may stand in a traceback; what was made of his bytearrays may not
    result = expected = None
    forget(case)
    for owner in memory.values():
        try:
            owner.append(0)  # refused while anybody looks at it
        except BufferError:
            raise Fault(
                "memory of the caller's is held after " + ("the call" if error is None else "an error")
            ) from None


def mark(case, written):
    for out in case.outs:
        written[id(out.owner)] |= out.bytes_of()


def arguments_of(case):
    for value in case.arguments.values():
        for one in value if type(value) in (tuple, list) else (value,):
            if isinstance(one, Argument):
                yield one


def reference(case):
    """What the reference backend gives for plain copies of the arguments."""
    function = getattr(case, "plain_function", case.function)
    try:
        with np.errstate(all="ignore"):
            return with_backend("reference", function, **case.plain())
    except Exception as error:  # noqa: BLE001 (any, where it may raise)
        if case.doubtful:
            return None
        raise Fault(f"the reference refuses plain copies: {short(error)}") from None


def call(case):
    """(result, None) or (None, the error), whose traceback begins below this function."""
    box = {"given": case.given()}
    try:
        return case.function(**box.pop("given")), None
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        return None, error


def check_error(case, error):
    if not case.refusals and not case.doubtful:
        raise Fault(f"refused what is right: {short(error)}")
    if not isinstance(error, ERRORS):
        raise Fault(f"raised what is no proper error, {short(error)}, for {(case.refusals or case.doubtful)[0]}")
    if getattr(case, "unnamed_errors", False):
        return
    words = set(re.findall(r"\w+", str(error)))
    try:
        names = set(inspect.signature(getattr(fd, case.name, case.function)).parameters) | set(case.arguments)
    except ValueError:
        names = set(case.arguments)
    if not words & (names | {"mask", "p", "shape", "logits", "predictions"}):
        raise Fault(f"the error names no argument: {short(error)}, for {(case.refusals or case.doubtful)[0]}")


def short(error):
    return f"{type(error).__name__}: {error}"[:300]


def check_unmoved(case, error):
    for name, twin in case.arguments.items():
        if isinstance(twin, Twin) and twin.moved():
            raise Fault(f"raised, but moved {name} on: {short(error)}")


def check_untouched(memory, before, written):
    for key, owner in memory.items():
        if bytes(owner) != before[key]:
            changed = np.frombuffer(owner, np.uint8) != np.frombuffer(before[key], np.uint8)
            wrong = np.flatnonzero(changed & ~written[key])
            if wrong.size:
                what = "raised, but wrote" if not written[key].any() else "wrote outside out:"
                raise Fault(f"{what} {wrong.size} bytes, the first at {wrong[0]} of {len(owner)}")


# -- results -----------------------------------------------------------------------------------------------------------


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


def check_result(case, result, expected):
    for check in case.checks:
        said = check(result)
        if said is not True:
            raise Fault(f"{said}")
    got, want = flat(result), flat(expected)
    if len(got) != len(want):
        raise Fault(f"returned {len(got)} things for {len(want)}")
    check_identity(case, got)
    plain, wanted = case.plain(), [np.asarray(w) if isinstance(w, np.ndarray) else w for w in want]
    for i, (g, w) in enumerate(zip(got, want)):
        if isinstance(w, np.ndarray):
            array = as_ndarray(g, w.dtype)
            if array is None:
                raise Fault(f"result {i} is a {type(g).__name__}, not an array")
            if array.shape != w.shape or array.dtype.newbyteorder("=") != w.dtype:
                raise Fault(f"result {i} is {array.dtype} {array.shape}, not {w.dtype} {w.shape}")
            compare(case, i, np.array(array, w.dtype, order="C"), w, plain, wanted)
        elif isinstance(w, float):
            compare(case, i, np.asarray(g, float), np.asarray(w), plain, wanted)
        elif type(g) is not type(w) or g != w:
            raise Fault(f"result {i} is {g!r}, not {w!r}")


def check_identity(case, got):
    """What was given as ``out`` is what comes back."""
    outs = [out.given for out in case.outs]
    first = 3 if case.name == "r_drop" else int(case.name in LOSSES)  # after loss, ce and kl; after the loss
    for i, out in enumerate(outs):
        if got[first + i] is not out:
            raise Fault(f"result {first + i} is not the out that was given")


def compare(case, i, got, want, plain, wanted):
    if i not in case.close or want.dtype.kind in "?iu":
        bits = np.uint8 if want.itemsize == 1 else WORD[want.itemsize]
        nan = is_nan(want)
        same = (got.view(bits) == want.view(bits)) | (nan & is_nan(got))
        limit = "bits"
    else:
        factor, size = case.close[i]
        size = size(plain, wanted) if len(inspect.signature(size).parameters) > 1 else size(plain)
        same, limit = near(got, want, factor * np.asarray(size, float))
    if not same.all():
        at = np.flatnonzero(~same)
        g, w = got.ravel()[at[0]], want.ravel()[at[0]]
        limit = limit if isinstance(limit, str) else np.broadcast_to(limit, want.shape).ravel()[at[0]]
        raise Fault(
            f"result {i} is wrong in {at.size} of {want.size} elements of {want.dtype}, the first [{at[0]}] "
            f"is {g!r}, not {w!r} (allowed {limit})"
        )


def is_nan(x):
    return np.isnan(x) if x.dtype.kind == "f" or x.dtype == BFLOAT16 else np.zeros(x.shape, bool)


def near(got, want, limit):
    """Where ``got`` is ``want`` but for ``limit`` and a rounding to their dtype; NaN and infinities alike."""
    kind = FLOATS[want.dtype.name]
    largest = kind.largest if kind.itemsize < 8 else np.inf
    spacing, least = 2.0**-kind.digits, 2.0 ** (kind.least if kind.itemsize == 2 else kind.least + kind.digits)
    g, w = got.astype(float), want.astype(float)
    with np.errstate(all="ignore"):
        limit = limit + 2 * spacing * np.abs(w) + least
        ok = (np.abs(g - w) <= limit) | (g == w) | (np.isnan(g) & np.isnan(w))
        ok |= (
            np.isfinite(largest)
            & (np.abs(g) > largest * 0.98)
            & (np.abs(w) > largest * 0.98)
            & (np.sign(g) == np.sign(w))
        )
    return ok, limit


def forget(case):
    """Drop every reference to the arguments' memory."""
    case.arguments.clear()
    case.outs.clear()
    case.checks.clear()
    case.close.clear()
    case.function = case.plain_function = None
