"""The one way in: `operation` declares which arguments of a public function are arrays, and what its ``out`` may be.

The body of a declared function sees ndarrays only, and an ``out`` that overlaps nothing it must not.  Plain arrays go
straight to it.  Anything else is looked at once, here: what lies on the CPU is viewed as an ndarray, and results are
delivered as their owner has them, by one of `borders`; what lies in CUDA memory goes to the body of the same name in
`fastdrop.cuda`.  Nothing of the caller's memory is held when the call is over, not even by an exception's traceback,
whose frames would keep a ``bytearray`` from being resized.

Rejected: ``functools.singledispatch``, which looks at one argument only; array namespaces, since none says "in place".
"""

from __future__ import annotations

import importlib
import inspect
import sys
from functools import wraps
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

from .arguments import check_keywords
from .backends import in_use
from .borders import BORDERS, on_device
from .compiled import _core
from .rng import QUIET, Rehearsal, Rng, as_rng

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ParamSpec, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")
    F = TypeVar("F")

FUNCTIONS = {}  # name, "Mask.apply" for a method -> Declaration

NOT_GIVEN = object()

apart = _core.apart if _core is not None else lambda out, *others: False


def operation(
    *arrays: str,
    out: tuple[str, ...] | tuple[tuple[str, ...], ...] = (),
    into: str | None = None,
    copied: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    fast_path: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare a public function's arrays.

    Parameters
    ----------
    *arrays : str
        The arguments that are arrays. The first owns the results: they come in its kind.
    out : tuple
        Names of the arrays that the argument ``out`` may be. It must not overlap them in another way, nor any other
        array. For several outputs: a tuple of such tuples.
    into : str, optional
        The argument that is written in place, in a function without ``out``.
    copied : tuple of str
        Arrays that the function copies before it writes where they hold integers or bools: ``out`` may overlap them.
    optional : tuple of str
        Arrays that may be None; by default those whose default is None.
    fast_path : bool
        Try ``fast_path(x, p, rng, out)`` of the backend first, where all other arguments are left alone.
    """

    def decorate(body):
        declaration = Declaration(body, arrays, out, into, copied, optional)
        FUNCTIONS[body.__qualname__] = declaration
        return declaration.wrapper(fast_path)

    return decorate


def like(function: F) -> Callable[[Callable[..., Any]], F]:
    """Decorate a function that has the types of another: its overloads are written once."""
    return lambda body: body


class Declaration:
    """What `operation` was told about one function, and the two ways to it: the short one and the one that looks."""

    def __init__(self, body, arrays, out, into, copied, optional):
        self.body, self.name, self.arrays, self.into, self.copied = body, body.__name__, arrays, into, copied
        self.device_body = None  # set by `device_operation`
        self.several = bool(out) and not isinstance(out[0], str)
        self.out = out if self.several else (out,)
        self.signature = inspect.signature(body)
        self.optional = optional or {name for name in arrays if self.signature.parameters[name].default is None}

    def wrapper(self, fast_path=False):
        """The public function: the body's signature, generated, so that a plain call costs no more than its own checks.

        Unknown arguments are caught for an error that says more than Python's. Defaults are literals.
        """
        parameters = {name: p for name, p in self.signature.parameters.items() if name != "self"}
        positional = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY]
        own = ["self"] * ("self" in self.signature.parameters)
        literal = {name: "NOT_GIVEN" if p.default is p.empty else repr(p.default) for name, p in parameters.items()}
        heads = [f"{name}={literal[name]}" for name in parameters]
        heads[len(positional) :] = ["*", *heads[len(positional) :]] if len(positional) < len(heads) else []
        arguments = ", ".join([*own, *positional, *(f"{name}={name}" for name in parameters if name not in positional)])
        given = ", ".join(f"{name!r}: {name}" for name in (*own, *parameters))
        code = [f"def {self.name}({', '.join((*own, *heads))}, **unknown):"]
        if fast_path:
            left_alone = [f"{name} is {literal[name]}" for name in parameters if name not in ("x", "p", "rng", "out")]
            code += [f"    if {' and '.join(left_alone)} and not unknown:"]
            code += ["        done = in_use.backend.fast_path(x, p, rng, out)"]
            code += ["        if done is not None:", "            return done"]
        none = {name: f"{name} is None or " for name in self.optional}
        plain = [f"({none.get(name, '')}type({name}) is ndarray)" for name in self.arrays]
        quiet = ["type(rng) in QUIET"] * ("rng" in parameters) + ["dtype is None"] * ("dtype" in parameters)
        others = [name for name in parameters if name not in self.arrays]
        quiet += [f"{name} is not NOT_GIVEN" for name in others if literal[name] == "NOT_GIVEN"]
        code += [f"    if {' and '.join(plain + quiet)} and not unknown:"]
        code += [f"        check_places({self.into}, {self.into!r})"] * (self.into is not None)
        code += [f"        {'if out is None: ' * ('out' in parameters)}return body({arguments})"]
        if "out" in parameters:
            outs = [f"out[{i}]" for i in range(len(self.out))] if self.several else ["out"]
            kinds = [f"type({out}) is ndarray" for out in outs]
            kinds[:0] = [f"type(out) is tuple and len(out) == {len(outs)}"] * self.several
            code += [f"        if {' and '.join(kinds)}:"]
            code += [f"            if not ({' and '.join(map(self.apart_code, range(len(outs)), repeat(outs)))}):"]
            code += [f"                check_out(({', '.join(outs)},), ({', '.join(self.arrays)},))"]
            code += [f"            return body({arguments})"]
        code += [f"    return look({{{given}}}, unknown)"]
        scope = {"ndarray": np.ndarray, "QUIET": QUIET, "in_use": in_use, "NOT_GIVEN": NOT_GIVEN, "apart": apart}
        scope |= {
            "body": self.body,
            "check_places": BORDERS["CPU"].check_places,
            "check_out": self.check_out,
            "look": self.look,
        }
        file = f"<generated from {self.body.__module__}.{self.name}>"
        exec(compile("\n".join(code), file, "exec"), scope)  # names and defaults of this package alone
        call = wraps(self.body)(scope[self.name])
        call.__signature__ = self.signature
        return call

    def apart_code(self, i, outs):
        """Code that asks whether the i-th output is plainly in order; where it is not, `check_out` looks."""
        may_be = self.out[i]
        arrays = [f"None if {name} is {outs[i]} else {name}" if name in may_be else name for name in self.arrays]
        return f"apart({', '.join([outs[i], *arrays, *outs[i + 1 :]])})"

    def check_out(self, outs, arrays, border=BORDERS["CPU"]):
        """Raise ValueError if an output overlaps itself, another, or an input that it may not be."""
        for i, (out, may_be) in enumerate(zip(outs, self.out)):
            own = f"out[{i}]" if self.several else "out"
            border.check_places(out, own)
            for name, array in zip(self.arrays, arrays):
                if array is not None and not (name in self.copied and border.copies(array)):
                    border.check_overlap(out, array, name, own, same=name in may_be)
            for j in range(i):
                border.check_overlap(out, outs[j], f"out[{j}]", own, same=False)

    def look(self, given, unknown, place=None, stream=None):
        """The call on anybody's arrays; ``place`` is where they must lie, None where the first says it."""
        check_keywords(self.name, unknown, self.signature.parameters)
        for name, value in given.items():
            if value is NOT_GIVEN:
                raise TypeError(f"{self.name}(): missing a required argument: {name!r}")
        rng = given.get("rng")
        if type(rng) not in QUIET:  # its code may change the arrays: it runs before they are looked at
            try:
                return self.look({**given, "rng": Rehearsal()}, {}, place, stream)  # a call that raises takes no mask
            except Rehearsal.Reached:
                given = {**given, "rng": Rng(*as_rng(rng).take())}
        objects = {name: given[name] for name in self.arrays if given[name] is not None or name not in self.optional}
        for name, x in objects.items():
            if x is None:
                raise TypeError(f"{name} must be an array, got None")
        outs = given.get("out")
        if outs is not None and self.several and (not isinstance(outs, (tuple, list)) or len(outs) != len(self.out)):
            kind = type(outs).__name__
            raise TypeError(f"out must be a pair of arrays, one for each gradient, got {kind}")
        outs = () if outs is None else outs if self.several else (outs,)
        outs = {f"out[{i}]" if self.several else "out": out for i, out in enumerate(outs)}
        first = objects[self.arrays[0]]
        border, body = self.border_of(first, given.get("dtype"), place, stream)
        for name, x in (objects | outs).items():
            if (there := _place_of(x)) != border.place:
                raise TypeError(f"{name} must lie in {border.place} memory, got a {type(x).__name__} in {there} memory")
        return self.over(border, body, given, objects, outs)

    def border_of(self, first, dtype, place, stream):
        """The border that a call goes over, and the function that waits behind it."""
        here = _place_of(first)
        if place not in (None, here):
            name, kind = self.arrays[0], type(first).__name__
            raise TypeError(f"{name} must be a device array, got a {kind} in host memory")
        if here == "CPU":
            return BORDERS[here](first, dtype), self.body
        border = BORDERS[here](first, dtype, stream)
        importlib.import_module("fastdrop.cuda")  # which declares what it has by `device_operation`
        if self.device_body is None:
            raise TypeError(f"{self.name} is not there for arrays in CUDA memory")
        return border, self.device_body

    def over(self, border, body, given, objects, outs):
        """Bring the arrays in, run the body on them, and give the results back in their owners' kinds."""
        outer = sys.exc_info()[1]  # one that the caller is handling
        try:
            views = {name: border.take(x, name, writable=name == self.into) for name, x in objects.items()}
            targets = [border.take(x, name, writable=True) for name, x in outs.items()]
            if self.into is None:
                self.check_out(targets, [views.get(name) for name in self.arrays], border)
            else:
                border.check_places(views[self.into], self.into)
            arguments = {name: x for name, x in given.items() if name not in ("self", "dtype")} | views
            if targets:
                arguments["out"] = tuple(targets) if self.several else targets[0]
            own = [given["self"]] if "self" in given else []
            owners = [(v, x) for v, x in zip((*targets, *views.values()), (*outs.values(), *objects.values()))]
            result = _delivered(border.run(body, *own, **arguments), owners, border)
            for x in (*outs.values(), *(x for name, x in objects.items() if name == self.into)):
                border.written(x)
            return result
        except Exception as error:  # noqa: BLE001 (goes on as it is, without the frames that hold the memory)
            raise _forgetful(error, outer)  # noqa: B904
        finally:
            views = targets = arguments = owners = border = None


def device_operation(body: Callable[P, R]) -> Callable[P, R]:
    """Declare the body, on device arrays, of the function of this name, which `operation` has declared for the host.

    It takes the same arguments but ``dtype``, and ``stream``, in the place of which the body gets its border.
    """
    declaration = FUNCTIONS.get(body.__name__) or FUNCTIONS[f"Mask.{body.__name__}"]
    declaration.device_body = body
    signature = inspect.signature(body)

    @wraps(body)
    def call(*args, **kwargs):
        check_keywords(declaration.name, kwargs, signature.parameters)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        stream = given.pop("stream")
        if "self" in declaration.signature.parameters:
            given = {"self": given.pop("mask"), **given}
        return declaration.look(given, {}, "CUDA", stream)

    return call


def _place_of(x):
    return "CUDA" if type(x) is not np.ndarray and on_device(x) else "CPU"


def _delivered(result, owners, border):
    """``result`` with the caller's own objects for the views of them, and new arrays as their owners have them."""
    if isinstance(result, tuple):
        parts = result.__getnewargs__() if hasattr(result, "_fields") else result
        parts = [_delivered(part, owners, border) for part in parts]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    for v, x in owners:
        if result is v:
            return x
    return border.deliver(result) if type(result) is border.Array else result


def _forgetful(error, outer):
    """``error`` without tracebacks, its own and those of the errors that it came from, up to the caller's ``outer``."""
    one = error
    while one is not None and one is not outer:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error
