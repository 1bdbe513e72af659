"""What a network's description has to say and its file does not: legal sizes by trial, halos from the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from math import lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.grid import round_up
from ..infer.networks.onnx_network import first_line
from ..infer.sight.halo import HaloCheck, check_halos
from ..infer.sight.receptive import receptive_field
from ..zoo.errors import PackageError, SizeError
from ..zoo.package import AxisRule
from .along import Along, rule_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]

FIRST: Mapping[str, Sequence[int]] = {"t": (16, 8, 5, 1), "z": (32, 16, 8, 1), "yx": (64, 128, 96, 256, 100)}
"""Sizes that are tried until the network runs, then every plane side of SCAN."""
SCAN = range(33, 161)
DOUBLINGS = 6
"""A step is looked for among the graph's own and its multiples by 2, 4, ... 32."""
FLAT = {"z": 8, "t": 4}
"""Halos along short axes of a network that sees everything."""


@dataclass(frozen=True)
class Measured:
    """along: each axis by letter. exact: whether tiles with these halos give the whole image's result; else why not.

    one: whether it takes one item at a time and no more.
    """

    along: dict[str, Along]
    exact: bool
    why: tuple[str, ...]
    one: bool

    @property
    def rules(self) -> dict[str, AxisRule]:
        """The legal sizes and halos, by letter."""
        return {a: one.rule for a, one in self.along.items()}


@dataclass(frozen=True)
class Said:
    """What is already known of an axis; None is to be measured. fixed: the one size that it has.

    most: a size that is to stay legal. declared: the halo that a description has, 0 for none.
    """

    minimum: int | None = None
    step: int | None = None
    halo: int | None = None
    fixed: int | None = None
    most: int | None = None
    declared: int = 0
    um: float | None = None
    unit: str = "micrometer"


