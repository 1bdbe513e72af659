"""Objects of a truth and of a prediction that are the same: matched by their IoU, counted, and scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from .overlaps import Overlaps

NAN = float("nan")


@dataclass(frozen=True)
class Matching:
    """What is found at one threshold of the IoU. A figure that would be 0/0 is NaN: there was nothing to judge.

    tp: pairs that match; fp: objects of the prediction without a partner, fn: of the truth. ious: sum of the IoU of the
    pairs. Counts of several images may be added.
    """

    iou: float
    tp: int
    fp: int
    fn: int
    ious: float

    @property
    def ap(self) -> float:
        """Average precision TP / (TP + FP + FN), as DenoiSeg and VoidSeg have it; StarDist calls it accuracy."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP): the share of the predicted objects that are right. NaN where nothing was predicted."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN): the share of the true objects that were found. NaN where there are none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def pq(self) -> float:
        """Panoptic quality: F1 times the mean IoU of the pairs. Source: Kirillov et al. 2019."""
        return _ratio(self.ious, self.tp + (self.fp + self.fn) / 2)

    @classmethod
    def pooled(cls, several: Iterable[Matching]) -> Matching:
        """Counts of several images at one threshold, added."""
        found = list(several)
        ious = float(np.sum([m.ious for m in found]))
        return cls(found[0].iou, sum(m.tp for m in found), sum(m.fp for m in found), sum(m.fn for m in found), ious)


def match(table: Overlaps, iou: float) -> Matching:
    """The best matching of the objects whose IoU is larger than a threshold, strictly.

    Raises RecipeError for a threshold that is not at least 0 and below 1. Source: DenoiSeg's metric (strict at 0.5).
    """
    pairs = partners(table, iou)
    tp = len(pairs)
    fp, fn = len(table.prediction_ids) - tp, len(table.truth_ids) - tp
    return Matching(iou, tp, fp, fn, float(table.iou[pairs].sum()))


def partners(table: Overlaps, iou: float) -> NDArray[np.intp]:
    """Which rows of the table are the pairs that match: as many as possible, then with the largest sum of the IoU.

    Above an IoU of 0.5 an object has one partner at most; below it the pairs are chosen by optimal assignment.
    """
    if not 0 <= iou < 1:
        raise RecipeError(f"an IoU of {iou:g} is no threshold; objects match above it.", mend="--iou 0.5")
    able = np.flatnonzero(table.iou > iou)
    if iou >= 0.5:
        return able
    often = np.bincount(table.rows[able], minlength=1), np.bincount(table.columns[able], minlength=1)
    alone = (often[0][table.rows[able]] == 1) & (often[1][table.columns[able]] == 1)
    return np.sort(np.concatenate([able[alone], _assigned(table, able[~alone])]))


def _assigned(table: Overlaps, able: NDArray[np.intp]) -> NDArray[np.intp]:
    """Of the pairs in `able` those of the best assignment."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    if not len(able):
        return able
    rows, i = np.unique(table.rows[able], return_inverse=True)
    columns, j = np.unique(table.columns[able], return_inverse=True)
    n, m = len(rows), len(columns)
    gain = 1 + table.iou[able] / (2 * min(n, m))  # one more pair is worth more than all the IoU there is
    # an object without a partner takes a place of its own, so that there always is a full matching
    places = np.arange(n)
    cost = csr_array(
        (np.concatenate([3 - gain, np.full(n, 3.0)]), (np.concatenate([i, places]), np.concatenate([j, m + places]))),
        shape=(n, m + n),
    )
    left, right = min_weight_full_bipartite_matching(cost)
    taken = right < m
    return able[np.searchsorted(i * m + j, left[taken] * m + right[taken])]  # the rows of a table are in this order


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else NAN
