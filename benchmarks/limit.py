"""How much of the floor the halo leaves: the fewest voxels that a network must run on, by arithmetic alone.

Written without voidzoo's own planning, which it is to judge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from math import ceil, prod

PROCESS = 150e6
"""Bytes that a process with onnxruntime holds before it runs anything."""


def budget(memory: float, working_bytes: float) -> int:
    """Voxels of the largest tile in `memory` bytes: working_bytes a voxel, float32 in and out beside them."""
    return int((memory - PROCESS) / (working_bytes + 8))


def least_overhead(
    sizes: Sequence[int], steps: Sequence[int], halos: Sequence[int], minima: Sequence[int], voxels: int
) -> tuple[float, tuple[int, ...]]:
    """Voxels run for each voxel of the image with the best tiles of at most `voxels`. -> (overhead, tile); inf if none.

    One entry an axis. Tiles form a grid, start on multiples of the step, have no halo at the border of the image, and keep
    all that lies farther than the halo from a cut; the last of an axis may be smaller.
    """
    axes = zip(sizes, steps, halos, minima, strict=True)
    best = (float("inf"), tuple(sizes))
    for chosen in product(*(_cuts(*axis) for axis in axes)):
        tile = tuple(size for _, size in chosen)
        if prod(tile) <= voxels:
            best = min(best, (prod(run for run, _ in chosen) / prod(sizes), tile))
    return best


def _cuts(size: int, step: int, halo: int, minimum: int) -> list[tuple[int, int]]:
    """(pixels run, largest tile) along one axis: whole, in two, in three, ... as long as a tile keeps anything."""
    margin = ceil(halo / step) * step
    whole = ceil(max(size, minimum) / step) * step
    found = [(whole, whole)]
    for count in range(2, whole // step + 1):
        run = whole + 2 * margin * (count - 1)
        tile = ceil(run / count / step) * step
        if tile <= 2 * margin or tile < minimum or len(found) > 400:
            break
        if tile < found[-1][1]:  # more tiles of the same size only run on more
            found.append((run, tile))
    return found


def limit(
    sizes: Mapping[str, int], rules: Mapping[str, Mapping[str, int]], memory: float, working_bytes: float
) -> float:
    """The share of the floor that is left at best. rules: by axis `step`, `halo`, `minimum`; memory in bytes."""
    axes = list(rules)
    overhead, _ = least_overhead(
        [sizes[a] for a in axes], [rules[a]["step"] for a in axes], [rules[a]["halo"] for a in axes],
        [rules[a]["minimum"] for a in axes], budget(memory, working_bytes),
    )  # fmt: skip
    return 1 / overhead
