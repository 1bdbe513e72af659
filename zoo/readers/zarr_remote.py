"""A zarr store behind a URL, through fsspec: tries again where the network fails, and says which part cannot be had."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from typing import Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import FsspecStore, WrapperStore

from ..errors import DependencyError, ImageError

PAUSES = (0.2, 0.5, 1.0)
"""Seconds before each new try of a request that failed."""

_CONNECT_S, _SILENCE_S = 10, 60
_EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "abfs"}
_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class _Session:
    """The connections and requests of one store, which end with it: fsspec leaves that to whoever asked for them."""

    def __init__(self) -> None:
        self._made: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._requests: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        _sessions.add(self)

    def enter(self) -> None:
        """Remember the request that is running, its loop and thread."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        task = asyncio.current_task()
        if task is not None:
            self._requests.add(task)

    async def make(self, **options: Any) -> Any:
        """An aiohttp session in the running loop."""
        import aiohttp

        options.pop("loop", None)
        session = aiohttp.ClientSession(**options)
        self._made.append(session)
        return session

    async def _end(self) -> None:
        for task in list(self._requests):  # left over where another request of the same read failed
            task.cancel()
        for session in self._made:
            await session.close()

    def close(self) -> None:
        """End requests and connections, from any thread, also when Python shuts down."""
        if self._loop is None or not self._loop.is_running():
            for session in self._made:
                session.detach()  # nobody is left who could close it
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.get_ident() != self._thread:
            with contextlib.suppress(TimeoutError):
                ending.result(timeout=2)


_sessions: weakref.WeakSet[_Session] = weakref.WeakSet()


@atexit.register  # zarr is imported, so its loop is stopped after this
def _close_all() -> None:
    for session in list(_sessions):
        session.close()


class RemoteStore(WrapperStore):  # type: ignore[misc]  # zarr is not type-checked here
    """A read-only zarr store: a request that fails is tried again, then it is an ImageError naming key and URL.

    A key that the server does not know (404) is a missing one: zarr reads missing chunks as the fill value. A server
    that knows no byte ranges and sends all of a file is understood.
    """

    def __init__(self, store: Any, url: str = "", session: _Session | None = None) -> None:
        """`store` reads keys below `url`; `session` has its connections."""
        super().__init__(store)
        self.url = url
        self.session = session or _Session()

    def _with_store(self, store: Any) -> RemoteStore:
        return RemoteStore(store, self.url, self.session)

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """The bytes of a key, None where it is missing. Raises ImageError where they cannot be had."""
        self.session.enter()
        for pause in (*PAUSES, None):
            try:
                return _part(await self._store.get(key, prototype, byte_range), byte_range)
            except Exception as error:  # every file system has its own exceptions
                status = getattr(error, "status", None)
                if status == 403 and key.rpartition("/")[2] in _METADATA:
                    return None  # what S3 answers for a missing key when listing is not allowed
                final = status is not None and 400 <= status < 500 and status not in (408, 425, 429)
                if pause is None or final or isinstance(error, PermissionError):
                    raise self._error(key, error, tries=1 if final else len(PAUSES) + 1) from error
            await asyncio.sleep(pause)
        raise AssertionError  # the last try returns or raises

    def _error(self, key: str, error: Exception, tries: int) -> ImageError:
        reason = " ".join(str(error).split()) or type(error).__name__
        often = f"; tried {tries} times" if tries > 1 else ""
        return ImageError(
            f"{key} of {self.url} cannot be read.",
            f"{self.url}/{key}: {type(error).__name__}: {reason[:200]}{often}",
            "check the network and the address, then run the same again"
            + (" (FSSPEC_S3_ANON=true reads a public bucket)" if self.url.startswith("s3") else ""),
        )


def _part(value: Any, byte_range: Any) -> Any:
    """The bytes that were asked for, also out of a whole file. Raises OSError for fewer."""
    if value is None or byte_range is None:
        return value
    if isinstance(byte_range, RangeByteRequest):
        wanted, start = byte_range.end - byte_range.start, byte_range.start
    elif isinstance(byte_range, SuffixByteRequest):
        wanted, start = byte_range.suffix, len(value) - byte_range.suffix
    elif isinstance(byte_range, OffsetByteRequest):
        return value  # its length is not known
    if len(value) > wanted:
        value = value[start : start + wanted]
    if len(value) < wanted:
        raise OSError(f"{len(value)} bytes of {wanted} came")
    return value


def remote_store(url: str) -> RemoteStore:
    """The store behind `url`: http(s) with fsspec[http], s3, gs and others where their fsspec library is installed.

    Raises DependencyError where it is not, ImageError for a scheme that nobody knows.
    """
    scheme = url.partition("://")[0].lower()
    session = _Session()
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
            options = {
                "get_client": session.make,
                "client_kwargs": {"timeout": timeout},
                "skip_instance_cache": True,  # it must go with the store, and its connections with it
            }
        inner = FsspecStore.from_url(url.rstrip("/"), storage_options=options, read_only=True)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        raise DependencyError(
            f"{scheme}:// needs a library that is not installed.",
            f"{url}: {error}",
            f'pip install "fsspec[{extra}]"' if extra else f"install the fsspec library for {scheme}",
        ) from error
    except ValueError as error:
        raise ImageError(
            f"{scheme}:// is no address that can be read.", f"{url}: {error}", "https://, s3://, gs://"
        ) from error
    store = RemoteStore(inner, url.rstrip("/"), session)
    weakref.finalize(store, session.close).atexit = False
    return store
