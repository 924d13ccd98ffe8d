"""The dropout layer: which mask a backward uses, whatever calls came before it."""

import copy
import pickle

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import layers
from fastdrop.layers import Dropout

X = np.linspace(1, 2, 600, dtype=np.float32).reshape(20, 30)


def multipliers(stream, shape=X.shape, p=0.5, seed=7):
    """What call number ``stream`` of a layer with this seed multiplies by, as float32."""
    return fd.Rng(seed, stream).mask(shape, p).apply(np.ones(shape, np.float32))


def test_forward_and_backward_use_the_mask_of_the_call():
    layer = Dropout(0.5, rng=fd.Rng(7))
    y = layer(X)
    assert y.dtype == np.float32
    assert np.array_equal(y, X * multipliers(0))
    assert np.array_equal(layer.backward(X + 1), (X + 1) * multipliers(0))


def test_calls_are_undone_last_first():
    layer = Dropout(0.5, rng=7)
    for _ in range(4):
        layer(X)
    for stream in (3, 2, 1, 0):
        assert np.array_equal(layer.backward(X), X * multipliers(stream))


def test_calls_never_undone_do_not_disturb_later_ones():
    layer = Dropout(0.5, rng=7)
    for step in range(3):
        layer(X)  # say, a validation pass that forgot training=False
        layer(X)
        assert np.array_equal(layer.backward(X), X * multipliers(2 * step + 1))


def test_calls_in_any_order_by_their_masks():
    layer = Dropout(0.5, rng=7)
    masks = []
    for _ in range(3):
        layer(X)
        masks.append(layer.mask)
    for stream in (1, 0, 2):
        assert np.array_equal(layer.backward(X, mask=masks[stream]), X * multipliers(stream))
    assert layer.mask is None


def test_a_mask_is_undone_once_and_only_by_its_layer():
    layer = Dropout(0.5, rng=7)
    layer(X)
    first = layer.mask
    layer(X)
    layer.backward(X, mask=first)
    for mask in (first, fd.mask(X.shape, 0.5, rng=8)):
        with pytest.raises(RuntimeError, match="not of a call of this layer"):
            layer.backward(X, mask=mask)
    assert np.array_equal(layer.backward(X), X * multipliers(1))


def test_inference_leaves_no_trace():
    layer = Dropout(0.5, rng=fd.Rng(7))
    layer(X)
    assert layer(X, training=False) is X
    assert layer(X[:3], False).shape == (3, 30)
    assert layer.rng.stream == 1
    assert np.array_equal(layer.backward(X), X * multipliers(0))


@pytest.mark.parametrize("calls", [[], [False], [True, "back"], [False, True, "back", False]])
def test_backward_without_a_call_to_undo(calls):
    layer = Dropout(0.5, rng=7)
    for call in calls:
        if call == "back":
            layer.backward(X)
        else:
            layer(X, training=call)
    with pytest.raises(RuntimeError, match="training=True"):
        layer.backward(X)


def test_a_wrong_gradient_can_be_repeated_right():
    layer = Dropout(0.5, rng=7)
    layer(X)
    for wrong in (X[0], X[None], X.T):
        with pytest.raises(ValueError, match="shape"):
            layer.backward(wrong)
    with pytest.raises(TypeError, match="int"):
        layer.backward(np.ones(X.shape, int))
    assert np.array_equal(layer.backward(X), X * multipliers(0))


def test_a_call_that_fails_is_not_one():
    layer = Dropout(0.5, rng=7)
    with pytest.raises(TypeError, match="int"):
        layer(np.arange(4))
    with pytest.raises(RuntimeError, match="no call"):
        layer.backward(X)


def test_memory_is_bounded_and_the_forgotten_is_never_replaced(monkeypatch):
    monkeypatch.setattr(layers, "REMEMBERED", 3)
    layer = Dropout(0.5, rng=7)
    for _ in range(5):
        layer(X)
    for stream in (4, 3, 2):
        assert np.array_equal(layer.backward(X), X * multipliers(stream))
    with pytest.raises(RuntimeError, match="no call"):
        layer.backward(X)


def test_each_call_has_another_mask_whatever_rng_is():
    for rng in (7, None, np.random.default_rng(7), np.random.SeedSequence(7), fd.Rng(7)):
        layer = Dropout(0.5, rng=rng)
        assert not np.array_equal(layer(X), layer(X)), rng


def test_layers_may_share_an_rng():
    rng = fd.Rng(7)
    first, second = Dropout(0.5, rng=rng), Dropout(0.5, rng=rng)
    assert np.array_equal(first(X), X * multipliers(0))
    assert np.array_equal(second(X), X * multipliers(1))
    assert np.array_equal(first.backward(X), X * multipliers(0))


def test_p_may_change_between_calls():
    layer = Dropout(0.5, rng=7)
    layer(X)
    layer.p = 0.25
    assert np.array_equal(layer(X), X * multipliers(1, p=0.25))
    layer.backward(X)
    assert np.array_equal(layer.backward(X), X * multipliers(0))


def test_p_for_each_sample():
    p = np.linspace(0, 1, 20)
    layer = Dropout(p, rng=7)
    y = layer(X)
    assert np.array_equal(y[0], X[0])
    assert not y[-1].any()
    assert np.array_equal(layer.backward(X), y)


@pytest.mark.parametrize(("p", "kept"), [(0, 1.0), (1, 0.0)])
def test_nothing_and_everything_dropped(p, kept):
    layer = Dropout(p, rng=7)
    assert np.array_equal(layer(X), kept * X)
    assert np.array_equal(layer.backward(X), kept * X)


@pytest.mark.parametrize(
    ("p", "error"), [(-0.1, ValueError), (1.1, ValueError), (np.nan, ValueError), ("0.5", TypeError), (None, TypeError)]
)
def test_bad_p_raises_when_the_layer_is_made(p, error):
    with pytest.raises(error, match="p "):
        Dropout(p)


def test_bad_rng_raises_when_the_layer_is_made():
    with pytest.raises(TypeError, match="rng"):
        Dropout(0.5, rng="7")


def test_gradient_by_central_differences():
    x = np.random.default_rng(0).standard_normal((4, 5))
    weight = np.random.default_rng(1).standard_normal((4, 5))
    layer = Dropout(0.3, rng=7)
    layer(x)
    dx = layer.backward(weight)
    step = 1e-5
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        difference = (Dropout(0.3, rng=7)(up) * weight).sum() - (Dropout(0.3, rng=7)(down) * weight).sum()
        assert dx[at] == pytest.approx(difference / (2 * step), abs=1e-8)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_calls_of_its_own(duplicate):
    layer = Dropout(0.5, rng=7)
    layer(X)
    other = duplicate(layer)
    layer.backward(X)
    assert np.array_equal(other.backward(X), X * multipliers(0))
    assert np.array_equal(other(X), layer(X))
