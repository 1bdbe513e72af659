"""The smaller levels of a result: where they come from and how they are made, as blocks are written or after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.image import PixelSize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .store import DurableArray

SMALLEST_LEVEL = 256
"""Pyramids end when a plane is this small; viewers then load it at once."""
PIECE = 2**20
"""Values that are averaged at once: the wider numbers that sums need stay small beside the block."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its shape, and by how much it is smaller than level 0 along each axis."""

    shape: tuple[int, ...]
    factors: tuple[int, ...]


def pyramid(axes: str, shape: Sequence[int], pixel_size: PixelSize) -> list[Level]:
    """The levels, level 0 first. y and x are halved; z too once its pixels are not longer than those of the plane."""
    levels = [Level(tuple(shape), (1,) * len(axes))]
    size = {a: (pixel_size.get(a) or 1.0) for a in "zyx"}
    while max(levels[-1].shape[axes.index("y")], levels[-1].shape[axes.index("x")]) > SMALLEST_LEVEL:
        last = levels[-1]
        plane = 2 * min(size["y"], size["x"])
        halved = [a for a in "yx" if last.shape[axes.index(a)] > 1]
        if "z" in axes and pixel_size.z and size["z"] < plane and last.shape[axes.index("z")] > 1:
            halved.append("z")
        for a in halved:
            size[a] *= 2
        step = tuple(2 if a in halved else 1 for a in axes)
        levels.append(
            Level(
                tuple(-(-n // s) for n, s in zip(last.shape, step, strict=True)),
                tuple(f * s for f, s in zip(last.factors, step, strict=True)),
            )
        )
    return levels


def steps(levels: Sequence[Level], i: int) -> tuple[int, ...]:
    """By how much level `i` is smaller than the one above, along each axis."""
    return tuple(a // b for a, b in zip(levels[i].factors, levels[i - 1].factors, strict=True))


class Cascade:
    """Writes blocks into level 0, and their means into the smaller levels of which they cover whole chunks.

    ready: how many levels are complete once all blocks are written; `rest` makes the others.
    """

    def __init__(self, arrays: Sequence[DurableArray], levels: Sequence[Level], block: Sequence[int]) -> None:
        self.arrays = arrays
        self.levels = levels
        self.ready = 1
        while self.ready < len(levels) and all(
            size >= n or size % (factor * unit) == 0
            for size, n, factor, unit in zip(
                block, levels[0].shape, levels[self.ready].factors, arrays[self.ready].grid, strict=True
            )
        ):
            self.ready += 1

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> None:
        """Take a block of level 0, down to the disk."""
        self.arrays[0].write(part, values)
        for i in range(1, self.ready):
            step = steps(self.levels, i)
            values = mean(values, step)
            part = tuple(
                slice(p.start // s, p.start // s + n) for p, s, n in zip(part, step, values.shape, strict=True)
            )
            self.arrays[i].write(part, values)

    def rest(self, i: int) -> Iterator[tuple[slice, ...]]:
        """The parts of level `i` that `shrink` fills, each of whole chunks."""
        shape, unit = self.levels[i].shape, self.arrays[i].grid
        for corner in product(*(range(0, n, u) for n, u in zip(shape, unit, strict=True))):
            yield tuple(slice(s, min(s + u, n)) for s, u, n in zip(corner, unit, shape, strict=True))

    def shrink(self, i: int, part: tuple[slice, ...]) -> None:
        """Fill a part of level `i` with the means of the level above."""
        above, step = self.arrays[i - 1], steps(self.levels, i)
        source = tuple(slice(p.start * s, min(p.stop * s, n)) for p, s, n in zip(part, step, above.shape, strict=True))
        self.arrays[i].write(part, mean(above.read(source), step))


def mean(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    """The means over windows of `step` (1 or 2 an axis); the last window of an odd axis holds what is left.

    Whole numbers are rounded to the nearest.
    """
    out = np.empty([-(-n // s) for n, s in zip(values.shape, step, strict=True)], values.dtype)
    long = max(range(values.ndim), key=lambda axis: values.shape[axis] if axis < values.ndim - 1 else 0)
    each = max(1, PIECE * values.shape[long] // max(1, values.size) // step[long]) * step[long]
    before = (slice(None),) * long
    for start in range(0, values.shape[long], each):
        target = slice(start // step[long], start // step[long] + -(-each // step[long]))
        out[(*before, target)] = _mean(values[(*before, slice(start, start + each))], step)
    return out


def _mean(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    whole = values.dtype.kind in "iu"
    kind = np.int64 if values.dtype.itemsize > 2 else np.int32
    total: Any = values.astype(kind if whole else np.float32)
    for axis, s in enumerate(step):
        if s == 1:
            continue
        if total.shape[axis] % 2:
            last = np.take(total, [-1], axis=axis)
            total = np.concatenate([total, last], axis=axis)
        even = (slice(None),) * axis + (slice(0, None, 2),)
        odd = (slice(None),) * axis + (slice(1, None, 2),)
        total = total[even] + total[odd]
    count = prod(step)
    return ((total + count // 2) // count if whole else total / count).astype(values.dtype)
