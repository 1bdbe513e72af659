"""The report of the demo: one HTML file with pictures, figures, plan and outcome, proof, and what to type next."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import api, outcome
from .infer.report import duration, open_lines
from .zoo import html
from .zoo.files import replace_file
from .zoo.metrics import affine_fit, psnr_affine
from .zoo.open import open_image
from .zoo.package import open_package
from .zoo.pictures import contrast, side_by_side

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANGE = 255.0
"""Grey values that the PSNR is relative to: those of the 8-bit partner."""
CROP, FACTOR = 96, 4
RULES = (("the brightest part", 100), ("an ordinary part", 60), ("a dim part", 20))
"""Crops are picked by a rule and not by eye: windows at these percentiles of mean grey value."""
SHOWN = 200
"""Pixels of the side of before_after.png, which the README shows."""
DIM = 0.3
"""A crop that uses less than this share of the grey scale gets one of its own, which is said."""


def write_report(folder: Path, record: dict[str, Any]) -> Path:
    """Measure what the demo made in `folder`, add the figures to `record`, write report.html. -> its path."""
    noisy, high, denoised = (_plane(folder / n) for n in ("noisy.tif", "high_snr.tif", "denoised.ome.zarr"))
    _measure(folder, record, noisy, high, denoised)
    parts = [
        _figures(record),
        _before_after(record, noisy, denoised, high),
        html.section("What was taken away", html.residual(noisy, denoised)),
        _training(folder, record),
        _prediction(record),
        _proof(record),
        _facts(folder, record),
    ]
    lead = (
        "Noise2Void learns to denoise from one noisy image alone: it hides pixels and predicts them from their "
        "neighbours. No clean image was used in the training."
    )
    _picture(record, (noisy, denoised, high), folder / "before_after.png")
    path = folder / "report.html"
    text = html.page("A real noisy image, denoised", lead, parts)
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path


def _plane(path: Path) -> NDArray[Any]:
    """The only plane of an image, (y, x)."""
    image = open_image(path)
    return image.read({}).reshape(image.size("y"), image.size("x"))


def _measure(
    folder: Path, record: dict[str, Any], noisy: NDArray[Any], high: NDArray[Any], denoised: NDArray[Any]
) -> None:
    """Add PSNR (dB), plan, outcome (bytes, s), seams and residual (grey values) to the record."""
    stored = json.loads((folder / "denoised.ome.zarr" / "zarr.json").read_text(encoding="utf-8"))
    plan, said = (stored["attributes"]["voidzoo"][k] for k in ("plan", "happened"))
    raw, clean = psnr_affine(high, noisy, RANGE), psnr_affine(high, denoised, RANGE)
    record |= {"psnr_raw": round(raw, 3), "psnr_denoised": round(clean, 3), "gain_db": round(clean - raw, 3)}
    record["fit"] = dict(zip(("factor", "offset"), affine_fit(high, denoised), strict=True))
    record["plan"] = plan
    record["happened"] = {
        "seconds": said["seconds_of_last_run"],
        "peak_memory": said["peak_memory"],
        "disk": sum(f.stat().st_size for f in (folder / "denoised.ome.zarr").rglob("*") if f.is_file()),
        "blocks": plan["blocks"],
        "clipped": said["clipped"],
        "mapped": said["mapped"],
    }
    package = open_package(folder / "model.zip")
    sides = noisy.shape
    whole = api.predict(package, noisy, axes="yx", tile=sides, block=sides)
    difference = np.abs(whole.astype(np.int64) - denoised)
    at = list(outcome.borders(package, dict(zip("yx", sides, strict=True)), plan["block"], plan["tile"]).values())
    record["seams"] = {
        "denoised": outcome.seams(denoised, at).to_json(),
        "whole": outcome.seams(whole, at).to_json(),
        "tiled_minus_whole_max": int(difference.max()),
        "tiled_minus_whole_pixels": int(np.count_nonzero(difference)),
        "tiff_equals_zarr": bool(np.array_equal(_plane(folder / "denoised.ome.tif"), denoised)),
    }
    left = noisy - denoised.astype(np.float64)
    record["residual"] = {"mean": round(float(left.mean()), 3), "std": round(float(left.std()), 3)}
    record["saturated"] = {"noisy": float((noisy == RANGE).mean()), "high_snr": float((high == RANGE).mean())}


def _figures(record: dict[str, Any]) -> str:
    plan, happened, seams, checks = (record[k] for k in ("plan", "happened", "seams", "checks"))
    passed = sum(c["passed"] for c in checks)
    pairs = [
        (f"{record['gain_db']:+.1f} dB", f"PSNR: {record['psnr_raw']:.1f} before, {record['psnr_denoised']:.1f} after"),
        (duration(record["seconds"]["train"]), "training, from nothing"),
        (duration(happened["seconds"]), f"prediction, {happened['blocks']} blocks, {plan['tiles']} tiles"),
        (f"{seams['tiled_minus_whole_max']} grey values", "largest difference of the tiled and the whole-image result"),
        (f"{passed} of {len(checks)}", "checks of the exported model passed"),
    ]
    text = (
        "PSNR is 20 log10(255) - 10 log10(mean squared difference to the high-SNR image), in dB, after the factor and "
        "the offset that bring an image nearest to it (the files were contrast-stretched one by one); 3 dB more is "
        "half the squared error. The high-SNR image has noise of its own: it is a reference and not the truth."
    )
    return html.numbers(pairs) + html.paragraph(text)


def _before_after(record: dict[str, Any], noisy: NDArray[Any], denoised: NDArray[Any], high: NDArray[Any]) -> str:
    """Three planes and crops of them, all on one grey scale."""
    factor, offset = record["fit"]["factor"], record["fit"]["offset"]
    low, top = _grey_scale(record, noisy)
    names = [
        ("noisy", f"{record['psnr_raw']:.2f} dB"),
        ("denoised", f"{record['psnr_denoised']:.2f} dB"),
        ("high SNR", "a reference, not seen in the training"),
    ]
    planes = (noisy, denoised, high)

    def greys(low: float, top: float) -> list[tuple[float, float]]:
        return [(low, top), (low, top), (factor * low + offset, factor * top + offset)]

    scale = greys(low, top)
    parts = [
        html.paragraph(
            f"Noisy and denoised have the same grey scale: {low:.0f} is black, {top:.0f} is white. The high-SNR image "
            f"is shown from {scale[2][0]:.0f} to {scale[2][1]:.0f}: the same intensities after the affine fit of the "
            f"denoised image to it (x {factor:.3f} {'+' if offset >= 0 else '-'} {abs(offset):.1f}). Nothing else was "
            f"done. Small pictures hide noise: click one for all its {noisy.shape[1]} x {noisy.shape[0]} pixels."
        ),
        html.pictures([html.picture(p, g, *n) for p, g, n in zip(planes, scale, names, strict=True)], "zoom"),
        html.paragraph(
            f"Enlarged {FACTOR} times, every pixel a square. The places were picked by a rule (mean grey value of "
            f"windows of {CROP} x {CROP} pixels) and not by eye; the last one is where four blocks meet."
        ),
    ]
    for where, y, x in places(noisy, record["plan"]["block"]):
        cut = (slice(y, y + CROP), slice(x, x + CROP))
        text, own = f"{where}, y {y}, x {x}", contrast(noisy[cut])
        dim = own[1] - own[0] < DIM * (top - low)
        text += f"; own grey scale {own[0]:.0f} to {own[1]:.0f}" if dim else ""
        shown = zip(planes, greys(*own) if dim else scale, names, strict=True)
        parts.append(html.pictures([html.picture(p[cut], g, n[0], text, FACTOR) for p, g, n in shown], "sharp"))
    return html.section("Before and after", *parts)


def _grey_scale(record: dict[str, Any], noisy: NDArray[Any]) -> tuple[float, float]:
    """The grey values of the noisy image that are shown black and white."""
    low, top = contrast(noisy)
    return low, min(top, (RANGE - record["fit"]["offset"]) / record["fit"]["factor"])  # where the 8-bit partner ends


def _picture(record: dict[str, Any], planes: Sequence[NDArray[Any]], path: Path) -> None:
    """Noisy, denoised and high SNR side by side: the window of SHOWN pixels in the middle, every pixel 2 x 2."""
    low, top = _grey_scale(record, planes[0])
    factor, offset = record["fit"]["factor"], record["fit"]["offset"]
    start = [(n - SHOWN) // 2 for n in planes[0].shape]
    cut = tuple(slice(s, s + SHOWN) for s in start)
    side_by_side(
        [p[cut] for p in planes],
        [f"noisy  {record['psnr_raw']:.1f} dB", f"denoised  {record['psnr_denoised']:.1f} dB", "high SNR"],
        [(low, top), (low, top), (factor * low + offset, factor * top + offset)],
        path,
        factor=2,
    )


def places(plane: NDArray[Any], block: dict[str, int]) -> list[tuple[str, int, int]]:
    """What to enlarge of a plane (y, x): (what it is, y, x) of windows of CROP x CROP pixels."""
    rows, columns = (n // CROP for n in plane.shape)
    means = plane[: rows * CROP, : columns * CROP].reshape(rows, CROP, columns, CROP).mean(axis=(1, 3))
    order = np.argsort(means, axis=None)
    found = []
    for name, percentile in RULES:
        row, column = np.unravel_index(order[round((order.size - 1) * percentile / 100)], means.shape)
        found.append((name, int(row) * CROP, int(column) * CROP))
    y, x = (n // 2 // block[a] * block[a] - CROP // 2 for a, n in zip("yx", plane.shape, strict=True))
    return [*found, ("where four blocks meet", y, x)]


def _training(folder: Path, record: dict[str, Any]) -> str:
    info = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    r = info["recipe"]
    sides = " x ".join(str(n) for n in r["patch"])
    rows = {
        "method": f"Noise2Void, {r['dims']}D U-Net, {r['depth']} poolings, {r['filters']} filters",
        "seen": f"{info['epochs_done']} epochs of {r['steps']} steps of {r['batch']} patches of {sides} pixels",
        "best": f"epoch {info['best_epoch']}, validation loss {info['best_val_loss']:.4f} (variances of the image)",
        "time": f"{duration(record['seconds']['train'])} with the start of the program",
        "all settings": str(folder / "run" / "recipe.yaml"),
    }
    return html.section("Training", html.facts(rows), html.pictures([html.loss_plot(info["history"])], "plot"))


def _prediction(record: dict[str, Any]) -> str:
    seams = record["seams"]
    rows = {
        "this result": outcome.Seams.from_json(seams["denoised"]),
        "one run on the whole image, same places": outcome.Seams.from_json(seams["whole"]),
    }
    equal = "the same" if seams["tiff_equals_zarr"] else "NOT the same"
    text = (
        "A run on the whole image has no borders: a seam would make the figures of this result larger than those of "
        "that run at the same places. (Figures differ along a row with the structures that happen to lie there.) The "
        f"largest difference of the two results is {seams['tiled_minus_whole_max']} grey values; "
        f"{seams['tiled_minus_whole_pixels']:,} pixels differ. The OME-TIFF and the OME-Zarr hold {equal} pixels."
    )
    return html.section(
        "Prediction: planned and happened",
        outcome.plan_and_outcome(record["plan"], record["happened"]),
        html.paragraph("Blocks and tiles are far smaller than voidzoo would choose, so that there are borders to see."),
        outcome.seam_table(rows),
        html.paragraph(text),
    )


def _proof(record: dict[str, Any]) -> str:
    rows = [(c["name"], c["detail"], "passed" if c["passed"] else "FAILED") for c in record["checks"]]
    return html.section(
        "Proof of the exported model",
        html.paragraph("The bioimage.io package was run in several ways; the results must agree."),
        html.table(("check", "found", "result"), rows),
    )


def _facts(folder: Path, record: dict[str, Any]) -> str:
    package = open_package(folder / "model.zip")
    names = ("torch", "onnxruntime-gpu", "onnxruntime", "numpy", "bioimageio.core", "zarr", "tifffile")
    versions = [f"{n} {v}" for n in names if (v := _version(n))]
    tiff, store = (open_lines(str(folder / n)) for n in ("denoised.ome.tif", "denoised.ome.zarr"))
    saturated = record["saturated"]
    rows = {
        "model": f"{package.name} {package.version}, weights sha256 {package.sha256}",
        "image": "mitochondria, widefield 60x; GigaDB 100888, Hagen et al. 2021, CC0-1.0. 8-bit copies, the centre of "
        "1024 x 1024 pixels, each contrast-stretched on its own; the pixel size is not stated. "
        f"{saturated['noisy']:.1%} of the noisy and {saturated['high_snr']:.1%} of the high-SNR pixels are at 255.",
        "date": record["date"],
        "device": f"{record['plan']['device']}, {platform.machine()}, {platform.system()}",
        "versions": ", ".join([f"voidzoo {record['version']}", f"Python {platform.python_version()}", *versions]),
        "figures": str(folder / "demo.json"),
    }
    return html.section(
        "Once more, and with your own images",
        html.commands([shlex.join(["voidzoo", "demo", "-o", str(folder)])]),
        html.paragraph("or step by step; for your own images leave --block and --tile out:"),
        html.commands(record["commands"]),
        html.paragraph("To open the result:"),
        html.commands([tiff[0], *store[:2]]),
        html.facts(rows),
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
