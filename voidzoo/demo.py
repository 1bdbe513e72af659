"""`voidzoo demo`: the whole way on a bundled real image. Every stage is a command line of voidzoo that it shows."""

from __future__ import annotations

import json
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import api, html
from .infer.report import duration, open_lines
from .screen import say
from .verbs import Interrupted
from .zoo.errors import OutputError, VoidzooError
from .zoo.metrics import affine_fit, psnr_affine
from .zoo.open import open_image
from .zoo.package import open_package
from .zoo.pictures import contrast
from .zoo.version import __version__

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLES = {"noisy.tif": "giga_mito60x_n1_low.tif", "high_snr.tif": "giga_mito60x_n1_high.tif"}
"""What the bundled images are called in the folder."""
RECORD = "demo.json"
FORMAT = 1
SEAMS = ("--block", "256,256", "--tile", "128,128")
"""Far smaller than needed, so that a plane of 1024 x 1024 has borders of blocks and of tiles to look at."""
RANGE = 255.0
"""Grey values that the PSNR is relative to: those of the 8-bit partner."""
CROP, FACTOR = 96, 4
RULES = (("the brightest part", 100), ("an ordinary part", 60), ("a dim part", 20))
"""Crops are picked by a rule and not by eye: windows at these percentiles of mean grey value."""
DIM = 0.3
"""A crop that uses less than this share of the grey scale gets one of its own, which is said."""


