"""One call to be made: its arguments drawn, and what is known beforehand about how it must end.

`Case.refusals` holds why it must raise; with `Case.doubtful` it may raise or work; otherwise it must work.
"""

import random

import numpy as np

import fastdrop as fd
from fastdrop import backends

from .memory import BFLOAT16, FLOATS, LAYOUTS, Argument, hand_over, place, seen

ROOM = 6000  # bytes before and after the elements of a small array that an ``out`` may overlap


class Draw(random.Random):
    """Random numbers of one call, and of arrays in it."""

    def __init__(self, seed, number):
        super().__init__(seed << 40 | number)
        self.np = np.random.Generator(np.random.SFC64(self.getrandbits(63)))

    def bytes(self, n):
        return self.randbytes(n) if n < 1 << 27 else self.np.bytes(n)  # more bits than an int counts

    def chance(self, p):
        return self.random() < p


class Twin:
    """An argument with state, of which the reference needs one of its own."""

    def __init__(self, make, state):
        self.given, self.plain, self.state = make(), make(), state
        self.before = state(self.given)

    def moved(self):
        return self.state(self.given) != self.before


class Case:
    """A call of the public function ``name``; the generators in `functions` fill it in."""

    bytes_chance = 0.06  # that buffers are plain bytes, to their very ends

    def __init__(self, name, draw, options):
        self.name, self.draw, self.options = name, draw, options
        self.arguments = {}  # by name: Argument, Twin, or the value itself
        self.outs = []  # Arguments that are written to
        self.refusals, self.doubtful = [], []
        self.wants_flaw = draw.chance(0.2)
        self.wants_overlap = draw.chance(0.15)
        self.plain_memory = draw.chance(0.3)  # nothing out of the ordinary: the short ways
        self.alone = False  # ndarrays only
        self.as_bytes = False  # buffers without a type, and dtype= to say it
        self.function = getattr(fd, name, None)
        self.close = {}  # by place in the flattened result: (error allowed relative to size, function of plain -> size)
        self.checks = []  # functions of (case, result): further things that must hold

    # -- flaws -----------------------------------------------------------------------------------------------------

    def flaw(self, what, chance=0.1):
        """Shall the call be made wrong in this way? Then the caller does so."""
        if self.wants_flaw and not self.refusals and not self.as_bytes and self.draw.chance(chance):
            self.refusals.append(what)
            return True
        return False

    # -- arrays ----------------------------------------------------------------------------------------------------

    def dtype(self, *allowed):
        allowed = [np.dtype(d) for d in allowed] or FLOATS
        dtypes = [d for d in allowed if d.name in self.options.dtypes] or allowed[:1]
        return self.draw.choice(dtypes)

    def shape(self, least_axes=0, most_axes=8, least=0):
        """A shape; mostly small, rarely so large that several threads run."""
        draw = self.draw
        if draw.chance(self.options.large) and not self.wants_overlap:
            size = draw.randrange(1 << 17, 400_000)
            rows = draw.choice((1, 7, 64, 500, 5000))
            shape = (rows, size // rows)[-max(1, least_axes) :] if rows == 1 else (rows, size // rows)
            return shape if len(shape) >= least_axes else (1,) * (least_axes - len(shape)) + shape
        axes = draw.choice((0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 6, 8))
        axes = min(max(axes, least_axes), most_axes)
        most = {0: 1, 1: 700, 2: 70, 3: 16, 4: 7}.get(axes, 3)
        if draw.chance(0.05) and axes and not self.wants_overlap:
            most *= 16 if axes < 3 else 2
        sizes = [draw.choice((0, 1, 1, 2, 3)) if draw.chance(0.25) else draw.randint(1, most) for _ in range(axes)]
        return tuple(max(n, least) for n in sizes)

    def values(self, shape, dtype, kind="wild"):
        """Random numbers; ``kind``: "wild" has anything, "tame" no huge ones, whose sums overflow, "finite" neither."""
        draw, rng = self.draw, self.draw.np
        size = int(np.prod(shape))
        x = rng.standard_normal(size)
        if draw.chance(0.15):
            x = np.round(x * 2)
        if draw.chance(0.15):
            x *= 30
        if draw.chance(0.05):
            x[:] = x[0] if size else 0
        with np.errstate(all="ignore"):
            x = x.astype(dtype)
            if size and draw.chance(0.3):
                special = [0.0, -0.0, 1e-40, -1e-7] + ([] if kind == "finite" else [np.nan, np.inf, -np.inf])
                if kind == "wild":
                    limits = np.finfo(dtype) if dtype != BFLOAT16 else __import__("ml_dtypes").finfo(dtype)
                    special += [float(limits.max), float(limits.min), float(limits.tiny), float(limits.tiny) / 4, 1e30]
                some = [draw.choice(special)] if draw.chance(0.5) else special
                where = rng.random(size) < draw.choice((0.01, 0.1, 0.6))
                x[where] = rng.choice(np.array(some, np.float64), int(where.sum())).astype(dtype)
        return x.reshape(shape)

    def array(self, name, shape, dtype, values="wild", role="read", layouts=LAYOUTS, alone=False):
        """Draw an array argument. ``values``: an array, or a ``kind`` of `values`; ``alone``: an ordinary ndarray."""
        draw = self.draw
        layout = "C" if self.plain_memory or self.as_bytes else draw.choice(layouts)
        if not self.plain_memory and not self.as_bytes and not alone and draw.chance(0.06):
            layout = draw.choice(("broadcast", "window"))
        odd = not self.plain_memory and not self.as_bytes and not alone and not self.alone
        unaligned = odd and draw.chance(0.05) and dtype.itemsize > 1
        stored = dtype
        if odd and draw.chance(0.05) and dtype != BFLOAT16 and dtype.itemsize > 1:
            stored = dtype.newbyteorder()
        room = ROOM if self.wants_overlap else 0 if self.as_bytes else None
        argument = place(draw, shape, stored, layout, unaligned, room)
        if isinstance(values, str):
            values = self.values(shape, dtype, values)
        with np.errstate(all="ignore"):
            argument.view[...] = values
        argument.role, argument.plain = role, argument.copy()
        argument.given = argument.view
        if self.as_bytes:
            argument.given = argument.owner
        elif odd:
            if draw.chance(0.1):
                argument.view.flags.writeable = False
            if self.flaw(f"{name} is a masked array", 0.03):
                argument.given = np.ma.masked_array(argument.view)
            elif draw.chance(0.12):
                argument.given = hand_over(draw, argument.view, self.options.torch)
        self.arguments[name] = argument
        return argument

    def foreign_dtype(self, name, argument):
        """Perhaps give numbers that no kernel knows in place of ``argument``."""
        if not self.as_bytes and self.flaw(f"{name} is of a wrong dtype", 0.05):
            wrong = self.draw.choice((np.int32, np.bool_, np.complex64, np.uint8, object, np.longdouble))
            with np.errstate(all="ignore"):
                argument.given = np.zeros(argument.view.shape, wrong)

    def out(self, name, shape, dtype, like=None, optional=True):
        """Draw an ``out`` argument: none, a new array, an argument itself, or an array that overlaps one."""
        argument = self._out(name, shape, dtype, optional)
        if argument is not None:
            self.arguments[name] = argument
        return argument

    def writes(self, name, argument):
        """``argument`` is an output as well."""
        if argument.overlaps_itself():
            self.refusals.append(f"{name} overlaps itself")
        if not argument.view.flags.writeable:
            self.refusals.append(f"{name} is read-only")
        if isinstance(argument.given, list):
            self.refusals.append(f"{name} is a list")
        self.outs.append(argument)

    def outs_of(self, name, *wanted):
        """Draw a tuple of outputs: all of them or none."""
        if self.draw.chance(0.4):
            return
        made = [self._out(f"{name}[{i}]", shape, dtype, False) for i, (shape, dtype) in enumerate(wanted)]
        a, b = made
        if a.shares(b) != "no":
            self.refusals.append("the outputs overlap each other")
        self.arguments[name] = self.draw.choice((tuple, list))(made)

    def _out(self, name, shape, dtype, optional):
        draw = self.draw
        inputs = [a for a in self.arguments.values() if isinstance(a, Argument)]
        if self.wants_overlap and inputs and int(np.prod(shape)) * dtype.itemsize < ROOM // 2:
            out = self._overlapping(draw.choice(inputs), shape, dtype)
        elif optional and draw.chance(0.45):
            return None
        elif draw.chance(0.3) and (same := [a for a in inputs if self._fits(a, shape, dtype)]):
            other = draw.choice(same)
            out = Argument(other.owner, other.view, other.offset)
            out.given = other.given if draw.chance(0.8) else other.view
        else:
            out = self._fresh(name, shape, dtype)
        if out.overlaps_itself():
            self.refusals.append(f"{name} overlaps itself")
        for other_name, other in self.arguments.items():
            if isinstance(other, Argument):
                self._judge(name, out, other_name, other)
        if not out.view.flags.writeable:
            self.refusals.append(f"{name} is read-only")
        if not out.view.dtype.isnative:
            self.doubtful.append(f"{name} is byte-swapped")
        self.outs.append(out)
        return out

    def _fits(self, argument, shape, dtype):
        view = argument.view
        return view.shape == shape and view.dtype == dtype and not isinstance(argument.given, list)

    def _fresh(self, name, shape, dtype):
        draw = self.draw
        odd = not self.plain_memory and not self.as_bytes
        layout = draw.choice(LAYOUTS) if odd else "C"
        if self.flaw(f"{name} is of a wrong shape", 0.05):
            shape = draw.choice(((*shape, 1), (*shape[:-1], (shape or (0,))[-1] + 1), (1, *shape)))
        if self.flaw(f"{name} is of a wrong dtype", 0.05):
            dtype = draw.choice([d for d in (*FLOATS, np.dtype(np.int32), np.dtype(np.uint8)) if d != dtype])
        if odd and int(np.prod(shape)) > 1 and draw.chance(0.1):
            layout = draw.choice(("broadcast", "window"))
        if odd and dtype != BFLOAT16 and dtype.itemsize > 1 and draw.chance(0.05):
            dtype = dtype.newbyteorder()
        out = place(
            draw, shape, dtype, layout, odd and dtype.itemsize > 1 and draw.chance(0.05), 0 if self.as_bytes else None
        )
        if self.flaw(f"{name} is read-only", 0.05):
            out.view.flags.writeable = False
        out.given = out.view
        if self.as_bytes and len(shape) == 1:
            out.given = out.owner
        elif odd and not self.alone and draw.chance(0.1) and layout not in ("broadcast", "window"):
            out.given = hand_over(draw, out.view, self.options.torch, output=True)
        return out

    def _overlapping(self, other, shape, dtype):
        """An output in the memory of ``other``: shifted, seen as another dtype, in another layout, or the same."""
        draw = self.draw
        size = int(np.prod(shape)) * dtype.itemsize
        way = draw.choice(("shifted", "shifted", "anywhere", "reversed", "inside", "same"))
        strides = np.empty(shape, dtype).strides
        if other.view.shape == shape and draw.chance(0.7):
            strides = other.view.strides
        start = other.offset
        if way == "shifted":
            start += draw.choice((-3, -2, -1, 1, 2, 3)) * draw.choice((1, dtype.itemsize, dtype.itemsize, 64))
        elif way == "anywhere":
            start += draw.randint(-size, max(size, other.view.nbytes))
        elif way == "inside" and other.view.nbytes > size:
            start += draw.randint(0, other.view.nbytes - size)
        elif way == "reversed" and shape:
            strides = (-strides[0], *strides[1:])
            start -= (shape[0] - 1) * strides[0] if shape[0] else 0
        low = sum((n - 1) * s for n, s in zip(shape, strides) if s < 0 and n)
        high = sum((n - 1) * s for n, s in zip(shape, strides) if s > 0 and n) + dtype.itemsize
        start = min(max(start, -low), len(other.owner) - high)
        out = Argument(other.owner, seen(other.owner, shape, dtype, start, strides), start)
        out.given = out.view
        return out

    def _judge(self, name, out, other_name, other):
        shared = out.shares(other)
        if shared == "no" or isinstance(other.given, list):
            return
        if shared == "same" and other.role in ("in place", name):
            return
        if other.role == "copied" or (shared == "same" and other.role == "read") or shared == "swapped":
            self.doubtful.append(f"{name} shares memory with {other_name}")
        else:
            self.refusals.append(f"{name} overlaps {other_name}")

    # -- p, rng, masks ---------------------------------------------------------------------------------------------

    def p(self, shape=(), most=None):
        """A probability, or an array of them with the shape ``shape[:k]``, ``k <= most``."""
        draw = self.draw
        if self.flaw("p is no probability", 0.08):
            return draw.choice((-0.1, 1.5, float("nan"), float("inf"), None, "0.5", [0.1, 2.0], 1j, -1e-300))
        axes = min(len(shape), len(shape) if most is None else most)
        if axes and draw.chance(0.15):
            k = draw.randint(1, axes)
            ps = draw.np.choice([0.0, 1.0, 0.5, 0.1, 1e-12, 0.3], shape[:k])
            return ps.tolist() if draw.chance(0.2) and 0 not in shape[:k] else ps
        p = draw.choice((0.0, 1.0, 0.5, 0.1, 2.0**-32, 1e-300, draw.randint(0, 256) / 256, draw.random()))
        return draw.choice((p, p, p, np.float64(p), np.float32(p) if p > 1e-30 else p, int(p)))

    def rng(self):
        """Something that ``rng`` takes, twice."""
        draw = self.draw
        if self.flaw("rng is none", 0.05):
            return draw.choice(("0", 1.5, True, -1, 2**64, [1]))
        seed, stream = draw.choice((draw.getrandbits(64), draw.randint(0, 3))), draw.choice((0, draw.getrandbits(64)))
        kind = draw.choice(("int", "Rng", "Rng", "Rng", "SeedSequence", "Generator", "PCG64"))
        if kind == "int":
            return seed
        if kind == "Rng":
            return Twin(lambda: fd.Rng(seed, stream), lambda rng: rng.stream)
        if kind == "SeedSequence":
            return np.random.SeedSequence(seed)
        if kind == "Generator":
            return Twin(lambda: np.random.default_rng(seed), lambda rng: str(rng.bit_generator.state))
        return Twin(lambda: np.random.PCG64(seed), lambda rng: str(rng.state))

    def mask(self, shape, p=None):
        """A mask of ``shape``: whole, a part of a larger one, stored or the user's own."""
        draw = self.draw
        p = self.p_of_mask(shape) if p is None else p
        kind = draw.choice(("whole", "whole", "whole", "part", "part", "far", "stored", "own"))
        rng = fd.Rng(draw.getrandbits(64), draw.getrandbits(64))
        if kind == "own":
            keep = draw.np.random(shape) < 0.5
            p = draw.choice((0.0, 0.5, draw.random()))
            return fd.Mask.from_keep(keep, p)
        if kind == "far" and isinstance(p, float) and np.prod(shape) < 2**20:
            return fd.mask((2 ** draw.randint(20, 42), *shape), p, rng=rng)[draw.randint(0, 2**20 - 1)]
        if kind == "part" and isinstance(p, float):
            before = [draw.choice((0, 0, 1, 5)) for _ in shape]
            larger = [n + b + draw.choice((0, 0, 1, 4)) for n, b in zip(shape, before)]
            extra = draw.choice((0, 0, 1))
            mask = fd.mask((*[3] * extra, *larger), p, rng=rng)
            return mask[(*[1] * extra, *(slice(b, b + n) for b, n in zip(before, shape)))]
        mask = fd.mask(shape, p, rng=rng)
        return with_backend("reference", mask.stored) if kind == "stored" else mask

    def p_of_mask(self, shape, most=None):
        flaws, self.wants_flaw = self.wants_flaw, False  # the mask is to be a good one
        p = self.p(shape, most)
        self.wants_flaw = flaws
        return float(p) if np.ndim(p) == 0 else p

    def narrower(self, shape):
        """A shape that broadcasts to ``shape``."""
        draw = self.draw
        kind = draw.choice(("same", "same", "same", "ones", "short", "both"))
        if kind in ("ones", "both"):
            shape = tuple(draw.choice((1, n)) for n in shape)
        if kind in ("short", "both"):
            shape = shape[draw.randint(0, len(shape)) :]
        return shape

    def wider(self, own, shape):
        """``own`` with 3 in place of some ones, where it still broadcasts with ``shape``."""
        ends = shape[len(shape) - len(own) :]
        return tuple(self.draw.choice((3, n)) if n == m == 1 else n for n, m in zip(own, ends))

    def mask_source(self, shape, widens=False, exact=False, most=None):
        """Draw ``mask``, or ``p`` and ``rng`` and ``mask_shape``, and ``training``; return the result's shape.

        ``widens``: the mask may be larger than the array; ``exact``: it has its shape; ``most``: axes of an array p.
        """
        draw, arguments = self.draw, self.arguments
        if draw.chance(0.1):
            arguments["training"] = draw.choice((False, False, True))
        if draw.chance(0.35):
            own = shape if exact else self.narrower(shape)
            if widens and not exact and draw.chance(0.2) and not self.large(shape):
                own = self.wider(own, shape)
                own = (*[draw.choice((1, 2))] * (draw.chance(0.5) and len(own) == len(shape)), *own)
            if self.flaw("mask is none", 0.05):
                arguments["mask"] = draw.choice((np.ones(shape, bool), 0.5, "mask"))
                return shape
            if shape and shape[-1] != 1 and self.flaw("mask does not fit", 0.05):
                own = (*shape[:-1], shape[-1] + 2)
            if exact and most is not None:
                arguments["mask"] = self.mask(own, self.p_of_mask(shape, most))
            else:
                arguments["mask"] = self.mask(own)
            return joint(own, shape) if not self.refusals else shape
        own = shape
        if not exact and draw.chance(0.2):
            own = self.narrower(shape)
            if shape and shape[-1] != 1 and self.flaw("mask_shape does not fit", 0.1):
                own = draw.choice(((*shape[:-1], shape[-1] + 2), (-1,), "ab", 1.5))
                arguments["mask_shape"] = own
                own = shape
            else:
                ends = shape[len(shape) - len(own) :]
                arguments["mask_shape"] = tuple(None if n == m and draw.chance(0.3) else n for n, m in zip(own, ends))
                self.checks.append(lambda result, own=own: result[1].shape == own or f"mask.shape is not {own}")
        if draw.chance(0.95):
            arguments["p"] = self.p(own, most)
        arguments["rng"] = self.rng()
        if (
            arguments.get("training") is False
            and self.refusals
            and self.refusals[0] in ("rng is none", "p is no probability")
        ):
            self.doubtful.append(self.refusals.pop())  # not looked at where nothing is dropped
        return shape

    def large(self, shape):
        return int(np.prod(shape)) > 20_000

    # -- the call --------------------------------------------------------------------------------------------------

    def given(self):
        """The arguments as the function gets them."""
        return {name: _given(value) for name, value in self.arguments.items()}

    def plain(self):
        """The arguments for the reference: contiguous copies, and no ``out``."""
        return {name: _plain(value) for name, value in self.arguments.items() if name not in ("out", "dtype")}


def _given(value):
    if isinstance(value, (Argument, Twin)):
        return value.given
    if type(value) in (tuple, list) and any(isinstance(v, Argument) for v in value):
        return type(value)(map(_given, value))
    return value


def _plain(value):
    return value.plain if isinstance(value, (Argument, Twin)) else value


def joint(a, b):
    return np.broadcast_shapes(a, b)


def with_backend(name, function, /, *args, **kwargs):
    """Call ``function`` on another backend."""
    before = backends.get_backend()
    backends.use_backend(name)
    try:
        return function(*args, **kwargs)
    finally:
        backends.use_backend(before)
