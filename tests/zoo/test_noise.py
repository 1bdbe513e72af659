"""What `voidzoo noise` finds is what was put in: known correlations on real nuclei, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy.signal import lfilter

from voidzoo.zoo.blind import BlindMask
from voidzoo.zoo.errors import AxesError, SizeError, ValuesError
from voidzoo.zoo.image import Image
from voidzoo.zoo.noise import PLANES, REACH, study_noise
from voidzoo.zoo.open import open_image

SAMPLES = Path(__file__).parents[2] / "zoo" / "samples"


def correlated(shape, kind, a, axis):
    """Noise of variance 1: moving average n[i] + a n[i-1] or autoregressive, along one axis."""
    rng = np.random.default_rng()
    white = rng.normal(size=[n + 64 * (i == axis) for i, n in enumerate(shape)])
    if kind == "ma":
        out = lfilter([1, a], [1], white, axis=axis) / np.sqrt(1 + a * a)
    else:
        out = lfilter([1], [1, -a], white, axis=axis) * np.sqrt(1 - a * a)
    return out[tuple(slice(64 * (i == axis), None) for i in range(len(shape)))]


@pytest.fixture(scope="module")
def truth():
    """A real image without (visible) noise, 0 to about 200. All of it: estimates from a quarter scatter twice as much."""
    return tifffile.imread(SAMPLES / "giga_mito60x_n1_high.tif").astype(float)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("kind", "a"), [("ma", 0.18), ("ma", 0.3), ("ma", 0.6), ("ar", 0.6)])
def test_known_correlations_are_found(kind, a, axis, truth):
    """Every lag within 0.04 of the formula, the right axis alone, and a mask that reaches the lags that matter."""
    image = open_image((truth + 20 * correlated(truth.shape, kind, a, axis)).astype(np.float32), axes="yx")
    found = study_noise([image])
    lags = np.arange(REACH + 1)
    exact = a**lags if kind == "ar" else np.where(lags == 0, 1, np.where(lags == 1, a / (1 + a * a), 0))
    letter, other = "yx"[axis], "xy"[axis]
    assert found.autocorrelation[letter] == pytest.approx(exact, abs=0.04)
    assert found.autocorrelation[other] == pytest.approx(np.eye(REACH + 1)[0], abs=0.04)
    assert (found.method, found.axes) == ("structn2v", (letter,))
    reach = found.mask.hidden.shape[axis] // 2
    assert reach == 1 if kind == "ma" else 4 <= reach <= 7
    assert found.mask.hidden.shape[1 - axis] == 1
    assert found.as_json()["text"] == str(found.mask)


def test_white_noise_asks_for_no_mask(truth):
    for dtype, sigma in (("float32", 20), ("float32", 60), ("uint8", 10)):
        noisy = truth + np.random.default_rng().normal(0, sigma, truth.shape)
        pixels = np.clip(np.rint(noisy + 20), 0, 255).astype(dtype) if dtype == "uint8" else noisy.astype(dtype)
        found = study_noise([open_image(pixels, axes="yx")])
        assert (found.method, found.mask, found.as_json()["mask"]) == ("n2v", None, None)
        assert max(abs(v) for a in "xy" for v in found.autocorrelation[a][1:]) < 0.05


def test_noise_of_both_axes_gives_a_mask_of_both(truth):
    """A box of three along x and an average of two along y: a filled shape without its corners, and a word of doubt."""
    height, width = truth.shape
    noise = correlated((height, width + 2), "ma", 0.8, 0)
    noise = (noise[:, :width] + noise[:, 1 : width + 1] + noise[:, 2:]) / np.sqrt(3)
    found = study_noise([open_image((truth + 30 * noise).astype(np.float32), axes="yx")])
    assert found.axes == ("x", "y")
    assert found.mask.hidden.shape == (3, 5)
    assert found.autocorrelation["x"][1:3] == pytest.approx([2 / 3, 1 / 3], abs=0.08)
    assert any("resized" in w for w in found.warnings)


def test_frames_that_stand_still_are_subtracted(truth):
    """A movie's frames show their noise alone, also where structure is everything."""
    frames = np.stack([50 * truth + correlated(truth.shape, "ma", 0.6, 1) * 20 for _ in range(4)])
    found = study_noise([open_image(frames.astype(np.float32), axes="tyx")])
    assert found.source == "differences of frames"
    assert found.axes == ("x",)
    assert found.autocorrelation["x"][1] == pytest.approx(0.6 / 1.36, abs=0.04)


def test_a_dark_frame_shows_the_noise_alone(truth):
    dark = open_image((100 + 5 * correlated((512, 512), "ar", 0.5, 0)).astype(np.float32), axes="yx")
    image = open_image(truth.astype(np.float32), axes="yx")
    found = study_noise([image], dark=dark)
    assert found.axes == ("y",)
    assert found.autocorrelation["y"][1:4] == pytest.approx([0.5, 0.25, 0.125], abs=0.05)


def test_structure_that_dominates_is_told(truth):
    """Hardly any noise: a warning, not a confident mask."""
    noisy = truth * 10 + np.random.default_rng().normal(0, 1, truth.shape)
    found = study_noise([open_image(noisy.astype(np.float32), axes="yx")])
    assert any("structure dominates" in w for w in found.warnings)


def test_the_mask_of_the_channel_that_was_asked_for(truth):
    other = truth + 20 * correlated(truth.shape, "ma", 0.6, 1)
    pixels = np.stack([truth + np.random.default_rng().normal(0, 20, truth.shape), other]).astype(np.float32)
    image = open_image(pixels, axes="cyx")
    assert study_noise([image]).mask is None
    assert study_noise([image], channel=1).axes == ("x",)
    with pytest.raises(AxesError, match="channels 0 to 1, not 2"):
        study_noise([image], channel=2)


def test_what_cannot_be_measured():
    rng = np.random.default_rng()
    with pytest.raises(SizeError, match="20 pixels are too few"):
        study_noise([open_image(rng.random((20, 300)).astype(np.float32), axes="yx")])
    with pytest.raises(ValuesError, match="constant or not finite"):
        study_noise([open_image(np.full((128, 128), 7, np.uint8), axes="yx")])


def test_a_small_image_is_enough():
    """64 x 64 pixels of correlated noise tell its axis, one in fifty names the other one, too; a mask proposed is one that
    a recipe takes."""
    axes = []
    for _ in range(9):
        pixels = 300 + 20 * correlated((64, 64), "ar", 0.6, 1)
        found = study_noise([open_image(pixels.astype(np.float32), axes="yx")])
        axes.append(found.axes)
        assert np.array_equal(BlindMask.of(str(found.mask)).hidden, found.mask.hidden)
    assert {a[0] for a in axes} == {"x"}
    assert axes.count(("x",)) >= 5


def test_many_large_images_cost_no_more_than_a_few(monkeypatch):
    """Of 100 images some planes are looked at, and of each its middle."""
    read = []
    real = Image.read

    def counted(self, region=None):
        pixels = real(self, region)
        read.append(pixels.size)
        return pixels

    monkeypatch.setattr(Image, "read", counted)
    pixels = np.random.default_rng().normal(100, 10, (3, 1400, 1500)).astype(np.float32)
    found = study_noise([open_image(pixels, axes="zyx") for _ in range(100)])
    assert found.mask is None
    assert len(read) <= PLANES
    assert max(read) <= 1024 * 1024
