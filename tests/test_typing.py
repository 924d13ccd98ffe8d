"""Types are part of the interface: all of it is annotated, and what annotations promise is what comes.

What type checkers make of the two pages in ``typing/``, ``.ci/check_types.py`` asks where they are installed.
"""

import array
import importlib
import importlib.util
import inspect
import re
import types
import typing
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.operations import ACTIVATIONS

PAGES = Path(__file__).parent / "typing"
F4 = np.float32


def load(name):
    spec = importlib.util.spec_from_file_location(name, PAGES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


uses = load("uses")

# -- all is annotated --------------------------------------------------------------------------------------------------


def surface():
    """(name, callable) for all that users call: functions, classes, methods, properties."""
    modules = {"fastdrop": fd.__all__, "fastdrop.cuda": None, "fastdrop.layers": ("Dropout", "MultiSampleDropout")}
    modules |= {"fastdrop.inference": ("Sample", "MonteCarlo"), "fastdrop.numba": None}
    for module, names in modules.items():
        if module == "fastdrop.numba" and importlib.util.find_spec("numba") is None:
            continue
        module = importlib.import_module(module)
        for name in names or module.__all__:
            thing = getattr(module, name)
            if inspect.isclass(thing):
                yield from members(f"{module.__name__}.{name}", thing)
            elif callable(thing):
                yield f"{module.__name__}.{name}", thing


def members(name, owner):
    for kind in owner.__mro__:
        if kind.__module__.startswith("fastdrop") and kind.__module__ != "fastdrop._core":
            for member, thing in vars(kind).items():
                thing = getattr(thing, "__func__", thing)
                if isinstance(thing, property):
                    thing = thing.fget
                public = not member.startswith("_") or member in ("__init__", "__call__", "__getitem__", "__mul__")
                if public and inspect.isfunction(thing):
                    yield f"{name}.{member}", thing


@pytest.mark.parametrize(("name", "function"), [pytest.param(*one, id=one[0]) for one in surface()])
def test_parameters_and_results_are_annotated(name, function):
    signature = inspect.signature(function)
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty and p.name not in ("self", "cls")]
    assert bare == []
    assert signature.return_annotation is not signature.empty


def test_types_are_not_imported_with_the_package(fresh_python):
    done = fresh_python("import sys, fastdrop; print('fastdrop.typing' in sys.modules); import fastdrop.typing")
    assert done.stdout == "False\n", done.stderr


def test_surface():
    names = {name for name, _ in surface()}
    assert {"fastdrop.dropout", "fastdrop.Mask.apply", "fastdrop.Mask.shape", "fastdrop.layers.Dropout.p"} <= names
    assert {"fastdrop.cuda.relu_dropout", "fastdrop.inference.Sample.dropout", "fastdrop.Rng.spawn"} <= names


def test_every_public_name_is_used():
    page = (PAGES / "uses.py").read_text("utf-8")
    alike = {name + end for name in ACTIVATIONS for end in ("", "_backward")}  # typed as others: some are there
    for module, name in (("fastdrop", "fd"), ("fastdrop.cuda", "cuda")):
        used = set(re.findall(rf"\b{name}\.(\w+)", page))
        assert set(importlib.import_module(module).__all__) - used - alike == set()


# -- documented uses: what comes is what the types say ----------------------------------------------------------------


def fits(value, kind, others):
    """Is ``value`` what the annotation says? ``others`` are the classes that the page has stand-ins for."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any or kind is None:
        return kind is typing.Any or value is None
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one, others) for one in arguments)
    if origin is np.ndarray:
        (scalar,) = typing.get_args(arguments[1])
        scalar = typing.get_origin(scalar) or scalar
        return type(value) is np.ndarray and (scalar is typing.Any or issubclass(value.dtype.type, scalar))
    if origin is fd.losses.RDrop:
        loss, gradient = arguments
        arguments, origin = (loss, loss, loss, gradient, gradient), tuple
    if origin is tuple and arguments[-1] is not Ellipsis:
        return len(value) == len(arguments) and all(fits(v, one, others) for v, one in zip(value, arguments))
    return isinstance(value, others.get(kind, origin or kind))


def arrays():
    """Arguments by name."""
    x = np.linspace(0.1, 0.9, 8, dtype=F4).reshape(2, 4)
    weights = {"W": np.ones((4, 3), F4), "b": np.zeros(3, F4), "bias": np.ones(4, F4)}
    logits = {"a": x.copy(), "c": x[::-1].copy(), "scores": x.copy(), "labels": np.array([0, 3])}
    others = {"some": np.ones((2, 4)), "buffer": array.array("f", [1, 2]), "mask": fd.mask((2, 4), 0.5, rng=0)}
    return {"x": x, "n": np.int64(2), **weights, **logits, **others}


def call(name, given, others):
    function = getattr(uses, name)
    seen = []

    def assert_type(value, kind):
        assert fits(value, kind, others), (value, kind)
        seen.append(value)

    uses.assert_type = assert_type
    function(**{name: given[name] for name in inspect.signature(function).parameters})
    assert seen


FUNCTIONS = [name for name, thing in vars(uses).items() if inspect.isfunction(thing) and name != "assert_type"]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith("_of_others")])
def test_results_are_of_the_kinds_annotated(name):
    if name == "numba_rule":
        pytest.importorskip("numba")
    call(name, arrays(), {})


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.endswith("_of_others") and "cuda" not in name])
def test_results_are_of_the_kinds_of_their_owners(name):
    torch, jax, pd = (pytest.importorskip(library) for library in ("torch", "jax", "pandas"))
    given = arrays()
    given |= {"t": torch.from_numpy(given["a"]), "tW": torch.ones(4, 3), "tb": torch.zeros(3)}
    given |= {"j": jax.numpy.asarray(given["x"]), "df": pd.DataFrame(given["some"])}
    call(name, given, {uses.Tensor: torch.Tensor, uses.JaxArray: jax.Array, uses.Frame: pd.DataFrame})


# -- mistakes: what type checkers find raises --------------------------------------------------------------------------

HEAD, *_ = (PAGES / "mistakes.py").read_text("utf-8").partition("# what is dropped out\n")
MISTAKES = re.findall(r"^(.*)  # mistake", (PAGES / "mistakes.py").read_text("utf-8"), flags=re.MULTILINE)
scope = {}
exec(HEAD.replace("from __future__ import annotations", ""), scope)


@pytest.mark.parametrize("code", MISTAKES)
def test_mistakes_raise(code):
    with pytest.raises((TypeError, ValueError, AttributeError, IndexError)):
        exec(code, dict(scope))


def test_all_lines_are_marked():
    rest = (PAGES / "mistakes.py").read_text("utf-8")[len(HEAD) :].splitlines()
    assert [line for line in rest if line and not line.startswith("#") and "  # mistake" not in line] == []
    assert len(MISTAKES) >= 60
