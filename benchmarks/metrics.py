"""How long it takes to judge an image: the matching of objects beside stardist's, SSIM beside scikit-image's.

    python benchmarks/metrics.py --json benchmarks/results/metrics.json

Objects are discs on a grid, numbered at random; the prediction is the truth moved by a few pixels, without a tenth of it.
All contenders get the same arrays, take turns in one process, and must agree: counts to the one, figures to 1e-6. Figures are
medians of the seconds, and the ratio to those of voidzoo. stardist (`pip install stardist`) is left out where it is not
installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from machine import load, machine, versions
from skimage.metrics import contingency_table, structural_similarity

import voidzoo as vz

Array = np.ndarray[Any, Any]
MOVED = (2, 3)


def labels(side: int, objects_a_side: int, seed: int = 0) -> tuple[Array, Array]:
    """(prediction, truth), int32 (y, x)."""
    rng = np.random.default_rng(seed)
    step = side / objects_a_side
    along = np.arange(side)
    cell = (along // step).astype(np.int64)
    inside = along - (cell + 0.5) * step
    numbers = rng.permutation(objects_a_side**2) + 1
    radius = rng.uniform(0.25, 0.48, objects_a_side**2) * step
    which = cell[:, None] * objects_a_side + cell[None]
    truth = np.where(np.hypot(inside[:, None], inside[None]) < radius[which], numbers[which], 0).astype(np.int32)
    missed = rng.choice(numbers, len(numbers) // 10, replace=False)
    return np.roll(np.where(np.isin(truth, missed), 0, truth), MOVED, (0, 1)), truth


def of_voidzoo(prediction: Array, truth: Array, ious: list[float]) -> tuple[int, float]:
    """(TP, panoptic quality) at the first threshold."""
    found = vz.evaluate(prediction, truth, axes="yx", kind="labels", iou=ious).pooled
    return int(found[f"tp_{ious[0]:g}"]), found[f"pq_{ious[0]:g}"]


def of_stardist(prediction: Array, truth: Array, ious: list[float]) -> tuple[int, float]:
    """The same."""
    from stardist.matching import matching

    first = matching(truth, prediction, thresh=tuple(i + 1e-7 for i in ious))[0]
    return int(first.tp), float(first.panoptic_quality)


def table_of_skimage(prediction: Array, truth: Array, _ious: list[float]) -> tuple[int, float]:
    """The overlap table alone; TP and PQ are made of it with numpy."""
    table = contingency_table(truth, prediction, normalize=False).tocoo()
    rows, columns = np.asarray(table.sum(1)).ravel(), np.asarray(table.sum(0)).ravel()
    iou = table.data / (rows[table.row] + columns[table.col] - table.data)
    good = iou[(table.row > 0) & (table.col > 0) & (iou > 0.5)]
    return len(good), float(2 * good.sum() / ((rows[1:] > 0).sum() + (columns[1:] > 0).sum()))


def in_turns(contenders: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Name -> median seconds, and -> what it found."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            found[name] = run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}, found


def row(what: str, contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    """One line of the report. Raises AssertionError where they do not agree."""
    seconds, found = in_turns(contenders, rounds)
    for name, figures in found.items():
        np.testing.assert_allclose(figures, found["voidzoo"], rtol=1e-6, err_msg=name)
    ratios = {n: round(s / seconds["voidzoo"], 2) for n, s in seconds.items() if n != "voidzoo"}
    return {"what": what, "seconds": {n: round(s, 3) for n, s in seconds.items()}, "times_voidzoo": ratios}


def main() -> None:
    """Run all rows and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = {"voidzoo": of_voidzoo, "skimage": table_of_skimage}
    if importlib.util.find_spec("stardist") is not None:
        names["stardist"] = of_stardist
    before = load()
    for run in names.values():  # imports and compilation are no one's
        run(*labels(256, 6), [0.5])
    rows = []
    for side in arguments.sides:
        prediction, truth = labels(side, side * 100 // 4096)
        count = f"{side} x {side}, {len(np.unique(truth)) - 1:,} objects"
        runs = {n: (lambda f=f, p=prediction, t=truth: f(p, t, [0.5])) for n, f in names.items()}
        rows.append(row(f"matching at IoU 0.5, {count}", runs, arguments.rounds))
        print(rows[-1], flush=True)
        ten = list(np.linspace(0.5, 0.95, 10))
        rows.append(
            row(f"ten thresholds, {count}", {"voidzoo": lambda p=prediction, t=truth, i=ten: of_voidzoo(p, t, i)}, 3)
        )
        print(rows[-1], flush=True)
    rng = np.random.default_rng(0)
    clean = rng.gamma(3, 300, (2048, 2048)).astype(np.float32)
    noisy = clean + rng.normal(0, 20, clean.shape).astype(np.float32)
    spread = float(clean.max()) - float(clean.min())
    runs = {
        "voidzoo": lambda: vz.evaluate(noisy, clean, axes="yx", kind="intensities").pooled["ssim"],
        "skimage": lambda: structural_similarity(clean.astype(float), noisy.astype(float), data_range=spread),
    }
    rows.append(row("PSNR and SSIM (skimage: SSIM alone), 2048 x 2048 float32", runs, arguments.rounds))
    print(rows[-1], flush=True)
    report = {
        "rows": rows, "date": datetime.now(UTC).date().isoformat(), "machine": machine(), "load_before": before,
        "versions": versions(),
    }  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
