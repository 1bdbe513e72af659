"""How close prediction comes to the bare network: onnxruntime on the same pixels, without halo and without files.

    python benchmarks/inference.py --quick --json FILE

The floor is the fastest of several tile sizes, batches and thread arrangements, all of which are reported. voidzoo is
timed from outside as a process: start, TIFF in, OME-Zarr out and closed. The two are interleaved; efficiency is the
median over the pairs of floor time / voidzoo time, so that it survives a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import tifffile

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.packages import make_package, micrograph

LIBRARIES = ("voidzoo", "numpy", "onnxruntime-gpu", "onnxruntime", "dask", "zarr", "tifffile")


@dataclass(frozen=True)
class Case:
    """A network and an image. tiles: what the floor is tried with; options: what `voidzoo predict` gets."""

    network: dict[str, Any]
    shape: tuple[int, ...]
    tiles: tuple[tuple[int, ...], ...]
    options: tuple[str, ...] = ()


CASES = {
    "n2v2d-16x1024x1024": Case(
        {"dims": 2, "depth": 2, "filters": 32}, (16, 1024, 1024), ((256, 256), (512, 512), (1024, 1024))
    ),
}


class Floor:
    """The bare network: one session with all threads, or one single-threaded session for each processor."""

    def __init__(self, weights: bytes, sessions: int, threads: int) -> None:
        self.sessions = []
        for _ in range(sessions):
            options = ort.SessionOptions()
            options.intra_op_num_threads = threads
            self.sessions.append(ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"]))

    def run(self, batches: list[np.ndarray[Any, Any]]) -> float:
        """Seconds for all batches, shared out over the sessions."""
        waiting = iter(batches)
        lock = threading.Lock()

        def work(session: Any) -> None:
            while True:
                with lock:
                    batch = next(waiting, None)
                if batch is None:
                    return
                session.run(None, {"input": batch})

        start = time.perf_counter()
        workers = [threading.Thread(target=work, args=(s,)) for s in self.sessions[1:]]
        for worker in workers:
            worker.start()
        work(self.sessions[0])
        for worker in workers:
            worker.join()
        return time.perf_counter() - start


def cut(stack: np.ndarray[Any, Any], tile: tuple[int, ...], batch: int) -> list[np.ndarray[Any, Any]]:
    """The pixels as float32 batches (b, 1, [z], y, x) without overlap; `tile` divides the image."""
    dims = len(tile)
    planes = stack.reshape((-1, *stack.shape[-dims:]))
    tiles = [
        plane[tuple(slice(c, c + t) for c, t in zip(corner, tile, strict=True))]
        for plane in planes
        for corner in product(*(range(0, n, t) for n, t in zip(planes.shape[1:], tile, strict=True)))
    ]
    return [np.stack(tiles[i : i + batch])[:, None].astype(np.float32) for i in range(0, len(tiles), batch)]


def survey(weights: bytes, case: Case, sample: np.ndarray[Any, Any], rounds: int) -> tuple[list[dict[str, Any]], Any]:
    """Try every arrangement on a part of the pixels, interleaved. -> all of them, and the fastest with its Floor."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    floors = {"1 session": Floor(weights, 1, cores)}
    if cores > 1:
        floors[f"{cores} sessions"] = Floor(weights, cores, 1)
    tried = [
        {"sessions": name, "tile": tile, "batch": batch, "seconds": []}
        for name, tile, batch in product(floors, case.tiles, (1, 4))
        if batch * np.prod(tile) <= np.prod(case.tiles[-1])
    ]
    data = {(t["tile"], t["batch"]): cut(sample, t["tile"], t["batch"]) for t in tried}
    for arrangement in tried:
        floors[arrangement["sessions"]].run(data[arrangement["tile"], arrangement["batch"]][:2])
    for _ in range(rounds):
        for arrangement in tried:
            batches = data[arrangement["tile"], arrangement["batch"]]
            arrangement["seconds"].append(floors[arrangement["sessions"]].run(batches))
    for arrangement in tried:
        arrangement["mvox_s"] = round(sample.size / statistics.median(arrangement.pop("seconds")) / 1e6, 3)
    best = max(tried, key=lambda t: t["mvox_s"])
    return tried, (best, floors[best["sessions"]])


