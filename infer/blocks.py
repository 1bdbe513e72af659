"""One block: its regions are read once, walked in tiles through the network, cropped to the cores, cast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import ValuesError
from .grid import Axis, Span, Tile
from .samples import Measured, measure_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .geometry import Port
    from .networks.network import Network
    from .plan import Feed, Plan


@dataclass(frozen=True)
class BlockReport:
    """What one block did.

    voxels: of the image. clipped: values beyond the dtype's range. mapped: NaN or infinite inputs read as 0. skipped:
    not run, because the mask or its values say that nothing is there. decoded: bytes of the image decoded for it.
    tile: that of the network where the planned one did not fit the memory, else empty. started: when it was read and
    the network could begin, in seconds since 1970.
    """

    index: int
    voxels: int
    clipped: int = 0
    mapped: int = 0
    skipped: bool = False
    decoded: int = 0
    tile: tuple[int, ...] = ()
    started: float = 0.0


@dataclass(frozen=True)
class Pixels:
    """What a block has read: one array a feed, (n, c, *space) in the image's dtype, extended where the image ends.

    regions: by letter, as `grid.Axis.read_for` counts. measured: statistics of the samples that the block holds.
    """

    feeds: list[NDArray[Any]]
    regions: dict[str, Span]
    measured: Measured | None
    mapped: int

    def brightest(self) -> float:
        """The largest value of the main image."""
        return float(self.feeds[0].max())


def read_block(plan: Plan, network: Network, spans: Mapping[str, Span]) -> Pixels:
    """Read a block's regions once, and measure the samples that it holds whole.

    Raises ValuesError for NaN or infinity unless the plan allows them.
    """
    regions = {a: axis.read_for(spans[a]) for a, axis in plan.model_axes.items()}
    wanted = network.wanted_of_inputs if plan.samples_in_blocks else {}
    found, measured, mapped = [], Measured(), 0
    for feed in plan.feeds:
        pixels, pads, bad = _read(plan, feed, spans, regions)
        mapped += bad
        if wanted.get(feed.port.id):
            measured.add(feed.port.id, measure_arrays(_split(plan, spans, pixels), _letters(plan, feed.port),
                                                      wanted[feed.port.id]))  # fmt: skip
        if any(before or after for before, after in pads):
            pixels = np.pad(pixels, [(0, 0), (0, 0), *pads], mode="symmetric")
        found.append(pixels)
    return Pixels(found, regions, measured if measured else None, mapped)


def _letters(plan: Plan, port: Port) -> str:
    """Of an array whose loop axes are not laid together."""
    return f"{plan.loops.replace('c', 'k')}c{port.space}"


def _split(plan: Plan, spans: Mapping[str, Span], values: NDArray[Any]) -> NDArray[Any]:
    """(n, c, *space) -> (*loops, c, *space)."""
    return values.reshape([*(spans[a].size for a in plan.loops), *values.shape[1:]])


def _read(
    plan: Plan, feed: Feed, spans: Mapping[str, Span], regions: Mapping[str, Span]
) -> tuple[NDArray[Any], list[tuple[int, int]], int]:
    """The pixels of a feed (n, c, *space), by how much they are short at either end, and what was mapped to 0."""
    image, port = feed.image, feed.port
    wanted: dict[str, slice] = {}
    pads = []
    if feed.channel is not None:
        wanted["c"] = slice(feed.channel, feed.channel + 1)
    for a in plan.loops:
        if image.size(a) > 1 or (plan.sizes[a] == 1 and a in image.axes):
            wanted[a] = slice(spans[a].start, spans[a].stop)
    for a in port.space if not port.whole else "":
        ratio, lead = port.ratio.get(a, Fraction(1)), plan.model_axes[a].lead
        start, stop = int((regions[a].start - lead) * ratio), int((regions[a].stop - lead) * ratio)
        wanted[a] = slice(max(0, start), min(stop, image.size(a)))
        pads.append((max(0, -start), max(0, stop - image.size(a))))
    pixels = image.read(wanted)
    mapped = 0
    if pixels.dtype.kind == "f":
        pixels, mapped = _finite(plan, image.name, image.axes, pixels, wanted)
    return _batched(plan, feed, spans, pixels), pads, mapped


def _batched(plan: Plan, feed: Feed, spans: Mapping[str, Span], pixels: NDArray[Any]) -> NDArray[Any]:
    """Image axes -> (n, c, *space): the axes that the network does not read at once become n."""
    axes, space = feed.image.axes, feed.port.space
    channel = "c" in axes and "c" not in plan.loops
    order = [*(a for a in plan.loops if a in axes), *("c" * channel), *(a for a in space if a in axes)]
    alone = [a for a in axes if a not in order]  # of size 1: neither the network nor the main image has them
    pixels = pixels.squeeze(tuple(axes.index(a) for a in alone))
    axes = "".join(a for a in axes if a not in alone)
    pixels = pixels.transpose([axes.index(a) for a in order])
    sizes = dict(zip(order, pixels.shape, strict=True))
    tail = (sizes["c"] if channel else 1, *(sizes.get(a, 1) for a in space))
    loops = tuple(sizes.get(a, 1) for a in plan.loops)
    full = tuple(spans[a].size for a in plan.loops)
    pixels = pixels.reshape(loops + tail)
    if loops != full:
        pixels = np.broadcast_to(pixels, full + tail)
    return pixels.reshape((-1, *tail))


def _finite(
    plan: Plan, name: str, axes: str, pixels: NDArray[Any], wanted: Mapping[str, slice]
) -> tuple[NDArray[Any], int]:
    bad = ~np.isfinite(pixels)
    count = int(np.count_nonzero(bad))
    if not count:
        return pixels, 0
    if not plan.choices.allow_nan:
        first = np.argwhere(bad)[0]
        place = ", ".join(f"{a} {wanted[a].start + int(i) if a in wanted else int(i)}"
                          for a, i in zip(axes, first, strict=True))  # fmt: skip
        raise ValuesError(
            f"{name} holds {count:,} NaN or infinite values in one block.",
            where=f"the first lies at {place}",
            mend="--allow-nan  reads them as 0 and counts them",
        )
    return np.where(bad, np.zeros((), pixels.dtype), pixels), count


def predict_block(
    plan: Plan,
    network: Network,
    pixels: Pixels,
    spans: Mapping[str, Span],
    measured: Measured | None = None,
    turn: AbstractContextManager[Any] | None = None,
    tile: Mapping[str, int] | None = None,
) -> tuple[list[NDArray[Any]], int]:
    """Run the tiles of a block. -> its part of each target, in that one's axes and dtype, and how many were clipped.

    measured: statistics of samples that are larger than a block. turn: held from the first run of the network to the
    last; what lies before and after (the first cast, the last rounding) overlaps with the turn of another block. tile:
    where it is not that of the plan.
    Raises ValuesError when the network returns NaN.
    """
    measured = pixels.measured or measured
    whole = network.wanted_of_outputs if plan.samples_in_blocks else {}
    results = _Results(plan, spans, raw=bool(whole))
    runs = _runs(plan, pixels, spans, tile or plan.tile)
    items = [_loop_index(plan, spans, n) for n in range(len(pixels.feeds[0]))] if network.processing else []

    def cast(run: _Run) -> list[NDArray[Any]]:
        return network.prepare([f[s] for f, s in zip(pixels.feeds, run.sources, strict=True)],
                               measured, items[run.planes] if items else [], run.read)  # fmt: skip

    x = cast(runs[0])
    with turn or nullcontext():
        for k, run in enumerate(runs):
            y = network.run(x)
            if k + 1 < len(runs):
                x = cast(runs[k + 1])
                results.take(network, y, run, measured, items)
    results.take(network, y, runs[-1], measured, items)
    if whole:
        return finish_block(plan, network, results.arrays, spans, measured)
    return results.in_axes()


@dataclass(frozen=True)
class _Run:
    """One run of the network: which items, where it reads in each feed, which tiles it keeps.

    read, kept: where that lies in the image, by tensor and letter in its own pixels.
    """

    planes: slice
    sources: list[tuple[slice, ...]]
    tiles: dict[str, Tile]
    read: Mapping[str, Mapping[str, tuple[int, int]]]
    kept: Mapping[str, Mapping[str, tuple[int, int]]]


def _runs(plan: Plan, pixels: Pixels, spans: Mapping[str, Span], tile: Mapping[str, int]) -> list[_Run]:
    every = slice(None)
    count = len(pixels.feeds[0])
    found = []
    for tiles in tiles_of(plan.model_axes, spans, tile):
        inside = []
        for feed in plan.feeds:
            ratio = feed.port.ratio
            along = [] if feed.port.whole else [
                slice(int((tiles[a].read.start - pixels.regions[a].start) * ratio.get(a, Fraction(1))),
                      int((tiles[a].read.stop - pixels.regions[a].start) * ratio.get(a, Fraction(1))))
                for a in feed.port.space
            ]  # fmt: skip
            inside.append((every, *along))
        read, kept = _read_spans(plan, tiles), _kept_spans(plan, {a: t.keep for a, t in tiles.items()})
        for start in range(0, count, plan.batch):
            planes = slice(start, min(start + plan.batch, count))
            found.append(_Run(planes, [(planes, *s) for s in inside], tiles, read, kept))
    return found


def _read_spans(plan: Plan, tiles: Mapping[str, Tile]) -> dict[str, dict[str, tuple[int, int]]]:
    found = {}
    for port in (f.port for f in plan.feeds if not f.port.whole):
        start = {a: tiles[a].read.start - plan.model_axes[a].lead for a in port.space}
        found[port.id] = {a: port.span(start[a], start[a] + tiles[a].read.size, a) for a in port.space}
    return found


def _kept_spans(plan: Plan, spans: Mapping[str, Span]) -> dict[str, dict[str, tuple[int, int]]]:
    return {p.id: {a: p.span(spans[a].start, spans[a].stop, a) for a in p.space} for p in plan.geometry.outputs}


def tiles_of(model: Mapping[str, Axis], spans: Mapping[str, Span], tile: Mapping[str, int]) -> list[dict[str, Tile]]:
    """The tiles of a block, as one `grid.Tile` an axis."""
    along = [axis.tiles(spans[a], tile[a]) for a, axis in model.items()]
    return [dict(zip(model, combination, strict=True)) for combination in product(*along)]


def _loop_index(plan: Plan, spans: Mapping[str, Span], n: int) -> dict[str, tuple[int, int]]:
    """Item n of a block as positions along the loop axes: in the block, and in the image."""
    found = {}
    for a in reversed(plan.loops):
        n, i = divmod(n, spans[a].size)
        found[a] = (i, spans[a].start + i)
    return found


class _Results:
    """The arrays that a block fills, one a target: (n, c, *space); raw: one an output of the network, float32."""

    def __init__(self, plan: Plan, spans: Mapping[str, Span], *, raw: bool) -> None:
        self.plan, self.spans, self.raw = plan, spans, raw
        self.clipped = 0
        count = 1
        for a in plan.loops:
            count *= spans[a].size
        kept = [(p, p.channels, "float32") for p in plan.geometry.outputs] if raw else [
            (t.port, len(t.channels), t.dtype) for t in plan.targets
        ]  # fmt: skip
        self.arrays: list[NDArray[Any]] = []
        for port, channels, dtype in kept:
            keep = [_scaled(port, a, spans[a].start, spans[a].stop, spans[a].start) for a in port.space]
            self.arrays.append(np.empty((count, channels, *(s.stop for s in keep)), dtype))

    def take(
        self, network: Network, outputs: Sequence[NDArray[Any]], run: _Run, measured: Measured | None, items: Any
    ) -> None:
        """Crop the outputs of a run to its cores, and keep them."""
        ports = self.plan.geometry.outputs
        cores = {p.id: y[_crop(self.plan, p, run.tiles)] for p, y in zip(ports, outputs, strict=True)}
        if self.raw:
            for port, array in zip(ports, self.arrays, strict=True):
                array[self._place(port, run)] = cores[port.id]
            return
        if network.processing and not network.later:
            cores = network.after(cores, measured, items[run.planes], run.kept)
        for target, array in zip(self.plan.targets, self.arrays, strict=True):
            values = cores[target.port.id]
            if len(target.channels) != values.shape[1]:
                values = values[:, list(target.channels)]
            self.clipped += store(values, array[self._place(target.port, run)])

    def _place(self, port: Port, run: _Run) -> tuple[slice, ...]:
        along = [
            _scaled(port, a, t.start, t.stop, self.spans[a].start) for a in port.space for t in [run.tiles[a].keep]
        ]
        return (run.planes, slice(None), *along)

    def in_axes(self) -> tuple[list[NDArray[Any]], int]:
        """The arrays in the axes of their targets, and how many values were clipped."""
        return [_in_axes(self.plan, i, a, self.spans) for i, a in enumerate(self.arrays)], self.clipped


def _scaled(port: Port, letter: str, start: int, stop: int, zero: int) -> slice:
    """A span of the main image, counted from `zero`, in the pixels of an output."""
    ratio = port.ratio.get(letter, Fraction(1))
    if ratio == 1:
        return slice(start - zero, stop - zero)
    return slice(int((start - zero) * ratio), ceil((stop - zero) * ratio))


def _crop(plan: Plan, port: Port, tiles: Mapping[str, Tile]) -> tuple[slice, ...]:
    along = []
    for a in port.space:
        zero = tiles[a].read.start - plan.model_axes[a].lead + port.lead.get(a, 0)
        along.append(_scaled(port, a, tiles[a].keep.start, tiles[a].keep.stop, zero))
    return (slice(None), slice(None), *along)


def finish_block(
    plan: Plan, network: Network, raw: Sequence[NDArray[Any]], spans: Mapping[str, Span], measured: Measured | None
) -> tuple[list[NDArray[Any]], int]:
    """Postprocess what the network returned for a block, one (n, c, *space) an output, and cast it to the targets."""
    ports = plan.geometry.outputs
    found = Measured() if measured is None else measured.copy()
    if plan.samples_in_blocks:
        for port, values in zip(ports, raw, strict=True):
            if wanted := network.wanted_of_outputs.get(port.id):
                found.add(port.id, measure_arrays(_split(plan, spans, values), _letters(plan, port), wanted))
    items = [_loop_index(plan, spans, n) for n in range(len(raw[0]))]
    cores = network.after({p.id: y for p, y in zip(ports, raw, strict=True)}, found, items, _kept_spans(plan, spans))
    clipped, done = 0, []
    for i, target in enumerate(plan.targets):
        values = cores[target.port.id][:, list(target.channels)]
        out = np.empty(values.shape, target.dtype)
        clipped += store(values, out)
        done.append(_in_axes(plan, i, out, spans))
    return done, clipped


def store(values: NDArray[Any], out: NDArray[Any]) -> int:
    """Write float values into `out`: whole numbers are rounded and clipped to its dtype. -> how many were clipped.

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
    rounded = np.rint(values, out=np.empty(values.shape, np.float32) if values.dtype != np.float64 else None)
    clipped = int(np.count_nonzero(rounded < low) + np.count_nonzero(rounded > high))
    if not clipped:
        out[...] = rounded
    elif limits.bits <= 16:
        out[...] = np.clip(rounded, low, high)
    else:  # float32 has no exact 2**31 - 1: what lies beyond is set, not cast
        inside = np.clip(rounded, low, np.nextafter(np.float32(high), np.float32(0)))
        out[...] = np.where(rounded >= np.float32(high), limits.max, inside.astype(out.dtype))
    return clipped


def _in_axes(plan: Plan, which: int, result: NDArray[Any], spans: Mapping[str, Span]) -> NDArray[Any]:
    """(n, c, *space) -> the axes of a target."""
    target = plan.targets[which]
    loops, space = list(plan.loops), target.port.space
    shape = [*(spans[a].size for a in loops), *result.shape[1:]]
    letters = [*loops, "c'", *space]
    axes = plan.axes_of(target)
    if "c" in axes and "c" not in loops:
        letters[len(loops)] = "c"
    else:
        shape = [n for n, a in zip(shape, letters, strict=True) if a != "c'"]
        letters.remove("c'")
    return result.reshape(shape).transpose([letters.index(a) for a in axes])
