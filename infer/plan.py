"""The plan: what predict will do. `planning.make_plan` makes it, `run` obeys it, the output carries it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ..zoo.axes import canonical
from ..zoo.image import Image
from ..zoo.package import Package
from .grid import Axis, Span, blocks
from .meeting import model_axes
from .report import plan_text, size_text
from .session import Session

BESIDE = 2
"""Blocks in flight beside those in the network: one is read, one is written."""


@dataclass(frozen=True)
class Memory:
    """Peak memory as a sum, in bytes: what the process holds, what the network works in, and the blocks in flight."""

    process: int
    network: int
    blocks: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment."""
        return self.process + self.network + self.blocks


@dataclass(frozen=True, repr=False)
class Plan:
    """What predict will do. Sizes are by axis letter and in pixels; memory and disk in bytes, seconds in s.

    block and tile follow `grid`: the axes over which blocks run. tile is that of the network. out_axes and out_shape
    describe the result. overhead: voxels that the network runs on per voxel of the result. rate: input voxels a second
    and bytes_per_voxel of working memory, as probed. asked: which of tile and block the user chose.
    """

    package: Package
    image: Image
    channel: int | None
    all_channels: bool
    dtype: str
    chunk: dict[str, int]
    block: dict[str, int]
    tile: dict[str, int]
    batch: int
    workers: int
    overhead: float
    memory: Memory
    disk: int
    seconds: float
    rate: float
    device: str
    device_name: str
    allow_nan: bool = False
    notes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    bytes_per_voxel: float = 0.0
    session: Session | None = field(default=None, compare=False, repr=False)

    @property
    def lanes(self) -> int:
        """Blocks in flight."""
        return self.workers + BESIDE

    @cached_property
    def model_axes(self) -> dict[str, Axis]:
        """One `grid.Axis` for each axis that the network reads at once."""
        return model_axes(self.package, self.image)

    @cached_property
    def grid(self) -> str:
        """The letters that blocks run over: all of the image but a channel axis that the network takes whole."""
        whole = not self.all_channels
        return "".join(a for a in self.image.axes if not (a == "c" and whole))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The image's sizes along `grid`."""
        return {a: self.image.size(a) for a in self.grid}

    @cached_property
    def out_channels(self) -> tuple[str, ...]:
        """The names along c of the result; empty where it has no c."""
        if self.all_channels:
            return self.image.channel_names()
        if len(self.package.channels_out) > 1:
            return self.package.channels_out
        if self.channel is not None:
            return (self.image.channel_names()[self.channel],)
        return ()

    @cached_property
    def out_axes(self) -> str:
        """Letters of the result, in OME order."""
        return canonical(self.grid + ("c" if self.out_channels and "c" not in self.grid else ""))

    @cached_property
    def out_shape(self) -> tuple[int, ...]:
        """Sizes of the result."""
        return tuple(len(self.out_channels) if a == "c" else self.sizes[a] for a in self.out_axes)

    @cached_property
    def spans(self) -> dict[str, list[Span]]:
        """The blocks' spans along each axis of `grid`."""
        return {a: blocks(self.sizes[a], self.block[a]) for a in self.grid}

    @property
    def n_blocks(self) -> int:
        """How many blocks there are."""
        return prod(len(spans) for spans in self.spans.values())

    @cached_property
    def n_tiles(self) -> int:
        """How many tiles all blocks have together."""
        tiles = 1
        for a, axis in self.model_axes.items():
            tiles *= sum(len(axis.tiles(span, self.tile[a])) for span in self.spans[a])
        return tiles * prod(n for a, n in self.sizes.items() if a not in self.model_axes)

    def block_spans(self, index: int) -> dict[str, Span]:
        """The spans of block number `index` (0 to n_blocks - 1, the last axis of `grid` running fastest)."""
        found: dict[str, Span] = {}
        for a in reversed(self.grid):
            index, k = divmod(index, len(self.spans[a]))
            found[a] = self.spans[a][k]
        return {a: found[a] for a in self.grid}

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides the result and its blocks: the same plan on another day has the same."""
        text = json.dumps(self.facts(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What is pinned when a result is begun, JSON-able."""
        return {
            "model": {"name": self.package.name, "version": self.package.version, "sha256": self.package.sha256},
            "image": _fingerprint(self.image),
            "channel": "all" if self.all_channels else self.channel,
            "dtype": self.dtype,
            "chunk": self.chunk,
            "block": self.block,
            "tile": self.tile,
            "batch": self.batch,
            "workers": self.workers,
        }

    def to_json(self) -> dict[str, Any]:
        """The whole plan for the record: facts, and what was expected of memory, disk and time."""
        return {
            "identity": self.identity,
            **self.facts(),
            "blocks": self.n_blocks,
            "tiles": self.n_tiles,
            "overhead": round(self.overhead, 4),
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "disk": self.disk,
            "seconds": round(self.seconds, 3),
            "voxels_per_second": round(self.rate),
            "bytes_per_voxel": round(self.bytes_per_voxel, 1),
            "device": self.device_name,
            "halo": {a: axis.halo for a, axis in self.model_axes.items()},
            "extended": {a: axis.extended for a, axis in self.model_axes.items()},
        }

    def pinned(self, facts: Mapping[str, Any]) -> Plan:
        """This plan with the block, tile, chunk and batch sizes and the workers of a stored one (see `facts`)."""
        chunk, block, tile = ({a: int(n) for a, n in facts[key].items()} for key in ("chunk", "block", "tile"))
        return replace(
            self, chunk=chunk, block=block, tile=tile, batch=int(facts["batch"]), workers=int(facts["workers"])
        )

    def __repr__(self) -> str:
        """Model, image, and how much there is to do."""
        return (
            f"Plan({self.package.name!r} on {self.image.name!r}, {self.n_blocks:,} blocks, {self.n_tiles:,} tiles, "
            f"{size_text(self.memory.total)}, {self.device_name})"
        )

    def __str__(self) -> str:
        return plan_text(self)


def _fingerprint(image: Image) -> dict[str, Any]:
    """What tells an image from another: name, axes, shape, dtype; for files their size and time of change."""
    facts: dict[str, Any] = {
        "name": image.name,
        "axes": image.axes,
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "pixel_size": {a: v for a in "tzyx" if (v := image.pixel_size.get(a)) is not None},
        "channels": list(image.channels),
    }
    if image.path is not None and (path := Path(image.path)).exists():
        metadata = next((path / n for n in ("zarr.json", ".zattrs") if (path / n).is_file()), path)
        stat = metadata.stat()
        facts["changed"] = stat.st_mtime_ns
        facts["bytes"] = stat.st_size if metadata.is_file() else 0
    return facts
