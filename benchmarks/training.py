"""Training: steps a second beside CAREamics and beside the bare network, time to the first step, memory.

    python benchmarks/training.py --json benchmarks/results/training.json              everything, about an hour
    python benchmarks/training.py --rows batch-16 --repeats 3 --offline                a row
    python benchmarks/training.py --toy                                                does everything work?

N2V in 2D, U-Net of depth 2 with 32 filters, patches of 64 x 64 of noisy nuclei (DSB 2018, sigma 20). Each run is a process of its
own, the contenders in turn, round after round; a ratio is the median over rounds of the quotient within a round.
`voidzoo`: the command. `bare`: the same network on random numbers, see steps.py. `careamics`: its command's API with its defaults
and its own U-Net, a quarter fewer multiplications; `careamics-same`: with voidzoo's network in it. A step is the median
over all but the first epoch; the first step counts from the start of the process. `memory`: a stack ten times as large as
`--memory`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tifffile
from images import SIGMA, Picture, clean_nuclei
from machine import load, machine, versions
from measure import Measured, run

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
import environments  # noqa: E402  (in benchmarks/peers)

CONTENDERS = ("voidzoo", "bare", "careamics", "careamics-same")


@dataclass(frozen=True)
class Row:
    """A batch size and how long one run is."""

    batch: int
    epochs: int
    steps: int
    precision: str = "fp32"


ROWS = {
    "batch-16": Row(16, 2, 15),
    "batch-128": Row(128, 2, 5),
    "batch-16-bf16": Row(16, 2, 15, "bf16"),
    "batch-128-bf16": Row(128, 2, 5, "bf16"),
}
MEMORY = "700MB"
"""What the row `memory` gives; its image is ten times as large."""


def main() -> None:
    """Measure what was asked for; the report is written after each row."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--rows", default="", help=f"with commas: {', '.join(ROWS)}, memory; default: all that can run")
    known.add_argument("--contenders", default=",".join(CONTENDERS), help="with commas")
    known.add_argument("--repeats", type=int, default=5)
    known.add_argument("--cache", type=Path, default=HERE.parent / ".bench")
    known.add_argument("--environments", type=Path, help="of the peers; default: CACHE/environments")
    known.add_argument("--offline", action="store_true", help="make no environment; CAREamics without one is left out")
    known.add_argument("--toy", action="store_true", help="a few steps, one round")
    known.add_argument("--json", type=Path)
    known.add_argument("--keep", action="store_true", help="keep the rows of that report that are not measured again")
    given = known.parse_args()
    rows = [r for r in given.rows.split(",") if r] or [
        *(name for name, row in ROWS.items() if row.precision == "fp32" or has_bf16()), "memory",
    ]  # fmt: skip
    report: dict[str, Any] = {"rows": []}
    if given.keep and given.json and given.json.exists():
        report["rows"] = [r for r in json.loads(given.json.read_text())["rows"] if r["row"] not in rows]
    for name in rows:
        made = memory_row(given) if name == "memory" else speed_row(name, given)
        report["rows"].append(made)
        print(name, {k: v for k, v in made.items() if k not in ("contenders", "row")}, flush=True)
        if given.json:
            report |= {"machine": machine(), "versions": versions(), "date": now()}
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(report, indent=1) + "\n")


