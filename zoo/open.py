"""One door for pixels: whatever holds an image becomes an `Image`, lazily, with axes, um and channel names."""

from __future__ import annotations

import glob
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np

from .axes import canonical, parse
from .errors import AxesError, DtypeError, ImageError, nearest
from .image import Image, PixelSize
from .readers.arrays import open_array, open_npy, open_xarray
from .readers.bioio import FORMATS, open_bioio
from .readers.ome_zarr import is_zarr, open_zarr
from .readers.stack import natural, open_stack, tiffs_in
from .readers.tiff_open import is_tiff, open_tiff
from .readers.zarr_node import is_url

_NOT_READ = {
    ".oib": "Olympus", ".oif": "Olympus", ".vsi": "Olympus",
    ".ims": "Imaris",
    ".h5": "HDF5", ".hdf5": "HDF5", ".dv": "DeltaVision", ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG",
}  # fmt: skip


def open_image(
    source: Any,
    *,
    axes: str | None = None,
    pixel_size: Mapping[str, float] | Sequence[float] | None = None,
    series: int | None = None,
    stack: str | None = None,
    level: int = 0,
) -> Image:
    """Anything that holds pixels -> Image, lazy; axes in `tczyx` order, um and s, dtype as stored (native byte order).

    source: a TIFF (OME, ImageJ, BigTIFF, pyramids), a folder or glob pattern of TIFFs, an OME-Zarr (or a group inside
    one; also behind a URL: https://, s3://, gs://), a CZI, ND2 or LIF file, a `.npy` file, a numpy or dask array, an
    xarray DataArray, or an Image.
    axes: the letters of the source's dimensions in its order, where it does not say them, or against what it says.
    pixel_size: um, by letter or in the order (z,) y, x; replaces what the source says.
    series: which image of a file that holds several. stack: the axis along which a folder's files go.
    level: of the pyramid, 0 is the full resolution.

    Raises AxesError for axes that are unknown or contradict, ImageError for a missing, cut or foreign file,
    DtypeError for pixels that are no intensities, SizeError for an image without pixels, DependencyError for a source
    whose reader is not installed.
    """
    image = _open(source, axes, series, stack)
    if pixel_size is not None:
        # kept coordinates would contradict the new pixel size
        metadata = {key: value for key, value in image.metadata.items() if key != "coords"}
        image = replace(image, pixel_size=_merged(image, pixel_size), metadata=metadata)
    return image.level(level)


def _open(source: Any, axes: str | None, series: int | None, stack: str | None) -> Image:
    if isinstance(source, Image):
        if axes is not None and canonical(parse(axes)) != source.axes:
            raise AxesError(f"--axes {axes}, but {source.name} was opened with {source.axes}.", mend="leave axes out")
        return source
    if isinstance(source, str | os.PathLike):
        return _open_path(os.fspath(source), axes, series, stack)
    # an xarray object can only exist where xarray was imported
    xarray = sys.modules.get("xarray")
    if xarray is not None and isinstance(source, xarray.DataArray):
        _only_one("a DataArray", series, stack)
        return open_xarray(source, axes=axes)
    if isinstance(source, np.ndarray) or all(hasattr(source, a) for a in ("shape", "dtype", "__getitem__")):
        _only_one("an array", series, stack)
        return open_array(source, axes=axes)
    if isinstance(source, list | tuple) and source and all(isinstance(p, str | os.PathLike) for p in source):
        raise ImageError(
            f"a list of {len(source)} paths is not one image.",
            mend="open them one by one, or name a folder and stack='t'",
        )
    raise DtypeError(
        f"{type(source).__name__} holds no pixels that can be read.",
        mend="a path, a numpy array or an xarray DataArray",
    )


def _only_one(name: str, series: int | None, stack: str | None) -> None:
    """Refuse options that have no meaning here, instead of dropping them silently."""
    if series:
        raise ImageError(f"{name} holds one image, no series {series}.", mend="leave --series out")
    if stack is not None:
        raise AxesError(
            f"--stack {stack} is the axis along the files of a folder; {name} is one image.",
            mend="--axes names its axes",
        )


