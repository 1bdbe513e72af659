"""What a TIFF says beside its pixels: pixel sizes in um and s, channel names, its kind. Missing means None."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from .units import micrometres, scaled, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

Sizes = dict[str, float | None]

_KINDS = {
    "ome": "OME-TIFF", "imagej": "ImageJ TIFF", "lsm": "Zeiss LSM", "stk": "MetaMorph STK",
    "mmstack": "Micro-Manager TIFF", "fluoview": "FluoView TIFF", "scanimage": "ScanImage TIFF",
    "svs": "Aperio SVS", "ndpi": "Hamamatsu NDPI", "scn": "Leica SCN", "qpi": "PerkinElmer QPI",
    "sis": "Olympus SIS", "nih": "NIH Image TIFF",
}  # fmt: skip

# a printer's dots per inch (72 ... 1200) are no pixel size: coarser than this is not a microscope's
_COARSEST_UM = 20.0


def kind(tif: Any, series: Any) -> str:
    """The name of the format, e.g. `"OME-TIFF"`; a plain file is `"TIFF"` or `"BigTIFF"`."""
    return _KINDS.get(series.kind, "BigTIFF" if tif.is_bigtiff else "TIFF")


def sizes(tif: Any, series: Any, image: ET.Element | None) -> Sizes:
    """Pixel sizes by letter, um (t: s)."""
    if series.kind == "ome":
        return _ome_sizes(image)
    if series.kind == "imagej" or (tif.is_imagej and series.kind in ("uniform", "generic")):
        return _imagej_sizes(series.keyframe, tif.imagej_metadata or {})
    if series.kind == "lsm":
        meta = tif.lsm_metadata or {}
        found: Sizes = {a: scaled(meta.get(f"VoxelSize{a.upper()}"), 1e6) for a in "zyx"}  # stored in metres
        return {**found, "t": scaled(meta.get("TimeIntervall"), 1.0)}
    return _tag_sizes(series.keyframe)


def channels(series: Any, image: ET.Element | None) -> tuple[str, ...]:
    """Channel names: of OME-XML, or the colours of RGB and CMYK samples; empty where the file has none."""
    keyframe = series.keyframe
    names = _ome_channels(image) if image is not None else []
    if "S" not in series.axes:
        return tuple(names)
    count = series.shape[series.axes.index("S")]
    photometric = getattr(keyframe.photometric, "name", "")
    colours = {
        "RGB": ("red", "green", "blue"),
        "YCBCR": ("red", "green", "blue"),
        "SEPARATED": ("cyan", "magenta", "yellow", "black"),
    }
    colour = list(colours.get(photometric, ()))
    if not colour or len(colour) > count:
        return tuple(names) if len(names) == count else ()
    extra = tuple(getattr(keyframe, "extrasamples", ()) or ())
    for i in range(count - len(colour)):
        alpha = i < len(extra) and int(extra[i]) in (1, 2)
        colour.append("alpha" if alpha else f"sample {len(colour)}")
    return tuple(colour)


def notes(tif: Any, series: Any) -> list[str]:
    """What the pixels do not say by themselves."""
    photometric = getattr(series.keyframe.photometric, "name", "")
    resolution = series.keyframe.tags.valueof(282)
    if series.kind == "imagej" and not (tif.imagej_metadata or {}).get("unit") and resolution not in (None, (1, 1)):
        per = resolution[0] / resolution[1] if resolution[1] else 0
        return [
            f"ImageJ saved a scale of {per:g} pixels without a unit: not taken as a pixel size. --pixel-size gives it."
        ]
    if photometric == "PALETTE":
        return ["the pixels are indices into a colour table, not intensities"]
    if photometric == "MINISWHITE":
        return ["the file is marked min-is-white: its low values are meant to be shown bright"]
    return []


def ome_image(tif: Any, index: int) -> ET.Element | None:
    """The OME-XML `Image` of series `index`; None where there is no OME-XML or the two do not fit."""
    text = tif.ome_metadata
    if not text:
        return None
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return None
    images = [element for element in root if element.tag.endswith("}Image") or element.tag == "Image"]
    # tifffile leaves out images without pixels
    images = [image for image in images if any(_is(e, "TiffData") for p in image if _is(p, "Pixels") for e in p)]
    return images[index] if len(images) == len(tif.series) else None


def _is(element: ET.Element, tag: str) -> bool:
    return element.tag.rpartition("}")[2] == tag


def _pixels(image: ET.Element | None) -> ET.Element | None:
    return None if image is None else next((e for e in image if _is(e, "Pixels")), None)


def _ome_sizes(image: ET.Element | None) -> Sizes:
    pixels = _pixels(image)
    if pixels is None:
        return {}
    found: Sizes = {}
    for letter in "zyx":
        key = f"PhysicalSize{letter.upper()}"
        # the schema's default units are um and s
        found[letter] = scaled(pixels.get(key), micrometres(pixels.get(key + "Unit", "um")))
    found["t"] = scaled(pixels.get("TimeIncrement"), seconds(pixels.get("TimeIncrementUnit", "s")))
    return found


def _ome_channels(image: ET.Element) -> list[str]:
    pixels = _pixels(image)
    if pixels is None:
        return []
    names = [e.get("Name") for e in pixels if _is(e, "Channel")]
    if not any(names):
        return []
    return [name or f"channel {i}" for i, name in enumerate(names)]


def _per_pixel(keyframe: Any, code: int, unit_um: float | None) -> float | None:
    """The size of a pixel from a resolution tag, which counts pixels in a unit."""
    value = keyframe.tags.valueof(code)
    if not isinstance(value, tuple) or len(value) != 2 or not value[0]:
        return None
    return scaled(value[1] / value[0], unit_um)


def _imagej_sizes(keyframe: Any, meta: Mapping[str, Any]) -> Sizes:
    unit = meta.get("unit")
    um = {a: micrometres(meta.get(f"{a}unit", unit)) for a in "zyx"}
    found: Sizes = {
        "x": _per_pixel(keyframe, 282, um["x"]),
        "y": _per_pixel(keyframe, 283, um["y"]),
        "z": scaled(meta.get("spacing"), um["z"]),
        "t": scaled(meta.get("finterval"), seconds(meta.get("tunit", "s"))),
    }
    return found


def _tag_sizes(keyframe: Any) -> Sizes:
    unit_um = {2: 25400.0, 3: 10000.0}.get(int(keyframe.tags.valueof(296, 2) or 2))
    found: Sizes = {}
    for letter, code in (("x", 282), ("y", 283)):
        size = _per_pixel(keyframe, code, unit_um)
        found[letter] = size if size is not None and size < _COARSEST_UM else None
    return found
