"""A TIFF file as an `Image`: which series, its axes, its pyramid, what it says about itself."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any

from ..axes import describe
from ..errors import ImageError
from . import tiff_metadata as meta
from .letters import shape_text
from .ordered import Found, assemble, file_stamp
from .tiff import TiffArray
from .tiff_file import opened
from .tiff_layout import Layout, layouts
from .tiff_list import PlainSeries

if TYPE_CHECKING:
    from pathlib import Path

    from ..image import Image

ENDINGS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".lsm", ".stk", ".svs", ".scn")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(path: Path) -> bool:
    """True for the first bytes of a TIFF, or, where these are others, for its ending: then it is a broken one."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC or path.suffix.lower() in ENDINGS


def open_tiff(path: Path, *, axes: str | None, series: int | None) -> Image:
    """The image of a TIFF file, lazy. Raises ImageError for a broken or cut file, AxesError for unknown axes."""
    name, full = path.name, str(path.resolve())
    stamp = file_stamp(full)
    with opened(full) as (tif, messages):
        index = _choose(name, tif.series, series)
        chosen = tif.series[index]
        _refuse_cut(name, full, tif, chosen)
        levels = layouts(tif, index, full)
        image = meta.ome_image(tif, index) if chosen.kind == "ome" else None
        found = Found(
            name=name,
            path=full,
            kind=meta.kind(tif, chosen),
            dims=_dims(chosen),
            levels=[TiffArray(full, layout, series=index, level=i, stamp=stamp) for i, layout in enumerate(levels)],
            sizes=meta.sizes(tif, chosen, image),
            channels=meta.channels(chosen, image),
            notes=[
                *_other_series(name, tif.series, index, series),
                *meta.notes(tif, chosen),
                *_missing(levels[0], messages),
            ],
            metadata=_technical(tif, chosen, levels[0]),
            where=_about(tif, chosen),
        )
    return assemble(found, axes)


def _choose(name: str, found: list[Any], series: int | None) -> int:
    if series is not None and not 0 <= series < len(found):
        raise ImageError(
            f"{name} has no series {series}.",
            "it holds " + "; ".join(_series_text(i, s) for i, s in enumerate(found[:12])),
            f"--series 0 to {len(found) - 1}" if len(found) > 1 else "leave --series out",
        )
    return series or 0


def _series_text(index: int, series: Any) -> str:
    title = f"{index}" + (f" ({series.name})" if series.name else "")
    return f"{title}: {describe(series.axes.lower(), series.shape)}, {series.dtype}"


def _other_series(name: str, found: list[Any], index: int, asked: int | None) -> list[str]:
    if asked is not None or len(found) == 1:
        return []
    others = [_series_text(i, s) for i, s in enumerate(found) if i != index]
    more = f"; and {len(others) - 6} more" if len(others) > 6 else ""
    return [
        f"{name} holds {len(found)} series; this is series {index}. "
        f"Others: {'; '.join(others[:6])}{more}. --series N reads one."
    ]


def _dims(series: Any) -> str:
    """tifffile's letters as ours: unknown ones are `?`, dimensions that tifffile squeezes are `-`."""
    letters, shape = series.get_axes(False), series.get_shape(False)
    shown = list(series.axes)
    dims = ""
    for letter, size in zip(letters, shape, strict=True):
        if shown and shown[0] == letter and (size != 1 or len(letters) == len(series.axes) or letter in "XY"):
            shown.pop(0)
            dims += letter.lower() if letter in "TCZYXS" else "?"
        else:
            dims += "-"
    return dims


def _about(tif: Any, series: Any) -> str:
    if tif.is_imagej and "I" in series.axes:
        return "ImageJ saved it as a plain stack, without slices, frames or channels (Image > Properties sets them)"
    if tif.is_ome and series.kind != "ome":
        return "it has OME-XML, but that is broken or leads to another file"
    other = [letter for letter in series.axes if letter not in "TCZYXSIQ"]
    return f"it calls them {series.axes}" if other else "its pages are not labelled"


def _missing(layout: Layout, messages: list[str]) -> list[str]:
    if not layout.missing:
        return []
    gone = sorted({name for text in messages for name in re.findall(r"failed to read '([^']+)'", text)})
    files = f" ({', '.join(gone)} cannot be read)" if gone else ""
    return [f"{layout.missing} of {len(layout.pages)} planes of the metadata are not there{files}; they read as zeros"]


def _refuse_cut(name: str, path: str, tif: Any, series: Any) -> None:
    """Raise ImageError where tifffile went on after damage that hides pages, e.g. an ImageJ stack that was cut."""
    images = (tif.imagej_metadata or {}).get("images", 1) if tif.is_imagej else 1
    regular = series.kind in ("ome", "uniform", "generic", "shaped", "imagej")
    if tif.is_imagej and series.kind in ("uniform", "generic") and images > len(tif.pages):
        promise = f"ImageJ promises {images} planes"
    elif regular and series.dataoffset is None and _list_is_broken(tif, series):
        promise = "the list of pages leads nowhere"
    else:
        return
    raise ImageError(
        f"{name} is cut or damaged: {promise}, "
        f"the file has {tif.filehandle.size} bytes and {len(tif.pages)} readable pages.",
        path,
        "copy or export it again from where it came",
    )


def _list_is_broken(tif: Any, series: Any) -> bool:
    """True where the last readable page names a next one: tifffile stops there, and only logs it."""
    if isinstance(series, PlainSeries):
        return series.broken
    offsets = {page.offset for page in series if page is not None} | {tif.pages.first.offset}
    file, form = tif.filehandle, tif.tiff
    if min(offsets) <= 0 or form.is_ndpi:
        return False  # pages that lie in no list
    last = tif.pages[len(tif.pages) - 1].offset
    try:
        file.seek(last)
        count = struct.unpack(form.tagnoformat, file.read(form.tagnosize))[0]
        file.seek(last + form.tagnosize + count * form.tagsize)
        following = struct.unpack(form.offsetformat, file.read(form.offsetsize))[0]
    except struct.error:
        return True
    return bool(following and following not in offsets)  # some writers close the list to a ring


def _technical(tif: Any, series: Any, layout: Layout) -> dict[str, Any]:
    key = series.keyframe
    return {
        "compression": "none"
        if key.compression == 1
        else getattr(key.compression, "name", str(key.compression)).lower(),
        "tiled": bool(key.is_tiled),
        "bigtiff": bool(tif.is_bigtiff),
        "byteorder": "big" if tif.byteorder == ">" else "little",
        "pages": len(layout.pages) if layout.run is None else len(series),
        "series": len(tif.series),
        "stored_shape": shape_text(series.shape),
    }
