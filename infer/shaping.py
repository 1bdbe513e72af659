"""The shapes of a plan: chunks, blocks, tiles and batches that fit the memory, and what they cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import ResourceError, SizeError
from ..zoo.rescale import WORKING, Rescaled
from .grid import Axis
from .layout import (
    BLOCK_VOXELS,
    block_shape,
    cache_pixels,
    choose_tile,
    chunk_shape,
    legal_tile,
    longest_region,
    spared_tile,
    tiled_length,
)
from .networks.device import device_memory
from .plan import Memory, Plan
from .report import size_text

if TYPE_CHECKING:
    from .networks.probe import Probe
    from .networks.session import Session

Sizes = tuple[int, ...] | None
SHARES = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05)
"""Of the memory, for blocks in flight. What they do not take is left to the tile, and a wide halo wants a large one."""
ENOUGH = 1.02
"""Pixels that the network runs on per pixel of the image: no better blocks are looked for."""
GAIN = 1.04
"""How much more pixels the network may run on in tiles of one shape, where that is faster: it is by a twentieth."""
SPARING, FREE = 1.05, 1.015
"""How many times the pixels the network may run on for half the memory or less: by default, and where the user said how
much may be taken. Smaller tiles are a little faster for their size: the first costs 3 % of the time, the other nothing
(docs/decisions/0014)."""
TURNED = 8
"""Bytes per value that a turned tile and the sum of its results take beside them (--tta)."""
GPU_SHARE = 0.8
"""Of a GPU's free memory; cuDNN takes workspace beside the tensors. A tile that does not fit after all is halved."""


def shaped(
    draft: Plan, session: Session, measured: Probe, memory: tuple[int, int], asked: tuple[Sizes, Sizes],
    *, more: float = 1.0,
) -> Plan:  # fmt: skip
    """The draft with chunk, block, tile and batch. memory: what the process holds, and what it may take.

    asked: the user's tile and block. more: how many times the pixels the network may run on where half the memory or
    less does for it. Raises SizeError for sizes that are not legal, ResourceError where nothing fits.
    """
    less = replace(measured, bytes_per_voxel=measured.fixed or 0.0)
    best = alike = None
    if measured.fixed is not None:
        with contextlib.suppress(ResourceError):
            alike = _shaped(draft, session, less, memory, asked, one_shape=True)
    if alike is None or alike.overhead >= ENOUGH:
        best = _shaped(draft, session, measured, memory, asked)
    if alike is not None and (best is None or alike.overhead < GAIN * best.overhead):
        best, measured = alike, less
    assert best is not None
    return best if asked[0] is not None else _spared(best, session, measured, memory[0], more)


def _shaped(
    draft: Plan, session: Session, measured: Probe, memory: tuple[int, int], asked: tuple[Sizes, Sizes],
    *, one_shape: bool = False,
) -> Plan:  # fmt: skip
    process, budget = memory
    sizes = {a: span.size for a, span in draft.part.items()}
    chunk = chunk_shape(draft.grid, draft.model_axes, sizes)
    if (shape := asked_block(draft, chunk, asked[1])) is not None:
        plan = _tiled(draft, session, measured, memory, asked[0], chunk, shape)
        if one_shape and not plan.one_shape:
            raise ResourceError("no tiles of one shape fit the memory.")
        return plan
    best: Plan | None = None
    refused: ResourceError | None = None
    for shape in _block_shapes(draft, chunk, sizes, budget - process):
        try:
            plan = _tiled(draft, session, measured, memory, asked[0], chunk, shape)
        except ResourceError as error:
            refused = error
            continue
        if one_shape and not plan.one_shape:
            continue
        if best is None or plan.overhead < 0.99 * best.overhead:
            best = plan
        if best.overhead < ENOUGH:
            break
    if best is None:
        raise refused or ResourceError("no block fits the memory.")
    return best


