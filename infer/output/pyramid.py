"""The smaller levels of a result: where they come from and how they are made, as blocks are written or after them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import log2, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.image import PixelSize
from .durable import Written

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .array import DurableArray

SMALLEST_LEVEL = 256
"""Pyramids end when a plane is this small; viewers then load it at once."""
PIECE = 2**20
"""Values that are averaged at once: the wider numbers that sums need stay small beside the block."""
_WIDER = {"u1": "u2", "i1": "i2", "u2": "u4", "i2": "i4", "u4": "u8", "i4": "i8", "f2": "f4"}
"""What holds the sum of 8 values, and a half for rounding. 64 bits are summed in two parts."""


@dataclass(frozen=True)
class Level:
    """One level of the pyramid: its shape, and by how much it is smaller than level 0 along each axis."""

    shape: tuple[int, ...]
    factors: tuple[int, ...]


def pyramid(axes: str, shape: Sequence[int], pixel_size: PixelSize, *, planar: bool = False) -> list[Level]:
    """The levels, level 0 first. y and x are halved; z too once its pixels are not longer than those of the plane.

    planar: z never is.
    """
    levels = [Level(tuple(shape), (1,) * len(axes))]
    size = {a: (pixel_size.get(a) or 1.0) for a in "zyx"}
    while max(levels[-1].shape[axes.index("y")], levels[-1].shape[axes.index("x")]) > SMALLEST_LEVEL:
        last = levels[-1]
        plane = 2 * min(size["y"], size["x"])
        halved = [a for a in "yx" if last.shape[axes.index(a)] > 1]
        if not planar and "z" in axes and pixel_size.z and size["z"] < plane and last.shape[axes.index("z")] > 1:
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
    """Writes blocks into level 0, and into the smaller levels of which they cover whole files (chunks or shards).

    Smaller levels are means, or the first sample of each window for labels. It can be pickled, and blocks be written
    from any thread or process. ready: how many levels are complete once all blocks are written; `rest` and `shrink`
    make the others, one after the other.
    """

    def __init__(
        self, arrays: Sequence[DurableArray], levels: Sequence[Level], block: Sequence[int], labels: bool = False
    ) -> None:
        self.arrays = tuple(arrays)
        self.levels = tuple(levels)
        self.labels = labels
        self.ready = 1
        while self.ready < len(levels) and all(
            size >= n or size % (factor * unit) == 0
            for size, n, factor, unit in zip(
                block, levels[0].shape, levels[self.ready].factors, arrays[self.ready].grid, strict=True
            )
        ):
            self.ready += 1

    def write(self, part: tuple[slice, ...], values: NDArray[Any]) -> Written:
        """Take a block of level 0, into the page cache; see `DurableArray.write`."""
        written = self.arrays[0].write(part, values)
        shrunk = self._shrunk
        for i, smaller in self._parts(part):
            values = shrunk(values, steps(self.levels, i))
            written += self.arrays[i].write(smaller, values)
        return written

    def erase(self, part: tuple[slice, ...]) -> Written:
        """Make a block of level 0 zeros, in all levels that `write` would write: a hole, or a block to be skipped."""
        written = self.arrays[0].erase(part)
        for i, smaller in self._parts(part):
            written += self.arrays[i].erase(smaller)
        return written

    def rest(self, i: int) -> Iterator[tuple[slice, ...]]:
        """The parts of level `i` that `shrink` fills, each of whole files."""
        shape, unit = self.levels[i].shape, self.arrays[i].grid
        for corner in product(*(range(0, n, u) for n, u in zip(shape, unit, strict=True))):
            yield tuple(slice(s, min(s + u, n)) for s, u, n in zip(corner, unit, shape, strict=True))

    def shrink(self, i: int, part: tuple[slice, ...]) -> Written:
        """Fill a part of level `i` from the level above."""
        above, step = self.arrays[i - 1], steps(self.levels, i)
        source = tuple(slice(p.start * s, min(p.stop * s, n)) for p, s, n in zip(part, step, above.shape, strict=True))
        return self.arrays[i].write(part, self._shrunk(above.read(source), step))

    @property
    def _shrunk(self) -> Callable[[NDArray[Any], Sequence[int]], NDArray[Any]]:
        return nearest if self.labels else mean

    def _parts(self, part: tuple[slice, ...]) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Where a block of level 0 lies in each of the smaller levels that are made with it."""
        for i in range(1, self.ready):
            step = steps(self.levels, i)
            part = tuple(slice(p.start // s, -(-p.stop // s)) for p, s in zip(part, step, strict=True))
            yield i, part


def nearest(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    """The first value of each window of `step`: labels have no mean."""
    return np.ascontiguousarray(values[tuple(slice(None, None, s) for s in step)])


def mean(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    """The means over windows of `step` (1 or 2 an axis); the last window of an odd axis holds what is left.

    Whole numbers are rounded to the nearest, halves up.
    """
    out = np.empty([-(-n // s) for n, s in zip(values.shape, step, strict=True)], values.dtype)
    _mean_into(out, values, step)
    return out


def _mean_into(out: NDArray[Any], values: NDArray[Any], step: Sequence[int]) -> None:
    """Halve the longest of the slow axes until a piece is small."""
    axis = next((i for i in range(values.ndim - 1) if out.shape[i] > 1), None)
    if values.size <= PIECE or axis is None:
        out[...] = _mean(values, step)
        return
    before = (slice(None),) * axis
    half = out.shape[axis] // 2
    cut = half * step[axis]
    _mean_into(out[(*before, slice(0, half))], values[(*before, slice(0, cut))], step)
    _mean_into(out[(*before, slice(half, None))], values[(*before, slice(cut, None))], step)


def _mean(values: NDArray[Any], step: Sequence[int]) -> NDArray[Any]:
    kind = np.dtype(_WIDER.get(values.dtype.str[1:], values.dtype))
    count = prod(step)
    if values.dtype.kind == "f":
        return _sum(values, step, kind) * kind.type(1 / count)
    bits, half = kind.type(log2(count)), kind.type(count // 2)
    if kind.itemsize > values.dtype.itemsize:
        return (_sum(values, step, kind) + half) >> bits
    low = _sum(values & kind.type(count - 1), step, kind)
    return _sum(values >> bits, step, kind) + ((low + half) >> bits)


def _sum(values: NDArray[Any], step: Sequence[int], kind: np.dtype[Any]) -> NDArray[Any]:
    for axis, s in enumerate(step):
        if s == 2:
            values = _pairs(values, axis, kind)
    return values


def _pairs(values: NDArray[Any], axis: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Sums of two neighbours along an axis; the last of an odd number is taken twice."""
    n = values.shape[axis]
    out = np.empty([-(-m // 2) if i == axis else m for i, m in enumerate(values.shape)], kind)

    def at(start: int, stop: int, step: int = 1) -> tuple[slice, ...]:
        return (*(slice(None),) * axis, slice(start, stop, step))

    np.add(values[at(0, n - 1, 2)], values[at(1, n, 2)], out=out[at(0, n // 2)], dtype=kind)
    if n % 2:
        np.add(values[at(n - 1, n)], values[at(n - 1, n)], out=out[at(n // 2, n // 2 + 1)], dtype=kind)
    return out
