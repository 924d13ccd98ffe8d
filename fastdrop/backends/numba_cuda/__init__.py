"""The Numba backend on NVIDIA GPUs: masks, dropout and what stands beside it. `fastdrop.cuda` brings users' arrays in.

Its functions take `DeviceArray`s of `fastdrop.borders.cuda` that have been checked, and the address of a stream.
"""

from .ops import apply_sum, bias_gradient, dropout_add, elementwise, keep_bits, sample_mean
from .rows import pair_loss, softmax_dropout, softmax_dropout_backward

__all__ = [
    "apply_sum",
    "bias_gradient",
    "dropout_add",
    "elementwise",
    "keep_bits",
    "pair_loss",
    "sample_mean",
    "softmax_dropout",
    "softmax_dropout_backward",
]
