"""The README does what it says: its code runs, its paths exist, its tests are CI's."""

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.operations import ACTIVATIONS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
LINKS = re.findall(r"\]\(([^)]+)\)", TEXT)


def blocks(language):
    found = [text for name, text in CODE if name == language]
    assert found
    return found


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.strip().splitlines()[0])
def test_code_runs(code):
    exec(compile(code, "README.md", "exec"), {})


def test_usage_is_ten_lines():
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 10


def test_sessions_print_what_they_say():
    runner = doctest.DocTestRunner()
    for code in blocks("pycon"):
        runner.run(doctest.DocTestParser().get_doctest(code, {}, "README.md", "README.md", 0))
    assert runner.tries > 0
    assert runner.failures == 0


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bfd\.(\w+)", TEXT))))
def test_names_exist(name):
    assert name in fd.__all__


@pytest.mark.parametrize("link", LINKS)
def test_links_lead_somewhere(link):
    assert (ROOT / link).is_file()


def test_table_of_places_names_what_is_there():
    places = TEXT.partition("## Where things are")[2]
    names = [
        name for row in re.findall(r"^\| (`.*?) \|", places, flags=re.MULTILINE) for name in re.findall("`(.+?)`", row)
    ]
    assert len(names) > 5
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "fastdrop" / name).exists(), name


# -- "What holds" across instruction sets, backends and threads --------------------------------------------------------


def activations(exact):
    """Function of x, dy and mask for each activation and each gradient of one."""
    for name in (name for name, op in ACTIVATIONS.items() if exact == (not op.tolerance)):
        forward, backward = getattr(fd, name), getattr(fd, f"{name}_backward")
        yield name, lambda x, dy, mask, f=forward: f(x, mask=mask)[0]
        yield f"{name}_backward", lambda x, dy, mask, f=backward: f(dy, x, mask)


SAME = {
    "dropout": lambda x, dy, mask: fd.dropout(x, mask=mask)[0],
    "dropout_add": lambda x, dy, mask: fd.dropout_add(x, dy, mask=mask, bias=x[0])[0],
    **dict(activations(exact=True)),
    "multi_sample_dropout": lambda x, dy, mask: fd.multi_sample_dropout(x, 0.3, 8, rng=1)[0],
    "multi_sample_dropout_backward": lambda x, dy, mask: fd.multi_sample_dropout_backward(np.stack([dy] * 8), SAMPLES),
    "multi_sample_mean": lambda x, dy, mask: fd.multi_sample_mean(x, 0.3, 8, rng=1)[0],
    "multi_sample_mean_backward": lambda x, dy, mask: fd.multi_sample_mean_backward(dy, SAMPLES),
}
NEAR = {
    **dict(activations(exact=False)),
    "softmax_dropout": lambda x, dy, mask: fd.softmax_dropout(x, mask=mask)[0],
    "bias_shape=": lambda x, dy, mask: fd.dropout_add_backward(dy, mask, bias_shape=(1000,))[1],
    "x_shape=": lambda x, dy, mask: mask.backward(dy, x_shape=(1000,)),
    "max_norm_": lambda x, dy, mask: fd.max_norm_(x.copy(), 3.0),
}
SAMPLES = fd.mask((8, 64, 1000), 0.3, rng=1)


def computed(name, dtype):
    x, dy = np.random.default_rng(0).normal(0, 3, (2, 64, 1000)).astype(dtype)
    mask = fd.mask(x.shape, 0.3, rng=2)
    return {**SAME, **NEAR}[name](x, dy, mask)


@pytest.mark.parametrize("name", [*SAME, *NEAR])
def test_results_of_instruction_sets_backends_and_threads(name, dtype, engine, identical):
    with fd.threads(1):
        y = computed(name, dtype)
    with fd.threads(3):
        identical(computed(name, dtype), y)
    backend = fd.get_backend()
    fd.use_backend("reference")
    try:
        good = computed(name, dtype)
    finally:
        fd.use_backend(backend)
    if name in SAME:
        identical(y, good)
        return
    y, good = y.astype(np.float64), good.astype(np.float64)
    if dtype.itemsize == 2:  # a unit in the last place, of each; or where float32 already differs, of the largest
        unit = 2.0**-7 if dtype.name == "bfloat16" else 2.0**-10
        assert (np.abs(y - good) <= unit * np.abs(good) + 2e-6 * np.abs(good).max()).all()
    else:
        assert np.abs(y - good).max() <= (2e-6 if dtype == np.float32 else 1e-14) * np.abs(good).max()
