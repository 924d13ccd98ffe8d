"""``Mask`` as a value: what it says of itself, parts of it, equality, pickles, its packed bits, masks the user made."""

import copy
import math
import pickle
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdrop as fd
from fastdrop.backends import reference

MASKS = {
    "plain": lambda: fd.Rng(1, 2).mask((5, 6), 0.3),
    "0-d": lambda: fd.Rng(1, 2).mask((), 0.3),
    "empty": lambda: fd.Rng(1, 2).mask((3, 0), 0.3),
    "array p": lambda: fd.Rng(1, 2).mask((5, 6), [0.1, 0.2, 0.3, 0.4, 0.5]),
    "part": lambda: fd.Rng(1, 2).mask((5, 6), 0.3)[1:4, 2],
    "contiguous part": lambda: fd.Rng(1, 2).mask((5, 6), 0.3)[3],
    "part with array p": lambda: fd.Rng(1, 2).mask((5, 6), [0.1, 0.2, 0.3, 0.4, 0.5])[1:3],
    "from_keep": lambda: fd.Mask.from_keep(np.arange(30).reshape(5, 6) % 3 > 0, 0.3),
    "part of from_keep": lambda: fd.Mask.from_keep(np.arange(30).reshape(5, 6) % 3 > 0, 0.3)[2:, 1:],
}


@pytest.fixture(params=MASKS)
def make(request):
    return MASKS[request.param]


# -- what it says of itself --------------------------------------------------------------------------------------------


def test_attributes():
    mask = fd.mask((2, 3), 0.1, rng=fd.Rng(7, 8))
    assert (mask.seed, mask.stream, mask.shape, mask.p, mask.ndim, mask.size) == (7, 8, (2, 3), 0.1, 2, 6)
    assert mask.scale == 1 / 0.9
    assert len(mask) == 2


def test_array_p():
    p = np.array([0.0, 0.5, 1.0])
    mask = fd.mask((3, 4), p, rng=0)
    p[:] = 0.9  # the mask has its own
    assert mask.p.tolist() == [0.0, 0.5, 1.0]
    assert mask.scale.tolist() == [1.0, 2.0, math.inf]
    assert mask.p.dtype == np.float64
    with pytest.raises(ValueError, match="read-only"):
        mask.p[0] = 0.3


def test_array_p_gives_each_its_own(engine):
    """Row by row, and place by place, the decisions are those of a mask with that p."""
    p = np.array([[0.0, 0.3, 0.5, 1.0], [0.1, 0.1, 1e-9, 0.7]])
    mask = fd.mask((2, 4, 50), p, rng=5)
    for i in range(2):
        for j in range(4):
            assert np.array_equal(mask.keep()[i, j], fd.mask((2, 4, 50), p[i, j], rng=5).keep()[i, j])


def test_no_memory_and_no_time():
    """O(1): a mask of 2**64 elements is as small as any."""
    large, small = fd.mask(2**64, 0.5, rng=0), fd.mask(1, 0.5, rng=0)
    assert large.size == 2**64
    assert len(pickle.dumps(large)) < len(pickle.dumps(small)) + 20
    assert sys.getsizeof(large) == sys.getsizeof(small)
    assert np.array_equal(large[2**64 - 77 :].keep(), large[2**64 - 100 :].keep()[23:])


def test_repr_tells_masks_apart():
    mask = fd.Rng(7, 8).mask((2, 3), 0.1)
    assert repr(mask) == "<fastdrop.Mask shape=(2, 3) p=0.1 seed=7, stream=8>"
    assert "part from element 3" in repr(mask[1])
    assert "part from element 1" in repr(mask[:, 1])
    assert "stored bits" in repr(fd.Mask.from_keep([True], 0.5))
    assert "p=[0.1 0.2]" in repr(fd.mask((2, 3), [0.1, 0.2]))


def test_length_of_0d():
    with pytest.raises(TypeError, match="0-d"):
        len(fd.mask((), 0.5))


