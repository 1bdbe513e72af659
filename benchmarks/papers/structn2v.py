"""StructN2V on noise that neighbours share: who removes it, and how wide the blind mask should be.

    python benchmarks/papers/structn2v.py --json benchmarks/results/structn2v.json            everything, hours on a CPU
    python benchmarks/papers/structn2v.py --noise ar0.6 --methods n2v,structn2v --seeds 1     a part
    python benchmarks/papers/structn2v.py --data LOW.tif:HIGH.tif,OTHER.tif --pictures FOLDER --json FILE     real images

`x`, `y`: 20 real images of nuclei (DSB 2018, 256 x 256) with noise of sigma 20 that is correlated along that axis; `ma0.33` is a moving
average n[i] + a n[i-1] (correlation a / (1 + a^2) = 0.3 at distance 1), `ar0.6` autoregressive (0.6^distance), in float,
without clipping. `volume`: three volumes of synthetic cells, 32 x 128 x 128, the noise along y, and a 3D network. All trainings of one
kind make the same number of steps on patches of the same size. Rows: the noisy images; NLM and BM3D (sigma given; the
latter where it is installed); N2V; StructN2V with the mask that `voidzoo noise` proposes, its hidden neighbours shown as pixels of
the window and, as published, as uniform numbers; masks of other widths (`structn2v-w9`: along the noise); CARE, trained on the clean
images, as the upper bound.

PSNR is per image with the range of the clean image, then the mean; of a real pair that with its partner after an affine fit, range 255.
`lag1` is the correlation of neighbours along the noise's axis in (noisy - result): that of the noise where all of it and
nothing else was taken away. `stripes` is what is left of the noise's streaks: the power of (result - clean) at frequencies that are
low along the axis (below 0.1) and high across it (above 0.25), in grey values squared; without a clean image that of the result.

What is in the report already is not run again: the same command continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import lfilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "peers"))
from images import SIGMA, blobs, clean_nuclei
from ledger import Ledger

import voidzoo as vz
from voidzoo.trainers import denoise
from voidzoo.zoo.metrics import psnr, psnr_affine
from voidzoo.zoo.pictures import contrast, side_by_side

Array = np.ndarray[Any, np.dtype[Any]]
METHODS = ("noisy", "nlm", "bm3d", "n2v", "structn2v", "structn2v-uniform", "care")
VOLUMES = 3


@dataclass(frozen=True)
class Task:
    """Noisy images (y, x) or volumes (z, y, x), the clean ones (None: there are none), the noise's axis and std.

    real: PSNR is measured after an affine fit.
    """

    noisy: list[Array]
    clean: list[Array] | None
    letter: str
    sigma: float = SIGMA
    real: bool = False

    @property
    def axes(self) -> str:
        """`yx` or `zyx`."""
        return "zyx"[-self.noisy[0].ndim :]

    @property
    def axis(self) -> int:
        """Of the noise, counted from the end: -1 is x."""
        return self.axes.index(self.letter) - len(self.axes)

    def mask(self, width: int) -> str:
        """A line of this many pixels along the noise."""
        return "x".join(str(width if a == self.letter else 1) for a in self.axes)


def task_of(data: str, kind: str, seed: int) -> Task:
    """x, y, volume, FILE or FILE:PARTNER; kind: of the synthetic noise."""
    if data not in ("x", "y", "volume"):
        low, _, high = data.partition(":")
        images = [vz.open_image(f).read({}).astype(np.float32).squeeze() for f in (low, high) if f]
        return Task([images[0]], images[1:] or None, "x", noise_level(images[0]), real=True)
    letter = "y" if data == "volume" else data
    rng = np.random.default_rng((seed, "yx".index(letter)))
    clean = clean_nuclei()
    if data == "volume":
        clean = [smooth((32, 128, 128), s) for s in range(VOLUMES)]
    axis = "yx".index(letter) - 2
    noisy = [(c + SIGMA * correlated(rng, c.shape, kind, axis)).astype(np.float32) for c in clean]
    return Task(noisy, clean, letter)


def smooth(shape: tuple[int, int, int], seed: int) -> Array:
    """Synthetic cells without their shot noise, grey values 0 to 255: their cells are wider than the filter."""
    from scipy.ndimage import gaussian_filter

    quiet = gaussian_filter(blobs(shape, seed).astype(np.float32), 1.0)
    low, high = quiet.min(), quiet.max()
    return np.asarray((quiet - low) / (high - low) * 255, np.float32)


def correlated(rng: np.random.Generator, shape: tuple[int, ...], kind: str, axis: int) -> Array:
    """Noise of variance 1 along an axis (counted from the end); kind: `ma0.33`, `ar0.6` or `white`."""
    if kind == "white":
        return rng.normal(size=shape)
    a, ahead = float(kind[2:]), 64
    axis += len(shape)
    white = rng.normal(size=[n + ahead * (i == axis) for i, n in enumerate(shape)])
    if kind.startswith("ma"):
        out = lfilter([1, a], [1], white, axis=axis) / np.sqrt(1 + a * a)
    else:
        out = lfilter([1], [1, -a], white, axis=axis) * np.sqrt(1 - a * a)
    return out[tuple(slice(ahead * (i == axis), None) for i in range(len(shape)))]


def classical(method: str, noisy: list[Array], sigma: float) -> list[Array]:
    """NLM or BM3D, plane by plane, told the standard deviation of the noise."""
    found = []
    for image in noisy:
        if method == "bm3d":
            import bm3d

            found.append(np.stack([bm3d.bm3d(p, sigma) for p in image.reshape(-1, *image.shape[-2:])]))
        else:
            from skimage.restoration import denoise_nl_means

            how = {"patch_size": 7, "patch_distance": 11, "h": 0.6 * sigma, "sigma": sigma, "fast_mode": True}
            found.append(np.stack([denoise_nl_means(p, **how) for p in image.reshape(-1, *image.shape[-2:])]))
    return [f.reshape(n.shape) for f, n in zip(found, noisy, strict=True)]


def noise_level(image: Array) -> float:
    """Standard deviation of the noise of a plane, from its finest detail along both axes."""
    fine = np.diff(np.diff(image.astype(float), axis=0), axis=1) / 2
    return float(np.sqrt(np.pi / 2) * np.abs(fine).mean())


def result_of(method: str, task: Task, seed: int, epochs: int | None) -> tuple[list[Array], str]:
    """What a method makes of the images, and the blind mask in words."""
    if method == "noisy":
        return task.noisy, ""
    if method in ("nlm", "bm3d"):
        return classical(method, task.noisy, task.sigma), ""
    opened = [vz.open_image(x, axes=task.axes) for x in task.noisy]
    settings: dict[str, Any] = {"seed": seed} | ({} if epochs is None else {"epochs": epochs})
    name, _, how = method.partition("-")
    if name == "structn2v":
        proposed = vz.study_noise(task.noisy, axes=task.axes).mask
        if how.startswith("w"):
            settings["blind_mask"] = task.mask(int(how[1:]))
        elif proposed is None:
            raise SystemExit("voidzoo noise proposes no mask for this noise")
        else:
            settings["blind_mask"] = proposed.lists()
        settings["blind_fill"] = "uniform" if how == "uniform" else "window"
    recipe = vz.Recipe.guess(name, opened, **settings)
    targets = [vz.open_image(c, axes=task.axes) for c in task.clean or ()] if name == "care" else []
    with tempfile.TemporaryDirectory() as folder:
        run = vz.train(recipe, opened, Path(folder) / "run", device="cpu", targets=targets)
        network = run.network()
        found = [denoise(network, run.normalisation, x[None], run.target_normalisation)[0] for x in task.noisy]
    return found, "" if recipe.blind is None else str(recipe.blind)


def judged(task: Task, found: list[Array]) -> dict[str, float]:
    """PSNR in dB, lag-1 correlation of what was taken away along the noise's axis, and what is left of its stripes."""
    lags, left = [], []
    for i, (x, y) in enumerate(zip(task.noisy, found, strict=True)):
        gone = np.moveaxis(np.asarray(x, float) - y, task.axis, -1)
        gone = gone - gone.mean()
        if gone.std() > 0:
            lags.append(float((gone[..., 1:] * gone[..., :-1]).mean() / gone.var()))
        off = np.asarray(y, float) if task.clean is None or task.real else np.asarray(y, float) - task.clean[i]
        off = np.moveaxis(off.reshape(-1, *off.shape[-2:]), task.axis, -1)
        power = (np.abs(np.fft.fft2(off - off.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
        across, along = (np.abs(np.fft.fftfreq(n)) for n in power.shape)
        left.append(float(power[across > 0.25][:, along < 0.1].sum() / power.size**2))
    judgement = {
        "lag1": round(statistics.mean(lags), 3) if lags else 0.0,
        "stripes": round(statistics.mean(left), 3),
    }
    if task.clean is None:
        return judgement
    values = [
        psnr_affine(c, y, 255.0) if task.real else psnr(c, y, float(c.max() - c.min()))
        for c, y in zip(task.clean, found, strict=True)
    ]
    return {"psnr": round(statistics.mean(values), 3), **judgement}


def draw(task: Task, found: list[Array], path: Path) -> None:
    """A part of the first image before and after, and the logarithm of both power spectra."""
    planes = [np.asarray(i[0] if i[0].ndim == 2 else i[0][len(i[0]) // 2], float) for i in (task.noisy, found)]
    spectra = [np.log10(np.abs(np.fft.fftshift(np.fft.fft2(p - p.mean()))) ** 2 + 1) for p in planes]
    y, x = (max(0, (n - 256) // 2) for n in planes[0].shape)
    parts = [p[y : y + 256, x : x + 256] for p in planes]
    scale, light = contrast(parts[0]), contrast(spectra[0], 1, 99.9)
    names = ("noisy", "result", "its power, log", "the result's")
    path.parent.mkdir(parents=True, exist_ok=True)
    side_by_side([*parts, *spectra], names, [scale, scale, light, light], path)


def once(data: str, kind: str, method: str, seed: int, given: Any) -> dict[str, Any]:
    """One run, judged, and drawn where a folder for it is given."""
    task = task_of(data, kind, seed)
    found, mask = result_of(method, task, seed, given.epochs)
    if given.pictures and seed == 1:
        name = Path(data.partition(":")[0]).stem
        draw(task, found, given.pictures / f"{'_'.join(w for w in (name, kind, method) if w)}.png")
    return {"mask": mask, **judged(task, found)}


def main() -> None:
    """Run what is missing of what was asked for."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("--data", default="x,y,volume", help="with commas: x, y, volume, FILE, NOISY:PARTNER")
    known.add_argument("--noise", default="ma0.33,ar0.6", help="kinds of synthetic noise, with commas")
    known.add_argument("--methods", default=",".join(METHODS), help="also structn2v-wN for a mask of N pixels")
    known.add_argument("--seeds", type=int, default=3)
    known.add_argument("--epochs", type=int, help="default: the recipe's")
    known.add_argument("--pictures", type=Path, help="a folder; the first seed's results and spectra are drawn")
    known.add_argument("--json", type=Path)
    given = known.parse_args()
    ledger = Ledger(
        given.json, ("data", "noise", "method"), ("psnr", "lag1", "stripes"),
        {"sigma": SIGMA, "epochs": given.epochs},
    )  # fmt: skip
    for data in given.data.split(","):
        real = data not in ("x", "y", "volume")
        name = Path(data.partition(":")[0]).stem if real else data
        for kind in [""] if real else given.noise.split(","):
            for seed in range(1, given.seeds + 1):
                for method in given.methods.split(","):
                    if method == "bm3d" and importlib.util.find_spec("bm3d") is None:
                        continue
                    if method == "care" and real and ":" not in data:
                        continue
                    ledger.once(
                        partial(once, data, kind, method, seed, given),
                        data=name, noise=kind, method=method, seed=seed,
                    )  # fmt: skip
    for row in ledger.rows():
        print(row)


if __name__ == "__main__":
    main()
