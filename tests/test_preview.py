"""The preview: one region before and after, in a picture that says what is black and white; nothing else is written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow

import voidzoo as vz
from tests.model_zoo import MODELS, micrograph
from tests.packages import make_package
from tests.trained import smooth, trained
from voidzoo import preview as module
from voidzoo.cli import main
from voidzoo.preview import Preview, choose_region, preview
from voidzoo.sheet import LINE, SIDE, Panel, draw_sheet
from voidzoo.zoo.pictures import GAP, contrast, stretch

CPU: Mapping[str, Any] = {"device": "cpu", "memory": "4GB"}
TOP = LINE + GAP + 2 * LINE
"""Where the first panel begins: under the title and its own two lines."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preview")


def look(model: Any, image: Any, picture: Path, **settings: Any) -> tuple[Preview, NDArray[Any]]:
    seen = preview(model, image, picture, {**CPU, **settings})
    assert [p.name for p in picture.parent.iterdir()] == [picture.name], "nothing else is written"
    return seen, np.asarray(Pillow.open(picture))


def panel(
    sheet: NDArray[Any], left: int, shape: tuple[int, int], zoom: tuple[int, int], top: int = TOP
) -> NDArray[Any]:
    """The pixels of a panel, each as it was before it was enlarged."""
    drawn = sheet[top : top + shape[0] * zoom[0], left : left + shape[1] * zoom[1]]
    small = drawn[:: zoom[0], :: zoom[1]]
    assert np.array_equal(small.repeat(zoom[0], 0).repeat(zoom[1], 1), drawn), "whole pixels, nothing interpolated"
    return small


def test_before_and_after_are_drawn_pixel_by_pixel(folder: Path, tmp_path: Path) -> None:
    """The picture holds the very pixels of the image and of the whole result, on the grey scale of the image."""
    package = make_package(folder / "p", depth=1)
    x = smooth(np.random.default_rng(), (700, 900), 4.0)
    image = vz.open_image(x, axes="yx", pixel_size=(0.5, 0.25))
    seen, sheet = look(package, image, tmp_path / "a.png")
    (y0, y1), (x0, x1) = seen.region["y"], seen.region["x"]
    assert (y1 - y0, x1 - x0) == (512, 512)
    before = x[y0:y1, x0:x1]
    grey = contrast(before)
    assert np.array_equal(panel(sheet, 0, (512, 512), (1, 1)), stretch(before, grey))
    whole = vz.predict(package, x, axes="yx", dtype="float32", **CPU)
    after = panel(sheet, 512 + GAP, (512, 512), (1, 1)).astype(int)
    assert np.abs(after - stretch(whole[y0:y1, x0:x1], grey)).max() <= 1
    assert seen.where == f"y {y0}:{y1}, x {x0}:{x1}"
    assert (sheet[TOP - 2 * LINE : TOP, :200] < 255).any(), "a label"


def test_the_liveliest_place_is_shown(folder: Path, tmp_path: Path) -> None:
    """A large dim plane with cells in one corner of the middle of the stack: they are in the picture."""
    package = make_package(folder / "lively", depth=1)
    x = np.full((5, 1500, 1400), 100, np.uint16)
    x[2, 1100:1300, 100:300] = smooth(np.random.default_rng(), (200, 200), 3.0)
    seen, _ = look(package, vz.open_image(x, axes="zyx"), tmp_path / "a.png")
    assert seen.region == {"z": (2, 3), "y": (988, 1500), "x": (0, 512)}
    assert seen.where == "z 2, y 988:1500, x 0:512"
    two = np.stack([x, np.zeros_like(x)], axis=1)
    two[2, 1, 10:200, 1200:1390] = smooth(np.random.default_rng(), (190, 190), 3.0)
    image = vz.open_image(two, axes="zcyx")
    assert choose_region(image, "yx", 0) == seen.region
    assert choose_region(image, "yx", "channel 1") == {"z": (2, 3), "y": (0, 512), "x": (888, 1400)}


def test_volumes_and_series_show_the_middle_plane(folder: Path, tmp_path: Path) -> None:
    """A 3D model runs 16 planes, which see their neighbours beyond; the middle one is drawn, and is said."""
    package = make_package(folder / "v", dims=3, depth=1, filters=2)
    x = smooth(np.random.default_rng(), (40, 60, 64), (2, 3, 3))
    seen, sheet = look(package, vz.open_image(x, axes="zyx"), tmp_path / "a.png", dtype="float32")
    assert seen.region["z"] == (12, 28)
    assert seen.where == "z 20 (12:28 were run), y 0:60, x 0:64"
    zoom = SIDE // 64
    assert np.array_equal(panel(sheet, 0, (60, 64), (zoom, zoom)), stretch(x[20], contrast(x[20])))
    whole = vz.predict(package, x, axes="zyx", dtype="float32", **CPU)
    after = panel(sheet, 64 * zoom + GAP, (60, 64), (zoom, zoom)).astype(int)
    assert np.abs(after - stretch(whole[20], contrast(x[20]))).max() <= 1


