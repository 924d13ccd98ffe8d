"""Stochastic depth drops whole samples, by the mask that fastdrop has of the same numbers."""

import numpy as np
import pytest

import fastdrop as fd

torch = pytest.importorskip("torch")
fdt = pytest.importorskip("fastdrop.torch")


@pytest.mark.parametrize("shape", [(50,), (50, 4), (50, 3, 4, 5)])
@pytest.mark.parametrize("inplace", [False, True])
def test_whole_samples(shape, inplace):
    x = torch.randn(shape, dtype=torch.float64)
    before = x.clone()
    y, mask = fdt.drop_path(x, 0.3, inplace=inplace, generator=fd.Rng(5), return_mask=True)
    assert mask == fd.Rng(5).mask((50, *(1,) * (len(shape) - 1)), 0.3)
    assert np.array_equal(y.numpy(), mask.apply(before.numpy()))
    assert (y is x) == inplace
    assert 0 < int((y.flatten(1) == 0).all(1).sum() if len(shape) > 1 else (y == 0).sum()) < 50


def test_gradients():
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(lambda x: fdt.drop_path(x, 0.4, generator=fd.Rng(1)), x)


def test_the_module():
    layer = fdt.DropPath(0.25, generator=fd.Rng(3))
    x = torch.ones(8, 3)
    assert torch.equal(layer(x), fdt.drop_path(x, 0.25, generator=fd.Rng(3)))
    assert layer.eval()(x) is x
    assert repr(layer) == "DropPath(p=0.25, inplace=False)"
    assert not layer.state_dict()


def test_what_is_refused():
    with pytest.raises(RuntimeError, match="drop_path: input must have an axis of samples"):
        fdt.drop_path(torch.ones(()))
    with pytest.raises(ValueError, match="between 0 and 1"):
        fdt.DropPath(1.5)


@pytest.mark.slow
def test_compiled():
    torch._dynamo.reset()
    layer = fdt.DropPath(0.5)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.ones(200, 3))
    assert (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0, 2}
    torch._dynamo.reset()
