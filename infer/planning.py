"""Makes the plan, before anything runs: every refusal of a prediction happens here or in `meeting`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import PackageError, ResourceError, SizeError
from ..zoo.image import Image
from ..zoo.package import Package
from ..zoo.rescale import WORKING, Rescaled, rescaled
from .device import Device, cpu_count, device_memory, find_device
from .fit import grey_notes, pixel_notes
from .geometry import geometry
from .graph import working_bytes
from .grid import Axis
from .layout import (
    BLOCK_VOXELS,
    block_shape,
    cache_pixels,
    choose_tile,
    chunk_shape,
    legal_tile,
    longest_region,
    tiled_length,
)
from .meeting import (
    at_model_size,
    feeds,
    fitting_mask,
    model_axes,
    only_part,
    refuse_choices,
    sample_letters,
    targets,
)
from .network import Network, processing_of
from .plan import Choices, Memory, Plan
from .precision import with_measured_precision
from .probe import Probe, probe, random_feeds
from .report import size_text
from .session import Session
from .sight import with_known_halos, with_tolerance
from .work import make_session

if TYPE_CHECKING:
    from .processing import Processing

WORTH_PROBING = 2.0
"""Seconds of network time from which on several single-threaded sessions are tried against one with all threads: in 3D
they are up to half as fast again, in 2D about as fast."""
CLEARLY = 0.92
"""They take twice the memory, and a short probe is off by some percent: they must promise this share of the time."""
LIBRARIES = 90 * 2**20
"""What importing and using zarr, codecs and dask adds to the process after planning, measured."""
GPU_SHARE = 0.8
"""Of a GPU's free memory; cuDNN takes workspace beside the tensors. A tile that does not fit after all is halved."""
ARENA = 1.5
"""How far onnxruntime's arena and blocked layouts exceed the tensors themselves: 1.3 to 1.5, measured on U-Nets."""
PROBE_SIDE = {1: (512,), 2: (128, 128), 3: (16, 64, 64), 4: (4, 16, 32, 32)}
"""Small, so that it is over in a blink: larger tiles are up to 8 % faster per voxel."""

PROBED = 0.05
"""The share of the work that may go into measuring which halo is enough for a tolerance."""

Sizes = tuple[int, ...] | None


