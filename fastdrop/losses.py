"""Losses on logits with all their gradients from one pass: KL divergences, cross entropy, R-Drop.

Frameworks compose these from softmax, log-softmax and kl_div, with six or more temporaries of the logits' size and NaN
where a class is masked with -inf.  Here a row goes once from memory to cache, and its gradient once back; nothing else
of the logits' size is made.  Classes lie on one axis, everything else is rows.

With p = softmax(a / T), q = softmax(b / T) and d = (a - b) / T, the symmetric divergence J = sum (p - q) d needs no
logarithm, since the normalisers cancel, and dJ/da = (p (d - E_p[d]) + p - q) / T. Differences of what is nearly equal
are made from expm1(d), never by subtraction.
"""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, overload

import numpy as np

from .arguments import check_axis, check_number, check_shape
from .arrays import as_array, as_native, axis_last, check_out, output_like, sum_dtype
from .backends import in_use
from .dispatch import like, operation
from .functional import draw_mask, requested_mask
from .masks import apply_into
from .memory import new_array, new_like

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .masks import Mask
    from .typing import (
        AnyReduction,
        ArrayLike,
        Bools,
        Floats,
        FloatT,
        Foreign,
        LabelOptions,
        Labels,
        LossOptions,
        OtherT,
        OutT,
        Probability,
        Reduction,
        RngLike,
        Tensor,
        TensorT,
    )

__all__ = ["cross_entropy", "js_div", "kl_div", "r_drop", "r_drop_pair", "symmetric_kl"]

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from typing import NamedTuple
else:
    import typing

    class _NamedTuple:
        """Python 3.10's stands beside no other base: it gets to see none."""

        def __mro_entries__(self, bases):
            return typing.NamedTuple.__mro_entries__((typing.NamedTuple,))

    NamedTuple = _NamedTuple()

LossT = TypeVar("LossT")
GradientT = TypeVar("GradientT")
REDUCTIONS = ("none", "sum", "mean", "batchmean")


