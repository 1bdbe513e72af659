"""OME-Zarr behind a URL: a real HTTP server on loopback that works, fails now and then, cuts answers short, or dies."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr

from voidzoo.zoo.errors import AxesError, ImageError
from voidzoo.zoo.image import PixelSize
from voidzoo.zoo.open import open_image
from voidzoo.zoo.readers import zarr_remote

SHAPE = (2, 5, 40, 36)


class Handler(SimpleHTTPRequestHandler):
    """Serves files whole or by byte ranges, and misbehaves where the server says so."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """A file or a part of it."""
        server, path = self.server, self.path
        if server.dead:
            self.close_connection = True
            return
        server.asked[path] += 1
        status = next(server.statuses.get(path, iter(())), 200)
        file = Path(self.translate_path(path))
        if status != 200 or not file.is_file():
            self.send_error(404 if status == 200 else status)
            return
        body, code = file.read_bytes(), 200
        wanted = self.headers.get("Range")
        if wanted and server.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(body) - int(last)
            stop = int(last) + 1 if first and last else len(body)
            body, code = body[start:stop], 206
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if path in server.cut:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)
        server.sent += len(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """What it was asked for, and for which paths it answers with an error (`statuses`) or half of the body (`cut`)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.asked: Counter[str] = Counter()
        self.statuses: dict[str, Iterator[int]] = {}
        self.cut: set[str] = set()
        self.ranges = True
        self.dead = False
        self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def die(self) -> None:
        """No answer from now on, also on open connections."""
        self.dead = True
        self.shutdown()
        self.server_close()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(zarr_remote, "PAUSES", (0.01, 0.02, 0.03))
    made = Server(tmp_path)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(1, 60000, SHAPE, dtype=np.uint16)


KINDS = {"0.4": (2, None), "0.5": (3, None), "0.5 sharded": (3, (1, 5, 40, 36))}


