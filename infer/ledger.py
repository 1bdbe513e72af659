"""Which blocks are done: an append-only file of JSON lines, written by the client alone, after the data is durable."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO

from .blocks import BlockReport

COMMIT_SECONDS = 0.5


class Ledger:
    """The finished blocks of one result. A line that a crash cut short is dropped; its block is done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, BlockReport] = {}
        if path.exists():
            self._read()
        self._file: IO[bytes] = path.open("ab")
        self._committed = time.monotonic()

    def _read(self) -> None:
        raw = self.path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                report = BlockReport(**json.loads(line))
            except (ValueError, TypeError):
                continue  # torn by a crash in the middle of the file system's write
            self.done[report.index] = report
        if len(whole) < len(raw):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, report: BlockReport) -> None:
        """Record a block whose data is durable. The line survives a kill at once, a power cut half a second later."""
        self.done[report.index] = report
        self._file.write(json.dumps(asdict(report)).encode() + b"\n")
        self._file.flush()
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make all that was added durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._committed = time.monotonic()

    def close(self) -> None:
        """Commit and close."""
        if not self._file.closed:
            self.commit()
            self._file.close()
