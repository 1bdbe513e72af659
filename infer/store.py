"""The result as OME-Zarr 0.5: arrays, metadata, pyramid. https://ngff.openmicroscopy.org/0.5/"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.image import PixelSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANY_CHUNKS = 10_000
"""With more chunks than this a block is stored as one shard: file systems suffer from millions of files."""
SMALLEST_LEVEL = 256
"""Pyramids end when a plane is this small; viewers then load it at once."""
UNITS = {
    "t": ("time", "second"),
    "z": ("space", "micrometer"),
    "y": ("space", "micrometer"),
    "x": ("space", "micrometer"),
}


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its shape, and by how much it is smaller than level 0 along each axis."""

    shape: tuple[int, ...]
    factors: tuple[int, ...]


def pyramid(axes: str, shape: Sequence[int], pixel_size: PixelSize) -> list[Level]:
    """The levels, level 0 first. y and x are halved; z too once its pixels are not longer than those of the plane."""
    levels = [Level(tuple(shape), (1,) * len(axes))]
    size = {a: (pixel_size.get(a) or 1.0) for a in "zyx"}
    while max(levels[-1].shape[axes.index("y")], levels[-1].shape[axes.index("x")]) > SMALLEST_LEVEL:
        last = levels[-1]
        plane = 2 * min(size["y"], size["x"])
        halved = [a for a in "yx" if last.shape[axes.index(a)] > 1]
        if "z" in axes and pixel_size.z and size["z"] < plane and last.shape[axes.index("z")] > 1:
            halved.append("z")
        for a in halved:
            size[a] *= 2
        step = tuple(2 if a in halved else 1 for a in axes)
        levels.append(
            Level(
                tuple(-(-n // s) for n, s in zip(last.shape, step, strict=True)),
                tuple(f * s for f, s in zip(last.factors, step, strict=True)),
            )
        )
    return levels


class Store:
    """A group on disk that becomes an OME-Zarr image. Arrays are made here and written block by block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, axes: str, shape: Sequence[int], dtype: str, chunk: Sequence[int], block: Sequence[int]) -> None:
        """Make the group and its level 0, whole or not at all. block: what one worker writes, whole chunks."""
        import zarr

        draft = Store(self.path.with_name(self.path.name + ".tmp"))
        zarr.create_group(draft.path, zarr_format=3, overwrite=True)
        draft._create_level(0, axes, shape, dtype, chunk, block)
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

    def build_level(self, level: int, axes: str, target: Level) -> Iterator[tuple[slice, ...]]:
        """Make a smaller level. -> the parts of it that `shrink` then fills, each by one worker."""
        above = self.array(level - 1)
        self._create_level(level, axes, target.shape, str(above.dtype), above.chunks, above.grid)
        return _parts(target.shape, self.array(level).grid)

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


def _parts(shape: Sequence[int], unit: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    for corner in product(*(range(0, n, u) for n, u in zip(shape, unit, strict=True))):
        yield tuple(slice(s, min(s + u, n)) for s, u, n in zip(corner, unit, shape, strict=True))


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


def shrink(above: DurableArray, below: DurableArray, step: Sequence[int], part: tuple[slice, ...]) -> None:
    """Fill a part of a level with the means of the level above; whole numbers are rounded to the nearest."""
    source = tuple(slice(p.start * s, min(p.stop * s, n)) for p, s, n in zip(part, step, above.shape, strict=True))
    below.write(part, mean(above.read(source), step))


def mean(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    """The means over windows of `step` (1 or 2 an axis); the last window of an odd axis holds what is left."""
    whole = values.dtype.kind in "iu"
    kind = np.int64 if values.dtype.itemsize > 2 else np.int32
    total: Any = values.astype(kind if whole else np.float32)
    for axis, s in enumerate(step):
        if s == 1:
            continue
        if total.shape[axis] % 2:
            last = np.take(total, [-1], axis=axis)
            total = np.concatenate([total, last], axis=axis)
        even = (slice(None),) * axis + (slice(0, None, 2),)
        odd = (slice(None),) * axis + (slice(1, None, 2),)
        total = total[even] + total[odd]
    count = prod(step)
    return ((total + count // 2) // count if whole else total / count).astype(values.dtype)


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
