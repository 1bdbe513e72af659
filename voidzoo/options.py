"""The options of the command line, in the groups in which --help shows them. One line of 80 columns each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

IMAGE, MODEL, PART, MACHINE = "Image", "Model", "Part", "Machine"
"""The groups of options, beside those about the result."""


def _option(text: str, *names: str, shown: str | None = None, group: str | None = None) -> Any:
    """An option. shown: what stands for its value. The default is told in the text, where it is not plain."""
    return typer.Option(*names, help=text, metavar=shown, rich_help_panel=group, show_default=False)


Axes = Annotated[str | None, _option("Letters of its axes in its order, e.g. zcyx.", shown="AXES", group=IMAGE)]
PixelSizes = Annotated[str | None, _option("In um: y,x or z,y,x, e.g. 2,0.4,0.4.", shown="SIZES", group=IMAGE)]
Series = Annotated[int | None, _option("Which image of a file; 0 is the first.", shown="N", group=IMAGE)]
Stack = Annotated[str | None, _option("Axis along which a folder's files go: t, c, z.", shown="AXIS", group=IMAGE)]
Level = Annotated[int, _option("Of a pyramid; 0 is the full resolution.", shown="N", group=IMAGE)]
Channel = Annotated[
    str | None, _option("Name or number, or all: each by itself.", "--channel", shown="NAME", group=IMAGE)
]
Nan = Annotated[bool, _option("Read NaN and infinity as 0, and count them.", "--allow-nan", group=IMAGE)]

Input = Annotated[
    list[str] | None, _option("A further input, NAME=IMAGE; repeatable.", "--input", shown="INPUT", group=MODEL)
]
Sample = Annotated[
    str | None, _option("Over what it measures: plane, volume, series.", shown="WHAT", group=MODEL)
]  # fmt: skip
Rescale = Annotated[bool, _option("Run at the training's pixel size, and go back.", "--rescale", group=MODEL)]
Precision = Annotated[str, _option("fp32, fp16 or bf16 (on CPUs that have it).", shown="TYPE", group=MODEL)]
Tolerance = Annotated[
    float | None, _option("Error for a smaller halo, in std, e.g. 1e-3.", shown="ERROR", group=MODEL)
]  # fmt: skip
Tta = Annotated[bool, _option("Mean over 8 turns of the image: 8 times as long.", "--tta", group=MODEL)]
Trust = Annotated[bool, _option("Run Python code of the package.", "--trust-code", group=MODEL)]

Only = Annotated[str | None, _option("E.g. z=10:20 or t=3,y=0:512.", shown="PART", group=PART)]
Mask = Annotated[str | None, _option("An image; skip blocks in which it is 0.", shown="IMAGE", group=PART)]
SkipBelow = Annotated[float | None, _option("Skip blocks in which all pixels are below.", shown="VALUE", group=PART)]
SkipFailed = Annotated[bool, _option("Leave holes where blocks cannot be done.", "--skip-failed", group=PART)]
Preview = Annotated[bool, _option("Only draw one region, beside OUT, in seconds.", "--preview", group=PART)]

Device = Annotated[str, _option("auto, cpu, cuda, cuda:1, mps, tensorrt, ...", shown="DEVICE", group=MACHINE)]
Memory = Annotated[str | None, _option("E.g. 8GB; else a quarter of what is free.", shown="SIZE", group=MACHINE)]
TrainMemory = Annotated[
    str | None, _option("E.g. 8GB; else half of what is free.", "--memory", shown="SIZE", group=MACHINE)
]
Tile = Annotated[str | None, _option("Of the network: y,x or z,y,x; else chosen.", shown="SIZES", group=MACHINE)]
Block = Annotated[str | None, _option("Of work: y,x or z,y,x; else chosen.", shown="SIZES", group=MACHINE)]
Scheduler = Annotated[
    str, _option("threads, processes:N, tcp://..., slurm:...", shown="NAME", group=MACHINE)
]  # fmt: skip

Out = Annotated[Path, _option(".ome.zarr or .ome.tif; a folder for several.", "-o", "--out", shown="OUT")]
MaybeOut = Annotated[Path | None, _option("Check this place too.", "-o", "--out", shown="OUT")]
Dtype = Annotated[str | None, _option("same, uint16, float32, ...", shown="TYPE")]
OmeZarr = Annotated[str, _option("Version of OME-Zarr: 0.5 or 0.4.", "--ome-zarr", shown="0.5")]
Overwrite = Annotated[bool, _option("Replace what is there. No other flag does.", "--overwrite")]
Log = Annotated[Path | None, _option("Every event, one JSON object a line.", shown="FILE")]
Json = Annotated[bool, _option("One JSON object a line, for programs.", "--json")]
Quiet = Annotated[bool, _option("Errors only.", "--quiet", "-q")]

ModelName = Annotated[str, typer.Argument(metavar="MODEL", hidden=True)]
ImageName = Annotated[str, typer.Argument(metavar="IMAGE", hidden=True)]
ImageNames = Annotated[list[str], typer.Argument(metavar="IMAGE", hidden=True)]
OfPredict = Annotated[
    bool, typer.Option("--skip-failed", "--preview", "--quiet", "-q", hidden=True, help="Of predict; nothing to plan.")
]
LogOfPredict = Annotated[Path | None, typer.Option("--log", hidden=True, help="Of predict; nothing to plan.")]
