"""The reference backend: plain NumPy, the executable specification of every kernel.

What a kernel must give, to the bit, is written here in the fewest words; the C, Numba and CUDA kernels are tested
against it.  It is also the fallback where nothing was compiled, so long arrays are worked through in chunks.  Every
other backend exports functions of the same names and arguments.
"""

from .ops import apply, apply_sum, elementwise, fast_path
from .rows import max_norm, row_losses, softmax_dropout
from .samples import sample_mean, sample_sum
from .stream import keep, keep_at, keep_bits, uniform32

NAME = "reference"
__all__ = [
    "NAME",
    "apply",
    "apply_sum",
    "elementwise",
    "fast_path",
    "keep",
    "keep_at",
    "keep_bits",
    "max_norm",
    "row_losses",
    "sample_mean",
    "sample_sum",
    "softmax_dropout",
    "uniform32",
]