def test_each_channel_has_its_row(folder: Path, tmp_path: Path) -> None:
    """--channel all: before and after of each under each other, on the channel's own grey scale."""
    path = trained(folder / "same")
    rng = np.random.default_rng()
    x = np.stack([smooth(rng, (70, 80), 3.0), smooth(rng, (70, 80), 3.0) // 7])
    _, sheet = look(path, vz.open_image(x, axes="cyx"), tmp_path / "a.png", channel="all")
    zoom = SIDE // 80
    for row, plane in enumerate(x):
        top = TOP + row * (70 * zoom + 2 * LINE + GAP)
        for column in range(2):
            drawn = panel(sheet, column * (80 * zoom + GAP), (70, 80), (zoom, zoom), top)
            assert np.array_equal(drawn, stretch(plane, contrast(plane)))
    _, one = look(path, vz.open_image(x, axes="cyx"), tmp_path / "a.png", channel=1)
    assert np.array_equal(panel(one, 0, (70, 80), (zoom, zoom)), stretch(x[1], contrast(x[1])))


@pytest.mark.parametrize("name", ["two_outputs", "doubled", "halved", "two_in_three_out", "in_time", "fixed_64",
                                  "torchscript", "instance_norm", "without_padding"])  # fmt: skip
def test_foreign_models_of_all_kinds(name: str, folder: Path, tmp_path: Path) -> None:
    """Every output and channel has a panel; all show their field at one size, whatever their pixels are."""
    model = MODELS[name](folder)
    images = model.images(np.random.default_rng(), {"y": 101, "x": 90})
    image = vz.open_image(images[model.main], axes=model.letters[model.main].replace("i", ""))
    drawn: list[list[Panel]] = []
    draw = draw_sheet

    def watched(rows: Any, title: str, path: Any) -> None:
        drawn.extend(rows)
        draw(rows, title, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_sheet", watched)
        seen, sheet = look(model.path, image, tmp_path / "a.png", trust_code=True)
    (row,) = drawn
    main = model.design.main
    after = row[main.channels :]
    assert len(after) == sum(o.channels for o in model.design.outputs)
    expected = [plane for o in model.design.outputs for plane in _planes(model.oracle(images)[o.id], o)]
    for p, plane in zip(after, expected, strict=True):
        if not model.unbounded:
            assert np.abs(p.plane - plane).max() <= 1e-4 * plane.std()
        assert p.plane.shape == plane.shape
        assert p.name.startswith("after")
        assert p.grey == contrast(p.plane)
    zoom = 2 * max(1, SIDE // (2 * 101)) if name == "doubled" else SIDE // 101
    if name not in ("halved", "two_outputs"):  # the half pixel at the end makes their panels higher
        assert (sheet.shape[0] - LINE - GAP) % (101 * zoom + 2 * LINE + GAP) == 0
    assert seen.region["y"] == (0, 101)


def _planes(values: NDArray[Any], output: Any) -> list[NDArray[Any]]:
    """The middle plane of each channel of an oracle's array (t, c, y, x or c, y, x)."""
    values = values[values.shape[0] // 2] if "t" in output.letters else values
    return [values[c] for c in range(output.channels)]


def test_a_second_input_is_shown(folder: Path, tmp_path: Path) -> None:
    model = MODELS["two_images"](folder)
    rng = np.random.default_rng()
    x, mask = micrograph(rng, (90, 100)), micrograph(rng, (90, 100))
    _, sheet = look(model.path, vz.open_image(x, axes="yx"), tmp_path / "a.png",
                    inputs={"mask": vz.open_image(mask, axes="yx")})  # fmt: skip
    zoom = SIDE // 100
    second = panel(sheet, 100 * zoom + GAP, (90, 100), (zoom, zoom))
    assert np.array_equal(second, stretch(mask, contrast(mask)))


def test_what_is_measured_is_that_of_the_whole_plane(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that measures its plane: the preview equals the part of the whole; of a sample too large, it says so."""
    model = MODELS["before_zero_mean_each"](folder)
    rng = np.random.default_rng()
    x = np.stack([micrograph(rng, (3, 700, 640)) for _ in range(2)])  # c z y x
    x[:, 1, :350] *= 2
    image = vz.open_image(x, axes="czyx")
    whole = vz.predict(model.path, image, dtype="float32", **CPU).read()
    for most, said in ((module.MEASURED, False), (1000, True)):
        monkeypatch.setattr(module, "MEASURED", most)
        seen, sheet = look(model.path, image, tmp_path / "a.png")
        assert any("measured on this region alone" in n for n in seen.notes) == said
        y, w = seen.region["y"], seen.region["x"]
        plane = whole[0, 1, slice(*y), slice(*w)] if whole.ndim == 4 else whole[1, slice(*y), slice(*w)]
        after = panel(sheet, 2 * (512 + GAP), (512, 512), (1, 1)).astype(int)
        off = np.abs(after - stretch(plane, contrast(plane))).max()
        assert off <= 1 or said


def test_a_result_that_is_measured_is_shown_too(folder: Path, tmp_path: Path) -> None:
    """A model that normalises its result: a part alone is refused by predict, the preview shows it and says how."""
    model = MODELS["after_zero_mean"](folder)
    image = vz.open_image(micrograph(np.random.default_rng(), (600, 640)), axes="yx")
    seen, _ = look(model.path, image, tmp_path / "a.png")
    assert "what the model measures was measured on this region alone, not on the whole of its sample" in seen.notes
    small = vz.open_image(micrograph(np.random.default_rng(), (100, 90)), axes="yx")
    assert not look(model.path, small, tmp_path / "a.png")[0].notes


def test_rescaled_the_network_s_view_is_shown(folder: Path, tmp_path: Path) -> None:
    """--rescale: region, pixels and um are those of the training; --mask, --only and --tolerance are left out."""
    path = trained(folder / "at_half", um={"y": 0.5, "x": 0.5}, kinds=("probability",))
    image = vz.open_image(smooth(np.random.default_rng(), (400, 500)), axes="yx", pixel_size=(0.25, 0.25))
    nothing = vz.open_image(np.zeros((400, 500), bool), axes="yx")
    seen, sheet = look(path, image, tmp_path / "a.png", rescale=True, mask=nothing, only="y=0:5", tolerance=1e-3,
                       skip_below=1e9, dtype="uint8", block=(16, 16))  # fmt: skip
    assert seen.region == {"y": (0, 200), "x": (0, 250)}
    assert any("shown at the pixel size of the training: y 0.5 um  x 0.5 um" in n for n in seen.notes)
    assert (panel(sheet, 0, (200, 250), (2, 2)) > 0).any()


# --- the sheet


def test_panels_of_other_sizes_show_one_field(tmp_path: Path) -> None:
    """Twice, half and a quarter as fine: drawn equally large, at whole pixels; what is too wide goes to a new row."""
    from fractions import Fraction

    rng = np.random.default_rng()
    panels = [
        Panel(rng.random((int(60 * Fraction(ry)), int(80 * Fraction(rx)))), f"p{i}", (0.0, 1.0), (ry, rx))
        for i, (ry, rx) in enumerate([(1, 1), (2, 2), (Fraction(1, 2), Fraction(1, 2)), (Fraction(1, 4), 1), (1, 1)])
    ]
    draw_sheet([panels], "title", tmp_path / "s.png")
    sheet = np.asarray(Pillow.open(tmp_path / "s.png"))
    zoom = 2 * (SIDE // 160)
    assert sheet.shape == (LINE + GAP + 2 * (60 * zoom + 2 * LINE + GAP), 3 * (80 * zoom + GAP) - GAP)
    for i, p in enumerate(panels):
        top = TOP + (i // 3) * (60 * zoom + 2 * LINE + GAP)
        each = (int(zoom / Fraction(p.ratio[0])), int(zoom / Fraction(p.ratio[1])))
        drawn = panel(sheet, (i % 3) * (80 * zoom + GAP), p.plane.shape, each, top)  # type: ignore[arg-type]
        assert np.array_equal(drawn, stretch(p.plane, p.grey))


# --- the verb


def test_the_verb_says_where_it_looked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Region, picture and notes for people, one object for programs, silence on demand; of many images the first."""
    path = trained(folder / "verb", um={"y": 0.5, "x": 0.5})
    for name in ("a.tif", "b.tif"):
        tifffile.imwrite(tmp_path / name, smooth(np.random.default_rng(), (90, 100)))
    line = [
        "predict",
        path,
        tmp_path / "a.tif",
        "-o",
        tmp_path / "out" / "v1.2.ome.zarr",
        "--preview",
        "--device",
        "cpu",
    ]
    assert main([*map(str, line), "--pixel-size", "0.1,0.1"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^region +y 0:90, x 0:100 of a\.tif$", told, re.MULTILINE)
    assert re.search(r"^note .*trained at 0\.5 um", told, re.MULTILINE)
    assert "Nothing else was written" in told
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["v1.2.preview.png"]
    assert main([*map(str, line), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["region"] == {"y": [0, 90], "x": [0, 100]}
    assert Path(facts["picture"]).is_file()
    assert main([*map(str, line), "-q"]) == 0
    assert capsys.readouterr().out == ""
    both = [str(w) for w in ("predict", path, tmp_path / "b.tif", tmp_path / "a.tif", "-o", tmp_path / "many", "--preview",
                             "--device", "cpu")]  # fmt: skip
    assert main(both) == 0
    assert "of b.tif (the first of 2 images)" in capsys.readouterr().out
    assert not (tmp_path / "many").exists()
    assert (tmp_path / "many.preview.png").is_file()
    assert main([*map(str, line), "--channel", "DAPI"]) == 2
    assert "has no channel 'DAPI'" in capsys.readouterr().err
