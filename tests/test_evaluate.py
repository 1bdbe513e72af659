"""`voidzoo evaluate` as a person types it: pairs by name, tables, CSV, JSON, pictures, refusals."""

from __future__ import annotations

import csv
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as Pillow

import voidzoo as vz
from tests.zoo.test_evaluation import greys, pair
from voidzoo.cli import main
from voidzoo.pairs import paired
from voidzoo.zoo.errors import ImageError
from voidzoo.zoo.evaluation.overlaps import Overlaps
from voidzoo.zoo.evaluation.picture import FOUND, MADE_UP, MISSED, WHITE, coloured


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that we are in: `found` and `true` with three label images each, the first of them without objects."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cell9", "cell10", "cell11")):
        prediction, truth = pair((60, 80))
        if not number:
            prediction, truth = np.zeros_like(prediction), np.zeros_like(truth)
        for folder, labels in (("found", prediction), ("true", truth)):
            Path(folder).mkdir(exist_ok=True)
            tifffile.imwrite(f"{folder}/{name}.tif", labels, metadata={"axes": "YX"})
    (tmp_path / "true" / "readme.txt").write_text("no image")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """stdout of a verb that exits so; stderr of one that refuses."""
    capsys.readouterr()
    found = main(["evaluate", *map(str, words)])
    out, err = capsys.readouterr()
    assert found == code, err
    assert "Traceback" not in err
    return err if code else out


