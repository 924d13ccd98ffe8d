"""The Numba backend on the CPU: every kernel of the reference, compiled at first use and kept on disk, no C compiler.

Built as the C kernels are.  The mask's decisions on a tile of 4096 elements are made in a buffer in L1, one byte each,
from blocks of 256 elements whose 16 lanes LLVM runs as vectors; then an elementwise body consumes them.  A tile is a
run of *logical* (C-order) elements, so broadcasting and slices concern only `parts.decide`, and strides of x and y only
`parts.gather` and `parts.scatter`.  There is no kernel for max-norm: the reference's is as good.
"""

from ..reference import fast_path, max_norm
from .ops import apply, apply_sum, elementwise, keep, keep_bits, sample_mean, sample_sum
from .rows import row_losses, softmax_dropout

NAME = "numba"
__all__ = [
    "NAME",
    "apply",
    "apply_sum",
    "elementwise",
    "fast_path",
    "keep",
    "keep_bits",
    "max_norm",
    "row_losses",
    "sample_mean",
    "sample_sum",
    "softmax_dropout",
]
