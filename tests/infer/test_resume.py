"""A job that dies goes on where it was; what lies at OUT is whole or not there; a full disk loses nothing."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.infer.blocks import BlockReport
from voidzoo.infer.ledger import Ledger
from voidzoo.infer.place import Place
from voidzoo.zoo.package import Package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "p", depth=1, filters=16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    tifffile.imwrite(
        path, micrograph(np.random.default_rng(4), (3, 500, 450)), photometric="minisblack", metadata={"axes": "ZYX"}
    )
    return path


def command(package: Package, source: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "voidzoo", "predict", package.path, str(source), "-o", str(out), "--block", "64,64",
            "--tile", "80,80", "--device", "cpu", "--json", *more]  # fmt: skip


SMALL: dict[str, Any] = {"pipesize": 4096}
"""A process that tells its events into such a pipe is fewer than AHEAD of them before whoever reads them, however long
that one is kept from its processor: a line has 200 bytes or more, and 8 kB wait here."""
AHEAD = 70


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def pixels(path: Path) -> np.ndarray:
    return vz.open_image(path).read()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
def test_killed_at_random_moments_the_result_is_the_same(
    package: Package, source: Path, tmp_path: Path, name: str
) -> None:
    """Real processes, killed by SIGKILL; blocks redone per kill are at most those in flight."""
    subprocess.run(command(package, source, tmp_path / f"whole-{name}"), check=True, capture_output=True)
    rng = np.random.default_rng()
    out, done, kills = tmp_path / name, 0, 0
    total = 3 * 8 * 8
    while True:
        here, kill_after = 0, int(rng.integers(5, 40))
        with subprocess.Popen(command(package, source, out), stdout=subprocess.PIPE, text=True, **SMALL) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] != "BlockDone":
                    continue
                here += 1
                if event["done"] < total - AHEAD:
                    assert not out.exists(), "nothing half-written is visible"
                if here == kill_after and event["done"] < total:
                    process.send_signal(signal.SIGKILL)
                    break
        code = process.returncode
        done += here
        if code == 0:
            break
        assert code == -signal.SIGKILL
        kills += 1
    lanes = vz.plan(package, source, device="cpu", block=(64, 64), tile=(80, 80)).lanes
    assert kills >= 2
    assert done <= total + kills * lanes, f"{done - total} blocks were redone after {kills} kills"
    assert np.array_equal(pixels(out), pixels(tmp_path / f"whole-{name}"))
    assert not out.with_name(name + ".part").exists()
    again = subprocess.run(command(package, source, out), check=True, capture_output=True, text=True)
    assert [e["event"] for e in events(again.stdout)] == ["Done"], "a finished result is not made again"


def test_ctrl_c_finishes_the_running_blocks_and_exits_130(package: Package, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.ome.zarr"
    pipe = subprocess.PIPE
    with subprocess.Popen(command(package, source, out), stdout=pipe, stderr=pipe, text=True, **SMALL) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "BlockDone":
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()  # not communicate: it would lose what the loop has buffered
        assert process.stderr is not None
        errors = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command again continues" in errors
    assert "Traceback" not in errors
    before = 1 + len([e for e in events(rest) if e["event"] == "BlockDone"])
    again = subprocess.run(command(package, source, out), check=True, capture_output=True, text=True)
    assert events(again.stdout)[0]["done"] == before, "every block that was told done was kept"


def test_another_plan_on_the_same_output_is_refused(package: Package, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.ome.zarr"
    vz.predict(package, source, out=out, device="cpu", block=(128, 128))
    before = pixels(out)
    with pytest.raises(
        vz.VoidzooError, match=r"begun with another plan(.|\n)*dtype: uint16, now float32(.|\n)*--overwrite"
    ):
        vz.predict(package, source, out=out, device="cpu", dtype="float32")
    with pytest.raises(vz.VoidzooError, match=r"block: y 128, x 128, now y 64, x 64"):
        vz.predict(package, source, out=out, device="cpu", block=(64, 64))
    assert np.array_equal(pixels(out), before)
    assert vz.predict(package, source, out=out, device="cpu").blocks == 0, "without sizes the stored plan is taken"
    vz.predict(package, source, out=out, device="cpu", dtype="float32", overwrite=True)
    assert pixels(out).dtype == np.float32


def test_overwriting_continues_too(package: Package, source: Path, tmp_path: Path) -> None:
    """--overwrite leaves the old result where it is until the new one is whole, and continues when it was cut off."""
    out = tmp_path / "o.ome.zarr"
    vz.predict(package, source, out=out, device="cpu", dtype="float32")
    stop = threading.Event()

    def watch(event: Any) -> None:
        if isinstance(event, vz.BlockDone):
            stop.set()

    settings: dict[str, Any] = {"out": out, "device": "cpu", "block": (64, 64), "overwrite": True}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, watch=watch, stop=stop, **settings)
    assert pixels(out).dtype == np.float32, "the old result is still there"
    result = vz.predict(package, source, **settings)
    assert 0 < result.blocks < 3 * 64
    assert pixels(out).dtype == np.uint16


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
@pytest.mark.parametrize("moment", ["image.zarr.tmp", "plan.json.tmp"])
def test_a_kill_before_the_first_block_leaves_nothing_in_the_way(
    package: Package, source: Path, tmp_path: Path, name: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between any two steps of making OUT.part, the same command starts."""
    real = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.name == moment:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, out=tmp_path / name, device="cpu")
    monkeypatch.setattr(Path, "replace", real)
    assert vz.predict(package, source, out=tmp_path / name, device="cpu").blocks == 3


