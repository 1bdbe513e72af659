"""The TIFFs that we write open, with their sizes and um, in programs that nobody here wrote: ImageJ, tifffile, xarray."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.zoo.package import Package

IMAGEJ = Path("/usr/share/java/ij.jar")
"""ImageJ as Debian installs it."""
MACRO = """
open(getArgument());
getDimensions(w, h, c, z, t);
getVoxelSize(vw, vh, vd, unit);
print("image", w, h, c, z, t, bitDepth(), d2s(vw, 9), d2s(vh, 9), unit);
for (i = 1; i <= nSlices; i++) {
    setSlice(i);
    getStatistics(area, mean, min, max);
    print("plane", i, d2s(mean, 6), d2s(min, 6), d2s(max, 6), getPixel(0, 0), getPixel(w - 1, h - 2));
}
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return make_package(tmp_path_factory.mktemp("packages") / "p", depth=1)


@pytest.fixture(scope="module")
def imagej(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the macro on a file -> the printed lines as lists of words."""
    if not (IMAGEJ.exists() and shutil.which("xvfb-run") and shutil.which("java")):
        pytest.skip("needs the Debian packages imagej and xvfb")
    folder = tmp_path_factory.mktemp("imagej")
    (folder / "read.ijm").write_text(MACRO)

    def run(path: Path) -> list[list[str]]:
        done = subprocess.run(
            ["xvfb-run", "-a", "java", f"-Duser.home={folder}", "-cp", str(IMAGEJ), "ij.ImageJ",
             "-ijpath", "/usr/share/imagej", "-batch", str(folder / "read.ijm"), str(path)],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        lines = [line.split() for line in done.stdout.splitlines() if line.startswith(("image ", "plane "))]
        assert lines, done.stdout + done.stderr
        return lines

    return run


def predicted(package: Package, folder: Path, shape: tuple[int, ...], dtype: str, size: tuple[float, ...]) -> Path:
    """A random image of random intensities, predicted into an OME-TIFF with pixels of (z,) y, x um."""
    x = micrograph(np.random.default_rng(), shape, dtype)
    axes = "zyx"[-len(shape) :]
    vz.predict(package, x, axes=axes, pixel_size=size, out=folder / "o.ome.tif", device="cpu")
    return folder / "o.ome.tif"


CASES = {
    "plane-8": ((150, 201), "uint8"),
    "plane-16": ((201, 150), "uint16"),
    "plane-float": ((131, 140), "float32"),
    "stack-8": ((4, 90, 71), "uint8"),
    "stack-16": ((5, 64, 83), "uint16"),
    "stack-float": ((3, 77, 90), "float32"),
    "pyramid-16": ((3, 640, 530), "uint16"),
    "pyramid-float": ((700, 1030), "float32"),
}


@pytest.mark.parametrize("case", CASES)
def test_imagej_opens_what_we_write(package: Package, imagej: Any, tmp_path: Path, case: str) -> None:
    """ImageJ shows the sizes, the bit depth, the pixel size in um, and in every plane the numbers that we wrote."""
    shape, dtype = CASES[case]
    rng = np.random.default_rng()
    y_um, x_um = (float(v) for v in rng.uniform(0.05, 1.5, 2).round(4))
    path = predicted(package, tmp_path, shape, dtype, (2.0, y_um, x_um)[-len(shape) :])
    pixels = vz.open_image(path).read().reshape(-1, *shape[-2:])
    with tifffile.TiffFile(path) as tiff:
        assert len(tiff.series[0].levels) == (1 if max(shape[-2:]) <= 256 else 2 if max(shape[-2:]) <= 512 else
                                              3 if max(shape[-2:]) <= 1024 else 4)  # fmt: skip
    image, *planes = imagej(path)
    assert [int(v) for v in image[1:3]] == [shape[-1], shape[-2]]
    assert np.prod([int(v) for v in image[3:6]]) == len(pixels)
    assert int(image[6]) == {"uint8": 8, "uint16": 16, "float32": 32}[dtype]
    assert image[9] in ("um", "µm", "micron", "microns")
    assert [float(v) for v in image[7:9]] == pytest.approx([x_um, y_um], rel=1e-4)
    assert len(planes) == len(pixels)
    for found, plane in zip(planes, pixels, strict=True):
        expected = [plane.mean(dtype=np.float64), plane.min(), plane.max(), plane[0, 0], plane[-2, -1]]
        assert [float(v) for v in found[2:]] == pytest.approx([float(v) for v in expected], rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tifffile_reads_the_same(package: Package, tmp_path: Path, dtype: str) -> None:
    """tifffile, by itself, sees the axes, the um of OME and of the TIFF tags, and bit-equal pixels of all levels."""
    path = predicted(package, tmp_path, (2, 300, 270), dtype, (1.5, 0.4, 0.2))
    image = vz.open_image(path)
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        assert (series.axes, series.shape, str(series.dtype)) == ("ZYX", (2, 300, 270), dtype)
        assert [level.shape for level in series.levels] == [(2, 300, 270), (2, 150, 135)]
        assert np.array_equal(series.asarray(), image.read())
        assert np.array_equal(series.levels[1].asarray(), image.level(1).read())
        ome = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [ome[f"PhysicalSize{a}"] for a in "ZYX"] == pytest.approx([1.5, 0.4, 0.2])
        assert {ome[f"PhysicalSize{a}Unit"] for a in "ZYX"} == {"µm"}
        tags = tiff.pages[0].tags
        assert tags["ResolutionUnit"].value == 3, "centimetre"
        numerator, denominator = tags["XResolution"].value
        assert 1e4 / (numerator / denominator) == pytest.approx(0.2, rel=1e-5)
    expected = vz.predict(package, micrograph(np.random.default_rng(1), (300, 270), dtype), axes="yx", device="cpu")
    assert expected.dtype == image.dtype


def test_xarray_and_zarr_read_the_same(package: Package, tmp_path: Path) -> None:
    """An OME-Zarr read by zarr alone and as a DataArray has the pixels of the TIFF, and coordinates in um."""
    x = micrograph(np.random.default_rng(), (2, 300, 270))
    both = {}
    for name in ("o.ome.zarr", "o.ome.tif"):
        both[name] = vz.predict(package, x, axes="zyx", pixel_size=(1.5, 0.4, 0.2), out=tmp_path / name, device="cpu")
    pixels = tifffile.imread(tmp_path / "o.ome.tif")
    group = zarr.open_group(tmp_path / "o.ome.zarr", mode="r")
    assert np.array_equal(group["0"][:], pixels)
    assert group["0"].metadata.dimension_names == ("z", "y", "x")
    for result in both.values():
        array = result.image.to_xarray()
        assert array.dims == ("z", "y", "x")
        assert np.array_equal(array.values, pixels)
        assert array.coords["x"].values == pytest.approx(np.arange(270) * 0.2)
        assert array.coords["z"].values == pytest.approx([0, 1.5])
        assert array.coords["y"].attrs["units"] == "um"
        assert np.array_equal(array.isel(z=1, y=slice(10, 20)).values, pixels[1, 10:20])


def test_a_result_without_pixel_size_claims_none(package: Package, tmp_path: Path) -> None:
    """Where the image has no pixel size the TIFF has no resolution either: nobody reads a made-up um."""
    x = micrograph(np.random.default_rng(), (80, 90))
    vz.predict(package, x, axes="yx", out=tmp_path / "o.ome.tif", device="cpu")
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        assert "PhysicalSize" not in tiff.ome_metadata
        assert tiff.pages[0].tags["ResolutionUnit"].value == 1
    assert not vz.open_image(tmp_path / "o.ome.tif").pixel_size.known
