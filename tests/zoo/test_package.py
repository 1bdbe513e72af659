"""A package is opened when it can be run, and refused in words when it is broken, changed or of another kind."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.export.tiny import tiny_run
from tests.packages import make_package
from voidzoo.export import proof
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.package import AxisRule, Package, open_package
from voidzoo.zoo.package_files import PackageFiles


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip that `export` made."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        vz.export(tiny_run(folder / "run"), folder / "m.zip", name="our own model")
    return folder / "m.zip"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """The same as a folder that a test may spoil."""
    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path / "p")
    return tmp_path / "p"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change rdf.yaml in place."""
    rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
    change(rdf)
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_our_own_package_opens_as_zip_and_as_folder(exported: Path, folder: Path) -> None:
    """What export wrote is read back in full, and both forms predict the same numbers."""
    one, two = open_package(exported), open_package(folder)
    assert one.name == "our own model"
    assert one.version == "0.1.0"
    assert one.axes == "yx"
    assert one.rules == {"y": AxisRule(64, 4, 24), "x": AxisRule(64, 4, 24)}
    assert (one.channels_in, one.channels_out, one.kinds) == (("channel_0",), ("channel_0",), ("intensity",))
    assert hashlib.sha256(one.onnx()).hexdigest() == one.sha256
    assert one.onnx() == two.onnx()
    assert one.ours["method"] == "n2v"
    x = np.random.default_rng().uniform(100, 900, (70, 81)).astype(np.float32)
    assert np.array_equal(*(vz.predict(p, x, axes="yx", device="cpu") for p in (exported, str(folder))))


def test_weights_that_were_changed_are_not_run(folder: Path, exported: Path, tmp_path: Path) -> None:
    """One flipped byte in the weights, in a folder or zip, is refused with both checksums before onnxruntime sees it."""
    data = bytearray((folder / "weights.onnx").read_bytes())
    data[np.random.default_rng().integers(len(data))] ^= 0xFF
    found = hashlib.sha256(data).hexdigest()
    was = open_package(exported).sha256
    text = rf"is not what was exported: weights.onnx has sha256 {found[:8]}\.\.\., rdf.yaml says {was[:8]}"
    (folder / "weights.onnx").write_bytes(data)
    with pytest.raises(PackageError, match=text):
        vz.predict(folder, np.ones((64, 64)), axes="yx", device="cpu")
    other = zipped(tmp_path / "z.zip", {p.name: p.read_bytes() for p in folder.iterdir()})
    with pytest.raises(PackageError, match=text):
        open_package(other).onnx()