def _open_path(text: str, axes: str | None, series: int | None, stack: str | None) -> Image:
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    elif is_url(text):
        _only_one(text, None, stack)
        return open_zarr(text, axes=axes, series=series)
    path = Path(text).expanduser()
    if path.is_dir():
        if is_zarr(path):
            return open_zarr(str(path.resolve()), axes=axes, series=series)
        return _open_files(tiffs_in(path), path, axes=axes, series=series, stack=stack)
    if not path.exists():
        pattern = any(c in text for c in "*?[")
        found = glob.glob(str(path)) if pattern else []  # noqa: PTH207  (Path.glob takes no absolute patterns)
        if not found:
            raise _missing(path, pattern=pattern)
        return _open_files(sorted(map(Path, found), key=natural), path, axes=axes, series=series, stack=stack)
    try:
        made = path.suffix.lower() in FORMATS
        _only_one(path.name, None if made or is_tiff(path) else series, stack)
        if made:
            return open_bioio(path, axes=axes, series=series)
        if path.suffix.lower() == ".npy":
            return open_npy(path, axes=axes)
        if is_tiff(path):
            return open_tiff(path, axes=axes, series=series)
    except PermissionError as error:
        raise ImageError(f"{path.name} may not be read.", f"{path}: {error.strerror}", f"chmod u+r {path}") from error
    raise _foreign(path)


def _open_files(paths: list[Path], place: Path, *, axes: str | None, series: int | None, stack: str | None) -> Image:
    if not paths:
        raise ImageError(
            f"{place.name} holds no TIFF and is no OME-Zarr.", str(place), "name a folder with .tif files, or one file"
        )
    wrong = next((p for p in paths if p.is_dir() or not is_tiff(p)), None)
    if wrong is not None:
        raise ImageError(
            f"{wrong.name} is not a TIFF; only TIFFs are read together as one image.",
            str(place),
            "narrow the pattern, e.g. 'folder/*.tif'",
        )
    if len(paths) == 1 and stack is None:
        return open_tiff(paths[0], axes=axes, series=series)
    return open_stack(paths, place, axes=axes, stack=stack, series=series)


def _missing(path: Path, *, pattern: bool) -> ImageError:
    if pattern:
        return ImageError(f"no file fits the pattern {path}.", mend="put it in quotes and check the folder")
    # a path into a store or folder: name the part that is there
    parent = next((p for p in path.parents if p.exists()), Path())
    there = [p.name for p in parent.iterdir()] if parent.is_dir() else []
    gone = path.relative_to(parent).parts[0] if parent in path.parents else path.name
    return ImageError(
        f"{path.name} does not exist.",
        f"{parent.resolve()} holds no {gone!r}{nearest(gone, there)}",
        "check the spelling",
    )


def _foreign(path: Path) -> ImageError:
    maker = _NOT_READ.get(path.suffix.lower())
    with path.open("rb") as file:
        head = file.read(8)
    return ImageError(
        f"{path.name} is a file of {maker}; TIFF, OME-Zarr, CZI, ND2, LIF and .npy are read."
        if maker
        else f"{path.name} is no image that can be read: it begins with {head!r}.",
        str(path),
        "open it in Fiji (File > Import > Bio-Formats) and save it as OME-TIFF, or use bioformats2raw",
    )


def _merged(image: Image, given: Mapping[str, float] | Sequence[float]) -> PixelSize:
    """The image's pixel size with what the user gave in its place. Raises AxesError for what cannot be."""
    if isinstance(given, PixelSize):
        given = {a: v for a in "zyxt" if (v := given.get(a)) is not None}
    if isinstance(given, Mapping):
        sizes = {str(letter).lower(): value for letter, value in given.items()}
    else:
        if len(given) not in (2, 3):
            raise AxesError(
                f"--pixel-size takes 2 numbers (y, x) or 3 (z, y, x), not {len(given)}.",
                mend="--pixel-size 0.5,0.5 (um, y,x)",
            )
        sizes = dict(zip("zyx"[3 - len(given) :], given, strict=True))
    for letter, value in sizes.items():
        if letter not in tuple("zyxt") or letter not in image.axes:
            raise AxesError(
                f"--pixel-size names {letter!r}; {image.name} has the axes {image.axes}.",
                mend="--pixel-size 0.5,0.5 (um, y,x)",
            )
        if not isinstance(value, int | float | np.number) or not math.isfinite(value) or value <= 0:
            raise AxesError(f"--pixel-size {letter} {value!r} is no size in um.", mend="a number above 0, e.g. 0.5")
    return replace(image.pixel_size, **{a: float(v) for a, v in sizes.items()})
