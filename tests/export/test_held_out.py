"""Figures on held-out images: those that scikit-image and numpy find, square by square; pictures of the extremes."""

from __future__ import annotations

import io
import json
import zipfile
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import voidzoo as vz
from tests.export.tiny import tiny_run
from tests.packages import make_package, micrograph
from voidzoo.export import pack, proof
from voidzoo.export.about import About
from voidzoo.export.held_out import measure
from voidzoo.export.measured import Measured
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import AxesError, RecipeError, SizeError, ValuesError


def pair(shape: tuple[int, ...], axes: str, seed: int) -> tuple[vz.Image, vz.Image]:
    """A noisy image and its clean partner on another grey scale."""
    rng = np.random.default_rng(seed)
    clean = micrograph(rng, shape, "float32")
    noisy = clean + rng.normal(0, clean.std() / 2, shape).astype(np.float32)
    return vz.open_image(noisy, axes=axes), vz.open_image(clean * 3.5 - 70, axes=axes)


def spread(values: list[float]) -> list[float]:
    return [float(np.mean(values)), float(np.std(values, ddof=1))]


@pytest.mark.parametrize(
    ("shape", "axes", "dims"), [((150, 210), "yx", 2), ((3, 96, 70), "zyx", 2), ((6, 64, 90), "zyx", 3)]
)
def test_figures_are_those_of_skimage(shape: tuple[int, ...], axes: str, dims: int, tmp_path: Path) -> None:
    """Mean and spread over squares of PSNR and SSIM after numpy's own linear fit of each plane."""
    package = make_package(tmp_path / "p", depth=1, dims=dims)
    images = [pair(shape, axes, seed) for seed in np.random.default_rng().integers(0, 1000, 2)]
    found, pictures = measure(package, [i for i, _ in images], [t for _, t in images])
    side = found.side
    assert found.squares == 2 * (shape[-2] // side) * (shape[-1] // side) * (shape[0] if axes == "zyx" else 1)
    rows: dict[str, list[float]] = {f"{name} {when}": [] for name in ("psnr", "ssim") for when in ("before", "after")}
    contents: list[float] = []
    for noisy, truth in images:
        result = vz.predict(package, noisy.read({}), axes=axes, dtype="float32")
        planes = zip(*(p.reshape(-1, *shape[-2:]) for p in (noisy.read({}), result, truth.read({}))), strict=True)
        for before, after, clean in planes:
            starts = product(range(0, shape[-2] - side + 1, side), range(0, shape[-1] - side + 1, side))
            contents += [float(clean[y : y + side, x : x + side].std(dtype=float)) for y, x in starts]
            for when, plane in (("before", before), ("after", after)):
                fitted = np.polyval(np.polyfit(plane.ravel().astype(float), clean.ravel(), 1), plane.astype(float))
                for y in range(0, shape[-2] - side + 1, side):
                    for x in range(0, shape[-1] - side + 1, side):
                        at = (slice(y, y + side), slice(x, x + side))
                        both = (clean[at].astype(float), fitted[at])
                        rows[f"psnr {when}"].append(peak_signal_noise_ratio(*both, data_range=float(np.ptp(clean))))
                        rows[f"ssim {when}"].append(structural_similarity(*both, data_range=float(np.ptp(clean))))
    for figure in found.figures:
        assert figure.before is not None
        np.testing.assert_allclose(figure.before, spread(rows[f"{figure.name} before"]), rtol=1e-4)
        np.testing.assert_allclose(figure.after, spread(rows[f"{figure.name} after"]), rtol=1e-4)
    gains = np.subtract(rows["psnr after"], rows["psnr before"])
    full = np.argsort(-np.array(contents), kind="stable")[: (len(contents) + 1) // 2]
    assert found.figures[0].gain == pytest.approx(spread(list(gains)), rel=1e-4)
    for case, best in ((found.best, full[gains[full].argmax()]), (found.worst, full[gains[full].argmin()])):
        assert case.said == f"{rows['psnr before'][best]:.1f} dB as it came, {rows['psnr after'][best]:.1f} dB denoised"
    for name in ("best.png", "worst.png"):
        with Pillow.open(io.BytesIO(pictures[name])) as picture:
            assert picture.width > 4 * side
    assert Measured.from_json(json.loads(json.dumps(found.to_json()))).text() == found.text()


def test_without_a_partner_the_residual_is_measured(tmp_path: Path) -> None:
    """Its spread and its correlations are numpy's, and nothing is said of before and after."""
    package = make_package(tmp_path / "p", depth=1)
    noisy, _ = pair((120, 130), "yx", 3)
    found, _ = measure(package, [noisy])
    left = noisy.read({}) - vz.predict(package, noisy.read({}), axes="yx", dtype="float32").astype(float)
    side, rows = found.side, []
    for y in range(0, 120 - side + 1, side):
        for x in range(0, 130 - side + 1, side):
            square = left[y : y + side, x : x + side]
            rows.append((square.std(), np.corrcoef(square[:, 1:].ravel(), square[:, :-1].ravel())[0, 1]))
    by_name = {f.name: f for f in found.figures}
    assert by_name["removed"].after == pytest.approx(spread([r[0] for r in rows]), rel=1e-6)
    np.testing.assert_allclose(by_name["lag x"].after, spread([r[1] for r in rows]), rtol=0.02, atol=2e-3)
    assert all(f.before is None for f in found.figures)
    assert "no clean image" in found.text()


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", depth=1)
    noisy, clean = pair((80, 90), "yx", 1)
    smaller = vz.open_image(clean.read({})[:70], axes="yx")
    with pytest.raises(SizeError, match="differ"):
        measure(package, [noisy], [smaller])
    with pytest.raises(SizeError, match="1 held-out images have 2 partners"):
        measure(package, [noisy], [clean, clean])
    flat = vz.open_image(np.full((80, 90), 7.0, np.float32), axes="yx")
    with pytest.raises(ValuesError, match="is constant"):
        measure(package, [noisy], [flat])
    holes = clean.read({}).copy()
    holes[3, 4] = np.nan
    with pytest.raises(ValuesError, match="NaN"):
        measure(package, [noisy], [vz.open_image(holes, axes="yx")])
    with pytest.raises(SizeError, match="32 pixels"):
        measure(package, [vz.open_image(noisy.read({})[:20], axes="yx")])
    two = make_package(tmp_path / "two", depth=1, outputs=2)
    with pytest.raises(AxesError, match="keep axes and channels"):
        measure(two, [noisy])


def test_images_of_several_sizes_are_measured_in_squares_of_one(tmp_path: Path) -> None:
    """What is said of the squares holds for all of them."""
    package = make_package(tmp_path / "p", depth=1)
    small, large = pair((70, 80), "yx", 3)[0], pair((300, 320), "yx", 4)[0]
    found, _ = measure(package, [large, small])
    assert (found.side, found.squares) == (64, 1 + 4 * 5)


def test_export_measures_and_the_package_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """README and config hold the figures of `measure`; an image that was trained on is refused before any work."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    pixels = micrograph(np.random.default_rng(), (96, 128))
    run = tiny_run(tmp_path / "run", pixels=pixels)
    noisy, clean = pair((96, 128), "yx", 5)
    about = About(data="Cells.", data_license="CC0-1.0", license="MIT", limits=("Not for tissue.",))
    package = vz.export(run, tmp_path / "m.zip", about=about, held_out=[noisy], truth=[clean])
    found, pictures = measure(package, [noisy], [clean])
    assert Measured.from_json(package.ours["measured"]).to_json() == found.to_json()
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        text = archive.read("README.md").decode()
        assert found.text() in text
        assert text.index("## Validation") < text.index(found.text()) < text.index("## Limits")
        assert {name: archive.read(name) for name in pictures} == pictures
    assert package.ours["card"] == {"data": "Cells.", "data_license": "CC0-1.0", "limits": ["Not for tissue."]}
    np.save(tmp_path / "other name.npy", pixels)
    seen = vz.open_image(tmp_path / "other name.npy", axes="yx")
    assert noisy.shape == seen.shape, "another image of the same shape was measured on above"
    monkeypatch.setattr(pack, "_parts", lambda *_: pytest.fail("work was done"))
    with pytest.raises(RecipeError, match="was trained on"):
        vz.export(run, tmp_path / "n.zip", held_out=[seen])
    with pytest.raises(SizeError, match="0 held-out images have 1 partners"):
        vz.export(run, tmp_path / "n.zip", truth=[clean])
    with pytest.raises(SizeError, match="differ"):
        vz.export(run, tmp_path / "n.zip", held_out=[noisy], truth=[vz.open_image(clean.read({})[:70], axes="yx")])
