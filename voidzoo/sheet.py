"""Planes side by side on one sheet, each at the same size of its field, under its name and its grey scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from .zoo.pictures import GAP, stretch, to_png

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE = 512
"""Pixels that the longer side of a panel is enlarged up to."""
WIDEST = 1800
"""Pixels of a row; what does not fit goes into the next one."""
LINE = 14
"""Height of a line of text."""


@dataclass(frozen=True)
class Panel:
    """A plane (y, x) of any dtype. grey: what is black and what is white. ratio: its pixels along y and x for each of
    the first panel.
    """

    plane: NDArray[Any]
    name: str
    grey: tuple[float, float]
    ratio: tuple[Any, Any] = (1, 1)


def draw_sheet(rows: Sequence[Sequence[Panel]], title: str, path: str | Path) -> None:
    """Write rows of panels as a PNG. Pixels are enlarged by whole numbers, nothing is interpolated; the title says how.

    Raises OSError where the file cannot be written.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    panels = [p for row in rows for p in row]
    unit = lcm(*(Fraction(r).numerator for p in panels for r in p.ratio))
    zoom = unit * max(1, SIDE // (unit * max(panels[0].plane.shape)))
    ruler = ImageDraw.Draw(Pillow.new("L", (1, 1)))
    laid: list[list[tuple[NDArray[np.uint8], list[str], int]]] = []
    for row in rows:
        drawn = [(_drawn(p, zoom), _label(p)) for p in row]
        widths = [max(d.shape[1], *(int(ruler.textlength(t)) + 2 for t in text)) for d, text in drawn]
        laid += _wrapped([(d, text, w) for (d, text), w in zip(drawn, widths, strict=True)])
    title += f"   {zoom} times enlarged" if zoom > 1 else "   not enlarged"
    width = max(int(ruler.textlength(title)) + 2, *(sum(w + GAP for _, _, w in line) - GAP for line in laid))
    heights = [max(d.shape[0] for d, _, _ in line) + 2 * LINE + GAP for line in laid]
    sheet = Pillow.new("L", (width, LINE + GAP + sum(heights)), 255)
    draw = ImageDraw.Draw(sheet)
    draw.text((0, 1), title, fill=0)
    top = LINE + GAP
    for line, height in zip(laid, heights, strict=True):
        left = 0
        for pixels, text, wide in line:
            for i, words in enumerate(text):
                draw.text((left, top + i * LINE), words, fill=0)
            sheet.paste(Pillow.fromarray(pixels), (left, top + 2 * LINE))
            left += wide + GAP
        top += height
    to_png(np.asarray(sheet), path, (0.0, 255.0))


def _label(panel: Panel) -> list[str]:
    low, high = panel.grey
    return [panel.name, f"black {low:.4g}, white {high:.4g}"]


def _drawn(panel: Panel, zoom: int) -> NDArray[np.uint8]:
    """A plane in grey, enlarged so that all panels show their field at one size."""
    pixels = stretch(panel.plane, panel.grey)
    for axis, ratio in enumerate(panel.ratio):
        pixels = pixels.repeat(int(zoom / Fraction(ratio)), axis=axis)
    return pixels


def _wrapped(row: list[Any]) -> Iterator[list[Any]]:
    """Cut a row where it becomes too wide."""
    line: list[Any] = []
    for panel in row:
        if line and sum(p[2] + GAP for p in line) + panel[2] > WIDEST:
            yield line
            line = []
        line.append(panel)
    yield line
