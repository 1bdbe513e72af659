"""From a recipe and images to a run folder: statistics, split, patches, loop, record."""

from __future__ import annotations

import platform
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from ..zoo.axes import describe
from ..zoo.errors import AxesError, RecipeError, ResourceError, SizeError, VoidzooError
from ..zoo.image import Image
from ..zoo.memory import kept
from ..zoo.metrics import affine_fit
from ..zoo.noise import NOISY, study_noise
from ..zoo.normalise import Normalisation, Statistics
from ..zoo.pictures import contrast
from . import denoisers
from .data import Data, raw_sample
from .device import choose_device, choose_precision, describe_device, in_bf16
from .loop import TrainingDone, TrainingStarted, fit, start
from .memory import fitting
from .networks.unet import geometry, parameter_count
from .patches import Patches, validation_batches
from .pool import Pool
from .recipe import Recipe
from .record import Recorder, Run
from .report import progress_picture, worth_a_picture, write_report
from .residual import residuals
from .split import Box, Split, place_of, shape_of, split
from .verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..zoo.noise import Noise
    from .loop import State, Watch


LOSSES = {"n2v": denoisers.n2v, "n2v2": denoisers.n2v, "structn2v": denoisers.n2v, "care": denoisers.care}
"""What a method's batch costs: recipe -> loss."""
PATCH_2D = (128, 192)
PATCH_3D = (16, 64, 96)


def train(
    recipe: Recipe | None,
    image: Image | Sequence[Image],
    folder: str | Path,
    *,
    watch: Watch | None = None,
    device: str = "auto",
    targets: Image | Sequence[Image] | None = None,
    validate: Image | Sequence[Image] | None = None,
    memory: int | None = None,
) -> Run:
    """Train on an image or several (same channels) and write everything into `folder`; without recipe: n2v, guessed.

    targets: for `care`, the clean or second noisy partner of each image, in their order and of their shape. validate:
    images to validate on, instead of a part of the others (for care their partners come last in targets). memory: bytes
    that the process may take; images that do not fit into them (by default: into half of what is free) are read part by
    part while the network trains.

    The same call again continues a training that was stopped or killed, and returns one that is done. `watch` gets
    TrainingStarted, EpochDone (after the epoch is on disk) and TrainingDone.
    Raises SizeError, ValuesError or AxesError for images that cannot be trained on, RecipeError for targets that a
    method does not take or lacks and for images both trained and validated on, ResourceError where a step does not fit
    into the memory, OutputError for a folder that is taken, DeviceError for a device that is not there, TrainingError
    for a loss that is not finite.
    """
    images, beside = _list(image), _list(validate)
    _not_twice(images, beside)
    images = images + beside
    recipe = recipe or Recipe.guess("n2v", images)
    watch = watch or (lambda _: None)
    where = choose_device(device)
    _same_channels(images)
    partners = _partners(recipe, images, targets)

    parts = split(
        [shape_of(i, recipe.dims) for i in images],
        recipe.patch,
        recipe.step,
        fraction=recipe.validation,
        seed=recipe.seed,
        names=[i.name for i in images],
        given=len(beside),
    )
    normalisation, left_out = _fit_normalisation(images, parts, recipe)
    target_normalisation = _fit_normalisation(partners, parts, recipe)[0] if partners else None

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = denoisers.network(recipe, images[0].size("c"))
    recorder = Recorder(
        folder,
        recipe,
        _describe(
            recipe,
            images,
            parts,
            partners=partners,
            normalisation=normalisation,
            target_normalisation=target_normalisation,
            left_out=left_out,
            network=network,
            device=where,
        ),
    )
    if recorder.done:
        return recorder.run

    data = Data(images, recipe.dims, normalisation, partners, target_normalisation)
    validation = validation_batches(data.read, parts.validation, recipe.patch, recipe.step, recipe.batch)
    validation = [v.to(where) for v in validation]
    network = network.to(where, memory_format=torch.channels_last if recipe.dims == 2 else torch.channels_last_3d)
    state = start(network, recipe, where)
    if recorder.resumed is not None:
        state.restore(recorder.resumed)
    loss = LOSSES[recipe.method](recipe)
    begun = "fp32" if recorder.resumed else choose_precision(recipe.precision, where)
    if recorder.info.setdefault("precision", begun) == "bf16":
        loss = in_bf16(loss, where)
    patches = _patches(
        data, parts, recipe, state, recorder, lambda: fitting(data, network, loss, recipe, where, memory)
    )
    try:
        recorder.info.setdefault("intensity_range", _intensity_range(patches.sample(), normalisation))
        held_out = _validation_patch(images, parts, recipe)
        recorder.begin(recipe, held_out)
        watch(
            TrainingStarted(
                str(folder), str(where), recipe.epochs, recipe.steps, len(state.history), parameter_count(network),
                data.nbytes, recorder.info["pool_bytes"],
            )
        )  # fmt: skip

        def save(state: State) -> None:
            epoch = len(state.history)
            if worth_a_picture(epoch, recipe.epochs):
                progress_picture(recorder.folder, epoch, held_out, denoise(state.network, normalisation, held_out))
            recorder.save(state)

        with kept():
            fit(state, loss, patches, validation, recipe, save=save, watch=watch)
    except BaseException:  # also Ctrl-C: the epochs that are done stay, and the folder says so
        recorder.end("stopped")
        raise
    finally:
        patches.close()
    run = recorder.end("done", lambda run: _finish(run, images, validation, where), why=state.ended(recipe))
    info = run.info
    watch(TrainingDone(str(folder), len(run.losses), info["best_epoch"], info["best_val_loss"], info["seconds"]))
    return run


