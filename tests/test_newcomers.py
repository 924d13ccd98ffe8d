"""Calls that people make who come from other libraries: each ends in an error that says what to write here.

One row a call: the code, the error, and words that its message has.
"""

import pkgutil

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.layers import Dropout, MultiSampleDropout
from fastdrop.operations import ACTIVATIONS


class Sparse:
    """Looks as SciPy's sparse matrices do: no array, but a way to one."""

    shape, dtype, format = (2, 3), np.dtype(np.float32), "csr"

    def toarray(self):
        return np.ones((2, 3), np.float32)


P_DROPS = "p, the probability to drop"
RNG = "rng: an int, a fastdrop.Rng or a NumPy generator"
CONVERT = "np.asarray(x, np.float32)"
CAN = "a mask multiplies, x * mask or mask.apply(x); mask.keep() is its array of bools"
SCOPE = {
    "fd": fd,
    "np": np,
    "Dropout": Dropout,
    "x": np.ones((2, 3), np.float32),
    "image": np.zeros((2, 3), np.uint8),
    "labels": np.array([0, 1]),
    "sparse": Sparse(),
    "rng": fd.Rng(0),
    "mask": fd.mask((2, 3), 0.5, rng=0),
    "one": fd.mask((), 0.5, rng=0),
    "layer": Dropout(0.5, rng=0),
    "head": MultiSampleDropout(np.ones((3, 2), np.float32), None, rng=0),
}

FUNCTIONS = [  # with another library's name for an argument, and what it is here
    ("fd.dropout(x, {})", {"seed", "p", "mask_shape", "out"}),
    *((f"fd.{name}(x, {{}})", {"seed", "p", "mask_shape", "out"}) for name in ACTIVATIONS),
    ("fd.dropout_add(x, x, {})", {"seed", "p", "mask_shape", "out"}),
    ("fd.softmax_dropout(x, {})", {"seed", "p", "axis", "out"}),
    ("fd.cross_entropy(x, labels, {})", {"axis", "out"}),
    ("fd.symmetric_kl(x, x, {})", {"axis", "out"}),
    ("fd.multi_sample_dropout(x, samples=2, {})", {"seed", "p", "out"}),
    ("fd.multi_sample_mean(x, samples=2, {})", {"seed", "p", "out"}),
    ("fd.mask(x.shape, {})", {"seed", "p"}),
    ("rng.mask(x.shape, {})", {"p"}),
    ("fd.Mask.from_keep(x > 0, {})", {"p"}),
    ("Dropout({})", {"seed", "p"}),
]
ELSEWHERE = [
    ("rate=0.5", "p", P_DROPS),
    ("keep_prob=0.5", "p", "p = 1 - keep_prob"),
    ("seed=0", "seed", RNG),
    ("random_state=0", "seed", RNG),
    ("noise_shape=(2, 1)", "mask_shape", "here it is mask_shape"),
    ("inplace=True", "out", "out=x works in place"),
    ("dim=-1", "axis", "here it is axis"),
]
KEYWORDS = [
    (
        call.format(argument),
        TypeError,
        [f"no argument '{argument.partition('=')[0]}'", words if here in has else "; it "],
    )
    for call, has in FUNCTIONS
    for argument, here, words in ELSEWHERE
]