def runner(onnx: bytes) -> Runner:
    """A plain onnxruntime session on the CPU: float32 (b, c, *space) -> the same, whatever dtypes the graph has.

    Raises PackageError for a graph that it does not load or that reads no numbers; a run raises what onnxruntime does.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, without a common base
        raise PackageError("onnxruntime cannot load the network.", where=first_line(error)) from error
    given = session.get_inputs()[0]
    kind = given.type.removeprefix("tensor(").removesuffix(")")
    try:
        dtype = np.dtype({"float": "float32", "double": "float64"}.get(kind, kind))
    except TypeError:
        raise PackageError(f"the network reads {kind}, which no image holds.") from None
    return lambda x: np.asarray(session.run(None, {given.name: x.astype(dtype, copy=False)})[0], np.float32)


def first_size(run: Runner, channels: int, space: str, said: Mapping[str, Said]) -> dict[str, int]:
    """A size at which a network runs, a few grid steps long. Raises SizeError, with what the network said, for none."""
    told = ""
    for size in _first_sizes(space, said):
        try:
            run(_noise([1, channels, *size.values()]))
        except Exception as error:  # whatever the runtime or the network raises
            told = told or first_line(error)
        else:
            return size
    mend = "--axes with the letters of the network's axes in its order; --min and --step with a size that it takes"
    raise SizeError("the network runs at none of the sizes that were tried.", where=told, mend=mend)


def _first_sizes(space: str, said: Mapping[str, Said]) -> Iterator[dict[str, int]]:
    """Sizes to try, equal in y and x; where sizes are known, those alone."""
    known = {a: _known(said[a]) for a in space if a in said and _known(said[a])}
    flat = [a for a in "tz" if a in space and a not in known]
    for side in (*FIRST["yx"], *SCAN) if set("yx") - set(known) else (0,):
        for sizes in product(*(FIRST[a] if side in FIRST["yx"] else FIRST[a][:1] for a in flat)):
            tried = dict.fromkeys("yx", side) | dict(zip(flat, sizes, strict=True)) | known
            yield {a: tried[a] for a in space}


def _known(said: Said) -> int:
    if said.fixed or said.minimum is None:
        return said.fixed or 0
    step = said.step or 1
    return said.minimum + round_up(max(0, 48 - said.minimum), step)


def measured(onnx: bytes, channels: int, space: str, said: Mapping[str, Said]) -> Measured:
    """Legal sizes, halo and scale of each axis of a graph that takes and returns (b, c, *space).

    Sizes are legal where it runs and returns what the size lets expect, at min + n * step; the step is a multiple of
    the graph's own grid. Raises SizeError where what was said does not work.
    """
    run = runner(onnx)
    first = first_size(run, channels, space, said)
    trial = _Trial(run, channels, first)
    (field,) = receptive_field(onnx, {"input": (1, channels, *first.values())}).values()
    reaches = {a: field["input"][2 + i] for i, a in enumerate(space)}
    found, why = {}, []
    for a in space:
        known, reach = said.get(a, Said()), reaches[a]
        step = 1 if known.fixed else trial.step(a, known.step, reach.grid if reach else 1)
        ratio, offset = trial.scale(a, 0 if known.fixed else step)
        lead = int(Fraction(-offset, 2) / ratio)
        seen = check_halos({a: known.declared}, {a: reach}, {a: reach.grid if reach else 1})[a]
        halo = known.halo if known.halo is not None else _halo(a, seen, lead)
        if seen.reach is None:
            why.append(f"along {a} " + (f"{reach.why} sees everything" if reach else "pixels are mixed like channels"))
        rule = _fixed(known.fixed, halo) if known.fixed else trial.rule(a, known, step, halo)
        found[a] = Along(rule, ratio, offset, known.um, known.unit)
    return Measured(found, not why, tuple(why), one=not trial.runs({}, batch=2))


def _halo(letter: str, seen: HaloCheck, lead: int) -> int:
    """What a cut spoils beside the lead; of a network that sees everything no more than a short axis can spare."""
    most = FLAT.get(letter, seen.used) if seen.reach is None and not seen.package else seen.used
    return max(0, min(seen.used, most) - lead)


def _fixed(size: int, halo: int) -> AxisRule:
    return AxisRule(size, 1, min(halo, max(0, (size - 1) // 2)), fixed=True)


class _Trial:
    """Runs of a network at sizes that differ from the first along one axis."""

    def __init__(self, run: Runner, channels: int, first: dict[str, int]) -> None:
        self.run, self.channels, self.first, self.letters = run, channels, first, list(first)
        self.base = self.output(first)
        self.scales: dict[str, tuple[Fraction, int]] = {}

    def output(self, size: Mapping[str, int], batch: int = 1) -> tuple[int, ...] | None:
        """The shape (b, c, *space) of what comes out, None where it does not run."""
        try:
            return self.run(_noise([batch, self.channels, *size.values()])).shape
        except Exception:  # whatever the runtime raises: not a legal size
            return None

    def runs(self, change: Mapping[str, int], batch: int = 1) -> bool:
        found = self.output({**self.first, **change}, batch)
        return found is not None and self.base is not None and found[0] == batch and found[1] == self.base[1]

    def step(self, letter: str, given: int | None, grid: int) -> int:
        """The smallest multiple of the grid (and of what was given) in which sizes may grow."""
        at = self.letters.index(letter)
        for k in range(1 if given else DOUBLINGS):
            step = lcm(given or 1, grid) << k
            sizes = [self.first[letter] + n * step for n in (1, 2, 5)]
            shapes = [self.output({**self.first, letter: n}) for n in sizes]
            if any(s is None for s in shapes):
                continue
            lengths = [s[2 + at] for s in (self.base, *shapes) if s is not None]
            growth = [b - a for a, b in pairwise(lengths)]
            if growth[0] > 0 and growth == [growth[0], growth[0], 3 * growth[0]]:
                self.scales[letter] = self._law(Fraction(growth[0], step), self.first[letter], lengths[0])
                return step
        tried = given or f"{grid} times 1, 2, 4, ... {2 ** (DOUBLINGS - 1)}"
        raise SizeError(
            f"along {letter} the network does not run at {self.first[letter]} + n * step, with a step of {tried}.",
            mend="--min and --step with sizes that it takes",
        )

    def _law(self, ratio: Fraction, size: int, length: int) -> tuple[Fraction, int]:
        return ratio, int(length - size * ratio)

    def scale(self, letter: str, step: int) -> tuple[Fraction, int]:
        """(ratio, offset): how many pixels come out."""
        if step:
            return self.scales[letter]
        size, length = self.first[letter], (self.base or ())[2 + self.letters.index(letter)]
        ratio = Fraction(length, size)
        return (ratio, 0) if 1 in (ratio.numerator, ratio.denominator) else (Fraction(1), length - size)

    def rule(self, letter: str, said: Said, step: int, halo: int) -> AxisRule:
        """The smallest size that may be declared: above two halos, on the step, and one at which it runs."""
        phase = (self.first[letter] if said.minimum is None else said.minimum) % step
        if said.step is not None and said.minimum is not None:
            least = max(said.minimum, 2 * halo + 1)
        else:
            usual = rule_of(halo, step).minimum
            least = max(said.minimum or 1, 2 * halo + 1, min(usual, said.most or usual))
        least = phase + round_up(max(0, least - phase), step)
        for minimum in range(least, least + 5 * step, step):
            if self.runs({letter: minimum}) and self.runs({letter: minimum + step}):
                return AxisRule(minimum, step, halo)
        raise SizeError(f"along {letter} the network does not run at {least} + n * {step}.", mend="--min and --step")


def legal_shape(rules: Mapping[str, AxisRule], steps: int = 0) -> list[int]:
    """The legal size that is `steps` steps above the smallest, by axis."""
    return [r.minimum + (0 if r.fixed else steps * r.step) for r in rules.values()]


def fitting_size(rules: Mapping[str, AxisRule], room: Mapping[str, int]) -> dict[str, int]:
    """The largest legal size that fits, by letter; the smallest where none does."""
    return {
        a: r.minimum if r.fixed else r.minimum + max(0, room[a] - r.minimum) // r.step * r.step
        for a, r in rules.items()
    }  # fmt: skip


def _noise(shape: Sequence[int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).gamma(2.0, 100.0, tuple(shape)).astype(np.float32)


def facts(found: Measured) -> dict[str, Any]:
    """What was measured, for records: JSON-able."""
    return {
        a: {"min": r.minimum, "step": r.step, "halo": r.halo, "fixed": r.fixed} for a, r in found.rules.items()
    }  # fmt: skip
