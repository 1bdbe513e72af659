"""What predict will do, computed before anything runs: every refusal happens here, and `run` obeys it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..zoo.axes import ORDER, canonical, describe
from ..zoo.errors import AxesError, DtypeError, ResourceError, SizeError
from ..zoo.image import Image, PixelSize
from ..zoo.package import Package
from .grid import Axis, Span, blocks
from .layout import BLOCK_VOXELS, block_shape, choose_tile, chunk_shape, legal_tile, longest_region, tiled_length
from .report import size_text
from .session import Probe, Session, cpu_count, find_device, probe

BESIDE = 2
"""Blocks in flight beside those in the network: one is read, one is written."""
WORTH_PROBING = 20.0
"""Seconds of network time from which on several single-threaded sessions are tried against one with all threads."""
CLEARLY = 0.92
"""They take twice the memory, and a short probe is off by some percent: they must promise this share of the time."""
LIBRARIES = 90 * 2**20
"""What importing and using zarr, codecs and dask adds to the process after planning, measured."""
ARENA = 1.5
"""How far onnxruntime's arena and blocked layouts exceed the tensors themselves: 1.3 to 1.5, measured on U-Nets."""
PROBE_SIDE = {2: (256, 256), 3: (16, 96, 96)}


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


@dataclass(frozen=True)
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
        return _model_axes(self.package, self.image)

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

    def __str__(self) -> str:
        from .report import plan_text

        return plan_text(self)


def make_plan(
    package: Package,
    image: Image,
    *,
    channel: str | int | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    tile: tuple[int, ...] | None = None,
    block: tuple[int, ...] | None = None,
    device: str = "auto",
    allow_nan: bool = False,
    facts: Mapping[str, Any] | None = None,
    session: Session | None = None,
) -> Plan:
    """Decide everything: blocks, tiles, halo, memory, disk, time, device. Nothing is written, no pixel is read.

    memory: bytes that the process may take. tile, block: sizes along the model's axes, ([z], y, x). facts: those of a
    stored plan, whose sizes are then taken as they are, without a probe. session: one of this package to use again.
    Raises AxesError, DtypeError, SizeError, ResourceError, DeviceError, PackageError.
    """
    index, all_channels = _choose_channel(package, image, channel)
    model = _model_axes(package, image)
    out_dtype = _out_dtype(package, image, dtype)
    wanted = find_device(device)
    draft = Plan(
        package, image, index, all_channels, out_dtype, {}, {}, {}, 1, 1, 1.0, Memory(0, 0, 0), 0, 0.0, 0.0,
        device, str(wanted), allow_nan, _notes(package, image), _asked(tile, block),
    )  # fmt: skip
    if facts is not None and not draft.asked:
        pinned = draft.pinned(facts)
        measured = Probe(float(facts.get("voxels_per_second", 0)) or 1.0, float(facts.get("bytes_per_voxel", 0)))
        plan = _with_costs(pinned, model, measured, _process_memory())
        return _on(plan, Session(package, wanted, plan.workers))
    process = _process_memory()
    session = session or Session(package, wanted)
    measured = _measure(session, package, _probe_shape(package, model))
    plan = _shaped(draft, model, measured, (process, memory or default_memory()), (tile, block))
    best = _on(plan, session)
    if wanted.kind == "cpu" and cpu_count() > 1 and session.workers == 1 and plan.seconds > WORTH_PROBING:
        best = _more_workers(best, draft, model, (process, memory or default_memory()), (tile, block))
    _refuse_memory(best, memory)
    return best


def _on(plan: Plan, session: Session) -> Plan:
    return replace(plan, session=session, device_name=session.name)


Sizes = tuple[int, ...] | None


