"""An image at another pixel size: the same however it is cut, right for constants, ramps and labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from voidzoo.zoo.rescale import rescaled


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_region_does_not_depend_on_the_cut(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 9), st.integers(2, 60), st.integers(2, 60)))
    sizes = dict(zip("zyx", data.draw(st.tuples(*(st.integers(1, 90) for _ in shape))), strict=True))
    nearest = data.draw(st.booleans())
    x = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 60000, shape).astype(np.uint16)
    image = rescaled(vz.open_image(x, axes="zyx"), sizes, nearest=nearest)
    whole = image.read()
    assert whole.shape == tuple(sizes.values())
    assert whole.dtype == image.dtype
    part = {}
    for a, n in sizes.items():
        start = data.draw(st.integers(0, n - 1))
        part[a] = slice(start, data.draw(st.integers(start + 1, n)))
    np.testing.assert_allclose(image.read(part), whole[tuple(part.values())], rtol=1e-5, atol=0.05)


@pytest.mark.parametrize("new", [31, 64, 100, 257])
def test_constants_stay_and_ramps_stay_ramps(new: int) -> None:
    ramp = np.tile(np.arange(100, dtype=np.float32) * 3 + 7, (4, 1))
    image = rescaled(vz.open_image(ramp, axes="yx"), {"x": new})
    expected = ((np.arange(new) + 0.5) * 100 / new - 0.5) * 3 + 7
    inner = slice(3 * new // 100 + 3, -3 * new // 100 - 3)
    atol = 0.1 * 3 if new < 100 else 1e-3  # a sampled triangle is right to a tenth of a pixel
    np.testing.assert_allclose(image.read()[0][inner], expected[inner], atol=atol)
    flat = rescaled(vz.open_image(np.full((5, 100), 42, np.uint8), axes="yx"), {"x": new})
    np.testing.assert_allclose(flat.read(), 42, rtol=1e-6)


def test_fine_stripes_are_averaged_not_skipped() -> None:
    stripes = np.tile(np.array([0, 1000], np.uint16), (3, 64))
    coarse = rescaled(vz.open_image(stripes, axes="yx"), {"x": 37}).read()
    assert np.abs(coarse[:, 2:-2] - 500).max() < 120


def test_labels_keep_their_values_and_come_back() -> None:
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, 900, (12, 12)), np.ones((5, 5))).astype(np.int32)
    image = vz.open_image(labels, axes="yx")
    fine = rescaled(image, {"y": 180, "x": 180}, nearest=True)
    assert set(np.unique(fine.read())) == set(np.unique(labels))
    back = rescaled(fine, {"y": 60, "x": 60}, nearest=True)
    np.testing.assert_array_equal(back.read(), labels)


def test_um_follow() -> None:
    image = vz.open_image(np.zeros((10, 20), np.uint8) + 1, axes="yx", pixel_size=(0.5, 0.25))
    size = rescaled(image, {"y": 5, "x": 40}).pixel_size
    assert (size.y, size.x) == (1.0, 0.125)
