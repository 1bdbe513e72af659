"""Arrays on disk: zarr-python, which nobody here wrote, reads every byte of them, and nothing of them is ever torn."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from voidzoo.infer.output import durable
from voidzoo.infer.output.array import DurableArray
from voidzoo.infer.output.chunks import DTYPES, Spec, crc32c, read_spec
from voidzoo.infer.output.durable import GroupCommit, Written, sync
from voidzoo.infer.output.layer import Layer
from voidzoo.infer.output.pyramid import Cascade
from voidzoo.infer.output.store import Store
from voidzoo.zoo.image import PixelSize


def make(folder: Path, spec: Spec) -> DurableArray:
    folder.mkdir(parents=True)
    (folder / spec.metadata_name).write_text(json.dumps(spec.metadata()))
    return DurableArray(folder)


def random_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random bits of the dtype (also -0.0, infinities and NaN), with stretches of zeros."""
    kind = np.dtype(dtype)
    values = rng.integers(0, 256, (*shape, kind.itemsize), np.uint8).view(kind)[..., 0]
    if kind.kind == "f":
        special = rng.choice([0.0, -0.0, np.inf, np.nan, 1e-40], shape).astype(kind)
        values = np.where(rng.random(shape) < 0.2, special, values)
    return np.where(rng.random((shape[0],) + (1,) * (len(shape) - 1)) < 0.4, np.zeros((), kind), values)


def parts(array: DurableArray, rng: np.random.Generator) -> list[tuple[slice, ...]]:
    """The array cut into parts of one to three files along each axis, in random order."""
    cuts = []
    for n, g in zip(array.shape, array.grid, strict=True):
        step = g * int(rng.integers(1, 4))
        cuts.append([slice(s, min(s + step, n)) for s in range(0, n, step)])
    found = list(product(*cuts))
    return [found[i] for i in rng.permutation(len(found))]


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


axes_of = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    ndim = draw(st.integers(2, 5))
    shape = tuple(draw(st.integers(1, 23 if i > ndim - 3 else 5)) for i in range(ndim))
    chunk = tuple(draw(st.integers(1, n)) for n in shape)
    version = draw(st.sampled_from([2, 3, 3]))
    shard = None
    if version == 3 and draw(st.booleans()):
        shard = tuple(c * draw(st.integers(1, 3)) for c in chunk)
    return Spec(shape, draw(st.sampled_from(DTYPES)), chunk, shard, version, axes_of[ndim])


@settings(max_examples=80, deadline=None)
@given(specs(), st.integers(0, 2**32))
def test_zarr_python_reads_what_is_written_and_we_what_it_writes(spec: Spec, seed: int) -> None:
    """Random shapes, dtypes, chunks, shards, both formats: bit for bit, through its code and through ours."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        array = make(Path(folder) / "a", spec)
        assert read_spec(array.path) == (spec if spec.version == 3 else Spec(*_fields(spec), 2))
        values = random_values(rng, spec.shape, spec.dtype)
        named: set[str] = set()
        for part in parts(array, rng):
            written = array.write(part, values[part])
            named.update(written.files)
            assert written.nbytes == sum(Path(file).stat().st_size for file in written.files)
        theirs = zarr.open_array(array.path, mode="r+")
        assert same_bits(np.asarray(theirs[...]), values)
        assert theirs.fill_value == 0
        assert (theirs.chunks, theirs.shards) == (spec.chunk, spec.shard)
        on_disk = {f for f in files(array.path) if f not in ("zarr.json", ".zarray")}
        assert {os.path.relpath(file, array.path).replace(os.sep, "/") for file in named} == on_disk
        stored = set()
        for index in np.ndindex(*(-(-n // g) for n, g in zip(spec.shape, spec.grid, strict=True))):
            inside = tuple(slice(i * g, (i + 1) * g) for i, g in zip(index, spec.grid, strict=True))
            if values[inside].tobytes().strip(b"\0"):
                stored.add(spec.file(index))
        assert on_disk == stored, "a file for each chunk or shard with a value in it, none for the others"
        for _ in range(4):
            low = [int(rng.integers(0, n)) for n in spec.shape]
            part = tuple(slice(a, int(rng.integers(a, n + 1))) for a, n in zip(low, spec.shape, strict=True))
            assert same_bits(array.read(part), np.ascontiguousarray(values[part]))
        other = random_values(rng, spec.shape, spec.dtype)
        theirs[...] = other
        assert same_bits(array.read(tuple(slice(0, n) for n in spec.shape)), other)


def _fields(spec: Spec) -> Any:
    return spec.shape, spec.dtype, spec.chunk, None


def test_crc32c_gives_the_published_values() -> None:
    """RFC 3720, B.4, and the check value of the CRC catalogue."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("shard", [None, (8, 16)])