def test_made_only_by_what_makes_masks():
    class Own(fd.Mask):
        def __init__(self):
            pass

    for make in (lambda: fd.Mask(1, 2, (3,), 0.5), lambda: fd.Mask.__new__(fd.Mask), Own):
        with pytest.raises(TypeError, match=r"fastdrop\.mask"):
            make()


@pytest.mark.parametrize("name", ["seed", "stream", "shape", "p", "scale", "size", "ndim", "other"])
def test_immutable(make, name):
    mask = make()
    with pytest.raises(AttributeError, match=f"'{name}'"):
        setattr(mask, name, 1)
    with pytest.raises(TypeError, match="does not support item assignment"):
        mask[0] = 1


@pytest.mark.parametrize("shape", [-1, (2, -3), (2**33, 2**33), (2**70, 0), (1,) * 65, 2.5, (2, None), None, "ab"])
def test_bad_shape(shape):
    rng = fd.Rng(0)
    with pytest.raises((TypeError, ValueError), match=r"shape must .* got|at most 2\*\*64 elements, got"):
        fd.mask(shape, 0.5, rng=rng)
    assert rng.stream == 0


def test_shapes():
    assert fd.mask(3, 0.5).shape == (3,)
    assert fd.mask([2, np.int64(3)], 0.5).shape == (2, 3)
    assert fd.mask((), 0.5).shape == ()
    assert fd.mask((0, 2**63), 0.5).size == 0


@pytest.mark.parametrize("p", [[0.1], [[0.1, 0.1, 0.1]], [0.1] * 4, []])
def test_array_p_of_another_shape(p):
    rng = fd.Rng(0)
    with pytest.raises(
        ValueError, match=r"an array p must have the leading axes of the mask's shape \(3, 4\), got shape"
    ):
        fd.mask((3, 4), p, rng=rng)
    assert rng.stream == 0


# -- parts -------------------------------------------------------------------------------------------------------------


@given(st.data())
def test_parts_of_parts_are_parts_of_the_array(data):
    """Any chain of indexing does to the mask what it does to its array."""
    shape = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple))
    mask = fd.mask(shape, 0.5, rng=1)
    if data.draw(st.booleans()):
        mask = fd.mask(shape, np.linspace(0, 1, shape[0]), rng=1)
    keep = mask.keep()
    scale = np.broadcast_to(np.reshape(mask.scale, np.shape(mask.p) + (1,) * (len(shape) - np.ndim(mask.p))), shape)
    for _ in range(3):
        if not keep.ndim:
            break
        key = []
        for n in keep.shape[: data.draw(st.integers(0, keep.ndim))]:
            if n and data.draw(st.booleans()):
                key.append(data.draw(st.integers(-n, n - 1)))
            else:
                bound = st.none() | st.integers(-n - 2, n + 2)
                key.append(slice(data.draw(bound), data.draw(bound), data.draw(st.sampled_from([None, 1]))))
        if data.draw(st.booleans()):
            key.append(Ellipsis)
        elif len(key) == keep.ndim and data.draw(st.booleans()):
            key.insert(data.draw(st.integers(0, len(key))), Ellipsis)
        key = tuple(key) if len(key) != 1 or data.draw(st.booleans()) else key[0]
        mask, keep, scale = mask[key], keep[key], scale[key]
        assert mask.shape == keep.shape
        assert np.array_equal(mask.keep(), keep)
        assert np.array_equal(np.asarray(mask), np.where(keep, scale, 0))


