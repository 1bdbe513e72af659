"""Packages behind addresses: a real server on loopback that works, breaks off, lies, redirects, drips and never ends."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_disk import SmallDisk
from tests.web import TLS, Server, lay_out, serving, zip_folder
from voidzoo.zoo import cache, download, gather
from voidzoo.zoo.catalogue import resolve
from voidzoo.zoo.errors import NetworkError, OutputError, PackageError
from voidzoo.zoo.package import Package, open_package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(web: Server, tiny_package: Package) -> str:
    """The address of a zip."""
    zip_folder(Path(tiny_package.path), web.folder / "m.zip")
    return f"{web.url}/m.zip"


def test_a_zip_is_fetched_once(web: Server, served: str, tiny_package: Package, tmp_path: Path) -> None:
    """The first use fetches with events up to the whole length, the next ones take the kept copy, also with no server."""
    events: list[download.Fetching] = []
    first = open_package(served, watch=events.append)
    size = (web.folder / "m.zip").stat().st_size
    assert (events[0].done, events[-1].done, events[-1].total) == (0, size, size)
    assert first.onnx() == tiny_package.onnx()
    sha256 = hashlib.sha256((web.folder / "m.zip").read_bytes()).hexdigest()
    assert first.origin == {"url": served, "sha256": sha256}
    (web.folder / "m.zip").unlink()
    assert open_package(served).origin == first.origin
    assert web.asked["/m.zip"] == 1
    assert {p.name for p in Path(first.path).parent.iterdir()} == {"m.zip", "entry.json", "lock"}


def test_a_damaged_copy_is_fetched_anew(web: Server, served: str) -> None:
    """One changed byte of the kept zip is noticed; without a server that is said, with how to mend it."""
    kept = Path(resolve(served).path)
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    assert Path(resolve(served).path).read_bytes() == (web.folder / "m.zip").read_bytes()
    assert web.asked["/m.zip"] == 2
    kept.write_bytes(data)
    web.statuses["/m.zip"] = itertools.repeat(500)
    with pytest.raises(NetworkError, match=r"500(.|\n)*copy that is kept here is damaged"):
        resolve(served)
    kept.unlink()
    web.statuses.clear()
    assert resolve(served).origin["url"] == served


def test_no_server(web: Server, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection is a NetworkError at once, that says that nothing is kept here."""
    monkeypatch.setattr(download, "PAUSES", (60.0, 60.0))  # a second try would take a minute
    web.shutdown()
    web.server_close()
    began = time.monotonic()
    with pytest.raises(
        NetworkError, match=r"cannot be reached(.|\n)*no copy of it is kept here(.|\n)*check the network"
    ):
        resolve(served)
    assert time.monotonic() - began < 30


