"""fastdrop.torch beside torch's own functions and fastdrop's masks: values, gradients, arguments, memory."""

import copy
import io
import pickle

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.dtypes import FLOATS

torch = pytest.importorskip("torch")
fdt = pytest.importorskip("fastdrop.torch")
F = torch.nn.functional

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")

FUNCTIONS = {  # name: a shape, the mask's shape for it
    "dropout": ((3, 4, 5), (3, 4, 5)),
    "dropout1d": ((3, 4, 5), (3, 4, 1)),
    "dropout2d": ((3, 4, 5, 6), (3, 4, 1, 1)),
    "dropout3d": ((3, 4, 2, 5, 6), (3, 4, 1, 1, 1)),
    "alpha_dropout": ((3, 4, 5), (3, 4, 5)),
    "feature_alpha_dropout": ((3, 4, 5), (3, 4, 1)),
}
PLAIN = [name for name in FUNCTIONS if "alpha" not in name]
MODULES = {"dropout": "Dropout", "dropout1d": "Dropout1d", "dropout2d": "Dropout2d", "dropout3d": "Dropout3d",
           "alpha_dropout": "AlphaDropout", "feature_alpha_dropout": "FeatureAlphaDropout"}  # fmt: skip
DTYPES = [getattr(torch, name) for name in FLOATS]


