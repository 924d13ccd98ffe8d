"""``Rng`` and all that may stand for one: which (seed, stream) a mask gets, and what is moved by it."""

import copy
import pickle
import random
import threading

import numpy as np
import pytest

import fastdrop as fd


def numbers(mask):
    return mask.seed, mask.stream


# -- Rng ---------------------------------------------------------------------------------------------------------------


def test_two_integers():
    rng = fd.Rng(5, 7)
    assert (rng.seed, rng.stream) == (5, 7)
    assert repr(rng) == "fastdrop.Rng(seed=5, stream=7)"
    assert (fd.Rng().seed, fd.Rng().stream) == (0, 0)
    assert fd.Rng(seed=np.uint64(2**64 - 1), stream=np.int8(3)).seed == 2**64 - 1
    assert type(fd.Rng(np.int64(3)).seed) is int


def test_every_mask_moves_on_by_one():
    rng = fd.Rng(5, 7)
    x = np.ones(4)
    masks = [
        rng.mask(3, 0.5),
        fd.mask(3, 0.5, rng=rng),
        fd.dropout(x, 0.5, rng=rng)[1],
        fd.dropout(x, 0.0, rng=rng)[1],  # whether p is 0 changes no later mask
        rng.mask((0,), 0.5),
        rng.mask(2**60, 0.5),  # nor does the size
    ]
    assert [numbers(mask) for mask in masks] == [(5, stream) for stream in range(7, 13)]
    assert rng.stream == 13
    masks[0].keep(), masks[0].apply(np.ones(3)), masks[0].backward(np.ones(3))
    assert rng.stream == 13


def test_stream_wraps():
    rng = fd.Rng(1, 2**64 - 1)
    assert [numbers(rng.mask(1, 0.5)) for _ in range(2)] == [(1, 2**64 - 1), (1, 0)]


@pytest.mark.parametrize("name", ["seed", "stream"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (2**64, ValueError), (1.0, TypeError), ("1", TypeError), (None, TypeError), (True, TypeError)],
)
def test_bad_numbers(name, value, error):
    with pytest.raises(error, match=rf"{name} must be an integer in \[0, 2\*\*64\), got .*{value}"):
        fd.Rng(**{name: value})


def test_numbers_cannot_be_set():
    for name in ("seed", "stream", "other"):
        with pytest.raises(AttributeError, match=f"'{name}'"):
            setattr(fd.Rng(), name, 1)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda rng: pickle.loads(pickle.dumps(rng))])
def test_a_copy_goes_on_from_there(how):
    rng = fd.Rng(5)
    rng.mask(3, 0.5)
    rng.spawn(2)
    twin = how(rng)
    assert twin is not rng
    assert numbers(twin.mask(3, 0.5)) == numbers(rng.mask(3, 0.5)) == (5, 1)
    assert [child.seed for child in twin.spawn(2)] == [child.seed for child in rng.spawn(2)]
    twin.mask(3, 0.5)
    assert (rng.stream, twin.stream) == (2, 3)


def test_spawn():
    rng = fd.Rng(9)
    children = rng.spawn(3) + rng.spawn(2)
    assert [child.seed for child in children] == [
        int(sequence.generate_state(1, np.uint64)[0]) for sequence in np.random.SeedSequence(9).spawn(5)
    ]
    assert len({child.seed for child in children}) == 5
    assert all(child.stream == 0 for child in children)
    assert rng.stream == 0
    rng.mask(3, 0.5)
    assert fd.Rng(9).spawn(1)[0].seed == children[0].seed  # masks taken change nothing
    assert rng.spawn(0) == []


@pytest.mark.parametrize(("n", "error"), [(-1, ValueError), (1.5, TypeError), ("a", TypeError), (None, TypeError)])
def test_bad_spawn(n, error):
    rng = fd.Rng(0)
    with pytest.raises(error, match="n must be an integer of at least 0, got"):
        rng.spawn(n)
    assert rng.spawn(1)[0].seed == fd.Rng(0).spawn(1)[0].seed


