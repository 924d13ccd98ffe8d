"""Threads of our own: each runs a nogil kernel on a range of whole grains, so results do not depend on their number.

Numba's `parallel=True` is not used: its omp layer kills forked children, its workqueue layer aborts when two Python
threads enter it.  A forked child drops the pool and makes its own.
"""

from concurrent.futures import ThreadPoolExecutor, wait

from ...locks import after_fork, new_lock
from ...num_threads import get_num_threads
from .parts import TILE

SERIAL = 1 << 16  # elements below which a second thread costs more than it saves

_pool, _pool_size = None, 0
_pool_lock = new_lock()


def run(kernel, size, arguments, grain=TILE, cost=1):
    """Run ``kernel`` on ``size`` items in ranges of whole grains, on as many threads as are allowed and pay."""
    threads = get_num_threads() if size * cost >= SERIAL else 1
    part = -(-size // (threads * grain)) * grain
    rest = [(first, min(first + part, size)) for first in range(part, size, part)]
    tasks = [_executor(threads - 1).submit(kernel, *arguments, first, last) for first, last in rest]
    try:
        kernel(*arguments, 0, min(part, size))
    finally:
        wait(tasks)
    for task in tasks:
        task.result()


def _executor(workers):
    global _pool, _pool_size
    with _pool_lock:
        if _pool is None or _pool_size < workers:
            _pool, _pool_size = ThreadPoolExecutor(workers, "fastdrop-numba"), workers
        return _pool


@after_fork
def _forget_pool():
    """In a forked child its threads are gone."""
    global _pool
    _pool = None
