"""Whether an image is like those that a model was trained on: pixel size and grey values. What is far off is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import VoidzooError
from ..zoo.quantiles import percentiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.image import Image
    from ..zoo.package import Package
    from .plan import Feed

FAR = 1.25
"""The factor between two pixel sizes from which on objects look too large or too small to a network."""
PLACES = 8
"""Places of an image at which grey values are looked at."""
SIDE = {"z": 4, "y": 32, "x": 32}
"""Their size in pixels; 1 along any other axis."""
TOO_WIDE, TOO_NARROW = 4.0, 0.1
"""Image over training: how far grey values may be spread, as a factor, before it is told."""


def pixel_notes(package: Package, image: Image) -> list[str]:
    """What is to be said of pixel sizes (um) that are missing, or far from those of the training."""
    notes = []
    if not image.pixel_size.known and image.path is not None:
        notes.append(f"{image.name} has no pixel size; the result will have none either "
                     "(mend: --pixel-size 0.5,0.5 in um, y,x).")  # fmt: skip
    known = package.pixel_size
    trained = {a: known[a] for a in "zyx" if known.get(a) and image.pixel_size.get(a)}
    factors = {a: float(image.pixel_size.get(a) or 0) / v for a, v in trained.items()}
    far = {a: f for a, f in factors.items() if not 1 / FAR <= f <= FAR}
    for alike in _alike(far):
        a = alike[0]
        size, times = "small" if far[a] > 1 else "large", max(far[a], 1 / far[a])
        notes.append(
            f"{image.name} has {image.pixel_size.get(a):.4g} um pixels along {', '.join(alike)}; {package.name} was "
            f"trained at {trained[a]:.4g} um: everything looks {times:.2g} times too {size} to it "
            f"(mend: {_mend(image, trained, far)})."
        )
    return notes


def _alike(far: dict[str, float]) -> list[list[str]]:
    """Axes with the same factor together."""
    found: list[list[str]] = []
    for a, factor in far.items():
        for group in found:
            if abs(factor / far[group[0]] - 1) < 0.01:
                group.append(a)
                break
        else:
            found.append([a])
    return found


def _mend(image: Image, trained: dict[str, float], far: dict[str, float]) -> str:
    """--rescale, or the level of the pyramid that fits."""
    for i in range(1, len(image.levels) + 1):
        size = image.level(i).pixel_size
        if all(1 / FAR <= float(size.get(a) or 0) / v <= FAR for a, v in trained.items()):
            um = float(size.get(next(iter(far))) or 0)
            return f"--level {i} reads the pyramid level with {um:.3g} um, or --rescale"
    return "--rescale"


def grey_notes(package: Package, feed: Feed, seed: int = 0) -> list[str]:
    """What is to be said of grey values that are far from those of the training. Reads a few small places.

    Packages of voidzoo say between which values 99.8 % of the training pixels lay, for each channel.
    """
    ranges = (package.ours.get("training") or {}).get("intensity_range") or []
    if len(ranges) != feed.port.channels:
        return []
    try:
        pixels = _places(feed, np.random.default_rng(seed))
    except (VoidzooError, OSError):  # a place that cannot be read is told when its block is done
        return []
    notes = []
    for name, trained, values in zip(_names(package), ranges, pixels, strict=True):
        low, high = (float(v) for v in trained)
        if values.size and (why := _why_far(values, low, high)):
            of = f" of {name}" if len(ranges) > 1 else ""
            seen = " to ".join(f"{v:.4g}" for v in percentiles(values, (0.1, 99.9)))
            notes.append(
                f"{feed.image.name} has grey values of about {seen}; {package.name} was trained{of} on {low:.4g} to "
                f"{high:.4g}: {why} (mend: the raw image, as the microscope wrote it, not a normalised or 8-bit copy)."
            )
    return notes


def _names(package: Package) -> Sequence[str]:
    return package.channels_in


def _why_far(values: NDArray[Any], low: float, high: float) -> str:
    first, quarter, three, last = percentiles(values, (0.1, 25, 75, 99.9))
    width = max(high - low, 1e-12)
    if three < low or quarter > high:
        return "most of them lie outside of that"
    if (last - first) / width > TOO_WIDE:
        return f"{(last - first) / width:.2g} times as wide"
    if first == last:
        return "all pixels looked at are the same"
    if (last - first) / width < TOO_NARROW:
        return f"{width / (last - first):.2g} times as narrow"
    return ""


def _places(feed: Feed, rng: np.random.Generator) -> list[NDArray[Any]]:
    """Finite values of each channel that the network reads, at random places."""
    image, found = feed.image, []
    for _ in range(PLACES):
        region = {}
        for a, n in image.sizes.items():
            size = min(n, SIDE.get(a, 1))
            start = int(rng.integers(n - size + 1))
            region[a] = slice(start, start + size)
        if "c" in image.axes and feed.port.channels > 1:
            region["c"] = slice(0, image.size("c"))
        elif feed.channel is not None:
            region["c"] = slice(feed.channel, feed.channel + 1)
        pixels = np.asarray(image.read(region))
        channels = feed.port.channels
        pixels = np.moveaxis(pixels, image.axes.index("c"), 0) if "c" in image.axes else pixels[None]
        found.append(pixels.reshape(channels, -1))
    every = np.concatenate(found, axis=1)
    return [values[np.isfinite(values)] for values in every]


__all__ = ["grey_notes", "pixel_notes"]
