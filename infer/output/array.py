"""One array of a result on disk: written in whole chunks from many threads and processes, read back in any part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import OutputError
from .chunks import MISSING, Spec, chunks_of, decode, encode, index_bytes, index_size, read_index, read_spec
from .durable import Written

if TYPE_CHECKING:
    from numpy.typing import NDArray

Part = tuple[slice, ...]


class DurableArray:
    """A Zarr array on disk. It holds no handles: it can be pickled, and used from any thread.

    Writes of parts that share no file may run side by side. `write` leaves the bytes in the page cache and says in
    which files; `durable.sync` has the disk confirm them. Raises OutputError for an array that was not made here.
    """

    def __init__(self, path: Path, spec: Spec | None = None) -> None:
        self.path = path
        self.spec = spec = spec or read_spec(path)
        self.shape = spec.shape
        self.dtype: np.dtype[Any] = np.dtype(spec.dtype)
        self.chunks = spec.chunk
        self.grid = spec.grid
        self._root = os.fspath(path)

    def write(self, part: Part, values: NDArray[Any]) -> Written:
        """Write whole files (`grid`, or up to the end of the array) into the page cache.

        A file that cannot be written to its end (disk full, quota) is taken away again, and the error raised: a chunk
        is whole or absent. A file of nothing but zeros is absent too; one that was there before is removed. Only a kill
        or a power cut can leave a torn file, of a part that the ledger does not have and that is written again.
        Raises OSError with the file's name; ValueError, TypeError for a part, shape or dtype that does not fit.
        """
        values = self._checked(part, values)
        files: list[str] = []
        folders: set[str] = set()
        nbytes = 0
        for index, inside in self._files(part):
            file = f"{self._root}/{self.spec.file(index)}"
            size = self._write_file(file, values[inside])
            if size:
                files.append(file)
                nbytes += size
            if size or os.path.isdir(file.rpartition("/")[0]):  # noqa: PTH112 - no folder is made for zeros
                folders.update(self._folders(file))
        return Written(tuple(files), tuple(sorted(folders)), nbytes)

    def erase(self, part: Part) -> Written:
        """Make a part of whole files absent, so that it reads as zeros, whatever a run that was cut off left there."""
        folders: set[str] = set()
        for index, _ in self._files(part):
            file = f"{self._root}/{self.spec.file(index)}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)  # noqa: PTH108 - a Path for each of a million chunks costs more than the call
                folders.update(self._folders(file))
        return Written((), tuple(sorted(folders)), 0)

    def read(self, part: Part) -> NDArray[Any]:
        """A part of the array, native byte order. Raises OutputError for a chunk that cannot be decoded."""
        out = np.zeros([s.stop - s.start for s in part], self.dtype)
        grid = self.spec.grid
        touched = [range(s.start // g, -(-s.stop // g)) for s, g in zip(part, grid, strict=True)]
        for index in product(*touched) if out.size else ():
            corner = [i * g for i, g in zip(index, grid, strict=True)]
            self._read_file(f"{self._root}/{self.spec.file(index)}", corner, part, out)
        return out

    def _checked(self, part: Part, values: NDArray[Any]) -> NDArray[Any]:
        if values.dtype != self.dtype and not np.can_cast(values.dtype, self.dtype, "safe"):
            raise TypeError(f"{values.dtype} values for an array of {self.dtype}")
        if values.shape != tuple(s.stop - s.start for s in part):
            raise ValueError(f"values of shape {values.shape} for the part {part}")
        for s, g, n in zip(part, self.grid, self.shape, strict=True):
            if s.start % g or (s.stop % g and s.stop != n) or not 0 <= s.start <= s.stop <= n:
                raise ValueError(f"{s.start}:{s.stop} is not made of whole chunks or shards of {g} in 0:{n}")
        return values

    def _files(self, part: Part) -> Iterator[tuple[tuple[int, ...], Part]]:
        """The grid index of each file of a part, and where it lies in the part."""
        touched = [range(s.start // g, -(-s.stop // g)) for s, g in zip(part, self.grid, strict=True)]
        for index in product(*touched):
            yield (
                index,
                tuple(
                    slice(i * g - s.start, min((i + 1) * g, s.stop) - s.start)
                    for i, g, s in zip(index, self.grid, part, strict=True)
                ),
            )

    def _folders(self, file: str) -> Iterator[str]:
        """The folders from the file's up to the array's: an entry may be new in each."""
        while len(file) > len(self._root):
            file = file.rpartition("/")[0]
            yield file

    def _write_file(self, file: str, values: NDArray[Any]) -> int:
        """-> bytes written; 0 for a file that is absent because it would hold zeros."""
        try:
            if self.spec.shard is None:
                data = encode(values, self.spec)
                if data is not None:
                    with _create(file) as out:
                        out.write(data)
                    return len(data)
            elif size := self._write_shard(file, values):
                return size
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)  # noqa: PTH108
            return 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(file)  # noqa: PTH108
            if isinstance(error, OSError) and error.filename is None:
                raise OSError(error.errno, error.strerror, file) from error
            raise

    def _write_shard(self, file: str, values: NDArray[Any]) -> int:
        """Chunk after chunk, then the index: no more than one compressed chunk is in memory. -> bytes, 0 for none."""
        places, at, chunk = [], 0, self.spec.chunk
        with contextlib.ExitStack() as closing:
            out: IO[bytes] | None = None
            for index in chunks_of(self.spec):
                inside = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))]
                data = encode(inside, self.spec) if inside.size else None
                if data is None:
                    places.append((MISSING, MISSING))
                    continue
                out = out or closing.enter_context(_create(file))
                out.write(data)
                places.append((at, len(data)))
                at += len(data)
            if out is None:
                return 0
            tail = index_bytes(places)
            out.write(tail)
        return at + len(tail)

    def _read_file(self, file: str, corner: list[int], part: Part, out: NDArray[Any]) -> None:
        """Fill in what one file holds of `part`; corner: its first pixel in the array."""
        try:
            with open(file, "rb") as source:  # noqa: PTH123
                for start, data in self._stored(source, corner, part):
                    values = decode(data, self.spec)
                    low = [max(a, s.start) for a, s in zip(start, part, strict=True)]
                    high = [min(a + c, s.stop) for a, c, s in zip(start, self.chunks, part, strict=True)]
                    target = tuple(slice(a - s.start, b - s.start) for a, b, s in zip(low, high, part, strict=True))
                    taken = tuple(slice(a - i, b - i) for a, b, i in zip(low, high, start, strict=True))
                    out[target] = values[taken]
        except FileNotFoundError:
            return  # zeros
        except ValueError as error:
            raise OutputError(
                f"{file} is damaged: {error}.", mend="--overwrite  makes the result again from the start"
            ) from error

    def _stored(self, source: IO[bytes], corner: list[int], part: Part) -> Iterator[tuple[list[int], bytes]]:
        """The first pixel and the bytes of each stored chunk of a file that touches `part`."""
        if self.spec.shard is None:
            yield corner, source.read()
            return
        size = source.seek(0, os.SEEK_END)
        source.seek(max(0, size - index_size(self.spec)))
        places = read_index(source.read())
        for index, (offset, length) in zip(chunks_of(self.spec), places, strict=True):
            start = [a + i * c for a, i, c in zip(corner, index, self.chunks, strict=True)]
            touches = all(a < s.stop and a + c > s.start for a, c, s in zip(start, self.chunks, part, strict=True))
            if touches and offset != MISSING:
                source.seek(offset)
                yield start, source.read(length)


def _create(file: str) -> IO[bytes]:
    """Open a file to be written from its beginning, in a folder that may not be there yet."""
    try:
        return open(file, "wb")  # noqa: PTH123
    except FileNotFoundError:
        os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
        return open(file, "wb")  # noqa: PTH123
