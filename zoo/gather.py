"""A model that lies in single files on the web, rdf.yaml and what it names, as one zip."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

from .download import MAX_DOWNLOAD, Watch, download, is_url, sha256_of, shown
from .errors import NetworkError, PackageError
from .loose import listed, mapped
from .package import RUNNABLE
from .package_files import DESCRIPTIONS, MAX_DESCRIPTION, PackageFiles, name_in

if TYPE_CHECKING:
    import httpx

MAX_FILES = 200
SAME_DAY = (1980, 1, 1, 0, 0, 0)
"""The time of all files, so that the same files make the same zip."""


@dataclass(frozen=True)
class Named:
    """A file that a description names. needed: a model cannot be run or proved without it."""

    source: str
    sha256: str | None
    needed: bool


def gather(http: httpx.Client, url: str, rdf: Path, to: Path, watch: Watch | None = None) -> None:
    """Make the zip `to` of a description, fetched from `url` to `rdf`, and of the files that it names.

    What is fetched lies beside `rdf` until then, so that a gathering that was cut off goes on. Raises PackageError for
    a description that is none, names too many files or files elsewhere on the server's disk, or another sha256;
    NetworkError where a file that is needed cannot be had.
    """
    root = rdf.parent / "files"
    files: dict[str, Path] = {}
    room = MAX_DOWNLOAD
    for named in _unique(PackageFiles(str(rdf)).rdf(), url):
        name = _inside(named.source, url)
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not (place.is_file() and named.sha256 == sha256_of(place)):
                download(http, _address(url, named.source), place, max(1, room), watch)
        except NetworkError:
            if named.needed:
                raise
            continue  # a cover or an attachment that is gone
        if named.sha256 is not None and (found := sha256_of(place)) != named.sha256:
            place.unlink()
            raise PackageError(
                f"{shown(url)}: {name} has sha256 {found[:8]}..., {name_in(url)} says {named.sha256[:8]}....",
                mend="tell those who keep it; the file has changed",
            )
        room -= place.stat().st_size
        files[name] = place
    with zipfile.ZipFile(to, "w") as archive:
        for name, file in {_description(url): rdf, **files}.items():
            info = zipfile.ZipInfo(name, SAME_DAY)
            info.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(info, "w", force_zip64=info.file_size > 2**31) as sink:
                while piece := source.read(2**20):
                    sink.write(piece)


def could_be_description(path: Path) -> bool:
    """Whether a file is the description of a resource, by what it says of itself."""
    if path.stat().st_size > MAX_DESCRIPTION:
        return False
    import yaml

    from .rdf_text import read_yaml

    try:
        found = read_yaml(path.read_bytes())
    except (yaml.YAMLError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "format_version" in found


def files_of(rdf: Mapping[str, Any]) -> Iterator[Named]:
    """The files that a description of format 0.3, 0.4 or 0.5 names: weights that can be run first, pictures last."""
    weights = mapped(rdf.get("weights"))
    for kind in RUNNABLE:
        entry = mapped(weights.get(kind))
        yield from _file(entry, needed=True)
        yield from _file(entry.get("external_data"), needed=True)
        yield from _code(entry.get("architecture"), entry.get("architecture_sha256"))
    yield from _code(rdf.get("source"), rdf.get("sha256"))  # 0.3: the code of a state dict
    for tensor in (t for key in ("inputs", "outputs") for t in listed(rdf.get(key))):
        yield from _file(mapped(tensor).get("test_tensor"), needed=True)
        for key in ("preprocessing", "postprocessing"):
            for step in listed(mapped(tensor).get(key)):
                yield from _file({k: v for k, v in mapped(step).items() if k != "kwargs"}, needed=True)
        yield from _file(mapped(tensor).get("sample_tensor"))
    for key in ("test_inputs", "test_outputs"):
        for entry in listed(rdf.get(key)):
            yield from _file(entry, needed=True)
    attached = rdf.get("attachments")
    attached = attached.get("files") if isinstance(attached, Mapping) and "source" not in attached else attached
    for others in (rdf.get("documentation"), rdf.get("covers"), attached, rdf.get("sample_inputs"),
                   rdf.get("sample_outputs")):  # fmt: skip
        for entry in listed(others):
            yield from _file(entry)


def _code(entry: Any, sha256: Any) -> Iterator[Named]:
    """The file of an architecture: `file.py:Class` or a mapping; `module.Class` is in no file."""
    if isinstance(entry, str):
        file, colon, _ = entry.rpartition(":")
        entry = {"source": file, "sha256": sha256} if colon else None
    yield from _file(entry, needed=True)


def _file(entry: Any, needed: bool = False) -> Iterator[Named]:
    """One file: its name, or a mapping with source and sha256."""
    sha256 = None
    if isinstance(entry, Mapping):
        entry, sha256 = entry.get("source"), entry.get("sha256")
    if not isinstance(entry, str) or not entry:
        return
    if is_url(entry):
        if needed:  # a link in the documentation is no file of the model
            yield Named(entry, sha256 and str(sha256), needed)
        return
    if PurePosixPath(entry).suffix:
        yield Named(entry, sha256 and str(sha256), needed)


def _unique(rdf: Mapping[str, Any], url: str) -> list[Named]:
    found = {n.source: n for n in reversed(list(files_of(rdf)))}
    if len(found) > MAX_FILES:
        raise PackageError(f"{shown(url)} names {len(found)} files; {MAX_FILES} are taken at most.")
    return list(reversed(found.values()))


def _inside(source: str, url: str) -> str:
    """The name of a file inside the package. Raises PackageError for one that would lie outside."""
    name = name_in(source) if is_url(source) else source
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.name:
        raise PackageError(f"{shown(url)} refers to {name!r}, which does not lie beside it.")
    if str(path).lower() == _description(url).lower():
        raise PackageError(f"{shown(url)} refers to itself as {name!r}.")
    return str(path)


def _address(rdf_url: str, source: str) -> str:
    """Where a file lies: beside the description, in the same version; Zenodo's end in `/NAME/content`."""
    if is_url(source):
        if rdf_url.startswith("https:") and not source.startswith("https:"):
            raise NetworkError(f"{shown(rdf_url)} refers from https to {shown(source)}.")
        return source
    parts = urlsplit(rdf_url)
    path, zenodo = parts.path, ""
    if path.endswith("/content"):
        path, zenodo = path.removesuffix("/content"), "/content"
    folder = path.rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/{quote(str(PurePosixPath(source)))}{zenodo}",
                       parts.query, ""))  # fmt: skip


def _description(url: str) -> str:
    """What the description is called inside: as it was where that is a name for one."""
    name = name_in(url)
    return name if name in DESCRIPTIONS else DESCRIPTIONS[0]
