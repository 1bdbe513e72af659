"""What the methods can learn and what they cannot: noise alone, and noise that neighbours share."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from voidzoo.trainers import Recipe, denoise, train
from voidzoo.zoo.metrics import psnr
from voidzoo.zoo.noise import study_noise
from voidzoo.zoo.open import open_image


@pytest.mark.slow
@pytest.mark.parametrize("method", ["n2v", "structn2v"])
def test_noise_alone_is_answered_with_its_mean(method, tmp_path):
    """The validation loss goes to the variance of the noise and not below, and the verdict says that nothing was learnt.

    Six standard errors are left to it: 3900 pixels of the 39,000 that are held out are asked for, which makes one 0.024.
    """
    noise = np.random.default_rng().normal(500, 40, (512, 768)).astype(np.float32)
    image = open_image(noise, axes="yx")
    settings = {"filters": 8, "epochs": 12, "steps": 30} | ({"blind_mask": "1x5"} if method == "structn2v" else {})
    run = train(Recipe.guess(method, image, **settings), image, tmp_path / "run", device="cpu")
    assert 0.86 < run.info["best_val_loss"] < 1.15
    shown = denoise(run.network("last"), run.normalisation, noise[None])[0]
    assert shown.std() < 0.35 * noise.std()
    assert abs(shown.mean() - noise.mean()) < 8
    assert run.info["verdict"][0].startswith("Nothing was learnt") == (run.info["best_val_loss"] >= 0.98)


@pytest.mark.slow
def test_noise_in_boxes_of_three(make_pair, tmp_path):
    """Its correlation reaches two pixels along x and none along y; N2V leaves it in the image, StructN2V takes it away."""
    rng = np.random.default_rng(7)
    clean = [make_pair((128, 160), seed)[0] for seed in range(6)]
    noise = [uniform_filter1d(rng.normal(0, 60 * 3**0.5, c.shape), 3, axis=1) for c in clean]
    noisy = [(c + n).astype(np.float32) for c, n in zip(clean, noise, strict=True)]
    images = [open_image(x, axes="yx") for x in noisy]
    found = study_noise(images)
    assert found.axes == ("x",)
    assert found.mask.hidden.shape[0] == 1
    assert found.mask.hidden.shape[1] >= 5
    assert found.autocorrelation["x"][1:3] == pytest.approx((2 / 3, 1 / 3), abs=0.08)

    def result(method, **more):
        recipe = Recipe.guess(method, images, epochs=12, steps=30, filters=16, **more)
        run = train(recipe, images, tmp_path / method, device="cpu")
        shown = [denoise(run.network(), run.normalisation, x[None])[0] for x in noisy]
        quality = np.mean([psnr(c, y, float(np.ptp(c))) for c, y in zip(clean, shown, strict=True)])
        noise_left = np.mean(
            [np.corrcoef((y - c).ravel(), n.ravel())[0, 1] for c, n, y in zip(clean, noise, shown, strict=True)]
        )
        return quality, noise_left

    before = np.mean([psnr(c, x, float(np.ptp(c))) for c, x in zip(clean, noisy, strict=True)])
    plain, structured = result("n2v"), result("structn2v", blind_mask=found.mask.lists())
    assert plain[0] > before + 1
    assert structured[0] > plain[0] + 2, (before, plain, structured)
    assert plain[1] > 0.5  # most of what is wrong with N2V's result is the noise itself
    assert structured[1] < plain[1]
