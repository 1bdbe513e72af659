"""What was taken away is measured as it is, judged in words that are true, and shown on one page."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from scipy.signal import lfilter

from voidzoo.trainers import EpochDone, Recipe, train
from voidzoo.trainers.report import worth_a_picture
from voidzoo.trainers.residual import Residual, residuals
from voidzoo.trainers.verdict import verdict
from voidzoo.zoo.noise import study_noise
from voidzoo.zoo.open import open_image


class Half(torch.nn.Module):
    """Returns half of what it is shown, so that the residual is the other half."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight


def by_hand(windows: list[np.ndarray], lag: int, axis: int) -> float:
    """The definition: mean of products of pixels `lag` apart over that of squares, the mean of all taken out first."""
    mean = np.concatenate([w.ravel() for w in windows]).mean()
    products, squares = [], []
    for w in (w - mean for w in windows):
        n = w.shape[axis]
        products.append((w.take(range(n - lag), axis) * w.take(range(lag, n), axis)).ravel())
        squares.append((w**2).ravel())
    return np.concatenate(products).mean() / np.concatenate(squares).mean()


@pytest.mark.parametrize("sides", [((20, 31), (9, 14)), ((5, 12, 13), (4, 12, 13))])
def test_the_autocorrelation_is_that_of_the_definition(sides):
    """Windows of different sizes, two channels of which the second is a partner's or another one; 2D and 3D."""
    rng = np.random.default_rng()
    windows = [rng.normal(0.3, 2, (3, 2, *s)).astype(np.float32).cumsum(axis=-1) for s in sides]
    batches = [torch.from_numpy(w) for w in windows]
    again = [*batches, batches[0]]  # short validations come several times: counted once
    for count in (1, 2):
        found = residuals(Half(), again, ["a", "b"][:count], [7.0, 3.0][:count], [None] * count)
        assert [r.channel for r in found] == ["a", "b"][:count]
        for c, r in enumerate(found):
            halves = [w[:, c].astype(np.float64) / 2 for w in windows]
            for i, axis in enumerate("xyz"[: len(sides[0])]):
                want = [by_hand(halves, lag, halves[0].ndim - 1 - i) for lag in range(len(r.autocorrelation[axis]))]
                np.testing.assert_allclose(r.autocorrelation[axis], want, rtol=1e-5, atol=1e-5)
                assert len(want) == min(10, min(s[-1 - i] for s in sides) - 1) + 1
            assert r.std == pytest.approx([7.0, 3.0][c] * np.concatenate([h.ravel() for h in halves]).std(), rel=1e-5)
            assert Residual.from_json(r.to_json()) == r
            assert r.beside_noise() == []


def test_nan_is_no_residual():
    x = torch.randn(2, 1, 16, 16)
    x[0, 0, :4] = torch.nan
    [found] = residuals(Half(), [x], ["a"], [1.0], [None])
    zero = torch.where(x.isfinite(), x, 0.0).numpy()[:, 0] / 2
    assert found.autocorrelation["x"][1] == pytest.approx(by_hand([zero], 1, 2), abs=1e-5)


def test_an_answer_on_another_scale_is_fitted():
    """CARE's partner has its own grey values: the residual is the noise, not the signal times what the scales differ by."""
    rng = np.random.default_rng()
    clean = rng.normal(0, 3, (4, 2, 24, 24)).cumsum(axis=-1).cumsum(axis=-2).astype(np.float32)
    clean /= clean.std()
    noise = rng.normal(0, 0.5, clean.shape).astype(np.float32)

    class Partner(Half):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(clean * np.float32([[[[7.0]], [[0.2]]]]) + 4)

    batch = torch.from_numpy(clean + noise)
    found = residuals(
        Partner(), [torch.cat([batch, batch], dim=1)], ["a", "b"], [10.0, 10.0], [None, None], fitted=True
    )
    for c, r in enumerate(found):
        assert r.std == pytest.approx(10 * noise[:, c].std(), rel=0.02)
        assert abs(r.autocorrelation["x"][1]) < 0.2  # of white noise: 0.022 is one standard error of 2304 pixels


def history(*losses: float) -> list[EpochDone]:
    return [EpochDone(i + 1, len(losses), v, v, best=False, lr=1e-3, seconds=1.0) for i, v in enumerate(losses)]


def falling(n: int, floor: float = 0.2) -> list[float]:
    return [floor + 0.5 * 0.6**i for i in range(n)]


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (falling(30), r"settled at 0\.2000 \(epoch 30 of 30\)"),
        ([1 - 0.02 * i for i in range(30)], r"still falling, to 0\.4200 in epoch 30 of 30: more epochs"),
        ([*falling(10), *(0.2 + 0.01 * i for i in range(10))], r"risen since epoch 11 of 20, from 0\.2000 to 0\.2900"),
        ([1.02, 1.0, 0.999], "Nothing was learnt: the validation loss 0.999"),
        ([0.42, 0.35, 0.34, 0.31, 0.28, 0.26, 0.24, 0.23, 0.225, 0.22], r"settled at 0\.2200"),
        ([0.3], r"settled at 0\.3000 \(epoch 1 of 1\)"),
    ],
)
def test_the_loss_in_words(losses, said):
    [sentence] = verdict("n2v", history(*losses), [])
    assert re.search(said, sentence), sentence


def test_a_constant_learning_rate_has_more_to_give_where_a_cosine_has_ended():
    losses = history(0.42, 0.35, 0.34, 0.31, 0.28, 0.26, 0.24, 0.23, 0.225, 0.21)
    assert "settled" in verdict("n2v", losses, [], "cosine")[0]
    assert "still falling" in verdict("n2v", losses, [], "plateau")[0]


