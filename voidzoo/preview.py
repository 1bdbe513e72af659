"""One region of an image before and after a model, as a picture, in seconds: before 400 GB are run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import api
from .infer.meeting import at_model_size
from .infer.planning import laid_on
from .infer.run import run_in_memory
from .sheet import Panel, draw_sheet
from .zoo.open import open_image
from .zoo.package import open_package
from .zoo.pictures import contrast

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .infer.plan import Plan, Target
    from .zoo.image import Image
    from .zoo.package import Package

    Region = dict[str, tuple[int, int]]

SIDE = {"t": 8, "z": 16, "y": 512, "x": 512}
"""The most pixels of a preview along an axis that the network reads at once."""
LOOKS = 3
"""Places looked at along y and along x."""
MEASURED = 2**27
"""The most voxels of a sample that are measured for a preview: about two seconds. Of a larger one, the region alone."""
LEFT_OUT = ("only", "mask", "skip_below", "tolerance", "block", "dtype")
"""Settings that decide about the whole image, or that a picture needs not."""
SAMPLES = {"plane": "", "volume": "z", "series": "t", "image": "tz"}


@dataclass(frozen=True)
class Preview:
    """What was run. region: start and stop by letter, in pixels of the image that the network sees. notes: what the
    plan had to say, and what is otherwise than in the whole image.
    """

    region: Region
    plan: Plan
    picture: Path
    notes: tuple[str, ...]

    @property
    def where(self) -> str:
        """The region in words; of an axis that is not drawn, the position that is."""
        parts = []
        for a, (start, stop) in self.region.items():
            middle = (start + stop) // 2
            some = f" ({start}:{stop} were run)" if stop - start > 1 else ""
            parts.append(f"{a} {middle}{some}" if a in "tz" else f"{a} {start}:{stop}")
        return ", ".join(parts)


def preview(model: str | Path | Package, image: Any, picture: Path, settings: Mapping[str, Any]) -> Preview:
    """Run a model on the liveliest of a few regions, and draw it before and after. Nothing but the picture is written.

    picture: where the PNG goes. settings: as for `api.plan`; those about the whole image (only, mask, skip_below,
    tolerance, block, dtype) are left out. With rescale, the picture shows what the network sees. Raises what `api.plan`
    refuses.
    """
    opening = {k: v for k, v in settings.items() if k in api.OPENING}
    settings = {k: v for k, v in settings.items() if k not in (*api.OPENING, *LEFT_OUT)}
    seen = open_image(image, **opening)
    package = open_package(model) if isinstance(model, str | Path) else model
    notes: tuple[str, ...] = ()
    inputs = {name: open_image(i) for name, i in (settings.get("inputs") or {}).items()}
    if settings.pop("rescale", False):
        seen = at_model_size(package, seen, whole=True)
        _, inputs = laid_on(package, seen, None, inputs)
        notes = (f"shown at the pixel size of the training: {seen.pixel_size}",)
    region = choose_region(seen, package.axes, settings.get("channel"))
    settings = {**settings, "inputs": inputs, "dtype": "float32"}
    everything = all(span == (0, seen.size(a)) for a, span in region.items())
    if not inputs and not everything and _too_large(package, seen, settings):
        made = api.plan(package, _cropped(seen, region), **settings)
        notes += ("what the model measures was measured on this region alone, not on the whole of its sample",)
    else:
        made = api.plan(package, seen, only=region, **settings)
    rows = _panels(seen, region, made, run_in_memory(made))
    found = Preview(region, made, picture, (*notes, *made.notes))
    draw_sheet(rows, f"{seen.name}   {found.where}   {_field(seen, region)}", picture)
    return found


def choose_region(image: Image, model_axes: str, channel: str | int | None = None) -> Region:
    """The middle of every axis that the network runs over; in the plane the place where grey values differ most."""
    from .infer.meeting import find_channel

    region: Region = {}
    for a in (a for a in image.axes if a != "c"):
        size = min(image.size(a), SIDE[a] if a in model_axes else 1)
        start = (image.size(a) - size) // 2
        region[a] = (start, start + size)
    best, chosen = -1.0, region
    for y, x in product(*(_starts(image.size(a), region[a][1] - region[a][0]) for a in "yx")):
        here = {**region, "y": (y, y + region["y"][1] - region["y"][0]), "x": (x, x + region["x"][1] - region["x"][0])}
        middle = {a: slice((s + e) // 2, (s + e) // 2 + 1) if a in "tz" else slice(s, e) for a, (s, e) in here.items()}
        if channel is not None and channel != "all" and "c" in image.axes:
            index = find_channel(image, channel)
            middle["c"] = slice(index, index + 1)
        pixels = image.read(middle).astype(np.float64)
        spread = float(np.std(pixels[np.isfinite(pixels)])) if np.isfinite(pixels).any() else 0.0
        if spread > best:
            best, chosen = spread, here
    return chosen


def _starts(size: int, part: int) -> list[int]:
    return sorted({round(f * (size - part)) for f in np.linspace(0, 1, LOOKS)})


def _too_large(package: Package, image: Image, settings: Mapping[str, Any]) -> bool:
    """Whether a model measures samples that take long to read, or the result of a whole sample."""
    if package.plain:
        return False
    from .infer.networks.processing import Processing

    processing = Processing(package, "", trust_code=bool(settings.get("trust_code")))
    if any(processing.outputs_wanted.values()) or processing.needs_whole():
        return True
    if not any(processing.inputs_wanted.values()):
        return False
    joined = any(any(flags) for flags in processing.dataset.values())
    letters = SAMPLES.get(settings.get("sample") or ("image" if joined else "plane"), "")
    return prod(image.size(a) for a in {*package.axes, *letters}) > MEASURED


def _cropped(image: Image, region: Region) -> Image:
    """A region as an image in memory."""
    pixels = image.read({a: slice(*span) for a, span in region.items()})
    part = open_image(pixels, axes=image.axes)
    return replace(part, name=image.name, pixel_size=image.pixel_size, channels=image.channels)


def _field(image: Image, region: Region) -> str:
    """How large the field is."""
    um = [(image.pixel_size.get(a) or 0) * (region[a][1] - region[a][0]) for a in "xy"]
    return f"{um[0]:.3g} x {um[1]:.3g} um" if all(um) else "no pixel size"


def _panels(image: Image, region: Region, made: Plan, found: Mapping[str, NDArray[Any]]) -> list[list[Panel]]:
    """Before and after: a row for each channel that is run by itself, else all in one."""
    pixels = image.read({a: slice(*span) for a, span in region.items()})
    names, feed = image.channel_names(), made.feeds[0]
    shown = range(len(names)) if feed.channel is None else [feed.channel]
    before = []
    for c in shown:
        plane = _plane(pixels, image.axes, c)
        before.append(Panel(plane, f"before {names[c] if len(names) > 1 else ''}".strip(), contrast(plane)))
    more = []
    for other in made.feeds[1:]:
        if not other.port.whole:
            part = {a: slice(*other.port.span(*region[a], a)) for a in region if other.image.size(a) > 1}
            plane = _plane(other.image.read(part), other.image.axes, 0)
            more.append(Panel(plane, f"input {other.port.id}", contrast(plane), _ratio(other.port.ratio)))
    after = [_after(made, t, values, before) for t, values in zip(made.targets, found.values(), strict=True)]
    if "c" in made.loops:
        return [[b, *(panels[c] for panels in after)] for c, b in enumerate(before)]
    return [[*before, *more, *(p for panels in after for p in panels)]]


def _after(made: Plan, target: Target, values: NDArray[Any], before: list[Panel]) -> list[Panel]:
    """The channels of one array of the result. Intensities have the grey scale of what they were made of."""
    axes = made.axes_of(target)
    count = values.shape[axes.index("c")] if "c" in axes else 1
    panels = []
    for c in range(count):
        plane = _plane(values, axes, c)
        if target.kind == "intensity":
            grey = before[c if count == len(before) else 0].grey
        else:
            grey = (0.0, 1.0) if target.kind == "probability" else contrast(plane)
        name = target.names[c] if len(target.names) > 1 else ""
        panels.append(Panel(plane, " ".join(f"after {target.name} {name}".split()), grey, _ratio(target.port.ratio)))
    return panels


def _ratio(ratio: Mapping[str, Any]) -> tuple[Any, Any]:
    return ratio.get("y", 1), ratio.get("x", 1)


def _plane(values: NDArray[Any], axes: str, channel: int) -> NDArray[Any]:
    """The middle plane (y, x) of one channel."""
    index = tuple(
        slice(None) if a in "yx" else (min(channel, n - 1) if a == "c" else n // 2)
        for a, n in zip(axes, values.shape, strict=True)
    )
    return values[index]
