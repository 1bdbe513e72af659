"""The OME metadata of a result: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/.

Both have the same objects; 0.5 keeps them under `ome` with one version number, 0.4 at the top, each with its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.quantiles import percentiles
from .layer import Layer
from .pyramid import SMALLEST_LEVEL

if TYPE_CHECKING:
    from .array import DurableArray

UNITS = {
    "t": ("time", "second"),
    "z": ("space", "micrometer"),
    "y": ("space", "micrometer"),
    "x": ("space", "micrometer"),
}
COLORS = ("00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def image_metadata(layer: Layer, smallest: DurableArray, title: str, version: str) -> dict[str, Any]:
    """The attributes of one image. smallest: its last level, for display limits. title: the name to show."""
    scales = _multiscales(layer, title)
    found: dict[str, Any] = {"multiscales": [scales if version == "0.5" else {"version": version, **scales}]}
    if not layer.labels:
        found["omero"] = {"name": title, "channels": _channels(layer, smallest)}
    if (image := source_image(layer.name)) is not None:
        label: dict[str, Any] = {} if version == "0.5" else {"version": version}
        found["image-label"] = {**label, "source": {"image": image}}
    return attributes(found, version)


def attributes(found: Mapping[str, Any], version: str) -> dict[str, Any]:
    """OME's objects where the version has them."""
    return {"ome": {"version": version, **found}} if version == "0.5" else dict(found)


def source_image(name: str) -> str | None:
    """The way from a label image to its image, None for what is no label image."""
    return "../../" if "labels" in name.split("/")[:-1] else None


def _multiscales(layer: Layer, title: str) -> dict[str, Any]:
    """Scale and translation of each level, in the units of the axes; those of unknown size are in pixels."""
    axes, described = layer.axes, []
    for a in axes:
        kind, unit = UNITS.get(a, ("channel", ""))
        known = a != "c" and layer.pixel_size.get(a) is not None
        described.append({"name": a, "type": kind, **({"unit": unit} if known else {})})
    size = [1.0 if a == "c" else float(layer.pixel_size.get(a) or 1.0) for a in axes]
    start = [0 if a == "c" else layer.origin.get(a, 0) for a in axes]
    datasets = []
    for i, level in enumerate(layer.levels):
        # the mean of 2 x 2 pixels lies half a pixel further in, a sample where it was
        inside = [0.0 if layer.labels else (f - 1) / 2 for f in level.factors]
        datasets.append(
            {
                "path": str(i),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [s * f for s, f in zip(size, level.factors, strict=True)]},
                    {
                        "type": "translation",
                        "translation": [s * (o + j) for s, o, j in zip(size, start, inside, strict=True)],
                    },
                ],
            }
        )
    return {"name": title, "axes": described, "datasets": datasets, "type": "nearest" if layer.labels else "mean"}


def _channels(layer: Layer, smallest: DurableArray) -> list[dict[str, Any]]:
    """Names, and display limits from the smallest level so that viewers do not open a black image."""
    count = layer.shape[layer.axes.index("c")] if "c" in layer.axes else 1
    names = [*layer.channels[:count], *(f"channel {i}" for i in range(len(layer.channels), count))]
    if not layer.channels and count == 1:
        names = [layer.title or "intensity"]
    found = []
    for i, name in enumerate(names):
        part = tuple(
            slice(i, i + 1) if a == "c" else _middle(n, 4 if a in "tz" else SMALLEST_LEVEL)
            for a, n in zip(layer.axes, smallest.shape, strict=True)
        )
        values = smallest.read(part).astype(np.float64).ravel()
        values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)  # JSON knows no infinity
        low, high = (float(v) for v in percentiles(values, (0.1, 99.9)))
        window = {
            "start": low,
            "end": high if high > low else low + 1,
            "min": float(values.min()),
            "max": float(values.max()),
        }
        color = "FFFFFF" if count == 1 else COLORS[i % len(COLORS)]
        found.append({"label": name, "color": color, "active": True, "window": window})
    return found


def _middle(size: int, most: int) -> slice:
    """At most `most` pixels from the middle of an axis: enough for display limits, whatever the size of the image."""
    start = max(0, (size - most) // 2)
    return slice(start, min(size, start + most))


def group_metadata(layers: Sequence[Layer], version: str) -> dict[str, dict[str, Any]]:
    """The attributes of the groups that are no images, by path: the list of images, the lists of labels.

    Several images are listed as bioformats2raw does it (https://ngff.openmicroscopy.org/0.5/#bf2raw-layout): the root
    says `bioformats2raw.layout`, the group OME names the images in `series`.
    """
    found: dict[str, dict[str, Any]] = {}
    names = [layer.name for layer in layers if source_image(layer.name) is None]
    if "" not in names:
        found[""] = attributes({"bioformats2raw.layout": 3}, version)
        found["OME"] = attributes({"series": names}, version)
    for layer in layers:
        if source_image(layer.name) is not None:
            folder, _, name = layer.name.rpartition("/")
            listed = found.setdefault(folder, attributes({"labels": []}, version))
            (listed["ome"] if version == "0.5" else listed)["labels"].append(name)
    return found
