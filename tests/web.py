"""A web server on loopback that serves files as good servers do, and misbehaves where a test says so."""

from __future__ import annotations

import os
import shutil
import ssl
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from voidzoo.zoo.package import Package


class Handler(SimpleHTTPRequestHandler):
    """Files whole or from a byte on, with an ETag; `Server` says what goes wrong."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Answer, by the misbehaviour of the path where there is one."""
        server, path = self.server, self.path.partition("?")[0]
        server.asked[self.path] += 1
        server.headers.append(dict(self.headers.items()))
        if path in server.redirects:
            self._head(302, Location=server.redirects[path])
            return
        status = next(server.statuses.get(path, iter(())), 200)
        file = Path(self.translate_path(path))
        if status != 200 or not file.is_file():
            self.send_error(404 if status == 200 else status)
            return
        self._file(file.read_bytes(), path)

    def _file(self, body: bytes, path: str) -> None:
        server, start = self.server, 0
        tag = f'"{sha256(body).hexdigest()[:16]}"'
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        length = len(body) - start
        told = {"Content-Length": str(length + server.longer.get(path, 0)), "ETag": tag}
        if start:
            told["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        if path in server.endless:
            del told["Content-Length"]
        self._head(206 if start else 200, **told)
        stop = next(server.cuts.get(path, iter(())), None)
        if stop is not None or path in server.longer or path in server.endless:
            self.close_connection = True
        piece = body[start:] if stop is None else body[start : start + stop]
        for at in range(0, len(piece), server.piece):
            if server.pause:
                server.over.wait(server.pause)
            self.wfile.write(piece[at : at + server.piece])
            server.sent += len(piece[at : at + server.piece])
        while path in server.endless and not server.stopping:
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                return

    def _head(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items() if status == 302 else headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """What it was asked, and how it misbehaves by path: statuses, cuts (bytes that a try gets, while they last),
    longer (bytes that are promised and do not come), endless bodies, redirects; no ranges; seconds of pause a piece.
    """

    daemon_threads = True
    stopping = False
    scheme = "http"

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.statuses: dict[str, Iterator[int]] = {}
        self.cuts: dict[str, Iterator[int]] = {}
        self.longer: dict[str, int] = {}
        self.endless: set[str] = set()
        self.redirects: dict[str, str] = {}
        self.ranges = True
        self.pause = 0.0
        self.over = threading.Event()
        self.piece = 1 << 16
        self.sent = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is what some tests are about."""


TLS = Path(__file__).parent / "data" / "tls" / "loopback.pem"
"""A certificate for 127.0.0.1, with its key, made for these tests: whoever sets SSL_CERT_FILE to it trusts it."""


@contextmanager
def serving(folder: Path, *, tls: bool = False) -> Iterator[Server]:
    """A server of a folder, stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Server(folder)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(TLS)
        made.socket = context.wrap_socket(made.socket, server_side=True)
        made.scheme = "https"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.stopping = True
        made.over.set()
        made.shutdown()
        made.server_close()
        thread.join()


def zip_folder(folder: Path, to: Path) -> Path:
    """A zip of the files of a folder."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(to, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder).as_posix())
    return to


def lay_out(made: Package, folder: Path, **rdf: Any) -> Path:
    """The package's files, with covers that are there and that are not."""
    shutil.copytree(made.path, folder, dirs_exist_ok=True)
    told = yaml.safe_load((folder / "rdf.yaml").read_text())
    (folder / "cover.png").write_bytes(os.urandom(99))
    told |= {"covers": ["cover.png", "gone.png"], "documentation": "https://example.org/README.md", **rdf}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
    return folder
