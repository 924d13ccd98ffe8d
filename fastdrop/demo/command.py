"""``fastdrop demo``: train, print the table, draw the picture.

A progress bar where the output is a terminal, plain lines elsewhere.  What it needs beyond NumPy (scikit-learn for the
digits, matplotlib, tqdm) is looked for before anything is trained.
"""

import argparse
import importlib.util
import sys
import time

from ..options import positive, writable

NEEDS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "tqdm": "tqdm"}
LINES = 10  # of progress for each problem, where there is no bar


def add_parser(commands):
    """Add ``demo`` to the subparsers of the command line."""
    parser = commands.add_parser(
        "demo",
        help="train a NumPy network without dropout, with NumPy's and with fastdrop's",
        description="Train a from-scratch NumPy network on two problems in three ways: without dropout, with NumPy's "
        "binomial(1, keep, shape) / keep, and with fastdrop. Prints a table, draws a picture.",
    )
    parser.add_argument("--epochs", type=positive, metavar="N", help="of each training (default: about half a minute)")
    parser.add_argument("--problem", choices=["both", "spiral", "digits"], default="both", help="default: %(default)s")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="of data, weights and masks (%(default)s)")
    parser.add_argument("--out", type=writable, default="fastdrop-demo.png", metavar="PNG", help="%(default)s")
    parser.set_defaults(run=main)


def _seed(text):
    number = int(text)
    if not 0 <= number < 2**64:
        raise argparse.ArgumentTypeError(f"must be in [0, 2**64), got {number}")
    return number


class Bar:
    """Progress of one problem's trainings on a terminal."""

    def __init__(self, name, epochs):
        from tqdm import tqdm

        self.bar = tqdm(total=epochs, desc=name, unit="epoch", file=sys.stdout, dynamic_ncols=True)

    def __call__(self, epoch, trainings):
        accuracies = " ".join(f"{t.val[-1].accuracy:.3f}" for t in trainings)  # the names have no room in 80 columns
        self.bar.set_postfix_str(f"accuracy {accuracies}", refresh=False)
        self.bar.update()

    def close(self):
        self.bar.close()


class Lines:
    """Progress of one problem's trainings in a pipe or a file."""

    def __init__(self, name, epochs):
        self.name, self.epochs = name, epochs
        self.marks = {round(epochs * i / LINES) for i in range(1, LINES + 1)}

    def __call__(self, epoch, trainings):
        if epoch in self.marks:
            accuracies = ", ".join(f"{t.way} {t.val[-1].accuracy:.3f}" for t in trainings)
            print(f"{self.name}, epoch {epoch} of {self.epochs}: validation accuracy {accuracies}", flush=True)

    def close(self):
        pass


def main(args):
    """Run ``fastdrop demo``."""
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"fastdrop demo needs {', '.join(missing)}, not installed here: pip install {' '.join(missing)}",
            file=sys.stderr,
        )
        return 1
    from ..num_threads import threads
    from .picture import picture
    from .problems import PROBLEMS
    from .table import table
    from .training import train

    began = time.perf_counter()
    progress = Bar if sys.stdout.isatty() else Lines
    problems = []
    for name in PROBLEMS if args.problem == "both" else [args.problem]:
        problem = PROBLEMS[name](args.seed)
        epochs = args.epochs or problem.epochs
        shown = progress(name, epochs)
        with threads(1):  # NumPy's binomial has one, so that is what to compare it with
            problems.append(train(problem, epochs, args.seed, shown))
        shown.close()
    print()
    print(table(problems))
    print()
    print(about(time.perf_counter() - began))
    picture(problems, args.out)
    print(f"picture: {args.out.absolute()}")
    return 0


def about(seconds):
    """What the table's figures are."""
    import numpy as np

    from ..config import config

    found = config()
    return (
        "Accuracy and loss (cross-entropy) are of the trained networks, dropout off. Times are of training alone, in\n"
        "float32; the networks take turns, an epoch each, and the medians of all epochs are shown. Each dropout\n"
        f"has one thread. fastdrop {found['fastdrop']}: {found['backend']} backend, instruction set {found['isa']}. "
        f"NumPy {np.__version__}. In all {seconds:.0f} s."
    )
