"""How the tensors of a package lie to each other: what runs as a tile, and where each output pixel belongs.

All sizes and positions of a plan are in pixels of the main input. Another tensor has `ratio` pixels for each of them
along an axis (2 for an output that is twice as fine, 1/2 for one that is half as fine).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, lcm
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import PackageError
from ..zoo.package import AxisRule, Package, SizeOf, Tensor, TensorAxis

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPACE = "tzyx"
"""The axes that a tile may extend over, in the order in which the engine holds them behind (n, c)."""


@dataclass(frozen=True)
class Port:
    """One tensor as the engine sees it.

    space: its letters of `tzyx`. ratio: its pixels per pixel of the main input. lead: pixels (of the main input) that
    the output lacks at either end. channels: how many. whole: an input that does not follow the main one (a vector, a
    small map): it is fed as it is to every run.
    """

    tensor: Tensor
    space: str
    ratio: Mapping[str, Fraction]
    lead: Mapping[str, int]
    channels: int
    whole: bool = False

    @property
    def id(self) -> str:
        """The tensor's name in the package."""
        return self.tensor.id

    def span(self, start: int, stop: int, letter: str) -> tuple[int, int]:
        """A span of the main input in this tensor's pixels; what lies half inside counts."""
        ratio = self.ratio.get(letter, Fraction(1))
        return int(start * ratio), ceil(stop * ratio)

    def declared(self, values: NDArray[Any]) -> NDArray[Any]:
        """(n, c, *space) -> the axes of the package, in its order. n must be 1 where it has no batch axis."""
        have = ["b", "c", *self.space]
        letters = [a.letter for a in self.tensor.axes]
        for letter in ("b", "c"):
            if letter not in letters:
                values = values.squeeze(have.index(letter))
                have.remove(letter)
        values = values.transpose([have.index(a) for a in letters if a in have])
        extra = [i for i, a in enumerate(letters) if a not in have]
        return np.expand_dims(values, tuple(extra)) if extra else values

    def canonical(self, values: NDArray[Any]) -> NDArray[Any]:
        """The axes of the package -> (n, c, *space). An index axis is laid into the channels."""
        letters = [a.letter for a in self.tensor.axes]
        for letter in ("c", "i", "b"):
            if letter not in letters:
                values = values[None]
                letters.insert(0, letter)
        values = values.transpose([letters.index(a) for a in ("b", "i", "c", *self.space)])
        return values.reshape(values.shape[0], -1, *values.shape[3:])


@dataclass(frozen=True)
class Geometry:
    """Inputs and outputs of a package, the main input first; rules: the legal sizes by letter, in `tzyx` order."""

    rules: Mapping[str, AxisRule]
    leads: Mapping[str, int]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @property
    def space(self) -> str:
        """The letters that the network reads at once."""
        return "".join(self.rules)

    def port(self, tensor: str) -> Port:
        """An input or output by its name in the package."""
        return next(p for p in (*self.inputs, *self.outputs) if p.id == tensor)

    def feed_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """(n, c, *space) of every input, given that of the main one."""
        found = []
        for port in self.inputs:
            if port.whole:
                sizes = [(axis.size or axis.minimum) if (axis := port.tensor.axis(a)) else 1 for a in port.space]
            else:
                sizes = [int(shape[2 + self.space.index(a)] * port.ratio.get(a, 1)) for a in port.space]
            found.append((shape[0], port.channels, *sizes))
        return found


def geometry(package: Package) -> Geometry:
    """Read the geometry of a package. Raises PackageError for one whose outputs cannot be laid side by side."""
    main = package.main
    space = package.axes
    inputs = [_input(package, main, t) for t in (main, *(t for t in package.inputs if t is not main))]
    outputs = [_output(package, main, t) for t in package.outputs]
    rules, leads = {}, {}
    for letter in space:
        rule = package.rules[letter]
        ratios = [p.ratio.get(letter, Fraction(1)) for p in (*inputs, *outputs) if not p.whole]
        step = lcm(rule.step, *(r.denominator for r in ratios))
        leads[letter] = max((p.lead.get(letter, 0) for p in outputs), default=0)
        rules[letter] = AxisRule(rule.minimum, step, rule.halo, rule.fixed)
    return Geometry(rules, leads, tuple(inputs), tuple(outputs))


