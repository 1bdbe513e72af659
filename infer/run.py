"""Runs a plan: a scheduler hands out blocks, each is read, predicted, written, and then ticked in the ledger."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import BlocksFailed, OutputError, VoidzooError
from ..zoo.memory import peak_memory
from .blocks import BlockReport
from .events import BlockDone, BlockFailed, Done, PlanMade, StageStarted, Watch
from .finish import layers_of, publish, what_happened
from .ledger import Ledger
from .networks.network import Network
from .networks.session import make_session
from .output.durable import GroupCommit, Written, sync
from .output.store import Store
from .output.tiff import check_tiff
from .place import IMAGE_STATISTICS, LEDGER, RAW_LEDGER, RAW_STATISTICS, RESTORE_LEDGER, Place
from .plan import Plan, raw_targets
from .restore import RestoreWork, restored_layers
from .samples import Measured, load_or_measure
from .schedulers.cluster import open_scheduler
from .schedulers.trouble import Lost
from .work import BlockWork, FinishWork, Outcome, RawWork

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.image import Image
    from .output.pyramid import Cascade
    from .schedulers.cluster import Scheduler


@dataclass(frozen=True)
class Result:
    """A finished prediction.

    blocks: done in this run; skipped, clipped, mapped: over the whole result. decoded: bytes of the image decoded by
    the blocks of this run. holes: blocks that failed and hold the fill value. path: OUT.
    """

    path: str
    seconds: float
    blocks: int
    clipped: int
    mapped: int
    peak_memory: int
    plan: Plan = field(repr=False)
    skipped: int = 0
    read_amplification: float | None = None
    holes: tuple[str, ...] = ()
    used_tile: tuple[int, ...] = ()

    @property
    def tile(self) -> dict[str, int]:
        """The tile of the network: the planned one, or the one that fitted the memory."""
        return dict(zip(self.plan.tile, self.used_tile, strict=True)) if self.used_tile else self.plan.tile

    @property
    def image(self) -> Image:
        """The result as an image again: lazy, with um and channel names. Of several arrays: the first."""
        return self.images[next(iter(self.images))]

    @property
    def images(self) -> dict[str, Image]:
        """The arrays of the result by name; the name is empty where there is only one."""
        from ..zoo.open import open_image

        if len(self.plan.targets) == 1:
            return {"": open_image(self.path)}
        if Place(self.path).format == "tiff":
            return {t.name: open_image(self.path, series=i) for i, t in enumerate(self.plan.targets)}
        return {t.name: open_image(Path(self.path) / t.name) for t in self.plan.targets}


def run_plan(
    plan: Plan,
    out: str | Path,
    *,
    overwrite: bool = False,
    skip_failed: bool = False,
    scheduler: str = "threads",
    version: str = "0.5",
    watch: Watch | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Predict into OUT (.ome.zarr or .ome.tif). The same plan on the same OUT continues where it was cut off.

    skip_failed: blocks that cannot be done become holes of the result instead of an error. scheduler: see
    `cluster.open_scheduler`. version: of OME-Zarr, 0.5 or 0.4.
    Raises OutputError, ResourceError before anything is done; BlocksFailed when blocks could not be done (the others
    are kept); KeyboardInterrupt when `stop` was set and blocks remain.
    """
    start = time.monotonic()
    place = Place(out)
    tell = watch or (lambda _event: None)
    version = place.version_for(version, overwrite)
    plan = adopt(plan, place, overwrite)
    if not overwrite and place.is_done(plan):
        return _complete(plan, place, tell)
    with _told_in_words(place), place.held():
        plan = adopt(plan, place, overwrite)
        if place.check(plan, overwrite):
            place.clear()  # left by a kill between the move to OUT and the clean-up
            return _complete(plan, place, tell)
        gpu = plan.memory.device > 0
        with open_scheduler(scheduler, cpus=plan.lanes, gpu=gpu) as crew:
            job = _Job(replace(plan, scheduler=crew.name), place, crew, tell, stop or threading.Event(), version)
            blocks, holes = job.run(skip_failed=skip_failed)
            reports = list(blocks.values())
            happened = what_happened(reports, time.monotonic() - start, holes)
            publish(job.plan, place, job.store, job.layers, job.cascades, happened, tell)
    seconds = time.monotonic() - start
    tell(Done(str(place.out), seconds))
    return Result(
        str(place.out), seconds, job.fresh, sum(r.clipped for r in reports), sum(r.mapped for r in reports),
        peak_memory(), job.plan, sum(r.skipped for r in reports), job.read_amplification, tuple(holes),
        min((r.tile for r in reports if r.tile), default=()),
    )  # fmt: skip