def test_part_of_everything_is_the_mask():
    mask = fd.mask((3, 4), 0.5, rng=0)
    for same in (mask[:], mask[...], mask[:, :], mask[0:3, 0:4], mask[()], mask[-3:, -9:9]):
        assert same == mask
        assert hash(same) == hash(mask)
    assert mask[1] != mask[2]
    assert mask[1:2] != mask[1]
    assert list(mask) == [mask[0], mask[1], mask[2]]


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        (3, IndexError, "index 3 is out of bounds for axis 0 of a mask with size 3"),
        (-4, IndexError, "index -4 is out of bounds for axis 0"),
        ((0, 4), IndexError, "index 4 is out of bounds for axis 1"),
        ((0, 0, 0), IndexError, "too many indices for a mask of 2 dimensions: 3"),
        (slice(None, None, 2), IndexError, "slices of step 1, got step 2 on axis 0"),
        (slice(None, None, -1), IndexError, "slices of step 1, got step -1 on axis 0"),
        (None, TypeError, "integers and slices of step 1, got None"),
        (True, TypeError, "integers and slices of step 1, got True"),
        (1.0, TypeError, r"integers and slices of step 1, got 1\.0"),
        ([0, 1], TypeError, r"integers and slices of step 1, got \[0, 1\]"),
        (np.array([0, 1]), TypeError, "integers and slices of step 1, got array"),
        (np.array([True] * 3), TypeError, "integers and slices of step 1, got array"),
        ((..., ...), TypeError, "integers and slices of step 1, got Ellipsis"),
    ],
)
def test_bad_index(key, error, message):
    with pytest.raises(error, match=message):
        fd.mask((3, 4), 0.5)[key]


def test_numpy_integers_index():
    mask = fd.mask((3, 4), 0.5, rng=0)
    assert mask[np.int8(1), np.uint64(2)] == mask[1, 2]


def test_the_last_part_of_the_largest_mask(engine):
    """Indices up to 2**64 - 1: nothing overflows."""
    mask = fd.Rng(3, 4).mask((2**32, 2**31, 2), 0.3)[-1, -100:, :]
    index = np.arange(2**64 - 200, 2**64, dtype=object).astype(np.uint64).reshape(100, 2)
    keep = reference.keep_at(3, 4, index, 0.3)
    assert np.array_equal(mask.keep(), keep)
    assert np.array_equal(mask[:, 1].keep(), keep[:, 1])
    assert np.array_equal(mask[:, 1].apply(np.ones((3, 100))), np.tile(keep[:, 1] / 0.7, (3, 1)))


# -- the same value ----------------------------------------------------------------------------------------------------


def test_equal_and_hash(make):
    assert make() == make()
    assert hash(make()) == hash(make())
    assert len({make(), make()}) == 1


def test_all_different():
    masks = [make() for make in MASKS.values()]
    masks += [fd.Rng(2, 2).mask((5, 6), 0.3), fd.Rng(1, 3).mask((5, 6), 0.3), fd.Rng(1, 2).mask((6, 5), 0.3)]
    masks += [fd.Rng(1, 2).mask((5, 6), 0.31), fd.Rng(1, 2).mask((5, 6), [0.3] * 5)]
    assert len(set(masks)) == len(masks)
    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            assert (a == b) == (i == j)


def test_not_equal_to_other_things():
    mask = fd.mask(3, 0.5)
    assert mask != "mask"
    assert mask is not None
    assert (mask == 3) is False


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(make, protocol):
    mask = make()
    back = pickle.loads(pickle.dumps(mask, protocol))
    assert back == mask
    assert hash(back) == hash(mask)
    assert np.array_equal(back.keep(), mask.keep())
    if isinstance(back.p, np.ndarray):
        assert not back.p.flags.writeable


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_copy(make, how):
    mask = make()
    assert how(mask) is mask  # it is immutable
    assert how([mask]) == [mask]


# -- damaged pickles ---------------------------------------------------------------------------------------------------

FIELDS = ["seed", "stream", "shape", "p", "offset", "strides", "stored"]


class Pickled:
    """Pickles as the mask that `Mask.__reduce__` would have given these fields for."""

    def __init__(self, mask, **fields):
        restore, had = mask.__reduce__()
        self.fields = restore, tuple({**dict(zip(FIELDS, had, strict=True)), **fields}.values())

    def __reduce__(self):
        return self.fields


DRAWN = MASKS["part"]
STORED = MASKS["part of from_keep"]


