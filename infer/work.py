"""What a worker does with a block: read, predict, write. It travels to other processes; the network is made there."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..zoo.errors import ResourceError, SizeError
from .blocks import BlockReport, Pixels, finish_block, predict_block, read_block
from .events import BlockFailed
from .layout import choose_tile
from .networks.network import Network
from .networks.onnx_network import first_line, out_of_memory
from .networks.session import Session, make_session
from .plan import raw_targets
from .samples import first_level

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.image import Image
    from .grid import Span
    from .plan import Plan
    from .samples import Measured


class Sink(Protocol):
    """Where the blocks of one array go."""

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> Any:
        """Take the values of a part of the array; what it returns goes into the outcome."""

    def erase(self, part: tuple[slice, ...]) -> Any:
        """Set a part to 0, whatever an interrupted run has left there."""


@dataclass(frozen=True)
class Outcome:
    """A block that was done, and what its sinks have to say (files that the disk has not confirmed yet)."""

    report: BlockReport
    written: list[Any] = field(default_factory=list)


class Crew:
    """What the blocks of one plan share in one process: the network, and its turn."""

    def __init__(self, plan: Plan, session: Session | None = None) -> None:
        self.session = session or make_session(plan)
        self.session.expect(plan.run_shape)
        self.network = Network(plan, self.session)
        self.turn = self.session.turn
        self.tile: dict[str, int] = {}
        self._lock = threading.Lock()

    def halve(self, plan: Plan, tile: Mapping[str, int], error: Exception) -> None:
        """Go on with tiles of half the size: those did not fit the memory. Raises ResourceError when that cannot be."""
        with self._lock:
            if self.tile and self.tile != tile:
                return  # another lane has met it already
            try:
                smaller = choose_tile(plan.model_axes, plan.block, prod(tile.values()) // 2).tile
            except SizeError:
                smaller = dict(tile)
            if smaller == tile:
                raise ResourceError(
                    f"one tile of {' x '.join(str(n) for n in tile.values())} does not fit the memory of "
                    f"{self.session.name}, and smaller ones are not legal.",
                    where=first_line(error),
                    mend="--device cpu, or a smaller model",
                ) from error
            self.tile = smaller


class BlockWork:
    """Does block number i of a plan. Errors come back as values, so that the other blocks go on.

    sinks: one a target. measured: statistics of samples that are larger than a block.
    """

    def __init__(self, plan: Plan, sinks: Sequence[Sink], measured: Measured | None = None) -> None:
        self.plan = plan
        self.sinks = sinks
        self.measured = measured
        self._crew: Crew | None = Crew(plan, plan.session) if plan.session is not None else None
        for feed in plan.feeds:
            _newly_decoded(feed.image)  # what planning and statistics took is not counted with the blocks

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_crew": None}

    @property
    def crew(self) -> Crew:
        """The network of this process, made when the first block needs it."""
        if self._crew is None:
            with _making:
                self._crew = self._crew or Crew(self.plan, _session_of_process(self.plan))
        return self._crew

    def __call__(self, index: int) -> Outcome | BlockFailed:
        """Do one block."""
        spans = self.plan.block_spans(index)
        try:
            done = self.do(spans)
            parts = [self.plan.part_of(target, spans) for target in self.plan.targets]
            if done is None:
                written = [s.erase(part) for s, part in zip(self.sinks, parts, strict=True)]
            else:
                written = [s.write(part, v) for s, part, v in zip(self.sinks, parts, done.arrays, strict=True)]
        except Exception as error:  # whatever a reader, the network or the disk raises belongs to this block
            return BlockFailed(index, ", ".join(f"{a} {s.start}:{s.stop}" for a, s in spans.items()), error)
        decoded = sum(_newly_decoded(f.image) for f in self.plan.feeds)
        voxels = prod(s.size for s in spans.values())
        if done is None:
            return Outcome(BlockReport(index, voxels, skipped=True, decoded=decoded), written)
        tile = tuple(done.tile.values())
        report = BlockReport(index, voxels, done.clipped, done.mapped, decoded=decoded, tile=tile, started=done.started)
        return Outcome(report, written)

    def leave_hole(self, index: int) -> list[Any]:
        """Set a block that cannot be done to 0, so that nothing half-written is left of it."""
        spans = self.plan.block_spans(index)
        return [s.erase(self.plan.part_of(t, spans)) for t, s in zip(self.plan.targets, self.sinks, strict=True)]

    def do(self, spans: Mapping[str, Span]) -> Predicted | None:
        """Predict a block; None where the mask or its values say that nothing is there."""
        plan, crew = self.plan, self.crew
        if plan.mask is not None and not _any(plan.mask, spans):
            return None
        pixels = read_block(plan, crew.network, spans)
        if plan.choices.skip_below is not None and pixels.brightest() < plan.choices.skip_below:
            return None
        started = round(time.time(), 3)
        while True:
            tile = crew.tile or plan.tile
            try:
                arrays, clipped = predict_block(plan, crew.network, pixels, spans, self.measured, crew.turn, tile)
                return Predicted(arrays, clipped, pixels.mapped, crew.tile, started)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                crew.halve(plan, tile, error)


class RawWork(BlockWork):
    """Leaves what the network returned for block number i, until the statistics of the whole sample are known."""

    def leave_hole(self, index: int) -> list[Any]:
        """Set a block that cannot be done to NaN, which statistics leave out."""
        spans = self.plan.block_spans(index)
        parts = [self.plan.part_of(t, spans) for t in self.plan.targets]
        nothing = [np.full([s.stop - s.start for s in part], np.nan, np.float32) for part in parts]
        return [s.write(part, values) for s, part, values in zip(self.sinks, parts, nothing, strict=True)]


class FinishWork(BlockWork):
    """Does the postprocessing of block number i, once the whole sample has been through the network.

    raw: one readable array an output of the network, with the axes of a target that has all its channels.
    """

    def __init__(self, plan: Plan, sinks: Sequence[Sink], measured: Measured | None, raw: Sequence[Any]) -> None:
        super().__init__(plan, sinks, measured)
        self.raw = [first_level(a) for a in raw]

    def do(self, spans: Mapping[str, Span]) -> Predicted | None:
        """Postprocess a block."""
        plan = self.plan
        arrays = []
        for target, array in zip(raw_targets(plan), self.raw, strict=True):
            arrays.append(canonical(plan, target, array.read(plan.part_of(target, spans))))
        done, clipped = finish_block(plan, self.crew.network, arrays, spans, self.measured)
        return Predicted(done, clipped, 0)


@dataclass(frozen=True)
class Predicted:
    """The arrays of a block, one a target, in its axes and dtype."""

    arrays: list[NDArray[Any]]
    clipped: int
    mapped: int
    tile: Mapping[str, int] = field(default_factory=dict)
    started: float = 0.0


def canonical(plan: Plan, target: Any, values: NDArray[Any]) -> NDArray[Any]:
    """A part of a raw target, in its axes -> (n, c, *space)."""
    axes = plan.axes_of(target)
    order = [*(a for a in plan.loops), *("c" if "c" in axes and "c" not in plan.loops else ""), *target.port.space]
    values = values.transpose([axes.index(a) for a in order])
    space = values.shape[len(values.shape) - len(target.port.space) :]
    return values.reshape(-1, target.port.channels, *space)


def _any(mask: Image, spans: Mapping[str, Span]) -> bool:
    """Whether a mask (of the image's size, or the same for all positions along axes that it lacks) has anything."""
    wanted = {a: slice(s.start, s.stop) for a, s in spans.items() if mask.size(a) > 1}
    return bool(mask.read(wanted).any())


def _session_of_process(plan: Plan) -> Session:
    """One for all plans of a worker process that need the same."""
    from .schedulers.once import once_per_process

    ways = (plan.device, plan.workers, plan.threads, plan.runtime, plan.choices.precision)
    key = ("session", plan.package.sha256, *ways)
    return once_per_process(key, lambda: make_session(plan))


_making = threading.Lock()
_seen: weakref.WeakKeyDictionary[Image, int] = weakref.WeakKeyDictionary()
_seen_lock = threading.Lock()


def _newly_decoded(image: Image) -> int:
    """Bytes of an image that were decoded in this process since this was asked last."""
    with _seen_lock:
        now = image.decoded
        new, _seen[image] = now - _seen.get(image, 0), now
    return max(0, new)


__all__ = ["BlockWork", "Crew", "FinishWork", "Outcome", "Pixels", "Predicted", "RawWork", "Sink"]
