"""The options of plan and predict as a person types them, and what is refused, word for word."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

import voidzoo as vz
from tests.model_zoo import MODELS
from tests.packages import make_package, micrograph
from tests.trained import smooth, trained
from voidzoo.cli import main


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models (p2, p3, two_images, ...) and images, as a user has them."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng()
    make_package(folder / "p2", depth=1)
    make_package(folder / "p3", dims=3, depth=1, filters=2)
    trained(folder / "half", um={"y": 0.5, "x": 0.5})
    for name in ("two_images", "two_outputs", "torchscript"):
        MODELS[name](folder)

    def write(name: str, axes: str, shape: tuple[int, ...], um: float | None = 0.5, **more: object) -> None:
        size = {} if um is None else {"PhysicalSizeX": um, "PhysicalSizeXUnit": "um",
                                      "PhysicalSizeY": um, "PhysicalSizeYUnit": "um"}  # fmt: skip
        tifffile.imwrite(folder / name, micrograph(rng, shape), photometric="minisblack",
                         metadata={"axes": axes, **size, **more})  # fmt: skip

    write("stack.ome.tif", "ZYX", (4, 90, 100))
    write("plane.ome.tif", "YX", (90, 100))
    write("small.ome.tif", "YX", (80, 100))
    write("colour.ome.tif", "CYX", (3, 90, 100), Channel={"Name": ["DAPI", "GFP", "BF"]})
    write("fine.ome.tif", "YX", (200, 210), 0.065)
    tifffile.imwrite(folder / "bare.tif", smooth(rng, (90, 100)))
    return folder


@pytest.fixture
def at(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Links to what lies on the desk, in a fresh folder that we are in."""
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], code: int, *words: object) -> str:
    """stdout of a verb that exits so; stderr of one that refuses."""
    capsys.readouterr()
    found = main([str(w) for w in words])
    out, err = capsys.readouterr()
    assert found == code, err
    assert "Traceback" not in err
    if code:
        assert not out or code == 1
    return err if code else out


def test_a_part_in_real_processes(at: Path) -> None:
    """predict --only, the same again, and into a TIFF, by `python -m voidzoo`: equal to that part of the whole."""
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    line = [
        sys.executable,
        "-m",
        "voidzoo",
        "predict",
        "p2",
        "stack.ome.tif",
        "--device",
        "cpu",
        "--only",
        "z=1:3,y=10:",
    ]
    for out in ("o.ome.zarr", "o.ome.tif"):
        for k in range(2):
            done = subprocess.run([*line, "-o", out], capture_output=True, text=True, check=False, env=env)
            assert (done.returncode, done.stderr) == (0, "")
            assert (f"{out} is complete already" in done.stdout) == (k == 1)
        whole = vz.predict("p2", "stack.ome.tif", device="cpu")
        found = vz.open_image(out).read().astype(int)
        assert np.abs(found - whole.read()[1:3, 10:]).max() <= 1  # the last bit may round another way
    assert tifffile.imread("o.ome.tif").shape == (2, 80, 100)


