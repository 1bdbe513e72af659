"""The verbs for Python: the same words, defaults and refusals as on the command line. Nothing is printed."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .infer.place import Place
from .infer.plan import Choices, Plan, Target
from .infer.planning import make_plan
from .infer.run import run_in_memory, run_plan
from .zoo.axes import canonical, permutation
from .zoo.errors import DependencyError, OutputError, RecipeError, SizeError
from .zoo.image import Image
from .zoo.open import open_image
from .zoo.package import Package, open_package

if TYPE_CHECKING:
    import threading

    from .export.consumers import Verdict
    from .export.proof import Check
    from .infer.events import Watch
    from .trainers.recipe import Recipe
    from .trainers.record import Run
    from .zoo.evaluation.evaluation import Evaluation
    from .zoo.noise import Noise

OPENING = ("axes", "pixel_size", "series", "stack", "level")
"""The arguments of plan and predict that say how to open the image."""
CHOICES = ("skip_below", "tolerance", "precision", "allow_nan", "trust_code", "tta")
"""Those that become `infer.plan.Choices`."""


def train(
    recipe: Recipe | None,
    images: Any,
    folder: str | Path,
    *,
    watch: Any = None,
    device: str = "auto",
    axes: str | None = None,
    pixel_size: Mapping[str, float] | Sequence[float] | None = None,
    targets: Any = (),
    validate: Any = (),
    memory: str | float | None = None,
) -> Run:
    """Train on one image or a list (paths, arrays, Images) into a run folder; recipe None: N2V with guessed settings.

    targets: for `care`, the clean or second noisy partner of each image. validate: images to validate on, instead of a
    part of the others; for `care` their partners come last in targets. The same call again continues a run that was cut
    off. axes, pixel_size: as in `open_image`. memory: bytes or "4GB" that the process may take; images that do not
    fit are read part by part.
    Raises DependencyError without torch; RecipeError, SizeError, ValuesError, AxesError, OutputError, DeviceError.
    """
    need_torch("train")
    from .trainers.training import train as run_training

    opened, partners, held_out = (
        [open_image(i, axes=axes, pixel_size=pixel_size) for i in (g if isinstance(g, list | tuple) else [g])]
        for g in (images, targets, validate)
    )
    return run_training(
        recipe,
        opened,
        folder,
        watch=watch,
        device=device,
        targets=partners,
        validate=held_out,
        memory=parse_bytes(memory),
    )


def study_noise(images: Any, *, dark: Any = None, channel: int = 0, **opening: Any) -> Noise:
    """Whether neighbouring pixels share their noise: one image or a list, all that `open_image` takes, as it takes it.

    dark: a frame without light. `.method` is n2v or structn2v, `.mask` goes into a recipe's blind_mask.
    Raises SizeError, ValuesError, AxesError.
    """
    from .zoo.noise import study_noise as study

    many = images if isinstance(images, list | tuple) else [images]
    opened = [open_image(i, **opening) for i in many]
    return study(opened, dark=None if dark is None else open_image(dark), channel=channel)


def evaluate(
    prediction: Any,
    truth: Any,
    *,
    kind: str | None = None,
    iou: Sequence[float] | None = None,
    data_range: str | float = "truth",
    affine: bool = False,
    planes: bool = False,
    picture: str | Path | None = None,
    axes: str | None = None,
    truth_axes: str | None = None,
    stack: str | None = None,
) -> Evaluation:
    """Judge predictions by their truths: AP, SEG, precision, recall, F1, PQ of labels, PSNR and SSIM of intensities.

    prediction, truth: all that `open_image` takes, or lists. Paths are paired by name, and folders are those of their
    images (with `stack`: one image along that axis); arrays and Images pair in their order. axes: letters of both, or
    of the prediction where truth_axes names those of the truth.
    kind: labels or intensities, by default guessed from the pixels. Each volume of a time and channel is judged by
    itself, or each of its planes (`planes`).
    labels: iou, thresholds that an IoU must be above, by default 0.5, 0.55, ..., 0.95; picture, where the matches at
    the first are drawn (a .png; a folder for several images).
    intensities: data_range, in grey values, or `truth` (largest - smallest of each), or `dtype`; affine, also figures
    after the best affine fit of each prediction to its truth.
    Images may be larger than memory. Raises ImageError, SizeError, AxesError, DtypeError, ValuesError, RecipeError,
    OutputError.
    """
    from .pairs import paired
    from .zoo.evaluation.evaluate import evaluate as judge
    from .zoo.evaluation.evaluate import kind_of
    from .zoo.evaluation.objects import IOUS
    from .zoo.evaluation.pair import Pair

    several = [list(g) if isinstance(g, list | tuple) else [g] for g in (prediction, truth)]
    if all(isinstance(i, str | Path) for group in several for i in group):
        named = paired([str(p) for p in several[0]], [str(t) for t in several[1]], stacks=stack is not None)
        several = [[p for p, _ in named], [t for _, t in named]]
    if len(several[0]) != len(several[1]):
        raise SizeError(f"{len(several[0])} predictions have {len(several[1])} truths.", mend="one truth for each")
    pairs = [
        Pair(open_image(p, axes=axes, stack=stack), open_image(t, axes=truth_axes or axes, stack=stack), planes)
        for p, t in zip(*several, strict=True)
    ]
    ious = IOUS if iou is None else tuple(iou)
    places = [] if picture is None else _picture_places(Path(picture), [p.name for p in pairs])
    if places and kind_of(pairs, kind)[0] != "labels":
        raise RecipeError("intensities have no matches to draw.", mend="leave out --picture")
    found = judge(pairs, kind=kind, iou=ious, data_range=data_range, affine=affine)
    if places:
        from .zoo.evaluation.picture import draw_all

        draw_all(pairs, found, ious[0], places)
    return found


def _picture_places(place: Path, names: Sequence[str]) -> list[Path]:
    """One picture is a file, several go into a folder under their names. Raises OutputError for the other way round."""
    from .pairs import name_of

    images = len(names)
    if images == 1 and place.suffix.lower() != ".png":
        raise OutputError(f"{place}: the picture is a PNG.", mend=f"--picture {place.with_suffix('.png')}")
    if images > 1 and place.suffix:
        raise OutputError(f"{images} pictures need a folder, not {place}.", mend=f"--picture {place.with_suffix('')}")
    if images == 1:
        return [place]
    stems = [name_of(name) for name in names]
    twice = len(set(stems)) < images  # arrays have no names of their own
    return [place / (f"{s}-{i}.png" if twice else f"{s}.png") for i, s in enumerate(stems)]


def need_torch(verb: str) -> None:
    """Raise DependencyError when torch, which only `verb` needs, is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise DependencyError(f"{verb} needs torch, which is not installed.", mend='pip install "voidzoo[train]"')


