"""What runs and how: threads, instruction set, backend; chosen at import, seen in `show_config`.

Environment: ``FASTDROP_NUM_THREADS``, then ``OMP_NUM_THREADS`` (1024 at most; what OpenMP ignores is ignored), then
the CPUs this process may use; ``FASTDROP_ISA`` forces ``scalar``, ``avx2``, ``avx512`` or ``neon``;
``FASTDROP_BUFFER_MB`` is the start value of `set_buffer_limit`.
"""

from __future__ import annotations

import operator
import os
import platform
import sys
import warnings
from typing import TYPE_CHECKING

from . import backends
from ._version import __version__
from .arguments import explained
from .compiled import _core, why_not
from .locks import after_fork, new_lock
from .num_threads import MAX_THREADS, get_num_threads, set_num_threads
from .rule import STREAM_VERSION

if TYPE_CHECKING:
    from typing import SupportsIndex

    from _typeshed import SupportsWrite


def _cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _from_environment(name, least, most, default):
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 20 or not least <= int(text) <= most:
        raise ValueError(f"{name} must be an integer of at least {least} and at most {most}, got {text!r}")
    return int(text)


def _threads_at_start():
    """``FASTDROP_NUM_THREADS``, which must be right; else ``OMP_NUM_THREADS``, of which a number that OpenMP would not
    take is ignored, as OpenMP does."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    others = int(text) if text.isdecimal() and len(text) <= 20 else 0
    return _from_environment("FASTDROP_NUM_THREADS", 1, MAX_THREADS, min(others, MAX_THREADS) or _cpus())


_buffer_limit = 512 << 20
_lock = new_lock()


@explained
def set_buffer_limit(n: SupportsIndex) -> None:
    """Set how much memory of freed outputs may be kept for the next ones, in this process. It changes no result.

    A fresh large array costs more in page faults than dropout itself, so the memory of outputs of 2 MiB and more is
    used again when nobody holds them any more (on Linux, with the compiled kernels). Such arrays do not own their
    memory: ``flags.owndata`` is False, and ``resize`` in place is refused.

    Parameters
    ----------
    n : int
        Bytes, at least 0; 0 turns it off. 512 MiB at start, or ``FASTDROP_BUFFER_MB`` MiB.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not an integer of at least 0.

    See Also
    --------
    release_buffers

    Examples
    --------
    >>> import fastdrop as fd
    >>> fd.set_buffer_limit(512 << 20)
    """
    global _buffer_limit
    try:
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer of at least 0 (bytes), got {n!r}") from None
    if not 0 <= number <= sys.maxsize:
        raise ValueError(f"n must be an integer of at least 0 (bytes), got {number}")
    with _lock:
        _buffer_limit = number
        if _core is not None:
            _core.set_buffer_limit(number)


def release_buffers() -> None:
    """Give the memory kept for future outputs back to the system now."""
    if _core is not None:
        _core.release_buffers()


def show_config(file: SupportsWrite[str] | None = None) -> None:
    """Print version, stream version, instruction sets, threads and backends.

    Parameters
    ----------
    file : file object, default sys.stdout
    """
    for name, value in config().items():
        print(f"{name + ':':20}{value}", file=file or sys.stdout)


def config():
    """Return what `show_config` prints, as a dict of strings, numbers and lists."""
    return {
        "fastdrop": __version__,
        "stream version": STREAM_VERSION,
        "python": platform.python_version(),
        "backend": backends.get_backend(),
        "backends found": backends.available(),
        "isa": _core.isa() if _core else None,
        "isa found": _core.isa_found() if _core else [],
        "isa forced": os.environ.get("FASTDROP_ISA"),
        "threads": get_num_threads(),
        "buffers kept": f"{_core.kept_bytes() >> 20 if _core else 0} of at most {_buffer_limit >> 20} MiB",
    }


def _warn_of_namesake():
    """PyPI has another program of this import name: pip writes the files of both into one folder, and its uninstall
    takes those of the one that is left."""
    folder = os.path.dirname(os.path.dirname(__file__))
    try:
        names = os.listdir(folder)
    except OSError:  # imported from an archive
        return
    for name in names:  # this distribution's own begins with fastdrop_kernels-
        if name.startswith("fastdrop-") and name.endswith((".dist-info", ".egg-info")):
            warnings.warn(
                f"another program, the distribution fastdrop ({name}), is installed in {folder} beside this library, "
                "the distribution fastdrop-kernels: files of one replace files of the other. Have only one: "
                "pip uninstall fastdrop fastdrop-kernels, then install the one you want",
                RuntimeWarning,
                stacklevel=4,
            )


def start():
    """Called once, when the package is imported."""
    _warn_of_namesake()
    forced = os.environ.get("FASTDROP_ISA")
    if _core is None:
        if forced:
            raise ImportError(f"FASTDROP_ISA={forced} needs the compiled extension, which cannot be loaded: {why_not}")
        backends.choose()
        backend = backends.get_backend()
        warnings.warn(
            f"fastdrop runs on its {backend} backend, which gives the same results more slowly: the compiled one "
            f"cannot be loaded ({why_not}). To have it, {backends.CURES['native']}"
            + (f"; or {backends.CURES['numba']}." if backend == "reference" else "."),
            RuntimeWarning,
            stacklevel=3,
        )
    else:
        backends.choose()
        _core.use_isa(forced or _core.isa_found()[0])
        after_fork(_core.after_fork)
    set_num_threads(_threads_at_start())
    set_buffer_limit(_from_environment("FASTDROP_BUFFER_MB", 0, sys.maxsize >> 20, _buffer_limit >> 20) << 20)
