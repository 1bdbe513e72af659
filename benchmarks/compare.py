"""Measures a row: all its cases, contenders and the floor in turn, round after round, so that ratios survive a noisy machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from statistics import median
from typing import Any

from contenders import OURS, Outcome, Unavailable, Workshop
from figures import figures_of
from images import Picture
from limit import limit
from machine import load, memory
from nets import facts_of
from rows import Case, Row

KEEP = 0.85
"""After the first round the floor goes on with arrangements that have at least this share of the best one's speed."""
FAR_BEHIND = 3.0
"""A peer that takes this many times as long as voidzoo in the first round is not run again: no noise is as large."""
Tell = Callable[[str], None]


class Series:
    """The runs of one contender on one case."""

    def __init__(self, case: Case, contender: str) -> None:
        self.case, self.contender = case, contender
        self.outcomes: list[Outcome] = []
        self.failure = ""

    def add(self, shop: Workshop) -> None:
        """One more run; the first one is compared with the network's own result. After a failure nothing is tried again."""
        if self.failure:
            return
        try:
            self.outcomes.append(shop.run(self.case, self.contender, check=self.case.check and not self.outcomes))
        except Unavailable as error:
            self.failure = f"not available: {error}"
        except RuntimeError as error:
            self.failure = f"failed: {error}"

    def result(self, floors: list[float]) -> dict[str, Any]:
        """Medians, and every run. floors: seconds of the floor in the same rounds; empty without one."""
        if not self.outcomes:
            return {"failure": self.failure}
        seconds = [o.measured.seconds for o in self.outcomes]
        found: dict[str, Any] = {
            "seconds": round(median(seconds), 3),
            "mvox_s": round(self.case.picture.voxels / median(seconds) / 1e6, 4),
            "cpu_seconds": round(median(o.measured.cpu for o in self.outcomes), 2),
            "peak_mb": round(max(o.measured.peak for o in self.outcomes) / 1e6, 1),
            "tree_mb": round(max(o.measured.tree for o in self.outcomes) / 1e6, 1),
            **self.outcomes[-1].facts,
            "runs": [round(s, 3) for s in seconds],
        }
        for key in [k for k in found if k.endswith("_s") and k != "mvox_s"]:
            found[key] = round(median(o.facts[key] for o in self.outcomes if key in o.facts), 3)
        plans = [o.measured.peak / 1e6 / o.facts["planned_mb"] for o in self.outcomes if o.facts.get("planned_mb")]
        if plans:
            found["peak_of_plan"] = round(max(plans), 3)
        if self.outcomes[0].errors:
            found["errors"] = self.outcomes[0].errors
        if floors:
            shares = [f / s for f, s in zip(floors, seconds, strict=False)]
            found["efficiency"] = round(median(shares), 4)
            found["efficiency_range"] = [round(min(shares), 4), round(max(shares), 4)]
        if self.failure:
            found["failure"] = self.failure
        return found