def test_what_is_written_again_replaces_what_was_there(tmp_path: Path, shard: tuple[int, ...] | None) -> None:
    """Also by zeros, of which no file is left, and after `erase`."""
    array = make(tmp_path / "a", Spec((16, 20), "uint16", (4, 8), shard))
    rng = np.random.default_rng()
    whole = (slice(0, 16), slice(0, 20))
    first, second = (rng.integers(1, 2**16, (16, 20)).astype(np.uint16) for _ in range(2))
    array.write(whole, first)
    second[8:] = 0
    array.write(whole, second)
    assert same_bits(array.read(whole), second)
    assert same_bits(np.asarray(zarr.open_array(array.path, mode="r")[...]), second)
    assert files(tmp_path / "a") == {"zarr.json"} | {f for f in files(tmp_path / "a") if f.startswith(("c/0/", "c/1/"))}
    erased = array.erase((slice(0, 8), slice(0, 20)))
    assert erased.files == ()
    assert str(tmp_path / "a" / "c" / "0") in erased.folders
    assert files(tmp_path / "a") == {"zarr.json"}
    assert not array.read(whole).any()
    assert array.erase(whole) == Written(), "nothing to take away"


def test_parts_and_values_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    array = make(tmp_path / "a", Spec((16, 20), "uint16", (4, 8)))
    part = (slice(4, 8), slice(8, 20))
    array.write(part, np.ones((4, 12), np.uint8))  # widening loses nothing
    with pytest.raises(ValueError, match=r"2:8 is not made of whole chunks or shards of 4 in 0:16"):
        array.write((slice(2, 8), slice(8, 20)), np.ones((6, 12), np.uint16))
    with pytest.raises(ValueError, match="8:18 is not made of whole chunks"):
        array.write((slice(4, 8), slice(8, 18)), np.ones((4, 10), np.uint16))
    with pytest.raises(ValueError, match=r"shape \(4, 11\)"):
        array.write(part, np.ones((4, 11), np.uint16))
    with pytest.raises(TypeError, match="float32 values for an array of uint16"):
        array.write(part, np.ones((4, 12), np.float32))


