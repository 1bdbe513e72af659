"""The list of pages of a plain TIFF, read once: which pages are alike and where they lie, a few us and 16 bytes a page.

tifffile parses every page into objects of its own, samples four of them to see whether all are alike, and, where they
are not, compares each with all others. Here each page's tags are looked at, and parsed again when the page is read.
Source of the layout: TIFF 6.0, section 2; BigTIFF, https://libtiff.gitlab.io/libtiff/specification/bigtiff.html
"""

from __future__ import annotations

import math
import operator
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import tifffile

from .tiff_page import Page, check_page, make_page, prepare, segment_grid

MANY = 1000
"""From so many pages on, pages of several kinds become series here; of fewer, tifffile also recognises pyramids."""

# kinds of files whose pages mean more than their tags say; tifffile's names
_KINDS = (
    *("shaped", "lsm", "mmstack", "ome", "imagej", "ndtiff", "fluoview", "stk", "sis", "svs", "scn", "qpi", "ndpi"),
    *("bif", "avs", "eer", "philips", "scanimage", "nih", "mdgel"),
)
# what pages of a series have in common: size, bits, compression, photometric, fill order, samples, strips, planes,
# predictor, tiles, extra samples, sample format, depth, tile depth, subsampling
_ALIKE = frozenset((256, 257, 258, 259, 262, 266, 277, 278, 284, 317, 322, 323, 338, 339, 32997, 32998, 530))
_SEGMENTS = frozenset((273, 279, 324, 325))
_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_HEAD = 1024  # bytes: most lists of tags, and short values after them


class Form(NamedTuple):
    """How a file writes lists of tags: struct formats, sizes in bytes, and the byte order."""

    number: str
    tag: str
    offset: str
    start: int
    size: int
    width: int
    order: str


def form_of(byteorder: str, big: bool) -> Form:
    """The form of a TIFF or BigTIFF; `byteorder` as for struct."""
    if big:
        return Form(f"{byteorder}Q", f"{byteorder}HHQQ", f"{byteorder}Q", 8, 20, 8, byteorder)
    return Form(f"{byteorder}H", f"{byteorder}HHII", f"{byteorder}I", 2, 12, 4, byteorder)


class Tags(NamedTuple):
    """One page's tags: what it has in common with its series, its segments, and the offset of the next page."""

    alike: tuple[Any, ...]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    tables: bytes | None
    subifds: bool
    following: int


def read_tags(file: BinaryIO, at: int, form: Form) -> Tags:
    """The tags of the page at `at`. Raises ValueError, KeyError or struct.error for what is none."""
    file.seek(at)
    head = file.read(_HEAD)
    number = struct.unpack_from(form.number, head)[0]
    end = form.start + number * form.size
    if number > 4096:
        raise ValueError(f"{number} tags")
    if end + 8 > len(head):
        head += file.read(end + 8 - len(head))
    following = struct.unpack_from(form.offset, head, end)[0]
    alike: list[Any] = []
    segments: dict[int, tuple[int, ...]] = {}
    tables, subifds = None, False
    for code, kind, count, value in struct.iter_unpack(form.tag, head[form.start : end]):
        if code in _ALIKE:
            inline = count * _SIZES[kind] <= form.width
            alike.append((code, kind, count, value if inline else _content(file, head, at, form, kind, count, value)))
        elif code in _SEGMENTS:
            segments[code] = _values(file, head, at, form, kind, count, value)
        elif code == 330:
            subifds = True
        elif code == 347:
            tables = _content(file, head, at, form, kind, count, value)
    offsets, counts = segments.get(324) or segments.get(273, ()), segments.get(325) or segments.get(279, ())
    return Tags(tuple(alike), offsets, counts, tables, subifds, following)


def _values(file: BinaryIO, head: bytes, at: int, form: Form, kind: int, count: int, value: int) -> tuple[int, ...]:
    """The numbers of a tag; `value` is the field of the tag that holds them, or where they lie."""
    if count == 1 and _SIZES[kind] == form.width:
        return (value,)
    return struct.unpack(f"{form.order}{count}{_TYPES[kind]}", _content(file, head, at, form, kind, count, value))


def _content(file: BinaryIO, head: bytes, at: int, form: Form, kind: int, count: int, value: int) -> bytes:
    """The bytes of a tag's values: in the tag itself where they fit, else where it points to."""
    size = count * _SIZES[kind]
    if size <= form.width:
        return struct.pack(form.offset, value)[:size]
    if at <= value and value + size <= at + len(head):
        return head[value - at : value - at + size]
    if size > 2**28:
        raise ValueError(f"a tag's value of {size} bytes")
    file.seek(value)
    found = file.read(size)
    if len(found) != size:
        raise ValueError(f"a tag's value of {size} bytes at byte {value}")
    return found


class LazyPages(Sequence[Page]):
    """Pages that are parsed when they are asked for; two numbers each are held."""

    def __init__(self, path: str, form: Form, keyframe: Any) -> None:
        """No pages yet; `keyframe` is tifffile's page that knows how to decode all of them."""
        self.path, self.form, self.keyframe = path, form, keyframe
        self.at, self.numbers = array("Q"), array("Q")
        self._page = lru_cache(maxsize=256)(self._read)  # neighbouring blocks ask for the same ones

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, index: int) -> Page: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Page]: ...
    def __getitem__(self, index: int | slice) -> Page | Sequence[Page]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._page(index)

    def _read(self, index: int) -> Page:
        with Path(self.path).open("rb", buffering=0) as file:
            tags = read_tags(file, self.at[index], self.form)
        return make_page(self.path, self.numbers[index], self.keyframe, tags.offsets, tags.counts, tags.tables)


