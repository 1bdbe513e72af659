"""The eight ways to lay a square plane on itself: four quarter turns, each mirrored or not (the dihedral group).

A code from 0 to 7 names one: `code % 4` quarter turns from y towards -x, then, from 4 on, x mirrored. Turns are made
in the last two axes (y, x) alone: a microscope's z is never turned or mirrored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALL = tuple(range(8))
KEEPS_SIDES = (0, 2, 4, 6)
"""Those that leave a plane's height and width as they are: no quarter turns."""


def turned(pixels: NDArray[Any], code: int) -> NDArray[Any]:
    """(..., y, x) turned by `code`, a view; quarter turns swap the sides."""
    out = np.rot90(pixels, code % 4, axes=(-2, -1))
    return out[..., ::-1] if code >= 4 else out


def turned_back(pixels: NDArray[Any], code: int) -> NDArray[Any]:
    """The inverse of `turned`, a view."""
    back = pixels[..., ::-1] if code >= 4 else pixels
    return np.rot90(back, -(code % 4), axes=(-2, -1))


def group(mask: NDArray[Any] | None = None, *, square: bool = True) -> tuple[int, ...]:
    """The codes under which a blind mask ([z], y, x) stays what it is: all 8 without one, 4 for a line, 1 at worst.

    square: whether quarter turns are possible at all, as they are not for patches of unequal sides.
    A denoiser trained with a mask along x must see no patch whose noise runs along y.
    """
    codes = ALL if square else KEEPS_SIDES
    return codes if mask is None else tuple(c for c in codes if np.array_equal(turned(mask, c), mask))
