"""Makes the plan, before anything runs: every refusal of a prediction happens here or in `meeting`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from ..zoo.errors import ResourceError, SizeError
from ..zoo.image import Image
from ..zoo.package import Package
from .graph import working_bytes
from .grid import Axis
from .layout import BLOCK_VOXELS, block_shape, choose_tile, chunk_shape, legal_tile, longest_region, tiled_length
from .meeting import choose_channel, model_axes, notes, out_dtype
from .plan import Memory, Plan
from .report import size_text
from .session import Device, Probe, Session, cpu_count, find_device, probe

WORTH_PROBING = 20.0
"""Seconds of network time from which on several single-threaded sessions are tried against one with all threads."""
CLEARLY = 0.92
"""They take twice the memory, and a short probe is off by some percent: they must promise this share of the time."""
LIBRARIES = 90 * 2**20
"""What importing and using zarr, codecs and dask adds to the process after planning, measured."""
ARENA = 1.5
"""How far onnxruntime's arena and blocked layouts exceed the tensors themselves: 1.3 to 1.5, measured on U-Nets."""
PROBE_SIDE = {2: (128, 128), 3: (16, 64, 64)}
"""Small, so that it is over in a blink: larger tiles are up to 8 % faster per voxel."""


Sizes = tuple[int, ...] | None


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
    stored plan; if it is about the same job its sizes are taken as they are, without a probe. session: one of this
    package to use again.
    Raises AxesError, DtypeError, SizeError, ResourceError, DeviceError, PackageError.
    """
    draft, wanted = _draft(package, image, channel, dtype, device, allow_nan=allow_nan)
    draft = replace(draft, asked=tuple(n for n, sizes in (("tile", tile), ("block", block)) if sizes is not None))
    model = model_axes(package, image)
    process = _process_memory()
    if facts is not None and not draft.asked and _same_job(draft, facts):
        measured = Probe(float(facts["voxels_per_second"]) or 1.0, float(facts["bytes_per_voxel"]))
        plan = _with_costs(draft.pinned(facts), model, measured, process)
        return _on(plan, Session(package, wanted, plan.workers))
    session = session or Session(package, wanted)
    measured = _measure(session, package, _probe_shape(package, model))
    room = (process, memory or default_memory())
    plan = _on(_shaped(draft, model, measured, room, (tile, block)), session)
    if wanted.kind == "cpu" and cpu_count() > 1 and session.workers == 1 and plan.seconds > WORTH_PROBING:
        plan = _more_workers(plan, draft, model, room, (tile, block))
    _refuse_memory(plan, memory)
    return plan


def _draft(
    package: Package, image: Image, channel: str | int | None, dtype: str | None, device: str, *, allow_nan: bool
) -> tuple[Plan, Device]:
    """What does not depend on sizes: channel, dtype, device, notes."""
    index, all_channels = choose_channel(package, image, channel)
    wanted = find_device(device)
    draft = Plan(
        package=package, image=image, channel=index, all_channels=all_channels,
        dtype=out_dtype(package, image, dtype), chunk={}, block={}, tile={}, batch=1, workers=1, overhead=1.0,
        memory=Memory(0, 0, 0), disk=0, seconds=0.0, rate=0.0, device=device, device_name=str(wanted),
        allow_nan=allow_nan, notes=notes(package, image),
    )  # fmt: skip
    return draft, wanted


def _same_job(draft: Plan, facts: Mapping[str, Any]) -> bool:
    """Whether a stored plan is about this model, image, channel and dtype."""
    return set(facts.get("block", {})) == set(draft.grid) and draft.pinned(facts).identity == facts.get("identity")


def _on(plan: Plan, session: Session) -> Plan:
    return replace(plan, session=session, device_name=session.name)


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


def default_memory() -> int:
    """The memory that a prediction may take unless told otherwise: a quarter of what is free, at most 4 GB."""
    import psutil

    return min(psutil.virtual_memory().available // 4, 4 * 2**30)


def _probe_shape(package: Package, model: Mapping[str, Axis]) -> tuple[int, ...]:
    side = PROBE_SIDE[len(model)]
    legal = (min(axis.extended, max(axis.smallest_tile, s // axis.step * axis.step)) for axis, s in
             zip(model.values(), side, strict=True))  # fmt: skip
    return (1, len(package.channels_in), *legal)


def _measure(session: Session, package: Package, shape: tuple[int, ...]) -> Probe:
    """Speed and memory of a small run; where the process had freed memory to give, the graph's arithmetic holds."""
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
