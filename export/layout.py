"""Axes of networks by letter, and arrays between a network's layout and that of the profile: b c [t] [z] y x."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LETTERS = "bctzyx"
"""The axes of the profile, in its order."""


def declared(x: NDArray[Any], letters: str, space: str) -> NDArray[Any]:
    """(b, c, *space) -> the axes that a network has, in its order."""
    have = "bc" + space
    x = x.squeeze(tuple(i for i, a in enumerate(have) if a not in letters))
    have = "".join(a for a in have if a in letters)
    return np.ascontiguousarray(x.transpose([have.index(a) for a in letters]))


def canonical(y: NDArray[Any], letters: str, space: str) -> NDArray[Any]:
    """The axes that a network has -> (b, c, *space). Raises ValueError for another number of axes."""
    want = "".join(a for a in "bc" + space if a in letters)
    y = y.transpose([letters.index(a) for a in want])
    return np.expand_dims(y, tuple(i for i, a in enumerate("bc" + space) if a not in letters))
