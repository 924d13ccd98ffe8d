"""Monte Carlo dropout (Gal and Ghahramani, 2016): predictions with dropout on; their mean, spread and entropies.

What a sample drops must not depend on how the data were cut: asked about one row, a batch or the whole set, sample s
has to be the same network. A generator that moves on from call to call cannot do that; masks that are values can:

    layer l, the l-th dropout of one prediction  ->  seed    (a child of the call's, so layers never share a stream)
    sample s                                     ->  stream  s
    row r of the data                            ->  nothing (all rows share one sub-network), or place r in the mask

Rejected: sample and layer both in the stream number (s * layers + l), since the number of layers is known only after
the first prediction and one more layer would change all masks; and a process-wide "Monte Carlo mode", since a model
that a second thread trains would be caught in it. Instead the sample is an argument, which goes where a model's
``training`` flag goes; and so that it is not forgotten, a layer called with ``training=True`` while ``predict`` runs
raises.

The statistics stream, in float64: memory does not grow with the number of samples, and what two samples have in common
is never subtracted from what they have in common.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from .arguments import check_flag, check_number, check_p, check_samples, fit_p
from .dispatch import operation
from .dtypes import FLOATS
from .masks import Mask
from .rng import _seed_of, _uint64, as_rng
from .rule import MASK64

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, SupportsIndex

    from numpy.typing import NDArray

    from .typing import ArrayLike, ArrayT, Floats, Foreign, Probability, RngLike, ScalarT

MIN_SAMPLES = 10  # samples before `tolerance` is asked: the standard error of fewer is a guess
CHUNK = 1 << 12  # numbers worked on at a time: they stay in cache
TINY = np.finfo(np.float64).tiny

_predicting = ContextVar("predicting", default=False)  # does this thread or task run what `mc_dropout` was given?


class Sample:
    """One sample of a Monte Carlo prediction: which elements are dropped, whatever rows are asked about.

    `mc_dropout` makes it and gives it to ``predict(x, sample)``. Pass it on to `fastdrop.layers` in the place of their
    ``training`` flag, or call `dropout` where there are no layers.

    Attributes
    ----------
    number : int
        0 for the first sample: the stream of all its masks.
    """

    __slots__ = ("_first", "_layer", "_rows", "_seeds", "number")

    def __init__(self, seeds: _Seeds, number: int, rows: int, first: int | None) -> None:
        self._seeds = seeds
        self._layer = 0
        self._rows = rows
        self._first = first  # None: rows share the masks
        self.number: int = number

    @overload
    def dropout(self, x: ArrayT, p: Probability = 0.5) -> ArrayT: ...
    @overload
    def dropout(self, x: Foreign, p: Probability = 0.5) -> Floats: ...
    def dropout(self, x: ArrayLike, p: Probability = 0.5) -> Any:
        """Drop elements of ``x`` as this sample does.

        Parameters
        ----------
        x : ndarray
            Its first axis are the rows that ``predict`` was given.
        p : float or array_like, default 0.5
            Probability to drop.

        Returns
        -------
        ndarray

        Notes
        -----
        The l-th call within one prediction has the l-th layer's masks, so every prediction of a model must make its
        calls in the same order.
        """
        return self.mask(np.shape(x), p).apply(x)

    def mask(self, shape: tuple[int, ...], p: Probability) -> Mask:
        """Take the mask that `dropout` would use for an array of this shape; broadcasts to it."""
        if not shape or shape[0] != self._rows:
            raise ValueError(f"the first axis of what a sample drops must be the {self._rows} rows, got shape {shape}")
        seed = self._seeds.of(self._layer)
        self._layer += 1
        if self._first is None:
            shape = (1, *shape[1:])
            return Mask._make(seed, self.number, shape, fit_p(p, shape))
        p = check_p(p)
        if type(p) is not float and p.ndim:
            raise ValueError("p must be one number where rows have masks of their own")
        end = self._first + self._rows
        if math.prod((end, *shape[1:])) > MASK64 + 1:
            raise ValueError(
                f"first_row must leave the masks of all rows below 2**64 elements, got {self._first} for "
                f"{self._rows} rows of shape {shape[1:]}"
            )
        return Mask._make(seed, self.number, (end, *shape[1:]), p)[self._first :]


class _Seeds:
    """A seed for each layer: children of the call's (seed, stream), made once."""

    def __init__(self, seed: int, stream: int) -> None:
        self._entropy = seed, stream
        self._known: list[int] = []

    def of(self, layer: int) -> int:
        while len(self._known) <= layer:
            sequence = np.random.SeedSequence(self._entropy, spawn_key=(len(self._known),))
            self._known.append(_seed_of(sequence))
        return self._known[layer]


