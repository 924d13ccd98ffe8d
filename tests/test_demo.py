"""The demo: a network with right gradients, honest figures, a picture, and a command that behaves in a pipe."""

import dataclasses
import io
import json
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.cli import main
from fastdrop.config import config
from fastdrop.demo.network import Adam, Network, NoDropout, NumpyDropout, softmax_cross_entropy
from fastdrop.demo.problems import digits, spiral
from fastdrop.demo.table import table
from fastdrop.demo.training import WAYS, train
from fastdrop.layers import Dropout

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "numpy_from_scratch.py"
DROPOUTS = {"no dropout": NoDropout, "NumPy": lambda: NumpyDropout(0.3, 5), "fastdrop": lambda: Dropout(0.3, rng=5)}


def needs(*modules):
    for module in modules:
        pytest.importorskip(module)


def small(dropout, dtype=np.float64):
    rng = np.random.default_rng(0)
    network = Network(4, 6, 3, dropout, rng, dtype, l2=0.05)
    for parameter in network.parameters():
        parameter += rng.standard_normal(parameter.shape)
    return network, rng.standard_normal((8, 4)).astype(dtype), rng.integers(0, 3, 8)


@pytest.mark.parametrize("make", DROPOUTS.values(), ids=DROPOUTS)
def test_gradients_by_central_differences(make):
    network, x, labels = small(make())

    def loss():
        network.dropout = make()  # the same mask again
        w, b = network.first.w, network.first.b
        penalty = 0.05 * ((w**2).sum() + (b**2).sum())
        return softmax_cross_entropy(network(x, training=True), labels)[0] + penalty

    dx = network.backward(softmax_cross_entropy(network(x, training=True), labels)[1])
    gradients = [*network.gradients(), dx]
    step = 1e-6
    for array, gradient in zip([*network.parameters(), x], gradients, strict=True):
        assert array.shape == gradient.shape
        for at in np.ndindex(array.shape):
            value = array[at]
            array[at] = value + step
            above = loss()
            array[at] = value - step
            below = loss()
            array[at] = value
            assert gradient[at] == pytest.approx((above - below) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("make", DROPOUTS.values(), ids=DROPOUTS)
def test_float32_stays_float32(make):
    network, x, labels = small(make(), np.float32)
    logits = network(x, training=True)
    _, dlogits = softmax_cross_entropy(logits, labels)
    dx = network.backward(dlogits)
    adam = Adam(network.parameters(), 0.1)
    adam.step(network.gradients())
    arrays = [logits, dlogits, dx, *network.parameters(), *network.gradients(), *adam.m, *adam.v]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


def test_the_second_layer_reads_what_dropout_wrote():
    network, x, _ = small(Dropout(0.5, rng=5))
    network(x, training=True)
    mask = fd.mask((8, 6), 0.5, rng=5)
    assert np.array_equal(network.second.x, network.hidden * mask)
    assert not np.array_equal(network.second.x, network.hidden)


def test_cross_entropy_of_known_logits():
    loss, dlogits = softmax_cross_entropy(np.log([[1.0, 3.0], [1.0, 1.0]]) + 1e4, np.array([1, 0]))
    assert loss == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
    assert dlogits == pytest.approx(np.array([[0.125, -0.125], [-0.25, 0.25]]))


def test_adam_first_steps():
    w = np.array([1.0, 1.0])
    adam = Adam([w], lr=0.1, decay=1.0)
    adam.step([np.array([2.0, -3.0])])  # whatever the size of a first gradient, Adam goes lr
    assert w == pytest.approx([0.9, 1.1], abs=1e-6)
    adam.step([np.array([2.0, -3.0])])  # and lr / (1 + decay) after that
    assert w == pytest.approx([0.85, 1.15], abs=1e-6)


def test_spiral():
    problem = spiral(0)
    assert problem.x.shape == problem.x_val.shape == (3000, 2)
    x = np.concatenate([problem.x, problem.x_val])
    labels = np.concatenate([problem.labels, problem.labels_val])
    r = np.hypot(*x.T)
    for c in range(3):
        assert np.sort(r[labels == c]) == pytest.approx(np.linspace(0, 1, 2000), abs=1e-6)
        turn = 2.5 * 4 * (c + r[labels == c])  # the angle of a point without noise, which is 2.5 * 0.2 wide
        off = np.angle(np.exp(1j * (np.arctan2(*x[labels == c].T) - turn)))
        assert off.mean() == pytest.approx(0, abs=0.05)
        assert off.std() == pytest.approx(0.5, abs=0.03)
    assert 900 < (problem.labels == 0).sum() < 1100, "not shuffled"
    assert np.array_equal(spiral(0).x, problem.x)
    assert not np.array_equal(spiral(1).x, problem.x)


def test_digits():
    needs("sklearn")
    problem = digits(0)
    assert problem.x.shape == (1200, 64)
    assert problem.x_val.shape == (597, 64)
    assert problem.classes == 10
    assert (problem.x.min(), problem.x.max(), problem.x.dtype) == (0, 1, np.float32)


@pytest.mark.parametrize("way", WAYS)
def test_a_network_learns_digits(way):
    needs("sklearn")
    (training,) = train(digits(0), 3, 0, ways=[way])
    assert training.epochs == [0, 1, 2, 3]
    assert training.val[0].accuracy < 0.3
    assert training.val[-1].accuracy > 0.85
    assert training.val[-1].loss < 0.5 * training.val[0].loss
    assert len(training.epoch_seconds) == 3
    assert all(0 < a < b for a, b in zip(training.dropout_seconds, training.epoch_seconds, strict=True))


def test_ways_start_equal_and_repeat():
    problem = dataclasses.replace(spiral(0), hidden=16)
    trainings = train(problem, 3, 0)
    assert [t.way for t in trainings] == list(WAYS)
    assert len({t.val[0].loss for t in trainings}) == 1
    assert len({t.val[-1].loss for t in trainings}) == 3
    (again,) = train(problem, 3, 0, ways=["fastdrop"])
    assert again.val[-1].loss == pytest.approx(trainings[-1].val[-1].loss, rel=1e-5)


def test_table():
    problem = dataclasses.replace(spiral(0), hidden=16)
    trainings = train(problem, 3, 0)
    for training, seconds in zip(trainings, (0.001, 0.02, 0.005), strict=True):
        training.dropout_seconds = [seconds / 2, seconds, 100 * seconds]
        training.epoch_seconds = [10 * s for s in training.dropout_seconds]
    rows = table([trainings]).splitlines()[-3:]
    numbers = [row[25:].split() for row in rows]
    assert [row[10:25].rstrip() for row in rows] == list(WAYS)
    assert rows[0].startswith("spiral")
    assert [n[4:] for n in numbers] == [["10.00"], ["200.00", "20.00", "1.0", "x"], ["50.00", "5.00", "4.0", "x"]]
    for n, training in zip(numbers, trainings, strict=True):
        train_, val = training.train[-1], training.val[-1]
        wanted = [train_.accuracy, val.accuracy, train_.loss, val.loss]
        assert [float(v) for v in n[:4]] == pytest.approx(wanted, abs=6e-4)


def size_of_png(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


@pytest.fixture(scope="module")
def piped(tmp_path_factory):
    """A short run of the command as a process, its output a pipe; and its picture."""
    needs("sklearn", "matplotlib", "tqdm")
    path = tmp_path_factory.mktemp("demo") / "with a space.png"
    command = [sys.executable, "-m", "fastdrop", "demo", "--epochs", "2", "--out", str(path)]
    return subprocess.run(command, capture_output=True, timeout=300), path


def test_piped_output_is_plain_lines(piped):
    done, path = piped
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert b"\r" not in done.stdout.replace(b"\r\n", b"\n")
    text = done.stdout.decode("ascii")
    for problem in ("spiral", "digits"):
        accuracies = ", ".join(rf"{way} 0\.\d+" for way in WAYS)
        assert re.search(rf"^{problem}, epoch 2 of 2: validation accuracy {accuracies}$", text, re.M)
    assert len(re.findall(r"^.{10}(?:no dropout|NumPy binomial|fastdrop) +0\.", text, re.M)) == 6
    assert str(path) in text.splitlines()[-1]


def test_picture(piped):
    from matplotlib.image import imread

    width, height = size_of_png(piped[1])
    assert width >= 900
    assert height >= 600
    image = imread(piped[1])[..., :3]
    assert len(np.unique((255 * image).astype(np.uint8).reshape(-1, 3), axis=0)) > 100
    half = width // 2
    for name, part in {"regions": image[:, :half], "curves": image[:, half:]}.items():
        assert (part.min(axis=2) < 0.9).mean() > 0.01, name
    assert piped[1].stat().st_size < 300_000


def test_a_bar_on_a_terminal(monkeypatch, tmp_path):
    needs("sklearn", "matplotlib", "tqdm")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["demo", "--problem", "digits", "--epochs", "1", "--out", str(tmp_path / "a.png")]) == 0
    text = sys.stdout.getvalue()
    assert "100%" in text
    assert "1/1" in text
    assert "\r" in text
    assert size_of_png(tmp_path / "a.png")[0] > 0


@pytest.mark.parametrize(
    ("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("tqdm", "tqdm")]
)
def test_a_missing_extra_says_what_to_install(monkeypatch, capsys, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--epochs", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"pip install {package}\n" in err


@pytest.mark.parametrize(
    "arguments",
    [["--epochs", "0"], ["--epochs", "few"], ["--seed", "-1"], ["--out", "no/such/folder/x"], ["--problem", "moons"]],
)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "info" in text


def test_bare_command_prints_help(capsys):
    assert main([]) == 0
    assert "bench" in capsys.readouterr().out


def test_info_as_json(capsys):
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == config()


def test_info(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert fd.__version__ in text
    assert fd.get_backend() in text


def test_the_example_trains():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, after = (float(number) for number in re.findall(r"training: +(0\.\d+|1\.0+)", done.stdout))
    assert before < 0.7
    assert after > 0.9
