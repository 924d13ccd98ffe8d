"""Stream version 1, bit for bit: the answer file, then the slow specification against every engine.

The oracle is ``reference.uniform32``: four Philox calls an element and a comparison, without any of the short cuts (one
byte where it decides, 16 elements a call, tiles, windows, vectors) that the engines take.
"""

import json
import random
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import rule
from fastdrop.backends import reference

ANSWERS = json.loads((Path(__file__).parent / "data" / "stream-v1.json").read_text())
BOUNDARIES = [0, 64, 256, 4096, 2**32, 2**36, 2**40, 2**60, 2**63, 2**64]  # 2**36 elements are 2**32 calls
THREADS = [1, 2, 3, 4]


def part(seed, stream, offset, n, p):
    """Elements offset .. offset + n - 1 of a mask, as a user gets them."""
    return fd.Rng(seed, stream).mask(offset + n, p)[offset:]


def slow_keep(seed, stream, offset, n, p):
    return reference.keep_at(seed, stream, np.arange(n, dtype=np.uint64) + np.uint64(offset % 2**64), p)


def assert_mask_is(mask, keep):
    """The mask gives these decisions, by its bits, as bools, and in an array that it is applied to."""
    bits = mask.bits()
    assert bits.tobytes() == np.packbits(keep, bitorder="little").tobytes()
    assert np.array_equal(mask.keep(), keep)
    y = mask.apply(np.full(mask.shape, 3.0))
    assert np.array_equal(y, np.where(keep, 3.0 * mask.scale if mask.p < 1 else 0.0, 0.0))


def words(text):
    return [int(word, 16) for word in text.split()]


# -- the answer file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS["philox4x32_10"])
def test_philox(counter, key, answer):
    counter = [np.array([word], np.uint64) for word in words(counter)]
    assert [int(word[0]) for word in reference.stream.philox4x32(counter, words(key))] == words(answer)


