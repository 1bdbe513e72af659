"""Where tiles lie along one axis. Pure arithmetic: no arrays, no model.

The one rule at the border: the network sees the whole image once, extended at the END of each axis to a legal size.
Tiles start on the model's grid (multiples of `step`), end where the extended image ends, and keep only their cores,
which lie at least `halo` away from every cut. Then the tiled result is that of the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """The half-open interval start:stop along one axis, in pixels of the extended image."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Length in pixels."""
        return self.stop - self.start


@dataclass(frozen=True)
class Tile:
    """What one run reads and what it keeps of the result, along one axis; `keep` lies within `read`."""

    read: Span
    keep: Span


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


@dataclass(frozen=True)
class Axis:
    """One axis of an image as a model sees it.

    size: of the image. step: the divisor of legal sizes. minimum: the smallest legal size. halo: pixels that a cut
    spoils (for a network that sees no further than its halo, none else).
    """

    size: int
    step: int = 1
    minimum: int = 1
    halo: int = 0

    @property
    def extended(self) -> int:
        """The size that the network runs on: the image, extended at its end to a legal size."""
        return round_up(max(self.size, self.minimum), self.step)

    @property
    def margin(self) -> int:
        """The halo, rounded up so that a tile that starts that much earlier is still on the grid."""
        return round_up(self.halo, self.step)

    @property
    def smallest_tile(self) -> int:
        """The smallest tile that keeps anything when the axis is cut."""
        return max(round_up(self.minimum, self.step), 2 * self.margin + self.step)

    def read_for(self, keep: Span) -> Span:
        """What must be read to get `keep` right: with the halo, within the extended image, at least the minimum."""
        start = max(0, keep.start // self.step * self.step - self.margin)
        stop = (
            self.extended
            if keep.stop >= self.size
            else min(self.extended, round_up(keep.stop, self.step) + self.margin)
        )
        short = round_up(self.minimum, self.step) - (stop - start)
        if short > 0:
            start = max(0, start - short)
            stop = min(self.extended, start + round_up(self.minimum, self.step))
        if stop > self.size and start > 0:
            # the extension mirrors the last pixels: they must be part of what is read
            start = max(0, min(start, (2 * self.size - stop) // self.step * self.step))
        return Span(start, stop)

    def tiles(self, block: Span, tile: int) -> list[Tile]:
        """Cover `block` (in pixels of the image) with tiles of at most `tile` pixels, as few and as equal as can be.

        A tile that reaches an end of the image has no halo there. `tile` is at least `smallest_tile`, or the block's
        whole region fits one tile.
        """
        region = self.read_for(block)
        if region.size <= tile:
            return [Tile(region, block)]
        inner = region.size - 2 * self.margin  # what the halos inside of the region leave to be kept
        count = -(-inner // (tile // self.step * self.step - 2 * self.margin))
        tile = max(round_up(-(-inner // count) + 2 * self.margin, self.step), self.smallest_tile)
        stride = tile - 2 * self.margin
        starts = [min(region.start + i * stride, region.stop - tile) for i in range(-(-inner // stride))]
        cuts = [block.start, *(min(max(s + self.margin, block.start), block.stop) for s in starts[1:]), block.stop]
        return [
            Tile(Span(start, start + tile), Span(*keep))
            for start, keep in zip(starts, pairwise(cuts), strict=True)
            if keep[0] < keep[1]
        ]


def blocks(size: int, block: int) -> list[Span]:
    """Cut 0:size into spans of `block` pixels; the last one may be shorter."""
    return [Span(start, min(start + block, size)) for start in range(0, size, block)]
