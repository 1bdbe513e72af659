"""A file's array with its axes brought into `tczyx` order, and the making of an `Image` from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..axes import ORDER, canonical, permutation
from ..errors import ImageError, SizeError
from ..image import Image, PixelSize
from .cache import with_cache
from .letters import name_dimensions, shape_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from .cache import ChunkCache


class FileArray(Protocol):
    """The pixels of a file in the order of the file; what a reader for a format implements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One size a dimension."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels, native byte order."""
        ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once."""
        ...

    @property
    def cache(self) -> ChunkCache:
        """Keeps decoded chunks and counts them; set anew by `cache.with_cache`."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able facts that tell the file from another or from its next version; empty for arrays in memory."""
        ...

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """A region, one slice a dimension, all dimensions kept; a copy that may be written to."""
        ...

    def close(self) -> None:
        """Drop handles and decoded pixels."""
        ...


@dataclass(frozen=True)
class Ordered:
    """A `Source`: `array` with its dimensions named by `dims`, one letter each, `-` for a dimension that is dropped."""

    array: FileArray
    dims: str

    @property
    def file_axes(self) -> str:
        """The axes in the order of the file."""
        return self.dims.replace("-", "")

    @property
    def axes(self) -> str:
        """Letters of `tczyx`, in that order."""
        return canonical(self.dims)

    def _by_letter(self, values: Sequence[int]) -> tuple[int, ...]:
        return tuple(values[self.dims.index(letter)] for letter in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `axes`."""
        return self._by_letter(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels, native byte order."""
        return self.array.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once, in the order of `axes`."""
        return self._by_letter(self.array.chunks)

    @property
    def cache(self) -> ChunkCache:
        """Keeps decoded chunks and counts them."""
        return self.array.cache

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able facts that tell the file from another or from its next version."""
        return self.array.identity

    def with_cache(self, cache: ChunkCache) -> Ordered:
        """The same pixels, read through `cache`."""
        return Ordered(with_cache(self.array, cache), self.dims)

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region in the order of `axes`, none dropped; raises ImageError for undecodable pixels."""
        parts = dict(zip(self.axes, slices, strict=True))
        pixels = self.array.read(tuple(parts.get(d, slice(0, 1)) for d in self.dims))
        kept = pixels.reshape([n for n, d in zip(pixels.shape, self.dims, strict=True) if d != "-"])
        return kept.transpose(permutation(self.file_axes, self.axes))

    def close(self) -> None:
        """Drop what was decoded."""
        self.array.close()


@dataclass
class Found:
    """What a reader found in a file, before the axes are settled. `sizes`: um (t: s) by letter."""

    name: str
    path: str | None
    kind: str
    dims: str
    levels: Sequence[FileArray]
    sizes: Mapping[str, float | None] = field(default_factory=dict)
    channels: Sequence[str] = ()
    notes: Sequence[str] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    where: str = ""


def assemble(found: Found, axes: str | None) -> Image:
    """The image of what a reader found, axes from the file or from the user.

    Raises AxesError where the axes stay unknown or contradict, SizeError for an image without pixels.
    """
    full = found.levels[0]
    if full.dtype.kind in "biuf" and 0 in full.shape:
        raise SizeError(f"{found.name} has no pixels: its shape is {shape_text(full.shape)}.")
    dims, notes = name_dimensions(found.name, found.dims, full.shape, axes, found.where)
    # where the user renamed a dimension, the file's size for it is that of something else
    doubtful = {
        letter
        for was, now in zip(found.dims.replace("s", "c"), dims, strict=True)
        if was in ORDER and now not in ("-", was)
        for letter in (was, now)
    }
    sizes = {a: found.sizes.get(a) for a in "zyxt" if a in dims and a not in doubtful}
    source = Ordered(full, dims)
    channels = (
        tuple(found.channels) if "c" in dims and source.shape[source.axes.index("c")] == len(found.channels) else ()
    )
    levels = tuple(Ordered(level, dims) for level in found.levels[1:] if len(level.shape) == len(dims))
    return Image(
        source=source,
        name=found.name,
        path=found.path,
        pixel_size=PixelSize(**sizes),
        channels=channels,
        source_axes=source.file_axes,
        kind=found.kind,
        levels=levels,
        notes=(*found.notes, *notes),
        metadata=found.metadata,
    )


def native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The same dtype in native byte order."""
    return dtype.newbyteorder("=")


def undecodable(name: str, what: str, error: Exception, place: str) -> ImageError:
    """The one error for pixels that cannot be decoded; `what` says which page and strip, tile or chunk.

    `place`: the path of the file or the URL.
    """
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(
        f"{name}: {what} cannot be decoded.",
        f"{place}, {what}: {type(error).__name__}: {reason[:200]}",
        "the file is damaged or cut: copy or export it again from where it came",
    )


def file_stamp(path: str) -> tuple[int, int]:
    """Size and time of the last change. Raises ImageError for a file that is gone."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise ImageError(f"{Path(path).name} is gone or cannot be read.", f"{path}: {error.strerror}") from error
    return status.st_size, status.st_mtime_ns
