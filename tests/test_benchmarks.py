"""The benchmark measures what it says: memory, arithmetic, errors and slopes have known answers; every row works at toy size."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from voidzoo.infer.grid import Axis, Span
from voidzoo.zoo.package import open_package

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MB = 10**6


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark's modules lie beside its command, in no package."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def module(name: str) -> Any:
    return importlib.import_module(name)


ALLOCATE = """
import subprocess, sys, time
held = bytearray({here})
for i in range(0, len(held), 4096): held[i] = 1
child = subprocess.Popen([sys.executable, "-c", {child!r}]) if {child!r} else None
if child: child.wait()
"""


def test_memory_is_that_of_the_child_and_of_its_children() -> None:
    """120 MB in the child, 70 MB in its own: the peak is that of one, the tree both; what the parent holds is nobody's."""
    ballast = np.ones(50 * MB, np.float64)  # 400 MB in this process, which the kernel counts as the child's before exec
    waiting = (
        "held = bytearray(70 * 10**6)\nfor i in range(0, len(held), 4096): held[i] = 1\nimport time; time.sleep(1.5)"
    )
    found = module("measure").run([sys.executable, "-c", ALLOCATE.format(here=120 * MB, child=waiting)])
    assert ballast[-1] == found.returncode + 1
    assert 120 * MB <= found.peak < 170 * MB
    assert 190 * MB <= found.tree < 280 * MB
    assert found.seconds >= 1.5


def test_a_process_is_stopped_with_its_children(tmp_path: Path) -> None:
    """What is stopped leaves nothing running."""
    note = tmp_path / "pid"
    inner = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    found = module("measure").run(
        [sys.executable, "-c", code], stop_when=lambda: note.exists() and note.read_text() != ""
    )
    assert found.stopped
    assert found.seconds < 50
    for _ in range(100):
        state = Path(f"/proc/{note.read_text()}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child of the stopped process still runs")


def test_the_end_of_the_output_and_the_exit_code_are_kept() -> None:
    found = module("measure").run([sys.executable, "-c", "import sys; print('x' * 30000); print('last'); sys.exit(3)"])
    assert (found.returncode, found.output.splitlines()[-1]) == (3, "last")


