"""Runs a plan: dask hands blocks to threads, a block is read, predicted, written, and then ticked in the ledger."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..zoo.errors import BlocksFailed, OutputError, VoidzooError
from .blocks import BlockReport, predict_block, read_block
from .events import BlockDone, BlockFailed, Done, PlanMade, Watch
from .finish import complete_pyramid, peak_memory, publish
from .ledger import Ledger
from .place import LEDGER, Place
from .plan import Plan
from .pyramid import Cascade, pyramid
from .session import Session, find_device
from .store import Store
from .tasks import share_out

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.image import Image


@dataclass(frozen=True)
class Result:
    """A finished prediction. blocks: done in this run; clipped, mapped: over the whole result."""

    path: str
    seconds: float
    blocks: int
    clipped: int
    mapped: int
    peak_memory: int
    plan: Plan = field(repr=False)

    @property
    def image(self) -> Image:
        """The result as an image again: lazy, with um and channel names."""
        from ..zoo.open import open_image

        return open_image(self.path)


class Sink(Protocol):
    """Where blocks go."""

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Take the values of a part of the result."""


class Engine:
    """Hands blocks to dask's threads and hears of each. The network runs `workers` of them at a time."""

    def __init__(self, plan: Plan, sink: Sink, stop: threading.Event | None = None) -> None:
        self.plan = plan
        self.sink = sink
        self.stop = stop or threading.Event()
        self.session = plan.session or Session(plan.package, find_device(plan.device), plan.workers)
        self._turn = threading.BoundedSemaphore(plan.workers)

    def work(self, index: int) -> BlockReport | BlockFailed | None:
        """Do one block. Errors come back as values, so that the other blocks go on; None when stopped before."""
        if self.stop.is_set():
            return None
        plan = self.plan
        spans = plan.block_spans(index)
        try:
            pixels, regions, mapped = read_block(plan, spans)
            values, clipped = predict_block(plan, self.session, pixels, spans, regions, self._turn)
            del pixels
            part = tuple(
                slice(spans[a].start, spans[a].stop) if a in spans else slice(0, n)
                for a, n in zip(plan.out_axes, plan.out_shape, strict=True)
            )
            self.sink.write(part, values)
        except Exception as error:  # whatever a reader, the network or the disk raises belongs to this block
            return BlockFailed(index, ", ".join(f"{a} {s.start}:{s.stop}" for a, s in spans.items()), error)
        return BlockReport(index, prod(s.size for s in spans.values()), clipped, mapped)

    def run(self, todo: Iterable[int], heard: Callable[[BlockReport | BlockFailed], None]) -> None:
        """Do the blocks in order, `heard` in this thread as each is done."""

        def listen(outcome: BlockReport | BlockFailed | None) -> None:
            if outcome is not None:
                heard(outcome)

        share_out(self.work, todo, self.plan.lanes, heard=listen, stopped=self.stop.is_set)


