"""Where a mask of a torch user comes from: two integers of torch's generators, drawn at once whatever its size.

torch's integers are signed, fastdrop's seeds are not: a seed from 2**63 on is the negative int64 of the same bits.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

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
    if isinstance(generator, Rng):
        return torch.tensor([signed(number) for number in generator.take()])
    if generator is None:
        return torch.randint(LEAST, MOST, (2,))
    if isinstance(generator, torch.Generator):
        return torch.randint(LEAST, MOST, (2,), generator=generator, device=generator.device).cpu()
    raise TypeError(f"generator must be a torch.Generator or a fastdrop.Rng, got {type(generator).__name__}")


class _Words(threading.local):
    """Two int64 of each thread, to be drawn into: a new tensor would take as long as the draw."""

    def __init__(self):
        with torch.inference_mode(False):
            self.key = torch.empty(2, dtype=torch.int64)


_words = _Words()


def draw(generator: Generator) -> tuple[int, int]:
    """The numbers of `draw_key`, as `fastdrop.Mask` has them."""
    if generator is None:
        seed, stream = _words.key.random_(LEAST, MOST).tolist()
    elif isinstance(generator, Rng):
        return generator.take()
    else:
        seed, stream = draw_key(generator).tolist()
    return seed & MASK64, stream & MASK64
