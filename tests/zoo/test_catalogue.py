"""What a model's word stands for: paths, shipped names, ids of a collection that a real server on loopback has."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.web import Server, lay_out, zip_folder
from voidzoo.zoo import cache, collection, download, gather
from voidzoo.zoo.catalogue import resolve, shipped_models
from voidzoo.zoo.errors import NetworkError, PackageError
from voidzoo.zoo.package import Package, open_package


@pytest.fixture
def lab(tiny_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab's folder with three versions of one model, one of another, and one without a version."""
    folder = tmp_path / "lab"
    for name in ("n2v-mito-1.9", "n2v-mito-1.10", "n2v-mito-2.0rc1", "care-bead-1", "raw"):
        zip_folder(Path(tiny_package.path), folder / f"{name}.zip")
    monkeypatch.setenv("VOIDZOO_MODELS", str(folder))
    return folder


def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the network fails the test."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a request was tiny_package")

    monkeypatch.setattr(download, "client", refuse)
    monkeypatch.setattr(cache, "client", refuse)
    monkeypatch.setattr(collection, "client", refuse)


# --- names


def test_names_and_versions(lab: Path, tiny_package: Package) -> None:
    """A name is its newest final version in PEP 440 order, NAME@VERSION that one, however the version is written."""
    found = {
        w: Path(resolve(w).path).name for w in ("n2v-mito", "n2v-mito@1.9", "n2v-mito@1.9.0", "n2v-mito@2.0rc1", "raw")
    }
    assert found == {
        "n2v-mito": "n2v-mito-1.10.zip", "n2v-mito@1.9": "n2v-mito-1.9.zip", "n2v-mito@1.9.0": "n2v-mito-1.9.zip",
        "n2v-mito@2.0rc1": "n2v-mito-2.0rc1.zip", "raw": "raw.zip",
    }  # fmt: skip
    package = open_package("n2v-mito")
    assert package.sha256 == tiny_package.sha256
    zipped = hashlib.sha256((lab / "n2v-mito-1.10.zip").read_bytes()).hexdigest()
    assert package.origin == {"model": "n2v-mito@1.10", "sha256": zipped}
    assert [m.word for m in shipped_models() if m.path.parent == lab] == [
        "care-bead@1", "n2v-mito@1.9", "n2v-mito@1.10", "n2v-mito@2.0rc1", "raw",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("n2v-mitto", r"no model n2v-mitto \(did you mean n2v-mito\?\)"),
        ("care-beat", r"no model care-beat \(did you mean care-bead\?\)"),
        ("care-beat@2", r"no model care-beat@2 (.|\n)*mend:  care-bead; or bioimage-io/care-beat@2 if that of bioimage"),
        ("n2v-mito@3", r"no version 3; there are 1\.9, 1\.10, 2\.0rc1(.|\n)*mend:  n2v-mito@2\.0rc1"),
        ("raw@1", r"no version 1; there are one without a version"),
        ("nothing_like_it", r"no model nothing_like_it\.(.|\n)*models here: care-bead, (.|\n)*n2v-mito, (.|\n)*raw"),
        ("modle.zip", r"no model modle\.zip"),
        ("n2v-mito.zip", r"no model n2v-mito\.zip \(did you mean n2v-mito\?\)"),
        ("models/affable-shark", r"no model models/affable-shark"),
        ("./affable-shark", r"no model \./affable-shark"),
        ("a/b/rdf.yaml", r"no model a/b/rdf\.yaml"),
        ("~/affable-shark", r"no model ~"),
        ("..\\affable-shark", r"no model \.\."),
        ("", r"no model "),
        ("x" * 5000, r"no model x"),
        ("a\0b", r"no model a"),
    ],
)  # fmt: skip
def test_words_that_name_nothing_ask_no_network(
    lab: Path, monkeypatch: pytest.MonkeyPatch, word: str, text: str
) -> None:
    """A misspelt name or path is refused with the nearest names and those there are, without any request."""
    no_network(monkeypatch)
    with pytest.raises(PackageError, match=text):
        resolve(word)


