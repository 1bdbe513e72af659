"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from .errors import OutputError, VoidzooError

if TYPE_CHECKING:
    from collections.abc import Callable


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` beside `path`, then rename: nobody sees half a file, not after a kill and not after a power cut.

    Raises OutputError where the system refuses (no room, no rights); what was there before is still there then.
    """
    beside = path.with_name(path.name + ".part")
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise _refused(path, error) from error


def replace_folder(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` an empty folder beside `path`, then rename: nobody sees half a folder. What lay at `path` goes.

    Raises OutputError where the system refuses; what was there before is still there then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".voidzoo-", dir=path.parent) as beside:
            new, old = Path(beside) / "new", Path(beside) / "old"
            new.mkdir()
            write(new)
            for file in new.rglob("*"):
                if file.is_file():
                    with file.open("rb+") as opened:
                        os.fsync(opened.fileno())
            if path.exists():
                path.rename(old)
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
    except OSError as error:
        raise error if isinstance(error, VoidzooError) else _refused(path, error) from error


def _refused(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror or error}.",
        mend="make room or mend the rights; then the same command again",
    )
