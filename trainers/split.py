"""What is trained on and what is held out: the split comes before anything else, by file, by plane or by a strip."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from ..zoo.errors import AxesError, SizeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..zoo.image import Image


STACK = 10
"""From this many planes on, a block of planes is held out instead of a strip of each."""


@dataclass(frozen=True)
class Box:
    """A part of one image: samples (planes or volumes) and one range a spatial axis, as (start, stop)."""

    image: int
    samples: tuple[int, int]
    space: tuple[tuple[int, int], ...]

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels along each spatial axis."""
        return tuple(stop - start for start, stop in self.space)

    def describe(self, axes: str) -> str:
        """`"image 0, planes 0:1, y 448:552, x 0:1024"`."""
        parts = [f"{a} {start}:{stop}" for a, (start, stop) in zip(axes, self.space, strict=True)]
        return ", ".join([f"image {self.image}", f"samples {self.samples[0]}:{self.samples[1]}", *parts])


@dataclass(frozen=True)
class Split:
    """What is trained on and what is held out: boxes that share no pixel."""

    train: tuple[Box, ...]
    validation: tuple[Box, ...]
    rule: str


def sample_axes(image: Image, dims: int) -> str:
    """The axes along which samples lie: t and z for a 2D model, t for a 3D one.

    Raises AxesError when a 3D model is asked for an image without z.
    """
    if dims == 3 and "z" not in image.axes:
        raise AxesError(f"{image.name} has no z axis; a 3D model needs one.", mend="dims: 2")
    return "".join(a for a in ("t", "z")[: 4 - dims] if a in image.axes)


def place_of(image: Image, dims: int, sample: int) -> dict[str, int]:
    """Where the n-th sample lies along t and z."""
    letters = sample_axes(image, dims)
    index = np.unravel_index(sample, tuple(image.size(a) for a in letters)) if letters else ()
    return {a: int(i) for a, i in zip(letters, index, strict=True)}


def shape_of(image: Image, dims: int) -> tuple[int, tuple[int, ...]]:
    """(number of samples, spatial sides) of an image for a model of `dims` dimensions."""
    samples = prod((image.size(a) for a in sample_axes(image, dims)), start=1)
    return samples, tuple(image.size(a) for a in "zyx"[-dims:])


def split(
    shapes: Sequence[tuple[int, tuple[int, ...]]],
    patch: tuple[int, ...],
    step: tuple[int, ...],
    *,
    fraction: float,
    seed: int,
    names: Sequence[str] = (),
    given: int = 0,
) -> Split:
    """Hold out `fraction` of the pixels. shapes: (samples, sides) of each image; patch, step: one a spatial axis.

    given: so many images, the last ones, were brought to validate on: these are held out and no others. Else, of two
    or more images whole ones, at least one. One image of at least STACK samples: a contiguous block of
    samples in the middle. Otherwise a strip across the middle of the longer of y and x, from every sample, at
    least half a patch thick; where the halves left would hold no patch, a strip at the end.
    Raises SizeError for an image that does not hold a patch beside the strip, saying the largest that does.
    """
    for i, (_, sides) in enumerate(shapes):
        name = names[i] if i < len(names) else f"image {i}"
        fits = step if i >= len(shapes) - given else patch  # validation takes windows of any size
        _check_patch(fits, step, sides, fraction, name=name, alone=len(shapes) == 1)
    whole = [Box(i, (0, n), tuple((0, s) for s in sides)) for i, (n, sides) in enumerate(shapes)]
    if given:
        return Split(
            tuple(whole[:-given]), tuple(whole[-given:]), f"{given} image{'s' * (given > 1)} given to validate on"
        )
    if len(shapes) >= 2:
        count = max(1, round(fraction * len(shapes)))
        held = set(np.random.default_rng(seed).permutation(len(shapes))[:count].tolist())
        return Split(
            tuple(b for b in whole if b.image not in held),
            tuple(b for b in whole if b.image in held),
            f"{count} of {len(shapes)} images held out",
        )
    samples, sides = shapes[0]
    if samples >= STACK:
        count = max(1, round(fraction * samples))
        first = (samples - count) // 2
        parts = [(0, first), (first + count, samples)]
        return Split(
            tuple(Box(0, p, whole[0].space) for p in parts if p[1] > p[0]),
            (Box(0, (first, first + count), whole[0].space),),
            f"{count} of {samples} samples held out, a contiguous block",
        )
    axis = _strip_axis(sides)
    thick = _strip(sides[axis], patch[axis], step[axis], fraction)
    middle = (sides[axis] - thick) // 2 // step[axis] * step[axis]
    start = middle if middle >= patch[axis] else sides[axis] - thick
    spans = [(0, start), (start + thick, sides[axis])]
    return Split(
        tuple(_along(whole[0], axis, span) for span in spans if span[1] - span[0] >= patch[axis]),
        (_along(whole[0], axis, (start, start + thick)),),
        f"a strip of {thick} of {sides[axis]} pixels held out along {'zyx'[-len(sides) :][axis]}",
    )


def largest_patch(sides: Sequence[int], step: Sequence[int], fraction: float, alone: bool) -> tuple[int, ...]:
    """The largest patch (multiples of step) that fits into an image beside the held-out strip; 0 where none does."""
    axis = _strip_axis(sides)
    best = [side // s * s for side, s in zip(sides, step, strict=True)]
    while alone and best[axis] and best[axis] + _strip(sides[axis], best[axis], step[axis], fraction) > sides[axis]:
        best[axis] -= step[axis]
    return tuple(best)


def _check_patch(
    patch: tuple[int, ...], step: tuple[int, ...], sides: tuple[int, ...], fraction: float, *, name: str, alone: bool
) -> None:
    axes = "zyx"[-len(sides) :]
    best = largest_patch(sides, step, fraction, alone)
    size = ", ".join(f"{a} {n}" for a, n in zip(axes, sides, strict=True))
    if not all(best):
        raise SizeError(
            f"{name} ({size}) is too small to train on: no patch fits beside the held-out part.",
            mend=f"an image of at least {max(3 * s for s in step)} pixels a side, or a smaller depth",
        )
    for p, s in zip(patch, step, strict=True):
        if p % s or p < 1:
            raise SizeError(
                f"patch {' x '.join(map(str, patch))}: {p} is not a multiple of {s}.",
                mend=f"use {max(s, p // s * s)} or {(p // s + 1) * s}",
            )
    if any(p > b for p, b in zip(patch, best, strict=True)):
        raise SizeError(
            f"{name} ({size}) is too small for patches of {' x '.join(map(str, patch))}"
            + (" beside the part held out for validation." if alone else "."),
            mend=f"patch: [{', '.join(str(min(p, b)) for p, b in zip(patch, best, strict=True))}]  "
            "is the largest that fits",
        )


def _strip_axis(sides: Sequence[int]) -> int:
    """The longer of y and x, counted from the front."""
    return len(sides) - 2 if sides[-2] >= sides[-1] else len(sides) - 1


def _strip(side: int, patch: int, step: int, fraction: float) -> int:
    """How thick the held-out strip is: the fraction, at least half a patch, rounded up to the step."""
    return max(step, ceil(max(fraction * side, patch / 2) / step) * step)


def _along(box: Box, axis: int, span: tuple[int, int]) -> Box:
    space = list(box.space)
    space[axis] = span
    return Box(box.image, box.samples, tuple(space))
