"""Where masks get their two numbers from: ``Rng``, and what may stand for one.

A mask needs (seed, stream) and nothing else, so an ``Rng`` is those two integers: every mask taken moves ``stream``
on by one.  It is not a bit generator: bits are made by the kernels.  Anything statistical about seeds (hashing,
spawning, OS entropy) is NumPy's ``SeedSequence``.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import numpy as np

from .arguments import explained
from .locks import after_fork, new_lock
from .rule import MASK64

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from .masks import Mask
    from .typing import Probability, RngLike, Shape

_lock = new_lock()  # of all generators: held for an addition
new_mask = None  # `fastdrop.mask`, set by masks.py, which imports this file


def _uint64(name: str, value: object) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer in [0, 2**64), got the bool {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer in [0, 2**64), got {type(value).__name__} {value!r}") from None
    if not 0 <= number <= MASK64:
        raise ValueError(f"{name} must be an integer in [0, 2**64), got {number}")
    return number


def _seed_of(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])


class Rng:
    """A source of masks: a seed and the number of the next stream.

    Parameters
    ----------
    seed : int, default 0
        The Philox key, in [0, 2**64), used as it is: the same integer gives the same masks in C, Numba and CUDA.
    stream : int, default 0
        Number of the next mask, in [0, 2**64). Every mask taken moves it on by one, modulo 2**64.

    Attributes
    ----------
    seed, stream : int
        The two numbers; both may be read at any time.

    Raises
    ------
    TypeError, ValueError
        If ``seed`` or ``stream`` is not an integer in [0, 2**64).

    Notes
    -----
    Safe under threads: no two calls get the same stream. A copy, or a forked child, of an ``Rng`` that you made repeats
    its masks; give each worker a child from `spawn`, or its own range of streams.

    Examples
    --------
    >>> import fastdrop as fd
    >>> rng = fd.Rng(seed=42)
    >>> a, b = rng.mask((2, 3), p=0.5), rng.mask((2, 3), p=0.5)
    >>> a.stream, b.stream, rng.stream
    (0, 1, 2)
    >>> a == fd.Rng(42).mask((2, 3), 0.5)
    True
    """

    __slots__ = ("_seed", "_spawned", "_stream")

    @explained
    def __init__(self, seed: SupportsIndex = 0, stream: SupportsIndex = 0) -> None:
        self._seed = _uint64("seed", seed)
        self._stream = _uint64("stream", stream)
        self._spawned = 0

    @property
    def seed(self) -> int:
        return self._seed

    @property
    def stream(self) -> int:
        return self._stream

    def take(self) -> tuple[int, int]:
        """Return (seed, stream) for one mask and move on.

        Returns
        -------
        tuple of int

        Examples
        --------
        >>> import fastdrop as fd
        >>> rng = fd.Rng(7)
        >>> rng.take(), rng.take()
        ((7, 0), (7, 1))
        """
        with _lock:
            stream = self._stream
            self._stream = (stream + 1) & MASK64
        return self._seed, stream

    @explained
    def mask(self, shape: Shape, p: Probability) -> Mask:
        """Take a mask: `fastdrop.mask` with this generator.

        Parameters
        ----------
        shape : int or tuple of int
        p : float or array_like
            Probability to drop.

        Returns
        -------
        Mask
        """
        return new_mask(shape, p, rng=self)

    def spawn(self, n: SupportsIndex) -> list[Rng]:
        """Make ``n`` independent generators.

        Parameters
        ----------
        n : int
            How many, at least 0.

        Returns
        -------
        list of Rng
            Their seeds come from ``numpy.random.SeedSequence(seed)``'s children; a further call gives further ones.
            Masks taken before do not change them.

        Examples
        --------
        >>> import fastdrop as fd
        >>> a, b = fd.Rng(0).spawn(2)
        >>> a.seed != b.seed
        True
        """
        try:
            n = operator.index(n)
        except TypeError:
            raise TypeError(f"n must be an integer of at least 0, got {n!r}") from None
        if n < 0:
            raise ValueError(f"n must be an integer of at least 0, got {n}")
        with _lock:
            first = self._spawned
            self._spawned += n
        return [Rng(_seed_of(np.random.SeedSequence(self._seed, spawn_key=(first + i,)))) for i in range(n)]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._seed, self._stream, self._spawned)

    def __repr__(self) -> str:
        return f"fastdrop.Rng(seed={self._seed}, stream={self._stream})"


def _restore(seed, stream, spawned):
    rng = Rng(seed, stream)
    rng._spawned = spawned
    return rng


def _from_entropy():
    return Rng(_seed_of(np.random.SeedSequence()))


_default = _from_entropy()


@after_fork
def _renew_default():
    """A child must not repeat its parent's masks."""
    global _default
    _default = _from_entropy()


def as_rng(rng: RngLike) -> Rng:
    """Return the `Rng` that a user's ``rng=`` argument stands for (None, int, Rng, or NumPy's own)."""
    if type(rng) is Rng:
        return rng
    if rng is None:
        return _default
    if isinstance(rng, (int, np.integer)) and not isinstance(rng, bool):
        return Rng(_uint64("rng", rng))
    if isinstance(rng, Rng):
        return rng
    if isinstance(rng, np.random.SeedSequence):
        return Rng(_seed_of(rng))
    if isinstance(rng, np.random.BitGenerator):
        rng = np.random.Generator(rng)
    if isinstance(rng, np.random.Generator):
        return Rng(int(rng.integers(0, 2**64, dtype=np.uint64)))
    raise TypeError(
        "rng must be None, an int in [0, 2**64), a fastdrop.Rng, or a numpy.random SeedSequence, Generator or "
        f"BitGenerator, got {type(rng).__name__}"
    )


def draw(rng):
    """Return (seed, stream) of the next mask of what a user's ``rng=`` argument stands for."""
    if rng is None:
        rng = _default
    elif type(rng) is not Rng:
        return as_rng(rng).take()
    with _lock:  # as `Rng.take`, whose call a small array would feel
        stream = rng._stream
        rng._stream = (stream + 1) & MASK64
    return rng._seed, stream


class Rehearsal(Rng):
    """Stands for a generator in a call that is tried first: raises `Reached` where the call takes its mask."""

    class Reached(Exception):
        """All else has been checked."""

    def take(self) -> tuple[int, int]:
        raise self.Reached


# What can be asked for a mask in the middle of a call: none of them runs code of the user's.
QUIET = frozenset({type(None), int, Rng, Rehearsal, np.random.SeedSequence})
