"""What the verbs of the command line do: call the API, print the outcome."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import api
from .infer.place import Place
from .infer.report import result_text, size_text
from .screen import for_people, say, warn
from .zoo.errors import BlocksFailed, OutputError, RecipeError, VoidzooError, nearest
from .zoo.image import Image
from .zoo.open import open_image
from .zoo.package import open_package


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
    method: str, data: list[str], out: Path, recipe_file: Path | None, settings: dict[str, Any], how: dict[str, Any],
    device: str, watch: Callable[[Any], None],
) -> None:  # fmt: skip
    """`voidzoo train`."""
    api.need_torch("train")
    from .trainers.recipe import Recipe

    if recipe_file is not None and not recipe_file.is_file():
        raise RecipeError(f"there is no recipe {recipe_file}.", mend="the recipe.yaml of a run folder")
    images = [open_image(d, **how) for d in data]
    recipe = Recipe.from_yaml(recipe_file) if recipe_file else _guess(method, images, settings)
    if recipe_file and settings:
        recipe = recipe.with_settings(settings)
    for note in (note for image in images for note in image.notes if for_people(watch)):
        warn(f"note     {note}")
    try:
        run = api.train(recipe, images, out, watch=watch, device=device)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the finished epochs are safe.", mend="the same command again continues") from None
    if not for_people(watch):
        return
    info = run.info
    say(f"done     {info['epochs_done']} epochs in {info['seconds']:.0f} s   best validation loss "
        f"{info['best_val_loss']:.4f} (epoch {info['best_epoch']})")  # fmt: skip
    if any(info["left_out"]):
        say(f"mapped   {sum(info['left_out']):,} NaN or infinite pixels were left out")
    say(f"look at  {out / 'loss.png'}, {out / 'validation.png'}")
    say(f"recipe   {out / 'recipe.yaml'}")
    say(f"next     voidzoo export {out} -o {out.name}.zip")


def _guess(method: str, images: list[Image], settings: dict[str, Any]) -> Any:
    """The default recipe for these images. Raises RecipeError for unknown settings, naming the nearest."""
    from .trainers.recipe import Recipe

    known = set(Recipe.model_fields)
    for key in settings:
        if key not in known:
            raise RecipeError(f"there is no setting {key!r}{nearest(key, known)}.", mend=", ".join(sorted(known)))
    if method != "n2v":
        raise RecipeError(f"there is no method {method!r}.", mend="n2v")
    return Recipe.n2v(images, **settings)


def export(run_folder: Path, out: Path, settings: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo export`."""
    api.need_torch("export")
    from .export.pack import export_run

    checks: list[Any] = []

    def tell(check: Any) -> None:
        checks.append(check)
        if not as_json:
            say(f"check    {check}")

    package = export_run(run_folder, out, watch=tell, **settings)
    if as_json:
        from .export.proof import summary

        say(json.dumps({"package": str(out), "name": package.name, "checks": summary(checks)}))
        return
    say(f"written  {out}   {size_text(out.stat().st_size)}   {package.name}")
    say(f"next     voidzoo predict {out} IMAGE -o OUT.ome.zarr")


def check(path: str, keep: Path | None, *, as_json: bool) -> None:
    """`voidzoo check`."""
    from .export.proof import prove, summary

    package = open_package(path)
    with tempfile.TemporaryDirectory() as folder:
        checks = prove(
            package, None, keep or Path(folder), (lambda _c: None) if as_json else lambda c: say(f"check    {c}")
        )
    if as_json:
        say(json.dumps({"package": path, "name": package.name, "checks": summary(checks)}))
    else:
        say(f"proved   {package.name}")


def plan(model: str, image: str, out: Path | None, settings: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo plan`."""
    place = None if out is None else Place(out)
    if place is not None and (stored := place.stored()):
        settings["facts"] = stored
    made = api.plan(model, image, **settings)
    if place is not None:
        place.check(made)
    if as_json:
        say(json.dumps(made.to_json()))
        return
    say(str(made))
    say("Nothing was written. Run the same line with 'predict' to start.")


def predict(
    model: str, images: list[str], out: Path, settings: dict[str, Any], watch: Callable[[Any], None], *, overwrite: bool
) -> None:
    """`voidzoo predict`."""
    package = open_package(model)
    jobs = _jobs(images, out)
    failed: list[str] = []
    with interruptible() as stop:
        for image, place in jobs:
            try:
                result = api.predict(package, image, out=place, overwrite=overwrite, watch=watch, stop=stop, **settings)
            except KeyboardInterrupt:
                raise Interrupted(
                    "stopped; all finished blocks are safe.", mend="the same command again continues"
                ) from None
            except VoidzooError as error:
                if len(jobs) == 1:
                    raise
                failed.append(image)
                warn(f"error: {error}")
                continue
            if for_people(watch):
                say(result_text(result))
    if failed:
        raise SomeFailed(
            f"{len(failed)} of {len(jobs)} images failed: {', '.join(failed[:5])}{', ...' if failed[5:] else ''}",
            mend="the same command again does only these",
        )


def _jobs(images: list[str], out: Path) -> list[tuple[str, Path]]:
    """Which image goes where: one to OUT, several into the folder OUT under their own names."""
    if len(images) == 1:
        return [(images[0], out)]
    if out.suffix:
        raise OutputError(
            f"{len(images)} images cannot all become {out}.", mend=f"a folder: -o {out.name.split('.')[0]}"
        )
    named = [(image, out / (Path(image).name.split(".")[0] + ".ome.zarr")) for image in images]
    if len({place for _, place in named}) < len(named):
        raise OutputError("two of these images have the same name; their results would too.", mend="one folder each")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; {len(images)} results need a folder.", mend="another -o")
    out.mkdir(parents=True, exist_ok=True)
    return named


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets: running blocks are finished. The second Ctrl-C stops at once."""
    stop = threading.Event()

    def first(_signal: int, _frame: Any) -> None:
        stop.set()
        warn("\nfinishing the running blocks (Ctrl-C again stops at once) ...")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


__all__ = ["BlocksFailed", "Interrupted", "check", "export", "look", "plan", "predict", "train"]
