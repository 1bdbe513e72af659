"""Results beside their truths: one row of figures an image, their mean, and all of them pooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, RecipeError, nearest
from . import intensities as grey
from .evaluation import Evaluation, Row
from .intensities import Intensities, checked_range
from .objects import IOUS, Objects, overlaps
from .pair import Pair, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = ("labels", "intensities")
LOOKED_AT = 512
"""Side (pixels) of the square in the middle that the kind of an image is guessed from."""
PIECEWISE, SURE = 0.2, 0.02
"""Share of neighbours, neither of them 0, up to which these may differ in labels: touching objects of 5 pixels have as
many, 8-bit images of smooth, dark nuclei twice as many, and noise makes nearly all differ. Below SURE nothing
else is looked at.
"""
STEPS = 0.6
"""Share of the neighbours that differ from which on, if they differ by 1, it is a smooth image of few grey values."""


def evaluate(
    pairs: Sequence[Pair],
    *,
    kind: str | None = None,
    iou: Sequence[float] = IOUS,
    data_range: str | float = "truth",
    affine: bool = False,
) -> Evaluation:
    """Judge each part of each pair. kind: `labels` or `intensities`, by default guessed from the first pair.

    iou: thresholds of `labels`; data_range and affine: of `intensities` (`intensities.compare`).
    Raises RecipeError for another kind, threshold or range and for what the kind has not, DtypeError for labels that
    are no integers, ValuesError for negative ones and for NaN.
    """
    wrong = [t for t in iou if not 0 <= t < 1]
    if wrong or not iou:
        raise RecipeError(f"IoU thresholds lie from 0 to below 1, not {wrong or 'none'}.", mend="--iou 0.5,0.75")
    found, why = kind_of(pairs, kind)
    if found == "labels":
        if affine or data_range != "truth":
            word = "an affine fit" if affine else f"the range {data_range}"
            raise RecipeError(
                f"{word} is for intensities; these are labels.", why, "leave it out; or --kind intensities"
            )
        return _judged(pairs, lambda p, at: Objects.of(overlaps(p, at), iou), found, why)
    for pair in pairs:
        checked_range(data_range, pair.truth.dtype)
    return _judged(pairs, lambda p, at: grey.compare(p, at, data_range, affine=affine), found, why)


def kind_of(pairs: Sequence[Pair], kind: str | None) -> tuple[str, str]:
    """(kind, what it was guessed from); nothing is guessed where it was said. Raises as `evaluate`."""
    if kind is not None and kind not in KINDS:
        raise RecipeError(f"there is no kind {kind!r}{nearest(kind, KINDS)}.", mend="--kind labels or intensities")
    if not pairs:
        raise RecipeError("there is nothing to evaluate.", mend="at least one prediction and its truth")
    return (kind, "") if kind is not None else _guessed(pairs[0])


def _judged(
    pairs: Sequence[Pair], judge: Callable[[Pair, dict[str, int]], Objects | Intensities], kind: str, why: str
) -> Evaluation:
    rows, notes = [], []
    for pair in pairs:
        of_pair = []
        for part in pair.parts():
            of_pair.append(Row(pair.name, part, judge(pair, part)))
        pair.close()
        rows += of_pair
        notes += _notes(pair, of_pair)
    return Evaluation(kind, why, tuple(rows), tuple(notes))


def _guessed(pair: Pair) -> tuple[str, str]:
    """(kind, why): from the dtypes, and from whether neighbouring pixels are mostly equal, as those of objects are.

    Raises DtypeError for floats that look like labels.
    """
    if any(i.dtype.kind == "b" for i in (pair.truth, pair.prediction)):
        return "labels", "one of them is a mask"
    part, box = pair.middle(LOOKED_AT)
    middle = [read(i, part, box) for i in (pair.truth, pair.prediction)]
    differ, labels = zip(*map(_like_labels, middle), strict=True)
    floats = [i for i in (pair.prediction, pair.truth) if i.dtype.kind == "f"]
    share = f"{max(differ):.0%} of neighbouring pixels above 0 differ"
    if not floats:
        return ("labels" if all(labels) else "intensities"), f"whole numbers, {share}"
    if all(labels) and all(np.array_equal(m, np.rint(m)) for m in middle):
        raise DtypeError(
            f"{floats[0].name} looks like labels, but holds {floats[0].dtype}: all are whole numbers, {share}.",
            mend="save it as integers, numpy.rint(labels).astype('int32'); or --kind intensities",
        )
    return "intensities", f"{floats[0].dtype}"


def _like_labels(plane: NDArray[Any]) -> tuple[float, bool]:
    """Of the neighbours that are both not 0, which share differs (0 without any), and whether labels would do so."""
    count, steps = 0, []
    for first, last in ((plane[1:], plane[:-1]), (plane[:, 1:], plane[:, :-1])):
        both = (first != 0) & (last != 0)
        count += int(both.sum())
        both &= first != last
        steps.append(np.abs(first[both].astype(np.float64) - last[both].astype(np.float64)))
    found = np.concatenate(steps)
    share = len(found) / max(1, count)
    return share, share <= SURE or (share <= PIECEWISE and float(np.mean(found == 1)) <= STEPS)


def _notes(pair: Pair, rows: Sequence[Row]) -> list[str]:
    """What a reader of the figures of one pair must know."""
    counted = [r.found for r in rows]
    objects = [o for o in counted if isinstance(o, Objects)]
    compared = [i for i in counted if isinstance(i, Intensities)]
    notes = []
    for what, many, other in (
        (pair.prediction, [o.predicted for o in objects], [o.truth for o in objects]),
        (pair.truth, [o.truth for o in objects], [o.predicted for o in objects]),
    ):
        if objects and max(many) == 1 and max(other) > 1:
            notes.append(f"{what.name} holds one object where its partner has many: number a mask's objects first")
    if any(not i.range > 0 for i in compared):
        notes.append(
            f"{pair.truth.name} is constant in places: no range, so no PSNR and SSIM there (mend: --range 255)"
        )
    elif any(not i.raw.windows for i in compared):
        notes.append(f"{pair.name} has sides under 7 pixels: no SSIM, whose windows are as wide (mend: --planes)")
    return notes