def convert(package: Package | str | Path, out: str | Path, **settings: Any) -> Package:
    """Rewrite a package of others into the portable profile (a .zip), proved to give the same (`export.convert`).

    settings: overwrite, trust_code, watch.
    """
    from .export.convert import convert as run

    return run(package, out, **settings)


def pack(model: str | Path, out: str | Path, **settings: Any) -> Package:
    """Make a proved package of anybody's network: MODEL.onnx, `ARCH.py:CLASS`, MODEL.ckpt (`export.anybody`).

    settings: image, axes, output_axes, image_axes, weights, kwargs, kinds, channels, output_channels, name, about,
    halo, minimum, step, overwrite, watch.
    """
    from .export.anybody import pack as run

    return run(model, out, **settings)


def plan(package: Package | str | Path, image: Any, **settings: Any) -> Plan:
    """What predict would do. image: anything `open_image` takes.

    settings: scheduler (as for `predict`), channel, inputs (further inputs by name), dtype, memory (bytes or "16GB"),
    tile, block, device, only (`"z=10:20"` or `{"z": (10, 20)}`), mask, skip_below, sample, rescale, tolerance,
    precision, allow_nan, trust_code, tta, and those of `open_image`: axes, pixel_size, series, stack, level.
    Raises what `predict` would refuse.
    """
    opening = {k: settings.pop(k) for k in OPENING if k in settings}
    opened = open_image(image, **opening)
    if "memory" in settings:
        settings["memory"] = parse_bytes(settings["memory"])
    if settings.get("inputs"):
        settings["inputs"] = {name: open_image(i) for name, i in settings["inputs"].items()}
    if settings.get("mask") is not None:
        settings["mask"] = open_image(settings["mask"])
    if isinstance(settings.get("only"), str):
        settings["only"] = parse_only(settings["only"])
    given = {k: settings.pop(k) for k in CHOICES if settings.get(k) is not None}
    settings = {k: v for k, v in settings.items() if k not in CHOICES}
    settings["choices"] = Choices(**given)
    return make_plan(package if isinstance(package, Package) else open_package(package), opened, **settings)


