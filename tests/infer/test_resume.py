"""A job that dies goes on where it was; what lies at OUT is whole or not there; a full disk loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.infer.ledger import Ledger
from voidzoo.infer.run import Engine
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
        here, kill_after = 0, int(rng.integers(5, 60))
        with subprocess.Popen(command(package, source, out), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] != "BlockDone":
                    continue
                here += 1
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
    with subprocess.Popen(command(package, source, out), stdout=pipe, stderr=pipe, text=True) as process:
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
    from voidzoo.infer import place

    real = place._remove

    def killed(path: Path) -> None:
        if path.name.endswith(".part") and path.exists() and (tmp_path / "o.ome.zarr").exists():
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(place, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, out=tmp_path / "o.ome.zarr", device="cpu")
    monkeypatch.setattr(place, "_remove", real)
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


def test_a_torn_ledger_line_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    line = '{"index": 3, "voxels": 10, "clipped": 0, "mapped": 0}\n'
    path.write_text(line + '{"index": 4, "vox')
    ledger = Ledger(path)
    assert set(ledger.done) == {3}
    ledger.close()
    assert path.read_text() == line


def test_a_block_that_fails_leaves_the_others(
    package: Package, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = Engine.work, {"on": True}

    def work(self: Engine, index: int) -> Any:
        if index == 2 and broken["on"]:
            monkeypatch.setattr(type(self.plan.image), "read", _unreadable)
            try:
                return real(self, index)
            finally:
                monkeypatch.setattr(type(self.plan.image), "read", reading)
        return real(self, index)

    def _unreadable(self: Any, region: Any = None) -> Any:
        raise OSError("read error in page 2")

    reading = vz.Image.read
    monkeypatch.setattr(Engine, "work", work)
    out = tmp_path / "o.ome.zarr"
    with pytest.raises(
        vz.VoidzooError, match=r"1 of 3 blocks failed; the 2 finished ones are kept(.|\n)*page 2(.|\n)*z 2:3"
    ):
        vz.predict(package, source, out=out, device="cpu")
    assert not out.exists()
    broken["on"] = False
    assert vz.predict(package, source, out=out, device="cpu").blocks == 1


@pytest.mark.skipif(os.name == "nt", reason="mounts a small file system")
def test_a_full_disk_is_foreseen_and_survived(
    package: Package, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a real file system of 700 kB: the plan refuses; when it fills up all the same, the command continues later."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small file system")
    try:
        out = small / "o.ome.zarr"
        with pytest.raises(vz.VoidzooError, match=r"the result needs up to 0.0018 GB; .* has 0.000717 GB free"):
            vz.predict(package, source, out=out, device="cpu", block=(128, 128))
        monkeypatch.setattr("voidzoo.infer.place.Place._check_disk", lambda self, plan: None)
        with pytest.raises(vz.VoidzooError, match="No space left"):
            vz.predict(package, source, out=out, device="cpu", block=(128, 128))
        assert not out.exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        result = vz.predict(package, source, out=out, device="cpu", block=(128, 128))
        assert 0 < result.blocks < 3 * 16, "what was written before the disk was full is kept"
        assert np.array_equal(pixels(out), vz.predict(package, source, device="cpu").read())
    finally:
        subprocess.run(["umount", str(small)], check=True)