def _complete(plan: Plan, place: Place, tell: Watch) -> Result:
    """The result that lies at OUT already."""
    tell(Done(str(place.out), 0.0))
    return Result(str(place.out), 0.0, 0, 0, 0, peak_memory(), plan, holes=place.holes())


class _Job:
    """One run of a plan into its place."""

    def __init__(
        self, plan: Plan, place: Place, crew: Scheduler, tell: Watch, stop: threading.Event, version: str
    ) -> None:
        self.plan = plan
        self.place = place
        self.crew = crew
        self.tell = tell
        self.stop = stop
        self.full = False
        self.fresh = 0
        self.read_amplification: float | None = None
        self.store = Store(place.staged, version)
        layers = layers_of(plan, plan.targets)
        self.layers = layers if plan.original is None else restored_layers(plan, layers)
        if place.format == "tiff":
            self.layers = [replace(layer, planar=True) for layer in self.layers]
            check_tiff(self.layers)
        if not place.begin(plan, version):
            self.store.create(self.layers)
        self.cascades = [self.store.cascade(layer) for layer in self.layers]

    def run(self, *, skip_failed: bool) -> tuple[dict[int, Any], list[str]]:
        """All blocks -> their reports, and where the holes are."""
        plan = self.plan = replace(self.plan, session=self.plan.session or make_session(self.plan))
        if plan.original is None:
            return self._predict(plan, self.cascades, skip_failed=skip_failed)
        fine = replace(plan, targets=tuple(replace(t, dtype="float32") for t in plan.targets))
        arrays = self._staged(fine, "scaled.zarr")
        blocks, holes = self._predict(fine, arrays, skip_failed=skip_failed)
        self.tell(StageStarted("restore"))
        back = RestoreWork(plan, self.layers, arrays, self.cascades)
        restored, failed = self._pass(plan, back, len(back), RESTORE_LEDGER, skip_failed=skip_failed)
        more = _holes(failed)
        blocks = {i: replace(r, clipped=0) for i, r in blocks.items()}
        clipped = sum(r.clipped for r in restored.values())
        return {**blocks, -1: BlockReport(-1, 0, clipped)}, [*holes, *more]

    def _staged(self, plan: Plan, name: str) -> list[Cascade]:
        """Arrays for the targets of a plan, beside the result until it is finished."""
        store = Store(self.place.part / name)
        layers = layers_of(plan, plan.targets)
        if not store.path.exists():
            store.create(layers)
        return [store.cascade(layer) for layer in layers]

    def _predict(self, plan: Plan, sinks: list[Cascade], *, skip_failed: bool) -> tuple[dict[int, Any], list[str]]:
        """All blocks into the sinks, one a target."""
        place = self.place
        assert plan.session is not None
        network = Network(plan, plan.session)
        measured = Measured()
        if network.wanted_of_inputs and not plan.samples_in_blocks:
            self.tell(StageStarted("statistics"))
            sources = {f.port.id: f for f in plan.feeds}
            measured = load_or_measure(plan, place.part / IMAGE_STATISTICS, network.wanted_of_inputs, sources)
        self.tell(PlanMade(plan, len(Ledger.peek(place.part / (RAW_LEDGER if network.later else LEDGER)))))
        if not network.later:
            work = BlockWork(plan, sinks, measured)
            blocks, failed = self._pass(plan, work, plan.n_blocks, LEDGER, skip_failed=skip_failed,
                                        behind=(RESTORE_LEDGER,))  # fmt: skip
            return blocks, _holes(failed)
        raw = replace(plan, targets=raw_targets(plan))
        arrays = self._staged(raw, "raw.zarr")
        first, lost = self._pass(plan, RawWork(raw, arrays, measured), plan.n_blocks, RAW_LEDGER,
                                 skip_failed=skip_failed, behind=(RAW_STATISTICS, LEDGER, RESTORE_LEDGER))  # fmt: skip
        self.tell(StageStarted("statistics"))
        found = load_or_measure(plan, place.part / RAW_STATISTICS, network.wanted_of_outputs,
                                {t.port.id: (t, c) for t, c in zip(raw.targets, arrays, strict=True)})  # fmt: skip
        both = Measured({**measured.tables, **found.tables})
        finish = FinishWork(plan, sinks, both, arrays)
        blocks, failed = self._pass(plan, finish, plan.n_blocks, LEDGER, skip_failed=skip_failed, lost=lost,
                                    behind=(RESTORE_LEDGER,))  # fmt: skip
        both_passes = ((i, r, first.get(i, r)) for i, r in blocks.items())
        return {i: replace(r, mapped=b.mapped, tile=b.tile) for i, r, b in both_passes}, _holes(failed)

    def _pass(
        self, plan: Plan, work: BlockWork | RestoreWork, count: int, ledger_name: str, *, skip_failed: bool,
        lost: Sequence[BlockFailed] = (), behind: Sequence[str] = (),
    ) -> tuple[dict[int, Any], list[BlockFailed]]:  # fmt: skip
        """Do what the ledger does not have of `count` pieces of work. -> reports by piece, those that failed.

        lost: what has failed in the pass before. behind: files of later passes, which what is done now makes void.
        """
        start = time.monotonic()
        tell = self.tell
        failed = list(lost)
        without = {f.index for f in lost}
        with closing(Ledger(self.place.part / ledger_name)) as ledger, _commits(ledger) as commits:
            before = len(ledger.done)

            def heard(outcome: Any) -> None:
                event = _failure_of(outcome, plan)
                if event is not None:
                    failed.append(event)
                    tell(event)
                    self.full = self.full or _disk_full(event.error)  # every other block would fail too
                    return
                if len(ledger.done) == before:
                    self.place.forget(behind)
                ledger.add(outcome.report)
                commits.add(outcome.report, sum(outcome.written, Written()))
                tell(BlockDone(outcome.report, len(ledger.done), count, time.monotonic() - start))

            todo = (i for i in range(count) if i not in ledger.done and i not in without)
            lanes = 2 if self.crew.distributed else plan.lanes  # for each thread there: one runs, one is on its way
            self.crew.share_out(work, todo, lanes, heard=heard, stopped=lambda: self.full or self.stop.is_set())
        done = ledger.done
        if type(work) in (BlockWork, RawWork):
            self.fresh = len(done) - before
            self.read_amplification = _amplification(plan, done, before)
        if failed and (self.full or not skip_failed):
            raise _failure(plan, failed, len(done))
        if len(done) + len(failed) < count:
            raise KeyboardInterrupt
        sync(written for f in failed for written in work.leave_hole(f.index))
        return done, failed