def _patches(
    data: Data, parts: Split, recipe: Recipe, state: State, recorder: Recorder, room: Callable[[], int | None]
) -> Patches | Pool:
    """Where the batches come from: all images in memory, or a pool of their parts.

    room: bytes for a pool, None where everything fits; asked once, when a training begins. It goes on with what it was
    begun with, whatever is free then: another pool would be another training.
    """
    device = next(state.network.parameters()).device
    if "pool_bytes" not in recorder.info:
        recorder.info["pool_bytes"] = room()
    held = recorder.info["pool_bytes"]
    if held is not None:
        pool = Pool(data, parts.train, recipe.patch, state.patches, recipe.turns, room=held, batch=recipe.batch,
                    seed=recipe.seed, device=device)  # fmt: skip
        pool.step = len(state.history) * recipe.steps
        return pool
    free = psutil.virtual_memory().available
    if data.nbytes > free:
        raise ResourceError(
            f"the images take {data.nbytes / 1e9:.1f} GB as float32, all of which this training was begun with; "
            f"{free / 1e9:.1f} GB of memory are free.",
            mend="close other programs, or begin anew in another folder with --memory",
        )
    trained = sorted({b.image for b in parts.train})  # those held out whole are not needed, and may be small
    boxes = [replace(b, image=trained.index(b.image)) for b in parts.train]
    tensors = [data.whole(i).to(device) for i in trained]
    return Patches(tensors, boxes, recipe.patch, state.patches, recipe.turns)


def _finish(run: Run, images: Sequence[Image], validation: Sequence[Tensor], device: torch.device) -> None:
    """Look at what the best weights take away, say in words how it went, and draw it."""
    network = run.network().to(device)
    names, stds = images[0].channel_names(), run.normalisation.std
    care = run.recipe.method == "care"
    noise = [_noise(images, c) for c in range(len(names))]
    found = residuals(network, validation, names, stds, noise, fitted=care)
    run.info["residual"] = [r.to_json() for r in found]
    run.info["verdict"] = verdict(run.recipe.method, run.losses, found, run.recipe.schedule)
    raw = run.validation
    denoised = denoise(network, run.normalisation, raw)
    if care:  # on the scale of the image, so that they can be compared in one picture
        fits = [affine_fit(r, d) for r, d in zip(raw, denoised, strict=True)]
        denoised = np.stack([a * d + b for (a, b), d in zip(fits, denoised, strict=True)])
    write_report(run, denoised)


def _noise(images: Sequence[Image], channel: int) -> Noise | None:
    """The noise of the images by itself; None where it is too little or the images too small to measure it."""
    try:
        found = study_noise(images, channel=channel)
    except VoidzooError:
        return None
    return found if found.share >= NOISY else None


