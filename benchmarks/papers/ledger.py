"""Trainings that take hours: each is written down when it is done, and the same command continues."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import machine, versions
from training import now


class Ledger:
    """The runs of a report. keys: what tells one run from another but its seed; facts: what they all share."""

    def __init__(self, path: Path | None, keys: Sequence[str], figures: Sequence[str], facts: dict[str, Any]) -> None:
        """Go on with a report of the same facts. Raises SystemExit for one of others. figures: what rows average."""
        self.path, self.keys, self.figures, self.facts = path, tuple(keys), tuple(figures), facts
        self.runs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            old = json.loads(path.read_text())
            other = {k: old.get(k) for k in facts if old.get(k) != facts[k]}
            if other:
                raise SystemExit(f"{path} was made with {other}, not {facts}: choose another file")
            self.runs = old["runs"]

    def once(self, run: Callable[[], dict[str, Any]], **key: Any) -> None:
        """Make this run and write it down, unless it is there."""
        if any(all(r[k] == v for k, v in key.items()) for r in self.runs):
            return
        self.runs.append({**key, **run(), "date": now(), "vectors": machine()["vectors"]})
        print(self.runs[-1], flush=True)
        if self.path is not None:
            report = {
                **self.facts, "rows": list(self.rows()), "runs": self.runs, "machine": machine(),
                "versions": versions(), "date": now(),
            }  # fmt: skip
            self.path.parent.mkdir(parents=True, exist_ok=True)
            beside = self.path.with_suffix(".part")
            beside.write_text(json.dumps(report, indent=1) + "\n")
            beside.replace(self.path)

    def rows(self) -> Iterator[dict[str, Any]]:
        """For each key the mean of each figure over the seeds, and of the first one its spread (standard deviation)."""
        for key in dict.fromkeys(tuple(r[k] for k in self.keys) for r in self.runs):
            runs = [r for r in self.runs if tuple(r[k] for k in self.keys) == key]
            known = [f for f in self.figures if f in runs[0]]
            row = {**dict(zip(self.keys, key, strict=True)), "seeds": len(runs)}
            row |= {f: round(statistics.mean(r[f] for r in runs), 3) for f in known}
            if len(runs) > 1:
                row[f"{known[0]}_sd"] = round(statistics.stdev(r[known[0]] for r in runs), 3)
            yield row
