"""torch.nn.functional's dropout functions: its names, arguments and defaults, and ``generator=``, ``mask=`` besides."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch

from ..masks import Mask
from .apply import DTYPES, apply, apply_mask, by_operator, check_dtype, check_in_place, is_plain
from .keys import draw, draw_key

if TYPE_CHECKING:
    from torch import Tensor

    from .keys import Generator

# The negative limit of SELU, scale * alpha: what alpha dropout puts in the place of what it drops.
ALPHA = 1.7580993408473766


def check_p(p: float) -> float:
    """Return ``p`` as a float; raise ValueError unless it is in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return float(p)


def masked(
    x: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    mask_shape,
    generator: Generator,
    mask: Mask | None,
    return_mask: bool,
):
    """What all functions here are: check, draw, apply; ``mask_shape`` is a function of x's shape."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"input must be a tensor, got {type(x).__name__}; fastdrop.dropout takes other arrays")
    if mask is None:
        if type(p) is not float or not 0.0 <= p <= 1.0:
            p = check_p(p)
        shape = mask_shape(x.shape)
        if not training or p == 0.0 or not x.numel():
            return (x, Mask._make(0, 0, shape, 0.0)) if return_mask else x
        if x.dtype not in DTYPES or x.layout is not torch.strided:
            check_dtype(x)
    else:
        if not isinstance(mask, Mask):
            raise TypeError(f"mask must be a fastdrop.Mask, got {type(mask).__name__}")
        check_dtype(x)
        if len(mask.shape) > x.ndim or any(m not in (1, n) for m, n in zip(mask.shape[::-1], reversed(x.shape))):
            raise ValueError(f"mask must broadcast to input's shape {tuple(x.shape)}, got shape {mask.shape}")
    if mask is None and is_plain(x):
        mask = Mask._make(*draw(generator), shape, p)
        y = apply(x, mask, inplace)
    elif mask is not None:
        y = apply_mask(x, mask, inplace)
    elif return_mask:
        raise RuntimeError("return_mask=True needs numbers, which torch.compile, torch.func and meta tensors have not")
    else:
        y = by_operator(x, draw_key(generator), p, shape, inplace)
    return (y, mask) if return_mask else y


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    """`torch.nn.functional.dropout` with masks that are values.

    Parameters
    ----------
    input : Tensor
        Of float16, bfloat16, float32 or float64, any shape and strides; the mask goes by its logical order.
    p : float, default 0.5
        Probability to drop.
    training : bool, default True
        If False, ``input`` itself is the result.
    inplace : bool, default False
        Write into ``input``.
    generator : torch.Generator or fastdrop.Rng, optional
        Where the mask's two integers come from, drawn at once whatever its size; by default torch's own CPU
        generator, which `torch.manual_seed` seeds.
    mask : fastdrop.Mask, optional
        Use this mask, which broadcasts to ``input``; ``p``, ``training`` and ``generator`` are then not looked at.
    return_mask : bool, default False
        Return (result, mask): the same mask can be given to another call, and to fastdrop's functions on NumPy arrays.

    Returns
    -------
    Tensor
        ``input / (1 - p)`` where kept, +0.0 elsewhere. Autograd keeps the mask's two integers, and no array.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1], or the mask does not broadcast to ``input``.
    TypeError
        If the dtype is none of the four.
    RuntimeError
        If ``inplace`` on a leaf that requires grad, or on an expanded tensor.

    References
    ----------
    Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting", JMLR 15 (2014).

    Examples
    --------
    >>> import fastdrop as fd, fastdrop.torch as fdt, torch
    >>> x = torch.ones(2, 4, requires_grad=True)
    >>> y, mask = fdt.dropout(x, 0.5, generator=fd.Rng(0), return_mask=True)
    >>> y.sum().backward()
    >>> torch.equal(x.grad, y)
    True
    >>> mask
    <fastdrop.Mask shape=(2, 4) p=0.5 seed=0, stream=0>
    """
    return masked(input, p, training, inplace, tuple, generator, mask, return_mask)


def _of_first(axes):
    """A function of x's shape: a decision for each index of its first axes."""

    def mask_shape(shape):
        if len(shape) < axes:
            raise RuntimeError(f"input must have at least 2 axes, samples and channels, but is {len(shape)}D")
        return (*shape[:axes], *(1,) * (len(shape) - axes))

    return mask_shape


