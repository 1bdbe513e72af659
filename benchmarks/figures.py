"""What the rows tell, by group: the numbers that the goals of the project are about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Cases = list[dict[str, Any]]
Figures = dict[str, Any]
LEAN = "voidzoo-lean"


def figures_of(group: str, cases: Cases) -> Figures:
    """The figures of a row; those whose runs failed are left out."""
    return {name: value for name, value in KINDS[group](cases).items() if value is not None}


def _of(case: dict[str, Any], key: str, contender: str = "voidzoo") -> Any:
    return case["contenders"].get(contender, {}).get(key)


def _ratio(above: float | None, below: float | None, digits: int = 3) -> float | None:
    return round(above / below, digits) if above and below else None


def efficiency(cases: Cases) -> Figures:
    """The share of the floor, what the halo's arithmetic allows, and how much of that is reached."""
    case = cases[0]
    share = _of(case, "efficiency")
    return {
        "efficiency": share,
        "limit": case.get("limit"),
        "share_of_limit": _ratio(share, case.get("limit")),
        "error": (_of(case, "errors") or {}).get("all"),
        "peak_of_plan": _of(case, "peak_of_plan"),
        **peers(cases),
    }


def peers(cases: Cases) -> Figures:
    """How many times as long a peer takes, and how many times as much memory, by label and peer; and of the closest
    peers the same ratios to voidzoo with little memory.
    """
    found: Figures = {"efficiency": _of(cases[0], "efficiency")}
    for case in cases:
        behind = f" {case['label']}" if case["label"] else ""
        others = [name for name in case["contenders"] if not name.startswith("voidzoo")]
        for what, key in (("time", "seconds"), ("memory", "peak_mb")):
            for name in others:
                found[f"{what} of {name}{behind}"] = _ratio(_of(case, key, name), _of(case, key))
            by_lean = [_ratio(_of(case, key, name), _of(case, key, LEAN)) for name in others]
            found[f"{what} of the closest by {LEAN}{behind}"] = min((r for r in by_lean if r), default=None)
    return found


def growth_of_memory(cases: Cases) -> Figures:
    """Bytes of peak memory for each voxel of the image, fitted over the sizes, and the ratios of the peers."""
    found: Figures = {}
    for name in cases[0]["contenders"]:
        points = [(case["voxels"], peak * 1e6) for case in cases if (peak := _of(case, "peak_mb", name))]
        found[f"bytes_per_voxel of {name}"] = _slope(points, 3)
    return {**found, **peers(cases)}


def overhead(cases: Cases) -> Figures:
    """Mvox/s from file to file with a network that does nothing."""
    return {f"mvox_s of {name}": _of(cases[0], "mvox_s", name) for name in cases[0]["contenders"]}


def startup(cases: Cases) -> Figures:
    """Seconds from the command to what `--log` tells of."""
    names = ("planned_s", "first_tile_s", "first_block_s", "last_block_s", "seconds", "peak_mb")
    return {name: _of(cases[0], name) for name in names}


def bookkeeping(cases: Cases) -> Figures:
    """Milliseconds for each further block, or tile, of the same image."""
    key = "blocks" if len({_of(case, "blocks") for case in cases}) > 1 else "tiles"
    points = [(_of(case, key), _of(case, "seconds") * 1e3) for case in cases if _of(case, key) and _of(case, "seconds")]
    return {f"ms_per_{key[:-1]}": _slope(points, 4), f"most_{key}": max((n for n, _ in points), default=None)}


def growth(cases: Cases) -> Figures:
    """Largest peak by smallest, peak by plan, and the time of a voxel in the largest by that in the smallest image."""
    if any(_of(case, "seconds") is None for case in cases):
        return {}  # a size that failed would make the others look flat
    peaks = [_of(case, "peak_mb") for case in cases]
    plans = [ratio for case in cases if (ratio := _of(case, "peak_of_plan"))]
    first, last = cases[0], cases[-1]

    def each(case: dict[str, Any]) -> float | None:
        seconds = _of(case, "seconds")
        return seconds / case["voxels"] if seconds else None

    def blocks_only(case: dict[str, Any]) -> float | None:
        planned, seconds = _of(case, "planned_s"), _of(case, "last_block_s")
        return (seconds - planned) / case["voxels"] if planned is not None and seconds is not None else None

    return {
        "peak_mb": max(peaks),
        "peak_largest_by_smallest": _ratio(max(peaks), min(peaks)),
        "peak_of_plan": max(plans, default=None),
        "volume": round(last["voxels"] / first["voxels"], 1),
        "time_per_voxel_last_by_first": _ratio(each(last), each(first)),
        "same_without_startup": _ratio(blocks_only(last), blocks_only(first)),
    }


def workers(cases: Cases) -> Figures:
    """How many times as fast two processes are as one on one processor, and as threads."""
    threads, one, two = (_of(case, "seconds") for case in cases)
    return {"two_by_one": _ratio(one, two), "two_by_threads": _ratio(threads, two)}


def _slope(points: list[tuple[float, float]], digits: int) -> float | None:
    """The slope of the straight line through points (x, y)."""
    if len({x for x, _ in points}) < 2:
        return None
    x, y = np.array(points, float).T
    return round(float(np.polyfit(x, y, 1)[0]), digits)


KINDS: dict[str, Callable[[Cases], Figures]] = {
    "efficiency": efficiency, "tolerance": efficiency, "bf16": efficiency, "peers": peers, "memory": growth_of_memory,
    "overhead": overhead, "startup": startup, "bookkeeping": bookkeeping, "growth": growth, "workers": workers,
}  # fmt: skip
