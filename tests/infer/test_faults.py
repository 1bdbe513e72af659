"""Whatever goes wrong in the middle, what is finished is kept, the error says where, and the same command goes on.

The faults are real: damaged files, full disks, signals, a network that throws, processes that die.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from numpy.typing import NDArray

import voidzoo as vz
from tests.model_zoo import MODELS
from tests.onnx_net import Net
from tests.packages import make_package, micrograph, whole, write_package
from tests.small_disk import SmallDisk
from voidzoo.infer.place import Place
from voidzoo.infer.plan import Plan
from voidzoo.zoo.errors import BlocksFailed
from voidzoo.zoo.package import AxisRule, Package, open_package

ROOT = Path(__file__).parents[2]
SHAPE, BLOCK, TILE = (3, 300, 270), (64, 64), (80, 80)
ROWS = 60
"""Rows of a strip: its border lies in no block's border."""
CUT: dict[str, Any] = {"device": "cpu", "block": BLOCK, "tile": TILE}
MANY = (32, 32)
"""Blocks of this side are so many that a signal after the first of them comes long before the last, also to a busy
machine."""


def _benchmark() -> Any:
    """The kills of the benchmark are those of these tests."""
    spec = importlib.util.spec_from_file_location("voidzoo_faults", ROOT / "benchmarks" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


faults = _benchmark()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "p", depth=1, filters=16)


@pytest.fixture(scope="module")
def image() -> NDArray[Any]:
    return micrograph(np.random.default_rng(5), SHAPE)


@pytest.fixture
def source(image: NDArray[Any], tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, image, photometric="minisblack", compression="zlib", rowsperstrip=ROWS,
                     resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata={"axes": "ZYX"})  # fmt: skip
    return path


def oracle(package: Package, image: NDArray[Any]) -> NDArray[Any]:
    return np.stack([np.clip(np.rint(whole(package, plane[None])[0]), 0, 65535) for plane in image]).astype("uint16")


