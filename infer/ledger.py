"""Which blocks are done: an append-only file of JSON lines, written by the client alone.

A block's line is written as soon as its data is in the page cache, which survives a kill of the process; once the disk
has confirmed the data, another line says so. After a reboot, or on another machine, only what was confirmed counts.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from .blocks import BlockReport


class Ledger:
    """The finished blocks of one result. A line that a crash cut short is dropped; its block is done again.

    What an earlier session wrote but the disk had not confirmed when that was killed, it is asked to confirm now.
    Raises OSError with the file's name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done, doubtful = _read(path)
        self._torn(path)
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._lock = threading.Lock()
        self._pending: deque[int] = deque()  # where the lines begin that `confirm` has yet to come for
        try:
            self._append({"boot": boot()})
            if doubtful:
                _sync_file_system(path)
                for report in doubtful:
                    self._append(asdict(report))
                self._append({"confirmed": len(doubtful)})
        except OSError:
            self._file.close()
            raise

    @staticmethod
    def peek(path: Path) -> dict[int, BlockReport]:
        """The finished blocks by number, in the order in which they were done."""
        return _read(path)[0]

    def _torn(self, path: Path) -> None:
        """Take a half-written last line away, so that the next one is whole."""
        if path.exists():
            raw = path.read_bytes()
            whole = raw.rfind(b"\n") + 1
            if whole < len(raw):
                with path.open("r+b") as file:
                    file.truncate(whole)

    def add(self, report: BlockReport) -> None:
        """Record a block whose data was written."""
        self._pending.append(self._append(asdict(report)))
        self.done[report.index] = report

    def confirm(self, count: int) -> None:
        """Record that the disk has confirmed the data of the next `count` blocks, in the order of `add`."""
        for _ in range(count):
            self._pending.popleft()
        self._append({"confirmed": count})
        os.fsync(self._file.fileno())

    def _append(self, entry: dict[str, Any]) -> int:
        """A line, whole or not at all. -> where it begins."""
        line = json.dumps(entry).encode() + b"\n"
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            try:
                written = 0
                while written < len(line):
                    written += self._file.write(line[written:])
            except OSError as error:
                self._file.truncate(start)
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        return start

    def close(self) -> None:
        """Have the disk confirm the lines, and close. Lines of blocks whose data it refused are taken back."""
        if not self._file.closed:
            if self._pending:
                self._file.truncate(self._pending[0])
            os.fsync(self._file.fileno())
            self._file.close()


def _read(path: Path) -> tuple[dict[int, BlockReport], list[BlockReport]]:
    """The finished blocks, and those of them that the disk has not confirmed: written since the last boot."""
    done: dict[int, BlockReport] = {}
    doubtful: dict[int, BlockReport] = {}
    for same, reports, confirmed in _sessions(path):
        for i, report in enumerate(reports):
            if i < confirmed:
                doubtful.pop(report.index, None)
            elif same and report.index not in done:
                doubtful[report.index] = report
            if i < confirmed or same:
                done[report.index] = report
    return done, list(doubtful.values())


def _sessions(path: Path) -> Iterator[tuple[bool, list[BlockReport], int]]:
    """Whether a session was since the last boot, its blocks, and how many of these are confirmed."""
    same, reports, confirmed = False, list[BlockReport](), 0
    for entry in _lines(path):
        if isinstance(entry, BlockReport):
            reports.append(entry)
        elif "confirmed" in entry:
            confirmed += int(entry["confirmed"])
        else:
            yield same, reports, confirmed
            same, reports, confirmed = entry["boot"] == boot() != "", [], 0
    yield same, reports, confirmed


def _lines(path: Path) -> Iterator[BlockReport | dict[str, Any]]:
    """The entries of a ledger. Behind a line that a power cut has spoilt, nothing of that session counts."""
    raw = path.read_bytes() if path.exists() else b""
    spoilt = False
    for line in raw[: raw.rfind(b"\n") + 1].splitlines():
        try:
            entry = json.loads(line)
            if "boot" in entry:
                spoilt = False
            elif "confirmed" not in entry:
                entry["tile"] = tuple(entry.get("tile", ()))  # JSON knows lists alone
                entry = BlockReport(**entry)
        except (ValueError, TypeError, AttributeError):
            spoilt = True
        if not spoilt:
            yield entry


def _sync_file_system(path: Path) -> None:
    """Have the disk confirm all that was written so far on the file system of a file (Linux)."""
    import ctypes

    handle = os.open(path, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(handle)


@lru_cache(maxsize=1)
def boot() -> str:
    """What tells one run of the operating system from another; empty where that cannot be told (not Linux)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