@pytest.mark.parametrize(
    ("make", "field", "value"),
    [
        *[(DRAWN, name, value) for name in ("seed", "stream") for value in (None, -1, 2**64, 1.0, "1", True)],
        *[(DRAWN, "offset", value) for value in (None, -1, 2**64, 1.0, 2**64 - 12)],
        *[(DRAWN, "shape", value) for value in (None, 3, [3], (3.0,), (-3,), (2**65,), (True,), (1,) * 65, (2**64,))],
        *[
            (DRAWN, "p", value)
            for value in (None, "0.3", 1.5, -0.1, math.nan, np.full(4, 0.3), np.full(3, 2.0), [None])
        ],
        *[(DRAWN, "strides", value) for value in (6, (), (6, 1), (6.0,), (-6,), (0,), (2**63,), (2**64 + 6,), [6])],
        *[(STORED, name, 1) for name in ("seed", "stream")],
        *[(STORED, "shape", value) for value in ((4, 5), (3, 9), (3,), (2**62, 5))],
        *[(STORED, "offset", value) for value in (16, 2**63, 2**64 - 1)],
        *[(STORED, "strides", value) for value in ((8, 1), (6, 2), (6, 0), (4, 1), (1, 6), None, (2**64 - 6, 1))],
        *[
            (STORED, "stored", value)
            for value in (
                np.zeros(3, np.uint8),
                np.zeros(0, np.uint8),
                np.zeros((2, 2), np.uint8),
                np.zeros(4, np.int8),
                np.zeros(4, object),
                np.ma.zeros(4, np.uint8),
                b"1234",
                "1234",
                None,
            )
        ],
        (STORED, "p", 1.0),
        (STORED, "p", np.array([0.5, 1.0, 0.5])),
    ],
)
def test_damaged_field(make, field, value):
    if field == "strides" and value is None:
        mask = Pickled(make(), strides=None, offset=18)  # 15 elements from there on are more than the 32 bits there are
    else:
        mask = Pickled(make(), **{field: value})
    with pytest.raises(ValueError, match=f"damaged: .*{field}|p must be below 1 where something is kept"):
        pickle.loads(pickle.dumps(mask))


def test_damaged_number_of_fields():
    restore, fields = DRAWN().__reduce__()
    for wrong in (fields[:-1], (*fields, None), ()):
        with pytest.raises(ValueError, match="damaged: the number of its fields"):
            restore(*wrong)


def test_undamaged_fields_in_another_form():
    """What is refused is what no mask can be, not what `Mask` would have written in another way."""
    mask = MASKS["plain"]()
    for fields in ({"strides": (6, 1)}, {"p": np.array(0.3)}):
        assert pickle.loads(pickle.dumps(Pickled(mask, **fields))) == mask


def test_parts_without_elements():
    whole = fd.mask((11, 0, 11), 0.5, rng=1)
    for part in (whole[:, :, 1:], whole[3:], fd.mask((4, 5), 0.5, rng=1)[2:2, 1:]):
        assert pickle.loads(pickle.dumps(part)) == part


def test_unpickled_bits_are_the_masks_own():
    """Buffers that were sent beside the pickle (protocol 5) stay their owner's."""
    for mask in (MASKS["from_keep"](), MASKS["array p"]()):
        buffers = []
        data = pickle.dumps(mask, 5, buffer_callback=buffers.append)
        sent = [bytearray(buffer.raw()) for buffer in buffers]
        back = pickle.loads(data, buffers=sent)
        for buffer in sent:
            buffer[:] = bytes(len(buffer))
            buffer.clear()  # not if somebody still looked at it
        assert back == mask
        assert np.array_equal(back.keep(), mask.keep())


