"""The index of the bioimage.io collection: what its ids and nicknames stand for, as it is served in November 2026.

Three forms are read, told apart by what they are: the list of the Hypha artifact manager (`.../artifacts/
bioimage.io/children`; each entry an artifact with alias, manifest, versions), the older `collection.json` (entries with
id, nickname, rdf_source) and `id_map.json` (id -> source, sha256). Source: bioimageio.spec 0.5.12 (`_settings`), the
website's code (bioimage-io/bioimage.io), BiaPy.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cache import cache_folder
from .download import Watch, client, download, shown
from .errors import NetworkError, OutputError, PackageError, VoidzooError

COLLECTION = (
    "https://hypha.aicell.io/bioimage-io/artifacts/bioimage.io/children"
    "?limit=10000&filters=%7B%22type%22%3A%22model%22%7D"
)
"""The index that is asked; VOIDZOO_COLLECTION names another, e.g. that of a mirror."""
FRESH_S = 24 * 3600.0
"""Seconds for which the index that lies here is taken."""
MAX_INDEX = 256 * 2**20
OWNER = "bioimage-io/"
DOI = re.compile(r"(10\.\d{4,9}/zenodo\.\d+)(?:/([\w.]+))?")
NICKNAME = re.compile(r"([a-z]+(?:-[a-z]+)+)(?:/(v?\d[\w.]*))?")
OWNED = re.compile(r"([\w.:-]+)(?:/(v?\d[\w.]*))?", re.ASCII)
PAGES = (
    re.compile(
        r"https?://(?:www\.)?bioimage\.io/#/(?:\w+/)?(?:\?.*?\bid=)?((?:bioimage-io(?:/|%2F))?[^/?&]+(?:/v?\d[\w.]*)?)",
        re.I,
    ),
    re.compile(r"https?://(?:dx\.)?doi\.org/(10\.5281/zenodo\.\d+)", re.I),
)
"""Pages about a model, which people copy; group 1 is its id."""


@dataclass(frozen=True)
class Listed:
    """A model of the collection. id: what it is called here; names: all that it is called; rdf: the address of its
    description, with {version} where there are several; versions: the newest last, as the collection calls them.
    """

    id: str
    names: tuple[str, ...]
    rdf: str
    title: str = ""
    versions: tuple[str, ...] = ()
    about: Mapping[str, Any] | None = None


def parse_id(word: str) -> tuple[str, str | None] | None:
    """`affable-shark`, `bioimage-io/affable-shark`, `10.5281/zenodo.1/2`, with /VERSION or @VERSION, or the address of
    a model's page -> (id, version), None for what is no id of the collection.
    """
    for page in PAGES:
        if found := page.match(word):
            word = found[1].replace("%2F", "/").replace("%2f", "/")
            break
    text, _, version = word.partition("@")
    owned = text.startswith(OWNER)
    text = text.removeprefix(OWNER)
    match = DOI.fullmatch(text) or (OWNED if owned else NICKNAME).fullmatch(text)
    return None if match is None else (match[1], version or match[2])


def find(name: str, version: str | None, watch: Watch | None = None) -> tuple[str, str]:
    """The address of a model's description, and `ID@VERSION` (without @ where the collection knows none).

    Raises PackageError for an id or version that is not there, with those that are; NetworkError.
    """
    if version is not None and re.match(r"draft|staged?", version):
        raise PackageError(f"{name}@{version} is a draft that nobody has reviewed.", mend=name)
    models = index(watch)
    listed = _pick(models, name, version)
    if listed is None:
        models = index(watch, newer=True)
        listed = _pick(models, name, version)
    if listed is None:
        raise PackageError(_unknown(name, models), mend="voidzoo list --all")
    if listed.id == f"{name}/{version}":
        return listed.rdf, f"{name}@{version}"
    return _versioned(listed, version)


def _versioned(listed: Listed, version: str | None) -> tuple[str, str]:
    if not listed.versions:
        if version is not None and "{version}" not in listed.rdf:
            raise PackageError(f"the collection has one version of {listed.id}, not {version}.", mend=listed.id)
        query = "" if version is None else version
        rdf = listed.rdf.replace("?version={version}", f"?version={quote(query)}" if query else "")
        return rdf, f"{listed.id}@{query}" if query else listed.id
    chosen = listed.versions[-1] if version is None else _known(listed, version)
    if chosen is None:
        raise PackageError(
            f"{listed.id} has no version {version}; it has {', '.join(listed.versions)}.",
            mend=f"{listed.id}@{listed.versions[-1]}",
        )
    return listed.rdf.replace("{version}", quote(chosen)), f"{listed.id}@{chosen}"


def _known(listed: Listed, version: str) -> str | None:
    """What the collection calls a version: as it is, `2` for `v2`, or the one that the description gives itself."""
    if version in listed.versions:
        return version
    if f"v{version}" in listed.versions:
        return f"v{version}"
    return listed.versions[-1] if str((listed.about or {}).get("version")) == version else None


def _pick(models: list[Listed], name: str, version: str | None) -> Listed | None:
    exact = next((m for m in models if version is not None and m.id == f"{name}/{version}"), None)
    return exact or next((m for m in models if name in m.names), None)


def _unknown(name: str, models: list[Listed]) -> str:
    import difflib

    names = [] if DOI.fullmatch(name) else [n for m in models for n in m.names]  # numbers are not misspelt
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"the collection has no model {name}" + (f" (did you mean {' or '.join(near)}?)." if near else ".")


def index(watch: Watch | None = None, *, newer: bool = False) -> list[Listed]:
    """All models of the collection. The index that lies here is taken for a day, and where no other can be had.

    newer: fetch it, but where that was done within the last minute. Raises NetworkError, PackageError for no index.
    """
    url = os.environ.get("VOIDZOO_COLLECTION") or COLLECTION
    folder = cache_folder() / "collection"
    file = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:20]}.json"
    age = time.time() - file.stat().st_mtime if file.is_file() else float("inf")
    if age > (60.0 if newer else FRESH_S):
        try:
            _fetch(url, file, watch)
        except PackageError:  # what came is no index: the page of a hotel's network, say
            if age == float("inf"):
                raise
        except NetworkError as error:
            if age == float("inf"):
                raise NetworkError(
                    f"the index of the collection cannot be had: {error.what}", error.where,
                    "voidzoo list  shows the models that are here",
                ) from error  # fmt: skip
    return _parsed(file.read_bytes(), url)


def _parsed(text: bytes, url: str) -> list[Listed]:
    try:
        return list(_read(json.loads(text), url))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PackageError(
            f"{shown(url)} is no index of a collection.", where=f"{type(error).__name__}: {str(error)[:200]}",
            mend="VOIDZOO_COLLECTION=URL  of a collection.json or of a Hypha collection's children",
        ) from error  # fmt: skip


def _fetch(url: str, file: Path, watch: Watch | None) -> None:
    """Fetch beside, by a name of our own: two processes may do so at once, and each finds a whole file."""
    beside = file.with_name(f"{file.stem}.{os.getpid()}")
    try:
        beside.mkdir(parents=True, exist_ok=True)
        with client() as http:
            download(http, url, beside / "index", MAX_INDEX, watch)
        _parsed((beside / "index").read_bytes(), url)  # what is no index does not replace one
        (beside / "index").replace(file)
    except VoidzooError:
        raise
    except OSError as error:
        raise OutputError(f"{file.parent} cannot be written: {error.strerror}.", mend="VOIDZOO_CACHE=FOLDER") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(beside)


def _read(found: Any, url: str) -> Iterator[Listed]:
    """The models of an index in any of its forms. Raises ValueError for anything else."""
    if isinstance(found, Mapping) and isinstance(found.get("collection"), list):
        yield from (_entry(e) for e in found["collection"] if isinstance(e, Mapping) and _is_model(e))
        return
    items = found.get("items", found.get("children")) if isinstance(found, Mapping) else found
    if isinstance(items, list):
        yield from (_artifact(e, url) for e in items if isinstance(e, Mapping) and _is_model(e) and e.get("alias"))
        return
    if isinstance(found, Mapping) and found and all(isinstance(e, Mapping) and "source" in e for e in found.values()):
        yield from (Listed(name, (name,), str(e["source"])) for name, e in found.items())
        return
    raise ValueError("neither a list of artifacts, nor collection.json, nor id_map.json")


def _is_model(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") == "model" and (bool(entry.get("rdf_source")) or "manifest" in entry)


def _artifact(entry: Mapping[str, Any], url: str) -> Listed:
    """An artifact of Hypha. Its description is /files/rdf.yaml below it; ?version= names one of its versions."""
    told = entry.get("manifest")
    manifest: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    base = re.split(r"/artifacts/", url, maxsplit=1)[0]
    alias = str(entry["alias"])
    return Listed(
        alias,
        _names(alias, alias.replace(":", "/"), entry.get("id"), manifest),
        f"{base}/artifacts/{quote(alias, safe=':')}/files/rdf.yaml?version={{version}}",
        str(manifest.get("name") or alias),
        _versions(entry.get("versions")),
        manifest,
    )


def _entry(entry: Mapping[str, Any]) -> Listed:
    """An entry of collection.json: rdf_source is that of its newest version, whose name stands in the address."""
    nickname = str(entry.get("nickname") or entry["id"])
    rdf, versions = str(entry["rdf_source"]), _versions(entry.get("versions"))
    newest = str(entry.get("version") or (versions[-1] if versions else ""))
    if f"/{newest}/" in rdf and newest:
        rdf = rdf.replace(f"/{newest}/", "/{version}/")
        versions = (*(v for v in versions if v != newest), newest)
    else:
        versions = ()
    return Listed(
        nickname, _names(nickname, entry["id"], entry), rdf, str(entry.get("name") or nickname), versions, entry
    )


def _names(*sources: Any) -> tuple[str, ...]:
    """All that a model is called: given names, and what its description says."""
    found: list[str] = []
    for source in sources:
        if isinstance(source, Mapping):
            config = source.get("config")
            ours = config.get("bioimageio") if isinstance(config, Mapping) else None
            more = ours if isinstance(ours, Mapping) else {}
            found += [str(s[k]) for s in (source, more) for k in ("id", "nickname", "doi", "concept_doi") if s.get(k)]
        elif source:
            found.append(str(source))
    plain = [re.sub(r"^https?://(dx\.)?doi\.org/", "", n).removeprefix(OWNER) for n in found]
    shortened = [m[1] for n in plain if (m := DOI.fullmatch(n))]
    return tuple(dict.fromkeys([*plain, *shortened]))


def _versions(told: Any) -> tuple[str, ...]:
    """The names of versions, the newest last; drafts are none."""
    names = [str(v.get("version") if isinstance(v, Mapping) else v) for v in told] if isinstance(told, list) else []
    names = [n for n in names if re.match(r"v?\d", n)]
    return tuple(sorted(names, key=lambda n: [int(p) for p in re.findall(r"\d+", n)]))
