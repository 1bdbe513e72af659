"""Where the pixels of a TIFF series lie in the file: parsed once, checked against the file's size, no pixel read."""

from __future__ import annotations

import math
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tifffile

from ..errors import DtypeError, ImageError
from .ordered import file_stamp, native
from .tiff_file import opened
from .tiff_list import PlainSeries
from .tiff_page import JPEGS, Page, check_end, check_page, make_page, prepare, segment_shape

if TYPE_CHECKING:
    from collections.abc import Sequence


_MIB = 2**20


class Run(NamedTuple):
    """Pixels that lie in the file as they are, from `offset` on; `dtype` has the file's byte order."""

    path: str
    offset: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Layout:
    """A series or pyramid level. `shape` and `letters` (tifffile's) have all dimensions, also those of size 1.

    The first `lead` dimensions number the pages. A series that is one run of bytes has a `run`.
    missing: pages that the metadata promises and the file does not have; they read as zeros.
    """

    name: str
    letters: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lead: int
    pages: Sequence[Page | None]
    run: Run | None
    missing: int = 0

    @property
    def first(self) -> Page:
        """A page that exists."""
        return next(page for page in self.pages if page is not None)

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once, one size a dimension; about 1 MB of rows where nothing is decoded."""
        if self.run is not None or self.first.raw:
            return _rows(self.shape, self.dtype, self.letters)
        inner = [
            size
            for size, whole in zip(segment_shape(self.first.keyframe), self.first.keyframe.shaped, strict=True)
            if whole > 1
        ]
        part = iter(inner)
        return tuple(1 if i < self.lead or n == 1 else min(n, next(part)) for i, n in enumerate(self.shape))


def _rows(shape: Sequence[int], dtype: np.dtype[Any], letters: str) -> tuple[int, ...]:
    """Whole rows of one plane, about 1 MB of them: reading less saves nothing."""
    line = math.prod(n for n, letter in zip(shape, letters, strict=True) if letter in "XS") * dtype.itemsize
    size = {"X": sys.maxsize, "S": sys.maxsize, "Y": max(1, _MIB // max(1, line))}
    return tuple(min(n, size.get(letter, 1)) for n, letter in zip(shape, letters, strict=True))


def layouts(tif: Any, index: int, path: str) -> tuple[Layout, ...]:
    """Series `index` and the smaller levels of its pyramid. Raises ImageError for what is cut or cannot be decoded."""
    name = Path(path).name
    found = []
    for level in tif.series[index].levels:
        lazy = isinstance(level, PlainSeries)
        layout = _layout(level, name, lazy)
        _check_codec(layout)
        if not lazy:  # that was done page by page
            _check_extent(layout)
        found.append(layout)
    return tuple(found)


def _layout(series: Any, name: str, lazy: bool) -> Layout:
    """The layout of one tifffile series; raises ImageError for one that is stored in no regular way."""
    shape, letters, keyframe = tuple(map(int, series.get_shape(False))), series.get_axes(False), series.keyframe
    if keyframe.dtype is None:
        raise DtypeError(
            f"{name} holds {keyframe.bitspersample}-bit numbers that cannot be read.",
            f"TIFF sample format {keyframe.sampleformat}",
            "save it as 8 or 16 bit, or as 32-bit float",
        )
    if series.transform is not None:
        raise ImageError(
            f"{name} is a gel scan whose numbers mean something else than they say (MD Gel).",
            mend="save it from Fiji as a plain 32-bit TIFF",
        )
    page_size = math.prod(keyframe.shaped)
    lead = max((k for k in range(len(shape) + 1) if math.prod(shape[k:]) == page_size), default=-1)
    run = None
    if series.dataoffset is not None and not series.is_multifile:
        stored = np.dtype(keyframe.parent.byteorder + series.dtype.char)
        run = Run(str(keyframe.parent.filehandle.path), int(series.dataoffset), stored)
        return Layout(name, letters, shape, native(series.dtype), len(shape), (_page(keyframe, 0),), run)
    inner = [n for n in shape[lead:] if n > 1] if lead >= 0 else []
    pages = series.pages if lazy else tuple(None if page is None else _page(page, i) for i, page in enumerate(series))
    if lead < 0 or inner != [n for n in keyframe.shaped if n > 1] or len(pages) != math.prod(shape[:lead]):
        raise ImageError(
            f"{name} promises {' x '.join(map(str, shape))} pixels ({letters}), but has {len(pages)} pages of "
            f"{' x '.join(map(str, keyframe.shape))}.",
            mend="the file is cut or mislabelled: export it again as OME-TIFF",
        )
    missing = 0 if lazy else sum(page is None for page in pages)
    return Layout(name, letters, shape, native(series.dtype), lead, pages, None, missing)


def _page(page: Any, number: int) -> Page:
    keyframe = page.keyframe
    prepare(keyframe)
    tables = page.jpegtables if keyframe.compression in JPEGS else None
    path = str(page.parent.filehandle.path)
    return make_page(path, number, keyframe, page.dataoffsets, page.databytecounts, tables)


def _check_codec(layout: Layout) -> None:
    """Raise ImageError for a compression that no installed codec decodes."""
    compression = layout.first.keyframe.compression
    if compression == 1:
        return
    try:
        tifffile.TIFF.DECOMPRESSORS[compression]
    except Exception as error:
        codec = getattr(compression, "name", f"method {compression}")
        raise ImageError(
            f"{layout.name} is compressed with {codec}, and no codec for it is installed.",
            f"TIFF compression {compression}",
            "pip install imagecodecs   (or save the file with LZW or deflate)",
        ) from error


def _check_extent(layout: Layout) -> None:
    """Raise ImageError where strips or tiles lie beyond the end of the file."""
    if layout.run is not None:
        run = layout.run
        check_end(run.path, run.offset + math.prod(layout.shape) * run.dtype.itemsize, "its pixels")
        return
    sizes: dict[str, int] = {}
    for page in layout.pages:
        if page is not None:
            if page.path not in sizes:
                sizes[page.path] = Path(page.path).stat().st_size
            check_page(page, sizes[page.path])


_parsed: OrderedDict[tuple[str, int, int, int], tuple[Layout, ...]] = OrderedDict()
_lock = threading.Lock()


def reopened(path: str, series: int, stamp: tuple[int, int]) -> tuple[Layout, ...]:
    """The layouts of a file that was opened before, e.g. in another process; parsed once in each process.

    Raises ImageError where the file is gone or is not what it was (`stamp`: size, time of change).
    """
    if file_stamp(path) != stamp:
        raise ImageError(
            f"{Path(path).name} was changed after it was opened.", path, "open it again, or wait until it is written"
        )
    key = (path, series, *stamp)
    with _lock:
        if key in _parsed:
            _parsed.move_to_end(key)
            return _parsed[key]
    with opened(path) as (tif, _):
        result = layouts(tif, series, path)
    with _lock:
        _parsed[key] = result
        while len(_parsed) > 32:
            _parsed.popitem(last=False)
    return result
