"""The picture of a package: a held-out part, before and after."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pillow

from ..zoo.pictures import contrast, enlarge, stretch

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 256
"""Pixels of the square picture; catalogues show them 1:1 or 2:1."""
LINE = 2


def cover(noisy: NDArray[Any], denoised: NDArray[Any], *, one_grey: bool = True) -> bytes:
    """(c, [t], [z], y, x) each -> a PNG, 1:1: the left half as it came, the right half as it comes out, of one place.

    The middle plane of the first channel; enlarged by whole pixels where it is small. one_grey: both have the grey
    scale of the left one, else each its own.
    """
    planes = []
    for pixels in (noisy, denoised):
        plane = pixels[(0, *(n // 2 for n in pixels.shape[1:-2]))]
        planes.append(np.asarray(plane, np.float32))
    greys = [contrast(planes[0 if one_grey else i], 1, 99.8) for i in range(2)]
    planes[1] = _as_large(planes[1], planes[0].shape)
    side = min(SIDE, *planes[0].shape)
    factor = max(1, SIDE // side)
    side = min(side, SIDE // factor)
    y, x = ((n - side) // 2 for n in planes[0].shape)
    left, right = (
        enlarge(stretch(p[y : y + side, x : x + side], grey), factor) for p, grey in zip(planes, greys, strict=True)
    )
    picture = np.concatenate([left[:, : left.shape[1] // 2], right[:, right.shape[1] // 2 :]], axis=1)
    middle = picture.shape[1] // 2
    picture[:, middle - LINE // 2 : middle + LINE // 2] = 255
    buffer = BytesIO()
    Pillow.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _as_large(plane: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The nearest pixels of a plane that is finer, coarser or smaller."""
    if plane.shape == shape:
        return plane
    y, x = (np.arange(n) * have // n for n, have in zip(shape, plane.shape, strict=True))
    return np.asarray(plane[np.ix_(y, x)])
