"""Axes by letter: t c z y x, always in this (OME) order inside voidzoo; never by position, never by guess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import AxesError

ORDER = "tczyx"
SPACE = "zyx"

Region = Mapping[str, slice]
"""A part of an image by letter, e.g. `{"z": slice(0, 4)}`; axes that are not named are whole."""


def parse(axes: str, what: str = "--axes") -> str:
    """Check a user's axes string, e.g. `"ZCYX"` -> `"zcyx"`, order kept.

    Raises AxesError for an unknown or repeated letter, or without y and x.
    """
    letters = axes.strip().lower()
    for letter in letters:
        if letter not in ORDER:
            raise AxesError(
                f"{what} {axes!r}: {letter!r} is no axis; the letters are t (time), c (channel), z, y, x.",
                mend="e.g. --axes zcyx",
            )
    if len(set(letters)) != len(letters):
        raise AxesError(f"{what} {axes!r} names an axis twice.", mend="each of t c z y x at most once, e.g. zcyx")
    if not {"y", "x"} <= set(letters):
        raise AxesError(f"{what} {axes!r}: an image has at least y and x.", mend="e.g. --axes yx")
    return letters


def canonical(axes: str) -> str:
    """The same letters in OME order: `"yxc"` -> `"cyx"`."""
    return "".join(letter for letter in ORDER if letter in axes)


def permutation(source: str, target: str) -> tuple[int, ...]:
    """The argument for `numpy.transpose` that brings an array with axes `source` to axes `target`."""
    return tuple(source.index(letter) for letter in target)


def describe(axes: str, shape: Sequence[int]) -> str:
    """`"z 25 x y 137 x x 147"`-like text for messages: `"z 25, y 137, x 147"`."""
    return ", ".join(f"{letter} {size}" for letter, size in zip(axes, shape, strict=True))


def region_slices(region: Region | None, axes: str, shape: Sequence[int]) -> tuple[slice, ...]:
    """The region as one slice an axis with start and stop filled in, in the order of `axes`.

    Raises AxesError for a letter that the image does not have, and for a slice outside of it or with a step.
    """
    region = region or {}
    for letter in region:
        if letter not in axes:
            raise AxesError(f"a region along {letter!r} was asked of an image with axes {axes}.")
    slices = []
    for letter, size in zip(axes, shape, strict=True):
        part = region.get(letter, slice(None))
        start = 0 if part.start is None else part.start
        stop = size if part.stop is None else part.stop
        if part.step not in (None, 1) or not 0 <= start <= stop <= size:
            raise AxesError(f"{letter} {part.start}:{part.stop} is not a part of {letter} 0:{size}.")
        slices.append(slice(start, stop))
    return tuple(slices)