def _holes(failed: Sequence[BlockFailed]) -> list[str]:
    """Where the holes are, in words."""
    return [f"block {f.index} ({f.where}): {_what(f.error)}" for f in sorted(failed, key=lambda f: f.index)]


def _commits(ledger: Ledger) -> GroupCommit[Any]:
    return GroupCommit(lambda reports: ledger.confirm(len(reports)))


def _failure_of(outcome: Any, plan: Plan) -> BlockFailed | None:
    """A block that failed, or whose workers died again and again."""
    if isinstance(outcome, Lost):
        spans = plan.block_spans(outcome.item)
        return BlockFailed(outcome.item, ", ".join(f"{a} {s.start}:{s.stop}" for a, s in spans.items()), outcome.error)
    return outcome if isinstance(outcome, BlockFailed) else None


def _amplification(plan: Plan, done: dict[int, Any], before: int) -> float | None:
    """Bytes decoded for each byte of the image that the blocks of this run cover."""
    fresh = list(done.values())[before:]
    voxels = sum(r.voxels for r in fresh if not r.skipped)
    images = (
        [f.image for f in plan.feeds] if plan.original is None else [plan.original, *(f.image for f in plan.feeds[1:])]
    )
    each = sum(i.nbytes for i in images) / max(1, int(np.prod([plan.sizes[a] for a in plan.grid])))
    if plan.feeds[0].channel is not None:
        each /= plan.image.size("c")
    decoded = sum(r.decoded for r in fresh)
    return round(decoded / (voxels * each), 3) if voxels and decoded else None


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


