"""The result as OME-Zarr 0.5: arrays, metadata, pyramid. https://ngff.openmicroscopy.org/0.5/"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.image import PixelSize
from .pyramid import SMALLEST_LEVEL, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY_CHUNKS = 10_000
"""With more chunks than this a block is stored as one shard: file systems suffer from millions of files."""
UNITS = {
    "t": ("time", "second"),
    "z": ("space", "micrometer"),
    "y": ("space", "micrometer"),
    "x": ("space", "micrometer"),
}


class Store:
    """A group on disk that becomes an OME-Zarr image. Arrays are made here and written block by block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(
        self, axes: str, levels: Sequence[Level], dtype: str, chunk: Sequence[int], block: Sequence[int]
    ) -> None:
        """Make the group and its empty levels, whole or not at all. block: what one worker writes, whole chunks."""
        import zarr

        draft = Store(self.path.with_name(self.path.name + ".tmp"))
        zarr.create_group(draft.path, zarr_format=3, overwrite=True)
        for i, level in enumerate(levels):
            draft._create_level(i, axes, level.shape, dtype, chunk, block)
        draft.path.replace(self.path)

    def _create_level(
        self, level: int, axes: str, shape: Sequence[int], dtype: str, chunk: Sequence[int], block: Sequence[int]
    ) -> None:
        import zarr
        from zarr.codecs import BloscCodec

        chunk = [min(c, n) for c, n in zip(chunk, shape, strict=True)]
        many = prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) > MANY_CHUNKS
        shards = tuple(-(-b // c) * c for b, c in zip(block, chunk, strict=True)) if many else None
        zarr.create_array(
            self.path,
            name=str(level),
            shape=tuple(shape),
            chunks=tuple(chunk),
            shards=shards,
            dtype=dtype,
            dimension_names=list(axes),
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
            zarr_format=3,
            overwrite=True,
        )

    def array(self, level: int = 0) -> DurableArray:
        """A level, to write and read."""
        return DurableArray(self.path / str(level))

    def describe(
        self,
        name: str,
        axes: str,
        levels: Sequence[Level],
        pixel_size: PixelSize,
        channels: Sequence[str],
        ours: Mapping[str, Any],
    ) -> None:
        """Write the OME metadata, and `ours` (plan, model, versions) beside it."""
        import zarr

        group = zarr.open_group(self.path, mode="r+")
        ome: dict[str, Any] = {"version": "0.5", "multiscales": [_multiscales(name, axes, levels, pixel_size)]}
        smallest = self.array(len(levels) - 1)
        ome["omero"] = {"name": name, "channels": _channels(axes, smallest, channels)}
        group.attrs.update({"ome": ome, "voidzoo": dict(ours)})
        sync_file(self.path / "zarr.json")


def _multiscales(name: str, axes: str, levels: Sequence[Level], pixel_size: PixelSize) -> dict[str, Any]:
    """Scale and translation of each level: a mean of 2 x 2 pixels lies half a pixel further in."""
    described = []
    for a in axes:
        kind, unit = UNITS.get(a, ("channel", ""))
        known = a != "c" and pixel_size.get(a) is not None
        described.append({"name": a, "type": kind, **({"unit": unit} if known else {})})
    size = [1.0 if a == "c" else (pixel_size.get(a) or 1.0) for a in axes]
    datasets = [
        {
            "path": str(i),
            "coordinateTransformations": [
                {"type": "scale", "scale": [s * f for s, f in zip(size, level.factors, strict=True)]},
                {
                    "type": "translation",
                    "translation": [s * (f - 1) / 2 for s, f in zip(size, level.factors, strict=True)],
                },
            ],
        }
        for i, level in enumerate(levels)
    ]
    return {"name": name, "axes": described, "datasets": datasets, "type": "mean"}


def _channels(axes: str, smallest: DurableArray, channels: Sequence[str]) -> list[dict[str, Any]]:
    """Labels, and display limits from the smallest level so that viewers do not open a black image."""
    names = channels or ("intensity",)
    colors = ["FFFFFF"] if len(names) == 1 else ["00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF"]
    found = []
    for i, name in enumerate(names):
        part = tuple(
            slice(i, i + 1) if a == "c" else _middle(n, 4 if a in "tz" else SMALLEST_LEVEL)
            for a, n in zip(axes, smallest.shape, strict=True)
        )
        values = smallest.read(part).astype(np.float64)
        low, high = (float(v) for v in np.percentile(values, [0.1, 99.9]))
        found.append(
            {
                "label": name,
                "color": colors[i % len(colors)],
                "active": True,
                "window": {
                    "start": low,
                    "end": high if high > low else low + 1,
                    "min": float(values.min()),
                    "max": float(values.max()),
                },
            }
        )
    return found


def _middle(size: int, most: int) -> slice:
    """At most `most` pixels from the middle of an axis: enough for display limits, whatever the size of the image."""
    start = max(0, (size - most) // 2)
    return slice(start, min(size, start + most))


class DurableArray:
    """A Zarr array whose `write` returns only when the bytes are on the disk."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path = path
        self._array = zarr.open_array(path, mode="r+")
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)
        self.chunks: tuple[int, ...] = tuple(self._array.chunks)
        self.grid: tuple[int, ...] = tuple(self._array.shards or self._array.chunks)

    def read(self, part: tuple[slice, ...]) -> NDArray[Any]:
        """A part of the array."""
        return np.asarray(self._array[part])

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Write whole chunks (or shards), then have the disk confirm them."""
        self._array[part] = values
        touched = [range(s.start // g, -(-s.stop // g)) for s, g in zip(part, self.grid, strict=True)]
        folders = set()
        for index in product(*touched):
            file = self.path.joinpath("c", *map(str, index))
            if file.exists():  # a chunk of nothing but the fill value is not stored
                sync_file(file)
                folders.add(file.parent)
        for folder in folders:
            sync_folder(folder)


def sync_file(path: Path) -> None:
    """Have the disk confirm a file's bytes."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Have the disk confirm a folder's entries; a no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
