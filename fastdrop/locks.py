"""What a forked child must do before it goes on: renew the package's locks, and whatever else is told here.

The thread that held a lock at the moment of the fork is not in the child, which would wait for it for ever.  So every
lock of the package is made here.
"""

import os
import threading
import weakref

_locks = weakref.WeakSet()
_functions = []


def new_lock():
    """Return a lock that a forked child finds open."""
    lock = threading.Lock()
    _locks.add(lock)
    return lock


def after_fork(function):
    """Call ``function()`` in every forked child, once the locks are renewed. It can be used as a decorator."""
    _functions.append(function)
    return function


def _in_child():
    for lock in _locks:
        lock._at_fork_reinit()  # as CPython's own modules do
    for function in _functions:
        function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
