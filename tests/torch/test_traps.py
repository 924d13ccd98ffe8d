"""What went wrong in prototypes of an adapter to torch, mostly in silence: each trap is a test."""

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd

torch = pytest.importorskip("torch")
fdt = pytest.importorskip("fastdrop.torch")
import torch.nn.functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other": lambda x: x[:, :, ::2],
    "expanded": lambda x: x[:1, :, :1].expand(4, -1, 6, -1),
    "moved by an element": lambda x: x.flatten()[1:],
    "flipped sign": torch._neg_view,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("n", [5, 160])  # the larger one's results come from recycled memory
def test_the_mask_goes_by_logical_order_and_strides_are_those_of_empty_like(layout, n):
    x = LAYOUTS[layout](torch.randn(4, 6, n, n))
    mask = fd.mask(tuple(x.shape), 0.5, rng=0)
    y = fdt.dropout(x, mask=mask)
    assert np.array_equal(y.numpy(), mask.apply(x.resolve_neg().numpy()))
    assert y.stride() == torch.empty_like(x).stride()  # Inductor goes by it


@pytest.mark.parametrize("part", [False, True])
def test_in_place_on_a_leaf_writes_nothing(part):
    x = torch.randn(8, 8, requires_grad=True)
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        fdt.dropout(x[2:] if part else x, inplace=True)
    assert torch.equal(x, before)


def test_in_place_on_one_of_several_views_writes_nothing():
    x = torch.randn(8, 8, requires_grad=True) * 1
    before = x.detach().clone()
    with pytest.raises(RuntimeError, match="returns multiple views"):
        fdt.dropout(x.unbind()[0], inplace=True)
    assert torch.equal(x, before)


def test_in_place_on_a_tensor_of_inference_mode_writes_nothing():
    with torch.inference_mode():
        x = torch.ones(100)
        assert fdt.dropout(x.clone(), inplace=True).is_inference()
    with pytest.raises(RuntimeError, match="inference tensor outside InferenceMode"):
        fdt.dropout(x, inplace=True)
    assert x.all()


def test_in_place_through_a_view_has_its_gradient():
    x = torch.randn(4, 6, requires_grad=True)
    y = x * 1
    _, mask = fdt.dropout(y[1:], inplace=True, return_mask=True)
    y.sum().backward()
    assert torch.equal(x.grad[0], torch.ones(6))
    assert np.array_equal(x.grad[1:].numpy(), np.asarray(mask, np.float32))


@pytest.mark.parametrize("inplace", [False, True])
def test_sparse_tensors(inplace):
    with pytest.raises(TypeError, match=r"input must be a strided tensor, got torch\.sparse_coo"):
        fdt.dropout(torch.eye(3).to_sparse(), inplace=inplace)


CASES = {
    "dropout": fdt.dropout,
    "dropout1d": fdt.dropout1d,
    "alpha_dropout": functools.partial(fdt.alpha_dropout, training=True),
    "feature_alpha_dropout": functools.partial(fdt.feature_alpha_dropout, training=True),
    "mask": lambda x, generator: fdt.dropout(x, mask=generator.mask((4, 5), 0.3)),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_derivatives_and_batches_of_gradients(name):
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: CASES[name](x, generator=fd.Rng(1)), x, check_forward_ad=True, check_batched_grad=True
    )


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("generator", [fd.Rng(0), torch.Generator()], ids=["Rng", "torch.Generator"])
def test_other_generators_under_checkpointing(reentrant, generator):
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="generator must be None in a region under activation checkpointing"):
        checkpoint(lambda x: fdt.dropout(x, generator=generator), x, use_reentrant=reentrant)
    mask = fd.mask(4, 0.5, rng=0)
    checkpoint(lambda x: fdt.dropout(x, mask=mask), x, use_reentrant=reentrant).sum().backward()
    assert np.array_equal(x.grad.numpy(), np.asarray(mask, np.float32))


@pytest.mark.slow
def test_a_generator_in_compiled_code_moves_on():
    torch._dynamo.reset()
    rng, x = fd.Rng(3), torch.ones(100)
    compiled = torch.compile(lambda x: fdt.dropout(x, generator=rng) + 0, backend="aot_eager")
    for i in range(3):
        assert torch.equal(compiled(x), fdt.dropout(x, generator=fd.Rng(3, i)))
    torch._dynamo.reset()


@pytest.mark.slow  # another process, where the words that numbers are drawn into are made first
def test_the_default_device_is_not_where_numbers_are_drawn():
    code = (
        "import torch, fastdrop as fd\n"
        "with torch.device('meta'):\n"
        "    import fastdrop.torch as fdt\n"
        "    for x in (torch.ones(100, device='cpu'), torch.ones(100)):\n"
        "        for generator in (None, fd.Rng(0)):\n"
        "            assert fdt.dropout(x, generator=generator).device == x.device\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def both(name, *args):
    """What torch's function of that name does and what ours does: shapes, or errors; and what they warn of."""
    for functions in (F, fdt):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = getattr(functions, name)(*args).shape
            except (ValueError, RuntimeError) as error:
                result = type(error)
        yield result, [one.category for one in caught]


@pytest.mark.parametrize("name", ["dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout"])
@pytest.mark.parametrize("dim", range(7))
def test_ranks_raise_and_warn_as_torch(name, dim):
    theirs, ours = both(name, torch.ones((2,) * dim), 0.5, True)
    assert ours == theirs


@pytest.mark.parametrize("shape", [(16, 40), (16, 5, 4, 2)])
@pytest.mark.parametrize("inplace", [False, True])
def test_channels_without_a_batch(shape, inplace):
    function = fdt.dropout1d if len(shape) == 2 else fdt.dropout3d
    x = torch.ones(shape)
    y, mask = function(x, 0.5, inplace=inplace, return_mask=True)
    assert (y is x) == inplace
    assert (y.flatten(1) == y.flatten(1)[:, :1]).all()
    assert mask.shape == (16, *(1,) * (len(shape) - 1))
    assert torch.equal(function(torch.ones(shape), mask=mask), y)


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_modules_of_alpha_dropout_leave_their_input_as_those_of_torch_do(name):
    for modules in (torch.nn, fdt):
        x = torch.ones(5, 6)
        assert getattr(modules, name)(0.5, inplace=True)(x) is not x
        assert x.eq(1).all()


@pytest.mark.slow  # three processes that import torch
def test_data_parallel_training_does_not_depend_on_the_number_of_processes():
    if not torch.distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    script = Path(__file__).parents[2] / "examples" / "torch_data_parallel.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert "masks of one and of two processes are equal" in done.stdout, done.stderr


LOADER = """
import torch, fastdrop.torch as fdt

class Dropped(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return fdt.dropout(torch.ones(200))

def epoch(seed):
    torch.manual_seed(seed)
    return torch.cat(list(torch.utils.data.DataLoader(Dropped(), num_workers=2)))

a, b = epoch(1), epoch(1)
assert torch.equal(a, b)
assert not torch.equal(a, epoch(2))
assert len({one.numpy().tobytes() for one in a}) == 4
"""


def test_workers_of_a_data_loader(fresh_python):
    """In a process of its own, since workers are forked and other libraries of this one have threads."""
    run = fresh_python(LOADER)
    assert run.returncode == 0, run.stderr
