"""The lock of a place: one process at a time makes a result; what a process that is gone has left is taken over."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..zoo.errors import OutputError
from .ledger import boot

LOCK = "lock.json"
PATIENCE = 2.0
"""Seconds until a lock without a name counts as that of a process that died before it could write it."""


@contextlib.contextmanager
def held(lock: Path, out: Path) -> Iterator[None]:
    """Keep the folder of a lock file for this process alone; it is made, and removed where nothing is left in it.

    out: what is being made there, for people. Raises OutputError while another process, here or elsewhere, has it.
    """
    mine = json.dumps(_this_process())
    while not _create(lock, mine):
        _take_away(lock, out)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if lock.read_text() == mine:
                lock.unlink()
            lock.parent.rmdir()  # where nothing is left


def _take_away(lock: Path, out: Path) -> None:
    """Remove a lock whose process is gone. Raises OutputError for one that holds."""
    with contextlib.suppress(FileNotFoundError), _alone(lock) as text:
        holder = _parsed(text)
        if holder is None:
            if time.time() - lock.stat().st_mtime > PATIENCE:
                lock.unlink()
            else:  # it is being written
                time.sleep(0.05)
            return
        here = holder.get("host") == platform.node()
        if here and _started(holder["pid"]) != holder.get("started"):
            lock.unlink()
            return
        raise OutputError(
            f"{out} is being made by another process.",
            where=f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}",
            mend="wait for it, or another -o" if here else f"if it runs no more over there:   rm {lock}",
        )


def _this_process() -> dict[str, Any]:
    pid, since = os.getpid(), time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": platform.node(), "pid": pid, "started": _started(pid), "since": since}


def _started(pid: int) -> str | None:
    """What tells a running process from an earlier one of the same number; None where none runs."""
    import psutil

    try:  # the time since boot: clocks are set, also while a process runs
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else f"{boot()} {fields[19]}"
    except (OSError, IndexError):
        pass
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _create(lock: Path, text: str) -> bool:
    """Make a lock file that was not there. -> whether it is ours. Raises OSError with the file's name."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except (FileExistsError, FileNotFoundError):  # the second: its folder has just gone with another lock
        return False
    try:
        os.write(handle, text.encode())
    except OSError as error:
        lock.unlink()
        raise OSError(error.errno, error.strerror, str(lock)) from error
    finally:
        os.close(handle)
    return True


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[str]:
    """The text of a lock, while no other process looks at it: of two that find it left behind, one takes it over.

    Raises FileNotFoundError for a lock that has just gone.
    """
    with lock.open() as file:
        with contextlib.suppress(ImportError, OSError):  # Windows; network drives without locks
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        if not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            raise FileNotFoundError(lock)
        text = file.read()
        if os.name == "nt":  # there, nothing can be removed that is open
            file.close()
        yield text


def _parsed(text: str) -> dict[str, Any] | None:
    """What a lock says; None for one that was not written to its end."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        found = dict(json.loads(text))
        return {**found, "pid": int(found["pid"])}
    return None
