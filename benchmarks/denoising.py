"""N2V learns: PSNR of noisy and denoised images against the clean ones.

    python benchmarks/denoising.py --json benchmarks/results/denoising.json

20 real images of nuclei (DSB 2018, 8 bit, 256 x 256) get Gaussian noise of sigma 20, in float, without clipping, as in the
DenoiSeg and VoidSeg papers. N2V is trained on these noisy images with its default recipe, which never sees a clean one, and
predicts them through the exported package (the same way that a user goes). PSNR is per image with the range of the clean
image (largest - smallest grey value), then the mean over the images; mean and spread over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from inference import machine, versions

import voidzoo as vz
from voidzoo.zoo.metrics import psnr

DATA = Path(__file__).parent / "data" / "dsb2018"
SIGMA = 20.0


def images() -> dict[str, np.ndarray[Any, Any]]:
    """Name -> clean image, float32 (y, x)."""
    return {path.stem: tifffile.imread(path).astype(np.float32) for path in sorted(DATA.glob("*.tif"))}


def once(clean: dict[str, np.ndarray[Any, Any]], seed: int) -> dict[str, Any]:
    """Noise, training, export and prediction with one seed."""
    rng = np.random.default_rng(seed)
    noisy = {n: (c + rng.normal(0, SIGMA, c.shape)).astype(np.float32) for n, c in clean.items()}
    with tempfile.TemporaryDirectory() as folder:
        opened = [vz.open_image(x, axes="yx") for x in noisy.values()]
        start = time.perf_counter()
        run = vz.train(vz.Recipe.guess("n2v", opened, seed=seed), opened, Path(folder) / "run")
        seconds = time.perf_counter() - start
        package = vz.export(run, Path(folder) / "model.zip")
        denoised = {n: vz.predict(package, x, axes="yx", device="cpu") for n, x in noisy.items()}
    before = [psnr(c, noisy[n], float(c.max() - c.min())) for n, c in clean.items()]
    after = [psnr(c, denoised[n], float(c.max() - c.min())) for n, c in clean.items()]
    return {
        "seed": seed,
        "psnr_noisy": round(statistics.mean(before), 3),
        "psnr_denoised": round(statistics.mean(after), 3),
        "psnr_denoised_median": round(statistics.median(after), 3),
        "worst_gain": round(min(a - b for a, b in zip(after, before, strict=True)), 3),
        "train_seconds": round(seconds, 1),
        "epochs": run.recipe.epochs,
        "steps": run.recipe.steps,
        "batch": run.recipe.batch,
    }


def main() -> None:
    """Run all seeds and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clean = images()
    rows = []
    for seed in range(1, arguments.seeds + 1):
        rows.append(once(clean, seed))
        print(rows[-1], flush=True)
    gains = [r["psnr_denoised"] - r["psnr_noisy"] for r in rows]
    report = {
        "images": len(clean),
        "sigma": SIGMA,
        "psnr_noisy": round(statistics.mean(r["psnr_noisy"] for r in rows), 2),
        "psnr_denoised": round(statistics.mean(r["psnr_denoised"] for r in rows), 2),
        "psnr_denoised_sd": round(statistics.stdev(r["psnr_denoised"] for r in rows), 3) if len(rows) > 1 else None,
        "gain_db": round(statistics.mean(gains), 2),
        "runs": rows,
        "versions": versions(),
        "machine": machine(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(f"noisy {report['psnr_noisy']} dB, denoised {report['psnr_denoised']} dB, gain {report['gain_db']} dB")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
