"""Microscope makers' files (CZI, ND2, LIF) through bioio's readers, lazily: planes or tiles are decoded when read."""

from __future__ import annotations

import importlib
import itertools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..axes import describe
from ..errors import DependencyError, ImageError, VoidzooError
from .cache import ChunkCache
from .letters import shape_text
from .ordered import Found, assemble, file_stamp, native, undecodable
from .units import scaled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..image import Image

Plane = Callable[[Any, str, Sequence[int]], "NDArray[Any]"]


@dataclass(frozen=True)
class Format:
    """How a maker's files are read. whole: the dimensions that are decoded at once; plane: (reader, dims, index).

    tried: one plane is read at opening, because the reader finds out only then that it does not know a kind of scan.
    """

    maker: str
    module: str
    whole: str
    plane: Plane
    options: dict[str, Any]
    tried: bool = False


def _indexed(whole: str) -> Plane:
    """Planes by number: the reader decodes what is asked for."""

    def read(reader: Any, dims: str, index: Sequence[int]) -> NDArray[Any]:
        fixed = {d: i for d, i in zip(dims, index, strict=True) if d not in whole}
        return reader.get_image_data("".join(d for d in dims if d in whole), **fixed)

    return read


def _frame(reader: Any, dims: str, index: Sequence[int]) -> NDArray[Any]:
    """Frames of an ND2 that is held open: bioio-nd2 opens it, and reads the list of all frames, for each of them."""
    if not hasattr(reader, "held"):
        import nd2

        file = nd2.ND2File(reader.path_of_file)
        weakref.finalize(reader, file.close)
        numbers = {tuple(sorted(at.items())): i for i, at in enumerate(file.loop_indices)}
        reader.held = file, numbers  # at once: several threads may come here
    file, numbers = reader.held
    at = dict(zip(dims, index, strict=True)) | {"P": reader.current_scene_index}
    loops = {d for d, _ in next(iter(numbers), ())}
    return np.asarray(file.read_frame(numbers[tuple(sorted((d, at[d]) for d in loops))] if loops else 0))


def _block(reader: Any, _: str, index: Sequence[int]) -> NDArray[Any]:
    """Blocks of the reader's dask array."""
    return _lazy(reader).data.blocks[tuple(index)].compute(scheduler="synchronous")


# a CZI is not read through bioio's dask array but for mosaics: one chunk, because making many takes ms each
FORMATS = {
    ".czi": Format("Zeiss CZI", "bioio_czi", "YXS", _indexed("YXS"), {"chunk_dims": list("BHIRVTCZYXS")}),
    ".nd2": Format("Nikon ND2", "bioio_nd2", "CYXS", _frame, {}),
    ".lif": Format("Leica LIF", "bioio_lif", "YXS", _block, {"chunk_dims": ["Y", "X"]}, tried=True),
}


class BioioArray:
    """One scene of a file, in bioio's order of dimensions; the file is opened again after unpickling."""

    def __init__(self, path: str, series: int, reader: Any) -> None:
        """`reader` is at scene number `series` of the file at `path`."""
        self.path = path
        self.series = series
        self.stamp = file_stamp(path)
        self.mosaic = "M" in reader.dims.order
        form = FORMATS[Path(path).suffix.lower()]
        if self.mosaic or form.plane is _block:
            lazy = _lazy(reader)
            self.dims, self.dtype = "".join(map(str, lazy.dims)), native(np.dtype(lazy.dtype))
            sizes: Sequence[Sequence[int]] = lazy.data.chunks
        else:
            self.dims, self.dtype = str(reader.dims.order), native(np.dtype(reader.dtype))
            sizes = [(n,) if d in form.whole else (1,) * n for d, n in zip(self.dims, reader.dims.shape, strict=True)]
        self.edges = tuple(np.concatenate([[0], np.cumsum(s, dtype=np.int64)]) for s in sizes)
        self.shape = tuple(int(e[-1]) for e in self.edges)
        self.chunks = tuple(int(np.diff(e).max(initial=0)) for e in self.edges)
        self.cache = ChunkCache()
        self._reader: Any = reader

    def __getstate__(self) -> dict[str, Any]:
        """Without the open reader."""
        return {**self.__dict__, "_reader": None}

    @property
    def identity(self) -> dict[str, Any]:
        """Scene, and the file's size and time of change (ns) when it was opened."""
        return {"series": self.series, "bytes": self.stamp[0], "changed": self.stamp[1]}

    def close(self) -> None:
        """Let go of the file and of decoded planes."""
        self._reader = None
        self.cache.clear()

    def read(self, slices: tuple[slice, ...]) -> NDArray[Any]:
        """The pixels of a region, native byte order. Raises ImageError naming the plane that cannot be decoded."""
        out = np.empty([s.stop - s.start for s in slices], dtype=self.dtype)
        if out.size == 0:
            return out
        touched = [
            range(int(np.searchsorted(e, s.start, "right")) - 1, int(np.searchsorted(e, s.stop, "left")))
            for e, s in zip(self.edges, slices, strict=True)
        ]
        for index in itertools.product(*touched):
            chunk = self.cache.take((self.path, self.series, *index), lambda i=index: self.decode(i))  # type: ignore[misc]
            source, place = [], []
            for e, i, s in zip(self.edges, index, slices, strict=True):
                low, high = max(int(e[i]), s.start), min(int(e[i + 1]), s.stop)
                source.append(slice(low - int(e[i]), high - int(e[i])))
                place.append(slice(low - s.start, high - s.start))
            out[tuple(place)] = chunk[tuple(source)]
        return out

    def decode(self, index: tuple[int, ...]) -> NDArray[Any]:
        """The plane or tile with these numbers along each dimension. Raises ImageError."""
        form = FORMATS[Path(self.path).suffix.lower()]
        shape = [int(e[i + 1] - e[i]) for e, i in zip(self.edges, index, strict=True)]
        try:
            pixels = (_block if self.mosaic else form.plane)(self._opened(), self.dims, index)
            return np.ascontiguousarray(pixels, dtype=self.dtype).reshape(shape)
        except VoidzooError:
            raise
        except Exception as error:  # each reader has its own exceptions
            counted = [f"{d.lower()} {i}" for d, i, e in zip(self.dims, index, self.edges, strict=True) if len(e) > 2]
            what = f"plane {', '.join(counted) or 0} of series {self.series}"
            raise undecodable(Path(self.path).name, what, error, self.path) from error

    def _opened(self) -> Any:
        reader = self._reader
        if reader is None:
            if file_stamp(self.path) != self.stamp:
                name = Path(self.path).name
                raise ImageError(f"{name} was changed after it was opened.", self.path, "open it again")
            self._reader = reader = _reader(Path(self.path), self.series)[0]
        return reader


