"""fastdrop: dropout kernels whose masks are values.

A mask is (seed, stream, shape, p), its bits a pure function of the element's index, made in cache by whatever kernel needs
them: equal bit for bit on every machine, instruction set, thread count and backend.
"""

from .backends import get_backend, use_backend
from .functional import dropout, dropout_backward
from .mask import Mask, mask
from .rng import Rng

__all__ = ["Mask", "Rng", "dropout", "dropout_backward", "get_backend", "mask", "use_backend"]
__version__ = "0.1.0"
