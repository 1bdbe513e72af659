"""Figures of label images: how well objects are found and outlined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DtypeError, ValuesError
from .matching import NAN, Matching, match
from .overlaps import Counting, Overlaps

if TYPE_CHECKING:
    from .pair import Pair

BLOCK = 2**21
"""Pixels that are counted at once."""
IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Thresholds unless others are asked for: the first is that of the papers."""
RATIOS = ("ap", "precision", "recall", "f1", "pq")


@dataclass(frozen=True)
class Objects:
    """What was counted of one image, or of several together.

    truth, predicted: how many objects. segs: sum of the IoUs of SEG over the objects of the truth. matchings: one a
    threshold.
    """

    truth: int
    predicted: int
    segs: float
    matchings: tuple[Matching, ...]

    @classmethod
    def of(cls, table: Overlaps, ious: Sequence[float]) -> Objects:
        """From an overlap table."""
        found = tuple(match(table, iou) for iou in ious)
        return cls(len(table.truth_ids), len(table.prediction_ids), float(table.seg_ious().sum()), found)

    @classmethod
    def pooled(cls, several: Sequence[Objects]) -> Objects:
        """Counts of several images, added: a large image weighs more than a small one."""
        matchings = tuple(Matching.pooled(same) for same in zip(*(o.matchings for o in several), strict=True))
        sums = (sum(o.truth for o in several), sum(o.predicted for o in several), sum(o.segs for o in several))
        return cls(*sums, matchings)

    @property
    def figures(self) -> dict[str, float]:
        """By name: `seg`, `ap_mean` over the thresholds, and `ap_0.5`, ... of each threshold; NaN for 0/0."""
        found: dict[str, float] = {
            "truth_objects": self.truth,
            "predicted_objects": self.predicted,
            "seg": self.segs / self.truth if self.truth else NAN,
            "ap_mean": float(np.mean([m.ap for m in self.matchings])),
        }
        for m in self.matchings:
            found |= {f"{name}_{m.iou:g}": getattr(m, name) for name in (*RATIOS, "tp", "fp", "fn")}
        return found


def overlaps(pair: Pair, part: Mapping[str, int]) -> Overlaps:
    """The overlap table of a part, block by block. Raises DtypeError and ValuesError for what are no labels."""
    for image, what in ((pair.prediction, "prediction"), (pair.truth, "truth")):
        if image.dtype.kind not in "biu":
            raise DtypeError(
                f"the {what} {image.name} holds {image.dtype} numbers; labels are integers.",
                mend="save them as integers, numpy.rint(labels).astype('int32'); or --kind intensities",
            )
    counting = Counting()
    for box in pair.blocks(BLOCK):
        try:
            counting.add(*pair.read(part, box))
        except ValuesError as error:
            mend = "numpy.where(labels < 0, 0, labels), if below 0 is background"
            raise ValuesError(error.what, pair.name, mend) from error
    return counting.table()
