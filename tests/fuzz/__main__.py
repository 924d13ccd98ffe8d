"""The command: ``python -m tests.fuzz --seconds 60``. It starts workers, and outlives their crashes."""

import argparse
import collections
import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from .functions import missing
from .sanitize import sanitized
from .worker import STATE

HANG = 120  # seconds that a call may take


def arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz fastdrop's public functions.")
    parser.add_argument("--seed", type=int, help="of all calls; a fresh one if left out")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=10**9, help="at most so many")
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--only-call", type=int, metavar="K", help="make call K alone")
    parser.add_argument("--backend", default="all", help="native, numba, reference, native-avx2, ...; all: but numba")
    parser.add_argument("--functions", type=lambda s: s.split(","), help="comma separated; default: all public ones")
    parser.add_argument("--dtypes", type=lambda s: s.split(","), help="comma separated")
    parser.add_argument("--large", type=float, default=0.004, help="share of arrays with more than 131072 elements")
    parser.add_argument("--no-torch", dest="torch", action="store_false", help="no tensors among the arguments")
    parser.add_argument("--sanitize", action="store_true", help="build the extension with ASan and UBSan, and use it")
    parser.add_argument("--every", action="store_true", help="print every fault, not one of each kind")
    return parser.parse_args()


class Run:
    """Calls of one seed in workers, one after another: a new one goes on where one has died."""

    def __init__(self, options, root, environment):
        self.options, self.root, self.environment = options, root, environment
        self.kinds = collections.Counter()
        self.faults = []

    def go(self, first, last, seconds):
        """Make calls until ``last`` or the end of the time; return the number of the next."""
        end = time.monotonic() + seconds
        with tempfile.NamedTemporaryFile() as state:
            while first < last and (left := end - time.monotonic()) > 0:
                first = self._worker(state, first, last, left)
        return first

    def _worker(self, state, first, last, seconds):
        o = self.options
        Path(state.name).write_bytes(json.dumps({"number": first}).encode().ljust(STATE))
        job = {
            "state": state.name, "first": first, "last": last, "seconds": seconds, "seed": o.seed,
            "backend": o.backend, "functions": o.functions, "dtypes": o.dtypes, "large": o.large, "torch": o.torch,
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.fuzz.worker", json.dumps(job)]
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self.root, env=self.environment
            ) as worker,
        ):
            watch = threading.Thread(target=self._watch, args=(worker, state.name), daemon=True)
            watch.start()
            for line in worker.stdout:  # until it ends or dies
                self.note(json.loads(line))
            code = worker.wait()
            about = json.loads(Path(state.name).read_bytes())
            if code == 0:
                return about["number"]
            errors.seek(0)
            text = errors.read()
        self.note({**about, "fault": f"the process died, {code}: {summary(text)}"})
        return about["number"] + 1

    def _watch(self, worker, state):
        """Kill the worker when one call takes for ever."""
        since, before = time.monotonic(), None
        while worker.poll() is None:
            now = Path(state).read_bytes()
            if now != before:
                since, before = time.monotonic(), now
            elif time.monotonic() - since > HANG:
                worker.kill()
            time.sleep(1)

    def note(self, found):
        kind = found.get("function"), re.sub(r"[-+.\w]*\d[-+.\w]*", "N", found["fault"])[:80]
        self.kinds[kind] += 1
        self.faults.append(found)
        if self.kinds[kind] == 1 or self.options.every:
            print(
                f"\n{found.get('function')} [{found.get('engine')}, {found.get('threads')} threads]: {found['fault']}"
            )
            print(f"    {found.get('call', '')[:600]}")
            print(f"    again: --seed {self.options.seed} --only-call {found['number']}")
            sys.stdout.flush()


def summary(text):
    """What a sanitizer or Python said at the end."""
    said = re.findall(
        r"^(?:==\d+==ERROR: .*|.*runtime error: .*|Fatal Python error: .*|\w*Error: .*)$", text, re.MULTILINE
    )
    frames = re.findall(r"^\s+#\d+ .* in (\S+ \S+)$", text, re.MULTILINE)[:4]
    return "; ".join([*said[:2], *frames]) or text[-300:]


def main():
    options = arguments()
    if missing():
        sys.exit(f"no generator in tests/fuzz/functions.py for {missing()}")
    options.seed = secrets.randbits(32) if options.seed is None else options.seed
    first, last = options.first, options.first + options.calls
    if options.only_call is not None:
        first, last, options.seconds = options.only_call, options.only_call + 1, 10**9
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    with tempfile.TemporaryDirectory() as scratch:
        if options.sanitize:
            root, more = sanitized(root, Path(scratch))
            environment |= more
            options.torch = False  # its libraries are not built for it
        print(f"seed {options.seed}", flush=True)
        started = time.monotonic()
        run = Run(options, root, environment)
        calls = run.go(first, last, options.seconds) - first
        wall = time.monotonic() - started
    print(
        f"\nseed {options.seed}, backend {options.backend}{', sanitized' if options.sanitize else ''}: "
        f"{calls} calls in {wall:.0f} s "
        f"({calls / wall:.0f} a second), {len(run.faults)} faults of {len(run.kinds)} kinds"
    )
    for (function, what), count in run.kinds.most_common():
        print(f"  {count:6} {function}: {what}")
    return bool(run.faults)


if __name__ == "__main__":
    sys.exit(main())
