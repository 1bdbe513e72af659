"""The files of a model package, read from a folder or out of a zip: nothing is extracted, no path leads outside."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from .errors import PackageError
from .package_zip import AGAIN, PackageZip, leads_outside
from .rdf_text import read_yaml

MAX_DESCRIPTION = 2**20
MAX_TEXT = 4 * 2**20
MAX_COVER = 64 * 2**20
MAX_TENSOR = 2**30
MAX_FILE = 8 * 2**30
"""Bytes of rdf.yaml, of documentation and code, of a cover, of a test tensor, of weights."""
DESCRIPTIONS = ("rdf.yaml", "bioimageio.yaml", "model.yaml")
"""What the description is called, the first that exists; `ANY.model.yaml` and the like where there is only one."""


class PackageFiles:
    """The files of a package: a folder, a zip (with one folder inside, or none), or a folder by its yaml file."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.is_yaml = Path(path).suffix.lower() in (".yaml", ".yml") and Path(path).is_file()
        self.is_zip = not self.is_yaml and Path(path).is_file()

    @property
    def folder(self) -> Path:
        """Where the files of a package that is no zip lie."""
        return Path(self.path).parent if self.is_yaml else Path(self.path)

    @cached_property
    def description(self) -> str:
        """The name of the description, e.g. `rdf.yaml`. Raises PackageError where there is none, or no saying which."""
        if self.is_yaml:
            return Path(self.path).name
        names = self._names()
        for name in DESCRIPTIONS:
            if name in names:
                return name
        found = sorted(n for n in names if n.endswith(tuple(f".{d}" for d in DESCRIPTIONS)))
        if len(found) > 1:
            raise PackageError(
                f"{self.path} has {len(found)} descriptions: {', '.join(found)}.",
                mend=f"one of them: {self.folder / found[0]}",
            )
        if not found:
            raise self._missing(DESCRIPTIONS[0])
        return found[0]

    def other_descriptions(self) -> list[str]:
        """Files that another reader may take for the description: it need not choose as we do."""
        names = sorted(self._zip.entries) if self.is_zip else sorted(self._names())
        return [n for n in names if _is_description(n) and n != self._root_of_zip + self.description]

    @property
    def _root_of_zip(self) -> str:
        return self._root if self.is_zip else ""

    def rdf(self) -> dict[str, Any]:
        """The description as it stands. Raises PackageError where it is missing, too large, no YAML or no mapping."""
        raw = self.read(self.description, limit=MAX_DESCRIPTION)
        try:
            rdf = read_yaml(raw)
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that is none, too
            raise PackageError(
                f"{self.path}: {self.description} is not YAML as descriptions are.",
                where=" ".join(str(error).split())[:200], mend=AGAIN,
            ) from error  # fmt: skip
        if not isinstance(rdf, dict):
            raise PackageError(f"{self.path}: {self.description} is not a description of a model.")
        return rdf

    def read(self, name: str, sha256: str | None = None, limit: int = MAX_FILE) -> bytes:
        """The bytes of a file. Raises PackageError if it is missing, too large, outside, or has another sha256.

        A file that the description names by URL is taken from the package where one of that name lies in it.
        """
        if name.startswith(("http://", "https://")):
            return self._read_downloaded(name, sha256, limit)
        inside = PurePosixPath(name)
        if leads_outside(name) or "\\" in name or ":" in name:
            raise PackageError(f"{self.path} refers to {name[:200]!r}, which does not lie in the package.", mend=AGAIN)
        data = self._read_zip(str(inside), limit) if self.is_zip else self._read_folder(str(inside), limit)
        if sha256 is not None and (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise PackageError(
                f"{self.path} is not what was exported: {name} has sha256 {found[:8]}..., "
                f"{self.description} says {sha256[:8]}....",
                mend="export again, or get the package again from where it came",
            )
        return data

    def _read_downloaded(self, url: str, sha256: str | None, limit: int) -> bytes:
        name = name_in(url)
        if name in self._names():
            return self.read(name, sha256, limit)
        raise PackageError(
            f"{self.path} names a file that is not in it: {url}.",
            mend="download the whole model: bioimageio package SOURCE MODEL.zip",
        )

    @cached_property
    def _zip(self) -> PackageZip:
        return PackageZip(self.path)

    @cached_property
    def _root(self) -> str:
        """The one folder inside of a zip that holds everything, or nothing."""
        names = [n for n in self._zip.entries if not n.startswith("__MACOSX/")]
        tops = {n.partition("/")[0] for n in names}
        inside = len(tops) == 1 and all("/" in n for n in names)
        return f"{tops.pop()}/" if inside and _has_description(n.partition("/")[2] for n in names) else ""

    def _names(self) -> set[str]:
        """The files at the top of the package. Raises PackageError for a folder that cannot be read."""
        if self.is_zip:
            names = {n.removeprefix(self._root) for n in self._zip.entries if n.startswith(self._root)}
            return {n for n in names if n and "/" not in n}
        try:
            return {p.name for p in self.folder.iterdir()} if self.folder.is_dir() else set()
        except OSError as error:
            raise PackageError(f"{self.path} cannot be read: {error.strerror or error}.") from error

    def _read_zip(self, name: str, limit: int) -> bytes:
        try:
            return self._zip.read(self._root + name, limit)
        except KeyError:
            raise self._missing(name) from None

    def _read_folder(self, name: str, limit: int) -> bytes:
        try:
            root = self.folder.resolve()
            file = (root / name).resolve()
            if not file.is_relative_to(root):
                raise PackageError(f"{self.path}: {name} is a link out of the package.", mend=AGAIN)
            if not file.is_file():  # a pipe or a device would never end
                raise self._missing(name)
            if (size := file.stat().st_size) > limit:
                raise PackageError(f"{self.path}: {name} has {size:,} bytes, more than {limit:,}.", mend=AGAIN)
            with file.open("rb") as stream:
                return stream.read(limit)
        except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
            why = getattr(error, "strerror", "") or error
            raise PackageError(f"{self.path}: {name} cannot be read: {why}.") from error
        except MemoryError as error:
            raise PackageError(f"{self.path}: {name} does not fit into memory.") from error

    def _missing(self, name: str) -> PackageError:
        return PackageError(
            f"{self.path} has no {name[:200]}.",
            mend="a bioimage.io package is a zip or folder with rdf.yaml and weights",
        )


def name_in(url: str) -> str:
    """The name of a file in its address; Zenodo's end in `/NAME/content`."""
    return PurePosixPath(url.partition("?")[0].removesuffix("/content")).name


def _is_description(name: str) -> bool:
    return name in DESCRIPTIONS or name.endswith(tuple(f".{d}" for d in DESCRIPTIONS))


def _has_description(names: Iterable[str]) -> bool:
    return any(_is_description(n) for n in names if "/" not in n)
