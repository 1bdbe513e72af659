"""What the disk has confirmed: files are written into the page cache first and synced many at a time (group commit).

A kill of the process loses nothing of the page cache; a power cut loses what was not synced. So a block may be recorded
as done once `sync` of what it wrote has returned.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

Item = TypeVar("Item")

SYNC_THREADS = 8
"""Syncs in flight at once: the disk confirms them together. 100 files of 20 kB: 220 ms one by one, 20 ms so."""
MOST_BYTES = 2**27
"""Bytes that may wait for the disk before `GroupCommit.add` waits too."""
MOST_WRITES = 64
"""Writes that may wait for the disk: what a power cut, or a kill before the ledger's line, costs at the most."""

_datasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have fsync alone


@dataclass(frozen=True)
class Written:
    """Files that one write left in the page cache, the folders whose entries it may have added, and bytes."""

    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    nbytes: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.files + other.files, self.folders + other.folders, self.nbytes + other.nbytes)


def sync(written: Iterable[Written], pool: Executor | None = None) -> None:
    """Return once the disk has confirmed all files and folders. pool: threads to use, else some are started.

    Raises OSError with the path that could not be synced.
    """
    tasks: dict[tuple[Callable[[str], None], str], None] = {}  # each path once
    for each in written:
        tasks.update(dict.fromkeys((_sync_data, file) for file in each.files))
        tasks.update(dict.fromkeys((_sync_entries, folder) for folder in each.folders))
    if len(tasks) <= 1:
        for do, path in tasks:
            do(path)
    elif pool is not None:
        _all(pool, list(tasks))
    else:
        with ThreadPoolExecutor(min(SYNC_THREADS, len(tasks)), thread_name_prefix="voidzoo-sync") as own:
            _all(own, list(tasks))


def _all(pool: Executor, tasks: Sequence[tuple[Callable[[str], None], str]]) -> None:
    for future in [pool.submit(do, path) for do, path in tasks]:
        future.result()


def _sync_data(path: str) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        _datasync(handle)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    finally:
        os.close(handle)


def _sync_entries(path: str) -> None:
    sync_folder(Path(path))


def sync_file(path: Path) -> None:
    """Have the disk confirm a file's bytes."""
    _sync_data(str(path))


def sync_folder(path: Path) -> None:
    """Have the disk confirm a folder's entries; a no-op where folders cannot be opened (Windows)."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class GroupCommit(Generic[Item]):
    """One thread that syncs what lanes have written and hands on what was written so, in the order of `add`.

    It never waits for more: while the disk is busy with one group, the next gathers. `done` is called in that thread,
    with the items of a group; it is the place to write the ledger's lines. As a context manager it syncs the rest.
    """

    def __init__(
        self,
        done: Callable[[list[Item]], None],
        *,
        most_bytes: int = MOST_BYTES,
        most_writes: int = MOST_WRITES,
    ) -> None:
        self._done = done
        self._most = (most_bytes, most_writes)
        self._waiting: list[tuple[Item, Written]] = []
        self._busy = 0, 0  # bytes and writes of the group that the disk is at
        self._closing = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="voidzoo-commit", daemon=True)
        self._thread.start()

    def add(self, item: Item, written: Written) -> None:
        """Take what was written; returns at once unless the disk is far behind. Raises what a sync has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self._full())
            self._raise()
            self._waiting.append((item, written))
            self._changed.notify_all()

    def flush(self) -> None:
        """Return once all that was added so far is durable and handed on. Raises what a sync has raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not (self._waiting or self._busy[1]))
            self._raise()

    def close(self) -> None:
        """Sync the rest and end the thread. Raises what a sync has raised; what was not synced is not handed on."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()

    def __enter__(self) -> GroupCommit[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BaseException:
            if error is None:  # else the first error is the one to tell
                raise

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _full(self) -> bool:
        nbytes = self._busy[0] + sum(written.nbytes for _, written in self._waiting)
        writes = self._busy[1] + len(self._waiting)
        return writes > 0 and (nbytes >= self._most[0] or writes >= self._most[1])

    def _work(self) -> None:
        with ThreadPoolExecutor(SYNC_THREADS, thread_name_prefix="voidzoo-sync") as pool:
            while group := self._next():
                try:
                    sync((written for _, written in group), pool)
                    self._done([item for item, _ in group])
                except BaseException as error:  # told to the lanes: at their next `add`, or when closed
                    with self._changed:
                        self._error = error
                        self._changed.notify_all()
                    return
                with self._changed:
                    self._busy = 0, 0
                    self._changed.notify_all()

    def _next(self) -> list[tuple[Item, Written]]:
        """All that waits, as soon as there is anything; empty when closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closing)
            group, self._waiting = self._waiting, []
            self._busy = sum(written.nbytes for _, written in group), len(group)
            return group
