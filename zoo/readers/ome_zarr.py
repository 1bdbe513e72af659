"""OME-Zarr 0.1 to 0.5 as an `Image`: axes, um and s, channel names and the pyramid from its metadata."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..axes import ORDER, describe
from ..errors import AxesError, ImageError, VoidzooError
from .ordered import FileArray, Found, assemble
from .units import micrometres, scaled, seconds
from .zarr_array import ZarrArray
from .zarr_node import is_url, node_name, open_node

if TYPE_CHECKING:
    from ..image import Image

_MARKS = ("zarr.json", ".zgroup", ".zattrs", ".zarray")


def is_zarr(path: Path) -> bool:
    """True for a folder that is a zarr group or array."""
    return path.is_dir() and any((path / mark).exists() for mark in _MARKS)


def open_zarr(path: str, *, axes: str | None, series: int | None) -> Image:
    """The image of an OME-Zarr group, of a group inside one, or of a zarr array; `path` is a folder or a URL.

    Raises ImageError for a broken store or one without an image, AxesError for unknown axes.
    """
    try:
        return _open_node(path, axes, series)
    except VoidzooError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ImageError(
            f"{node_name(path)} has metadata that cannot be followed.",
            f"{path}: {type(error).__name__}: {error}",
            "the store is damaged or no OME-Zarr: write it again",
        ) from error


def _open_node(path: str, axes: str | None, series: int | None) -> Image:
    node = open_node(path, "node")
    if _is_array(node):
        return _open_level(path, node, axes)
    attrs = _ome(node)
    scales = attrs.get("multiscales")
    name = node_name(path)
    if scales:
        index = series or 0
        if not 0 <= index < len(scales):
            raise ImageError(
                f"{name} has no series {series}.", f"it holds {len(scales)}", f"--series 0 to {len(scales) - 1}"
            )
        notes = []
        if series is None and len(scales) > 1:
            notes.append(f"{name} holds {len(scales)} series; this is series 0. --series N reads another.")
        return assemble(_found(path, node, attrs, scales[index], notes), axes)
    if "bioformats2raw.layout" in attrs:
        return _open_bioformats2raw(path, node, axes, series)
    children = _children(node) if not is_url(path) else []
    if "plate" in attrs:
        wells = [w["path"] for w in attrs["plate"].get("wells", [])]
        raise ImageError(
            f"{name} is a plate of {len(wells)} wells, not one image.",
            ", ".join(wells[:12]),
            f"{path}/{(wells or ['A/1'])[0]}/0",
        )
    raise ImageError(
        f"{name} is a zarr group without an image: it has no multiscales metadata.",
        f"it holds {', '.join(children[:12]) or 'nothing'}",
        f"{path}/{children[0]}" if children else "",
    )


def _children(group: Any) -> list[str]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # files beside the zarr ones, e.g. tables
        return sorted(str(key) for key, _ in group.members())


def _held(path: str, array: Any) -> ZarrArray:
    """The array at `path` as a `FileArray`."""
    if is_url(path):
        text = json.dumps(array.metadata.to_dict(), sort_keys=True, default=str)
        return ZarrArray(path, array, {"url": path, "sha256": hashlib.sha256(text.encode()).hexdigest()})
    metadata = next((p for mark in ("zarr.json", ".zarray") if (p := Path(path) / mark).is_file()), Path(path))
    status = metadata.stat()
    return ZarrArray(path, array, {"bytes": status.st_size, "changed": status.st_mtime_ns})


def _is_array(node: Any) -> bool:
    return hasattr(node, "shape")


def _ome(node: Any) -> Mapping[str, Any]:
    """The OME metadata: under `ome` since 0.5, at the top before."""
    attrs = dict(node.attrs)
    inner = attrs.get("ome")
    return inner if isinstance(inner, Mapping) else attrs


def _found(path: str, group: Any, attrs: Mapping[str, Any], scale: Mapping[str, Any], notes: Sequence[str]) -> Found:
    name = node_name(path)
    try:
        keys = [str(d["path"]) for d in scale["datasets"]]
        arrays = [(key, group[key]) for key in keys]
    except (KeyError, TypeError) as error:
        raise ImageError(
            f"{name}: its metadata names a level that is not there: {error}.",
            path,
            "the store is damaged: copy it again",
        ) from error
    levels: list[FileArray] = [_held(f"{path.rstrip('/')}/{key}", array) for key, array in arrays]
    version = str(attrs.get("version") or scale.get("version") or "0.4")
    full = levels[0]
    dims, units = _axes(scale, version, len(full.shape), name)
    factors = _scale(scale, 0, len(full.shape))
    sizes = {d: _size(d, f, u) for d, f, u in zip(dims, factors or [], units, strict=False) if d in "tzyx"}
    notes = list(notes)
    unitless = [
        f"{d} {f:g}" for d, f, u in zip(dims, factors or [], units, strict=False) if d in "zyx" and not u and f != 1
    ]
    if unitless:
        notes.append(
            f"{name} has a scale without a unit ({', '.join(unitless)}): no pixel size. --pixel-size gives it."
        )
    channels = [
        str(c.get("label") or f"channel {i}") for i, c in enumerate((attrs.get("omero") or {}).get("channels") or [])
    ]
    return Found(
        name=name,
        path=None if is_url(path) else path,
        kind=f"OME-Zarr {version}",
        dims=dims,
        levels=levels,
        sizes=sizes,
        channels=channels,
        notes=notes,
        metadata=_technical(arrays[0][1], len(levels)),
    )


def _axes(scale: Mapping[str, Any], version: str, ndim: int, name: str) -> tuple[str, list[str | None]]:
    """One letter a dimension, and units. Before 0.3 the axes are tczyx by specification; 0.3 has bare names."""
    axes = scale.get("axes")
    if axes is None:
        fixed = version in ("0.1", "0.2") and ndim == 5
        return (ORDER if fixed else "?" * ndim), [None] * ndim
    dims, units = "", []
    for axis in axes:
        entry = axis if isinstance(axis, Mapping) else {"name": axis}
        letter = str(entry.get("name", "")).lower()
        letter = {"time": "t", "channel": "c"}.get(str(entry.get("type")), letter)
        dims += letter if letter in tuple(ORDER) else "?"
        units.append(entry.get("unit"))
    if len(dims) != ndim:
        raise AxesError(
            f"{name}: its metadata names {len(dims)} axes, its pixels have {ndim}.",
            mend="the store is mislabelled: write it again",
        )
    return dims, units


def _scale(scale: Mapping[str, Any], level: int, ndim: int) -> list[float] | None:
    """The scale of a level times that of all levels; None where there is none."""
    total, any_ = np.ones(ndim), False
    for transforms in (
        scale["datasets"][level].get("coordinateTransformations"),
        scale.get("coordinateTransformations"),
    ):
        for transform in transforms or []:
            if transform.get("type") == "scale" and len(transform.get("scale", ())) == ndim:
                total, any_ = total * np.asarray(transform["scale"], dtype=float), True
    return [float(v) for v in total] if any_ else None


def _size(letter: str, factor: float, unit: str | None) -> float | None:
    return scaled(factor, seconds(unit) if letter == "t" else micrometres(unit))


def _technical(array: Any, levels: int) -> dict[str, Any]:
    codecs = [type(codec).__name__.removesuffix("Codec").lower() for codec in array.compressors]
    return {
        "compression": " + ".join(codecs) or "none",
        "zarr_format": int(array.metadata.zarr_format),
        "levels": levels,
        "shards": tuple(array.shards) if getattr(array, "shards", None) else None,
    }


def _open_level(path: str, array: Any, axes: str | None) -> Image:
    """An array: a level of the OME-Zarr around it, else a plain zarr array with its dimension names or the user's."""
    parent, _, key = path.rstrip("/").rpartition("/")
    group = _group_around(parent)
    attrs = {} if group is None else _ome(group)
    for scale in attrs.get("multiscales") or []:
        for number, dataset in enumerate(scale.get("datasets", ())):
            if str(dataset.get("path")) == key:
                only = {**scale, "datasets": [dataset]}
                notes = [f"level {number} of {node_name(parent)}"] if number else []
                found = _found(parent, group, attrs, only, notes)
                found.name, found.path = node_name(path), None if is_url(path) else path
                return assemble(found, axes)
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or ()
    held = _held(path, array)
    dims = "".join(str(n).lower() if str(n).lower() in tuple(ORDER) else "?" for n in names)
    dims = dims if len(dims) == len(held.shape) else "?" * len(held.shape)
    where = "a zarr array outside of an OME-Zarr group has no axes"
    place = None if is_url(path) else path
    return assemble(
        Found(node_name(path), place, "zarr", dims, [held], metadata=_technical(array, 1), where=where), axes
    )