def test_folders_make_a_table(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line an image in the order of people, the mean of those that have a figure, all as one; the thresholds below."""
    out = told(capsys, 0, "found", "--truth", "true")
    lines = out.splitlines()
    assert lines[0].startswith("kind     labels (whole numbers, ")
    assert [line.split()[0] for line in lines[2:5]] == ["cell9.tif", "cell10.tif", "cell11.tif"]
    assert lines[2].split()[1:] == ["0"] * 5 + ["-"] * 6
    found = vz.evaluate("found", "true")
    figures = ["ap_0.5", "precision_0.5", "recall_0.5", "f1_0.5", "pq_0.5", "seg"]
    assert lines[5].split()[4:] == [f"{found.mean[n]:.4f}" for n in figures]
    assert lines[6].split()[-6:] == [f"{found.pooled[n]:.4f}" for n in figures]
    for line, name, way in zip(lines[9:11], ("mean", "as one"), (found.mean, found.pooled), strict=True):
        assert line.split()[-10:] == [f"{way[f'ap_{t:g}']:.4f}" for t in np.linspace(0.5, 0.95, 10)], name
    assert lines[-1].startswith("- is 0/0, no figure; means are over the other images: ")
    assert "AP over 2" in lines[-1]
    assert lines[-1].endswith(" of 3")


def test_csv_and_json_hold_every_figure(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both have what Python has, to the last digit: images, mean, pooled; 0/0 is empty, or null."""
    found = vz.evaluate("found", "true", iou=[0.3, 0.75])
    out = told(capsys, 0, "found", "--truth", "true", "--iou", "0.3,0.75", "--csv", "tables/a.csv", "--json")
    assert json.loads(out) == json.loads(json.dumps(found.to_json()))
    assert json.loads(out)["images"][0]["ap_0.3"] is None
    with Path("tables/a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["row"] for r in rows] == ["image"] * 3 + ["mean", "pooled"]
    expected = [*(r.figures for r in found.rows), found.mean, found.pooled]
    for row, figures in zip(rows, expected, strict=True):
        for name, text in list(row.items())[3:]:
            value = figures.get(name, math.nan)
            assert (text == "") if math.isnan(value) else float(text) == value, name
    assert list(at.glob("tables/*")) == [at / "tables" / "a.csv"]


def test_intensities_with_range_and_fit(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--range and --affine; the range of each image stands in its line."""
    image, clean = greys((40, 50))
    tifffile.imwrite("image.tif", image, metadata={"axes": "YX"})
    tifffile.imwrite("clean.tif", clean, metadata={"axes": "YX"})
    out = told(capsys, 0, "image.tif", "--truth", "clean.tif", "--range", "4095", "--affine").splitlines()
    figures = vz.evaluate("image.tif", "clean.tif", data_range=4095, affine=True).pooled
    assert out[0] == "kind     intensities (float32; or --kind)"
    assert out[2].split() == [
        "image.tif", *(f"{v:.2f}" if v >= 10 else f"{v:.4f}" for v in list(figures.values())[:4]), "4095",
    ]  # fmt: skip
    own = told(capsys, 0, "image.tif", "--truth", "clean.tif").splitlines()
    assert float(own[2].split()[-1]) == clean.max() - clean.min()


def test_images_pair_by_name(at: Path) -> None:
    """Folders, patterns, other endings, stores and what lies in them; one pair may have any names."""
    assert paired(["a.tif"], ["b.npy"]) == [("a.tif", "b.npy")]
    assert paired(["x/cell9.ome.tif", "x/c.npy"], ["y/c.tif", "y/cell9.npy"]) == [
        ("x/cell9.ome.tif", "y/cell9.npy"), ("x/c.npy", "y/c.tif"),
    ]  # fmt: skip
    assert paired(["found/cell1?.tif"], ["true/cell11.tif", "true/cell10.tif"]) == [
        (f"found/{n}.tif", f"true/{n}.tif") for n in ("cell10", "cell11")
    ]
    assert paired(["found"], ["true"], stacks=True) == [("found", "true")]
    zarr.create_group("stores/cell9.ome.zarr").create_array("labels/nuclei", shape=(4, 4), dtype="u1")
    assert paired(["stores/cell9.ome.zarr/labels/nuclei", "found/cell10.tif"], ["true/cell10.tif", "true/cell9.tif"]) == [
        ("stores/cell9.ome.zarr/labels/nuclei", "true/cell9.tif"), ("found/cell10.tif", "true/cell10.tif"),
    ]  # fmt: skip
    assert paired(["stores"], ["true/cell9.tif"]) == [("stores/cell9.ome.zarr", "true/cell9.tif")]


def test_what_has_no_partner_is_named(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is left out silently: missing and doubled partners are refused with the name that was looked for."""
    Path("found/cell9.tif").rename("found/cell09.tif")
    err = told(capsys, 2, "found", "--truth", "true")
    assert "cell09.tif has no truth: several images pair by name." in err
    assert "no truth is called cell09 (did you mean cell9?)" in err
    Path("found/cell09.tif").unlink()
    assert "true/cell9.tif has no prediction" in told(capsys, 2, "found", "--truth", "true")
    with pytest.raises(ImageError, match="two predictions are called 'cell10'") as caught:  # a shell's found/* true/*
        paired(["found/cell10.tif", "found/cell11.tif", "true/cell10.tif"], ["true/cell11.tif"])
    assert "--truth 'true/*.tif'" in caught.value.mend
    with pytest.raises(ImageError, match="two truths are called 'cell9'"):
        paired(["found"], ["true", "true/cell9.tif"])
    Path("none").mkdir()
    assert "none holds no image" in told(capsys, 2, "none", "--truth", "true")
    assert "lost.tif does not exist" in told(capsys, 2, "lost.tif", "--truth", "true/cell9.tif")
    for words, said in (
        (["--csv", "a.txt"], "--csv a.csv"),
        (["--picture", "a.jpg"], "--picture a"),
        (["--iou", "0,5;0"], "numbers with commas"),
        (["--iou", "0.5,1"], "from 0 to below 1"),
        (["--kind", "label"], "did you mean labels"),
        (["--range", "-3", "--kind", "intensities"], "no range of grey values"),
    ):
        assert said in told(capsys, 2, "true", "--truth", "true", *words)
    assert not list(at.glob("*.csv")) + list(at.glob("a*"))


def test_the_picture_shows_each_object_for_what_it_is() -> None:
    """Matched blue, made up orange, missed striped, outlines of the truth white; by the whole image, not by the part."""
    truth, prediction = np.zeros((2, 40, 60), np.uint16)
    truth[5:15, 5:15], prediction[5:15, 6:15] = 3, 9  # found
    prediction[20:30, 5:15] = 4  # made up
    truth[20:30, 40:50] = 2**16 - 1  # missed
    picture = coloured(truth, prediction, Overlaps.of(truth, prediction), 0.5)
    assert tuple(picture[10, 10]) == FOUND
    assert tuple(picture[25, 10]) == MADE_UP
    assert {tuple(p) for p in picture[22:28, 42:48].reshape(-1, 3)} == {MISSED, (0, 0, 0)}
    assert tuple(picture[5, 5]) == tuple(picture[20, 45]) == WHITE
    assert not picture[truth + prediction == 0].any()
    # 9 covers 90 of 100 pixels; of an image that goes on, a fifth
    larger = np.vstack([truth, np.full((40, 60), 3, np.uint16)]), np.vstack([prediction, np.zeros((40, 60), np.uint16)])
    assert tuple(coloured(truth, prediction, Overlaps.of(*larger), 0.5)[10, 10]) != FOUND


def test_pictures_are_files_or_a_folder(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One image: the PNG that was asked for, its counts in words; several: one each under their names."""
    told(capsys, 0, "found/cell10.tif", "--truth", "true/cell10.tif", "--picture", "one.png")
    with Pillow.open("one.png") as opened:
        assert opened.size == (80 * 7, 5 * 22 + 60 * 7)  # five lines of legend above the image, enlarged by 7
    out = told(capsys, 0, "found", "--truth", "true", "--picture", "drawn")
    assert out.splitlines()[-1] == "picture  drawn"
    assert sorted(p.name for p in Path("drawn").iterdir()) == ["cell10.png", "cell11.png", "cell9.png"]
    assert "3 pictures need a folder" in told(capsys, 2, "found", "--truth", "true", "--picture", "drawn.png")
    arrays = [tifffile.imread(f"found/cell{n}.tif") for n in (10, 11)]
    vz.evaluate(arrays, arrays, axes="yx", picture="arrays")
    assert sorted(p.name for p in Path("arrays").iterdir()) == ["array-0.png", "array-1.png"]
    prediction, truth = pair((3, 24, 40))
    vz.evaluate(prediction, truth, axes="zyx", picture="volume.png", planes=True)
    assert Path("volume.png").is_file()


def test_the_benchmark_runs_at_toy_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contenders find the same objects: voidzoo and scikit-image's contingency table."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    metrics = importlib.import_module("metrics")
    prediction, truth = metrics.labels(200, 10)
    runs = {"voidzoo": metrics.of_voidzoo, "skimage": metrics.table_of_skimage}
    found = metrics.row("toy", {n: (lambda f=f: f(prediction, truth, [0.5])) for n, f in runs.items()}, 1)
    assert set(found["times_voidzoo"]) == {"skimage"}
    assert metrics.of_voidzoo(prediction, truth, [0.5])[0] > 50
