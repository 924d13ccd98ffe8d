"""Every public name says what it is and what it takes, and the examples in the docstrings run."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import fastdrop as fd
from fastdrop.operations import ACTIVATIONS

MODULES = [
    info.name
    for info in pkgutil.iter_modules(fd.__path__, "fastdrop.")
    if info.name not in ("fastdrop.__main__", "fastdrop.cuda", "fastdrop.numba", "fastdrop.torch", "fastdrop._core")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    names = [n for n in fd.__all__ if callable(getattr(fd, n))]
    without = [n for n in names if not any(test.examples for test in finder.find(getattr(fd, n), n))]
    # shown in the example of the function that they belong to, or with nothing to show
    assert set(without) <= {
        "get_backend",
        "get_num_threads",
        "multi_sample_dropout_backward",
        "multi_sample_mean_backward",
        "release_buffers",
        *(f"{name}_backward" for name in ACTIVATIONS),
        "show_config",
        "threads",
    }


@pytest.mark.parametrize("name", ["fastdrop.torch.functional", "fastdrop.torch.modules", "fastdrop.torch.replace"])
def test_examples_of_adapters_run(name):
    pytest.importorskip("torch")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", [n for n in fd.__all__ if not n.startswith("__")])
def test_public_names_are_documented(name):
    assert len(getattr(fd, name).__doc__.split()) > 4


def functions():
    """(name, function) for each public function, class and method."""
    for name in fd.__all__:
        thing = getattr(fd, name)
        if callable(thing):
            yield name, thing
        if inspect.isclass(thing):
            for method, function in inspect.getmembers(thing, inspect.isroutine):
                internal = method.startswith("_") or method in ("strides_for", "broadcast_p")  # the backends use these
                if not internal and function.__qualname__.startswith(f"{name}."):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(("name", "thing"), list(functions()))
def test_parameters_are_those_of_the_signature(name, thing):
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    taken = {p.name for p in inspect.signature(thing).parameters.values() if p.kind not in kinds} - {"self"}
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n[A-Z][A-Za-z ]+\n-+\n|\Z)", inspect.getdoc(thing), re.DOTALL)
    lines = re.findall(r"^(\w+(?:, \w+)*)(?: :.*)?$", section[1], re.MULTILINE) if section else []
    assert {word for line in lines for word in line.split(", ")} == taken
