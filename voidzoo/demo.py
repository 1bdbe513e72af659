"""`voidzoo demo`: the whole way on a bundled real image. Every stage is a command line of voidzoo that it shows."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api
from .demo_report import write_report
from .screen import say
from .verbs import Interrupted
from .zoo.errors import OutputError, VoidzooError
from .zoo.files import replace_file
from .zoo.version import __version__

if TYPE_CHECKING:
    pass

SAMPLES = {"noisy.tif": "giga_mito60x_n1_low.tif", "high_snr.tif": "giga_mito60x_n1_high.tif"}
"""What the bundled images are called in the folder."""
RECORD = "demo.json"
FORMAT = 1
SEAMS = ("--block", "256,256", "--tile", "128,128")
"""Far smaller than needed, so that a plane of 1024 x 1024 has borders of blocks and of tiles to look at."""


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
        text = json.dumps(self.record, indent=1) + "\n"
        replace_file(self.path(RECORD), lambda p: p.write_text(text, encoding="utf-8"))

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
    unseen = ["--quiet"] if quiet else []
    for name, result in (("predict", "denoised.ome.zarr"), ("predict tiff", "denoised.ome.tif")):
        words = ("predict", model, noisy, "-o", job.path(result), *SEAMS)
        job.stage(name, *words, product=result, unseen=unseen)
        unseen = [*unseen, *_same_runtime(job.path(result))] if result.endswith(".zarr") else unseen
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


def _same_runtime(result: Path) -> list[str]:
    """The words that keep to the runtime of a result: two of them agree to the last bit only within one."""
    plan = json.loads((result / "zarr.json").read_text(encoding="utf-8"))["attributes"]["voidzoo"]["plan"]
    cpu = str(plan["device"]).startswith("cpu")
    return ["--device", str(plan.get("runtime") or "onnxruntime")] if cpu else []


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