def _disk_full(error: Exception) -> bool:
    import errno

    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _what(error: Exception) -> str:
    return getattr(error, "what", None) or f"{type(error).__name__}: {error}"


def _failure(plan: Plan, failed: Sequence[BlockFailed], done: int) -> BlocksFailed:
    first = failed[0]
    what = _what(first.error)
    if isinstance(first.error, OSError) and first.error.strerror:
        what = f"{first.error.strerror} ({first.error.filename or plan.image.name})"
    where = getattr(first.error, "where", "")
    mend = getattr(first.error, "mend", "")
    error = BlocksFailed(
        f"{len(failed)} of {plan.n_blocks} blocks failed; the {done} finished ones are kept. The first: {what}",
        where=f"block {first.index} ({first.where}) of {plan.image.name}" + (f"; {where}" if where else ""),
        mend=(f"{mend}; " if mend else "") + "the same command again does the rest (--skip-failed leaves holes)",
    )
    error.__cause__ = first.error
    return error


def run_in_memory(plan: Plan) -> dict[str, NDArray[Any]]:
    """Predict into new arrays, one a target, by name. Nothing is written."""
    if plan.original is not None:
        fine = replace(plan, original=None, targets=tuple(replace(t, dtype="float32") for t in plan.targets))
        layers = restored_layers(plan, layers_of(plan, plan.targets))
        held = [_InMemory(values) for values in run_in_memory(fine).values()]
        sinks = [_InMemory(np.zeros(x.shape, x.dtype)) for x in layers]
        work = RestoreWork(plan, layers, held, sinks)
        if failed := [f for f in map(work, range(len(work))) if isinstance(f, BlockFailed)]:
            raise _failure(plan, failed, len(work) - len(failed))
        return {t.name: s.values for t, s in zip(plan.targets, sinks, strict=True)}
    plan = plan if plan.session is not None else replace(plan, session=make_session(plan))
    assert plan.session is not None
    network = Network(plan, plan.session)
    measured = Measured()
    if network.wanted_of_inputs and not plan.samples_in_blocks:
        measured = load_or_measure(plan, None, network.wanted_of_inputs, {f.port.id: f for f in plan.feeds})
    if not network.later:
        return _into_memory(plan, lambda sinks: BlockWork(plan, sinks, measured))
    raw = replace(plan, targets=raw_targets(plan))
    results = _into_memory(raw, lambda sinks: BlockWork(raw, sinks, measured))
    arrays = [_InMemory(results[t.name]) for t in raw.targets]
    found = load_or_measure(plan, None, network.wanted_of_outputs,
                            {t.port.id: (t, a) for t, a in zip(raw.targets, arrays, strict=True)})  # fmt: skip
    both = Measured({**measured.tables, **found.tables})
    return _into_memory(plan, lambda sinks: FinishWork(plan, sinks, both, arrays))


class _InMemory:
    """An array that blocks are written into."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values
        self.shape, self.dtype, self.grid = values.shape, values.dtype, values.shape

    def read(self, part: tuple[slice, ...]) -> NDArray[Any]:
        """A part of the array."""
        return self.values[part]

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Take a part."""
        self.values[part] = values

    def erase(self, part: tuple[slice, ...]) -> None:
        """Nothing was there before."""


def _into_memory(plan: Plan, work: Callable[[list[_InMemory]], BlockWork]) -> dict[str, NDArray[Any]]:
    sinks = [_InMemory(np.zeros(plan.shape_of(t), t.dtype)) for t in plan.targets]
    failed: list[BlockFailed] = []
    done: list[Outcome] = []

    def heard(outcome: Any) -> None:
        (failed if isinstance(outcome, BlockFailed) else done).append(outcome)

    with open_scheduler("threads") as crew:
        crew.share_out(work(sinks), range(plan.n_blocks), plan.lanes, heard=heard, stopped=lambda: False)
    if failed:
        raise _failure(plan, failed, len(done))
    return {t.name: s.values for t, s in zip(plan.targets, sinks, strict=True)}
