"""`list`, `show`, and models by name and address on the command line; the web is a real server on loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

import voidzoo as vz
from tests.packages import micrograph, whole
from tests.web import Server, lay_out, zip_folder
from voidzoo.cli import main
from voidzoo.zoo.package import Package

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(web: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`voidzoo ...` in this process, in a folder of its own -> exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main([str(w) for w in words]), *capsys.readouterr())

    return call


@pytest.fixture
def lab(tiny_package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lab's folder: two versions of a model that says much of itself, and a zip that is broken."""
    told = {
        "description": "Sharpens \x1b[31mbeads\x1b[0m\u202e.", "license": "CC-BY-4.0", "tags": ["denoising", "beads"],
        "training_data": {"id": "10.5281/zenodo.42"}, "authors": [{"name": "Ada Ito"}], "documentation": "README.md",
        "cite": [{"text": "Ito A. Beads. 2026.", "doi": "10.1234/abcd"}],
    }  # fmt: skip
    folder = lay_out(tiny_package, tmp_path / "source", **told)
    (folder / "README.md").write_text(
        "# beads\n\nwords\n\n## Validation\n\nPSNR 31.5 dB\x1b]0;title\x07\n\n### by size\n\nall\n\n## Limits\n\nmany\n"
    )
    rdf = yaml.safe_load((folder / "rdf.yaml").read_text())
    rdf["config"]["voidzoo"] |= {"method": "n2v", "training": {"pixel_size": {"y": 0.1, "x": 0.1}}}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    for version in ("1", "2"):
        zip_folder(folder, tmp_path / "lab" / f"beads-{version}.zip")
    (tmp_path / "lab" / "rotten-1.zip").write_bytes(b"PK no zip")
    monkeypatch.setenv("VOIDZOO_MODELS", str(tmp_path / "lab"))
    return tmp_path / "lab"


def image(path: Path) -> np.ndarray:
    pixels = micrograph(np.random.default_rng(), (96, 117))
    tifffile.imwrite(path, pixels, photometric="minisblack")
    return pixels


def test_list(run: Run, lab: Path) -> None:
    """One line a model with what it is; a broken one is noted on stderr; words filter; --json has all of it."""
    code, out, err = run("list")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["model", "version", "method", "axes", "channels", "trained", "on", "size", "licence"]
    assert lines[1].split()[:6] == ["beads", "1", "n2v", "yx", "1", "10.5281/zenodo.42"]
    ours = {m.name for m in vz.list_models() if not m.path.startswith(str(lab))}
    listed = [line.split()[:2] for line in lines[1:] if line.split()[0] not in ours]
    assert listed == [["beads", "1"], ["beads", "2"], ["rotten", "1"]]
    assert "note     rotten@1: " in err
    assert "is not a whole zip" in err
    assert [m["word"] for m in json.loads(run("list", "DENOIS", "bead", "--json")[1])] == ["beads@1", "beads@2"]
    assert [m.word for m in vz.list_models("n2v") if m.name not in ours] == ["beads@1", "beads@2"]
    assert "no models here with tribolium" in run("list", "tribolium")[1]
    found = json.loads(run("list", "--json", "beads")[1])[1]
    assert (found["axes"], found["tags"], found["size"]) == (
        "yx",
        ["denoising", "beads"],
        (lab / "beads-2.zip").stat().st_size,
    )


def test_show(run: Run, lab: Path) -> None:
    """The card of the newest version, with the line that predicts; nothing in it moves the cursor of a terminal."""
    code, out, err = run("show", "beads")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "\u202e" not in out
    heads: dict[str, str] = {}
    for line in out.splitlines()[1:]:
        heads.setdefault(line[:9].strip(), line[9:])
    assert heads["model"] == "beads@2"
    assert heads["lies at"] == str(lab / "beads-2.zip")
    assert heads["input"] == "input   y 64 + n * 4, x 64 + n * 4   channel (in0)   float32"
    assert heads["output"] == "output   y, x   channel (out0)   float32   intensity"
    assert (heads["halo"], heads["pixel"], heads["weights"]) == ("y 24   x 24", "y 0.1 um   x 0.1 um", "onnx")
    assert (heads["trained"], heads["licence"], heads["authors"]) == ("10.5281/zenodo.42", "CC-BY-4.0", "Ada Ito")
    assert heads["cite"] == "Ito A. Beads. 2026. 10.1234/abcd"
    assert heads["valid"] == "PSNR 31.5 dB"
    assert re.sub(r"\ufffd(\[\d+m)?", "", heads[""]).startswith("Sharpens beads.")
    assert heads["opens"] == "bioimageio.core 0.11: yes"
    assert heads["next"] == "voidzoo predict beads@2 IMAGE -o OUT.ome.zarr"
    told = json.loads(run("show", "beads@1", "--json")[1])
    assert (told["model"], told["path"], told["validation"]) == (
        "beads@1",
        str(lab / "beads-1.zip"),
        "PSNR 31.5 dB\x1b]0;title\x07",
    )
    assert told["sizes"] == {a: {"min": 64, "step": 4, "halo": 24} for a in "yx"}
    assert told["opens"]["core"] == "yes"