CALLS = [
    *KEYWORDS,
    ("fd.cross_entropy(x, labels, ignore_label=-1)", TypeError, ["here it is ignore_index"]),
    ("fd.mc_dropout(lambda x, training: x, x, num_samples=3)", TypeError, ["here it is samples"]),
    ("fd.set_num_threads(threads=2)", TypeError, ["no argument 'threads'; it takes n"]),
    ("fd.Rng(random_state=0)", TypeError, ["no argument 'random_state'; it takes seed, stream"]),
    # what is dropped out
    ("fd.dropout(image)", TypeError, ["dtype uint8", CONVERT]),
    ("fd.dropout([1, 2, 3])", TypeError, ["dtype int64", CONVERT]),
    ("fd.relu_dropout(image)", TypeError, ["dtype uint8", CONVERT]),
    ("fd.softmax_dropout(image)", TypeError, ["dtype uint8", "np.asarray(scores, np.float32)"]),
    ("fd.cross_entropy(image, labels)", TypeError, ["dtype uint8", "np.asarray(a, np.float32)"]),
    ("layer(image)", TypeError, ["dtype uint8", CONVERT]),
    ("mask * image", TypeError, ["dtype uint8", CONVERT]),
    ("fd.dropout(x > 0)", TypeError, ["dtype bool", CONVERT]),
    ("fd.dropout([[1.0, 2.0], [3.0]])", ValueError, ["x must be an array", "got list"]),
    ("fd.dropout(None)", TypeError, ["x must be an array, got None"]),
    ("fd.dropout_add(x, None)", TypeError, ["residual must be an array, got None"]),
    ("fd.dropout(sparse)", TypeError, ["x must be an array, got Sparse", "x.toarray()"]),
    ("fd.dropout(object())", TypeError, ["x must be an array, got object"]),
    ("fd.dropout(np.ma.masked_less(x, 0))", TypeError, ["x must not be a masked array", "x.filled(0)"]),
    # p
    ("fd.dropout(x, 50)", ValueError, ["p is a probability to drop", "got 50"]),
    ("fd.dropout(x, '0.5')", TypeError, ["p must be a number", "'0.5'"]),
    ("fd.dropout(x, None)", TypeError, ["p must be a number", "None"]),
    ("fd.dropout(x, True)", TypeError, ["p must be a number", "True"]),
    ("fd.dropout(x, mask)", TypeError, ["p must be a number", "a mask goes in as mask="]),
    ("fd.dropout(x, [0.5, 0.5, 0.5])", ValueError, ["leading axes", "(2, 3)", "(3,)"]),
    ("setattr(layer, 'p', 50)", ValueError, ["p is a probability to drop", "got 50"]),
    ("setattr(layer, 'p', None)", TypeError, ["p must be a number", "None"]),
    ("setattr(head, 'p', -1)", ValueError, ["p is a probability to drop", "got -1"]),
    ("Dropout(50)", ValueError, ["p is a probability to drop", "got 50"]),
    ("fd.mask((2, 3), 1.5)", ValueError, ["p is a probability to drop", "got 1.5"]),
    # the other arguments
    ("fd.dropout(x, training='eval')", TypeError, ["training must be True or False", "'eval'"]),
    ("fd.dropout(x, training=None)", TypeError, ["training must be True or False", "None"]),
    ("layer(x, 'eval')", TypeError, ["training must be True or False", "'eval'"]),
    ("head(x, 'eval')", TypeError, ["training must be True or False", "'eval'"]),
    ("fd.dropout(x, rng='0')", TypeError, ["rng must be None, an int", "got str"]),
    ("fd.dropout(x, rng=np.random)", TypeError, ["rng must be None, an int", "got module"]),
    ("fd.dropout(x, rng=np.random.RandomState(0))", TypeError, ["rng must be None, an int", "got RandomState"]),
    ("fd.dropout(x, mask=mask.keep())", TypeError, ["mask must be a fastdrop.Mask, got ndarray"]),
    ("fd.dropout(x, mask=fd.mask((4, 4), 0.5))", ValueError, ["(2, 3)", "(4, 4)"]),
    ("fd.dropout(x, mask_shape=(2,))", ValueError, ["mask_shape (2,)", "(2, 3)"]),
    ("fd.dropout(x, out=np.ones((2, 3)))", TypeError, ["out must have dtype float32, got float64"]),
    ("fd.dropout(x, out=True)", TypeError, ["out must be an array or a writable buffer, got bool"]),
    ("fd.dropout_backward(mask, x)", TypeError, ["mask must be a fastdrop.Mask, got ndarray"]),
    ("fd.max_norm_(x, '1')", TypeError, ["limit must be a number", "'1'"]),
    ("fd.mask(x, 0.5)", TypeError, ["shape must be an integer or a tuple of integers"]),
    ("fd.Mask.from_keep(x, 0.5)", TypeError, ["keep must hold bools", "np.asarray(keep, bool)"]),
    ("fd.Mask((2, 3), 0.5)", TypeError, ["a Mask is made by fastdrop.mask"]),
    ("fd.use_backend('C')", ValueError, ["'native', 'numba', 'reference'", "'C'"]),
    *[(f"fd.use_backend({name})", TypeError, ["'native', 'numba', 'reference'", name]) for name in ("None", "[]", "1")],
    # masks in expressions
    *[
        (code, TypeError, [CAN])
        for code in (
            *(
                f"{a} {sign} {b}"
                for sign in ["+", "-", "/", "//", "%", "**", "@", "&", "|", "^", "<", ">="]
                for a, b in (("x", "mask"), ("mask", "x"))
            ),
            *("mask & mask", "mask | True", "1 + mask", "mask * mask", "~mask", "-mask", "abs(mask)", "0 in mask"),
            *("bool(mask)", "not mask", "float(one)", "int(one)", "complex(one)", "range(one)", "[0, 1][one]"),
            *("len(one)", "list(one)", "iter(one)", "mask[None]", "mask[[0, 1]]", "mask[x > 0]", "mask[mask]"),
            *("np.maximum(x, mask)", "np.add(mask, x)", "np.exp(mask)", "np.sum(mask)", "np.multiply.outer(x, mask)"),
            *("np.multiply(x, mask, where=x > 0)", "x == mask"),
        )
    ],
    *[(f"mask.{name}", AttributeError, [f"no {name!r}", CAN]) for name in ("sum", "astype", "T", "copy", "data")],
    ("x[mask]", IndexError, ["boolean arrays are valid indices"]),  # NumPy's own words: it asks a mask for numbers only
    ("mask[::2]", IndexError, ["a mask takes slices of step 1, got step 2"]),
]