FUZZ = """
import io, pickle, random
import numpy as np
import fastdrop as fd

WRONG = [None, True, -1, 0, 1, 2, 3, 7, 8, 29, 30, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64, 2**65, 0.5, "a",
         b"1234", [], (), (1,), (3, 2), (0, 3), (2**32, 2**32), (6, 1), (1, 6), (0, 0), (2**63, 1), np.zeros(3),
         np.ones(3, np.uint8), np.full(64, 255, np.uint8), np.full(5, 0.5), np.array([0.5, 1.0])]
MASKS = [fd.Rng(1, 2).mask((5, 6), 0.3), fd.mask(2**64, 0.5)[2**64 - 9 :],
         fd.Rng(1, 2).mask((5, 6), [0.1, 0.2, 0.3, 0.4, 0.5])[1:, 2:4],
         fd.Mask.from_keep(np.arange(30).reshape(5, 6) % 3 > 0, 0.3),
         fd.Mask.from_keep(np.arange(30).reshape(5, 6) % 3 > 0, 0.3)[2:, 1:]]

class Edited:
    def __init__(self, fields):
        self.fields = fields
    def __reduce__(self):
        return fd.masks._restore, self.fields

class Unpickler(pickle._Unpickler):  # in Python: the one in C crashes by itself on some of these bytes
    def find_class(self, module, name):
        if module.partition(".")[0] not in ("fastdrop", "numpy"):
            raise pickle.UnpicklingError(module)
        return super().find_class(module, name)

def use(mask):
    for part in (mask, mask[tuple(slice(-2, None) for _ in mask.shape)]):
        if part.size <= 4096:
            keep = part.keep()
            assert np.array_equal(part.bits(), np.packbits(keep, axis=None, bitorder="little"))
            assert (part.apply(np.ones(part.shape)) != 0).tobytes() == (keep & (np.asarray(part) != 0)).tobytes()
            assert pickle.loads(pickle.dumps(part)) == part
    repr(mask), hash(mask)

draw = random.Random(SEED)
loaded = refused = 0
for i in range(6000):
    mask = draw.choice(MASKS)
    if i % 2:
        fields = list(mask.__reduce__()[1])
        for _ in range(draw.randint(1, 3)):
            fields[draw.randrange(7)] = draw.choice(WRONG)
        data = pickle.dumps(Edited(tuple(fields)))
        expected = ValueError
    else:
        data = bytearray(pickle.dumps(draw.choice(MASKS[:2]), draw.randint(2, 5)))  # NumPy's own arrays crash too
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        expected = Exception  # pickle's own errors are of many kinds
    try:
        found = Unpickler(io.BytesIO(bytes(data))).load()
    except expected:
        refused += 1
        continue
    if isinstance(found, fd.Mask):
        loaded += 1
        use(found)
print(loaded, refused)
"""


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_loaded_from_damaged_pickles_is_a_mask(fresh_python, seed):
    done = fresh_python(FUZZ.replace("SEED", str(seed)))
    assert done.returncode == 0, done.stderr
    loaded, refused = map(int, done.stdout.split())
    assert min(loaded, refused) > 500  # both happen


# -- arrays of it ------------------------------------------------------------------------------------------------------


