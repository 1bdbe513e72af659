"""What an evaluation found: for Python, as CSV, and for JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import replace_file
from .intensities import Intensities
from .matching import NAN
from .objects import Objects

COUNTS = ("truth_objects", "predicted_objects", "tp", "fp", "fn", "range")
"""Figures whose mean over images means nothing."""


@dataclass(frozen=True)
class Row:
    """The figures of one image, or of one part of it, which lies `at` these indices (by letter) of its other axes."""

    image: str
    at: Mapping[str, int]
    found: Objects | Intensities

    @property
    def part(self) -> str:
        """E.g. `t 3, z 12`; empty for the whole image."""
        return ", ".join(f"{a} {i}" for a, i in self.at.items())

    @property
    def figures(self) -> dict[str, float]:
        """By name, NaN for what is 0/0."""
        return self.found.figures


@dataclass(frozen=True)
class Evaluation:
    """Figures of one or more images. kind: labels or intensities; guess: what the kind was guessed from, if it was.

    rows: one an image (or part). `mean`: of each figure over the images that have it; how many these are is in
    `counted`. `pooled`: counts and errors of all images added first, so that large images weigh more.
    Figures, by name. labels: seg, ap_mean (over the thresholds), and for each threshold ap_0.5, precision_0.5,
    recall_0.5, f1_0.5, pq_0.5, tp_0.5, fp_0.5, fn_0.5. intensities: psnr (dB), ssim, psnr_affine, ssim_affine, range.
    A figure that would be 0/0 is NaN and left out of the mean, e.g. AP where neither image has an object.
    """

    kind: str
    guess: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @cached_property
    def mean(self) -> dict[str, float]:
        """Over images, as in the papers on DenoiSeg, VoidSeg and Noise2Void."""
        return {n: math.fsum(v) / len(v) if v else NAN for n, v in self._defined.items()}

    @cached_property
    def counted(self) -> dict[str, int]:
        """Over how many images each mean is."""
        return {n: len(v) for n, v in self._defined.items()}

    @cached_property
    def pooled(self) -> dict[str, float]:
        """All images as one, as StarDist and the Cell Tracking Challenge have it."""
        objects = [r.found for r in self.rows if isinstance(r.found, Objects)]
        compared = [r.found for r in self.rows if isinstance(r.found, Intensities)]
        return Objects.pooled(objects).figures if objects else Intensities.pooled(compared).figures

    @cached_property
    def _defined(self) -> dict[str, list[float]]:
        each = [r.figures for r in self.rows]
        return {n: [f[n] for f in each if not math.isnan(f[n])] for n in each[0] if not n.startswith(COUNTS)}

    def to_json(self) -> dict[str, Any]:
        """For programs: null for 0/0, "inf" for the PSNR of equal images."""
        return {
            "kind": self.kind,
            "images": [{"image": r.image, "part": r.part, **_plain(r.figures)} for r in self.rows],
            "mean": _plain(self.mean),
            "counted": self.counted,
            "pooled": _plain(self.pooled),
            "notes": list(self.notes),
        }

    def write_csv(self, path: str | Path) -> None:
        """One line an image, then `mean` and `pooled` (first column); empty for 0/0. Raises OutputError."""
        names = list(self.rows[0].figures)
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(("row", "image", "part", *names))
        each = [("image", r.image, r.part, r.figures) for r in self.rows]
        for row, image, part, figures in [*each, ("mean", "", "", self.mean), ("pooled", "", "", self.pooled)]:
            values = (figures.get(n, NAN) for n in names)
            lines.writerow((row, image, part, *("" if math.isnan(v) else repr(v) for v in values)))
        replace_file(Path(path), lambda p: p.write_text(text.getvalue(), encoding="utf-8"))


def _plain(figures: dict[str, float]) -> dict[str, Any]:
    return {n: None if math.isnan(v) else "inf" if math.isinf(v) else v for n, v in figures.items()}
