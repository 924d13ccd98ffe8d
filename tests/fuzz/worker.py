"""Makes calls of a fuzzer's seed, one after another, and says what is wrong; may crash, which its parent sees.

What it is to make and what it says are lines of JSON; the number of the call it is at stands in a file, since nothing
can be said by a process that dies.
"""

import json
import mmap
import sys
import time
import traceback
import warnings

import fastdrop as fd
from fastdrop import backends, config
from fastdrop.dtypes import FLOATS

from .case import Case, Draw, Twin
from .functions import GENERATORS
from .memory import Argument
from .oracle import Fault, judge

STATE = 4096  # bytes of the file that says which call is being made


class Options:
    """What the command line says, for the drawing of cases."""

    def __init__(self, engines, functions=None, dtypes=None, torch=True, large=0.004):
        self.engines = engines
        self.functions = functions or list(GENERATORS)
        self.dtypes = dtypes or list(FLOATS)
        self.large = large
        self.torch = None
        if torch:
            try:
                import torch as module

                module.set_num_threads(1)
                self.torch = module
            except ImportError:
                pass


def engines(backend):
    """Backends, the native one once for each instruction set: those that ``backend`` names ("all": all but Numba)."""
    isas = config.config()["isa found"]
    native = [f"native-{isa}" for isa in isas]
    if backend == "all":
        return [*native, *native, "reference"]
    return native if backend == "native" else [backend]


def use(engine):
    backend, _, isa = engine.partition("-")
    backends.use_backend(backend)
    if isa:
        config._core.use_isa(isa)


def make(seed, number, options, about):
    """Draw call ``number``; say in ``about`` what it is."""
    draw = Draw(seed, number)
    engine = draw.choice(options.engines)
    threads = draw.choice((1, 1, 2, 3))
    weights = [GENERATORS[name][1] for name in options.functions]
    name = draw.choices(options.functions, weights)[0]
    about.update(function=name, engine=engine, threads=threads)
    use(engine)
    fd.set_num_threads(threads)
    case = Case(name, draw, options)
    GENERATORS[name][0](case)
    return case


def one(seed, number, options, note=lambda about: None):
    """Make call ``number`` of ``seed``; return None, or what is wrong with it and what it was."""
    about = {"number": number}
    try:
        case = make(seed, number, options, about)
        about["call"] = describe(case)
        note(about)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judge(case)
    except Fault as fault:
        return {**about, "fault": str(fault)}
    except Exception:  # noqa: BLE001 (the fuzzer's own, or of a check: a fault all the same)
        return {**about, "fault": "the fuzzer stumbled: " + traceback.format_exc(limit=-3)}
    return None


def describe(case):
    """The arguments in a few words each."""
    words = []  # cut short: all of it must fit into the file
    for name, value in case.arguments.items():
        for one in value if type(value) in (tuple, list) and name == "out" else (value,):
            if isinstance(one, Argument):
                kind = type(one.given).__name__
                text = f"{kind} {one.view.dtype.str}{one.view.shape} strides {one.view.strides}"
            else:
                text = repr(one.given if isinstance(one, Twin) else one)
            words.append(f"{name}={text[:120]}")
    return (", ".join(words) + "".join(f"; {why}" for why in case.refusals))[: STATE // 4]


def main(job):
    """Make the calls of ``job`` (a dict, see `__main__`)."""
    options = Options(engines(job["backend"]), job["functions"], job["dtypes"], job["torch"], job["large"])
    with open(job["state"], "r+b") as file:
        at = mmap.mmap(file.fileno(), STATE)

    def note(about):
        at[:] = json.dumps(about).encode()[:STATE].ljust(STATE)

    end = time.monotonic() + job["seconds"]
    number = job["first"]
    while number < job["last"] and time.monotonic() < end:
        note({"number": number})
        found = one(job["seed"], number, options, note)
        if found:
            print(json.dumps(found), flush=True)
        number += 1
    note({"number": number})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
