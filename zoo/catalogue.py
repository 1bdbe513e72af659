"""What a model's word stands for: a path, a model that comes with voidzoo or lies in a lab's folder, an address of the
web, or an id of bioimage.io. Only the last two ask the network, and only for what is not kept here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import NetworkError, PackageError, nearest

if TYPE_CHECKING:
    from packaging.version import Version

    from .cache import Cached
    from .download import Watch

FILES = (".zip", ".yaml", ".yml", ".onnx", ".pt", ".pth", ".tif", ".tiff", ".zarr")
"""Endings of words that are paths, whatever else they look like."""
NAME = re.compile(r"([A-Za-z0-9][\w.-]*?)(?:@([\w.!+]+))?", re.ASCII)


@dataclass(frozen=True)
class Found:
    """Where a package lies, and what a result records of it: `model` (NAME@VERSION), `url`, `sha256` of the zip, or
    its `path`.
    """

    path: str
    origin: dict[str, str]


@dataclass(frozen=True)
class Shipped:
    """A model that comes with voidzoo or lies in a folder of VOIDZOO_MODELS. version: empty where its name has none."""

    name: str
    version: str
    path: Path

    @property
    def word(self) -> str:
        """What names it and no other."""
        return f"{self.name}@{self.version}" if self.version else self.name


def resolve(word: str | Path, watch: Watch | None = None) -> Found:
    """The package that a word names. In this order: a path that exists; NAME or NAME@VERSION of a model that comes
    with voidzoo or lies in a folder of VOIDZOO_MODELS (without a version the newest); an address of a zip or of an
    rdf.yaml whose files lie beside it, with #sha256=... to insist on one; an id or nickname of bioimage.io, with
    @VERSION or /VERSION. A Path, and `./...`, are always paths.

    watch: gets the `Fetching` events of a download. Raises PackageError for a word that names nothing, with the
    nearest ones that do; NetworkError where what must be fetched cannot be; OutputError.
    """
    text = str(word)
    if _exists(text):
        return Found(text, {"path": text})
    if isinstance(word, Path) or _is_path(text):
        raise _no_model(text)
    if (shipped := _shipped(text)) is not None:
        from .download import sha256_of

        return Found(str(shipped.path), {"model": shipped.word, "sha256": sha256_of(shipped.path)})
    from .collection import parse_id
    from .download import is_url

    if (asked := parse_id(text)) is not None:
        if not is_url(text) and "/" not in text and (near := _nearly(asked[0])):
            raise PackageError(
                f"there is no model {text} (did you mean {near}?).",
                mend=f"{near}; or bioimage-io/{text} if that of bioimage.io is meant",
            )
        return _of(_from_collection(*asked, watch))
    if is_url(text):
        from .cache import fetch_package

        url, sha256 = _pinned(text)
        return _of(fetch_package(url, sha256, watch=watch))
    raise _no_model(text)


def shipped_models() -> list[Shipped]:
    """The models of VOIDZOO_MODELS (folders with `:` between them, `;` on Windows) and those that come with voidzoo, by
    name and version; of two that are called the same the first folder's counts.
    """
    found: dict[str, Shipped] = {}
    for folder in _folders():
        for file in sorted(folder.glob("*.zip")):
            name, dash, version = file.stem.rpartition("-")
            model = Shipped(name, version, file) if dash and _version(version) else Shipped(file.stem, "", file)
            if not model.name.startswith("."):
                found.setdefault(model.word, model)
    return sorted(found.values(), key=lambda m: (m.name, _order(m)))


def _folders() -> Iterator[Path]:
    told = [f for f in os.environ.get("VOIDZOO_MODELS", "").split(os.pathsep) if f]
    for folder in told:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise PackageError(f"VOIDZOO_MODELS names {folder}, which is no folder.", mend="unset VOIDZOO_MODELS")
        yield path
    from importlib.resources import files

    with_us = Path(str(files(__package__) / "models"))
    if with_us.is_dir():
        yield with_us


def _shipped(text: str) -> Shipped | None:
    """The model of a NAME or NAME@VERSION, None for another name. Raises PackageError for another version."""
    match = NAME.fullmatch(text)
    if match is None:
        return None
    name, version = match[1], match[2]
    models = [m for m in shipped_models() if m.name == name]
    if not models:
        return None
    if version is None:
        final = [m for m in models if not ((known := _version(m.version)) and known.is_prerelease)]
        return (final or models)[-1]
    wanted = _version(version)
    for model in models:
        if model.version == version or (wanted and wanted == _version(model.version)):
            return model
    there = [m.version or "one without a version" for m in models]
    raise PackageError(f"{name} has no version {version}; there are {', '.join(there)}.", mend=models[-1].word)


def _order(model: Shipped) -> tuple[bool, Any]:
    version = _version(model.version)
    return (version is not None, version)


def _version(text: str) -> Version | None:
    """A version as PEP 440 has them, None for what is none."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(text) if text[:1].isdigit() else None
    except InvalidVersion:
        return None


def _from_collection(name: str, version: str | None, watch: Watch | None) -> Cached:
    """A model of the collection. A version that was fetched before needs no network; nor, where there is none, does
    the newest that was fetched.
    """
    from .cache import cached, fetch_package, kept
    from .collection import find

    before = [c for c in cached() if c.model.partition("@")[0] == name]
    for one in before:
        if version is not None and one.model == f"{name}@{version}" and (good := kept(one.url)) is not None:
            return good
    try:
        url, model = find(name, version, watch)
        return fetch_package(url, model=model, watch=watch)
    except NetworkError:
        for one in sorted(before, key=lambda c: c.fetched, reverse=True):
            if version is None and (good := kept(one.url)) is not None:
                return good
        raise


def _of(found: Cached) -> Found:
    origin = {"model": found.model, "url": found.url, "sha256": found.sha256}
    return Found(found.path, {k: v for k, v in origin.items() if v})


def _pinned(text: str) -> tuple[str, str | None]:
    """An address, and the sha256 behind its #."""
    url, _, fragment = text.partition("#")
    key, equals, value = fragment.partition("=")
    if key != "sha256" or not equals:
        return url, None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise PackageError(f"#sha256={value[:12]}... is no sha256: it has 64 digits of 0 to f.", mend=url)
    return url, value.lower()


def _exists(text: str) -> bool:
    try:
        return bool(text) and Path(text).exists()
    except OSError:  # longer than a name can be
        return False


def _is_path(text: str) -> bool:
    """Whether it can be nothing but a path, so that a misspelt one asks no network."""
    from .collection import parse_id
    from .download import is_url

    if is_url(text):
        return False
    if text.startswith((".", "/", "~")) or "\\" in text or text.lower().endswith(FILES):
        return True
    return "/" in text and parse_id(text) is None


def _nearly(name: str) -> str:
    """The model here that a name is a slip of, so that a slip asks no network; empty where there is none."""
    import difflib

    return next(iter(difflib.get_close_matches(name, {m.name for m in shipped_models()}, n=1, cutoff=0.8)), "")


def _no_model(text: str) -> PackageError:
    names = sorted({m.name for m in shipped_models()})
    near = nearest(Path(text.partition("@")[0]).name.removesuffix(".zip"), names)
    return PackageError(
        f"there is no model {text}{near}.",
        where=f"models here: {', '.join(names)}" if names else "",
        mend="a path to a package: a .zip or a folder with rdf.yaml; or a name of  voidzoo list",
    )
