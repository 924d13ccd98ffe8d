"""Monte Carlo dropout: a sample is one network however the data are cut, layers share no stream, and the statistics are
those of the stacked predictions."""

import pickle
import tracemalloc

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.inference import Sample
from fastdrop.layers import Dropout, MultiSampleDropout

X = np.random.default_rng(0).standard_normal((37, 12))
W = [np.random.default_rng(i).standard_normal(shape) / 3 for i, shape in enumerate([(12, 20), (20, 20), (20, 4)])]
LAYERS = [Dropout(0.3, rng=1), Dropout(0.5, rng=1)]


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def dense(x, w):
    """A matrix product whose rows do not depend on how many there are, as BLAS's do."""
    return np.stack([(row[:, None] * w).sum(axis=0) for row in x])


def network(x, training, product=dense):
    h = LAYERS[0](np.maximum(product(x, W[0]), 0), training)
    h = LAYERS[1](np.maximum(product(h, W[1]), 0), training)
    return softmax(product(h, W[2]))


def same(a, b, rows=slice(None)):
    return all(np.array_equal(one, other[rows]) for one, other in zip((*a, a.samples), (*b, b.samples), strict=True))


@pytest.mark.parametrize("per_row", [False, True])
def test_any_cut_of_the_data_gives_the_same_bits(engine, per_row):
    whole = fd.mc_dropout(network, X, 7, rng=3, per_row=per_row)
    for size in (1, 5, 37, 64):
        assert same(fd.mc_dropout(network, X, 7, rng=3, per_row=per_row, batch_size=size), whole)
    for row in (0, 20, 36):
        assert same(fd.mc_dropout(network, X[row : row + 1], 7, rng=3, per_row=per_row, first_row=row), whole, [row])
    with fd.threads(3):
        assert same(fd.mc_dropout(network, X, 7, rng=3, per_row=per_row), whole)


def test_rows_of_a_matrix_product_with_one_batch_size():
    """BLAS, which sees the same number of rows each time."""
    predict = lambda x, sample: network(x, sample, np.matmul)  # noqa: E731
    whole = fd.mc_dropout(predict, X, 5, rng=3, batch_size=16)
    for row in range(0, 37, 16):  # where a row stands in its batch is BLAS's business
        assert same(fd.mc_dropout(predict, X[row : row + 1], 5, rng=3, batch_size=16), whole, [row])


def test_a_sample_does_not_depend_on_how_many_there_are():
    seen = {}

    def predict(x, sample):
        y = network(x, sample)
        assert np.array_equal(seen.setdefault(sample.number, y), y)
        return y

    for samples in (5, 2, 9):
        fd.mc_dropout(predict, X, samples, rng=3)
    assert list(seen) == list(range(9))
    assert not np.array_equal(seen[0], seen[1])


def masks_of(x, rng=3, samples=3, **options):
    taken = []

    def predict(x, sample):
        taken.append([sample.mask(x.shape, 0.5), sample.mask(x.shape, 0.5)])
        return np.full((len(x), 2), 0.5 + 1e-3 * len(taken))

    fd.mc_dropout(predict, x, samples, rng=rng, probabilities=False, **options)
    return taken


def test_sample_is_the_stream_and_layer_the_seed():
    taken = masks_of(X)
    assert [[mask.stream for mask in pair] for pair in taken] == [[0, 0], [1, 1], [2, 2]]
    seeds = {tuple(mask.seed for mask in pair) for pair in taken}
    assert len(seeds) == 1
    ((first, second),) = seeds
    assert first != second
    assert taken[0][0].shape == (1, 12)


def test_rows_share_a_mask_or_have_their_own():
    shared, own = masks_of(X, samples=1)[0][0], masks_of(X, samples=1, per_row=True)[0][0]
    assert shared.shape == (1, 12)
    assert own.shape == (37, 12)
    assert len(np.unique(own.keep(), axis=0)) == 37
    later = masks_of(X[:4], samples=1, per_row=True, first_row=10**12)[0][0]
    assert np.array_equal(later.keep()[1:], masks_of(X[:3], samples=1, per_row=True, first_row=10**12 + 1)[0][0].keep())
    assert np.array_equal(own.keep()[:1], shared.keep())  # row 0 of the same stream