def denoise(
    network: Any, normalisation: Normalisation, pixels: NDArray[Any], target_normalisation: Normalisation | None = None
) -> NDArray[np.float32]:
    """The whole image through the network at once. (c, [z], y, x) of any dtype -> float32 grey values, same shape.

    target_normalisation: of the partners that the network was trained to predict, if they are not the image itself.
    The image is extended at the end of each axis (mirrored) to a multiple of the network's step, and cropped back.
    """
    steps = [g.step for g in geometry(network.config()).values()]
    pad = [(0, 0), *((0, -n % s) for n, s in zip(pixels.shape[1:], steps, strict=True))]
    x = np.pad(normalisation.apply(pixels), pad, mode="symmetric")
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    with torch.inference_mode():
        y = network(torch.from_numpy(x)[None].to(device))[0].cpu().numpy()
    network.train(training)
    return (target_normalisation or normalisation).invert(
        y[tuple(slice(0, n) for n in (y.shape[0], *pixels.shape[1:]))]
    )


def _list(given: Image | Sequence[Image] | None) -> list[Image]:
    return [given] if isinstance(given, Image) else list(given or ())


def _not_twice(images: Sequence[Image], beside: Sequence[Image]) -> None:
    """Refuse to validate on what is trained on."""
    for other in beside:
        if any(i is other or (i.path is not None and i.path == other.path) for i in images):
            raise RecipeError(
                f"{other.name} is given to train on and to validate on.",
                mend="other images after --validate, or none: then a part of the images is held out",
            )


def _same_channels(images: Sequence[Image]) -> None:
    counts = {i.size("c") for i in images}
    if len(counts) > 1:
        first, other = images[0], next(i for i in images if i.size("c") != images[0].size("c"))
        raise AxesError(
            f"{first.name} has {first.size('c')} channels, {other.name} has {other.size('c')}; "
            "one model is trained on images with the same channels.",
            where=f"{other.name} is {describe(other.axes, other.shape)}",
        )


def _partners(recipe: Recipe, images: Sequence[Image], targets: Image | Sequence[Image] | None) -> Sequence[Image]:
    """The targets that belong to the images, in their order. Raises RecipeError and SizeError where they do not."""
    given = _list(targets)
    if (recipe.method == "care") != bool(given):
        raise RecipeError(
            f"{recipe.method} learns from the images alone; it takes no target."
            if given
            else "care learns from pairs: each image needs its clean or second noisy partner.",
            mend="voidzoo train care NOISY --target CLEAN -o RUN",
        )
    if given and len(given) != len(images):
        raise RecipeError(
            f"{len(images)} images and {len(given)} targets are no pairs.",
            mend="one --target for each image, in its order",
        )
    for image, target in zip(images, given, strict=False):
        if (image.axes, image.shape) != (target.axes, target.shape):
            raise SizeError(
                f"{target.name} is {describe(target.axes, target.shape)}, "
                f"but {image.name} is {describe(image.axes, image.shape)}.",
                mend="a target of the same field, channels and size",
            )
    return given


def _regions(image: Image, box: Box, dims: int) -> list[dict[str, slice]]:
    """A box as regions of the image by letter, one a sample (one in all when it is the whole image)."""
    samples, sides = shape_of(image, dims)
    if box.samples == (0, samples) and box.sides == sides:
        return [{}]
    space = {a: slice(*span) for a, span in zip("zyx"[-dims:], box.space, strict=True) if a in image.axes}
    return [space | {a: slice(i, i + 1) for a, i in place_of(image, dims, n).items()} for n in range(*box.samples)]


