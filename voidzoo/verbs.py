"""What the verbs of the command line do: call the API, print the outcome."""

from __future__ import annotations

import json
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import api
from .infer.finish import layers_of
from .infer.output.layer import check_layers
from .infer.output.store import Store
from .infer.output.tiff import check_tiff
from .infer.place import Place, stem
from .infer.plan import Plan
from .infer.report import result_text, size_text
from .infer.restore import restored_layers
from .many import DONE, FAILED, HOLES, Index, brief, holes_of, in_words, places
from .noise import measured_mask
from .screen import fetching, for_people, say, warn
from .zoo.errors import BlocksFailed, DependencyError, DeviceError, PackageError, RecipeError, VoidzooError, nearest
from .zoo.image import Image
from .zoo.open import open_image
from .zoo.package import Package, open_package


class Interrupted(VoidzooError):  # noqa: N818  (no error: the user wanted it)
    """Stopped by the user; what is finished is safe."""

    exit_code = 130


class SomeFailed(VoidzooError):  # noqa: N818
    """Some of several images could not be done; the others are."""

    exit_code = 1


def look(path: str, how: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo look`."""
    image = open_image(path, **how)
    say(json.dumps(image_json(image)) if as_json else image_text(image))


def image_json(image: Image) -> dict[str, Any]:
    """The facts of an image for programs."""
    return {
        "name": image.name, "kind": image.kind, "axes": image.axes, "shape": list(image.shape),
        "dtype": str(image.dtype), "bytes": image.nbytes, "pixel_size": asdict(image.pixel_size),
        "channels": list(image.channels), "chunks": list(image.chunks), "levels": len(image.levels) + 1,
        "source_axes": image.source_axes, "notes": list(image.notes),
    }  # fmt: skip


def image_text(image: Image) -> str:
    """The facts of an image for people."""
    levels = f", {len(image.levels) + 1} levels" if image.levels else ""
    compression = image.metadata.get("compression")
    chunks = _spaced(dict(zip(image.axes, image.chunks, strict=True)))
    lines = [
        f"{image.name}   {image.kind}{levels}",
        "  shape     " + _spaced(image.sizes) + f"   {image.dtype}   {size_text(image.nbytes)}",
        f"  pixel     {image.pixel_size}",
        f"  chunks    {chunks}" + (f"   {compression}" if compression else ""),
    ]
    if image.size("c") > 1:
        lines.append("  channels  " + "   ".join(f"{i} {name}" for i, name in enumerate(image.channel_names())))
    if not image.pixel_size.known:
        lines.append("  note      no pixel size; results will have none either (mend: --pixel-size 0.5,0.5 in um, y,x)")
    lines += [f"  note      {note}" for note in image.notes]
    return "\n".join(lines)


def _spaced(sizes: dict[str, int]) -> str:
    return "  ".join(f"{a} {n}" for a, n in sizes.items())


def train(
    method: str, data: list[str], beside: dict[str, list[str]], out: Path, recipe_file: Path | None,
    settings: dict[str, Any], how: dict[str, Any], machine: dict[str, Any], watch: Callable[[Any], None],
) -> None:  # fmt: skip
    """`voidzoo train`. beside: further images, as arguments of `api.train`; how: they are opened so."""
    api.need_torch("train")
    from .trainers.recipe import Recipe

    if recipe_file is not None and not recipe_file.is_file():
        raise RecipeError(f"there is no recipe {recipe_file}.", mend="the recipe.yaml of a run folder")
    images = [open_image(d, **how) for d in data]
    if method == "structn2v" and not recipe_file and settings.get("blind_mask") is None:
        settings = settings | {"blind_mask": measured_mask(images, watch)}
    recipe = Recipe.from_yaml(recipe_file) if recipe_file else _guess(method, images, settings)
    if recipe_file and settings:
        recipe = recipe.with_settings(settings)
    for note in (note for image in images for note in image.notes if for_people(watch)):
        warn(f"note     {note}")
    try:
        others: dict[str, Any] = {name: [open_image(o, **how) for o in paths] for name, paths in beside.items()}
        run = api.train(recipe, images, out, watch=watch, **others, **machine)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the finished epochs are safe.", mend="the same command again continues") from None
    if not for_people(watch):
        return
    info = run.info
    say(f"done     {info['epochs_done']} epochs in {info['seconds']:.0f} s   best validation loss "
        f"{info['best_val_loss']:.4f} (epoch {info['best_epoch']})")  # fmt: skip
    if any(info["left_out"]):
        say(f"mapped   {sum(info['left_out']):,} NaN or infinite pixels were left out")
    for sentence in info.get("verdict", ()):  # a run that was done before there were verdicts has none
        say(f"verdict  {sentence}")
    say(f"look at  {next(p for p in (out / 'report.html', out / 'loss.png') if p.exists())}")
    say(f"recipe   {out / 'recipe.yaml'}")
    say("next     " + shlex.join(["voidzoo", "export", str(out), "-o", f"{out.name}.zip"]))


def _guess(method: str, images: list[Image], settings: dict[str, Any]) -> Any:
    """The default recipe for these images. Raises RecipeError for unknown settings, naming the nearest."""
    from .trainers.recipe import Recipe

    known = set(Recipe.model_fields)
    for key in settings:
        if key not in known:
            raise RecipeError(f"there is no setting {key!r}{nearest(key, known)}.", mend=", ".join(sorted(known)))
    return Recipe.guess(method, images, **settings)


def plan(
    model: str, image: str, out: Path | None, settings: dict[str, Any], how: dict[str, Any], *, as_json: bool
) -> None:  # fmt: skip
    """`voidzoo plan`. how: overwrite, scheduler, ome_zarr."""
    place = None if out is None else Place(out)
    if place is not None and (stored := place.begun() if how["overwrite"] else place.stored()):
        settings["facts"] = stored
    package = open_package(model, watch=fetching(quiet=as_json))
    made = api.plan(package, image, scheduler=how["scheduler"], **settings)
    if place is not None:
        _check_written(made, place, how["ome_zarr"])
        place.check(made, how["overwrite"])
    if as_json:
        say(json.dumps(made.to_json()))
        return
    say(str(made))
    say("Nothing was written. Run the same line with 'predict' to start.")


def _check_written(made: Plan, place: Place, version: str) -> None:
    """Refuse what the format of the result cannot hold, as `predict` would."""
    layers = layers_of(made, made.targets)
    layers = layers if made.original is None else restored_layers(made, layers)
    Store(place.staged, version)
    check_layers(layers)
    if place.format == "tiff":
        check_tiff(layers)


def predict(
    model: str, images: list[str], out: Path, settings: dict[str, Any], watch: Callable[[Any], None],
    how: dict[str, Any],
) -> None:  # fmt: skip
    """`voidzoo predict`. how: overwrite, skip_failed, scheduler, ome_zarr."""
    package = open_package(model, watch=fetching(quiet=not for_people(watch) and brief(watch) is None))
    jobs = places(images, out)
    with interruptible(how["scheduler"]) as stop:
        if len(jobs) > 1:
            _predict_many(package, jobs, out, settings, {**how, "watch": watch, "stop": stop})
            return
        try:
            result = api.predict(package, images[0], out=out, watch=watch, stop=stop, **how, **settings)
        except KeyboardInterrupt:
            raise _stopped("blocks") from None
    if for_people(watch):
        say(result_text(result))
    if holes := result.holes or holes_of(out):
        raise SomeFailed(f"{len(holes)} blocks of {images[0]} failed; they hold 0.", mend="--overwrite  runs it anew")


def _stopped(what: str) -> Interrupted:
    return Interrupted(f"stopped; all finished {what} are safe.", mend="the same command again continues")


SAME_FOR_ALL = (PackageError, DeviceError, DependencyError, RecipeError)
"""Errors that no other image would be spared."""


def _predict_many(
    package: Package, jobs: list[tuple[str, Path]], out: Path, settings: dict[str, Any], how: dict[str, Any]
) -> None:  # fmt: skip
    """One image after the other, with one session; those that cannot be done are listed, the others go on."""
    settings, screen, first = dict(settings), brief(how["watch"]), None
    with Index(out, jobs) as index:
        for number, (image, place) in enumerate(jobs, 1):
            if how["stop"].is_set():
                raise _stopped("images")
            start, status, error = time.monotonic(), DONE, ""
            try:
                if holes := _predict_next(package, image, place, settings, how):
                    status, error = HOLES, "; ".join(holes)
            except KeyboardInterrupt:
                raise _stopped("blocks") from None
            except SAME_FOR_ALL:
                raise
            except Exception as fault:  # whatever a reader raises belongs to this image
                status, error, first = FAILED, in_words(fault), first or fault
                warn(f"error: {error}")
            index.add(image, status, error)
            if screen is not None:
                screen.line(number, image, status, time.monotonic() - start)
    if screen is not None:
        say(f"index    {index.path}")
    if failed := index.failed:
        raise SomeFailed(
            f"{len(failed)} of {len(jobs)} images failed: {', '.join(failed[:5])}{', ...' if failed[5:] else ''}.",
            where=str(index.path), mend="the same command again does only these",
        ) from first  # fmt: skip


def _predict_next(
    package: Package, image: str, place: Path, settings: dict[str, Any], how: dict[str, Any]
) -> tuple[str, ...]:  # fmt: skip
    """One of many images -> its holes. settings keeps the session, which is made once for all."""
    found = Place(place)
    stored = found.begun() if how["overwrite"] else found.stored()
    try:
        opened = open_image(image, **{k: v for k, v in settings.items() if k in api.OPENING})
    except DependencyError as error:  # the reader of this image is missing, not what all of them need
        raise VoidzooError(error.what, error.where, error.mend) from error
    asked = {k: v for k, v in settings.items() if k not in api.OPENING}
    made = api.plan(package, opened, scheduler=how["scheduler"], facts=stored, **asked)
    settings["session"] = made.session or settings.get("session")
    return api.predict(made, place, **how).holes or holes_of(place)


def preview(
    model: str, images: list[str], out: Path, settings: dict[str, Any], *, as_json: bool, quiet: bool
) -> None:  # fmt: skip
    """`voidzoo predict --preview`: of the first image."""
    from .preview import preview as run

    picture = out.with_name(stem(out) + ".preview.png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    seen = run(open_package(model, watch=fetching(quiet=as_json or quiet)), images[0], picture, settings)
    if as_json:
        say(json.dumps({"picture": str(picture), "image": images[0], "region": seen.region, "notes": seen.notes}))
    if as_json or quiet:
        return
    for note in seen.notes:
        say(f"note     {note}")
    others = f" (the first of {len(images)} images)" if len(images) > 1 else ""
    say(f"region   {seen.where} of {seen.plan.image.name}{others}")
    say(f"picture  {picture}   black and white are said in it; intensities have one grey scale before and after")
    say("Nothing else was written. The same line without --preview runs the whole image.")


@contextmanager
def interruptible(scheduler: str = "threads") -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets: running blocks are finished. The second Ctrl-C stops at once."""
    stop = threading.Event()

    def first(_signal: int, _frame: Any) -> None:
        stop.set()
        warn("\nfinishing the running blocks (Ctrl-C again stops at once) ...")
        # an exception would wait for the threads that are in a block; workers elsewhere are let go of in order
        signal.signal(signal.SIGINT, second if scheduler == "threads" else signal.default_int_handler)

    def second(_signal: int, _frame: Any) -> None:
        warn("stopped at once; all finished blocks are safe: the same command again continues")
        os._exit(Interrupted.exit_code)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["BlocksFailed", "Interrupted", "look", "plan", "predict", "preview", "train"]