@pytest.mark.parametrize(("code", "error", "words"), CALLS, ids=[call[0] for call in CALLS])
def test_calls(code, error, words):
    before = rng_state()
    with pytest.raises(error) as caught:
        eval(code, dict(SCOPE))
    for part in words:
        assert part in str(caught.value)
    assert rng_state() == before  # nothing is taken by a call that raises


def rng_state():
    return SCOPE["rng"].stream, SCOPE["layer"].rng.stream, SCOPE["head"].rng.stream, SCOPE["layer"].p, SCOPE["head"].p


def test_frames_that_do_not_fit_say_their_shape():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(SCOPE["x"])
    for call in (
        lambda: fd.dropout(frame, [0.5, 0.5, 0.5]),
        lambda: fd.dropout(frame, mask=fd.mask((4, 4), 0.5)),
        lambda: fd.dropout(frame, mask_shape=(2,)),
    ):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            call()
    with pytest.raises(TypeError, match="mask multiplies"):
        frame + SCOPE["mask"]


def test_tracers():
    jax = pytest.importorskip("jax")
    for function in (lambda x: fd.dropout(x)[0], lambda x: SCOPE["mask"] * x, lambda x: fd.relu_dropout(x)[0]):
        with pytest.raises(TypeError, match=r"JAX tracer.*outside of jax\.jit"):
            jax.jit(function)(jax.numpy.ones((2, 3)))


def test_tensors():
    torch = pytest.importorskip("torch")
    x, mask = torch.ones(2, 3), SCOPE["mask"]
    for call in (
        lambda: x + mask,
        lambda: torch.add(x, mask),
        lambda: torch.where(mask, x, 0),
        lambda: torch.relu(mask),
    ):
        with pytest.raises(TypeError, match="a mask multiplies"):
            call()
    with pytest.raises(TypeError, match=r"x must be float16.*np\.asarray\(x, np\.float32\)"):
        fd.dropout(torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match="strided tensor"):
        fd.dropout(x.to_sparse())
    with pytest.raises(TypeError, match=r"x must not require grad.*x\.detach\(\)"):
        fd.dropout(torch.ones(3, requires_grad=True))


@pytest.mark.parametrize(
    ("missing", "code", "words"),
    [
        (
            "fastdrop._core",
            "fd.use_backend('native')",
            ["backend 'native' cannot be", "C compiler", "fastdrop-kernels"],
        ),
        ("numba", "fd.use_backend('numba')", ["the backend 'numba' cannot be", "pip install numba"]),
        ("numba", "import fastdrop.numba", ["fastdrop.numba needs the package numba", "pip install numba"]),
    ],
)
def test_what_is_not_installed(missing, code, words, fresh_python):
    found = fresh_python(
        f"import sys, warnings; warnings.simplefilter('ignore'); sys.modules[{missing!r}] = None\n"
        f"import fastdrop as fd\nbefore = fd.get_backend()\ntry:\n    {code}\nexcept ImportError as error:\n"
        "    print(error)\nassert fd.get_backend() == before"
    )
    assert found.returncode == 0, found.stderr
    for part in words:
        assert part in found.stdout


def test_no_module_has_the_name_of_something_public():
    """``import fastdrop.x`` would put the module in the place of the function."""
    modules = {info.name for info in pkgutil.iter_modules(fd.__path__)}
    assert modules & set(fd.__all__) == {"layers"}
    assert type(fd.layers) is type(pkgutil)
