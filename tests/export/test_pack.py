"""A run becomes a package that bioimageio.core accepts; what is not proved never lies at OUT."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image as Pillow

import voidzoo as vz
from tests.export.tiny import SETTINGS, tiny_run
from tests.packages import micrograph
from tests.small_disk import SmallDisk
from voidzoo.cli import main as command
from voidzoo.export import pack, portable, proof
from voidzoo.export.about import About, suggest_name
from voidzoo.export.consumers import verdicts
from voidzoo.export.describe import channel_ids
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import OutputError, PackageError, ProofFailed, RecipeError
from voidzoo.zoo.package import AxisRule


@pytest.fixture
def no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out bioimageio.core's own test, which takes seconds, where something else is proved."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))


def unzipped(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.usefixtures("no_consumer")
def test_the_description_is_the_portable_profile(run: vz.Run, tmp_path: Path) -> None:
    """rdf.yaml has every field that Fiji, ilastik and QuPath need, in the form that they read, and no other form."""
    out = tmp_path / "deep" / "m.zip"
    package = vz.export(run, out, name="n2v cells (v1)", authors=["Ada Ito"], license="CC-BY-4.0", description="Cells.")
    files = unzipped(out)
    assert set(files) == {
        "rdf.yaml", "README.md", "cover.png", "network.py", "weights.onnx", "weights.torchscript.pt", "weights.pt",
        "test_input.npy", "test_output.npy", "sample_input.tif", "sample_output.tif",
    }  # fmt: skip
    for end in ("input", "output"):
        test = np.load(io.BytesIO(files[f"test_{end}.npy"]))
        assert np.array_equal(tifffile.imread(io.BytesIO(files[f"sample_{end}.tif"])), test[0, 0])
    rdf = yaml.safe_load(files["rdf.yaml"])
    assert rdf["format_version"] == "0.5.4"
    assert rdf["documentation"] == "README.md"
    assert rdf["covers"] == ["cover.png"]
    with Pillow.open(io.BytesIO(files["cover.png"])) as picture:
        assert picture.size == (256, 256)
    assert len(files["cover.png"]) < 500_000
    assert "## Validation" in files["README.md"].decode()
    assert "id" not in rdf
    assert rdf["config"]["bioimageio"]["nickname"] == "n2v-cells-v1"
    assert (rdf["name"], rdf["license"], rdf["description"]) == ("n2v cells (v1)", "CC-BY-4.0", "Cells.")
    assert rdf["authors"] == [{"name": "Ada Ito"}]
    assert {"denoising", "2d", "noise2void"} <= set(rdf["tags"])

    tensor_in, tensor_out = (rdf[k][0] for k in ("inputs", "outputs"))
    assert not ({"preprocessing", "postprocessing"} & (set(tensor_in) | set(tensor_out)))
    assert [a.get("id", a["type"]) for a in tensor_in["axes"]] == ["batch", "channel", "y", "x"]
    assert [a.get("id", a["type"]) for a in tensor_out["axes"]] == ["batch", "channel", "y", "x"]
    assert "size" not in tensor_in["axes"][0]
    for i, letter in ((2, "y"), (3, "x")):
        size, axis = tensor_in["axes"][i]["size"], tensor_out["axes"][i]
        assert size["step"] == 4, "depth 2"
        assert size["min"] % size["step"] == 0
        assert size["min"] > 2 * axis["halo"]
        assert axis["halo"] == 24, "the receptive radius of depth 2, rounded up"
        assert axis["size"] == {"tensor_id": "input", "axis_id": letter}
    weights = rdf["weights"]
    made = weights["pytorch_state_dict"]["architecture"]
    for entry in (tensor_in["test_tensor"], tensor_out["test_tensor"], *weights.values(), made):
        assert entry["sha256"] == hashlib.sha256(files[entry["source"]]).hexdigest()
    assert rdf["weights"]["onnx"]["opset_version"] == 17
    assert [weights[k].get("parent") for k in ("pytorch_state_dict", "torchscript", "onnx")] == [
        None, "pytorch_state_dict", "pytorch_state_dict"
    ]  # fmt: skip
    imported = {
        n.split(".")[0] for n in re.findall(r"^(?:from|import) (\S+)", files["network.py"].decode(), re.MULTILINE)
    }
    assert imported <= {"__future__", "itertools", "typing", "collections", "torch"}, "no library but torch"
    ours = rdf["config"]["voidzoo"]
    assert ours["kinds"] == ["intensity"]
    assert ours["seed"] == run.recipe.seed
    assert vz.Recipe.make(ours["recipe"]) == run.recipe, "the whole recipe can be taken from the package"
    assert json.loads(json.dumps(ours["training"]["normalisation"])) == run.info["normalisation"]
    assert (package.name, package.axes, package.kinds) == ("n2v cells (v1)", "yx", ("intensity",))
    assert package.pixel_size == {}
    assert not list(out.parent.glob("*.part*"))


@pytest.mark.usefixtures("no_consumer")
def test_the_pixel_size_of_the_training_is_told_in_the_words_of_the_format(tmp_path: Path) -> None:
    """um, on the axes that have one, of input and output; whoever resamples by it finds it there."""
    pixels = micrograph(np.random.default_rng(), (96, 116))
    image = vz.open_image(pixels, axes="yx", pixel_size={"y": 0.25, "x": 0.5})
    recipe = vz.Recipe.guess("n2v", image, patch=[32, 32], **SETTINGS)
    package = vz.export(vz.train(recipe, image, tmp_path / "run", device="cpu"), tmp_path / "m.zip")
    for tensor in ("inputs", "outputs"):
        axes = package.rdf[tensor][0]["axes"]
        assert [(a.get("unit"), a.get("scale")) for a in axes] == [
            (None, None), (None, None), ("micrometer", 0.25), ("micrometer", 0.5)
        ]  # fmt: skip
    assert package.plain
    assert package.pixel_size == {"y": 0.25, "x": 0.5}


CASES: dict[str, dict[str, Any]] = {
    "2d": {"shape": (96, 116), "axes": "yx"},
    "3d": {"shape": (16, 64, 72), "axes": "zyx", "dims": 3, "filters": 2},
    "2-channels": {"shape": (2, 96, 80), "axes": "cyx"},
    "2-channels-shared": {"shape": (2, 96, 80), "axes": "cyx", "channels": "shared"},
    "n2v2": {"shape": (96, 116), "axes": "yx", "method": "n2v2"},
    "n2v2-3d": {"shape": (16, 64, 72), "axes": "zyx", "dims": 3, "filters": 2, "method": "n2v2", "kernel": [3, 5, 5]},
    "structn2v": {"shape": (96, 116), "axes": "yx", "method": "structn2v", "blind_mask": "1x9"},
    "care": {"shape": (96, 116), "axes": "yx", "method": "care"},
}


# in a process of its own: bioimageio.spec leaves zip files open, which would be a warning here
VALIDATE = """
import json, os, sys
os.environ["BIOIMAGEIO_PERFORM_IO_CHECKS"] = "false"
from bioimageio import spec
described = spec.load_model_description(sys.argv[1], format_version="latest")
summary = spec.load_description(sys.argv[1], format_version="discover").validation_summary
print(json.dumps([summary.status, described.name, sum(len(d.errors) for d in summary.details)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bioimageio_accepts_what_we_write(case: str, tmp_path: Path) -> None:
    """bioimageio.spec finds the format valid, bioimageio.core's test passes, and its prediction is ours."""
    settings = dict(CASES[case])
    run = tiny_run(tmp_path / "run", settings.pop("shape"), settings.pop("axes"), **settings)
    checks: list[Check] = []
    package = vz.export(run, tmp_path / "m.zip", license="MIT", authors=["A. B."], watch=checks.append)
    names = ["onnx", "torch", "torchscript", "state dict", "whole", "onnx file", "bioimageio.core"]
    assert [c.name.split(" = ")[0].split(" 0")[0] for c in checks] == names
    assert all(c.ran for c in checks)
    away = {v.consumer for v in verdicts(package) if v.answer != "yes"}
    assert away == ({"careamics", "qupath"} if "3d" in case else {"careamics"}), "as the README says"
    assert all(c.passed for c in checks)
    assert checks[-1].detail.startswith("status passed, ")

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", VALIDATE, str(tmp_path / "m.zip")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["valid-format", package.name, 0]
    x, y = proof.test_tensors(package)
    assert x.shape == y.shape
    assert len(package.channels_in) == (2 if case.startswith("2-channels") else 1)
    image = vz.open_image(x[0], axes="c" + package.axes)
    channel = None if len(package.channels_in) > 1 else 0
    found = vz.predict(package, image.read(), axes="c" + package.axes, channel=channel, dtype="float32", device="cpu")
    assert np.abs(found - y[0]).max() <= 1e-4 * y.std()


@pytest.mark.usefixtures("no_consumer")
def test_results_on_another_scale_are_not_rounded_to_the_images_dtype(tmp_path: Path) -> None:
    """CARE to targets around 0: the package does not say intensity, so that its result stays float32."""
    package = vz.export(tiny_run(tmp_path / "run", method="care"), tmp_path / "care.zip")
    x = proof.test_tensors(package)[0][0, 0].astype(np.uint16)
    found = vz.predict(package, x, axes="yx", device="cpu")
    assert found.dtype == np.float32
    assert len(np.unique(found)) > 1000
    assert abs(found.mean()) < 20
    plain = vz.export(tiny_run(tmp_path / "n2v"), tmp_path / "n2v.zip")
    assert vz.predict(plain, x, axes="yx", device="cpu").dtype == np.uint16


def corrupt(data: bytes) -> bytes:
    """The graph with one weight changed by 1 percent of the weights' size."""
    model = onnx.load_from_string(data)
    weights = max(model.graph.initializer, key=lambda t: numpy_helper.to_array(t).ndim * 1000 + t.dims[0])
    values = numpy_helper.to_array(weights).copy()
    values.flat[np.random.default_rng().integers(values.size)] += 0.05 + np.abs(values).max()
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    return model.SerializeToString()


@pytest.mark.usefixtures("no_consumer")
def test_an_onnx_file_that_old_programs_do_not_read_is_noticed(run: vz.Run, tmp_path: Path) -> None:
    """A newer file version in a package of ours fails its proof; of a network of others it is told."""
    vz.export(run, tmp_path / "m.zip")
    files = unzipped(tmp_path / "m.zip")
    model = onnx.load_from_string(files["weights.onnx"])
    model.ir_version = 9
    files["weights.onnx"] = model.SerializeToString()
    rdf = yaml.safe_load(files["rdf.yaml"])
    rdf["weights"]["onnx"]["sha256"] = hashlib.sha256(files["weights.onnx"]).hexdigest()
    for name, fails in (("ours", True), ("others", False)):
        if not fails:
            rdf["config"].pop("voidzoo")
        files["rdf.yaml"] = yaml.safe_dump(rdf).encode()
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for file, data in files.items():
                archive.writestr(file, data)
        (told,) = [c for c in checks_of(tmp_path / f"{name}.zip") if c.name == "onnx file"]
        assert told.passed != fails
        assert "opset 17, IR 9; Fiji reads opset 17, IR 8" in told.detail


def checks_of(path: Path) -> list[Check]:
    """Those of a proof, whatever comes of it."""
    checks: list[Check] = []
    with contextlib.suppress(ProofFailed):
        proof.prove(vz.open_package(path), None, path.with_suffix(".failed"), checks.append)
    return checks


@pytest.mark.usefixtures("no_consumer")
def test_one_wrong_weight_is_noticed_and_nothing_is_written(
    run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX unlike torch in a single weight: ProofFailed, the differing tensors kept, no package, no half of one."""
    honest = pack.to_onnx
    monkeypatch.setattr(pack, "to_onnx", lambda *a: corrupt(honest(*a)))
    out, checks = tmp_path / "m.zip", []
    with pytest.raises(ProofFailed, match="is not proved: onnx = test output: max difference") as caught:
        vz.export(run, out, watch=checks.append)
    assert [c.passed for c in checks] == [False] * 5 + [True] * 2, "whatever is compared with torch differs"
    assert checks[0].difference > proof.LIMIT
    kept = sorted(p.name for p in (tmp_path / "m.failed").iterdir())
    pairs = ("onnx-test-output", "state-dict-onnx", "torch-onnx", "torchscript-onnx", "whole-tiled")
    assert kept == [f"{p}-{which}" for p in pairs for which in ("difference.png", "expected.npy", "found.npy")]
    expected, found = (np.load(tmp_path / "m.failed" / name) for name in kept[1:3])
    assert np.abs(expected - found).max() / expected.std() == pytest.approx(checks[0].difference, rel=1e-4)
    assert str(tmp_path / "m.failed") in caught.value.where
    assert [p.name for p in tmp_path.iterdir()] == ["m.failed"]
    assert caught.value.exit_code == 1

    monkeypatch.undo()
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    vz.export(run, out)
    assert [p.name for p in tmp_path.iterdir()] == ["m.zip"], "a later success takes the tensors away"


@pytest.mark.usefixtures("no_consumer")
def test_files_of_others_beside_the_package_stay(run: vz.Run, tmp_path: Path) -> None:
    """Whatever they are called, and whatever has room in a folder called as ours."""
    (tmp_path / "m.part.zip").write_text("precious")
    (tmp_path / "m.failed").mkdir()
    for name in ("notes.txt", "torch-onnx-found.npy"):
        (tmp_path / "m.failed" / name).write_text("precious")
    vz.export(run, tmp_path / "m.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.failed", "m.part.zip", "m.zip"]
    assert [p.name for p in (tmp_path / "m.failed").iterdir()] == ["notes.txt"], "tensors of an earlier proof go"
    with pytest.raises(OutputError, match="cannot be made"):
        vz.export(run, tmp_path / "m.zip" / "n.zip")


@pytest.mark.usefixtures("no_consumer")
@pytest.mark.parametrize(("form", "name"), [("to_torchscript", "torchscript"), ("state_dict", "state dict")])
def test_one_form_of_the_weights_that_differs_is_named(
    form: str, name: str, run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others agree; a picture shows what, where and how much differs."""
    honest = getattr(pack, form)

    def other(network: Any, *trace: Any) -> bytes:
        changed = copy.deepcopy(network)
        changed.mean_out += 0.05 * changed.std_out
        return bytes(honest(changed, *trace))

    monkeypatch.setattr(pack, form, other)
    checks: list[Check] = []
    with pytest.raises(ProofFailed, match=f"is not proved: {name} = onnx: max difference"):
        vz.export(run, tmp_path / "m.zip", watch=checks.append)
    assert [c.name for c in checks if not c.passed] == [f"{name} = onnx"]
    word = name.replace(" ", "-")
    with Pillow.open(tmp_path / "m.failed" / f"{word}-onnx-difference.png") as picture:
        assert min(picture.size) >= 64
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.usefixtures("no_consumer")
def test_a_full_disk_leaves_no_half_package(run: vz.Run, small_disk: SmallDisk) -> None:
    small_disk.resize("40k")
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        vz.export(run, small_disk.folder / "m.zip")
    assert list(small_disk.folder.iterdir()) == []
    small_disk.resize("6m")
    vz.export(run, small_disk.folder / "m.zip")
    assert [p.name for p in small_disk.folder.iterdir()] == ["m.zip"]


@pytest.mark.usefixtures("no_consumer")
def test_code_of_others_is_left_out_and_told(run: vz.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An architecture file that is not ours, byte by byte, runs only after --trust-code."""
    vz.export(run, tmp_path / "m.zip")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        archive.extractall(tmp_path / "m")
    code = tmp_path / "m" / "network.py"
    code.write_text(code.read_text() + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n")
    rdf = yaml.safe_load((tmp_path / "m" / "rdf.yaml").read_text())
    made = rdf["weights"]["pytorch_state_dict"]["architecture"]
    made["sha256"] = hashlib.sha256(code.read_bytes()).hexdigest()
    (tmp_path / "m" / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    for words, there in (((), False), (("--trust-code",), True)):
        assert command(["check", str(tmp_path / "m"), *words]) == 0
        line = next(s for s in capsys.readouterr().out.splitlines() if "state dict" in s)
        assert line.endswith("ok" if there else "left out")
        assert (tmp_path / "ran").exists() == there


@pytest.mark.usefixtures("no_consumer")
def test_a_halo_that_is_too_small_is_noticed(run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half the halo, tiles and whole differ, and only there does the proof fail."""
    monkeypatch.setattr(pack, "axis_rules", lambda _g: {a: AxisRule(64, 4, 8) for a in "yx"})
    checks: list[Check] = []
    with pytest.raises(ProofFailed, match=r"whole = tiled: max difference .* halo y 8, x 8"):
        vz.export(run, tmp_path / "m.zip", watch=checks.append)
    assert [c.passed for c in checks] == [True] * 4 + [False, True, True]
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.slow
def test_what_the_consumer_refuses_is_not_proved(run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A description that bioimageio.core does not take fails the proof, with its words."""
    honest = portable.describe
    monkeypatch.setattr(portable, "describe", lambda *a: honest(*a).replace("timestamp: ", "timestamp: once "))
    with pytest.raises(ProofFailed, match=r"bioimageio.core .*status failed"):
        vz.export(run, tmp_path / "m.zip")
    assert not (tmp_path / "m.zip").exists()


@pytest.mark.usefixtures("no_consumer")
def test_places_that_are_refused(run: vz.Run, tmp_path: Path) -> None:
    """An existing file is kept unless told otherwise; other endings, folders and what is no run are named."""
    taken = tmp_path / "m.zip"
    taken.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"m\.zip exists(.|\n)*--overwrite"):
        vz.export(run, taken)
    assert taken.read_bytes() == b"precious"
    with pytest.raises(OutputError, match=r"a package is a \.zip(.|\n)*-o .*m\.zip"):
        vz.export(run, tmp_path / "m")
    (tmp_path / "f.zip").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        vz.export(run, tmp_path / "f.zip", overwrite=True)
    with pytest.raises(OutputError, match="is no run folder"):
        vz.export(tmp_path, tmp_path / "n.zip")
    vz.export(run, taken, overwrite=True)
    assert zipfile.is_zipfile(taken)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "a/b"}, r"name: 'a/b' cannot be; it must be 5 to 64 letters.*'model-a-b'"),
        ({"name": "x" * 65}, r"5 to 64"),
        ({"license": "CC-BY"}, r"license: 'CC-BY' cannot be; it must be an SPDX id \(did you mean CC-BY.*CC-BY-4.0"),
        ({"authors": ["A/B"]}, r"authors\[0\].name: 'A/B' cannot be; it must be a name without slashes"),
        ({"description": "word " * 200}, r"at most 512 letters; it has 999"),
    ],
)
def test_words_that_the_format_does_not_take_are_refused_before_the_work(
    run: vz.Run, tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    """Name, licence, authors and description are checked in words, not by a failed proof."""
    with pytest.raises(RecipeError, match=text):
        vz.export(run, tmp_path / "m.zip", **settings)
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=90))
def test_a_suggested_name_is_legal(text: str) -> None:
    """The mend of a refused name can be pasted, whatever the name was."""
    assert About(name=suggest_name(text)).name


@given(
    st.lists(st.text(max_size=12) | st.sampled_from(["a", "a_1", "a_2", "in", "lambda", "DAPI 405", "µ"]), max_size=8)
)
def test_channel_ids_are_identifiers_and_unique(names: list[str]) -> None:
    """Whatever a microscope calls its channels, the format takes what we write."""
    from keyword import iskeyword

    found = channel_ids(names)
    assert len(found) == len(names) == len(set(found))
    assert all(w.isidentifier() and w.isascii() and not iskeyword(w) for w in found)


@pytest.mark.usefixtures("no_consumer")
def test_best_and_last_weights_are_what_they_say(tmp_path: Path) -> None:
    """`which` chooses the weights file of the run that is exported."""
    import torch

    run = tiny_run(tmp_path / "run")
    weights = torch.load(run.folder / "last.pt", weights_only=True)
    torch.save({k: v + 0.01 if v.is_floating_point() else v for k, v in weights.items()}, run.folder / "last.pt")
    x = np.random.default_rng().uniform(0, 900, (40, 44)).astype(np.float32)
    results = {}
    for which in ("best", "last"):
        package = vz.export(run, tmp_path / f"{which}.zip", which=which)
        results[which] = vz.predict(package, x, axes="yx", device="cpu")
        reference = pack.denoiser_of(run.network(which), run.normalisation)
        package_x, package_y = proof.test_tensors(package)
        expected = pack.evaluate(reference, package_x)
        assert np.abs(package_y - expected).max() <= 1e-5 * expected.std()
    assert np.abs(results["best"] - results["last"]).max() > 0


@pytest.mark.usefixtures("no_consumer")
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"no array", "no array of numbers"),
        (np.zeros(3), r"has the shape \(3,\); batch, 1 channels, y, x are needed"),
        (np.zeros((1, 2, 64, 64)), r"\(1, 2, 64, 64\)"),
        (np.zeros((1, 1, 32, 64)), "the test input has the shape"),
    ],
)
def test_a_test_tensor_that_is_none_is_a_fault_of_the_package(
    run: vz.Run, tmp_path: Path, content: bytes | np.ndarray, text: str
) -> None:
    """`check` says what is wrong with the test tensors of a package instead of falling over them."""
    vz.export(run, tmp_path / "m.zip")
    files = unzipped(tmp_path / "m.zip")
    files["test_output.npy"] = content if isinstance(content, bytes) else portable.npy(content)
    for name, data in files.items():
        (tmp_path / "p").mkdir(exist_ok=True)
        (tmp_path / "p" / name).write_bytes(data)
    with pytest.raises(PackageError, match=text):
        proof.prove(vz.open_package(tmp_path / "p"), None, tmp_path / "keep")