def test_mask_and_skip_below(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan says what is skipped, the end how much; the counts are those of the picture."""
    mask = np.zeros((90, 100), np.uint8)
    mask[70:, :20] = 255
    tifffile.imwrite("mask.tif", mask)
    line = ["predict", "p2", "stack.ome.tif", "--device", "cpu", "--block", "30,50"]
    out = told(capsys, 0, *line, "-o", "m.ome.zarr", "--mask", "mask.tif")
    assert "skip     blocks in which mask.tif is 0 everywhere" in out
    assert "skipped  20 of 24 blocks" in out
    assert not vz.open_image("m.ome.zarr").read()[:, :60].any()
    out = told(capsys, 0, *line, "-o", "s.ome.zarr", "--skip-below", "60000")
    assert "skipped  24 of 24 blocks" in out
    assert not vz.open_image("s.ome.zarr").read().any()


def test_rescale_and_level(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The note of a far-off pixel size names --rescale, and with it the note is gone."""
    plan = told(capsys, 0, "plan", "half", "fine.ome.tif", "--device", "cpu")
    assert re.search(
        r"^note .*0\.065 um pixels along y, x; .* 7\.7 times too large .*mend: --rescale\)", plan, re.MULTILINE
    )
    out = told(capsys, 0, "predict", "half", "fine.ome.tif", "--device", "cpu", "--rescale", "-o", "o.ome.zarr")
    assert "rescale  y 200 -> 26, x 210 -> 27 for the network" in out
    assert "note" not in out
    assert vz.open_image("o.ome.zarr").sizes == {"y": 200, "x": 210}
    assert vz.open_image("o.ome.zarr").pixel_size.x == pytest.approx(0.065)


def test_two_inputs_and_two_outputs(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--input NAME=IMAGE; several arrays are listed with how to open each, in both formats."""
    line = ["predict", "two_images", "plane.ome.tif", "--device", "cpu", "--input", "mask=bare.tif"]
    assert "input    mask: bare.tif" in told(capsys, 0, *line, "-o", "a.ome.zarr")
    out = told(capsys, 0, "predict", "two_outputs", "plane.ome.tif", "--device", "cpu", "-o", "b.ome.zarr")
    for name in ("probability", "distance"):
        assert f'open     Python: voidzoo.open_image("b.ome.zarr/{name}").to_xarray()' in out
        assert vz.open_image(f"b.ome.zarr/{name}").axes.endswith("yx")
    out = told(capsys, 0, "predict", "two_outputs", "plane.ome.tif", "--device", "cpu", "-o", "b.ome.tif")
    for i, name in enumerate(("probability", "distance")):
        assert f'open     Python: voidzoo.open_image("b.ome.tif", series={i}).to_xarray()   {name}' in out
        assert vz.open_image("b.ome.tif", series=i).axes.endswith("yx")


def test_precision_and_tolerance_are_told(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both numbers stand in the plan and in its JSON."""
    line = ["plan", "p2", "fine.ome.tif", "--device", "cpu", "--precision", "fp16", "--tolerance", "1e-3"]
    text = told(capsys, 0, *line)
    assert re.search(r"^device .* fp16$", text, re.MULTILINE)
    assert re.search(r"^note +float16 differs from float32 by up to \S+ of the output's std", text, re.MULTILINE)
    assert re.search(r"^note .*exact (one|halo) is used", text, re.MULTILINE)
    facts = json.loads(told(capsys, 0, *line, "--json"))
    assert facts["precision_error"] > 0
    assert facts["halo_facts"]["tolerance"] == 1e-3
    assert facts["choices"] == {"precision": "fp16", "tolerance": 1e-3}
    assert all(note in text for note in facts["notes"])


def test_plan_takes_the_line_of_predict(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of predict may stand behind plan, so that the word alone is to be changed; nothing is written."""
    before = sorted(p.name for p in at.iterdir())
    every = ["--only", "z=1", "--skip-below", "5", "--sample", "plane", "--memory", "4GB", "--tile", "64,64", "--block",
             "32,64", "--dtype", "float32", "--allow-nan", "--trust-code", "--level", "0", "--precision", "fp32",
             "--overwrite", "--skip-failed", "--preview", "-q", "--scheduler", "threads", "--ome-zarr", "0.4", "--log",
             "l.jsonl", "--device", "cpu", "-o", "o.ome.zarr"]  # fmt: skip
    assert "Nothing was written" in told(capsys, 0, "plan", "p2", "stack.ome.tif", *every)
    assert sorted(p.name for p in at.iterdir()) == before
    options = {verb: set(re.findall(r"--[a-z-]+", told(capsys, 0, verb, "--help"))) for verb in ("plan", "predict")}
    assert options["predict"] - options["plan"] <= {"--skip-failed", "--preview", "--log", "--quiet"}
    for word in options["predict"] - options["plan"] - {"--log"}:
        told(capsys, 0, "plan", "p2", "plane.ome.tif", "--device", "cpu", word)


def test_help_is_one_screen_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    """80 columns: one line an option (but for -o, which is required), at most 50 lines, by what they are about."""
    for verb in ("plan", "predict"):
        text = told(capsys, 0, verb, "--help")
        lines = text.splitlines()
        assert len(lines) <= 50
        assert max(map(len, lines)) <= 80
        groups = re.findall(r"^╭─ (\w+) ", text, re.MULTILINE)
        assert groups == ["Options", "Image", "Model", "Part", "Machine"]
        rows = [t for t in lines if t.startswith("│")]
        assert len([t for t in rows if "--" in t]) >= len(rows) - (verb == "predict")


# --- users.md, section 5: what is refused, word for word


def refusal(capsys: pytest.CaptureFixture[str], *line: object) -> str:
    """What both verbs say; predict leaves nothing."""
    before = sorted(p.name for p in Path().iterdir())
    plan = told(capsys, 2, "plan", *line, "--device", "cpu")
    predict = told(capsys, 2, "predict", *line, "-o", "o.ome.zarr", "--device", "cpu")
    assert plan == predict
    assert sorted(p.name for p in Path().iterdir()) == before
    return plan


REFUSED = [
    (["p2", "colour.ome.tif"], "error: test p2 takes 1 channel; colour.ome.tif has 3: DAPI, GFP, BF.\n"
     "  mend:  --channel DAPI   or  --channel all  (each by itself)\n"),
    (["p2", "colour.ome.tif", "--channel", "dapi"], "error: colour.ome.tif has no channel 'dapi'.\n"
     "  mend:  --channel DAPI or GFP or BF\n"),
    (["p3", "plane.ome.tif"], "error: test p3 needs z, y, x; plane.ome.tif is y 90, x 100.\n"
     "  mend:  a model for 2D images\n"),
    (["p2", "stack.ome.tif", "--tile", "70,65"], "error: tile 65 along x does not suit this model: sides must be "
     "multiples of 2 and leave room for a halo of 8.\n  mend:  64 or 66\n"),
    (["p2", "stack.ome.tif", "--only", "z=2:9"], "error: --only z=2:9 is not a part of z 0:4.\n  mend:  --only z=2:4\n"),
    (["p2", "stack.ome.tif", "--only", "q=2"], "error: --only q: stack.ome.tif is done along z, y, x.\n"
     "  mend:  e.g. --only z=0:2\n"),
    (["p2", "stack.ome.tif", "--mask", "small.ome.tif"], "error: --mask small.ome.tif has y 80; stack.ome.tif has y 90.\n"
     "  where: y 80, x 100 on z 4, y 90, x 100\n  mend:  a mask of the image's size; one plane does for a whole stack\n"),
    (["p2", "plane.ome.tif", "--sample", "series"], "error: --sample series: test p2 reads y x at once, and plane.ome.tif "
     "is y 90, x 100.\n  mend:  --sample plane or image\n"),
    (["two_images", "plane.ome.tif"], "error: two images takes 2 inputs; mask is missing.\n  mend:  --input mask=IMAGE\n"),
    (["two_images", "plane.ome.tif", "--input", "mask=small.ome.tif"], "error: input mask of two images needs y 90; "
     "small.ome.tif has y 80.\n  mend:  an image of y 90, x 100\n"),
    (["two_images", "plane.ome.tif", "--input", "small.ome.tif"], "error: --input 'small.ome.tif': NAME=IMAGE is needed.\n"
     "  mend:  --input guide=guide.tif\n"),
    (["half", "bare.tif", "--rescale"], "error: bare.tif does not say how large its pixels are along y, x.\n"
     "  mend:  --pixel-size 0.5,0.5  (um, y,x)\n"),
    (["p2", "plane.ome.tif", "--rescale"], "error: test p2 does not say at which pixel size it was trained.\n"
     "  mend:  leave --rescale out\n"),
    (["half", "fine.ome.tif", "--rescale", "--only", "y=0:9"], "error: --only names pixels of the image, which --rescale "
     "changes.\n  mend:  leave one of them out\n"),
    (["p2", "plane.ome.tif", "--precision", "fp8"], "error: there is no precision 'fp8'.\n  mend:  --precision fp32, fp16 or bf16\n"),
    (["torchscript", "colour.ome.tif"], "error: torchscript takes 2 channels (raw0, raw1); colour.ome.tif has 3: DAPI, GFP, "
     "BF.\n  mend:  an image with these channels in this order\n"),
    (["p2", "plane.ome.tif", "--tolerance", "2"], "error: --tolerance 2 is no error in units of the result's std: 0 (exact) "
     "to below 1.\n  mend:  --tolerance 1e-3\n"),
    (["p2", "plane.ome.tif", "--level", "2"], "error: plane.ome.tif has no pyramid, so no level 2.\n"
     "  mend:  leave --level out\n"),
    (["p2", "bare.tif", "--axes", "zyx"], "error: --axes zyx names 3 axes, but bare.tif has 2: 90 x 100.\n"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text"), REFUSED, ids=[" ".join(line) for line, _ in REFUSED])
def test_refusals_word_for_word(at: Path, capsys: pytest.CaptureFixture[str], line: list[str], text: str) -> None:
    """What, where and mend, exit 2, the same from plan and predict; nothing is left behind."""
    said = refusal(capsys, *line)
    assert said.startswith(text) if line[-1] == "zyx" else said == text


def test_packages_without_weights_that_run(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only TensorFlow: what it offers is named. Changed weights: both checksums are."""
    import shutil

    shutil.copytree(Path("p2").resolve(), "tf")
    described = yaml.safe_load(Path("tf/rdf.yaml").read_text())
    bundle = described["weights"].pop("onnx")
    described["weights"] = {"tensorflow_saved_model_bundle": {**bundle, "tensorflow_version": "2.9.0"}}
    Path("tf/rdf.yaml").write_text(yaml.safe_dump(described))
    text = refusal(capsys, "tf", "plane.ome.tif")
    assert "this model has no ONNX weights; it offers: tensorflow_saved_model_bundle." in text
    shutil.copytree(Path("p2").resolve(), "changed")
    with Path("changed/weights.onnx").open("ab") as file:
        file.write(b"!")
    text = refusal(capsys, "changed", "plane.ome.tif")
    assert re.search(r"error: changed is not what was exported: weights\.onnx has sha256 \w+.*rdf\.yaml says \w+", text)


def test_results_that_a_format_cannot_hold(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """plan -o says what predict would: a dtype that TIFF has not, a version of OME-Zarr that there is not."""
    for verb in ("plan", "predict"):
        text = told(capsys, 2, verb, "p2", "plane.ome.tif", "--device", "cpu", "-o", "o.ome.tif", "--dtype", "int64")
        assert text == "error: OME-TIFF has no int64.\n  mend:  --dtype uint16, or a result that ends in .ome.zarr\n"
        text = told(capsys, 2, verb, "p2", "plane.ome.tif", "--device", "cpu", "-o", "o.ome.zarr", "--ome-zarr", "0.6")
        assert text.startswith("error: there is no OME-Zarr 0.6 here.\n")
    assert not any(p.name.startswith("o.") for p in at.iterdir())


def test_another_plan_at_the_same_place(at: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each option that changes the result makes another plan, which is told by name and not mixed with the first."""
    line = ["p2", "stack.ome.tif", "--device", "cpu", "-o", "o.ome.zarr"]
    told(capsys, 0, "predict", *line)
    for more, word in ((["--only", "z=1"], "only"), (["--skip-below", "7"], "skip_below"), (["--dtype", "float32"], "dtype"),
                       (["--mask", "plane.ome.tif"], "mask"), (["--precision", "fp16"], "precision"),
                       (["--tile", "64,64"], "tile")):  # fmt: skip
        for verb in ("plan", "predict"):
            text = told(capsys, 2, verb, *line, *more)
            assert text.startswith("error: o.ome.zarr was begun with another plan.\n  where: "), more
            assert word in text
            assert "mend:  continue it with the first, choose another -o, or --overwrite" in text
    same = told(capsys, 0, "plan", *line, "--sample", "volume")
    assert "note     test p2 measures nothing of the image: --sample changes nothing" in same
    told(capsys, 0, "plan", *line, "--only", "z=1", "--overwrite")
    told(capsys, 0, "predict", *line, "--only", "z=1", "--overwrite")
    assert vz.open_image("o.ome.zarr").sizes == {"z": 1, "y": 90, "x": 100}
