"""The smaller levels are the means of the full one, however the blocks lay that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.infer.output.pyramid import PIECE, mean, nearest, pyramid
from voidzoo.zoo.image import PixelSize


def slow_mean(values: np.ndarray, step: tuple[int, ...]) -> np.ndarray:
    """Window by window, in float64."""
    shape = [-(-n // s) for n, s in zip(values.shape, step, strict=True)]
    out = np.empty(shape)
    for index in np.ndindex(*shape):
        window = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, step, strict=True))
        out[index] = values[window].astype(np.float64).mean()
    return out


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.just(1), st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["uint8", "uint16", "int16", "int32", "float32", "float64"]),
    st.integers(0, 9999),
)
def test_mean_equals_a_slow_one(shape: tuple[int, ...], step: tuple[int, ...], dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 100 + 120).astype(dtype)
    found, expected = mean(values, step), slow_mean(values, step)
    assert found.dtype == values.dtype
    limit = 1e-4 if np.dtype(dtype).kind == "f" else 0.5 + 1e-9
    assert np.abs(found.astype(np.float64) - expected).max() <= limit


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    st.sampled_from(["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]),
    st.integers(0, 9999),
)
def test_whole_numbers_are_rounded_halves_up_at_any_size(
    shape: tuple[int, ...], step: tuple[int, ...], dtype: str, seed: int
) -> None:
    """In exact arithmetic, over the whole range of the dtype: no sum overflows."""
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    values = rng.choice(np.array([info.min, info.max, info.max - 1, 0, 1, 2], dtype), shape)
    found = mean(values, step)
    assert found.dtype == values.dtype
    for index in np.ndindex(*found.shape):
        window = values[tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, step, strict=True))]
        total = 2 * sum(int(v) for v in window.ravel()) + window.size
        assert int(found[index]) == total // (2 * window.size)


def test_means_of_float64_are_float64() -> None:
    values = np.random.default_rng().normal(1e9, 1e-3, (6, 8))
    assert np.allclose(mean(values, (2, 2)), values.reshape(3, 2, 4, 2).mean((1, 3)), rtol=1e-15, atol=0)


def test_means_of_float16_do_not_overflow() -> None:
    values = np.random.default_rng().uniform(3e4, 6e4, (4, 6)).astype(np.float16)
    found = mean(values, (2, 2))
    expected = values.astype(np.float64).reshape(2, 2, 3, 2).mean((1, 3))
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() <= 16, "the spacing of float16 there is 32"


def test_labels_are_sampled() -> None:
    """The first of each window, whatever its neighbours are: no label is made up."""
    labels = np.random.default_rng().integers(0, 2**32, (3, 7, 9), np.uint32)
    assert np.array_equal(nearest(labels, (1, 2, 2)), labels[:, ::2, ::2])
    assert np.array_equal(nearest(labels, (2, 2, 1)), labels[::2, ::2])


def test_mean_of_a_large_array_is_made_in_pieces() -> None:
    values = np.random.default_rng(0).integers(0, 60000, (3, 1201, 1003)).astype(np.uint16)
    assert values.size > 3 * PIECE
    expected = np.pad(values, [(0, 0), (0, 1), (0, 1)], mode="edge").reshape(3, 601, 2, 502, 2).mean((2, 4))
    assert np.abs(mean(values, (1, 2, 2)) - expected).max() <= 0.5


def test_z_is_halved_once_its_pixels_are_not_longer() -> None:
    levels = pyramid("zyx", (64, 2048, 2048), PixelSize(z=2.0, y=0.5, x=0.5))
    assert [level.shape for level in levels] == [(64, 2048, 2048), (64, 1024, 1024), (64, 512, 512), (32, 256, 256)]
    assert pyramid("zyx", (64, 512, 512), PixelSize())[-1].shape == (64, 256, 256), "unknown: z is left alone"
    assert len(pyramid("yx", (200, 256), PixelSize())) == 1


@pytest.mark.parametrize("block", [None, (64, 64), (128, 256), (512, 512), (512, 128)])
def test_levels_do_not_depend_on_blocks(tmp_path: Path, block: tuple[int, int] | None) -> None:
    """Blocks that cover whole chunks of a level make it at once, others leave it for later: the same pixels."""
    package = make_package(tmp_path / "p", depth=1, filters=2)
    x = micrograph(np.random.default_rng(3), (2, 1100, 700))
    settings_ = {} if block is None else {"block": block}
    result = vz.predict(
        package, x, axes="zyx", out=tmp_path / "o.ome.zarr", device="cpu", pixel_size=(0.5, 0.4, 0.4), **settings_
    )
    image = result.image
    assert [level.shape for level in image.levels] == [(1, 550, 350), (1, 275, 175), (1, 138, 88)]
    above = image.read()
    for i in (1, 2, 3):
        level = image.level(i).read()
        step = tuple(2 if n > m else 1 for n, m in zip(above.shape, level.shape, strict=True))
        assert np.abs(level - slow_mean(above, step)).max() <= 0.5
        above = level
