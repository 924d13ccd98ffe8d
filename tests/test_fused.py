"""Fused ops: each equals its NumPy twin bit for bit, drops what `dropout` drops, and has the gradient it says."""

from dataclasses import asdict

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.backends import reference
from fastdrop.dtypes import FLOATS
from fastdrop.operations import ACTIVATIONS, LOSSES, OPERATIONS

core = pytest.importorskip("fastdrop._core")

EXACT = [name for name, op in ACTIVATIONS.items() if not op.tolerance]
NEAR = [name for name in ACTIVATIONS if name not in EXACT]
DTYPES = [np.float32, np.float64, np.float16, pytest.importorskip("ml_dtypes").bfloat16]
SHAPES = [(1,), (63,), (64,), (65,), (5, 7), (3, 1024), (2, 3, 130), (9, 4100), (200, 3)]


@pytest.fixture(params=core.isa_found())
def isa(request):
    before, backend = core.isa(), fd.get_backend()
    fd.use_backend("native")
    core.use_isa(request.param)
    yield request.param
    assert core.isa() == request.param
    assert fd.get_backend() == "native"
    core.use_isa(before)
    fd.use_backend(backend)


def same_bits(a, b):
    kind = {2: np.uint16, 4: np.uint32, 8: np.uint64}[a.itemsize]
    return a.shape == b.shape and np.array_equal(np.ascontiguousarray(a).view(kind), np.ascontiguousarray(b).view(kind))


