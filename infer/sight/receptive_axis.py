"""What the elements along one axis of a tensor see of one axis of an input: exact intervals, by periodic arithmetic.

A network of convolutions, pools and resizes is periodic: the element `period` further on sees `grid` pixels further on.
So one period of intervals says everything, whatever the size of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST = 4096
"""Elements in a period beyond which an axis is not followed: a resize by 511/512 has no grid that helps anybody."""
NOTHING = 1 << 40
"""Stands for an element that sees no pixel (between the strokes of a transposed convolution): first > last."""


@dataclass(frozen=True)
class Lost:
    """Elements that see the whole input axis, or in no order that a tile could keep.

    why: the node. channel: a convolution or linear layer contracted the axis, as it does with channels.
    """

    why: str
    channel: bool = False


@dataclass(frozen=True)
class Along:
    """One axis of a tensor that runs along one axis of an input.

    axis: of the tensor. pixels: of the input axis. The index is (o * n + i) * inner + r for i of n elements; `outer`
    (how many o) and `inner` (how many r) are 1 but for axes that a Reshape has put together. first, last: int64
    (2, period), the first and last input index that element i sees, for i in 0..period-1; element i + period sees
    `grid` further. Row 0: what the value depends on. Row 1: what a tile must hold for the element to be right, which is
    more where elements are cut off and padded again. mirror: how far from the image's start and end the elements see
    that a reflecting Pad puts there. why: the node for which the elements see the whole axis nevertheless (a
    normalisation over space), or "".
    """

    axis: int
    pixels: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    grid: int
    outer: int = 1
    inner: int = 1
    mirror: tuple[int, int] = (0, 0)
    why: str = ""

    @property
    def period(self) -> int:
        """Elements after which the pattern repeats."""
        return self.first.shape[1]

    def at(self, index: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last input index that elements see. index: int64 (...) -> two of int64 (2, ...)."""
        turns, phase = np.divmod(index, self.period)
        return self.first[:, phase] + turns * self.grid, self.last[:, phase] + turns * self.grid

    def stretched(self, times: int) -> Along:
        """The same with a period `times` as long."""
        if times == 1:
            return self
        first, last = self.at(np.arange(self.period * times))
        return replace(self, first=first, last=last, grid=self.grid * times)

    def flat(self, why: str) -> Along | Lost:
        """The same with outer and inner 1: what a convolution along the axis can work on."""
        if self.outer != 1:
            return Lost(self.why or why)
        times = self.inner
        return replace(self, inner=1).window(why, times, 1, lambda o: o[None] // times) if times > 1 else self

    def window(
        self,
        why: str,
        up: int,
        down: int,
        reads: Callable[[NDArray[np.int64]], NDArray[np.int64]],
        valid: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
    ) -> Along | Lost:
        """The axis after a step in which element o reads elements reads(o); reads(o + up) = reads(o) + down.

        reads: int64 (n) -> (taps, n). valid: which of them count, the same shape.
        """
        this = self.flat(why)
        if isinstance(this, Lost):
            return this
        times = lcm(this.period * up, down) // (this.period * up)
        period = this.period * times * up // down
        if max(period, this.period * times) > LONGEST:
            return Lost(self.why or why)
        o = np.arange(period)
        first, last = this.at(reads(o))  # (2, taps, period)
        if valid is not None:
            counts = valid(o)
            first, last = np.where(counts, first, NOTHING), np.where(counts, last, -NOTHING)
        return replace(this, first=first.min(axis=1), last=last.max(axis=1), grid=this.grid * times)

    def existing(self, size: int) -> Along:
        """An element is right only in a tile that has it: row 1 is widened by the pixels that make it exist.

        size: elements of the axis. In a tile from s to e (input pixels) the axis begins at
        element s * period / grid, and is as much shorter as the tile is smaller.
        """
        i, n = np.arange(self.period), size // (self.outer * self.inner)
        first, last = self.first.copy(), self.last.copy()
        first[1] = np.minimum(first[1], i * self.grid // self.period)
        last[1] = np.maximum(last[1], self.pixels - 1 - (n - 1 - i) * self.grid // self.period)
        return replace(self, first=first, last=last)

    def mirrored(self, before: int, after: int, size: int) -> Along:
        """Note what is seen through a reflecting Pad of so many elements. size: elements before it was put on."""
        start, end = self.mirror
        if before > 0:
            start = max(start, int(self.at(np.arange(before + 1))[1].max()))
        if after > 0:
            end = max(end, self.pixels - 1 - int(self.at(size - 1 - np.arange(after + 1))[0].min()))
        return replace(self, mirror=(start, end))


def begin(axis: int, pixels: int) -> Along:
    """An axis of the input itself: every element sees itself."""
    zero = np.zeros((2, 1), np.int64)
    return Along(axis, pixels, zero, zero, 1)


def reshaped(along: Along, why: str, old: Sequence[int], new: Sequence[int]) -> Along | Lost:
    """The axis after a Reshape from shape `old` to shape `new`: merged with others, parted, or as it was.

    In memory the axis is (lead, n, tail); the new axis that holds its beginning carries it.
    """
    lead = int(np.prod(old[: along.axis], dtype=np.int64)) * along.outer
    n = old[along.axis] // (along.outer * along.inner)
    axis = _carrier(along.axis, lead, n, new)
    before = int(np.prod(new[:axis], dtype=np.int64))
    if axis == len(new) or lead % before or new[axis] % (lead // before):
        return Lost(along.why or why)
    outer = lead // before
    rest = new[axis] // outer  # what the new axis has for the n elements, or for as many of them
    if rest % n == 0:
        return replace(along, axis=axis, outer=outer, inner=rest // n)
    if n % rest:
        return Lost(along.why or why)
    group = n // rest
    whole = replace(along, outer=1, inner=1)
    parted = whole.window(why, 1, group, lambda o: o * group + np.arange(group)[:, None])
    return parted if isinstance(parted, Lost) else replace(parted, axis=axis, outer=outer)


def _carrier(axis: int, lead: int, n: int, new: Sequence[int]) -> int:
    """The new axis in which the elements after the first `lead` ones begin; len(new) if there is none."""
    before = [int(np.prod(new[:k], dtype=np.int64)) for k in range(len(new) + 1)]
    if n == 1:  # an axis of one element: it may be any axis of size 1 there, best at the old place
        ones = [k for k, size in enumerate(new) if size == 1 and before[k] == lead]
        if ones:
            return min(ones, key=lambda k: abs(k - axis))
    return next((k for k in range(len(new)) if before[k] <= lead < before[k + 1]), len(new))


def union(states: Sequence[Along | Lost], why: str) -> Along | Lost:
    """What an element sees that is made of elements of several tensors at the same place."""
    axes = [s for s in states if isinstance(s, Along)]
    lost = [s for s in states if isinstance(s, Lost)]
    if lost and (not axes or all(s.channel for s in lost)):
        return next((s for s in lost if not s.channel), lost[0])
    reason = next((s.why for s in states if s.why), "")
    result: Along | Lost = axes[0]
    for other in axes[1:]:
        result = _union(result, other, reason or why) if isinstance(result, Along) else result
    return replace(result, why=reason) if isinstance(result, Along) else result


def _union(a: Along, b: Along, why: str) -> Along | Lost:
    if (a.outer, a.inner) != (b.outer, b.inner):
        flat_a, flat_b = a.flat(why), b.flat(why)
        if isinstance(flat_a, Lost) or isinstance(flat_b, Lost):
            return Lost(why)
        a, b = flat_a, flat_b
    if a.axis != b.axis or a.period * b.grid != b.period * a.grid:
        return Lost(why)
    grid = lcm(a.grid, b.grid)
    a, b = a.stretched(grid // a.grid), b.stretched(grid // b.grid)
    if a.period > LONGEST:
        return Lost(why)
    mirror = (max(a.mirror[0], b.mirror[0]), max(a.mirror[1], b.mirror[1]))
    return replace(a, first=np.minimum(a.first, b.first), last=np.maximum(a.last, b.last), grid=grid, mirror=mirror)


Sees = dict[tuple[str, int], Along | Lost]
"""What a tensor sees of every axis of every input that it depends on: (input, axis) -> how."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph. shape: None if unknown. value: of constants that are not too large."""

    shape: tuple[int, ...] | None
    elem_type: int
    sees: Sees
    value: NDArray[Any] | None = None

    def varies(self, axis: int) -> bool:
        """Whether a constant's values may differ along one of its axes."""
        if self.shape is not None and self.shape[axis] == 1:
            return False
        return self.value is None or bool(np.any(self.value != np.take(self.value, [0], axis)))
