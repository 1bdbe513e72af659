"""Which prediction belongs to which truth: by their names, folders and patterns included."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path, PurePath

from .infer.place import stem
from .zoo.errors import ImageError, nearest
from .zoo.readers.bioio import FORMATS
from .zoo.readers.ome_zarr import is_zarr
from .zoo.readers.stack import natural
from .zoo.readers.tiff_open import ENDINGS
from .zoo.readers.zarr_node import is_url

READ = (*ENDINGS, *FORMATS, ".npy")
"""Endings of the files of a folder that are images."""


def paired(predictions: Sequence[str], truths: Sequence[str], *, stacks: bool = False) -> list[tuple[str, str]]:
    """Paths -> (prediction, truth), in the order of the predictions. stacks: a folder is one image, not several.

    One image and one truth belong together whatever they are called; several pair by name, without the ending; what
    lies inside of an OME-Zarr has the name of that. Raises ImageError, naming them, where one has no partner or two.
    """
    found, true = ([p for word in words for p in _images(word, stacks=stacks)] for words in (predictions, truths))
    if len(found) == len(true) == len(predictions) == len(truths) == 1:
        return [(found[0], true[0])]
    partners = _named(true, "truth")
    mine = _named(found, "prediction")
    _all_have_one(mine, partners, "prediction", "truth")
    _all_have_one(partners, mine, "truth", "prediction")
    return [(path, partners[name]) for name, path in mine.items()]


def _images(word: str, *, stacks: bool) -> list[str]:
    """A path, or the images of a folder or pattern, in natural order."""
    path = Path(word).expanduser()
    if stacks or is_url(word) or is_zarr(path) or (path.exists() and not path.is_dir()):
        return [word]
    if not path.exists():
        matching = [Path(p) for p in glob.glob(str(path))] if any(c in word for c in "*?[") else []  # noqa: PTH207
        return [str(p) for p in sorted(matching, key=natural)] or [word]  # opening it says what is wrong
    inside = (p for p in path.iterdir() if not p.name.startswith(".") and (p.suffix.lower() in READ or is_zarr(p)))
    images = sorted(inside, key=natural)
    if not images:
        raise ImageError(f"{word} holds no image.", mend="a folder with .tif, .npy or .ome.zarr in it, or one file")
    return [str(p) for p in images]


def _named(paths: Sequence[str], what: str) -> dict[str, str]:
    """Name -> path."""
    found: dict[str, str] = {}
    for path in paths:
        name = name_of(path)
        if name in found:
            raise ImageError(
                f"two {what}s are called {name!r}.",
                f"{found[name]} and {path}",
                "one folder after the other; patterns in quotes, --truth 'true/*.tif'",
            )
        found[name] = path
    return found


def name_of(path: str) -> str:
    """What an image is called: its file without the ending, or the OME-Zarr that it lies in."""
    store = next((part for part in PurePath(path).parts if part.lower().endswith(".zarr")), path)
    return stem(store)


def _all_have_one(these: dict[str, str], others: dict[str, str], what: str, other: str) -> None:
    alone = [name for name in these if name not in others]
    if alone:
        more = f" (and {len(alone) - 1} more)" if alone[1:] else ""
        raise ImageError(
            f"{these[alone[0]]} has no {other}{more}: several images pair by name.",
            f"no {other} is called {alone[0]}{nearest(alone[0], others)}",
            f"a {other} for each {what}, called like it; a single pair may have any names",
        )