def test_keep_and_bits(engine, make):
    mask = make()
    keep, bits = mask.keep(), mask.bits()
    assert (keep.dtype, keep.shape) == (np.bool_, mask.shape)
    assert (bits.dtype, bits.shape) == (np.uint8, ((mask.size + 7) // 8,))
    assert np.array_equal(bits, np.packbits(keep, axis=None, bitorder="little"))  # and so 0 past the end
    assert np.array_equal(np.asarray(mask) > 0, keep)


@pytest.mark.parametrize("n", range(1, 20))
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_bits_past_the_end_are_zero(engine, n, p):
    for mask in (fd.mask(n, p, rng=0), fd.mask(n + 5, p, rng=0)[5:], fd.Mask.from_keep([True] * (n + 3), p)[2:-1]):
        assert len(mask.bits()) == (n + 7) // 8
        assert mask.bits()[-1] >> ((n - 1) % 8 + 1) == 0


def test_every_array_is_the_callers_own():
    mask = fd.mask(100, 0.5, rng=0)
    for get in (mask.bits, mask.keep, lambda: np.asarray(mask)):
        before = get()
        get()[:] = 0
        assert np.array_equal(get(), before)
    stored = fd.Mask.from_keep(np.arange(64) % 2 == 0, 0.5)
    stored.bits()[:] = 0
    assert stored.keep().sum() == 32


def test_asarray(dtype):
    mask = fd.mask((3, 50), [0.1, 0.5, 1.0], rng=0)
    array = np.asarray(mask)
    assert array.dtype == np.float64
    assert np.array_equal(array, np.where(mask.keep(), [[1 / 0.9], [2], [0]], 0))
    assert np.array_equal(np.asarray(mask, dtype), mask.apply(np.ones(mask.shape, dtype)))
    assert np.asarray(mask, dtype).dtype == dtype
    assert np.array_equal(np.array(mask, copy=True), array)
    assert np.array_equal(np.asarray(mask, bool), mask.keep())
    assert np.asarray(mask, np.longdouble).dtype == np.longdouble
    assert np.array_equal(np.stack([mask, mask]), [array, array])


def test_no_array_without_a_copy():
    if np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("NumPy 1 has no copy=False")
    with pytest.raises(ValueError, match="copy"):
        np.asarray(fd.mask(3, 0.5), copy=False)


def test_no_buffer_protocol(isas, make):
    """Who asks a mask for a buffer hears of bits(), which has it; NumPy, which wants numbers, gets the multipliers."""
    mask = make()
    for ask in (memoryview, bytearray, lambda m: np.frombuffer(m, np.uint8)):
        with pytest.raises(TypeError, match=r"mask\.bits\(\)"):
            ask(mask)
    assert memoryview(mask.bits()).tobytes() == mask.bits().tobytes()
    expected = mask.apply(np.ones(mask.shape))
    for array in (np.asarray(mask), np.array(mask), np.stack([mask])[0]):
        assert np.array_equal(array, expected)


@pytest.mark.slow
def test_no_buffer_protocol_without_the_extension(fresh_python):
    run = fresh_python(
        """
import sys, warnings
sys.modules["fastdrop._core"] = None
warnings.simplefilter("ignore")
import numpy as np, fastdrop as fd
mask = fd.mask(8, 0.5, rng=0)
try:
    memoryview(mask)
except TypeError as error:
    print("mask.bits()" in str(error) or sys.version_info < (3, 12), np.asarray(mask).tolist())
"""
    )
    assert run.stdout == "True [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]\n", run.stderr


# -- masks the user made -----------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 9), max_size=4)
    .map(tuple)
    .flatmap(lambda shape: st.tuples(st.just(shape), st.integers(0, 999)))
)
def test_from_keep(case):
    shape, seed = case
    keep = np.random.default_rng(seed).random(shape) < 0.5
    mask = fd.Mask.from_keep(keep, 0.25)
    assert (mask.seed, mask.stream, mask.shape, mask.p) == (None, None, shape, 0.25)
    assert np.array_equal(mask.keep(), keep)
    assert np.array_equal(mask.bits(), np.packbits(keep, axis=None, bitorder="little"))
    assert mask == fd.Mask.from_keep(keep.copy(order="F"), 0.25)
    assert np.array_equal(np.asarray(mask), np.where(keep, 1 / 0.75, 0))


def test_from_keep_copies():
    keep = np.ones(10, bool)
    mask = fd.Mask.from_keep(keep, 0.5)
    keep[:] = False
    assert mask.keep().all()


def test_from_keep_equals_what_it_was_made_from(engine):
    made = fd.mask((7, 300), 0.3, rng=0)
    stored = fd.Mask.from_keep(made.keep(), 0.3)
    x = np.linspace(1, 2, 2100).reshape(7, 300)
    assert np.array_equal(stored.apply(x), made.apply(x))
    assert stored != made
    assert stored.bits().tobytes() == made.bits().tobytes()


def test_from_keep_is_one_bit_an_element():
    assert len(pickle.dumps(fd.Mask.from_keep(np.ones(80_000, bool), 0.5))) < 11_000


@pytest.mark.parametrize("keep", [[0, 1], [0.0, 1.0], np.ones(3, np.uint8), ["a"], [None], None])
def test_from_keep_takes_bools(keep):
    with pytest.raises(TypeError, match=r"keep must (hold bools, got dtype|be an array, got NoneType)"):
        fd.Mask.from_keep(keep, 0.5)


def test_from_keep_checks_p():
    with pytest.raises(ValueError, match=r"p is a probability to drop and must be in \[0, 1\], got 2"):
        fd.Mask.from_keep([True], 2)
    with pytest.raises(ValueError, match="leading axes"):
        fd.Mask.from_keep([True, False], [0.1, 0.2, 0.3])


def test_part_of_a_mask_whose_outer_step_is_2_to_the_64(engine):
    whole = fd.mask((1, 2, 2**63), 0.5, rng=0)
    part = whole[:, :, :10]
    assert np.array_equal(part.keep()[0, 1], whole[0, 1, :10].keep())
    assert np.array_equal(part.bits(), np.packbits(part.keep(), bitorder="little"))


def test_from_keep_refuses_an_infinite_scale():
    """1/(1-p) of what is kept is a number; where all is dropped, p may be 1."""
    for keep, p in (
        ([True], 1),
        ([False, True], 1.0),
        ([True, False], [1.0, 0.0]),
        ([[False, False], [False, True]], [0.5, 1]),
        (True, 1.0),
    ):
        with pytest.raises(ValueError, match="p must be below 1 where something is kept"):
            fd.Mask.from_keep(keep, p)
    for keep, p in (
        ([False, False], 1.0),
        ([False, True], [1.0, 0.0]),
        (np.ones(0, bool), 1.0),
        (np.ones((2, 0), bool), [1.0, 1.0]),
    ):
        mask = fd.Mask.from_keep(keep, p)
        assert np.array_equal(mask.apply(np.ones(mask.shape)), mask.keep())
        assert pickle.loads(pickle.dumps(mask)) == mask


def test_stored_where_all_is_dropped():
    mask = fd.mask((2, 50), [1.0, 0.5], rng=0)
    assert np.array_equal(mask.stored().apply(np.ones((2, 50))), mask.apply(np.ones((2, 50))))
    assert not fd.mask(50, 1.0).stored().keep().any()


# -- in other people's expressions -------------------------------------------------------------------------------------


def test_product_in_place():
    mask = fd.mask((2, 3), 0.5, rng=0)
    x = before = np.ones((2, 3), np.float32)
    x *= mask
    assert x is before
    assert np.array_equal(x, mask.apply(np.ones((2, 3))))


def test_iteration():
    mask = fd.mask((2, 3), 0.5, rng=0)
    assert list(mask) == [mask[0], mask[1]]
    assert next(iter(fd.mask(2**64, 0.5))).shape == ()
    with pytest.raises(TypeError, match="iteration over a 0-d mask"):
        list(mask[0, 0])


@pytest.mark.parametrize(
    "product",
    [
        lambda x, mask: x * mask,
        lambda x, mask: mask * x,
        lambda x, mask: np.multiply(x, mask),
        lambda x, mask: np.ma.multiply(x, mask),
        lambda x, mask: x.__imul__(mask),
        lambda x, mask: mask.apply(x),
    ],
)
def test_masked_arrays_do_not_lose_their_mask(product):
    x = np.ma.masked_greater(np.ones((2, 3)), 0)
    with pytest.raises(TypeError, match="x must not be a masked array"):
        product(x, fd.mask((2, 3), 0.5, rng=0))
    assert x.mask.all()


def frame_of(shape):
    pandas = pytest.importorskip("pandas")
    values = np.random.default_rng(0).standard_normal(shape)
    values[0] = np.nan  # a product with 0 would show
    return pandas.DataFrame(values, [f"row {i}" for i in range(shape[0])], [f"column {i}" for i in range(shape[1])])


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (3, 2), (1, 1)])
@pytest.mark.parametrize("mask_shape", ["whole", "row", "column"])
def test_frames(shape, mask_shape):
    """Labels stay, the mask lies as it lies on the frame's array."""
    frame = frame_of(shape)
    shape = {"whole": shape, "row": shape[1:], "column": (shape[0], 1)}[mask_shape]
    mask = fd.mask(shape, 0.5, rng=0)
    want = mask.apply(frame.to_numpy())
    for product in (frame * mask, mask * frame, np.multiply(frame, mask), np.multiply(mask, frame)):
        assert type(product) is type(frame)
        assert product.index.equals(frame.index)
        assert product.columns.equals(frame.columns)
        np.testing.assert_array_equal(product.to_numpy(), want)
    for other_name in (frame.mul, frame.rmul, frame.multiply):
        with pytest.raises(TypeError, match=r"df \* mask, not df\.mul"):
            other_name(mask)
    with pytest.raises(AttributeError, match="reindex_like"):  # pandas' own words: it takes no such operand in place
        frame *= mask
    np.testing.assert_array_equal(frame.to_numpy(), frame_of(frame.shape).to_numpy())


