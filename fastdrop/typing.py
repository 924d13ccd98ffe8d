"""What arguments may be and which kind results have, as type checkers read it; for your own annotations too.

A result is of the kind of the array that it is made from (`ArrayT`, or where its shape differs `FloatT` of an ndarray's
dtype and `TensorT`) or is ``out`` itself (`OutT`); lists, numbers, buffers and pandas objects give ndarrays.  Dtypes
that fastdrop refuses are refused by checkers too, where they know them.

Tensors of torch and arrays of JAX are told by a member that ndarrays lack, so neither library is imported.  Nor is this
module by the others, but for type checkers: the aliases are strings, and annotations of the package never evaluated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    import array
    import ctypes
    import mmap
    from collections.abc import Sequence
    from types import EllipsisType
    from typing import SupportsIndex, TypeAlias

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from .masks import Mask
    from .rng import Rng


class CudaArray(Protocol):
    """A torch tensor, on the CPU too, or an array of any library in CUDA memory."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


class JaxArray(Protocol):
    """An array of JAX."""

    def block_until_ready(self) -> Any: ...


class Frame(Protocol):
    """A DataFrame or Series of pandas."""

    @property
    def axes(self) -> Any: ...

    def to_numpy(self) -> Any: ...


# -- arrays in ---------------------------------------------------------------------------------------------------------

Tensor: TypeAlias = "CudaArray | JaxArray"
Nested: TypeAlias = "Sequence[float] | Sequence[Sequence[float]] | Sequence[Sequence[Sequence[float]]]"
Numbers: TypeAlias = "float | np.floating[Any] | Nested | Sequence[NDArray[np.floating[Any]]]"
CArray: TypeAlias = "ctypes.Array[ctypes.c_float] | ctypes.Array[ctypes.c_double]"
Buffer: TypeAlias = "bytearray | memoryview[Any] | mmap.mmap | array.array[float] | CArray"
Foreign: TypeAlias = "Numbers | Buffer | bytes | Frame"  # what gives ndarrays and is none
ArrayLike: TypeAlias = "NDArray[np.floating[Any]] | Tensor | Foreign"

# -- results out -------------------------------------------------------------------------------------------------------

FloatT = TypeVar("FloatT", bound="np.floating[Any]")
TensorT = TypeVar("TensorT", bound="Tensor")
ArrayT = TypeVar("ArrayT", bound="NDArray[np.floating[Any]] | Tensor")
OutT = TypeVar("OutT", bound="NDArray[np.floating[Any]] | Tensor | Buffer")
OtherT = TypeVar("OtherT", bound="NDArray[np.floating[Any]] | Tensor | Buffer")  # of a pair of outputs, the second
FrameT = TypeVar("FrameT", bound="Frame")
ScalarT = TypeVar("ScalarT", bound="np.generic")
Floats: TypeAlias = "NDArray[np.floating[Any]]"

# -- other arguments ---------------------------------------------------------------------------------------------------

Real: TypeAlias = "NDArray[np.floating[Any] | np.integer[Any]]"
Probability: TypeAlias = "float | np.floating[Any] | np.integer[Any] | Nested | Real | Tensor"
NumpyRandom: TypeAlias = "np.random.SeedSequence | np.random.Generator | np.random.BitGenerator"
RngLike: TypeAlias = "int | np.integer[Any] | Rng | NumpyRandom | None"
Training: TypeAlias = "bool | np.bool_"
Dtype: TypeAlias = "DTypeLike | None"
Integer: TypeAlias = "int | np.integer[Any]"
Shape: TypeAlias = "SupportsIndex | tuple[SupportsIndex, ...] | list[int]"
MaskShape: TypeAlias = "SupportsIndex | tuple[SupportsIndex | None, ...] | list[int] | list[int | None] | None"
Bools: TypeAlias = "NDArray[np.bool_] | Sequence[bool] | Sequence[Sequence[bool]] | Sequence[Sequence[Sequence[bool]]]"
Labels: TypeAlias = "Real | Tensor | Sequence[int] | Sequence[Sequence[float]]"
AttentionMask: TypeAlias = "Bools | ArrayLike"
MaskIndex: TypeAlias = "SupportsIndex | slice[Any, Any, None] | EllipsisType"
MaskKey: TypeAlias = "MaskIndex | tuple[MaskIndex, ...]"
Reduction: TypeAlias = Literal["mean", "sum", "batchmean"]
AnyReduction: TypeAlias = Literal["mean", "sum", "batchmean", "none"]  # "none": the loss is an array
Average: TypeAlias = Literal["losses", "logits"]
Backend: TypeAlias = Literal["native", "numba", "reference"]


class MaskOptions(TypedDict, total=False):
    """Which mask a call uses."""

    rng: RngLike
    mask: Mask | None
    training: Training


class DropoutOptions(MaskOptions, total=False):
    """What `fastdrop.dropout` and its fused forms take beside arrays."""

    mask_shape: MaskShape
    dtype: Dtype


class LossOptions(TypedDict, total=False):
    """What the losses on logits take beside arrays."""

    pad_mask: Bools | Tensor | None
    temperature: float
    axis: SupportsIndex


class LabelOptions(LossOptions, total=False):
    """What the losses with labels take too."""

    label_smoothing: float
    ignore_index: SupportsIndex