def test_words_that_name_nothing(run: Run, lab: Path) -> None:
    """Every verb that takes a model refuses a wrong name with exit code 2 and the nearest one."""
    image(Path("a.tif"))
    for words in (["show", "beats"], ["check", "beats"], ["check", "beats", "--for", "all"], ["plan", "beats", "a.tif"],
                  ["predict", "beats", "a.tif", "-o", "o.ome.zarr"],
                  ["predict", "beats", "a.tif", "-o", "o.ome.zarr", "--preview"]):  # fmt: skip
        code, _, err = run(*words)
        assert code == 2, words
        assert "no model beats (did you mean beads?)" in err, words


def provenance(out: Path) -> dict[str, Any]:
    return json.loads((out / "zarr.json").read_text())["attributes"]["voidzoo"]


def newer(old: Path, new: Path) -> None:
    """The same package as version 3."""
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(new, "w") as archive:
        for name in source.namelist():
            data = source.read(name)
            archive.writestr(name, b"version: '3'\n" + data if name == "rdf.yaml" else data)


def test_a_name_is_recorded_with_its_version(run: Run, lab: Path) -> None:
    """plan and the result say which version and zip it was; the same word continues, and a newer version is told."""
    image(Path("a.tif"))
    assert "from     beads@2   sha256 " in run("plan", "beads", "a.tif")[1]
    assert run("predict", "beads", "a.tif", "-o", "o.ome.zarr")[0] == 0
    told = provenance(Path("o.ome.zarr"))["package"]
    assert told == dict(vz.open_package("beads@2").origin)
    assert "is complete already" in run("predict", "beads", "a.tif", "-o", "o.ome.zarr")[1]
    assert run("predict", told["model"], "a.tif", "-o", "o.ome.zarr")[0] == 0
    newer(lab / "beads-2.zip", lab / "beads-3.zip")
    code, _, err = run("predict", "beads", "a.tif", "-o", "o.ome.zarr")
    assert code == 2
    assert "now version 3" in err
    assert "mend:  beads@2  is the model that it was begun with" in err
    assert run("predict", "beads@2", "a.tif", "-o", "o.ome.zarr")[0] == 0
    assert run("predict", "beads@2", "a.tif", "-o", "o.ome.tif", "-q")[0] == 0
    assert json.loads(json.dumps(vz.plan("beads@2", "a.tif").to_json()))["package"] == told


def test_an_address_predicts_twice_the_second_time_offline(run: Run, web: Server, tiny_package: Package) -> None:
    """The first command says on stderr what it fetches, the second needs no server; both give what the network gives."""
    zip_folder(Path(tiny_package.path), web.folder / "m.zip")
    pixels, address = image(Path("a.tif")), f"{web.url}/m.zip"
    code, out, err = run("predict", address, "a.tif", "-o", "one.ome.zarr", "--dtype", "float32")
    assert code == 0, err
    assert err.startswith(f"fetch    {address}   ")
    assert "fetch" not in out
    web.shutdown()
    web.server_close()
    code, _, err = run("predict", address, "a.tif", "-o", "two.ome.zarr", "--dtype", "float32")
    assert (code, err) == (0, "")
    assert f"from     {address}" in run("plan", address, "a.tif")[1]
    expected = whole(tiny_package, pixels[None])[0]
    for name in ("one", "two"):
        result = np.asarray(vz.open_image(f"{name}.ome.zarr").dask)
        assert np.abs(result - expected).max() < 1e-3 * expected.std()
        told = provenance(Path(f"{name}.ome.zarr"))["package"]
        assert told["url"] == address
        assert len(told["sha256"]) == 64
    assert "fetched" in run("list", "--json")[1]
    assert run("show", address)[1].splitlines()[-1] == f"next     voidzoo predict {address} IMAGE -o OUT.ome.zarr"


def test_json_lines_stay_json(run: Run, web: Server, tiny_package: Package) -> None:
    """A download says nothing between the lines of JSON, and nothing at all after --quiet."""
    zip_folder(Path(tiny_package.path), web.folder / "m.zip")
    image(Path("a.tif"))
    for words in (["plan", f"{web.url}/m.zip?1", "a.tif", "--json"], ["show", f"{web.url}/m.zip?2", "--json"],
                  ["predict", f"{web.url}/m.zip?3", "a.tif", "-o", "o.ome.zarr", "--json"],
                  ["check", f"{web.url}/m.zip?4", "--for", "all", "--json"],
                  ["predict", f"{web.url}/m.zip?5", "a.tif", "-o", "q.ome.zarr", "-q"]):  # fmt: skip
        code, out, err = run(*words)
        assert (code, err) == (0, ""), words
        assert [json.loads(line) for line in out.splitlines()] or "-q" in words
    assert web.asked["/m.zip?5"] == 1


