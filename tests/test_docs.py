"""Every public name says what it is, and the examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import fastdrop as fd

MODULES = [
    info.name
    for info in pkgutil.iter_modules(fd.__path__, "fastdrop.")
    if info.name not in ("fastdrop.__main__", "fastdrop.cuda", "fastdrop.numba", "fastdrop._core")
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
        "gelu_dropout_backward",
        "get_backend",
        "get_num_threads",
        "multi_sample_dropout_backward",
        "multi_sample_mean_backward",
        "release_buffers",
        "relu_dropout_backward",
        "show_config",
        "threads",
    }


@pytest.mark.parametrize("name", [n for n in fd.__all__ if not n.startswith("__")])
def test_public_names_are_documented(name):
    assert len(getattr(fd, name).__doc__.split()) > 4