def predict(
    model: Plan | Package | str | Path,
    target: Any,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    skip_failed: bool = False,
    scheduler: str = "threads",
    ome_zarr: str = "0.5",
    watch: Watch | None = None,
    stop: threading.Event | None = None,
    **settings: Any,
) -> Any:
    """Run a model.

    predict(plan, "out.ome.zarr") and predict(package, image, out="out.ome.tif") write and return a `Result`; the same
    call again continues. predict(package, array, axes="yx") returns an array with the axes of the one it was given
    (a channel axis in front where the model adds one), predict(package, data_array) a DataArray with its coordinates;
    a path or Image gives an Image in memory; nothing is written; a model with several outputs gives a dict of these by
    name. scheduler: threads, processes:N, tcp://host:port or slurm:... . skip_failed: blocks that cannot be done become
    holes. ome_zarr: version 0.5 or 0.4. settings: as for `plan`.
    Raises what `plan` refuses, OutputError, ResourceError, BlocksFailed.
    """
    how: dict[str, Any] = {
        "overwrite": overwrite, "skip_failed": skip_failed, "scheduler": scheduler, "version": ome_zarr,
        "watch": watch, "stop": stop,
    }  # fmt: skip
    if isinstance(model, Plan):
        return run_plan(model, target, **how)
    if out is None:
        made = plan(model, target, **settings)
        found = {
            t.name: _as_given(target, made, t, values)
            for t, values in zip(made.targets, run_in_memory(made).values(), strict=True)
        }
        return found if len(found) > 1 else found[made.targets[0].name]
    place = Place(out)
    if stored := (place.begun() if overwrite else place.stored()):
        settings["facts"] = stored
    return run_plan(plan(model, target, scheduler=scheduler, **settings), out, **how)


def check(model: Package | str | Path, *, keep: str | Path | None = None, trust_code: bool = False) -> list[Check]:
    """The proof of a package: a list of `Check`. keep: a folder for tensors that differ.

    trust_code: run Python code of the package. Raises PackageError, ProofFailed when a check failed.
    """
    from .export.proof import prove

    package = model if isinstance(model, Package) else open_package(model)
    with tempfile.TemporaryDirectory() as folder:
        return prove(package, None, Path(keep or folder), trust_code=trust_code)


def verdicts(model: Package | str | Path) -> list[Verdict]:
    """In which programs a package opens: `Verdict`s with consumer, answer (yes, with loss, no) and reasons.

    Nothing is run. Raises PackageError.
    """
    from .export.consumers import verdicts as evaluate

    return evaluate(model if isinstance(model, Package) else open_package(model))


def _as_given(target: Any, made: Plan, what: Target, values: np.ndarray[Any, Any]) -> Any:
    """The result in the axis order of what was given, and as the kind of thing that was given."""
    given, axes = made.image.source_axes, made.axes_of(what)
    letters = given if canonical(given) == axes else _with_channels(given, axes)
    ordered = values.transpose(permutation(axes, letters))
    if isinstance(target, Image | str | Path):
        image = open_image(ordered, axes=letters)
        return replace(image, name=made.image.name, pixel_size=made.pixel_size_of(what), channels=what.names)
    if not hasattr(target, "dims") or not hasattr(target, "coords"):
        return ordered
    import xarray as xr

    sizes = dict(zip(axes, values.shape, strict=True))
    part = {a: slice(*s) for a, s in made.choices.only.items() if a in target.dims}
    coords = {
        k: v
        for k, v in target.isel(part).coords.items()
        if all(d in letters and v.sizes[d] == sizes[str(d)] for d in v.dims)
    }
    if what.names and "c" not in coords:
        coords["c"] = list(what.names)
    return xr.DataArray(ordered, dims=tuple(letters), coords=coords, attrs=target.attrs, name=target.name)


def _with_channels(given: str, out_axes: str) -> str:
    """The order given, with c put in front where the model adds channels, or left out where it takes them away."""
    kept = "".join(a for a in given if a in out_axes)
    return kept if len(kept) == len(out_axes) else "c" + kept


def parse_only(text: str) -> dict[str, tuple[int | None, int | None]]:
    """`"z=10:20,y=:512"` -> start and stop by letter, None where open; one number is that position alone.

    Raises SizeError for anything else.
    """
    found: dict[str, tuple[int | None, int | None]] = {}
    for part in text.replace(" ", "").split(","):
        letter, equals, span = part.partition("=")
        first, colon, last = span.partition(":")
        numbers = [n for n in (first, last) if n]
        if letter in found:
            raise SizeError(f"--only {text!r} names {letter} twice.", mend="one span for each axis")
        if not equals or len(letter) != 1 or not span or any(not n.isdigit() for n in numbers):
            raise SizeError(f"--only {text!r} names no part of an image.", mend="e.g. --only z=10:20 or t=3,y=0:512")
        start = int(first) if first else None
        found[letter] = (start, int(last) if last else None) if colon else (int(first), int(first) + 1)
    return found


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
