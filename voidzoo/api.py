"""The verbs for Python: the same words, defaults and refusals as on the command line. Nothing is printed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .infer.place import Place
from .infer.plan import Plan
from .infer.planning import make_plan
from .infer.run import run_in_memory, run_plan
from .zoo.axes import canonical, permutation
from .zoo.errors import DependencyError
from .zoo.image import Image
from .zoo.open import open_image
from .zoo.package import Package, open_package

if TYPE_CHECKING:
    import threading

    from .infer.events import Watch
    from .trainers.recipe import Recipe
    from .trainers.record import Run

OPENING = ("axes", "pixel_size", "series", "stack", "level")
"""The arguments of plan and predict that say how to open the image."""


def train(
    recipe: Recipe | None,
    images: Any,
    folder: str | Path,
    *,
    watch: Any = None,
    device: str = "auto",
    axes: str | None = None,
    pixel_size: Mapping[str, float] | Sequence[float] | None = None,
) -> Run:
    """Train on one image or a list (paths, arrays, Images) into a run folder; recipe None: N2V with guessed settings.

    The same call again continues a run that was cut off. axes, pixel_size: as in `open_image`.
    Raises DependencyError without torch; RecipeError, SizeError, ValuesError, AxesError, OutputError, DeviceError.
    """
    need_torch("train")
    from .trainers.training import train as run_training

    many = images if isinstance(images, list | tuple) else [images]
    opened = [open_image(i, axes=axes, pixel_size=pixel_size) for i in many]
    return run_training(recipe, opened, folder, watch=watch, device=device)


def need_torch(verb: str) -> None:
    """Raise DependencyError when torch, which only `verb` needs, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise DependencyError(f"{verb} needs torch, which is not installed.", mend='pip install "voidzoo[train]"')


def plan(package: Package | str | Path, image: Any, **settings: Any) -> Plan:
    """What predict would do. image: anything `open_image` takes.

    settings: channel, dtype, memory (bytes or "16GB"), tile, block, device, allow_nan, and those of `open_image`:
    axes, pixel_size, series, stack, level. Raises what `predict` would refuse.
    """
    opened = open_image(image, **{k: settings.pop(k) for k in OPENING if k in settings})
    if "memory" in settings:
        settings["memory"] = parse_bytes(settings["memory"])
    return make_plan(package if isinstance(package, Package) else open_package(package), opened, **settings)


def predict(
    model: Plan | Package | str | Path,
    target: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    watch: Watch | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> Any:
    """Run a model.

    predict(plan, "out.ome.zarr") and predict(package, image, out="out.ome.tif") write and return a `Result`; the same
    call again continues. predict(package, array, axes="yx") returns an array with the axes of the one it was given
    (a channel axis in front where the model adds one), predict(package, data_array) a DataArray with its coordinates;
    a path or Image gives an Image in memory; nothing is written. settings: as for `plan`.
    Raises what `plan` refuses, OutputError, ResourceError, BlocksFailed.
    """
    if isinstance(model, Plan):
        return run_plan(model, target, overwrite=overwrite, watch=watch, stop=stop)
    if out is None:
        made = plan(model, target, **settings)
        return _as_given(target, made, run_in_memory(made))
    place = Place(out)
    if stored := (place.begun() if overwrite else place.stored()):
        settings["facts"] = stored
    made = plan(model, target, **settings)
    return run_plan(made, out, overwrite=overwrite, watch=watch, stop=stop)


def _as_given(target: Any, made: Plan, values: np.ndarray[Any, Any]) -> Any:
    """The result in the axis order of what was given, and as the kind of thing that was given."""
    given = made.image.source_axes
    letters = given if canonical(given) == made.out_axes else _with_channels(given, made.out_axes)
    ordered = values.transpose(permutation(made.out_axes, letters))
    if isinstance(target, Image | str | Path):
        image = open_image(ordered, axes=letters)
        return replace(image, name=made.image.name, pixel_size=made.image.pixel_size, channels=made.out_channels)
    if not hasattr(target, "dims") or not hasattr(target, "coords"):
        return ordered
    import xarray as xr

    coords = {
        k: v
        for k, v in target.coords.items()
        if all(d in letters and target.sizes[d] == _size(made, d) for d in v.dims)
    }
    if made.out_channels and "c" not in coords:
        coords["c"] = list(made.out_channels)
    return xr.DataArray(ordered, dims=tuple(letters), coords=coords, attrs=target.attrs, name=target.name)


def _size(made: Plan, letter: Any) -> int:
    return dict(zip(made.out_axes, made.out_shape, strict=True))[str(letter)]


def _with_channels(given: str, out_axes: str) -> str:
    """The order given, with c put in front where the model adds channels, or left out where it takes them away."""
    kept = "".join(a for a in given if a in out_axes)
    return kept if len(kept) == len(out_axes) else "c" + kept


def parse_bytes(text: str | float | None) -> int | None:
    """`"16GB"`, `"500 MB"`, `2e9` -> bytes (powers of 1000). Raises ResourceError for anything else."""
    from .zoo.errors import ResourceError

    if text is None:
        return None
    word = str(text).strip().lower().removesuffix("b")
    factor = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}.get(word[-1:], 1.0)
    try:
        value = float(word[:-1] if factor > 1 else word) * factor
    except ValueError:
        value = 0.0
    if not 1e6 <= value < 1e18:
        raise ResourceError(f"{text!r} is no amount of memory.", mend="e.g. --memory 8GB or --memory 500MB")
    return int(value)
