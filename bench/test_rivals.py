"""The rivals beside the kernels, in the same groups of pytest-benchmark's tables.

A rival runs in a process of its own, with fastdrop's thread count and as many CPUs, and is timed there; here its rounds
are only played back, so that no pipe is in the figures.  What is not installed is skipped, with the reason.
"""

import math

import pytest

import fastdrop as fd
from fastdrop.bench import cases, rivals
from fastdrop.bench.worker import Job, run


class Playback:
    """A clock that shows the times of rounds that ran elsewhere."""

    __name__ = "playback"

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def advance(self, rounds):
        self.now += next(rounds)


clock = Playback()

JOBS = [
    pytest.param(Job(op, shape, library=name), id=f"{name}-{op}-{'x'.join(map(str, shape))}")
    for name, rival in rivals.RIVALS.items()
    for op in rival.ops
    if op in cases.CASES
    for shape in cases.CASES[op].shapes
]


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("job", JOBS)
def test_rival(benchmark, job):
    (row,) = run([job], fd.get_num_threads(), seconds=0.5)
    if "skipped" in row:
        pytest.skip(f"{job.library}: {row['skipped']}")
    rounds = row.pop("rounds")
    benchmark.group = f"{job.op}, {math.prod(job.shape)} elements"
    benchmark.extra_info.update(row)
    benchmark.pedantic(clock.advance, args=(iter(rounds),), rounds=len(rounds))
