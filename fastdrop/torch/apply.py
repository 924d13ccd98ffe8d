"""One operation, a mask on a tensor; its gradient is the same operation. All else in this folder is made of it.

Two ways lead to the kernel.  A plain tensor takes `_Apply`, a function of autograd that keeps the `fastdrop.Mask`, a
few numbers: torch's dispatcher would cost more than dropout does on a small tensor.  Where torch looks on, in
torch.compile, torch.func, vmap, meta and fake tensors, subclasses and dispatch modes, it is the operator
``torch.ops.fastdrop.apply``, registered with fake kernel, gradient and vmap rule, on a mask whose two integers are a
tensor; what an operator cannot be told (a part of a mask, an array p, stored bits) raises there.
"""

from __future__ import annotations

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import maybe_current_level  # None where no transform of torch.func is at work
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ..backends import in_use
from ..borders.host import view
from ..compiled import _core
from ..dtypes import FLOATS, NAMES
from ..masks import Mask, apply_into
from ..memory import new_array
from ..rule import MASK64
from .keys import signed

DTYPES = {getattr(torch, name): _core.DTYPES[name] if _core is not None else name for name in FLOATS}
PLAIN = {torch.Tensor, torch.nn.Parameter}
RECYCLED = 2 << 20  # bytes from which on a fresh output costs more than dropout, unless its memory is used again


def check_dtype(x: torch.Tensor) -> None:
    """Raise TypeError unless the kernels know x's dtype and layout."""
    if x.layout is not torch.strided:
        raise TypeError(f"input must be a strided tensor, got {x.layout}")
    if x.dtype not in DTYPES:
        raise TypeError(f"input must be {NAMES}, got {x.dtype}")


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """torch.empty_like; in recycled memory where it is large."""
    if x.numel() * x.element_size() < RECYCLED or not x.is_cpu:
        return torch.empty_like(x)
    strides = torch.empty_like(x, device="meta").stride()
    words = torch.from_numpy(new_array((x.numel(),), np.dtype(f"i{x.element_size()}"))).view(x.dtype)
    return torch.empty(0, dtype=x.dtype).set_(words.untyped_storage(), 0, x.shape, strides)


def run(y: torch.Tensor, x: torch.Tensor, mask: Mask) -> torch.Tensor:
    """y = x * mask on tensors of one shape and dtype; y may be x."""
    if x.is_neg():
        x = x.resolve_neg()
    if not x.is_cpu:
        if not x.is_cuda:
            raise RuntimeError(f"input must lie in CPU or CUDA memory, got {x.device}")
        mask.apply(x.detach(), out=y.detach())
    elif in_use.backend.NAME != "native":
        apply_into(view(y.detach(), "out"), view(x.detach(), "input"), mask)
    elif x.numel():
        _core.apply_at(y.data_ptr(), y.stride(), x.data_ptr(), x.stride(), DTYPES[x.dtype], tuple(x.shape), mask)
    return y


class _Apply(torch.autograd.Function):
    """For plain tensors: the mask is kept as it is, and a second derivative is another call."""

    @staticmethod
    def forward(ctx, x, mask, inplace):
        ctx.mask = mask
        if inplace:
            ctx.mark_dirty(x)
        return run(x if inplace else empty_like(x), x, mask)

    @staticmethod
    def backward(ctx, dy):
        if dy is None:
            return None, None, None
        if dy.requires_grad or not is_plain(dy):
            return apply_mask(dy, ctx.mask), None, None
        return run(empty_like(dy), dy, ctx.mask), None, None


def _transformed():
    """Is a transform of torch.func at work, or forward mode, of which a plain kernel would lose the tangents?"""
    return maybe_current_level() is not None or forward_ad._current_level >= 0


def is_plain(x: torch.Tensor) -> bool:
    """Is ``x`` a tensor with memory that nothing but autograd looks on at?"""
    return (
        type(x) in PLAIN
        and not is_compiling()
        and not _transformed()
        and not _len_torch_dispatch_stack()
        and not x.is_meta
        and torch._C._has_storage(x)  # as a batch of gradients, or a sparse tensor, has none
    )


