"""PyTorch: dropout by torch's own names, with masks that are values.

``import fastdrop.torch as fdt``: ``fdt.dropout`` stands for `torch.nn.functional.dropout`, ``fdt.Dropout`` for
`torch.nn.Dropout`, in a fraction of the time, with ``generator=``; the functions take ``mask=`` and ``return_mask=``
besides.  Autograd keeps two integers and no mask.
``import fastdrop`` alone does not import torch.
"""

try:
    import torch as _torch
except ImportError as error:
    raise ImportError(f"fastdrop.torch needs PyTorch: pip install torch ({error})") from None

from ..masks import _restore as _restore_mask
from ..rng import _restore as _restore_rng
from .functional import alpha_dropout, drop_path, dropout, dropout1d, dropout2d, dropout3d, feature_alpha_dropout
from .modules import AlphaDropout, Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath, FeatureAlphaDropout
from .replace import Replaced, replace_dropout, restore_dropout

_torch.serialization.add_safe_globals([_restore_mask, _restore_rng])  # torch.load(..., weights_only=True) takes both

__all__ = [
    "AlphaDropout",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "Replaced",
    "alpha_dropout",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "replace_dropout",
    "restore_dropout",
]