def test_the_whole_collection_is_listed(run: Run, web: Server, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--all adds what the collection's index has, and only it asks the network; without one that is told."""
    manifest = {"name": "Nuclei\x1b[31m", "license": "MIT", "tags": ["nuclei"], "inputs": [{"axes": "bczyx"}]}
    listing = [{"alias": "affable-shark", "type": "model", "manifest": manifest, "versions": [{"version": "v3"}]}]
    (web.folder / "artifacts").mkdir()
    (web.folder / "artifacts" / "children").write_text(json.dumps(listing))
    monkeypatch.setenv("VOIDZOO_COLLECTION", f"{web.url}/artifacts/children")
    assert "affable-shark" not in run("list")[1]
    assert not web.asked
    line = run("list", "--all")[1].splitlines()[-1]
    assert line.split() == ["affable-shark", "v3", "zyx", "not", "here", "MIT"]
    assert [m["word"] for m in json.loads(run("list", "--all", "NUCLEI", "shark", "--json")[1])] == ["affable-shark"]
    monkeypatch.setenv("VOIDZOO_COLLECTION", f"{web.url}/gone")
    code, _, err = run("list", "--all")
    assert code == 2
    assert "index of the collection cannot be had" in err


def test_secrets_of_an_address_are_not_printed(run: Run, web: Server, tiny_package: Package) -> None:
    """Name, password and token of an address are in no output of any verb, nor in the result."""
    zip_folder(Path(tiny_package.path), web.folder / "m.zip")
    image(Path("a.tif"))
    address = f"http://ada:s3cret@{web.url.removeprefix('http://')}/m.zip?token=s3cret"
    for words in (["show", address], ["show", address, "--json"], ["plan", address, "a.tif", "--json"],
                  ["check", address, "--for", "all", "--json"], ["list"],
                  ["predict", address, "a.tif", "-o", "o.ome.zarr"], ["show", address.replace("m.zip", "gone.zip")]):  # fmt: skip
        assert "s3cret" not in "".join(run(*words)[1:]), words
    assert not [p for p in Path("o.ome.zarr").rglob("*") if p.is_file() and b"s3cret" in p.read_bytes()]


def test_nothing_of_a_fetched_package_is_run(run: Run, web: Server, tiny_package: Package, tmp_path: Path) -> None:
    """A state dict behind an address needs --trust-code as any other."""
    folder = lay_out(tiny_package, tmp_path / "evil")
    (folder / "net.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    told = yaml.safe_load((folder / "rdf.yaml").read_text())
    entry = told["weights"].pop("onnx")
    code = {"source": "net.py", "callable": "Net", "sha256": "0" * 64}
    told["weights"]["pytorch_state_dict"] = {**entry, "architecture": code, "pytorch_version": "2.0"}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
    zip_folder(folder, web.folder / "evil.zip")
    image(Path("a.tif"))
    code_, _, err = run("predict", f"{web.url}/evil.zip", "a.tif", "-o", "o.ome.zarr")
    assert (code_, (tmp_path / "ran").exists()) == (2, False)
    assert "--trust-code" in err
    assert run("show", f"{web.url}/evil.zip")[1].splitlines()[-1].endswith("--trust-code")


@pytest.mark.parametrize("verb", ["open", "name"])
def test_a_local_model_loads_no_network_library(lab: Path, tmp_path: Path, verb: str) -> None:
    """Neither a path nor a shipped name imports httpx, or anything else for the web."""
    word = str(lab / "beads-1.zip") if verb == "open" else "beads"
    code = (
        f"import voidzoo, sys; voidzoo.open_package({word!r})\n"
        "assert not {'httpx', 'ssl', 'urllib.request', 'platformdirs'} & set(sys.modules), sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_shipped_model_is_found_without_any_variable(lab: Path, tmp_path: Path) -> None:
    """A zip in the package's own folder of models opens by name, from any folder, as from a wheel."""
    site = tmp_path / "site" / "voidzoo"
    shutil.copytree(ROOT / "voidzoo", site, ignore=shutil.ignore_patterns("__pycache__"))
    (site / "zoo" / "models").mkdir(exist_ok=True)
    shutil.copy(lab / "beads-2.zip", site / "zoo" / "models" / "zz-only-here-3.zip")
    environment = {k: v for k, v in os.environ.items() if k != "VOIDZOO_MODELS"}
    code = "import voidzoo; print(voidzoo.open_package('zz-only-here').origin['model'], voidzoo.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**environment, "PYTHONPATH": str(site.parent)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.stdout.split() == ["zz-only-here@3", str(site / "__init__.py")], done.stderr


def test_descriptions_that_say_nonsense_are_listed_and_shown(
    run: Run, lab: Path, tiny_package: Package, tmp_path: Path
) -> None:
    """Fields that the network does not need may hold anything: the list and the card leave them out."""
    for number, junk in enumerate((5, "word", {"a": 1}, [None, 3, {"text": 7, "name": [1]}], True)):
        told = dict.fromkeys(("cite", "authors", "tags", "license", "training_data", "documentation", "covers"), junk)
        zip_folder(lay_out(tiny_package, tmp_path / f"junk{number}", **told), lab / f"junk{number}-1.zip")
        assert run("show", f"junk{number}")[0] == 0
    code, out, _ = run("list", "junk")
    assert (code, len(out.splitlines())) == (0, 6)
