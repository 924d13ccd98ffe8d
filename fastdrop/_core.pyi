"""The compiled extension, for type checkers: arrays that the modules of this package have checked."""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import disjoint_base

from .masks import Mask as _Mask
from .typing import Floats, Probability, RngLike

_R = TypeVar("_R")
_M = TypeVar("_M", bound=Fields)
_Doubles = NDArray[np.float64]

MAX_NDIM: int
LOSSES: dict[str, int]
LOSS_FACTS: list[dict[str, object]]
DTYPES: dict[str, int]
OPERATIONS: dict[str, int]
QUIET: frozenset[type]
Mask: type[_Mask]

@disjoint_base
class Buffer: ...

@disjoint_base
class Fields:
    @property
    def _seed(self) -> int | None: ...
    @property
    def _stream(self) -> int | None: ...
    @property
    def _shape(self) -> tuple[int, ...]: ...
    @property
    def _p(self) -> float | _Doubles: ...
    @property
    def _offset(self) -> int: ...
    @property
    def _strides(self) -> tuple[int, ...] | None: ...
    @property
    def _stored(self) -> NDArray[np.uint8] | None: ...

def make(
    cls: type[_M],
    seed: int | None,
    stream: int | None,
    shape: tuple[int, ...],
    p: float | _Doubles,
    offset: int = 0,
    strides: tuple[int, ...] | None = None,
    stored: NDArray[np.uint8] | None = None,
) -> _M: ...

# threads, instruction sets

def set_threads(n: int) -> None: ...
def after_fork() -> None: ...
def isa() -> str: ...
def isa_found() -> list[str]: ...
def use_isa(name: str) -> None: ...

# memory of fresh outputs

def allocate(make: Callable[..., _R], *args: object) -> _R: ...
def new_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]: ...
def new_like(x: NDArray[Any]) -> NDArray[Any]: ...
def set_buffer_limit(bytes: int) -> None: ...
def kept_bytes() -> int: ...
def release_buffers() -> None: ...

# outputs

def apart(out: NDArray[Any], *others: NDArray[Any] | None) -> bool: ...

# elementwise: the output, the inputs, the mask

def fast_path(x: Any, p: Probability, rng: RngLike, out: Any) -> tuple[Floats, _Mask] | None: ...
def describe_plan(y: Floats, x: Floats, mask: _Mask) -> dict[str, Any]: ...
def apply(y: Floats, x: Floats, mask: _Mask) -> None: ...
def apply_at(
    y: int, y_steps: tuple[int, ...], x: int, x_steps: tuple[int, ...], dtype: int, shape: tuple[int, ...], mask: _Mask
) -> None: ...
def keep(out: NDArray[np.bool_], mask: _Mask) -> None: ...
def keep_bits(out: NDArray[np.uint8], mask: _Mask, n: int) -> None: ...
def elementwise(op: str, y: Floats, inputs: tuple[Floats, ...], mask: _Mask) -> None: ...

# rows and samples

def row_losses(
    op: str,
    a: Floats,
    b: Floats | None,
    da: Floats,
    db: Floats | None,
    label: NDArray[np.int64] | None,
    target: Floats | None,
    skip: NDArray[np.bool_] | None,
    loss: _Doubles,
    kl: _Doubles | None,
    temperature: float,
    weight: float,
    alpha: float,
    smoothing: float,
) -> None: ...
def softmax_dropout(
    y: Floats,
    logsumexp: _Doubles,
    dy: Floats | None,
    x: Floats,
    bias: Floats | None,
    allow: NDArray[np.bool_] | None,
    mask: _Mask,
    p: _Doubles,
) -> None: ...
def row_sums(total: Floats, y: Floats | None, x: Floats, mask: _Mask) -> None: ...
def max_norm(w: Floats, limit: float) -> None: ...
def samples(y: Floats, x: Floats, p: _Doubles, mask: _Mask, mean: bool) -> None: ...
