"""Every kernel of the list under pytest-benchmark: ``pytest bench``, grouped by operation and size.

Each is proved equal to the reference before it is timed; nothing here fails because it was slow.  ``extra_info`` (in
``--benchmark-json``) holds bytes, ns/element, GB/s, threads and instruction set, and the ratios to the yardsticks,
which pytest-benchmark itself cannot give: they are taken in turn.  Threads: ``FASTDROP_NUM_THREADS``.
"""

import math

import pytest

import fastdrop as fd
from fastdrop.bench import cases
from fastdrop.bench.measure import interleave, ratio

EVERYTHING = [
    pytest.param(case, shape, dtype, p, id=f"{case.op}-{'x'.join(map(str, shape))}-{dtype}-{p}")
    for case in cases.CASES.values()
    for shape in case.shapes
    for dtype in case.dtypes
    for p in case.p
]


@pytest.mark.parametrize(("case", "shape", "dtype", "p"), EVERYTHING)
def test_kernel(benchmark, case, shape, dtype, p):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    if "numba" in case.op and not {"native", "numba"} <= set(fd.backends.available()):
        pytest.skip("compares two backends that are not both here")
    cases.prove(case, shape, dtype, p)
    prepared = case.prepare(shape, dtype, p)
    rng = fd.Rng(cases.SEED)
    taken = interleave({"it": lambda: prepared.call(rng), **prepared.yardsticks}, seconds=0.1)
    benchmark.group = f"{case.op.split(',')[0]}, {math.prod(shape)} elements"
    benchmark(prepared.call, rng)
    nbytes = case.bytes(shape, dtype)
    benchmark.extra_info.update(
        bytes=nbytes,
        moved=case.moved,
        output=case.output,
        threads=fd.get_num_threads(),
        isa=cases.instruction_set(),
        backend=fd.get_backend(),
        ratios={name: ratio(taken["it"], times) for name, times in taken.items() if name != "it"},
    )
    if benchmark.enabled:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info.update(ns_per_element=seconds * 1e9 / math.prod(shape), gb_per_s=nbytes / seconds / 1e9)