def arrays(shape, dtype, seed, fortran):
    rng = np.random.default_rng(seed)
    x, residual, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(3))
    x.flat[0], residual.flat[-1], dy.flat[-1] = np.nan, -0.0, np.inf
    x.flat[x.size // 2] = -0.0
    return (np.asfortranarray(x) if fortran else x), residual, rng.standard_normal(shape[-1:]).astype(dtype), dy


@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_equals_the_reference_bit_for_bit(isa, shape, dtype, p, fortran):
    x, residual, bias, dy = arrays(shape, dtype, len(shape), fortran)
    for mask in (fd.mask(shape, p, rng=3), fd.mask((*(1,) * (len(shape) - 1), shape[-1]), p, rng=4)):
        expected = [np.empty_like(x) for _ in range(2)]
        reference.elementwise("add", expected[0], (x, residual), mask)
        reference.elementwise("bias_add", expected[1], (x, residual, np.broadcast_to(bias, shape)), mask)
        for threads in (1, 3):
            with fd.threads(threads):
                assert same_bits(fd.dropout_add(x, residual, mask=mask)[0], expected[0])
                assert same_bits(fd.dropout_add(x, residual, bias=bias, mask=mask)[0], expected[1])
        for name in EXACT:
            y, dx, op = np.empty_like(x), np.empty_like(x), ACTIVATIONS[name].name
            reference.elementwise(op, y, (x,), mask)
            reference.elementwise(f"{op}_backward", dx, (dy, x), mask)
            for threads in (1, 3):
                with fd.threads(threads):
                    assert same_bits(getattr(fd, name)(x, mask=mask)[0], y)
                    assert same_bits(getattr(fd, f"{name}_backward")(dy, x, mask), dx)
        y = fd.relu_dropout(x, mask=mask)[0]
        assert same_bits(fd.relu_dropout_backward(dy, y, mask), fd.relu_dropout_backward(dy, x, mask))


def test_drops_what_dropout_drops(engine):
    x = np.random.default_rng(0).standard_normal((40, 50))
    y, mask = fd.dropout_add(x, np.zeros_like(x), 0.3, rng=8)
    assert np.array_equal(y, fd.dropout(x, 0.3, rng=8)[0])
    assert mask == fd.mask(x.shape, 0.3, rng=8)
    assert np.array_equal(fd.relu_dropout(x, 0.3, rng=8)[0], fd.dropout(np.maximum(x, 0), 0.3, rng=8)[0])


def central_difference(f, x, dy, h=1e-6):
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        grad[i] = ((f(x + step) - f(x - step)) * dy).sum() / (2 * h)
    return grad


@pytest.mark.parametrize("mask_shape", [(6, 5), (1, 5), (6, 1)])
def test_gradients_by_central_differences(mask_shape):
    rng = np.random.default_rng(1)
    x, residual, dy = (rng.standard_normal((6, 5)) for _ in range(3))
    bias = rng.standard_normal(5)
    mask = fd.mask(mask_shape, 0.4, rng=2)
    dx, dbias = fd.dropout_add_backward(dy, mask, bias_shape=bias.shape)
    f = lambda x, r, b: fd.dropout_add(x, r, bias=b, mask=mask)[0]  # noqa: E731
    assert np.allclose(dx, central_difference(lambda x: f(x, residual, bias), x, dy), atol=1e-8)
    assert np.allclose(dy, central_difference(lambda r: f(x, r, bias), residual, dy), atol=1e-8)
    assert np.allclose(dbias, central_difference(lambda b: f(x, residual, b), bias, dy), atol=1e-8)
    for name in ACTIVATIONS:
        dx = getattr(fd, f"{name}_backward")(dy, x, mask)
        want = central_difference(lambda x, name=name: getattr(fd, name)(x, mask=mask)[0], x, dy)
        assert np.allclose(dx, want, atol=1e-8)


@pytest.mark.parametrize("shape", [(1000, 700), (3, 400, 350), (300_000,)])
@pytest.mark.parametrize("bias_shape", [(), (-1,), "first"])
def test_bias_gradient_is_the_sum_over_shared_axes(shape, bias_shape):
    if bias_shape == "first":
        bias_shape = (shape[0],) + (1,) * (len(shape) - 1)
    bias_shape = tuple(shape[-1] if n == -1 else n for n in bias_shape)
    dy = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    mask = fd.mask(shape, 0.1, rng=1)
    results = []
    for threads in (1, 2, 4):
        with fd.threads(threads):
            results.append(fd.dropout_add_backward(dy, mask, bias_shape=bias_shape))
    dx, dbias = results[0]
    assert np.array_equal(dx, mask.apply(dy))
    padded = (1,) * (len(shape) - len(bias_shape)) + bias_shape
    axes = tuple(a for a, n in enumerate(padded) if n == 1)
    exact = dx.astype(np.float64).sum(axis=axes).reshape(bias_shape)
    assert np.allclose(dbias, exact, rtol=1e-5, atol=1e-3)
    assert all(np.array_equal(dbias, other) for _, other in results)


@pytest.mark.parametrize("shape", [(70, 64), (3, 50, 100), (5, 9000), (2000, 127)])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_bias_gradient_of_whole_rows(engine, dtype, identical, shape, p):
    """The pass that makes dx sums it too; the sum of a float16's dx may be of dx before or after it was rounded."""
    dy = np.random.default_rng(4).standard_normal(shape).astype(dtype)
    mask = fd.mask((*shape[:-1], shape[-1] + 7), p, rng=1)[..., 5:-2] if shape[0] == 5 else fd.mask(shape, p, rng=1)
    axes = tuple(range(len(shape) - 1))
    for out in (None, dy.copy()):
        given = dy if out is None else out
        dx, dbias = fd.dropout_add_backward(given, mask, bias_shape=shape[-1:], out=out)
        identical(dx, mask.apply(dy))
        exact = dx.astype(np.float64).sum(axis=axes)
        error = {2: 0.01 if dtype.kind == "V" else 1e-3, 4: 1e-5, 8: 1e-14}[dtype.itemsize] * np.abs(exact).max()
        assert dbias.dtype == dtype
        assert np.abs(dbias.astype(np.float64) - exact).max() <= error
        summed = mask.backward(dy, x_shape=shape[-1:])
        assert np.abs(summed.astype(np.float64) - exact).max() <= error


@pytest.mark.parametrize("columns", [7, 200])
def test_sums_of_many_equal_rows(engine, columns):
    """Whose roundings would all go one way: 2e-4 of a float32 at 100 000 rows, were they added as floats."""
    dy = np.full((100_000, columns), 0.1234567, np.float32)
    _, dbias = fd.dropout_add_backward(dy, fd.mask(dy.shape, 0.0, rng=1), bias_shape=(columns,))
    np.testing.assert_allclose(dbias, len(dy) * np.float64(dy[0]), rtol=2e-7)


def test_in_place_and_not_training():
    x, residual = (np.random.default_rng(i).standard_normal((30, 40)).astype(np.float32) for i in (0, 1))
    mask = fd.mask(x.shape, 0.2, rng=0)
    expected = fd.dropout_add(x, residual, mask=mask)[0]
    for target in ("x", "residual"):
        copies = {"x": x.copy(), "residual": residual.copy()}
        out = copies[target]
        assert fd.dropout_add(copies["x"], copies["residual"], mask=mask, out=out)[0] is out
        assert np.array_equal(out, expected)
    rng = fd.Rng(5)
    y, unused = fd.dropout_add(x, residual, 0.2, rng=rng, training=False)
    assert np.array_equal(y, x + residual)
    assert rng.stream == 0
    assert unused.keep().all()


def test_takes_buffers():
    x, residual = (np.random.default_rng(i).standard_normal(24).astype(np.float32) for i in (0, 1))
    out = bytearray(96)
    y, mask = fd.dropout_add(memoryview(x), residual.tobytes(), 0.2, rng=0, out=out, dtype=np.float32)
    assert y is out
    assert np.array_equal(np.frombuffer(out, np.float32), fd.dropout_add(x, residual, mask=mask)[0])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"residual": np.ones((4, 3))}, ValueError, "residual"),
        ({"residual": np.ones((4, 4), np.float32)}, TypeError, "residual"),
        ({"bias": np.ones(3)}, ValueError, "bias"),
        ({"bias": np.ones(4, np.int64)}, TypeError, "bias"),
        ({"p": 1.5}, ValueError, "p is a probability"),
        ({"x": np.ones((4, 4), int)}, TypeError, "x must be float16"),
        ({"mask": 3}, TypeError, "mask must be a fastdrop.Mask"),
        ({"mask": fd.mask((3, 4, 4), 0.5, rng=0)}, ValueError, "mask of shape"),
        ({"out": np.ones((4, 5))}, ValueError, "out must have shape"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(change, error, words):
    rng = fd.Rng(0)
    args = {"x": np.ones((4, 4)), "residual": np.ones((4, 4)), "p": 0.5, "rng": rng} | change
    with pytest.raises(error, match=words):
        fd.dropout_add(**args)
    assert rng.stream == 0


def test_what_does_not_fit_dy_is_said_of_dy():
    with pytest.raises(ValueError, match=r"bias_shape of shape \(3,\) does not broadcast to dy's shape \(4, 4\)"):
        fd.dropout_add_backward(np.ones((4, 4)), fd.mask((4, 4), 0.5, rng=0), bias_shape=(3,))


def test_out_may_not_overlap_in_part():
    whole = np.ones(20)
    with pytest.raises(ValueError, match="overlap"):
        fd.dropout_add(whole[:10], np.ones(10), 0.5, rng=0, out=whole[5:15])


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", NEAR)
def test_activations_are_as_exact_as_they_say(isa, dtype, name):
    single = np.dtype(dtype).itemsize < 8
    tiny = float(np.finfo(np.float32 if single else dtype).tiny)
    special = [0.0, -0.0, 1e-30, 1e30, -1e30, np.inf, -np.inf, np.nan, tiny / 2, -tiny / 2, 3 * tiny, -3 * tiny]
    with np.errstate(over="ignore"):
        x = np.concatenate([np.linspace(-12, 12, 6001), [-20, -80, -90, -104, -700, -800], special]).astype(dtype)
    dy = np.linspace(-1, 1, x.size).astype(dtype)
    mask, op = fd.mask(x.shape, 0.1, rng=1), ACTIVATIONS[name].name
    exact, exact_dx = np.empty(x.shape), np.empty(x.shape)
    reference.elementwise(op, exact, (x.astype(np.float64),), mask)
    reference.elementwise(f"{op}_backward", exact_dx, (dy.astype(np.float64), x.astype(np.float64)), mask)
    eps = 2.0**-24 if single else 2.0**-53
    own = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(np.dtype(dtype).name, eps)  # of the rounding to the dtype
    for result, right, tolerance in (
        (getattr(fd, name)(x, mask=mask)[0], exact, OPERATIONS[op].tolerance),
        (getattr(fd, f"{name}_backward")(dy, x, mask), exact_dx, OPERATIONS[f"{op}_backward"].tolerance),
    ):
        result = result.astype(np.float64)
        assert np.array_equal(np.isnan(result), np.isnan(right))
        finite = np.isfinite(right) & (np.abs(right) < 6e4)
        error, size = np.abs(result[finite] - right[finite]), np.maximum(1, np.abs(x[finite].astype(np.float64)))
        assert (error <= mask.scale * tolerance * eps * size + own * np.abs(right[finite])).all()
        assert np.array_equal(result[np.isinf(right)], right[np.isinf(right)])


@pytest.mark.parametrize("name", NEAR)
def test_activations_are_the_same_on_every_instruction_set(name):
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32) * 4
    mask, before, results, op = fd.mask(x.shape, 0.1, rng=1), core.isa(), [], ACTIVATIONS[name].name
    try:
        for isa in core.isa_found():
            core.use_isa(isa)
            y, dx = np.empty_like(x), np.empty_like(x)
            core.elementwise(op, y, (x,), mask)
            core.elementwise(f"{op}_backward", dx, (x, x), mask)
            results.append((y, dx))
    finally:
        core.use_isa(before)
    assert all(same_bits(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_c_kernels_have_the_operations():
    assert list(core.OPERATIONS) == list(OPERATIONS)
    assert set(core.DTYPES) == set(FLOATS)
    losses = [{**facts, "name": facts["name"].decode()} for facts in core.LOSS_FACTS]
    assert losses == [asdict(loss) for loss in LOSSES.values()]


def test_gelu_is_that_of_torch():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).standard_normal((6, 5)) * 2
    mask = fd.mask((6, 5), 0.4, rng=2)
    y = torch.nn.functional.gelu(torch.from_numpy(x)).numpy()
    assert np.allclose(fd.gelu_dropout(x, mask=mask)[0], mask.apply(y), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["residual", "bias"])
def test_out_may_not_hold_what_is_still_to_be_broadcast(name, order):
    out = np.ones((4, 4), order=order)
    part = out[:1] if order == "C" else out[:, 0]  # the same address and steps as out, but read for every row
    args = {"residual": np.zeros((4, 4)), name: part}
    with pytest.raises(ValueError, match=f"out must be {name} itself or not overlap it"):
        fd.dropout_add(np.ones((4, 4)), **args, rng=0, out=out)
    assert (out == 1).all()


def test_bias_gradient_of_one_number():
    dx, dbias = fd.dropout_add_backward(np.array(3.0), fd.Mask.from_keep(True, 0.5), bias_shape=())
    assert dx.shape == dbias.shape == ()
    assert (dx, dbias) == (6.0, 6.0)


def test_byte_order_of_an_operand_changes_nothing():
    x, residual = (np.random.default_rng(i).standard_normal((5, 6)).astype(np.float32) for i in (0, 1))
    y, mask = fd.dropout_add(x, residual, 0.3, rng=0)
    assert np.array_equal(fd.dropout_add(x, residual.astype(">f4"), mask=mask)[0], y)
    assert np.array_equal(fd.relu_dropout_backward(x, residual.astype(">f4"), mask), mask.apply(x * (residual > 0)))


def test_mask_shape_may_be_a_number():
    x = np.ones((3, 40))
    assert np.array_equal(fd.relu_dropout(x, 0.5, mask_shape=40, rng=0)[0], fd.dropout(x, 0.5, mask_shape=40, rng=0)[0])
