"""Figures of grey values: PSNR and SSIM of images of any size, as they are and after the best affine fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RecipeError, ValuesError
from ..metrics import REACH, decibels, ssim_map
from .matching import NAN

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .pair import Pair

    Pixels = NDArray[np.float64]

BLOCK = 2**19
"""Pixels that are compared at once: SSIM takes a dozen float64 arrays of this size."""


@dataclass(frozen=True)
class Sums:
    """What was added up over the pixels of one image, or of several together, each on its own range.

    pixels, windows: how many pixels, and centres of SSIM's windows. errors: sum of (difference / range) squared.
    similarity: sum of SSIM over the windows.
    """

    pixels: int
    errors: float
    windows: int
    similarity: float

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.pixels + other.pixels, self.errors + other.errors, self.windows + other.windows,
            self.similarity + other.similarity,
        )  # fmt: skip

    @property
    def psnr(self) -> float:
        """In dB: -10 log10 of the mean squared error over the squared range; infinite for equal images."""
        return decibels(self.errors / self.pixels) if self.pixels else NAN

    @property
    def ssim(self) -> float:
        """The mean over the windows that lie inside; NaN where none does."""
        return self.similarity / self.windows if self.windows else NAN


NOTHING = Sums(0, 0.0, 0, 0.0)


@dataclass(frozen=True)
class Intensities:
    """Of one image, or of several together. affine: after the fit, None if nobody asked for it. range: grey values."""

    raw: Sums
    affine: Sums | None
    range: float

    @classmethod
    def pooled(cls, several: Sequence[Intensities]) -> Intensities:
        """Errors of all pixels and windows added: a large image weighs more than a small one."""
        ranges = {i.range for i in several}
        fits = [i.affine for i in several if i.affine is not None]
        affine = sum(fits, NOTHING) if fits else None
        return cls(sum((i.raw for i in several), NOTHING), affine, ranges.pop() if len(ranges) == 1 else NAN)

    @property
    def figures(self) -> dict[str, float]:
        """By name: psnr (dB), ssim, the same with `_affine` behind, and the range."""
        found = {"psnr": self.raw.psnr, "ssim": self.raw.ssim}
        if self.affine is not None:
            found |= {"psnr_affine": self.affine.psnr, "ssim_affine": self.affine.ssim}
        return {**found, "range": self.range}


def compare(
    pair: Pair, part: Mapping[str, int], data_range: str | float = "truth", *, affine: bool = False
) -> Intensities:
    """Compare a part with its truth block by block; it is read twice where its range or a fit is needed first.

    data_range: grey values, or `truth`: largest - smallest of the true part, or `dtype`: all that the truth's dtype
    holds. A constant truth has no range, and no figures. Raises ValuesError for NaN and infinity, RecipeError for
    another range.
    """
    reader = _Reader(pair, part)
    given = checked_range(data_range, pair.truth.dtype)
    moments = reader.moments() if given is None or affine else None
    found = given if given is not None else moments.range if moments is not None else NAN
    if not found > 0:
        return Intensities(NOTHING, NOTHING if affine else None, found)
    raw, fitted = NOTHING, NOTHING
    fit = moments.fit if affine and moments is not None else None
    for truth, image, core in reader.overlapping():
        raw += _sums(truth, image, core, found)
        if fit is not None:
            fitted += _sums(truth, fit[0] * image + fit[1], core, found)
    return Intensities(raw, fitted if fit is not None else None, found)


def checked_range(data_range: str | float, dtype: np.dtype[Any]) -> float | None:
    """The grey values of a range, None for that of the truth. Raises RecipeError for what is none."""
    if data_range == "truth":
        return None
    if data_range == "dtype":
        if dtype.kind not in "iu":
            raise RecipeError(f"{dtype} has no range of its own.", mend="--range truth, or the number of grey values")
        return float(np.iinfo(dtype).max) - float(np.iinfo(dtype).min)
    try:
        number = float(data_range)
    except ValueError:
        number = NAN
    if not 0 < number < np.inf:
        raise RecipeError(f"--range {data_range} is no range of grey values.", mend="--range truth, dtype, or e.g. 255")
    return number


@dataclass
class _Moments:
    """Of two images: count, means, sums of products of differences from the means; least and greatest of the truth.

    Source: Chan, Golub and LeVeque 1983 (parts are merged, so that nothing cancels).
    """

    count: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    def add(self, truth: Pixels, image: Pixels) -> None:
        n, x, y = truth.size, float(image.mean()), float(truth.mean())
        dx, dy = x - self.x, y - self.y
        share = n / (self.count + n)
        centred = image - x
        self.xx += float(np.sum(centred**2)) + dx * dx * self.count * share
        self.xy += float(np.sum(centred * (truth - y))) + dx * dy * self.count * share
        self.x, self.y, self.count = self.x + dx * share, self.y + dy * share, self.count + n
        self.low, self.high = min(self.low, float(truth.min())), max(self.high, float(truth.max()))

    @property
    def range(self) -> float:
        return self.high - self.low

    @property
    def fit(self) -> tuple[float, float]:
        """As `metrics.affine_fit`."""
        alpha = self.xy / self.xx if self.xx > 0 else 0.0
        return alpha, self.y - alpha * self.x


class _Reader:
    """The blocks of a part as float64. What is a single block is read once."""

    def __init__(self, pair: Pair, part: Mapping[str, int]) -> None:
        self.pair, self.part = pair, part
        self.boxes = list(pair.blocks(BLOCK))
        self._kept: tuple[Pixels, Pixels] | None = None

    def moments(self) -> _Moments:
        found = _Moments()
        for box in self.boxes:
            found.add(*self._read(box))
        return found

    def overlapping(self) -> Iterator[tuple[Pixels, Pixels, tuple[slice, ...]]]:
        """(truth, image, where the block lies in them), with what SSIM's windows need beyond the block."""
        sizes = self.pair.space
        for box in self.boxes:
            grown = {a: slice(max(0, s.start - REACH), min(sizes[a], s.stop + REACH)) for a, s in box.items()}
            core = tuple(slice(s.start - grown[a].start, s.stop - grown[a].start) for a, s in box.items())
            yield *self._read(grown), core

    def _read(self, box: Mapping[str, slice]) -> tuple[Pixels, Pixels]:
        if self._kept is not None:
            return self._kept
        found = []
        for pixels, image in zip(self.pair.read(self.part, box), (self.pair.truth, self.pair.prediction), strict=True):
            if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
                mend = "numpy.nan_to_num, if 0 is what is meant"
                raise ValuesError(
                    f"{image.name} holds NaN or infinity, which has no distance from anything.", mend=mend
                )
            found.append(pixels.astype(np.float64))
        if len(self.boxes) == 1:
            self._kept = (found[0], found[1])
        return found[0], found[1]


def _sums(truth: Pixels, image: Pixels, core: tuple[slice, ...], data_range: float) -> Sums:
    errors = float(np.sum(((truth[core] - image[core]) / data_range) ** 2))
    windows = prod(max(0, n - 2 * REACH) for n in truth.shape)
    similarity = float(ssim_map(truth, image, data_range).sum()) if windows else 0.0
    return Sums(truth[core].size, errors, windows, similarity)