def test_threads_never_share_a_stream():
    rng, taken = fd.Rng(3), []
    gate = threading.Barrier(8)

    def take():
        gate.wait()
        taken.append([rng.mask(1, 0.5).stream for _ in range(2000)])

    workers = [threading.Thread(target=take) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(stream for streams in taken for stream in streams) == list(range(16_000))
    assert all(streams == sorted(streams) for streams in taken)
    assert rng.stream == 16_000


# -- what may stand for one --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42, 2**63, 2**64 - 1, np.int64(3), np.uint64(2**64 - 1), np.uint8(200)])
def test_int_is_the_seed_as_it_is(seed):
    for _ in range(2):  # the same mask at each call
        assert numbers(fd.mask(3, 0.5, rng=seed)) == (int(seed), 0)
        assert numbers(fd.dropout(np.ones(3), 0.5, rng=seed)[1]) == (int(seed), 0)


def test_seed_sequence():
    sequence = np.random.SeedSequence(123)
    seed = int(np.random.SeedSequence(123).generate_state(1, np.uint64)[0])
    assert numbers(fd.mask(3, 0.5, rng=sequence)) == (seed, 0)
    assert numbers(fd.mask(3, 0.5, rng=sequence)) == (seed, 0)
    assert sequence.n_children_spawned == 0


@pytest.mark.parametrize("size", [1, 100_000])
@pytest.mark.parametrize("kind", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_generator_gives_one_draw_whatever_the_size(kind, size):
    generator, twin = (np.random.Generator(kind(5)) for _ in range(2))
    for _ in range(3):
        seed = int(twin.integers(0, 2**64, dtype=np.uint64))
        assert numbers(fd.dropout(np.ones(size), 0.5, rng=generator)[1]) == (seed, 0)
    assert generator.integers(2**63) == twin.integers(2**63)


def test_bit_generator():
    bits, twin = np.random.PCG64(5), np.random.Generator(np.random.PCG64(5))
    for _ in range(3):
        assert numbers(fd.mask(3, 0.5, rng=bits)) == (int(twin.integers(0, 2**64, dtype=np.uint64)), 0)


def test_subclass_of_rng():
    class Mine(fd.Rng):
        pass

    rng = Mine(4)
    assert numbers(fd.mask(3, 0.5, rng=rng)) == (4, 0)
    assert rng.stream == 1


def test_none_is_one_generator_for_the_process():
    masks = [fd.mask(3, 0.5), fd.mask(3, 0.5, rng=None), fd.dropout(np.ones(3))[1], fd.dropout(np.ones(3), rng=None)[1]]
    assert len({mask.seed for mask in masks}) == 1
    first = masks[0].stream
    assert [mask.stream for mask in masks] == [first, first + 1, first + 2, first + 3]


def test_default_seed_is_from_entropy(fresh_python):
    code = "import fastdrop as fd; print(fd.mask(1, .5).seed)"
    runs = [fresh_python(code) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs)
    assert len({run.stdout for run in runs}) == 3
    assert all(0 <= int(run.stdout) < 2**64 for run in runs)


@pytest.mark.parametrize("rng", [1.5, "a", True, np.True_, [1], (1, 2), np.random, np.random.RandomState(0), b"1", {}])
def test_bad_rng(rng):
    for call in (lambda: fd.mask(3, 0.5, rng=rng), lambda: fd.dropout(np.ones(3), 0.5, rng=rng)):
        with pytest.raises(TypeError, match=rf"rng must be None, an int .* or BitGenerator, got {type(rng).__name__}"):
            call()


@pytest.mark.parametrize("rng", [-1, 2**64, np.int64(-1)])
def test_rng_out_of_range(rng):
    with pytest.raises(ValueError, match=rf"rng must be an integer in \[0, 2\*\*64\), got {rng}"):
        fd.mask(3, 0.5, rng=rng)


def test_rng_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        fd.mask(3, 0.5, fd.Rng(0))
    with pytest.raises(TypeError, match="positional"):
        fd.dropout(np.ones(3), 0.5, fd.Rng(0))


def test_nobody_elses_generator_moves():
    """Neither NumPy's global state nor Python's is read or moved."""
    x = np.ones(1000)

    def use():
        masks = [fd.mask(1000, 0.5), fd.dropout(x, 0.5)[1], fd.Rng(0).spawn(2)[0].mask(3, 0.5)]
        return [numbers(mask) for mask in masks]

    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    ours, theirs = np.random.get_state(), random.getstate()  # noqa: NPY002
    first = use()
    assert random.getstate() == theirs
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), ours, strict=True))  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    assert use()[:2] != first[:2]


@pytest.mark.parametrize("bad", [{"p": 2}, {"p": "a"}, {"shape": -1}, {"p": [0.1, 0.2]}])
def test_a_call_that_fails_takes_nothing(bad):
    (name,) = bad
    rng, generator = fd.Rng(0), np.random.default_rng(0)
    state = generator.bit_generator.state
    for source in (rng, generator):
        with pytest.raises((TypeError, ValueError), match=rf"{name} .*must"):
            fd.mask(**{"shape": 3, "p": 0.5, **bad}, rng=source)
    with pytest.raises((TypeError, ValueError), match=rf"{name} .*must"):
        rng.mask(**{"shape": 3, "p": 0.5, **bad})
    assert rng.stream == 0
    assert generator.bit_generator.state == state