@pytest.mark.parametrize("shard", [None, (32, 64)])
def test_a_damaged_file_is_named(tmp_path: Path, shard: tuple[int, ...] | None) -> None:
    """Bytes that are lost, and in a shard also bytes of the index that have changed."""
    array = make(tmp_path / "a", Spec((32, 64), "uint16", (16, 32), shard))
    whole = (slice(0, 32), slice(0, 64))
    written = array.write(whole, np.random.default_rng().integers(1, 2**16, (32, 64)).astype(np.uint16))
    file = Path(written.files[0])
    raw = file.read_bytes()
    damaged = [raw[: len(raw) // 2], b"", raw[:10]]
    if shard:
        damaged.append(raw[:-20] + bytes([raw[-20] ^ 1]) + raw[-19:])
    for data in damaged:
        file.write_bytes(data)
        with pytest.raises(vz.VoidzooError, match=r"(?s)a/c/0/0 is damaged.*--overwrite"):
            array.read(whole)


def test_arrays_of_others_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(8, 8), chunks=(4, 4), dtype="uint16", compressors=None)
    zarr.create_array(tmp_path / "b", shape=(8, 8), chunks=(4, 4), dtype="uint16", fill_value=7)
    for name in "abc":
        with pytest.raises(vz.VoidzooError, match="is not an array of this version of voidzoo"):
            DurableArray(tmp_path / name)


FULL = """
import pickle, resource, sys
import numpy as np
from voidzoo.infer.output.array import DurableArray
array = DurableArray(__import__("pathlib").Path(sys.argv[1]))
values = np.random.default_rng(1).integers(1, 2**16, array.shape).astype(np.uint16)
part = tuple(slice(0, n) for n in array.shape)
array.write(part, values // 256)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    array.write(part, values)
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
@pytest.mark.parametrize("shard", [None, (256, 512)])
def test_a_chunk_that_cannot_be_written_to_its_end_is_absent(tmp_path: Path, shard: tuple[int, ...] | None) -> None:
    """The system stops a write in the middle of a file, as a full disk does: no torn chunk is left, only zeros."""
    array = make(tmp_path / "a", Spec((256, 512), "uint16", (128, 512), shard))
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(array.path)], capture_output=True, text=True, check=True, timeout=60
    )
    number, name = done.stdout.split()
    assert os.strerror(int(number)) == "File too large"
    assert Path(name) == array.path / "c" / "0" / "0"
    assert not Path(name).exists()
    assert not array.read((slice(0, 128), slice(0, 512))).any()


KILLED = """
import pickle, sys
import numpy as np
cascade, todo = pickle.load(open(sys.argv[1], "rb"))
for i in range(len(todo) - 1):
    shape = tuple(s.stop - s.start for s in todo[i])
    cascade.write(todo[i], np.random.default_rng(i).integers(0, 2**16, shape).astype(np.uint16))
    print(i, flush=True)
sys.stdin.read()  # a kill that comes late finds it here, before the last block
"""


@pytest.mark.parametrize("many", [1, 7, 40, 200])
def test_what_was_written_survives_a_kill(tmp_path: Path, many: int) -> None:
    """SIGKILL at any moment, nothing synced: each block whose `write` returned is whole, in every level it made."""
    layer = example_layer(block=(1, 64, 64), chunk=(1, 32, 32))
    store, again = Store(tmp_path / "o.zarr"), Store(tmp_path / "again.zarr")
    store.create([layer])
    again.create([layer])
    todo = blocks(layer)
    (tmp_path / "job").write_bytes(pickle.dumps((store.cascade(layer), todo)))
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path / "job")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        done = [int(process.stdout.readline()) for _ in range(many)]
        process.kill()
        done += [int(line) for line in process.stdout.read().split()]
    assert many <= len(done) < len(todo)
    cascade = again.cascade(layer)
    assert cascade.ready == 2
    for i in done:
        shape = tuple(s.stop - s.start for s in todo[i])
        written = cascade.write(todo[i], np.random.default_rng(i).integers(0, 2**16, shape).astype(np.uint16))
        assert len(written.files) >= 2
        for file in written.files:
            assert (store.path / Path(file).relative_to(again.path)).read_bytes() == Path(file).read_bytes()


def example_layer(**changes: Any) -> Layer:
    facts: dict[str, Any] = {"name": "", "axes": "zyx", "shape": (5, 600, 700), "dtype": "uint16", "chunk": (2, 64, 64),
             "block": (2, 256, 256), "pixel_size": PixelSize(z=1, y=0.2, x=0.2)}  # fmt: skip
    return Layer(**{**facts, **changes})


def blocks(layer: Layer) -> list[tuple[slice, ...]]:
    along = [[slice(s, min(s + b, n)) for s in range(0, n, b)] for n, b in zip(layer.shape, layer.block, strict=True)]
    return list(product(*along))


def write_blocks(cascade: Cascade, values: np.ndarray, todo: list[tuple[slice, ...]]) -> list[Written]:
    return [cascade.write(part, values[part]) for part in todo]


def test_threads_and_processes_write_side_by_side(tmp_path: Path) -> None:
    """Two processes, each given the pickled cascade, and two threads: as if one had written all of it."""
    layer = example_layer()
    values = np.random.default_rng().integers(0, 2**16, layer.shape).astype(np.uint16)
    stores = {name: Store(tmp_path / f"{name}.zarr") for name in ("one", "threads", "processes")}
    for store in stores.values():
        store.create([layer])
    todo = blocks(layer)
    write_blocks(stores["one"].cascade(layer), values, todo)
    cascade = stores["threads"].cascade(layer)
    threads = [threading.Thread(target=write_blocks, args=(cascade, values, todo[i::2])) for i in range(2)]
    cascade = pickle.loads(pickle.dumps(stores["processes"].cascade(layer)))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=write_blocks, args=(cascade, values, todo[i::2])) for i in range(2)]
    for worker in (*threads, *processes):
        worker.start()
    for worker in (*threads, *processes):
        worker.join()
    expected = {file: (stores["one"].path / file).read_bytes() for file in files(stores["one"].path)}
    assert any(file.startswith("1/c/") for file in expected), "smaller levels are written along"
    for name in ("threads", "processes"):
        path = stores[name].path
        assert {file: (path / file).read_bytes() for file in files(path)} == expected


def test_neither_zarr_nor_dask_is_imported_before_the_first_block(tmp_path: Path) -> None:
    code = (
        "import sys, numpy, pathlib\n"
        "from voidzoo.infer.output.store import Layer, Store\n"
        "from voidzoo.infer.output.durable import sync\n"
        "layer = Layer('', 'yx', (300, 300), 'uint16', (64, 64), (300, 300))\n"
        "store = Store(pathlib.Path(sys.argv[1]))\n"
        "store.create([layer])\n"
        "part = (slice(0, 300), slice(0, 300))\n"
        "sync([store.cascade(layer).write(part, numpy.ones((300, 300), 'u2'))])\n"
        "store.describe([layer], {}, 'x')\n"
        "print([m for m in ('zarr', 'dask', 'numcodecs', 'pydantic', 'tifffile') if m in sys.modules])\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "o.zarr")]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip() == "[]"
    assert vz.open_image(tmp_path / "o.zarr").read().sum() == 90_000


def test_create_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off at any file it writes, there is no store, and the next attempt makes it."""
    store, layer, real = Store(tmp_path / "o.zarr"), example_layer(), Path.replace
    for stop_at in range(100):
        seen = 0

        def killed(self: Path, target: Path) -> Path:
            nonlocal seen
            seen += 1
            if seen > stop_at:  # noqa: B023
                raise KeyboardInterrupt
            return real(self, target)

        monkeypatch.setattr(Path, "replace", killed)
        try:
            store.create([layer])
            break
        except KeyboardInterrupt:
            assert not store.path.exists()
    assert stop_at > len(layer.levels)
    assert not store.cascade(layer).arrays[0].read((slice(0, 1),) * 3).any()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def confirmed(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """The inodes that the disk has confirmed, as the real call returns."""
    found: set[int] = set()
    real = durable._datasync

    def watched(handle: int) -> None:
        real(handle)
        found.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(durable, "_datasync", watched)
    return found


def test_what_is_handed_on_is_on_the_disk(tmp_path: Path, confirmed: set[int]) -> None:
    """From many threads: each write once, its files synced before, those of a thread in their order."""
    layer = example_layer(block=(1, 64, 64), chunk=(1, 64, 64))
    store = Store(tmp_path / "o.zarr")
    store.create([layer])
    cascade = store.cascade(layer)
    values = np.random.default_rng().integers(1, 2**16, layer.shape).astype(np.uint16)
    todo = blocks(layer)
    heard: list[int] = []
    groups: list[int] = []
    held: dict[int, Written] = {}

    def done(items: list[int]) -> None:
        groups.append(len(items))
        for item in items:
            assert {Path(file).stat().st_ino for file in held[item].files} <= confirmed
            heard.append(item)

    def lane(start: int, commit: GroupCommit[int]) -> None:
        for i in range(start, len(todo), 3):
            held[i] = cascade.write(todo[i], values[todo[i]])
            commit.add(i, held[i])

    with GroupCommit(done, most_writes=16) as commit:
        lanes = [threading.Thread(target=lane, args=(i, commit)) for i in range(3)]
        for thread in lanes:
            thread.start()
        for thread in lanes:
            thread.join()
        commit.flush()
        assert len(heard) == len(todo)
    assert sorted(heard) == list(range(len(todo)))
    assert all([i for i in heard if i % 3 == k] == list(range(k, len(todo), 3)) for k in range(3))
    assert max(groups) <= 16


def test_the_lanes_wait_when_the_disk_is_behind() -> None:
    """No more than `most_writes` are neither handed on nor waiting in `add`."""
    gate, counted = threading.Event(), []

    def done(items: list[int]) -> None:
        gate.wait(60)
        counted.extend(items)

    commit = GroupCommit(done, most_writes=3)
    added: list[int] = []
    three = threading.Event()

    def lane() -> None:
        for i in range(5):
            commit.add(i, Written())
            added.append(i)
            if i == 2:
                three.set()

    thread = threading.Thread(target=lane)
    thread.start()
    assert three.wait(30)
    thread.join(0.3)
    assert thread.is_alive()
    assert len(added) == 3
    gate.set()
    thread.join(60)
    commit.close()
    assert counted == [0, 1, 2, 3, 4]


def test_bytes_make_the_lanes_wait_too_but_never_for_ever() -> None:
    """One write larger than all that may wait goes through."""
    counted: list[int] = []
    with GroupCommit(counted.extend, most_bytes=10) as commit:
        for i in range(20):
            commit.add(i, Written(nbytes=50))
    assert counted == list(range(20))


def test_a_sync_that_fails_is_told_and_nothing_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"x")
    good = Written((str(tmp_path / "there"),), (str(tmp_path),), 1)
    bad = Written((str(tmp_path / "gone"),), (), 1)
    with pytest.raises(FileNotFoundError, match="gone"):
        sync([good, bad])
    sync([good, good])
    counted: list[str] = []
    commit = GroupCommit(counted.extend)
    commit.add("good", good)
    commit.flush()
    commit.add("bad", bad)
    with pytest.raises(FileNotFoundError, match="gone"):
        commit.flush()
    with pytest.raises(FileNotFoundError, match="gone"):
        commit.add("later", good)
    with pytest.raises(FileNotFoundError, match="gone"):
        commit.close()
    assert counted == ["good"]

    def lane() -> None:
        with GroupCommit(counted.extend) as commit:
            commit.add("bad", bad)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # not hidden by the sync's
        lane()


def test_a_block_of_nothing_but_zeros_is_written_and_synced(tmp_path: Path) -> None:
    """No file and no folder is made for it: the disk has nothing to confirm."""
    spec = Layer("", "zyx", (2, 64, 64), "uint16", (1, 32, 32), (1, 64, 64), PixelSize())
    store = Store(tmp_path / "o.zarr")
    store.create([spec])
    sync([store.cascade(spec).write((slice(0, 1), slice(0, 64), slice(0, 64)), np.zeros((1, 64, 64), np.uint16))])
    assert not zarr.open_array(tmp_path / "o.zarr" / "0", mode="r")[:].any()
