"""Packages of others become portable ones that give the same numbers; what cannot become one is refused in words."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from PIL import Image as Pillow

import voidzoo as vz
from tests.model_zoo import MODELS, Model, file, plane, step, torchscript, write
from tests.onnx_net import normalised, two_convs
from tests.test_model_zoo import CORE
from tests.whole_image import Design, In, Out, arrays_order
from voidzoo.cli import main as command
from voidzoo.export import convert as converting
from voidzoo.export import proof
from voidzoo.export.convert import convert
from voidzoo.export.onnx_file import modernised
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import OutputError, PackageError, ProofFailed
from voidzoo.zoo.package import Package, open_package


@pytest.fixture(autouse=True)
def no_consumer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out bioimageio.core's own test, which takes seconds, but in the one test that is about it."""
    if "taken_by_bioimageio" not in request.node.name:
        monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))


PETABYTES = b"\x93NUMPY\x01\x00\x76\x00" + (
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1000000000, 1000000), }".ljust(117) + b"\n"
)
"""A .npy whose header promises more than there is memory anywhere."""
REFUSED = {
    "two_images": "2 inputs and 1 outputs", "half_size_input": "2 inputs", "two_outputs": "1 inputs and 2 outputs",
    "indexed": "has the axis index", "after_scale_range_reference": "asks for scale_range",
    "after_scale_range": "asks for scale_range", "after_scale_mean_variance": "asks for scale_mean_variance",
    "after_zero_mean": "asks for zero_mean_unit_variance", "state_dict": "a state dict alone(.|\n)*voidzoo pack",
}  # fmt: skip
"""What the profile cannot hold, and what is said of it. All other packages are converted."""
DECLARED = {
    "old_04": ["ensure_dtype", "scale_range"], "old_03": ["ensure_dtype", "scale_range"],
    "before_zero_mean": ["ensure_dtype", "zero_mean_unit_variance"],
    "before_zero_mean_each": ["ensure_dtype", "zero_mean_unit_variance"],
    "before_scale_range": ["ensure_dtype", "scale_range"], "before_scale_range_minmax": ["ensure_dtype", "scale_range"],
    "before_scale_range_clip": ["ensure_dtype", "scale_range"], "before_clip_percentiles": ["ensure_dtype", "clip"],
}  # fmt: skip
"""What stays outside of the network, because it measures the image; everywhere else nothing does."""
FREED = {"fixed_64": (5, 1), "fixed_pooled": (48, 2), "old_04_fixed": (5, 1)}
"""Fixed sizes that the graph does not need: the smallest along x, and the step."""
QUICK = ("before_scale_linear_each",)
TAKEN = (
    "anisotropic",
    "channels_last",
    "fixed_pooled",
    "two_files",
    "old_04",
    "old_03",
    "after_softmax",
    "torchscript",
)
"""One of each kind, for bioimageio.core's own test, which takes ten seconds."""


def test_the_table_names_packages_that_exist() -> None:
    """A renamed package would be left out of the table silently."""
    assert {*REFUSED, *DECLARED, *FREED, *QUICK, *TAKEN} <= set(MODELS)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_portable_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    """One sentence why, and a line that helps; nothing is written."""
    model = MODELS[name](tmp_path)
    with pytest.raises(PackageError, match=REFUSED[name]) as caught:
        vz.convert(model.path, tmp_path / "new.zip")
    assert "voidzoo p" in caught.value.mend, "predict runs it as it is, pack takes its network"
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize("name", QUICK)
def test_a_converted_package_gives_what_the_old_one_gives(name: str, tmp_path: Path) -> None:
    _convert_and_compare(MODELS[name](tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MODELS if n not in (*REFUSED, *QUICK, *TAKEN)])