def _block_shapes(
    draft: Plan, chunk: dict[str, int], sizes: Mapping[str, int], room: int
) -> Iterator[dict[str, int]]:  # fmt: skip
    """The best blocks that take no more than a share of the room, for smaller and smaller shares."""
    per_voxel = draft.lanes * _buffer_bytes(draft)
    found: list[dict[str, int]] = []
    for share in SHARES:
        limit = max(prod(chunk.values()), min(BLOCK_VOXELS, int(share * max(0, room) / per_voxel)))
        if prod(sizes[a] for a in draft.loops) < draft.workers:  # fewer volumes than networks: each gets a part of one
            limit = max(prod(chunk.values()), min(limit, -(-prod(sizes.values()) // draft.workers)))
        shape = block_shape(draft.grid, draft.model_axes, sizes, chunk, limit)
        if shape not in found:
            found.append(shape)
            yield shape


def _tiled(
    draft: Plan, session: Session, measured: Probe, memory: tuple[int, int], tile: Sizes, chunk: dict[str, int],
    block: dict[str, int],
) -> Plan:  # fmt: skip
    """The draft in these blocks, with the tile and batch that fit beside them."""
    process, budget = memory
    model = draft.model_axes
    shape = {a: min(n, draft.part[a].size) for a, n in block.items()}
    plan = cached(replace(draft, chunk=chunk, block=shape), (budget - process) // 4)
    room = (budget - process - _block_memory(plan)) // plan.workers
    if (gpu := device_memory(session.device)) is not None:
        budget, room = gpu[0], int(gpu[0] * GPU_SHARE) // plan.workers
    tiles = asked_tile(model, tile) or _within(plan, _fitting_tile(model, block, room, measured, budget))
    batch = max(1, min(2**16 // prod(tiles.values()), prod(n for a, n in shape.items() if a not in model)))
    if draft.package.main.axis("b") is None or session.batch_limit is not None:
        batch = 1
    return with_costs(replace(plan, tile=tiles, batch=batch), measured, process)


def _spared(plan: Plan, session: Session, measured: Probe, process: int, more: float) -> Plan:
    """The plan with a much smaller tile, where the network runs on at most `more` times the pixels for it."""
    if session.device.kind not in ("cpu", "openvino") or not _cuts_are_exact(plan):
        return plan  # small tiles keep no GPU busy
    tile = _within(plan, spared_tile(plan.model_axes, plan.block, plan.tile, more))
    found = with_costs(replace(plan, tile=tile), measured, process)
    return found if found.one_shape or not plan.one_shape else plan


def _cuts_are_exact(plan: Plan) -> bool:
    """Whether tiles give what the whole image would: proved of a package of ours, read from the graph of another."""
    if plan.choices.tolerance:
        return False
    if plan.halo_facts:
        return all(facts["exact"] for facts in plan.halo_facts.values())
    return bool(plan.package.ours.get("working_bytes_per_voxel") and plan.package.plain)


def cached(plan: Plan, most: int) -> Plan:
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


def asked_block(plan: Plan, chunk: dict[str, int], block: tuple[int, ...] | None) -> dict[str, int] | None:
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


def asked_tile(model: Mapping[str, Axis], tile: tuple[int, ...] | None) -> dict[str, int] | None:
    """A user's tile by letter. Raises SizeError for sizes that are not legal."""
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
    """Bytes held per voxel of a block in flight: the regions as read, the results and what is made of them."""
    read = sum(f.image.dtype.itemsize * f.port.channels * _pixels(f.port.ratio) for f in plan.feeds if not f.port.whole)
    resampled = [(f.image.source, f.port.channels) for f in plan.feeds if isinstance(f.image.source, Rescaled)]
    read += sum(channels * source.source_bytes for source, channels in resampled)
    made = sum(_made_bytes(np.dtype(t.dtype)) * len(t.channels) * _pixels(t.port.ratio) for t in plan.targets)
    raw = 0.0
    if plan.steps:  # results pass through float32 on their way
        raw = sum(4 * p.channels * _pixels(p.ratio) for p in plan.geometry.outputs)
    return read + made + raw


def _made_bytes(dtype: np.dtype[Any]) -> float:
    """Of a value of the result, with smaller levels and compressed chunks, and what whole numbers are rounded in."""
    return dtype.itemsize * (1.4 if dtype.kind == "f" else 2)


def _pixels(ratio: Mapping[str, Any]) -> float:
    return float(prod(ratio.values()))


def _block_memory(plan: Plan) -> int:
    voxels = prod(n for a, n in plan.block.items() if a not in plan.model_axes)
    for a in plan.model_axes:
        voxels *= _longest(plan, a)
    resampling = plan.lanes * WORKING if plan.original is not None else 0
    return int(plan.lanes * voxels * _buffer_bytes(plan)) + plan.cache + resampling


def with_costs(plan: Plan, measured: Probe, process: int) -> Plan:
    """Fill in what the plan costs: memory as a sum of terms, disk with the pyramid and staging, time."""
    beside = (
        8
        if plan.turns == (0,)
        else 8 + TURNED * sum(p.channels * _pixels(p.ratio) for p in (*plan.geometry.inputs, *plan.geometry.outputs))
    )
    network = int(plan.workers * plan.batch * prod(plan.tile.values()) * (measured.bytes_per_voxel + beside))
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
        seconds=voxels * overhead * len(plan.turns) / measured.voxels_per_second,
        rate=measured.voxels_per_second,
        bytes_per_voxel=measured.bytes_per_voxel,
    )
