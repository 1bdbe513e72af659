"""The end of a training: its pictures, its verdict, and report.html, which shows all of it on one page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..zoo import html
from ..zoo.files import replace_file
from ..zoo.pictures import contrast, loss_curve, residual_curves, side_by_side, to_png
from .recipe import METHODS, Recipe
from .residual import Residual

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .record import Run

PROGRESS = "progress"
"""The folder in a run folder that has the held-out part as the network saw it after some of the epochs."""
SMALL = 384
"""Pictures with fewer pixels a side are enlarged by a whole factor."""


def worth_a_picture(epoch: int, epochs: int) -> bool:
    """Whether the held-out part is drawn after this epoch: 1, 2, 4, 8, ... and the last."""
    return epoch & (epoch - 1) == 0 or epoch == epochs


def progress_picture(folder: Path, epoch: int, raw: NDArray[Any], denoised: NDArray[Any]) -> None:
    """Write the denoised plane, on the grey scale of the raw one; (c, [z], y, x) both."""
    noisy, clean, _ = _planes(raw, denoised)
    (folder / PROGRESS).mkdir(exist_ok=True)
    to_png(clean, folder / PROGRESS / f"epoch_{epoch:06d}.png", contrast(noisy))


def write_report(run: Run, denoised: NDArray[Any]) -> Path:
    """loss.png, validation.png, residual.png and report.html of a run whose info says its verdict. -> the last.

    denoised: `run.validation` as the best weights see it, in grey values, (c, [z], y, x).
    """
    noisy, clean, where = _planes(run.validation, denoised)
    scale = contrast(noisy)
    found = [Residual.from_json(r) for r in run.info["residual"]]
    loss_curve(
        [e.epoch for e in run.losses], [e.train_loss for e in run.losses], [e.val_loss for e in run.losses],
        run.folder / "loss.png", _loss_label(run.recipe),
    )  # fmt: skip
    _validation_picture(noisy, clean, where, scale, run.folder / "validation.png")
    residual_curves(found[0].autocorrelation, found[0].noise, found[0].error, run.folder / "residual.png")
    parts = [
        _figures(run, found),
        html.section(
            "How it went", *(html.paragraph(s) for s in run.info["verdict"]), _plot(run.folder / "loss.png", "Loss")
        ),
        _held_out(run, noisy, clean, where, scale),
        _taken(run, noisy, clean, found),
        _data(run),
        _settings(run),
        _next(run),
    ]
    names = [i["name"] for i in run.info["images"]]
    text = html.page(
        f"{METHODS[run.recipe.method][0].split(',')[0]}: {names[0]}"
        + (f" and {len(names) - 1} more" if names[1:] else ""),
        METHODS[run.recipe.method][0] + ".",
        parts,
    )
    path = run.folder / "report.html"
    replace_file(path, lambda p: p.write_text(text, encoding="utf-8"))
    return path


def _planes(raw: NDArray[Any], denoised: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """The first channel's (middle) plane of both, (y, x), and where it lies in a volume."""
    noisy, clean = (np.asarray(a[0], np.float32) for a in (raw, denoised))
    if noisy.ndim == 2:
        return noisy, clean, ""
    z = noisy.shape[0] // 2
    return noisy[z], clean[z], f" z {z}"


