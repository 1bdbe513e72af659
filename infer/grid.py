"""Where tiles lie along one axis. Pure arithmetic: no arrays, no model.

The one rule at the border: the network sees the whole image once, extended at the END of each axis to a legal size.
Tiles start on the model's grid (multiples of `step`), end where the extended image ends, and keep only their cores,
which lie at least `halo` away from every cut. Then the tiled result is that of the whole image.

A network that returns less than it reads (convolutions without padding) takes `lead` mirrored pixels at both ends, so
that its result covers the image. What is read is counted from there: position 0 lies `lead` pixels before the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Span:
    """The half-open interval start:stop along one axis, in pixels."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Length in pixels."""
        return self.stop - self.start


@dataclass(frozen=True)
class Tile:
    """What one run reads (counted from `lead` pixels before the image) and what it keeps (in pixels of the image)."""

    read: Span
    keep: Span


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `value`."""
    return -(-value // step) * step


@dataclass(frozen=True)
class Axis:
    """One axis of an image as a model sees it.

    size: of the image. Legal sizes of a run are `minimum + n * step`, or `minimum` alone where `fixed`; step is also
    the grid on which runs start. halo: pixels that a cut spoils (for a network that sees no further than its halo, none
    else). lead: pixels that the network takes off at either end.
    """

    size: int
    step: int = 1
    minimum: int = 1
    halo: int = 0
    lead: int = 0
    fixed: bool = False

    def legal(self, size: int) -> int:
        """The smallest legal size that is at least `size` (of a fixed axis: for all its runs together)."""
        return self.minimum + round_up(max(0, size - self.minimum), self.step)

    @property
    def extended(self) -> int:
        """The size that the network runs on: the image and both leads, extended at the end to a legal size."""
        return self.legal(self.size + 2 * self.lead)

    @property
    def spoilt(self) -> int:
        """How far from a cut (of what is read) the result cannot be kept."""
        return self.halo + self.lead

    @property
    def margin(self) -> int:
        """The same before a run, rounded up so that a run that starts that much earlier is still on the grid."""
        return round_up(self.spoilt, self.step)

    @property
    def smallest_tile(self) -> int:
        """The smallest tile that keeps anything when the axis is cut."""
        return self.minimum if self.fixed else self.legal(max(self.minimum, 2 * self.margin + self.step))

    def read_for(self, keep: Span) -> Span:
        """What must be read to get `keep` right: with the halo, within the extended image, of a legal size."""
        first, last = keep.start + self.lead, keep.stop + self.lead
        start = max(0, first // self.step * self.step - self.margin)
        if keep.stop >= self.size:
            stop = self.extended
        else:
            mirrored = 2 * self.lead if start == 0 else 0  # the lead mirrors the first pixels: they must be read too
            needed = round_up(last, self.step) + self.spoilt  # halos are counted from pixels on the grid
            stop = min(self.extended, start + self.legal(max(needed, mirrored) - start))
        start = max(0, min(start, (stop - self.minimum) // self.step * self.step))
        end = self.size + self.lead
        if stop > end and start > 0:
            # the extension mirrors the last pixels: they must be part of what is read
            start = max(0, min(start, (2 * end - stop) // self.step * self.step))
        return Span(start, start + self.legal(stop - start))

    def tiles(self, block: Span, tile: int) -> list[Tile]:
        """Cover `block` (in pixels of the image) with tiles of at most `tile` pixels, as few and as equal as can be.

        A tile that reaches an end of the image has no halo there. `tile` is at least `smallest_tile`, or the block's
        whole region fits one tile.
        """
        region = self.read_for(block)
        if region.size <= tile:
            return [Tile(region, block)]
        tile = self.minimum + (tile - self.minimum) // self.step * self.step
        count = 1 - (region.size - tile) // -self.stride(tile)
        if not self.fixed:
            tile = self._equal(region.size, count, tile)
        starts = [min(region.start + i * self.stride(tile), region.stop - tile) for i in range(count)]
        cuts = [self.margin - self.lead + s for s in starts[1:]]
        cuts = [block.start, *(min(max(c, block.start), block.stop) for c in cuts), block.stop]
        return [
            Tile(Span(start, start + tile), Span(*keep))
            for start, keep in zip(starts, pairwise(cuts), strict=True)
            if keep[0] < keep[1]
        ]

    def stride(self, tile: int) -> int:
        """How far apart tiles of this size may start: on the grid, and no core missing between them."""
        return (tile - self.margin - self.spoilt) // self.step * self.step

    def _equal(self, region: int, count: int, most: int) -> int:
        """The smallest legal tile with which `count` tiles still cover a region."""
        tile = self.legal(max(-(-(region + (count - 1) * (self.margin + self.spoilt)) // count), self.smallest_tile))
        while tile < most and tile + (count - 1) * self.stride(tile) < region:
            tile += self.step
        return min(tile, most)


def blocks(size: int, block: int, start: int = 0) -> list[Span]:
    """Cut start:size into spans of `block` pixels; the last one may be shorter."""
    return [Span(at, min(at + block, size)) for at in range(start, size, block)]
