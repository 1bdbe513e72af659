"""The images of the benchmark: uint16 stacks, written once into a cache folder, the same on every machine.

`nuclei`: real nuclei (benchmarks/data/dsb2018) turned, mirrored and put side by side, with Gaussian noise of sigma 20 grey
values of the 8-bit original; `blobs`: a volume of synthetic cells with shot noise; `sparse`: mostly zeros that take no room
on the disk, four planes of noise in every 64, so that what is compressed and written is not nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

DATA = Path(__file__).parent / "data" / "dsb2018"
SIGMA = 20.0
GAIN, OFFSET = 8.0, 800.0
"""8-bit grey values -> those of a 16-bit camera."""
BASES = 4
"""Different planes before the noise; further ones are these, rolled."""

Floats = np.ndarray[Any, np.dtype[np.float32]]
Pixels = np.ndarray[Any, np.dtype[np.uint16]]


@dataclass(frozen=True)
class Picture:
    """An image by its kind (`nuclei`, `blobs`, `sparse`) and its shape (z, y, x)."""

    kind: str
    shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.kind}-" + "x".join(str(n) for n in self.shape)

    @property
    def voxels(self) -> int:
        """How many there are."""
        z, y, x = self.shape
        return z * y * x

    def write(self, folder: Path) -> Path:
        """The TIFF of this image in `folder`, made if it is not there."""
        path = folder / f"{self.name}.tif"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part.tif")
        if self.kind == "sparse":
            _sparse(draft, self.shape)
        else:
            data = nuclei(self.shape) if self.kind == "nuclei" else iter(blobs(self.shape))
            tifffile.imwrite(draft, data, shape=self.shape, dtype="uint16", photometric="minisblack",
                             bigtiff=2 * self.voxels > 4e9, metadata={"axes": "ZYX"})  # fmt: skip
        draft.rename(path)
        return path

    def read_once(self, folder: Path) -> None:
        """Bring the file into the page cache: all contenders read from there."""
        if self.kind == "sparse":
            return
        with self.write(folder).open("rb") as file:
            while file.read(2**24):
                pass


def clean_nuclei() -> list[Floats]:
    """The clean images of the data set, (y, x), grey values 0 to 255."""
    return [tifffile.imread(path).astype(np.float32) for path in sorted(DATA.glob("*.tif"))]


def noisy(clean: Floats, rng: np.random.Generator) -> Pixels:
    """Noise of sigma 20, then the values of a 16-bit camera."""
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    return np.clip((clean + SIGMA * noise) * GAIN + OFFSET, 0, 65535).astype(np.uint16)


def mosaic(images: list[Floats], shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Images turned and mirrored at random side by side, (y, x)."""
    side = images[0].shape[0]
    rows = [
        np.concatenate([_turned(images[rng.integers(len(images))], rng) for _ in range(ceil(shape[1] / side))], axis=1)
        for _ in range(ceil(shape[0] / side))
    ]
    return np.concatenate(rows)[: shape[0], : shape[1]]


def _turned(image: Floats, rng: np.random.Generator) -> Floats:
    image = np.rot90(image, int(rng.integers(4)))
    return image[:, ::-1] if rng.integers(2) else image


def nuclei(shape: tuple[int, int, int], seed: int = 0) -> Iterator[Pixels]:
    """Planes of noisy nuclei, uint16 (y, x)."""
    rng = np.random.default_rng(seed)
    images = clean_nuclei()
    bases = [mosaic(images, shape[1:], rng) for _ in range(min(BASES, shape[0]))]
    for z in range(shape[0]):
        yield noisy(np.roll(bases[z % len(bases)], (37 * z, 53 * z), (0, 1)), rng)


def blobs(shape: tuple[int, int, int], seed: int = 0) -> Pixels:
    """A volume of round cells on a background with shot noise, uint16 (z, y, x)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    points = np.zeros(shape, np.float32)
    count = max(4, points.size // 4000)
    points[tuple(rng.integers(0, n, count) for n in shape)] = rng.gamma(2.0, 1.0, count)
    cells = gaussian_filter(points, (2.0, 3.0, 3.0))
    light = 200 + 2000 * cells / cells.max()
    noise = np.sqrt(8 * light) * rng.standard_normal(shape, dtype=np.float32)
    return np.clip(light + noise + 100, 0, 65535).astype(np.uint16)


def _sparse(path: Path, shape: tuple[int, int, int]) -> None:
    """A BigTIFF whose pixels were never written but for 4 planes in 64: holes, read as zeros."""
    tifffile.imwrite(
        path, shape=shape, dtype="uint16", bigtiff=True, photometric="minisblack", metadata={"axes": "ZYX"}
    )
    with tifffile.TiffFile(path) as tiff:
        start = tiff.series[0].dataoffset
    if start is None:
        raise ValueError(f"{path} is not one run of pixels")
    rng = np.random.default_rng(0)
    planes = [rng.integers(500, 1000, shape[1:], dtype=np.uint16) for _ in range(4)]
    with path.open("r+b") as file:
        for z in range(0, shape[0], 64):
            file.seek(start + z * planes[0].nbytes)
            for plane in planes[: shape[0] - z]:
                file.write(plane.tobytes())


def as_zarr(picture: Picture, folder: Path) -> Path:
    """The image as a Zarr group with one array `raw`, for a peer that reads nothing else out of core."""
    import zarr

    path = folder / f"{picture.name}.zarr"
    if not path.exists():
        draft = path.with_suffix(".part.zarr")
        chunk = (1, *(min(512, n) for n in picture.shape[1:]))
        array = zarr.open_group(draft, mode="w").create_array("raw", shape=picture.shape, chunks=chunk, dtype="uint16")
        with tifffile.TiffFile(picture.write(folder)) as tiff:
            for z, page in enumerate(tiff.pages):
                array[z] = page.asarray()
        draft.rename(path)
    return path