def write(path: Path, pixels: np.ndarray, kind: str, chunks: tuple[int, ...] = (1, 5, 20, 18)) -> None:
    """An OME-Zarr with two levels, one channel a chunk."""
    fmt, shards = KINDS[kind]
    group = zarr.create_group(path, zarr_format=fmt)
    axes = [{"name": "c", "type": "channel"}] + [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = []
    for level in (0, 1):
        part = pixels[..., :: 2**level, :: 2**level]
        array = group.create_array(
            str(level), shape=part.shape, dtype=part.dtype, chunks=chunks if not level else part.shape,
            shards=None if level else shards, fill_value=7,
        )  # fmt: skip
        array[:] = part
        scale = [1.0, 2.0, 0.5 * 2**level, 0.25 * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    meta = {"multiscales": [{"axes": axes, "datasets": datasets}]}
    group.attrs.update({**meta, "version": "0.4"} if fmt == 2 else {"ome": {"version": "0.5", **meta}})


CHUNK = {"0.4": "0/1.0.1.0", "0.5": "0/c/1/0/1/0", "0.5 sharded": "0/c/1/0/0/0"}
"""The key under which the lower left chunk of channel 1 lies."""


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_behind_a_url_reads_as_the_file_does(tmp_path, server, pixels, kind):
    """Axes, um, levels, random regions; each chunk is asked for once; nothing is read at opening but metadata."""
    write(tmp_path / "a.ome.zarr", pixels, kind)
    url = f"{server.url}/a.ome.zarr"
    image = open_image(url)
    assert all(key.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")) for key in server.asked)
    assert (image.name, image.axes, image.shape) == ("a.ome.zarr", "czyx", SHAPE)
    assert image.pixel_size == PixelSize(z=2.0, y=0.5, x=0.25)
    assert image.path is None  # nothing that a file system knows
    assert image.identity["url"] == f"{url}/0"
    rng = np.random.default_rng(4)
    for _ in range(10):
        region = {a: slice(*np.sort(rng.choice(n + 1, 2, replace=False))) for a, n in image.sizes.items()}
        assert np.array_equal(image.read(region), pixels[tuple(region[a] for a in "czyx")])
    assert np.array_equal(image.read(), pixels)
    assert image.decoded == image.nbytes
    if kind != "0.5 sharded":  # of shards, parts are asked for
        assert all(n == 1 for key, n in server.asked.items() if "/0/c/" in key or key.count(".") > 4)
    assert np.array_equal(open_image(url, level=1).read(), pixels[..., ::2, ::2])
    level = open_image(url + "/1/")
    assert (level.name, level.axes, level.pixel_size.x) == ("a.ome.zarr/1", "czyx", 0.5)


def test_a_small_region_of_a_shard_costs_little(tmp_path, server, rng):
    """Of a shard, the index and the chunks that a region touches are sent, not the whole."""
    pixels = rng.integers(0, 60000, (2, 5, 400, 360), dtype=np.uint16)
    KINDS["large"] = (3, (1, 5, 400, 360))
    write(tmp_path / "a.ome.zarr", pixels, "large", chunks=(1, 1, 20, 18))
    del KINDS["large"]
    image = open_image(f"{server.url}/a.ome.zarr")
    server.sent = 0
    region = {"c": slice(0, 1), "z": slice(0, 1), "y": slice(0, 30), "x": slice(0, 30)}
    assert np.array_equal(image.read(region), pixels[:1, :1, :30, :30])
    assert server.sent < 100_000 < image.nbytes / 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_byte_ranges_is_understood(tmp_path, server, pixels, kind):
    """A server that sends the whole file where a part was asked for: the part is taken out of it."""
    server.ranges = False
    write(tmp_path / "a.ome.zarr", pixels, kind)
    image = open_image(f"{server.url}/a.ome.zarr")
    assert np.array_equal(image.read({"y": slice(3, 25)}), pixels[:, :, 3:25])


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_chunk_is_the_fill_value(tmp_path, server, pixels, kind):
    """As in a folder: a chunk that is not there (404) was never written, and reads as the fill value."""
    write(tmp_path / "a.ome.zarr", pixels, kind)
    (tmp_path / "a.ome.zarr" / CHUNK[kind]).unlink()
    expected = pixels.copy()
    expected[1, :, *((slice(None), slice(None)) if kind == "0.5 sharded" else (slice(20, 40), slice(0, 18)))] = 7
    assert np.array_equal(open_image(f"{server.url}/a.ome.zarr").read(), expected)
    assert np.array_equal(open_image(tmp_path / "a.ome.zarr").read(), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_twice_is_asked_again(tmp_path, server, pixels, kind, status):
    """Two failures in a row, of metadata and of a chunk, are not noticed."""
    write(tmp_path / "a.ome.zarr", pixels, kind)
    meta = "/a.ome.zarr/0/" + ("zarr.json" if kind != "0.4" else ".zarray")
    chunk = f"/a.ome.zarr/{CHUNK[kind]}"
    server.statuses = {key: iter([status, status]) for key in (meta, chunk)}
    assert np.array_equal(open_image(f"{server.url}/a.ome.zarr").read(), pixels)
    assert server.asked[chunk] >= 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "tries"), [(500, 4), (403, 1)])
def test_a_chunk_that_cannot_be_had_is_one_error(tmp_path, server, pixels, kind, status, tries):
    """An error that stays names key, URL and status, after three more tries where that may help; the rest still reads."""
    write(tmp_path / "a.ome.zarr", pixels, kind)
    chunk = f"/a.ome.zarr/{CHUNK[kind]}"
    server.statuses[chunk] = itertools.repeat(status)
    image = open_image(f"{server.url}/a.ome.zarr")
    with pytest.raises(ImageError) as caught:
        image.read()
    assert caught.value.what == f"{CHUNK[kind]} of {server.url}/a.ome.zarr cannot be read."
    assert f"{server.url}{chunk}: " in caught.value.where
    assert str(status) in caught.value.where
    assert ("tried 4 times" in caught.value.where) == (tries == 4)
    assert caught.value.mend
    assert server.asked[chunk] == tries
    assert np.array_equal(image.read({"c": slice(0, 1)}), pixels[:1])
    server.statuses.clear()  # it is up again: the same image goes on
    assert np.array_equal(image.read(), pixels)


def test_an_answer_cut_short_is_tried_again_and_then_an_error(tmp_path, server, pixels):
    """Half of a chunk is never taken for the chunk."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    chunk = f"/a.ome.zarr/{CHUNK['0.5']}"
    server.cut.add(chunk)
    with pytest.raises(ImageError, match=r"c/1/0/1/0 of .* cannot be read") as caught:
        open_image(f"{server.url}/a.ome.zarr").read()
    assert "tried 4 times" in caught.value.where
    assert server.asked[chunk] == 4


def test_a_server_that_dies_midway(tmp_path, server, pixels):
    """What was read stays right; the next block is an ImageError that names the URL; opening again is one, too."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    image = open_image(f"{server.url}/a.ome.zarr")
    assert np.array_equal(image.read({"c": slice(0, 1)}), pixels[:1])
    server.die()
    with pytest.raises(ImageError, match=f"0/c/1/0/0/0 of {server.url}/a.ome.zarr cannot be read"):
        image.read({"c": slice(1, 2), "y": slice(0, 3), "x": slice(0, 3)})
    assert np.array_equal(image.read({"c": slice(0, 1)}), pixels[:1])  # kept
    with pytest.raises(ImageError, match="cannot be read") as caught:
        open_image(f"{server.url}/a.ome.zarr")
    assert server.url in caught.value.where


def test_a_damaged_chunk_names_url_and_chunk(tmp_path, server, pixels):
    """Bytes that do not decode are an error that names the chunk, also among others, and are not asked for again."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    file = tmp_path / "a.ome.zarr" / CHUNK["0.5"]
    file.write_bytes(b"\x00" * 40)
    for place in (f"{server.url}/a.ome.zarr", str(tmp_path / "a.ome.zarr")):
        image = open_image(place)
        with pytest.raises(ImageError) as caught:
            image.read()
        assert caught.value.what == "a.ome.zarr/0: chunk c/1/0/1/0 cannot be decoded."
        assert caught.value.where.startswith(f"{place}/0, chunk c/1/0/1/0: ")
        assert np.array_equal(image.read({"c": slice(0, 1)}), pixels[:1])


def test_a_pickled_image_reads_in_another_process(tmp_path, server, pixels):
    """An image behind a URL travels as its address; a process that used it ends quietly."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    image = open_image(f"{server.url}/a.ome.zarr")
    image.read()
    parcel = pickle.dumps(image)
    assert len(parcel) < 3000
    (tmp_path / "parcel").write_bytes(parcel)
    code = f"""
import pickle, hashlib
from pathlib import Path
image = pickle.loads(Path({str(tmp_path / "parcel")!r}).read_bytes())
print(hashlib.sha256(image.read().tobytes()).hexdigest(), image.identity == {image.identity!r})
"""
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hashlib.sha256(pixels.tobytes()).hexdigest(), "True"]
    assert done.stderr == ""


def test_connections_are_closed_with_the_image(tmp_path, server, pixels):
    """An image that is gone holds no connection open."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    image = open_image(f"{server.url}/a.ome.zarr")
    image.read()
    port = server.server_address[1]

    def connected() -> int:
        return sum(
            bool(c.raddr) and c.raddr.port == port and c.status == "ESTABLISHED"
            for c in psutil.Process().net_connections()
        )

    assert connected() > 0
    image.close()
    del image
    until = time.monotonic() + 20
    while connected() and time.monotonic() < until:
        time.sleep(0.05)
    assert connected() == 0


def test_metadata_that_changed_is_another_identity(tmp_path, server, pixels):
    """The same URL with other metadata is another image; with the same it is the same."""
    write(tmp_path / "a.ome.zarr", pixels, "0.5")
    url = f"{server.url}/a.ome.zarr"
    first, again = open_image(url).identity, open_image(url).identity
    assert first == again
    write(tmp_path / "b.ome.zarr", pixels, "0.5", chunks=(1, 5, 10, 18))
    (tmp_path / "a.ome.zarr").rename(tmp_path / "old")
    (tmp_path / "b.ome.zarr").rename(tmp_path / "a.ome.zarr")
    assert open_image(url).identity != first


def test_addresses_that_are_no_image(tmp_path, server, pixels):
    """Nothing there, no zarr, an unknown scheme, options without meaning: one error each, with a mend."""
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    for address in (f"{server.url}/none.ome.zarr", f"{server.url}/a.tif", "gopher://host/a.ome.zarr"):
        with pytest.raises(ImageError) as caught:
            open_image(address)
        assert address in caught.value.where
        assert caught.value.mend
    write(tmp_path / "a.ome.zarr", pixels, "0.4")
    with pytest.raises(AxesError, match="--stack t"):
        open_image(f"{server.url}/a.ome.zarr", stack="t")
    assert open_image(f"file://{tmp_path}/a.ome.zarr").path == str(tmp_path / "a.ome.zarr")


def test_forbidden_metadata_is_missing_metadata(tmp_path, server, pixels):
    """Buckets that may not be listed answer 403 for what is not there: a version 2 store opens all the same."""
    write(tmp_path / "a.ome.zarr", pixels, "0.4")
    server.statuses = {
        f"/a.ome.zarr/{key}": itertools.repeat(403) for key in ("zarr.json", "0/zarr.json", "1/zarr.json", ".zmetadata")
    }
    assert np.array_equal(open_image(f"{server.url}/a.ome.zarr").read(), pixels)


@pytest.mark.parametrize(
    ("scheme", "module", "extra"), [("https", "aiohttp", "http"), ("s3", "s3fs", "s3"), ("gs", "gcsfs", "gcs")]
)
def test_a_library_that_is_not_installed_is_named(scheme, module, extra):
    """Without the library for a scheme, the error gives the line that installs it."""
    code = f"""
import sys
sys.modules[{module!r}] = None  # as if it were not installed
from voidzoo.zoo.errors import DependencyError
from voidzoo.zoo.open import open_image
try:
    open_image("{scheme}://bucket/a.ome.zarr")
except DependencyError as error:
    print(error.mend)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f'pip install "fsspec[{extra}]"'
