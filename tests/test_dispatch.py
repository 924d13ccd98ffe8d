"""The one way in: which arrays a public function takes, whose kind its results have, what its ``out`` may overlap.

Every public function with arrays is called here from one table, so a new one without a row fails a test.
"""

import importlib
import inspect
import operator
import re
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import backends, dispatch
from fastdrop.operations import ACTIVATIONS, DIVERGENCES, LOSSES

F4 = np.float32
SHAPE = (6, 8)
RNG = np.random.default_rng(0)
A, B, C = (RNG.standard_normal(SHAPE).astype(F4) for _ in range(3))
ROWS, COLUMNS = SHAPE
W = RNG.standard_normal((COLUMNS, 3)).astype(F4)
MASK = fd.mask(SHAPE, 0.5, rng=0)
SAMPLES = fd.mask((4, *SHAPE), 0.5, rng=0)
LABELS = np.arange(ROWS) % COLUMNS
PAD = np.arange(ROWS) == 2
LOG_SUM = fd.softmax_dropout(A, mask=MASK)[2]
FEATURES = np.linspace(-1, 1, COLUMNS, dtype=F4)

GRADIENTS = [f"{name}_backward" for name in ACTIVATIONS]

# name: function of the arrays, the arrays by name, the shapes of its outputs (None: it has no `out`)
CALLS = {
    "dropout": (lambda x, **k: fd.dropout(x, mask=MASK, **k), {"x": A}, [SHAPE]),
    "dropout_backward": (lambda dy, **k: fd.dropout_backward(dy, MASK, **k), {"dy": A}, [SHAPE]),
    "Mask.apply": (lambda x, **k: MASK.apply(x, **k), {"x": A}, [SHAPE]),
    "Mask.backward": (lambda dy, **k: MASK.backward(dy, **k), {"dy": A}, [SHAPE]),
    "dropout_add": (
        lambda x, residual, bias, **k: fd.dropout_add(x, residual, bias=bias, mask=MASK, **k),
        {"x": A, "residual": B, "bias": FEATURES},
        [SHAPE],
    ),
    "dropout_add_backward": (
        lambda dy, **k: fd.dropout_add_backward(dy, MASK, bias_shape=(COLUMNS,), **k),
        {"dy": A},
        [SHAPE],
    ),
    **{
        name: (lambda x, name=name, **k: getattr(fd, name)(x, mask=MASK, **k), {"x": A}, [SHAPE])
        for name in ACTIVATIONS
    },
    **{
        name: (lambda dy, x, name=name, **k: getattr(fd, name)(dy, x, MASK, **k), {"dy": A, "x": B}, [SHAPE])
        for name in GRADIENTS
    },
    "softmax_dropout": (
        lambda scores, attention_mask, **k: fd.softmax_dropout(scores, mask=MASK, attention_mask=attention_mask, **k),
        {"scores": A, "attention_mask": C},
        [SHAPE],
    ),
    "softmax_dropout_backward": (
        lambda dy, scores, log_sum, **k: fd.softmax_dropout_backward(dy, scores, log_sum, MASK, **k),
        {"dy": B, "scores": A, "log_sum": LOG_SUM},
        [SHAPE],
    ),
    "multi_sample_dropout": (
        lambda x, **k: fd.multi_sample_dropout(x, 0.5, 4, rng=0, **k),
        {"x": A},
        [(4, *SHAPE)],
    ),
    "multi_sample_dropout_backward": (
        lambda dy, **k: fd.multi_sample_dropout_backward(dy, SAMPLES, **k),
        {"dy": np.stack([A, B, C, A])},
        [SHAPE],
    ),
    "multi_sample_mean": (lambda x, **k: fd.multi_sample_mean(x, 0.5, 4, rng=0, **k), {"x": A}, [SHAPE]),
    "multi_sample_mean_backward": (lambda dy, **k: fd.multi_sample_mean_backward(dy, SAMPLES, **k), {"dy": A}, [SHAPE]),
    "multi_sample_linear": (
        lambda x, W, b: fd.multi_sample_linear(x, W, b, 0.5, 4, rng=0),
        {"x": A, "W": W, "b": W[0].copy()},
        None,
    ),
    "multi_sample_linear_backward": (
        lambda dlogits, x, W: fd.multi_sample_linear_backward(dlogits, x, W, SAMPLES),
        {"dlogits": np.ones((4, ROWS, 3), F4), "x": A, "W": W},
        None,
    ),
    **{
        name: (
            lambda a, b, pad_mask, name=name, **k: getattr(fd, name)(a, b, pad_mask=pad_mask, **k),
            {"a": A, "b": B, "pad_mask": PAD},
            2,
        )
        for name in DIVERGENCES
    },
    "cross_entropy": (
        lambda a, labels, pad_mask, **k: fd.cross_entropy(a, labels, pad_mask=pad_mask, **k),
        {"a": A, "labels": LABELS, "pad_mask": PAD},
        [SHAPE],
    ),
    "r_drop": (
        lambda a, b, labels, pad_mask, **k: fd.r_drop(a, b, labels, alpha=0.5, pad_mask=pad_mask, **k),
        {"a": A, "b": B, "labels": LABELS, "pad_mask": PAD},
        2,
    ),
    "r_drop_pair": (lambda x, **k: fd.r_drop_pair(x, 0.5, rng=0, **k), {"x": A}, [(2, *SHAPE)]),
    "max_norm_": (lambda W: fd.max_norm_(W, 1.0), {"W": A}, None),
    "mc_dropout": (
        lambda x: fd.mc_dropout(lambda x, sample: sample.dropout(x), x, 4, rng=0, probabilities=False),
        {"x": A},
        None,
    ),
}
WITH_OUT = [name for name, (_, _, outs) in CALLS.items() if outs is not None]
PAIRS = [name for name, (_, _, outs) in CALLS.items() if outs == 2]
SINGLE = [name for name in WITH_OUT if name not in PAIRS]
COPIED = ("labels", "pad_mask")  # of integers and bools
MAY_BE = {  # what outputs may be, by number; elsewhere x or dy
    "dropout_add": {("x", 0), ("residual", 0)},
    **{name: {("dy", 0), ("x", 0)} for name in GRADIENTS},
    "softmax_dropout": {("scores", 0)},
    "softmax_dropout_backward": {("dy", 0), ("scores", 0)},
    "cross_entropy": {("a", 0)},
    "multi_sample_dropout_backward": set(),
    **{name: {("a", 0), ("b", 1)} for name in PAIRS},
}