def test_philox_is_that_of_cpp26():
    """The C++ standard: what a default-constructed philox4x32 (key 20111115, 0) gives as its 10 000th number."""
    counter = [np.array([word], np.uint64) for word in (9999 // 4, 0, 0, 0)]
    assert int(reference.stream.philox4x32(counter, (20111115, 0))[9999 % 4][0]) == 1955073260


def test_uniforms():
    for answer in ANSWERS["uniforms"]:
        index = np.array([answer["index"]], np.uint64)
        assert int(reference.uniform32(answer["seed"], answer["stream"], index)[0]) == answer["U"]


def test_thresholds():
    for answer in ANSWERS["masks"]:
        assert rule.threshold(answer["p"]) == answer["threshold"]


@pytest.mark.parametrize(
    ("p", "t"), [(0.5, 2**31), (0.0, 2**32), (1.0, 0), (2**-33, 2**32), (1 - 2**-33, 0), (1 - 3 * 2**-33, 2)]
)
def test_threshold_rounds_half_to_even(p, t):
    assert rule.threshold(p) == t


@pytest.mark.parametrize("answer", ANSWERS["masks"], ids=lambda a: f"{a['n']} from {a['offset']} at {a['p']}")
def test_answer_file(engine, answer):
    seed, stream, offset, n, p = (answer[name] for name in ("seed", "stream", "offset", "n", "p"))
    bits = np.frombuffer(bytes.fromhex(answer["bits"]), np.uint8)
    keep = np.unpackbits(bits, bitorder="little")[:n].astype(bool)
    assert keep.sum() == answer["kept"]
    assert np.array_equal(slow_keep(seed, stream, offset, n, p), keep)
    for threads in THREADS:
        with fd.threads(threads):
            assert_mask_is(part(seed, stream, offset, n, p), keep)


@pytest.mark.parametrize("threads", THREADS)
def test_answer_file_within_arrays_that_threads_share(engine, threads):
    """The answers again, where they lie in a mask long enough for every thread to have work."""
    with fd.threads(threads):
        for answer in ANSWERS["masks"]:
            offset, n, p = answer["offset"], answer["n"], answer["p"]
            if offset >= 1 << 18 or p in (0.0, 1.0):
                continue
            mask = fd.Rng(answer["seed"], answer["stream"]).mask(1 << 18, p)
            bits = np.frombuffer(bytes.fromhex(answer["bits"]), np.uint8)
            keep = np.unpackbits(bits, bitorder="little")[:n].astype(bool)
            whole = np.unpackbits(mask.bits(), bitorder="little")
            assert np.array_equal(whole[offset : offset + n], keep)
            y = mask.apply(np.ones(mask.shape, np.float32))
            assert np.array_equal(y[offset : offset + n] != 0, keep)


# -- thousands of others -----------------------------------------------------------------------------------------------


def random_cases(count, seed):
    """(seed, stream, offset, length, p): lengths 0 to 10 000, offsets on and around every boundary, p of every kind."""
    draw = random.Random(seed)
    for _ in range(count):
        n = draw.randrange(draw.choice([70, 600, 10_001]))
        around = draw.choice(BOUNDARIES) + draw.choice([0, 64, 256, 4096]) * draw.randrange(4)
        offset = min(max(around - draw.randrange(-70, n + 70), 0), 2**64 - n)
        if draw.random() < 0.3:
            offset = draw.randrange(2**64 - n)
        p = draw.choice([draw.random(), draw.randrange(257) / 256, draw.randrange(65537) / 65536, 0.1, 1e-9, 1 - 1e-9])
        seed, stream = (draw.choice([draw.randrange(2**64), draw.randrange(5), 2**32, 2**64 - 1]) for _ in range(2))
        yield seed, stream, offset, n, p


@pytest.fixture(scope="module")
def answers():
    """Cases with what the specification says of them, made once."""
    return [(case, slow_keep(*case)) for case in random_cases(2500, seed=1)]


def test_lengths_and_offsets_are_covered(answers):
    lengths = [n for (_, _, _, n, _), _ in answers]
    assert min(lengths) == 0
    assert max(lengths) > 9900
    for boundary in BOUNDARIES[1:-1]:
        assert sum(offset < boundary < offset + n for (_, _, offset, n, _), _ in answers) > 50
    assert any(offset + n == 2**64 for (_, _, offset, n, _), _ in answers)


def test_random_masks(engine, answers):
    for case, keep in answers:
        assert part(*case).bits().tobytes() == np.packbits(keep, bitorder="little").tobytes(), case


def test_random_masks_on_arrays(engine, answers):
    for case, keep in answers[::3]:
        assert_mask_is(part(*case), keep)


@pytest.mark.parametrize("threads", THREADS)
def test_threads_change_nothing(engine, threads):
    n, p = 300_001, 0.1
    keep = reference.stream.keep_range(5, 6, 1000, n, p)  # `test_random_masks` proves it
    mask = part(5, 6, 1000, n, p)
    x = np.linspace(1, 2, n)
    with fd.threads(threads):
        assert mask.bits().tobytes() == np.packbits(keep, bitorder="little").tobytes()
        assert np.array_equal(mask.keep(), keep)
        assert np.array_equal(mask.apply(x), np.where(keep, x * mask.scale, 0))
        turned = mask.apply(x[::-1])
        assert np.array_equal(turned, np.where(keep, x[::-1] * mask.scale, 0))


def test_all_four_bytes_decide(engine):
    """T equal to U drops and T = U + 1 keeps: three ties in a row, in every lane and word of a block."""
    index = np.arange(1024, dtype=np.uint64) * np.uint64(37)
    uniform = reference.uniform32(3, 4, index)
    for i, u in zip(index.tolist(), uniform.tolist(), strict=True):
        for t in (u, u + 1):
            p = 1 - t / 2**32
            first = max(i - 70, 0)
            mask = part(3, 4, first, i - first + 1, p)
            assert mask.keep()[-1] == (t > u)
            assert mask[-1].keep()[()] == (t > u)
            assert (mask.bits()[-1] >> ((i - first) % 8) & 1) == (t > u)


def test_half_to_even_in_every_engine(engine):
    """p whose T lies half way between U and U + 1: kept only if U + 1 is the even one."""
    index = np.arange(300, dtype=np.uint64)
    for i, u in zip(index.tolist(), reference.uniform32(8, 9, index).tolist(), strict=True):
        mask = part(8, 9, i, 1, 1 - (u + 0.5) / 2**32)
        assert mask.keep()[0] == (u % 2 == 1)
        assert mask.bits()[0] == u % 2


def test_seed_and_stream_halves_matter():
    """Each of the four 32-bit words that seed and stream are made of changes the mask."""
    masks = {fd.Rng(seed, stream).mask(256, 0.5).bits().tobytes() for seed in (0, 1, 2**32) for stream in (0, 1, 2**32)}
    assert len(masks) == 9