def _group_around(path: str) -> Any:
    """The zarr group at `path`, None where there is none."""
    if is_url(path):
        try:
            node = open_node(path, "node")
        except ImageError:
            return None
    elif is_zarr(Path(path)) and not (Path(path) / ".zarray").exists():
        node = open_node(path, "node")
    else:
        return None
    return None if _is_array(node) else node


def _open_bioformats2raw(path: str, group: Any, axes: str | None, series: int | None) -> Image:
    """A store of several images: in the groups that OME/series names, or 0, 1, ... as bioformats2raw writes them."""
    named = _ome(group["OME"]).get("series") if "OME" in group else None
    names = [str(n) for n in named or ()]
    while not named and str(len(names)) in group:
        names.append(str(len(names)))
    count = len(names)
    index = series or 0
    if not 0 <= index < count:
        raise ImageError(
            f"{node_name(path)} has no series {index}.", f"it holds {count}", f"--series 0 to {max(count - 1, 0)}"
        )
    child = group[names[index]]
    attrs = _ome(child)
    if not attrs.get("multiscales"):
        raise ImageError(
            f"{node_name(path)}/{names[index]} has no multiscales metadata.",
            path,
            "the store is damaged: convert it again",
        )
    notes = []
    if series is None and count > 1:
        others = [f"{i}: {_text(group[names[i]])}" for i in range(1, min(count, 7))]
        notes.append(
            f"{node_name(path)} holds {count} series; this is series 0. "
            f"Others: {'; '.join(others)}. --series N reads one."
        )
    return assemble(_found(f"{path.rstrip('/')}/{names[index]}", child, attrs, attrs["multiscales"][0], notes), axes)


def _text(group: Any) -> str:
    scale = (_ome(group).get("multiscales") or [{}])[0]
    array = group[scale["datasets"][0]["path"]]
    dims, _ = _axes(scale, "0.4", array.ndim, "")
    return f"{describe(dims, array.shape)}, {array.dtype}"
