"""``fastdrop bench``: run a selection, print the table of targets, draw the picture.

Some two minutes on two cores, five with ``--all``, less with ``--quick`` or ``--only``.  What is measured and judged
stands in `cases`, `rivals` and `targets`; here is only the order of things.
"""

import argparse
import json
import os
import platform
import sys
import time

import fastdrop as fd

from ..options import positive, writable
from . import cases, report
from .measure import cpu_name, cpus
from .targets import CHECKS, CURVES, LONG
from .worker import run

QUICK_LARGEST = 32 << 20  # elements


def add_parser(commands):
    """Add ``bench`` to the subparsers of the command line; `args.run(args)` then runs it."""
    parser = commands.add_parser(
        "bench",
        help="measure against a memory copy and rivals: a table and a picture",
        description="Measure every kernel on this machine beside a memory copy and the dropout of the libraries found\n"
        "here, each proved equal to the reference first. Prints a table, draws a picture; some two minutes.",
        epilog="targets:\n" + "".join(f"  {check.number:8} {check.what}\n" for check in CHECKS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out", type=writable, default="fastdrop-bench.png", metavar="PNG", help="the picture (%(default)s)"
    )
    parser.add_argument("--json", type=writable, metavar="FILE", help="write every row and result there")
    parser.add_argument("--quick", action="store_true", help="shorter measurements, nothing over 128 MiB an array")
    parser.add_argument("--all", action="store_true", help=f"{' and '.join(LONG)} too, whose rivals take minutes")
    parser.add_argument("--only", type=_targets, metavar="N,M", help="these targets only, and no picture")
    parser.add_argument("--largest", type=positive, metavar="N", help="cut sizes to N elements: tries the harness")
    parser.set_defaults(run=main)


def _targets(text):
    """Numbers of targets."""
    there = list(dict.fromkeys(check.number for check in CHECKS))
    wanted = text.split(",")
    if not set(wanted) <= set(there):
        raise argparse.ArgumentTypeError(f"must be targets out of {', '.join(there)}, got {text!r}")
    return wanted


def machine(counts):
    """What the figures belong to: CPU, instruction set, threads, versions."""
    return (
        f"{cpu_name()}, {counts.get('all', 1)} of its CPUs used, {fd.get_backend()} backend {cases.instruction_set()}; "
        f"fastdrop {fd.__version__}, NumPy {sys.modules['numpy'].__version__}, Python {platform.python_version()}, "
        f"{platform.system()}"
    )


def measure(jobs_of, counts, seconds, largest=None, skip_over=None, say=print):
    """Run jobs, process by process.

    Parameters
    ----------
    jobs_of : dict of str to list of Job
        By "one" and "all".
    counts : dict of str to int
        Threads of each.
    seconds : float
        For each measurement.
    largest : int, optional
        Cut every job to so many elements.
    skip_over : int, optional
        Skip jobs with more elements than that.
    say : callable
        Told about each process when it has ended.

    Returns
    -------
    dict of (Job, int) to dict
        Rows.
    """
    rows = {}
    for which, threads in counts.items():
        processes = {}
        for job in dict.fromkeys(jobs_of[which]):
            if skip_over and job.cut(skip_over) != job:
                rows[job, threads] = {"skipped": f"over {skip_over} elements, left out by --quick"}
            else:
                processes.setdefault(job.process, []).append(job)
        for (library, isa, _), jobs in processes.items():
            start = time.perf_counter()
            sent = [job.cut(largest) if largest else job for job in jobs]
            for job, row in zip(jobs, run(sent, threads, seconds), strict=True):
                rows[job, threads] = row
            took = time.perf_counter() - start
            name = f"{library} {isa}".strip()
            say(f"{name}, {threads} thread{'s' * (threads > 1)}: {len(jobs)} measurements in {took:.1f} s")
    return rows


def main(args):
    """Run ``fastdrop bench``; the exit status is 1 where a kernel was not equal to the reference."""
    everything = len(cpus())
    counts = {"one": 1, "all": everything} if everything > 1 else {"one": 1}
    checks = [check for check in CHECKS if args.all or check.number not in LONG]
    if args.only:
        checks = [check for check in CHECKS if check.number in args.only]
    curves = {} if args.only else CURVES
    jobs_of = {
        which: [job for check in checks if which in check.threads for job in check.jobs]
        + [job for jobs in curves.values() for job in jobs]
        for which in counts
    }
    print(machine(counts))
    if hasattr(os, "getloadavg"):
        print(f"load average before: {os.getloadavg()[0]:.2f} (other work on these CPUs spoils ratios)")
    sys.stdout.flush()
    rows = measure(
        jobs_of,
        counts,
        0.1 if args.quick else 0.25,
        args.largest,
        QUICK_LARGEST if args.quick else None,
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    found = report.results(checks, rows, counts)
    print()
    print(report.table(found, counts))
    print()
    for line in filter(None, (report.copies(rows, threads) for threads in counts.values())):
        print(line)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine(counts), "results": found, "rows": list(rows.values())}, file, indent=1)
        print(args.json)
    if curves:
        draw(curves, rows, counts, args.out)
    wrong = [row["skipped"] for row in rows.values() if row.get("wrong")]
    for line in wrong:
        print(f"NOT EQUAL TO THE REFERENCE: {line}", file=sys.stderr)
    return 1 if wrong else 0


def draw(curves, rows, counts, path):
    """Draw the picture and say where it is, or why there is none."""
    try:
        report.picture(curves, rows, counts, machine(counts), path)
    except ImportError as error:
        print(f"no picture: {error} (pip install matplotlib)")
    else:
        print(path)
