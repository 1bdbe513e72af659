"""The result as OME-TIFF: one sequential pass over the finished blocks, pages in OME order, pyramid in SubIFDs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.image import PixelSize

if TYPE_CHECKING:
    from .store import DurableArray

STRIP_BYTES = 2**18
NAMESPACE = "voidzoo"


def write_tiff(
    path: Path,
    axes: str,
    levels: Sequence[DurableArray],
    name: str,
    pixel_size: PixelSize,
    channels: Sequence[str],
    ours: Mapping[str, Any],
) -> None:
    """Stream the levels of a staged result (axes in OME order) into an OME-TIFF, BigTIFF where it may exceed 4 GB.

    Strips and deflate, so that plain ImageJ opens it; no more than one strip of pages is in memory.
    """
    import tifffile

    from ..zoo.version import __version__

    full = levels[0]
    nbytes = int(np.prod(full.shape, dtype=np.int64)) * full.dtype.itemsize
    y, x = (pixel_size.get(a) for a in "yx")
    resolution = {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"} if x and y else {}
    with tifffile.TiffWriter(path, bigtiff=nbytes * 4 // 3 > 2**32 - 2**25, ome=True) as tiff:
        for level, array in enumerate(levels):
            rows = max(1, STRIP_BYTES // (array.shape[-1] * array.dtype.itemsize))
            tiff.write(
                _strips(array, rows),
                shape=array.shape,
                dtype=array.dtype,
                photometric="minisblack",
                compression="zlib",
                rowsperstrip=rows,
                software=f"voidzoo {__version__}",
                subifds=len(levels) - 1 if level == 0 else None,
                subfiletype=1 if level else 0,
                metadata=_metadata(axes, name, pixel_size, channels, ours) if level == 0 else None,
                **(resolution if level == 0 else {}),
            )


def _strips(array: DurableArray, rows: int) -> Iterator[bytes]:
    """The encoded strips of all pages in file order. Chunks are decoded once: a row of chunks is held at a time."""
    from imagecodecs import zlib_encode

    height, width = array.shape[-2:]
    held = -(-array.grid[-2] // rows) * rows  # whole strips, whole rows of chunks where they are powers of two
    with ThreadPoolExecutor(2, thread_name_prefix="voidzoo-strip") as pool:
        for page in product(*(range(n) for n in array.shape[:-2])):
            lead = tuple(slice(i, i + 1) for i in page)
            for start in range(0, height, held):
                stop = min(start + held, height)
                part = array.read((*lead, slice(start, stop), slice(0, width))).reshape(stop - start, width)
                strips = [part[i : i + rows] for i in range(0, len(part), rows)]
                yield from pool.map(lambda strip: bytes(zlib_encode(strip.tobytes(), level=6)), strips)


def _metadata(
    axes: str, name: str, pixel_size: PixelSize, channels: Sequence[str], ours: Mapping[str, Any]
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": axes.upper(), "Name": name}
    for a in "xyz":
        if a in axes and (size := pixel_size.get(a)):
            metadata[f"PhysicalSize{a.upper()}"] = size
            metadata[f"PhysicalSize{a.upper()}Unit"] = "µm"
    if "t" in axes and pixel_size.t:
        metadata["TimeIncrement"] = pixel_size.t
        metadata["TimeIncrementUnit"] = "s"
    if channels:
        metadata["Channel"] = {"Name": list(channels)}
    metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "provenance": json.dumps(ours)}
    return metadata


def read_provenance(path: Path) -> dict[str, Any] | None:
    """What voidzoo wrote about a result, None for files of others."""
    from xml.etree import ElementTree

    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            xml = tiff.ome_metadata
        if not xml:
            return None
        for element in ElementTree.fromstring(xml).iter():
            if element.tag.endswith("}M") and element.get("K") == "provenance":
                return json.loads(element.text or "")
    except (OSError, ValueError, IndexError, ElementTree.ParseError):
        return None
    return None