def test_what_is_not_ours_is_never_touched(package: Package, source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "thesis.ome.zarr"
    folder.mkdir()
    (folder / "chapter1.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(vz.VoidzooError, match="was not made by voidzoo"):
            vz.predict(package, source, out=folder, device="cpu", overwrite=overwrite)
    assert (folder / "chapter1.txt").read_text() == "years of work"
    part = tmp_path / "o.ome.zarr.part"
    part.mkdir()
    (part / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(vz.VoidzooError, match="was not made by voidzoo"):
            vz.predict(package, source, out=tmp_path / "o.ome.zarr", device="cpu", overwrite=overwrite)
    assert (part / "notes.txt").read_text() == "mine"
    image = tmp_path / "other.tif"
    tifffile.imwrite(image, np.arange(9).reshape(3, 3))
    before = image.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(vz.VoidzooError, match="was not made by voidzoo"):
            vz.predict(package, source, out=image, device="cpu", overwrite=overwrite)
    assert image.read_bytes() == before, "--overwrite replaces results, not somebody's image"
    with pytest.raises(vz.VoidzooError, match=r"ending chooses the format(.|\n)*\.ome\.zarr"):
        vz.predict(package, source, out=tmp_path / "result.png", device="cpu")
    with pytest.raises(vz.VoidzooError, match="is the image itself"):
        vz.predict(package, source, out=source, device="cpu", overwrite=True)


def test_a_kill_after_the_move_to_out_needs_no_second_run(
    package: Package, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OUT is whole and OUT.part still there: the same command sees that, and cleans up."""
    real = Place.clear

    def killed(self: Place) -> None:
        if self.out.exists():
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Place, "clear", killed)
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, out=tmp_path / "o.ome.zarr", device="cpu")
    monkeypatch.setattr(Place, "clear", real)
    assert (tmp_path / "o.ome.zarr.part").exists()
    assert vz.predict(package, source, out=tmp_path / "o.ome.zarr", device="cpu").blocks == 0
    assert not (tmp_path / "o.ome.zarr.part").exists()


def test_a_ledger_without_its_image_counts_for_nothing(package: Package, source: Path, tmp_path: Path) -> None:
    """Somebody cleaned up the staged image but not the ledger: all blocks are done again, none is missing."""
    stop = threading.Event()
    settings: dict[str, Any] = {"out": tmp_path / "o.ome.zarr", "device": "cpu", "block": (64, 64)}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(
            package, source, stop=stop, watch=lambda e: stop.set() if isinstance(e, vz.BlockDone) else None, **settings
        )
    shutil.rmtree(tmp_path / "o.ome.zarr.part" / "image.zarr")
    assert vz.predict(package, source, **settings).blocks == 3 * 64


def test_a_result_is_not_continued_in_another_version_of_ome_zarr(
    package: Package, source: Path, tmp_path: Path
) -> None:
    stop = threading.Event()
    settings: dict[str, Any] = {"out": tmp_path / "o.ome.zarr", "device": "cpu", "block": (128, 128)}
    cut: dict[str, Any] = {"stop": stop, "watch": lambda e: stop.set() if isinstance(e, vz.BlockDone) else None}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, ome_zarr="0.5", **cut, **settings)
    with pytest.raises(vz.VoidzooError, match=r"begun as OME-Zarr 0.5, not 0.4(.|\n)*--ome-zarr 0.5"):
        vz.predict(package, source, ome_zarr="0.4", **settings)
    stop.clear()
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, ome_zarr="0.4", overwrite=True, **cut, **settings)
    result = vz.predict(package, source, ome_zarr="0.4", overwrite=True, **settings)
    assert 0 < result.blocks < 3 * 16, "what was begun as 0.4 goes on as that"
    assert not list((tmp_path / "o.ome.zarr").rglob("zarr.json"))
    assert np.array_equal(pixels(tmp_path / "o.ome.zarr"), vz.predict(package, source, device="cpu").read())
    with pytest.raises(vz.VoidzooError, match=r"begun as OME-Zarr 0.4, not 0.5"):
        vz.predict(package, source, **settings)


# ---- the ledger ------------------------------------------------------------------------------------------------------


def block(index: int) -> BlockReport:
    return BlockReport(index, 10 * index, clipped=index % 3, tile=(8, 16))


def killed(ledger: Ledger) -> None:
    """A kill: nothing of what `close` does is done, but the system still has every line."""
    ledger._file.close()


def booted(monkeypatch: pytest.MonkeyPatch, boot: str) -> None:
    monkeypatch.setattr("voidzoo.infer.ledger.boot", lambda: boot)


def test_the_ledger_has_each_block_as_soon_as_it_is_told(tmp_path: Path) -> None:
    """Another reader sees a line before `add` returns; what was read is what was written."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for i in range(20):
        ledger.add(block(i))
        assert Ledger.peek(tmp_path / "ledger.jsonl") == {k: block(k) for k in range(i + 1)}
        if i % 4 == 3:
            ledger.confirm(4)
    ledger.close()
    assert Ledger.peek(tmp_path / "ledger.jsonl") == {k: block(k) for k in range(20)}


def test_after_a_kill_every_line_counts_and_after_a_power_cut_those_that_the_disk_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.jsonl"
    booted(monkeypatch, "monday")
    ledger = Ledger(path)
    for i in (5, 3, 9, 7):
        ledger.add(block(i))
    ledger.confirm(3)
    killed(ledger)
    assert list(Ledger.peek(path)) == [5, 3, 9, 7], "in the order in which they were done"
    booted(monkeypatch, "tuesday")
    assert list(Ledger.peek(path)) == [5, 3, 9]
    booted(monkeypatch, "")  # a system that does not tell when it was started
    assert list(Ledger.peek(path)) == [5, 3, 9]
    booted(monkeypatch, "tuesday")
    ledger = Ledger(path)
    assert list(ledger.done) == [5, 3, 9]
    ledger.add(block(7))
    killed(ledger)
    assert list(Ledger.peek(path)) == [5, 3, 9, 7]
    booted(monkeypatch, "wednesday")
    assert list(Ledger.peek(path)) == [5, 3, 9]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere only what is confirmed counts")
def test_what_a_killed_session_wrote_is_confirmed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut after the move to OUT could take blocks out of a result that is called complete."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for i in range(6):
        ledger.add(block(i))
    ledger.confirm(2)
    killed(ledger)
    killed(Ledger(path))
    booted(monkeypatch, "tomorrow")
    assert Ledger.peek(path) == {i: block(i) for i in range(6)}


def test_blocks_that_the_disk_refused_are_done_again(tmp_path: Path) -> None:
    """Data that could not be synced may be lost although it was written: its lines go when the ledger is closed."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for i in range(6):
        ledger.add(block(i))
    ledger.confirm(4)
    ledger.close()
    assert set(Ledger.peek(path)) == {0, 1, 2, 3}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_line_that_the_disk_has_no_room_for_is_not_there_at_all(tmp_path: Path) -> None:
    """A real limit on the size of files ends the write in the middle of the line; the next ones are whole again."""
    import resource

    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(block(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            ledger.add(block(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(path)
    assert set(ledger.done) == {1}
    ledger.add(block(3))
    ledger.confirm(2)
    ledger.close()
    assert Ledger.peek(path) == {1: block(1), 3: block(3)}


@given(st.data())
def test_a_ledger_cut_anywhere_has_all_blocks_of_its_whole_lines(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        ledger = Ledger(path)
        lengths = [path.stat().st_size]
        for i in range(8):
            ledger.add(block(i))
            lengths.append(path.stat().st_size)
        killed(ledger)
        cut = data.draw(st.integers(0, lengths[-1]))
        with path.open("r+b") as file:
            file.truncate(cut)
        whole = max(0, sum(length <= cut for length in lengths) - 1)
        ledger = Ledger(path)
        assert set(ledger.done) == set(range(whole))
        ledger.add(block(99))
        ledger.confirm(1)
        ledger.close()
        assert set(Ledger.peek(path)) == {*range(whole), 99}, "and the next line is whole"


def test_behind_spoilt_lines_nothing_of_that_session_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut may leave zeros where a line was, and lines after it: which blocks they confirm is unknown."""
    path = tmp_path / "ledger.jsonl"
    booted(monkeypatch, "monday")
    ledger = Ledger(path)
    for i in range(4):
        ledger.add(block(i))
    ledger.confirm(4)
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = bytes(len(lines[2]) - 1) + b"\n"
    path.write_bytes(b"".join(lines))
    booted(monkeypatch, "tuesday")
    ledger = Ledger(path)
    assert set(ledger.done) == set(), "the line that confirms lies behind"
    ledger.add(block(1))
    ledger.confirm(1)
    ledger.close()
    assert set(Ledger.peek(path)) == {1}


def test_a_ledger_of_before_is_read(tmp_path: Path) -> None:
    """Lines without a session, or of fields that are not known, are nothing to build on."""
    path = tmp_path / "ledger.jsonl"
    path.write_text(
        '{"index": 3, "voxels": 10, "clipped": 0, "mapped": 0}\n{"boot": "x"}\n{"index": 4, "colour": 1}\n[]\n7\n'
    )
    assert Ledger.peek(path) == {}