def apply(x: torch.Tensor, mask: Mask, inplace: bool = False) -> torch.Tensor:
    """x * mask with gradient, on a plain tensor; ``mask`` broadcasts to x."""
    with_grad = x.requires_grad and torch.is_grad_enabled()
    if inplace:
        check_in_place(x)
        if x.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError("Inplace update to inference tensor outside InferenceMode is not allowed.")
        if x.is_neg() or (with_grad and x._is_view()):  # torch writes lazy signs, and knows what views may not change
            return x.copy_(apply(x, mask))
    if with_grad:
        return _Apply.apply(x, mask, inplace)
    y = run(x if inplace else empty_like(x), x, mask)
    if inplace and not x.is_inference():
        torch.autograd.graph.increment_version(x)
    return y


def check_in_place(x: torch.Tensor) -> None:
    """Raise RuntimeError, before anything is written, where torch would after it."""
    if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")
    if any(step == 0 and n > 1 for step, n in zip(x.stride(), x.shape)):
        raise RuntimeError("input must have memory for each element to be changed in place, got an expanded tensor")


def apply_mask(x: torch.Tensor, mask: Mask, inplace: bool = False) -> torch.Tensor:
    """x * mask with gradient, on any tensor: `apply`, or the operator where that must be told."""
    if is_plain(x):
        return apply(x, mask, inplace)
    if mask._stored is not None or type(mask._p) is not float or mask._offset or mask._strides is not None:
        raise RuntimeError(
            "a mask that is a part of another, has several p or is made of bits cannot be used in torch.compile, "
            "torch.func or on meta tensors; a whole mask of fastdrop.mask or fastdrop.Rng.mask can"
        )
    key = torch.tensor([signed(mask.seed), signed(mask.stream)])
    return by_operator(x, key, mask._p, mask.shape, inplace)


def by_operator(x, key, p, mask_shape, inplace=False):
    if not inplace:
        return operator(x, key, p, mask_shape)
    check_in_place(x)
    return x.copy_(operator(x, key, p, mask_shape))


# -- the operator ------------------------------------------------------------------------------------------------------

_library = torch.library.Library("fastdrop", "DEF")
_library.define(
    "apply(Tensor x, Tensor key, float p, SymInt[] mask_shape) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


@torch.library.impl(_library, "apply", "CPU")
@torch.library.impl(_library, "apply", "CUDA")
def _run_operator(x, key, p, mask_shape):
    seed, stream = key.tolist()
    return run(empty_like(x), x, Mask._make(seed & MASK64, stream & MASK64, tuple(mask_shape), p))


@torch.library.register_fake("fastdrop::apply", lib=_library)
def _(x, key, p, mask_shape):
    return torch.empty_like(x)


def _keep_key(ctx, inputs, output):
    _, key, ctx.p, ctx.mask_shape = inputs
    ctx.save_for_backward(key)


def _gradient(ctx, dy):
    (key,) = ctx.saved_tensors
    return None if dy is None else operator(dy, key, ctx.p, ctx.mask_shape), None, None, None


torch.library.register_autograd("fastdrop::apply", _gradient, setup_context=_keep_key, lib=_library)


def _batch(info, in_dims, x, key, p, mask_shape):
    """Of one key every part has the same mask, which broadcasts; of a batch of keys each part has its own."""
    x_dim, key_dim, *_ = in_dims
    if key_dim is None:
        x = x.movedim(x_dim, 0)
        return operator(x, key, p, (*(1,) * (x.ndim - 1 - len(mask_shape)), *mask_shape)), 0
    keys = key.movedim(key_dim, 0).unbind()
    parts = [x] * len(keys) if x_dim is None else x.movedim(x_dim, 0).unbind()
    return torch.stack([operator(*pair, p, mask_shape) for pair in zip(parts, keys)]), 0


torch.library.register_vmap("fastdrop::apply", _batch, lib=_library)


class _Operator(torch.autograd.Function):
    """The operator for torch.func and forward mode, which do not look at the gradient that it was registered with."""

    vmap = staticmethod(_batch)

    @staticmethod
    def forward(x, key, p, mask_shape):
        return torch.ops.fastdrop.apply(x, key, p, mask_shape)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _keep_key(ctx, inputs, output)
        ctx.save_for_forward(inputs[1])

    backward = staticmethod(_gradient)

    @staticmethod
    def jvp(ctx, dx, *_):
        (key,) = ctx.saved_tensors
        return operator(dx, key, ctx.p, ctx.mask_shape)


def operator(x: torch.Tensor, key: torch.Tensor, p: float, mask_shape: tuple[int, ...]) -> torch.Tensor:
    """The operator, differentiable under torch.func too."""
    if not is_compiling() and _transformed():
        return _Operator.apply(x, key, p, tuple(mask_shape))
    return torch.ops.fastdrop.apply(x, key, p, mask_shape)
