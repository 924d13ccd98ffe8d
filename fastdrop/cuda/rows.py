"""Attention weights and R-Drop's losses on device arrays: checked here, launched by the Numba CUDA backend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..arguments import check_number
from ..borders.cuda import array_of, broadcast, contiguous, deliver, kernels_on, like_of, overlap, result_of, stream_of
from ..functional import check_mask
from ..losses import REDUCTIONS, RDrop
from .elementwise import mask_for, whole

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from ..masks import Mask
    from ..typing import AnyReduction, Probability, RngLike, TensorT, Training


def softmax_dropout(
    scores: TensorT, p: Probability = 0.5, *, axis: SupportsIndex = -1, attention_mask: TensorT | None = None,
    rng: RngLike = None, mask: Mask | None = None, training: Training = True, out: TensorT | None = None,
    stream: Any = None,
) -> tuple[TensorT, Mask, TensorT]:  # fmt: skip
    """`fastdrop.softmax_dropout` for contiguous device arrays, along the last axis.

    Parameters
    ----------
    scores : contiguous device array
    axis : int
        The last one: no other is here.
    attention_mask : device array of bool, or of float32 (float64 for float64), optional
        True = may be looked at; numbers are added to the scores. Broadcasts to scores' shape.

    Returns
    -------
    y : device array of scores' library, or ``out``
    mask : Mask
    saved : device array of shape [*rows, 2]
        What the backward needs beside ``scores``, in place of `log_sum` on the CPU: the largest score of each row and
        1 / the sum of its exponentials, two float32 (float64 for float64) where `log_sum` is one float64.
    """
    stream = stream_of(stream, scores)
    a = array_of(scores, "scores", stream)
    _check_axis(axis, a)
    shape, _, take, _ = mask_for(a.shape, p, rng, mask, training)
    attention = _attention(attention_mask, stream, a)
    y = result_of(out, "out", stream, a, a.shape, (a,) if attention is None else (a, attention))
    contiguous((a, "scores"), (y, "out"))
    mask = _own(shape, take, a.shape)
    with kernels_on(stream, a, attention, y) as kernels:
        saved = result_of(None, "saved", stream, a, (*a.shape[:-1], 2), dtype=a.computed_in)
        if a.size:
            kernels.softmax_dropout(y, saved, a, attention, mask, stream)
    return deliver(y, stream), mask, deliver(saved, stream)


def softmax_dropout_backward(
    dy: TensorT, scores: TensorT, log_sum: TensorT, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: TensorT | None = None, out: TensorT | None = None, stream: Any = None,
) -> TensorT:  # fmt: skip
    """Gradient of `softmax_dropout` with respect to scores; ``out`` may be ``dy``.

    ``log_sum`` is what `softmax_dropout` returned last.
    """
    check_mask(mask)
    stream = stream_of(stream, dy)
    a = array_of(dy, "dy", stream)
    _check_axis(axis, a)
    b = like_of(scores, "scores", stream, a)
    mask = _own(mask.shape, lambda: mask, a.shape)
    attention = _attention(attention_mask, stream, a)
    inputs = (a, b) if attention is None else (a, b, attention)
    dscores = result_of(out, "out", stream, a, a.shape, inputs)
    contiguous((a, "dy"), (b, "scores"), (dscores, "out"))
    with kernels_on(stream, *inputs, dscores) as kernels:
        two = array_of(log_sum, "log_sum", stream, (a.computed_in,), a)
        if two.shape != (*a.shape[:-1], 2):
            raise ValueError(f"log_sum must have shape {(*a.shape[:-1], 2)} on the device, got {two.shape}")
        contiguous((two, "log_sum"))
        if a.size:
            kernels.softmax_dropout_backward(dscores, a, two, b, attention, mask, stream)
    return deliver(dscores, stream)


def _check_axis(axis, a):
    if not a.shape or axis not in (-1, len(a.shape) - 1):
        raise ValueError(f"axis must be the last one on the device, got {axis} for shape {a.shape}")


def _own(shape, take, wanted):
    """The mask, which must have the shape that is wanted, be no part of another, and have one p in a row."""
    if shape != wanted:
        raise ValueError(f"mask must have the scores' shape {wanted}, got {shape}")
    mask = whole(take())
    if type(mask.p) is not float and mask.p.ndim == len(shape) and shape[-1] != 1:
        raise ValueError(f"an array p must not vary along axis {len(shape) - 1}, got shape {mask.p.shape}")
    return mask


def _attention(attention_mask, stream, scores):
    if attention_mask is None:
        return None
    numbers = "float64" if scores.dtype == "float64" else "float32"
    attention = array_of(attention_mask, "attention_mask", stream, ("bool", numbers), scores)
    if any(step < 0 for step in attention.steps):
        raise ValueError(f"attention_mask must have no negative steps, got {attention.steps}")
    return broadcast(attention, scores.shape, "attention_mask")


# -- losses ------------------------------------------------------------------------------------------------------------


def symmetric_kl(
    a: TensorT, b: TensorT, *, pad_mask: TensorT | None = None, reduction: AnyReduction = "mean",
    temperature: float = 1.0, axis: SupportsIndex = -1, out: tuple[TensorT, TensorT] | None = None, stream: Any = None,
) -> tuple[TensorT, TensorT, TensorT]:  # fmt: skip
    """`fastdrop.symmetric_kl` for contiguous device arrays.

    Parameters
    ----------
    a, b : contiguous device arrays of one shape and dtype
        Logits; classes along the last axis.
    pad_mask : device array of bool, optional
        True = row ignored; of shape a.shape[:-1].
    reduction, temperature
        As there.
    axis : int
        The last one: no other is here.
    out : pair of device arrays, optional
        Where to write the gradients; may be ``(a, b)``.

    Returns
    -------
    loss, da, db : device arrays
        The loss too, since a Python number would have to wait for the device: without axes, or with those of the rows
        where ``reduction`` is "none".
    """
    loss, _, _, da, db = _pair(a, b, None, pad_mask, reduction, out, stream, 1.0, temperature, 0.0, 0, axis)
    return loss, da, db


def r_drop(
    a: TensorT, b: TensorT, labels: TensorT, *, alpha: float, pad_mask: TensorT | None = None,
    reduction: AnyReduction = "mean", label_smoothing: float = 0.0, ignore_index: SupportsIndex = -100,
    temperature: float = 1.0, axis: SupportsIndex = -1, out: tuple[TensorT, TensorT] | None = None, stream: Any = None,
) -> RDrop[TensorT, TensorT]:  # fmt: skip
    """`fastdrop.r_drop` for contiguous device arrays.

    Parameters
    ----------
    a, b, pad_mask, reduction, temperature, axis, out : as in `symmetric_kl`
    labels : device array of int32 or int64, of shape a.shape[:-1]
        A label that is no class gives a loss of NaN: nothing waits for the device to check.
    alpha, label_smoothing, ignore_index
        As there.

    Returns
    -------
    RDrop
        loss = ce + alpha * kl, the two parts, and the gradients of the loss: all of them device arrays.
    """
    alpha, smoothing = check_number(alpha, "alpha"), check_number(label_smoothing, "label_smoothing")
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"label_smoothing must be in [0, 1], got {smoothing}")
    return RDrop(
        *_pair(a, b, labels, pad_mask, reduction, out, stream, alpha, temperature, smoothing, ignore_index, axis)
    )


def _pair(a, b, labels, pad_mask, reduction, out, stream, alpha, temperature, smoothing, ignore_index, axis):
    """Loss, ce, kl, da and db."""
    temperature = check_number(temperature, "temperature")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    stream = stream_of(stream, a)
    one = array_of(a, "a", stream)
    two = like_of(b, "b", stream, one)
    if not one.shape or not one.shape[-1]:
        raise ValueError(f"a must have at least one class on its last axis, got shape {one.shape}")
    _check_axis(axis, one)
    rows = one.shape[:-1]
    marks = []
    for mark, name, dtypes in ((labels, "labels", ("int32", "int64")), (pad_mask, "pad_mask", ("bool",))):
        mark = None if mark is None else array_of(mark, name, stream, dtypes, one)
        if mark is not None and mark.shape != rows:
            raise ValueError(f"{name} must have shape {rows} on the device, got {mark.shape}")
        marks.append(mark)
    contiguous((one, "a"), (two, "b"), (marks[0], "labels"), (marks[1], "pad_mask"))
    da, db = _gradients(out, one, two, marks, stream)
    with kernels_on(stream, one, two, *marks, da, db) as kernels:
        real = one.computed_in
        each = [result_of(None, name, stream, one, rows, dtype=real) for name in ("loss", "ce", "kl")]
        *totals, count = (result_of(None, "loss", stream, one, (), dtype=real) for _ in range(4))
        kernels.pair_loss(
            None if reduction == "none" else totals, *each, count, da, db, one, two, *marks, stream, alpha=alpha,
            reduction=reduction, ignore_index=ignore_index, smoothing=smoothing, sharpness=1.0 / temperature,
        )  # fmt: skip
    losses = each if reduction == "none" else totals
    return [deliver(array, stream) for array in (*losses, da, db)]


def _gradients(out, a, b, marks, stream):
    """Describe the arrays for da and db: each new, or one of ``out``."""
    if out is not None and (not isinstance(out, (tuple, list)) or len(out) != 2):
        raise TypeError(f"out must be a pair of arrays, for da and db, got {type(out).__name__}")
    given = [None, None] if out is None else out
    names = ["out[0]", "out[1]"]
    marks = [mark for mark in marks if mark is not None]
    da, db = (result_of(o, name, stream, a, a.shape, (x, *marks)) for o, name, x in zip(given, names, (a, b)))
    contiguous((da, "out[0]"), (db, "out[1]"))
    if out is not None and (overlap(da, db) or overlap(da, b) or overlap(db, a)):
        raise ValueError("out[0] and out[1] must not overlap each other or the other's logits, got arrays that do")
    return da, db
