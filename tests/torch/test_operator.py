"""fastdrop.torch where torch looks on: torch.compile, torch.export, torch.func, vmap, meta and fake tensors, modes."""

import contextlib
import sys

import pytest

import fastdrop as fd

torch = pytest.importorskip("torch")
fdt = pytest.importorskip("fastdrop.torch")
operator = torch.ops.fastdrop.apply

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch's own compilers
KEY = torch.tensor([3, -4])
MASK = fd.Mask._make(3, 2**64 - 4, (4, 6), 0.25)


def values(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("layout", ["plain", "expanded", "channels last", "sliced"])
def test_opcheck(layout):
    x = {
        "plain": values(4, 6),
        "expanded": values(1, 6).expand(4, 6),
        "channels last": values(2, 4, 3, 6).to(memory_format=torch.channels_last),
        "sliced": values(8, 12)[::2, ::2],
    }[layout]
    shape = (4, 1, 6) if x.ndim == 4 else (4, 6)
    torch.library.opcheck(operator.default, (x, KEY, 0.25, shape))
    torch.library.opcheck(operator.default, (x.clone().requires_grad_(), KEY, 0.25, shape))


def test_the_operator_is_the_mask():
    x = values(4, 6)
    assert torch.equal(operator(x, KEY, 0.25, (4, 6)), fd.dropout(x, mask=MASK)[0])
    assert torch.equal(fdt.dropout(x, mask=MASK), operator(x, KEY, 0.25, (4, 6)))


def test_gradients_of_the_operator():
    x = values(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: operator(x, KEY, 0.25, (4, 6)), x)
    assert torch.autograd.gradgradcheck(lambda x: operator(x, KEY, 0.25, (4, 6)), x)


MODEL = [fdt.Dropout(0.5), fdt.Dropout1d(0.5), fdt.AlphaDropout(0.3)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layer", MODEL, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole_is_eager(backend, layer, dynamic):
    from torch._inductor import config

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), layer, torch.nn.Linear(16, 4))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)
    for rows in (5, 9) if dynamic else (5,):
        x = values(rows, 3, 8, dtype=torch.float32).requires_grad_()
        found = []
        for call in model, compiled:
            torch.manual_seed(7)
            with config.patch(fallback_random=True):
                y = call(x)
            found.append((y, *torch.autograd.grad(y.pow(2).sum(), (x, *model.parameters()))))
        torch.testing.assert_close(*found)


def test_compiled_draws_another_mask_at_each_call():
    compiled = torch.compile(lambda x: fdt.dropout(x), backend="aot_eager", fullgraph=True)
    x = torch.ones(100)
    assert not torch.equal(compiled(x), compiled(x))


def test_compiled_in_evaluation_is_the_input():
    compiled = torch.compile(fdt.Dropout(0.5).eval(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(torch.ones(4)), torch.ones(4))


def test_exported():
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), fdt.Dropout(0.5), torch.nn.Linear(16, 4))
    x = values(5, 8, dtype=torch.float32)
    exported = torch.export.export(model, (x,)).module()
    torch.manual_seed(1)
    want = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(exported(x), want)


def test_func_grad_and_jvp():
    x = values(4, 6)

    def f(x):
        return fdt.dropout(x, mask=MASK).pow(2).sum()

    own = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(f(own), own)
    assert torch.equal(torch.func.grad(f)(x), want)
    assert torch.func.jacrev(torch.func.grad(f))(x).sum() == pytest.approx(float(torch.func.hessian(f)(x).sum()))
    _, slope = torch.func.jvp(lambda x: fdt.dropout(x, mask=MASK), (x,), (torch.ones_like(x),))
    assert torch.equal(slope, fd.dropout(torch.ones_like(x), mask=MASK)[0])


@pytest.mark.parametrize("grad", [False, True])
def test_forward_mode(grad):
    from torch.autograd import forward_ad

    x, tangent = values(4, 6).requires_grad_(grad), values(4, 6) + 1
    with forward_ad.dual_level():
        y = fdt.dropout(forward_ad.make_dual(x, tangent), mask=MASK)
        slope = forward_ad.unpack_dual(y).tangent
    assert torch.equal(slope, fd.dropout(tangent, mask=MASK)[0])


@pytest.mark.parametrize("randomness", ["same", "different"])
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap(randomness, dim):
    x = torch.ones(50, 50)
    y = torch.func.vmap(lambda x: fdt.dropout(x, 0.5), in_dims=dim, randomness=randomness)(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert (len(y.unique(dim=0)) == 1) == (randomness == "same")


def test_vmap_refuses_randomness_unless_told():
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(fdt.dropout)(torch.ones(3, 4))


def test_gradients_of_each_sample():
    weight, x = values(6, 6), values(5, 6)

    def loss(weight, x):
        return fdt.dropout(x @ weight, 0.5).pow(2).sum()

    torch.manual_seed(1)
    grads = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="same")(weight, x)
    torch.manual_seed(1)
    key = torch.randint(-(2**63), 2**63 - 1, (2,)).tolist()
    mask = fd.Mask._make(key[0] % 2**64, key[1] % 2**64, (6,), 0.5)
    for i in range(5):
        own = weight.clone().requires_grad_()
        fdt.dropout(x[i] @ own, mask=mask).pow(2).sum().backward()
        torch.testing.assert_close(grads[i], own.grad)


@pytest.mark.parametrize("device", ["meta", "fake"])
def test_tensors_without_memory(device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() if device == "fake" else contextlib.nullcontext():
        x = torch.empty(4, 6, device="cpu" if device == "fake" else "meta")
        y = fdt.dropout(x, 0.5)
    assert type(y) is type(x)
    assert y.shape == x.shape
    assert y.device == x.device


def test_modes_see_the_operator():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        fdt.dropout(torch.ones(4))
    assert operator.default in seen


def test_subclasses_of_tensors_stay():
    class Mine(torch.Tensor):
        pass

    assert type(fdt.dropout(torch.ones(4).as_subclass(Mine))) is Mine


def test_what_the_operator_cannot_be_told():
    part = fd.mask((9, 9), 0.5, rng=0)[:4]
    with pytest.raises(RuntimeError, match="a mask that is a part of another, has several p or is made of bits"):
        torch.func.vmap(lambda x: fdt.dropout(x, mask=part[1]))(torch.ones(2, 9))
    with pytest.raises(RuntimeError, match="return_mask=True needs numbers"):
        fdt.dropout(torch.empty(4, device="meta"), return_mask=True)


TRAIN = """
import torch, fastdrop as fd, fastdrop.torch as fdt
torch.manual_seed(5)
fd.set_num_threads({threads})
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(20, 512), torch.nn.ReLU(), fdt.Dropout(0.4), torch.nn.Linear(512, 1))
step = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(5):
    step.zero_grad()
    model(torch.randn(1024, 20)).pow(2).mean().backward()
    step.step()
print(sum(int(p.detach().view(torch.int32).long().sum()) for p in model.parameters()))
"""


def test_processes_with_one_seed_train_alike_whatever_the_threads(fresh_python):
    runs = [fresh_python(TRAIN.format(threads=threads), timeout=120) for threads in (1, 3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert runs[0].stdout == runs[1].stdout


def test_fastdrop_alone_imports_no_torch(fresh_python):
    run = fresh_python("import sys, fastdrop; print('torch' in sys.modules)")
    assert run.stdout.strip() == "False", sys.version
