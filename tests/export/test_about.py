"""voidzoo.yaml: found, read, refused in words, and in the package; and the list of what an upload still needs."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import voidzoo as vz
from voidzoo.cli import main as command
from voidzoo.export import proof
from voidzoo.export.about import EXAMPLE, FILE, About, find_about, orcid_is_right
from voidzoo.export.proof import Check
from voidzoo.export.upload import ready
from voidzoo.zoo.errors import RecipeError
from voidzoo.zoo.package import open_package


@pytest.fixture
def no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))


def test_the_guide_shows_the_example() -> None:
    assert EXAMPLE in (Path(__file__).parents[2] / "docs" / "guide.md").read_text()


def test_orcids() -> None:
    """Those of ORCID's own documentation, and each of them with one digit changed."""
    for right in ("0000-0002-1825-0097", "0000-0001-5109-3700", "0000-0002-1694-233X"):
        assert orcid_is_right(right)
        for i, digit in enumerate(right):
            if digit.isdigit():
                assert not orcid_is_right(right[:i] + str((int(digit) + 1) % 10) + right[i + 1 :])
    assert not orcid_is_right("0000000218250097")


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("authors: [{name: A, orcid: 0000-0002-1825-0098}]", r"authors\[0\].orcid: '0000-0002-1825-0098' cannot be"),
        ("authors: [{nam: A}]", r"authors\[0\].nam: there is no such key \(did you mean name\?\)"),
        ("authors: [{affiliation: A}]", r"authors\[0\].name: .* it must be given"),
        ("authors: Ada", r"authors: 'Ada' cannot be; it must be a list"),
        ("authors: [{name: A, github_user: 'https://github.com/a'}]", r"the name of a GitHub account"),
        ("licence: MIT", r"licence: there is no such key \(did you mean license\?\)"),
        ("license: GPLish", r"license: 'GPLish' cannot be; it must be an SPDX id"),
        ("cite: [{text: A}]", r"cite\[0\]: .* a doi or a url beside its text"),
        ("cite: [{text: A, doi: 12}]", r"cite\[0\].doi: .* a DOI such as"),
        ("cite: [{text: A, dio: 12}]", r"cite\[0\].dio: there is no such key \(did you mean doi\?\)"),
        ("git_repo: github.com/a", r"git_repo: .* an address that begins with https://"),
        ("version: one", r"version: 'one' cannot be; it must be a version"),
        ("tags: {a: b}", r"tags: .* it must be a list"),
        ("where: here", r"where: there is no such key"),
        ("self: me", r"self: there is no such key"),
        ("- a", r"has no lines such as"),
        ("a: [", r"is not YAML"),
    ],
)
def test_what_cannot_be_is_named_with_its_place(text: str, refusal: str, tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    with pytest.raises(RecipeError, match=refusal) as caught:
        About.read(path, {})
    assert str(path) in str(caught.value)


def test_the_nearest_file_is_taken_and_words_on_the_line_come_first(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / FILE).write_text(EXAMPLE)
    assert find_about(inner) == tmp_path / FILE
    said = About.read(tmp_path / FILE, {"license": "MIT", "authors": ["Somebody Else"]})
    assert (said.license, [p.name for p in said.authors], said.asked) == ("MIT", ["Somebody Else"], ())
    assert said.tags == ("fluorescence-light-microscopy", "mitochondria")
    (inner / FILE).write_text("license: CC0-1.0")
    assert find_about(inner) == inner / FILE
    assert About(cite=[{"text": "A", "doi": "https://doi.org/10.1000/x"}]).cite[0].doi == "10.1000/x"


@pytest.mark.usefixtures("no_consumer")
def test_everything_that_is_said_is_in_the_package(
    run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example as it stands; then nothing is missing for an upload but what a person must say."""
    monkeypatch.chdir(tmp_path)
    Path(FILE).write_text(EXAMPLE)
    assert command(["export", str(run.folder), "-o", "m.zip"]) == 0
    assert f"about    {tmp_path / FILE}" in capsys.readouterr().out
    with zipfile.ZipFile("m.zip") as archive:
        text = archive.read("rdf.yaml").decode()
        page = archive.read("README.md").decode()
    assert "&id" not in text, "not every reader knows anchors"
    rdf, said = yaml.safe_load(text), yaml.safe_load(EXAMPLE)
    assert f"Training data: {said['data']}, {said['training_data']}, licence {said['data_license']}." in page
    assert f"## Limits\n\n* {said['limits'][0]}" in page
    for key in ("authors", "license", "git_repo"):
        assert rdf[key] == said[key]
    assert rdf["maintainers"] == said["authors"]
    assert set(said["tags"]) <= set(rdf["tags"])
    assert rdf["cite"][0] == said["cite"][0]
    assert {"text": "Training data.", "url": said["training_data"]} in rdf["cite"]
    items = {i.name: i for i in ready(open_package("m.zip"))}
    assert [i.name for i in items.values() if not i.done] == []

    assert command(["check", "m.zip", "--for", "upload", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ready"]
    assert len(found["items"]) == len(items) + 1

    Path(FILE).unlink()
    assert command(["export", str(run.folder), "-o", "bare.zip"]) == 0
    capsys.readouterr()
    assert command(["check", "bare.zip", "--for", "upload"]) == 1
    told = capsys.readouterr().out
    missing = re.findall(r"^MISSING +(\S+(?: \S+)*?)  ", told, re.MULTILINE)
    assert missing == ["authors", "maintainers", "licence", "tags", "source", "training data"]
    assert told.count("mend: voidzoo.yaml: ") == len(missing)
    assert "one each of modality: electron-microscopy" in told


@pytest.mark.usefixtures("no_consumer")
@pytest.mark.parametrize(
    ("change", "name", "detail"),
    [
        (lambda r: r.update(id="a-b"), "no id", "id a-b"),
        (lambda r: r["authors"][0].update(orcid="0000-0002-1825-0098"), "authors", "without orcid"),
        (lambda r: r.update(covers=["README.md"]), "cover", "README.md: "),
        (lambda r: r.update(documentation="network.py"), "documentation", "no Validation"),
        (lambda r: r["weights"]["onnx"].update(sha256="0" * 64), "checksums", "weights.onnx has sha256"),
        (lambda r: r["inputs"][0]["sample_tensor"].pop("sha256"), "checksums", "sample_tensor without sha256"),
        (lambda r: r["weights"]["torchscript"].update(pytorch_version="2.1.0+cu118"), "torch version", "2.1.0+cu118"),
        (lambda r: r.update(cite=[{"text": "A"}]), "citations", "1 works"),
        (lambda r: r.update(license="as you like"), "licence", "as you like, which is no SPDX id"),
        (lambda r: r["outputs"][0].pop("sample_tensor"), "sample images", "1 for 2 inputs and outputs"),
    ],
)
def test_each_point_of_the_list(run: vz.Run, tmp_path: Path, change: Any, name: str, detail: str) -> None:
    """A package that is ready, with one thing changed: that point, and what was found there."""
    said = About(**yaml.safe_load(EXAMPLE))
    vz.export(run, tmp_path / "m.zip", about=said)
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        archive.extractall(tmp_path / "m")
    rdf = yaml.safe_load((tmp_path / "m" / "rdf.yaml").read_text())
    change(rdf)
    (tmp_path / "m" / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    wrong = [i for i in ready(open_package(tmp_path / "m")) if not i.done and i.name != "training data"]
    assert [i.name for i in wrong] == [name]
    assert detail in wrong[0].detail
    assert wrong[0].mend


@pytest.mark.slow
def test_without_a_network_what_cannot_be_looked_up_is_told(
    run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bioimageio.core asks GitHub and doi.org, and fails a package where nobody answers; that is not the package's fault."""
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    checks: list[Check] = []
    vz.export(run, tmp_path / "m.zip", about=About(**yaml.safe_load(EXAMPLE)), watch=checks.append)
    assert re.search(
        r"status passed, \d+% of all metadata, not looked up at .*github.com.*: no network", checks[-1].detail
    )
