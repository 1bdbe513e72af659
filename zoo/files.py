"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


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
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}.",
            mend="make room or mend the rights; then the same command again",
        ) from error
