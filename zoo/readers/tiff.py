"""The pixels of a TIFF: only the strips or tiles that a region touches are read and decoded."""

from __future__ import annotations

import itertools
import math
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import ImageError
from .cache import ChunkCache
from .ordered import undecodable
from .tiff_layout import Layout, Run, reopened
from .tiff_page import JPEGS, Page, segment_grid, segment_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_SLAB_BYTES = 16 * 2**20


class TiffArray:
    """One series of a TIFF, or one level of its pyramid, in the order of the file; all dimensions, also of size 1.

    Holds no open file: each read opens it, so that threads share nothing and no handle is left behind.
    """

    def __init__(self, path: str, layout: Layout, *, series: int, level: int, stamp: tuple[int, int]) -> None:
        """`layout` is that of `series` and pyramid `level`; `stamp` tells whether the file is still the same."""
        self.path = path
        self.series = series
        self.level = level
        self.stamp = stamp
        self.shape = layout.shape
        self.dtype = layout.dtype
        self.chunks = layout.chunks
        self.cache = ChunkCache()
        self._layout: Layout | None = layout

    def __getstate__(self) -> dict[str, Any]:
        """Without layout and pixels: small, and parsed again where it arrives."""
        return {**self.__dict__, "_layout": None}

    @property
    def layout(self) -> Layout:
        """Where the pixels lie; parsed again after unpickling, once a process."""
        if self._layout is None:
            self._layout = reopened(self.path, self.series, self.stamp)[self.level]
        return self._layout

    @property
    def identity(self) -> dict[str, Any]:
        """Series, level, and the file's size and time of change (ns) when it was opened."""
        return {"series": self.series, "level": self.level, "bytes": self.stamp[0], "changed": self.stamp[1]}

    def close(self) -> None:
        """Drop the decoded segments."""
        self.cache.clear()

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region, all dimensions kept, native byte order. Raises ImageError naming page and strip."""
        layout = self.layout
        out = np.zeros([s.stop - s.start for s in slices], dtype=layout.dtype)
        if out.size == 0:
            return out
        if layout.run is not None:
            _copy_run(layout.run, layout.shape, slices, out)
            self.cache.count(out.nbytes)
            return out
        lead, sizes = layout.lead, layout.shape[: layout.lead]
        with ExitStack() as stack:
            files = _Files(stack)
            for index in itertools.product(*(range(s.start, s.stop) for s in slices[:lead])):
                page = layout.pages[int(np.ravel_multi_index(index, sizes)) if lead else 0]
                if page is None:
                    continue
                part = out[tuple(i - s.start for i, s in zip(index, slices, strict=False))]
                self._read_page(layout, page, slices[lead:], part, files)
        return out

    def _read_page(self, layout: Layout, page: Page, slices: Sequence[slice], out: NDArray[Any], files: _Files) -> None:
        """One page's part of a region into `out`."""
        key = page.keyframe
        named = iter([s for s, n in zip(slices, layout.shape[layout.lead :], strict=True) if n > 1])
        inside = tuple(next(named) if n > 1 else slice(0, 1) for n in key.shaped)
        target = out.reshape([s.stop - s.start for s in inside])
        if page.raw:
            dtype = np.dtype(key.parent.byteorder + layout.dtype.char)
            _copy_run(Run(page.path, int(page.offsets[0]), dtype), key.shaped, inside, target)
            self.cache.count(target.nbytes)
            return
        for index in _touched(key, inside):
            segment = self._segment(layout, page, index, files)
            plane, *corner, _ = _corner(key, index)
            # the overlap of the segment with the region, in both their coordinates
            source: list[slice] = []
            place: list[int | slice] = [plane - inside[0].start]
            for wanted, start, size in zip(inside[1:4], corner, segment.shape[:3], strict=True):
                low, high = max(wanted.start, start), min(wanted.stop, start + size)
                source.append(slice(low - start, high - start))
                place.append(slice(low - wanted.start, high - wanted.start))
            target[tuple(place)] = segment[(*source, inside[4])]

    def _segment(self, layout: Layout, page: Page, index: int, files: _Files) -> NDArray[Any]:
        """A decoded strip or tile (depth, rows, columns, samples) without what lies beyond the page's border."""
        key = page.keyframe
        if page.counts[index] == 0 or page.offsets[index] == 0:
            size = np.minimum(segment_shape(key)[1:], key.shaped[1:])
            return np.full(size, key.nodata, dtype=layout.dtype)  # sparse: never written
        # several files of a stack share one cache
        where = (self.path, self.series, self.level, page.number, index)
        return self.cache.take(where, lambda: _decode(layout, page, index, files))


