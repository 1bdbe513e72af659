"""The pixels of a zarr array: each chunk that a region touches is decoded once, and kept for the next region."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import VoidzooError
from .cache import ChunkCache, Key, Pending
from .ordered import native, undecodable
from .zarr_node import node_name, open_node

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BATCH_BYTES = 32 * 2**20

Index = tuple[int, ...]
"""Where a chunk lies in the grid of chunks, one number a dimension."""


class ZarrArray:
    """One zarr array in its own order; opened again after unpickling. Of shards, the inner chunks are decoded."""

    def __init__(self, path: str, array: Any, identity: dict[str, Any]) -> None:
        """`array` is the zarr array at `path` (a folder or a URL), already open; `identity` tells it from another."""
        self.path = path
        self.shape = tuple(int(n) for n in array.shape)
        self.dtype = native(np.dtype(array.dtype))
        self.chunks = tuple(max(1, int(n)) for n in array.chunks)
        shards = getattr(array, "shards", None) or self.chunks
        self.per_shard = tuple(max(1, int(s) // c) for s, c in zip(shards, self.chunks, strict=True))
        self.identity = identity
        self.cache = ChunkCache()
        self._array: Any = array

    def __getstate__(self) -> dict[str, Any]:
        """Without the open store."""
        return {**self.__dict__, "_array": None}

    def close(self) -> None:
        """Let go of the store and of decoded chunks."""
        self._array = None
        self.cache.clear()

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region, native byte order. Raises ImageError for a chunk that cannot be read or decoded."""
        out = np.empty([s.stop - s.start for s in slices], dtype=self.dtype)
        if out.size == 0:
            return out
        array = self._opened()
        for group in self._batches(slices):
            held, mine, others = self.cache.begin((self.path, *index) for index in group)
            for key, chunk in held.items():
                self._paste(key[1:], chunk, slices, out)
            self._decode(array, [key[1:] for key in mine], slices, out)
            for key, pending in others.items():
                self._paste(key[1:], self._of_another(array, key, pending), slices, out)
        return out

    def _of_another(self, array: Any, key: Key, pending: Pending) -> NDArray[Any]:
        """A chunk that another thread decodes, or this one where the other was interrupted."""
        chunk = self.cache.wait(pending)
        if chunk is not None:
            return chunk
        index = key[1:]
        return self.cache.take(key, lambda: self._fetch(array, index, tuple(i + 1 for i in index)))

    def _opened(self) -> Any:
        array = self._array
        if array is None:
            self._array = array = open_node(self.path, "array")
        return array

    def _batches(self, slices: Sequence[slice]) -> Iterator[list[Index]]:
        """The chunks that a region touches, shard after shard, in batches: what is decoded beside the result."""
        most = max(1, _BATCH_BYTES // (math.prod(self.chunks) * self.dtype.itemsize))
        touched = [
            range(s.start // n, math.ceil(s.stop / n)) for s, n in zip(slices, self.chunks, strict=True)
        ]  # along each dimension
        shards = [range(r[0] // n, r[-1] // n + 1) for r, n in zip(touched, self.per_shard, strict=True)]
        batch: list[Index] = []
        for shard in itertools.product(*shards):
            inside = itertools.product(
                *(
                    range(max(r.start, i * n), min(r.stop, (i + 1) * n))
                    for r, i, n in zip(touched, shard, self.per_shard, strict=True)
                )
            )
            batch.extend(inside)
            while len(batch) >= most:
                yield batch[:most]
                batch = batch[most:]
        if batch:
            yield batch

    def _decode(self, array: Any, wanted: Sequence[Index], slices: Sequence[slice], out: NDArray[Any]) -> None:
        """Decode chunks, several at once where they form a box, put them into `out` and into the cache."""
        left = dict.fromkeys((self.path, *index) for index in wanted)
        try:
            for low, high in _boxes(wanted):
                alone = all(b - a == 1 for a, b in zip(low, high, strict=True))
                pixels = self._fetch(array, low, high)
                for index in itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))):
                    inside = tuple(
                        slice((i - a) * n, (i - a + 1) * n) for i, a, n in zip(index, low, self.chunks, strict=True)
                    )
                    chunk = pixels if alone else pixels[inside].copy()
                    self.cache.finish((self.path, *index), chunk)
                    del left[self.path, *index]
                    self._paste(index, chunk, slices, out)
        except BaseException as error:
            self.cache.fail(left, error)
            raise

    def _fetch(self, array: Any, low: Index, high: Index) -> NDArray[Any]:
        """The pixels of the chunks from `low` up to `high`, without what pads them beyond the array's border."""
        region = tuple(
            slice(a * n, min(b * n, s)) for a, b, n, s in zip(low, high, self.chunks, self.shape, strict=True)
        )
        try:
            return np.asarray(array[region]).astype(self.dtype, copy=False)
        except VoidzooError:
            raise
        except Exception as error:  # stores and codecs each have their own exceptions
            cells = list(itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))))
            if len(cells) > 1:
                for cell in cells:  # which of them it is
                    self._fetch(array, cell, tuple(i + 1 for i in cell))
            raise undecodable(node_name(self.path), self._name(array, cells[0]), error, self.path) from error

    def _name(self, array: Any, index: Index) -> str:
        """What the store calls a chunk, e.g. `chunk c/0/3/1` or `chunk 2, 5 of shard c/0/1`."""
        shard = tuple(i // n for i, n in zip(index, self.per_shard, strict=True))
        key = array.metadata.encode_chunk_key(shard)
        return f"chunk {key}" if shard == index else f"chunk {', '.join(map(str, index))} of shard {key}"

    def _paste(self, index: Index, chunk: NDArray[Any], slices: Sequence[slice], out: NDArray[Any]) -> None:
        """Copy the overlap of a chunk with a region."""
        source, place = [], []
        for i, n, size, wanted in zip(index, self.chunks, chunk.shape, slices, strict=True):
            low, high = max(wanted.start, i * n), min(wanted.stop, i * n + size)
            source.append(slice(low - i * n, high - i * n))
            place.append(slice(low - wanted.start, high - wanted.start))
        out[tuple(place)] = chunk[tuple(source)]


def _boxes(cells: Sequence[Index]) -> Iterator[tuple[Index, Index]]:
    """Boxes (first cell, one after the last) that together are `cells`, few of them: zarr decodes a box in parallel."""
    left = set(cells)
    for cell in sorted(cells):
        if cell not in left:
            continue
        low, high = list(cell), [i + 1 for i in cell]
        for axis in reversed(range(len(cell))):
            while True:
                face = [range(a, b) for a, b in zip(low, high, strict=True)]
                face[axis] = range(high[axis], high[axis] + 1)
                if not left.issuperset(itertools.product(*face)):
                    break
                high[axis] += 1
        left.difference_update(itertools.product(*(range(a, b) for a, b in zip(low, high, strict=True))))
        yield tuple(low), tuple(high)
