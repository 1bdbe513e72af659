"""A file behind http(s), brought to the disk whole or not at all; what broke off goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from .errors import NetworkError, OutputError
from .package_files import MAX_FILE
from .version import __version__

if TYPE_CHECKING:
    import httpx

MAX_DOWNLOAD = MAX_FILE
"""Bytes of a package; a server that sends more is left."""
CONNECT_S, SILENCE_S = 10.0, 30.0
"""Seconds until a server that does not answer, or stops sending, is given up."""
SLOW_S, SLOW_BYTES = 60.0, 64 * 1024
"""A server that sends less in this time is given up: one byte now and then is no transfer."""
PAUSES = (0.5, 2.0)
"""Seconds before each new try of a transfer that broke off; tries that bring more than a MB do not count."""
REDIRECTS = 10
SECRET = re.compile(r"tok|sig|key|secret|passw|pwd|cred|auth|session", re.IGNORECASE)
"""Parameters of an address whose values are not shown."""


@dataclass(frozen=True)
class Fetching:
    """Bytes of a download that are there; total: None where the server does not say. url: without secrets."""

    url: str
    done: int
    total: int | None


Watch = Callable[[Fetching], None]


class _Broken(Exception):  # noqa: N818  (never leaves this file)
    """A transfer that is worth another try."""


def is_url(text: str) -> bool:
    """Whether it begins as an address of the web does."""
    return text.lower().startswith(("http://", "https://"))


def shown(url: str) -> str:
    """An address as it may be shown and stored: without name and password, and without keys and signatures."""
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return "an address that is none"
    hidden = "&".join(f"{quote(k)}={'...' if SECRET.search(k) else quote(v, safe='/:,')}" for k, v in pairs)
    query = hidden if any(SECRET.search(k) for k, _ in pairs) else parts.query
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


@contextlib.contextmanager
def client() -> Iterator[httpx.Client]:
    """Connections for some downloads. Redirects lead to http(s) only, and never from https to http."""
    import httpx

    def allowed(response: httpx.Response) -> None:
        if response.has_redirect_location:
            target = response.url.join(response.headers["location"])
            if target.scheme not in ("https", response.url.scheme):
                raise NetworkError(
                    f"{shown(str(response.url))} leads from {response.url.scheme} to {target.scheme}.",
                    mend="the address that it should lead to, if you trust it",
                )

    with httpx.Client(
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        follow_redirects=True,
        max_redirects=REDIRECTS,
        headers={"User-Agent": f"voidzoo/{__version__}", "Accept-Encoding": "identity"},
        event_hooks={"response": [allowed]},
    ) as made:
        yield made


def download(http: httpx.Client, url: str, to: Path, limit: int = 0, watch: Watch | None = None) -> None:
    """Bring what lies at `url` to the file `to`, by way of a .part beside it, from which the next call goes on.

    limit: bytes, by default MAX_DOWNLOAD. Raises NetworkError for a server that cannot be reached, refuses, breaks off
    again and again, is too slow or sends more than the limit; OutputError where the disk refuses.
    """
    part = to.with_name(to.name + ".part")
    tries = 0
    while True:
        before = size_of(part)
        try:
            _transfer(http, url, part, limit or MAX_DOWNLOAD, watch or (lambda _event: None))
            break
        except _Broken as error:
            tries = 1 if size_of(part) - before > 2**20 else tries + 1
            if tries > len(PAUSES):
                raise NetworkError(
                    f"{shown(url)} breaks off: {error}.",
                    where=f"{size_of(part):,} bytes came, after {tries} tries",
                    mend="the same command again goes on from there",
                ) from error
            time.sleep(PAUSES[tries - 1])
        except OSError as error:
            if isinstance(error, NetworkError | OutputError):
                raise
            _forget(part)  # a full disk is not left full
            raise OutputError(
                f"{part} cannot be written: {error.strerror or error}.",
                mend="make room or mend the rights; then the same command again",
            ) from error
    _mark(part).unlink(missing_ok=True)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(to)


def _transfer(http: httpx.Client, url: str, part: Path, limit: int, tell: Watch) -> None:
    """One request. Raises _Broken where another may do better, httpx's errors in words."""
    import httpx

    address, login = _apart(url)
    have, mark = size_of(part), _read_mark(part)
    headers = {"Range": f"bytes={have}-", "If-Range": mark} if have and mark else {}
    try:
        with http.stream("GET", address, headers=headers, auth=login) as answer:
            have = _begin(answer, url, part, have if headers else 0, mark)
            length = _length(answer)
            total = None if length is None else have + length
            if max(have, total or 0) > limit:
                _forget(part)
                raise NetworkError(f"{shown(url)} has {total or have:,} bytes, more than {limit:,}.")
            _room(part, length or 0)
            _receive(answer, url, part, have, total, limit, tell)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise NetworkError(
            f"{shown(url)} cannot be reached.", where=_reason(error), mend="check the network and the address"
        ) from error
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise NetworkError(f"{shown(url)} is no address that can be read.", where=_reason(error)) from error
    except httpx.TransportError as error:
        raise _Broken(_reason(error)) from error
    except httpx.HTTPError as error:  # e.g. a compressed body that is not
        raise NetworkError(f"{shown(url)} cannot be read.", where=_reason(error)) from error