def fresh(name):
    function, arrays, outs = CALLS[name]
    return function, {key: a.copy() for key, a in arrays.items()}, outs


def flat(result):
    """The arrays and numbers of a result, those of tuples too."""
    if isinstance(result, tuple):
        return [part for r in result for part in flat(r)]
    return [] if result is None or isinstance(result, fd.Mask) else [result]


def numbers(result):
    def number(x):
        if hasattr(x, "detach"):
            x = x.detach()
            x = x.float() if str(x.dtype) == "torch.bfloat16" else x
        return np.asarray(x, np.float64)

    return [number(x) for x in flat(result)]


def test_every_function_with_arrays_is_here():
    taking = set()
    for name in fd.__all__:
        f = getattr(fd, name)
        if inspect.isfunction(f) and {"x", "dy", "a", "scores", "W", "dlogits"} & set(inspect.signature(f).parameters):
            taking.add(name)
    assert taking == {name for name in CALLS if "." not in name}


@pytest.mark.parametrize("name", CALLS)
def test_signatures_on_the_device_are_those_of_the_host(name):
    """And ``stream``; ``dtype`` is for what has only bytes."""
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    import fastdrop.cuda

    there = getattr(fastdrop.cuda, name.removeprefix("Mask."), None)
    if there is None:
        assert name in LOSSES or name in ("max_norm_", "mc_dropout") or name.startswith("multi_sample_linear")
        return
    here = getattr(fd.Mask, name[5:]) if "." in name else getattr(fd, name)

    def parameters(f):
        parameters = inspect.signature(f).parameters.values()
        return [(p.name, p.default) for p in parameters if p.name not in ("dtype", "stream", "self", "mask")]

    assert parameters(here) == parameters(there)


def test_signatures_are_those_of_every_backend():
    """Of each function the package asks its backend for, without functions by default, which are Numba's to replace."""
    package = Path(fd.__file__).parent
    sources = [f.read_text() for f in package.rglob("*.py") if "backends" not in f.relative_to(package).parts]
    asked = set(re.findall(r"\bbackend\.([a-z_]+)\(", "".join(sources)))
    assert {"apply", "elementwise", "row_losses"} <= asked

    def parameters(f):
        parameters = inspect.signature(f).parameters.values()
        return [(p.name, p.default) for p in parameters if p.default is p.empty or not callable(p.default)]

    tables = [importlib.import_module(backends._MODULES[name]) for name in backends.available()]
    for name in sorted(asked):
        there = [parameters(getattr(table, name)) for table in tables]
        assert there.count(there[0]) == len(there), name


