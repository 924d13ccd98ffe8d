"""Threads, fork and spawn: no hang, the same results, and no masks that repeat themselves.

What could hang runs in a process of its own, with a time limit.
"""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# In each script: `child(function)` runs it in a forked child and gives what it returns, by way of JSON.
FORK = """
import json, os, sys, threading
import numpy as np
import fastdrop as fd

def child(function):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(text)

x = np.ones(1 << 20, np.float32)

def digest(rng):
    y, mask = fd.dropout(x, 0.3, rng=rng)
    return [float(y.sum(dtype=np.float64)), mask.bits().tobytes()[1000:1032].hex(), int(mask.keep().sum())]

def default():
    return [fd.mask(1, 0.5).seed, fd.mask(1, 0.5).stream]
"""


def script(fresh_python, code, **environment):
    run = fresh_python(FORK + code, **environment)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@needs_fork
def test_fork_after_threads(fresh_python):
    """The threads that helped the parent are not in the child."""
    got = script(
        fresh_python,
        """
fd.set_num_threads(4)
before = digest(1)
children = [child(lambda: digest(1)) for _ in range(3)]
grandchild = child(lambda: child(lambda: digest(1)))
fd.set_num_threads(1)
print(json.dumps([before, digest(1), *children, grandchild]))
""",
    )
    assert all(one == got[0] for one in got)


@needs_fork
def test_threads_after_fork_alone(fresh_python):
    """A child may set its number of threads; a parent goes on with its own."""
    got = script(
        fresh_python,
        """
fd.set_num_threads(2)
def threaded():
    fd.set_num_threads(3)
    return [digest(1), fd.get_num_threads()]
print(json.dumps([[digest(1), 3], child(threaded), [digest(1), fd.get_num_threads() + 1]]))
""",
    )
    assert got[0] == got[1] == got[2]


@needs_fork
def test_fork_while_threads_run(fresh_python):
    """Locks that another thread holds at the moment of a fork stay locked in the child: none may be needed there."""
    got = script(
        fresh_python,
        """
fd.set_num_threads(2)
stop = threading.Event()
rng = fd.Rng(5)
def work():
    while not stop.is_set():
        fd.dropout(x, 0.3)
        fd.dropout(x, 0.3, rng=rng)
        fd.mask(100_000, 0.3).bits()
workers = [threading.Thread(target=work) for _ in range(3)]
[worker.start() for worker in workers]
children = [child(lambda: digest(1)) for _ in range(40)]
stop.set()
[worker.join() for worker in workers]
print(json.dumps([digest(1), *children]))
""",
    )
    assert all(one == got[0] for one in got)


@needs_fork
def test_fork_while_locks_are_held(fresh_python):
    """Every lock of the package, held by another thread at the moment of the fork, is open in the child."""
    got = script(
        fresh_python,
        """
from fastdrop import config, locks, rng
held, done = threading.Event(), threading.Event()
def hold():
    for lock in list(locks._locks):
        lock.acquire()
    held.set()
    done.wait()
    for lock in list(locks._locks):
        lock.release()
worker = threading.Thread(target=hold)
worker.start()
held.wait()
def use():
    fd.set_num_threads(2)
    return [digest(fd.Rng(1)), fd.Rng(1).spawn(1)[0].seed, [lock.locked() for lock in locks._locks]]
there = child(use)
done.set()
worker.join()
assert config._lock in locks._locks and rng._lock in locks._locks
print(json.dumps([there, use()]))
""",
    )
    assert got[0] == got[1]


def test_locks_are_made_in_one_place():
    """One that is not would stay locked in a forked child."""
    makers = re.compile(r"threading\.(R?Lock|Condition|Semaphore)\(|import .*\bR?Lock\b")
    package = Path(fd.__file__).parent
    found = [str(f.relative_to(package)) for f in package.rglob("*.py") if makers.search(f.read_text())]
    assert found == ["locks.py"]


@needs_fork
def test_children_have_threads_of_their_own(fresh_python, isas):
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not list a process's threads")
    got = script(
        fresh_python,
        """
fd.set_num_threads(3)
digest(1)
def count():
    digest(1)
    return len(os.listdir("/proc/self/task"))
print(json.dumps([child(count), child(lambda: child(count))]))
""",
    )
    assert got == [3, 3]


def test_signals_are_the_programs_own(fresh_python, isas):
    """One that it blocks and waits for is not delivered to a helper thread, where it would end the process."""
    run = fresh_python(
        """
import os, signal
import numpy as np
import fastdrop as fd

fd.set_num_threads(3)
fd.dropout(np.ones(1 << 20, np.float32), 0.3, rng=0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)
came = signal.sigtimedwait({signal.SIGUSR1}, 10) is not None
print(came, signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGUSR1})
""",
        OPENBLAS_NUM_THREADS="1",  # NumPy's own helpers block none
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "True"]


REFUSED = """
import json, os, resource
import numpy as np
import fastdrop as fd

x = np.ones(1 << 20, np.float32)
y, equal = np.empty_like(x), np.empty(x.shape, bool)
threads = lambda: len(os.listdir("/proc/self/task"))

def limit(what, least):
    before = resource.getrlimit(what)
    resource.setrlimit(what, (least, before[1]))
    return lambda: resource.setrlimit(what, before)

def refuse_processes():
    if os.getuid() == 0:
        os.setuid(65534)  # root is refused none
    return limit(resource.RLIMIT_NPROC, 1)

def refuse_memory():
    with open("/proc/self/statm") as file:
        bytes = int(file.read().split()[0]) * resource.getpagesize()
    return limit(resource.RLIMIT_AS, bytes + (600 << 10))
"""