def test_which_ensemble():
    rng = fd.Rng(3)
    first, second = masks_of(X, rng), masks_of(X, rng)
    assert rng.stream == 2
    assert first[0] == masks_of(X, 3)[0] == masks_of(X, fd.Rng(3))[0]
    assert first[0] != second[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_are_those_of_the_stack(dtype):
    stack = []

    def predict(x, sample):
        stack.append(network(x, sample).astype(dtype))
        return stack[-1]

    result = fd.mc_dropout(predict, X, 12, rng=5)
    p = np.array(stack, np.float64)
    close = {"rtol": 1e-6 if dtype is np.float32 else 1e-12, "atol": 1e-7 if dtype is np.float32 else 1e-14}
    mean = p.mean(axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=-1)
    single = -(p * np.log(p)).sum(axis=-1).mean(axis=0)
    np.testing.assert_allclose(result.mean, mean, **close)
    np.testing.assert_allclose(result.variance, p.var(axis=0), **close)
    np.testing.assert_allclose(result.entropy, entropy, **close)
    np.testing.assert_allclose(result.mutual_information, entropy - single, **close)
    assert (result.mutual_information > 0).all()
    assert (result.samples == 12).all()
    m, _, _, i = result
    assert m is result.mean
    assert i is result.mutual_information
    again = pickle.loads(pickle.dumps(result))
    assert same(again, result)


def test_regression():
    layer = Dropout(0.5)
    result = fd.mc_dropout(lambda x, sample: layer(x, sample)[:, 0], X, 400, rng=1, probabilities=False)
    assert result.mean.shape == (37,)
    assert result.entropy is result.mutual_information is None
    np.testing.assert_allclose(result.variance, X[:, 0] ** 2, rtol=0.05)  # of 0 or 2x, half of the time each


def test_certain_predictions_have_no_entropy():
    layer = Dropout(0.5)
    _, variance, entropy, information = fd.mc_dropout(
        lambda x, sample: np.eye(2)[layer(np.zeros(len(x)), sample).astype(int)], X, 5, rng=0
    )
    assert (entropy == 0).all()
    assert (information == 0).all()
    assert (variance == 0).all()


def test_rows_stop_by_themselves():
    """A row's count and statistics do not depend on the rows beside it, and the error is what was asked for."""
    x = X * np.linspace(0.1, 2, 37)[:, None]
    calls = []

    def predict(x, sample):
        calls.append(sample.number)
        return network(x, sample)

    whole = fd.mc_dropout(predict, x, 500, rng=2, tolerance=0.03)
    assert len(set(whole.samples)) > 5
    assert whole.samples.min() >= 10
    assert len(calls) == whole.samples.max() < 500
    error = np.sqrt(whole.variance / (whole.samples - 1)[:, None])
    assert error.max() <= 0.03
    assert same(fd.mc_dropout(network, x, 500, rng=2, tolerance=0.03, batch_size=5), whole)
    for row in (3, 36):
        n = int(whole.samples[row])
        alone = fd.mc_dropout(network, x[row : row + 1], n, rng=2)
        assert same(alone, whole, [row])
    assert (fd.mc_dropout(network, x, 12, rng=2, tolerance=0).samples == 12).all()


def test_memory_does_not_grow_with_samples():
    x = np.ones((2000, 50), np.float32)
    layer = Dropout(0.5)

    def predict(x, sample):
        return layer(x, sample)

    peaks = []
    for samples in (3, 3, 60):  # the first pays what is paid once
        tracemalloc.start()
        fd.mc_dropout(predict, x, samples, rng=0, probabilities=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 10_000


def test_layers_in_monte_carlo_leave_no_trace():
    layer = Dropout(0.5, rng=1)
    fd.mc_dropout(lambda x, sample: layer(x, sample), X, 3, rng=0, probabilities=False)
    assert layer.mask is None
    assert layer.rng.stream == 0


def test_multi_sample_head():
    head = MultiSampleDropout(W[0], None, p=0.5, samples=4)
    result = fd.mc_dropout(lambda x, sample: head(x, sample), X, 2000, rng=0, probabilities=False)
    assert result.mean.shape == (37, 20)
    assert np.abs(result.mean - X @ W[0]).max() < 6 * np.sqrt(result.variance.max() / 2000)
    head = MultiSampleDropout(W[0], None, p=[0.0, 1.0], samples=2)
    result = fd.mc_dropout(lambda x, sample: head(x, sample), X, 2, rng=0, probabilities=False)
    np.testing.assert_allclose(result.mean, X @ W[0] / 2)


def test_progress_bar(capsys):
    pytest.importorskip("tqdm")
    fd.mc_dropout(network, X, 3, rng=0, batch_size=20, progress=True)
    assert "6/6" in capsys.readouterr().err
    fd.mc_dropout(network, X, 3, rng=0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "samples must be an integer of at least 1, got 0", {"samples": 0}),
        (TypeError, "samples must be an integer", {"samples": 1.5}),
        (ValueError, "batch_size must be an integer of at least 1, got 0", {"batch_size": 0}),
        (ValueError, "tolerance must be None or a number of at least 0, got nan", {"tolerance": float("nan")}),
        (ValueError, "first_row must be an integer in", {"first_row": -1}),
        (TypeError, "rng must be", {"rng": "seed"}),
        (ValueError, "x must have at least one row", {"x": np.empty((0, 12))}),
        (ValueError, "predictions must be probabilities", {"predict": lambda x, s: 2 * network(x, s)}),
        (ValueError, "probabilities must lie along a last axis", {"predict": lambda x, s: network(x, s)[:, 0]}),
        (ValueError, "predict must give an array of x's rows", {"predict": lambda x, s: network(x, s)[:3]}),
        (TypeError, "predict must give an array of floats", {"predict": lambda x, s: network(x, s).argmax(axis=1)}),
        (ValueError, "predict must give the same shape", {"predict": lambda x, s: network(x, s)[: 40 - s.number - 3]}),
        (ValueError, "dropped nothing: pass sample", {"predict": lambda x, s: network(x, False)}),
        (ValueError, "first axis of what a sample drops", {"predict": lambda x, s: network(x[:5], s)}),
        (ValueError, "p must be one number", {"predict": lambda x, s: s.dropout(x, np.full(37, 0.1)), "per_row": True}),
    ],
)
def test_bad_input(error, message, options):
    arguments = {"predict": network, "x": X, "samples": 3, "rng": 0, "batch_size": None} | options
    with pytest.raises(error, match=message):
        fd.mc_dropout(**arguments)


def test_a_sample_is_true():
    """Layers that know of no Sample take it for training=True."""
    seen = []
    fd.mc_dropout(lambda x, sample: seen.append(sample) or network(x, sample), X, 1, rng=0)
    assert isinstance(seen[0], Sample)
    assert seen[0]
