"""Statistics out of core are those of numpy in memory, whatever the axes, chunks, numbers and memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from math import fsum

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidzoo.zoo import quantiles
from voidzoo.zoo.errors import DtypeError, ValuesError
from voidzoo.zoo.quantiles import RANK_ERROR, ThinnedBin, keys, numbers, percentiles
from voidzoo.zoo.statistics import Wanted, statistics

SMALL = 2**20
"""Little enough memory that images of a few MB do not fit."""
SHORT = ["bool", "uint8", "int8", "uint16", "int16", "float16"]
LONG = ["uint32", "int32", "float32", "uint64", "int64", "float64"]


@dataclass
class Pixels:
    """An image in memory that says what was read of it."""

    array: np.ndarray
    letters: str
    chunks: tuple[int, ...] = ()
    offset: tuple[int, ...] = ()
    reads: list[tuple[slice, ...]] = field(default_factory=list)

    def read(self, region):
        assert set(region) == set(self.letters)
        self.reads.append(tuple(region[a] for a in self.letters))
        return self.array[self.reads[-1]]

    def statistics(self, *wanted, **options):
        options = {"offset": self.offset, **options}
        chunks = self.chunks or self.array.shape
        return statistics(self.read, self.letters, self.array.shape, chunks, self.array.dtype, wanted, **options)

    def times_read(self):
        """How often each pixel was read."""
        times = np.zeros(self.array.shape, int)
        for part in self.reads:
            times[part] += 1
        return times


def rank_error(numbers_, value, q):
    """How far the ranks that a value can claim lie from the wanted one, as a fraction of the count."""
    ordered = np.sort(numbers_, axis=None).astype(np.float64)
    wanted = q * (ordered.size - 1)
    first, last = np.searchsorted(ordered, value, "left") - 1, np.searchsorted(ordered, value, "right")
    return max(0.0, first - wanted, wanted - last) / ordered.size


def by_numpy(array, letters, w):
    over = tuple(i for i, a in enumerate(letters) if a in w.over)
    array = array.astype(np.float64)
    if w.kind == "quantile":
        return np.quantile(array, w.q, axis=over, method=w.method)
    return {"mean": np.mean, "var": np.var, "std": np.std}[w.kind](array, axis=over)


def fill(rng, kind, shape, dtype):
    """Numbers of a kind that is hard for histograms, in the range of the dtype."""
    dtype = np.dtype(dtype)
    values = {
        "normal": lambda: rng.normal(100, 15, shape),
        "far from 0": lambda: 1e6 + rng.uniform(-1, 1, shape),
        "constant": lambda: np.full(shape, 37.0),
        "two values": lambda: rng.choice([3.0, 90.0], shape),
        "hot pixel": lambda: np.where(np.arange(np.prod(shape)).reshape(shape) == 777, 1e9, rng.gamma(2, 5, shape)),
        "heavy tails": lambda: rng.standard_cauchy(shape) ** 3,
        "denormal": lambda: rng.integers(-50, 50, shape) * float(np.finfo("float32").smallest_subnormal),
        "zeros of both signs": lambda: rng.choice([-0.0, 0.0, 1.0, -1.0], shape),
    }[kind]()
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.clip(np.rint(values), int(info.min), float(info.max) / 2).astype(dtype)
    if dtype.kind == "f":
        values = np.clip(values, float(np.finfo(dtype).min), float(np.finfo(dtype).max))
    return values.astype(dtype)


KINDS = [
    "normal",
    "far from 0",
    "constant",
    "two values",
    "hot pixel",
    "heavy tails",
    "denormal",
    "zeros of both signs",
]


@st.composite
def cases(draw):
    letters = "".join(a for a in "tczyx" if draw(st.booleans())) or "x"
    sizes = st.integers(1, 12 if len(letters) > 3 else 40)
    shape = tuple(draw(sizes) for _ in letters)
    chunks = tuple(draw(st.integers(1, 45)) for _ in letters)
    offset = tuple(draw(st.integers(0, n - 1)) for n in chunks)
    over = st.lists(st.sampled_from("tczyx"), unique=True).map("".join)
    q = st.sampled_from([0.0, 1.0, 0.5, 0.01, 0.998]) | st.floats(0, 1)
    kind = st.sampled_from(["mean", "var", "std", "quantile", "quantile"])
    wanted = draw(
        st.lists(st.builds(Wanted, kind, over, q, st.sampled_from(["linear", "inverted_cdf"])), min_size=1, max_size=5)
    )
    what = draw(st.sampled_from(KINDS)), draw(st.sampled_from(SHORT + LONG))
    return letters, shape, chunks, offset, wanted, what, draw(st.integers(8, 20)), draw(st.integers(0, 2**32))


@settings(max_examples=200, deadline=None)
@given(cases())
def test_any_statistic_over_any_axes_is_that_of_numpy_and_reads_each_pixel_once_a_pass(case):
    letters, shape, chunks, offset, wanted, (kind, dtype), bits, seed = case
    array = fill(np.random.default_rng(seed), kind, shape, dtype)
    image = Pixels(array, letters, chunks, offset)
    found = image.statistics(*wanted, memory=2**bits)
    scale = float(np.abs(array.astype(np.float64)).max())
    for w, values, error in zip(wanted, found.values, found.rank_errors, strict=True):
        true = by_numpy(array, letters, w)
        assert values.shape == true.shape
        assert values.dtype == np.float64
        if w.kind == "quantile":
            assert error <= RANK_ERROR
            if error == 0:
                np.testing.assert_allclose(values, true, rtol=1e-14, atol=1e-15 * scale)
        else:
            noise = 1e-14 * scale if w.kind == "mean" else 1e-13 * scale**2
            np.testing.assert_allclose(values**2 if w.kind == "std" else values,
                                       true**2 if w.kind == "std" else true, rtol=1e-11, atol=noise)  # fmt: skip
    assert image.times_read().max() <= found.passes
    assert image.times_read().min() >= 1
    assert found.left_out == 0


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_of_16_bits_are_exact_in_one_pass(rng, kind, dtype):
    array = fill(rng, kind, (3, 301, 257), dtype)
    image = Pixels(array, "cyx", (1, 64, 64))
    wanted = [Wanted("quantile", over, q, how)
              for over in ("yx", "cyx") for q in (0, 0.001, 0.5, 0.7, 0.9999, 1) for how in ("linear", "inverted_cdf")]  # fmt: skip
    for memory in (2**28, 2**17):
        found = image.statistics(*wanted, memory=memory)
        assert found.passes == 1
        assert set(found.rank_errors) == {0.0}
        for w, values in zip(wanted, found.values, strict=True):
            true = by_numpy(array, "cyx", w)
            np.testing.assert_allclose(values, true, rtol=2e-16, atol=0)


@pytest.mark.parametrize("dtype", LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_quantiles_of_longer_numbers_stay_within_their_rank_error_in_two_passes(rng, kind, dtype):
    array = fill(rng, kind, (800, 1000), dtype)
    image = Pixels(array, "yx", (64, 1000))
    wanted = [Wanted("quantile", "yx", q) for q in (0, 1e-5, 0.01, 0.25, 0.5, 0.75, 0.998, 0.99999, 1)]
    found = image.statistics(*wanted, memory=SMALL)
    assert found.passes <= 2
    for w, value, error in zip(wanted, found.values, found.rank_errors, strict=True):
        assert rank_error(array, value, w.q) <= error <= RANK_ERROR
        if w.q in (0.0, 1.0):
            assert value == (array.min() if w.q == 0 else array.max())
    if found.passes == 2 and array.itemsize == 4:
        assert set(found.rank_errors) == {0.0}, "the second pass counts every number of 32 bits"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_where_the_second_pass_counts_every_number_it_equals_numpy(rng, dtype):
    array = fill(rng, "normal", (900, 1000), dtype)
    wanted = [Wanted("quantile", "yx", q) for q in (0.01, 0.5, 0.998)]
    found = Pixels(array, "yx", (100, 1000)).statistics(*wanted, memory=SMALL)
    assert found.passes == 2
    for w, value in zip(wanted, found.values, strict=True):
        np.testing.assert_allclose(value, by_numpy(array, "yx", w), rtol=1e-15)


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64"])
def test_what_fits_into_memory_is_exact_in_one_pass(rng, dtype):
    array = fill(rng, "heavy tails", (700, 1001), dtype)
    wanted = [Wanted("quantile", "yx", q) for q in (0, 0.003, 0.5, 0.998, 1)]
    found = Pixels(array, "yx", (100, 100)).statistics(*wanted)
    assert (found.passes, set(found.rank_errors)) == (1, {0.0})
    for w, value in zip(wanted, found.values, strict=True):
        np.testing.assert_allclose(value, by_numpy(array, "yx", w), rtol=1e-14)


def test_one_hot_pixel_does_not_move_the_percentiles(rng):
    """As in a real image: 16 bits, a mean of 11, one pixel of 60028."""
    array = rng.poisson(11, (2, 354, 475)).astype(np.uint16)
    array[0, 100, 200] = 60028
    for dtype in ("uint16", "uint32", "float32", "float64"):
        image = Pixels(array.astype(dtype), "cyx", (1, 354, 475))
        for memory in (2**28, 2**15):
            found = image.statistics(Wanted("quantile", "yx", 0.01), Wanted("quantile", "yx", 0.998), memory=memory)
            for q, values in zip((0.01, 0.998), found.values, strict=True):
                np.testing.assert_array_equal(values, np.quantile(array, q, axis=(1, 2)))


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint32", "int64"])
def test_mean_and_variance_keep_their_digits_far_from_zero(rng, dtype):
    array = (1e6 + rng.uniform(-1, 1, (40, 300, 310)) * (1 if "float" in dtype else 50)).astype(dtype)
    exact = [int(x) if "int" in dtype else float(x) for x in array.ravel()]
    mean = fsum(exact) / len(exact)
    shifted = array.astype(np.longdouble) - np.longdouble(mean)
    var = float((shifted**2).mean() - shifted.mean() ** 2)
    image = Pixels(array, "zyx", (3, 64, 64))
    for memory in (2**28, SMALL):
        found = image.statistics(Wanted("mean", "zyx"), Wanted("var", "zyx"), Wanted("std", "zyx"), memory=memory)
        assert float(found.values[0]) == pytest.approx(mean, rel=1e-15)
        assert float(found.values[1]) == pytest.approx(var, rel=1e-12)
        assert float(found.values[2]) == pytest.approx(np.sqrt(var), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50), st.sampled_from(LONG + SHORT))
def test_keys_are_in_the_order_of_the_numbers_and_lead_back_to_them(values, dtype):
    info = np.finfo(dtype) if "float" in dtype else np.iinfo(dtype if dtype != "bool" else "uint8")
    low, high = float(info.min) / 2, float(info.max) / 2
    array = np.array([*np.clip(values, low, high), -0.0, 0.0, low, high, 1.0]).astype(dtype)
    ordered = array[np.argsort(keys(array), kind="stable")]
    np.testing.assert_array_equal(ordered, np.sort(array))
    np.testing.assert_array_equal(numbers(keys(array).astype(np.uint64), array.dtype), array.astype(np.float64))


@given(
    values=st.lists(st.floats(-1e9, 1e9) | st.integers(0, 3), min_size=1, max_size=60),
    wanted=st.lists(st.floats(0, 100), min_size=1, max_size=5),
    rows=st.booleans(),
)
def test_percentiles_in_memory_are_those_of_numpy(values, wanted, rows):
    array = np.array([values, values] if rows else values)
    np.testing.assert_allclose(percentiles(array, wanted), np.percentile(array, wanted), rtol=1e-9, atol=1e-6)


def test_the_ends_of_64_bits_are_told_apart():
    array = np.array([[2**64 - 1, 0, 2**63, 2**63 - 1] * 50], np.uint64)
    found = Pixels(array, "yx").statistics(Wanted("quantile", "yx", 0.0), Wanted("quantile", "yx", 1.0))
    assert [float(v) for v in found.values] == [0.0, 2.0**64]
    signed = np.array([[-(2**63), 2**63 - 1, -1, 0, 1]], np.int64)
    found = Pixels(signed, "yx").statistics(*(Wanted("quantile", "yx", q) for q in (0.0, 0.25, 0.5, 0.75, 1.0)))
    assert [float(v) for v in found.values] == [-(2.0**63), -1.0, 0.0, 1.0, 2.0**63]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200_000), st.integers(1, 4000), st.integers(0, 2**32), st.booleans())
def test_a_bin_too_full_for_memory_is_thinned_within_its_own_bound(count, piece, seed, rising):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 2**40, count, np.uint64)
    if rising:
        low.sort()
    bin_ = ThinnedBin.expecting(count, 16 * 4096, 0.004 * count)
    for start in range(0, count, piece):
        bin_.add(low[start : start + piece])
    assert bin_.error <= 0.004 * count
    ordered = np.sort(low)
    for rank in {0, count // 3, count // 2, count - 1}:
        value = bin_.at(rank)
        first, last = np.searchsorted(ordered, value, "left"), np.searchsorted(ordered, value, "right") - 1
        assert max(first - rank, rank - last, 0) <= bin_.error


def test_numbers_of_64_bits_that_share_one_bin_and_do_not_fit_stay_within_the_rank_error(rng, monkeypatch):
    monkeypatch.setattr(quantiles, "GATHER_BYTES", 2**16)
    array = 1e6 + rng.uniform(-1e-3, 1e-3, (1000, 4000))
    wanted = [Wanted("quantile", "yx", q) for q in (0.001, 0.3, 0.5, 0.998)]
    found = Pixels(array, "yx", (50, 4000)).statistics(*wanted, memory=SMALL)
    assert found.passes == 2
    for w, value, error in zip(wanted, found.values, found.rank_errors, strict=True):
        assert 0 < error <= RANK_ERROR
        assert rank_error(array, value, w.q) <= error


@pytest.mark.parametrize(
    ("chunks", "offset", "over", "bits"),
    [((2, 64, 100), (1, 20, 90), "zyx", 17), ((8, 500, 512), (6, 400, 110), "zyx", 17),
     ((8, 64, 64), (6, 63, 0), "zyx", 17), ((2, 64, 512), (1, 0, 500), "yx", 22)],
)  # fmt: skip
def test_reads_begin_and_end_on_chunks_also_where_the_region_does_not(rng, chunks, offset, over, bits):
    array = rng.integers(0, 2**16, (5, 300, 410)).astype(np.uint16)
    image = Pixels(array, "zyx", chunks, offset)
    image.statistics(Wanted("mean", over), Wanted("quantile", over, 0.5), memory=2**bits)
    assert len(image.reads) >= 2
    assert (image.times_read() == 1).all()
    for part in image.reads:
        for s, chunk, begin, size in zip(part, image.chunks, image.offset, array.shape, strict=True):
            assert s.start == 0 or (s.start + begin) % chunk == 0
            assert s.stop == size or (s.stop + begin) % chunk == 0


def test_a_plane_each_is_read_by_whole_chunks_of_several_planes(rng):
    array = rng.integers(0, 2**16, (20, 64, 64)).astype(np.uint16)
    image = Pixels(array, "zyx", (4, 32, 64))
    found = image.statistics(Wanted("quantile", "yx", 0.5), Wanted("mean", "yx"), memory=2**18)
    np.testing.assert_array_equal(found.values[0], np.median(array, axis=(1, 2)))
    assert all(part[0].start % 4 == 0 and part[0].stop % 4 == 0 for part in image.reads)
    assert (image.times_read() == 1).all()


def test_statistics_that_keep_different_axes_share_the_passes(rng):
    array = rng.normal(5, 2, (3, 12, 120, 130)).astype(np.float32)
    wanted = [
        Wanted("std", "yx"),
        Wanted("quantile", "zyx", 0.99),
        Wanted("mean", "czyx"),
        Wanted("quantile", "yx", 0.01),
    ]
    image = Pixels(array, "czyx", (1, 3, 60, 130))
    found = image.statistics(*wanted)
    assert found.passes == 1 or (found.passes == 2 and image.times_read().max() == 2)
    for w, values, error in zip(wanted, found.values, found.rank_errors, strict=True):
        if error == 0:
            np.testing.assert_allclose(values, by_numpy(array, "czyx", w), rtol=1e-12)
        else:
            assert all(rank_error(a, v, w.q) <= RANK_ERROR for a, v in zip(array, values, strict=True))


def test_groups_that_cross_each_other_and_do_not_fit_together_take_passes_of_their_own(rng):
    array = rng.integers(0, 1000, (70, 60, 9)).astype(np.uint16)
    image = Pixels(array, "tzx", (1, 1, 9))
    wanted = [Wanted("quantile", "tx", 0.3), Wanted("quantile", "zx", 0.3)]
    found = image.statistics(*wanted, memory=2**20)
    assert found.passes == 2
    for w, values in zip(wanted, found.values, strict=True):
        np.testing.assert_allclose(values, by_numpy(array, "tzx", w), rtol=1e-15)


@pytest.mark.parametrize(
    ("shape", "over", "dtype"),
    [((3000, 64, 64), "yx", "uint16"), ((4, 2000, 1500), "zyx", "float32"), ((600, 64, 64), "z", "uint16"),
     ((40, 256, 512), "yx", "float64")],
)  # fmt: skip
def test_memory_is_bounded_for_many_groups_and_for_large_ones(rng, shape, over, dtype):
    array = rng.gamma(2, 500, shape).astype(dtype)
    chunks = (1, 64, shape[2])
    wanted = [Wanted("quantile", over, 0.01), Wanted("quantile", over, 0.998), Wanted("std", over)]
    memory = 2**24 if dtype != "float64" else 2**25
    image = Pixels(array, "zyx", chunks)
    tracemalloc.start()
    try:
        found = image.statistics(*wanted, memory=memory)
        peak = tracemalloc.get_traced_memory()[1] - sum(v.nbytes for v in found.values)
    finally:
        tracemalloc.stop()
    assert peak < memory + 2**23  # PIECE numbers as float64, a few times
    std = by_numpy(array, "zyx", wanted[2])
    np.testing.assert_allclose(found.values[2], std, rtol=1e-12)
    assert image.times_read().max() <= found.passes <= 2


@pytest.mark.parametrize("memory", [2**28, 2**14])
def test_nan_and_infinity_are_left_out_and_counted(rng, memory):
    array = rng.normal(0, 1, (4, 50, 60)).astype(np.float32)
    bad = rng.random(array.shape) < 0.05
    array[bad] = rng.choice([np.nan, np.inf, -np.inf], int(bad.sum()))
    array[3] = np.nan
    image = Pixels(array, "cyx", (2, 20, 60))
    found = image.statistics(
        Wanted("mean", "yx"),
        Wanted("var", "yx"),
        Wanted("quantile", "yx", 0.9),
        Wanted("quantile", "cyx", 0.5),
        memory=memory,
    )
    good = np.isfinite(array)
    assert found.left_out == int((~good).sum())
    for c in range(3):
        kept = array[c][good[c]].astype(np.float64)
        assert found.values[0][c] == pytest.approx(kept.mean(), rel=1e-12)
        assert found.values[1][c] == pytest.approx(kept.var(), rel=1e-12)
        assert rank_error(kept, found.values[2][c], 0.9) <= RANK_ERROR
    assert all(np.isnan(v[3]) for v in found.values[:3])
    assert rank_error(array[good], found.values[3], 0.5) <= RANK_ERROR


def test_letters_that_the_region_lacks_are_axes_of_size_1(rng):
    array = rng.normal(0, 1, (30, 40))
    found = Pixels(array, "yx").statistics(Wanted("mean", "czyx"), Wanted("mean", "cz"))
    assert found.values[0] == pytest.approx(array.mean(), rel=1e-12)
    np.testing.assert_array_equal(found.values[1], array)


def test_what_cannot_be_computed_is_refused():
    with pytest.raises(ValuesError, match="did you mean quantile"):
        Wanted("quantil", "yx", 0.5)
    with pytest.raises(ValuesError, match="between 0 and 1"):
        Wanted("quantile", "yx", 99.8)
    with pytest.raises(ValuesError, match="'nearest'"):
        Wanted("quantile", "yx", 0.5, "nearest")
    with pytest.raises(DtypeError, match="complex64"):
        Pixels(np.zeros((4, 4), np.complex64), "yx").statistics(Wanted("mean", "yx"))
    with pytest.raises(ValuesError, match="y 0, x 4"):
        Pixels(np.zeros((0, 4)), "yx").statistics(Wanted("mean", "yx"))