@pytest.mark.parametrize("what", ["processes", "memory"])
def test_a_thread_that_the_system_refuses(fresh_python, isas, what):
    """The call works on those there are; later the system is asked again."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("this system does not list a process's threads")
    run = fresh_python(
        REFUSED
        + f"""
base = threads()
fd.set_num_threads(1)
expected, _ = fd.dropout(x, 0.3, rng=0)
allow = refuse_{what}()
fd.set_num_threads(4)
same = []
for _ in range(3):
    fd.dropout(x, 0.3, rng=0, out=y)
    same.append(bool(np.equal(y, expected, out=equal).all()))
refused = threads() - base
allow()
for _ in range(200):
    fd.dropout(x, 0.3, rng=0, out=y)
print(json.dumps([same, refused, threads() - base]))
"""
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == [[True] * 3, 0, 3]


@needs_fork
def test_default_generators_of_forked_children_differ(fresh_python):
    got = script(
        fresh_python,
        """
first = default()
children = [child(default) for _ in range(4)]
grandchild = child(lambda: child(default))
print(json.dumps([first, *children, grandchild, default()]))
""",
    )
    parent, later = got[0], got[-1]
    assert later == [parent[0], parent[1] + 2]  # the parent's own goes on
    assert len({seed for seed, _ in got[:-1]}) == 6


@needs_fork
def test_an_explicit_rng_repeats_in_children_as_documented(fresh_python):
    got = script(
        fresh_python,
        """
rng = fd.Rng(3)
rng.mask(1, 0.5)
take = lambda: rng.mask(1, 0.5).stream
parts = rng.spawn(2)
seeds = [child(lambda part=part: part.mask(1, 0.5).seed) for part in parts]
print(json.dumps([child(take), child(take), take(), seeds]))
""",
    )
    assert got[:3] == [1, 1, 1]
    assert got[3][0] != got[3][1]


POOL = """
import multiprocessing, sys
import numpy as np
import fastdrop as fd

X = np.ones(200_000, np.float32)

def work(rng):
    y, mask = fd.dropout(X, 0.3, rng=rng)
    return float(y.sum(dtype=np.float64)), mask, fd.mask(1, 0.5).seed

if __name__ == "__main__":
    fd.set_num_threads(2)
    jobs = [*range(4), *fd.Rng(7).spawn(2), fd.Rng(9, 5)]
    here = [work(job) for job in jobs]
    jobs = [*range(4), *fd.Rng(7).spawn(2), fd.Rng(9, 5)]
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        there = pool.map(work, jobs, chunksize=1)
    assert [a[:2] for a in here] == [b[:2] for b in there]
    assert [mask.seed for _, mask, _ in there][:4] == [0, 1, 2, 3]
    assert here[0][2] not in [seed for _, _, seed in there]
    print("done")
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_multiprocessing(tmp_path, method):
    """Masks and generators go to the workers and masks come back, the same as here."""
    if method != "spawn" and not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "pool.py"), method]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "done\n", run.stderr


@pytest.mark.parametrize("threads", [1, 2])
def test_python_threads_at_once(engine, threads):
    """Many calls at once, each with its own threads: every mask once, every result right."""
    x = np.linspace(1, 2, 100_000, dtype=np.float32)
    rng = fd.Rng(8)

    def work(_):
        y, mask = fd.dropout(x, 0.3, rng=rng)
        return y, mask, mask.bits()

    with fd.threads(threads):
        work(None)  # a backend that compiles does so now
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(work, range(24)))
        assert sorted(mask.stream for _, mask, _ in results) == list(range(1, 25))
        for y, mask, bits in results:
            assert mask == fd.Rng(8, mask.stream).mask(x.shape, 0.3)
            assert np.array_equal(bits, mask.bits())
            assert np.array_equal(y, mask.apply(x))


def test_the_number_of_threads_changes_under_way(isas):
    """A call goes on with the number it began with, whoever sets another meanwhile; 20 callers share 16 teams."""
    x = np.linspace(1, 2, 1 << 19, dtype=np.float32)
    mask, samples = fd.mask(x.shape, 0.3, rng=0), fd.mask((3, *x.shape), 0.3, rng=1)
    before, stop = fd.get_num_threads(), []
    expected = mask.apply(x), mask.bits(), fd.multi_sample_mean_backward(x, samples)

    def change():
        n = 0
        while not stop:
            n += 1
            fd.set_num_threads(1 + n % 4)

    def work(_):
        got = mask.apply(x), mask.bits(), fd.multi_sample_mean_backward(x, samples)
        return [np.array_equal(a, b) for a, b in zip(expected, got, strict=True)]

    try:
        with ThreadPoolExecutor(21) as pool:
            pool.submit(change)
            results = list(pool.map(work, range(60)))
            stop.append(True)
    finally:
        stop.append(True)
        fd.set_num_threads(before)
    assert results == [[True] * 3] * 60


def test_kernels_let_other_threads_run(isas):
    """The GIL is given up: another thread counts while a large mask is made."""
    counted, done = [0], []

    def count():
        while not done:
            counted[0] += 1

    with ThreadPoolExecutor(1) as pool, fd.threads(1):
        pool.submit(count)
        for _ in range(20):
            before = counted[0]
            fd.mask(1 << 28, 0.1, rng=0).bits()
            if counted[0] > before + 1000:
                break
        done.append(True)
    assert counted[0] > before + 1000
