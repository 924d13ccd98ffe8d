"""fastdrop: dropout kernels whose masks are values.

A mask is (seed, stream, shape, p), its bits a pure function of the element's index, made in cache by whatever kernel
needs them: equal bit for bit on every machine, instruction set, thread count and backend.
"""

from . import config as _config
from . import fused, layers, losses
from ._version import __version__
from .attention import softmax_dropout, softmax_dropout_backward
from .backends import get_backend, use_backend
from .config import release_buffers, set_buffer_limit, show_config
from .functional import dropout, dropout_backward
from .fused import *  # noqa: F403
from .inference import mc_dropout
from .losses import *  # noqa: F403
from .masks import Mask, mask
from .max_norm import max_norm_
from .multi_sample import (
    multi_sample_dropout,
    multi_sample_dropout_backward,
    multi_sample_linear,
    multi_sample_linear_backward,
    multi_sample_mean,
    multi_sample_mean_backward,
)
from .num_threads import get_num_threads, set_num_threads, threads
from .rng import Rng

__all__ = [
    "Mask",
    "Rng",
    "__version__",
    "dropout",
    "dropout_backward",
    "get_backend",
    "get_num_threads",
    "layers",
    "mask",
    "max_norm_",
    "mc_dropout",
    "multi_sample_dropout",
    "multi_sample_dropout_backward",
    "multi_sample_linear",
    "multi_sample_linear_backward",
    "multi_sample_mean",
    "multi_sample_mean_backward",
    "release_buffers",
    "set_buffer_limit",
    "set_num_threads",
    "show_config",
    "softmax_dropout",
    "softmax_dropout_backward",
    "threads",
    "use_backend",
]
__all__ += fused.__all__
__all__ += losses.__all__

_config.start()
