"""How large tiles, blocks and chunks are: the least recomputed halo that fits the memory.

A tile is what the network runs on at once; a block is what is read, predicted and written as one unit of work; a chunk
is what the output stores as one. Chunks lie within blocks, so that no two blocks write the same chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import ceil, prod

from ..zoo.errors import SizeError
from .grid import Axis, blocks, round_up

BLOCK_VOXELS = 2**24
"""The most output voxels of a block: larger ones save little halo and make a lost block dear."""
STACKED_VOXELS = 2**22
"""The most voxels of a block of several planes (or volumes): enough that a block costs little beside what it does. More
would only take memory, and more of it for a longer stack."""
HANDY = 2**18
"""Voxels of a tile below which smaller ones save nothing that counts: 512 x 512."""
MANY_BLOCKS = 64
"""With fewer blocks than this, stacks of planes are cut finer, so that reading and writing overlap with the network."""


def chunk_shape(axes: Sequence[str], model: Mapping[str, Axis], sizes: Mapping[str, int]) -> dict[str, int]:
    """The chunks of the output: 512 x 512 in a plane; 32 x 128 x 128 for a network that reads volumes."""
    side = {"t": 8, "z": 32, "y": 128, "x": 128} if len(model) > 2 else {"y": 512, "x": 512}
    chunk = dict.fromkeys(axes, 1)
    for letter, axis in model.items():
        wanted = max(axis.step, side[letter] // axis.step * axis.step)
        chunk[letter] = min(wanted, sizes[letter])
    return chunk


def block_shape(
    axes: Sequence[str], model: Mapping[str, Axis], sizes: Mapping[str, int], chunk: Mapping[str, int], limit: int
) -> dict[str, int]:
    """The blocks: whole planes or volumes where at most `limit` voxels, else multiples of chunks with little halo."""
    block = dict.fromkeys(axes, 1)
    block.update(_cheapest_cut(model, {a: chunk[a] for a in model}, limit))
    room = min(limit, STACKED_VOXELS) // prod(block.values())
    rest = [a for a in reversed(axes) if a not in model]
    total = prod(sizes[a] for a in rest)
    room = min(room, max(1, total // MANY_BLOCKS))
    for letter in rest:  # the innermost loop axis first: its planes lie next to each other in the file
        block[letter] = min(sizes[letter], max(1, room))
        room //= block[letter]
    return block


def _cheapest_cut(model: Mapping[str, Axis], unit: Mapping[str, int], limit: int) -> dict[str, int]:
    """Sizes along the model's axes, each whole or a multiple of its unit, that read the fewest voxels in all."""
    options = [[(a, size) for size in _sizes(axis.size, unit[a])] for a, axis in model.items()]
    best: tuple[float, dict[str, int]] | None = None
    for combination in product(*options):
        shape = dict(combination)
        if prod(shape.values()) > limit and shape != {a: min(unit[a], model[a].size) for a in model}:
            continue
        read = prod(_read_along(model[a], size) for a, size in shape.items())
        # among equals the one with long rows: it reads fewer strips of the file
        key = read * (1 + 1e-6 * len(blocks(model["x"].size, shape["x"])))
        if best is None or key < best[0]:
            best = (key, shape)
    if best is None:
        raise SizeError("no block size fits this image.")
    return best[1]


def _sizes(size: int, unit: int) -> list[int]:
    """The whole axis, then multiples of the unit that cut it into 2, 3, 4, ... nearly equal parts."""
    found = [size]
    for parts in range(2, ceil(size / unit) + 1):
        if (part := round_up(ceil(size / parts), unit)) < found[-1]:
            found.append(part)
        if len(found) > 40:
            found.append(unit)
            break
    return found


def _read_along(axis: Axis, block: int) -> int:
    """The pixels read along one axis by all blocks together."""
    return sum(axis.read_for(span).size for span in blocks(axis.size, block))


@dataclass(frozen=True)
class Tiling:
    """The tile that was chosen: sizes by letter, and the voxels that the network runs on per voxel of the image."""

    tile: dict[str, int]
    overhead: float


def choose_tile(model: Mapping[str, Axis], block: Mapping[str, int], limit: int) -> Tiling:
    """The tile of at most `limit` voxels with which all blocks together run on the fewest voxels.

    Raises SizeError when not even the smallest legal tile fits; says how much it needs.
    """
    best: tuple[int, tuple[int, ...]] | None = None
    for run, tile in _tiles(model, block, limit):
        if best is None or run < best[0] * 0.999:
            best = (run, tile)
    if best is None:
        smallest = prod(min(axis.smallest_tile, longest_region(axis, block[a])) for a, axis in model.items())
        raise SizeError(f"one tile needs at least {smallest:,} voxels of memory; {limit:,} fit.")
    whole = prod(axis.size for axis in model.values())
    return Tiling(dict(zip(model, best[1], strict=True)), best[0] / whole)


