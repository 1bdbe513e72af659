"""The result as OME-Zarr 0.5 or 0.4: groups, arrays and metadata, written as files without zarr-python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...zoo.errors import OutputError
from .array import DurableArray
from .durable import Written, sync
from .layer import Layer, check_layers
from .ngff import attributes, group_metadata, image_metadata
from .pyramid import Cascade

__all__ = ["Layer", "Store", "read_provenance"]

VERSIONS = {"0.5": 3, "0.4": 2}
"""The Zarr format under each version of OME-Zarr."""


class Store:
    """A group on disk that becomes an OME-Zarr image, or a group of them. Its arrays are written block by block.

    version: "0.5" (Zarr v3) or "0.4" (Zarr v2; it has no shards). Raises OutputError for another.
    """

    def __init__(self, path: Path, version: str = "0.5") -> None:
        if version not in VERSIONS:
            raise OutputError(f"there is no OME-Zarr {version} here.", mend=" or ".join(VERSIONS))
        self.path = path
        self.version = version
        self.format = VERSIONS[version]

    def create(self, layers: Sequence[Layer]) -> None:
        """Make the groups and empty arrays, whole or not at all, on the disk when this returns.

        One image lies at the root, several in subgroups by name, labels in `labels/NAME` of their image.
        Raises OutputError for names that cannot lie side by side.
        """
        check_layers(layers)
        draft = Store(self.path.with_name(self.path.name + ".tmp"), self.version)
        shutil.rmtree(draft.path, ignore_errors=True)
        files = draft._groups(layers, {group: {} for group in ("", *group_metadata(layers, self.version))})
        for layer in layers:
            for i in range(len(layer.levels)):
                spec = layer.spec(i, self.format)
                files.append(draft._json(draft._level(layer, i) / spec.metadata_name, spec.metadata()))
        sync([self._written(draft.path, files)])
        draft.path.replace(self.path)
        sync([Written(folders=(str(self.path.parent),))])

    def arrays(self, layer: Layer) -> list[DurableArray]:
        """The levels of a layer, full size first. Raises OutputError for arrays that are not those of the layer."""
        found = []
        for i, level in enumerate(layer.levels):
            array = DurableArray(self._level(layer, i))
            if array.shape != level.shape or array.dtype != layer.dtype:
                raise OutputError(
                    f"{array.path} holds {array.shape} {array.dtype}, not {level.shape} {layer.dtype}.",
                    mend="--overwrite, or another -o",
                )
            found.append(array)
        return found

    def cascade(self, layer: Layer) -> Cascade:
        """A layer, to be written and read: it can be pickled, and blocks be written from any thread or process."""
        return Cascade(self.arrays(layer), layer.levels, layer.block, layer.labels)

    def describe(self, layers: Sequence[Layer], ours: Mapping[str, Any], title: str) -> None:
        """Write the OME metadata of all layers, and `ours` (plan, model, versions) at the root, onto the disk.

        title: the image's name in viewers. Called when all levels are written: display limits come from the last ones.
        """
        found = group_metadata(layers, self.version)
        for layer in layers:
            smallest = DurableArray(self._level(layer, len(layer.levels) - 1))
            found[layer.name] = image_metadata(layer, smallest, layer.title or title, self.version)
        found[""] = {**found.get("", attributes({}, self.version)), "voidzoo": dict(ours)}
        sync([self._written(self.path, self._groups(layers, found))])

    def _level(self, layer: Layer, level: int) -> Path:
        return self.path / layer.name / str(level)

    def _groups(self, layers: Sequence[Layer], described: Mapping[str, Mapping[str, Any]]) -> list[Path]:
        """Write the metadata files of all groups, each replaced whole. -> the files."""
        files = []
        for name in dict.fromkeys(["", *described, *(layer.name for layer in layers)]):
            folder, found = self.path / name, dict(described.get(name, {}))
            if self.format == 3:
                group = {"zarr_format": 3, "node_type": "group", "attributes": found}
                files.append(self._json(folder / "zarr.json", group))
            else:
                files.append(self._json(folder / ".zgroup", {"zarr_format": 2}))
                files.append(self._json(folder / ".zattrs", found))
        return files

    @staticmethod
    def _json(file: Path, content: Mapping[str, Any]) -> Path:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(file.name + ".tmp")
        beside.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        beside.replace(file)
        return file

    @staticmethod
    def _written(root: Path, files: Sequence[Path]) -> Written:
        folders = {folder for file in files for folder in file.parents if folder.is_relative_to(root)}
        return Written(tuple(map(str, files)), tuple(sorted(map(str, folders))))


def read_provenance(path: Path) -> dict[str, Any] | None:
    """What voidzoo wrote about an OME-Zarr, None for those of others."""
    for name, inside in (("zarr.json", "attributes"), (".zattrs", None)):
        try:
            found = json.loads((path / name).read_text(encoding="utf-8"))
            return dict((found[inside] if inside else found)["voidzoo"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None
