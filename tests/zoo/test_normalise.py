"""Statistics out of core are those of numpy in memory, whatever the chunks; what no model can take is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidzoo.zoo import normalise
from voidzoo.zoo.errors import ValuesError
from voidzoo.zoo.image import Image
from voidzoo.zoo.normalise import Normalisation, Statistics


@dataclass(frozen=True, eq=False)
class Chunked:
    """An array that says it has chunks and counts what is read."""

    array: np.ndarray
    axes: str
    chunks: tuple[int, ...]

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def read(self, slices):
        return self.array[slices]

    def close(self):
        pass


def image(array, axes, chunks=None):
    return Image(Chunked(array, axes, chunks or array.shape), "scan.tif")


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.integers(1, 30)),
    chunks=st.tuples(*[st.integers(1, 12)] * 4),
    dtype=st.sampled_from(["uint8", "uint16", "int32", "float32", "float64", "bool"]),
    seed=st.integers(0, 2**31),
    read=st.sampled_from([1, 100, 2**20]),
)
@settings(max_examples=80, deadline=None)
def test_equal_to_numpy(shape, chunks, dtype, seed, read):
    rng = np.random.default_rng(seed)
    array = (rng.random(shape) * 200 + 5).astype(dtype)
    old = normalise.READ_BYTES, normalise.PIECE
    try:
        normalise.READ_BYTES, normalise.PIECE = read, 37
        found = Statistics.of(image(array, "tcyx", chunks))
    finally:
        normalise.READ_BYTES, normalise.PIECE = old
    flat = np.moveaxis(array, 1, 0).reshape(shape[1], -1).astype(float)
    assert found.count == (flat.shape[1],) * shape[1]
    np.testing.assert_allclose(found.mean, flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(found.std, flat.std(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found.minimum, flat.min(1))
    np.testing.assert_array_equal(found.maximum, flat.max(1))


def test_no_cancellation_far_from_zero():
    """A std of 1 on a mean of 1e9: sums of squares would have lost every digit."""
    array = 1e9 + np.random.default_rng().normal(size=(300, 300))
    found = Statistics.of(image(array, "yx", (64, 64)))
    assert found.std[0] == pytest.approx(array.std(), rel=1e-6)


def test_regions_and_merge_are_the_whole():
    array = np.random.default_rng().integers(0, 4000, (40, 50)).astype(np.uint16)
    im = image(array, "yx", (16, 16))
    parts = [{"y": slice(0, 13)}, {"y": slice(13, 40), "x": slice(0, 7)}, {"y": slice(13, 40), "x": slice(7, 50)}]
    whole = Statistics.of(im)
    for found in (Statistics.of(im, parts), Statistics.of(im, parts[:1]).merge(Statistics.of(im, parts[1:]))):
        assert (found.count, found.minimum, found.maximum) == (whole.count, whole.minimum, whole.maximum)
        assert found.mean[0] == pytest.approx(whole.mean[0], rel=1e-12)
        assert found.std[0] == pytest.approx(whole.std[0], rel=1e-12)


def test_nan_is_refused_with_its_place():
    array = np.random.default_rng().normal(size=(3, 40, 50)).astype(np.float32)
    array[1, 33, 2] = np.nan
    array[1, 7, 44] = np.inf
    array[2, 0, 0] = np.nan
    with pytest.raises(ValuesError) as e:
        Statistics.of(image(array, "zyx", (1, 16, 16)))
    assert "2 NaN and 1 infinite of 6,000 pixels" in e.value.what
    assert e.value.where == "the first is at z 1, y 7, x 44"
    assert "--allow-nan" in e.value.mend
    found = Statistics.of(image(array, "zyx"), allow_nan=True)
    good = array[np.isfinite(array)].astype(float)
    assert (found.left_out, found.count) == ((3,), (good.size,))
    assert found.mean[0] == pytest.approx(good.mean(), rel=1e-12)
    assert found.std[0] == pytest.approx(good.std(), rel=1e-12)
    with pytest.raises(ValuesError, match="no finite pixel"):
        Statistics.of(image(np.full((4, 4), np.nan), "yx"), allow_nan=True)


def test_constant_is_refused():
    with pytest.raises(ValuesError, match=r"scan.tif is constant \(every pixel is 500\)"):
        Normalisation.fit(Statistics.of(image(np.full((9, 9), 500, np.uint16), "yx")), "scan.tif")
    two = np.random.default_rng().integers(0, 9, (2, 9, 9)).astype(np.uint8)
    two[1] = 7
    with pytest.raises(ValuesError, match=r"GFP, is constant \(every pixel is 7\)"):
        Normalisation.fit(Statistics.of(image(two, "cyx")), "scan.tif", ("DAPI", "GFP"))
    third = np.full((30, 30), 0.1)  # rounding must not make it look like it varied
    with pytest.raises(ValuesError, match="is constant"):
        Normalisation.fit(Statistics.of(image(third, "yx")))


def test_there_and_back():
    n = Normalisation((100.0, 2000.0), (7.0, 300.0))
    x = np.random.default_rng().integers(0, 65535, (2, 5, 6)).astype(np.uint16)
    y = n.apply(x)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y[1], (x[1].astype(float) - 2000) / 300, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(n.invert(y), x, rtol=1e-5, atol=1e-2)
    plane = Normalisation((3.0,), (2.0,))
    np.testing.assert_allclose(plane.apply(x[0], channel_axis=None), (x[0].astype(float) - 3) / 2, rtol=1e-6)
