"""The image: pixels that stay where they are until a region is read, with axes, pixel size and channel names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from .axes import Region, describe, permutation, region_slices
from .errors import AxesError, DtypeError
from .readers.cache import ChunkCache

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Source(Protocol):
    """Where the pixels come from: a reader for one format.

    `axes` are letters of `tczyx` in that order. `read` takes one slice an axis (start and stop set, step 1) and
    returns that part with all axes kept, native byte order. A source is safe to read from several threads and can be
    pickled: it opens its file when it first reads, in each process.
    """

    @property
    def axes(self) -> str:
        """Letters of `tczyx`, in that order."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """One size an axis."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the pixels, native byte order."""
        ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once (page, strip, tile, chunk), one size an axis."""
        ...

    @property
    def cache(self) -> ChunkCache:
        """Keeps decoded chunks that neighbouring regions share, and counts what was decoded."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able facts that tell the file from another or from its next version; empty for arrays in memory."""
        ...

    def with_cache(self, cache: ChunkCache) -> Source:
        """The same pixels, read through another cache."""
        ...

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region, all axes kept; raises ImageError for pixels that cannot be decoded."""
        ...

    def close(self) -> None:
        """Drop handles and decoded pixels; the next read opens them again."""
        ...


@dataclass(frozen=True)
class PixelSize:
    """The distance between neighbouring samples: z, y, x in um, t in s; None where the file does not say."""

    z: float | None = None
    y: float | None = None
    x: float | None = None
    t: float | None = None

    def get(self, letter: str) -> float | None:
        """The size along one axis, None where unknown or for channels."""
        value: float | None = getattr(self, letter, None)
        return value

    @property
    def known(self) -> bool:
        """True when at least y and x are known."""
        return self.y is not None and self.x is not None

    def __str__(self) -> str:
        """E.g. `z 2 um  y 0.5 um  x 0.5 um`, or `unknown`."""
        parts = [f"{a} {getattr(self, a):.4g} um" for a in "zyx" if getattr(self, a) is not None]
        if self.t is not None:
            parts.append(f"t {self.t:.4g} s")
        return "  ".join(parts) or "unknown"


@dataclass(frozen=True, eq=False)
class Image:
    """An image of any size. Lazy: nothing but metadata is in memory.

    axes: letters of `tczyx` in that order, only those that the image has; shape and chunks follow them.
    source_axes: the same letters in the order of the file or array it came from.
    pixel_size: um and s. channels: names, one a channel, empty where the file has none.
    levels: the smaller versions of a pyramid (full resolution is this image itself).
    path: of the file or folder, None for arrays in memory and for URLs (`identity` has the URL).
    """

    source: Source
    name: str
    path: str | None = None
    pixel_size: PixelSize = PixelSize()
    channels: tuple[str, ...] = ()
    source_axes: str = ""
    kind: str = ""
    levels: tuple[Source, ...] = ()
    notes: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no model can read: complex numbers, text, records."""
        if self.dtype.kind not in "biuf":
            raise DtypeError(
                f"{self.name} holds {self.dtype} numbers; models read real intensities.",
                mend="save the magnitude first, e.g. numpy.abs",
            )
        if not self.source_axes:
            object.__setattr__(self, "source_axes", self.axes)

    @property
    def axes(self) -> str:
        """Letters of `tczyx`, in that order."""
        return self.source.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in the order of `axes`."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the pixels, native byte order."""
        return self.source.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """What is decoded at once, in the order of `axes`."""
        return self.source.chunks

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes by letter."""
        return dict(zip(self.axes, self.shape, strict=True))

    @property
    def nbytes(self) -> int:
        """Size of the uncompressed pixels in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def size(self, letter: str) -> int:
        """Size along one axis, 1 where the image does not have it."""
        return self.sizes.get(letter, 1)

    def read(self, region: Region | None = None) -> NDArray[Any]:
        """The pixels of a region, axes as `axes` (none dropped), straight from the file.

        Raises AxesError for a region outside the image, ImageError for pixels that cannot be decoded.
        """
        return self.source.read(region_slices(region, self.axes, self.shape))

    @property
    def decoded(self) -> int:
        """Bytes of uncompressed pixels that this process had to decode or read for all reads so far.

        Whole strips, tiles, pages or chunks, also where a part was wanted, each as often as it was decoded; of what
        lies in the file as it is, the region alone. Without what pads the last chunk beyond the image's border.
        """
        return self.source.cache.decoded

    def with_cache(self, nbytes: int) -> Image:
        """The same image, keeping at most `nbytes` of decoded chunks between reads, its count of `decoded` at 0.

        To decode nothing twice, it must hold the chunks that blocks touch from one block to the next that shares them:
        in raster order the chunks under one row of blocks. A chunk larger than `nbytes` is still kept alone; 0 keeps
        none. Images that are pickled take `nbytes` along, and nothing that is kept.
        """
        return replace(self, source=self.source.with_cache(ChunkCache(nbytes)))

    def close(self) -> None:
        """Drop handles and decoded pixels; the next read opens the file again."""
        for source in (self.source, *self.levels):
            source.close()

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this image from another or from its next version, JSON-able.

        Name, axes, shape, dtype, pixel size (um, s), channels; of files `bytes` and `changed` (ns), of several files
        also a hash; of URLs the `url` and the `sha256` of its metadata. Pixels are not looked at.
        """
        return {
            "name": self.name,
            "axes": self.axes,
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "pixel_size": {a: v for a in "tzyx" if (v := self.pixel_size.get(a)) is not None},
            "channels": list(self.channels),
            **self.source.identity,
        }

    @property
    def fingerprint(self) -> str:
        """A hash of the middle of the middle plane, of its first channel, at most 512 x 512 pixels: 16 digits.

        It is the same wherever the image lies and whatever it is called, and another for another image.
        """
        region = {}
        for a, n in self.sizes.items():
            wide = min(n, 512) if a in "yx" else 1
            start = 0 if a == "c" else (n - wide) // 2
            region[a] = slice(start, start + wide)
        return hashlib.sha256(self.read(region).tobytes()).hexdigest()[:16]

    def channel_names(self) -> tuple[str, ...]:
        """One name a channel; `channel 0`, ... where the file has none."""
        count = self.size("c")
        return self.channels if len(self.channels) == count else tuple(f"channel {i}" for i in range(count))

    def level(self, index: int) -> Image:
        """A level of the pyramid as an image of its own; 0 is this image. Raises AxesError beyond the last one."""
        if index == 0:
            return self
        if not 0 < index <= len(self.levels):
            count = len(self.levels)
            has = f"the pyramid levels 0 to {count}, not {index}" if count else f"no pyramid, so no level {index}"
            raise AxesError(f"{self.name} has {has}.", mend=f"--level 0 to {count}" if count else "leave --level out")
        source = self.levels[index - 1]
        size = {
            a: None if (s := self.pixel_size.get(a)) is None else s * self.size(a) / source.shape[source.axes.index(a)]
            for a in "zyx"
            if a in self.axes
        }
        return replace(self, source=source, levels=(), pixel_size=replace(self.pixel_size, **size))

    @property
    def dask(self) -> Any:
        """A lazy `dask.array` in the order of `axes`, one block a chunk of at least 1 MB."""
        import dask.array as da

        chunks = list(self.chunks)
        for i in reversed(range(len(chunks))):
            while chunks[i] < self.shape[i] and np.prod(chunks) * self.dtype.itemsize < 2**20:
                chunks[i] = min(self.shape[i], chunks[i] * 2)
        return da.from_array(_Indexed(self), chunks=tuple(chunks), name=False, asarray=False)

    def to_xarray(self) -> Any:
        """A lazy `xarray.DataArray`: dims are the letters, coordinates in um (t in s), channel names along c."""
        import xarray as xr

        coords: dict[str, Any] = {}
        attrs: dict[str, dict[str, Any]] = {}
        kept = self.metadata.get("coords", {})
        for letter, size in self.sizes.items():
            step = self.pixel_size.get(letter)
            if letter in kept and len(kept[letter][0]) == size:
                # a DataArray's own: rebuilt ones could differ in the last bit, and xarray aligns by equality
                coords[letter], attrs[letter] = kept[letter]
            elif letter == "c":
                coords["c"] = list(self.channel_names())
            elif step is not None:
                coords[letter] = np.arange(size) * step
                attrs[letter] = {"units": "s" if letter == "t" else "um"}
        array = xr.DataArray(self.dask, dims=tuple(self.axes), coords=coords, name=self.name)
        for letter, attr in attrs.items():
            array[letter].attrs.update(attr)
        return array.transpose(*self.source_axes)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All pixels in memory, in the order of the file (`source_axes`)."""
        array = self.read().transpose(permutation(self.axes, self.source_axes))
        return array if dtype is None else array.astype(dtype)

    def __repr__(self) -> str:
        """Name, sizes, dtype and pixel size in one line."""
        return f"Image({self.name!r}, {describe(self.axes, self.shape)}, {self.dtype}, pixel size {self.pixel_size})"


class _Indexed:
    """The view of an image that dask slices: shape, dtype, ndim and `__getitem__` with slices."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.shape = image.shape
        self.dtype = image.dtype
        self.ndim = len(image.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        key = key if isinstance(key, tuple) else (key,)
        key = key + (slice(None),) * (self.ndim - len(key))
        starts = [k if isinstance(k, slice) else slice(k, k + 1) for k in key]
        part = self.image.read(
            {a: slice(*s.indices(n)[:2]) for a, s, n in zip(self.image.axes, starts, self.shape, strict=True)}
        )
        return part[tuple(slice(None) if isinstance(k, slice) else 0 for k in key)]