def test_what_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    """No package, no rdf.yaml and no weights are three different sentences."""
    with pytest.raises(PackageError, match=r"there is no model .*nothing\.zip"):
        open_package(tmp_path / "nothing.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PackageError, match=r"has no rdf\.yaml(.|\n)*zip or folder"):
        open_package(tmp_path / "empty")
    with pytest.raises(PackageError, match=r"has no rdf\.yaml"):
        open_package(zipped(tmp_path / "e.zip", {"README.md": b"x"}))
    (folder / "weights.onnx").unlink()
    with pytest.raises(PackageError, match=r"has no weights\.onnx"):
        open_package(folder).onnx()


@pytest.mark.parametrize(
    "source", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:secret", "file:///etc/hostname"]
)
def test_no_path_leads_out_of_the_package(folder: Path, tmp_path: Path, source: str) -> None:
    """A source that climbs out of the package is refused, even where the file exists and its sha256 is right."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"not yours")
    sha256 = hashlib.sha256(b"not yours").hexdigest()
    edit(folder, lambda rdf: rdf["weights"]["onnx"].update(source=source, sha256=sha256))
    with pytest.raises(PackageError, match="does not lie in the package"):
        open_package(folder).onnx()
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(PackageError, match=r"does not lie in the package|would lie outside of it"):
        open_package(zipped(tmp_path / "z.zip", {**files, source: b"not yours"})).onnx()


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """A symbolic link inside a package cannot show a file outside of it."""
    (tmp_path / "secret").write_bytes(b"not yours")
    (folder / "weights.onnx").unlink()
    (folder / "weights.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(PackageError, match="is a link out of the package"):
        open_package(folder).onnx()


def test_too_large_files_are_not_read(exported: Path) -> None:
    """A description of gigabytes (a zip bomb) is refused by its declared size."""
    for limit in (10, 100):
        with pytest.raises(PackageError, match=rf"rdf\.yaml has [\d,]+ bytes, more than {limit}"):
            PackageFiles(str(exported)).read("rdf.yaml", limit=limit)


def test_no_zip_is_told(tmp_path: Path) -> None:
    """A file that is no zip, and an empty one, are `not a whole zip file`."""
    for content in (b"", b"this is text", np.random.default_rng().bytes(3000)):
        (tmp_path / "m.zip").write_bytes(content)
        with pytest.raises(PackageError, match=r"is not a whole zip file(.|\n)*download it again"):
            open_package(tmp_path / "m.zip")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_zip_never_opens_unnoticed(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere or with any bytes changed, a zip is whole in all that is used, or a PackageError: nothing else."""
    whole = exported.read_bytes()
    if data.draw(st.booleans(), "cut"):
        broken = bytearray(whole[: data.draw(st.integers(0, len(whole) - 23), "length")])
        must_fail = True
    else:
        broken, must_fail = bytearray(whole), False
        for _ in range(data.draw(st.integers(1, 4))):
            broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "broken.zip"
    path.write_bytes(broken)
    try:
        weights = open_package(path).onnx()
    except PackageError:
        return
    assert not must_fail
    assert weights == open_package(exported).onnx()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", r"rdf\.yaml is not YAML"),
        ("\x00\x01\x02", r"rdf\.yaml is not YAML"),
        ("when: 2026-13-45", r"rdf\.yaml is not YAML"),
        ("!!python/object/apply:os.getcwd []", r"rdf\.yaml is not YAML"),
        ("just words", r"is not a description of a model"),
        ("- a\n- b", r"is not a description of a model"),
        ("", r"is not a description of a model"),
        ("type: model", r"is a model in format unknown"),
        (
            "type: dataset\nformat_version: 0.3.0",
            r"is a dataset in format 0\.3\.0; models in format 0\.3, 0\.4 and 0\.5 ",
        ),
        ("type: model\nformat_version: 0.2.0", r"is a model in format 0\.2\.0(.|\n)*bioimageio update-format"),
        (
            "type: model\nformat_version: 0.6.0",
            r"is a model in format 0\.6\.0; models in format 0\.3, 0\.4 and 0\.5 can be",
        ),
        ("type: model\nformat_version: 0.5", r"format 0\.5 does(.|\n)*'inputs'"),
        ("type: model\nformat_version: 0.4.9", r"as bioimage\.io format 0\.4 does(.|\n)*'inputs'"),
        ("format_version: 0.3.1\ninputs: []\noutputs: []", r"as bioimage\.io format 0\.3 does(.|\n)*inputs is empty"),
        ("format_version: 0.5.4", r"is a resource in format 0\.5\.4"),
        ("type: model\nformat_version: 0.5.4", r"does not describe a model(.|\n)*'inputs'"),
        ("type: model\nformat_version: 0.5.4\ninputs: 5\noutputs: []", r"does not describe a model"),
        ("type: model\nformat_version: 0.5.4\ninputs: [5]\noutputs: [6]", r"does not describe a model"),
    ],
)
def test_another_description_is_refused_in_words(folder: Path, text: str, message: str) -> None:
    """No YAML, no model, another format, another shape of description: each is one PackageError that says which."""
    (folder / "rdf.yaml").write_text(text)
    with pytest.raises(PackageError, match=message) as caught:
        open_package(folder)
    assert "\n" not in caught.value.what


SPOILS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no outputs": (lambda r: r["outputs"].clear(), r"does not describe a model(.|\n)*outputs is empty"),
    "no weights": (lambda r: r.pop("weights"), r"no ONNX weights; it offers: none"),
    "no sha256": (lambda r: r["weights"]["onnx"].pop("sha256"), r"gives no sha256"),
    "wrong kinds": (
        lambda r: r["config"]["voidzoo"].update(kinds=["beauty"]),
        r"kinds is \('beauty',\); it takes one of",
    ),
    "step 0": (lambda r: r["inputs"][0]["axes"][2]["size"].update(step=0), r"step 0, halo 24 along y cannot be"),
    "no name": (lambda r: r.pop("name"), r"does not describe a model(.|\n)*'name'"),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_model_of_another_kind_is_refused_in_words(folder: Path, spoil: str) -> None:
    """What no prediction can be made with is refused when the package is opened, naming the thing."""
    change, message = SPOILS[spoil]
    edit(folder, change)
    with pytest.raises(PackageError, match=message) as caught:
        open_package(folder)
    assert "\n" not in caught.value.what