class Floor:
    """The floor of one case: every round all arrangements that may still turn out the fastest."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rounds: list[dict[str, float]] = []

    def add(self, shop: Workshop) -> None:
        """One more round."""
        only: list[str] = []
        if self.rounds:
            best = max(self.rounds[0].values())
            only = [name for name, rate in self.rounds[0].items() if rate >= KEEP * best]
        self.rounds.append(shop.floor(self.case, only))

    @property
    def best(self) -> str:
        """The arrangement with the highest median of those that were in all rounds."""
        return max(self.rounds[-1], key=lambda name: median(r[name] for r in self.rounds))

    def seconds(self) -> list[float]:
        """What the best one would take for the whole image, by round."""
        return [self.case.picture.voxels / 1e6 / r[self.best] for r in self.rounds]

    def result(self) -> dict[str, Any]:
        """What the floor was, and what else was tried."""
        rates = {name: [r[name] for r in self.rounds if name in r] for name in self.rounds[0]}
        return {
            "best": self.best,
            "mvox_s": round(median(rates[self.best]), 4),
            "seconds": round(median(self.seconds()), 3),
            "runs": [round(s, 3) for s in self.seconds()],
            "tried": {name: round(median(values), 4) for name, values in rates.items()},
        }


def measure(row: Row, shop: Workshop, repeats: int, tell: Tell) -> dict[str, Any]:
    """Measure a row -> all that was found, for the report; `failure` where it could not even be begun."""
    found: dict[str, Any] = {
        "row": row.name,
        "group": row.group,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if row.needs and not shop.supports(row.needs):
        return {**found, "failure": f"not available: this voidzoo or this machine has no {row.needs}"}
    found["load_before"] = load()
    try:
        return {**found, **_rounds(row, shop, repeats, tell)}
    except RuntimeError as error:
        return {**found, "failure": f"failed: {error}"}


def _rounds(row: Row, shop: Workshop, repeats: int, tell: Tell) -> dict[str, Any]:
    """Prepare, then round after round. Raises RuntimeError when a package or the floor cannot be made."""
    series = [[Series(case, contender) for contender in case.contenders] for case in row.cases]
    floors = [Floor(case) if case.floor else None for case in row.cases]
    for case in row.cases:
        _prepare(case, shop)
    for k in range(repeats):
        for case, floor, several in zip(row.cases, floors, series, strict=True):
            if floor is not None:
                floor.add(shop)
            for i in range(len(several)):
                one = several[(i + k) % len(several)]  # nobody is always the one after the floor
                if _far_behind(one, several):
                    continue
                one.add(shop)
                tell(f"  {row.name} {case.label} round {k + 1}/{repeats} {one.contender}: {_in_short(one)}")
    cases = [_case_result(*each, shop) for each in zip(row.cases, floors, series, strict=True)]
    return {"repeats": repeats, "cases": cases, "figures": figures_of(row.group, cases)}


def _prepare(case: Case, shop: Workshop) -> None:
    """All that must be there before the clock runs; every contender once on something small, for its compiled bytecode."""
    shop.package(case.net)
    shop.image(case.picture)
    case.picture.read_once(shop.cache / "images")
    if shop.toy:
        return
    small = Picture("blobs", (64, 64, 64)) if case.picture.kind == "blobs" else Picture("nuclei", (1, 256, 256))
    for contender in case.contenders:
        Series(replace(case, picture=small, options=(), stop_after=0, check=False), contender).add(shop)


def _far_behind(series: Series, several: list[Series]) -> bool:
    ours = next((one.outcomes[0] for one in several if one.contender == "voidzoo" and one.outcomes), None)
    if ours is None or not series.outcomes or series.contender in OURS:
        return False
    return series.outcomes[0].measured.seconds > FAR_BEHIND * ours.measured.seconds


def _in_short(series: Series) -> str:
    if series.failure:
        return series.failure
    last = series.outcomes[-1].measured
    return f"{last.seconds:.2f} s, {last.peak / 1e6:.0f} MB"


def _case_result(case: Case, floor: Floor | None, several: list[Series], shop: Workshop) -> dict[str, Any]:
    seconds = floor.seconds() if floor else []
    found: dict[str, Any] = {
        "label": case.label, "net": case.net, "image": case.picture.name, "voxels": case.picture.voxels,
        "options": list(case.options), "contenders": {one.contender: one.result(seconds) for one in several},
    }  # fmt: skip
    if floor:
        found["floor"] = floor.result()
        found["limit"] = round(limit_of(case, shop, found["contenders"].get("voidzoo", {})), 4)
    return found


def limit_of(case: Case, shop: Workshop, voidzoo: dict[str, Any]) -> float:
    """The share of the floor that the halo leaves with the best tiling in the memory that was given.

    The halo is the package's, or with a tolerance the one that voidzoo found.
    """
    facts = facts_of(shop.package(case.net))
    rules = {a: dict(rule) for a, rule in facts["rules"].items()}
    if "--tolerance" in case.options:
        for a, halo in voidzoo.get("halo", {}).items():
            rules[a]["halo"] = min(rules[a]["halo"], int(halo))
    sizes = dict(zip("zyx", case.picture.shape, strict=True))
    return limit(sizes, rules, memory_of(case.options), facts["working_bytes"])


def memory_of(options: tuple[str, ...]) -> float:
    """Bytes of `--memory`, or what voidzoo takes without it: a quarter of what is there, at most 4 GiB."""
    if "--memory" in options:
        return float(options[options.index("--memory") + 1].removesuffix("GB")) * 1e9
    return min((memory() or 16 * 2**30) / 4, 4 * 2**30)
