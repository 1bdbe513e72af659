"""Statistics of the samples that a model's processing needs: of a block that holds them whole, or of a whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .output.pyramid import Cascade

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from ..zoo.statistics import Wanted
    from .plan import Feed, Plan, Target


@dataclass(frozen=True)
class Table:
    """One statistic: its values over the letters kept (k stands for a channel axis that the network loops over).

    origin: where the values begin in the image, by loop letter; None for those of a block. Along an axis that what was
    measured does not have, there is one value for all positions.
    """

    letters: str
    values: NDArray[np.float64]
    origin: Mapping[str, int] | None

    def at(self, item: Mapping[str, tuple[int, int]]) -> NDArray[np.float64]:
        """The values of one item (position in the block, in the image by loop letter), loop axes taken away."""
        index: list[Any] = []
        for a, n in zip(self.letters, self.values.shape, strict=True):
            place = item.get("c" if a == "k" else a) if a != "c" else None
            if place is None:
                index.append(slice(None))
            elif n == 1:
                index.append(0)
            else:
                index.append(place[0] if self.origin is None else place[1] - self.origin.get(a, 0))
        return self.values[tuple(index)]


class Measured:
    """The statistics of each tensor, in the order in which they are wanted."""

    def __init__(self, tables: Mapping[str, Sequence[Table]] | None = None) -> None:
        self.tables = dict(tables or {})

    def add(self, tensor: str, tables: Sequence[Table]) -> None:
        """Take the statistics of a tensor."""
        self.tables[tensor] = tables

    def copy(self) -> Measured:
        """Another one with the same values."""
        return Measured(self.tables)

    def at(self, item: Mapping[str, tuple[int, int]]) -> dict[str, list[NDArray[np.float64]]]:
        """What holds for one item of a block."""
        return {tensor: [t.at(item) for t in tables] for tensor, tables in self.tables.items()}

    def __bool__(self) -> bool:
        return bool(self.tables)


def measure_arrays(values: NDArray[Any], letters: str, wanted: Sequence[Wanted]) -> list[Table]:
    """Statistics of an array in memory. Infinite and NaN values are left out."""
    from ..zoo.statistics import statistics

    def read(region: Mapping[str, slice]) -> NDArray[Any]:
        return values[tuple(region.get(a, slice(None)) for a in letters)]

    room = max(2**28, 4 * values.nbytes)  # it is in memory already: exact in one pass
    found = statistics(read, letters, values.shape, values.shape, values.dtype, wanted, memory=room)
    return _tables(letters, wanted, found.values, None)


def _tables(
    letters: str, wanted: Sequence[Wanted], values: Any, origin: Mapping[str, int] | None
) -> list[Table]:  # fmt: skip
    return [
        Table("".join(a for a in letters if a not in w.over), np.asarray(v), origin)
        for w, v in zip(wanted, values, strict=True)
    ]


def first_level(array: Any) -> Any:
    """What can be read of an array that is written: the first level of a pyramid, or the array itself."""
    return array.arrays[0] if isinstance(array, Cascade) else array


def load_or_measure(
    plan: Plan, path: Path | None, wanted: Mapping[str, Sequence[Wanted]], sources: Mapping[str, Any]
) -> Measured:
    """Statistics of all samples of the image, in as few passes as can be; kept in a file for the next time.

    sources: by tensor, a Feed, or a target and the array that holds it.
    """
    if path is not None and path.is_file():
        return _load(path, wanted)
    found = Measured()
    for tensor, needs in wanted.items():
        source = sources[tensor]
        if isinstance(source, tuple):
            target, array = source
            found.add(tensor, _measure_array(plan, target, first_level(array), needs))
        else:
            found.add(tensor, _measure_feed(plan, source, needs))
    if path is not None:
        _save(path, found)
    return found


def _measure_array(plan: Plan, target: Target, array: Any, wanted: Sequence[Wanted]) -> list[Table]:
    """Of what the network returned for the whole image, in the axes of a target."""
    from ..zoo.statistics import statistics

    axes = plan.axes_of(target)
    axes = axes.replace("c", "k") if "c" in plan.loops else axes
    letters = plan.loops.replace("c", "k") + "c" + target.port.space
    sizes, chunk = dict(zip(axes, array.shape, strict=True)), dict(zip(axes, array.grid, strict=True))

    def read(region: Mapping[str, slice]) -> NDArray[Any]:
        pixels = array.read(tuple(region.get(a, slice(0, n)) for a, n in sizes.items()))
        pixels = pixels.transpose([axes.index(a) for a in letters if a in axes])
        return np.expand_dims(pixels, tuple(i for i, a in enumerate(letters) if a not in axes))

    shape = tuple(sizes.get(a, 1) for a in letters)
    found = statistics(read, letters, shape, tuple(chunk.get(a, 1) for a in letters), array.dtype, wanted)
    origin = {"k" if a == "c" else a: plan.part[a].start for a in plan.loops}
    return _tables(letters, wanted, found.values, origin)


def _measure_feed(plan: Plan, feed: Feed, wanted: Sequence[Wanted]) -> list[Table]:
    """Of an image as the network's input sees it: NaN and infinity read as 0, like in the blocks.

    Along loop axes that belong to no sample, of the part that is done alone.
    """
    from ..zoo.statistics import statistics

    image = feed.image
    looped = "c" in plan.loops
    letters = plan.loops.replace("c", "k") + "c" + feed.port.space
    sizes = {"k" if looped and a == "c" else a: n for a, n in image.sizes.items()}
    chunk = dict(zip(sizes, image.chunks, strict=True))
    channel = {} if feed.channel is None else {"c": slice(feed.channel, feed.channel + 1)}
    sizes |= {"c": 1} if channel else {}
    origin: dict[str, int] = {}
    for a in plan.loops:
        k = "k" if a == "c" else a
        if sizes.get(k, 1) > 1 and not any(k in w.over for w in wanted):
            sizes[k], origin[k] = plan.part[a].size, plan.part[a].start
    shape = tuple(sizes.get(a, 1) for a in letters)
    chunks = tuple(min(chunk.get(a, 1), n) for a, n in zip(letters, shape, strict=True))

    def read(region: Mapping[str, slice]) -> NDArray[Any]:
        parts = {a: _moved(region.get(a, slice(0, n)), origin.get(a, 0)) for a, n in sizes.items()}
        pixels = image.read({**{("c" if a == "k" else a): s for a, s in parts.items()}, **channel})
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            pixels = np.where(np.isfinite(pixels), pixels, np.zeros((), pixels.dtype))
        have = list(sizes)
        pixels = pixels.transpose([have.index(a) for a in letters if a in have])
        return np.expand_dims(pixels, tuple(i for i, a in enumerate(letters) if a not in have))

    offset = [origin.get(a, 0) % n for a, n in zip(letters, chunks, strict=True)]
    found = statistics(read, letters, shape, chunks, image.dtype, wanted, offset=offset)
    return _tables(letters, wanted, found.values, origin)


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _save(path: Path, measured: Measured) -> None:
    import json

    from .output.durable import sync_file

    described = {k: [(t.letters, t.origin) for t in tables] for k, tables in measured.tables.items()}
    arrays = {f"{k}/{i}": t.values for k, tables in measured.tables.items() for i, t in enumerate(tables)}
    draft = path.with_name(path.name + ".tmp")
    with draft.open("wb") as file:
        np.savez(file, described=np.array(json.dumps(described)), **arrays)  # type: ignore[arg-type]
    sync_file(draft)  # else a power cut may leave an empty one
    draft.replace(path)


def _load(path: Path, wanted: Mapping[str, Sequence[Wanted]]) -> Measured:
    import json

    with np.load(path) as stored:
        described = json.loads(str(stored["described"]))
        return Measured({
            k: [Table(letters, stored[f"{k}/{i}"], origin) for i, (letters, origin) in enumerate(described[k])]
            for k in wanted
        })  # fmt: skip
