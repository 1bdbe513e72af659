"""One block: its region is read once, walked in tiles through the network, cropped to the cores, cast."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import ValuesError
from .grid import Axis, Span, Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .plan import Plan
    from .session import Session


@dataclass(frozen=True)
class BlockReport:
    """What one block did: values clipped to the dtype's range, and NaN or infinite inputs that were mapped to 0."""

    index: int
    voxels: int
    clipped: int = 0
    mapped: int = 0


def read_block(plan: Plan, spans: Mapping[str, Span]) -> tuple[NDArray[Any], dict[str, Span], int]:
    """Read a block's region once. -> (n, c, [z], y, x) in the image's dtype, extended where the image ends.

    Also the region by model axis in the coordinates of the extended image, and how many NaN or infinities were mapped
    to 0. Raises ValuesError for NaN or infinity unless the plan allows them.
    """
    regions = {a: axis.read_for(spans[a]) for a, axis in plan.model_axes.items()}
    wanted = {a: slice(s.start, s.stop) for a, s in spans.items()}
    wanted.update({a: slice(r.start, min(r.stop, plan.image.size(a))) for a, r in regions.items()})
    if plan.channel is not None:
        wanted["c"] = slice(plan.channel, plan.channel + 1)
    pixels = plan.image.read(wanted)
    mapped = 0
    if pixels.dtype.kind == "f":
        pixels, mapped = _finite(plan, pixels, wanted)
    pixels = _batched(plan, pixels)
    extend = [max(0, r.stop - plan.image.size(a)) for a, r in regions.items()]
    if any(extend):
        pixels = np.pad(pixels, [(0, 0), (0, 0), *((0, n) for n in extend)], mode="symmetric")
    return pixels, regions, mapped


def _batched(plan: Plan, pixels: NDArray[Any]) -> NDArray[Any]:
    """Image axes -> (n, c, [z], y, x): the axes that blocks run over become n."""
    axes = plan.image.axes
    model = list(plan.model_axes)
    channel = ["c"] if "c" in axes and not plan.all_channels else []
    loops = [a for a in axes if a not in model and a not in channel]
    pixels = pixels.transpose([axes.index(a) for a in (*loops, *channel, *model)])
    space = pixels.shape[len(loops) + len(channel) :]
    return pixels.reshape((-1, len(plan.package.channels_in), *space))


def _finite(plan: Plan, pixels: NDArray[Any], wanted: Mapping[str, slice]) -> tuple[NDArray[Any], int]:
    bad = ~np.isfinite(pixels)
    count = int(np.count_nonzero(bad))
    if not count:
        return pixels, 0
    if not plan.allow_nan:
        first = np.argwhere(bad)[0]
        place = ", ".join(f"{a} {wanted[a].start + int(i) if a in wanted else int(i)}"
                          for a, i in zip(plan.image.axes, first, strict=True))  # fmt: skip
        raise ValuesError(
            f"{plan.image.name} holds {count:,} NaN or infinite values in one block.",
            where=f"the first lies at {place}",
            mend="--allow-nan  reads them as 0 and counts them",
        )
    return np.where(bad, np.zeros((), pixels.dtype), pixels), count


def predict_block(
    plan: Plan,
    session: Session,
    pixels: NDArray[Any],
    spans: Mapping[str, Span],
    regions: Mapping[str, Span],
    turn: AbstractContextManager[Any] | None = None,
) -> tuple[NDArray[Any], int]:
    """Run the tiles of a block. -> the block in the axes of the result and the plan's dtype, and how many were clipped.

    pixels: (n, c, [z], y, x) as `read_block` returns them. turn: held from the first run of the network to the last;
    what lies before and after (the first cast, the last rounding) overlaps with the turn of another block.
    Raises ValuesError when the network returns NaN.
    """
    model = plan.model_axes
    keep = tuple(spans[a].size for a in model)
    result = np.empty((pixels.shape[0], len(plan.package.channels_out), *keep), np.dtype(plan.dtype))
    every = slice(None)
    runs = []
    for tile in tiles_of(model, spans, plan.tile):
        inside = tuple(slice(t.read.start - regions[a].start, t.read.stop - regions[a].start) for a, t in tile.items())
        crop = (every, every, *(slice(t.keep.start - t.read.start, t.keep.stop - t.read.start) for t in tile.values()))
        target = tuple(slice(t.keep.start - spans[a].start, t.keep.stop - spans[a].start) for a, t in tile.items())
        for start in range(0, len(pixels), plan.batch):
            planes = slice(start, min(start + plan.batch, len(pixels)))
            runs.append(((planes, every, *inside), crop, (planes, every, *target)))

    def cast(source: tuple[slice, ...]) -> NDArray[np.float32]:
        return np.ascontiguousarray(pixels[source], dtype=np.float32)

    clipped = 0
    x = cast(runs[0][0])
    with turn or nullcontext():
        for k, (_, crop, target) in enumerate(runs):
            y = session.run(x)[crop]
            if k + 1 < len(runs):
                x = cast(runs[k + 1][0])
                clipped += store(y, result[target])
    clipped += store(y, result[target])
    return _in_result_axes(plan, result, spans), clipped


def tiles_of(model: Mapping[str, Axis], spans: Mapping[str, Span], tile: Mapping[str, int]) -> list[dict[str, Tile]]:
    """The tiles of a block, as one `grid.Tile` an axis."""
    along = [axis.tiles(spans[a], tile[a]) for a, axis in model.items()]
    return [dict(zip(model, combination, strict=True)) for combination in product(*along)]


def store(values: NDArray[np.float32], out: NDArray[Any]) -> int:
    """Write float32 values into `out`: whole numbers are rounded and clipped to its dtype. -> how many were clipped.

    Raises ValuesError for NaN.
    """
    if not np.isfinite(values.sum(dtype=np.float64)) and np.isnan(values).any():
        raise ValuesError(
            "the network returned NaN.", mend="look at the input there: is it of the kind it was trained on?"
        )
    if out.dtype.kind not in "iu":
        out[...] = values
        return 0
    limits = np.iinfo(out.dtype)
    low, high = float(limits.min), float(limits.max)
    rounded = np.rint(values)
    clipped = int(np.count_nonzero(rounded < low) + np.count_nonzero(rounded > high))
    if not clipped:
        out[...] = rounded
    elif limits.bits <= 16:
        out[...] = np.clip(rounded, low, high)
    else:  # float32 has no exact 2**31 - 1: what lies beyond is set, not cast
        inside = np.clip(rounded, low, np.nextafter(np.float32(high), np.float32(0)))
        out[...] = np.where(rounded >= np.float32(high), limits.max, inside.astype(out.dtype))
    return clipped


def _in_result_axes(plan: Plan, result: NDArray[Any], spans: Mapping[str, Span]) -> NDArray[Any]:
    """(n, c_out, [z], y, x) -> the axes of the result."""
    model = list(plan.model_axes)
    loops = [a for a in plan.grid if a not in model]
    shape = [spans[a].size for a in loops] + list(result.shape[1:])
    result = result.reshape(shape)
    letters = [*loops, "c'", *model]
    if "c" in plan.out_axes and "c" not in loops:
        letters[len(loops)] = "c"
    else:
        result = result.reshape([n for n, a in zip(shape, letters, strict=True) if a != "c'"])
        letters.remove("c'")
    return result.transpose([letters.index(a) for a in plan.out_axes])