_channels, _channels_without_batch = _of_first(2), _of_first(1)


_FEATURE = """Channel-wise dropout: `torch.nn.functional.dropout{n}d`, whole channels of {n} spatial axes are dropped.

    Parameters
    ----------
    input : Tensor
        Of shape (N, C, {axes}), or (C, {axes}) without a batch.
    p, training, inplace, generator, mask, return_mask
        As in `dropout`; a mask has a decision for each channel, shape (N, C{ones}), without a batch (C{ones}).

    Returns
    -------
    Tensor
        ``input / (1 - p)`` in channels that are kept, +0.0 in others.

    Raises
    ------
    {error}ValueError, TypeError
        As `dropout`.

    References
    ----------
    Tompson et al., "Efficient object localization using convolutional networks", CVPR (2015).

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> y = fdt.dropout{n}d(torch.ones(2, 3{fours}), generator=torch.Generator().manual_seed(1))
    >>> y.flatten(2).amax(2).equal(y.flatten(2).amin(2))  # each channel is kept or dropped as a whole
    True
    """


def _documented(n, error):
    axes, fours = ", ".join("LHW"[:1] if n == 1 else "DHW"[3 - n :]), ", 4" * n
    return _FEATURE.format(n=n, axes=axes, ones=", 1" * n, fours=fours, error=error)


def _warn_rank(name, n, input):
    warnings.warn(
        f"{name} is for channels of {n} spatial axes, {n + 1}D or with a batch {n + 2}D; torch deprecates its use on "
        f"other inputs, here {input.dim()}D, which still works: dropout is for single elements",
        stacklevel=3,
    )


def dropout1d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    check_p(p)
    dim = input.dim()
    if dim not in (2, 3):
        raise RuntimeError(
            f"dropout1d is for channels of one spatial axis, input must be (C, L) or (N, C, L), but is {dim}D"
        )
    shape = _channels if dim == 3 else _channels_without_batch
    return masked(input, p, training, inplace, shape, generator, mask, return_mask)


def dropout2d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    check_p(p)
    dim = input.dim()
    if dim not in (3, 4):
        _warn_rank("dropout2d", 2, input)
    if dim == 3:
        warnings.warn(
            "dropout2d takes a 3D input as (N, C, L), as torch does, whose later versions may take it as (C, H, W): "
            "dropout1d says what is meant, so does a batch axis",
            stacklevel=2,
        )
    return masked(input, p, training, inplace, _channels, generator, mask, return_mask)