def test_series():
    series = frame_of((3, 3))["column 1"]
    mask = fd.mask(3, 0.5, rng=0)
    for product in (series * mask, mask * series, series.mul(mask), np.multiply(series, mask)):
        assert type(product) is type(series)
        assert product.index.equals(series.index)
        assert product.name == "column 1"
        np.testing.assert_array_equal(product.to_numpy(), mask.apply(series.to_numpy()))


def test_frame_that_cannot_hold_the_product():
    with pytest.raises(ValueError, match=r"DataFrame of shape \(1, 3\) cannot hold its product with <fastdrop\.Mask"):
        frame_of((1, 3)) * fd.mask((2, 3), 0.5)


def test_torch_products():
    torch = pytest.importorskip("torch")
    mask = fd.mask((2, 3), 0.5, rng=0)
    x = torch.full((2, 3), 2.0)
    want = mask.apply(x.numpy())
    for product in (
        lambda t: t * mask,
        lambda t: mask * t,
        lambda t: t.mul(mask),
        lambda t: torch.mul(t, mask),
        lambda t: torch.multiply(mask, t),
        lambda t: torch.mul(input=t, other=mask),
    ):
        y = product(x)
        assert type(y) is torch.Tensor
        assert np.array_equal(y, want)
    half = torch.full((2, 3), 2.0, dtype=torch.bfloat16)
    assert (half * mask).dtype == torch.bfloat16
    assert (x == 2).all()