def open_bioio(path: Path, *, axes: str | None, series: int | None) -> Image:
    """The image of a CZI, ND2 or LIF file, lazy; its scenes are series.

    Raises DependencyError without the extra `formats`, ImageError for a broken file, AxesError for unknown axes.
    """
    full = path.resolve()
    form = FORMATS[path.suffix.lower()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a reader does not find in a file is not there
        reader, scenes = _reader(full, series or 0)
        try:
            array = BioioArray(str(full), series or 0, reader)
            sizes, channels = _sizes(reader, form, full), tuple(map(str, reader.channel_names or ()))
            if form.tried:
                array.decode((0,) * len(array.shape))
        except Exception as error:
            raise _broken(full, error.__cause__ or error) from error
    letters = [(d.lower() if d in "TCZYXS" else "?") for d in array.dims]
    dims = "".join("-" if n == 1 and d not in "yx" else d for d, n in zip(letters, array.shape, strict=True))
    notes = []
    if series is None and len(scenes) > 1:
        others = "; ".join(f"{i} ({name})" for i, name in enumerate(scenes[:7]) if i)
        notes.append(
            f"{path.name} holds {len(scenes)} series; this is series 0. Others: {others}. --series N reads one."
        )
    if array.mosaic:
        notes.append(f"{path.name} is a mosaic: its tiles are put where the microscope says they lie, not aligned")
    found = Found(
        name=path.name,
        path=str(full),
        kind=form.maker,
        dims=dims,
        levels=[array],
        sizes=sizes,
        channels=channels,
        notes=notes,
        metadata={"series": len(scenes), "stored_shape": shape_text(array.shape), "compression": "of the maker"},
        where=f"it calls them {describe(array.dims, array.shape)}",
    )
    return assemble(found, axes)


_opening = threading.Lock()


def _reader(path: Path, series: int) -> tuple[Any, tuple[str, ...]]:
    """bioio's reader at a scene, and the names of all scenes. Raises DependencyError, ImageError."""
    form = FORMATS[path.suffix.lower()]
    try:
        module = importlib.import_module(form.module)
    except ImportError as error:
        raise DependencyError(
            f"{path.name} is a {form.maker} file, and what reads it is not installed.",
            f"{path}: {error}",
            'pip install "voidzoo[formats]"',
        ) from error
    file_stamp(str(path))
    try:
        with _opening:  # some makers' libraries set themselves up at the first file
            reader = module.Reader(str(path), **form.options)
            reader.path_of_file = str(path)
            scenes = tuple(map(str, reader.scenes))
            if 0 <= series < len(scenes):
                reader.set_scene(series)
                if math.prod(reader.dims.shape) == 0:
                    raise ValueError("no pixels")
    except Exception as error:
        raise _broken(path, error) from error
    if not 0 <= series < len(scenes):
        raise ImageError(
            f"{path.name} has no series {series}.",
            "it holds " + "; ".join(f"{i} ({name})" for i, name in enumerate(scenes[:12])),
            f"--series 0 to {len(scenes) - 1}" if len(scenes) > 1 else "leave --series out",
        )
    return reader, scenes


def _sizes(reader: Any, form: Format, path: Path) -> dict[str, float | None]:
    """um by letter, s for t; None where the file does not say."""
    known = _calibrated(path) if form.module == "bioio_nd2" else "zyx"
    every = getattr(reader, "time_interval", None)
    return {
        "t": scaled(every.total_seconds(), 1.0) if isinstance(every, timedelta) else None,
        **{a: scaled(getattr(reader.physical_pixel_sizes, a.upper()), 1.0) for a in known},
    }


def _calibrated(path: Path) -> str:
    """The letters of an ND2 file whose pixel size was calibrated; bioio-nd2 gives 1 for others."""
    import nd2

    with nd2.ND2File(path) as file:
        metadata: Any = file.metadata
        calibrated = metadata.channels[0].volume.axesCalibrated
    return "".join(a for a, known in zip("xyz", calibrated, strict=True) if known)


def _lazy(reader: Any) -> Any:
    """The reader's lazy DataArray; tiles of a mosaic are put together."""
    return reader.mosaic_xarray_dask_data if "M" in reader.dims.order else reader.xarray_dask_data


def _broken(path: Path, error: BaseException) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    maker = FORMATS[path.suffix.lower()].maker
    return ImageError(
        f"{path.name} is a broken {maker} file, or of a kind that its reader does not know.",
        f"{path}: {type(error).__name__}: {reason[:300]}",
        "open it in Fiji (File > Import > Bio-Formats) and save it as OME-TIFF, or use bioformats2raw",
    )
