"""The command line as a person uses it: what it says, what it refuses, and the exit codes that scripts rely on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.cli import main
from voidzoo.export import proof
from voidzoo.export.proof import Check

DATA = Path(__file__).parent / "data"
TINY = ["--set", "epochs=2", "--set", "steps=2", "--set", "filters=4", "--set", "batch=2", "--set", "patch=[32, 32]"]


@dataclass(frozen=True)
class Told:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str


class Shell:
    """`voidzoo ...` in this process, in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Told:
        self._capsys.readouterr()
        code = main([str(w) for w in words])
        return Told(code, *self._capsys.readouterr())

    def fails(self, code: int, *words: object) -> str:
        """The text of a refusal: it says what in one line, no traceback, nothing on stdout but what was done."""
        told = self(*words)
        assert told.code == code, told
        assert "Traceback" not in told.err
        assert "fault of voidzoo" not in told.err
        assert re.search(r"^error: \S.*\.$", told.err, re.MULTILINE), told.err
        return told.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


@dataclass(frozen=True)
class World:
    """One noisy image, the run trained on it, and its package."""

    image: Path
    run: Path
    package: Path


def noisy(path: Path, shape: tuple[int, ...] = (96, 117), **metadata: Any) -> Path:
    tifffile.imwrite(path, micrograph(np.random.default_rng(), shape), photometric="minisblack", **metadata)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Made by real processes, as a user would: train, export."""
    folder = tmp_path_factory.mktemp("world")
    noisy(folder / "noisy.tif")
    voidzoo(folder, "train", "n2v", "noisy.tif", "-o", "run", "--device", "cpu", *TINY)
    voidzoo(folder, "export", "run", "-o", "model.zip", "--author", "Ada Ito")
    return World(folder / "noisy.tif", folder / "run", folder / "model.zip")


def voidzoo(folder: Path, *words: str, code: int = 0) -> Told:
    """`python -m voidzoo ...` in a real process."""
    root = str(Path(__file__).resolve().parents[1])
    done = subprocess.run([sys.executable, "-m", "voidzoo", *words], cwd=folder, capture_output=True, text=True,
                          check=False, env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == code, done.stderr
    return Told(done.returncode, done.stdout, done.stderr)


# --- the whole way


@pytest.mark.slow
def test_the_whole_way_in_real_processes(world: World, tmp_path: Path) -> None:
    """check, plan and predict of a trained package exit 0, say what comes next, and the result is what it should be."""
    model, image = str(world.package), str(world.image)
    told = voidzoo(tmp_path, "check", model)
    assert [line.split()[0] for line in told.out.splitlines()] == ["check"] * 6 + ["proved"]
    assert "FAILED" not in told.out
    told = voidzoo(tmp_path, "plan", model, image, "-o", "out.ome.tif", "--device", "cpu")
    assert "Nothing was written" in told.out
    assert not list(tmp_path.iterdir())
    told = voidzoo(tmp_path, "predict", model, image, "-o", "out.ome.tif", "--device", "cpu")
    assert "100%" in told.out
    assert "Fiji, ImageJ: File > Open... > out.ome.tif" in told.out
    assert told.err == ""
    again = voidzoo(tmp_path, "predict", model, image, "-o", "out.ome.tif", "--device", "cpu")
    assert "out.ome.tif is complete already" in again.out
    result, pixels = tifffile.imread(tmp_path / "out.ome.tif"), tifffile.imread(image)
    assert (result.shape, result.dtype) == (pixels.shape, pixels.dtype)
    in_memory = vz.predict(model, pixels, axes="yx", device="cpu")
    assert np.array_equal(result, in_memory)


def test_train_and_export_say_what_comes_next(world: World, shell: Shell) -> None:
    """The same train line again is done at once; export proves and names the next command."""
    told = shell("train", "n2v", world.image, "-o", world.run, "--device", "cpu", *TINY)
    assert told.code == 0
    assert "done     2 epochs" in told.out
    assert "best validation loss" in told.out
    assert f"next     voidzoo export {world.run} -o run.zip" in told.out
    for name in ("report.html", "recipe.yaml"):
        assert (world.run / name).is_file()
        assert name in told.out
    verdict = [line.removeprefix("verdict  ") for line in told.out.splitlines() if line.startswith("verdict  ")]
    assert verdict == vz.load_run(world.run).info["verdict"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "status passed"))
        told = shell("export", world.run, "-o", "again.zip")
    assert told.code == 0
    assert [line.split()[0] for line in told.out.splitlines()] == ["check"] * 7 + ["written", "next"]


def test_a_stopped_training_continues_and_says_so(shell: Shell, tmp_path: Path) -> None:
    """An interrupted training exits 130; the same command goes on after the epochs that are done."""
    image = noisy(tmp_path / "a.tif")
    line = ["train", "n2v", image, "-o", "my run", "--device", "cpu", *TINY, "--epochs", "3"]
    import voidzoo.screen

    def interrupt(self: Any, event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voidzoo.screen.Screen, "_EpochDone", interrupt)
        told = shell(*line)
    assert told.code == 130
    assert "the finished epochs are safe" in told.err
    told = shell(*line)
    assert told.code == 0
    assert "Continuing after epoch 1." in told.out
    assert "done     3 epochs" in told.out
    assert "next     voidzoo export 'my run' -o 'my run.zip'" in told.out, "it can be pasted"
    assert "voidzoo export &#x27;my run&#x27; -o &#x27;my run.zip&#x27;" in Path("my run/report.html").read_text()


def test_recipe_files_and_settings(world: World, shell: Shell) -> None:
    """--recipe takes the recipe of another run, --set and --epochs change it, and the run records all of it."""
    told = shell("train", "n2v", world.image, "-o", "r", "--recipe", world.run / "recipe.yaml", "--epochs", 1,
                 "--set", "seed=7", "--set", "augment=false", "--device", "cpu", "--quiet")  # fmt: skip
    assert told == Told(0, "", "")
    recipe = yaml.safe_load(Path("r/recipe.yaml").read_text())
    assert (recipe["epochs"], recipe["seed"], recipe["augment"], recipe["steps"]) == (1, 7, False, 2)


# --- look


def test_look_shows_axes_channels_and_size(shell: Shell) -> None:
    """An ImageJ hyperstack: letters, um, channels by number, bytes; JSON has the same facts."""
    told = shell("look", DATA / "ij/xyzc_16bit__spots.tif")
    assert told.code == 0
    assert "c 2  z 17  y 88  x 89   uint16   533 kB" in told.out
    assert "z 0.4 um  y 0.09413 um  x 0.09413 um" in told.out
    assert "0 channel 0   1 channel 1" in told.out
    assert "note" not in told.out
    facts = json.loads(shell("look", DATA / "ij/xyzc_16bit__spots.tif", "--json").out)
    assert (facts["axes"], facts["shape"], facts["dtype"]) == ("czyx", [2, 17, 88, 89], "uint16")
    assert facts["bytes"] == 2 * 17 * 88 * 89 * 2
    assert facts["pixel_size"]["z"] == pytest.approx(0.4)


def test_look_says_what_is_missing_and_takes_it(shell: Shell) -> None:
    """Without a pixel size it says so with the option to paste; with the option the note is gone."""
    file = DATA / "gen/yx_int16.tif"
    told = shell("look", file)
    assert "no pixel size; results will have none either (mend: --pixel-size" in told.out
    told = shell("look", file, "--pixel-size", "0.3,0.25")
    assert "y 0.3 um  x 0.25 um" in told.out
    assert "no pixel size" not in told.out


def test_look_tells_of_a_file_that_holds_several_images(shell: Shell, tmp_path: Path) -> None:
    """The first series is shown, a note says how many there are and how to choose."""
    with tifffile.TiffWriter(tmp_path / "m.ome.tif") as tiff:
        for shape in ((40, 50), (60, 70)):
            tiff.write(micrograph(np.random.default_rng(), shape), metadata={"axes": "YX"}, photometric="minisblack")
    told = shell("look", tmp_path / "m.ome.tif")
    assert "y 40  x 50" in told.out
    assert "note" in told.out
    assert "--series" in told.out
    assert "y 60  x 70" in shell("look", tmp_path / "m.ome.tif", "--series", 1).out
    assert "series" in shell.fails(2, "look", tmp_path / "m.ome.tif", "--series", 2)


def test_look_counts_levels(shell: Shell) -> None:
    """A pyramid is told by its number of levels."""
    assert "OME-TIFF, 3 levels" in shell("look", DATA / "gen/pyramid_subifds.ome.tif").out


# --- refusals: images


def test_axes_that_nobody_says_are_asked_for(shell: Shell, tmp_path: Path) -> None:
    """Four nameless dimensions: the shape is told, an order is proposed, and the proposal works."""
    np.save(tmp_path / "a.npy", np.random.default_rng().random((3, 2, 70, 80), np.float32))
    text = shell.fails(2, "look", tmp_path / "a.npy")
    assert "3 x 2 x 70 x 80" in text
    mend = re.search(r"mend: +.*--axes ([tczyx]{4})", text)
    assert mend, text
    assert shell("look", tmp_path / "a.npy", "--axes", mend[1]).code == 0


def test_axes_that_contradict_are_refused(shell: Shell, world: World) -> None:
    """Three letters for two dimensions, unknown and repeated letters."""
    text = shell.fails(2, "look", world.image, "--axes", "zyx")
    assert "--axes zyx names 3 axes, but noisy.tif has 2: 96 x 117." in text
    assert "mend:  --axes yx" in text
    assert "'q' is no axis" in shell.fails(2, "look", world.image, "--axes", "qx")
    assert "names an axis twice" in shell.fails(2, "look", world.image, "--axes", "yy")


BAD_FILES = [
    ("bad/truncated.tif", "truncated.tif is cut"),
    ("bad/empty.tif", "empty.tif is empty: 0 bytes"),
    ("bad/header_only.tif", "header_only.tif holds no image"),
    ("bad/text_named.tif", "text_named.tif is not a TIFF"),
]


@pytest.mark.parametrize(("name", "text"), BAD_FILES)
def test_broken_files_are_refused_by_every_verb(shell: Shell, world: World, name: str, text: str) -> None:
    """look, train, plan and predict say the same about a file, and leave nothing behind."""
    for line in (
        ["look", DATA / name],
        ["train", "n2v", DATA / name, "-o", "r"],
        ["plan", world.package, DATA / name],
        ["predict", world.package, DATA / name, "-o", "o.ome.zarr"],
    ):
        told = shell.fails(2, *line)
        assert text in told
        assert "mend:" in told
    assert not list(Path().iterdir())


def test_an_image_that_is_not_there(shell: Shell, world: World) -> None:
    """The folder is looked through for a similar name."""
    text = shell.fails(2, "predict", world.package, world.image.with_name("nosy.tif"), "-o", "o.ome.zarr")
    assert "nosy.tif does not exist." in text
    assert "did you mean noisy.tif?" in text


def test_complex_numbers_are_refused(shell: Shell, tmp_path: Path) -> None:
    """complex64: the dtype is named, and numpy.abs proposed."""
    np.save(tmp_path / "c.npy", np.ones((64, 64), np.complex64))
    text = shell.fails(2, "look", tmp_path / "c.npy")
    assert "c.npy holds complex64 numbers" in text
    assert "numpy.abs" in text


def test_nothing_can_be_learnt_from_a_constant_image(shell: Shell) -> None:
    """The value of every pixel is told; no run folder is left."""
    text = shell.fails(2, "train", "n2v", DATA / "gen/yx_constant.tif", "-o", "r")
    assert "yx_constant.tif is constant (every pixel is 500)" in text
    assert not Path("r").exists()


def test_an_image_smaller_than_a_patch_names_the_largest_that_fits(shell: Shell, tmp_path: Path) -> None:
    """The mend can be pasted: with that patch, the training runs."""
    rng = np.random.default_rng()
    image = noisy(tmp_path / "a.tif", (int(rng.integers(60, 120)), int(rng.integers(60, 120))))
    text = shell.fails(2, "train", "n2v", image, "-o", "r", *TINY, "--set", "patch=[128, 128]")
    assert "is too small for patches of 128 x 128" in text
    mend = re.search(r"(patch): (\[\d+, \d+\])  is the largest that fits", text)
    assert mend, text
    told = shell("train", "n2v", image, "-o", "r", "--device", "cpu", "-q", *TINY, "--set", f"{mend[1]}={mend[2]}")
    assert told == Told(0, "", "")
    sides = [n + 4 for n in json.loads(mend[2])]
    for k in range(2):
        larger = [s if i == k else n for i, (s, n) in enumerate(zip(sides, json.loads(mend[2]), strict=True))]
        shell.fails(2, "train", "n2v", image, "-o", "r3", *TINY, "--set", f"patch={larger}")


def test_nan_is_refused_in_training_and_left_out_on_demand(shell: Shell, tmp_path: Path) -> None:
    """Count and place of NaN; --allow-nan trains and says how many were left out."""
    pixels = micrograph(np.random.default_rng(), (90, 100), "float32")
    pixels[17, 23] = np.nan
    tifffile.imwrite(tmp_path / "n.tif", pixels)
    text = shell.fails(2, "train", "n2v", "n.tif", "-o", "r", *TINY)
    assert "n.tif has 1 NaN" in text
    assert "y 17, x 23" in text
    told = shell("train", "n2v", "n.tif", "-o", "r", "--allow-nan", "--device", "cpu", *TINY)
    assert told.code == 0
    assert "1 NaN or infinite pixels were left out" in told.out


def test_nan_is_refused_in_prediction_and_mapped_on_demand(shell: Shell, world: World, tmp_path: Path) -> None:
    """Exit code 1: the block failed, nothing lies at OUT; --allow-nan continues and counts."""
    pixels = micrograph(np.random.default_rng(), (90, 100), "float32")
    pixels[17, 23] = np.inf
    tifffile.imwrite(tmp_path / "n.tif", pixels)
    line = ["predict", world.package, "n.tif", "-o", "o.ome.zarr", "--device", "cpu"]
    text = shell.fails(1, *line)
    assert "1 of 1 blocks failed" in text
    assert "y 17, x 23" in text
    assert not Path("o.ome.zarr").exists()
    told = shell(*line, "--allow-nan")
    assert told.code == 0
    assert "mapped   1 NaN" in told.out


# --- refusals: image and model


def test_channels_are_chosen_never_guessed(shell: Shell, world: World) -> None:
    """Too many channels are listed by name, a wrong one too; the mend can be pasted."""
    image = DATA / "ome/multi-channel_int8_bigendian.ome.tif"
    text = shell.fails(2, "plan", world.package, image, "--device", "cpu")
    assert "takes 1 channel; multi-channel_int8_bigendian.ome.tif has 3: channel 0, channel 1, channel 2." in text
    assert '--channel "channel 0"   or  --channel all' in text
    assert "has no channel 'DAPI'" in shell.fails(2, "plan", world.package, image, "--channel", "DAPI")
    told = shell("plan", world.package, image, "--channel", "channel 1", "--device", "cpu")
    assert (told.code, "channel 1" in told.out) == (0, True)


def test_a_volume_model_refuses_a_plane(shell: Shell, world: World, tmp_path: Path) -> None:
    """What the model reads and what the image is stand in one line."""
    make_package(tmp_path / "p3", dims=3, depth=1, filters=2)
    text = shell.fails(2, "predict", tmp_path / "p3", world.image, "-o", "o.ome.zarr")
    assert "needs z, y, x; noisy.tif is y 96, x 117." in text
    assert "mend:  a model for 2D images" in text


def test_packages_that_cannot_be_used(shell: Shell, world: World, tmp_path: Path) -> None:
    """Missing, no zip, changed weights: exit 2 for plan, predict and check alike."""
    make_package(tmp_path / "p", depth=1)
    (tmp_path / "p/weights.onnx").write_bytes(b"other")
    (tmp_path / "t.zip").write_text("text")
    for model, text in (("nothing.zip", "there is no model nothing.zip."), ("t.zip", "t.zip is not a whole zip file"),
                        ("p", "p is not what was exported: weights.onnx has sha256")):  # fmt: skip
        for line in (
            ["plan", model, world.image],
            ["predict", model, world.image, "-o", "o.ome.zarr"],
            ["check", model],
        ):
            assert text in shell.fails(2, *line)
    assert not Path("o.ome.zarr").exists()
    text = shell.fails(2, "predict", world.run, world.image, "-o", "o.ome.zarr")
    assert f"mend:  voidzoo export {world.run} -o run.zip" in text


def test_a_package_that_is_not_proved_exits_1_and_keeps_tensors(shell: Shell, tmp_path: Path) -> None:
    """`check --keep` leaves the tensors that differ where it says."""
    package = make_package(tmp_path / "p", depth=1)
    side = package.rules["y"].minimum
    for name in ("test_input.npy", "test_output.npy"):
        np.save(tmp_path / "p" / name, np.random.default_rng().random((1, 1, side, side), np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        told = shell("check", tmp_path / "p", "--keep", "kept")
    assert told.code == 1
    assert "FAILED" in told.out
    assert "is not proved: onnx = test output" in told.err
    assert "the tensors that differ lie in kept" in told.err
    ends = ("difference.png", "expected.npy", "found.npy")
    assert sorted(p.name for p in Path("kept").iterdir()) == [f"onnx-test-output-{end}" for end in ends]


# --- refusals: options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tile", "50,50"], r"tile 50 along y does not suit this model: sides must be multiples of 4 .*\n  mend:  64"),
        (["--tile", "70,70"], r"tile 70 along y .*\n  mend:  68 or 72"),
        (["--tile", "64,64,64"], r"--tile takes 2 sizes \(y, x\) for this model, not 3"),
        (["--tile", "big"], r"--tile 'big': numbers with commas are needed\.\n  mend:  --tile 512,512"),
        (["--tile", "0,64"], r"tile 0 along y"),
        (["--block", "33,33"], r"block 33 along y is not a multiple of 4\.\n  mend:  32"),
        (["--block", "0,0"], r"block 0 along y"),
        (["--memory", "lots"], r"'lots' is no amount of memory\.\n  mend:  e\.g\. --memory 8GB"),
        (["--memory", "infGB"], r"'infGB' is no amount of memory"),
        (["--memory", "-3GB"], r"'-3GB' is no amount of memory"),
        (["--memory", "3"], r"'3' is no amount of memory"),
        (["--memory", "5MB"], r"the smallest tile of this model needs .*\n  mend:  --memory \d+MB"),
        (["--dtype", "complex64"], r"--dtype complex64: results are whole numbers or floats"),
        (["--dtype", "nonsense"], r"--dtype nonsense: results are .*\n  mend:  --dtype same, uint16 or float32"),
        (["--pixel-size", "1,y"], r"--pixel-size '1,y': numbers with commas are needed"),
        (["--pixel-size", "-1,1"], r"--pixel-size y -1\.0 is no size in um"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(shell: Shell, world: World, options: list[str], text: str) -> None:
    """plan refuses what predict would refuse, in the same words, with the next legal value."""
    plan = shell.fails(2, "plan", world.package, world.image, "--device", "cpu", *options)
    assert re.search(text, plan), plan
    predict = shell.fails(2, "predict", world.package, world.image, "-o", "o.ome.zarr", "--device", "cpu", *options)
    assert re.search(text, predict)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--set", "epoch=3"], r"no setting 'epoch' \(did you mean epochs\?\)"),
        (["--set", "qqq=3"], r"no setting 'qqq'\.\n  mend:  .*epochs"),
        (["--set", "epochs"], r"--set 'epochs': key=value is needed"),
        (["--set", "epochs=[1"], r"--set 'epochs=\[1': '\[1' is no value"),
        (["--set", "epochs=many"], r"epochs: 'many'; it must be a whole number from 1"),
        (["--epochs", "0"], r"epochs: 0; it must be a whole number from 1"),
        (["--set", "patch=[30, 32]"], r"30 is not a multiple of 4: use 28 or 32"),
        (["--set", "mask_percent=99"], r"mask_percent: 99; it must be above 0, at most 50"),
        (["--recipe", "none.yaml"], r"there is no recipe none\.yaml"),
        (["--set", "dims=3"], r"z"),
    ],
)
def test_recipes_that_cannot_be(shell: Shell, world: World, options: list[str], text: str) -> None:
    """Unknown settings name the nearest, bad values the legal ones; no run folder is made."""
    told = shell.fails(2, "train", "n2v", world.image, "-o", "r", *options)
    assert re.search(text, told), told
    assert not Path("r").exists()


def test_devices_that_are_not_there(shell: Shell, world: World) -> None:
    """Exit 3 for an unknown device, and for CUDA where there is none: never silently the CPU."""
    import torch

    image, model = world.image, world.package
    for line in (
        ["plan", model, image],
        ["predict", model, image, "-o", "o.ome.zarr"],
        ["train", "n2v", image, "-o", "r"],
    ):
        text = shell.fails(3, *line, "--device", "nonsense")
        assert "there is no device 'nonsense'" in text
        assert re.search(r"mend:  --device auto, .*cuda:1", text)
        if not torch.cuda.is_available():
            text = shell.fails(3, *line, "--device", "cuda")
            assert re.search(r"cuda(:0)? was asked for", text, re.IGNORECASE)
            assert "--device cpu" in text
    assert not list(Path().iterdir())


def test_a_missing_library_exits_3(shell: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch, train and export name the extra that brings it."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a))
    for line in (["train", "n2v", world.image, "-o", "r"], ["export", world.run, "-o", "m.zip"]):
        assert 'mend:  pip install "voidzoo[train]"' in shell.fails(3, *line)


def test_words_that_typer_refuses(shell: Shell, world: World) -> None:
    """Unknown verbs, options and methods exit 2 and show the usage; no verb at all shows the help."""
    for line in (["frobnicate"], ["look"], ["look", world.image, "--colour"], ["train", "n3v", world.image, "-o", "r"]):
        told = shell(*line)
        assert told.code == 2
        assert "Usage" in told.err
        assert "Traceback" not in told.err
    assert "predict" in shell("--help").out
    for verb in ("look", "noise", "train", "export", "check", "plan", "predict", "doctor", "demo"):
        told = shell(verb, "--help")
        assert told.code == 0
        assert len(told.out.splitlines()) <= 50, "one screen"


# --- refusals: places


def test_endings_and_places(shell: Shell, world: World) -> None:
    """The ending chooses the format; what voidzoo did not write is never replaced, not even by --overwrite."""
    predict = ["predict", world.package, world.image, "--device", "cpu", "-o"]
    text = shell.fails(2, *predict, "o.png")
    assert "o.png: the ending chooses the format." in text
    assert "-o o.ome.zarr  or  .ome.tif" in text
    mine = Path("mine.ome.zarr")
    mine.mkdir()
    (mine / "precious.txt").write_text("!")
    for more in ([], ["--overwrite"]):
        assert "exists and was not made by voidzoo" in shell.fails(2, *predict, mine, *more)
    tifffile.imwrite("other.ome.tif", np.zeros((5, 5), np.uint8))
    assert "exists and was not made by voidzoo" in shell.fails(2, *predict, "other.ome.tif")
    assert (mine / "precious.txt").read_text() == "!"
    assert "is the image itself" in shell.fails(2, *predict, world.image, "--overwrite")
    Path("file").write_text("")
    assert shell.fails(2, *predict, "file/o.ome.zarr")


def test_run_folders_that_are_not_ours(shell: Shell, world: World) -> None:
    """train refuses a folder with other files, and another recipe on a begun run; export what is no run."""
    Path("f").mkdir()
    Path("f/notes.txt").write_text("!")
    assert "f holds other files (notes.txt) and no run." in shell.fails(2, "train", "n2v", world.image, "-o", "f")
    text = shell.fails(2, "train", "n2v", world.image, "-o", world.run, "--device", "cpu", *TINY, "--set", "seed=5")
    assert "was begun with another recipe: seed 0, now 5" in text
    assert "f is no run folder" in shell.fails(2, "export", "f", "-o", "m.zip")
    assert "a package is a .zip" in shell.fails(2, "export", world.run, "-o", "m")
    text = shell.fails(2, "export", world.run, "-o", "m.zip", "--weights", "finest")
    assert "mend:  --weights best" in text
    assert [p.name for p in Path().iterdir()] == ["f"]


def test_a_disk_that_is_too_small_is_told_by_plan(shell: Shell, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """plan -o looks at the disk, so that nobody learns of it after hours."""
    import shutil

    usage = shutil.disk_usage(".")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    for verb in ("plan", "predict"):
        text = shell.fails(2, verb, world.package, world.image, "-o", "o.ome.zarr", "--device", "cpu")
        assert re.search(r"the result needs up to \S+ GB; .* has 1e-06 GB free", text), text
    assert not Path("o.ome.zarr").exists()


# --- several images


def test_one_bad_image_of_several_does_not_stop_the_others(shell: Shell, world: World, tmp_path: Path) -> None:
    """Exit 1, the bad one named, the others done; when it is mended, the same line does only it."""
    a, c = noisy(tmp_path / "a.tif"), noisy(tmp_path / "c.tif", (70, 80))
    bad = tmp_path / "b.tif"
    bad.write_bytes((DATA / "bad/truncated.tif").read_bytes())
    line = ["predict", world.package, a, bad, c, "-o", "results", "--device", "cpu"]
    told = shell(*line)
    assert told.code == 1
    assert f"1 of 3 images failed: {bad}." in told.err
    assert "error: b.tif is cut" in told.err
    assert sorted(p.name for p in Path("results").iterdir()) == ["a.ome.zarr", "c.ome.zarr", "index.csv"]
    assert vz.open_image("results/c.ome.zarr").shape == (70, 80)
    noisy(bad)
    told = shell(*line)
    assert told.code == 0
    assert len(re.findall(r"^done +\d/3", told.out, re.MULTILINE)) == 3
    assert vz.open_image("results/b.ome.zarr").shape == (96, 117)


def test_several_images_need_a_folder_and_names_of_their_own(shell: Shell, world: World, tmp_path: Path) -> None:
    """One file for several results, and two results of one name, are refused before anything runs."""
    (tmp_path / "x").mkdir()
    one, two = noisy(tmp_path / "a.tif"), noisy(tmp_path / "x" / "a.tif")
    assert "2 images cannot all become o.ome.zarr." in shell.fails(
        2, "predict", world.package, one, two, "-o", "o.ome.zarr"
    )
    assert "have the same name" in shell.fails(2, "predict", world.package, one, two, "-o", "results")
    Path("taken").write_text("")
    assert "taken is a file" in shell.fails(2, "predict", world.package, one, world.image, "-o", "taken")


# --- for programs


def test_json_is_one_object_a_line(world: World, shell: Shell) -> None:
    """train, predict, plan, check, look and doctor: every line of stdout parses, in the order that things happen."""
    told = shell("train", "n2v", world.image, "-o", "r", "--device", "cpu", "--json", *TINY)
    names = [json.loads(line)["event"] for line in told.out.splitlines()]
    assert names == ["TrainingStarted", "EpochDone", "EpochDone", "TrainingDone"]
    told = shell("predict", world.package, world.image, "-o", "o.ome.tif", "--device", "cpu", "--json")
    events = [json.loads(line) for line in told.out.splitlines()]
    assert [e["event"] for e in events] == ["PlanMade", "BlockDone", "StageStarted", "Done"]
    assert events[0]["plan"]["tile"] == {"y": 96, "x": 120}
    assert all(e["at"] > 1.6e9 for e in events)
    plan = json.loads(shell("plan", world.package, world.image, "--device", "cpu", "--json").out)
    assert plan["identity"] == events[0]["plan"]["identity"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        found = json.loads(shell("check", world.package, "--json").out)
    assert [c["passed"] for c in found["checks"]] == [True] * 6
    facts = json.loads(shell("doctor", "--json").out)
    assert facts["devices"]["cpu"] == "runs"
    assert facts["libraries"]["numpy"] == np.__version__


def test_quiet_says_nothing_and_log_keeps_everything(world: World, shell: Shell) -> None:
    """--quiet: both streams empty on success; --log appends each event, and people are still told the end."""
    predict = ["predict", world.package, world.image, "--device", "cpu", "-o"]
    assert shell(*predict, "a.ome.zarr", "--quiet") == Told(0, "", "")
    told = shell(*predict, "b.ome.zarr", "--log", "logs/p.jsonl")
    assert "done " in told.out
    assert "open " in told.out
    shell(*predict, "b.ome.zarr", "--log", "logs/p.jsonl", "--quiet")
    lines = Path("logs/p.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["PlanMade", "BlockDone", "Done", "Done"]
    Path("file").write_text("")
    assert "file" in shell.fails(2, *predict, "c.ome.zarr", "--log", "file/p.jsonl")


def test_doctor_tells_what_runs(shell: Shell) -> None:
    """Versions, memory, and each device with what a tiny network on it gave."""
    told = shell("doctor")
    assert told.code == 0
    assert re.search(r"^  cpu +runs$", told.out, re.MULTILINE)
    for word in ("Python", "numpy", "torch", "memory", "disk", "cuda"):
        assert word in told.out


# --- errors


def test_debug_shows_the_traceback_and_keeps_the_exit_code(shell: Shell) -> None:
    """--debug may stand anywhere; the words and the code stay the same."""
    for line in (["look", "nope.tif", "--debug"], ["--debug", "look", "nope.tif"]):
        told = shell(*line)
        assert told.code == 2
        assert "Traceback (most recent call last)" in told.err
        assert "error: nope.tif does not exist." in told.err
    assert "Traceback" not in shell.fails(2, "look", "nope.tif")


def test_a_fault_of_ours_says_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen error is one line with a hint to --debug, exit 1; a Ctrl-C anywhere is exit 130."""

    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("voidzoo.verbs.open_image", broken)
    told = shell("look", "a.tif")
    assert told.code == 1
    assert "error: ZeroDivisionError: division by zero\n  mend:  this is a fault of voidzoo" in told.err
    assert "Traceback" not in told.err
    assert "Traceback" in shell("look", "a.tif", "--debug").err

    def interrupted(*_args: Any, **_kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("voidzoo.verbs.open_image", interrupted)
    assert shell("look", "a.tif").code == 130


def test_exit_codes_of_real_processes(tmp_path: Path) -> None:
    """The code and stream are those of the process, too; nothing of a refusal goes to stdout."""
    told = voidzoo(tmp_path, "look", "nope.tif", code=2)
    assert told.out == ""
    assert told.err.startswith("error: nope.tif does not exist.")
    assert "Traceback" in voidzoo(tmp_path, "look", "nope.tif", "--debug", code=2).err


def structured(path: Path, axis: int, side: int = 512) -> Path:
    """A micrograph whose noise is shared by three neighbours along an axis; large enough for a mask of just these."""
    rng = np.random.default_rng()
    noise = rng.normal(0, 60, [side, side])
    noise = sum(np.roll(noise, k, axis) for k in range(3)) / np.sqrt(3)
    tifffile.imwrite(
        path, (micrograph(rng, (side, side), "float32") + noise).astype(np.float32), metadata={"axes": "YX"}
    )
    return path


def test_noise_proposes_what_training_then_does(shell: Shell, tmp_path: Path) -> None:
    """The axis that was smeared, as text, JSON and picture; structn2v without a mask takes the same one."""
    image = structured(tmp_path / "smeared.tif", axis=0)
    told = shell("noise", image, "--axes", "yx", "-o", "noise.png")
    assert told.code == 0, told
    assert re.search(r"^along y  correlated to 2 pixels   \(0\.[567]", told.out, re.MULTILINE)
    assert re.search(r"^along x  not correlated", told.out, re.MULTILINE)
    assert f"voidzoo train structn2v {image} -o run --blind-mask 5x1" in told.out
    assert (tmp_path / "noise.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(shell("noise", image, "--axes", "yx", "--json").out)
    assert (found["method"], found["axes"], found["text"]) == ("structn2v", ["y"], "5x1")
    assert found["mask"] == [[1]] * 5
    trained = shell("train", "structn2v", image, "--axes", "yx", "-o", "run", *TINY)
    assert trained.code == 0, trained
    assert "noise    correlated along y: blind mask 5x1" in trained.out
    assert vz.load_run(tmp_path / "run").recipe.blind_mask == [[1]] * 5


def test_white_noise_is_not_masked(shell: Shell, tmp_path: Path) -> None:
    image = noisy(tmp_path / "white.tif", (256, 256))  # of 128 x 128 one in hundreds looks correlated
    told = shell("noise", image, "--axes", "yx")
    assert f"proposal n2v: voidzoo train n2v {image} -o run" in told.out
    text = shell.fails(2, "train", "structn2v", image, "--axes", "yx", "-o", "run")
    assert "there is nothing to mask" in text
    assert "voidzoo train n2v" in text
    assert not (tmp_path / "run").exists()
    assert "-o noise.png" in shell.fails(2, "noise", image, "-o", "noise.jpg")


def test_care_and_its_target(shell: Shell, tmp_path: Path) -> None:
    """Pairs are trained on, and what comes out is a package on the scale of the target; without a target it is refused."""
    image = noisy(tmp_path / "noisy.tif")
    pixels = tifffile.imread(image).astype(np.float32)
    tifffile.imwrite(tmp_path / "clean.tif", pixels / 1000, metadata={"axes": "YX"})
    told = shell("train", "care", image, "--axes", "yx", "--target", "clean.tif", "-o", "run", *TINY)
    assert told.code == 0, told
    run = vz.load_run(tmp_path / "run")
    assert run.target_normalisation.mean[0] == pytest.approx(run.normalisation.mean[0] / 1000, rel=1e-3)
    assert "care learns from pairs" in shell.fails(2, "train", "care", image, "--axes", "yx", "-o", "other", *TINY)
    assert "takes no target" in shell.fails(
        2, "train", "n2v", image, "--axes", "yx", "--target", image, "-o", "o", *TINY
    )
