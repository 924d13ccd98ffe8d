"""Which ratios are judged, and against what numbers: the one list behind the table of ``fastdrop bench``.

A check names the jobs it needs and how a number follows from their rows; jobs that several checks share run once.  All
ratios are of times taken in the same run, most of them in turn in the same process.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..operations import ACTIVATIONS
from .cases import CASES, SAMPLES, M
from .rivals import RIVALS
from .worker import Job

BIG = (16 * M,)  # 64 MiB of float32
IMAGES = (64, 64, 64, 64)
SEQUENCES = (64, 512, 512)
ROWS = (16 * 1024, 1024)
RIVAL_P = 0.1


@dataclass(frozen=True)
class Check:
    """One number to reach."""

    number: str  # of the target; several checks may share it
    what: str
    sense: str  # "<=" or ">="
    goal: float | None  # None: shown, not judged
    jobs: tuple
    value: Callable  # rows of the jobs -> number
    threads: str = "one and all"  # or "one", "all"
    unit: str = "x"
    limit: Callable | None = None  # rows of the jobs -> the number that no kernel can pass, measured in the same run

    def met(self, value):
        """Is the number reached."""
        return value <= self.goal if self.sense == "<=" else value >= self.goal


def behind(rows):
    """How many times longer the second takes than the first: a rival, in its own process."""
    return rows[1]["seconds"] / rows[0]["seconds"]


def slower(rows):
    """How many times longer the first takes than the second, each over the copy in its own process."""
    return rows[0]["ratios"]["copy"] / rows[1]["ratios"]["copy"]


def spread(rows):
    """Slowest over fastest, in ns an element."""
    times = [row["ns_per_element"] for row in rows]
    return max(times) / min(times)


def spread_of(yardstick):
    """The same of a yardstick that ran in turn: what the machine allows."""

    def value(rows):
        times = [row["yardsticks"][yardstick] / row["seconds"] * row["ns_per_element"] for row in rows]
        return max(times) / min(times)

    return value


def extra(rows):
    """MiB beyond input and output at the peak of a call."""
    return rows[0]["extra_bytes"] / 2**20


def extra_a_row(rows):
    """Bytes beyond input and output at the peak of a call, for each row."""
    return rows[0]["extra_bytes"] / rows[0]["shape"][0]


def kept(rows):
    """Bytes that a mask takes."""
    return rows[0]["mask_bytes"]


def value(rows):
    """What a job of kind "value" has found."""
    return rows[0]["value"]


def size_name(n):
    """65536 -> "64k"."""
    return f"{n // M}M" if n >= M else f"{n // 1024}k"


def microseconds(rows):
    """Microseconds a call."""
    return rows[0]["seconds"] * 1e6


def within(number, goal, what, job, yardstick, threads="one and all"):
    """Check that a job takes at most ``goal`` times as long as a yardstick that runs in turn with it."""
    return Check(number, what, "<=", goal, (job,), lambda rows: rows[0]["ratios"][yardstick], threads)


def if_copied(rows):
    """How many times longer the second takes than np.copyto of as many bytes as the first moves."""
    case, job = CASES[rows[0]["op"]], rows[0]
    return rows[1]["seconds"] / (job["yardsticks"]["copy"] * case.arrays / 2)


def against(number, goal, what, op, rival, shape, rival_op=None, p=RIVAL_P):
    """Check that a rival takes at least ``goal`` times as long; ``goal`` None: show it, nobody asked for a number."""
    jobs = Job(op, shape, p=p), Job(rival_op or op, shape, p=p, library=rival)
    return Check(number, what, ">=", goal, jobs, behind, limit=if_copied)


def losses_and_samples():
    """Checks of the losses, of multi-sample and of Monte Carlo dropout."""
    long, short, head = (1024, 32000), (4096, 1000), (512, 4096)

    def exact(what, op):
        return Check("losses", what, "<=", 1, (Job(op, (8, 1000), kind="value"),), value, "one", "ppm")

    def memory_of_rows(op):
        job = Job(op, (M, 16), kind="memory")
        return Check("losses", f"{op}, extra memory a row", "<=", 64, (job,), extra_a_row, unit="bytes")

    return [
        within("losses", 1.8, "symmetric_kl, (1024, 32000), over copying both", Job("symmetric_kl", long), "copies"),
        within("losses", 2.3, "symmetric_kl, (4096, 1000), over copying both", Job("symmetric_kl", short), "copies"),
        *[
            against("losses", goal, f"{op}, {shape}, torch", op, "torch", shape)
            for op, goals in (("symmetric_kl", (100, 35)), ("r_drop", (100, 40)))
            for goal, shape in zip(goals, (long, short), strict=True)
        ],
        memory_of_rows("symmetric_kl"),
        memory_of_rows("r_drop"),
        exact("error of a loss on hard inputs, worst of five losses", "losses, exact"),
        exact("error of gradients, over their row's largest", "gradients, exact"),
        *[
            check
            for p in (0.1, 0.5)
            for check in (
                against("samples", 80, f"mean of 8, 16M, p = {p}, torch", "multi_sample_mean", "torch", BIG, p=p),
                within(
                    "samples",
                    0.5,
                    f"mean of 8, 16M, p = {p}, over 8 dropouts",
                    Job("multi_sample_mean", BIG, p=p),
                    "dropouts",
                ),
            )
        ],
        within("samples", 1.15, "linear of 8, over its matrix products", Job("multi_sample_linear", head), "products"),
        Check(
            "samples",
            "linear of 8, extra memory over an [S, B, F] array",
            "<=",
            0.25,
            (Job("multi_sample_linear", head, kind="memory"),),
            lambda rows: rows[0]["extra_bytes"] / (SAMPLES * math.prod(head) * 4),
        ),
        *[
            within("samples", 1.05, f"mc_dropout, {n} rows, over predict alone", Job("mc_dropout", (n, 64)), "predict")
            for n in (100, 1000)
        ],
    ]


ISA = [Job("dropout", (n,), p=p, isa=isa) for n, p in ((64 * 1024, 0.1), (16 * M, 0.1)) for isa in ("avx2", "avx512")]
SIZES = tuple(Job("dropout", (n * M,)) for n in (4, 16, 64, 1024))
SIZES_IN_PLACE = tuple(Job("dropout, in place", (n * M,)) for n in (2048, 64, 16, 4))  # 8 GiB into pages just freed

CHECKS = [
    within("start", 4, "out=, 1M elements, p = 0.1, over np.copyto", Job("dropout", (M,), p=0.1), "copy", "one"),
    Check("start", "1000 elements, rng=", "<=", 3, (Job("dropout, fresh", (1000,)),), microseconds, "one", "us"),
    *[
        within(number, goal, f"out=, 64 MiB, p = {p}, over np.copyto", Job("dropout", BIG, p=p), "copy", threads)
        for number, goal, threads in (("1", 1.15, "one"), ("2", 1.0, "all"))
        for p in (0.1, 0.3, 0.5, 0.9)
    ],
    within("3", 1.9, "out=, 1 MiB, p = 0.5, over np.copyto", Job("dropout", (M // 4,), p=0.5), "copy", "one"),
    within("3", 2.6, "out=, 1 MiB, p = 0.1, over np.copyto", Job("dropout", (M // 4,), p=0.1), "copy", "one"),
    within("4", 0.35, "mask.bits(), 16M, p = 0.1, over np.copyto", Job("bits", BIG, p=0.1), "copy"),
    within("4", 0.35, "mask.bits(), 16M, p = 0.5, over np.copyto", Job("bits", BIG, p=0.5), "copy"),
    within("5", 1.0, "fresh, 64 MiB, over x.copy()", Job("dropout, fresh", BIG), "copy"),
    within("6", 1.0, "in place, 64 MiB, p = 0.5, over np.multiply", Job("dropout, in place", BIG, p=0.5), "multiply"),
    within("6", 1.2, "in place, 64 MiB, p = 0.1, over np.multiply", Job("dropout, in place", BIG, p=0.1), "multiply"),
    against("7", 30, "forward + backward, 1M, torch", "train", "torch", (M,)),
    against("7", 30, "the same, fresh outputs", "train, fresh", "torch", (M,), "train"),
    against("7", 20, "forward + backward, 16M, torch", "train", "torch", BIG),
    against("7", 20, "the same, fresh outputs", "train, fresh", "torch", BIG, "train"),
    against("8", 40, "out=, 16M, NumPy binomial", "dropout", "numpy-binomial", BIG),
    against("8", 40, "fresh, 16M, NumPy binomial", "dropout, fresh", "numpy-binomial", BIG, "dropout"),
    against("8", 9, "out=, 16M, NumPy random(float32)", "dropout", "numpy-random", BIG),
    against("8", None, "out=, 16M, NumPy random_raw", "dropout", "numpy-raw", BIG),
    against("9", 40, "out=, 16M, JAX jit", "dropout", "jax", BIG),
    against("9", 40, "fresh, 16M, JAX jit", "dropout, fresh", "jax", BIG, "dropout"),
    against("9", 25, "out=, 16M, Numba np.random", "dropout", "numba-random", BIG),
    against("9", None, "out=, 16M, Numba xoroshiro", "dropout", "numba-xoroshiro", BIG),
    against("9", None, "fresh, 16M, Keras on JAX", "dropout, fresh", "keras", BIG, "dropout"),
    within("10", 4, "1000 elements, rng=, over np.multiply", Job("dropout, fresh", (1000,)), "multiply", "one"),
    Check("11", "AVX2 over AVX-512, 256 KiB", "<=", 2.2, tuple(ISA[:2]), slower, "one"),
    Check("11", "AVX2 over AVX-512, 64 MiB", "<=", 1.3, tuple(ISA[2:]), slower, "one"),
    within("12", 1.5, "float16, 64 MiB, over float32", Job("dropout", (32 * M,), "float16"), "float32"),
    within("12", 1.5, "bfloat16, 64 MiB, over float32", Job("dropout", (32 * M,), "bfloat16"), "float32"),
    within("12", 1.5, "float64, 64 MiB, over float32", Job("dropout", (8 * M,), "float64"), "float32"),
    within("13", 6, "transposed, 64 MiB, over contiguous", Job("transposed", (4096, 4096)), "contiguous"),
    within("13", 6, "Fortran, 64 MiB, over contiguous", Job("Fortran", IMAGES), "contiguous"),
    within("13", 6, "channels last, 64 MiB, over contiguous", Job("channels last", IMAGES), "contiguous"),
    within("13", 6, "[::2], 64 MiB, over contiguous", Job("[::2]", BIG), "contiguous"),
    Check("14", "16 MiB to 4 GiB, ns/element, slowest over fastest", "<=", 1.15, SIZES, spread, "one"),
    Check("14", "np.copyto, 16 MiB to 4 GiB", "<=", None, SIZES, spread_of("copy"), "one"),
    within("14", None, "out=, 4 GiB, over np.copyto", SIZES[-1], "copy", "one"),
    Check("14", "in place, 16 MiB to 8 GiB", "<=", 1.15, SIZES_IN_PLACE, spread, "one"),
    Check("14", "np.multiply in place, 16 MiB to 8 GiB", "<=", None, SIZES_IN_PLACE, spread_of("multiply"), "one"),
    Check("15", "out=: beyond input and output", "<=", 1, (Job("train", BIG, kind="memory"),), extra, unit="MiB"),
    Check(
        "15", "fresh: beyond input and output", "<=", 1, (Job("train, fresh", BIG, kind="memory"),), extra, unit="MiB"
    ),
    Check("15", "kept for the backward, a mask", "<=", 200, (Job("train", BIG, kind="memory"),), kept, "one", "bytes"),
    within("16", 1.1, "spatial mask, 64 MiB, over np.multiply", Job("spatial", IMAGES), "multiply"),
    within("16", 1.1, "locked mask, 64 MiB, over np.multiply", Job("locked", SEQUENCES), "multiply"),
    within("16", 1.1, "drop-path mask, 64 MiB, over np.multiply", Job("drop path", SEQUENCES), "multiply"),
    *[
        within("fused", None if tolerance else 1.3, f"{op}{which}, 64 MiB, over np.add", Job(op + which, ROWS), "add")
        for op, tolerance in (("dropout_add", 0), *((name, op.tolerance) for name, op in ACTIVATIONS.items()))
        for which in ("", ", backward")
    ],
    *[
        against(
            "softmax",
            8,
            f"softmax_dropout, {n} keys, p = {p}, torch",
            "softmax_dropout",
            "torch",
            (12 * 512 * 512 // n, n),
            p=p,
        )
        for n in (128, 512, 4096)
        for p in (0.1, 0.5)
    ],
    *[
        within("stored", None, f"mask.stored(), {what}, {size_name(n)}, over drawing", Job(op, (n,)), "drawn", "one")
        for op, what in (("train, stored", "forward + backward"), ("apply, stored", "each further use"))
        for n in (64 * 1024, M, 16 * M)
    ],
    within("blas", None, "between matrix products, 1M, over np.copyto there", Job("between products", (M,)), "copy"),
    within("numba", 3, "Numba backend, out=, 64 MiB, over native", Job("dropout, numba", BIG), "native", "one"),
    Check(
        "numba",
        "Numba backend, first call in a process",
        "<=",
        1,
        (Job("first call, numba", (1000,), kind="value"),),
        value,
        "one",
        "s",
    ),
    Check(
        "numba",
        "losses of the backends, apart from the reference's",
        "<=",
        2,
        (Job("losses across backends", (256, 1000), kind="value"),),
        value,
        "one",
        "ppm",
    ),
]

CHECKS += losses_and_samples()
LONG = ("losses", "samples")  # measured when asked for

CURVE_SIZES = tuple(2**k for k in range(8, 27, 2))
RIVAL_SIZES = tuple(2**k for k in range(8, 25, 4))
CURVES = {  # of the picture: name -> jobs
    "fastdrop, out=": tuple(Job("dropout", (n,)) for n in CURVE_SIZES),
    "fastdrop, fresh output": tuple(Job("dropout, fresh", (n,)) for n in CURVE_SIZES),
    **{rival.title: tuple(Job("dropout", (n,), library=name) for n in RIVAL_SIZES) for name, rival in RIVALS.items()},
}