def dropout3d(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    check_p(p)
    dim = input.dim()
    if dim not in (4, 5):
        _warn_rank("dropout3d", 3, input)
    shape = _channels if dim == 5 else _channels_without_batch
    return masked(input, p, training, inplace, shape, generator, mask, return_mask)


def drop_path(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    """Stochastic depth: whole samples are dropped, so that of a residual block only the shortcut is left.

    Parameters
    ----------
    input : Tensor
        Of shape (N, ...).
    p, training, inplace, generator, mask, return_mask
        As in `dropout`; a mask has a decision for each sample, shape (N, 1, ...).

    Returns
    -------
    Tensor
        ``input / (1 - p)`` in samples that are kept, +0.0 in others.

    Raises
    ------
    RuntimeError
        If ``input`` has no axis.
    ValueError, TypeError
        As `dropout`.

    References
    ----------
    Huang et al., "Deep networks with stochastic depth", ECCV (2016).

    Examples
    --------
    >>> import fastdrop as fd, fastdrop.torch as fdt, torch
    >>> fdt.drop_path(torch.ones(4, 2), generator=fd.Rng(0))
    tensor([[0., 0.],
            [0., 0.],
            [2., 2.],
            [2., 2.]])
    """
    if not input.dim():
        raise RuntimeError("drop_path: input must have an axis of samples, got a 0-d tensor")
    return masked(input, p, training, inplace, _channels_without_batch, generator, mask, return_mask)


dropout1d.__doc__ = _documented(1, "RuntimeError\n        If ``input`` has neither 2 nor 3 axes.\n    ")
dropout2d.__doc__ = _documented(2, "")
dropout3d.__doc__ = _documented(3, "")


def _alpha_dropout(input, p, training, inplace, mask_shape, generator, mask, return_mask):
    """a * x + b where kept, b - a * ALPHA elsewhere, as dropout of x + ALPHA, which is scaled and moved."""
    if mask is None:
        p = check_p(p)
        if not training or p in (0.0, 1.0) or not input.numel():
            return masked(input, p, training, inplace, mask_shape, generator, mask, return_mask)
    elif isinstance(mask, Mask):
        p = mask.p
        if type(p) is not float or p == 1.0:
            raise ValueError(f"mask must have one p, below 1, for alpha dropout, got {p}")
    check_dtype(input)
    if inplace:
        check_in_place(input)
    x = input.float() + ALPHA if input.element_size() == 2 else input + ALPHA
    y, *mask = _as_tuple(masked(x, p, True, True, mask_shape, generator, mask, return_mask))
    a = 1 / math.sqrt((ALPHA * ALPHA * p + 1) * (1 - p))
    y = y.mul_(a * (1 - p)).add_(-a * ALPHA * (1 - p)).to(input.dtype)
    y = input.copy_(y) if inplace else y
    return (y, *mask) if return_mask else y


def _as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    """`torch.nn.functional.alpha_dropout`: keeps mean 0 and variance 1 of what SELU puts out.

    Parameters
    ----------
    input : Tensor
    p : float, default 0.5
    training : bool, default False
        As torch's: off unless asked for.
    inplace, generator, mask, return_mask
        As in `dropout`.

    Returns
    -------
    Tensor
        ``a * input + b`` where kept and ``b - 1.758 * a`` elsewhere, with a and b such that mean 0 and variance 1 are
        kept; 16-bit numbers are worked on in float32.

    Raises
    ------
    ValueError, TypeError, RuntimeError
        As `dropout`; ValueError too if a given mask has several p.

    References
    ----------
    Klambauer et al., "Self-normalizing neural networks", NeurIPS (2017).

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> y = fdt.alpha_dropout(torch.randn(100_000, generator=torch.Generator().manual_seed(0)), 0.2, training=True)
    >>> bool(y.mean().abs() < 0.05), bool((y.std() - 1).abs() < 0.05)
    (True, True)
    """
    return _alpha_dropout(input, p, training, inplace, tuple, generator, mask, return_mask)


def feature_alpha_dropout(
    input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False, *,
    generator: Generator = None, mask: Mask | None = None, return_mask: bool = False,
):  # fmt: skip
    """`torch.nn.functional.feature_alpha_dropout`: `alpha_dropout` of whole channels.

    Parameters
    ----------
    input : Tensor
        Of shape (N, C, ...).
    p, training, inplace, generator, mask, return_mask
        As in `alpha_dropout`; a mask has a decision for each channel, shape (N, C, 1, ...).

    Returns
    -------
    Tensor

    Raises
    ------
    RuntimeError
        If ``input`` has fewer than 2 axes.
    ValueError, TypeError
        As `alpha_dropout`.

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> y = fdt.feature_alpha_dropout(torch.zeros(2, 3, 5), 0.5, training=True)
    >>> y.amax(2).equal(y.amin(2))  # each channel is kept or dropped as a whole
    True
    """
    return _alpha_dropout(input, p, training, inplace, _channels, generator, mask, return_mask)
