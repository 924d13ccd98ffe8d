"""Another checkout of fastdrop beside this one: ``python bench/beside.py ../old``, both built in place.

Two versions of one package cannot be in one process.  So each has a process of its own that waits for orders, and both
take the same call in turn, A B B A, on one processor and one thread.  What is printed is this checkout's CPU time over
the other's: the quotient of the least of each, for other work can only make a call dearer.  Results are compared byte
by byte first; where they differ, the line says so.  A call that the other checkout does not have is left out, and
said.  ``--small`` and ``--large`` pick sizes, ``--only`` calls by a part of their text.
"""

import argparse
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

ROUNDS, SECONDS = 15, 0.004  # of a call in one process, and about how long each round lasts
CALLS = {
    "small": (
        "fd.dropout(x, .1, rng=rng, out=out)",
        "fd.dropout(x, .1, rng=rng)",
        "fd.dropout(x, .1, rng=1)",
        "fd.dropout(x, .1, training=False)",
        "fd.dropout(x, .1, mask=mask)",
        "fd.dropout_backward(x, mask)",
        "fd.dropout_backward(x, mask, out=out)",
        "x * mask",
        "fd.mask(x.shape, .1, rng=rng)",
        "mask.bits()",
        "mask.keep()",
        "fd.dropout_add(x, z, .1, rng=rng)",
        "fd.dropout_add(x, z, .1, rng=rng, out=out)",
        "fd.dropout_add_backward(x, mask)",
        "fd.relu_dropout(x, .1, rng=rng)",
        "fd.relu_dropout_backward(x, y, mask)",
        "fd.relu_dropout_backward(x, y, mask, out=out)",
        "fd.gelu_dropout(x, .1, rng=rng)",
        "fd.gelu_dropout_backward(z, x, mask)",
        "fd.multi_sample_mean(x, .1, 4, rng=rng)",
        "fd.multi_sample_dropout(x, .1, 4, rng=rng)",
        "fd.softmax_dropout(rows, .1, rng=rng)",
        "fd.symmetric_kl(rows, rows2)",
        "fd.symmetric_kl(rows, rows2, out=(out, x2))",
        "fd.kl_div(rows, rows2)",
        "fd.js_div(rows, rows2)",
        "fd.cross_entropy(rows, labels)",
        "fd.cross_entropy(rows, labels, out=out)",
        "fd.r_drop(rows, rows2, labels, alpha=1.)",
        "fd.max_norm_(weights, 3.)",
    ),
}
CALLS["large"] = (
    *(call for call in CALLS["small"] if "training" not in call),
    "fd.dropout(x.T, .1, rng=rng)",
    "fd.dropout(x[:, ::2], .1, rng=rng)",
    "fd.dropout(x, .5, rng=rng, out=x2)",
    "fd.dropout(half, .1, rng=rng)",
    "fd.dropout(double, .1, rng=rng)",
    "fd.dropout(x, .1, rng=rng, mask_shape=(None, 1))",
)
SHAPES = {"small": (10, 100), "large": (4096, 1000)}


def names(size):
    """What the calls work on; the same in both processes."""
    import numpy as np

    import fastdrop as fd

    draw = np.random.default_rng(0)
    x, z, rows = (draw.standard_normal(SHAPES[size], dtype=np.float32) for _ in range(3))
    rows2 = rows + 0.3 * draw.standard_normal(SHAPES[size], dtype=np.float32)
    mask = fd.Rng(3).mask(x.shape, 0.1)
    return {
        "fd": fd, "x": x, "z": z, "rows": rows, "rows2": rows2, "mask": mask, "rng": fd.Rng(5),
        "y": fd.relu_dropout(x, mask=mask)[0], "out": np.empty_like(x), "x2": x.copy(),
        "half": x.astype(np.float16), "double": x.astype(np.float64), "weights": z.copy(),
        "labels": draw.integers(0, x.shape[1], len(x)),
    }  # fmt: skip


def digest(result):
    """What a call gave, as a few letters; of what is no array its numbers."""
    import numpy as np

    parts = [part for part in (result if isinstance(result, tuple) else (result,)) if part is not None]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:12]


def serve():
    """A child: a line of JSON for each order, read from standard input."""
    spaces = {}
    for line in sys.stdin:
        size, call, loops = json.loads(line)
        space = spaces.setdefault(size, None) or names(size)
        spaces[size] = space
        code = compile(f"for _ in range({loops}): {call}", call, "exec")
        try:
            answer = digest(eval(call, {**space, "rng": space["fd"].Rng(9)})) if loops == 1 else None
        except (AttributeError, TypeError) as error:
            print(json.dumps([None, str(error)]), flush=True)
            continue
        start = time.process_time()
        exec(code, space)
        print(json.dumps([(time.process_time() - start) / loops, answer]), flush=True)


class Checkout:
    """A process that has this checkout's fastdrop."""

    def __init__(self, tree):
        environment = {**os.environ, "PYTHONPATH": str(tree), "FASTDROP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, *order):
        self.process.stdin.write(json.dumps(order) + "\n")
        return json.loads(self.process.stdout.readline())


def compare(ours, theirs, size, call):
    """(our seconds, their seconds, whether the results are equal), or what is missing in one of them."""
    first = [checkout.ask(size, call, 1) for checkout in (ours, theirs)]
    for (seconds, answer), whose in zip(first, ("here", "there"), strict=True):
        if seconds is None:
            return f"not {whose}: {answer}"
    once = max(min(checkout.ask(size, call, 2)[0] for _ in range(3)) for checkout in (ours, theirs))
    loops = max(2, int(SECONDS / once))
    taken = {ours: [], theirs: []}
    for i in range(ROUNDS):
        for checkout in (ours, theirs) if i % 2 else (theirs, ours):
            taken[checkout].append(checkout.ask(size, call, loops)[0])
    return min(taken[ours]), min(taken[theirs]), first[0][1] == first[1][1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("other", nargs="?", type=pathlib.Path, help="the other checkout, built in place")
    parser.add_argument("--small", action="store_true", help=f"only arrays of shape {SHAPES['small']}")
    parser.add_argument("--large", action="store_true", help=f"only arrays of shape {SHAPES['large']}")
    parser.add_argument("--only", default="", metavar="TEXT", help="calls in which this stands")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()
    if options.other is None or not (options.other / "fastdrop").is_dir():
        parser.error(f"other must be a checkout of fastdrop, got {options.other}")
    here = pathlib.Path(__file__).resolve().parent.parent
    ours, theirs = Checkout(here), Checkout(options.other.resolve())
    print(f"{'call':58} {'here':>10} {'there':>10} {'ratio':>6}")
    for size in [size for size in CALLS if getattr(options, size)] or CALLS:
        print(f"-- {SHAPES[size]}, float32 where not said, one thread, CPU time")
        for call in CALLS[size]:
            if options.only not in call:
                continue
            found = compare(ours, theirs, size, call)
            if isinstance(found, str):
                print(f"{call:58} {found}")
                continue
            a, b, same = found
            print(
                f"{call:58} {a * 1e6:8.2f}us {b * 1e6:8.2f}us {a / b:6.2f}{'' if same else '  other bits'}", flush=True
            )


if __name__ == "__main__":
    main()
