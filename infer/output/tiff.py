"""The result as OME-TIFF: one sequential pass over the finished arrays, pages in OME order, pyramids in SubIFDs.

The same pixels and the same `ours` give the same bytes: no times, and an UUID that is a hash of what the file holds.
"""

from __future__ import annotations

import json
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DtypeError
from .layer import Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .array import DurableArray, Part

STRIP_BYTES = 2**18
"""What is compressed at once."""
MEMORY = 2**26
"""Bytes of decoded pages that are held at once."""
DEFLATE = 1
"""libdeflate's level. On images it packs as well as level 6 of zlib, in a tenth of the time: 9 to 15 ms for a plane of
1024 x 1024 uint16."""
DEFLATE_LABELS = 6
"""Labels pack half as well again, in the time that images take."""
BIG = 2**32 - 2**25
"""Files that may grow beyond this are BigTIFF."""
MOST_POSITIONS = 10_000
"""With more planes than this their positions are not listed: they would be the larger part of the description."""
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
"""PixelType of http://www.openmicroscopy.org/Schemas/OME/2016-06, without bits and complex numbers."""
NAMESPACE = "voidzoo"
_SERIES = uuid.UUID("8d2a4a8c-0f0b-5d47-9d6c-3b1a6f6b7b51")


def write_tiff(
    path: Path,
    layers: Sequence[Layer],
    levels: Sequence[Sequence[DurableArray]],
    title: str,
    ours: Mapping[str, Any],
    *,
    threads: int = 2,
    memory: int = MEMORY,
) -> None:
    """Stream staged arrays into one OME-TIFF, a series for each layer; BigTIFF where the sum may exceed 4 GB.

    levels: of each layer, full size first. title: the name of a layer that has none. ours: provenance, JSON-able,
    without anything that differs from run to run. Strips and deflate, so that plain ImageJ opens it. threads compress;
    no more than about `memory` bytes of decoded pages and a few strips are held. Raises OSError, and DtypeError
    as `check_tiff`.
    """
    import tifffile

    from ...zoo.version import __version__

    check_tiff(layers)
    creator = f"voidzoo {__version__}"
    described = [_metadata(layer, layer.title or title) for layer in layers]
    described[0]["MapAnnotation"] = {"Namespace": NAMESPACE, "provenance": json.dumps(ours, sort_keys=True)}
    facts = [described, [(layer.shape, layer.dtype, len(layer.levels)) for layer in layers]]
    described[0]["UUID"] = str(uuid.uuid5(_SERIES, json.dumps(facts, sort_keys=True)))
    described[0]["Creator"] = creator
    threads = max(1, threads)
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="voidzoo-strip") as pool,
        tifffile.TiffWriter(path, bigtiff=_size(layers) > BIG, ome=True) as tiff,
    ):
        for layer, arrays, metadata in zip(layers, levels, described, strict=True):
            for level, array in enumerate(arrays):
                rows = _rows(array)
                tiff.write(
                    _strips(array, rows, DEFLATE_LABELS if layer.labels else DEFLATE, pool, threads, memory),
                    shape=array.shape,
                    dtype=array.dtype,
                    photometric="minisblack",
                    compression="zlib",
                    rowsperstrip=rows,
                    software=creator,
                    subifds=len(arrays) - 1 if level == 0 else None,
                    subfiletype=1 if level else 0,
                    metadata=metadata if level == 0 else None,
                    **(_resolution(layer) if level == 0 else {}),
                )


def check_tiff(layers: Sequence[Layer]) -> None:
    """Raises DtypeError for numbers that OME-TIFF does not know."""
    for layer in layers:
        if layer.dtype not in DTYPES:
            raise DtypeError(
                f"OME-TIFF has no {layer.dtype}.",
                mend=f"--dtype {'uint16' if layer.dtype[0] in 'ui' else 'float32'}, or a result that ends in .ome.zarr",
            )


def _size(layers: Sequence[Layer]) -> int:
    """The most bytes that the file can have: pixels that do not compress, and 1 kB a page for its tags."""
    total = 0
    for layer in layers:
        strips = layer.nbytes // STRIP_BYTES
        pages = sum(prod(level.shape[:-2]) for level in layer.levels)
        total += layer.nbytes * 1001 // 1000 + 32 * strips + 1024 * pages
    return total


