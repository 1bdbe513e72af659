"""White noise: N2V beside CAREamics' at equal steps, and CARE, which sees the clean images, as the bound.

    python benchmarks/papers/dsb2018.py --json benchmarks/results/dsb2018.json                     20 images, some hours
    python benchmarks/papers/dsb2018.py --images FOLDER --count 200 --sigmas 20 --json FILE        other images

Real images of nuclei (DSB 2018, 8 bit, 256 x 256) get Gaussian noise of sigma 20 or 40, in float, without clipping, as in the DenoiSeg
and VoidSeg papers. Every training makes 600 steps of 16 patches of 64 x 64 with a U-Net of depth 2 and 32 filters, on the images
that it then denoises, as N2V does; all else is each program's default. `careamics` has its own U-Net, a quarter
fewer multiplications. PSNR is per image with the range of the clean image (largest - smallest grey value), then the mean over
the images; mean and spread (standard deviation) over the seeds, which also draw the noise.

What is in the report already is not run again: the same command continues.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
import environments
from images import DATA
from ledger import Ledger
from measure import run
from training import has_bf16

import voidzoo as vz
from voidzoo.trainers import denoise
from voidzoo.zoo.metrics import psnr

BENCHMARKS = Path(__file__).resolve().parents[1]
Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("noisy", "n2v", "n2v-bf16", "n2v2", "careamics", "careamics-same", "care")
EPOCHS, STEPS, BATCH = 20, 30, 16
CAREAMICS = (3, 200)
"""Its epochs and steps: it validates and saves after each epoch, which is not what is compared."""


def main() -> None:
    """Run what is missing of what was asked for; the report is written after each training."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument(
        "--images", type=Path, default=DATA, help="a folder of 8-bit TIFFs; others than 256 x 256 are left out"
    )
    known.add_argument("--count", type=int, default=200, help="the first so many of them")
    known.add_argument("--sigmas", default="20,40", help="grey values, with commas")
    known.add_argument("--methods", default=",".join(METHODS), help="with commas")
    known.add_argument("--seeds", type=int, default=3)
    known.add_argument(
        "--environments", type=Path, default=BENCHMARKS.parent / ".bench" / "environments", help="of the peers"
    )
    known.add_argument("--toy", action="store_true", help="four images, four steps")
    known.add_argument("--json", type=Path)
    given = known.parse_args()
    clean = pictures(given.images, 4 if given.toy else given.count)
    ledger = Ledger(
        given.json, ("sigma", "method"), ("psnr", "psnr_median"),
        {"images": len(clean), "steps": 4 if given.toy else EPOCHS * STEPS, "batch": BATCH},
    )  # fmt: skip
    for sigma in map(float, given.sigmas.split(",")):
        for seed in range(1, given.seeds + 1):
            for method in given.methods.split(","):
                if not method.endswith("bf16") or has_bf16():
                    ledger.once(partial(once, method, clean, sigma, seed, given), sigma=sigma, method=method, seed=seed)
    for row in ledger.rows():
        print(row)


def pictures(folder: Path, count: int) -> list[Array]:
    """Clean images, float32 (256, 256)."""
    found = []
    for path in sorted(folder.glob("*.tif")):
        plane = tifffile.imread(path)
        plane = plane if plane.ndim == 2 else plane[..., 0]
        if plane.shape == (256, 256) and len(found) < count:
            found.append(plane.astype(np.float32))
    if not found:
        raise SystemExit(f"{folder} has no TIFFs of 256 x 256 pixels")
    return found


def once(method: str, clean: list[Array], sigma: float, seed: int, given: Any) -> dict[str, Any]:
    """One method's PSNR over the images."""
    rng = np.random.default_rng((seed, int(sigma)))
    noisy = [(c + rng.normal(0, sigma, c.shape)).astype(np.float32) for c in clean]
    if method == "noisy":
        found = noisy
    elif method.startswith("careamics"):
        found = theirs(noisy, seed, same=method.endswith("same"), given=given)
    else:
        found = ours(method, clean, noisy, seed, toy=given.toy)
    values = [psnr(c, y, float(c.max() - c.min())) for c, y in zip(clean, found, strict=True)]
    return {
        "psnr": round(statistics.mean(values), 3),
        "psnr_median": round(statistics.median(values), 3),
    }


def ours(method: str, clean: list[Array], noisy: list[Array], seed: int, *, toy: bool) -> list[Array]:
    """voidzoo's way: `n2v`, `n2v2`, `care`, with `-bf16` in that precision."""
    name, _, precision = method.partition("-")
    opened = [vz.open_image(x, axes="yx") for x in noisy]
    targets = [vz.open_image(c, axes="yx") for c in clean] if name == "care" else []
    settings: dict[str, Any] = {
        "seed": seed, "batch": BATCH, "patch": (64, 64), "epochs": 2 if toy else EPOCHS, "steps": 2 if toy else STEPS,
        "precision": precision or "fp32",
    }  # fmt: skip
    recipe = vz.Recipe.guess(name, opened, **settings)
    with tempfile.TemporaryDirectory() as folder:
        made = vz.train(recipe, opened, Path(folder) / "run", device="cpu", targets=targets)
        network = made.network()
        return [denoise(network, made.normalisation, x[None], made.target_normalisation)[0] for x in noisy]


def theirs(noisy: list[Array], seed: int, *, same: bool, given: Any) -> list[Array]:
    """CAREamics, in its own environment."""
    epochs, steps = (2, 2) if given.toy else CAREAMICS
    with tempfile.TemporaryDirectory() as folder:
        array, out = Path(folder) / "noisy.npy", Path(folder) / "out.npy"
        np.save(array, np.stack(noisy))
        command = [
            environments.build(given.environments, "careamics"), BENCHMARKS / "peers" / "train_careamics.py", array,
            "--out", out, "--batch", BATCH, "--epochs", epochs, "--steps", steps, "--seed", seed,
            *(["--same-network"] if same else []),
        ]  # fmt: skip
        done = run([str(word) for word in command])
        if done.returncode:
            raise SystemExit(done.output[-600:])
        return list(np.load(out))


if __name__ == "__main__":
    main()