def _validation_picture(
    noisy: NDArray[Any], clean: NDArray[Any], where: str, scale: tuple[float, float], path: Path
) -> None:
    """Noisy, denoised and residual at full resolution.

    Noisy and denoised have the same grey scale; the residual (noisy - denoised) has one of the same width around 0,
    so that structure in it shows signal that was taken for noise.
    """
    low, high = scale
    half = (high - low) / 2
    side_by_side(
        [noisy, clean, noisy - clean],
        [
            f"noisy{where}  {low:.4g} to {high:.4g}",
            f"denoised{where}  {low:.4g} to {high:.4g}",
            f"residual  {-half:.4g} to {half:.4g}",
        ],
        [(low, high), (low, high), (-half, half)],
        path,
        factor=max(1, SMALL // max(noisy.shape)),
    )


def _loss_label(recipe: Recipe) -> str:
    kind, unit = ("absolute", "standard deviations") if recipe.loss == "mae" else ("squared", "variances")
    pixels = "all" if recipe.method == "care" else "hidden"
    return f"{kind} error of {pixels} pixels (image {unit})"


def _plot(path: Path, title: str, caption: str = "") -> str:
    return html.pictures([html.Picture(path.read_bytes(), title, caption)], "plot")


def _figures(run: Run, found: Sequence[Residual]) -> str:
    info = run.info
    return html.numbers(
        [
            (
                f"{info['best_val_loss']:.4f}",
                f"best validation loss (epoch {info['best_epoch']} of {info['epochs_done']})",
            ),
            (f"{found[0].std:.3g}", "grey values taken away (standard deviation)"),
            (f"{info['seconds'] / 60:.1f} min", f"on {info['device']}, {info['precision']}"),
            (f"{info['parameters']:,}", "numbers in the network"),
        ]
    )


def _held_out(run: Run, noisy: NDArray[Any], clean: NDArray[Any], where: str, scale: tuple[float, float]) -> str:
    """The held-out part before and after, and on the way."""
    low, high = scale
    half = (high - low) / 2
    factor = max(1, SMALL // max(noisy.shape))
    text = f"black {low:.4g}, white {high:.4g}"
    shown = [
        html.picture(noisy, scale, f"noisy{where}", text, factor),
        html.picture(clean, scale, f"denoised{where}", text, factor),
        html.picture(noisy - clean, (-half, half), "residual", f"black {-half:.4g}, white {half:.4g}", factor),
    ]
    on_the_way = [
        html.Picture(p.read_bytes(), f"epoch {int(p.stem.rpartition('_')[2])}")
        for p in sorted((run.folder / PROGRESS).glob("epoch_*.png"))
    ]
    channel = f" Channel {run.info['channels'][0]}." if len(run.info["channels"]) > 1 else ""
    return html.section(
        "A part that was held out",
        html.paragraph(f"The network was never trained on these pixels ({run.info['split']['rule']}).{channel}"),
        html.pictures(shown, "zoom"),
        *(
            [html.paragraph("The same part after some of the epochs:"), html.pictures(on_the_way, "sharp")]
            if on_the_way
            else []
        ),
    )


def _taken(run: Run, noisy: NDArray[Any], clean: NDArray[Any], found: Sequence[Residual]) -> str:
    """The residual as it is, and how its neighbouring pixels hang together."""
    rows = []
    for r in found:
        for axis, values in r.autocorrelation.items():
            noise = r.noise.get(axis)
            rows.append((f"{r.channel}, along {axis}", *(f"{v:.3f}" for v in _first(values)), "residual"))
            if noise is not None:
                rows.append((f"{r.channel}, along {axis}", *(f"{v:.3f}" for v in _first(noise)), "noise of the image"))
    text = (
        "How much a pixel of the residual has in common with one some pixels away, over all held-out pixels, beside "
        "the same of the image's noise. Above the noise: signal was taken away. Below it: noise was left in the image."
    )
    return html.section(
        "What was taken away",
        html.residual(noisy, clean),
        html.paragraph(text),
        _plot(run.folder / "residual.png", "Autocorrelation"),
        html.table(("correlation", "1 pixel", "2 pixels", "3 pixels", "of"), rows),
    )


def _first(values: Sequence[float]) -> list[float]:
    return [*values[1:4], *([float("nan")] * max(0, 4 - len(values)))]


def _data(run: Run) -> str:
    info = run.info
    rows = [
        (i["name"], i["axes"], " x ".join(map(str, i["shape"])), i["dtype"])
        for i in (*info["images"], *info.get("targets", ()))
    ]
    n = info["normalisation"]
    facts = {
        "normalised by": "; ".join(
            f"{c}: mean {m:.6g}, standard deviation {s:.6g}"
            for c, m, s in zip(info["channels"], n["mean"], n["std"], strict=True)
        ),
        "trained on": "; ".join(info["split"]["train"]),
        "held out": "; ".join(info["split"]["validation"]),
    }
    if any(info["left_out"]):
        facts["not finite"] = f"{sum(info['left_out']):,} pixels, left out"
    return html.section("Images", html.table(("image", "axes", "shape", "dtype"), rows), html.facts(facts))


def _settings(run: Run) -> str:
    values = run.recipe.model_dump(mode="json")
    rows = [(k, str(values[k]), str(f.description)) for k, f in Recipe.model_fields.items()]
    info = run.info
    machine = {
        "device": info["device"],
        "threads": str(info["threads"]),
        "versions": ", ".join(f"{k} {v}" for k, v in info["versions"].items()),
    }
    return html.section("Recipe", html.table(("setting", "value", "meaning"), rows), html.facts(machine))


def _next(run: Run) -> str:
    package = f"{run.folder.name}.zip"
    lines = [("export", str(run.folder), "-o", package), ("predict", package, "IMAGE", "-o", "OUT.ome.zarr")]
    return html.section("Next", html.commands([shlex.join(("voidzoo", *line)) for line in lines]))