class _Moments(NamedTuple):
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    entropy: NDArray[np.float64] | None
    mutual_information: NDArray[np.float64] | None


class MonteCarlo(_Moments):
    """What `mc_dropout` returns: a tuple of four arrays, with names, and `samples`.

    Attributes
    ----------
    mean, variance : ndarray of float64
        Of the predictions, over samples; the variance is that of the samples themselves, divided by their number.
    entropy : ndarray of float64 or None
        Entropy of the mean probabilities, in nats: all the uncertainty there is.
    mutual_information : ndarray of float64 or None
        `entropy` less the mean entropy of single samples: what the samples disagree about, and more data would tell.
        Summed as the mean divergence of samples from the mean prediction, which it is.
    samples : ndarray of int
        How many samples each row has had.
    """

    samples: NDArray[np.int64]

    def __new__(
        cls, mean: NDArray[np.float64], variance: NDArray[np.float64], entropy: NDArray[np.float64] | None,
        mutual_information: NDArray[np.float64] | None, samples: NDArray[np.int64],
    ) -> MonteCarlo:  # fmt: skip
        self = super().__new__(cls, mean, variance, entropy, mutual_information)
        self.samples = samples
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (*self, self.samples)


@operation("x")
def mc_dropout(
    predict: Callable[[NDArray[ScalarT], Sample], ArrayLike], x: NDArray[ScalarT], samples: SupportsIndex, *,
    rng: RngLike = None, progress: bool = False, batch_size: SupportsIndex | None = None, per_row: bool = False,
    first_row: SupportsIndex = 0, tolerance: float | None = None, probabilities: bool = True,
) -> MonteCarlo:  # fmt: skip
    """Predict ``samples`` times with dropout on; mean, variance, predictive entropy and mutual information.

    Parameters
    ----------
    predict : callable
        ``predict(x, sample)`` gives an array whose first axis are x's rows. It passes ``sample`` to its dropout layers
        as their ``training``, or calls ``sample.dropout(h, p)``; see Examples.
    x : ndarray
        Rows along the first axis.
    samples : int
        How many, at least 1; with ``tolerance``, the most that any row gets.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        Which ensemble. An int is the same ensemble at each call; an `Rng` moves on by one at each call.
    progress : bool, default False
        Show a progress bar (needs tqdm).
    batch_size : int, optional
        Rows that ``predict`` sees at a time: always so many, the last batch filled up by repeating its last row, the
        surplus thrown away. Default: all of ``x`` at once.
    per_row : bool, default False
        False: all rows share one sub-network a sample, as in an ensemble. True: every row has its own masks, by its
        number.
    first_row : int, default 0
        Number of x's first row, for ``per_row`` predictions on a part of the data.
    tolerance : float, optional
        A row is done when the standard error of each of its mean predictions is at most this, after 10 samples or
        more. It depends on that row alone.
    probabilities : bool, default True
        Whether predictions are probabilities along their last axis; each is checked, as far as its dtype can hold
        them. If False (regression), `entropy` and `mutual_information` are None.

    Returns
    -------
    MonteCarlo
        The tuple (mean, variance, entropy, mutual_information), with `samples` as an attribute.

    Raises
    ------
    TypeError, ValueError
        If an argument is out of its range, predictions change their shape or are no probabilities, ``predict`` calls a
        layer with ``training=True``, or two samples are equal because ``predict`` did not use its ``sample``.

    Notes
    -----
    Sample s drops the same elements whatever part of the data is asked about and however it is cut, so answers agree to
    the bit wherever the rest of the model treats a row alike beside any others. Matrix products may not: BLAS rounds
    differently for another number of rows. With one ``batch_size`` for all calls they see the same number.

    References
    ----------
    Gal and Ghahramani, "Dropout as a Bayesian approximation: representing model uncertainty in deep learning",
    ICML (2016).

    Houlsby et al., "Bayesian active learning for classification and preference learning", arXiv:1112.5745 (2011): the
    mutual information.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> from fastdrop.layers import Dropout
    >>> layer = Dropout(0.5)
    >>> def predict(x, sample):
    ...     h = layer(x, training=sample)
    ...     return np.exp(h) / np.exp(h).sum(axis=-1, keepdims=True)
    >>> x = np.array([[0.0, 0.0], [0.0, 3.0]])
    >>> mean, variance, entropy, information = fd.mc_dropout(predict, x, 100, rng=0)
    >>> mean.round(2), information.round(2)
    (array([[0.5 , 0.5 ],
           [0.23, 0.77]]), array([0.  , 0.21]))
    >>> bool((fd.mc_dropout(predict, x[1:], 100, rng=0).mean == mean[1:]).all())
    True
    """
    if not callable(predict):
        raise TypeError(f"predict must be a function of x and a sample, got {type(predict).__name__}")
    samples = check_samples(samples)
    for name, flag in (("progress", progress), ("per_row", per_row), ("probabilities", probabilities)):
        check_flag(flag, name)
    if not x.ndim or not len(x):
        raise ValueError(f"x must have at least one row, got shape {x.shape}")
    batch_size = len(x) if batch_size is None else check_samples(batch_size, "batch_size")
    first_row = _uint64("first_row", first_row)
    if tolerance is not None and not check_number(tolerance, "tolerance") >= 0:
        raise ValueError(f"tolerance must be None or a number of at least 0, got {tolerance!r}")
    seeds = _Seeds(*as_rng(rng).take())

    parts = []
    starts = range(0, len(x), batch_size)
    with _bar(progress, samples * len(starts)) as bar:
        for start in starts:
            rows = x[start : start + batch_size]
            surplus = batch_size - len(rows)
            if surplus:
                rows = np.concatenate([rows, np.repeat(rows[-1:], surplus, axis=0)])
            first = first_row + start if per_row else None
            state = _Stream(batch_size - surplus, probabilities, tolerance)
            for s in range(samples):
                sample = Sample(seeds, s, batch_size, first)
                token = _predicting.set(True)
                try:
                    prediction = predict(rows, sample)
                finally:
                    _predicting.reset(token)
                state.add(prediction, used=sample._layer > 0)
                bar.update()
                if state.done:
                    bar.update(samples - s - 1)
                    break
            parts.append(state.result())
    if len(parts) == 1:
        return parts[0]
    fields = [None if parts[0][i] is None else np.concatenate([part[i] for part in parts]) for i in range(4)]
    return MonteCarlo(*fields, np.concatenate([part.samples for part in parts]))


