"""One page of a TIFF: where its strips or tiles lie, and whether they can lie there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

JPEGS = (6, 7, 34892, 33007)
"""Compressions whose segments share tables."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page: the offset and byte count of each of its strips or tiles. `keyframe` knows how to decode them.

    raw: the pixels lie in the file as they are: no compression, no bit packing, one run of bytes.
    """

    path: str
    number: int
    keyframe: Any
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tables: bytes | None
    raw: bool


def make_page(
    path: str, number: int, keyframe: Any, offsets: Sequence[int], counts: Sequence[int], tables: bytes | None
) -> Page:
    """A page of the series that `keyframe` (tifffile's page) speaks for."""
    starts, sizes = np.asarray(offsets, dtype=np.int64), np.asarray(counts, dtype=np.int64)
    raw = bool(keyframe.is_final)
    if raw and 1 < len(starts) == len(sizes) and not (keyframe.is_lsm or keyframe.is_stk):
        # the keyframe's strips lie together, those of this page may not
        raw = bool((starts[:-1] + sizes[:-1] == starts[1:]).all())
    return Page(path, number, keyframe, starts, sizes, tables, raw)


def prepare(keyframe: Any) -> None:
    """Make tifffile's page ready to decode while its file is open: it may look at tags."""
    if not keyframe.is_final or len(keyframe.dataoffsets) > 1:
        keyframe.init_decode()


def segment_shape(keyframe: Any) -> tuple[int, int, int, int, int]:
    """The size of a strip or tile along (separate samples, depth, rows, columns, contiguous samples)."""
    samples = int(keyframe.shaped[4])
    if keyframe.is_tiled:
        return 1, int(keyframe.tiledepth), int(keyframe.tilelength), int(keyframe.tilewidth), samples
    return 1, 1, min(int(keyframe.rowsperstrip), int(keyframe.imagelength)), int(keyframe.imagewidth), samples


def segment_grid(keyframe: Any) -> tuple[int, int, int, int]:
    """How many strips or tiles a page has along (separate samples, depth, rows, columns)."""
    planes, depth, length, width, _ = keyframe.shaped
    _, d, h, w, _ = segment_shape(keyframe)
    return int(planes), math.ceil(depth / d), math.ceil(length / h), math.ceil(width / w)


def check_page(page: Page, size: int) -> tuple[int, int]:
    """First and last byte of a page's pixels. Raises ImageError where they lie beyond the `size` of the file."""
    key = page.keyframe
    needed = math.prod(segment_grid(key))
    lacking = not page.raw and min(len(page.offsets), len(page.counts)) < needed
    if lacking or (page.offsets < 0).any() or (page.counts < 0).any():
        raise ImageError(
            f"{Path(page.path).name}: page {page.number} needs {needed} strips or tiles, it lists {len(page.offsets)}.",
            page.path,
            "the file is damaged: export it again from where it came",
        )
    if page.raw:
        end, part = int(page.offsets[0]) + key.nbytes, "pixels"
    else:
        ends = page.offsets + page.counts
        worst = int(np.argmax(ends))
        end, part = int(ends[worst]), f"{'tile' if key.is_tiled else 'strip'} {worst}"
    check_end(page.path, end, f"{part} of page {page.number}", size)
    return int(page.offsets[0]), end


def check_end(path: str, end: int, part: str, size: int | None = None) -> None:
    """Raise ImageError where `part` of a file ends beyond its `size`."""
    size = Path(path).stat().st_size if size is None else size
    if end > size:
        raise ImageError(
            f"{Path(path).name} is cut: {part} should end at byte {end}, the file has {size}.",
            path,
            "copy or export it again from where it came",
        )
