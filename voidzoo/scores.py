"""`voidzoo evaluate`: figures of predictions beside their truths, as tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import api
from .screen import say, warn
from .zoo.errors import OutputError

if TYPE_CHECKING:
    from .zoo.evaluation.evaluation import Evaluation

ROWS = 50
"""Lines of images that are shown; the CSV has all."""
RATIOS = {"AP": "ap", "precision": "precision", "recall": "recall", "F1": "f1", "PQ": "pq"}
"""Heads of columns, and the figures of a threshold under them."""


def evaluate(
    predictions: list[str], truths: list[str], table: Path | None, how: dict[str, Any], *, as_json: bool
) -> None:
    """`voidzoo evaluate`. table: the CSV; how: as `api.evaluate` takes it."""
    if table is not None and table.suffix.lower() != ".csv":
        raise OutputError(f"{table}: the table is a CSV.", mend=f"--csv {table.with_suffix('.csv')}")
    found = api.evaluate(predictions, truths, **how)
    if table is not None:
        table.parent.mkdir(parents=True, exist_ok=True)
        found.write_csv(table)
    if as_json:
        say(json.dumps(found.to_json()))
        return
    say(evaluation_text(found))
    for note in found.notes:
        warn(f"note     {note}")
    if table is not None:
        say(f"table    {table}")
    if how.get("picture"):
        say(f"picture  {how['picture']}")


def evaluation_text(found: Evaluation) -> str:
    """The figures for people: a line an image, the mean and the pooled ones, and those of each threshold."""
    guess = f" ({found.guess}; or --kind)" if found.guess else ""
    lines = [f"kind     {found.kind}{guess}"]
    ious = [name.removeprefix("tp_") for name in found.pooled if name.startswith("tp_")]
    columns = _of_labels(ious[0]) if ious else _of_intensities(found)
    lines += _table(["image", *columns], [*_rows(found, columns), *_ends(found, columns)])
    if len(ious) > 1:
        lines += ["", *_by_threshold(found, ious)]
    if partly := {n: c for n, c in found.counted.items() if c < len(found.rows) and n in columns.values()}:
        said = ", ".join(f"{_head(columns, n)} over {c}" for n, c in partly.items())
        means = f"; means are over the other images: {said} of {len(found.rows)}" if len(found.rows) > 1 else ""
        lines.append(f"- is 0/0, no figure{means}")
    return "\n".join(lines)


def _of_labels(iou: str) -> dict[str, str]:
    """Head -> figure."""
    at = {"TP": "tp", "FP": "fp", "FN": "fn", **RATIOS}
    objects = {"truth": "truth_objects", "found": "predicted_objects"}
    return {**objects, **{head: f"{name}_{iou}" for head, name in at.items()}, "SEG": "seg"}


def _of_intensities(found: Evaluation) -> dict[str, str]:
    heads = {"PSNR (dB)": "psnr", "SSIM": "ssim", "PSNR affine": "psnr_affine", "SSIM affine": "ssim_affine"}
    return {h: n for h, n in {**heads, "range": "range"}.items() if n in found.pooled}


def _head(columns: Mapping[str, str], name: str) -> str:
    return next(h for h, n in columns.items() if n == name)


def _rows(found: Evaluation, columns: Mapping[str, str]) -> list[list[str]]:
    rows = [[" ".join(filter(None, (r.image, r.part))), *_cells(r.figures, columns)] for r in found.rows[:ROWS]]
    if len(found.rows) > ROWS:
        rows.append([f"... {len(found.rows) - ROWS:,} more (--csv FILE has all)", *[""] * len(columns)])
    return rows


def _ends(found: Evaluation, columns: Mapping[str, str]) -> list[list[str]]:
    if len(found.rows) == 1:
        return []
    what = "counts" if found.kind == "labels" else "errors"
    mean = [
        "" if n not in found.mean else cell
        for n, cell in zip(columns.values(), _cells(found.mean, columns), strict=True)
    ]
    return [
        [f"mean of {len(found.rows)} images", *mean],
        [f"all as one ({what} added)", *_cells(found.pooled, columns)],
    ]


def _by_threshold(found: Evaluation, ious: Sequence[str]) -> list[str]:
    """AP and its like over the thresholds; of several images both ways of putting them together."""
    ways = [("", found.pooled)] if len(found.rows) == 1 else [(", mean", found.mean), (", as one", found.pooled)]
    rows = [
        [f"{h}{way}", *(_cell(figures[f"{n}_{iou}"]) for iou in ious)]
        for h, n in RATIOS.items()
        for way, figures in ways
    ]
    over = [f"AP over all{way}: {_cell(figures['ap_mean'])}" for way, figures in ways]
    return [*_table(["IoU above", *ious], rows), "   ".join(over)]


def _cells(figures: Mapping[str, float], columns: Mapping[str, str]) -> list[str]:
    return [_cell(figures.get(n, math.nan), exact=n == "range") for n in columns.values()]


def _cell(value: float, *, exact: bool = False) -> str:
    if math.isnan(value):
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if exact else f"{value:.2f}" if value >= 10 else f"{value:.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side: the first to the left, numbers to the right."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in (head, *rows)
    ]