@dataclass(eq=False)
class PlainSeries:
    """Pages that are alike; in place of a `tifffile.TiffPageSeries`. `broken`: the list of pages leads nowhere."""

    pages: LazyPages
    size: int
    end: int = 0
    dataoffset: int | None = None
    broken: bool = False
    kind: str = "uniform"
    name: str = ""
    transform: None = None
    is_multifile: bool = False
    levels: list[PlainSeries] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.levels = [self]
        key = self.keyframe
        self.raw, self.nbytes, self.needed = bool(key.is_final), int(key.nbytes), math.prod(segment_grid(key))

    @property
    def keyframe(self) -> Any:
        """tifffile's page that knows how to decode all of them."""
        return self.pages.keyframe

    @property
    def dtype(self) -> Any:
        """Of the pixels."""
        return self.keyframe.dtype

    @property
    def axes(self) -> str:
        """`I` for the pages, where there are several, and tifffile's letters of a page."""
        return ("I" if len(self) > 1 else "") + str(self.keyframe.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `axes`."""
        return ((len(self),) if len(self) > 1 else ()) + tuple(self.keyframe.shape)

    def get_axes(self, _: bool) -> str:
        """As `axes`: nothing is squeezed."""
        return self.axes

    def get_shape(self, _: bool) -> tuple[int, ...]:
        """As `shape`: nothing is squeezed."""
        return self.shape

    def __len__(self) -> int:
        return len(self.pages)

    def add(self, at: int, number: int, tags: Tags) -> None:
        """Put the page at `at` into the series. Raises ImageError where its pixels lie beyond the end of the file."""
        raw, pages, start, end = self.raw, self.pages, 0, 0
        if raw and len(tags.offsets) == 1:
            start, end = tags.offsets[0], tags.offsets[0] + self.nbytes
        elif not raw and len(tags.offsets) == len(tags.counts) == self.needed:
            end = max(map(operator.add, tags.offsets, tags.counts))
        if not 0 < end <= self.size:  # raw strips, or pixels that lie where they cannot
            page = make_page(pages.path, number, self.keyframe, tags.offsets, tags.counts, tags.tables)
            start, end = check_page(page, self.size)
            raw = page.raw
        if not pages.at:
            self.dataoffset = start if raw else None
        elif not raw or start != self.end:
            self.dataoffset = None  # not one run of bytes
        self.end = end
        pages.at.append(at)
        pages.numbers.append(number)


def plain_series(tif: Any) -> list[PlainSeries] | None:
    """The series of a TIFF of several pages that is nothing but a list of pages; None for all others.

    Raises ImageError where pixels lie beyond the end of the file.
    """
    first = tif.pages.first
    if any(getattr(tif, f"is_{kind}", False) for kind in _KINDS) or first.subifds is not None or not first.shape:
        return None
    if tif.tiff.is_ndpi:
        return None
    form = form_of(tif.byteorder, bool(tif.is_bigtiff))
    found: dict[tuple[Any, ...], PlainSeries] = {}
    seen: set[int] = set()
    at, broken, size = first.offset, False, tif.filehandle.size
    with Path(tif.filehandle.path).open("rb", buffering=0) as file:
        while at and at not in seen:  # some writers close the list to a ring
            seen.add(at)
            try:
                if not 0 < at < size:
                    raise ValueError(f"a page at byte {at}")
                tags = read_tags(file, at, form)
            except (ValueError, struct.error, OverflowError, KeyError):
                broken = True
                break
            if tags.subifds:
                return None
            if tags.alike not in found:
                series = _begin(tif, at, len(seen) - 1, tags, form)
                if series is None:
                    return None
                # the same may be written in other types of numbers
                found[tags.alike] = next((s for s in found.values() if s.keyframe.hash == series.keyframe.hash), series)
            found[tags.alike].add(at, len(seen) - 1, tags)
            at = tags.following
    kinds = list({id(series): series for series in found.values()}.values())
    if len(seen) < 2 or (len(kinds) > 1 and len(seen) < MANY):
        if len(kinds) > 1:
            tif.is_uniform = False  # tifffile looks at four pages only
        return None
    for series in kinds:
        series.broken = broken
        series.kind = "uniform" if len(kinds) == 1 else "generic"
    return kinds


def _begin(tif: Any, at: int, number: int, tags: Tags, form: Form) -> PlainSeries | None:
    """A series with the page at `at` as its keyframe; None where tifffile understands that page otherwise."""
    keyframe = tif.pages.first
    if number:
        tif.filehandle.seek(at)
        keyframe = tifffile.TiffPage(tif, index=number)
    if (tuple(keyframe.dataoffsets), tuple(keyframe.databytecounts)) != (tags.offsets, tags.counts):
        return None
    if not keyframe.shape or keyframe.dtype is None:
        return None
    prepare(keyframe)
    return PlainSeries(LazyPages(str(tif.filehandle.path), form, keyframe), tif.filehandle.size)