@overload
def kl_div(
    a: NDArray[FloatT], b: ArrayLike, *, reduction: Reduction = "mean", out: None = None, **options: Unpack[LossOptions]
) -> tuple[float, NDArray[FloatT], NDArray[FloatT]]: ...
@overload
def kl_div(
    a: NDArray[FloatT], b: ArrayLike, *, reduction: Literal["none"], out: None = None, **options: Unpack[LossOptions]
) -> tuple[Floats, NDArray[FloatT], NDArray[FloatT]]: ...
@overload
def kl_div(
    a: TensorT, b: ArrayLike, *, reduction: AnyReduction = "mean", out: None = None, **options: Unpack[LossOptions]
) -> tuple[Any, TensorT, TensorT]: ...
@overload
def kl_div(
    a: Foreign, b: ArrayLike, *, reduction: AnyReduction = "mean", out: None = None, **options: Unpack[LossOptions]
) -> tuple[Any, Floats, Floats]: ...
@overload
def kl_div(
    a: ArrayLike,
    b: ArrayLike,
    *,
    reduction: AnyReduction = "mean",
    out: tuple[OutT, OtherT],
    **options: Unpack[LossOptions],
) -> tuple[Any, OutT, OtherT]: ...
@operation("a", "b", "pad_mask", out=(("a",), ("b",)), copied=("pad_mask",))
def kl_div(
    a: ArrayLike, b: ArrayLike, *, pad_mask: Bools | Tensor | None = None, reduction: AnyReduction = "mean",
    temperature: float = 1.0, axis: SupportsIndex = -1, out: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Kullback-Leibler divergence KL(softmax(a) || softmax(b)) and its gradients.

    Parameters
    ----------
    a, b : array_like of floats
        Logits, of one shape and dtype. Half types are computed with in float32.
    pad_mask : array_like of bool, optional
        True = this row is ignored: no loss, gradient 0. Broadcasts to a's shape without the axis of the classes; a last
        axis of 1 may follow.
    reduction : {"mean", "sum", "none", "batchmean"}
        Of the rows' losses: mean over the rows not ignored, sum, the array of them, or their sum / ``a.shape[0]``.
    temperature : float, default 1.0
        Divides the logits. The loss is not multiplied by its square, as some distillation recipes have it.
    axis : int, default -1
        The axis of the classes: -1 for (..., C), 1 for (N, C, H, W). All others are rows. The last is the fast one.
    out : pair of arrays, optional
        Where to write the gradients; may be ``(a, b)``.

    Returns
    -------
    loss : float, or array of the rows' shape (a's without ``axis``) where ``reduction="none"``
    da, db : ndarray
        Gradients of the loss (of its sum, where it is an array) with respect to the logits, in their dtype.

    Raises
    ------
    TypeError
        If a dtype is none of the four, or differs between the arguments.
    ValueError
        If shapes do not fit, an option is out of its range, or ``out`` cannot be written to.

    Notes
    -----
    A class with a logit of -inf on both sides takes no part. Where only the second side excludes a class the divergence
    is infinite: the row's loss is inf, and its gradient, which has no finite value, is set to 0. A row with nothing but
    -inf on both sides has loss 0. Float16 gradients of a mean over many rows may vanish: use float32 logits there.

    A NaN or +inf in a row makes its loss and gradients NaN. All finite logits are numbers: a row of nothing but the
    dtype's lowest is uniform.

    A row's loss is right to 5e-6 of it, its gradients to 5e-6 of the largest among them (twice that with the scalar
    kernels; 1e-7 on the Numba and reference backends; 1e-9 in float64), before they are rounded to 16 bits; also where
    p and q nearly agree, are offset, or one class dominates. Where a cross entropy pulls the other way, its gradients
    are right to that share of the terms that are subtracted. ``python -m fastdrop.bench.accuracy`` shows it.

    Logits that are not in C order (rows apart are fine) are copied into the arrays of their gradients first.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> a, b = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> loss, da, db = fd.kl_div(a, b)
    >>> round(loss, 6)
    0.143841
    >>> db
    array([[-0.25,  0.25]])
    """
    call = LossArguments((a, b), out, temperature, pad_mask, reduction, axis)
    call.run("kl")
    return call.reduce(call.loss), *call.out


@like(kl_div)
@operation("a", "b", "pad_mask", out=(("a",), ("b",)), copied=("pad_mask",))
def symmetric_kl(
    a: ArrayLike, b: ArrayLike, *, pad_mask: Bools | Tensor | None = None, reduction: AnyReduction = "mean",
    temperature: float = 1.0, axis: SupportsIndex = -1, out: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Mean of the two Kullback-Leibler divergences of softmax(a) and softmax(b), and its gradients.

    Parameters
    ----------
    a, b, pad_mask, reduction, temperature, axis, out
        As in `kl_div`.

    Returns
    -------
    loss : float, or array of the rows' shape (a's without ``axis``) where ``reduction="none"``
        (KL(p || q) + KL(q || p)) / 2.
    da, db : ndarray

    Raises
    ------
    TypeError, ValueError
        As `kl_div`.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> a, b = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> loss, da, db = fd.symmetric_kl(a, b)
    >>> round(loss, 6)
    0.137327
    """
    call = LossArguments((a, b), out, temperature, pad_mask, reduction, axis)
    call.run("symmetric_kl")
    return call.reduce(call.loss), *call.out


