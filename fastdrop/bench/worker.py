"""One library measured in a process of its own: ``python -m fastdrop.bench.worker``, jobs on stdin, rows on stdout.

A process each, since thread pools, allocators and huge pages of one library change the times of the next.  `run` starts
it with the CPUs and the thread count that all of them get, fastdrop too; each also times ``np.copyto``, so that rows of
different processes can be held against each other.  Jobs and rows are JSON, a row a line, written as soon as it is had:
a library that crashes loses the rest of its own rows and nothing else, and every row that is missing says why.
"""

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import asdict, dataclass
from time import perf_counter

import numpy as np

import fastdrop as fd

from . import cases, rivals, values
from .measure import cpus, interleave, memory_free, peak_memory, ratio

PATIENCE = 600  # seconds for one process
THREADS = [f"{name}_NUM_THREADS" for name in ("OMP", "OPENBLAS", "MKL", "NUMBA", "FASTDROP")]


@dataclass(frozen=True)
class Job:
    """What to measure. Rows carry the same fields, and ``threads``."""

    op: str
    shape: tuple
    dtype: str = "float32"
    p: float = 0.1
    library: str = "fastdrop"  # or a name of `rivals.RIVALS`
    isa: str = ""  # forced instruction set
    kind: str = "time"  # or "memory", or "value": see `values`

    def cut(self, largest):
        """The same job, its leading axes shortened until x has at most ``largest`` elements."""
        shape = list(self.shape)
        for axis in range(len(shape)):
            rest = math.prod(shape) // shape[axis]
            shape[axis] = max(1, min(shape[axis], largest // rest))
        return Job(**{**asdict(self), "shape": tuple(shape)})

    @property
    def process(self):
        """Jobs of equal value here share a process; a memory peak can be seen only once in each."""
        return self.library, self.isa, self if self.kind == "memory" else None


def run(jobs, threads, seconds):
    """Measure jobs of one process; yield a row for each, in their order.

    Parameters
    ----------
    jobs : list of Job
        All of one `Job.process`.
    threads : int
        The process may use the first so many CPUs of this one, and is told to use that many threads.
    seconds : float
        About how long to time each.

    Yields
    ------
    dict
        A job's fields and ``threads``, with what was measured, or with ``skipped``: the reason.
    """
    environment = {**os.environ, **dict.fromkeys(THREADS, str(threads)), "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
    environment.pop("FASTDROP_ISA", None)
    if jobs[0].isa:
        environment["FASTDROP_ISA"] = jobs[0].isa
    everything = cpus()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, everything[-threads:])  # CPU 0 serves more interrupts than others
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "fastdrop.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    finally:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, everything)
    clock = threading.Timer(PATIENCE, process.kill)
    errors = []
    listener = threading.Thread(target=lambda: errors.extend(process.stderr))
    clock.start()
    listener.start()
    try:
        process.stdin.write(json.dumps({"seconds": seconds, "threads": threads, "jobs": [asdict(job) for job in jobs]}))
        process.stdin.close()
        done = 0
        for line in process.stdout:
            yield json.loads(line)
            done += 1
        process.wait()
    finally:
        clock.cancel()
        process.kill()
        process.wait()
        listener.join()
        process.stdout.close()
        process.stderr.close()
    for job in jobs[done:]:
        last = errors[-1].strip() if errors else "it said nothing"
        yield {**asdict(job), "threads": threads, "skipped": f"the process ended with {process.returncode}: {last}"}


# -- inside the process ------------------------------------------------------------------------------------------------


def main():
    answers = os.fdopen(os.dup(1), "w")  # libraries may print; what they print goes to stderr
    os.dup2(2, 1)
    task = json.load(sys.stdin)
    proved = set()
    for fields in task["jobs"]:
        job = Job(**{**fields, "shape": tuple(fields["shape"])})
        row = {**asdict(job), "threads": task["threads"], "cpus": cpus()}
        start = perf_counter()
        row.update(measure(job, task["threads"], task["seconds"], proved))
        row["took"] = perf_counter() - start
        print(json.dumps(row), file=answers, flush=True)


def measure(job, threads, seconds, proved):
    """What is known about one job after trying: figures, or why there are none."""
    if job.library != "fastdrop":
        return measure_rival(job, threads, seconds)
    isa = cases.instruction_set()
    if job.isa and job.isa != isa:
        return {"skipped": f"asked for {job.isa}, got {isa or fd.get_backend()}"}
    if job.kind == "value":
        try:
            return values.measure(job)
        except ImportError as error:
            return {"skipped": f"not installed here: {error}"}
    case = cases.CASES[job.op]
    needed, free = case.bytes(job.shape, job.dtype) * 1.05, memory_free()
    if free is not None and needed > free:
        return {"skipped": f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"}
    if job.kind == "memory":
        return measure_memory(job, case)
    try:
        checked = job.cut(case.proved)
        if checked not in proved:
            cases.prove(case, checked.shape, checked.dtype, checked.p)
            proved.add(checked)
        prepared = case.prepare(job.shape, job.dtype, job.p)
    except (ImportError, MemoryError, cases.NotEqual) as error:
        return {"skipped": f"{type(error).__name__}: {error}", "wrong": isinstance(error, cases.NotEqual)}
    rng = fd.Rng(cases.SEED)
    taken = interleave({"it": lambda: prepared.call(rng), **prepared.yardsticks}, seconds)
    return {
        **figures(taken, job, case.bytes(job.shape, job.dtype)),
        "output": case.output,
        "moved": case.moved,
        "version": fd.__version__,
        "backend": fd.get_backend(),
        "isa_used": isa,
        "threads_used": fd.get_num_threads(),
    }


def measure_rival(job, threads, seconds):
    rival = rivals.RIVALS[job.library]
    try:
        version = rival.start(threads)
    except ImportError as error:
        return {"skipped": f"not installed here: {error}"}
    if job.op not in rival.ops:
        return {"skipped": f"{job.library} has no {job.op}"}
    x = cases.normal(job.shape, job.dtype)
    y = cases.touched(x)
    call = rival.ops[job.op](x, job.p, threads)
    rivals.plausible(job.op, call(), x, job.p)
    taken = interleave({"it": call, "copy": lambda: np.copyto(y, x)}, seconds)
    nbytes = (4 if job.op == "train" else 2) * x.nbytes
    return {**figures(taken, job, nbytes), "output": rival.output, "version": version}


def figures(taken, job, nbytes):
    """A row's numbers from the seconds of each round."""
    seconds = statistics.median(taken["it"])
    return {
        "seconds": seconds,
        "bytes": nbytes,
        "ns_per_element": seconds * 1e9 / math.prod(job.shape),
        "gb_per_s": nbytes / seconds / 1e9,
        "yardsticks": {name: statistics.median(times) for name, times in taken.items() if name != "it"},
        "ratios": {name: ratio(taken["it"], times) for name, times in taken.items() if name != "it"},
        "rounds": taken["it"],
    }


def measure_memory(job, case):
    """Bytes beyond input and output at the peak of a call, and bytes that a mask kept for the backward takes."""
    if peak_memory() is None:
        return {"skipped": f"{platform.system()} does not tell a process's peak memory"}
    small = case.prepare(job.cut(cases.M).shape, job.dtype, job.p)
    small.call(fd.Rng(cases.SEED))  # threads started, libraries loaded
    prepared = case.prepare(job.shape, job.dtype, job.p)
    fd.release_buffers()  # what the call before left would be used again, and not be seen
    ballast = np.ones(64 * cases.M, np.uint8)  # makes the present the peak, whatever the preparation had for a while
    before = peak_memory()
    results = prepared.call(fd.Rng(cases.SEED))
    extra = peak_memory() - before
    if case.output == "fresh":
        extra -= sum(array.nbytes for array in results)
    del ballast
    rng, count = fd.Rng(cases.SEED), 1000
    masks = [None] * count
    tracemalloc.start()
    for i in range(count):
        masks[i] = rng.mask(job.shape, job.p)
    kept = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    return {"extra_bytes": max(0, extra), "mask_bytes": kept, "output": case.output}


if __name__ == "__main__":
    main()
