"""torch.nn's dropout modules: subclasses of them, so that ``isinstance`` finds them, with fastdrop's masks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from .keys import Generator


class _Dropout(torch.nn.Module):
    """What all of them add to torch's.

    Parameters
    ----------
    p : float, default 0.5
        Probability to drop.
    inplace : bool, default False
        Write into the input.
    generator : torch.Generator or fastdrop.Rng, keyword only
        Where masks come from; by default torch's own CPU generator.

    Raises
    ------
    ValueError
        If ``p`` is not in [0, 1].
    """

    function: Callable[..., Tensor]

    def __init__(self, p: float = 0.5, inplace: bool = False, *, generator: Generator = None) -> None:
        functional.check_p(p)  # torch's own lets NaN pass
        super().__init__(p, inplace)
        self.generator = generator

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.p, self.training, self.inplace, generator=self.generator)


class Dropout(_Dropout, torch.nn.Dropout):
    """`torch.nn.Dropout`: single elements. Parameters as of all modules here: ``p``, ``inplace``, ``generator``.

    Examples
    --------
    >>> import fastdrop.torch as fdt, torch
    >>> layer = fdt.Dropout(0.2)
    >>> layer
    Dropout(p=0.2, inplace=False)
    >>> x = torch.ones(4, 8)
    >>> layer.eval()(x) is x
    True
    """

    function = staticmethod(functional.dropout)


class Dropout1d(_Dropout, torch.nn.Dropout1d):
    """`torch.nn.Dropout1d`: channels of (N, C, L) or (C, L). Parameters as of `Dropout`."""

    function = staticmethod(functional.dropout1d)


class Dropout2d(_Dropout, torch.nn.Dropout2d):
    """`torch.nn.Dropout2d`: channels of (N, C, H, W). Parameters as of `Dropout`."""

    function = staticmethod(functional.dropout2d)


class Dropout3d(_Dropout, torch.nn.Dropout3d):
    """`torch.nn.Dropout3d`: channels of (N, C, D, H, W) or (C, D, H, W). Parameters as of `Dropout`."""

    function = staticmethod(functional.dropout3d)


class _AlphaDropout(_Dropout):
    """As torch's own, these take ``inplace`` and do not look at it."""

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input, self.p, self.training, generator=self.generator)


class AlphaDropout(_AlphaDropout, torch.nn.AlphaDropout):
    """`torch.nn.AlphaDropout`: single elements, after SELU. Parameters as of `Dropout`."""

    function = staticmethod(functional.alpha_dropout)


class FeatureAlphaDropout(_AlphaDropout, torch.nn.FeatureAlphaDropout):
    """`torch.nn.FeatureAlphaDropout`: whole channels, after SELU. Parameters as of `Dropout`."""

    function = staticmethod(functional.feature_alpha_dropout)


class DropPath(_Dropout, torch.nn.modules.dropout._DropoutNd):
    """Stochastic depth, whole samples of (N, ...): `fastdrop.torch.drop_path`. Parameters as of `Dropout`.

    Examples
    --------
    >>> import fastdrop as fd, fastdrop.torch as fdt, torch
    >>> block, x = torch.nn.Linear(3, 3), torch.ones(4, 3)
    >>> y = x + fdt.DropPath(0.5, generator=fd.Rng(0))(block(x))
    >>> torch.equal(y[:2], x[:2])  # what the generator drops
    True
    """

    function = staticmethod(functional.drop_path)