def test_torch_in_place():
    """In the tensor's own memory; everything that looks at it sees the product."""
    torch = pytest.importorskip("torch")
    mask = fd.mask((2, 3), 0.5, rng=0)

    def times(x):
        x *= mask
        return x

    for product in (times, lambda t: t.mul_(mask), lambda t: t.multiply_(mask), lambda t: torch.mul(t, mask, out=t)):
        x = torch.full((2, 3), 2.0)
        same_memory = x.view(6)
        assert product(x) is x
        assert np.array_equal(same_memory.numpy(), mask.apply(np.full((2, 3), 2.0)).ravel())
    for wrong in (torch.ones(2, 3, dtype=torch.int32), torch.ones(2, 3, requires_grad=True)):
        with pytest.raises(TypeError, match="x must"):
            wrong *= mask
    with pytest.raises(ValueError, match="out must have shape"):
        torch.ones(3).mul_(mask)


def test_torch_tensor_of_a_mask():
    """The multipliers, as np.asarray has them."""
    torch = pytest.importorskip("torch")
    mask = fd.mask((2, 3), 0.5, rng=0)
    for tensor in (torch.as_tensor(mask), torch.tensor(mask), torch.from_dlpack(mask)):
        assert np.array_equal(tensor, np.asarray(mask))
    assert torch.as_tensor(mask, dtype=torch.float32).dtype == torch.float32
    assert np.array_equal(np.from_dlpack(mask), np.asarray(mask))
