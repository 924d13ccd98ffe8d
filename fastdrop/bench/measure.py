"""How a time is taken.

Machines are shared and clocks move, so no time means much alone.  Functions that are compared run in turn, A B C A B C,
in one process, and what is reported is the median of each and the median of the quotients of neighbours.  Not `timeit`,
whose minimum hides what page faults and other processes cost, and which runs all of A before all of B.
"""

import gc
import os
import platform
import statistics
import subprocess
import sys
from itertools import repeat
from time import perf_counter

SAMPLE = 200e-6  # seconds; shorter calls are repeated up to this, so that the clock's 50 ns do not show
FEWEST, MOST = 5, 200  # rounds
FEWEST_LONG, LONG = 3, 0.5  # of more than half a second each


def clock(function, loops):
    """Seconds a call, over ``loops`` calls; results are thrown away at once: freeing is part of a fresh output."""
    start = perf_counter()
    for _ in repeat(None, loops):
        function()
    return (perf_counter() - start) / loops


def interleave(functions, seconds):
    """Time functions in turn.

    Parameters
    ----------
    functions : dict of str to callable
        Without arguments. Each is called twice before anything counts: JIT, page faults, thread pools.
    seconds : float
        About how long to go on; at least `FEWEST` rounds.

    Returns
    -------
    dict of str to list of float
        Seconds a call, one for each round, same order of rounds in each list.
    """
    loops, cost = {}, 0.0
    for name, function in functions.items():
        clock(function, 1)
        once = clock(function, 1)
        loops[name] = max(1, int(SAMPLE / max(once, 1e-9)))
        cost += once * loops[name]
    rounds = min(MOST, max(FEWEST if cost < LONG else FEWEST_LONG, int(seconds / cost)))
    taken = {name: [] for name in functions}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, function in functions.items():
                taken[name].append(clock(function, loops[name]))
    finally:
        if collecting:
            gc.enable()
    return taken


def ratio(above, below):
    """Median of the quotients of neighbours."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def memory_free():
    """Bytes that can be had without swapping, or None where the system does not say."""
    if os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None


def peak_memory():
    """Most bytes that were ever resident in this process, or None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource  # POSIX only

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpus():
    """CPUs that this process may use, as a sorted list of their numbers."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpu_name():
    """The CPU's name as the system gives it."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=True
        ).stdout.strip()
    return platform.processor() or platform.machine()
