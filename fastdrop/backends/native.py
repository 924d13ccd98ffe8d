"""The native backend: C kernels chosen for this CPU, behind the compiled extension."""

from .. import _core
from . import reference

NAME = "native"

short_way = _core.dropout
apply = _core.apply
keep = _core.keep
dropout_add = _core.dropout_add
relu_dropout = _core.relu_dropout
relu_dropout_backward = _core.relu_dropout_backward


def keep_bits(out, mask):
    if mask._strides is None and type(mask.p) is float:
        _core.keep_bits(out, mask, mask.size)
    else:
        reference.pack_bits(out, mask)


def apply_sum(dx, dy, mask):
    reference.apply_sum(dx, dy, mask, apply)