def _begin(answer: httpx.Response, url: str, part: Path, have: int, mark: str | None) -> int:
    """Where the body that follows begins. Raises for any answer that brings none."""
    status = answer.status_code
    if status == 206 and have:
        first = re.match(r"bytes (\d+)-", answer.headers.get("content-range", ""))
        same = mark in (answer.headers.get("etag", mark), answer.headers.get("last-modified"))
        if first and int(first[1]) == have and same:
            return have
    if status in (206, 416):  # another part, or one of another file
        _forget(part)
        raise _Broken(f"the server answers {status} for the rest")
    if status in (408, 425, 429) or status >= 500:
        raise _Broken(f"the server answers {status} {answer.reason_phrase}".strip())
    if status in (401, 403):
        raise NetworkError(
            f"{shown(url)} is not open to everyone ({status}).", mend="https://NAME:PASSWORD@... if you have an account"
        )
    if status != 200:
        raise NetworkError(f"there is nothing at {shown(url)} ({status}).", mend="check the address")
    _forget(part)
    tag, changed = answer.headers.get("etag"), answer.headers.get("last-modified")
    known = tag if tag and not tag.startswith("W/") else changed
    if known and not _encoded(answer):
        _mark(part).write_text(json.dumps(known))
    return 0


def _receive(
    answer: httpx.Response, url: str, part: Path, have: int, total: int | None, limit: int, tell: Watch
) -> None:  # fmt: skip
    name = shown(url)
    tell(Fetching(name, have, total))
    since, then, told = time.monotonic(), have, time.monotonic()
    with part.open("ab" if have else "wb") as file:
        for piece in answer.iter_bytes():
            have += len(piece)
            if have > limit:
                file.close()
                _forget(part)
                raise NetworkError(f"{name} sends more than {limit:,} bytes.", mend="a package is smaller")
            file.write(piece)
            now = time.monotonic()
            if now - since > SLOW_S:
                if have - then < SLOW_BYTES:
                    raise _Broken(f"{have - then:,} bytes came in {now - since:.0f} s")
                since, then = now, have
            if now - told > 0.2:
                told = now
                tell(Fetching(name, have, total))
    tell(Fetching(name, have, have))


def _apart(url: str) -> tuple[str, tuple[str, str] | None]:
    """The address without name and password, so that no message or log has them; and these."""
    import httpx

    try:
        found = httpx.URL(url)
        login = (found.username, found.password) if found.userinfo else None
        return str(found.copy_with(userinfo=b"", fragment=None)), login
    except httpx.InvalidURL as error:
        raise NetworkError(f"{shown(url)} is no address that can be read.", where=_reason(error)) from error


def _length(answer: httpx.Response) -> int | None:
    told = answer.headers.get("content-length", "")
    return int(told) if told.isdigit() and not _encoded(answer) else None


def _encoded(answer: httpx.Response) -> bool:
    return answer.headers.get("content-encoding", "identity").lower() not in ("", "identity")


def _room(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OutputError(
            f"the download needs {needed / 1e6:,.0f} MB; {part.parent} has {free / 1e6:,.0f} MB free.",
            mend="make room, or VOIDZOO_CACHE=FOLDER on another disk",
        )


def _mark(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_mark(part: Path) -> str | None:
    """What the server called the file of which a part is here: its ETag or time."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(_mark(part).read_text())
        return found if isinstance(found, str) else None
    return None


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _mark(part).unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none."""
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def sha256_of(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
