"""Evaluations of images: block by block as of the whole, parts by themselves, grey values against scikit-image."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import voidzoo as vz
from tests.zoo.test_matching import blobs
from voidzoo.zoo.errors import AxesError, DtypeError, RecipeError, SizeError, ValuesError
from voidzoo.zoo.evaluation import intensities, objects
from voidzoo.zoo.evaluation.pair import Pair
from voidzoo.zoo.metrics import affine_fit, psnr, psnr_affine, ssim

ROOT = Path(__file__).resolve().parents[2]
Array = np.ndarray[Any, Any]


def pair(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(prediction, truth): labels that mostly match."""
    rng = np.random.default_rng()
    truth = blobs(rng, shape)
    moved = np.roll(truth, 1, axis=-1)
    return np.where(rng.random(shape) < 0.05, 0, moved).astype(np.uint16), truth


def greys(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(prediction, truth): another gain and offset, and noise."""
    rng = np.random.default_rng()
    truth = rng.gamma(3, 300, shape).astype(np.uint16)
    return (0.6 * truth + 40 + rng.normal(0, 25, shape)).astype(np.float32), truth


@pytest.mark.parametrize("shape", [(70, 90), (9, 40, 50)])
@pytest.mark.parametrize("most", [50, 700, 10**6])
def test_blocks_make_the_figures_of_the_whole(
    shape: tuple[int, ...], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a chunked Zarr and a TIFF, in pieces of any size: labels to the bit, grey values as scikit-image has them."""
    monkeypatch.setattr(objects, "BLOCK", most)
    monkeypatch.setattr(intensities, "BLOCK", most)
    axes = "zyx"[-len(shape) :]
    for kind, (prediction, truth) in (("labels", pair(shape)), ("intensities", greys(shape))):
        store = tmp_path / f"{kind}.zarr"
        zarr.create_array(store, data=prediction, chunks=tuple(max(2, n // 3 + 1) for n in shape))
        tifffile.imwrite(tmp_path / f"{kind}.tif", truth, metadata={"axes": axes.upper()}, ome=True)
        found = vz.evaluate(
            store, tmp_path / f"{kind}.tif", axes=axes, truth_axes=axes, kind=kind, affine=kind == "intensities"
        )
        (row,) = found.rows
        if kind == "labels":
            table = objects.Overlaps.of(truth, prediction)
            assert row.found == objects.Objects.of(table, objects.IOUS)
            continue
        spread = float(truth.max()) - float(truth.min())
        gain, offset = affine_fit(truth, prediction)
        fitted = gain * prediction.astype(np.float64) + offset
        expected = {
            "psnr": peak_signal_noise_ratio(truth.astype(float), prediction.astype(float), data_range=spread),
            "ssim": structural_similarity(truth.astype(float), prediction.astype(float), data_range=spread),
            "psnr_affine": peak_signal_noise_ratio(truth.astype(float), fitted, data_range=spread),
            "ssim_affine": structural_similarity(truth.astype(float), fitted, data_range=spread),
            "range": spread,
        }
        assert row.figures == pytest.approx(expected, rel=1e-9)
        assert expected["psnr"] == pytest.approx(psnr(truth, prediction, spread))
        assert expected["psnr_affine"] == pytest.approx(psnr_affine(truth, prediction, spread))
        assert expected["ssim"] == pytest.approx(ssim(truth, prediction, spread))


def test_blocks_cover_a_part_once() -> None:
    """Each pixel lies in one block, and no block is larger than asked for."""
    rng = np.random.default_rng()
    for _ in range(30):
        shape = tuple(rng.integers(1, 40, 3))
        chunks = tuple(rng.integers(1, 50, 3))
        image = vz.open_image(zarr.create_array({}, shape=shape, chunks=chunks, dtype="u1"), axes="zyx")
        both = Pair(image, vz.open_image(np.zeros(shape, np.uint8), axes="zyx"))
        most = int(rng.integers(1, 3000))
        seen = np.zeros([both.space[a] for a in both.space], int)
        for box in both.blocks(most):
            piece = tuple(box.values())
            assert seen[piece].size <= most
            seen[piece] += 1
        assert (seen == 1).all()


def test_times_channels_and_planes_are_judged_by_themselves() -> None:
    """One row for each volume of a movie, or each plane; the mean is that of the rows, pooled is all of them as one."""
    prediction, truth = pair((2, 3, 9, 32, 40))
    for labels in (prediction, truth):  # random volumes may be empty, and empty ones have no figures
        labels[..., :4, :6, :6] = labels.max() + 1
    prediction[1] = 0
    found = vz.evaluate(prediction, truth, axes="tczyx")
    assert [r.part for r in found.rows] == [f"t {t}, c {c}" for t in range(2) for c in range(3)]
    each = [objects.Objects.of(objects.Overlaps.of(truth[i], prediction[i]), objects.IOUS) for i in np.ndindex(2, 3)]
    assert [r.found for r in found.rows] == each
    assert found.mean["ap_0.5"] == pytest.approx(np.mean([e.matchings[0].ap for e in each]))
    assert (found.counted["ap_0.5"], found.counted["precision_0.5"]) == (6, 3)  # nothing was predicted at t 1
    assert found.mean["precision_0.5"] == pytest.approx(np.mean([e.matchings[0].precision for e in each[:3]]))
    assert found.pooled["tp_0.5"] == sum(e.matchings[0].tp for e in each)
    assert found.pooled["seg"] == pytest.approx(sum(e.segs for e in each) / sum(e.truth for e in each))
    planes = vz.evaluate(prediction, truth, axes="tczyx", planes=True)
    assert len(planes.rows) == 2 * 3 * 9
    assert planes.rows[9 + 4].part == "t 0, c 1, z 4"
    assert planes.rows[9 + 4].found == objects.Objects.of(
        objects.Overlaps.of(truth[0, 1, 4], prediction[0, 1, 4]), objects.IOUS
    )


def test_pooled_intensities_are_those_of_all_pixels() -> None:
    """With one range for all, the pooled PSNR is that of the images side by side; the mean is that of their PSNRs."""
    pairs = [greys((40, 30)), greys((20, 90))]
    found = vz.evaluate([p for p, _ in pairs], [t for _, t in pairs], axes="yx", data_range=4095)
    flat = [np.concatenate([p[i].ravel().astype(float) for p in pairs]) for i in (0, 1)]
    assert found.pooled["psnr"] == pytest.approx(psnr(flat[1], flat[0], 4095))
    assert found.mean["psnr"] == pytest.approx(np.mean([psnr(t, p, 4095) for p, t in pairs]))
    windows = [34 * 24, 14 * 84]
    assert found.pooled["ssim"] == pytest.approx(np.average([ssim(t, p, 4095) for p, t in pairs], weights=windows))
    by_dtype = vz.evaluate(*pairs[0], axes="yx", data_range="dtype")
    assert by_dtype.rows[0].figures["range"] == 65535
    same = vz.evaluate(pairs[0][1], pairs[0][1], axes="yx", kind="intensities")
    assert same.mean["psnr"] == np.inf
    assert json.loads(json.dumps(same.to_json()))["mean"]["psnr"] == "inf"


def test_large_labels_are_not_mixed_up(tmp_path: Path) -> None:
    """Ids that are equal in 16 or 32 bits, from a TIFF of 32 and an array of 64 bits, are different objects."""
    small = blobs(np.random.default_rng(), (40, 48))
    ids = np.concatenate([[0], 65_536 * np.arange(1, small.max() + 1)]).astype(np.uint32)
    tifffile.imwrite(tmp_path / "a.tif", ids[small], metadata={"axes": "YX"})
    found = vz.evaluate(tmp_path / "a.tif", (ids.astype(np.uint64) << np.uint64(20))[small], axes="yx")
    assert found.kind == "labels"
    assert (found.pooled["ap_0.95"], found.pooled["tp_0.5"]) == (1, len(np.unique(small)) - 1)


def test_the_kind_is_guessed_from_dtype_and_pixels(data: Path) -> None:
    """Labels are whole numbers most of whose neighbours are equal; real images of nuclei and mitochondria are not."""
    assert vz.evaluate(*pair((60, 60)), axes="yx").kind == "labels"
    assert vz.evaluate(*(a > 0 for a in pair((60, 60))), axes="yx").kind == "labels"
    assert vz.evaluate(*greys((60, 60)), axes="yx").kind == "intensities"
    sample = ROOT / "zoo" / "samples" / "giga_mito60x_n1_high.tif"
    found = vz.evaluate(sample, sample, axes="yx")
    assert (found.kind, found.guess[:13]) == ("intensities", "whole numbers")
    smooth = gaussian_filter(greys((90, 90))[1] / 10.0, 5).round().astype(np.uint8)
    assert (smooth[:, 1:] == smooth[:, :-1]).mean() > 0.5
    assert vz.evaluate(smooth, smooth, axes="yx").kind == "intensities"
    tiled = (np.arange(80) // 5 * 16)[:, None] + np.arange(80)[None] // 5 + 1  # no background, numbered along x
    assert vz.evaluate(tiled, tiled, axes="yx").kind == "labels"
    prediction, truth = pair((60, 60))
    with pytest.raises(DtypeError, match="looks like labels, but holds float32"):
        vz.evaluate(prediction.astype(np.float32), truth, axes="yx")


def test_notes_say_what_figures_cannot() -> None:
    """A mask that was not numbered, a constant truth and sides under SSIM's window are told."""
    prediction, truth = pair((60, 60))
    assert "array holds one object" in vz.evaluate(prediction > 0, truth, axes="yx").notes[0]
    image = np.random.default_rng().normal(size=(5, 40, 40)).astype(np.float32)
    thin = vz.evaluate(image, image + 1, axes="zyx")
    assert "no SSIM" in thin.notes[0]
    assert np.isnan(thin.pooled["ssim"])
    flat = vz.evaluate(image, np.ones_like(image), axes="zyx", planes=True, affine=True)
    assert "is constant in places" in flat.notes[0]
    assert all(np.isnan(flat.pooled[n]) for n in ("psnr", "ssim", "psnr_affine", "ssim_affine"))


def test_what_does_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    """Shapes, axes, dtypes, values, kinds, ranges and thresholds."""
    prediction, truth = pair((60, 70))
    image, clean = greys((60, 70))
    broken = image.copy()
    broken[3, 4] = np.nan
    for error, words, arguments, options in (
        (SizeError, "differ in shape", (prediction, truth[1:]), {}),
        (AxesError, "is no axis", (prediction, truth), {"axes": "yq"}),
        (SizeError, "2 predictions have 1 truths", ([prediction, prediction], [truth]), {}),
        (DtypeError, "labels are integers", (image, truth), {"kind": "labels"}),
        (ValuesError, "holds the label -1", (prediction, truth.astype(np.int32) - 1), {"kind": "labels"}),
        (ValuesError, "holds NaN", (broken, clean), {}),
        (RecipeError, "did you mean labels", (prediction, truth), {"kind": "lables"}),
        (RecipeError, "no range of grey values", (image, clean), {"data_range": -4}),
        (RecipeError, "no range of grey values", (image, clean), {"data_range": "trueth"}),
        (RecipeError, "an affine fit is for intensities", (prediction, truth), {"affine": True}),
        (RecipeError, "the range 4095 is for intensities", (prediction, truth), {"data_range": 4095}),
        (RecipeError, "float32 has no range", (clean, image), {"data_range": "dtype"}),
        (RecipeError, "from 0 to below 1", (prediction, truth), {"iou": [0.5, 1.0]}),
        (RecipeError, "no matches to draw", (image, clean), {"picture": tmp_path / "a.png"}),
    ):
        with pytest.raises(error, match=words) as caught:
            vz.evaluate(*arguments, **{"axes": "yx", **options})
        assert caught.value.mend, words
    assert not list(tmp_path.iterdir())


def test_axes_of_size_one_do_not_matter() -> None:
    """A result with one channel and one plane is laid over a plane."""
    prediction, truth = pair((60, 70))
    long, image = vz.open_image(prediction[None, None], axes="czyx"), vz.open_image(truth, axes="yx")
    assert vz.evaluate(long, image).rows[0].found == vz.evaluate(prediction, truth, axes="yx").rows[0].found


LARGE = """
import sys
import voidzoo as vz
from voidzoo.zoo.memory import peak_memory
vz.evaluate("warm.npy", "warm.npy", axes="yx", kind=sys.argv[1])
before = peak_memory()
found = vz.evaluate("p.zarr", "t.tif", axes="yx", kind=sys.argv[1], affine=sys.argv[1] == "intensities")
print(peak_memory() - before, found.rows[0].figures.get("truth_objects", found.rows[0].figures["ap_0.5" if sys.argv[1] == "labels" else "psnr"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "intensities"])
def test_images_larger_than_memory(kind: str, tmp_path: Path) -> None:
    """A Zarr and a TIFF of 400 MB as labels, and of 1.6 GB in SSIM's float64, need at most 250 MB more than a small image."""
    side, tile = 8192 if kind == "labels" else 4096, blobs(np.random.default_rng(), (512, 512), 32)
    truth = tifffile.memmap(tmp_path / "t.tif", shape=(side, side), dtype=np.uint16, metadata={"axes": "YX"})
    store = zarr.create_array(tmp_path / "p.zarr", shape=(side, side), chunks=(1024, 1024), dtype="u4")
    row = np.tile(tile, (1, side // 512))
    for y in range(0, side, 512):
        truth[y : y + 512] = row % 60000
        store[y : y + 512] = np.roll(row, 1, axis=1)
    truth.flush()
    np.save(tmp_path / "warm.npy", tile)
    done = subprocess.run(
        [sys.executable, "-c", LARGE, kind], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) < 250e6, done.stdout