def values(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def expected(name, x, mask, p):
    """The formulas, on float64."""
    keep = torch.from_numpy(np.broadcast_to(mask.keep(), x.shape).copy())
    x = x.double()
    if "alpha" not in name:
        return torch.where(keep, x / (1 - p), 0.0)
    limit = -1.0507009873554805 * 1.6732632423543772
    a = (1 - p + p * (1 - p) * limit**2) ** -0.5
    return a * torch.where(keep, x, limit) - a * p * limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_values_are_the_formula_on_the_mask(engine, name, p, dtype):
    shape, mask_shape = FUNCTIONS[name]
    x = values(shape, dtype)
    rng = fd.Rng(7, 3)
    y, mask = getattr(fdt, name)(x, p, training=True, generator=rng, return_mask=True)
    assert mask == fd.Rng(7, 3).mask(mask_shape, p)
    assert y.dtype == dtype
    assert rng.stream == 4
    rounding = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    torch.testing.assert_close(y.double(), expected(name, x, mask, p), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_is_fastdrops_to_the_bit(engine, dtype):
    x = values((40, 300), dtype)
    y, mask = fdt.dropout(x, 0.3, generator=fd.Rng(5), return_mask=True)
    assert torch.equal(y.view(torch.uint8), fd.dropout(x, mask=mask)[0].view(torch.uint8))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    shape, mask_shape = FUNCTIONS[name]
    mask = fd.mask(mask_shape, 0.4, rng=3)
    x = values(shape, torch.float64).requires_grad_()

    def call(x):
        return getattr(fdt, name)(x, training=True, mask=mask)

    assert torch.autograd.gradcheck(call, x)
    assert torch.autograd.gradgradcheck(call, x)


def test_what_autograd_keeps_is_no_array():
    x = torch.ones(1 << 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        fdt.dropout(x, 0.5).sum().backward()
    assert not [t for t in kept if t.numel() > 2]


@pytest.mark.parametrize("how", ["expanded", "transposed", "every other", "channels last"])
def test_gradients_of_any_layout(how):
    x = torch.ones(4, 6, 2, 2, requires_grad=True)
    y, mask = fdt.dropout(x, 0.5, generator=fd.Rng(1), return_mask=True)
    dy = {
        "expanded": torch.ones(()).expand(4, 6, 2, 2),
        "transposed": values((2, 2, 6, 4)).permute(3, 2, 1, 0),
        "every other": values((4, 6, 2, 4))[..., ::2],
        "channels last": values((4, 6, 2, 2)).to(memory_format=torch.channels_last),
    }[how]
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, fd.dropout_backward(dy.contiguous(), mask))


def test_a_gradient_that_is_none():
    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.sum()

        @staticmethod
        def backward(ctx, dy):
            return None

    x = torch.ones(5, requires_grad=True)
    Nothing.apply(fdt.dropout(x)).backward()
    assert x.grad is None or not x.grad.any()


# -- torch's arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arguments_and_defaults_are_torchs(name):
    import inspect

    ours, theirs = (inspect.signature(getattr(module, name)).parameters for module in (fdt, F))
    assert list(ours)[:4] == list(theirs)
    assert [ours[k].default for k in theirs] == [theirs[k].default for k in theirs]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_p_outside_is_refused(name, p):
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got"):
        getattr(fdt, name)(torch.ones(FUNCTIONS[name][0]), p, training=True)
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got"):
        getattr(fdt, MODULES[name])(p)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_drops_nothing_is_the_input(name):
    x = torch.ones(FUNCTIONS[name][0])
    function, module = getattr(fdt, name), getattr(fdt, MODULES[name])
    before = torch.get_rng_state()
    assert function(x, 0.5, training=False) is x
    assert function(x, 0.0, training=True) is x
    assert module(0.5).eval()(x) is x
    assert function(x[:0], 0.5, training=True).shape == x[:0].shape
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", PLAIN)
def test_p_of_one_drops_everything(name):
    x = torch.full(FUNCTIONS[name][0], float("nan"), requires_grad=True)
    y = getattr(fdt, name)(x, 1.0)
    y.backward(torch.ones_like(y))
    for zeros in y, x.grad:
        assert not zeros.any()
        assert not torch.signbit(zeros).any()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_in_place(name):
    shape, mask_shape = FUNCTIONS[name]
    mask = fd.mask(mask_shape, 0.4, rng=3)
    function = getattr(fdt, name)
    x = values(shape)
    want, version = function(x, training=True, mask=mask), x._version
    assert function(x, training=True, inplace=True, mask=mask) is x
    assert torch.equal(x, want)
    assert x._version > version
    leaf = values(shape).requires_grad_()
    before = leaf.detach().clone()
    with pytest.raises(RuntimeError, match="leaf"):
        function(leaf, training=True, inplace=True, mask=mask)
    assert torch.equal(leaf, before)
    y = function(leaf * 1, training=True, inplace=True, mask=mask)
    (got,) = torch.autograd.grad(y.sum(), leaf)
    (wanted,) = torch.autograd.grad(function(leaf, training=True, mask=mask).sum(), leaf)
    torch.testing.assert_close(got, wanted)


def test_in_place_where_each_element_has_no_memory():
    x = torch.ones(1, 4).expand(3, 4)
    with pytest.raises(RuntimeError, match="expanded"):
        fdt.dropout(x, inplace=True)
    assert x.eq(1).all()


def test_a_saved_tensor_that_was_changed_is_noticed():
    x = torch.ones(4, requires_grad=True)
    a = x * 1
    b = a.exp() * a
    fdt.dropout(a, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        b.sum().backward()


# -- ranks, channels ---------------------------------------------------------------------------------------------------


def test_three_axes_of_dropout2d():
    with pytest.warns(UserWarning, match=r"dropout2d takes a 3D input as \(N, C, L\)"):
        y = fdt.dropout2d(torch.ones(50, 3, 7))
    assert torch.equal(y.amax(-1), y.amin(-1))
    assert len(y.amax(-1).unique(dim=0)) > 1


@pytest.mark.parametrize(("name", "shape"), [("dropout1d", (6, 9)), ("dropout3d", (6, 2, 3, 4))])
def test_without_a_batch(name, shape):
    x = values(shape)
    y = getattr(fdt, name)(x, 0.5, generator=fd.Rng(3))
    batched = getattr(fdt, name)(x[None], 0.5, generator=fd.Rng(3))[0]
    assert torch.equal(y, batched)
    own = x.clone()
    assert getattr(fdt, name)(own, 0.5, inplace=True, generator=fd.Rng(3)) is own
    assert torch.equal(own, y)


# -- where masks come from ---------------------------------------------------------------------------------------------


def test_generators():
    x = torch.ones(64)
    g = torch.Generator().manual_seed(11)
    first, second = fdt.dropout(x, generator=g), fdt.dropout(x, generator=g)
    assert not torch.equal(first, second)
    assert torch.equal(first, fdt.dropout(x, generator=torch.Generator().manual_seed(11)))
    torch.manual_seed(11)
    assert torch.equal(first, fdt.dropout(x))
    assert torch.equal(second, fdt.dropout(x))
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or a fastdrop\.Rng, got int"):
        fdt.dropout(x, generator=3)


@pytest.mark.parametrize("size", [4, 1 << 20])
def test_one_draw_whatever_the_size(size):
    torch.manual_seed(1)
    fdt.dropout(torch.ones(size))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    torch.randint(-(2**63), 2**63 - 1, (2,))
    assert torch.equal(state, torch.get_rng_state())


def test_fork_rng():
    x = torch.ones(64)
    torch.manual_seed(2)
    with torch.random.fork_rng():
        inside = fdt.dropout(x)
    assert torch.equal(inside, fdt.dropout(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_draw_the_same_mask(reentrant):
    from torch.utils.checkpoint import checkpoint

    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), fdt.Dropout(0.5), torch.nn.Linear(8, 8), fdt.Dropout(0.5))
    x = values((5, 8)).requires_grad_()
    torch.manual_seed(3)
    (want,) = torch.autograd.grad(layer(x).pow(2).sum(), x)
    torch.manual_seed(3)
    checkpoint(layer, x, use_reentrant=reentrant).pow(2).sum().backward()
    assert torch.equal(x.grad, want)


def test_seeds_from_2_to_the_63_on():
    mask = fd.Mask._make(2**64 - 3, 2**63 + 5, (40,), 0.5)
    x = values((40,))
    plain = fdt.dropout(x, mask=mask)
    assert torch.equal(plain, torch.func.vmap(lambda x: fdt.dropout(x, mask=mask))(x[None])[0])


def test_masks_given():
    x = values((4, 6))
    part = fd.mask((9, 9), 0.5, rng=1)[2:6, 1:7]
    several = fd.mask((4, 6), [0.1, 0.5, 0.9, 0.0], rng=1)
    own = fd.Mask.from_keep(np.eye(4, 6, dtype=bool), 0.5)
    for mask in part, several, own, fd.mask((4, 1), 0.5, rng=2), fd.mask((6,), 0.5, rng=2):
        assert torch.equal(fdt.dropout(x, mask=mask), fd.dropout(x, mask=mask)[0])
        assert torch.equal(fdt.dropout(x, training=False, mask=mask), fd.dropout(x, mask=mask)[0])
    for mask in fd.mask((5, 6), 0.5, rng=0), fd.mask((1, 4, 6), 0.5, rng=0):
        with pytest.raises(ValueError, match="mask must broadcast to input's shape"):
            fdt.dropout(x, mask=mask)
    with pytest.raises(TypeError, match=r"mask must be a fastdrop\.Mask, got Tensor"):
        fdt.dropout(x, mask=x)


# -- tensors of every kind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        values((3, 4, 5)).permute(2, 0, 1), values((6, 9))[::2, ::3], values((1, 5)).expand(4, 5), values(()),
        values((2, 8, 5, 5)).to(memory_format=torch.channels_last), values((1, 3)).expand(4, 3).T,
        values((4, 9, 3))[:, 2:],
    ],
    ids=["permuted", "sliced", "expanded", "0-d", "channels last", "expanded and turned", "part"],
)  # fmt: skip
def test_layouts(x):
    y, mask = fdt.dropout(x, 0.5, generator=fd.Rng(1), return_mask=True)
    assert y.stride() == torch.empty_like(x).stride()
    assert torch.equal(y, fd.dropout(x.contiguous(), mask=mask)[0])


def test_large_outputs_are_recycled_and_as_torchs():
    x = values((8, 64, 64, 64)).to(memory_format=torch.channels_last)
    fd.release_buffers()
    y, mask = fdt.dropout(x, 0.5, generator=fd.Rng(1), return_mask=True)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert y._base is None
    assert torch.equal(y, fd.dropout(x, mask=mask)[0])
    address = y.data_ptr()
    del y
    again = fdt.dropout(x, 0.5)
    if fd.get_backend() == "native":
        assert again.data_ptr() == address


def test_lazy_signs_are_read():
    x = torch.tensor([1 + 2j, 3 - 4j] * 8).conj().imag
    assert x.is_neg()
    y, mask = fdt.dropout(x, 0.5, generator=fd.Rng(1), return_mask=True)
    assert torch.equal(y, fd.dropout(x.resolve_neg(), mask=mask)[0])
    z = torch._neg_view(-x.resolve_neg())
    assert fdt.dropout(z, mask=mask, inplace=True) is z
    assert torch.equal(z, y)


def test_other_dtypes_are_refused():
    for dtype in torch.int64, torch.bool, torch.complex64:
        with pytest.raises(TypeError, match="input must be float16, bfloat16, float32 or float64, got torch"):
            fdt.dropout(torch.ones(4, dtype=dtype))
    with pytest.raises(TypeError, match="input must be a tensor, got ndarray"):
        fdt.dropout(np.ones(3, np.float32))


def test_without_grad():
    x = torch.ones(8, requires_grad=True)
    with torch.no_grad():
        assert not fdt.dropout(x).requires_grad
    with torch.inference_mode():
        y = fdt.dropout(torch.ones(8))
        assert y.is_inference()
        fdt.dropout(y, inplace=True)
    fdt.dropout(torch.ones(8))  # the words that keys are drawn into serve outside too


def test_autocast():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 8), fdt.Dropout(0.5))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(4, 8))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert layer[0].weight.grad.dtype == torch.float32