def _decode(layout: Layout, page: Page, index: int, files: _Files) -> NDArray[Any]:
    """Read and decode a strip or tile. Raises ImageError naming file, page and strip."""
    key = page.keyframe
    what = f"{'tile' if key.is_tiled else 'strip'} {index} of page {page.number}"
    offset, count = int(page.offsets[index]), int(page.counts[index])
    data = files.read(page.path, offset, count)
    if len(data) != count:
        raise ImageError(
            f"{layout.name} is cut: {what} should have {count} bytes, {len(data)} are left.",
            f"{page.path}, {what}",
            "copy or export it again from where it came",
        )
    arguments = {}
    if key.compression in JPEGS:
        arguments = {"jpegtables": page.tables, "jpegheader": key.jpegheader}
    try:
        segment = key.decode(data, index, _fullsize=False, **arguments)[0]
    except Exception as error:  # every codec has its own exceptions
        raise undecodable(layout.name, what, error, page.path) from error
    if segment is None:
        raise undecodable(layout.name, what, ValueError("the codec returned nothing"), page.path)
    # tiles at the border are padded beyond the page
    inside = tuple(slice(0, n - at) for n, at in zip(key.shaped[1:4], _corner(key, index)[1:4], strict=True))
    return np.ascontiguousarray(segment[inside], dtype=layout.dtype)


class _Files:
    """The files of one read, opened at first use."""

    def __init__(self, stack: ExitStack) -> None:
        """`stack` closes them."""
        self._stack = stack
        self._open: dict[str, BinaryIO] = {}

    def read(self, path: str, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer at the end of the file."""
        if path not in self._open:
            try:
                self._open[path] = self._stack.enter_context(Path(path).open("rb"))  # noqa: SIM115  (the stack closes it)
            except OSError as error:
                raise ImageError(
                    f"{Path(path).name} is gone or cannot be read.", f"{path}: {error.strerror}"
                ) from error
        self._open[path].seek(offset)
        return self._open[path].read(count)


def _touched(keyframe: Any, inside: tuple[slice, ...]) -> Iterator[int]:
    """The indices of the strips or tiles that a region of a page touches."""
    grid = segment_grid(keyframe)
    sizes = segment_shape(keyframe)
    ranges = [range(s.start // n, math.ceil(s.stop / n)) for s, n in zip(inside[:4], sizes[:4], strict=True)]
    for index in itertools.product(*ranges):
        yield int(np.ravel_multi_index(index, grid))


def _corner(keyframe: Any, index: int) -> tuple[int, int, int, int, int]:
    """Where a strip or tile begins in its page."""
    plane, *rest = np.unravel_index(index, segment_grid(keyframe))
    depth, row, column = (int(i) * n for i, n in zip(rest, segment_shape(keyframe)[1:4], strict=True))
    return int(plane), depth, row, column, 0


def _copy_run(run: Run, shape: Sequence[int], slices: Sequence[slice], out: NDArray[Any]) -> None:
    """Copy a region of uncompressed pixels, mapped one slab at a time so that resident memory stays flat."""
    axis = next((i for i, n in enumerate(out.shape) if n > 1), None)
    if out.nbytes <= _SLAB_BYTES or axis is None:
        try:
            pixels = np.memmap(run.path, dtype=run.dtype, mode="r", offset=run.offset, shape=tuple(shape))
        except (OSError, ValueError) as error:
            raise ImageError(
                f"{Path(run.path).name} is cut or gone: its pixels cannot be mapped.",
                f"{run.path}: {error}",
                "copy it again from where it came",
            ) from error
        out[...] = pixels[tuple(slices)]
        return
    start, stop = slices[axis].start, slices[axis].stop
    step = max(1, int((stop - start) * _SLAB_BYTES // out.nbytes))
    for low in range(start, stop, step):
        high = min(stop, low + step)
        parts = list(slices)
        parts[axis] = slice(low, high)
        where: list[slice] = [slice(None)] * out.ndim
        where[axis] = slice(low - start, high - start)
        _copy_run(run, shape, parts, out[tuple(where)])
