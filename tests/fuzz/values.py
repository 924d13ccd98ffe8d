"""Generators of what is no kernel: masks as values, generators of streams, settings."""

import io
import pickle

import numpy as np

import fastdrop as fd

from .case import Twin
from .table import generator, scale_of


def keys(c, shape):
    """Integers and slices for a mask or array of ``shape``."""
    draw, result = c.draw, []
    count = draw.randint(0, len(shape))
    last = draw.chance(0.2)  # an Ellipsis before them
    for n in shape[len(shape) - count :] if last else shape[:count]:
        if n and draw.chance(0.4):
            result.append(draw.randrange(-n, n))
        else:
            result.append(slice(*draw.choice(((None, None), (1, None), (None, -1), (-3, n + 3), (2, 1)))))
    return (..., *result) if last else tuple(result)


@generator("Mask.arrays", 2)
def mask_arrays(c):
    """keep, bits, stored, parts, copies: all of them the same decisions."""
    shape = c.shape()
    mask = c.mask(shape)
    part = keys(c, shape)
    if c.flaw("step is not 1"):
        part = (slice(None, None, 2),) if shape else (0,)
    dtype = c.dtype()
    protocol = c.draw.choice((2, 4, 5))

    def arrays():
        copy = pickle.loads(pickle.dumps(mask, protocol))
        return (
            mask.keep(), mask.bits(), mask.stored().keep(), mask[part].keep(), mask[part].bits(), copy.keep(),
            np.asarray(mask, dtype), mask, copy, copy == mask, hash(copy) == hash(mask), repr(mask), mask[part].size,
        )  # fmt: skip

    def consistent(results):
        keep, bits, stored, sliced, _, copied, multipliers, *_ = results
        if not (np.array_equal(keep, stored) and np.array_equal(keep, copied) and np.array_equal(keep[part], sliced)):
            return "keep(), stored(), its part and its copy differ"
        if not np.array_equal(np.packbits(keep, bitorder="little"), bits):
            return "bits() is not keep() packed"
        return np.array_equal(multipliers != 0, keep & (scale_of(mask) != 0)) or "asarray(mask) is not keep() * scale"

    c.function = arrays
    c.checks.append(consistent)


@generator("Mask.from_keep")
def mask_from_keep(c):
    shape = c.shape()
    keep = c.draw.np.random(shape) < c.draw.choice((0.0, 0.5, 1.0))
    given = c.array("keep", shape, np.dtype(bool), keep, "copied").plain
    c.arguments["p"] = p = c.p(shape)
    if not c.refusals and (np.asarray(p) == 1).any():
        c.doubtful.append("p is 1 and something may be kept")
    c.function = lambda keep, p: (lambda m: (m, m.keep(), m.shape))(fd.Mask.from_keep(keep, p))
    c.checks.append(lambda results: np.array_equal(results[1], given) or "keep() is not what was given")


@generator("Mask.pickle")
def mask_damaged(c):
    """A pickle with one field changed is refused, or a mask that can be used."""
    draw = c.draw
    mask = c.mask(c.shape(most_axes=3))
    make, fields = mask.__reduce__()
    fields = list(fields)
    at = draw.randrange(len(fields))
    shorter = None if mask._stored is None else mask._stored[: draw.randint(0, mask._stored.size)]
    fields[at] = draw.choice(
        (None, -1, 2**64, 2**63, 0.5, "x", (), (1,), (2**70,), (5, 7, 11), (-1, 2), fields[draw.randrange(len(fields))],
         np.zeros(draw.choice((0, 1, 100)), np.uint8), np.zeros(3), shorter)
    )  # fmt: skip
    c.doubtful.append("damaged")

    def use():
        damaged = pickle.loads(pickle.dumps(Reduced(make, tuple(fields))))
        if np.prod(damaged.shape, dtype=float) > 1e6:
            return None
        return damaged.keep(), damaged.bits()

    c.function = use
    c.unnamed_errors = True


class Reduced:
    def __init__(self, make, fields):
        self.reduced = make, fields

    def __reduce__(self):
        return self.reduced


@generator("mask")
def mask(c):
    shape = c.shape()
    if c.flaw("shape is none"):
        shape = c.draw.choice(((-1,), 1.5, (2**40, 2**40), "3", (1,) * 65))
    c.arguments.update(shape=shape, p=0.5 if c.refusals else c.p(shape), rng=c.rng())


@generator("Rng", 0.5)
def rng(c):
    seed, stream = c.draw.getrandbits(64), c.draw.choice((0, 2**64 - 1, c.draw.getrandbits(64)))
    if c.flaw("seed is none"):
        seed = c.draw.choice((-1, 2**64, 1.5, "1", True, None))
    c.arguments.update(seed=seed, stream=stream)

    def use(seed, stream):
        rng = fd.Rng(seed, stream)
        copy = pickle.loads(pickle.dumps(rng))
        return rng.take(), rng.mask(5, 0.5), rng.stream, rng.spawn(2)[1].seed, copy.stream, copy.spawn(2)[1].seed

    c.function = use
    c.checks.append(
        lambda r: (r[0] == (seed, stream) and r[2] == (stream + 2) % 2**64) or "stream does not move on by 1"
    )


# -- settings ----------------------------------------------------------------------------------------------------------


@generator("layers", 0)
def layers_module(c):
    """The module itself; its classes have generators of their own."""
    c.function = lambda: None


def setting(name, good, bad):
    @generator(name, 0.1)
    def draw_it(c):
        if bad and c.flaw("a wrong value", 1.0):
            c.arguments.update(c.draw.choice(bad))
        else:
            c.arguments.update(c.draw.choice(good))


WRONG = [{"n": n} for n in (-1, 1.5, "2", None)]
setting("set_num_threads", [{"n": 1}, {"n": 2}, {"n": 3}], [*WRONG, {"n": 0}, {"n": 10**6}])
setting("set_buffer_limit", [{"n": 0}, {"n": 1 << 22}, {"n": 512 << 20}], [*WRONG, {"n": 2**70}])
setting("use_backend", [{"name": "reference"}], [{"name": "cuda"}, {"name": None}])
setting("release_buffers", [{}], [])
setting("get_num_threads", [{}], [])


@generator("get_backend", 0.1)
def get_backend(c):
    c.function = lambda: fd.get_backend() in ("native", "numba", "reference")


@generator("show_config", 0.05)
def show_config(c):
    c.arguments["file"] = Twin(io.StringIO, lambda file: None)


@generator("threads", 0.1)
def threads(c):
    def use(n):
        before = fd.get_num_threads()
        with fd.threads(n):
            inside = fd.get_num_threads()
        return inside, fd.get_num_threads() == before

    c.arguments["n"] = c.draw.randint(1, 4)
    if c.flaw("n is none"):
        c.arguments["n"] = c.draw.choice((0, -1, 1.5, None))
    c.function = use