# -- whose kind --------------------------------------------------------------------------------------------------------


REQUIRED = [
    (name, required)
    for name, declaration in dispatch.FUNCTIONS.items()
    for required, p in declaration.signature.parameters.items()
    if p.default is p.empty and required != "self"
]


@pytest.mark.parametrize(("name", "missing"), REQUIRED)
def test_a_required_argument_that_is_missing_is_named(name, missing):
    function = operator.attrgetter(name.removeprefix("Mask."))(MASK if name.startswith("Mask.") else fd)
    others = {required: A for owner, required in REQUIRED if owner == name and required != missing}
    with pytest.raises(TypeError, match=f"missing a required argument: '{missing}'"):
        function(**others)


@pytest.mark.parametrize("name", CALLS)
def test_tensors_give_tensors(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    function, arrays, outs = fresh(name)
    wanted = numbers(function(**{key: a.copy() for key, a in arrays.items()}))
    tensors = {key: torch.from_numpy(a) for key, a in arrays.items()}
    got = function(**tensors)
    for part in flat(got):
        assert isinstance(part, (torch.Tensor, float)), type(part)
    for w, g in zip(wanted, numbers(got), strict=True):
        np.testing.assert_array_equal(w, g)
    if outs is not None:
        function, arrays, _ = fresh(name)
        tensors = {key: torch.from_numpy(a) for key, a in arrays.items()}
        given = [torch.empty(shape) for shape in ([SHAPE, SHAPE] if outs == 2 else outs)]
        versions = [g._version for g in given]
        got = function(**tensors, out=tuple(given) if outs == 2 else given[0])
        assert all(any(part is g for part in flat(got)) for g in given)
        assert all(g._version > v for g, v in zip(given, versions)), "autograd must see what has been written"
        for w, g in zip(wanted, numbers(got), strict=True):
            np.testing.assert_array_equal(w, g)


# Without those that take float32 and float64 only, and that whose results are float64.
@pytest.mark.parametrize("name", [n for n in CALLS if not n.startswith("multi_sample_linear") and n != "mc_dropout"])
def test_bfloat16_tensors(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    dtype = pytest.importorskip("ml_dtypes").bfloat16
    function, arrays, _ = fresh(name)
    halves = {key: a.astype(dtype) if a.dtype == F4 else a for key, a in arrays.items()}
    tensors = {
        key: torch.from_numpy(a.view(np.uint16)).view(torch.bfloat16) if a.dtype == dtype else torch.from_numpy(a)
        for key, a in ((key, a.copy()) for key, a in halves.items())
    }
    got, wanted = function(**tensors), function(**halves)
    assert any(isinstance(part, torch.Tensor) and part.dtype == torch.bfloat16 for part in flat(got))
    for w, g in zip(numbers(wanted), numbers(got), strict=True):
        np.testing.assert_array_equal(w, g)


@pytest.mark.parametrize("name", CALLS)
def test_lists_and_plain_buffers_give_ndarrays(name):
    function, arrays, outs = fresh(name)
    wanted = numbers(function(**{key: a.copy() for key, a in arrays.items()}))
    got = function(**{key: memoryview(a) for key, a in arrays.items()})
    assert name == "max_norm_" or all(isinstance(part, (np.ndarray, float)) for part in flat(got))
    for w, g in zip(wanted, numbers(got), strict=True):
        np.testing.assert_array_equal(w, g)
    if outs is not None and outs != 2:
        function, arrays, _ = fresh(name)
        out = memoryview(np.empty(outs[0], F4))
        got = function(**{key: memoryview(a) for key, a in arrays.items()}, out=out)
        assert any(part is out for part in flat(got))


def test_jax_arrays_give_jax_arrays():
    jax = pytest.importorskip("jax", reason="jax is not installed")
    x = jax.numpy.asarray(A)
    y, mask = fd.dropout(x, 0.5, rng=0)
    assert isinstance(y, jax.Array)
    np.testing.assert_array_equal(np.asarray(y), mask.apply(A))
    half = x.astype(jax.numpy.bfloat16)
    assert mask.apply(half).dtype == half.dtype
    with pytest.raises(ValueError, match="out must be writable"):
        fd.dropout(A, 0.5, out=x)
    with pytest.raises(TypeError, match=r"x must be an array with values, got a JAX tracer"):
        jax.jit(lambda x: fd.dropout(x, 0.5)[0])(x)


@pytest.mark.parametrize("name", CALLS)
def test_masked_arrays_are_refused_wherever_they_come(name):
    for key in CALLS[name][1]:
        function, arrays, _ = fresh(name)
        arrays[key] = np.ma.masked_array(arrays[key], mask=False)
        with pytest.raises(TypeError, match=f"{key} must not be a masked array"):
            function(**arrays)
    with pytest.raises(TypeError, match="p must be a number"):
        fd.dropout(A, np.ma.masked_array([0.5] * ROWS, mask=False))


def test_lazy_signs_of_tensors_are_read():
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.tensor([1 + 2j, 3 + 4j]).conj().imag
    assert x.is_neg()
    y = fd.Mask.from_keep([True, True], 0.0).apply(x)
    assert y.tolist() == [-2.0, -4.0]
    with pytest.raises(ValueError, match="out must hold its numbers"):
        fd.dropout(np.ones(2, F4), 0.5, out=x)


@pytest.mark.parametrize("name", CALLS)
def test_tensors_that_require_grad(name):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for key, a in CALLS[name][1].items():
        if a.dtype.kind != "f":
            continue
        function, arrays, _ = fresh(name)
        arrays[key] = torch.from_numpy(arrays[key]).requires_grad_()
        with pytest.raises(TypeError, match=rf"{key} must not require grad: .* pass {key}\.detach\(\)"):
            function(**arrays)
        with torch.no_grad():
            wanted = numbers(function(**fresh(name)[1]))
            for w, g in zip(wanted, numbers(function(**arrays)), strict=True):
                np.testing.assert_array_equal(w, g)


@pytest.mark.parametrize("device", ["meta"])
def test_tensors_without_memory_here(device):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    with pytest.raises(TypeError, match="x must be a strided tensor in CPU memory"):
        fd.dropout(torch.empty(3, device=device))
    with pytest.raises(TypeError, match="x must be a strided tensor in CPU memory"):
        fd.dropout(torch.eye(3).to_sparse())


# -- what is left behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
def test_nothing_of_the_callers_is_held_after_an_error(name):
    """Every array is a view of a bytearray, which refuses to grow while anybody looks at it."""
    for bad in CALLS[name][1]:
        function, arrays, _ = fresh(name)
        owners = {key: bytearray(a) for key, a in arrays.items()}
        views = {
            key: memoryview(owner).cast("B").cast(arrays[key].dtype.char, arrays[key].shape)
            for key, owner in owners.items()
        }
        given = dict(views)
        given[bad] = memoryview(bytearray(5)).cast("b")
        with pytest.raises((TypeError, ValueError), match=rf"^{bad} must .* got ") as raised:
            function(**given)
        given = None
        for key, v in views.items():
            v.release()
            owners[key].append(0)
        assert raised.value is not None


# -- overlaps ----------------------------------------------------------------------------------------------------------


def windows(shape, kind):
    """A writable array of ``shape`` of which some elements share a place."""
    memory = np.zeros(int(np.prod(shape)) + 16, F4)
    if kind == "stride 0":
        strides = (*(0 for _ in shape[:-1]), 4)
    else:  # a sliding window
        strides = tuple(4 for _ in shape)
    return np.lib.stride_tricks.as_strided(memory, shape, strides, writeable=True)


@pytest.mark.parametrize("kind", ["stride 0", "sliding"])
@pytest.mark.parametrize("name", WITH_OUT)
def test_an_output_that_overlaps_itself_is_refused(name, kind):
    function, arrays, outs = fresh(name)
    for i, shape in enumerate([SHAPE, SHAPE] if outs == 2 else outs):
        out = windows(shape, kind)
        given = [np.zeros(SHAPE, F4), np.zeros(SHAPE, F4)]
        given[i] = out
        with pytest.raises(ValueError, match="must have a place for each element"):
            function(**arrays, out=tuple(given) if outs == 2 else out)
        assert not out.any()


def test_weights_that_overlap_themselves_are_refused():
    w = np.ones(8, F4)
    with pytest.raises(ValueError, match="W must have a place for each element"):
        fd.max_norm_(np.lib.stride_tricks.sliding_window_view(w, 3, writeable=True), 0.5)
    assert (w == 1).all()


def test_interleaved_outputs_have_places_of_their_own():
    memory = np.zeros((8, 12), F4)
    for out in (memory[::2, ::3], memory[::-1, ::-3][:, :4], memory.T[::3, 1::2]):
        x = np.ones(out.shape, F4)
        y, mask = fd.dropout(x, 0.5, rng=0, out=out)
        assert y is out
        np.testing.assert_array_equal(out, mask.apply(x))
    out = np.lib.stride_tricks.as_strided(np.zeros(40, F4), (2, 3), (12, 8), writeable=True)  # places 0 2 4, 3 5 7
    y, mask = fd.dropout(np.ones((2, 3), F4), 0.5, rng=0, out=out)
    np.testing.assert_array_equal(y, mask.apply(np.ones((2, 3), F4)))


def overlapping(a, shift):
    """``a`` anew in memory that begins ``shift`` bytes after an array of SHAPE: both."""
    memory = np.zeros(4 * max(a.nbytes, 8 * ROWS * COLUMNS) + 64, np.uint8)
    out = memory[: 4 * ROWS * COLUMNS].view(F4).reshape(SHAPE)
    moved = memory[shift : shift + a.nbytes].view(a.dtype).reshape(a.shape)
    moved[...] = a
    return out, moved


@pytest.mark.parametrize("shift", [0, 8, 64])
@pytest.mark.parametrize("name", [n for n in WITH_OUT if CALLS[n][2] in (2, [SHAPE])])
def test_an_output_over_any_other_argument(name, shift):
    """Refused, or right: where the two are the same elements in the same places, or the argument is copied."""
    outputs = 2 if name in PAIRS else 1
    wanted = numbers(CALLS[name][0](**fresh(name)[1]))
    for key in CALLS[name][1]:
        for i in range(outputs):
            function, arrays, _ = fresh(name)
            given = [np.zeros(SHAPE, F4) for _ in range(outputs)]
            given[i], arrays[key] = overlapping(arrays[key], shift)
            before, out = arrays[key].copy(), tuple(given) if outputs == 2 else given[0]
            own = shift == 0 and (key, i) in MAY_BE.get(name, {("x", 0), ("dy", 0)})
            if key in COPIED or own:
                for w, g in zip(wanted, numbers(function(**arrays, out=out)), strict=True):
                    np.testing.assert_array_equal(w, g)
            else:
                with pytest.raises(ValueError, match="overlap"):
                    function(**arrays, out=out)
                np.testing.assert_array_equal(arrays[key], before)


def test_labels_under_the_gradient():
    """Gradients written over labels that are still to be read were indices out of bounds."""
    a = np.random.default_rng(0).standard_normal((64, 100))
    memory = np.zeros(6400)
    labels = memory[:64].view(np.int64)
    labels[:] = 1
    wanted = fd.cross_entropy(a, np.ones(64, int))
    loss, da = fd.cross_entropy(a, labels, out=memory.reshape(64, 100))
    assert loss == wanted[0]
    np.testing.assert_array_equal(da, wanted[1])
    probabilities = np.full((64, 100), 0.01)
    with pytest.raises(ValueError, match="out must not overlap labels"):
        fd.cross_entropy(a, probabilities, out=probabilities)


# -- code of the user's in the middle of a call ------------------------------------------------------------------------


class Shrinking(fd.Rng):
    """A generator that takes memory away from under the call that asks it."""

    def __init__(self, victim, how):
        super().__init__(0)
        self.victim, self.how = victim, how

    def take(self):
        self.how(self.victim)
        return super().take()


def shrink(x):
    x.resize((1, x.shape[-1]), refcheck=False)


def retype(x):
    x.dtype = np.float16


@pytest.mark.parametrize("how", [shrink, retype])
@pytest.mark.parametrize("size", [8, 300_000])
def test_generators_that_change_the_array_that_is_dropped(how, size):
    for function in (
        lambda x, rng: fd.dropout(x, 0.5, rng=rng)[0],
        lambda x, rng: fd.relu_dropout(x, 0.5, rng=rng)[0],
        lambda x, rng: fd.softmax_dropout(x, 0.5, rng=rng)[0],
        lambda x, rng: fd.multi_sample_mean(x, 0.5, 2, rng=rng)[0],
    ):
        x = np.ones((3, size), F4)
        y = function(x, Shrinking(x, how))
        assert (y.shape, y.dtype) == (x.shape, x.dtype), "the array as it is when the mask has been taken"


def test_a_call_that_raises_takes_no_mask_of_any_generator():
    class Counting(fd.Rng):
        pass

    for rng in (fd.Rng(0), Counting(0)):
        with pytest.raises(ValueError, match="must have shape"):
            fd.dropout(A, 0.5, rng=rng, out=np.zeros(3, F4))
        assert rng.stream == 0
    generator = np.random.default_rng(0)
    state = generator.bit_generator.state
    with pytest.raises(ValueError, match="must have shape"):
        fd.relu_dropout(A, 0.5, rng=generator, out=np.zeros(3, F4))
    assert generator.bit_generator.state == state