# -- modules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_modules(name):
    ours, theirs = getattr(fdt, MODULES[name]), getattr(torch.nn, MODULES[name])
    layer = ours(0.25, generator=fd.Rng(4))
    assert isinstance(layer, theirs)
    assert repr(layer) == repr(theirs(0.25))
    assert not layer.state_dict()
    x = values(FUNCTIONS[name][0])
    want = getattr(fdt, name)(x, 0.25, training=True, generator=fd.Rng(4))
    assert torch.equal(layer(x), want)
    for other in (
        copy.deepcopy(ours(0.25, generator=fd.Rng(4))),
        pickle.loads(pickle.dumps(ours(0.25, generator=fd.Rng(4)))),
    ):
        assert torch.equal(other(x), want)
    with pytest.raises(TypeError):
        ours(0.25, False, fd.Rng(4))


def test_whole_models_are_saved_and_loaded():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), fdt.Dropout(0.5))
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5))
    other.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    x = torch.ones(2, 3)
    assert torch.equal(torch.load(file, weights_only=False).eval()(x), other.eval()(x))


@pytest.mark.parametrize("thing", [fd.Mask._make(2**64 - 1, 2**63, (3, 4), 0.25), fd.Rng(2**64 - 1, 7)], ids=repr)
def test_masks_and_generators_survive_a_load_of_weights_only(thing):
    file = io.BytesIO()
    torch.save({"thing": thing}, file)
    file.seek(0)
    assert repr(torch.load(file, weights_only=True)["thing"]) == repr(thing)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mean_and_deviation_are_kept(name):
    """Of a million values; the mean of the channels' decisions strays by 0.25 / sqrt(n): 6 of these are 1 in 5e8."""
    lead = 1000, 1000
    x = values((*lead, *(1,) * (len(FUNCTIONS[name][0]) - 2)))
    y = getattr(fdt, name)(x, 0.2, training=True, generator=fd.Rng(9)).flatten()
    spread = 1.0 if "alpha" in name else 1.25**0.5
    assert abs(float(y.mean())) < 6 * spread / 1000
    assert abs(float(y.std()) - spread) < 6 * 2 / 1000
