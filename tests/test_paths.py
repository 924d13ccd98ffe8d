"""That the fast ways are still taken: counted and named, not timed."""

import tracemalloc

import numpy as np
import pytest

import fastdrop as fd

core = pytest.importorskip("fastdrop._core")


def test_the_best_instruction_set_is_the_one_in_use():
    assert core.isa() == core.isa_found()[0]
    assert core.isa_found()[-1] == "scalar"
    assert fd.get_backend() == "native"


@pytest.mark.parametrize(
    ("shape", "mask_shape", "axes", "bits"),
    [
        ((1 << 20,), (1 << 20,), [1 << 20], "along"),
        ((8, 16, 32, 32), (8, 16, 32, 32), [1 << 17], "along"),  # one axis, whatever the number of dimensions
        ((8, 16, 32, 32), (8, 16, 1, 1), [128, 1024], "shared"),  # spatial
        ((8, 16, 32, 32), (8, 1, 1, 1), [8, 16384], "shared"),  # drop path
        ((8, 64, 512), (8, 1, 512), [8, 64, 512], "along"),  # locked
    ],
)
def test_contiguous_arrays_are_walked_in_place(shape, mask_shape, axes, bits):
    x = np.ones(shape, np.float32)
    plan = core.describe_plan(np.empty_like(x), x, fd.mask(mask_shape, 0.1, rng=0))
    assert plan["axes"] == axes
    assert plan["bits"] == bits
    assert not plan["x packed"]
    assert not plan["y packed"]


@pytest.mark.parametrize("order", ["transposed", "Fortran", "channels last"])
def test_memory_order_is_followed_across_the_masks(order):
    x = {
        "transposed": lambda: np.ones((300, 400), np.float32).T,
        "Fortran": lambda: np.asfortranarray(np.ones((300, 400), np.float32)),
        "channels last": lambda: np.ones((4, 9, 9, 64), np.float32).transpose(0, 3, 1, 2),
    }[order]()
    y = np.empty_like(x)
    plan = core.describe_plan(y, x, fd.mask(x.shape, 0.1, rng=0))
    assert y.strides == x.strides
    assert plan["bits"] == "across"
    assert not plan["x packed"]
    assert not plan["y packed"]


@pytest.mark.parametrize(
    ("shape", "order", "size", "joined"),
    [
        ((64, 64, 64, 64), (3, 2, 1, 0), (4096, 4096), False),  # short axes: several make a run, several a column
        ((8, 3, 90, 90), (0, 2, 3, 1), (3, 8100), True),  # three channels: runs too short for a call each
        ((8, 64, 90, 90), (0, 2, 3, 1), (64, 8100), True),
        ((300, 400), (1, 0), (300, 400), False),
    ],
)
def test_runs_across_the_mask_are_long_and_use_the_bits_that_are_made(shape, order, size, joined):
    x = np.ones([shape[a] for a in order], np.float32).transpose(np.argsort(order))
    plan = core.describe_plan(np.empty_like(x), x, fd.mask(shape, 0.1, rng=0))
    assert plan["bits"] == "across"
    assert plan["runs and columns"] == size
    assert plan["runs joined"] == joined


def test_strided_input_is_packed_tile_by_tile():
    x = np.ones((64, 2000), np.float32)[:, ::2]
    plan = core.describe_plan(np.empty(x.shape, x.dtype), x, fd.mask(x.shape, 0.1, rng=0))
    assert plan["x packed"]
    assert not plan["y packed"]
    assert plan["bits"] == "along"


def test_large_outputs_are_stored_past_the_cache_unless_in_place():
    x = np.zeros(4 << 20, np.float32)
    mask = fd.mask(x.shape, 0.1, rng=0)
    assert core.describe_plan(np.empty_like(x), x, mask)["nontemporal"]
    assert not core.describe_plan(x, x, mask)["nontemporal"]
    assert not core.describe_plan(np.empty_like(x[:1000]), x[:1000], fd.mask(1000, 0.1, rng=0))["nontemporal"]


def test_work_is_cut_into_tiles_for_threads():
    x = np.zeros(1 << 20, np.float32)
    assert core.describe_plan(np.empty_like(x), x, fd.mask(x.shape, 0.1, rng=0))["units"] == (1 << 20) // 4096


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("call", ["dropout", "apply", "backward", "dropout_add"])
def test_nothing_is_copied_where_out_is_given(call, order):
    x = np.array(np.ones((1000, 1000), np.float32), order=order)
    out, mask = np.empty_like(x), fd.mask(x.shape, 0.1, rng=0)
    calls = {
        "dropout": lambda: fd.dropout(x, 0.1, rng=0, out=out),
        "apply": lambda: mask.apply(x, out),
        "backward": lambda: mask.backward(x, out=out),
        "dropout_add": lambda: fd.dropout_add(x, x, mask=mask, out=out),
    }
    calls[call]()
    tracemalloc.start()
    calls[call]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_384


def test_the_fast_path_is_taken_by_plain_arrays():
    x, rng = np.ones(1000, np.float32), fd.Rng(3)
    y, mask = core.fast_path(x, 0.1, rng, None)
    assert np.array_equal(y, mask.apply(x))
    assert mask == fd.mask(1000, 0.1, rng=3)
    refused = [(x[::2], 0.1, None), (x, 0.0, None), (x, 1.5, None), (x.astype(int), 0.1, None), (x, 0.1, x[:10])]
    for array, p, out in refused:
        assert core.fast_path(array, p, rng, out) is None
    assert rng.stream == 1


def test_memory_of_large_outputs_is_used_again():
    fd.release_buffers()
    before = core.kept_bytes()
    x = np.ones(2 << 20, np.float32)
    y, _ = fd.dropout(x, 0.1, rng=0)
    address, part = y.ctypes.data, y[5:]
    del y
    assert core.kept_bytes() == before  # a view of it is alive
    assert (part[:10] >= 0).all()
    del part
    assert core.kept_bytes() == before + x.nbytes
    again, _ = fd.dropout(x, 0.1, rng=0)
    assert again.ctypes.data == address
    assert again.ctypes.data % (2 << 20) == 0
    del again
    fd.release_buffers()
    assert core.kept_bytes() == 0


def test_buffer_limit_bounds_what_is_kept():
    x = np.ones(2 << 20, np.float32)
    try:
        fd.set_buffer_limit(x.nbytes)
        fd.release_buffers()
        two = [fd.dropout(x, 0.1, rng=0)[0] for _ in range(2)]
        del two
        assert core.kept_bytes() == x.nbytes
        small = fd.dropout(x[: x.size // 2 + 1], 0.1, rng=0)[0]
        del small  # makes room for itself: the other has waited longer
        assert core.kept_bytes() == x.nbytes // 2 + (2 << 20)
        fd.set_buffer_limit(0)
        assert core.kept_bytes() == 0
        y, mask = fd.dropout(x, 0.1, rng=0)
        assert y.flags.owndata
        assert np.array_equal(y, mask.apply(x, np.empty_like(x)))
        del y
        assert core.kept_bytes() == 0
    finally:
        fd.set_buffer_limit(512 << 20)
    with pytest.raises(ValueError, match="n must be an integer of at least 0"):
        fd.set_buffer_limit(-1)
    with pytest.raises(TypeError, match="n must be an integer of at least 0"):
        fd.set_buffer_limit(1.5)


def test_an_array_p_cannot_be_changed():
    mask = fd.mask((3, 4), [0.1, 0.2, 0.3], rng=0)
    with pytest.raises(ValueError, match="WRITEABLE"):
        mask.p.flags.writeable = True
