"""The way back from the model's pixel size: a result that lies staged is resampled to the pixels of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.image import Image
from ..zoo.readers.cache import ChunkCache
from ..zoo.rescale import Rescaled, rescaled
from .blocks import BlockReport, store
from .events import BlockFailed
from .grid import blocks
from .layout import BLOCK_VOXELS
from .samples import first_level
from .work import Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .output.layer import Layer
    from .plan import Plan
    from .work import Sink


class StagedSource:
    """A staged array of a result, as an image's source."""

    def __init__(self, axes: str, array: Any) -> None:
        self.axes = axes
        self.array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        self.chunks: tuple[int, ...] = tuple(array.grid)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """A region."""
        return np.asarray(self.array.read(slices))

    def close(self) -> None:
        """Nothing is held open."""

    @property
    def cache(self) -> ChunkCache:
        """None is needed: pieces are large."""
        return ChunkCache(0)

    @property
    def identity(self) -> dict[str, Any]:
        """It lies within the result that is being made."""
        return {}

    def with_cache(self, _cache: ChunkCache) -> StagedSource:
        """The same."""
        return self


def restored_layers(plan: Plan, layers: Sequence[Layer]) -> list[Layer]:
    """The layers of the result in the pixels of the image that was given, in its dtype."""
    found = []
    for layer, target in zip(layers, plan.targets, strict=True):
        shape = tuple(plan.written_sizes(target).values())
        chunk = tuple(min(c, n) for c, n in zip(layer.chunk, shape, strict=True))
        block = list(chunk)
        for i in reversed(range(len(block))):
            block[i] = min(shape[i], block[i] * max(1, BLOCK_VOXELS // 16 // prod(block)))
            block[i] = block[i] if block[i] == shape[i] else block[i] // chunk[i] * chunk[i]
        found.append(replace(layer, shape=shape, chunk=chunk, block=tuple(block), dtype=target.dtype,
                             pixel_size=plan.pixel_size_of(target)))  # fmt: skip
    return found


@dataclass(frozen=True)
class _Piece:
    layer: int
    part: tuple[slice, ...]


class RestoreWork:
    """Resamples piece number i of a result. staged: the arrays at the model's pixel size, one a layer."""

    def __init__(self, plan: Plan, layers: Sequence[Layer], staged: Sequence[Any], sinks: Sequence[Sink]) -> None:
        self.plan = plan
        self.layers = layers
        self.sinks = sinks
        self.sources = [
            Rescaled(StagedSource(layer.axes, first_level(array)), dict(zip(layer.axes, layer.shape, strict=True)))
            for layer, array in zip(layers, staged, strict=True)
        ]
        self.counts = [prod(ceil(n / b) for n, b in zip(x.shape, x.block, strict=True)) for x in layers]

    def __len__(self) -> int:
        return sum(self.counts)

    def _piece(self, index: int) -> _Piece:
        which = 0
        while index >= self.counts[which]:
            index -= self.counts[which]
            which += 1
        layer = self.layers[which]
        part = []
        for n, b in reversed(list(zip(layer.shape, layer.block, strict=True))):
            spans = blocks(n, b)
            index, k = divmod(index, len(spans))
            part.append(slice(spans[k].start, spans[k].stop))
        return _Piece(which, tuple(reversed(part)))

    def leave_hole(self, index: int) -> list[Any]:
        """Set a piece that cannot be done to 0."""
        piece = self._piece(index)
        return [self.sinks[piece.layer].erase(piece.part)]

    def __call__(self, index: int) -> Outcome | BlockFailed:
        """Do one piece."""
        piece = self._piece(index)
        layer = self.layers[piece.layer]
        try:
            values = self.sources[piece.layer].read(piece.part)
            out = np.empty(values.shape, layer.dtype)
            clipped = store(values, out)
            written = self.sinks[piece.layer].write(piece.part, out)
        except Exception as error:  # whatever the disk raises belongs to this piece
            where = ", ".join(f"{a} {s.start}:{s.stop}" for a, s in zip(layer.axes, piece.part, strict=True))
            return BlockFailed(index, where, error)
        return Outcome(BlockReport(index, out.size, clipped), [written])


def to_model_size(image: Image, pixel_size: Mapping[str, float]) -> Image:
    """The image at a model's pixel size (um by letter), along the axes of which both are known."""
    sizes = {}
    for a, wanted in pixel_size.items():
        if a in image.axes and (have := image.pixel_size.get(a)):
            sizes[a] = max(1, round(image.size(a) * have / wanted))
    return rescaled(image, sizes)
