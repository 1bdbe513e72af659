"""The blind mask of StructN2V (Broaddus et al. 2020): which neighbours share a pixel's noise and are hidden with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST = 255
"""Longest side of a mask that is taken: no noise reaches so far, and a number by mistake must not fill the memory."""
LEGAL = "sides such as 1x9 ([z] x y x x, odd), or nested lists of 0 and 1 with odd sides and 1 in the centre"


@dataclass(frozen=True)
class BlindMask:
    """Odd sides, one a spatial axis ([z], y, x); True where a neighbour is hidden, and in the centre."""

    hidden: NDArray[np.bool_]

    @classmethod
    def of(cls, given: Any) -> Self:
        """From `"1x9"` (a full box), nested lists of 0 and 1, their JSON, or an array; the centre may be 0 or 1.

        Raises ValueError that says what is wrong for even sides, other values, ragged lists, and a mask that hides
        no neighbour.
        """
        if isinstance(given, str):
            given = _parsed(given)
        try:
            array = np.asarray(given)
        except ValueError:
            raise ValueError("its lists have unequal lengths") from None
        if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
            raise ValueError("it is not a list of lists of 0 and 1")
        if not np.isin(array, (0, 1)).all():
            raise ValueError("it holds other values than 0 and 1")
        if max(array.shape) > LARGEST:
            raise ValueError(f"it reaches farther than {LARGEST // 2} pixels")
        if any(n % 2 == 0 for n in array.shape):
            raise ValueError(f"its sides {' x '.join(map(str, array.shape))} are not odd, so that it has no centre")
        hidden = _trimmed(array.astype(bool))
        hidden[tuple(n // 2 for n in hidden.shape)] = True
        if hidden.sum() == 1:
            raise ValueError("it hides no neighbour: that is n2v")
        return cls(hidden)

    @property
    def dims(self) -> int:
        """Spatial axes."""
        return self.hidden.ndim

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(k, axes) of all hidden pixels from the centre, the centre too; in raster order."""
        return np.argwhere(self.hidden) - np.array([n // 2 for n in self.hidden.shape])

    @property
    def axes(self) -> str:
        """Letters of the axes along which it reaches."""
        return "".join(a for a, n in zip("zyx"[-self.dims :], self.hidden.shape, strict=True) if n > 1)

    def lists(self) -> list[Any]:
        """Nested lists of 0 and 1, as a recipe holds it."""
        return self.hidden.astype(int).tolist()

    def __str__(self) -> str:
        """`1x9` for a full box, else its lists."""
        if self.hidden.all():
            return "x".join(map(str, self.hidden.shape))
        return json.dumps(self.lists(), separators=(",", ":"))


def _parsed(text: str) -> Any:
    text = text.strip()
    if re.fullmatch(r"\d+(\s*x\s*\d+){1,2}", text):
        sides = [int(n) for n in text.split("x")]
        if max(sides) > LARGEST:
            raise ValueError(f"{text} reaches farther than {LARGEST // 2} pixels")
        return np.ones(sides, bool)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{text[:80]!r} is neither sides nor lists") from None


def _trimmed(hidden: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the outer layers that hide nothing, equally many on both sides of an axis."""
    for axis in range(hidden.ndim):
        other = tuple(a for a in range(hidden.ndim) if a != axis)
        used = np.flatnonzero(hidden.any(axis=other))
        half = hidden.shape[axis] // 2
        reach = int(abs(used - half).max()) if used.size else 0
        hidden = hidden.take(range(half - reach, half + reach + 1), axis=axis)
    return hidden.copy()