def now() -> str:
    """The time of a report."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def has_bf16() -> bool:
    """Whether this processor multiplies in bf16."""
    import torch

    from voidzoo.trainers.device import choose_precision

    return choose_precision("auto", torch.device("cpu")) == "bf16"


def speed_row(name: str, given: Any) -> dict[str, Any]:
    """All contenders in turn."""
    row = ROWS[name] if not given.toy else Row(4, 2, 2, ROWS[name].precision)
    repeats = 1 if given.toy else given.repeats
    runs: dict[str, list[dict[str, Any]]] = {c: [] for c in given.contenders.split(",")}
    before, failures = load(), {}
    with tempfile.TemporaryDirectory() as folder:
        images(Path(folder))
        for turn in range(repeats):
            for contender, done in runs.items():
                try:
                    done.append(once(contender, row, Path(folder), given))
                except RuntimeError as error:
                    failures[contender] = str(error)
                    continue
                print(f"  {name}  round {turn + 1}/{repeats} {contender}: {done[-1]}", flush=True)
    found = {c: summary(r) for c, r in runs.items() if r}
    return {
        "row": name, "batch": row.batch, "precision": row.precision, "repeats": repeats, "date": now(),
        "load_before": before, **ratios(runs), "contenders": found, **({"failures": failures} if failures else {}),
    }  # fmt: skip


def images(folder: Path) -> None:
    """The same noisy images as a TIFF stack and as an array."""
    rng = np.random.default_rng(1)
    noisy = np.stack([c + rng.normal(0, SIGMA, c.shape) for c in clean_nuclei()]).astype(np.float32)
    tifffile.imwrite(folder / "images.tif", noisy, metadata={"axes": "TYX"})
    np.save(folder / "images.npy", noisy)


def once(contender: str, row: Row, folder: Path, given: Any) -> dict[str, Any]:
    """One run. Raises RuntimeError where it fails or cannot be made."""
    batch = ["--batch", str(row.batch)]
    length = ["--epochs", str(row.epochs), "--steps", str(row.steps)]
    if contender == "voidzoo":
        shutil.rmtree(folder / "run", ignore_errors=True)
        script = [HERE / "steps.py", "voidzoo", folder / "images.tif", folder / "run", *length]
        command = [sys.executable, *script, *batch, "--precision", row.precision]
    elif contender == "bare":
        steps = ["--steps", str(row.steps * row.epochs)]
        command = [sys.executable, HERE / "steps.py", "bare", *steps, *batch, "--precision", row.precision]
    else:
        place = given.environments or given.cache / "environments"
        python = environments.python_of(place, "careamics")
        if given.offline and not python.exists():
            raise RuntimeError("not available: no environment")
        python = environments.build(place, "careamics")
        command = [python, HERE / "peers" / "train_careamics.py", folder / "images.npy", *length, *batch]
        command += ["--same-network"] if contender == "careamics-same" else []
    done = run([str(word) for word in command], environment={"PYTHONPATH": str(HERE.parent)})
    if done.returncode:
        raise RuntimeError(done.output[-400:])
    return measured(done)


def measured(done: Measured) -> dict[str, Any]:
    """A run in figures: milliseconds of the median step, seconds to the first, MB, and shares of a step."""
    said = json.loads(done.output.strip().splitlines()[-1])
    ends = said["ends"]
    later = ends[1:] or [ends[0][len(ends[0]) // 2 :]]
    step = median(b - a for epoch in later for a, b in pairwise(epoch))
    return {
        "step_ms": round(1e3 * step, 2),
        "first_step_s": round(ends[0][0] - done.started, 2),
        "peak_mb": round(done.peak / 1e6, 1),
        "tree_mb": round(done.tree / 1e6, 1),
        **{f"{k}_share": round(said[k] / step, 4) for k in ("sampling", "masking") if k in said},
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and every run's step."""
    found = {k: round(median(r[k] for r in runs), 4) for k in runs[0]}
    return {**found, "steps_s": round(1e3 / found["step_ms"], 3), "runs": [r["step_ms"] for r in runs]}


def ratios(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How many times as long a step of each other takes as voidzoo's, within each round; the median over rounds."""
    ours = runs.get("voidzoo", [])
    found = {}
    for name, others in runs.items():
        quotients = [o["step_ms"] / v["step_ms"] for o, v in zip(others, ours, strict=False)]
        if name != "voidzoo" and quotients:
            found["step_of_bare" if name == "bare" else f"faster_than_{name}"] = round(
                median(1 / q if name == "bare" else q for q in quotients), 4
            )
    return found


def memory_row(given: Any) -> dict[str, Any]:
    """A stack ten times as large as the memory, one epoch of real length."""
    allowed = float(MEMORY.removesuffix("MB")) * 1e6
    side = 256 if given.toy else 2048
    planes = 16 if given.toy else int(10 * allowed / (2 * side * side)) + 1
    picture = Picture("nuclei", (planes, side, side))
    image = picture.write(given.cache / "images")
    with tempfile.TemporaryDirectory() as folder:
        words = ["voidzoo", image, Path(folder) / "run", "--batch", "8", "--memory", MEMORY]
        words += ["--epochs", "2", "--steps", "3" if given.toy else "200"]
        done = run(
            [sys.executable, str(HERE / "steps.py"), *map(str, words)], environment={"PYTHONPATH": str(HERE.parent)}
        )
        if done.returncode:
            raise RuntimeError(done.output[-400:])
        info = json.loads((Path(folder) / "run" / "run.json").read_text())
    return {
        "row": "memory", "date": now(), "image": picture.name, "image_gb": round(picture.voxels * 2 / 1e9, 2),
        "memory_mb": allowed / 1e6, "pool_mb": round((info["pool_bytes"] or 0) / 1e6, 1),
        "peak_mb": round(done.peak / 1e6, 1), "peak_of_plan": round(done.peak / allowed, 3),
        "seconds": round(done.seconds, 1), **measured(done),
    }  # fmt: skip


if __name__ == "__main__":
    main()
