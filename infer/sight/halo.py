"""The halo that a tile needs: known from the graph, or measured on the image for a tolerance.

Halos are in pixels of what the network reads, along the letters of its spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..grid import round_up
from .receptive import Reach

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

UNKNOWN_HALO = 32
"""Pixels for a network that sees everything and whose package says nothing: as much as most packages declare."""


@dataclass(frozen=True)
class HaloCheck:
    """What was decided about one axis.

    package: the halo that the package declares, 0 if none. reach: what the network needs, on its grid; None if it sees
    everything. used: the halo of the tiles. note: what there is to say; warn: whether it concerns the user.
    """

    letter: str
    package: int
    reach: int | None
    used: int
    note: str | None = None
    warn: bool = False

    @property
    def exact(self) -> bool:
        """Whether tiles with this halo give the result of the whole image."""
        return self.reach is not None and self.used >= self.reach


def check_halos(
    package: Mapping[str, int],
    reaches: Mapping[str, Reach | None],
    steps: Mapping[str, int],
    errors: HaloErrors | None = None,
) -> dict[str, HaloCheck]:
    """Compare the halos that a package declares with what its network sees. -> a decision for each letter.

    package: declared halos, 0 for none. reaches: of all outputs together (`receptive.widest`); None where the network
    mixes the axis. steps: multiples that halos are rounded up to. errors: measured, to say what a halo that is too
    small would do.
    """
    return {a: _check(a, package[a], reaches[a], steps.get(a, 1), errors) for a in package}


def _check(letter: str, declared: int, reach: Reach | None, step: int, errors: HaloErrors | None) -> HaloCheck:
    if reach is None or not reach.bounded:
        return _unbounded(letter, declared, reach, step)
    step = lcm(step, reach.grid)
    needed = round_up(reach.aligned, step)
    rounded = round_up(declared, step)
    if rounded == needed:
        return HaloCheck(letter, declared, needed, needed)
    if declared == 0:
        note = f"the package declares no halo along {letter}: {needed} is used, what the network sees"
        return HaloCheck(letter, declared, needed, needed, note)
    if rounded > needed:
        note = f"the package's halo along {letter} is {declared}; the network sees {needed}, which is used"
        return HaloCheck(letter, declared, needed, needed, note)
    note = (
        f"the package's halo along {letter} ({declared}) is smaller than what the network sees ({needed}): "
        f"{needed} is used"
    )
    if errors is not None and letter in errors.letters:
        error = errors.at({letter: rounded})
        note += f"; with {declared} tiles would differ by {error:.2g} of the output's std (measured)"
    return HaloCheck(letter, declared, needed, needed, note, warn=True)


def _unbounded(letter: str, declared: int, reach: Reach | None, step: int) -> HaloCheck:
    step = lcm(step, reach.grid) if reach else step
    local = reach.aligned if reach else 0
    used = round_up(declared or max(local, UNKNOWN_HALO, 2 * step), step)
    why = f"{reach.why} sees all of it" if reach else "the network mixes it as it mixes channels"
    note = f"tiles along {letter} are not exact: {why}; halo {used} is used"
    return HaloCheck(letter, declared, None, used, note, warn=True)


@dataclass(frozen=True)
class HaloErrors:
    """What smaller halos would do, measured.

    letters: of the axes that were cut. full: the exact halo along each of them. table: float64, one axis a letter, of
    full + 1 entries: the largest deviation from the full-halo result of any pixel that lies at least that far from
    every cut, in units of the std of its output channel. regions: how many were run.
    """

    letters: tuple[str, ...]
    full: Mapping[str, int]
    table: NDArray[np.float64]
    regions: int

    def at(self, halos: Mapping[str, int]) -> float:
        """The error of tiles with these halos, cut along all axes; letters that are left out have the full halo."""
        return float(self.table[tuple(min(halos.get(a, self.full[a]), self.full[a]) for a in self.letters)])

    def along(self, letter: str) -> NDArray[np.float64]:
        """The error by halo along one axis, 0 to full, the others having the full halo."""
        return np.array([self.at({letter: h}) for h in range(self.full[letter] + 1)])


def measured_error(
    run: Run,
    regions: Sequence[NDArray[np.float32]],
    letters: Sequence[str],
    full: Mapping[str, int],
    settled: Callable[[HaloErrors], bool] | None = None,
) -> HaloErrors | None:
    """Run each region whole, and again without its rim of `full` pixels: what a cut spoils, by the distance from it.

    One pair of runs shows every halo at once, in the corners, too. run: float32 (1, c, [z], y, x) raw ->
    (1, c_out, [z], y, x). regions: what it reads, places of the image that lie on the network's grid. letters: of the
    spatial axes. full: the exact halo along each letter, a multiple of the grid; 0 for axes that are not to be cut.
    settled: asked after each region whether the others are of no use.
    None if nothing can be cut, or if the output has another size than the input.
    """
    shape = regions[0].shape[2:]
    cut = {a: full.get(a, 0) for a, n in zip(letters, shape, strict=True) if n > 2 * full.get(a, 0) > 0}
    if not cut:
        return None
    inner = (slice(None), slice(None), *(slice(cut[a], -cut[a]) if a in cut else slice(None) for a in letters))
    moments: Any = 0.0
    worst: Any = 0.0
    errors = None
    for count, region in enumerate(regions, start=1):
        whole, part = run(region), run(np.ascontiguousarray(region[inner]))
        if whole.shape[2:] != region.shape[2:]:
            return None
        reference = whole[inner][0].astype(np.float64)  # (c, [z], y, x)
        flat = reference.reshape(len(reference), -1)
        moments = moments + np.stack([np.ones(len(flat)), flat.mean(axis=1), (flat**2).mean(axis=1)])
        deviation = np.abs(part[0] - reference)
        for axis, a in enumerate(letters, start=1):
            deviation = _by_distance(deviation, axis, cut[a]) if a in cut else deviation.max(axis=axis, keepdims=True)
        worst = np.maximum(worst, deviation)
        errors = HaloErrors(tuple(cut), cut, _relative(worst, moments, [a in cut for a in letters]), count)
        if settled is not None and settled(errors):
            break
    return errors


def _relative(worst: NDArray[np.float64], moments: NDArray[np.float64], kept: Sequence[bool]) -> NDArray[np.float64]:
    """The largest of deviations (c, [z], y, x) relative to the std of each channel, along the axes that are kept."""
    count, mean, square = moments
    std = np.sqrt(np.maximum(square / count - (mean / count) ** 2, 0))
    std = np.where(std > 0, std, std.max() or 1.0)  # a constant channel is measured by the others
    table = (worst / std.reshape(-1, *[1] * len(kept))).max(axis=0)
    return table.reshape([n for n, keep in zip(table.shape, kept, strict=True) if keep])


def _by_distance(values: NDArray[np.float64], axis: int, full: int) -> NDArray[np.float64]:
    """Positions along an axis that is cut at both ends -> 0..full: the largest value at that distance and beyond."""
    n = values.shape[axis]
    values = np.moveaxis(np.maximum(values, np.flip(values, axis)), axis, 0)[: (n + 1) // 2]
    values = np.maximum.accumulate(values[::-1])[::-1]
    beyond = np.repeat(values[-1:], max(0, full + 1 - len(values)), axis=0)  # not measured: no better than the farthest
    return np.moveaxis(np.concatenate([values[: full + 1], beyond]), 0, axis)


@dataclass(frozen=True)
class HaloChoice:
    """Halos for a tolerance. error: what was measured for them, None if nothing was. full: the exact halos."""

    halos: dict[str, int]
    error: float | None
    full: dict[str, int]
    tolerance: float
    note: str

    @property
    def smaller(self) -> bool:
        """Whether anything is saved."""
        return self.halos != self.full


def smallest_halo(
    errors: HaloErrors | None,
    tolerance: float,
    full: Mapping[str, int],
    steps: Mapping[str, int],
    extent: Mapping[str, int] | None = None,
) -> HaloChoice:
    """The halos that cost least of those whose measured error is at most `tolerance`.

    full: the exact halos of all letters, which are taken where nothing was measured. steps: multiples to choose from.
    extent: what tiles keep along each axis, to weigh the axes against one another (256 if not given).
    """
    exact = dict(full)
    if errors is None:
        return HaloChoice(exact, None, exact, tolerance, "the exact halo is used: a smaller one could not be measured")
    size = {a: max(1, (extent or {}).get(a, 256)) for a in errors.letters}
    choices = [[*range(0, full[a], steps.get(a, 1)), full[a]] for a in errors.letters]

    def cost(halos: tuple[int, ...]) -> tuple[float, int]:
        return prod(1 + 2 * h / size[a] for h, a in zip(halos, errors.letters, strict=True)), max(halos)

    for halos in sorted(product(*choices), key=cost):
        named = dict(zip(errors.letters, halos, strict=True))
        if (error := errors.at(named)) <= tolerance and named != errors.full:
            chosen = exact | named
            words = ", ".join(f"{a} {chosen[a]}" for a in chosen)
            note = f"halo {words} for {', '.join(map(str, exact.values()))}: error {error:.2g} of the output's std"
            return HaloChoice(chosen, error, exact, tolerance, f"{note} on {errors.regions} regions")
    note = f"no smaller halo keeps the error at {tolerance:g}: the exact one is used"
    return HaloChoice(exact, errors.at({}), exact, tolerance, note)
