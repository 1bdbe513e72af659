"""Packages from the web, kept on the disk: one zip an address, with its sha256, which is checked at every use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from .download import Fetching, Watch, client, download, sha256_of, shown, size_of
from .errors import NetworkError, OutputError, PackageError, VoidzooError
from .files import replace_file
from .package_files import PackageFiles

ENTRY = "entry.json"
POLL_S = 0.2
"""Seconds between two looks whether another process is done with the same download."""


@dataclass(frozen=True)
class Cached:
    """A package that was fetched. url: without secrets; model: its id and version in the collection, or empty.

    fetched: when, UTC. sha256: of the zip.
    """

    path: str
    url: str
    sha256: str
    fetched: str
    model: str = ""


def cache_folder() -> Path:
    """Where fetched models are kept: VOIDZOO_CACHE, or what the platform has for caches."""
    if told := os.environ.get("VOIDZOO_CACHE"):
        return Path(told).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("voidzoo", appauthor=False)


def cached() -> list[Cached]:
    """What was fetched and is still there, by name; whether it is whole is checked at its use."""
    entries = (cache_folder() / "packages").glob(f"*/{ENTRY}")
    return sorted((c for e in entries if (c := _read(e.parent)) is not None), key=lambda c: (Path(c.path).name, c.url))


def kept(url: str, sha256: str | None = None) -> Cached | None:
    """The package of an address, where it lies here undamaged (and has the sha256); nothing is fetched."""
    found = _read(_folder(url))
    if found is None or sha256 not in (None, found.sha256):
        return None
    with contextlib.suppress(OSError):
        return found if sha256_of(Path(found.path)) == found.sha256 else None
    return None


def fetch_package(url: str, sha256: str | None = None, model: str = "", watch: Watch | None = None) -> Cached:
    """The package at an address, fetched where it is not kept: a zip, or an rdf.yaml whose files lie beside it.

    sha256: that the zip must have. model: what the collection calls it. Another process that fetches the same is
    waited for. Raises NetworkError, PackageError for what is no package or has another sha256, OutputError.
    """
    if (found := kept(url, sha256)) is not None:
        return found
    folder = _folder(url)
    damaged = (folder / ENTRY).is_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(
            folder, lambda: watch and watch(Fetching(shown(url), size_of(folder / "work" / "came.part"), None))
        ):
            return kept(url, sha256) or _fetch(url, folder, sha256, model, watch)
    except NetworkError as error:
        note = "the copy that is kept here is damaged or another" if damaged else "no copy of it is kept here"
        raise NetworkError(error.what, f"{error.where}; {note}" if error.where else note, error.mend) from error
    except VoidzooError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror or error}.", mend="VOIDZOO_CACHE=FOLDER on another disk"
        ) from error


def _fetch(url: str, folder: Path, sha256: str | None, model: str, watch: Watch | None) -> Cached:
    """Fetch into `folder`, which is ours alone. What a cut-off transfer left in `work` is used."""
    work = folder / "work"
    work.mkdir(exist_ok=True)
    came, name = work / "came", _name(url, model)
    try:
        with client() as http:
            if not came.is_file():
                download(http, url, came, watch=watch)
            if not zipfile.is_zipfile(came):
                from .gather import could_be_description, gather

                if not could_be_description(came):
                    raise _no_package(url, came)
                rdf, came = came.replace(work / "rdf.yaml"), work / "made"
                gather(http, url, rdf, came, watch)
        PackageFiles(str(came)).rdf()
        digest = sha256_of(came)
        if sha256 is not None and digest != sha256:
            raise PackageError(
                f"{shown(url)} is another file: its sha256 is {digest[:12]}..., not {sha256[:12]}....",
                mend="leave #sha256=... out if you trust what is there now",
            )
    except PackageError as error:
        shutil.rmtree(work, ignore_errors=True)
        told = re.sub(re.escape(str(work)) + r"[\\/](came|made|rdf\.yaml)", lambda _m: shown(url), error.what)
        raise PackageError(told, error.where, error.mend) from error
    place = folder / name
    came.replace(place)
    shutil.rmtree(work, ignore_errors=True)
    found = Cached(str(place), shown(url), digest, datetime.now(UTC).isoformat(timespec="seconds"), model)
    replace_file(folder / ENTRY, lambda path: path.write_text(json.dumps({**asdict(found), "path": name}, indent=1)))
    return found


def _no_package(url: str, came: Path) -> PackageError:
    with came.open("rb") as file:
        begin = file.read(40).decode("ascii", "replace")
    begin = "".join(c if c.isprintable() else " " for c in begin).strip()
    return PackageError(
        f"{shown(url)} is no model: neither a zip nor an rdf.yaml.",
        where=f"it begins with {begin!r}" if begin else "it is empty",
        mend="the address of the package itself, not of the page about it",
    )


def _read(folder: Path) -> Cached | None:
    """The entry of a folder as it is written there."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        told = json.loads((folder / ENTRY).read_text())
        found = Cached(**{**told, "path": str(folder / Path(told["path"]).name)})
        return found if Path(found.path).is_file() else None
    return None


def _folder(url: str) -> Path:
    """One an address, whoever logs in."""
    parts = urlsplit(url)
    plain = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
    return cache_folder() / "packages" / hashlib.sha256(plain.encode()).hexdigest()[:20]


def _name(url: str, model: str) -> str:
    """What the zip is called: as the collection calls it, or like the file or folder of its address."""
    parts = [p for p in urlsplit(url).path.split("/") if p not in ("content", "files") and not p.endswith(".yaml")]
    name = model.replace("@", "-") or next((p for p in reversed(parts) if p), "")
    stem = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    return f"{stem.removesuffix('.zip')[:80] or 'model'}.zip"


@contextlib.contextmanager
def _alone(folder: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Wait until no other process of this machine fetches into a folder. A lock goes with its process."""
    with (folder / "lock").open("a+") as file:
        while not _lock(file.fileno()):
            waiting()
            time.sleep(POLL_S)
        yield


def _lock(handle: int) -> bool:
    """Whether the lock is ours; also where the file system knows none: two downloads then meet at a rename."""
    try:
        if os.name == "nt":  # pragma: no cover
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True
