"""From a recipe and images to a run folder: statistics, split, patches, loop, record."""

from __future__ import annotations

import contextlib
import platform
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from torch import Tensor

from ..zoo.errors import OutputError, ResourceError, VoidzooError
from ..zoo.image import Image
from ..zoo.memory import kept
from ..zoo.metrics import affine_fit
from ..zoo.noise import NOISY, study_noise
from ..zoo.normalise import Normalisation
from ..zoo.pictures import contrast
from . import denoisers
from .compiling import compiled
from .device import choose_device, choose_precision, describe_device, in_bf16
from .inputs import inputs_of
from .loop import TrainingDone, TrainingStarted, fit, start
from .memory import fitting
from .networks.geometry import geometry, parameter_count
from .patches import Patches, validation_batches
from .pool import Pool
from .recipe import Recipe
from .record import Recorder, Run
from .report import progress_picture, worth_a_picture, write_report
from .residual import residuals
from .verdict import verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..zoo.noise import Noise
    from .data import Data
    from .loop import State, Watch
    from .split import Split


LOSSES = {"n2v": denoisers.n2v, "n2v2": denoisers.n2v, "structn2v": denoisers.n2v, "care": denoisers.care}
"""What a method's batch costs: recipe -> loss."""


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
    images = _list(image)
    recipe = recipe or Recipe.guess("n2v", images)
    watch = watch or (lambda _: None)
    where = choose_device(device)
    inputs = inputs_of(recipe, images, _list(validate), _list(targets))
    normalisation, parts = inputs.normalisation, inputs.parts

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = denoisers.network(recipe, images[0].size("c"))
    recorder = Recorder(folder, recipe, inputs.facts(recipe) | _facts(recipe, network, where))
    if recorder.done:
        return recorder.run

    data = inputs.data(recipe)
    validation = validation_batches(data.read, parts.validation, recipe.patch, recipe.step, recipe.batch)
    validation = [v.to(where) for v in validation]
    network = network.to(where, memory_format=torch.channels_last if recipe.dims == 2 else torch.channels_last_3d)
    state = start(network, recipe, where)
    if recorder.resumed is not None:
        state.restore(recorder.resumed)
    loss = compiled(
        LOSSES[recipe.method](recipe), recipe, where, lambda step: state.seconds_left(recipe, step), recorder.compiled
    )
    begun = "fp32" if recorder.resumed else choose_precision(recipe.precision, where)
    if recorder.info.setdefault("precision", begun) == "bf16":
        loss = in_bf16(loss, where)
    patches = _patches(
        data, parts, recipe, state, recorder, lambda: fitting(data, network, loss, recipe, where, memory)
    )
    try:
        recorder.info.setdefault("intensity_range", _intensity_range(patches.sample(), normalisation))
        held_out = inputs.held_out(recipe)
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
        with contextlib.suppress(OutputError):  # a full disk is told once, by what met it first
            recorder.end("stopped")
        raise
    finally:
        patches.close()
    run = recorder.end("done", lambda run: _finish(run, inputs.images, validation, where), why=state.ended(recipe))
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


def _intensity_range(tensors: Sequence[Tensor], normalisation: Normalisation) -> list[list[float]]:
    """Per channel the 0.1 and 99.9 percentile in grey values, over a sample of all images."""
    ranges = []
    for c, (mean, std) in enumerate(zip(normalisation.mean, normalisation.std, strict=True)):
        every = max(1, sum(t[:, c].numel() for t in tensors) // 1_000_000)
        values = np.concatenate([t[:, c].cpu().numpy().reshape(-1)[::every] for t in tensors])
        ranges.append([v * std + mean for v in contrast(values)])
    return ranges


def _facts(recipe: Recipe, network: Any, device: torch.device) -> dict[str, Any]:
    """What run.json says before the first step, beside what was given."""
    config = network.config()
    return {
        "method": recipe.method,
        "seed": recipe.seed,
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "network": config,
        "parameters": parameter_count(network),
        "geometry": {a: asdict(g) for a, g in geometry(config).items()},
    }