def predict(package: str, source: Path, out: Path, options: tuple[str, ...]) -> tuple[float, float]:
    """Run voidzoo as a process. -> wall seconds, peak memory in MB as the process itself saw it."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "voidzoo", "predict", package, str(source), "-o", str(out), "--quiet", *options]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    seconds = time.perf_counter() - start
    attributes = json.loads((out / "zarr.json").read_text())["attributes"]
    return seconds, attributes["voidzoo"]["happened"]["peak_memory"] / 1e6


def measure(name: str, case: Case, rounds: int) -> dict[str, Any]:
    """One case: survey of the floor, then floor and voidzoo in turn."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        package = make_package(root / "package", **case.network)
        rng = np.random.default_rng(0)
        stack = np.concatenate([micrograph(rng, (1, *case.shape[1:])) for _ in range(case.shape[0])])
        source = root / "in.tif"
        tifffile.imwrite(source, stack, photometric="minisblack", metadata={"axes": "ZYX"})
        sample = stack[: max(1, len(stack) // 4)] if case.network["dims"] == 2 else stack
        tried, (best, floor) = survey(package.onnx(), case, sample, rounds)
        batches = cut(stack, best["tile"], best["batch"])
        out = root / "out.ome.zarr"
        predict(package.path, source, out, case.options)  # once unmeasured: compiled bytecode, warm files
        pairs = []
        for _ in range(rounds):
            bare = floor.run(batches)
            whole, peak = predict(package.path, source, out, case.options)
            pairs.append((bare, whole, peak))
    return {
        "case": name,
        "network": case.network,
        "shape": case.shape,
        "options": case.options,
        "rounds": rounds,
        "floor_mvox_s": round(stack.size / statistics.median(p[0] for p in pairs) / 1e6, 4),
        "voidzoo_mvox_s": round(stack.size / statistics.median(p[1] for p in pairs) / 1e6, 4),
        "efficiency": round(statistics.median(p[0] / p[1] for p in pairs), 4),
        "efficiency_min": round(min(p[0] / p[1] for p in pairs), 4),
        "efficiency_max": round(max(p[0] / p[1] for p in pairs), 4),
        "peak_rss_mb": round(max(p[2] for p in pairs), 1),
        "floor_seconds": [round(p[0], 3) for p in pairs],
        "voidzoo_seconds": [round(p[1], 3) for p in pairs],
        "floor_best": best,
        "floor_tried": tried,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        model = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), model
        )
    return {"processor": model, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version()}  # fmt: skip


def versions() -> dict[str, str]:
    """The libraries that matter, those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except ImportError:
            continue
    return found


def main() -> None:
    """Measure the cases and write one JSON object: the figures of the first case, and all cases under `cases`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7")
    parser.add_argument("--case", action="append", choices=list(CASES), help="only this case; repeatable")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 7
    rows = []
    for name in arguments.case or CASES:
        rows.append(measure(name, CASES[name], rounds))
        row = rows[-1]
        print(f"{name}: floor {row['floor_mvox_s']} Mvox/s ({row['floor_best']}), voidzoo {row['voidzoo_mvox_s']} Mvox/s, "
              f"efficiency {row['efficiency']} ({row['efficiency_min']}..{row['efficiency_max']}), "
              f"peak {row['peak_rss_mb']} MB", flush=True)  # fmt: skip
    figures = {key: rows[0][key] for key in ("floor_mvox_s", "voidzoo_mvox_s", "efficiency", "peak_rss_mb")}
    report = {**figures, "cases": rows, "versions": versions(), "machine": machine(),
              "date": datetime.now(UTC).isoformat(timespec="seconds")}  # fmt: skip
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
