"""Arrays in memory, memory-mapped `.npy` files and xarray DataArrays as images."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DtypeError, ImageError
from .cache import ChunkCache
from .letters import shape_text
from .ordered import Found, assemble, file_stamp, native
from .units import micrometres, scaled, seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..image import Image


class HeldArray:
    """Anything that is sliced like a numpy array: numpy, dask, an xarray Variable. Reading computes that part only."""

    def __init__(self, array: Any, chunks: tuple[int, ...]) -> None:
        """`chunks`: what is computed at once."""
        self.array = array
        self.shape = tuple(int(n) for n in array.shape)
        self.dtype = native(np.dtype(array.dtype))
        self.chunks = chunks
        self.identity: dict[str, Any] = {}
        self.cache = ChunkCache()

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """A copy of a region, native byte order: what reads may write to it."""
        self.cache.count(self._computed(slices) * self.dtype.itemsize)
        return np.array(self.array[slices], dtype=self.dtype, copy=True)

    def _computed(self, slices: tuple[slice, ...]) -> int:
        """How many values a read computes: whole blocks of a dask array, of others those of the region."""
        blocks = _dask_blocks(self.array)
        if blocks is None:
            return math.prod(s.stop - s.start for s in slices)
        count = 1
        for part, sizes in zip(slices, blocks, strict=True):
            ends = list(itertools.accumulate(sizes))
            count *= sum(n for n, end in zip(sizes, ends, strict=True) if end > part.start and end - n < part.stop)
        return count

    def close(self) -> None:
        """Nothing to drop."""


def _dask_blocks(array: Any) -> tuple[tuple[int, ...], ...] | None:
    """The sizes of the blocks along each dimension of a dask array, or of an xarray Variable of one; else None."""
    blocks = getattr(array, "chunks", None)
    return blocks if isinstance(blocks, tuple) and blocks and isinstance(blocks[0], tuple) else None


class NpyArray:
    """A `.npy` file, mapped anew for each read, so that resident memory stays flat and pickling is cheap."""

    def __init__(self, path: str) -> None:
        """Raises ImageError for a broken file, DtypeError for Python objects."""
        self.path = path
        self.stamp = file_stamp(path)
        self.cache = ChunkCache()
        pixels = self._map()
        self.shape = tuple(int(n) for n in pixels.shape)
        self.dtype = native(pixels.dtype)
        self.chunks = (*(1 for _ in self.shape[:-2]), *self.shape[-2:])

    def _map(self) -> NDArray[Any]:
        try:
            return np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            name = Path(self.path).name
            if "allow_pickle" in str(error) or "Python objects" in str(error):
                raise DtypeError(f"{name} holds Python objects; models read real intensities.") from error
            raise ImageError(
                f"{name} is a broken .npy file.", f"{self.path}: {error}", "it is cut or damaged: save it again"
            ) from error

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """A copy of a region, native byte order. Raises ImageError where the file is gone or cut."""
        pixels = np.array(self._map()[slices], dtype=self.dtype, copy=True)
        self.cache.count(pixels.nbytes)
        return pixels

    @property
    def identity(self) -> dict[str, Any]:
        """The file's size and time of change (ns) when it was opened."""
        return {"bytes": self.stamp[0], "changed": self.stamp[1]}

    def close(self) -> None:
        """Nothing to drop."""


def open_npy(path: Path, *, axes: str | None) -> Image:
    """The image of a `.npy` file: it has no metadata, so more than two dimensions need `axes`."""
    array = NpyArray(str(path.resolve()))
    return assemble(
        Found(path.name, str(path.resolve()), "npy", _unknown(array.shape), [array], where=".npy files have no axes"),
        axes,
    )


def open_array(array: Any, *, axes: str | None, name: str = "array") -> Image:
    """The image of a numpy or dask array, not copied; more than two dimensions need `axes`."""
    blocks = _dask_blocks(array)
    shape = tuple(int(n) for n in array.shape)
    chunks = tuple(max(c) for c in blocks) if blocks else shape
    held = HeldArray(array, chunks)
    return assemble(Found(name, None, "array", _unknown(shape), [held], where="arrays have no axes"), axes)


def _unknown(shape: tuple[int, ...]) -> str:
    if len(shape) < 2:
        raise ImageError(f"an image has at least two dimensions, this has shape {shape_text(shape) or '()'}.")
    return "?" * len(shape)


def open_xarray(array: Any, *, axes: str | None) -> Image:
    """The image of an `xarray.DataArray`: dims are letters of `tczyx`, coordinates in um (t in s), names along c.

    Coordinates are kept for `Image.to_xarray`. Raises AxesError for dims that are no letters.
    """
    dims = "".join(str(d).lower() if str(d).lower() in tuple("tczyx") else "?" for d in array.dims)
    sizes: dict[str, float | None] = {}
    notes: list[str] = []
    coords: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {}
    channels: tuple[str, ...] = ()
    for dim, letter in zip(array.dims, dims, strict=True):
        if dim not in array.coords or letter == "?":
            continue
        values = np.asarray(array.coords[dim].values)
        attrs = dict(array.coords[dim].attrs)
        coords[letter] = (values, attrs)
        if letter == "c":
            channels = tuple(str(v) for v in values)
        else:
            sizes[letter] = _step(letter, values, attrs, notes)
    blocks = array.chunks
    chunks = tuple(max(c) for c in blocks) if blocks else tuple(array.shape)
    name = str(array.name) if array.name is not None else "array"
    found = Found(
        name=name,
        path=None,
        kind="xarray",
        dims=dims,
        levels=[HeldArray(array.variable, chunks)],
        sizes=sizes,
        channels=channels,
        notes=notes,
        metadata={"coords": coords},
        where=f"its dims are {', '.join(map(str, array.dims))}",
    )
    return assemble(found, axes)


def _step(letter: str, values: NDArray[Any], attrs: dict[str, Any], notes: list[str]) -> float | None:
    """The distance between coordinates in um (t: s); None for one value, uneven ones, or plain pixel numbers."""
    unit = attrs.get("units", attrs.get("unit"))
    if values.size < 2 or values.dtype.kind not in "iuf" or (unit is None and values.dtype.kind != "f"):
        return None
    steps = np.diff(values.astype(np.float64))
    step = float((values[-1] - values[0]) / (values.size - 1))
    if not np.allclose(steps, step, rtol=1e-3, atol=0):
        notes.append(f"the coordinates along {letter} are not evenly spaced: no pixel size taken from them")
        return None
    convert = seconds if letter == "t" else micrometres
    return scaled(step, 1.0 if unit is None else convert(unit))