def test_a_path_comes_before_a_name(
    lab: Path, tiny_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder called like a model is taken instead of it; `./` and a Path never mean the model."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackageError, match="no model"):
        resolve("./n2v-mito")
    with pytest.raises(PackageError, match="no model"):
        resolve(Path("n2v-mito"))
    shutil.copytree(tiny_package.path, "n2v-mito")
    shutil.copytree(tiny_package.path, "affable-shark")
    no_network(monkeypatch)
    for word in ("n2v-mito", "affable-shark", "./n2v-mito", Path("n2v-mito"), "n2v-mito/rdf.yaml"):
        assert open_package(word).origin == {"path": str(word)}


def test_the_labs_folder_comes_first_and_must_be_there(
    lab: Path, tmp_path: Path, tiny_package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two folders with the same model the first one's is taken; a folder that is not there is told."""
    other = zip_folder(Path(tiny_package.path), tmp_path / "other" / "n2v-mito-1.10.zip").parent
    monkeypatch.setenv("VOIDZOO_MODELS", f"{other}{os.pathsep}{lab}")
    assert Path(resolve("n2v-mito").path).parent == other
    assert Path(resolve("n2v-mito@1.9").path).parent == lab
    monkeypatch.setenv("VOIDZOO_MODELS", str(tmp_path / "gone"))
    with pytest.raises(PackageError, match="no folder"):
        resolve("n2v-mito")


# --- the collection


SHARK = "10.5281/zenodo.5764892"


def manifest(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": "model", "license": "CC-BY-4.0", "tags": ["2d"], **more}


@pytest.fixture
def zoo(web: Server, tiny_package: Package, monkeypatch: pytest.MonkeyPatch) -> Server:
    """A collection as Hypha serves it: two models, one known by its DOI too, a data set, a draft."""
    base = web.folder / "bioimage-io" / "artifacts"
    for alias in ("affable-shark", "kind-seashell"):
        lay_out(tiny_package, base / alias / "files", name=alias)
    listing = [
        {"alias": "affable-shark", "id": "bioimage-io/affable-shark", "type": "model",
         "manifest": manifest("Nuclei", id=SHARK, version="1.1", config={"bioimageio": {"nickname": "affable-shark"}}),
         "versions": [{"version": "v0"}, {"version": "v10"}, {"version": "v9"}, {"version": "stage"}]},
        {"alias": "kind-seashell", "id": "bioimage-io/kind-seashell", "type": "model", "manifest": manifest("Shells"),
         "versions": []},
        {"alias": "big-data", "id": "bioimage-io/big-data", "type": "dataset", "manifest": {"name": "no model"}},
    ]  # fmt: skip
    (base / "bioimage.io").mkdir()
    (base / "bioimage.io" / "children").write_text(json.dumps(listing))
    monkeypatch.setenv("VOIDZOO_COLLECTION", f"{web.url}/bioimage-io/artifacts/bioimage.io/children?limit=9")
    return web


def test_ids_nicknames_and_versions(zoo: Server, tiny_package: Package) -> None:
    """Every way to write one model finds it, in the version that was asked for; the index is fetched once."""
    words = {
        "affable-shark": "v10", "bioimage-io/affable-shark": "v10", "affable-shark@v9": "v9", "affable-shark/9": "v9",
        "affable-shark@1.1": "v10", SHARK: "v10", f"{SHARK}@v0": "v0", "bioimage-io/affable-shark/v0": "v0",
        f"https://doi.org/{SHARK}": "v10", "https://bioimage.io/#/artifacts/affable-shark": "v10",
        "https://bioimage.io/#/?id=affable-shark": "v10", "https://bioimage.io/#/artifacts/affable-shark/v9": "v9",
        "https://bioimage.io/#/resources/bioimage-io%2Faffable-shark": "v10",
    }  # fmt: skip
    for word, version in words.items():
        package = open_package(word)
        assert package.origin["model"] == f"affable-shark@{version}", word
        assert package.origin["url"].endswith(f"/affable-shark/files/rdf.yaml?version={version}")
        assert package.onnx() == tiny_package.onnx()
    assert open_package("kind-seashell").origin["model"] == "kind-seashell"
    assert sum(n for path, n in zoo.asked.items() if "/children" in path) == 1
    assert sum(n for path, n in zoo.asked.items() if path.endswith("weights.onnx?version=v10")) == 1


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("affable-sharck", r"no model affable-sharck \(did you mean affable-shark"),
        ("big-data", "no model big-data"),
        ("affable-shark@v3", r"affable-shark has no version v3; it has v0, v9, v10(.|\n)*mend:  affable-shark@v10"),
        ("affable-shark@draft", "draft that nobody has reviewed"),
        ("10.5281/zenodo.1", r"no model 10\.5281/zenodo\.1\."),
    ],
)  # fmt: skip
def test_ids_that_are_not_there(zoo: Server, word: str, text: str) -> None:
    """What the collection does not have is told with what it has."""
    with pytest.raises(PackageError, match=text):
        resolve(word)


def test_offline_with_what_was_fetched(zoo: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is kept asks nobody; without one the newest that is kept is taken where nobody answers."""
    resolve("affable-shark@v9")
    newest = resolve("affable-shark")
    asked = sum(zoo.asked.values())
    assert resolve("affable-shark@v9").origin["model"] == "affable-shark@v9"
    assert sum(zoo.asked.values()) == asked
    zoo.shutdown()
    zoo.server_close()
    assert resolve("affable-shark") == newest  # by the index that lies here
    for file in (cache.cache_folder() / "collection").iterdir():
        os.utime(file, (0, 0))
    assert resolve("affable-shark") == newest  # by an index of long ago
    shutil.rmtree(cache.cache_folder() / "collection")
    assert resolve("affable-shark") == newest
    assert resolve("bioimage-io/affable-shark@v9").origin["model"] == "affable-shark@v9"
    with pytest.raises(NetworkError, match=r"index of the collection cannot be had(.|\n)*voidzoo list"):
        resolve("kind-seashell")


@pytest.mark.parametrize("form", ["collection.json", "id_map.json", "items"])
def test_older_forms_of_the_index(
    zoo: Server, tiny_package: Package, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """collection.json with versions in its addresses, id_map.json, and a list under `items` are read too."""
    base = f"{zoo.url}/bioimage-io/artifacts"
    lay_out(tiny_package, zoo.folder / "old" / "1.2" / "files")
    lay_out(tiny_package, zoo.folder / "old" / "1" / "files")
    if form == "collection.json":
        index: Any = {"collection": [
            {"type": "model", "id": SHARK, "nickname": "affable-shark", "name": "Nuclei", "version": "1.2",
             "versions": ["1.2", "1"], "rdf_source": f"{zoo.url}/old/1.2/files/rdf.yaml"},
            {"type": "notebook", "id": "note", "rdf_source": "x"}]}  # fmt: skip
        words = {"affable-shark": "1.2", SHARK: "1.2", f"{SHARK}/1": "1", "affable-shark@1": "1"}
    elif form == "id_map.json":
        index = {"affable-shark": {"source": f"{zoo.url}/old/1.2/files/rdf.yaml"},
                 "affable-shark/1": {"source": f"{zoo.url}/old/1/files/rdf.yaml"}}  # fmt: skip
        words = {"affable-shark": "1.2", "affable-shark/1": "1"}
    else:
        index = {"items": json.loads((zoo.folder / "bioimage-io/artifacts/bioimage.io/children").read_text())}
        words = {"affable-shark": "v10"}
    place = "bioimage-io/artifacts/index.json"
    (zoo.folder / place).write_text(json.dumps(index))
    monkeypatch.setenv("VOIDZOO_COLLECTION", f"{zoo.url}/{place}")
    for word, version in words.items():
        assert version in open_package(word).origin["url"].replace(base, "").split("/old/")[-1]
    with pytest.raises(PackageError, match=r"no model|no version|one version"):
        resolve("affable-shark@77") if form != "id_map.json" else resolve("kind-seashell")


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1, 2", b'{"a": 1}', b'"text"', b"[" * 10**5])
def test_an_index_that_is_none(zoo: Server, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Anything else than an index is told with its address, and kept from replacing a good one."""
    children = zoo.folder / "bioimage-io/artifacts/bioimage.io/children"
    good = children.read_bytes()
    children.write_bytes(body)
    with pytest.raises(PackageError, match=r"children.limit=9 is no index(.|\n)*VOIDZOO_COLLECTION"):
        resolve("affable-shark")
    children.write_bytes(good)
    assert resolve("affable-shark")


def test_a_page_in_the_place_of_the_index_does_not_take_the_index_away(zoo: Server) -> None:
    """The network of a hotel answers with a page of its own: the index that lies here is taken, however old."""
    resolve("affable-shark@v9")
    (zoo.folder / "bioimage-io/artifacts/bioimage.io/children").write_bytes(b"<html>welcome</html>")
    for file in (cache.cache_folder() / "collection").iterdir():
        os.utime(file, (0, 0))
    assert resolve("kind-seashell").origin["model"] == "kind-seashell"


def test_the_index_of_today_is_looked_at_again_for_what_it_does_not_have(
    zoo: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was published since the index was fetched is found."""
    children = zoo.folder / "bioimage-io/artifacts/bioimage.io/children"
    listing = json.loads(children.read_text())
    children.write_text(json.dumps(listing[1:]))
    resolve("kind-seashell")
    children.write_text(json.dumps(listing))
    with pytest.raises(PackageError, match="no model"):
        resolve("affable-shark")  # asked within the last minute
    for file in (cache.cache_folder() / "collection").iterdir():
        os.utime(file, (time.time() - 120,) * 2)
    assert resolve("affable-shark")


# --- anything


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["alias", "id", "type", "manifest", "versions", "version", "rdf_source", "source", "collection",
                         "items", "config", "bioimageio", "nickname", "weights", "onnx", "inputs", "axes", "covers",
                         "attachments", "files", "test_tensor", "architecture", "preprocessing"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
MODEL = st.fixed_dictionaries({"type": st.just("model"), "alias": JUNK, "manifest": JUNK, "versions": JUNK})


@given(JUNK | st.lists(MODEL, max_size=3) | st.fixed_dictionaries({"collection": st.lists(MODEL | JUNK, max_size=3)}))
@settings(max_examples=60, deadline=None)
def test_any_json_is_an_index_or_is_refused(found: Any) -> None:
    """Whatever a server sends as the index, models come of it, or one sentence."""
    try:
        models = collection._parsed(json.dumps(found).encode(), "https://example.org/artifacts/children")
    except PackageError:
        return
    for model in models:
        assert all(isinstance(n, str) for n in (model.id, model.rdf, *model.names, *model.versions))


@given(st.dictionaries(st.sampled_from(["weights", "inputs", "covers", "attachments", "documentation"]), JUNK))
@settings(max_examples=60, deadline=None)
def test_any_description_names_files_or_none(rdf: Any) -> None:
    """Whatever a description holds where files are named, names come of it."""
    assert all(isinstance(n.source, str) for n in gather.files_of(rdf))


@given(st.text(max_size=30) | st.from_regex(r"[a-z./@\\~-]{1,20}", fullmatch=True))
@settings(max_examples=100, deadline=None)
def test_any_word_is_refused_or_asks_for_what_it_names(word: str) -> None:
    """A word is refused by a PackageError, or it is of the form of an id: nothing else gets as far as the network."""
    asked: list[str] = []

    def find(name: str, version: str | None, _watch: object) -> tuple[str, str]:
        asked.append(name)
        raise PackageError(f"there is no model {name}@{version}.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "find", find)
        try:
            resolve(word)
        except PackageError:
            pass
        else:
            assert Path(word).exists()
    assert not asked or re.match(r"[a-z]+(-[a-z]+)+(/v?\d|@|$)|bioimage-io/|10\.", word)