class StageFailed(VoidzooError):  # noqa: N818  (as in zoo.errors)
    """A stage of the demo ended with an error, which it has told itself."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(f"this stage of the demo failed: {line}", mend="what it says above; then the same demo again")
        self.exit_code = code


@dataclass
class Demo:
    """The folder of a demo, and demo.json in it, which knows how far the demo came."""

    folder: Path
    record: dict[str, Any]
    quiet: bool

    def path(self, name: str) -> Path:
        """A file of the demo."""
        return self.folder / name

    def save(self) -> None:
        """Write demo.json beside, then rename."""
        beside = self.path(RECORD + ".part")
        beside.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")
        beside.replace(self.path(RECORD))

    def stage(self, name: str, *words: str | Path, product: str = "", unseen: Sequence[str] = ()) -> str:
        """Run a command line of voidzoo in a process of its own; skip it when its product lies there. -> its stdout.

        unseen: further words that are not shown, as they do not matter to the result. The seconds of all runs of a
        stage are summed up in the record. Raises StageFailed, Interrupted.
        """
        shown = shlex.join(["voidzoo", *map(str, words)])
        line = [*map(str, words), *unseen]
        if shown not in self.record["commands"]:
            self.record["commands"].append(shown)
        self.say(f"\n$ {shown}")
        if product and self.path(product).exists():
            self.say(f"{self.path(product)} is complete already.")
            return ""
        start = time.monotonic()
        code, text = _run(line, quiet=self.quiet, listen="--json" in line)
        seconds: dict[str, float] = self.record["seconds"]
        seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - start, 1)
        self.save()
        if code == Interrupted.exit_code:
            raise Interrupted("stopped; what is finished is safe.", mend="the same demo again continues")
        if code:
            raise StageFailed(shown, code)
        return text

    def say(self, text: str) -> None:
        """A line on the screen, unless told to be quiet."""
        if not self.quiet:
            say(text)


def demo(out: str | Path, quiet: bool = False, *, epochs: int | None = None) -> Path:
    """Train, export, prove, plan and predict on a bundled real image, in the folder `out`. -> the report.

    The same call again continues. epochs: fewer make it faster and the result worse; None: the default recipe.
    Raises DependencyError without torch, OutputError for a folder with other files, StageFailed, Interrupted.
    """
    api.need_torch("demo")
    job = _begin(Path(out), quiet, epochs)
    _images(job)
    noisy, model = job.path("noisy.tif"), job.path("model.zip")
    _train(job, noisy, epochs)
    _export(job, model)
    if not job.path("denoised.ome.zarr").exists():
        job.stage("plan", "plan", model, noisy, *SEAMS)
    for name, result in (("predict", "denoised.ome.zarr"), ("predict tiff", "denoised.ome.tif")):
        words = ("predict", model, noisy, "-o", job.path(result), *SEAMS)
        job.stage(name, *words, product=result, unseen=["--quiet"] if quiet else [])
    start = time.monotonic()
    report = write_report(job.folder, job.record)
    job.record["seconds"]["report"] = round(time.monotonic() - start, 1)
    job.record["state"] = "done"
    job.save()
    r = job.record
    job.say(
        f"\nPSNR     {r['psnr_raw']:.2f} dB noisy, {r['psnr_denoised']:.2f} dB denoised ({r['gain_db']:+.2f} dB), "
        "after an affine fit to the high-SNR image"
    )
    job.say(f"figures  {job.path(RECORD)}")
    job.say(f"report   {report}   (one file; open it in a browser)")
    return report


def _begin(folder: Path, quiet: bool, epochs: int | None) -> Demo:
    """Take a new or empty folder, or continue the demo in it. Raises OutputError for any other."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; the demo needs a folder.", mend="-o another-folder")
    record = folder / RECORD
    if record.is_file():
        return Demo(folder, _stored(record, epochs), quiet)
    others = sorted(p.name for p in folder.iterdir() if p.name != RECORD + ".part") if folder.is_dir() else []
    if others:
        raise OutputError(
            f"{folder} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no demo.",
            mend="-o another-folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    job = Demo(folder, {"format": FORMAT, "state": "begun", "epochs": epochs, "commands": [], "seconds": {}}, quiet)
    job.record |= {"version": __version__, "date": datetime.now().astimezone().isoformat(timespec="seconds")}
    job.save()
    return job


def _stored(path: Path, epochs: int | None) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(record, dict) and record.get("format") == FORMAT and "commands" in record
    except ValueError:
        known = False
    if not known:
        raise OutputError(f"{path} was not written by this version of voidzoo.", mend="-o another-folder")
    if record["epochs"] != epochs:
        raise OutputError(
            f"{path.parent} was begun with epochs {record['epochs']}, now {epochs}.", mend="-o another-folder"
        )
    return record


def _images(job: Demo) -> None:
    """Copy the bundled images. A copy that is there stays: a plan knows its image by the time of its last change."""
    for name, sample in SAMPLES.items():
        target = job.path(name)
        if not target.exists():
            with as_file(files("voidzoo.zoo") / "samples" / sample) as source:
                shutil.copyfile(source, target.with_name(name + ".part"))
            target.with_name(name + ".part").replace(target)
    job.say(
        "A real widefield image of mitochondria (noisy.tif), and the same field with a high SNR (high_snr.tif), which\n"
        "the training never sees. Every stage below is a command that you can type for your own images."
    )


def _train(job: Demo, noisy: Path, epochs: int | None) -> None:
    run = job.path("run/run.json")
    done = run.is_file() and json.loads(run.read_text(encoding="utf-8"))["state"] == "done"
    few = [] if epochs is None else ["--epochs", str(epochs)]
    unseen = ["--quiet"] if job.quiet else []
    product = "run/run.json" if done else ""
    job.stage("train", "train", "n2v", noisy, "-o", job.path("run"), *few, product=product, unseen=unseen)


def _export(job: Demo, model: Path) -> None:
    """Export, and keep what the proof said; without that in the record it is done again."""
    words = ("export", job.path("run"), "-o", model, "--name", "n2v-demo-mitochondria", "--license", "CC0-1.0")
    known = "checks" in job.record
    unseen = ["--json", *([] if known else ["--overwrite"])]
    text = job.stage("export", *words, product="model.zip" if known else "", unseen=unseen)
    if text:
        job.record["checks"] = json.loads(text.strip().splitlines()[-1])["checks"]
        job.save()
    for check in job.record["checks"]:
        job.say(f"check    {check['name']:<24} {check['detail']}   {'ok' if check['passed'] else 'FAILED'}")


def _run(line: Sequence[str], *, quiet: bool, listen: bool) -> tuple[int, str]:
    """Run a command line of voidzoo. -> exit code, stdout when it was listened to.

    A process of its own: what the training held in memory would otherwise count as peak memory of the prediction.
    """
    out = subprocess.PIPE if listen else subprocess.DEVNULL if quiet else None
    with subprocess.Popen([sys.executable, "-m", "voidzoo", *line], stdout=out, text=True, encoding="utf-8") as child:
        while True:
            try:
                text, _ = child.communicate()
                return child.returncode, text or ""
            except KeyboardInterrupt:
                continue  # Ctrl-C reaches the child too, which ends by itself once what it runs is safe


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
    path = folder / "report.html"
    beside = path.with_name(path.name + ".part")
    beside.write_text(html.page("A real noisy image, denoised", lead, parts), encoding="utf-8")
    beside.replace(path)
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
    plan, outcome = (stored["attributes"]["voidzoo"][k] for k in ("plan", "happened"))
    raw, clean = psnr_affine(high, noisy, RANGE), psnr_affine(high, denoised, RANGE)
    record |= {"psnr_raw": round(raw, 3), "psnr_denoised": round(clean, 3), "gain_db": round(clean - raw, 3)}
    record["fit"] = dict(zip(("factor", "offset"), affine_fit(high, denoised), strict=True))
    record["plan"] = plan
    record["happened"] = {
        "seconds": outcome["seconds_of_last_run"],
        "peak_memory": outcome["peak_memory"],
        "disk": sum(f.stat().st_size for f in (folder / "denoised.ome.zarr").rglob("*") if f.is_file()),
        "blocks": plan["blocks"],
        "clipped": outcome["clipped"],
        "mapped": outcome["mapped"],
    }
    package = open_package(folder / "model.zip")
    sides = noisy.shape
    whole = api.predict(package, noisy, axes="yx", tile=sides, block=sides)
    difference = np.abs(whole.astype(np.int64) - denoised)
    at = list(html.borders(package, dict(zip("yx", sides, strict=True)), plan["block"], plan["tile"]).values())
    record["seams"] = {
        "denoised": html.seams(denoised, at).to_json(),
        "whole": html.seams(whole, at).to_json(),
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
    low, top = contrast(noisy)
    top = min(top, (RANGE - offset) / factor)  # where the 8-bit partner ends
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
        "this result": html.Seams.from_json(seams["denoised"]),
        "one run on the whole image, same places": html.Seams.from_json(seams["whole"]),
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
        html.plan_and_outcome(record["plan"], record["happened"]),
        html.paragraph("Blocks and tiles are far smaller than voidzoo would choose, so that there are borders to see."),
        html.seam_table(rows),
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
        "figures": str(folder / RECORD),
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