def test_a_cast_to_the_dtype_that_is_used_anyway_is_no_processing(folder: Path, exported: Path) -> None:
    """`ensure_dtype: float32`, which bioimageio.spec adds when it saves a package, is accepted."""
    step = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    edit(folder, lambda r: (r["inputs"][0].update(preprocessing=step), r["outputs"][0].update(postprocessing=step)))
    assert open_package(folder).sha256 == open_package(exported).sha256


def test_names_that_the_format_lets_go_are_filled_in(tmp_path: Path) -> None:
    """A space axis without id is x, batch and channel are found by type; a package of others has no `ours`."""
    package = make_package(tmp_path / "p", depth=1)

    def change(rdf: dict[str, Any]) -> None:
        for key in ("inputs", "outputs"):
            axes = rdf[key][0]["axes"]
            axes[1].pop("id")
            axes[3].pop("id")
        rdf.pop("config")

    edit(tmp_path / "p", change)
    again = open_package(tmp_path / "p")
    assert isinstance(again, Package)
    assert again.rules == package.rules
    assert again.kinds == ()
    assert again.ours == {}
    assert again.pixel_size == {}


def test_a_package_in_a_folder_of_its_zip_is_found(exported: Path, tmp_path: Path) -> None:
    """Zipping the folder instead of its files changes nothing; two folders, or a zip by another name, are no guess."""
    with zipfile.ZipFile(exported) as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    nested = {f"model/{n}": data for n, data in files.items()}
    found = open_package(zipped(tmp_path / "nested.zip", {"model/": b"", "__MACOSX/model/._rdf.yaml": b"x", **nested}))
    assert found.onnx() == open_package(exported).onnx()
    assert found.files.read(found.test_input) == open_package(exported).files.read(found.test_input)
    with pytest.raises(PackageError, match=r"has no rdf\.yaml"):
        open_package(zipped(tmp_path / "two.zip", {**nested, "other/rdf.yaml": files["rdf.yaml"]}))
    shutil.copy(exported, tmp_path / "renamed.bin")
    assert open_package(tmp_path / "renamed.bin").name == "our own model"


@pytest.mark.parametrize("name", ["bioimageio.yaml", "model.yaml", "denoiser.model.yaml", "any name.yml"])
def test_the_description_is_found_by_any_name_of_the_format(folder: Path, tmp_path: Path, name: str) -> None:
    """Formats named it bioimageio.yaml and model.yaml too; its own path is a model as well, whatever it is called."""
    (folder / "rdf.yaml").rename(folder / name)
    zipped_too = zipped(tmp_path / "z.zip", {p.name: p.read_bytes() for p in folder.iterdir()})
    by_path = open_package(folder / name)
    assert hashlib.sha256(by_path.onnx()).hexdigest() == by_path.sha256
    if name.endswith(".yml"):
        for path in (folder, zipped_too):
            with pytest.raises(PackageError, match=r"has no rdf\.yaml"):
                open_package(path)
        return
    assert open_package(folder).onnx() == open_package(zipped_too).onnx() == by_path.onnx()
    (folder / "another.model.yaml").write_bytes((folder / name).read_bytes())
    if name == "denoiser.model.yaml":
        with pytest.raises(
            PackageError, match=r"2 descriptions: another\.model\.yaml, denoiser\.model\.yaml(.|\n)*mend"
        ):
            open_package(folder)
    else:
        assert open_package(folder).name == "our own model"


def test_weights_by_url_are_taken_from_the_package_or_asked_for(folder: Path) -> None:
    """A URL whose file lies in the package is that file, sha256 checked; else the whole model is to be downloaded."""

    def name(**weights: str) -> None:
        edit(folder, lambda rdf: rdf["weights"]["onnx"].update(weights))

    data = (folder / "weights.onnx").read_bytes()
    for url in ("https://zenodo.org/records/1/files/weights.onnx", "http://a.org/api/weights.onnx/content?download=1"):
        name(source=url)
        assert open_package(folder).onnx() == data
    name(source="https://a.org/other.onnx")
    with pytest.raises(PackageError, match=r"not in it: https://a\.org/other\.onnx(.|\n)*download the whole model"):
        open_package(folder).onnx()
    name(source="https://a.org/weights.onnx", sha256="0" * 64)
    with pytest.raises(PackageError, match="is not what was exported"):
        open_package(folder).onnx()


def test_an_image_in_the_place_of_the_model_is_told_so(tmp_path: Path) -> None:
    """Model and image swapped on the command line: the mend shows the order."""
    image = tmp_path / "scan.tif"
    image.write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(PackageError, match=r"scan.tif is no model(.|\n)*voidzoo predict MODEL.zip IMAGE"):
        open_package(image)