def run_plan(
    plan: Plan,
    out: str | Path,
    *,
    overwrite: bool = False,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Predict into OUT (.ome.zarr or .ome.tif). The same plan on the same OUT continues where it was cut off.

    Raises OutputError, ResourceError before anything is done; BlocksFailed when blocks could not be done (the others
    are kept); KeyboardInterrupt when `stop` was set and blocks remain.
    """
    start = time.monotonic()
    place = Place(out)
    tell = watch or (lambda _event: None)
    plan = adopt(plan, place, overwrite)
    if place.check(plan, overwrite):
        tell(Done(str(place.out), 0.0))
        return Result(str(place.out), 0.0, 0, 0, 0, peak_memory(), plan)
    store = Store(place.staged)
    levels = pyramid(plan.out_axes, plan.out_shape, plan.image.pixel_size)
    block = [plan.block.get(a, n) for a, n in zip(plan.out_axes, plan.out_shape, strict=True)]
    with _told_in_words(place):
        if not place.begin(plan):
            chunk = [plan.chunk.get(a, 1) for a in plan.out_axes]
            store.create(plan.out_axes, levels, plan.dtype, chunk, block)
        cascade = Cascade([store.array(i) for i in range(len(levels))], levels, block)
        with closing(Ledger(place.part / LEDGER)) as ledger:
            fresh = _run_blocks(plan, cascade, ledger, tell, stop)
            reports = list(ledger.done.values())
        complete_pyramid(plan, cascade, tell)
        publish(plan, place, store, cascade, reports, time.monotonic() - start, tell)
    tell(Done(str(place.out), time.monotonic() - start))
    return Result(
        str(place.out), time.monotonic() - start, fresh, sum(r.clipped for r in reports),
        sum(r.mapped for r in reports), peak_memory(), plan,
    )  # fmt: skip


@contextlib.contextmanager
def _told_in_words(place: Place) -> Iterator[None]:
    """What the disk refuses is an error that says where and what to do, not a traceback."""
    try:
        yield
    except OSError as error:
        if isinstance(error, VoidzooError):
            raise
        raise OutputError(
            f"{place.out} cannot be written: {error.strerror or error}.",
            where=str(error.filename or place.part),
            mend="make room or mend the rights; the same command again continues",
        ) from error


def adopt(plan: Plan, place: Place, overwrite: bool) -> Plan:
    """The plan with the sizes of one that was begun at the same place, if it is the same job."""
    stored = place.begun() if overwrite else place.stored()
    if not stored or "block" not in stored or set(stored["block"]) != set(plan.block):
        return plan
    pinned = plan.pinned(stored)
    if any(getattr(plan, key) != getattr(pinned, key) for key in plan.asked):
        return plan  # a tile or block that was asked for and differs is another plan: refused when checked
    return pinned if pinned.identity == stored.get("identity") else plan


def _run_blocks(plan: Plan, sink: Sink, ledger: Ledger, tell: Watch, stop: threading.Event | None) -> int:
    """Do what the ledger does not have. -> how many were done now."""
    start = time.monotonic()
    tell(PlanMade(plan, len(ledger.done)))
    failed: list[BlockFailed] = []
    before = len(ledger.done)
    engine = Engine(plan, sink, stop)

    def heard(event: BlockReport | BlockFailed) -> None:
        if isinstance(event, BlockFailed):
            failed.append(event)
            tell(event)
            if isinstance(event.error, OutputError | OSError) and _disk_full(event.error):
                engine.stop.set()  # every other block would fail too
            return
        ledger.add(event)
        tell(BlockDone(event, len(ledger.done), plan.n_blocks, time.monotonic() - start))

    engine.run((i for i in range(plan.n_blocks) if i not in ledger.done), heard)
    ledger.commit()
    if failed:
        raise _failure(plan, failed, len(ledger.done))
    if len(ledger.done) < plan.n_blocks:
        raise KeyboardInterrupt
    return len(ledger.done) - before


def _disk_full(error: OSError) -> bool:
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _failure(plan: Plan, failed: list[BlockFailed], done: int) -> BlocksFailed:
    first = failed[0]
    what = getattr(first.error, "what", None) or f"{type(first.error).__name__}: {first.error}"
    if isinstance(first.error, OSError) and first.error.strerror:
        what = f"{first.error.strerror} ({first.error.filename or plan.image.name})"
    where = getattr(first.error, "where", "")
    mend = getattr(first.error, "mend", "")
    error = BlocksFailed(
        f"{len(failed)} of {plan.n_blocks} blocks failed; the {done} finished ones are kept. The first: {what}",
        where=f"block {first.index} ({first.where}) of {plan.image.name}" + (f"; {where}" if where else ""),
        mend=(f"{mend}; " if mend else "") + "the same command again does the rest",
    )
    error.__cause__ = first.error
    return error


def run_in_memory(plan: Plan) -> NDArray[Any]:
    """Predict into a new array with the axes of the result. Nothing is written."""
    out = np.empty(plan.out_shape, plan.dtype)

    class Memory:
        def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> None:
            out[part] = values

    failed: list[BlockFailed] = []

    def heard(event: BlockReport | BlockFailed) -> None:
        if isinstance(event, BlockFailed):
            failed.append(event)

    Engine(replace(plan), Memory()).run(range(plan.n_blocks), heard)
    if failed:
        raise _failure(plan, failed, plan.n_blocks - len(failed))
    return out
