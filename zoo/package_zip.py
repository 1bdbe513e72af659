"""The zip of a package, which may come from anybody: looked through before anything of it is read; never extracted."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

from .errors import PackageError, visible

MAX_ENTRIES = 10_000
"""Files of a package."""
MAX_DIRECTORY = 4 * 2**20
"""Bytes of a zip's list of files."""
MAX_RATIO, FREE_RATIO = 200, 64 * 2**20
"""How many times larger than packed a file may be, where it has more than FREE_RATIO bytes: weights are 1 to 10."""
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What every reader of packages unpacks, and no more: of others one never knows how much memory they take."""
AGAIN = "get the package again, from where you trust"
Found = TypeVar("Found")


class PackageZip:
    """The files of a zip. Raises PackageError for one that is broken, or made to harm whoever opens it."""

    def __init__(self, path: str) -> None:
        self.path = path

    @cached_property
    def entries(self) -> dict[str, zipfile.ZipInfo]:
        """Name -> entry, folders left out. Raises PackageError for names that lead outside or come twice, for links,
        encrypted files, more than MAX_ENTRIES, and files that unpack to more than MAX_RATIO of themselves.
        """
        if _directory_bytes(self.path) > MAX_DIRECTORY:
            raise self._refused(f"lists more files than the {MAX_ENTRIES:,} that a package may have")
        listed = self._in_zip(zipfile.ZipFile.infolist)
        if len(listed) > MAX_ENTRIES:
            raise self._refused(f"has {len(listed):,} files; {MAX_ENTRIES:,} are the most that a package may have")
        found: dict[str, zipfile.ZipInfo] = {}
        for info in listed:
            if why := _strange(info):
                raise self._refused(f"has a file {info.filename[:100]!r} that {why}")
            name = str(PurePosixPath(info.filename))
            if name in found:
                raise self._refused(f"has the file {name[:100]!r} twice")
            if not info.is_dir():
                found[name] = info
        return found

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a file. Raises KeyError where there is none of this name, PackageError above `limit` bytes."""
        info = self.entries[name]
        if info.file_size > limit:
            raise self._refused(f"{name} has {info.file_size:,} bytes, more than {limit:,}", colon=True)

        def unpack(archive: zipfile.ZipFile) -> bytes:
            with archive.open(info) as stream:
                return stream.read(info.file_size + 1)

        data = self._in_zip(unpack)
        if len(data) != info.file_size:
            said = f"its list of files says {info.file_size:,}"
            raise self._refused(f"{name} has {len(data):,} bytes, {said}", colon=True)
        return data

    def _in_zip(self, work: Callable[[zipfile.ZipFile], Found]) -> Found:
        """Do something with the open archive. Raises PackageError for what is no whole zip."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return work(archive)
        except MemoryError as error:
            raise PackageError(f"{self.path} holds more than fits into memory.") from error
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OSError,
                ValueError, OverflowError) as error:  # fmt: skip
            if Path(self.path).suffix.lower() != ".zip":
                raise PackageError(
                    f"{self.path} is no model: a package is a .zip or a folder with rdf.yaml.",
                    mend="the model comes first: voidzoo predict MODEL.zip IMAGE -o OUT.ome.zarr",
                ) from error
            raise PackageError(
                f"{self.path} is not a whole zip file: {' '.join(str(error).split())[:200]}.",
                mend="copy or download it again",
            ) from error

    def _refused(self, why: str, *, colon: bool = False) -> PackageError:
        return PackageError(f"{self.path}{':' if colon else ''} {why}.", mend=AGAIN)


def leads_outside(name: str) -> bool:
    """Whether a name is absolute, climbs, names a drive or a stream, or could not be a file's at all."""
    parts = name.replace("\\", "/").split("/")
    return (
        name.startswith(("/", "\\"))
        or ".." in parts
        or bool(re.match(r"[A-Za-z]:", name))
        or len(name) > 1024
        or any(len(p.encode("utf-8", "replace")) > 255 for p in parts)
        or visible(name) != name
        or not set("\n\t").isdisjoint(name)
    )


def _strange(info: zipfile.ZipInfo) -> str:
    """What no package has and an attack could have; nothing where it is a file as any other."""
    if leads_outside(info.filename) or leads_outside(info.orig_filename):
        return "would lie outside of it"
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x2041:
        return "is encrypted"
    if info.compress_type not in METHODS:
        return f"is packed by method {info.compress_type}; stored and deflated files can be read"
    if info.file_size > max(FREE_RATIO, MAX_RATIO * info.compress_size):
        return f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes"
    return ""


def _directory_bytes(path: str) -> int:
    """The size of a zip's list of files, as its last bytes say; zipfile would read all of it at once."""
    try:
        with Path(path).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 2**16 - 98))
            tail = file.read()
    except OSError:
        return 0  # told where it is read
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) < at + 22:
        return 0
    size: int = struct.unpack_from("<L", tail, at + 12)[0]
    if size == 0xFFFFFFFF and at >= 76 and tail[at - 76 : at - 72] == b"PK\6\6":
        size = struct.unpack_from("<Q", tail, at - 76 + 40)[0]
    return size
