"""Many TIFFs of the same shape as one image along one axis: a folder, a glob pattern."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..axes import ORDER, canonical, describe, parse
from ..errors import AxesError, ImageError
from .cache import ChunkCache
from .tiff_open import ENDINGS, open_tiff

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from ..image import Image, Source


@dataclass(frozen=True)
class Stacked:
    """A `Source`: one source a file, along the axis `letter`."""

    files: tuple[Source, ...]
    letter: str

    @property
    def axes(self) -> str:
        """Letters of `tczyx`, in that order."""
        return canonical(self.letter + self.files[0].axes)

    def _insert(self, values: Sequence[int], value: int) -> tuple[int, ...]:
        at = self.axes.index(self.letter)
        return (*values[:at], value, *values[at:])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `axes`."""
        return self._insert(self.files[0].shape, len(self.files))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels, native byte order."""
        return self.files[0].dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once; one file along the stack."""
        return self._insert(self.files[0].chunks, 1)

    @property
    def cache(self) -> ChunkCache:
        """One for all files: keeps decoded chunks and counts them."""
        return self.files[0].cache

    @property
    def identity(self) -> dict[str, Any]:
        """How many files, their bytes, the latest change (ns), and a hash of what tells each of them."""
        each = [file.identity for file in self.files]
        return {
            "files": len(each),
            "bytes": sum(one["bytes"] for one in each),
            "changed": max(one["changed"] for one in each),
            "sha256": hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest(),
        }

    def with_cache(self, cache: ChunkCache) -> Stacked:
        """The same pixels, read through `cache`."""
        return Stacked(tuple(file.with_cache(cache) for file in self.files), self.letter)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region; only the files it touches are opened. Raises ImageError naming the file."""
        at = self.axes.index(self.letter)
        inner = (*slices[:at], *slices[at + 1 :])
        out = np.empty([s.stop - s.start for s in slices], dtype=self.dtype)
        for i, source in enumerate(self.files[slices[at]]):
            out[(slice(None),) * at + (i,)] = source.read(inner)
        return out

    def close(self) -> None:
        """Drop what was decoded."""
        for source in self.files:
            source.close()


def natural(path: Path) -> list[tuple[int, int, str]]:
    """A sort key that counts: `t9.tif` before `t10.tif`."""
    return [(0, int(w), "") if w.isdigit() else (1, 0, w) for w in re.split(r"(\d+)", str(path).lower()) if w]


def tiffs_in(folder: Path) -> list[Path]:
    """The TIFFs of a folder (not of those inside it), in natural order, hidden files left out."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and p.is_file()]
    return sorted(found, key=natural)


def open_stack(paths: Sequence[Path], place: Path, *, axes: str | None, stack: str | None, series: int | None) -> Image:
    """The image of many TIFFs. The axis they are stacked along is named by `stack`, or is the one that `axes` adds.

    Raises AxesError where neither says it, ImageError naming the first file that differs in shape or dtype.
    """
    name = place.name
    if stack is not None and (len(stack) != 1 or stack.lower() not in ORDER):
        raise AxesError(f"--stack {stack!r} is no axis.", mend="--stack t, c or z")
    letters = None if axes is None else parse(axes)
    letter, inner = _along(paths, name, letters, stack.lower() if stack else None, series)
    images = [open_tiff(path, axes=inner, series=series) for path in paths]
    first = images[0]
    if letter in first.axes:
        raise AxesError(
            f"{name}: its files already have an axis {letter} ({describe(first.axes, first.shape)} each).",
            mend=f"--stack {next((a for a in 'tzc' if a not in first.axes), 't')}",
        )
    for path, image in zip(paths, images, strict=True):
        if (image.axes, image.shape, image.dtype) != (first.axes, first.shape, first.dtype):
            raise ImageError(
                f"{path.name} differs from {paths[0].name}: {describe(image.axes, image.shape)}, {image.dtype} "
                f"instead of {describe(first.axes, first.shape)}, {first.dtype}.",
                str(path),
                "move it out of the folder, or name the files with a pattern, e.g. 'folder/t*.tif'",
            )
    return replace(
        first,
        source=Stacked(tuple(image.source for image in images), letter).with_cache(ChunkCache()),
        name=name,
        path=str(place.resolve()),
        pixel_size=replace(first.pixel_size, **{letter: None}) if letter in "tzyx" else first.pixel_size,
        channels=tuple(p.name.split(".")[0] for p in paths) if letter == "c" else first.channels,
        source_axes=letter + first.source_axes,
        kind=f"{len(paths)} x {first.kind}",
        levels=(),
        metadata={**first.metadata, "files": len(paths)},
    )


def _along(
    paths: Sequence[Path], name: str, axes: str | None, stack: str | None, series: int | None
) -> tuple[str, str | None]:
    """The letter along which files are stacked, and the axes to read each of them with (None: it says them itself)."""
    if stack is not None:
        return stack, None if axes is None else axes.replace(stack, "")
    if axes is None:
        first = open_tiff(paths[0], axes=None, series=series)
        free = [a for a in "zt" if a not in first.axes] or ["c"]
        known = [canonical(a + first.axes) for a in free]
        words = {"z": "depth", "t": "time", "c": "channels"}
        hint = f" (or {known[1]}, if they are {words[free[1]]} points)" if len(known) > 1 else ""
        raise AxesError(
            f"{name} holds {len(paths)} TIFFs of {describe(first.axes, first.shape)}, "
            "but does not say along which axis they go.",
            f"{paths[0].name} ... {paths[-1].name}",
            f"add --axes {known[0]}{hint}",
        )
    try:
        own = open_tiff(paths[0], axes=None, series=series).axes
    except AxesError:
        return axes[0], axes[1:]  # the files are unlabelled: they go along the outermost axis
    added = [a for a in axes if a not in own]
    if len(added) == 1 and len(axes) == len(own) + 1:
        return added[0], None
    raise AxesError(
        f"--axes {axes} does not fit {name}: {len(paths)} files of {own} and one axis along them.",
        mend=f"--axes {canonical(next((a for a in 'zt' if a not in own), 'c') + own)}",
    )
