"""StructN2V on noise that neighbours share: who removes it, and how wide the blind mask should be.

    python benchmarks/papers/structn2v.py --json benchmarks/results/structn2v.json            everything, hours on a CPU
    python benchmarks/papers/structn2v.py --noise ar0.6 --methods n2v,structn2v --seeds 1     a part

20 real images of nuclei (DSB 2018, 256 x 256) get noise of sigma 20 that is correlated along x or y: `ma0.33` is a moving
average n[i] + a n[i-1] (correlation a / (1 + a^2) = 0.3 at distance 1), `ar0.6` autoregressive (0.6^distance), in float,
without clipping. All trainings make the same number of steps on patches of the same size. Rows: the noisy images; NLM
(skimage, sigma given); N2V; StructN2V with the mask that `voidzoo noise` proposes, its hidden neighbours shown as pixels of the
window and, as published, as uniform numbers; masks of other widths; CARE, trained on the clean images, as the upper bound.
PSNR is per image with the range of the clean image, then the mean; `lag1` is the correlation of neighbours along the noise's
axis in (noisy - result): that of the noise where all of it and nothing else was taken away. `stripes` is what is left of the noise's
streaks: the power of (result - clean) at frequencies that are low along the axis (below 0.1) and high across it (above
0.25), in grey values squared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import lfilter

sys.path.insert(0, str(Path(__file__).parent.parent))
from denoising import SIGMA, images
from machine import machine, versions

import voidzoo as vz
from voidzoo.trainers import denoise
from voidzoo.zoo.metrics import psnr

Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("noisy", "nlm", "n2v", "structn2v", "structn2v-uniform", "care")


def correlated(rng: np.random.Generator, shape: tuple[int, ...], kind: str, axis: int) -> Array:
    """Noise of variance 1 along an axis; kind: `ma0.33`, `ar0.6` or `white`."""
    if kind == "white":
        return rng.normal(size=shape)
    a, ahead = float(kind[2:]), 64
    white = rng.normal(size=[n + ahead * (i == axis) for i, n in enumerate(shape)])
    if kind.startswith("ma"):
        out = lfilter([1, a], [1], white, axis=axis) / np.sqrt(1 + a * a)
    else:
        out = lfilter([1], [1, -a], white, axis=axis) * np.sqrt(1 - a * a)
    return out[tuple(slice(ahead * (i == axis), None) for i in range(len(shape)))]


def result_of(
    method: str, clean: list[Array], noisy: list[Array], axis: int, seed: int, length: dict[str, int]
) -> tuple[list[Array], str]:
    """What a method makes of the images, and the blind mask in words."""
    if method == "noisy":
        return noisy, ""
    if method == "nlm":
        from skimage.restoration import denoise_nl_means

        how = {"patch_size": 7, "patch_distance": 11, "h": 0.6 * SIGMA, "sigma": SIGMA, "fast_mode": True}
        return [denoise_nl_means(x, **how) for x in noisy], ""
    opened = [vz.open_image(x, axes="yx") for x in noisy]
    settings: dict[str, Any] = {"seed": seed, **length}
    name = method.split("-", maxsplit=1)[0]
    if name == "structn2v":
        proposed = vz.study_noise(noisy, axes="yx").mask
        if "w" in method.rsplit("-", maxsplit=1)[-1] and method[-1].isdigit():
            width = int(method.rpartition("w")[2])
            settings["blind_mask"] = f"{width}x1" if axis == 0 else f"1x{width}"
        elif proposed is None:
            raise SystemExit("voidzoo noise proposes no mask for this noise")
        else:
            settings["blind_mask"] = proposed.lists()
        settings["blind_fill"] = "uniform" if "uniform" in method else "window"
    recipe = vz.Recipe.guess(name, opened, **settings)
    targets = [vz.open_image(c, axes="yx") for c in clean] if name == "care" else []
    with tempfile.TemporaryDirectory() as folder:
        run = vz.train(recipe, opened, Path(folder) / "run", device="cpu", targets=targets)
        network = run.network()
        found = [denoise(network, run.normalisation, x[None], run.target_normalisation)[0] for x in noisy]
    return found, "" if recipe.blind is None else str(recipe.blind)


def judged(clean: list[Array], noisy: list[Array], found: list[Array], axis: int) -> dict[str, float]:
    """PSNR in dB, lag-1 correlation of what was taken away along the noise's axis, and what is left of its stripes."""
    ratio, lags, left = [], [], []
    for c, x, y in zip(clean, noisy, found, strict=True):
        ratio.append(psnr(c, y, float(c.max() - c.min())))
        gone = np.moveaxis(np.asarray(x, float) - y, axis, -1)
        gone = gone - gone.mean()
        if gone.std() > 0:
            lags.append(float((gone[:, 1:] * gone[:, :-1]).mean() / gone.var()))
        off = np.moveaxis(np.asarray(y, float) - c, axis, -1)
        power = np.abs(np.fft.fft2(off - off.mean())) ** 2
        across, along = (np.abs(np.fft.fftfreq(n)) for n in power.shape)
        band = power[across > 0.25][:, along < 0.1].sum() / power.size**2
        left.append(float(band))
    return {
        "psnr": round(statistics.mean(ratio), 3),
        "lag1": round(statistics.mean(lags), 3) if lags else 0.0,
        "stripes": round(statistics.mean(left), 3),
    }


def main() -> None:
    """Run what was asked for; the report is written after each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", default="ma0.33,ar0.6", help="kinds, with commas")
    parser.add_argument("--axes", default="x", help="x, y or x,y")
    parser.add_argument("--methods", default=",".join(METHODS), help="also structn2v-wN for a mask of N pixels")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    clean = list(images().values())
    rows: list[dict[str, Any]] = []
    for kind in given.noise.split(","):
        for letter in given.axes.split(","):
            for method in given.methods.split(","):
                runs = []
                for seed in range(1, given.seeds + 1):
                    rng = np.random.default_rng((seed, "yx".index(letter)))
                    noise = [SIGMA * correlated(rng, c.shape, kind, "yx".index(letter)) for c in clean]
                    noisy = [(c + n).astype(np.float32) for c, n in zip(clean, noise, strict=True)]
                    found, mask = result_of(method, clean, noisy, "yx".index(letter), seed, {"epochs": given.epochs})
                    runs.append({"seed": seed, "mask": mask, **judged(clean, noisy, found, "yx".index(letter))})
                values = [r["psnr"] for r in runs]
                row = {
                    "noise": kind, "axis": letter, "method": method, "mask": runs[0]["mask"],
                    "psnr": round(statistics.mean(values), 2),
                    "psnr_sd": round(statistics.stdev(values), 2) if len(values) > 1 else None,
                    "lag1": round(statistics.mean(r["lag1"] for r in runs), 3),
                    "stripes": round(statistics.mean(r["stripes"] for r in runs), 2), "runs": runs,
                }  # fmt: skip
                rows.append(row)
                print({k: v for k, v in row.items() if k != "runs"}, flush=True)
                if given.json:
                    report = {
                        "images": len(clean), "sigma": SIGMA, "epochs": given.epochs, "rows": rows,
                        "versions": versions(), "machine": machine(),
                        "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    }  # fmt: skip
                    given.json.parent.mkdir(parents=True, exist_ok=True)
                    given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