def _resolution(layer: Layer) -> dict[str, Any]:
    y, x = (layer.pixel_size.get(a) for a in "yx")
    return {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"} if x and y else {}


def _rows(array: DurableArray) -> int:
    """Rows of a strip: about STRIP_BYTES, and such that strips and rows of chunks end together."""
    most = max(1, STRIP_BYTES // (array.shape[-1] * array.dtype.itemsize))
    unit = array.grid[-2]
    if most >= unit:
        return min(unit * (most // unit), array.shape[-2])
    return -(-unit // -(-unit // most))


def _strips(
    array: DurableArray, rows: int, level: int, pool: ThreadPoolExecutor, threads: int, memory: int
) -> Iterator[bytes]:
    """The encoded strips of all pages in file order; the next slab is decoded meanwhile."""
    from imagecodecs import deflate_encode

    def encode(strip: NDArray[Any]) -> bytes:
        raw: Any = np.ascontiguousarray(strip)
        packed: Any = deflate_encode(raw, level=level)
        return packed

    waiting: deque[Future[bytes]] = deque()
    for slab in _ahead(array, _slabs(array, rows, memory // 2), pool):
        for plane in slab.reshape(-1, *slab.shape[-2:]):
            for start in range(0, len(plane), rows):
                waiting.append(pool.submit(encode, plane[start : start + rows]))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _ahead(array: DurableArray, slabs: Iterator[Part], pool: ThreadPoolExecutor) -> Iterator[NDArray[Any]]:
    """The pixels of slabs, each read while the one before is encoded."""
    following: Future[NDArray[Any]] | None = None
    for part in slabs:
        following, now = pool.submit(array.read, part), following
        if now is not None:
            yield now.result()
    if following is not None:
        yield following.result()


def _slabs(array: DurableArray, rows: int, memory: int) -> Iterator[Part]:
    """The parts of an array, in the order of the file, that are decoded at once: each chunk as seldom as memory allows.

    Where the planes of a row of chunks fit, they are held together and every chunk is decoded once. Else as many planes
    as fit; else rows of one plane, whole strips.
    """
    shape, grid, last = array.shape, array.grid, len(array.shape) - 2
    for axis in range(last + 1):
        inner = prod(shape[axis + 1 :]) * array.dtype.itemsize
        fit = min(memory // inner, max(rows, grid[axis]) if axis == last else grid[axis])
        if axis == last:
            fit = max(1, fit // rows) * rows
        elif grid[axis] > 1 and fit >= 1:
            break
    for before in product(*(range(n) for n in shape[:axis])):
        for start, stop in _cuts(shape[axis], grid[axis] if axis < last else shape[axis], fit):
            yield (
                *(slice(i, i + 1) for i in before),
                slice(start, stop),
                *(slice(0, n) for n in shape[axis + 1 :]),
            )


def _cuts(size: int, unit: int, most: int) -> Iterator[tuple[int, int]]:
    """Cut 0:size at all multiples of `unit`, and in between so that no piece is longer than `most`."""
    for low in range(0, size, unit):
        high = min(low + unit, size)
        for start in range(low, high, most):
            yield start, min(start + most, high)


def _metadata(layer: Layer, name: str) -> dict[str, Any]:
    """What tifffile makes an OME Image of."""
    axes = layer.axes
    metadata: dict[str, Any] = {"axes": axes.upper(), "Name": name}
    for a in "xyz":
        if a in axes and (size := layer.pixel_size.get(a)):
            metadata[f"PhysicalSize{a.upper()}"] = size
            metadata[f"PhysicalSize{a.upper()}Unit"] = "µm"
    if "t" in axes and layer.pixel_size.t:
        metadata["TimeIncrement"] = layer.pixel_size.t
        metadata["TimeIncrementUnit"] = "s"
    if layer.channels:
        metadata["Channel"] = {"Name": list(layer.channels)}
    if plane := _positions(layer):
        metadata["Plane"] = plane
    return metadata


def _positions(layer: Layer) -> dict[str, list[Any]]:
    """Where each plane of a part lies in the full image, in um: of its first pixel, by axis of known pixel size."""
    shape = layer.shape[:-2]
    found: dict[str, list[Any]] = {}
    if not any(layer.origin.get(a) for a in "zyx") or prod(shape) > MOST_POSITIONS:
        return found
    for a in "xyz":
        size = layer.pixel_size.get(a)
        if a not in layer.axes or not size:
            continue
        at = layer.axes.index(a)
        first = layer.origin.get(a, 0)
        indices = [first + (index[at] if a == "z" else 0) for index in product(*(range(n) for n in shape))]
        found[f"Position{a.upper()}"] = [round(i * size, 9) for i in indices]
        found[f"Position{a.upper()}Unit"] = ["µm"] * len(indices)
    return found


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
