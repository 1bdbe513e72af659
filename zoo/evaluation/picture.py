"""A picture of matches: what was found, what was made up, what was missed; told by colour, pattern and words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures import enlarge, write_png
from .matching import Matching, match, partners
from .objects import overlaps
from .pair import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .evaluation import Evaluation
    from .overlaps import Overlaps
    from .pair import Pair

LARGEST, SMALLEST = 2048, 512
"""Sides (pixels) of what is drawn of a large image, and to which a small one is enlarged."""
LINE = 22
"""Height in pixels of a line of the legend."""
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
FOUND, MADE_UP, MISSED = (86, 180, 233), (230, 159, 0), (204, 121, 167)
"""Sky blue, orange, reddish purple: told apart by all kinds of colour vision. Source: Okabe and Ito 2008."""


def draw_all(pairs: Sequence[Pair], found: Evaluation, iou: float, places: Sequence[Path]) -> None:
    """Draw each pair into its file, a PNG: of its parts the one with the lowest AP. Raises OutputError."""
    rows = list(found.rows)
    for pair, place in zip(pairs, places, strict=True):
        own = [rows.pop(0) for _ in pair.parts()]
        scores = [r.found.figures[f"ap_{iou:g}"] for r in own]
        worst = own[int(np.nanargmin(scores))] if not np.isnan(scores).all() else own[0]
        place.parent.mkdir(parents=True, exist_ok=True)
        draw_matches(pair, dict(worst.at), iou, place)
        pair.close()


def draw_matches(pair: Pair, part: dict[str, int], iou: float, path: str | Path) -> None:
    """Write a PNG of the matches of a part: its middle plane and there at most the 2048 x 2048 pixels in the middle.

    Objects match, or not, by all of their pixels in the whole part. Raises OutputError, and what `overlaps` refuses.
    """
    table = overlaps(pair, part)
    at, box = pair.middle(LARGEST)
    at |= part
    truth, prediction = (read(image, at, box) for image in (pair.truth, pair.prediction))
    factor = -(-SMALLEST // max(truth.shape))
    canvas = coloured(enlarge(truth, factor), enlarge(prediction, factor), table, iou)
    places = [f"{a} {i} of {pair.sizes[a]}" for a, i in at.items()]
    places += [f"{a} {s.start}:{s.stop} of {pair.sizes[a]}" for a, s in box.items() if s.stop - s.start < pair.sizes[a]]
    _write(canvas, _legend(match(table, iou)), ", ".join([pair.name, *places]), Path(path))


def coloured(truth: NDArray[Any], prediction: NDArray[Any], table: Overlaps, iou: float) -> NDArray[np.uint8]:
    """Label planes (y, x) -> RGB (y, x, 3): blue and orange objects of the prediction, striped ones that were missed.

    The rim of each object of the prediction is dark, that of each object of the truth white.
    """
    pairs = partners(table, iou)
    right = np.isin(prediction, table.prediction_ids[table.columns[pairs]].astype(prediction.dtype))
    known = np.isin(truth, table.truth_ids[table.rows[pairs]].astype(truth.dtype))
    stripes = np.add.outer(np.arange(truth.shape[0]), np.arange(truth.shape[1])) % 8 < 4
    picture = np.zeros((*truth.shape, 3), np.uint8)
    picture[(prediction > 0) & right] = FOUND
    picture[(prediction > 0) & ~right] = MADE_UP
    picture[(truth > 0) & ~known & stripes] = MISSED
    dark = _rim(prediction)
    picture[dark] = picture[dark] // 2
    picture[_rim(truth)] = WHITE
    return picture


def _rim(labels: NDArray[Any]) -> NDArray[np.bool_]:
    """The pixels of objects that have another label above, below, left or right of them."""
    rim = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        other = np.diff(labels.astype(np.uint64, copy=False), axis=axis) != 0
        first, last = [slice(None)] * 2, [slice(None)] * 2
        first[axis], last[axis] = slice(None, -1), slice(1, None)
        rim[tuple(first)] |= other
        rim[tuple(last)] |= other
    return rim & (labels > 0)


def _legend(found: Matching) -> list[tuple[tuple[int, int, int], str]]:
    return [
        (FOUND, f"{found.tp:,} found (TP): predicted, with a partner in the truth (IoU > {found.iou:g})"),
        (MADE_UP, f"{found.fp:,} made up (FP): predicted, without a partner"),
        (MISSED, f"{found.fn:,} missed (FN, striped): in the truth, without a partner"),
        (WHITE, "outlines of the truth"),
    ]


def _write(canvas: NDArray[np.uint8], legend: list[tuple[tuple[int, int, int], str]], title: str, path: Path) -> None:
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(14)
    measure = ImageDraw.Draw(Pillow.new("RGB", (1, 1)))
    texts = [title, *(text for _, text in legend)]
    width = max(canvas.shape[1], *(int(measure.textlength(t, font=font)) + 2 * LINE for t in texts))
    top = LINE * len(texts)
    picture = Pillow.new("RGB", (width, top + canvas.shape[0]), BLACK)
    draw = ImageDraw.Draw(picture)
    draw.text((4, 2), title, fill=WHITE, font=font)
    for line, (colour, text) in enumerate(legend, 1):
        box = (4, LINE * line + 4, LINE - 5, LINE * (line + 1) - 5)
        draw.rectangle(box, fill=BLACK if colour == WHITE else colour, outline=colour)
        for x in range(4, LINE - 4, 4) if colour == MISSED else ():
            draw.line((x, box[1], x, box[3]), fill=BLACK, width=2)
        draw.text((LINE + 4, LINE * line + 2), text, fill=WHITE, font=font)
    picture.paste(Pillow.fromarray(canvas), (0, top))
    write_png(picture, path)