def _fit_normalisation(images: Sequence[Image], parts: Split, recipe: Recipe) -> tuple[Normalisation, tuple[int, ...]]:
    """Mean and std of the training pixels only, and how many pixels of each channel are not finite.

    The held-out pixels are looked at too, so that a NaN among them is refused now.
    """

    def statistics(boxes: Sequence[Box]) -> Statistics:
        found = [
            Statistics.of(images[i], regions, allow_nan=recipe.allow_nan)
            for i in sorted({b.image for b in boxes})
            if (regions := [r for b in boxes if b.image == i for r in _regions(images[i], b, recipe.dims)])
        ]
        total = found[0]
        for other in found[1:]:
            total = total.merge(other)
        return total

    training = statistics(parts.train)
    left_out = training.left_out
    if any(i.dtype.kind == "f" for i in images):
        left_out = training.merge(statistics(parts.validation)).left_out
    names = ", ".join(i.name for i in images[:3]) + (", ..." if len(images) > 3 else "")
    return Normalisation.fit(training, names, images[0].channel_names()), left_out


def _intensity_range(tensors: Sequence[Tensor], normalisation: Normalisation) -> list[list[float]]:
    """Per channel the 0.1 and 99.9 percentile in grey values, over a sample of all images."""
    ranges = []
    for c, (mean, std) in enumerate(zip(normalisation.mean, normalisation.std, strict=True)):
        every = max(1, sum(t[:, c].numel() for t in tensors) // 1_000_000)
        values = np.concatenate([t[:, c].cpu().numpy().reshape(-1)[::every] for t in tensors])
        ranges.append([v * std + mean for v in contrast(values)])
    return ranges


def _validation_patch(images: Sequence[Image], parts: Split, recipe: Recipe) -> NDArray[Any]:
    """A raw patch (c, [z], y, x) of the held-out part, PATCH_2D or PATCH_3D or what fits, sides multiples of the step.

    Of at most 60 places the one with the most contrast, so that it does not show an empty corner.
    """
    want = PATCH_2D if recipe.dims == 2 else PATCH_3D
    found: list[NDArray[Any]] = []
    places = [
        (b, n) for b in parts.validation for n in np.unique(np.linspace(b.samples[0], b.samples[1] - 1, 4, dtype=int))
    ]
    for box, sample in places[:: -(-len(places) // 12)]:
        image = images[box.image]
        pixels = raw_sample(image, recipe.dims, int(sample), box.space)
        sides = [min(w, n) // s * s for w, n, s in zip(want, box.sides, recipe.step, strict=True)]
        for share in (0.5, 0.0, 0.25, 0.75, 1.0):
            corner = [int(share * (n - side)) for n, side in zip(box.sides, sides, strict=True)]
            part = tuple(slice(c, c + side) for c, side in zip(corner, sides, strict=True))
            found.append(pixels[(slice(None), *part)])
    best = max(found, key=lambda patch: float(np.nanstd(patch[0].astype(np.float32))))
    if best.dtype.kind != "f" or np.isfinite(best).all():
        return best
    return np.where(np.isfinite(best), best, best[np.isfinite(best)].mean()).astype(best.dtype)


def _describe(
    recipe: Recipe,
    images: Sequence[Image],
    parts: Split,
    *,
    partners: Sequence[Image],
    normalisation: Normalisation,
    target_normalisation: Normalisation | None,
    left_out: tuple[int, ...],
    network: Any,
    device: torch.device,
) -> dict[str, Any]:
    """What run.json says before the first step."""
    axes = "zyx"[-recipe.dims :]
    config = network.config()
    return {
        "method": recipe.method,
        "seed": recipe.seed,
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "images": [_facts(i) for i in images],
        "channels": list(images[0].channel_names()),
        "pixel_size": asdict(images[0].pixel_size),
        "normalisation": {"mean": list(normalisation.mean), "std": list(normalisation.std)},
        **(
            {
                "targets": [_facts(i) for i in partners],
                "target_normalisation": {
                    "mean": list(target_normalisation.mean),
                    "std": list(target_normalisation.std),
                },
            }
            if target_normalisation
            else {}
        ),
        "left_out": list(left_out),
        "network": config,
        "parameters": parameter_count(network),
        "geometry": {a: asdict(g) for a, g in geometry(config).items()},
        "split": {
            "rule": parts.rule,
            "train": [b.describe(axes) for b in parts.train],
            "validation": [b.describe(axes) for b in parts.validation],
        },
    }


def _facts(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "axes": image.axes,
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "pixel_size": asdict(image.pixel_size),
        "channels": list(image.channel_names()),
    }
