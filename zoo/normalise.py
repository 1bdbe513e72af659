"""Statistics of an image of any size, exact and out of core, and the normalisation that a model carries with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import region_slices
from .errors import ValuesError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from .axes import Region
    from .image import Image

READ_BYTES = 2**26
"""What is read at once (at least one chunk, which is decoded whole anyway)."""
PIECE = 2**20
"""How many pixels are turned into float64 at once."""


@dataclass(frozen=True)
class Statistics:
    """Per channel: how many finite pixels, their mean, population std, minimum and maximum; and what was left out.

    `m2` is the sum of squared differences from the mean. All are float64 in grey values of the image.
    """

    count: tuple[int, ...]
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    left_out: tuple[int, ...]

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation per channel (divided by count, not count - 1)."""
        return tuple(float(np.sqrt(m2 / n)) if n else float("nan") for m2, n in zip(self.m2, self.count, strict=True))

    @classmethod
    def of(cls, image: Image, regions: Sequence[Region] = ({},), *, allow_nan: bool = False) -> Statistics:
        """The statistics of an image, or of (disjoint) regions of it, in one pass over its chunks.

        NaN and infinity are refused, or with `allow_nan` left out and counted in `left_out`. Memory: one chunk or
        READ_BYTES, whichever is more, and three pieces of float64. Raises ValuesError for NaN and infinity and for a
        channel without any finite pixel, AxesError for a region outside the image.
        Source: Chan, Golub and LeVeque 1983 (pairwise merging of means and squared differences).
        """
        channels = image.size("c")
        tallies = [_Tally() for _ in range(channels)]
        bad = _BadPixels(image)
        for region in regions:
            for block in _blocks(image, region):
                pixels = image.read({a: slice(s, s + n) for a, (s, n) in block.items()})
                starts = [s for s, _ in block.values()]
                bad.look(pixels, starts)
                first = block["c"][0] if "c" in block else 0
                per_channel = np.moveaxis(pixels, image.axes.index("c"), 0) if "c" in image.axes else pixels[None]
                for i, plane in enumerate(per_channel):
                    tallies[first + i].add(plane)
        if not allow_nan:
            bad.refuse()
        for i, tally in enumerate(tallies):
            if not tally.count:
                raise ValuesError(f"{_channel(image, i)} has no finite pixel.")
        return cls(
            tuple(t.count for t in tallies),
            tuple(t.mean for t in tallies),
            tuple(t.m2 for t in tallies),
            tuple(t.minimum for t in tallies),
            tuple(t.maximum for t in tallies),
            tuple(t.left_out for t in tallies),
        )

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of both sets of pixels together. Raises ValuesError for another number of channels."""
        if len(self.count) != len(other.count):
            raise ValuesError(f"images with {len(self.count)} and {len(other.count)} channels have no common mean.")
        merged = [
            _chan(mine, yours)
            for mine, yours in zip(
                zip(self.count, self.mean, self.m2, strict=True),
                zip(other.count, other.mean, other.m2, strict=True),
                strict=True,
            )
        ]
        count, mean, m2 = zip(*merged, strict=True)
        return Statistics(
            count,
            mean,
            m2,
            tuple(map(min, self.minimum, other.minimum)),
            tuple(map(max, self.maximum, other.maximum)),
            tuple(a + b for a, b in zip(self.left_out, other.left_out, strict=True)),
        )


@dataclass(frozen=True)
class Normalisation:
    """Zero mean and unit variance per channel, fitted once in training: (x - mean) / std, and back."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, statistics: Statistics, name: str = "the image", channels: Sequence[str] = ()) -> Normalisation:
        """From statistics. Raises ValuesError for a channel whose pixels are all the same."""
        for i, (std, low) in enumerate(zip(statistics.std, statistics.minimum, strict=True)):
            if std == 0 or low == statistics.maximum[i]:
                which = (
                    f"{name}, {channels[i] if i < len(channels) else f'channel {i}'},"
                    if len(statistics.std) > 1
                    else name
                )
                raise ValuesError(
                    f"{which} is constant (every pixel is {low:g}): there is nothing to learn from it.",
                    mend="choose another image or channel",
                )
        return cls(statistics.mean, statistics.std)

    def apply(self, pixels: NDArray[Any], channel_axis: int | None = 0) -> NDArray[np.float32]:
        """Grey values of any dtype -> float32, (x - mean) / std per channel; no channel axis: None."""
        mean, std = self._along(pixels.ndim, channel_axis)
        out = pixels.astype(np.float32)
        out -= mean
        out /= std
        return out

    def invert(self, pixels: NDArray[Any], channel_axis: int | None = 0) -> NDArray[np.float32]:
        """Normalised values -> float32 grey values, x * std + mean per channel."""
        mean, std = self._along(pixels.ndim, channel_axis)
        return pixels.astype(np.float32) * std + mean

    def _along(self, ndim: int, channel_axis: int | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        shape = [1] * ndim
        if channel_axis is not None:
            shape[channel_axis] = len(self.mean)
        return (
            np.asarray(self.mean, np.float32).reshape(shape),
            np.asarray(self.std, np.float32).reshape(shape),
        )


Moments = tuple[int, float, float]
"""count, mean, sum of squared differences from the mean"""


def _chan(one: Moments, two: Moments) -> Moments:
    """Chan's merge of the moments of two sets of pixels."""
    (n, mean, m2), (k, other, other_m2) = one, two
    if not k:
        return n, mean, m2
    if not n:
        return k, other, other_m2
    delta = other - mean
    total = n + k
    return total, mean + delta * (k / total), m2 + other_m2 + delta * delta * (n / total) * k


class _Tally:
    """The running statistics of one channel."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2, self.left_out = 0, 0.0, 0.0, 0
        self.minimum, self.maximum = float("inf"), float("-inf")

    def add(self, pixels: NDArray[Any]) -> None:
        flat = pixels.reshape(-1)
        for start in range(0, flat.size, PIECE):
            piece = flat[start : start + PIECE].astype(np.float64)
            if pixels.dtype.kind == "f":
                finite = np.isfinite(piece)
                if not finite.all():
                    self.left_out += int((~finite).sum())
                    piece = piece[finite]
            if not piece.size:
                continue
            self.minimum = min(self.minimum, float(piece.min()))
            self.maximum = max(self.maximum, float(piece.max()))
            mean = float(piece.mean())
            piece -= mean
            self.count, self.mean, self.m2 = _chan(
                (self.count, self.mean, self.m2), (piece.size, mean, float(np.dot(piece, piece)))
            )


class _BadPixels:
    """How many pixels are NaN or infinite, and the position of the first in the order of the image."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.nan = self.infinite = 0
        self.first: tuple[int, ...] | None = None

    def look(self, pixels: NDArray[Any], starts: Sequence[int]) -> None:
        if pixels.dtype.kind != "f":
            return
        finite = np.isfinite(pixels)
        if finite.all():
            return
        nan = int(np.isnan(pixels).sum())
        self.nan += nan
        self.infinite += int((~finite).sum()) - nan
        at = np.unravel_index(int(np.argmin(finite)), pixels.shape)
        here = tuple(int(i) + s for i, s in zip(at, starts, strict=True))
        self.first = here if self.first is None else min(self.first, here)

    def refuse(self) -> None:
        if self.first is None:
            return
        found = [f"{n:,} {word}" for n, word in ((self.nan, "NaN"), (self.infinite, "infinite")) if n]
        total = int(np.prod(self.image.shape, dtype=np.int64))
        where = ", ".join(f"{a} {i}" for a, i in zip(self.image.axes, self.first, strict=True))
        raise ValuesError(
            f"{self.image.name} has {' and '.join(found)} of {total:,} pixels; models read finite numbers.",
            where=f"the first is at {where}",
            mend="--allow-nan  leaves them out of the statistics and of the training",
        )


def _blocks(image: Image, region: Region) -> Iterator[dict[str, tuple[int, int]]]:
    """Cover a region by blocks (letter -> start, size) that begin and end on chunk borders, in raster order."""
    slices = region_slices(region, image.axes, image.shape)
    size = [s.stop - s.start for s in slices]
    block = list(image.chunks)
    for i in reversed(range(len(block))):  # grow the fastest axis first: contiguous reads
        room = READ_BYTES // max(1, int(np.prod(block, dtype=np.int64)) * image.dtype.itemsize)
        block[i] *= max(1, min(room, -(-size[i] // block[i])))

    def edges(i: int) -> Iterable[tuple[int, int]]:
        at = slices[i].start
        while at < slices[i].stop:
            end = min(slices[i].stop, (at // block[i] + 1) * block[i])
            yield at, end - at
            at = end

    counts = [list(edges(i)) for i in range(len(block))]
    for index in np.ndindex(*(len(c) for c in counts)):
        yield {a: counts[i][k] for i, (a, k) in enumerate(zip(image.axes, index, strict=True))}


def _channel(image: Image, index: int) -> str:
    return f"{image.name}, {image.channel_names()[index]}," if image.size("c") > 1 else image.name
