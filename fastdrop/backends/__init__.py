"""Which backend runs: one module, the same functions in each.

    native      C kernels behind the compiled extension
    numba       Numba on the CPU: the same bits where no extension could be built
    reference   NumPy: the executable specification, and the fallback that always works

A backend is a module with a ``NAME`` and the functions of `reference`, all of which take arrays that have been checked:
floats of native byte order, aligned, of one shape (a mask broadcasts to it).  The choice is made once, at import, and
can be seen in ``fastdrop.show_config()``; nothing falls back later.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..typing import Backend

_MODULES = {
    "native": "fastdrop.backends.native",
    "numba": "fastdrop.backends.numba_cpu",
    "reference": "fastdrop.backends.reference",
}
CURES = {
    "native": "install a C compiler and Python's headers (Debian: gcc python3-dev), then the distribution "
    "fastdrop-kernels again, from where it came, with pip's --force-reinstall --no-cache-dir",
    "numba": "pip install numba, which needs no compiler",
}


class _None:
    """Stands for the backend until `choose` has been called, which `fastdrop/__init__.py` sees to."""

    def __getattr__(self, name):
        raise ImportError(
            "the __init__.py of this library has not been run: PyPI's distribution fastdrop, another program, has the "
            "same import name, and its install or its uninstall replaces or takes this file. pip uninstall fastdrop "
            "fastdrop-kernels, then install the distribution fastdrop-kernels again, from where it came"
        )


class _InUse:
    """Holds the table of the backend in use."""

    __slots__ = ("backend",)


in_use = _InUse()
in_use.backend = _None()


def use_backend(name: Backend) -> None:
    """Choose the backend for all later calls of this process.

    Parameters
    ----------
    name : {"native", "numba", "reference"}

    Raises
    ------
    TypeError, ValueError
        If ``name`` is no string, or there is no such backend.
    ImportError
        If it cannot be used here; the backend in use stays.

    Examples
    --------
    >>> import fastdrop as fd
    >>> before = fd.get_backend()
    >>> fd.use_backend("reference")
    >>> fd.get_backend()
    'reference'
    >>> fd.use_backend(before)
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be one of {sorted(_MODULES)}, got {name!r}")
    if name not in _MODULES:
        raise ValueError(f"name must be one of {sorted(_MODULES)}, got {name!r}")
    try:
        in_use.backend = importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise ImportError(f"the backend {name!r} cannot be loaded ({error}): to have it, {CURES[name]}") from error


def get_backend() -> Backend:
    """Return the name of the backend in use: "native", "numba" or "reference"."""
    return current().NAME


def current():
    """Return the module of the backend in use."""
    return in_use.backend


def available():
    """Return the names of the backends that can be used here, fastest first."""
    names = []
    for name, module in _MODULES.items():
        try:
            importlib.import_module(module)
        except ImportError:
            continue
        names.append(name)
    return names


def choose():
    """Use the fastest there is. Called when the package is imported and not at the first use: a process that another
    thread forks in the middle of an import would wait for it for ever."""
    for name in _MODULES:
        try:
            return use_backend(name)
        except ImportError:
            continue
