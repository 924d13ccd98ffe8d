"""Monte Carlo dropout: a sample is one network however the data are cut, layers share no stream, and the statistics are
those of the stacked predictions."""

import pickle
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"], indirect=True)
def test_statistics_are_those_of_the_stack(dtype):
    stack = []

    def predict(x, sample):
        stack.append(network(x, sample).astype(dtype))
        return stack[-1]

    result = fd.mc_dropout(predict, X, 12, rng=5)
    p = np.array(stack, np.float64)
    close = {"rtol": 1e-12, "atol": 1e-15}
    mean = p.mean(axis=0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-300))).sum(axis=-1)
    single = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1).mean(axis=0)
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


def predictions(*given):
    """What `mc_dropout` is given, one after another, whatever is asked."""
    return fd.mc_dropout(lambda x, sample: (sample.mask(x.shape, 0.5), given[sample.number])[1], X[:1], len(given))


@pytest.mark.parametrize("name", ["float16", "float32", "float64"])
@pytest.mark.parametrize("classes", [3, 32768, 200_000])
def test_equal_predictions_have_no_mutual_information(name, classes):
    p = softmax(np.random.default_rng(0).standard_normal((1, classes))).astype(name)
    for one in p, np.full((1, classes), 1 / classes, name):
        _, variance, entropy, information = predictions(*[one] * 7)
        assert variance.max() == information[0] == 0
        wide = one.astype(np.float64)
        np.testing.assert_allclose(entropy, -(wide * np.log(np.maximum(wide, 1e-300))).sum(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("by", [1e-2, 1e-4, 1e-6, 1e-9])
def test_mutual_information_of_nearly_equal_predictions_keeps_its_digits(by):
    mpmath = pytest.importorskip("mpmath")
    p = softmax(
        np.random.default_rng(0).standard_normal((5, 6)) * np.linspace(1, 1 + by, 5)[:, None]
        - np.array([999, 0, 0, 0, 0, 0])
    )
    information = predictions(*p[:, None]).mutual_information[0]
    with mpmath.workdps(60):
        q = [[mpmath.mpf(v) for v in row] for row in p.tolist()]
        mean = [sum(column) / 5 for column in zip(*q, strict=True)]
        right = sum(v * mpmath.log(v / m) for row in q for v, m in zip(row, mean, strict=True) if v) / 5
    assert abs(information / float(right) - 1) < max(1e-13, 1e-15 / by)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64"])
def test_rounding_of_the_dtype_is_allowed_for_and_no_more(name):
    dtype = np.dtype(pytest.importorskip("ml_dtypes").bfloat16 if name == "bfloat16" else name)
    p = softmax(np.random.default_rng(0).standard_normal((1, 100_000)) * 3).astype(dtype)
    predictions(p, p)
    off = 1.25 if name == "bfloat16" else 1.07 if name == "float16" else 1.002
    with pytest.raises(ValueError, match="predictions must be probabilities"):
        predictions(p, (p.astype(np.float64) * off).astype(dtype))


@pytest.mark.parametrize("bad", [[0.5, 0.6], [1.5, -0.5], [np.nan, 1], [np.inf, 0], [0, 0]])
def test_every_sample_must_be_probabilities(bad):
    good = np.array([[0.25, 0.75]])
    for name in "float16", "float32", "float64":
        with pytest.raises(ValueError, match="predictions must be probabilities"):
            predictions(good, good, np.array([bad], name))


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


@pytest.mark.parametrize("call", [lambda layer, x: layer(x), lambda layer, x: layer(x, training=True)])
@pytest.mark.parametrize("make", [lambda: Dropout(0.5, rng=1), lambda: MultiSampleDropout(W[0], None, rng=1)])
def test_a_layer_that_is_not_given_the_sample_is_refused(make, call):
    layer, other = make(), Dropout(0.5)
    with pytest.raises(ValueError, match="training must be the sample that mc_dropout gives predict, or False"):
        fd.mc_dropout(lambda x, sample: call(layer, other(x, sample)), X, 3, rng=0, probabilities=False)
    assert not layer._pending
    assert layer.rng.stream == 0
    call(layer, X)  # outside it trains
    assert len(layer._pending) == 1
    fd.mc_dropout(lambda x, sample: other(layer(x, training=False), sample), X, 3, rng=0, probabilities=False)


def test_a_layer_may_train_beside_a_prediction():
    """In another thread: there is no mode of the process."""
    layer, other = Dropout(0.5, rng=1), Dropout(0.5)

    def predict(x, sample):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(layer, X).result()
        return other(x, sample)

    fd.mc_dropout(predict, X, 3, rng=0, probabilities=False)
    assert len(layer._pending) == 3


@pytest.mark.parametrize("first_row", [2**58, 2**64 - 1, 2**64 // 12 - 36])
def test_rows_whose_masks_would_repeat_are_refused(first_row):
    with pytest.raises(ValueError, match="first_row must leave the masks of all rows below 2\\*\\*64 elements, got"):
        fd.mc_dropout(lambda x, s: s.dropout(np.repeat(x, 20, axis=1), 0.5), X, 2, per_row=True, first_row=first_row)


def test_the_last_rows_that_have_masks():
    keep = []
    for first_row in 2**60 - 37, 2**60 - 36:
        fd.mc_dropout(
            lambda x, s: keep.append(s.mask((len(x), 16), 0.5)) or x, X[:36], 1, per_row=True, first_row=first_row,
            rng=0, probabilities=False,
        )  # fmt: skip
    assert np.array_equal(keep[0].keep()[1:], keep[1].keep()[:-1])
    assert keep[1]._offset + keep[1].size == 2**64


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
        (TypeError, "tolerance must be a number, got 'small'", {"tolerance": "small"}),
        (ValueError, "first_row must be an integer in", {"first_row": -1}),
        (TypeError, "predict must be a function of x and a sample, got ndarray", {"predict": X}),
        (TypeError, "per_row must be True or False, got 'no'", {"per_row": "no"}),
        (TypeError, "progress must be True or False, got 3", {"progress": 3}),
        (TypeError, "probabilities must be True or False, got None", {"probabilities": None}),
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
