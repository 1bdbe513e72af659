"""Metrics against known answers, pictures against their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image as Pillow

from voidzoo.zoo.errors import SizeError, ValuesError
from voidzoo.zoo.metrics import affine_fit, psnr, psnr_affine, ssim
from voidzoo.zoo.pictures import contrast, enlarge, loss_curve, side_by_side, stretch, to_png


def read(path):
    with Pillow.open(path) as picture:
        return np.asarray(picture)


def test_psnr_known_answers():
    truth = np.random.default_rng().integers(0, 256, (20, 30)).astype(np.uint8)
    assert psnr(truth, truth.astype(float) + 255, 255) == pytest.approx(0)
    assert psnr(truth, truth.astype(float) + 2.55, 255) == pytest.approx(40)
    assert psnr(truth, truth, 255) == float("inf")
    with pytest.raises(SizeError, match="same shape"):
        psnr(truth, truth[1:], 255)
    with pytest.raises(ValuesError, match="above 0"):
        psnr(truth, truth, 0)


def test_affine_fit_undoes_gain_and_offset():
    truth = np.random.default_rng().normal(size=(40, 40))
    alpha, beta = affine_fit(truth, 5 * truth - 3)
    assert (alpha, beta) == pytest.approx((0.2, 0.6))
    assert psnr_affine(truth, 5 * truth - 3, 1) > 200
    noisy = truth + np.random.default_rng().normal(size=truth.shape)
    a, b = np.polyfit(noisy.ravel(), truth.ravel(), 1)
    assert affine_fit(truth, noisy) == pytest.approx((a, b))
    assert affine_fit(truth, np.full_like(truth, 7)) == pytest.approx((0, truth.mean()))


def test_ssim():
    truth = np.random.default_rng().normal(size=(30, 30))
    assert ssim(truth, truth, 6) == pytest.approx(1)
    worse = truth + np.random.default_rng().normal(size=truth.shape)
    assert 0 < ssim(truth, worse, 6) < 0.95
    with pytest.raises(SizeError, match="windows of 7"):
        ssim(truth[:5], truth[:5], 6)


def test_pictures_have_every_pixel(tmp_path):
    plane = np.random.default_rng().integers(0, 4096, (50, 70)).astype(np.uint16)
    to_png(plane, tmp_path / "a.png", (1000, 3000))
    got = read(tmp_path / "a.png")
    assert got.shape == plane.shape
    assert (got[plane <= 1000] == 0).all()
    assert (got[plane >= 3000] == 255).all()
    np.testing.assert_allclose(got, np.clip((plane - 1000.0) / 2000, 0, 1) * 255, atol=0.51)
    side_by_side([plane, plane], ["noisy", "denoised"], [(0, 4096)] * 2, tmp_path / "b.png", factor=2)
    both = read(tmp_path / "b.png")
    np.testing.assert_array_equal(both[18:, :140], enlarge(stretch(plane, (0, 4096)), 2))
    assert (both[:18, :140] < 255).any()  # the label
    with pytest.raises(SizeError, match="plane"):
        stretch(plane[0], (0, 1))


def test_contrast_ignores_nan():
    x = np.append(np.linspace(0, 100, 100_001), np.nan)
    assert contrast(x, 1, 99) == pytest.approx((1, 99), abs=0.01)


def test_loss_curve_is_written(tmp_path):
    loss_curve([1, 2, 3], [1, 0.5, 0.4], [1, 0.6, 0.7], tmp_path / "l.png", "loss (variances)")
    with Pillow.open(tmp_path / "l.png") as picture:
        assert picture.size == (840, 480)
    assert [p.name for p in tmp_path.iterdir()] == ["l.png"]