def make_plan(
    package: Package,
    image: Image,
    *,
    channel: str | int | None = None,
    inputs: Mapping[str, Image] | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    tile: tuple[int, ...] | None = None,
    block: tuple[int, ...] | None = None,
    device: str = "auto",
    only: Mapping[str, tuple[int | None, int | None]] | None = None,
    mask: Image | None = None,
    sample: str | None = None,
    rescale: bool = False,
    scheduler: str = "threads",
    choices: Choices | None = None,
    facts: Mapping[str, Any] | None = None,
    session: Session | None = None,
) -> Plan:
    """Decide everything: blocks, tiles, halo, memory, disk, time, device. Nothing is written.

    inputs: the images of further inputs by name. memory: bytes that the process may take. tile, block: sizes along the
    model's axes. only: start and stop by letter of the part to do. mask: an image of which nothing but zeros means
    that a block need not be run. sample: plane, volume, series or image: what steps that measure their input measure;
    by default the axes of the model. rescale: the network sees the image at its training pixel size, and the result
    comes back at the image's own. scheduler: where blocks will be done; the processes of `processes:N` share out the
    processors and the memory of this machine. facts: those of a stored plan; if it is about the same job its sizes are
    taken as they are, without a probe. session: one of this package to use again.
    Raises AxesError, DtypeError, SizeError, ResourceError, DeviceError, PackageError.
    """
    choices = choices or Choices()
    refuse_choices(choices)
    original = image
    mask = None if mask is None else fitting_mask(image, mask)
    if rescale:
        feeds(package, geometry(package), image, channel, inputs or {})  # what does not fit is refused as it is
        image = at_model_size(package, image, whole=not only)
        mask, inputs = laid_on(package, image, mask, inputs or {})
    draft, wanted = _draft(package, image, channel, inputs or {}, dtype, device, original)
    processes = _processes(scheduler)
    draft, processing = _chosen(
        replace(draft, choices=choices, mask=mask, threads=max(1, cpu_count() // processes) if processes else None,
                asked=tuple(n for n, sizes in (("tile", tile), ("block", block)) if sizes is not None)),
        only or {}, sample,
    )  # fmt: skip
    process = _process_memory()

    def open_session(workers: int = 1) -> Session:
        return make_session(replace(draft, workers=workers))

    if facts is not None and _same_job(draft, facts) and _as_asked(draft.pinned(facts), tile, block):
        # a finished TIFF does not hold what was measured, and nothing of it is to be done any more
        measured = Probe(float(facts.get("voxels_per_second") or 1.0), float(facts.get("bytes_per_voxel") or 0.0))
        pinned = draft.pinned(facts)
        plan = _with_costs(_cached(pinned, ((memory or default_memory()) - process) // 4), measured, process)
        same = session is not None and session.workers == plan.workers
        return _with_samples(_on(plan, session if same and session else open_session(plan.workers)), processing)
    if session is not None:  # what was measured to be faster for another image is taken for this one
        draft = replace(draft, workers=session.workers)
    session = session or open_session()
    measured = _measure(session, draft)
    draft = replace(draft, notes=(*draft.notes, *grey_notes(package, draft.feeds[0])))
    draft = with_known_halos(draft, session)
    if choices.precision != "fp32":
        draft = with_measured_precision(draft, session)
    if choices.tolerance:
        voxels = prod(span.size for span in draft.part.values())
        draft = with_tolerance(draft, Network(draft, session), int(PROBED * voxels))
    room = (process, (memory or default_memory()) // max(1, processes))
    plan = _on(_shaped(draft, session, measured, room, (tile, block)), session)
    alone = scheduler == "threads" and wanted.kind == "cpu" and cpu_count() > 1 and session.workers == 1
    if alone and plan.seconds > WORTH_PROBING:
        plan = _more_workers(plan, draft, open_session(cpu_count()), room, (tile, block))
    plan = _with_samples(plan, processing)
    _refuse_memory(plan, memory)
    return plan


def _chosen(
    draft: Plan, only: Mapping[str, tuple[int | None, int | None]], sample: str | None
) -> tuple[Plan, Processing | None]:  # fmt: skip
    """The plan with the part and the sample that were chosen, and the steps of the package."""
    choices = replace(draft.choices, only=only_part(draft, only), sample=sample_letters(draft, sample))
    draft = replace(draft, choices=choices)
    processing = processing_of(draft)
    if processing is not None and sample is None and any(any(flags) for flags in processing.dataset.values()):
        # the package asks for statistics of a data set: of all that there is of this one
        draft = replace(draft, choices=replace(choices, sample="".join(a for a in draft.loops if a in "tz")))
        processing = processing_of(draft)
    if sample is not None and not _measures(processing):
        note = f"{draft.package.name} measures nothing of the image: --sample changes nothing"
        draft = replace(draft, choices=replace(choices, sample=""), notes=(*draft.notes, note))
    return (draft if processing is None else replace(draft, steps=tuple(processing.text()))), processing


def _measures(processing: Processing | None) -> bool:
    """Whether a step needs statistics of an input or of the result."""
    if processing is None:
        return False
    return any(processing.inputs_wanted.values()) or any(processing.outputs_wanted.values())


def _processes(scheduler: str) -> int:
    """N of `processes:N`, 0 for other words."""
    word, _, count = scheduler.partition(":")
    return int(count) if word == "processes" and count.isdigit() else 0


def laid_on(
    package: Package, image: Image, mask: Image | None, inputs: Mapping[str, Image]
) -> tuple[Image | None, dict[str, Image]]:
    """Mask and further inputs, resampled to lie on an image that is (--rescale)."""
    size = {a: image.size(a) for a in "zyx"}
    if mask is not None:
        mask = rescaled(mask, {a: n for a, n in size.items() if mask.size(a) > 1}, nearest=True)
    found = dict(inputs)
    for port in geometry(package).inputs[1:]:
        if port.id in found and not port.whole:
            other = found[port.id]
            sizes = {a: port.span(0, n, a)[1] for a, n in size.items() if other.size(a) > 1}
            found[port.id] = rescaled(other, sizes, nearest=other.dtype == bool)
    return mask, found


def _with_samples(plan: Plan, processing: Processing | None) -> Plan:
    """Whether the result has to wait for statistics of itself. Raises SizeError where that cannot be."""
    if processing is None or plan.samples_in_blocks:
        return plan
    if whole := processing.needs_whole():
        raise SizeError(
            f"{plan.package.name} ends in {', '.join(whole)}, which sees the whole of {_sample(plan)} at once; "
            f"blocks of {' x '.join(str(n) for n in plan.block.values())} do not hold it.",
            mend="--memory 16GB, or more",
        )
    staged = any(processing.outputs_wanted.values())
    if staged and plan.choices.only.keys() & {*plan.model_axes, *plan.choices.sample}:
        raise SizeError(f"{plan.package.name} normalises its result by the whole of {_sample(plan)}: a part of it "
                        "cannot be done alone.", mend="leave --only out")  # fmt: skip
    if staged and (plan.mask is not None or plan.choices.skip_below is not None):
        raise SizeError(f"{plan.package.name} normalises its result by the whole of {_sample(plan)}: no block of it "
                        "can be skipped.", mend="leave --mask and --skip-below out")  # fmt: skip
    return replace(plan, staged=staged)


def _sample(plan: Plan) -> str:
    return "an image" if plan.choices.sample else {2: "a plane", 3: "a volume"}.get(len(plan.model_axes), "a series")


def _draft(
    package: Package, image: Image, channel: str | int | None, inputs: Mapping[str, Image], dtype: str | None,
    device: str, original: Image,
) -> tuple[Plan, Device]:  # fmt: skip
    """What does not depend on sizes: axes, channels, dtypes, device, notes. original: as given, before --rescale."""
    shape = geometry(package)
    found, each = feeds(package, shape, image, channel, inputs)
    wanted = find_device(device)
    whole = not each
    draft = Plan(
        package=package, geometry=shape, feeds=found,
        targets=targets(package, shape, original, found[0].channel, dtype, each=each),
        model_axes=model_axes(shape, image), grid="".join(a for a in image.axes if not (a == "c" and whole)),
        device=device, device_name=str(wanted), notes=(*image.notes, *pixel_notes(package, image)),
        original=None if original is image else original,
    )  # fmt: skip
    return draft, wanted


def _same_job(draft: Plan, facts: Mapping[str, Any]) -> bool:
    """Whether a stored plan is about this model, image, channel and dtype."""
    return set(facts.get("block", {})) == set(draft.grid) and draft.pinned(facts).identity == facts.get("identity")


def _as_asked(stored: Plan, tile: Sizes, block: Sizes) -> bool:
    """Whether a stored plan has the sizes that are asked for."""
    sizes = {a: span.size for a, span in stored.part.items()}
    chunk = chunk_shape(stored.grid, stored.model_axes, sizes)
    try:
        if tile is not None and _asked_tile(stored.model_axes, tile) != stored.tile:
            return False
        return block is None or _asked_block(stored, chunk, block) == stored.block
    except SizeError:  # told where sizes are chosen
        return False


def _on(plan: Plan, session: Session) -> Plan:
    return replace(plan, session=session, device_name=session.name)


def _shaped(
    draft: Plan, session: Session, measured: Probe, memory: tuple[int, int], asked: tuple[Sizes, Sizes]
) -> Plan:
    """Choose chunk, block, tile and batch. memory: what the process holds, and what it may take."""
    process, budget = memory
    tile, block = asked
    model = draft.model_axes
    sizes = {a: span.size for a, span in draft.part.items()}
    chunk = chunk_shape(draft.grid, model, sizes)
    per_voxel = draft.lanes * _buffer_bytes(draft)
    limit = max(prod(chunk.values()), min(BLOCK_VOXELS, int(0.3 * max(0, budget - process) / per_voxel)))
    if prod(sizes[a] for a in draft.loops) < draft.workers:  # fewer volumes than networks: each gets a part of one
        limit = max(prod(chunk.values()), min(limit, -(-prod(sizes.values()) // draft.workers)))
    shape = _asked_block(draft, chunk, block) or block_shape(draft.grid, model, sizes, chunk, limit)
    regions = dict(shape)
    shape = {a: min(n, sizes[a]) for a, n in shape.items()}
    plan = _cached(replace(draft, chunk=chunk, block=shape), (budget - process) // 4)
    room = (budget - process - _block_memory(plan)) // plan.workers
    if (gpu := device_memory(session.device)) is not None:
        budget, room = gpu[0], int(gpu[0] * GPU_SHARE) // plan.workers
    tiles = _asked_tile(model, tile) or _within(plan, _fitting_tile(model, regions, room, measured, budget))
    batch = max(1, min(2**16 // prod(tiles.values()), prod(n for a, n in shape.items() if a not in model)))
    if draft.package.main.axis("b") is None or session.batch_limit is not None:
        batch = 1
    return _with_costs(replace(plan, tile=tiles, batch=batch), measured, process)


def _cached(plan: Plan, most: int) -> Plan:
    """The plan with images that keep the decoded chunks which blocks share, as far as `most` bytes hold them."""
    halo = {a: axis.margin for a, axis in plan.model_axes.items()}
    needed = {}
    for feed in plan.feeds:
        image = feed.image
        inside = dict.fromkeys(image.axes, 1) if feed.port.whole else plan.block
        chunk = dict(zip(image.axes, image.chunks, strict=True))
        pixels = cache_pixels(image.sizes, chunk, inside, halo, plan.lanes)
        needed[feed.port.id] = pixels * image.dtype.itemsize
    total = sum(needed.values())
    share = min(1.0, max(0, most) / total) if total else 1.0
    feeds = tuple(replace(f, image=f.image.with_cache(int(needed[f.port.id] * share))) for f in plan.feeds)
    return replace(plan, feeds=feeds, cache=int(total * share))


def _more_workers(
    single: Plan, draft: Plan, session: Session, memory: tuple[int, int], asked: tuple[Sizes, Sizes]
) -> Plan:
    """The plan with one single-threaded session a processor, if that is measured to be faster and fits the memory."""
    measured = probe(session, _probe_shape(draft))
    measured = replace(measured, bytes_per_voxel=single.bytes_per_voxel)
    try:
        plan = _shaped(replace(draft, workers=session.workers), session, measured, memory, asked)
    except ResourceError:
        return single
    fits = plan.memory.total <= memory[1]
    return _on(plan, session) if fits and plan.seconds < CLEARLY * single.seconds else single


def default_memory() -> int:
    """The memory that a prediction may take unless told otherwise: a quarter of what is free, at most 4 GB."""
    import psutil

    return min(psutil.virtual_memory().available // 4, 4 * 2**30)


def _probe_shape(draft: Plan) -> tuple[int, ...]:
    model = draft.model_axes
    side = PROBE_SIDE[len(model)]
    legal = (
        axis.minimum if axis.fixed else min(axis.extended, max(axis.smallest_tile, axis.legal(s - axis.step + 1)))
        for axis, s in zip(model.values(), side, strict=True)
    )
    return (1, draft.geometry.inputs[0].channels, *legal)


def _measure(session: Session, draft: Plan) -> Probe:
    """Speed and memory of a small run; where the process had freed memory to give, the graph's arithmetic holds."""
    if session.batch_limit not in (None, 1):
        raise PackageError(f"{draft.package.path} takes only batches of {session.batch_limit}; batches of any size, "
                           "or of 1, can be run.")  # fmt: skip
    shape = _probe_shape(draft)
    if shape in session.probed:
        return session.probed[shape]
    tensors = float(draft.package.ours.get("working_bytes_per_voxel") or 0)
    if not tensors and session.runtime == "onnxruntime":
        given = {p.id: p.declared(x).shape for p, x in zip(session.geometry.inputs, random_feeds(session, shape),
                                                           strict=True)}  # fmt: skip
        in_order = [given[t.id] for t in draft.package.inputs if t.id in given]
        tensors = working_bytes(draft.package.onnx(), in_order, prod(shape[2:]))
    measured = probe(session, shape)
    measured = replace(measured, bytes_per_voxel=max(measured.bytes_per_voxel, ARENA * tensors))
    session.probed[shape] = measured
    return measured


def _asked_block(plan: Plan, chunk: dict[str, int], block: tuple[int, ...] | None) -> dict[str, int] | None:
    """A user's block, rounded to whole chunks; chunks shrink to blocks that are smaller than they are."""
    if block is None:
        return None
    model = plan.model_axes
    if len(block) != len(model):
        raise _wrong_count("--block", model, block)
    shape = dict.fromkeys(plan.grid, 1)
    for (a, axis), size in zip(model.items(), block, strict=True):
        whole = plan.part[a].size
        if size < 1 or (size % axis.step and size < whole):
            raise SizeError(f"block {size} along {a} is not a multiple of {axis.step}.",
                            mend=str(max(axis.step, size // axis.step * axis.step)))  # fmt: skip
        chunk[a] = min(chunk[a], size)
        shape[a] = min(whole, max(1, size // chunk[a]) * chunk[a])
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
    whole = {a: longest_region(axis, block[a]) for a, axis in model.items()}
    if not any(axis.fixed for axis in model.values()) and prod(whole.values()) * per_voxel <= room:
        return whole  # nothing is run twice: there is no better one to look for
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


def _within(plan: Plan, tile: dict[str, int]) -> dict[str, int]:
    """A tile no larger than what is read at once, where a part of an axis is done."""
    some = {a: axis for a, axis in plan.model_axes.items() if a in plan.choices.only and not axis.fixed}
    return {**tile, **{a: min(tile[a], _longest(plan, a)) for a in some}}


def _longest(plan: Plan, letter: str) -> int:
    """The most pixels that a block reads along an axis."""
    axis = plan.model_axes[letter]
    if letter not in plan.choices.only:
        return longest_region(axis, plan.block[letter])
    return max(axis.read_for(span).size for span in plan.spans[letter])


def _run_length(plan: Plan, letter: str) -> int:
    """The pixels that the network runs on along an axis, over all blocks."""
    axis, tile = plan.model_axes[letter], plan.tile[letter]
    if letter not in plan.choices.only:
        return tiled_length(axis, plan.block[letter], tile)
    return sum(t.read.size for span in plan.spans[letter] for t in axis.tiles(span, tile))


def _buffer_bytes(plan: Plan) -> float:
    """Bytes held per voxel of a block in flight: the regions as read, the results, and their compressed copies."""
    read = sum(f.image.dtype.itemsize * f.port.channels * _pixels(f.port.ratio) for f in plan.feeds if not f.port.whole)
    resampled = [(f.image.source, f.port.channels) for f in plan.feeds if isinstance(f.image.source, Rescaled)]
    read += sum(channels * source.source_bytes for source, channels in resampled)
    made = sum(np.dtype(t.dtype).itemsize * len(t.channels) * _pixels(t.port.ratio) for t in plan.targets)
    raw = 0.0
    if plan.steps:  # results pass through float32 on their way
        raw = sum(4 * p.channels * _pixels(p.ratio) for p in plan.geometry.outputs)
    return read + 2 * made + raw


def _pixels(ratio: Mapping[str, Any]) -> float:
    return float(prod(ratio.values()))


def _block_memory(plan: Plan) -> int:
    voxels = prod(n for a, n in plan.block.items() if a not in plan.model_axes)
    for a in plan.model_axes:
        voxels *= _longest(plan, a)
    resampling = plan.lanes * WORKING if plan.original is not None else 0
    return int(plan.lanes * voxels * _buffer_bytes(plan)) + plan.cache + resampling


def _process_memory() -> int:
    import psutil

    return psutil.Process().memory_info().rss + LIBRARIES


def _with_costs(plan: Plan, measured: Probe, process: int) -> Plan:
    """Fill in what the plan costs: memory as a sum of terms, disk with the pyramid and staging, time."""
    network = int(plan.workers * plan.batch * prod(plan.tile.values()) * (measured.bytes_per_voxel + 8))
    overhead = prod(_run_length(plan, a) for a in plan.model_axes) / prod(plan.part[a].size for a in plan.model_axes)
    gpu = plan.device_name.startswith(("cuda", "tensorrt"))
    # the last blocks may leave workers idle
    rounds = -(-plan.n_blocks // plan.workers) * plan.workers / plan.n_blocks
    voxels = prod(span.size for span in plan.part.values()) * rounds
    return replace(
        plan,
        overhead=overhead,
        memory=Memory(process, 0 if gpu else network, _block_memory(plan), network if gpu else 0),
        disk=int(plan.nbytes * 4 / 3),
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
