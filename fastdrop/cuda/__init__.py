"""fastdrop on NVIDIA GPUs, for arrays of torch, CuPy, Numba, JAX, and any other with CUDA DLPack or array interface.

`fastdrop.dropout` and the others come here by themselves when they are given a device array; the functions here have
the same names and take ``stream=`` too.  An array is read in place, and the result belongs to the same library (to
Numba where the owner is none of the four) or is written to ``out``.  The masks are the CPU's, bit for bit.

Work is queued on ``stream``, by default the library's current one, and never waited for: nothing here synchronises with
the device or copies arrays to or from the host.  Two things are small and made on the host, and so are copied, queued
like the rest: an array ``p``, and the bits of a mask that the user made himself.  Who gives a ``stream`` sees to it
that his arrays are ready on it.  Results for arrays of Numba's and JAX's are memory of Numba's, whose allocator may
wait for the device: give ``out`` where that matters.  The driver is not touched, nor numba.cuda imported, before the
first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..borders import on_device as is_device_array
from .elementwise import (
    FUNCTIONS,
    apply,
    backward,
    bits,
    dropout,
    dropout_add,
    dropout_add_backward,
    dropout_backward,
    multi_sample_dropout,
    multi_sample_dropout_backward,
    multi_sample_mean,
    multi_sample_mean_backward,
    r_drop_pair,
)
from .rows import r_drop, softmax_dropout, softmax_dropout_backward, symmetric_kl

__all__ = [
    "apply",
    "backward",
    "bits",
    "dropout",
    "dropout_add",
    "dropout_add_backward",
    "dropout_backward",
    "is_device_array",
    "multi_sample_dropout",
    "multi_sample_dropout_backward",
    "multi_sample_mean",
    "multi_sample_mean_backward",
    "r_drop",
    "r_drop_pair",
    "softmax_dropout",
    "softmax_dropout_backward",
    "symmetric_kl",
]
if TYPE_CHECKING:  # which functions of activations there are, for those who do not run this
    from typing import Any

    from ..masks import Mask
    from ..typing import TensorT

    def relu_dropout_backward(
        dy: TensorT, x: TensorT, mask: Mask, *, out: TensorT | None = None, stream: Any = None
    ) -> TensorT: ...

    relu_dropout = dropout
    gelu_dropout = dropout
    gelu_dropout_backward = relu_dropout_backward
    silu_dropout = dropout
    silu_dropout_backward = relu_dropout_backward
else:
    __all__ += FUNCTIONS  # of the activations, by name
    globals().update(FUNCTIONS)
