"""An image at another pixel size, lazily: what is read of it is computed from the pixels around it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, floor, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .image import Image, Source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .readers.cache import ChunkCache


PIECE = 2**19
"""Pixels that are resampled at once."""
WORKING = 64 * PIECE
"""Bytes that this works in: float32 copies of what is read, and of what has been resampled along one axis."""


def rescaled(image: Image, sizes: Mapping[str, int], *, nearest: bool = False) -> Image:
    """The same field of view with other sizes along some axes of z, y, x. See `Rescaled`."""
    sizes = {a: n for a, n in sizes.items() if n != image.size(a)}
    if not sizes:
        return image
    size = {
        a: None if (s := image.pixel_size.get(a)) is None else s * image.size(a) / sizes.get(a, image.size(a))
        for a in "zyx"
    }
    pixel_size = replace(image.pixel_size, **size)
    return replace(image, source=Rescaled(image.source, sizes, nearest=nearest), levels=(), pixel_size=pixel_size)


class Rescaled:
    """Pixels of a source, resampled to other sizes along some axes; the outer edges of the field of view stay.

    Linear interpolation where the result is finer, the mean under a triangle that is as wide as two of its pixels where
    it is coarser (so that nothing is skipped and nothing aliases); float32. nearest, for labels: the value that lies
    under the middle of the pixel; the dtype is kept. What a region holds does not depend on how it is cut.
    """

    def __init__(self, source: Source, sizes: Mapping[str, int], *, nearest: bool = False) -> None:
        self.source = source
        self.sizes = dict(sizes)
        self.nearest = nearest

    @property
    def axes(self) -> str:
        """Letters of `tczyx`, in that order."""
        return self.source.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """One size an axis."""
        return tuple(self.sizes.get(a, n) for a, n in zip(self.axes, self.source.shape, strict=True))

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, or that of the source for labels."""
        return self.source.dtype if self.nearest else np.dtype(np.float32)

    @property
    def chunks(self) -> tuple[int, ...]:
        """About what one chunk of the source becomes."""
        return tuple(
            max(1, min(n, c * n // max(1, old)))
            for c, old, n in zip(self.source.chunks, self.source.shape, self.shape, strict=True)
        )

    @property
    def cache(self) -> ChunkCache:
        """That of the source."""
        return self.source.cache

    @property
    def identity(self) -> dict[str, Any]:
        """That of the source, and the sizes."""
        return {**self.source.identity, "rescaled": self.sizes}

    def with_cache(self, cache: ChunkCache) -> Rescaled:
        """The same pixels, read through another cache."""
        return Rescaled(self.source.with_cache(cache), self.sizes, nearest=self.nearest)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region, all axes kept."""
        wanted: list[slice] = []
        maps: list[Any] = []
        for part, old, new in zip(slices, self.source.shape, self.shape, strict=True):
            if old == new:
                wanted.append(part)
                maps.append(None)
                continue
            make: Any = _nearest if self.nearest else _weights
            first, last, how = make(part.start, part.stop, old, new)
            wanted.append(slice(first, last))
            maps.append(how)
        out = np.empty([s.stop - s.start for s in slices], self.dtype)
        _fill(out, self.source.read(tuple(wanted)), maps)
        return out

    @property
    def source_bytes(self) -> float:
        """Bytes of the source that are read for each pixel, beside what resampling works in (`WORKING`)."""
        return self.source.dtype.itemsize * prod(self.source.shape) / max(1, prod(self.shape))

    def close(self) -> None:
        """Drop handles and decoded pixels."""
        self.source.close()


def _nearest(start: int, stop: int, old: int, new: int) -> tuple[int, int, NDArray[np.intp]]:
    """The source pixels under the middles of pixels start:stop: first, last, and an index for each."""
    middle = (np.arange(start, stop) + 0.5) * old / new
    index = np.clip(np.floor(middle).astype(np.intp), 0, old - 1)
    first = int(index[0]) if len(index) else 0
    return first, (int(index[-1]) + 1 if len(index) else first), index - first


def _weights(start: int, stop: int, old: int, new: int) -> tuple[int, int, Any]:
    """The source pixels that pixels start:stop are made of: first, last, and a sparse matrix of weights."""
    from scipy.sparse import csr_array

    ratio = old / new
    reach = max(1.0, ratio)  # half the width of the triangle, in source pixels
    centre = (np.arange(start, stop) + 0.5) * ratio - 0.5
    first, last = max(0, floor(centre[0] - reach) + 1), min(old, ceil(centre[-1] + reach))
    taps = np.arange(ceil(2 * reach) + 1)
    index = np.floor(centre - reach).astype(np.int64)[:, None] + 1 + taps[None, :]
    weight = np.clip(1 - np.abs(index - centre[:, None]) / reach, 0, None)
    inside = np.clip(index, 0, old - 1)  # beyond the edge lies the last pixel again
    weight /= weight.sum(axis=1, keepdims=True)
    first, last = min(first, int(inside[weight > 0].min())), max(last, int(inside[weight > 0].max()) + 1)
    rows = np.repeat(np.arange(stop - start), taps.size)
    columns = np.clip(inside - first, 0, last - first - 1).ravel()
    matrix = csr_array((weight.ravel().astype(np.float32), (rows, columns)), shape=(stop - start, last - first))
    return first, last, matrix


def _fill(out: NDArray[Any], pixels: NDArray[Any], maps: list[Any]) -> None:
    """Resample `pixels` into `out`, in pieces that need little memory. maps: one an axis, None where none changes."""
    if out.size > PIECE:
        axis = int(np.argmax(out.shape))
        half = out.shape[axis] // 2
        for part in (slice(0, half), slice(half, out.shape[axis])):
            source, how = _cut(maps[axis], part)
            _fill(_along(out, axis, part), _along(pixels, axis, source), [*maps[:axis], how, *maps[axis + 1 :]])
        return
    for axis, how in enumerate(maps):
        if how is not None:
            pixels = np.take(pixels, how, axis=axis) if how.ndim == 1 else _apply(how, pixels, axis)
    out[...] = pixels


def _cut(how: Any, part: slice) -> tuple[slice, Any]:
    """The map of a part of an axis, and the pixels that it starts from."""
    if how is None:
        return part, None
    if how.ndim == 1:
        index = how[part]
        return slice(int(index[0]), int(index[-1]) + 1), index - index[0]
    matrix = how[part.start : part.stop]
    first, last = int(matrix.indices.min()), int(matrix.indices.max()) + 1
    return slice(first, last), matrix[:, first:last]


def _along(values: NDArray[Any], axis: int, part: slice) -> NDArray[Any]:
    return values[(*(slice(None),) * axis, part)]


def _apply(matrix: Any, pixels: NDArray[Any], axis: int) -> NDArray[np.float32]:
    moved = np.moveaxis(pixels, axis, 0)
    flat = matrix @ moved.reshape(moved.shape[0], -1).astype(np.float32)
    return np.moveaxis(np.asarray(flat).reshape(-1, *moved.shape[1:]), 0, axis)