def test_any_package_gives_the_same(name: str, tmp_path: Path) -> None:
    """As above for all of them."""
    _convert_and_compare(MODELS[name](tmp_path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN)
def test_new_packages_are_taken_by_bioimageio(name: str, tmp_path: Path) -> None:
    """As above, and bioimageio.core's own test of the new one says passed."""
    checks = _convert_and_compare(MODELS[name](tmp_path), tmp_path)
    assert checks[-1].detail.startswith("status passed")


def _convert_and_compare(model: Model, folder: Path) -> list[Check]:
    """The new package's ONNX alone, in plain onnxruntime, gives what numpy's oracle says of the old one."""
    checks: list[Check] = []
    package = convert(model.path, folder / "new.zip", watch=checks.append)
    name, space = model.name, package.axes
    assert checks[0].name == "source = new"
    assert all(c.passed for c in checks)
    inner, outer = package.inputs[0], package.outputs[0]
    assert (inner.letters, outer.letters) == ("bc" + space,) * 2
    assert [s.name for s in inner.steps] == DECLARED.get(name, [])
    assert not outer.steps
    rdf = package.rdf
    assert (rdf["format_version"], rdf["documentation"], rdf["license"]) == ("0.5.4", "README.md", "CC0-1.0")
    assert all(isinstance(c, str) for c in rdf["covers"])
    assert "id" not in rdf
    assert rdf["authors"] == [{"name": "Ada Ito", "github_user": "octocat"}]
    assert rdf["cite"] == [{"text": "none", "doi": "10.1000/182"}]
    assert package.ours["source"]["sha256"] == open_package(model.path).sha256
    graph = onnx.load_model_from_string(package.onnx())
    assert ([o.version for o in graph.opset_import if not o.domain], graph.ir_version) == ([17], 8)
    rule = package.rules["x"]
    if name in FREED:
        assert (rule.minimum, rule.step, rule.fixed) == (*FREED[name], False)
    if name in DECLARED:
        return checks
    grown = {a: r.minimum + 3 * r.step for a, r in package.rules.items()}
    images = model.images(np.random.default_rng(), model.legal if name in FREED else grown)  # the old one has one size
    x = _channels_first(images[model.main].astype(np.float32), model.letters[model.main], space)
    session = ort.InferenceSession(package.onnx(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": x[None]})[0][0]
    out = model.design.outputs[0]
    expected = _channels_first(model.oracle(images)[out.id], model.letters[out.id], space)
    lead = [int(model.lead.get(a, 0) * model.ratio(out.id)) for a in "c" + space]
    expected = expected[tuple(slice(n, -n or None) for n in lead)]  # the graph returns no more than it computes
    assert found.shape == expected.shape
    if "binarize" in name:
        # rounding decides at the threshold: of a thousand pixels one in some thousand runs, of a small image, too
        assert np.count_nonzero(found != expected) <= max(2, found.size // 1000)
    else:
        assert np.abs(found - expected).max() <= 2e-5 * max(float(np.abs(expected).max()), float(expected.std()))
    return checks


def _channels_first(array: np.ndarray, letters: str, space: str) -> np.ndarray:
    """An array of the model zoo, in the order i t c z y x, as (c, *space)."""
    own = arrays_order(letters)
    array, own = (array, own) if "c" in own else (array[None], "c" + own)
    return array.transpose([own.index(a) for a in "c" + space])


@pytest.mark.slow
def test_a_step_that_measures_is_done_by_bioimageio_as_before(tmp_path: Path) -> None:
    """scale_range stays declared, clip lies in the graph: core gives the same with the old and the new package."""
    model = MODELS["before_scale_range_clip"](tmp_path)
    package = convert(model.path, tmp_path / "new.zip")
    images = model.images(np.random.default_rng(), {"y": 40, "x": 37})
    found = []
    for name, path, key in (("old", model.path, "raw"), ("new", tmp_path / "new.zip", "input")):
        np.savez(tmp_path / f"{name}.npz", **{key: images["raw"][None].astype(np.float32)})
        job = {"name": name, "path": str(path), "images": str(tmp_path / f"{name}.npz"),
               "results": str(tmp_path / f"{name}_results.npz")}  # fmt: skip
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", CORE], input=json.dumps([job]), text=True,
                              capture_output=True, check=False)  # fmt: skip
        assert json.loads(done.stdout.splitlines()[-1])["error"] == "", done.stderr
        with np.load(job["results"]) as stored:
            found.append(next(iter(stored.values())))
    assert np.abs(found[0] - found[1]).max() <= 1e-5 * found[0].std()
    assert any("measures the image" in c for c in package.ours["source"]["changes"])


def _words(model: Model, **more: Any) -> None:
    path = model.path / "rdf.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **more}, sort_keys=False))


def test_words_are_kept_as_far_as_the_format_takes_them(tmp_path: Path) -> None:
    """Maps become strings, an id becomes a nickname and the origin; what is no word of the format is left out and told."""
    model = MODELS["two_files"](tmp_path)
    (model.path / "c.png").write_bytes(_png())
    _words(
        model, id="brave-fox", version="1.2.0", name="a model/with slash", license="not a licence",
        covers=[{"source": "c.png", "sha256": file(model.path / "c.png")["sha256"]}], documentation={"source": "README.md"},
        authors=[{"name": "Ada Ito", "orcid": "0000-0002-1825-0098"}], tags=["cells", "2d"],
        links=["ilastik/ilastik", {"a": 1}], packaged_by=[{"name": "Somebody Else"}], parent={"id": "old-fox"},
        cite=[{"text": "a", "doi": "https://doi.org/10.1000/182"}, {"text": "b"}], config={"deepimagej": {"a": 1},
        "voidzoo": {"kinds": ["intensity"], "recipe": {"seed": 3}}},
    )  # fmt: skip
    package = convert(model.path, tmp_path / "new.zip")
    rdf, source = package.rdf, package.ours["source"]
    assert (rdf["name"], "license" in rdf) == ("a model-with slash", False)
    assert (source["id"], source["version"], source["format_version"]) == ("brave-fox", "1.2.0", "0.5.4")
    assert rdf["config"]["bioimageio"]["nickname"] == "brave-fox"
    assert rdf["covers"] == ["cover.png"]
    assert package.files.read("cover.png") == _png()
    assert rdf["authors"] == [{"name": "Ada Ito"}], "an ORCID with a wrong check digit is none"
    assert rdf["cite"] == [{"text": "a", "doi": "10.1000/182"}]
    assert rdf["tags"] == ["cells", "2d", "voidzoo"]
    told = "\n".join(source["changes"])
    assert (package.kinds, package.ours["recipe"]) == (("intensity",), {"seed": 3})
    for word in (
        "config.deepimagej is left out",
        "name 'a model/with slash' is not",
        "license 'not a licence' is not",
        "a citation without doi",
        "packaged_by is left out",
        "parent is left out",
    ):
        assert word in told
    assert rdf["links"] == ["ilastik/ilastik"]
    readme = package.files.read("README.md").decode()
    assert "brave-fox" in readme
    assert "A model for tests" in readme, "what its makers say"


def test_a_cover_made_to_harm_is_not_unpacked_and_another_is_drawn(tmp_path: Path) -> None:
    """A picture of ten gigapixels in its header: no traceback, nothing of it in the new package."""
    model = MODELS["pointwise"](tmp_path)
    head = b"IHDR" + struct.pack(">LLBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + head + struct.pack(">L", zlib.crc32(head))
    (model.path / "c.png").write_bytes(bomb)
    _words(model, covers=["c.png"])
    drawn = convert(model.path, tmp_path / "new.zip").files.read("cover.png")
    with Pillow.open(io.BytesIO(drawn)) as picture:
        assert picture.width == picture.height <= 256


def _png() -> bytes:
    buffer = io.BytesIO()
    Pillow.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_check_reads_back_the_onnx_file_of_any_package(tmp_path: Path) -> None:
    """Also of one with steps, or of a fixed size, for which the other comparisons have no one tensor."""
    found = [vz.check(MODELS[name](tmp_path).path) for name in ("fixed_64", "before_clip")]
    assert [[c.name for c in checks] for checks in found] == [["onnx file", "bioimageio.core"]] * 2
    assert "has fixed axes" in found[0][0].detail
    assert found[1][0].detail == "opset 17, IR 8, one file, batch and space free"


def _spoilt(data: bytes) -> bytes:
    """The graph with 1 % more of its first kernel."""
    model = onnx.load_model_from_string(data)
    kernel = next(t for t in model.graph.initializer if len(t.dims) == 4)
    kernel.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(kernel) * np.float32(1.01), kernel.name))
    return model.SerializeToString()


def test_a_graph_that_gives_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel changed on the way: ProofFailed, the tensors kept, no package."""
    model, honest = MODELS["pointwise"](tmp_path), converting.baked

    def other(*given: Any, **more: Any) -> onnx.ModelProto:
        return onnx.load_model_from_string(_spoilt(honest(*given, **more).SerializeToString()))

    monkeypatch.setattr(converting, "baked", other)
    with pytest.raises(ProofFailed, match="source = new: max difference"):
        convert(model.path, tmp_path / "new.zip")
    assert {p.name for p in (tmp_path / "new.failed").iterdir()} >= {"source-new-expected.npy", "source-new-found.npy"}
    assert not list(tmp_path.glob("new*.zip"))


@pytest.mark.parametrize("level", [0.0, 7.0, np.nan])
def test_a_test_tensor_that_is_constant_proves_nothing_by_itself(
    level: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On zeros a graph with other kernels gives the same: it is noticed on noise."""
    model, honest = MODELS["pointwise"](tmp_path), converting.baked
    np.save(model.path / "raw.npy", np.full_like(np.load(model.path / "raw.npy"), level, dtype=np.float32))

    def other(*given: Any, **more: Any) -> onnx.ModelProto:
        return onnx.load_model_from_string(_spoilt(honest(*given, **more).SerializeToString()))

    monkeypatch.setattr(converting, "baked", other)
    with pytest.raises(ProofFailed, match="source = new: max difference"):
        convert(model.path, tmp_path / "new.zip")
    x = np.full((1, 2, 8, 8), level, np.float32)
    assert all(plane.std() > 0 for plane in proof._cut(x, 2, [16, 20]).reshape(4, -1))


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 20, 21])
def test_other_opsets_become_17(opset: int, tmp_path: Path) -> None:
    """Old ones are raised and new ones lowered, IR 8, and compute the same; the file says so itself."""
    model = onnx.load_model_from_string(MODELS["pooled"](tmp_path).onnx)
    del model.graph.value_info[:]
    made = _at(model, opset)
    rng = np.random.default_rng()
    x = rng.standard_normal((1, 1, 24, 36)).astype(np.float32)
    expected = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"raw": x})[
        0
    ]
    new, told = modernised(made)
    assert ([o.version for o in new.opset_import], new.ir_version) == ([17], 8)
    assert told == [f"ONNX opset {opset} became 17"]
    found = ort.InferenceSession(new.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"raw": x})[0]
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