def spared_tile(
    model: Mapping[str, Axis], block: Mapping[str, int], tile: Mapping[str, int], more: float
) -> dict[str, int]:  # fmt: skip
    """The smallest handy tile with which all blocks together run on at most `more` times the voxels that they do with
    this one; this one where none of less than half its voxels is among them.
    """
    most = more * prod(tiled_length(axis, block[a], tile[a]) for a, axis in model.items())
    small = [(prod(t), run, t) for run, t in _tiles(model, block, prod(tile.values()) // 2, most) if prod(t) >= HANDY]
    return dict(zip(model, min(small)[2], strict=True)) if small else dict(tile)


def _tiles(
    model: Mapping[str, Axis], block: Mapping[str, int], limit: int, most: float = float("inf")
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Tiles of at most `limit` voxels, and the voxels that they run on where that is at most `most`."""
    costs = [{n: tiled_length(axis, block[a], n) for n in _tile_sizes(axis, block[a])} for a, axis in model.items()]
    least = prod(min(axis.values()) for axis in costs)
    # sizes that cost too much whatever the others are: without them four axes have millions of combinations
    costs = [{n: run for n, run in axis.items() if run * least <= most * min(axis.values())} for axis in costs]
    for choice in product(*(axis.items() for axis in costs)):
        tile, run = tuple(size for size, _ in choice), prod(length for _, length in choice)
        if prod(tile) <= limit and run <= most:
            yield run, tile


@lru_cache(maxsize=256)
def longest_region(axis: Axis, block: int) -> int:
    """The most pixels that a block reads along an axis."""
    return max(axis.read_for(span).size for span in blocks(axis.size, block))


def _tile_sizes(axis: Axis, block: int) -> list[int]:
    """The whole region, then the tiles that cut it into 2, 3, ... parts, down to the smallest legal one."""
    region = longest_region(axis, block)
    found = [region]
    if axis.smallest_tile >= region:
        return found
    if axis.fixed:
        return [axis.minimum]
    for parts in range(2, 200):
        tile = axis.legal(ceil((region - 2 * axis.margin) / parts) + 2 * axis.margin)
        if tile <= axis.smallest_tile:
            break
        if tile < found[-1]:
            found.append(tile)
    found.append(axis.smallest_tile)
    return found[:48] + found[-1:] if len(found) > 48 else found


def tiled_length(axis: Axis, block: int, tile: int) -> int:
    """The pixels that the network runs on along one axis, over all blocks."""
    known: dict[tuple[int, int, int], int] = {}
    total = 0
    for span in blocks(axis.size, block):
        region = axis.read_for(span)
        kind = (region.size, span.start - region.start, span.size)  # what the tiles of a block depend on
        if kind not in known:
            known[kind] = sum(t.read.size for t in axis.tiles(span, tile))
        total += known[kind]
    return total


def legal_tile(axis: Axis, letter: str, wanted: int) -> int:
    """Check a user's tile size. Raises SizeError that names the nearest legal sizes."""
    smallest = min(axis.smallest_tile, axis.extended)
    if wanted >= axis.extended and not axis.fixed:
        return axis.extended
    if wanted >= smallest and wanted == (smallest if axis.fixed else axis.legal(wanted)):
        return wanted
    below = axis.minimum + (wanted - axis.minimum) // axis.step * axis.step
    legal = [smallest] if axis.fixed else sorted({max(below, smallest), max(axis.legal(wanted), smallest)})
    raise SizeError(
        f"tile {wanted} along {letter} does not suit this model: sides must be {_sides(axis)} "
        f"and leave room for a halo of {axis.halo}.",
        mend=" or ".join(str(n) for n in legal),
    )


def _sides(axis: Axis) -> str:
    if axis.fixed:
        return f"{axis.minimum}"
    odd = axis.minimum % axis.step
    return f"multiples of {axis.step}" + (f" plus {odd}" if odd else "")


def cache_pixels(
    sizes: Mapping[str, int],
    chunk: Mapping[str, int],
    block: Mapping[str, int],
    halo: Mapping[str, int],
    lanes: int,
) -> int:
    """Pixels that must be kept of an image's decoded chunks so that none is decoded twice, in raster order of blocks.

    sizes, chunk: of the image, its outermost axis first. block, halo: of the plan; an axis without a block is read
    whole. lanes: blocks in flight, which may be a row apart. 0 where no two blocks share a chunk.
    """
    letters = list(sizes)
    touched = {}  # by a block, in whole chunks
    for a in letters:
        span = min(sizes[a], block.get(a, sizes[a]) + 2 * halo.get(a, 0))
        aligned = span % chunk[a] == 0 and not halo.get(a)
        touched[a] = min(sizes[a], round_up(span, chunk[a]) + (0 if aligned or span == sizes[a] else chunk[a]))
    needed = 0
    for i, a in enumerate(letters):
        step = block.get(a, sizes[a])
        if step >= sizes[a] or (step % chunk[a] == 0 and not halo.get(a)):
            continue
        # until the next block along this axis comes, all the others inside of it are read
        needed = max(needed, prod(touched[b] for b in letters[: i + 1]) * prod(sizes[b] for b in letters[i + 1 :]))
    return needed + min(needed, lanes * prod(touched.values()))
