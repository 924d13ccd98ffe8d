"""How many threads the kernels may use, in this process."""

from __future__ import annotations

import operator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .arguments import explained
from .compiled import _core
from .locks import new_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import SupportsIndex

MAX_THREADS = 1024

_threads = 1  # until `config.start`
_lock = new_lock()


@explained
def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads the kernels may use, in this process. It changes no result.

    Parameters
    ----------
    n : int
        At least 1, at most 1024. Threads are started when a large array first needs them; where the system refuses one,
        fewer work.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not such an integer.

    Examples
    --------
    >>> import fastdrop as fd
    >>> with fd.threads(2):
    ...     fd.get_num_threads()
    2
    """
    global _threads
    try:
        number = operator.index(n)
    except TypeError:
        raise TypeError(f"n must be an integer of at least 1, got {n!r}") from None
    if not 1 <= number <= MAX_THREADS:
        raise ValueError(f"n must be an integer of at least 1 and at most {MAX_THREADS}, got {number}")
    with _lock:
        _threads = number
        if _core is not None:
            _core.set_threads(number)


def get_num_threads() -> int:
    """Return how many threads the kernels may use."""
    return _threads


@contextmanager
def threads(n: SupportsIndex) -> Iterator[None]:
    """Set the number of threads for a ``with`` block; the number before it comes back at its end.

    Parameters
    ----------
    n : int
        At least 1.
    """
    before = _threads
    set_num_threads(n)
    try:
        yield
    finally:
        set_num_threads(before)
