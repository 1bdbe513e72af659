"""The command line. Each verb is imported when it is called, so that `voidzoo --help` is instant."""

from __future__ import annotations

import errno
import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as opt
from .zoo.errors import RecipeError, VoidzooError, visible

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Denoise microscopy images: train on your own noisy image, package the model for bioimage.io, "
    "run it on images of any size.",
    epilog="Every verb takes --debug, which shows the traceback of an error. Exit codes: 0 done, 1 some blocks failed, "
    "2 bad input, 3 missing device or library, 130 interrupted (the same command continues).",
)


class Method(StrEnum):
    """The methods that can be trained."""

    n2v = "n2v"
    n2v2 = "n2v2"
    structn2v = "structn2v"
    care = "care"


@app.command()
def look(
    image: opt.ImageName, axes: opt.Axes = None, pixel_size: opt.PixelSizes = None, series: opt.Series = None,
    stack: opt.Stack = None, level: opt.Level = 0, json: opt.Json = False,
) -> None:  # fmt: skip
    """Shape, axes, um, channels, dtype, chunks and size of an image; says what is missing."""
    from .verbs import look as run

    run(image, opening(axes, pixel_size, series, stack, level), as_json=json)


@app.command()
def noise(
    images: opt.ImageNames, axes: opt.Axes = None, pixel_size: opt.PixelSizes = None, series: opt.Series = None,
    stack: opt.Stack = None,
    channel: Annotated[int, typer.Option(help="Number of the channel; 0 is the first.")] = 0,
    dark: Annotated[str | None, typer.Option(metavar="IMAGE", help="A frame without light.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Draw it, as a .png.")] = None,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Whether neighbouring pixels share their noise; proposes N2V or a StructN2V blind mask."""
    from .noise import noise as run

    run(images, dark, channel, out, opening(axes, pixel_size, series, stack), as_json=json)


@app.command()
def train(
    method: Method,
    data: Annotated[list[str], typer.Argument(help="Images, or folders of TIFFs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    target: Annotated[
        list[str] | None, typer.Option(help="care: the clean or second noisy partner of each image, in their order.")
    ] = None,
    validate: Annotated[
        list[str] | None, typer.Option(help="Images to validate on, instead of a part of the others; repeatable.")
    ] = None,
    blind_mask: Annotated[
        str | None, typer.Option(metavar="1x9", help="structn2v: which neighbours share a pixel's noise, y x x.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A recipe.yaml, e.g. of another run.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How often all patches are seen.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for a time instead.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe; repeatable.")] = None,
    axes: opt.Axes = None,
    pixel_size: opt.PixelSizes = None,
    series: opt.Series = None,
    stack: opt.Stack = None,
    memory: opt.TrainMemory = None,
    device: opt.Device = "auto",
    allow_nan: opt.Nan = False,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train a denoiser on your images. The same command again continues."""
    from .verbs import train as run

    named = {"epochs": epochs, "minutes": minutes, "blind_mask": blind_mask}
    settings = {**dict(map(_pair, setting or [])), **{k: v for k, v in named.items() if v is not None}}
    if allow_nan:
        settings["allow_nan"] = True
    run(
        method.value,
        data,
        {"targets": target or [], "validate": validate or []},
        out,
        recipe,
        settings,
        opening(axes, pixel_size, series, stack),
        {"device": device, "memory": memory},
        _listener(json, quiet),
    )


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The package, a .zip.")],
    name: Annotated[str | None, typer.Option(help="5 to 64 letters. Default: method and folder.")] = None,
    description: Annotated[str | None, typer.Option(help="One sentence.")] = None,
    author: Annotated[list[str] | None, typer.Option(help="A name; repeatable.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="SPDX id, e.g. CC-BY-4.0.")] = None,
    about: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Authors, licence, tags, ...; default: the nearest voidzoo.yaml."),
    ] = None,
    weights: Annotated[str, typer.Option(help="best (by validation loss) or last.")] = "best",
    held_out: Annotated[
        list[str] | None, typer.Option(help="An image that was not trained on, to measure on; repeatable.")
    ] = None,
    truth: Annotated[list[str] | None, typer.Option(help="The clean partner of each held-out image.")] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Make a proved bioimage.io package of a training run."""
    from .making import export as run

    if weights not in ("best", "last"):
        raise RecipeError(f"--weights {weights}: a run has best and last weights.", mend="--weights best")
    settings = {
        "name": name, "description": description, "authors": author or (), "license": licence, "about": about,
        "which": weights, "held_out": held_out or (), "truth": truth or (), "overwrite": overwrite,
    }  # fmt: skip
    run(run_folder, out, settings, as_json=json)


@app.command()
def check(
    package: str,
    keep: Annotated[Path | None, typer.Option(help="Where tensors that differ are kept.")] = None,
    opens: Annotated[
        str | None,
        typer.Option("--for", metavar="NAMES", help="Only where it opens: all, fiji, qupath, ...; or upload."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="The proof, where it opens, what an upload lacks: a page.")
    ] = None,
    trust_code: opt.Trust = False,
    json: opt.Json = False,
) -> None:
    """Prove a package: checksums, test tensors, all weights equal, whole = tiled, bioimageio.core's own test."""
    if opens is not None:
        from .opens import opens as tell

        if report is not None:
            raise RecipeError("--report tells of all programs and of the upload.", mend="leave out --for")
        tell(package, opens, as_json=json)
        return
    from .opens import check as run

    run(package, keep, report, trust_code=trust_code, as_json=json)


@app.command()
def card(
    package: str,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="The card, a .md. Default: model_cards/NAME.md.")
    ] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Prove a package and write its model card; tells what only you can say and is still missing."""
    from .cards import card as run

    run(package, out, overwrite=overwrite, as_json=json)


@app.command()
def convert(
    package: str,
    out: Annotated[Path, typer.Option("-o", "--out", help="The new package, a .zip.")],
    trust_code: opt.Trust = False,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Rewrite a package of others into the portable profile: steps and axis order inside the network, proved equal."""
    from .making import convert as run

    run(package, out, {"trust_code": trust_code, "overwrite": overwrite}, as_json=json)


@app.command()
def pack(
    model: Annotated[str, typer.Argument(help="MODEL.onnx, ARCH.py:CLASS (the file runs), or CAREamics' MODEL.ckpt.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The package, a .zip.")],
    image: Annotated[str, typer.Option("--input", metavar="IMAGE", help="A raw image; a part becomes the test.")],
    axes: Annotated[str | None, typer.Option(help="Letters of the network's input, in its order, e.g. bczyx.")] = None,
    output_axes: Annotated[str | None, typer.Option(help="Those of its output; default: the same.")] = None,
    image_axes: Annotated[str | None, typer.Option(help="Letters of the image's axes, e.g. czyx.")] = None,
    weights: Annotated[Path | None, typer.Option(metavar="W.pt", help="The state dict of CLASS.")] = None,
    kwargs: Annotated[
        str | None, typer.Option(metavar="JSON", help="Arguments of CLASS, e.g. '{\"in_channels\": 2}'.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="What comes out: intensity, probability, distance, logit; one, or one a channel.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Names of the channels that it reads, with commas.")] = None,
    output_channels: Annotated[str | None, typer.Option(help="Names of the channels that it returns.")] = None,
    name: Annotated[str | None, typer.Option(help="5 to 64 letters. Default: that of the file.")] = None,
    about: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Authors, licence, tags, ...; default: the nearest voidzoo.yaml."),
    ] = None,
    halo: Annotated[str, typer.Option(help="Pixels that a cut spoils; auto: as far as the network sees.")] = "auto",
    minimum: Annotated[
        str | None, typer.Option("--min", help="The smallest sizes, e.g. 8,64,64; else measured.")
    ] = None,
    step: Annotated[str | None, typer.Option(help="What sizes grow by, e.g. 1,4,4; else measured.")] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Make a proved bioimage.io package of anybody's network. A Python file that is named is run: it is yours."""
    from .making import pack as run

    sizes = {"halo": None if halo == "auto" else halo, "minimum": minimum, "step": step}
    options = {"halo": "--halo", "minimum": "--min", "step": "--step"}
    settings = {
        "image": image, "axes": axes, "output_axes": output_axes, "image_axes": image_axes, "weights": weights,
        "kwargs": _mapping("--kwargs", kwargs), "kinds": _words(kinds), "channels": _words(channels),
        "output_channels": _words(output_channels), "name": name, "about": about, "overwrite": overwrite,
        **{k: None if v is None else _numbers(options[k], v, int) for k, v in sizes.items()},
    }  # fmt: skip
    run(model, out, settings, as_json=json)


@app.command()
def plan(
    model: opt.ModelName, image: opt.ImageName, axes: opt.Axes = None, pixel_size: opt.PixelSizes = None,
    series: opt.Series = None, stack: opt.Stack = None, level: opt.Level = 0, channel: opt.Channel = None,
    inputs: opt.Input = None, sample: opt.Sample = None, rescale: opt.Rescale = False, trust_code: opt.Trust = False,
    precision: opt.Precision = "fp32", tolerance: opt.Tolerance = None, tta: opt.Tta = False,
    only: opt.Only = None, mask: opt.Mask = None,
    skip_below: opt.SkipBelow = None, memory: opt.Memory = None, tile: opt.Tile = None, block: opt.Block = None,
    dtype: opt.Dtype = None, device: opt.Device = "auto", allow_nan: opt.Nan = False, out: opt.MaybeOut = None,
    overwrite: opt.Overwrite = False, scheduler: opt.Scheduler = "threads", ome_zarr: opt.OmeZarr = "0.5",
    json: opt.Json = False, _rest: opt.OfPredict = False, _log: opt.LogOfPredict = None,
) -> None:  # fmt: skip
    """What predict would do: tiles, memory, disk, time. Writes nothing."""
    from .verbs import plan as run

    settings = _settings(
        channel=channel, inputs=inputs, sample=sample, rescale=rescale, trust_code=trust_code, precision=precision,
        tolerance=tolerance, tta=tta, only=only, mask=mask, skip_below=skip_below, memory=memory, tile=tile,
        block=block, dtype=dtype, device=device, allow_nan=allow_nan,
    )  # fmt: skip
    settings |= opening(axes, pixel_size, series, stack, level)
    run(model, image, out, settings, _how(overwrite, scheduler, ome_zarr), as_json=json)


@app.command()
def predict(
    model: opt.ModelName, images: opt.ImageNames, out: opt.Out, axes: opt.Axes = None,
    pixel_size: opt.PixelSizes = None, series: opt.Series = None, stack: opt.Stack = None, level: opt.Level = 0,
    channel: opt.Channel = None, inputs: opt.Input = None, sample: opt.Sample = None, rescale: opt.Rescale = False,
    trust_code: opt.Trust = False, precision: opt.Precision = "fp32", tolerance: opt.Tolerance = None,
    tta: opt.Tta = False, only: opt.Only = None, mask: opt.Mask = None, skip_below: opt.SkipBelow = None,
    skip_failed: opt.SkipFailed = False, preview: opt.Preview = False, memory: opt.Memory = None,
    tile: opt.Tile = None, block: opt.Block = None, dtype: opt.Dtype = None, device: opt.Device = "auto",
    allow_nan: opt.Nan = False, overwrite: opt.Overwrite = False, scheduler: opt.Scheduler = "threads",
    ome_zarr: opt.OmeZarr = "0.5", log: opt.Log = None, json: opt.Json = False, quiet: opt.Quiet = False,
) -> None:  # fmt: skip
    """Run a model over images of any size. The same command again continues."""
    from .verbs import predict as run
    from .verbs import preview as show

    settings = _settings(
        channel=channel, inputs=inputs, sample=sample, rescale=rescale, trust_code=trust_code, precision=precision,
        tolerance=tolerance, tta=tta, only=only, mask=mask, skip_below=skip_below, memory=memory, tile=tile,
        block=block, dtype=dtype, device=device, allow_nan=allow_nan,
    )  # fmt: skip
    settings |= opening(axes, pixel_size, series, stack, level)
    if preview:
        show(model, images, out, settings, as_json=json, quiet=quiet)
        return
    how = {**_how(overwrite, scheduler, ome_zarr), "skip_failed": skip_failed}
    run(model, images, out, settings, _listener(json, quiet, log, len(images)), how)


@app.command()
def evaluate(
    predictions: Annotated[list[str], typer.Argument(metavar="PREDICTION", help="Images, folders, 'patterns'.")],
    truth: Annotated[list[str], typer.Option(metavar="IMAGE", help="Or a folder; several pair by name.")],
    kind: Annotated[str | None, typer.Option(help="labels or intensities; else guessed.")] = None,
    iou: Annotated[str | None, typer.Option(help="labels: thresholds, e.g. 0.5,0.75.")] = None,
    data_range: Annotated[str, typer.Option("--range", help="PSNR: grey values, truth or dtype.")] = "truth",
    affine: Annotated[bool, typer.Option("--affine", help="PSNR: also after the best fit.")] = False,
    planes: Annotated[bool, typer.Option("--planes", help="Each plane of a stack by itself.")] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE.csv", help="A line an image, mean, pooled.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.png", help="labels: the matches; or a folder.")] = None,
    axes: opt.Axes = None,
    truth_axes: Annotated[str | None, typer.Option(metavar="AXES", help="Those of the truth, if others.")] = None,
    stack: opt.Stack = None,
    json: opt.Json = False,
) -> None:
    """Judge results by the truth: AP, SEG, precision, recall, F1, PQ of labels; PSNR and SSIM of intensities."""
    from .scores import evaluate as run

    how = {
        "kind": kind, "iou": None if iou is None else _numbers("--iou", iou, float), "data_range": data_range,
        "affine": affine, "planes": planes, "picture": picture, "axes": axes, "truth_axes": truth_axes, "stack": stack,
    }  # fmt: skip
    run(predictions, truth, csv, how, as_json=json)


@app.command("list")
def list_(
    words: Annotated[list[str] | None, typer.Argument(help="Of its name, method or tags: only these models.")] = None,
    online: Annotated[bool, typer.Option("--all", help="Also those of bioimage.io; asks the network.")] = False,
    json: opt.Json = False,
) -> None:
    """The models that come with voidzoo, those of your own folder, and those that were fetched."""
    from .models import list_ as run

    run(words or [], online=online, as_json=json)


@app.command()
def show(model: opt.ModelName, json: opt.Json = False) -> None:
    """One model: what it takes and gives, where it comes from, where it opens, how it is run."""
    from .models import show as run

    run(model, as_json=json)


@app.command()
def site(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")],
    models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER|ZIP", help="These models; default: those of `list` but for the fetched. Repeatable."
        ),
    ] = None,
    overwrite: opt.Overwrite = False,
    json: opt.Json = False,
) -> None:
    """Models as web pages that need no server: covers, search, filters, a page and a download each."""
    from .site import site as run

    run(out, models or [], overwrite=overwrite, as_json=json)


@app.command()
def doctor(json: opt.Json = False) -> None:
    """What is installed, and which devices really run a network."""
    from .doctor import doctor as run

    run(as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("demo"),
    quiet: opt.Quiet = False,
) -> None:
    """The whole way on a real image: train, export, prove, plan, predict, report.html. About 3 minutes."""
    from .demo import demo as run

    run(out, quiet=quiet)


def opening(
    axes: str | None, pixel_size: str | None, series: int | None = None, stack: str | None = None, level: int = 0
) -> dict[str, Any]:
    """The options that say how to open an image, as `open_image` takes them."""
    sizes = None if pixel_size is None else _numbers("--pixel-size", pixel_size, float)
    found = {"axes": axes, "pixel_size": sizes, "series": series, "stack": stack, "level": level or None}
    return {k: v for k, v in found.items() if v is not None}


def _settings(**options: Any) -> dict[str, Any]:
    """The options of plan and predict as `api.plan` takes them."""
    for name in ("tile", "block"):
        if options[name] is not None:
            options[name] = _numbers(f"--{name}", options[name], int)
    inputs = {}
    for pair in options["inputs"] or ():
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise RecipeError(f"--input {pair!r}: NAME=IMAGE is needed.", mend="--input guide=guide.tif")
        inputs[name] = path
    return {**options, "inputs": inputs}


def _how(overwrite: bool, scheduler: str, ome_zarr: str) -> dict[str, Any]:
    """What does not change the result."""
    return {"overwrite": overwrite, "scheduler": scheduler, "ome_zarr": ome_zarr}


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        example = "0.4,0.4" if kind is float else "512,512"
        raise RecipeError(f"{option} {text!r}: numbers with commas are needed.", mend=f"{option} {example}") from None


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


def _mapping(option: str, text: str | None) -> dict[str, Any]:
    """JSON, or YAML, of which JSON is a part."""
    import yaml

    try:
        found = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict):
        raise RecipeError(f"{option} {text!r}: names and values are needed.", mend=f"{option} '{{\"in_channels\": 2}}'")
    return found


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text!r}: key=value is needed.", mend="--set epochs=50")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text!r}: {value!r} is no value.", mend="--set 'patch=[64, 64]'") from None


def _listener(json: bool, quiet: bool, log: Path | None = None, images: int = 1) -> Any:
    from .many import Brief
    from .screen import Logged, listener

    if images > 1 and not (json or quiet):
        return Brief(images) if log is None else Logged(Brief(images), log)
    return listener(as_json=json, quiet=quiet, log=log)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a write for which there is no room."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. -> the exit code; errors are told in words, with a traceback only after --debug."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        app([a for a in arguments if a != "--debug"], prog_name="voidzoo")
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(bool(leave.code))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, code = _in_words(error)
        typer.echo(f"error: {visible(text)}", err=True)
        return code
    return 0


def _in_words(error: Exception) -> tuple[str, int]:
    """What to tell of an error, and the exit code."""
    if isinstance(error, VoidzooError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}.", 2
    if isinstance(error, OSError) and error.errno in FULL:  # a write tells no name
        return f"{error.strerror}.\n  mend:  make room; then the same command again", 2
    mend = "this is a fault of voidzoo; please report it with what --debug shows"
    return f"{type(error).__name__}: {error}\n  mend:  {mend}", 1
