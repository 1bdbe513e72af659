"""What a result consists of: arrays with their axes, sizes and names, each with its pyramid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from ...zoo.axes import ORDER
from ...zoo.errors import AxesError, DtypeError, OutputError, SizeError
from ...zoo.image import PixelSize
from .chunks import DTYPES, Spec
from .pyramid import Level, pyramid

MANY_CHUNKS = 10_000
"""With more chunks than this a block is stored as one shard: file systems suffer from millions of files."""
_SEGMENT = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9_.-]*(?<!\.)")
"""Letters, digits, `_`, `-`, `.`; not digits alone, which are levels."""


@dataclass(frozen=True)
class Layer:
    """One array of a result with all its levels.

    name: empty for the only one (it is the image at the root); else that of a subgroup and a TIFF series; with several
    parts, `labels/NAME` or `IMAGE/labels/NAME`, a label image of the root or of IMAGE. axes: letters of `tczyx` in that
    order. chunk: what is compressed at once. block: what one worker writes at once, whole chunks, in pixels of this
    array. labels: smaller levels are samples, not means. origin: where the array starts in the image that it is a part
    of, in pixels of this array, by axis. planar: smaller levels have as many planes as the first, as each page of a
    TIFF has its own.
    Raises AxesError, DtypeError, OutputError, SizeError for what cannot be stored.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    block: tuple[int, ...]
    pixel_size: PixelSize = field(default_factory=PixelSize)
    channels: tuple[str, ...] = ()
    labels: bool = False
    origin: Mapping[str, int] = field(default_factory=dict)
    planar: bool = False

    def __post_init__(self) -> None:
        if self.axes != "".join(a for a in ORDER if a in self.axes) or not self.axes.endswith("yx"):
            raise AxesError(f"a result has axes of tczyx in that order, ending in yx, not {self.axes}.")
        if not len(self.axes) == len(self.shape) == len(self.chunk) == len(self.block) or min(self.shape) < 1:
            raise SizeError(f"shape {self.shape}, chunk {self.chunk} and block {self.block} do not fit {self.axes}.")
        if self.dtype not in DTYPES:
            raise DtypeError(f"{self.dtype} cannot be stored.", mend=f"one of {', '.join(DTYPES)}")
        if self.labels and self.dtype.startswith("float"):
            raise DtypeError(f"labels are whole numbers, not {self.dtype}.", mend="uint16 or uint32")
        if self.name:
            self._check_name()
        for c, b, n in zip(self.stored_chunk, self.block, self.shape, strict=True):
            if b < n and b % c:
                raise SizeError(f"block {self.block} is not made of whole chunks of {self.chunk}.")

    def _check_name(self) -> None:
        *parents, last = parts = self.name.split("/")
        legal = len(parts) == 1 or (len(parts) in (2, 3) and parents[-1] == "labels")
        if not legal or any(not _SEGMENT.fullmatch(p) or p.lower() in ("ome", "labels") for p in (*parents[:-1], last)):
            raise OutputError(
                f"an array cannot be named {self.name!r}.",
                "names are letters, digits, _, - and .; not digits alone, OME or labels; or labels/NAME",
                f"{safe_name(self.name)}",
            )

    @property
    def title(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]

    @cached_property
    def stored_chunk(self) -> tuple[int, ...]:
        """The chunk, no larger than the array."""
        return tuple(min(c, n) for c, n in zip(self.chunk, self.shape, strict=True))

    @cached_property
    def levels(self) -> list[Level]:
        """Full size first."""
        return pyramid(self.axes, self.shape, self.pixel_size, planar=self.planar)

    @property
    def nbytes(self) -> int:
        """Of all levels, uncompressed."""
        return sum(prod(level.shape) for level in self.levels) * Spec((1,), self.dtype, (1,)).little.itemsize

    def spec(self, level: int, version: int = 3) -> Spec:
        """How a level is stored. version: of the Zarr format."""
        shape, factors = self.levels[level].shape, self.levels[level].factors
        chunk = tuple(min(c, n) for c, n in zip(self.chunk, shape, strict=True))
        shard = None
        if version == 3 and prod(-(-n // c) for n, c in zip(shape, chunk, strict=True)) > MANY_CHUNKS:
            shard = tuple(_shard(*each) for each in zip(self.block, factors, chunk, shape, strict=True))
        return Spec(shape, self.dtype, chunk, shard, version, self.axes)


def _shard(block: int, factor: int, chunk: int, size: int) -> int:
    """One axis of a shard: what a block leaves in this level where these are whole chunks, else whole chunks."""
    inside = block // factor if block % (factor * chunk) == 0 else block
    return -(-min(inside, size) // chunk) * chunk


def check_layers(layers: Sequence[Layer]) -> None:
    """Raises OutputError for layers that cannot lie in one result: names taken twice, an image beside the root's."""
    names = [layer.name.casefold() for layer in layers]  # some file systems do not tell a from A
    if len(set(names)) < len(names) or not layers:
        raise OutputError("each array of a result needs a name of its own.", ", ".join(layer.name for layer in layers))
    images = [name for name in names if "labels/" not in name]
    if "" in names and len(images) > 1:
        raise OutputError("the image at the root has no other images beside it.", ", ".join(images[1:]))
    for layer in layers:
        around = layer.name.casefold().rpartition("/labels/")[0]
        if around and around not in names:
            raise OutputError(f"{layer.name} are the labels of an image that is not part of the result.")


def safe_name(text: str) -> str:
    """The nearest legal name of a layer: `output 0` -> `output_0`, `3` -> `array_3`."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.-")
    return name if _SEGMENT.fullmatch(name) and name.lower() not in ("ome", "labels") else f"array_{name}".rstrip("_")
