"""The plan: what predict will do. `planning.make_plan` makes it, `run` obeys it, the output carries it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.dihedral import KEEPS_SIDES
from ..zoo.image import Image, PixelSize
from ..zoo.package import Package
from .geometry import Geometry, Port
from .grid import Axis, Span, blocks
from .report import plan_text, size_text
from .turns import turns_of

if TYPE_CHECKING:
    from .networks.session import Session

BESIDE = 2
"""Blocks in flight beside those in the network: one is read, one is written."""


@dataclass(frozen=True)
class Memory:
    """Peak memory as a sum, in bytes: what the process holds, what the network works in, and the blocks in flight.

    device: what the network works in on a GPU, which is not the process's; network is 0 then.
    """

    process: int
    network: int
    blocks: int
    device: int = 0

    @property
    def total(self) -> int:
        """Bytes of the process at the worst moment."""
        return self.process + self.network + self.blocks


@dataclass(frozen=True)
class Feed:
    """What goes into one input of the network: an image, or one of its channels (by index)."""

    port: Port
    image: Image
    channel: int | None = None


@dataclass(frozen=True)
class Target:
    """One array of the result: some channels of one output of the network.

    name: empty where it is the only one. channels: which of the output's. names: along c of the array, empty where it
    has no c. kind: intensity, probability, distance, logit, or empty where the package does not say.
    """

    name: str
    port: Port
    channels: tuple[int, ...]
    names: tuple[str, ...]
    dtype: str
    kind: str = ""


@dataclass(frozen=True)
class Choices:
    """What the user decided about the result beside its sizes, pinned when it is begun.

    only: the part that is done, start and stop by letter. sample: letters of loop axes that belong to the statistical
    sample beside the axes of the model. skip_below: blocks without any value above are not run. tolerance: the error
    (in units of the output's std) that a smaller halo may cost. precision: fp32, fp16 or bf16. tta: the mean over the
    turned and mirrored image.
    """

    only: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    sample: str = ""
    skip_below: float | None = None
    tolerance: float | None = None
    precision: str = "fp32"
    allow_nan: bool = False
    trust_code: bool = False
    tta: bool = False


@dataclass(frozen=True, repr=False)
class Plan:
    """What predict will do. Sizes are by axis letter and in pixels of the main image; bytes; seconds in s.

    feeds: one an input of the network, the main image first. targets: the arrays of the result. grid: the letters over
    which blocks run, those of `model_axes` and those over which the network runs anew (`loops`). overhead: voxels that
    the network runs on per voxel of the image. rate: input voxels a second and bytes_per_voxel of working memory, as
    probed. asked: which of tile and block the user chose. threads: of a process, for all its networks; None: all
    processors. runtime: `openvino`, else that of the weights. cache: bytes of decoded chunks of the images that are
    kept. staged: what the network returns is kept until its statistics are known. original: the image that was given,
    where the network sees it at another pixel size (--rescale). halo_facts: what is known of each halo, by letter.
    """

    package: Package
    geometry: Geometry
    feeds: tuple[Feed, ...]
    targets: tuple[Target, ...]
    model_axes: dict[str, Axis]
    grid: str
    choices: Choices = field(default_factory=Choices)
    mask: Image | None = None
    original: Image | None = None
    chunk: dict[str, int] = field(default_factory=dict)
    block: dict[str, int] = field(default_factory=dict)
    tile: dict[str, int] = field(default_factory=dict)
    batch: int = 1
    workers: int = 1
    runtime: str = ""
    overhead: float = 1.0
    memory: Memory = Memory(0, 0, 0)
    disk: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    device: str = "auto"
    device_name: str = ""
    notes: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    bytes_per_voxel: float = 0.0
    staged: bool = False
    cache: int = 0
    threads: int | None = None
    scheduler: str = "threads"
    steps: tuple[str, ...] = ()
    halo_facts: Mapping[str, Any] = field(default_factory=dict)
    precision_error: float | None = None
    session: Session | None = field(default=None, compare=False)

    @property
    def image(self) -> Image:
        """The main image: the one whose pixels the plan counts."""
        return self.feeds[0].image

    @property
    def lanes(self) -> int:
        """Blocks in flight."""
        return self.workers + BESIDE

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The image's sizes along `grid`."""
        return {a: self.image.size(a) for a in self.grid}

    @cached_property
    def part(self) -> dict[str, Span]:
        """What of the image is done, along `grid`: all of it but for --only."""
        return {a: Span(*self.choices.only.get(a, (0, n))) for a, n in self.sizes.items()}

    @property
    def loops(self) -> str:
        """Letters of the grid that the network does not read at once."""
        return "".join(a for a in self.grid if a not in self.model_axes)

    def axes_of(self, target: Target) -> str:
        """Letters of an array of the result, in OME order."""
        return "".join(a for a in "tczyx" if a in self.grid or (a == "c" and target.names))

    def shape_of(self, target: Target) -> tuple[int, ...]:
        """Sizes of an array of the result."""
        return self.sizes_in(target, {a: span.size for a, span in self.part.items()})

    def sizes_in(self, target: Target, sizes: Mapping[str, int], channels: int = 0) -> tuple[int, ...]:
        """Sizes (by letter, in pixels of the image) in pixels of an array of the result, in its order.

        channels: along a c axis that the network adds, 0 for all of them.
        """
        ratio = target.port.ratio
        every = {
            "c": channels or len(target.names),
            **{a: ceil(n * ratio.get(a, Fraction(1))) for a, n in sizes.items()},
        }
        return tuple(every[a] for a in self.axes_of(target))

    def part_of(self, target: Target, spans: Mapping[str, Span]) -> tuple[slice, ...]:
        """Where a block lies in an array of the result."""
        found = {"c": slice(0, len(target.names))}
        for a, span in spans.items():
            ratio, zero = target.port.ratio.get(a, Fraction(1)), self.part[a].start
            found[a] = slice(int((span.start - zero) * ratio), ceil((span.stop - zero) * ratio))
        return tuple(found[a] for a in self.axes_of(target))

    def written_sizes(self, target: Target) -> dict[str, int]:
        """Sizes by letter of an array of the result as it is written: in the pixels of the image that was given."""
        sizes = dict(zip(self.axes_of(target), self.shape_of(target), strict=True))
        if self.original is not None:
            ratio = target.port.ratio
            sizes |= {a: ceil(self.original.size(a) * ratio.get(a, Fraction(1))) for a in sizes if a in "zyx"}
        return sizes

    def pixel_size_of(self, target: Target) -> PixelSize:
        """The pixel size of an array of the result as it is written, in um, t in s."""
        size, ratio = (self.original or self.image).pixel_size, target.port.ratio
        found = {a: s if s is None else s / float(ratio.get(a, 1)) for a in "tzyx" for s in [size.get(a)]}
        return PixelSize(**found)

    @property
    def out_axes(self) -> str:
        """Letters of the (first) array of the result, in OME order."""
        return self.axes_of(self.targets[0])

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Sizes of the (first) array of the result."""
        return self.shape_of(self.targets[0])

    @property
    def out_channels(self) -> tuple[str, ...]:
        """The names along c of the (first) array of the result; empty where it has no c."""
        return self.targets[0].names

    @property
    def dtype(self) -> str:
        """Of the (first) array of the result."""
        return self.targets[0].dtype

    @cached_property
    def spans(self) -> dict[str, list[Span]]:
        """The blocks' spans along each axis of `grid`."""
        return {a: blocks(self.part[a].stop, self.block[a], self.part[a].start) for a in self.grid}

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
        return tiles * prod(self.part[a].size for a in self.loops)

    @cached_property
    def turns(self) -> tuple[int, ...]:
        """The codes (zoo.dihedral) under which the network runs on each tile; (0,) without --tta."""
        return turns_of(self)

    @cached_property
    def one_shape(self) -> bool:
        """Whether all runs of the network are of the same shape."""
        if not set(self.turns) <= set(KEEPS_SIDES) and self.tile["y"] != self.tile["x"]:
            return False
        for a, axis in self.model_axes.items():
            if len({t.read.size for span in self.spans[a] for t in axis.tiles(span, self.tile[a])}) > 1:
                return False
        items = {prod(sizes) for sizes in product(*({span.size for span in self.spans[a]} for a in self.loops))}
        return len({n for count in items for n in (min(count, self.batch), count % self.batch) if n}) == 1

    @cached_property
    def run_shape(self) -> tuple[int, ...] | None:
        """(n, c, *space) of the main input in every run of the network; None where runs differ."""
        if not self.one_shape:
            return None
        items = prod(self.spans[a][0].size for a in self.loops)
        space = (axis.tiles(self.spans[a][0], self.tile[a])[0].read.size for a, axis in self.model_axes.items())
        return (min(items, self.batch), self.geometry.inputs[0].channels, *space)

    def block_spans(self, index: int) -> dict[str, Span]:
        """The spans of block number `index` (0 to n_blocks - 1, the last axis of `grid` running fastest)."""
        found: dict[str, Span] = {}
        for a in reversed(self.grid):
            index, k = divmod(index, len(self.spans[a]))
            found[a] = self.spans[a][k]
        return {a: found[a] for a in self.grid}

    @property
    def samples_in_blocks(self) -> bool:
        """Whether each block holds its statistical samples whole, so that no pass over the image is needed."""
        inside = [*self.model_axes, *self.choices.sample]
        return all(self.block[a] >= self.sizes[a] for a in inside)

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides the result and its blocks: the same plan on another day has the same."""
        text = json.dumps(self.facts(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What is pinned when a result is begun, JSON-able."""
        free = ("trust_code", "allow_nan")  # they decide whether it is done, not what comes out
        unset: tuple[Any, ...] = ({}, "", None)
        chosen = {k: v for k, v in asdict(self.choices).items() if k not in free and v not in unset and v is not False}
        return json.loads(json.dumps({
            "model": {"name": self.package.name, "version": self.package.version, "sha256": self.package.sha256},
            "image": self.image.identity,
            "inputs": {f.port.id: f.image.identity for f in self.feeds[1:]},
            "channel": "all" if "c" in self.loops else self.feeds[0].channel,
            "dtype": self.dtype if len(self.targets) == 1 else {t.name: t.dtype for t in self.targets},
            "mask": None if self.mask is None else self.mask.identity,
            "choices": chosen,
            "halo": {a: axis.halo for a, axis in self.model_axes.items()},
            "step": {a: axis.step for a, axis in self.model_axes.items()},
            "chunk": self.chunk,
            "block": self.block,
            "tile": self.tile,
            "batch": self.batch,
            "workers": self.workers,
            **({"runtime": self.runtime} if self.runtime else {}),
        }))  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The whole plan for the record: facts, and what was expected of memory, disk and time."""
        return {
            "identity": self.identity,
            **self.facts(),
            "package": dict(self.package.origin),
            "blocks": self.n_blocks,
            "tiles": self.n_tiles,
            "overhead": round(self.overhead, 4),
            "memory": {**asdict(self.memory), "total": self.memory.total},
            "disk": self.disk,
            "seconds": round(self.seconds, 3),
            "voxels_per_second": round(self.rate),
            "bytes_per_voxel": round(self.bytes_per_voxel, 1),
            "device": self.device_name,
            "scheduler": self.scheduler,
            "steps": list(self.steps),
            "halo_facts": dict(self.halo_facts),
            "precision_error": self.precision_error,
            "notes": list(self.notes),
            "extended": {a: axis.extended for a, axis in self.model_axes.items()},
        }

    def pinned(self, facts: Mapping[str, Any]) -> Plan:
        """This plan with the sizes, halos and workers of a stored one (see `facts`)."""
        chunk, block, tile = ({a: int(n) for a, n in facts[key].items()} for key in ("chunk", "block", "tile"))
        halo, step = facts.get("halo", {}), facts.get("step", {})
        axes = {a: replace(axis, halo=int(halo.get(a, axis.halo)), step=int(step.get(a, axis.step)))
                for a, axis in self.model_axes.items()}  # fmt: skip
        return replace(
            self, chunk=chunk, block=block, tile=tile, model_axes=axes,
            batch=int(facts["batch"]), workers=int(facts["workers"]), runtime=facts.get("runtime", ""),
            halo_facts=facts.get("halo_facts") or self.halo_facts,
            precision_error=facts.get("precision_error", self.precision_error),
            notes=tuple(dict.fromkeys([*self.notes, *facts.get("notes", ())])),
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of the result, without pyramid or compression."""
        return sum(prod(self.written_sizes(t).values()) * np.dtype(t.dtype).itemsize for t in self.targets)

    def __getstate__(self) -> dict[str, Any]:
        """A plan travels to worker processes without its session: each makes its own."""
        return {k: v for k, v in self.__dict__.items() if k != "session"} | {"session": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        """Model, image, and how much there is to do."""
        return (
            f"Plan({self.package.name!r} on {self.image.name!r}, {self.n_blocks:,} blocks, {self.n_tiles:,} tiles, "
            f"{size_text(self.memory.total)}, {self.device_name})"
        )

    def __str__(self) -> str:
        return plan_text(self)


def raw_targets(plan: Plan) -> tuple[Target, ...]:
    """What the network returns, unprocessed: one float32 array an output, all its channels."""
    return tuple(
        Target(p.id, p, tuple(range(p.channels)), tuple(f"{p.id} {i}" for i in range(p.channels)), "float32")
        for p in plan.geometry.outputs
    )
