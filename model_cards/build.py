"""Build the shipped models from open data: python model_cards/build.py DATA [NAME ...]

DATA is a folder with the files that `recipes/NAME.yaml` names, each checked by its sha256. A model is trained on a part
of its images, measured on another part, exported, proved, and put with its card where it is shipped from:
zoo/models/NAME-VERSION.zip, model_cards/NAME.md. A run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import tifffile
import yaml

import voidzoo
from voidzoo.cards import card
from voidzoo.export.about import About
from voidzoo.screen import say
from voidzoo.zoo.errors import PackageError

HERE = Path(__file__).parent
MODELS = HERE.parent / "zoo" / "models"
LARGEST = 5_000_000
"""Bytes of a package that is shipped."""


def main() -> None:
    """Build the models that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("names", nargs="*", default=sorted(p.stem for p in (HERE / "recipes").glob("*.yaml")))
    parser.add_argument("--work", type=Path, default=Path("build/models"), help="where runs are kept")
    given = parser.parse_args()
    for name in given.names:
        recipe = yaml.safe_load((HERE / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        build(name, recipe, given.data, given.work / name)


def build(name: str, recipe: dict[str, Any], data: Path, work: Path) -> None:
    """Train, measure, export, prove, describe."""
    work.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Path]] = {"train": [], "held_out": [], "truth": []}
    for entry in recipe["images"]:
        for kind, region in (("noisy", "train"), ("noisy", "held_out"), ("truth", "held_out")):
            if kind in entry:
                parts["truth" if kind == "truth" else region].append(_cut(entry, kind, region, data, work))
    images = [
        voidzoo.open_image(p, axes=entry["axes"]) for p, entry in zip(parts["train"], recipe["images"], strict=True)
    ]
    settings = dict(recipe["settings"])
    if recipe["method"] == "structn2v" and "blind_mask" not in settings:
        mask = voidzoo.study_noise(images).mask
        settings["blind_mask"] = None if mask is None else str(mask)
    made = voidzoo.Recipe.guess(recipe["method"], images, **settings)
    run = voidzoo.train(made, images, work / "run", device="cpu", watch=lambda event: say(f"{name} {event}"))
    about = About(**recipe["about"], name=name)
    package = MODELS / f"{name}-{about.version}.zip"
    MODELS.mkdir(exist_ok=True)
    voidzoo.export(
        run, package, about=about, held_out=parts["held_out"], truth=parts["truth"], overwrite=True,
        watch=lambda check: say(f"{name} {check}"),
    )  # fmt: skip
    if package.stat().st_size > LARGEST:
        package.unlink()
        raise PackageError(f"{package.name} is larger than {LARGEST:,} bytes.", mend="fewer filters in its recipe")
    card(str(package), HERE / f"{name}.md", overwrite=True, as_json=False)


def _cut(entry: dict[str, Any], kind: str, region: str, data: Path, work: Path) -> Path:
    """A part of an image as a TIFF of its own, named so that it is known again in the card."""
    source = data / entry[kind]["file"]
    if hashlib.sha256(source.read_bytes()).hexdigest() != entry[kind]["sha256"]:
        raise PackageError(f"{source} is not the file that the recipe was made for.", where="its sha256 differs")
    image = voidzoo.open_image(source, axes=entry["axes"])
    spans = entry[region]
    words = "_".join(f"{a}{start}-{stop}" for a, (start, stop) in spans.items())
    target = work / f"{source.stem}_{words}.tif"
    if not target.exists():  # a run knows its images by the time of their last change
        pixels = image.read({a: slice(*span) for a, span in spans.items()})
        tifffile.imwrite(target, pixels, metadata={"axes": image.axes.upper()}, compression="zlib")
    return target


if __name__ == "__main__":
    main()
