"""Attention weights and R-Drop's losses on device arrays: checked here, launched by the Numba CUDA backend."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..arguments import check_number
from ..borders.cuda import broadcast, check_contiguous, check_dtype, check_like
from ..dispatch import device_operation
from ..functional import check_mask, draw_mask, requested_mask
from ..losses import REDUCTIONS, RDrop
from .elementwise import check_whole

if TYPE_CHECKING:
    from typing import Any, SupportsIndex

    from ..masks import Mask
    from ..typing import AnyReduction, Probability, RngLike, TensorT, Training


@device_operation
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
    check_dtype(scores, "scores")
    _check_axis(axis, scores)
    shape, p, mask = requested_mask(scores.shape, p, mask, training)
    attention = _attention(attention_mask, scores)
    y = stream.output(out, "out", scores, scores.shape)
    check_contiguous((scores, "scores"), (y, "out"))
    _check_mask_of_rows(shape, p, scores.shape)
    mask = check_whole(draw_mask(rng, shape, p) if mask is None else mask)
    saved = stream.new(scores, (*scores.shape[:-1], 2), scores.computed_in)
    if scores.size:
        stream.kernels.softmax_dropout(y, saved, scores, attention, mask, stream.address)
    return y, mask, saved


@device_operation
def softmax_dropout_backward(
    dy: TensorT, scores: TensorT, log_sum: TensorT, mask: Mask, *, axis: SupportsIndex = -1,
    attention_mask: TensorT | None = None, out: TensorT | None = None, stream: Any = None,
) -> TensorT:  # fmt: skip
    """Gradient of `softmax_dropout` with respect to scores; ``out`` may be ``dy``.

    ``log_sum`` is what `softmax_dropout` returned last.
    """
    check_mask(mask)
    check_dtype(dy, "dy")
    _check_axis(axis, dy)
    check_like(scores, "scores", dy)
    _check_mask_of_rows(mask.shape, mask.p, dy.shape)
    check_whole(mask)
    attention = _attention(attention_mask, dy)
    dscores = stream.output(out, "out", dy, dy.shape)
    check_dtype(log_sum, "log_sum", dy.computed_in)
    if log_sum.shape != (*dy.shape[:-1], 2):
        raise ValueError(f"log_sum must have shape {(*dy.shape[:-1], 2)} on the device, got {log_sum.shape}")
    check_contiguous((dy, "dy"), (scores, "scores"), (dscores, "out"), (log_sum, "log_sum"))
    if dy.size:
        stream.kernels.softmax_dropout_backward(dscores, dy, log_sum, scores, attention, mask, stream.address)
    return dscores


def _check_axis(axis, a):
    if not a.shape or axis not in (-1, len(a.shape) - 1):
        raise ValueError(f"axis must be the last one on the device, got {axis} for shape {a.shape}")


def _check_mask_of_rows(shape, p, wanted):
    """The mask must have the shape that is wanted, and one p in a row."""
    if shape != wanted:
        raise ValueError(f"mask must have the scores' shape {wanted}, got {shape}")
    if type(p) is not float and p.ndim == len(shape) and shape[-1] != 1:
        raise ValueError(f"an array p must not vary along axis {len(shape) - 1}, got shape {p.shape}")


def _attention(attention_mask, scores):
    if attention_mask is None:
        return None
    check_dtype(attention_mask, "attention_mask", "bool", "float64" if scores.dtype == "float64" else "float32")
    if any(step < 0 for step in attention_mask.steps):
        raise ValueError(f"attention_mask must have no negative steps, got {attention_mask.steps}")
    return broadcast(attention_mask, scores.shape, "attention_mask")


# -- losses ------------------------------------------------------------------------------------------------------------


@device_operation
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


@device_operation
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
    check_dtype(a, "a")
    check_like(b, "b", a)
    if not a.shape or not a.shape[-1]:
        raise ValueError(f"a must have at least one class on its last axis, got shape {a.shape}")
    _check_axis(axis, a)
    rows = a.shape[:-1]
    for mark, name, dtypes in ((labels, "labels", ("int32", "int64")), (pad_mask, "pad_mask", ("bool",))):
        if mark is not None:
            check_dtype(mark, name, *dtypes)
            if mark.shape != rows:
                raise ValueError(f"{name} must have shape {rows} on the device, got {mark.shape}")
    outs = [None, None] if out is None else out
    da, db = (stream.output(o, f"out[{i}]", a, a.shape) for i, o in enumerate(outs))
    check_contiguous((a, "a"), (b, "b"), (labels, "labels"), (pad_mask, "pad_mask"), (da, "out[0]"), (db, "out[1]"))
    each = [stream.new(a, rows, a.computed_in) for _ in ("loss", "ce", "kl")]
    *totals, count = (stream.new(a, (), a.computed_in) for _ in range(4))
    stream.kernels.pair_loss(
        None if reduction == "none" else totals, *each, count, da, db, a, b, labels, pad_mask, stream.address,
        alpha=alpha, reduction=reduction, ignore_index=ignore_index, smoothing=smoothing,
        inv_temperature=1.0 / temperature,
    )  # fmt: skip
    return *(each if reduction == "none" else totals), da, db
