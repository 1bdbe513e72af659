"""How many pixels each object of the truth shares with each of a prediction: sparse, and additive over blocks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, SizeError, ValuesError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]

PENDING = 2**20
"""Rows of blocks that wait before they are added to the table: sorting it for each block would take longer."""


@dataclass(frozen=True)
class Overlaps:
    """The overlap table of two label images. 0 is background, every other number one object, wherever its pixels lie.

    truth_ids, prediction_ids: the objects, ascending, uint64; truth_areas, prediction_areas: their pixels, int64.
    rows, columns: pairs that overlap, as positions in these, ascending; pixels: how many they share, int64.
    """

    truth_ids: NDArray[np.uint64]
    truth_areas: NDArray[np.int64]
    prediction_ids: NDArray[np.uint64]
    prediction_areas: NDArray[np.int64]
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    pixels: NDArray[np.int64]

    @classmethod
    def of(cls, truth: NDArray[Any], prediction: NDArray[Any]) -> Overlaps:
        """Of two arrays of one shape, any axes, integers or bool.

        Raises SizeError for different shapes, DtypeError for other dtypes, ValuesError for negative labels.
        """
        counting = Counting()
        counting.add(truth, prediction)
        return counting.table()

    @cached_property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each pair that overlaps."""
        union = self.truth_areas[self.rows] + self.prediction_areas[self.columns] - self.pixels
        return self.pixels / union

    def seg_ious(self) -> NDArray[np.float64]:
        """For each object of the truth its IoU with the one that covers more than half of it, 0 without one.

        Their mean is SEG; objects that match nothing cost nothing. Strictly more than half, unlike the >= of the prose
        in some papers, so that there is at most one. Source: Maska et al. 2014 (Cell Tracking Challenge).
        """
        found = np.zeros(len(self.truth_ids))
        most = 2 * self.pixels > self.truth_areas[self.rows]
        found[self.rows[most]] = self.iou[most]
        return found


class Counting:
    """Adds up the overlap table of two label images block by block; takes memory for the pairs that overlap alone."""

    def __init__(self) -> None:
        self._rows: Rows = (np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int64))
        self._waiting: list[Rows] = []

    def add(self, truth: NDArray[Any], prediction: NDArray[Any]) -> None:
        """Count the pixels of a block. Any axes, the same shape. Raises as `Overlaps.of`."""
        if truth.shape != prediction.shape:
            raise SizeError(
                f"the truth is {truth.shape}, the prediction {prediction.shape}: they must have the same shape."
            )
        flat = [_checked(a, what).reshape(-1) for a, what in ((truth, "the truth"), (prediction, "the prediction"))]
        if not truth.size:
            return
        self._waiting.append(_summed(*_runs(*flat)))
        if sum(len(n) for _, _, n in self._waiting) > max(PENDING, len(self._rows[2])):
            self._merge()

    def table(self) -> Overlaps:
        """What was counted so far."""
        self._merge()
        truth, prediction, pixels = self._rows
        truth_ids, i, truth_areas = _areas(truth, pixels)
        prediction_ids, j, prediction_areas = _areas(prediction, pixels)
        both = (truth > 0) & (prediction > 0)
        return Overlaps(truth_ids, truth_areas, prediction_ids, prediction_areas, i[both], j[both], pixels[both])

    def _merge(self) -> None:
        parts = [self._rows, *self._waiting]
        truth, prediction, pixels = (np.concatenate([p[k] for p in parts]) for k in range(3))
        self._rows, self._waiting = _summed(truth, prediction, pixels), []


def _checked(labels: NDArray[Any], what: str) -> NDArray[Any]:
    if labels.dtype.kind not in "biu":
        raise DtypeError(f"{what} holds {labels.dtype} numbers; labels are integers.", mend="labels.astype('int32')")
    if labels.dtype.kind == "i" and labels.size and (least := int(labels.min())) < 0:
        raise ValuesError(f"{what} holds the label {least}; 0 is background and objects are numbered from 1.")
    return labels


def _runs(truth: NDArray[Any], prediction: NDArray[Any]) -> Rows:
    """Neighbours with the same two labels as one row: a tenth of the pixels or less, where objects are no dots."""
    changes = truth[1:] != truth[:-1]
    changes |= prediction[1:] != prediction[:-1]
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=len(truth))
    return truth[starts].astype(np.uint64), prediction[starts].astype(np.uint64), lengths


def _summed(truth: NDArray[np.uint64], prediction: NDArray[np.uint64], pixels: NDArray[np.int64]) -> Rows:
    """Rows of the same pair as one."""
    if not len(pixels):
        return truth, prediction, pixels
    order = np.argsort(_packed(truth, prediction))
    truth, prediction, pixels = truth[order], prediction[order], pixels[order]
    new = (truth[1:] != truth[:-1]) | (prediction[1:] != prediction[:-1])
    starts = np.concatenate([[0], np.flatnonzero(new) + 1])
    return truth[starts], prediction[starts], np.add.reduceat(pixels, starts)


def _packed(truth: NDArray[np.uint64], prediction: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number a pair. Labels of 32 bits go side by side; larger ones are numbered anew first, so that none wraps."""
    half = np.uint64(32)
    columns = []
    for labels in (truth, prediction):
        large = bool(labels.max() >> half)
        columns.append(np.unique(labels, return_inverse=True)[1].astype(np.uint64) if large else labels)
    return (columns[0] << half) | columns[1]


def _areas(
    labels: NDArray[np.uint64], pixels: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.intp], NDArray[np.int64]]:
    """The objects, the position of each row's among them (-1: background), their areas."""
    ids, inverse = np.unique(labels, return_inverse=True)
    areas = np.zeros(len(ids), np.int64)
    np.add.at(areas, inverse, pixels)
    background = int(len(ids) > 0 and ids[0] == 0)
    return ids[background:], inverse - background, areas[background:]