def test_a_transfer_that_breaks_off_goes_on(web: Server, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off again and again the bytes that came are kept: the server sends each about once, also over two calls."""
    body = (web.folder / "m.zip").read_bytes()
    step = len(body) // 8
    web.cuts["/m.zip"] = iter([step] * 3)
    with pytest.raises(NetworkError, match=r"breaks off(.|\n)*goes on from there"):
        resolve(served)
    assert Path(resolve(served).path).read_bytes() == body
    assert web.sent == len(body)
    assert [h.get("Range") for h in web.headers] == [None, *(f"bytes={step * n}-" for n in (1, 2, 3))]


@pytest.mark.parametrize("how", ["no ranges", "changed"])
def test_what_cannot_go_on_begins_anew(web: Server, served: str, how: str) -> None:
    """A server without ranges, and one whose file has changed in between, send all of it again; nothing is mixed."""
    web.cuts["/m.zip"] = iter([1000])
    web.ranges = how != "no ranges"
    if how == "changed":
        web.cuts["/m.zip"] = iter([1000] * 3)
        with pytest.raises(NetworkError):
            resolve(served)
        with zipfile.ZipFile(web.folder / "m.zip", "a") as archive:
            archive.writestr("more.txt", "another file")
    assert Path(resolve(served).path).read_bytes() == (web.folder / "m.zip").read_bytes()


def test_answers_that_are_no_package(web: Server, served: str, tmp_path: Path) -> None:
    """404, 403, a page, an empty file, half a zip, a zip of something else, a promise that is not kept: each is told,
    and leaves nothing that a later call would take.
    """
    body = (web.folder / "m.zip").read_bytes()
    for name, data in {"page.html": b"<!DOCTYPE html>\x1b[31m" * 9, "empty": b"", "half.zip": body[: len(body) // 2],
                       "list": b"- 1\n- 2\n", "long.zip": body}.items():  # fmt: skip
        (web.folder / name).write_bytes(data)
    with zipfile.ZipFile(web.folder / "else.zip", "w") as archive:
        archive.writestr("readme.txt", "no model")
    web.longer["/long.zip"] = 100
    web.statuses["/closed.zip"] = itertools.repeat(403)
    cases = {"gone.zip": "there is nothing at .*gone.zip .404.", "closed.zip": "not open to everyone .403.",
             "page.html": "neither a zip nor an rdf.yaml(.|\n)*begins with '<!DOCTYPE html> ", "empty": "it is empty",
             "half.zip": "neither a zip", "list": "neither a zip", "else.zip": r"/else.zip has no rdf\.yaml",
             "long.zip": "breaks off"}  # fmt: skip
    for name, text in cases.items():
        with pytest.raises((NetworkError, PackageError), match=text) as caught:
            resolve(f"{web.url}/{name}")
        assert "\x1b" not in str(caught.value)
        assert str(tmp_path / "cache") not in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.zip"))
    assert not cache.cached()


def test_bodies_without_end_and_beyond_the_limit(
    web: Server, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that sends for ever is left at the limit, one that says more than the limit before the first byte."""
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 10**6)
    (web.folder / "endless.zip").write_bytes(b"PK")
    web.endless.add("/endless.zip")
    with pytest.raises(NetworkError, match="sends more than 1,000,000 bytes"):
        resolve(f"{web.url}/endless.zip")
    (web.folder / "large.zip").write_bytes(os.urandom(3 * 10**7))
    with pytest.raises(NetworkError, match=r"has 30,000,000 bytes, more than 1,000,000"):
        resolve(f"{web.url}/large.zip")
    assert web.sent < 2 * 10**7
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_servers_that_are_silent_or_drip(web: Server, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither silence nor a few bytes now and then keep a command for ever."""
    web.pause = 60.0  # longer than this process may be kept from its processor: none of the tries may get an answer
    monkeypatch.setattr(download, "SILENCE_S", 0.1)
    with pytest.raises(NetworkError, match="breaks off: ReadTimeout"):
        resolve(served)
    web.pause, web.piece = 0.05, 1000
    monkeypatch.setattr(download, "SILENCE_S", 5.0)
    monkeypatch.setattr(download, "SLOW_S", 0.2)
    monkeypatch.setattr(download, "SLOW_BYTES", 10**9)
    with pytest.raises(NetworkError, match="bytes came in 0 s"):
        resolve(served)


def test_errors_that_pass_are_tried_again(web: Server, served: str) -> None:
    """500 and 429 are asked again, 404 is not."""
    web.statuses["/m.zip"] = iter([500, 429])
    assert resolve(served)
    assert web.asked["/m.zip"] == 3
    with pytest.raises(NetworkError):
        resolve(f"{web.url}/gone.zip")
    assert web.asked["/gone.zip"] == 1


def test_redirects(web: Server, served: str, tmp_path: Path, tiny_package: Package) -> None:
    """A redirect to http is followed, one to a file or round and round is not."""
    secret = zip_folder(Path(tiny_package.path), tmp_path / "secret.zip")
    web.redirects |= {"/r.zip": "/m.zip", "/f.zip": secret.as_uri(), "/l.zip": "/l.zip", "/d.zip": "ftp://127.0.0.1/x"}
    assert open_package(f"{web.url}/r.zip").sha256 == tiny_package.sha256
    for name, text in {"f": "leads from http to file", "d": "from http to ftp", "l": "TooManyRedirects"}.items():
        with pytest.raises(NetworkError, match=text):
            resolve(f"{web.url}/{name}.zip")


def test_https_is_not_left(
    web: Server, served: str, tmp_path: Path, tiny_package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    """http may lead to https, never back; a description behind https names no files behind http; a certificate that
    nobody trusts is told.
    """
    with serving(tmp_path / "safe", tls=True) as safe:
        zip_folder(Path(tiny_package.path), safe.folder / "m.zip")
        web.redirects["/up.zip"] = f"{safe.url}/m.zip"
        safe.redirects["/down.zip"] = served
        with pytest.raises(NetworkError, match=r"cannot be reached(.|\n)*CERTIFICATE_VERIFY_FAILED"):
            resolve(f"{safe.url}/m.zip")
        monkeypatch.setenv("SSL_CERT_FILE", str(TLS))
        assert open_package(f"{web.url}/up.zip").sha256 == tiny_package.sha256
        with pytest.raises(NetworkError, match="leads from https to http"):
            resolve(f"{safe.url}/down.zip")
        folder = lay_out(tiny_package, safe.folder / "m")
        told = yaml.safe_load((folder / "rdf.yaml").read_text())
        told["weights"]["onnx"]["source"] = f"{web.url}/weights.onnx"
        (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
        with pytest.raises(NetworkError, match="refers from https to http"):
            resolve(f"{safe.url}/m/rdf.yaml")


def test_credentials_are_sent_and_never_shown(web: Server, served: str, tmp_path: Path) -> None:
    """Name, password and keys of an address reach the server that they are for, and no message, record or file."""
    other = f"localhost:{web.server_address[1]}"
    web.redirects["/away.zip"] = f"http://{other}/m.zip"
    told = []
    for path in ("m.zip?token=s3cret&v=1", "away.zip", "gone.zip?api_key=s3cret"):
        word = f"http://ada:s3cret@{web.url.removeprefix('http://')}/{path}"
        events: list[Any] = []
        try:
            told.append(str(open_package(word, watch=events.append).origin))
        except NetworkError as error:
            told.append(str(error))
        told.append(str(events))
    assert "s3cret" not in " ".join(told)
    assert "token=...&v=1" in told[0]
    sent = [h.get("Authorization", "") for h in web.headers]
    assert [bool(s) for s in sent] == [True, True, False, True]
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if b"s3cret" in p.read_bytes() or "s3cret" in str(p)]


def test_one_sha256_and_no_other(web: Server, served: str) -> None:
    """#sha256= insists: the right one opens, another is refused, half of one is no sha256; the record can be pasted."""
    right = hashlib.sha256((web.folder / "m.zip").read_bytes()).hexdigest()
    origin = open_package(f"{served}#sha256={right}").origin
    assert origin == {"url": served, "sha256": right}
    with pytest.raises(PackageError, match=rf"another file: its sha256 is {right[:12]}"):
        open_package(f"{served}#sha256={'0' * 64}")
    with pytest.raises(PackageError, match="64 digits"):
        open_package(f"{served}#sha256=abc")
    assert open_package(served).origin["sha256"] == right


def test_processes_that_fetch_the_same_do_not_trample(web: Server, served: str, tmp_path: Path) -> None:
    """Four processes at once: one fetches, the others wait for it, all open the same whole zip."""
    web.pause = 0.1
    code = f"from voidzoo.zoo.catalogue import resolve\nprint(resolve({served!r}).origin['sha256'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
               for _ in range(4)]  # fmt: skip
    told = {p.communicate(timeout=60)[0].strip() for p in running}
    assert told == {hashlib.sha256((web.folder / "m.zip").read_bytes()).hexdigest()}
    assert web.asked["/m.zip"] == 1