def residual(found: float, noise: float | None, proposed: str = "", channel: str = "a") -> Residual:
    def curve(rho: float) -> dict[str, tuple[float, ...]]:
        return {"x": tuple(rho**k for k in range(11)), "y": (1.0, *(0.0,) * 10)}

    return Residual(channel, 12.5, curve(found), 0.002, {} if noise is None else curve(noise), proposed)


def test_the_residual_in_words():
    """As much in common as the noise, more, less, and where the noise is not known; a channel's name where there are two."""

    def said(method: str, *many: Residual) -> str:
        return " | ".join(verdict(method, history(*falling(30)), many)[1:])

    assert "looks like the noise alone: 12.5 grey values, and its neighbouring pixels have nothing" in said(
        "n2v", residual(0.01, 0.0)
    )
    assert "have in common what those of the noise have" in said("structn2v", residual(0.58, 0.6))
    assert "more than the noise does (0.30 at 1 pixel along x, noise 0.00): some of it was signal" in said(
        "care", residual(0.3, 0.0)
    )
    text = said("n2v", residual(0.05, 0.6, "1x9"))
    assert "noise was left in the image" in text
    assert text.endswith("train structn2v with --blind-mask 1x9.")
    assert "wider blind mask" in said("structn2v", residual(0.2, 0.6, "1x9"))
    assert "Look at the residual" in said("n2v", residual(0.5, None))
    assert said("n2v", residual(0, 0, channel="DAPI"), residual(0.4, 0, channel="GFP")).startswith("DAPI: What")


def test_pictures_at_powers_of_two_and_at_the_end():
    assert [e for e in range(1, 31) if worth_a_picture(e, 30)] == [1, 2, 4, 8, 16, 30]


@pytest.mark.parametrize(("axes", "shape"), [("cyx", (2, 96, 120)), ("zyx", (8, 48, 64))])
def test_the_report_is_one_page_that_says_everything(axes, shape, make_image, tiny, tmp_path):
    """Channels and a volume: pictures inside, nothing from outside, every setting, verdict and number of the run."""
    image = make_image(3, shape, axes)
    extra = {"patch": [8, 16, 16], "dims": 3} if axes == "zyx" else {}
    recipe = Recipe.guess("n2v", image, **(tiny | extra | {"epochs": 5}))
    run = train(recipe, image, tmp_path / "run", device="cpu")
    text = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"https?:|<script|src=\"(?!data:)", text)
    assert text.count("data:image/png;base64,") == 1 + 3 + 4 + 2 + 1  # loss, before/after, epochs 1 2 4 5, residual
    for word in (*(k for k in Recipe.model_fields), *run.info["channels"], run.info["split"]["rule"], "epoch 4"):
        assert str(word) in text
    for sentence in run.info["verdict"]:
        assert sentence.replace("'", "&#x27;") in text
    assert len(run.info["residual"]) == len(run.info["channels"])
    names = sorted(p.name for p in (tmp_path / "run" / "progress").iterdir())
    assert names == [f"epoch_{e:06d}.png" for e in (1, 2, 4, 5)]
    with Pillow.open(tmp_path / "run" / "progress" / names[0]) as picture:
        assert picture.size == run.validation.shape[:-3:-1]
    for name in ("residual.png", "loss.png", "validation.png"):
        with Pillow.open(tmp_path / "run" / name) as picture:
            assert min(picture.size) > 100


def test_the_page_of_images_named_like_markup(make_pair, tiny, tmp_path):
    import tifffile

    path = tmp_path / "<b>a&b.tif"
    tifffile.imwrite(path, make_pair((64, 96), 0)[1])
    train(Recipe(**tiny), open_image(path), tmp_path / "run", device="cpu")
    assert "<b>a" not in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_verdict_is_right_about_real_trainings(make_pair, tmp_path):
    """White noise learnt in a short time: little but noise; noise along x: n2v left it, and the mask for it is named, structn2v's
    residual has more of it; a network too small for the image takes signal.
    """
    rng = np.random.default_rng(11)
    clean = [make_pair((128, 128), s)[0] for s in range(6)]
    white = [open_image((c + rng.normal(0, 60, c.shape)).astype(np.float32), axes="yx") for c in clean]
    streaks = [lfilter([0.8], [1, -0.6], rng.normal(0, 60, c.shape), axis=1) for c in clean]
    along = [open_image((c + n).astype(np.float32), axes="yx") for c, n in zip(clean, streaks, strict=True)]
    assert study_noise(along).axes == ("x",)
    short = {"epochs": 10, "steps": 30, "filters": 16}

    def run(method, images, name, **settings):
        return train(Recipe.guess(method, images, **(short | settings)), images, tmp_path / name, device="cpu").info

    good = run("n2v", white, "white")
    assert "noise was left" not in " ".join(good["verdict"]), good["verdict"]
    assert max(v for axis in "xy" for v in good["residual"][0]["autocorrelation"][axis][1:]) < 0.15
    left = run("n2v", along, "left")
    assert "noise was left" in left["verdict"][-1], left["verdict"]
    assert "train structn2v with --blind-mask 1x" in left["verdict"][-1]
    better = run("structn2v", along, "better", blind_mask="1x9")
    lag = [i["residual"][0]["autocorrelation"]["x"][1] for i in (left, better)]
    assert lag[1] > lag[0] + 0.2
    poor = run("n2v", white, "poor", epochs=1, steps=3)
    assert "some of it was signal" in " ".join(poor["verdict"]), poor["verdict"]