def exhaustive(size: int, step: int, halo: int, tile: int) -> int | None:
    """Voxels run along an axis with tiles of at most `tile`, each put as far right as it may; None if that leads nowhere."""
    margin = -(-halo // step) * step
    whole = -(-size // step) * step
    kept, run = 0, 0
    while kept < whole:
        start = max(0, kept - margin)
        stop = min(start + tile, whole)
        reaches = whole if stop == whole else stop - margin
        if reaches <= kept:
            return None
        kept, run = reaches, run + stop - start
    return run


@given(
    size=st.integers(20, 400), step=st.sampled_from([1, 2, 4, 8]), halo=st.integers(0, 24), voxels=st.integers(16, 500)
)
@settings(max_examples=200, deadline=None)
def test_the_limit_is_the_best_that_an_exhaustive_search_finds(size: int, step: int, halo: int, voxels: int) -> None:
    """One axis: no legal size of tiles that fits does with fewer voxels, and the one named does with as many."""
    overhead, tile = module("limit").least_overhead([size], [step], [halo], [step], voxels)
    runs = [run for t in range(step, voxels + 1, step) if (run := exhaustive(size, step, halo, t)) is not None]
    if not runs:
        assert overhead == float("inf")
        return
    assert overhead * size == pytest.approx(min(runs))
    assert tile[0] <= max(voxels, 0)


def test_the_limit_is_never_beaten_by_voidzoos_own_tiles() -> None:
    """seg2d's arithmetic on 4096 x 4096: whatever square tile voidzoo is given, it runs on at least as many voxels."""
    limit = module("limit")
    axis = Axis(4096, 16, 208, 96)
    for tile in (320, 640, 1024, 1536, 2048):
        along = sum(t.read.size for t in axis.tiles(Span(0, 4096), tile))
        overhead, _ = limit.least_overhead([4096] * 2, [16] * 2, [96] * 2, [208] * 2, tile * tile)
        assert overhead <= (along / 4096) ** 2 + 1e-12


def test_the_limit_of_what_fits_whole_is_the_extension_alone() -> None:
    limit = module("limit")
    rules = {"y": {"step": 4, "halo": 24, "minimum": 64}, "x": {"step": 4, "halo": 24, "minimum": 64}}
    assert limit.limit({"z": 9, "y": 1024, "x": 1024}, rules, 4e9, 512.0) == 1.0
    assert limit.limit({"z": 9, "y": 1023, "x": 1024}, rules, 4e9, 512.0) == pytest.approx(1023 / 1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages and images, made once for the tests of this file."""
    return tmp_path_factory.mktemp("bench")


def made(folder: Path, name: str) -> tuple[Path, dict[str, Any]]:
    nets = module("nets")
    path = nets.make(folder / "models", name)
    return path, nets.facts_of(path)


@pytest.mark.parametrize(
    ("name", "shape"), [("n2v2d", (2, 221, 203)), ("convs2d", (2, 90, 131)), ("null2d", (1, 70, 80))]
)
def test_the_oracle_of_windows_is_the_whole_image(
    folder: Path, name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Windows with margins give what the network gives on a whole plane of a size that is a multiple of nothing."""
    oracle = module("oracle")
    monkeypatch.setattr(oracle, "SIDE", {2: 40, 3: 40})
    package, facts = made(folder, name)
    image = np.random.default_rng(3).integers(500, 3000, shape).astype(np.uint16)
    session = ort.InferenceSession(facts["onnx"], providers=["CPUExecutionProvider"])
    rules = facts["rules"]
    pad = [(0, -n % rules[a]["step"]) for a, n in zip("yx", shape[1:], strict=True)]
    whole = np.stack([
        session.run(None, {"input": np.pad(p.astype(np.float32), pad, mode="symmetric")[None, None]})[0][0] for p in image
    ], axis=1)[..., : shape[1], : shape[2]]  # fmt: skip
    for window in oracle.windows(shape, rules):
        np.testing.assert_allclose(
            oracle.truth(session, image, window, rules), whole[(slice(None), *window)], rtol=1e-5
        )
    np.save(tmp_path / "right.npy", whole)
    found = oracle.errors(facts["onnx"], image, tmp_path / "right.npy", "czyx", rules)
    assert found["all"] < 1e-5
    whole[0, -1, shape[1] // 2, shape[2] // 2] += 7 * found["spread"]  # the middle of the last plane is looked at
    whole[0, 0, 0, 0] += 3 * found["spread"]
    np.save(tmp_path / "wrong.npy", whole.transpose(1, 0, 2, 3))
    wrong = oracle.errors(facts["onnx"], image, tmp_path / "wrong.npy", "zcyx", rules)
    middle_is_seen = shape[0] == 1
    assert wrong["all"] == pytest.approx(7 if middle_is_seen else 3, rel=1e-3)
    assert open_package(package).rules["x"].halo == rules["x"]["halo"]


def test_rounding_is_no_error_and_one_more_is(folder: Path, tmp_path: Path) -> None:
    oracle = module("oracle")
    _, facts = made(folder, "convs2d")
    image = np.random.default_rng(4).integers(500, 3000, (1, 64, 64)).astype(np.uint16)
    session = ort.InferenceSession(facts["onnx"], providers=["CPUExecutionProvider"])
    right = session.run(None, {"input": image.astype(np.float32)[:, None]})[0][:, 0]
    for off in (0, 2):
        np.save(tmp_path / "y.npy", (np.rint(right) + off).astype(np.uint16))
        found = oracle.errors(facts["onnx"], image, tmp_path / "y.npy", "zyx", facts["rules"])
        assert found["all"] * found["spread"] == pytest.approx(off, abs=0.5)
        assert (found["all"] < 1e-5) == (off == 0)


def test_images_are_the_same_every_time_and_sparse_ones_take_no_room(tmp_path: Path) -> None:
    images = module("images")
    for kind, shape in (("nuclei", (3, 100, 90)), ("blobs", (20, 64, 48)), ("sparse", (130, 64, 64))):
        files = [images.Picture(kind, shape).write(tmp_path / side) for side in "ab"]
        one, two = (tifffile.imread(file) for file in files)
        assert one.shape == shape
        assert one.dtype == np.uint16
        assert one.std() > 10
        np.testing.assert_array_equal(one, two)
        with tifffile.TiffFile(files[0]) as tiff:
            assert tiff.series[0].axes == "ZYX"
    assert [int(z) for z in np.flatnonzero(one.any(axis=(1, 2)))] == [*range(4), *range(64, 68), 128, 129]
    large = images.Picture("sparse", (256, 512, 512)).write(tmp_path)
    assert large.stat().st_size > 256 * 512 * 512 * 2
    assert large.stat().st_blocks * 512 < 0.1 * large.stat().st_size


def case_of(label: str, voxels: int, **contenders: dict[str, Any]) -> dict[str, Any]:
    return {"label": label, "voxels": voxels, "contenders": contenders}


def test_figures_have_known_answers() -> None:
    """Slopes, ratios and shares of made-up runs."""
    figures = module("figures").figures_of
    sizes = (100, 200, 400)
    cases = [case_of("", n * MB, voidzoo={"peak_mb": 300.0, "seconds": 1.0}, dask={"peak_mb": 50 + 6.0 * n, "seconds": 3.0})
             for n in sizes]  # fmt: skip
    memory = figures("memory", cases)
    assert memory["bytes_per_voxel of dask"] == pytest.approx(6.0)
    assert memory["bytes_per_voxel of voidzoo"] == pytest.approx(0.0, abs=1e-9)
    assert memory["time of dask"] == 3.0
    blocks = [case_of("", 1, voidzoo={"seconds": 1 + 0.002 * n, "blocks": n, "tiles": n}) for n in (10, 100, 1000)]
    assert figures("bookkeeping", blocks) == {"ms_per_block": pytest.approx(2.0), "most_blocks": 1000}
    tiles = [case_of("", 1, voidzoo={"seconds": 1 + 1e-4 * n, "blocks": 4, "tiles": n}) for n in (10, 100, 1000)]
    assert figures("bookkeeping", tiles) == {"ms_per_tile": pytest.approx(0.1), "most_tiles": 1000}
    growth = [case_of("", v * MB, voidzoo={"seconds": 1 + 0.1 * v, "peak_mb": 200.0 + v, "planned_mb": 250.0, "planned_s": 1.0,
              "last_block_s": 1 + 0.1 * v}) for v in (10, 640)]  # fmt: skip
    found = figures("growth", growth)
    assert found["volume"] == 64.0
    assert found["same_without_startup"] == 1.0
    assert found["time_per_voxel_last_by_first"] == pytest.approx(65 / 640 / 0.2, abs=1e-3)
    assert found["peak_largest_by_smallest"] == 4.0
    assert figures("growth", [growth[0], case_of("", 640 * MB, voidzoo={"failure": "failed: x"})]) == {}
    assert figures("workers", [case_of("", 1, voidzoo={"seconds": s}) for s in (5.0, 10.0, 4.0)])["two_by_one"] == 2.5
    efficiency = case_of("", 1, voidzoo={"efficiency": 0.8, "peak_mb": 110.0, "planned_mb": 100.0}) | {"limit": 0.9}
    assert figures("efficiency", [efficiency])["share_of_limit"] == pytest.approx(0.889, abs=1e-3)
    failed = figures("efficiency", [case_of("", 1, voidzoo={"failure": "failed: x"}) | {"limit": 0.9}])
    assert failed == {"limit": 0.9}


def test_every_figure_of_the_issue_has_its_row() -> None:
    """Networks, sizes and memory of the goals; toy sizes keep rows, contenders and the ratio of volumes."""
    rows = {row.name: row for row in module("rows").ROWS}
    goals = {"n2v2d-16x1024x1024": "", "n2v2d-4x4096x4096": "2GB", "seg2d-2x4096x4096": "2GB", "n2v3d-64x256x256": "",
             "n2v3d-64x512x512": "4GB"}  # fmt: skip
    for (name, memory), tolerant in product(goals.items(), (False, True)):
        case = rows[name + "-tolerance" * tolerant].cases[0]
        assert case.floor
        assert ("--tolerance" in case.options) == tolerant == case.net.endswith("-trained")
        assert (case.options[case.options.index("--memory") + 1] if memory else "") == memory
    toy = module("rows").toy
    for row in rows.values():
        small = toy(row)
        assert [c.contenders for c in small.cases] == [c.contenders for c in row.cases]
        assert all(prod(c.picture.shape) <= 2**24 for c in small.cases)


def run_toy(folder: Path, *arguments: str) -> dict[str, Any]:
    """The command itself -> its report."""
    report = folder / "report.json"
    command = [sys.executable, str(BENCHMARKS / "inference.py"), "--toy", "--offline", "--cache", str(folder)]
    done = subprocess.run([*command, "--json", str(report), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    found: dict[str, Any] = json.loads(report.read_text())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "contenders"),
    [
        ("efficiency", "voidzoo"),
        ("memory,overhead,startup", "voidzoo,bioimageio-tuned"),
        ("bookkeeping,growth,workers", "voidzoo"),
    ],
)
def test_every_row_works_at_toy_size(folder: Path, groups: str, contenders: str) -> None:
    """All rows, one peer: every process ends well, results are right, all figures are there."""
    report = run_toy(folder, "--rows", groups, "--contenders", contenders)
    assert {row["group"] for row in report["rows"]} == set(groups.split(","))
    for row in report["rows"]:
        assert row["figures"], row["row"]
        for case in row["cases"]:
            for name, found in case["contenders"].items():
                assert "failure" not in found, (row["row"], name, found)
                assert found["seconds"] > 0
                assert found["peak_mb"] > 20
                if "errors" in found:
                    assert found["errors"]["all" if name == "voidzoo" else "inside"] < 1e-4, (row["row"], name)
            checked = not case["image"].startswith("sparse")
            assert checked == any("errors" in found for found in case["contenders"].values())
            if "floor" in case:
                assert case["contenders"]["voidzoo"]["efficiency"] > 0
                assert 0 < case["limit"] <= 1


@pytest.mark.slow
def test_the_rows_with_a_tolerance_train_their_networks(folder: Path) -> None:
    """All three trained networks are made; what differs from the full halo stays below the tolerance."""
    report = run_toy(
        folder, "--rows", "n2v2d-16x1024x1024-tolerance,seg2d-2x4096x4096-tolerance,n2v3d-64x256x256-tolerance"
    )
    for row in report["rows"]:
        found = row["cases"][0]["contenders"]["voidzoo"]
        assert found["errors"]["all"] < 1e-3, row["row"]
        assert row["cases"][0]["net"].endswith("-trained")


def test_a_peer_without_an_environment_is_said_to_be_missing(folder: Path) -> None:
    report = run_toy(folder, "--rows", "overhead", "--contenders", "dask")
    assert "not available" in report["rows"][0]["cases"][0]["contenders"]["dask"]["failure"]


def test_unknown_names_are_refused_with_those_that_exist() -> None:
    command = [sys.executable, str(BENCHMARKS / "inference.py"), "--rows", "efficency", "--list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "efficiency" in done.stderr
