"""Where a mask of a torch user comes from: two integers of torch's generators, drawn at once whatever its size.

torch's integers are signed, fastdrop's seeds are not: a seed from 2**63 on is the negative int64 of the same bits.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import torch
from torch.utils import checkpoint

from ..rng import Rng
from ..rule import MASK64

if TYPE_CHECKING:
    Generator = torch.Generator | Rng | None

LEAST, MOST = -(2**63), 2**63 - 1


def signed(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return number - 2**64 if number > MOST else number


def draw_key(generator: Generator) -> torch.Tensor:
    """An int64 tensor (seed, stream) on the CPU, of torch's default CPU generator if ``generator`` is None.

    Raises
    ------
    TypeError
        If ``generator`` is neither a `torch.Generator` nor a `fastdrop.Rng`.
    """
    if generator is None:
        return torch.randint(LEAST, MOST, (2,), device="cpu")
    return _outside_of_graphs(generator) if torch.compiler.is_compiling() else _draw_given(generator)


def _draw_given(generator):
    if isinstance(generator, Rng):
        return torch.tensor([signed(number) for number in draw(generator)], device="cpu")
    if isinstance(generator, torch.Generator):
        check_no_checkpoint()
        return torch.randint(LEAST, MOST, (2,), generator=generator, device=generator.device).cpu()
    raise TypeError(f"generator must be a torch.Generator or a fastdrop.Rng, got {type(generator).__name__}")


_outside_of_graphs = torch._disable_dynamo(_draw_given)  # no graph has a place for the state of these


class _Words(threading.local):
    """Two int64 of each thread, to be drawn into: a new tensor would take as long as the draw."""

    def __init__(self):
        with torch.inference_mode(False):
            self.key = torch.empty(2, dtype=torch.int64, device="cpu")


_words = _Words()


def draw(generator: Generator) -> tuple[int, int]:
    """The numbers of `draw_key`, as `fastdrop.Mask` has them."""
    if generator is None:
        seed, stream = _words.key.random_(LEAST, MOST).tolist()
    elif isinstance(generator, Rng):
        check_no_checkpoint()
        return generator.take()
    else:
        seed, stream = draw_key(generator).tolist()
    return seed & MASK64, stream & MASK64


def check_no_checkpoint() -> None:
    """Raise RuntimeError in a region under activation checkpointing, which puts back torch's default generators alone.

    Another generator would draw another mask when the region is computed again, and gradients be wrong in silence.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            raise RuntimeError(
                "generator must be None in a region under activation checkpointing: computed again, it would draw "
                "another mask. Leave it out (torch's default generator is put back), or pass mask=, made outside"
            )
        frame = frame.f_back
