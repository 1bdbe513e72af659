"""Decoded chunks that neighbouring regions share: bounded, safe for threads, each decoded once; and the count of it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

CACHE_BYTES = 64 * 2**20
"""What a source keeps decoded when nobody says otherwise."""

Key = tuple[Any, ...]
"""Which array, and which chunk of it."""

Cached = TypeVar("Cached")


@dataclass(eq=False)
class Pending:
    """A chunk that some thread is decoding; `done` is set when `chunk` or `error` is there, or the thread gave up."""

    done: threading.Event = field(default_factory=threading.Event)
    chunk: NDArray[Any] | None = None
    error: Exception | None = None


class ChunkCache:
    """The last decoded chunks (strips, tiles, pages, zarr chunks), at most `limit` bytes, and the count of all of them.

    The very last one is kept whatever its size; with a limit of 0 nothing is. Two threads that want the same chunk
    decode it once. `decoded` counts uncompressed bytes, also of pixels that were read straight; it only grows.
    Pickling takes the limit along, neither chunks nor count.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """An empty cache of `limit` bytes."""
        self.limit = max(0, int(limit))
        self.nbytes = 0
        self.decoded = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, NDArray[Any]] = OrderedDict()
        self._pending: dict[Key, Pending] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Empty where it arrives; one cache that several sources share is one there, too."""
        return ChunkCache, (self.limit,)

    def count(self, nbytes: int) -> None:
        """Count pixels that were read straight, without decoding more than was asked for."""
        with self._lock:
            self.decoded += nbytes

    def take(self, key: Key, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The chunk of `key`, kept or decoded now; not to be written to. Raises what `decode` raises."""
        while True:
            held, mine, others = self.begin([key])
            if held:
                return held[key]
            if not mine:
                chunk = self.wait(others[key])
                if chunk is not None:
                    return chunk
                continue  # the other thread was interrupted
            try:
                chunk = decode()
            except BaseException as error:
                self.fail([key], error)
                raise
            self.finish(key, chunk)
            return chunk

    def begin(self, keys: Iterable[Key]) -> tuple[dict[Key, NDArray[Any]], list[Key], dict[Key, Pending]]:
        """Sort keys into chunks that are kept, those that the caller must now `finish` or `fail`, and those of others.

        Finish one's own before waiting for those of others: then two threads can never wait for each other.
        """
        held: dict[Key, NDArray[Any]] = {}
        mine: list[Key] = []
        others: dict[Key, Pending] = {}
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    held[key] = self._kept[key]
                elif key in self._pending:
                    others[key] = self._pending[key]
                else:
                    self._pending[key] = Pending()
                    mine.append(key)
        return held, mine, others

    def finish(self, key: Key, chunk: NDArray[Any]) -> None:
        """Keep a chunk that was decoded, count it, hand it to those who wait, drop those not asked for the longest."""
        with self._lock:
            pending = self._pending.pop(key)
            self.decoded += chunk.nbytes
            if self.limit:
                self._kept[key] = chunk
                self.nbytes += chunk.nbytes
                while self.nbytes > self.limit and len(self._kept) > 1:
                    self.nbytes -= self._kept.popitem(last=False)[1].nbytes
        pending.chunk = chunk
        pending.done.set()

    def fail(self, keys: Iterable[Key], error: BaseException) -> None:
        """Say that chunks could not be decoded; those who wait get the same error (or, on an interrupt, their turn)."""
        with self._lock:
            gone = [pending for key in keys if (pending := self._pending.pop(key, None)) is not None]
        for pending in gone:
            pending.error = error if isinstance(error, Exception) else None
            pending.done.set()

    @staticmethod
    def wait(pending: Pending) -> NDArray[Any] | None:
        """The chunk that another thread decodes, None where it was interrupted. Raises what its decoding raised."""
        pending.done.wait()
        if pending.error is not None:
            raise pending.error
        return pending.chunk

    def clear(self) -> None:
        """Drop all chunks; the count stays."""
        with self._lock:
            self._kept.clear()
            self.nbytes = 0


def with_cache(array: Cached, cache: ChunkCache) -> Cached:
    """The same pixels read through another cache. Not `copy.copy`: that leaves out what is not pickled."""
    other = object.__new__(type(array))
    other.__dict__.update(array.__dict__)
    other.__dict__["cache"] = cache
    return other