class _NoBar:
    def update(self, n=1):
        pass


def _bar(progress, total):
    if not progress:
        return nullcontext(_NoBar())
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    return tqdm(total=total, unit="prediction")


class _Stream:
    """Running statistics of a batch's predictions, in float64; rows stop one by one.

    Beside mean and squared deviations (Welford, 1962) it sums p log(p / mean) over samples, class by class,
    brought forward from mean to mean in the same way: 0 where all samples are equal, and right to rounding where they
    differ by little. The difference of two entropies is neither.
    """

    def __init__(self, rows, probabilities, tolerance):
        self.rows, self.probabilities, self.tolerance = rows, probabilities, tolerance
        self.count = 0
        self.done = False
        self.samples = None  # a count for each row, once they differ
        self.live = None  # rows that go on, where not all do

    def add(self, prediction, used):
        prediction = np.asarray(prediction)
        if prediction.dtype.kind != "f" and prediction.dtype.name not in FLOATS:
            raise TypeError(f"predict must give an array of floats, got dtype {prediction.dtype}")
        if self.count == 0:
            self._begin(prediction)
        elif prediction.shape != self.shape:
            raise ValueError(f"predict must give the same shape at each call, got {self.shape} and {prediction.shape}")
        prediction = prediction[: self.rows]
        if self.count == 1 and not used and np.array_equal(prediction, self.mean, equal_nan=True):
            raise ValueError(
                "predict(x, sample) gave the same twice and dropped nothing: pass sample on to its dropout layers, "
                "as their training argument"
            )
        self.count += 1
        step = self.scratch.shape[1]
        for start in range(0, self.rows, step):
            self._add(slice(start, start + step), prediction[start : start + step])
        if self.tolerance is not None and self.count >= MIN_SAMPLES:
            self._stop()

    def _begin(self, prediction):
        if not prediction.ndim or len(prediction) < self.rows:
            raise ValueError(f"predict must give an array of x's rows, got shape {prediction.shape}")
        if self.probabilities and prediction.ndim < 2:
            raise ValueError(
                f"probabilities must lie along a last axis, got predictions of shape {prediction.shape}; "
                "for anything else pass probabilities=False"
            )
        self.shape = prediction.shape
        shape = (self.rows, *prediction.shape[1:])
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.divergence = np.zeros(shape) if self.probabilities else None
        self.scratch = np.empty((4, max(1, CHUNK // max(1, math.prod(shape[1:]))), *shape[1:]))

    def _add(self, rows, prediction):
        """One more sample of some rows."""
        n, mean, p = self.count, self.mean[rows], prediction.astype(np.float64, copy=False)
        if self.probabilities:
            _check_probabilities(p, prediction.dtype)
        delta, step, new, term = self.scratch[:, : len(mean)]
        np.subtract(p, mean, out=delta)
        if self.live is not None:
            delta[~self.live[rows]] = 0  # then nothing below changes
        np.divide(delta, n, out=step)
        if self.probabilities and n > 1:
            np.maximum(np.add(mean, step, out=new), TINY, out=new)
            np.divide(np.subtract(delta, step, out=term), new, out=term)  # p / new mean, less 1
            self.divergence[rows] += np.multiply(p, _log1p(term), out=term)
            np.divide(step, np.negative(new, out=new), out=term)  # old mean / new mean, less 1
            np.multiply(_log1p(term), mean, out=term)
            self.divergence[rows] += np.multiply(term, n - 1, out=term)
        mean += step
        step *= delta
        step *= n - 1  # delta * (p - new mean)
        self.squares[rows] += step

    def _stop(self):
        """Take out the rows whose standard error is small enough: this sample was their last."""
        if self.live is None:
            self.live = np.ones(self.rows, bool)
            self.samples = np.zeros(self.rows, np.int64)
        self.samples[self.live] = self.count
        error = np.sqrt(self.squares / ((self.count - 1) * self.count))
        self.live &= ~(error.reshape(self.rows, -1).max(axis=1, initial=0) <= self.tolerance)
        self.done = not self.live.any()

    def result(self):
        samples = np.full(self.rows, self.count) if self.samples is None else self.samples
        variance = self.squares / samples.reshape(-1, *[1] * (self.mean.ndim - 1))
        if not self.probabilities:
            return MonteCarlo(self.mean, variance, None, None, samples)
        entropy = -(self.mean * np.log(np.maximum(self.mean, TINY))).sum(axis=-1)
        information = self.divergence.sum(axis=-1) / samples.reshape(-1, *[1] * (self.mean.ndim - 2))
        information = np.maximum(information, 0)  # where samples differ by their last bits alone
        return MonteCarlo(self.mean, variance, entropy, information, samples)


def _log1p(x):
    """x = log(1 + x), and a large negative number in the place of -inf: what it is multiplied by is 0."""
    return np.log1p(np.maximum(x, -1 + 2**-53, out=x), out=x)


def _check_probabilities(p, dtype):
    """Raise unless ``p``, in float64, are probabilities along the last axis, as far as their ``dtype`` can be."""
    kind = FLOATS.get(dtype.name, FLOATS["float64"])
    slack = 1e-3 + 10 * 2.0**-kind.digits + p.shape[-1] * 2.0 ** (kind.least - 1)
    total = p @ np.ones(p.shape[-1])
    if p.size and not (p.min() >= 0 and abs(total - 1).max() <= slack):  # NaN is neither
        raise ValueError(
            "predictions must be probabilities, at least 0 and of sum 1 along the last axis (softmax them?); "
            "for anything else pass probabilities=False"
        )
