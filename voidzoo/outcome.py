"""What a prediction's report says of it: plan against outcome, and whether the borders of blocks and tiles show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .infer.grid import Axis, blocks
from .infer.report import duration, size_text
from .zoo.html import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .zoo.package import Package


@dataclass(frozen=True)
class Seams:
    """Mean absolute difference (grey values) of neighbouring pixels across borders, and everywhere else.

    block_pairs, tile_pairs: how many pairs of pixels lie across borders; a block's border is no tile's.
    """

    block: float
    tile: float
    elsewhere: float
    block_pairs: int
    tile_pairs: int

    def to_json(self) -> dict[str, float | int | None]:
        """For records; None where there is no border of a kind."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Seams:
        """The opposite of `to_json`."""
        values: dict[str, Any] = {k: float("nan") if v is None else v for k, v in found.items()}
        return cls(**values)


def plan_and_outcome(plan: Mapping[str, Any], happened: Mapping[str, Any]) -> str:
    """What was planned and what happened, side by side.

    plan: as `Plan.to_json`. happened: seconds (s), peak_memory and disk (bytes), blocks, clipped, mapped.
    """

    def sizes(key: str) -> str:
        return " x ".join(str(n) for n in plan[key].values()) + f" ({', '.join(plan[key])})"

    memory = plan["memory"]
    used = int(happened["peak_memory"])
    peak = f"{size_text(used)} at the peak, {used / memory['total']:.0%} of the plan"
    rows = [
        ("memory", f"{size_text(memory['total'])} (process {size_text(memory['process'])}, network "
         f"{size_text(memory['network'])}, blocks {size_text(memory['blocks'])})",
         peak if used else "unknown on this system"),
        ("time", f"{duration(plan['seconds'])} for the network",
         f"{duration(happened['seconds'])} with reading, writing and the pyramid"),
        ("disk", f"up to {size_text(plan['disk'])} before compression", size_text(happened["disk"])),
        ("blocks", f"{plan['blocks']:,} of {sizes('block')}", f"{happened['blocks']:,} written"),
        ("tiles", f"{plan['tiles']:,} of at most {sizes('tile')}, halo {sizes('halo')}",
         f"the network ran on {plan['overhead']:.2f} x the pixels of the result"),
        ("clipped", f"to the range of {plan['dtype']}", f"{happened['clipped']:,} values"),
        ("NaN, infinite", "read as 0 only if allowed", f"{happened['mapped']:,} values"),
    ]  # fmt: skip
    return table(("", "planned", "happened"), rows)


def borders(
    package: Package, shape: Mapping[str, int], block: Mapping[str, int], tile: Mapping[str, int]
) -> dict[str, tuple[list[int], list[int]]]:
    """Where blocks, and tiles inside of blocks, meet along each axis of the model: the first pixel behind a border."""
    found = {}
    for a, rule in package.rules.items():
        axis = Axis(shape[a], rule.step, rule.minimum, rule.halo)
        spans = blocks(axis.size, block[a])
        tiles = [t.keep.start for span in spans for t in axis.tiles(span, tile[a])[1:]]
        found[a] = ([span.start for span in spans[1:]], tiles)
    return found


def seams(plane: NDArray[Any], at: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Seams:
    """How much neighbouring pixels of a plane (y, x) differ across borders and elsewhere; `at`: one entry an axis.

    A border that shows makes the first figures larger than the last one.
    """
    across: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for axis, (of_blocks, of_tiles) in enumerate(at):
        steps = np.abs(np.diff(plane.astype(np.float64), axis=axis)).swapaxes(0, axis)
        kind = np.full(len(steps), 2)
        kind[[i - 1 for i in of_tiles]] = 1
        kind[[i - 1 for i in of_blocks]] = 0
        for k in range(3):
            across[k].append(steps[kind == k].reshape(-1))
    found = [np.concatenate(part) for part in across]
    block, tile, elsewhere = (float(v.mean()) if v.size else float("nan") for v in found)
    return Seams(block, tile, elsewhere, found[0].size, found[1].size)


def seam_table(rows: Mapping[str, Seams]) -> str:
    """Seams of one or several images, each a row of grey values."""
    head = ("mean |difference| of neighbouring pixels", "across block borders", "across tile borders", "elsewhere")
    return table(head, [(name, *(_grey(v) for v in (s.block, s.tile, s.elsewhere))) for name, s in rows.items()])


def _grey(value: float) -> str:
    return "no such border" if np.isnan(value) else f"{value:.3f} grey values"
