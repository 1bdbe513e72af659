"""Opening a TIFF file: refusing what is none, and catching what tifffile says about it."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tifffile

from ..errors import ImageError, VoidzooError
from .tiff_list import plain_series

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Messages(logging.Handler):
    """Collects what tifffile says while this thread opens a file, instead of it going to stderr."""

    def __init__(self) -> None:
        """Listens for this thread from warnings upwards."""
        super().__init__(logging.WARNING)
        self.thread = threading.get_ident()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        if threading.get_ident() == self.thread:
            self.lines.append(record.getMessage())


@contextmanager
def opened(path: str) -> Iterator[tuple[Any, list[str]]]:
    """The `tifffile.TiffFile` and what tifffile had to say. Raises ImageError for what is not a TIFF or broken."""
    messages = _Messages()
    logger = logging.getLogger("tifffile")
    logger.addHandler(messages)
    name = Path(path).name
    try:
        size = Path(path).stat().st_size
        if size == 0:
            raise ImageError(f"{name} is empty: 0 bytes.", path, "copy it again from where it came")
        try:
            tif = tifffile.TiffFile(path)
        except tifffile.TiffFileError as error:
            with Path(path).open("rb") as file:
                head = file.read(8)
            raise ImageError(
                f"{name} is not a TIFF file: it begins with {head!r}.",
                path,
                "give it its true ending, or export it as OME-TIFF",
            ) from error
        except Exception as error:
            raise broken(name, path, error, size) from error
        with tif:
            try:
                plain = plain_series(tif) if _has_pages(tif) else None
                if plain:
                    tif.series = plain  # in place of the property that would parse every page
                if not _has_pages(tif) or not tif.series:
                    raise ImageError(
                        f"{name} holds no image: {size} bytes, but the list of pages points outside of them.",
                        path,
                        "the file is cut: copy or export it again",
                    )
            except ImageError:
                raise
            except Exception as error:
                raise broken(name, path, error, size) from error
            try:
                yield tif, messages.lines
            except VoidzooError:
                raise
            except Exception as error:  # damaged tags surface anywhere, as any kind of error
                raise broken(name, path, error, size) from error
    finally:
        logger.removeHandler(messages)


def _has_pages(tif: Any) -> bool:
    """True for a list of pages that begins somewhere; its length is not asked for: that would walk all of it."""
    try:
        return tif.pages.first is not None
    except IndexError:
        return False


def broken(name: str, path: str, error: Exception, size: int) -> ImageError:
    """The error for a TIFF whose structure cannot be followed."""
    return ImageError(
        f"{name} is a broken TIFF file of {size} bytes.",
        f"{path}: {type(error).__name__}: {error}",
        "the file is damaged or cut: copy or export it again from where it came",
    )