def _space(tensor: Tensor) -> str:
    return "".join(a for a in SPACE if tensor.axis(a) is not None)


def _channels(tensor: Tensor) -> int:
    count = 1
    for letter in ("c", "i"):
        axis = tensor.axis(letter)
        count *= 1 if axis is None else (axis.size or len(axis.names) or 1)
    return count


def _input(package: Package, main: Tensor, tensor: Tensor) -> Port:
    space = _space(tensor)
    if tensor is main:
        return Port(tensor, space, {}, {}, _channels(tensor))
    follows = [a for a in space if _reference(tensor.axis(a)) is not None]
    same = all(_same_rule(tensor.axis(a), main.axis(a)) for a in space) and space == package.axes
    if not follows and not same:
        return Port(tensor, space, {}, {}, _channels(tensor), whole=True)
    ratio = {a: _ratio(main, tensor, a) for a in space}
    for a in space:
        reference = _reference(tensor.axis(a))
        if reference is not None and reference.offset:
            raise PackageError(
                f"{package.path}: input {tensor.id} is {reference.offset} pixels longer than {reference.tensor} along "
                f"{a}; inputs that lie pixel over pixel can be run."
            )
    return Port(tensor, space, ratio, {}, _channels(tensor))


def _same_rule(one: TensorAxis | None, other: TensorAxis | None) -> bool:
    """Two axes without a word about each other, which take the same sizes: both are the image's."""
    if one is None or other is None:
        return False
    return (one.size, one.minimum, one.step, one.scale) == (other.size, other.minimum, other.step, other.scale)


def _output(package: Package, main: Tensor, tensor: Tensor) -> Port:
    space = _space(tensor)
    loose = [a.id for a in tensor.axes if a.data_dependent]
    missing = [a for a in package.axes if a not in space]
    if loose or missing:
        what = f"as much as it finds along {', '.join(loose)}" if loose else f"nothing along {', '.join(missing)}"
        raise PackageError(
            f"{package.path}: output {tensor.id} returns {what}; results that lie on the image can be written.",
            mend="bioimageio.core runs it in memory: bioimageio predict",
        )
    if extra := [a for a in space if a not in package.axes]:
        raise PackageError(f"{package.path}: output {tensor.id} has an axis {extra[0]} that its input has not.")
    ratio = {a: _ratio(main, tensor, a) for a in space}
    lead = {}
    for a in space:
        axis = tensor.axis(a)
        assert axis is not None, a
        offset = _offset(main, axis, ratio[a])
        pixels = Fraction(-offset, 2) / ratio[a]
        if offset > 0 or pixels.denominator != 1:
            raise PackageError(
                f"{package.path}: output {tensor.id} is {offset} pixels longer than its input along {a}; "
                "outputs of equal size, or smaller by the same at both ends, can be run."
            )
        lead[a] = int(pixels)
    return Port(tensor, space, ratio, lead, _channels(tensor))


def _reference(axis: TensorAxis | None) -> SizeOf | None:
    return None if axis is None else axis.reference


def _ratio(main: Tensor, tensor: Tensor, letter: str) -> Fraction:
    """Pixels of a tensor per pixel of the main input along an axis."""
    axis, own = tensor.axis(letter), main.axis(letter)
    assert axis is not None, letter
    assert own is not None, letter
    if axis.size is not None and own.size is not None:  # both fixed: no word about how they lie, but for their sizes
        ratio = Fraction(axis.size, own.size)
        if min(ratio.numerator, ratio.denominator) == 1:
            return ratio
    return Fraction(own.scale / axis.scale).limit_denominator(64)


def _offset(main: Tensor, axis: TensorAxis, ratio: Fraction) -> int:
    """By how many of its own pixels a tensor is longer than the main input."""
    own = main.axis(axis.letter)
    if axis.size is not None and own is not None and own.size is not None:
        return int(axis.size - own.size * ratio)
    return 0 if axis.reference is None else axis.reference.offset
