"""The command line. Each verb is imported when it is called, so that `voidzoo --help` is instant."""

from __future__ import annotations

import sys
import traceback
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .zoo.errors import RecipeError, VoidzooError

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


Axes = Annotated[str | None, typer.Option(help="Letters of the image's axes in its order, e.g. zcyx.")]
PixelSizes = Annotated[str | None, typer.Option(help="In um: y,x or z,y,x, e.g. 2,0.4,0.4.")]
Series = Annotated[int | None, typer.Option(help="Which image of a file that holds several; 0 is the first.")]
Stack = Annotated[str | None, typer.Option(help="The axis that the files of a folder run along: t, c or z.")]
Level = Annotated[int, typer.Option(help="Which level of a pyramid; 0 is the full resolution.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")]
Log = Annotated[Path | None, typer.Option(help="Also write every event to this file, one JSON object a line.")]
Channel = Annotated[str | None, typer.Option(help="Name or number of the channel to read, or all: each by itself.")]
Memory = Annotated[
    str | None, typer.Option(help="What the process may take, e.g. 8GB. Default: a quarter of the free.")
]
Tile = Annotated[str | None, typer.Option(help="Tile of the network: y,x or z,y,x. Default: chosen to fit.")]
Block = Annotated[str | None, typer.Option(help="Unit of work and of resuming: y,x or z,y,x. Default: chosen.")]
Dtype = Annotated[str | None, typer.Option(help="same, uint16, float32, ... Default: the input's for intensities.")]
Nan = Annotated[bool, typer.Option("--allow-nan", help="Read NaN and infinite pixels as 0 and count them.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Where to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there. The only flag that destroys.")]


@app.command()
def look(
    image: str, axes: Axes = None, pixel_size: PixelSizes = None, series: Series = None, stack: Stack = None,
    level: Level = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Shape, axes, um, channels, dtype, chunks and size of an image; says what is missing."""
    from .verbs import look as run

    run(image, opening(axes, pixel_size, series, stack, level), as_json=json)


@app.command()
def train(
    method: Method,
    data: Annotated[list[str], typer.Argument(help="Images, or folders of TIFFs.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The run folder.")],
    recipe: Annotated[Path | None, typer.Option(help="A recipe.yaml, e.g. of another run.")] = None,
    epochs: Annotated[int | None, typer.Option(help="How often all patches are seen.")] = None,
    setting: Annotated[list[str] | None, typer.Option("--set", help="key=value of the recipe; repeatable.")] = None,
    axes: Axes = None,
    pixel_size: PixelSizes = None,
    series: Series = None,
    stack: Stack = None,
    device: Device = "auto",
    allow_nan: Nan = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a denoiser on your images. The same command again continues."""
    from .verbs import train as run

    settings = {**dict(map(_pair, setting or [])), **({} if epochs is None else {"epochs": epochs})}
    if allow_nan:
        settings["allow_nan"] = True
    run(
        method.value,
        data,
        out,
        recipe,
        settings,
        opening(axes, pixel_size, series, stack),
        device,
        _listener(json, quiet),
    )


@app.command()
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The package, a .zip.")],
    name: Annotated[str | None, typer.Option(help="5 to 64 letters. Default: method and folder.")] = None,
    description: Annotated[str, typer.Option(help="One sentence.")] = "",
    author: Annotated[list[str] | None, typer.Option(help="A name; repeatable.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="SPDX id, e.g. CC-BY-4.0.")] = None,
    weights: Annotated[str, typer.Option(help="best (by validation loss) or last.")] = "best",
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Make a proved bioimage.io package of a training run."""
    from .verbs import export as run

    if weights not in ("best", "last"):
        raise RecipeError(f"--weights {weights}: a run has best and last weights.", mend="--weights best")
    settings = {
        "name": name, "description": description, "authors": author or (), "license": licence, "which": weights,
        "overwrite": overwrite,
    }  # fmt: skip
    run(run_folder, out, settings, as_json=json)


@app.command()
def check(
    package: str,
    keep: Annotated[Path | None, typer.Option(help="Where tensors that differ are kept.")] = None,
    json: Json = False,
) -> None:
    """Prove a package: checksums, test tensors, whole = tiled, bioimageio.core's own test."""
    from .verbs import check as run

    run(package, keep, as_json=json)


@app.command()
def plan(
    model: str, image: str, axes: Axes = None, pixel_size: PixelSizes = None, series: Series = None,
    stack: Stack = None, level: Level = 0, channel: Channel = None, memory: Memory = None, tile: Tile = None,
    block: Block = None,
    dtype: Dtype = None, device: Device = "auto", allow_nan: Nan = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Check this place too.")] = None,
    json: Json = False,
) -> None:  # fmt: skip
    """What predict would do: tiles, memory, disk, time. Writes nothing."""
    from .verbs import plan as run

    settings = _settings(channel, memory, tile, block, dtype, device, allow_nan=allow_nan)
    run(model, image, out, {**settings, **opening(axes, pixel_size, series, stack, level)}, as_json=json)


@app.command()
def predict(
    model: str, images: Annotated[list[str], typer.Argument(metavar="IMAGE...")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".ome.zarr or .ome.tif; a folder for several images.")],
    axes: Axes = None, pixel_size: PixelSizes = None, series: Series = None, stack: Stack = None, level: Level = 0,
    channel: Channel = None, memory: Memory = None, tile: Tile = None, block: Block = None, dtype: Dtype = None,
    device: Device = "auto", allow_nan: Nan = False, overwrite: Overwrite = False, log: Log = None,
    json: Json = False, quiet: Quiet = False,
) -> None:  # fmt: skip
    """Run a model over images of any size. The same command again continues where it was cut off."""
    from .verbs import predict as run

    settings = _settings(channel, memory, tile, block, dtype, device, allow_nan=allow_nan)
    settings |= opening(axes, pixel_size, series, stack, level)
    run(model, images, out, settings, _listener(json, quiet, log), overwrite=overwrite)


@app.command()
def doctor(json: Json = False) -> None:
    """What is installed, and which devices really run a network."""
    from .doctor import doctor as run

    run(as_json=json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write to.")] = Path("demo"),
    quiet: Quiet = False,
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


def _settings(
    channel: str | None, memory: str | None, tile: str | None, block: str | None, dtype: str | None, device: str,
    *, allow_nan: bool,
) -> dict[str, Any]:  # fmt: skip
    return {
        "channel": channel,
        "memory": memory,
        "tile": None if tile is None else _numbers("--tile", tile, int),
        "block": None if block is None else _numbers("--block", block, int),
        "dtype": dtype,
        "device": device,
        "allow_nan": allow_nan,
    }


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        example = "0.4,0.4" if kind is float else "512,512"
        raise RecipeError(f"{option} {text!r}: numbers with commas are needed.", mend=f"{option} {example}") from None


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"--set {text!r}: key=value is needed.", mend="--set epochs=50")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise RecipeError(f"--set {text!r}: {value!r} is no value.", mend="--set 'patch=[64, 64]'") from None


def _listener(json: bool, quiet: bool, log: Path | None = None) -> Any:
    from .screen import listener

    return listener(as_json=json, quiet=quiet, log=log)


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
        typer.echo(f"error: {text}", err=True)
        return code
    return 0


def _in_words(error: Exception) -> tuple[str, int]:
    """What to tell of an error, and the exit code."""
    if isinstance(error, VoidzooError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}.", 2
    mend = "this is a fault of voidzoo; please report it with what --debug shows"
    return f"{type(error).__name__}: {error}\n  mend:  {mend}", 1