def same(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal but for the rounding of floats that lie between two whole numbers."""
    away = np.abs(found.astype(np.int64) - expected.astype(np.int64))
    assert away.max() <= 1
    assert np.count_nonzero(away) < away.size / 1000


def pixels(path: Path) -> NDArray[Any]:
    return vz.open_image(path).read()


def voidzoo(*words: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    line = [sys.executable, "-m", "voidzoo", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, **more)


SIZES = ("--block", "64,64", "--tile", "80,80", "--device", "cpu")


def touching(plan: Plan, axis: str, first: int, last: int, **fixed: int) -> set[int]:
    """The blocks that need any of the pixels first:last along an axis, at fixed positions of others."""
    found = set()
    for i in range(plan.n_blocks):
        spans = plan.block_spans(i)
        read = plan.model_axes[axis].read_for(spans[axis])
        if (
            read.start < last
            and read.stop > first
            and all(spans[a].start <= n < spans[a].stop for a, n in fixed.items())
        ):
            found.add(i)
    return found


class Watching:
    """Collects events; `then(self)` is called for each."""

    def __init__(self, then: Callable[[Watching, Any], None] = lambda _watching, _event: None) -> None:
        self.events: list[Any] = []
        self.then = then

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        self.then(self, event)

    def of(self, kind: type) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]


# ---- pixels that cannot be read --------------------------------------------------------------------------------------


@contextlib.contextmanager
def damaged(path: Path, start: int, count: int) -> Iterator[None]:
    """Overwrite bytes of a file, and put them back; its time of change stays, as when a disk rots."""
    before = path.read_bytes()[start : start + count]
    _overwrite(path, start, b"\xff" * count)
    try:
        yield
    finally:
        _overwrite(path, start, before)


def _overwrite(path: Path, start: int, data: bytes) -> None:
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def strip(path: Path, page: int, index: int) -> tuple[int, int]:
    """Where a strip lies in a TIFF: first byte, bytes."""
    with tifffile.TiffFile(path) as tif:
        return tif.pages[page].dataoffsets[index], tif.pages[page].databytecounts[index]


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
def test_a_strip_that_cannot_be_read_costs_the_blocks_that_need_it(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path, name: str
) -> None:
    plan = vz.plan(package, source, **CUT)
    lost = touching(plan, "y", 2 * ROWS, 3 * ROWS, z=1)
    assert 5 < len(lost) < plan.n_blocks / 3
    watch = Watching()
    with (
        damaged(source, *strip(source, 1, 2)),
        pytest.raises(vz.VoidzooError) as caught,
    ):
        vz.predict(package, source, out=tmp_path / name, watch=watch, **CUT)
    first = watch.of(vz.BlockFailed)[0]
    text = str(caught.value)
    assert (
        f"{len(lost)} of {plan.n_blocks} blocks failed; the {plan.n_blocks - len(lost)} finished ones are kept" in text
    )
    assert f"block {first.index} (z 1:2, y {plan.block_spans(first.index)['y'].start}:" in text
    assert f"{source}, strip 2 of page 1" in text
    assert "the same command again does the rest" in text
    assert {e.index for e in watch.of(vz.BlockFailed)} == lost
    assert {e.report.index for e in watch.of(vz.BlockDone)} == set(range(plan.n_blocks)) - lost
    assert not (tmp_path / name).exists()
    result = vz.predict(package, source, out=tmp_path / name, **CUT)
    assert result.blocks == len(lost), "the mended file: these blocks, and no other"
    assert not result.holes
    same(pixels(tmp_path / name), oracle(package, image))


def test_a_file_that_was_mended_is_another_one_until_it_has_its_time_again(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path
) -> None:
    """A file of another time may hold anything, so it is refused; the line that says it is the same can be pasted."""
    out = tmp_path / "o.ome.zarr"
    with damaged(source, *strip(source, 0, 0)), pytest.raises(BlocksFailed):
        vz.predict(package, source, out=out, **CUT)
    before = source.stat().st_mtime_ns
    source.write_bytes(source.read_bytes())  # copied again from where it came
    os.utime(source, ns=(before + 10**9, before + 10**9))
    with pytest.raises(vz.VoidzooError, match=r"begun with another plan(.|\n)*image: changed") as caught:
        vz.predict(package, source, out=out, **CUT)
    mend = next(line for line in str(caught.value).splitlines() if line.startswith("  mend:"))
    pasted = "touch" + mend.split("touch")[1].split("   else")[0]
    subprocess.run(shlex.split(pasted), check=True)
    assert source.stat().st_mtime_ns == before
    assert 0 < vz.predict(package, source, out=out, **CUT).blocks < 30
    same(pixels(out), oracle(package, image))


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
def test_skip_failed_leaves_holes_and_says_where(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path, name: str
) -> None:
    plan = vz.plan(package, source, **CUT)
    lost = touching(plan, "y", 0, ROWS, z=2)
    out = tmp_path / name
    with damaged(source, *strip(source, 2, 0)):
        result = vz.predict(package, source, out=out, skip_failed=True, **CUT)
    assert result.blocks == plan.n_blocks - len(lost)
    assert len(result.holes) == len(lost)
    found, expected = pixels(out), oracle(package, image)
    for i in range(plan.n_blocks):
        spans = plan.block_spans(i)
        part = tuple(slice(s.start, s.stop) for s in spans.values())
        if i in lost:
            where = ", ".join(f"{a} {s.start}:{s.stop}" for a, s in spans.items())
            told = f"block {i} ({where}): in.tif: strip 0 of page 2 cannot be decoded."
            assert told in result.holes
            assert not found[part].any()
        else:
            same(found[part], expected[part])
    assert Place(out).holes() == result.holes, "the result itself says where its holes are"
    again = vz.predict(package, source, out=out, skip_failed=True, **CUT)
    assert (again.blocks, again.holes) == (0, result.holes), "and goes on saying so"


def test_a_hole_is_empty_whatever_an_earlier_run_has_left_there(package: Package, source: Path, tmp_path: Path) -> None:
    """After a power cut, data may be there, whole or torn, of blocks that the ledger does not have."""
    out, stop = tmp_path / "o.ome.zarr", threading.Event()
    plan = vz.plan(package, source, **CUT)

    def then(_watching: Watching, event: Any) -> None:
        if isinstance(event, vz.BlockDone) and event.done == plan.n_blocks - 5:
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        vz.predict(package, source, out=out, stop=stop, watch=Watching(then), **CUT)
    (out.with_name(out.name + ".part") / "ledger.jsonl").unlink()
    with damaged(source, *strip(source, 0, 1)):
        result = vz.predict(package, source, out=out, skip_failed=True, **CUT)
    found, lost = pixels(out), touching(plan, "y", ROWS, 2 * ROWS, z=0)
    assert len(result.holes) == len(lost)
    for i in lost:
        assert not found[tuple(slice(s.start, s.stop) for s in plan.block_spans(i).values())].any()


def test_the_command_line_tells_of_failures_and_holes(package: Package, source: Path, tmp_path: Path) -> None:
    plan = vz.plan(package, source, **CUT)
    lost = len(touching(plan, "y", ROWS, 2 * ROWS, z=0))
    line = ("predict", package.path, source, "-o", tmp_path / "o.ome.zarr", *SIZES)
    with damaged(source, *strip(source, 0, 1)):
        failed = voidzoo(*line)
        assert failed.returncode == 1
        assert f"{lost} of {plan.n_blocks} blocks failed" in failed.stderr
        assert failed.stderr.count("\nfailed   block ") + failed.stderr.startswith("failed   block ") == lost
        assert "--skip-failed leaves holes" in failed.stderr
        holed = voidzoo(*line, "--skip-failed")
        assert holed.returncode == 1
        assert holed.stdout.count("hole     block ") == lost
        assert "strip 1 of page 0 cannot be decoded" in holed.stdout
        assert "error: " + f"{lost} blocks of {source} failed; they hold 0." in holed.stderr
    again = voidzoo(*line)
    assert again.returncode == 1, "a script that asks again must not take it for whole"
    assert again.stdout.count("hole     block ") == lost
    whole_again = voidzoo(*line, "--overwrite")
    assert (whole_again.returncode, "hole" in whole_again.stdout) == (0, False)
    assert not [
        text for r in (failed, holed, again, whole_again) for text in (r.stdout, r.stderr) if "Traceback" in text
    ]


def test_a_damaged_chunk_of_a_zarr(package: Package, image: NDArray[Any], tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(tmp_path / "in.ome.zarr", mode="w", zarr_format=3)
    array = group.create_array("0", shape=SHAPE, chunks=(1, 100, 270), dtype="uint16")
    array[:] = image
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}],
    }
    source, out = tmp_path / "in.ome.zarr", tmp_path / "o.ome.zarr"
    plan = vz.plan(package, source, **CUT)
    lost = touching(plan, "y", 200, 300, z=1)
    chunk = source / "0" / "c" / "1" / "2" / "0"
    with damaged(chunk, 0, 20), pytest.raises(BlocksFailed) as caught:
        vz.predict(package, source, out=out, **CUT)
    assert f"{len(lost)} of {plan.n_blocks} blocks failed" in str(caught.value)
    assert "chunk" in str(caught.value)
    assert "1, 2, 0" in str(caught.value).replace("/", ", ")
    assert str(source) in str(caught.value)
    os.utime(chunk)  # mended later: a chunk's time is nobody's business
    assert vz.predict(package, source, out=out, **CUT).blocks == len(lost)
    same(pixels(out), oracle(package, image))


# ---- a network that throws -------------------------------------------------------------------------------------------

BRIGHT = 30_000


@pytest.fixture(scope="module")
def thrower(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """A network that looks up 9 in a table of two for a pixel above BRIGHT: onnxruntime throws."""
    net = Net(3)
    dark = net.convs(net.scaled("input", 0.01), 1, 1, (3, 3))
    bright = net.node("Greater", "input", net.constant(np.array([BRIGHT], np.float32)))
    index = net.node("Mul", net.node("Cast", bright, to=7), net.constant(np.array([9], np.int64)))
    value = net.node("Add", dark, net.node("Gather", net.constant(np.array([0.0, 1.0], np.float32)), index))
    onnx = net.model({"input": [None, 1, None, None]}, {"output": (value, [None, 1, None, None])})
    folder = tmp_path_factory.mktemp("packages") / "thrower"
    write_package(folder, onnx, {a: AxisRule(16, 1, 2) for a in "yx"}, ["raw"], ["out"], ["probability"])
    return open_package(folder)


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes:2", marks=pytest.mark.slow)])
def test_a_network_that_throws_costs_the_blocks_in_which_it_does(
    thrower: Package, image: NDArray[Any], tmp_path: Path, scheduler: str
) -> None:
    """In a worker process, too: onnxruntime's own errors have to travel."""
    bad = image.copy()
    bad[1, 100, 200] = BRIGHT + 1
    tifffile.imwrite(tmp_path / "in.tif", bad, photometric="minisblack", metadata={"axes": "ZYX"})
    plan = vz.plan(thrower, tmp_path / "in.tif", **CUT)
    [i] = {i for i in range(plan.n_blocks) if _holds(plan, i, (1, 100, 200))}
    assert tuple(s.start for s in plan.block_spans(i).values()) == (1, 64, 192)
    settings: dict[str, Any] = {**CUT, "scheduler": scheduler, "out": tmp_path / "o.ome.zarr"}
    with pytest.raises(BlocksFailed) as caught:
        vz.predict(thrower, tmp_path / "in.tif", **settings)
    text = str(caught.value)
    assert f"1 of {plan.n_blocks} blocks failed; the {plan.n_blocks - 1} finished ones are kept" in text
    assert "out of data bounds" in text
    assert f"block {i} (z 1:2, y 64:128, x 192:256) of in.tif" in text
    result = vz.predict(thrower, tmp_path / "in.tif", skip_failed=True, **settings)
    assert result.blocks == 0
    assert [hole.startswith(f"block {i} (z 1:2") for hole in result.holes] == [True]
    found = pixels(tmp_path / "o.ome.zarr")
    expected = np.stack([whole(thrower, plane[None])[0] for plane in image])
    near = np.zeros(SHAPE, bool)
    near[1, 64:128, 192:256] = True
    assert not found[near].any()
    assert np.abs(found - expected)[~near].max() < 1e-4 * expected.std()


def _holds(plan: Plan, block: int, pixel: tuple[int, ...]) -> bool:
    return all(s.start <= n < s.stop for s, n in zip(plan.block_spans(block).values(), pixel, strict=True))


def test_a_hole_is_no_part_of_the_statistics_of_a_result(tmp_path: Path) -> None:
    """The postprocessing normalises by the whole plane of the result: what is missing is left out, and stays 0.

    Once the file is mended, all blocks are normalised anew.
    """
    model = MODELS["after_zero_mean"](tmp_path)
    image = model.images(np.random.default_rng(8), {"y": 200, "x": 150})[model.main]
    source = tmp_path / "in.tif"
    tifffile.imwrite(source, image[0], photometric="minisblack", compression="zlib", rowsperstrip=50)
    settings: dict[str, Any] = {"axes": "yx", "device": "cpu", "block": (40, 30), "out": tmp_path / "o.ome.zarr"}
    plan = vz.plan(model.path, source, axes="yx", device="cpu", block=(40, 30))
    lost = touching(plan, "y", 150, 200)
    stop = threading.Event()

    def then(watching: Watching, event: Any) -> None:
        if isinstance(event, vz.StageStarted) or len(watching.of(vz.BlockDone)) == plan.n_blocks - len(lost) + 5:
            stop.set() if len(watching.of(vz.BlockDone)) > plan.n_blocks - len(lost) else None

    with damaged(source, *strip(source, 0, 3)), pytest.raises(KeyboardInterrupt):
        vz.predict(model.path, source, skip_failed=True, stop=stop, watch=Watching(then), **settings)
    with damaged(source, *strip(source, 0, 3)):
        holed = vz.predict(model.path, source, skip_failed=True, **{**settings, "out": tmp_path / "holed.ome.zarr"})
    found = pixels(tmp_path / "holed.ome.zarr")
    hole = np.zeros(found.shape, bool)
    for i in lost:
        hole[tuple(slice(s.start, s.stop) for s in plan.block_spans(i).values())] = True
    assert len(holed.holes) == len(lost)
    assert not found[hole].any()
    assert abs(found[~hole].mean()) < 1e-4
    assert abs(found[~hole].std() - 1) < 1e-3
    vz.predict(model.path, source, **settings)
    assert np.abs(pixels(tmp_path / "o.ome.zarr") - model.oracle({model.main: image})["out"][0]).max() < 1e-3


def test_what_the_first_pass_has_mapped_is_told_after_the_second(tmp_path: Path) -> None:
    """NaN in the image is counted where it is read, and the result is finished in another pass; also after a stop."""
    model = MODELS["after_zero_mean"](tmp_path)
    image = model.images(np.random.default_rng(8), {"y": 120, "x": 90})[model.main][0].astype(np.float32)
    image[7, 3] = image[100, 80] = np.nan
    tifffile.imwrite(tmp_path / "in.tif", image, photometric="minisblack")
    out, stop = tmp_path / "o.ome.zarr", threading.Event()
    settings: dict[str, Any] = {"axes": "yx", "device": "cpu", "block": (40, 30), "allow_nan": True, "out": out}

    def then(_watching: Watching, event: Any) -> None:
        if isinstance(event, vz.StageStarted):
            stop.set()

    with pytest.raises(KeyboardInterrupt):
        vz.predict(model.path, tmp_path / "in.tif", stop=stop, watch=Watching(then), **settings)
    assert vz.predict(model.path, tmp_path / "in.tif", **settings).mapped == 2


def test_statistics_of_what_cannot_be_read_are_refused(tmp_path: Path) -> None:
    """The model normalises a plane, larger than a block, of which a strip is damaged: no block can be right."""
    model = MODELS["before_zero_mean_each"](tmp_path)
    image = model.images(np.random.default_rng(9), {"y": 200, "x": 150})[model.main]
    source, out = tmp_path / "in.tif", tmp_path / "o.ome.zarr"
    tifffile.imwrite(source, image, photometric="minisblack", compression="zlib", rowsperstrip=50,
                     planarconfig="separate", metadata={"axes": "CYX"})  # fmt: skip
    settings: dict[str, Any] = {"out": out, "device": "cpu", "block": (40, 30)}
    for skip in (False, True):
        with damaged(source, *strip(source, 0, 5)), pytest.raises(vz.VoidzooError, match="strip 5 of page 0 cannot be"):
            vz.predict(model.path, source, skip_failed=skip, **settings)
        assert not out.exists()
    vz.predict(model.path, source, **settings)
    assert np.abs(pixels(out) - model.oracle({model.main: image})["out"]).max() < 1e-3


# ---- full disks ------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_refused_before(package: Package, source: Path, small_disk: SmallDisk) -> None:
    folder = small_disk.folder
    small_disk.resize("600k")
    with pytest.raises(vz.VoidzooError, match=r"the result needs up to 0.000648 GB; .* has 0.00061\d* GB free"):
        vz.predict(package, source, out=folder / "o.ome.zarr", **CUT)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
@pytest.mark.parametrize("moment", ["blocks", "pyramid", "tiff"])
def test_a_disk_that_fills_up_costs_nothing_but_time(
    package: Package, image: NDArray[Any], source: Path, small_disk: SmallDisk, name: str,
    moment: str,
) -> None:  # fmt: skip
    if moment == "tiff" and name.endswith("zarr"):
        return
    folder = small_disk.folder

    def then(watching: Watching, event: Any) -> None:
        blocks = moment == "blocks" and isinstance(event, vz.BlockDone) and event.done == 10
        if blocks or (isinstance(event, vz.StageStarted) and event.name == moment):
            small_disk.fill()

    watch = Watching(then)
    with pytest.raises(vz.VoidzooError, match=r"No space left on device(.|\n)*the same command again") as caught:
        vz.predict(package, source, out=folder / name, watch=watch, **CUT)
    assert str(folder) in str(caught.value), "it says where"
    assert not (folder / name).exists()
    recorded = len(watch.of(vz.BlockDone))
    assert recorded >= 10
    if moment == "blocks":
        assert recorded + len(watch.of(vz.BlockFailed)) <= 10 + 2 * 3, "the others are not tried: they would fail, too"
    small_disk.resize("12m")
    result = vz.predict(package, source, out=folder / name, **CUT)
    assert result.blocks == result.plan.n_blocks - recorded, "what was written before is kept"
    same(pixels(folder / name), oracle(package, image))


def test_a_disk_that_is_full_from_the_start(
    package: Package, image: NDArray[Any], source: Path, small_disk: SmallDisk
) -> None:
    """Full between the check and the first write, for every thing that is written then: no traceback, nothing lost."""
    folder = small_disk.folder

    def then(_watching: Watching, event: Any) -> None:
        if isinstance(event, vz.PlanMade):
            small_disk.fill()

    with pytest.raises(vz.VoidzooError, match="No space left on device"):
        vz.predict(package, source, out=folder / "o.ome.zarr", watch=Watching(then), **CUT)
    (folder / "filler").unlink()
    vz.predict(package, source, out=folder / "o.ome.zarr", **CUT)
    same(pixels(folder / "o.ome.zarr"), oracle(package, image))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize(("limit", "code", "kept"), [(10_000, 1, 0), (250_000, 2, 27)])
def test_files_that_may_not_grow(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path, limit: int, code: int, kept: int
) -> None:
    """RLIMIT_FSIZE, as a quota would: too small for a block, or only for the TIFF that is made of them."""
    import resource

    out, sizes = tmp_path / "o.ome.tif", ("--block", "128,128", "--tile", "144,144", "--device", "cpu")
    failed = voidzoo(
        "predict", package.path, source, "-o", out, *sizes,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert failed.returncode == code, failed.stderr
    assert "File too large" in failed.stderr
    assert "o.ome.tif.part" in failed.stderr, "it says which file"
    assert "the same command again" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not out.exists()
    result = vz.predict(package, source, out=out, device="cpu")
    assert result.plan.n_blocks == 27
    assert result.blocks <= 27 - kept
    same(pixels(out), oracle(package, image))


def test_a_block_whose_data_the_disk_did_not_take_is_done_again(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fdatasync fails after the write went well, as of a dying disk: no real one is at hand, so the call is replaced."""
    from voidzoo.infer.output import durable

    real, calls = durable._datasync, []

    def dying(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 40:
            raise OSError(5, "Input/output error")
        real(handle)

    monkeypatch.setattr(durable, "_datasync", dying)
    watch = Watching()
    with pytest.raises(vz.VoidzooError, match=r"Input/output error(.|\n)*the same command again"):
        vz.predict(package, source, out=tmp_path / "o.ome.zarr", watch=watch, **CUT)
    told = len(watch.of(vz.BlockDone))
    monkeypatch.setattr(durable, "_datasync", real)
    result = vz.predict(package, source, out=tmp_path / "o.ome.zarr", **CUT)
    assert result.blocks > result.plan.n_blocks - told, "more than those that were told are done again"
    same(pixels(tmp_path / "o.ome.zarr"), oracle(package, image))


# ---- one place, one process ------------------------------------------------------------------------------------------


def call(package: Package, source: Path, **more: Any) -> dict[str, Any]:
    """The arguments of `predict`, for a process of its own."""
    return {"model": package.path, "image": str(source), "device": "cpu", "block": BLOCK, "tile": TILE, **more}


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process for a while")
def test_two_processes_cannot_make_the_same_result(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path
) -> None:
    job = faults.Job("o.ome.zarr", call(package, source, block=MANY), tmp_path)
    out = job.place("here") / job.name
    line = ("predict", package.path, source, "-o", out, *SIZES, "--block", "32,32")
    first = job.run(out.parent)
    assert first.until(lambda events: faults.named(events, "BlockDone"))
    first.process.send_signal(signal.SIGSTOP)
    second = voidzoo(*line)
    assert second.returncode == 2
    assert f"error: {out} is being made by another process.\n  where: process {first.process.pid} on " in second.stderr
    assert "mend:  wait for it, or another -o" in second.stderr
    third = voidzoo(*line, "--overwrite")
    assert third.returncode == 2
    assert "is being made by another process" in third.stderr
    looked = voidzoo("plan", *line[1:])
    assert looked.returncode == 0, "to look at it is harmless"
    first.process.send_signal(signal.SIGCONT)
    faults.ended(first)
    same(pixels(out), oracle(package, image))
    assert sorted(p.name for p in out.parent.iterdir()) == ["o.ome.zarr", "started.txt"]


def test_the_lock_of_a_killed_process_is_taken_over(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path
) -> None:
    job = faults.Job("o.ome.zarr", call(package, source, block=MANY), tmp_path)
    out = job.place("here") / job.name
    first = job.run(out.parent)
    assert first.until(lambda events: faults.named(events, "BlockDone"))
    first.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, first.process.pid, os.WEXITED | os.WNOWAIT)  # dead, but its number is not free yet
    result = vz.predict(package, source, out=out, **{**CUT, "block": MANY})
    assert 0 < result.blocks < result.plan.n_blocks
    assert not out.with_name(out.name + ".part").exists()
    first.end()
    same(pixels(out), oracle(package, image))


def _locked(out: Path, **facts: Any) -> Path:
    from voidzoo.infer import lock as locks

    lock = Place(out).part / locks.LOCK
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({**locks._this_process(), **facts}))
    return lock


def test_whose_lock_holds(package: Package, source: Path, tmp_path: Path) -> None:
    """That of a process which runs here, and that of any other machine; that of an earlier process of a number not."""
    out = tmp_path / "o.ome.zarr"
    lock = _locked(out, host="elsewhere")
    with pytest.raises(vz.VoidzooError) as caught:
        vz.predict(package, source, out=out, **CUT)
    assert "is being made by another process" in str(caught.value)
    assert f"process {os.getpid()} on elsewhere, since 20" in str(caught.value)
    assert f"rm {lock}" in str(caught.value)
    lock = _locked(out)
    with pytest.raises(vz.VoidzooError, match=f"process {os.getpid()} on"):
        vz.predict(package, source, out=out, **CUT)
    assert lock.exists()
    _locked(out, started="another boot 12345")
    assert vz.predict(package, source, out=out, **CUT).blocks == 75
    lock = _locked(tmp_path / "empty.ome.zarr")
    lock.write_text("")  # killed between the two steps of making it
    assert vz.predict(package, source, out=tmp_path / "empty.ome.zarr", **CUT).blocks == 75


CROWD = """
import os, random, signal, sys, time
from pathlib import Path
from voidzoo.infer.place import Place
from voidzoo.zoo.errors import OutputError

out, alone = Path(sys.argv[1]), Path(sys.argv[2])

def visit(seed):
    random.seed(seed)
    while True:
        try:
            with Place(out).held():
                alone.mkdir()  # fails where somebody else is inside
                time.sleep(random.random() / 500)
                alone.rmdir()
                with open(sys.argv[3], "a") as log:
                    log.write("x")
                if random.random() < 0.7:
                    os.kill(os.getpid(), signal.SIGKILL)
        except OutputError:
            pass

for wave in range(12):
    children = []
    for i in range(12):
        if not (pid := os.fork()):
            try:
                visit(100 * wave + i)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(3)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    if set(codes) != {-9}:
        sys.exit(f"visitors ended with {codes}")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_of_many_that_want_the_same_place_one_at_a_time_has_it(tmp_path: Path) -> None:
    """Twelve processes at a time, each killed sooner or later while it has the place."""
    log = tmp_path / "log"
    words = [str(tmp_path / name) for name in ("o.ome.zarr", "alone", "log")]
    done = subprocess.run(
        [sys.executable, "-c", CROWD, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(log.read_text()) >= 144


# ---- kills -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_twice_does_not_wait_for_the_blocks_that_run(tmp_path: Path) -> None:
    """A block lasts many seconds: after the first Ctrl-C the two that run would be finished, after the second not."""
    slow = make_package(tmp_path / "slow", depth=3, filters=48)
    source, out = tmp_path / "in.tif", tmp_path / "o.ome.zarr"
    tifffile.imwrite(source, micrograph(np.random.default_rng(1), (2, 1024, 1024)), photometric="minisblack",
                     metadata={"axes": "ZYX"})  # fmt: skip
    line = [sys.executable, "-m", "voidzoo", "predict", slow.path, str(source), "-o", str(out), "--block", "1024,1024",
            "--device", "cpu", "--json"]  # fmt: skip
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["event"] == "PlanMade"
        process.send_signal(signal.SIGINT)
        while "Ctrl-C again stops at once" not in (line_said := process.stderr.readline()):
            assert line_said, "it ended before the second Ctrl-C"
        process.send_signal(signal.SIGINT)
        rest, said = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert rest == "", "neither block was waited for"
    assert "the same command again continues" in said
    assert "Traceback" not in said
    result = vz.predict(slow, source, out=out, device="cpu")
    assert result.blocks == result.plan.n_blocks


Moment = tuple[str, int]
"""A kill comes this many blocks after a stage has begun; the stage "" is the beginning."""
KILLED: dict[str, tuple[str, list[Moment]]] = {
    "zarr-0.5": ("o.ome.zarr", [("", 0), ("", 9), ("", 25), ("pyramid", 0)]),
    "zarr-0.4": ("o.ome.zarr", [("", 3), ("", 21), ("pyramid", 0)]),
    "tiff": ("o.ome.tif", [("", 7), ("", 24), ("pyramid", 0), ("tiff", 0), ("tiff", 0)]),
    "two-stage": ("o.ome.zarr", [("", 6), ("statistics", 0), ("statistics", 8), ("statistics", 12), ("pyramid", 0)]),
    "two-stage-tiff": ("o.ome.tif", [("", 6), ("statistics", 8), ("tiff", 0)]),
    "processes": ("o.ome.zarr", [("", 4), ("", 20), ("pyramid", 0)]),
    "rescale": ("o.ome.zarr", [("", 9), ("statistics", 8), ("restore", 0), ("restore", 1)]),
}


def killed_job(kind: str, folder: Path) -> Any:
    """What is killed: a model with a stack, or one that normalises its whole result, at another pixel size, too."""
    rng = np.random.default_rng()
    source, name = folder / "in.tif", KILLED[kind][0]
    if kind in ("two-stage", "two-stage-tiff", "rescale"):
        path = MODELS["after_zero_mean"](folder).path
        rdf = yaml.safe_load((path / "rdf.yaml").read_text())
        rdf.setdefault("config", {})["voidzoo"] = {"training": {"pixel_size": {"y": 1.0, "x": 1.0}}}
        (path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
        shape = (3000, 2000) if kind == "rescale" else (600, 500)
        tifffile.imwrite(source, micrograph(rng, shape), photometric="minisblack")
        more: dict[str, Any] = {"axes": "yx", "pixel_size": {"y": 0.25, "x": 0.25}, "block": [64, 64], "tile": [80, 80]}
        more |= {"rescale": True} if kind == "rescale" else {}
    else:
        path = Path(make_package(folder / "p", depth=1, filters=16).path)
        tifffile.imwrite(source, micrograph(rng, SHAPE), photometric="minisblack", metadata={"axes": "ZYX"})
        more = {"block": BLOCK, "tile": TILE, "ome_zarr": "0.4" if kind == "zarr-0.4" else "0.5"}
        more |= {"scheduler": "processes:2"} if kind == "processes" else {}
    return faults.Job(name, {"model": str(path), "image": str(source), "device": "cpu", **more}, folder)


def reached(events: list[dict[str, Any]], moment: Moment) -> bool:
    stage, blocks = moment
    found = [
        e["event"] == "PlanMade" if not stage else e["event"] == "StageStarted" and e["name"] == stage for e in events
    ]
    return any(found) and len(faults.named(events[found.index(True) :], "BlockDone")) >= blocks


def killed_at(moments: list[Moment], job: Any, folder: Path) -> int:
    """Run and kill at one moment after the other. -> how many kills came before the end."""
    rng = np.random.default_rng()
    for kills, moment in enumerate(moments):
        run = job.run(folder)
        came = run.until(lambda events, m=moment: reached(events, m))
        time.sleep(float(rng.uniform(0, 0.03)) if came else 0)
        if not run.kill():  # the last stage was over before the signal: nothing is left to be killed
            return kills
        assert came, f"{moment} never came"
    return len(moments)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLED)
def test_killed_again_and_again_every_byte_is_the_same(kind: str, tmp_path: Path) -> None:
    """SIGKILL, the same call, SIGKILL in a later stage, ...; a kill costs at most the blocks in flight."""
    job = killed_job(kind, tmp_path)
    line = job.undisturbed()
    for _ in range(3):  # on a busy machine a signal may come after the end
        folder = job.place("killed")
        if (kills := killed_at(KILLED[kind][1], job, folder)) >= 2:
            break
    assert kills >= 2
    faults.ended(job.run(folder))
    assert faults.differing(folder / job.name, tmp_path / "undisturbed" / job.name) == 0
    assert faults.repeated(folder) <= kills * line.in_flight
    assert not (folder / (job.name + ".part")).exists()


STEPS = """
# Killed before each of its steps on the disk, one after the other: each time by SIGKILL, in a fork.
import json, os, random, shutil, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[2])
import faults, voidzoo, onnxruntime, tifffile, bioimageio.spec
from voidzoo.infer import run

given = json.loads(sys.argv[1])
folder, call, every = Path(given["folder"]), given["call"], given["every"]
out = folder / "here" / given["name"]
WRITING = os.O_WRONLY | os.O_RDWR


def predict(**more):
    voidzoo.predict(call["model"], call["image"], **{**call["settings"], "out": out, **more})


def forked(work, kill_at=None):
    sys.stdout.flush()
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def hear(event, arguments):
        nonlocal count
        touches = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
        touches = touches or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING)
        if touches and isinstance(arguments[0], (str, Path)) and str(arguments[0]).startswith(str(folder)):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        if kill_at is not None:
            sys.addaudithook(hear)
        work()
    except BaseException as error:
        print("error:", repr(error), flush=True)
        os._exit(1)
    os._exit(0)


def prepare():
    shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True)
    if given["old"]:
        source = Path(given["old"])
        shutil.copytree(source, out) if source.is_dir() else shutil.copy(source, out)


prepare()
assert forked(predict) == 0
whole = faults.contents(out)
old = faults.contents(Path(given["old"])) if given["old"] else None
step, killed, first = 1, 0, random.randrange(every)
while True:
    if step % every == first:
        prepare()
        code = forked(predict, step)
        if code == 0:
            break
        assert code == -9, code
        killed += 1
        if out.exists():
            assert faults.contents(out) in (old, whole), f"step {step}: OUT is neither the old nor the new result"
        assert forked(predict) == 0, f"step {step}: the same call again fails"
        assert faults.contents(out) == whole, f"step {step}: another result"
        assert [p.name for p in out.parent.iterdir()] == [out.name], f"step {step}: something is left"
    step += 1
print(killed, step)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="forks")
@pytest.mark.parametrize("name", ["o.ome.zarr", "o.ome.tif"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_each_of_its_steps_on_the_disk(
    package: Package, source: Path, tmp_path: Path, name: str, overwrite: bool
) -> None:
    """Files opened, moved, removed, folders made: between any two of these the same call goes on, to the same bytes.

    Every third is tried, from a random one on: over some runs of this test all are.
    What lies at OUT is always whole: the old result, the new one, or nothing.
    """
    settings: dict[str, Any] = {"device": "cpu", "block": [300, 136], "tile": [320, 160]}
    old = tmp_path / "old" / name
    if overwrite:
        vz.predict(package, source, out=old, device="cpu", dtype="float32")
        settings["overwrite"] = True
    given = {"folder": str(tmp_path / "folder"), "name": name, "old": str(old) if overwrite else None,
             "call": {"model": package.path, "image": str(source), "settings": settings}, "every": 3}  # fmt: skip
    line = [sys.executable, "-c", STEPS, json.dumps(given), str(ROOT / "benchmarks")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    killed, steps = map(int, done.stdout.split()[-2:])
    assert killed > 10
    assert steps > 50


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_what_it_had_in_flight(
    package: Package, image: NDArray[Any], source: Path, tmp_path: Path
) -> None:
    job = faults.Job("o.ome.zarr", call(package, source, scheduler="processes:2"), tmp_path)
    line = job.undisturbed()
    rng = np.random.default_rng()
    kills: list[Any] = []
    while not kills:
        kill = job.kill_worker(line, float(rng.uniform(0.0, 0.6)), int(rng.integers(2)))
        kills += [] if kill is None else [kill]
    assert (kills[0].differ, kills[0].done > 0) == (0, True)
    assert kills[0].redone <= line.in_flight
    same(pixels(tmp_path / "killed" / "o.ome.zarr"), oracle(package, image))


@pytest.mark.slow
def test_the_benchmark_of_kills_works(tmp_path: Path) -> None:
    report = tmp_path / "faults.json"
    line = ["--toy", "--kills", "3", "--worker-kills", "1", "--cache", str(tmp_path), "--json", str(report)]
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "faults.py"), *line], capture_output=True, text=True,
                          check=False, timeout=500)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert {name: facts["bytes_that_differ"] for name, facts in found["jobs"].items()} == {
        "zarr": 0,
        "tiff": 0,
        "workers": 0,
    }
    assert all(facts["kills"] >= 1 and facts["more_redone_than_in_flight"] == 0 for facts in found["jobs"].values())
    assert found["machine"]["cores"]
    assert found["versions"]["numpy"] == np.__version__


def test_bytes_that_differ_are_counted(tmp_path: Path) -> None:
    """The comparison of the benchmark itself: contents, files that are missing, and what does not count."""
    for name in ("a", "b"):
        (tmp_path / name / "0").mkdir(parents=True)
        (tmp_path / name / "0" / "c").write_bytes(b"12345678")
        ours = {"plan": {"identity": "x", **dict.fromkeys(faults.MEASURED, name)},
                "happened": {"holes": [], "seconds_of_last_run": name, "peak_memory": name}}  # fmt: skip
        (tmp_path / name / "zarr.json").write_text(json.dumps({"attributes": {"voidzoo": ours}}))
    a, b = tmp_path / "a", tmp_path / "b"
    assert faults.differing(a, b) == 0
    assert faults.sha256(a) == faults.sha256(b)
    (b / "0" / "c").write_bytes(b"1x34567")
    assert faults.differing(a, b) == 2
    (a / "0" / "d").write_bytes(b"123")
    assert faults.differing(a, b) == 5
    assert faults.sha256(a) != faults.sha256(b)