def _shaped(
    draft: Plan, model: Mapping[str, Axis], measured: Probe, memory: tuple[int, int], asked: tuple[Sizes, Sizes]
) -> Plan:
    """Choose chunk, block, tile and batch. memory: what the process holds, and what it may take."""
    process, budget = memory
    tile, block = asked
    chunk = chunk_shape(draft.grid, model, draft.sizes)
    per_voxel = draft.lanes * _buffer_bytes(draft)
    limit = max(prod(chunk.values()), min(BLOCK_VOXELS, int(0.3 * max(0, budget - process) / per_voxel)))
    shape = _asked_block(draft, model, chunk, block) or block_shape(draft.grid, model, draft.sizes, chunk, limit)
    plan = replace(draft, chunk=chunk, block=shape)
    room = (budget - process - _block_memory(plan, model)) // plan.workers
    tiles = _asked_tile(model, tile) or _fitting_tile(model, shape, room, measured, budget)
    batch = max(1, min(2**16 // prod(tiles.values()), prod(n for a, n in shape.items() if a not in model)))
    return _with_costs(replace(plan, tile=tiles, batch=batch), model, measured, process)


def _more_workers(
    single: Plan, draft: Plan, model: Mapping[str, Axis], memory: tuple[int, int], asked: tuple[Sizes, Sizes]
) -> Plan:
    """The plan with one single-threaded session a processor, if that is measured to be faster and fits the memory."""
    workers = cpu_count()
    session = Session(draft.package, find_device("cpu"), workers)
    measured = probe(session, _probe_shape(draft.package, model))
    measured = replace(measured, bytes_per_voxel=single.bytes_per_voxel)
    try:
        plan = _shaped(replace(draft, workers=workers), model, measured, memory, asked)
    except ResourceError:
        return single
    fits = plan.memory.total <= memory[1]
    return _on(plan, session) if fits and plan.seconds < CLEARLY * single.seconds else single


def _asked(tile: tuple[int, ...] | None, block: tuple[int, ...] | None) -> tuple[str, ...]:
    return tuple(name for name, value in (("tile", tile), ("block", block)) if value is not None)


def default_memory() -> int:
    """The memory that a prediction may take unless told otherwise: a quarter of what is free, at most 4 GB."""
    import psutil

    return min(psutil.virtual_memory().available // 4, 4 * 2**30)


def _choose_channel(package: Package, image: Image, channel: str | int | None) -> tuple[int | None, bool]:
    """The index of the one channel to read (None: all that the network takes), and whether each is run by itself."""
    needs, has = len(package.channels_in), image.size("c")
    names = image.channel_names()
    if needs > 1:
        if has != needs:
            raise AxesError(
                f"{package.name} takes {needs} channels ({', '.join(package.channels_in)}); {image.name} has {has}"
                + (f": {', '.join(names)}." if "c" in image.axes else "."),
                mend="an image with these channels in this order",
            )
        return None, False
    if channel == "all" and has > 1:
        if len(package.channels_out) > 1:
            raise AxesError(f"{package.name} returns {len(package.channels_out)} channels; it runs on one channel of "
                            f"{image.name} at a time.", mend=f"--channel {names[0]}")  # fmt: skip
        return None, True
    if channel is None or channel == "all":
        if has > 1:
            raise AxesError(
                f"{package.name} takes 1 channel; {image.name} has {has}: {', '.join(names)}.",
                mend=f"--channel {_quoted(names[0])}   or  --channel all  (each by itself)",
            )
        return (0 if "c" in image.axes else None), False
    return find_channel(image, channel), False


def find_channel(image: Image, channel: str | int) -> int:
    """The index of a channel by name or number. Raises AxesError that lists the names."""
    names, has = image.channel_names(), image.size("c")
    if isinstance(channel, str) and channel in names:
        return names.index(channel)
    if str(channel).isdigit() and int(channel) < has:
        return int(channel)
    raise AxesError(
        f"{image.name} has no channel {channel!r}.", mend="--channel " + " or ".join(_quoted(n) for n in names)
    )


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def _model_axes(package: Package, image: Image) -> dict[str, Axis]:
    missing = [a for a in package.axes if a not in image.axes]
    if missing:
        raise AxesError(
            f"{package.name} needs {', '.join(package.axes)}; {image.name} is {describe(image.axes, image.shape)}.",
            mend="a model for 2D images" if missing == ["z"] else "",
        )
    if 0 in image.shape:
        raise SizeError(f"{image.name} is empty: {describe(image.axes, image.shape)}.")
    rules = package.rules
    return {a: Axis(image.size(a), rules[a].step, rules[a].minimum, rules[a].halo) for a in package.axes}


def _out_dtype(package: Package, image: Image, dtype: str | None) -> str:
    """Intensities take the input's dtype; everything else, and what the package does not say, is float32."""
    if dtype in (None, "same"):
        intensity = bool(package.kinds) and set(package.kinds) == {"intensity"} and image.dtype != bool
        return str(image.dtype) if intensity or dtype == "same" else "float32"
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype("O")
    if found.kind not in "uif" or found.itemsize > 8:
        raise DtypeError(
            f"--dtype {dtype}: results are whole numbers or floats.", mend="--dtype same, uint16 or float32"
        )
    return str(found)


def _notes(package: Package, image: Image) -> tuple[str, ...]:
    """Warnings about pixel sizes that do not fit the training, or are missing."""
    notes = list(image.notes)
    if not image.pixel_size.known and image.path is not None:
        notes.append(f"{image.name} has no pixel size; the result will have none either "
                     "(mend: --pixel-size 0.5,0.5 in um, y,x).")  # fmt: skip
    for a, trained in package.pixel_size.items():
        size = image.pixel_size.get(a)
        if size and trained and not 0.8 <= size / trained <= 1.25:
            notes.append(
                f"{image.name} has {size:.4g} um pixels along {a}; {package.name} was trained at {trained:.4g} um."
            )
    return tuple(notes)


def _probe_shape(package: Package, model: Mapping[str, Axis]) -> tuple[int, ...]:
    side = PROBE_SIDE[len(model)]
    legal = (min(axis.extended, max(axis.smallest_tile, s // axis.step * axis.step)) for axis, s in
             zip(model.values(), side, strict=True))  # fmt: skip
    return (1, len(package.channels_in), *legal)


def _measure(session: Session, package: Package, shape: tuple[int, ...]) -> Probe:
    """Speed and memory of a small run; where the process had freed memory to give, the graph's arithmetic holds."""
    from .graph import working_bytes

    stored = package.ours.get("working_bytes_per_voxel")
    tensors = float(stored) if stored else working_bytes(package.onnx(), shape)
    measured = probe(session, shape)
    return replace(measured, bytes_per_voxel=max(measured.bytes_per_voxel, ARENA * tensors))


def _asked_block(
    plan: Plan, model: Mapping[str, Axis], chunk: dict[str, int], block: tuple[int, ...] | None
) -> dict[str, int] | None:
    """A user's block, rounded to whole chunks; chunks shrink to blocks that are smaller than they are."""
    if block is None:
        return None
    if len(block) != len(model):
        raise _wrong_count("--block", model, block)
    shape = dict.fromkeys(plan.grid, 1)
    for (a, axis), size in zip(model.items(), block, strict=True):
        if size < 1 or (size % axis.step and size < axis.size):
            raise SizeError(f"block {size} along {a} is not a multiple of {axis.step}.",
                            mend=str(max(axis.step, size // axis.step * axis.step)))  # fmt: skip
        chunk[a] = min(chunk[a], size)
        shape[a] = min(axis.size, max(1, size // chunk[a]) * chunk[a])
    return shape


def _wrong_count(option: str, model: Mapping[str, Axis], sizes: tuple[int, ...]) -> SizeError:
    example = ",".join(str(min(axis.extended, 2 * axis.smallest_tile)) for axis in model.values())
    return SizeError(
        f"{option} takes {len(model)} sizes ({', '.join(model)}) for this model, not {len(sizes)}.",
        mend=f"{option} {example}",
    )


def _asked_tile(model: Mapping[str, Axis], tile: tuple[int, ...] | None) -> dict[str, int] | None:
    if tile is None:
        return None
    if len(tile) != len(model):
        raise _wrong_count("--tile", model, tile)
    return {a: legal_tile(axis, a, size) for (a, axis), size in zip(model.items(), tile, strict=True)}


def _fitting_tile(
    model: Mapping[str, Axis], block: Mapping[str, int], room: int, measured: Probe, budget: int
) -> dict[str, int]:
    per_voxel = measured.bytes_per_voxel + 8
    try:
        return choose_tile(model, block, int(max(0, room) / per_voxel)).tile
    except SizeError:
        smallest = prod(min(axis.smallest_tile, axis.extended) for axis in model.values())
        needed = smallest * per_voxel + budget - room
        raise ResourceError(
            f"the smallest tile of this model needs {size_text(smallest * per_voxel)} beside "
            f"{size_text(budget - room)} for the process and its blocks; {size_text(budget)} may be taken.",
            mend=f"--memory {needed * 1.05 / 1e6:.0f}MB",
        ) from None


def _buffer_bytes(plan: Plan) -> int:
    """Bytes held per voxel of a block in flight: the region as read, the result, and its compressed copy."""
    out = np.dtype(plan.dtype).itemsize * len(plan.package.channels_out)
    return plan.image.dtype.itemsize * len(plan.package.channels_in) + 2 * out


def _block_memory(plan: Plan, model: Mapping[str, Axis]) -> int:
    voxels = prod(n for a, n in plan.block.items() if a not in model)
    for a, axis in model.items():
        voxels *= longest_region(axis, plan.block[a])
    return plan.lanes * voxels * _buffer_bytes(plan)


def _process_memory() -> int:
    import psutil

    return psutil.Process().memory_info().rss + LIBRARIES


def _with_costs(plan: Plan, model: Mapping[str, Axis], measured: Probe, process: int) -> Plan:
    """Fill in what the plan costs: memory as a sum of terms, disk with the pyramid and staging, time."""
    network = int(plan.workers * plan.batch * prod(plan.tile.values()) * (measured.bytes_per_voxel + 8))
    run = prod(tiled_length(axis, plan.block[a], plan.tile[a]) for a, axis in model.items())
    overhead = run / prod(axis.size for axis in model.values())
    # the last blocks may leave workers idle
    rounds = -(-plan.n_blocks // plan.workers) * plan.workers / plan.n_blocks
    voxels = prod(plan.sizes.values()) * rounds
    nbytes = prod(plan.out_shape) * np.dtype(plan.dtype).itemsize
    return replace(
        plan,
        overhead=overhead,
        memory=Memory(process, network, _block_memory(plan, model)),
        disk=int(nbytes * 4 / 3),
        seconds=voxels * overhead / measured.voxels_per_second,
        rate=measured.voxels_per_second,
        bytes_per_voxel=measured.bytes_per_voxel,
    )


def _refuse_memory(plan: Plan, asked: int | None) -> None:
    import psutil

    available = asked or psutil.virtual_memory().available
    if plan.memory.total > available:
        tile = "x".join(str(n) for n in plan.tile.values())
        raise ResourceError(
            f"this plan needs {size_text(plan.memory.total)} of memory; {size_text(available)} "
            f"{'may be taken' if asked else 'are free'}.",
            where=f"tile {tile}: {size_text(plan.memory.network)}; blocks {size_text(plan.memory.blocks)}; "
            f"process {size_text(plan.memory.process)}",
            mend="leave --tile and --block out, or make them smaller",
        )


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


def scaled(size: PixelSize, factors: Mapping[str, int]) -> dict[str, float]:
    """The pixel sizes of a pyramid level, 1.0 where unknown, by letter."""
    return {a: (size.get(a) or 1.0) * factors.get(a, 1) for a in ORDER if a != "c"}
