"""The one way in: `operation` declares which arguments of a public function are arrays, and what its ``out`` may be.

The body of a declared function sees ndarrays only, and an ``out`` that overlaps nothing it must not.  Plain arrays go
straight to it.  Anything else is looked at once, here: what lies on the CPU is viewed as an ndarray, and results are
delivered as their owner has them (`borders.host`); what lies in CUDA memory goes to the function of the same name in
`fastdrop.cuda`.  Nothing of the caller's memory is held when the call is over, not even by an exception's traceback,
whose frames would keep a ``bytearray`` from being resized.

Rejected: ``functools.singledispatch``, which looks at one argument only; array namespaces, since none says "in place".
"""

import importlib
import inspect
import sys
from functools import wraps
from importlib.util import find_spec

import numpy as np

from .arguments import check_keywords
from .arrays import check_places, overlaps
from .borders.host import deliver, on_device, view, written
from .rng import QUIET, Rehearsal, Rng, as_rng


def operation(*names, out=(), into=None, copied=(), optional=()):
    """Declare a public function's arrays.

    Parameters
    ----------
    *names : str
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
    """

    def decorate(body):
        return _Operation(body, names, out, into, copied, optional).wrapper()

    return decorate


class _Operation:
    """What `operation` was told about one function, and the two ways to it: the short one and the one that looks."""

    def __init__(self, body, names, out, into, copied, optional):
        self.body, self.names, self.into, self.copied = body, names, into, copied
        self.several = bool(out) and not isinstance(out[0], str)
        self.out = out if self.several else (out,)
        self.signature = inspect.signature(body)
        self.optional = optional or {name for name in names if self.signature.parameters[name].default is None}

    def wrapper(self):
        body, look, several, parameters = self.body, self.look, self.several, self.signature.parameters
        order = list(parameters)
        places = [(order.index(name), name, name in self.optional) for name in self.names]
        out_place = order.index("out") if "out" in parameters else len(order)
        by_keyword = frozenset(order)
        must_look = self.into is not None

        @wraps(body)
        def call(*args, **kwargs):
            n = len(args)
            for place, name, optional in places:
                array = args[place] if place < n else kwargs.get(name)
                if type(array) is not np.ndarray and (array is not None or not optional):
                    return look(args, kwargs)
            get = kwargs.get
            if must_look or (
                kwargs
                and (type(get("rng")) not in QUIET or get("dtype") is not None or not by_keyword.issuperset(kwargs))
            ):
                return look(args, kwargs)
            out = args[out_place] if n > out_place else get("out")
            if out is not None:
                if several or type(out) is not np.ndarray:
                    return look(args, kwargs)
                self.check_out((out,), [args[i] if i < n else get(name) for i, name, _ in places])
            return body(*args, **kwargs)

        return call

    def check_out(self, outs, arrays):
        """Raise ValueError if an output overlaps itself, another, or an input that it may not be."""
        for i, (out, may_be) in enumerate(zip(outs, self.out)):
            own = f"out[{i}]" if self.several else "out"
            if not out.flags.writeable:
                raise ValueError(f"{own} must be writable, got a read-only array")
            check_places(out, own)
            for name, array in zip(self.names, arrays):
                if array is not None and not (name in self.copied and array.dtype.kind in "iub"):
                    overlaps(out, array, name, own, same=name in may_be)
            for j in range(i):
                overlaps(out, outs[j], f"out[{j}]", own, same=False)

    def look(self, args, kwargs):
        """The call on anybody's arrays."""
        check_keywords(self.body.__name__, kwargs, self.signature.parameters)
        rng = kwargs.get("rng")
        if type(rng) not in QUIET:  # its code may change the arrays: it runs before they are looked at
            try:
                return self.look(args, {**kwargs, "rng": Rehearsal()})  # a call that raises takes no mask
            except Rehearsal.Reached:
                kwargs = {**kwargs, "rng": Rng(*as_rng(rng).take())}
        try:
            given = self.signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.body.__name__}(): {error}") from None
        objects = [given.get(name) for name in self.names]
        for name, x in zip(self.names, objects):
            if x is None and name not in self.optional:
                raise TypeError(f"{name} must be an array, got None")
        outs = given.get("out")
        if outs is not None and self.several and (not isinstance(outs, (tuple, list)) or len(outs) != len(self.out)):
            kind = type(outs).__name__
            raise TypeError(f"out must be a pair of arrays, one for each gradient, got {kind}")
        outs = () if outs is None else outs if self.several else (outs,)
        named = [(name, x) for name, x in zip(self.names, objects) if x is not None]
        named += [(f"out[{i}]" if self.several else "out", x) for i, x in enumerate(outs)]
        devices = [type(x) is not np.ndarray and on_device(x) for _, x in named]
        function = self.on_device() if devices[0] else None  # the first says where the work is done
        for (name, x), device in zip(named, devices):
            if device != devices[0]:
                here, there = ("CUDA", "CPU") if devices[0] else ("CPU", "CUDA")
                raise TypeError(f"{name} must lie in {here} memory, got a {type(x).__name__} in {there} memory")
        if function is None:
            return self.on_host(given, objects, outs, named)
        dtype = given.pop("dtype", None)
        if dtype is not None:
            raise TypeError(f"dtype must not be given for a device array, which says what it holds, got {dtype!r}")
        return function(*given.values()) if "self" in given else function(**given)

    def on_device(self):
        """The function of `fastdrop.cuda` with this one's name."""
        if find_spec("numba_cuda") is None:
            raise ImportError("arrays in CUDA memory need the package numba-cuda: pip install numba-cuda")
        function = getattr(importlib.import_module("fastdrop.cuda"), self.body.__name__, None)
        if function is None:
            raise TypeError(f"{self.body.__name__} is not there for arrays in CUDA memory")
        return function

    def on_host(self, given, objects, outs, named):
        dtype = given.get("dtype")
        outer = sys.exc_info()[1]  # one that the caller is handling
        try:
            views = [
                None if x is None else view(x, name, dtype, writable=name == self.into)
                for name, x in zip(self.names, objects)
            ]
            targets = [view(x, name, dtype, writable=True) for name, x in named[len(named) - len(outs) :]]
            if self.into is None:
                self.check_out(targets, views)
            else:
                check_places(views[self.names.index(self.into)], self.into)
            arguments = {**given, **{name: v for name, v in zip(self.names, views) if v is not None}, "dtype": None}
            if targets:
                arguments["out"] = tuple(targets) if self.several else targets[0]
            if "dtype" not in self.signature.parameters:
                del arguments["dtype"]
            owners = [(v, x) for v, x in zip((*targets, *views), (*outs, *objects)) if v is not None]
            result = _delivered(self.body(**arguments), owners, objects[0])
            for x in (*outs, *(x for name, x in zip(self.names, objects) if name == self.into)):
                written(x)
            return result
        except Exception as error:  # noqa: BLE001 (goes on as it is, without the frames that hold the memory)
            raise _forgetful(error, outer)  # noqa: B904
        finally:
            views = targets = arguments = owners = None


def _delivered(result, owners, first):
    """``result`` with the caller's own objects for the views of them, and new arrays in the kind of ``first``."""
    if isinstance(result, tuple):
        parts = result.__getnewargs__() if hasattr(result, "_fields") else result
        parts = [_delivered(part, owners, first) for part in parts]
        return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
    for v, x in owners:
        if result is v:
            return x
    return deliver(result, first) if type(result) is np.ndarray else result


def _forgetful(error, outer):
    """``error`` without tracebacks, its own and those of the errors that it came from, up to the caller's ``outer``."""
    one = error
    while one is not None and one is not outer:
        one.__traceback__ = None
        one = one.__cause__ or one.__context__
    return error