def test_a_process_that_was_killed_leaves_no_lock(web: Server, served: str) -> None:
    """SIGKILL in the middle of a transfer: the next call goes on where it was."""
    web.pause = 0.2
    code = f"from voidzoo.zoo.catalogue import resolve\nresolve({served!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not web.sent and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    web.pause = 0.0
    assert Path(resolve(served).path).read_bytes() == (web.folder / "m.zip").read_bytes()


def test_a_cache_that_cannot_be_written(
    web: Server, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file where the cache's folder should be is told, with the variable that names another."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VOIDZOO_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"cannot be written(.|\n)*VOIDZOO_CACHE=FOLDER"):
        resolve(served)


def test_a_full_disk(web: Server, served: str, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that says that it will not fit is not begun, one that does not say so ends in words; both leave room
    for the next one.
    """
    monkeypatch.setenv("VOIDZOO_CACHE", str(small_disk.folder))
    (web.folder / "large.zip").write_bytes(os.urandom(10**7))
    with pytest.raises(OutputError, match=r"needs 10 MB(.|\n)*VOIDZOO_CACHE=FOLDER"):
        resolve(f"{web.url}/large.zip")
    web.endless.add("/large.zip")
    with pytest.raises(OutputError, match="No space left on device"):
        resolve(f"{web.url}/large.zip")
    assert resolve(served)


# --- rdf.yaml and the files beside it


def test_a_description_and_its_files(web: Server, tiny_package: Package) -> None:
    """rdf.yaml is fetched with what it names beside it, version and all; the zip of it is the same each time."""
    lay_out(tiny_package, web.folder / "m")
    word = f"{web.url}/m/rdf.yaml?version=v3"
    package = open_package(word)
    assert Path(package.path).name == "m.zip"
    assert package.onnx() == tiny_package.onnx()
    assert package.files.read(package.test_input)
    with zipfile.ZipFile(package.path) as archive:
        names = sorted(archive.namelist())
    assert names == ["cover.png", "rdf.yaml", "test_input.npy", "test_output.npy", "weights.onnx"]
    assert set(web.asked) == {f"/m/{n}?version=v3" for n in [*names, "gone.png"]}
    Path(package.path).unlink()
    assert open_package(word).origin == package.origin


def test_files_by_address_and_of_zenodo(web: Server, tiny_package: Package) -> None:
    """Weights that the description names by URL lie in the package under their name; Zenodo's files end in /content."""
    folder = lay_out(tiny_package, web.folder / "a")
    told = yaml.safe_load((folder / "rdf.yaml").read_text())
    told["weights"]["onnx"]["source"] = f"{web.url}/elsewhere/net.onnx?download=1"
    (web.folder / "elsewhere").mkdir()
    (folder / "weights.onnx").rename(web.folder / "elsewhere" / "net.onnx")
    zenodo = web.folder / "api/records/7/files"
    for file in folder.iterdir():
        (zenodo / file.name).mkdir(parents=True)
        shutil.copy(file, zenodo / file.name / "content")
    (zenodo / "rdf.yaml" / "content").write_text(yaml.safe_dump(told))
    assert open_package(f"{web.url}/api/records/7/files/rdf.yaml/content").onnx() == tiny_package.onnx()


def test_descriptions_that_lead_elsewhere_or_lie(web: Server, tiny_package: Package, tmp_path: Path) -> None:
    """Names that climb, other sha256, weights that are not there and too many files are refused; nothing is kept."""
    folder = lay_out(tiny_package, web.folder / "m")
    good = (folder / "rdf.yaml").read_text()
    cases: dict[str, tuple[Any, str]] = {
        "climbs": ({"source": "../../secret.onnx"}, "does not lie beside it"),
        "absolute": ({"source": "/etc/hostname.onnx"}, "does not lie beside it"),
        "drive": ({"source": "C:\\x.onnx"}, "does not lie beside it"),
        "itself": ({"source": "RDF.yaml"}, "refers to itself"),
        "gone": ({"source": "gone.onnx"}, "there is nothing at"),
        "lies": ({"source": "weights.onnx", "sha256": "0" * 64}, "weights.onnx has sha256"),
    }
    for weights, text in cases.values():
        told = yaml.safe_load(good)
        told["weights"]["onnx"] |= weights
        (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
        with pytest.raises((PackageError, NetworkError), match=text) as caught:
            resolve(f"{web.url}/m/rdf.yaml")
        assert str(tmp_path / "cache") not in str(caught.value)
    told = yaml.safe_load(good) | {"covers": [f"{i}.png" for i in range(500)]}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(PackageError, match=r"names 50\d files; 200"):
        resolve(f"{web.url}/m/rdf.yaml")
    assert not cache.cached()
    (folder / "rdf.yaml").write_text(good)
    assert open_package(f"{web.url}/m/rdf.yaml").onnx() == tiny_package.onnx()


def test_what_came_of_many_files_is_kept(web: Server, tiny_package: Package) -> None:
    """Where a file cannot be had, those with a sha256 that came before are not fetched again."""
    lay_out(tiny_package, web.folder / "m")
    web.statuses["/m/test_output.npy"] = itertools.chain([500] * 3, itertools.repeat(200))
    with pytest.raises(NetworkError, match="500"):
        resolve(f"{web.url}/m/rdf.yaml")
    resolve(f"{web.url}/m/rdf.yaml")
    assert web.asked["/m/weights.onnx"] == 1


def test_files_that_descriptions_of_any_format_name() -> None:
    """Formats 0.3, 0.4 and 0.5 say files in their own ways: code, external data, lists, attachments."""
    new = {
        "weights": {
            "onnx": {"source": "a.onnx", "sha256": "1", "external_data": {"source": "a.data"}},
            "pytorch_state_dict": {"source": "a.pt", "architecture": {"source": "net.py", "callable": "Net"}},
            "keras_hdf5": {"source": "a.h5"},
        },
        "inputs": [{"test_tensor": {"source": "in.npy"}, "sample_tensor": {"source": "in.tif"},
                    "preprocessing": [{"id": "custom", "source": "pre.py", "kwargs": {"source": "no.txt"}}]}],
        "outputs": [{"test_tensor": {"source": "out.npy"}}],
        "documentation": {"source": "README.md"}, "attachments": [{"source": "more.txt"}],
    }  # fmt: skip
    assert [n.source for n in gather.files_of(new)] == [
        "a.onnx", "a.data", "a.pt", "net.py", "in.npy", "pre.py", "in.tif", "out.npy", "README.md", "more.txt",
    ]  # fmt: skip
    old = {
        "weights": {"pytorch_state_dict": {"source": "./w.pt", "architecture": "unet.py:UNet", "sha256": "2",
                                           "architecture_sha256": "3"}},
        "test_inputs": ["i.npy"], "test_outputs": ["o.npy"], "covers": ["c.png"], "documentation": "README.md",
        "attachments": {"files": ["f.txt"]}, "sample_inputs": ["s.tif"],
    }  # fmt: skip
    found = {n.source: (n.sha256, n.needed) for n in gather.files_of(old)}
    assert not list(gather.files_of({"source": "package.models.UNet"})), "a class of an installed package is no file"
    assert [n.source for n in gather.files_of({"source": "./unet.py:UNet"})] == ["./unet.py"]
    assert found["unet.py"] == ("3", True)
    assert found["./w.pt"] == ("2", True)
    assert {n for n, (_, needed) in found.items() if not needed} == {"README.md", "c.png", "f.txt", "s.tif"}
