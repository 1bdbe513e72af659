"""One axis of a network, from what is known of it to what rdf.yaml says of it; and tensors of legal size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.grid import Axis, round_up
from ..zoo.package import AxisRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

SMALLEST = 64
"""The least size along a pooled axis that packages declare; with it every legal tile keeps more than its halo."""


@dataclass(frozen=True)
class Along:
    """An axis behind batch and channel. rule: in pixels of the input; the halo is what a cut spoils beside `lead`.

    The output has size * ratio + offset pixels. um: of a pixel of the input (time: s), None where unknown.
    """

    rule: AxisRule
    ratio: Fraction = Fraction(1)
    offset: int = 0
    um: float | None = None
    unit: str = "micrometer"

    def input(self) -> dict[str, Any]:
        """What rdf.yaml says of it at the input: its size, and how large a pixel is."""
        rule = self.rule
        size = rule.minimum if rule.fixed else {"min": rule.minimum, "step": rule.step}
        return {"size": size, **self._scale(Fraction(1))}

    def output(self, letter: str) -> dict[str, Any]:
        """What rdf.yaml says of it at the output: that it follows the input, and the halo, in pixels of the output."""
        follows = {"tensor_id": "input", "axis_id": "time" if letter == "t" else letter}
        offset = {"offset": self.offset} if self.offset else {}
        halo = ceil(self.rule.halo * self.ratio)
        told = {"halo": halo} if halo else {}  # the format knows no halo of 0
        return {"size": {**follows, **offset}, **told, **self._scale(self.ratio)}

    def _scale(self, ratio: Fraction) -> dict[str, Any]:
        if self.um is None and ratio == 1 and self.ratio == 1:
            return {}
        return {**({"unit": self.unit} if self.um else {}), "scale": float((self.um or 1.0) / ratio)}


def rule_of(halo: int, step: int) -> AxisRule:
    """Legal sizes of an axis of any size: min a multiple of the step, at least 64 where pooled, above 2 halos."""
    least = max(2 * halo + 1, SMALLEST if step > 1 else 1)
    return AxisRule(minimum=round_up(least, step), step=step, halo=halo)


def at_legal_size(patch: NDArray[Any], rules: Mapping[str, AxisRule]) -> NDArray[np.float32]:
    """(c, [t], [z], y, x) -> float32 (1, c, [t], [z], y, x), mirrored at the end up to a legal size."""
    pad = [(0, 0)]
    for n, rule in zip(patch.shape[1:], rules.values(), strict=True):
        pad.append((0, Axis(n, rule.step, rule.minimum).extended - n))
    return np.ascontiguousarray(np.pad(patch.astype(np.float32), pad, mode="symmetric")[None])
