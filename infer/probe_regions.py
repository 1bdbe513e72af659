"""Places of an image where halos are measured: bright, textured and random ones, few and small, whatever its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .grid import round_up

if TYPE_CHECKING:
    from numpy.typing import NDArray

THUMB = {"z": 4, "y": 32, "x": 32}
"""Pixels that are looked at to judge a place; 1 along any other axis."""
PLACES = 4
"""Places that are looked at for one that is chosen."""
MOST = 12
"""Regions that are run: four of each kind. What they show for a trained network and its image is a third to a half of
the largest error in all of the image; with 3 regions it may be a fifth."""


class Readable(Protocol):
    """What is read: `zoo.image.Image`."""

    @property
    def axes(self) -> str:
        """Letters of `tczyx`."""

    def size(self, letter: str) -> int:
        """Pixels along an axis, 1 where there is none."""

    def read(self, region: Mapping[str, slice]) -> NDArray[Any]:
        """Pixels of a region, axes as `axes`."""


@dataclass(frozen=True)
class ProbeSize:
    """How much is run. size: of a region along each spatial axis. count: of regions."""

    size: dict[str, int]
    count: int


def probe_size(
    image: Readable,
    full: Mapping[str, int],
    steps: Mapping[str, int],
    minimum: Mapping[str, int],
    voxels: int,
    lengths: Sequence[int] = (3, 2, 1),
) -> ProbeSize | None:
    """Regions that show every distance from a cut, and can be run for at most `voxels` voxels in all.

    full: the exact halo by letter. steps, minimum: legal sizes. A region is what stays when its rim of `full` is cut
    off, and that rim; what stays is at least a legal size, and as many halos long as the first of `lengths` that can be
    had. An axis of the image that is not long enough is taken whole, and not cut. None where not even one region can be
    had for so little.
    """
    for halos in lengths:
        size = {}
        for a, halo in full.items():
            keep = max(minimum[a] + round_up(max(0, halos * halo - minimum[a]), steps[a]), steps[a])
            size[a] = keep + 2 * halo
            if size[a] > image.size(a):
                size[a] = minimum[a] + max(0, image.size(a) - minimum[a]) // steps[a] * steps[a]
        count = min(MOST, voxels // prod(size.values()))
        if count >= (1 if halos == lengths[-1] else 3):
            return ProbeSize(size, count)
    return None


def probe_regions(
    image: Readable,
    letters: Sequence[str],
    size: Mapping[str, int],
    count: int,
    *,
    steps: Mapping[str, int],
    channels: int = 1,
    channel: int | None = None,
    seed: int = 0,
) -> list[NDArray[np.float32]]:
    """Read the brightest, the most textured and random places in turn. -> float32 (1, c, [z], y, x) each.

    letters: the network's spatial axes. size: of a region; cut to the image. steps: regions start at multiples of them,
    and away from the image's border where there is room. channels: that the network reads; an image with as many
    gives them all, of another one is picked (`channel`, or any). Deterministic; reads count * PLACES thumbnails and
    count regions, NaN and infinities as 0.
    """
    rng = np.random.default_rng(seed)
    size = {a: min(size[a], image.size(a)) for a in letters}
    together = channels > 1 and channel is None and image.size("c") == channels
    places = []
    for _ in range(count * PLACES):
        place = {a: _random_start(rng, image.size(a), size[a], steps.get(a, 1)) for a in letters}
        place |= {a: int(rng.integers(image.size(a))) for a in image.axes if a not in letters}
        if channel is not None:
            place["c"] = channel
        places.append(place)
    thumbs = [_pixels(image, _thumb(p, size, letters, together=together), letters) for p in places]
    bright = np.argsort([-float(t.mean()) for t in thumbs], kind="stable").tolist()
    textured = np.argsort([-float(t.std()) for t in thumbs], kind="stable").tolist()
    chosen: list[int] = []
    for k in range(count):
        order = (bright, textured, range(len(places)))[k % 3]
        free = [i for i in order if i not in chosen]
        apart = [i for i in free if all(_apart(places[i], places[j], size) for j in chosen)]
        chosen.append((apart or free)[0])
    regions = []
    for i in chosen:
        wanted = {a: slice(s, s + size[a]) if a in letters else slice(s, s + 1) for a, s in places[i].items()}
        if together:
            wanted["c"] = slice(0, channels)
        regions.append(_pixels(image, wanted, letters))
    return regions


def _random_start(rng: np.random.Generator, n: int, size: int, step: int) -> int:
    """A multiple of the step, neither the first nor the last that there is, if there are others."""
    last = (n - size) // step
    return step * int(rng.integers(1, last) if last > 1 else rng.integers(0, last + 1))


def _thumb(
    place: Mapping[str, int], size: Mapping[str, int], letters: Sequence[str], *, together: bool
) -> dict[str, slice]:
    """The middle of a region."""
    region = {}
    for a, start in place.items():
        if a in letters:
            side = min(THUMB.get(a, 1), size[a])
            first = start + (size[a] - side) // 2
            region[a] = slice(first, first + side)
        elif not (together and a == "c"):
            region[a] = slice(start, start + 1)
    return region


def _apart(a: Mapping[str, int], b: Mapping[str, int], size: Mapping[str, int]) -> bool:
    """Whether two regions share less than half of any side, or lie in different planes."""
    return any(2 * abs(a[k] - b[k]) >= size.get(k, 1) for k in a)


def _pixels(image: Readable, region: Mapping[str, slice], letters: Sequence[str]) -> NDArray[np.float32]:
    """Read a region. -> float32 (1, c, [z], y, x); axes that are no letters have size 1 but for channels."""
    axes = image.axes
    pixels = np.asarray(image.read({a: s for a, s in region.items() if a in axes}))
    channel = ["c"] if "c" in axes else []
    rest = [a for a in axes if a not in (*letters, *channel)]
    present = [a for a in letters if a in axes]
    pixels = pixels.transpose([axes.index(a) for a in (*rest, *channel, *present)])
    sizes = dict(zip((*rest, *channel, *present), pixels.shape, strict=True))
    pixels = pixels.reshape(1, sizes.get("c", 1), *(sizes.get(a, 1) for a in letters)).astype(np.float32)
    return np.where(np.isfinite(pixels), pixels, np.float32(0))