def _at(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The graph of convolutions, pools and nearest upsampling as files of that opset have it."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if opset < 10:
        for node in made.graph.node:
            if node.op_type == "Resize":
                scales = node.input[2]
                node.CopyFrom(onnx.helper.make_node("Upsample", [node.input[0], scales], node.output, mode="nearest"))
    for node in made.graph.node:
        if node.op_type == "Resize" and opset < 13:  # its region was not optional then
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.float32), node.output[0] + "roi"))
            node.input[1] = node.output[0] + "roi"
    made.opset_import[0].version = opset
    made.ir_version = 4 if opset < 10 else 8 if opset < 18 else 10 if opset > 20 else 9
    onnx.checker.check_model(made)
    return made


def test_an_opset_that_cannot_be_lowered_stays_and_is_told(tmp_path: Path) -> None:
    """GroupNormalization came with opset 18, and no older node does the same: kept, and said."""
    x = onnx.helper.make_tensor_value_info("x", 1, [None, 4, None, None])
    y = onnx.helper.make_tensor_value_info("y", 1, [None, 4, None, None])
    ones = [onnx.numpy_helper.from_array(np.ones(4, np.float32), n) for n in ("s", "b")]
    node = onnx.helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    graph = onnx.helper.make_graph([node], "g", [x], [y], ones)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    same, told = modernised(model)
    assert same.opset_import[0].version == 21
    assert told == ["the ONNX file stays at opset 21: it cannot be brought to 17, which Fiji reads"]


