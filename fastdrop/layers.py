"""Dropout as a layer: a thing with a forward and a backward, for networks written by hand.

A layer keeps masks, not arrays, so remembering many of them costs almost nothing.  They lie on a stack: calls are
undone last in, first out, the order of the chain rule.  Rejected: one attribute `self.mask`, as from-scratch code has
it, which a second forward call overwrites, so that the first one's gradient goes through the wrong mask without a word;
and a queue, which one forward call without a backward (a validation pass that forgot ``training=False``) shifts for
ever.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, overload

from .arguments import check_flag, check_p, check_samples, explained
from .borders.host import shape_of
from .functional import dropout, dropout_backward
from .inference import Sample, _predicting
from .multi_sample import multi_sample_linear, multi_sample_linear_backward
from .rng import as_rng

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    import numpy as np
    from numpy.typing import NDArray

    from .masks import Mask
    from .rng import Rng
    from .typing import ArrayLike, ArrayT, Average, Floats, FloatT, Foreign, Probability, RngLike, Training

REMEMBERED = 1 << 16  # masks; some 12 MB


def _refuse_while_predicting() -> None:
    if _predicting.get():
        raise ValueError(
            "training must be the sample that mc_dropout gives predict, or False, got True: layer(x, training=sample)"
        )


class _Layer:
    """What the layers share: ``p``, checked when it is set, and the masks of calls to undo."""

    def __init__(self, p: Probability, rng: RngLike) -> None:
        self.p = p
        # None: looked up at each call, a forked child has a new one
        self.rng: Rng | None = None if rng is None else as_rng(rng)
        self._pending = deque(maxlen=REMEMBERED)

    @property
    def p(self) -> float | NDArray[np.float64]:
        return self._p

    @p.setter
    def p(self, p: Probability) -> None:
        self._p = check_p(p)


class Dropout(_Layer):
    """A dropout layer.

    Parameters
    ----------
    p : float or array_like
        Probability to drop, as in `fastdrop.dropout`. The attribute may be set anew between calls.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        Where the masks come from. None: the process-wide generator. Anything else becomes the layer's own `Rng` here
        and now, so every call gets another mask, of an int too; an `Rng` given to several layers is shared by them.

    Attributes
    ----------
    p : float or ndarray of float64
    rng : Rng or None
    mask : Mask or None
        The mask that the next ``backward(dy)`` will use.

    Raises
    ------
    TypeError, ValueError
        If ``p`` or ``rng`` is none of these.

    See Also
    --------
    fastdrop.dropout, fastdrop.dropout_backward

    Notes
    -----
    Every call with ``training=True`` puts its mask on a stack, and every `backward` takes one off: the last call is
    undone first. Shared layers, unrolled time steps and two passes before one update need no more than that; forward
    calls that are never undone do not disturb the later ones. To go in another order, keep ``layer.mask`` after each
    call and name it: ``layer.backward(dy, mask=mask)``.

    Calls with ``training=False`` leave no trace: no mask is taken from ``rng`` and the stack is as before. Their
    gradient is ``dy`` itself.

    Only the last 65536 masks are remembered, so a layer that never sees `backward` (Monte Carlo dropout) stays small.
    Past that, the oldest are forgotten and their `backward` raises: no mask is ever taken for another.

    A layer is not for several threads at once, since their calls would share one stack; give each thread its own.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import numpy as np
    >>> from fastdrop.layers import Dropout
    >>> layer = Dropout(0.5, rng=0)
    >>> x = np.ones((2, 4), np.float32)
    >>> layer(x)
    array([[0., 0., 2., 2.],
           [0., 0., 0., 0.]], dtype=float32)
    >>> layer.backward(np.full((2, 4), 3, np.float32))
    array([[0., 0., 6., 6.],
           [0., 0., 0., 0.]], dtype=float32)
    >>> layer(x, training=False) is x
    True
    """

    @explained
    def __init__(self, p: Probability, *, rng: RngLike = None) -> None:
        super().__init__(p, rng)

    @property
    def mask(self) -> Mask | None:
        return self._pending[-1] if self._pending else None

    @overload
    def __call__(self, x: ArrayT, training: Training | Sample = True) -> ArrayT: ...
    @overload
    def __call__(self, x: Foreign, training: Training | Sample = True) -> Floats: ...
    def __call__(self, x: ArrayLike, training: Training | Sample = True) -> Any:
        """Drop elements of ``x`` and scale the others; remember the mask.

        Parameters
        ----------
        x : array_like of floats
        training : bool or fastdrop.inference.Sample, default True
            If False, ``x`` itself is returned and nothing is remembered. A `Sample` of `fastdrop.mc_dropout`: dropped
            as that sample drops, and nothing is remembered.

        Returns
        -------
        ndarray
            Of x's shape and dtype.

        Raises
        ------
        TypeError
            If x's dtype is none of the four.
        ValueError
            If ``training`` is True, given or by default, in a call of `fastdrop.mc_dropout`'s ``predict``.
        """
        if isinstance(training, Sample):
            return training.dropout(x, self.p)
        if training:
            _refuse_while_predicting()
        y, mask = dropout(x, self.p, rng=self.rng, training=training)
        if training:
            self._pending.append(mask)
        return y

    @overload
    def backward(self, dy: ArrayT, *, mask: Mask | None = None) -> ArrayT: ...
    @overload
    def backward(self, dy: Foreign, *, mask: Mask | None = None) -> Floats: ...
    def backward(self, dy: ArrayLike, *, mask: Mask | None = None) -> Any:
        """Undo the last call that has not been undone.

        Parameters
        ----------
        dy : array_like
            Gradient of the loss with respect to that call's output, of the same shape.
        mask : Mask, optional
            Undo the call that had this mask instead.

        Returns
        -------
        ndarray
            Gradient with respect to that call's ``x``.

        Raises
        ------
        RuntimeError
            If no training call is left to undo, or ``mask`` is not of one.
        ValueError
            If ``dy`` has another shape than the call; it can then still be undone.

        Examples
        --------
        >>> import numpy as np
        >>> from fastdrop.layers import Dropout
        >>> layer = Dropout(0.5, rng=0)
        >>> first, mask = layer(np.ones(4)), layer.mask
        >>> second = layer(np.ones(4))
        >>> bool((layer.backward(np.ones(4), mask=mask) == first).all())
        True
        >>> bool((layer.backward(np.ones(4)) == second).all())
        True
        """
        if not self._pending:
            raise RuntimeError("backward: no call of this layer with training=True is left to undo")
        if mask is None:
            mask = self._pending[-1]
        elif mask not in self._pending:
            raise RuntimeError(f"backward: {mask!r} is not of a call of this layer that is left to undo")
        if (shape := shape_of(dy, "dy")) != mask.shape:
            raise ValueError(f"dy must have the shape of the call it undoes, {mask.shape}, got {shape}")
        dx = dropout_backward(dy, mask)
        if mask is self._pending[-1]:
            self._pending.pop()
        else:
            self._pending.remove(mask)
        return dx

    def __repr__(self) -> str:
        return f"fastdrop.layers.Dropout(p={self.p}, rng={self.rng})"


class MultiSampleDropout(_Layer):
    """A linear head behind multi-sample dropout: every training call goes through it with ``samples`` masks.

    Parameters
    ----------
    W : ndarray of float32 or float64, shape (F, C)
        The head's weights. Kept, not copied: an optimizer that updates them in place updates the layer.
    b : ndarray of shape (C,), or None
    p : float or array_like, default 0.5
        Probability to drop, or one for each sample.
    samples : int, default 8
    average : {"losses", "logits"}, default "losses"
        What a training call returns, see Notes.
    rng : None, int, Rng, numpy SeedSequence, Generator or BitGenerator, keyword only
        As in `Dropout`.

    Attributes
    ----------
    dW, db : ndarray
        Set by `backward`.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of these.

    See Also
    --------
    fastdrop.multi_sample_linear

    Notes
    -----
    ``average="losses"``, as the paper has it: a training call returns logits of shape (samples, ..., C); take the loss
    of each against the same labels and average, so that the gradients given to `backward` are an S-th each.
    ``average="logits"``: it returns their mean, (..., C), for one matrix product. The two train differently.

    Calls are remembered and undone as `Dropout`'s are: last in, first out. Each remembers its ``x``.

    References
    ----------
    Inoue, "Multi-sample dropout for accelerated training and better generalization", arXiv:1905.09788 (2019).

    Examples
    --------
    >>> import numpy as np
    >>> from fastdrop.layers import MultiSampleDropout
    >>> head = MultiSampleDropout(np.full((6, 3), 0.5), np.zeros(3), p=0.5, samples=4, rng=0)
    >>> x = np.ones((2, 6))
    >>> logits = head(x)
    >>> logits.shape, head(x, training=False).shape
    ((4, 2, 3), (2, 3))
    >>> head.backward(np.ones_like(logits) / 4).shape, head.dW.shape, head.db
    ((2, 6), (6, 3), array([2., 2., 2.]))
    """

    W: NDArray[Any]
    b: NDArray[Any] | None
    dW: NDArray[Any]
    db: NDArray[Any]
    average: Average

    @explained
    def __init__(
        self, W: NDArray[Any], b: NDArray[Any] | None, p: Probability = 0.5, samples: SupportsIndex = 8, *,
        average: Average = "losses", rng: RngLike = None,
    ) -> None:  # fmt: skip
        if average not in ("losses", "logits"):
            raise ValueError(f"average must be 'losses' or 'logits', got {average!r}")
        super().__init__(p, rng)
        self.W, self.b, self.average = W, b, average
        self.samples: int = check_samples(samples)

    def __call__(self, x: NDArray[FloatT], training: Training | Sample = True) -> NDArray[FloatT]:
        """Return the logits of ``x``.

        Parameters
        ----------
        x : ndarray of W's dtype, shape (..., F)
        training : bool or fastdrop.inference.Sample, default True
            If False, the head runs once, without dropout. A `Sample` of `fastdrop.mc_dropout`: once, with one mask; its
            p is that of sample ``number % samples`` where each has its own.

        Returns
        -------
        ndarray
            (samples, ..., C) in training with ``average="losses"``, else (..., C).

        Raises
        ------
        ValueError
            As `Dropout` raises it.
        """
        if isinstance(training, Sample):
            x = training.dropout(x, self.p if type(self.p) is float else self.p[training.number % self.samples])
        else:
            check_flag(training, "training")
            if training:
                _refuse_while_predicting()
                logits, mask = multi_sample_linear(
                    x, self.W, self.b, self.p, self.samples, rng=self.rng, average=self.average
                )
                self._pending.append((x, mask))
                return logits
        logits = x @ self.W
        return logits if self.b is None else logits + self.b

    def backward(self, dlogits: NDArray[FloatT]) -> NDArray[FloatT]:
        """Undo the last training call that has not been undone: set `dW` and `db`, return dx.

        Parameters
        ----------
        dlogits : ndarray
            Gradient with respect to that call's logits, of the same shape.

        Returns
        -------
        ndarray
            Gradient with respect to that call's ``x``.

        Raises
        ------
        RuntimeError
            If no training call is left to undo.
        ValueError
            If ``dlogits`` has another shape than the call's logits; it can then still be undone.
        """
        if not self._pending:
            raise RuntimeError("backward: no call of this layer with training=True is left to undo")
        x, mask = self._pending[-1]
        axes = len(shape_of(x, "x")) + (self.average == "losses")
        if len(shape := shape_of(dlogits, "dlogits")) != axes:
            raise ValueError(f"dlogits must have {axes} axes, as the call's logits, got shape {shape}")
        dx, self.dW, self.db = multi_sample_linear_backward(dlogits, x, self.W, mask)
        self._pending.pop()
        return dx

    def __repr__(self) -> str:
        return f"fastdrop.layers.MultiSampleDropout(p={self.p}, samples={self.samples}, average={self.average!r})"