@like(kl_div)
@operation("a", "b", "pad_mask", out=(("a",), ("b",)), copied=("pad_mask",))
def js_div(
    a: ArrayLike, b: ArrayLike, *, pad_mask: Bools | Tensor | None = None, reduction: AnyReduction = "mean",
    temperature: float = 1.0, axis: SupportsIndex = -1, out: Any = None,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Jensen-Shannon divergence of softmax(a) and softmax(b), and its gradients.

    Parameters
    ----------
    a, b, pad_mask, reduction, temperature, axis, out
        As in `kl_div`.

    Returns
    -------
    loss : float, or array of the rows' shape (a's without ``axis``) where ``reduction="none"``
        (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2; at most log(2), whatever is -inf.
    da, db : ndarray

    Raises
    ------
    TypeError, ValueError
        As `kl_div`.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> loss, da, db = fd.js_div(np.array([[0.0, -np.inf]]), np.array([[-np.inf, 0.0]]))
    >>> round(loss, 6)
    0.693147
    """
    call = LossArguments((a, b), out, temperature, pad_mask, reduction, axis)
    call.run("js")
    return call.reduce(call.loss), *call.out


@overload
def cross_entropy(
    a: NDArray[FloatT],
    labels: Labels,
    *,
    reduction: Reduction = "mean",
    out: None = None,
    **options: Unpack[LabelOptions],
) -> tuple[float, NDArray[FloatT]]: ...
@overload
def cross_entropy(
    a: NDArray[FloatT], labels: Labels, *, reduction: Literal["none"], out: None = None, **options: Unpack[LabelOptions]
) -> tuple[Floats, NDArray[FloatT]]: ...
@overload
def cross_entropy(
    a: TensorT, labels: Labels, *, reduction: AnyReduction = "mean", out: None = None, **options: Unpack[LabelOptions]
) -> tuple[Any, TensorT]: ...
@overload
def cross_entropy(
    a: Foreign, labels: Labels, *, reduction: AnyReduction = "mean", out: None = None, **options: Unpack[LabelOptions]
) -> tuple[Any, Floats]: ...
@overload
def cross_entropy(
    a: ArrayLike, labels: Labels, *, reduction: AnyReduction = "mean", out: OutT, **options: Unpack[LabelOptions]
) -> tuple[Any, OutT]: ...
@operation("a", "labels", "pad_mask", out=("a",), copied=("labels", "pad_mask"))
def cross_entropy(
    a: ArrayLike, labels: Labels, *, pad_mask: Bools | Tensor | None = None, reduction: AnyReduction = "mean",
    label_smoothing: float = 0.0, ignore_index: SupportsIndex = -100, temperature: float = 1.0,
    axis: SupportsIndex = -1, out: Any = None,
) -> tuple[Any, Any]:  # fmt: skip
    """Cross entropy of softmax(a) with labels, and its gradient.

    Parameters
    ----------
    a : array_like of floats
        Logits, classes on ``axis``.
    labels : array_like
        Integers of a's shape without ``axis``: each row's class. Or floats of a's shape: each row's probabilities (not
        negative; best in a's dtype, others are copied).
    pad_mask, reduction, temperature, axis
        As in `kl_div`.
    label_smoothing : float, default 0.0
        In [0, 1]: this share of the label is spread over all classes evenly.
    ignore_index : int, default -100
        Rows with this label are ignored, as by ``pad_mask``. Not looked at where labels are probabilities.
    out : array, optional
        Where to write the gradient; may be ``a``.

    Returns
    -------
    loss : float, or array of the rows' shape (a's without ``axis``) where ``reduction="none"``
    da : ndarray

    Raises
    ------
    TypeError, ValueError
        As `kl_div`; ValueError too if a label is out of range.

    Notes
    -----
    The loss is inf where the label's logit is -inf, or any is and ``label_smoothing`` is not 0; the gradient is finite.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> loss, da = fd.cross_entropy(np.zeros((2, 4)), [0, 3])
    >>> round(loss, 6)
    1.386294
    >>> da[0]
    array([-0.375,  0.125,  0.125,  0.125])
    """
    call = LossArguments((a,), None if out is None else (out,), temperature, pad_mask, reduction, axis)
    call.take_labels(labels, label_smoothing, ignore_index)
    call.run("cross_entropy")
    return call.reduce(call.loss), *call.out


class RDrop(NamedTuple, Generic[LossT, GradientT]):
    """Result of `r_drop`: ``loss = ce + alpha * kl`` and the gradients of ``loss``."""

    loss: LossT
    ce: LossT
    kl: LossT
    da: GradientT
    db: GradientT


@overload
def r_drop(
    a: NDArray[FloatT], b: ArrayLike, labels: Labels, *, alpha: float, reduction: Reduction = "mean",
    out: None = None, **options: Unpack[LabelOptions],
) -> RDrop[float, NDArray[FloatT]]: ...  # fmt: skip
@overload
def r_drop(
    a: NDArray[FloatT], b: ArrayLike, labels: Labels, *, alpha: float, reduction: Literal["none"],
    out: None = None, **options: Unpack[LabelOptions],
) -> RDrop[Floats, NDArray[FloatT]]: ...  # fmt: skip
@overload
def r_drop(
    a: TensorT, b: ArrayLike, labels: Labels, *, alpha: float, reduction: AnyReduction = "mean",
    out: None = None, **options: Unpack[LabelOptions],
) -> RDrop[Any, TensorT]: ...  # fmt: skip
@overload
def r_drop(
    a: Foreign, b: ArrayLike, labels: Labels, *, alpha: float, reduction: AnyReduction = "mean",
    out: None = None, **options: Unpack[LabelOptions],
) -> RDrop[Any, Floats]: ...  # fmt: skip
@overload
def r_drop(
    a: ArrayLike, b: ArrayLike, labels: Labels, *, alpha: float, reduction: AnyReduction = "mean",
    out: tuple[OutT, OtherT], **options: Unpack[LabelOptions],
) -> RDrop[Any, OutT | OtherT]: ...  # fmt: skip
@operation("a", "b", "labels", "pad_mask", out=(("a",), ("b",)), copied=("labels", "pad_mask"))
def r_drop(
    a: ArrayLike, b: ArrayLike, labels: Labels, *, alpha: float, pad_mask: Bools | Tensor | None = None,
    reduction: AnyReduction = "mean", label_smoothing: float = 0.0, ignore_index: SupportsIndex = -100,
    temperature: float = 1.0, axis: SupportsIndex = -1, out: Any = None,
) -> RDrop[Any, Any]:  # fmt: skip
    """R-Drop: cross entropies of two passes with different dropout, and how far the two are apart; with gradients.

    Parameters
    ----------
    a, b : array_like of floats
        Logits of the two passes.
    labels, label_smoothing, ignore_index
        As in `cross_entropy`.
    alpha : float
        Weight of the divergence, at least 0.
    pad_mask, reduction, axis, out
        As in `kl_div`.
    temperature : float, default 1.0
        Divides the logits, in both terms.

    Returns
    -------
    RDrop
        A named tuple: ``loss``, its parts ``ce`` and ``kl``, and the gradients ``da`` and ``db``, where
        loss = ce + alpha * kl, ce = (CE(a) + CE(b)) / 2, kl = (KL(p || q) + KL(q || p)) / 2.

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy`; ValueError too if ``alpha`` is negative.

    Notes
    -----
    The code that came with the paper weighs the two terms in different ways. For N rows and the ``alpha`` given there:

    ================================================  ===========================================================
    there                                             here
    ================================================  ===========================================================
    README: mean of ce, plus alpha * sum of kl        ``reduction="mean", alpha=alpha * N``
    the same with kl_div's "mean", over V classes     ``reduction="mean", alpha=alpha / V``
    translation, summaries: sum of CE(a) + CE(b) +    twice ``reduction="mean", alpha=alpha / 2`` (N tokens that
    alpha * kl, over the number of tokens             are not padding); for sentences "batchmean"
    ================================================  ===========================================================

    References
    ----------
    Liang et al., "R-Drop: regularized dropout for neural networks", NeurIPS 2021, arXiv 2106.14448.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> a, b = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    >>> result = fd.r_drop(a, b, [1], alpha=1.0)
    >>> round(result.ce, 6), round(result.kl, 6), round(result.loss, 6)
    (0.490415, 0.137327, 0.627741)
    """
    alpha = check_number(alpha, "alpha")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    call = LossArguments((a, b), out, temperature, pad_mask, reduction, axis)
    call.take_labels(labels, label_smoothing, ignore_index)
    call.run("r_drop", alpha)
    total = call.loss + alpha * call.kl if alpha else call.loss  # 0 * inf is no loss
    return RDrop(call.reduce(total), call.reduce(call.loss), call.reduce(call.kl), *call.out)


@overload
def r_drop_pair(
    x: NDArray[FloatT], p: Probability, *, rng: RngLike = None, out: None = None
) -> tuple[NDArray[FloatT], Mask]: ...
@overload
def r_drop_pair(x: TensorT, p: Probability, *, rng: RngLike = None, out: None = None) -> tuple[TensorT, Mask]: ...
@overload
def r_drop_pair(x: Foreign, p: Probability, *, rng: RngLike = None, out: None = None) -> tuple[Floats, Mask]: ...
@overload
def r_drop_pair(x: ArrayLike, p: Probability, *, rng: RngLike = None, out: OutT) -> tuple[OutT, Mask]: ...
@operation("x", out=())
def r_drop_pair(x: ArrayLike, p: Probability, *, rng: RngLike = None, out: Any = None) -> tuple[Any, Mask]:
    """Two dropped versions of ``x`` from one read of it, for R-Drop's two passes.

    Parameters
    ----------
    x : array_like of floats
    p, rng
        As in `fastdrop.dropout`.
    out : array, optional
        Where to write, of shape ``(2, *x.shape)``.

    Returns
    -------
    y : ndarray of shape (2, *x.shape)
        ``y.reshape(-1, *x.shape[1:])`` is the doubled batch.
    mask : Mask of that shape
        ``mask.backward(dy, x_shape=x.shape)`` is the gradient.

    Raises
    ------
    TypeError, ValueError
        As `fastdrop.dropout`.

    Examples
    --------
    >>> import numpy as np, fastdrop as fd
    >>> y, mask = fd.r_drop_pair(np.ones((1, 4)), 0.5, rng=0)
    >>> y
    array([[[0., 0., 2., 2.]],
    <BLANKLINE>
           [[0., 0., 0., 0.]]])
    """
    x = np.broadcast_to(as_array(x, "x"), check_shape((2, *x.shape)))
    shape, p, _ = requested_mask(x.shape, p, None, True)
    y = new_array(x.shape, x.dtype.newbyteorder("=")) if out is None else output_like(x, out)
    mask = draw_mask(rng, shape, p)
    if y.size:
        apply_into(y, x, mask)
    return y, mask


class LossArguments:
    """The arguments of one loss, checked, as the two-dimensional arrays that a backend takes."""

    def __init__(self, logits, out, temperature, pad_mask, reduction, axis):
        first = logits[0]
        as_array(first, "a")
        for x in logits[1:]:
            if x.dtype != first.dtype:
                as_array(x, "b")
            if x.shape != first.shape:
                raise ValueError(f"b must have a's shape {first.shape}, got {x.shape}")
            if x.dtype != first.dtype and x.dtype.newbyteorder("=") != first.dtype.newbyteorder("="):
                raise TypeError(f"b must have a's dtype {first.dtype}, got {x.dtype}")
        self.axis = check_axis(axis, first.shape, "a")
        self.last = self.axis == first.ndim - 1
        if first.shape[self.axis] == 0:
            raise ValueError(f"a must have at least one class on axis {self.axis}, got shape {first.shape}")
        self.logits = logits if self.last else [np.moveaxis(x, self.axis, -1) for x in logits]
        *lead, self.n = self.logits[0].shape
        self.lead, self.rows = tuple(lead), math.prod(lead)
        self.temperature = temperature if type(temperature) is float else check_number(temperature, "temperature")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be above 0 and finite, got {self.temperature}")
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        self.reduction = reduction
        self.skip = None if pad_mask is None else self._rows_of(pad_mask)
        self.label = self.label_probabilities = self.kl = None
        self.smoothing = 0.0
        names = ["out"] if len(logits) == 1 else ["out[0]", "out[1]"]
        if out is None:
            self.out = tuple(map(new_like, logits))
        else:
            self.out = tuple(check_out(o, name, x.shape, x.dtype) for o, x, name in zip(out, logits, names))

    def _rows_of(self, pad_mask):
        if pad_mask.dtype != np.bool_:
            raise TypeError(f"pad_mask must hold bools, True = ignored, got dtype {pad_mask.dtype}")
        if pad_mask.ndim == len(self.lead) + 1 and pad_mask.shape[-1] == 1:
            pad_mask = pad_mask[..., 0]
        try:
            return np.broadcast_to(pad_mask, self.lead).view(np.uint8).ravel() != 0  # a copy, of bytes 0 and 1
        except ValueError:
            raise ValueError(f"pad_mask must broadcast to the rows' shape {self.lead}, got {pad_mask.shape}") from None

    def take_labels(self, labels, smoothing, ignore_index):
        try:
            ignore_index = operator.index(ignore_index)
        except TypeError:
            raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None
        self.smoothing = check_number(smoothing, "label_smoothing")
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"label_smoothing must be in [0, 1], got {self.smoothing}")
        dtype = self.logits[0].dtype.newbyteorder("=")
        if labels.dtype.kind == "f" or labels.dtype.newbyteorder("=") == dtype:
            labels = axis_last(labels, self.axis) if labels.ndim == len(self.lead) + 1 else labels
            shape = *self.lead, self.n
            if labels.shape != shape:
                raise ValueError(f"labels of probabilities must have a's shape {shape}, got {labels.shape}")
            self.label_probabilities = np.ascontiguousarray(as_native(labels), dtype).reshape(self.rows, self.n)
            if labels.size and not labels.min() >= 0:
                self._refuse(~(self.label_probabilities >= 0).all(axis=1), labels.min(), "probabilities of at least 0")
            return
        if labels.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, or probabilities of a's shape, got dtype {labels.dtype}")
        if labels.shape != self.lead:
            raise ValueError(
                f"labels must have the rows' shape {self.lead}, a's without axis {self.axis}, got {labels.shape}"
            )
        if labels.dtype.kind == "u" and labels.dtype.itemsize == 8:
            labels = np.minimum(labels, np.uint64(np.iinfo(np.int64).max))  # as signed numbers they would be negative
        # A copy: kernels take labels for indices, so nobody may change them once they are checked.
        self.label = label = np.array(labels, np.int64, order="C").reshape(self.rows)
        if not label.size or (label.min() >= 0 and label.max() < self.n and not 0 <= ignore_index < self.n):
            return
        ignored = label == ignore_index
        if ignored.any():
            self.skip = ignored if self.skip is None else ignored | self.skip
        wrong = (label < 0) | (label >= self.n)
        self._refuse(wrong, label[np.argmax(wrong)], f"in [0, {self.n}) or ignore_index={ignore_index}")

    def _refuse(self, wrong, value, rule):
        """Raise ValueError if any row is ``wrong`` that is not skipped."""
        if (wrong if self.skip is None else wrong & ~self.skip).any():
            raise ValueError(f"labels must be {rule}, got {value}")

    def _weight(self):
        if self.reduction == "mean":
            return 1 / max(1, self.rows if self.skip is None else self.rows - np.count_nonzero(self.skip))
        if self.reduction == "batchmean":
            return 1 / max(1, self.lead[0] if self.lead else 1)
        return 1.0

    def run(self, op, alpha=0.0):
        self.loss = np.zeros(self.rows)
        if op == "r_drop":
            self.kl = np.zeros(self.rows)
        self.weight = self._weight()
        if not self.rows:
            return
        sources, gradients, copies = [], [], []
        for x, out in zip(self.logits, self.out):
            if not self.last:
                out = np.moveaxis(out, self.axis, -1)
            gradient = _as_rows(out)
            if gradient is None:
                gradient = new_array((self.rows, self.n), out.dtype.newbyteorder("="))
                copies.append((out, gradient))
            source = _as_rows(x)
            if source is None:
                gradient.reshape(x.shape)[...] = x
                source = gradient
            sources.append(source)
            gradients.append(gradient)
        a, b = sources if len(sources) == 2 else (sources[0], None)
        da, db = gradients if len(gradients) == 2 else (gradients[0], None)
        in_use.backend.row_losses(
            op, a, b, da, db, self.label, self.label_probabilities, self.skip, self.loss, self.kl,
            self.temperature, self.weight, alpha, self.smoothing,
        )  # fmt: skip
        for out, gradient in copies:
            out[...] = gradient.reshape(out.shape)

    def reduce(self, rows):
        if self.reduction == "none":
            return rows.astype(sum_dtype(self.logits[0].dtype)).reshape(self.lead)
        return float(np.add.reduce(rows)) * self.weight


def _as_rows(x):
    """Return ``x`` as a two-dimensional view with consecutive classes, None if a copy would be needed."""
    if not (x.flags.aligned and x.dtype.isnative):
        return None
    if x.flags.c_contiguous:
        return x.reshape(-1, x.shape[-1])
    return x if x.ndim == 2 and x.strides[1] == x.itemsize and x.strides[0] > 0 else None