@pytest.mark.slow
def test_a_torchscript_whose_test_tensor_is_none_is_refused(tmp_path: Path) -> None:
    """It would be the example of the way to ONNX."""
    model = MODELS["torchscript"](tmp_path)
    (model.path / "raw.npy").write_bytes(PETABYTES)
    with pytest.raises(PackageError, match="no array of numbers"):
        convert(model.path, tmp_path / "new.zip")


@pytest.mark.slow
def test_torchscript_is_kept_where_it_is_the_same_network(tmp_path: Path) -> None:
    """Kept as it was where nothing was baked, and proved equal to the ONNX that was made of it; else left out and told."""
    checks: list[Check] = []
    package = convert(MODELS["torchscript"](tmp_path).path, tmp_path / "kept.zip", watch=checks.append)
    assert [w.kind for w in package.weights] == ["onnx", "torchscript"]
    assert [c.name for c in checks if "torchscript" in c.name] == ["torchscript = onnx"]
    made = write(tmp_path / "baked", plane(2, 2, [step("scale_linear", gain=0.01)]),
                 partial(normalised, n_in=2, n_out=2), weights=torchscript)  # fmt: skip
    package = convert(made.path, tmp_path / "baked.zip")
    assert [w.kind for w in package.weights] == ["onnx"]
    assert any(c.startswith("TorchScript of the source left out") for c in package.ours["source"]["changes"])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda folder: (folder / "weights.onnx").unlink(), "weights.onnx"),
        (lambda folder: (folder / "weights.onnx").write_bytes(b"no graph"), "sha256"),
        (lambda folder: (folder / "raw.npy").write_bytes(b"no array"), "raw.npy is no array of numbers"),
        (lambda folder: np.save(folder / "raw.npy", np.ones((1, 1, 0, 8), np.float32)), "test tensor"),
        (lambda folder: np.save(folder / "raw.npy", np.ones(8, np.float32)), "test tensor"),
        (lambda folder: (folder / "raw.npy").write_bytes(PETABYTES), r"promises \(1, 1, 1000000000, 1000000\)"),
        (lambda folder: (folder / "raw.npy").unlink(), "raw.npy"),
        (lambda folder: (folder / "rdf.yaml").write_text("type: model"), "format"),
    ],
)
def test_broken_packages_are_refused(spoil: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    """A PackageError that names what is wrong; nothing is written."""
    model = MODELS["pointwise"](tmp_path)
    spoil(model.path)
    with pytest.raises(PackageError, match=text):
        convert(model.path, tmp_path / "new.zip")
    assert not list(tmp_path.glob("new*"))


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([step("fixed_zero_mean_unit_variance", std=2.0)], "fixed_zero_mean_unit_variance cannot be done(.|\n)*mean"),
        ([step("scale_linear", gain="much")], "scale_linear cannot be done"),
        ([step("scale_linear", axis="channel", gain=[1.0, 2.0, 3.0])], "does not take the sizes"),
        ([step("ensure_dtype")], "is cast to None"),
    ],
)
def test_steps_that_lack_settings_are_refused(steps: list[Any], text: str, tmp_path: Path) -> None:
    """What a description leaves out or says wrongly is one sentence, not an error of numpy."""
    model = MODELS["before_clip"](tmp_path)
    rdf = yaml.safe_load((model.path / "rdf.yaml").read_text())
    rdf["inputs"][0]["preprocessing"] = steps
    (model.path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    with pytest.raises(PackageError, match=text):
        convert(model.path, tmp_path / "new.zip")


@pytest.mark.slow
def test_places_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks and changes in lines, one object with --json, refusals with exit code 2; an existing file is kept."""
    model = MODELS["before_clip"](tmp_path)
    out = tmp_path / "new.zip"
    assert command(["convert", str(model.path), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "check    source = new" in said
    assert "note     clip is part of the network now" in said
    before = out.read_bytes()
    assert command(["convert", str(model.path), "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == before
    with pytest.raises(OutputError, match=r"a package is a \.zip"):
        convert(model.path, tmp_path / "new")
    assert command(["convert", str(model.path), "-o", str(out), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"]
    refused = MODELS["two_images"](tmp_path)
    assert command(["convert", str(refused.path), "-o", str(tmp_path / "no.zip")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    again = convert(out, tmp_path / "twice.zip")
    assert isinstance(again, Package), "what was converted can be converted"
    with zipfile.ZipFile(out) as archive:
        archive.extractall(tmp_path / "folder")
    shutil.copytree(tmp_path / "folder", tmp_path / "in a folder")
    assert convert(tmp_path / "in a folder", tmp_path / "third.zip").plain


@pytest.mark.slow
def test_old_descriptions_are_converted(tmp_path: Path) -> None:
    """The real descriptions of format 0.3, 0.4 and 0.5 of one network, each around a small one: authors and steps kept."""
    data = Path(__file__).parents[1] / "data" / "models"
    for number, yaml_file in enumerate(sorted(data.glob("nuclei*.yaml"))):
        rdf = yaml.safe_load(yaml_file.read_text())
        design = Design([In("raw", "bcyx", {"y": 512, "x": 512})], [Out("probability", "bcyx", {"y": 2, "x": 2})])
        model = write(tmp_path / f"m{number}", design, two_convs)
        shutil.copyfile(model.path / "raw.npy", model.path / "test_input.npy")
        shutil.copyfile(model.path / "probability.npy", model.path / "test_output.npy")
        own = yaml.safe_load((model.path / "rdf.yaml").read_text())["weights"]["onnx"]
        rdf["weights"] = {"onnx": own}
        for tensor in (*rdf["inputs"], *rdf["outputs"]):
            tensor.pop("sample_tensor", None)
            if "test_tensor" in tensor:
                tensor["test_tensor"] = {"source": tensor["test_tensor"]["source"]}
        (model.path / "rdf.yaml").write_text(yaml.safe_dump(rdf, sort_keys=False))
        package = convert(model.path, tmp_path / f"new{number}.zip")
        assert package.rdf["authors"][0]["name"].partition(";")[0] == "Constantin Pape"
        assert package.rdf["license"] == "MIT"
        assert "zero_mean_unit_variance" in [s.name for s in package.inputs[0].steps]
        assert package.rules["x"].step == 1, "the graph is free"
        assert package.ours["source"]["format_version"] == str(rdf["format_version"])
