"""Any region of any TIFF structure equals numpy slicing; threads, processes and memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voidzoo.zoo.open import open_image

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (5, 70, 53)
WRITE = {
    "raw": {},
    "raw big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True, "byteorder": ">"},
    "raw pages apart": {"compression": None, "software": "x" * 3, "contiguous": False},
    "strips": {"rowsperstrip": 7},
    "LZW, one row a strip": {"compression": "lzw", "rowsperstrip": 1, "predictor": True},
    "deflate, one strip": {"compression": "zlib", "byteorder": ">"},
    "PackBits": {"compression": "packbits", "rowsperstrip": 11},
    "zstd tiles": {"compression": "zstd", "tile": (16, 32), "predictor": True},
    "raw tiles": {"tile": (32, 16)},
    "volumetric tiles": {"tile": (2, 16, 32), "compression": "zlib"},
    "volumetric raw": {"tile": (2, 32, 16), "bigtiff": True, "byteorder": ">"},
    "ImageJ": {"imagej": True},
    "OME": {"ome": True, "compression": "lzw"},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, np.ndarray]]:
    """The structures above, and with them planar and contiguous samples, with float and 16-bit pixels."""
    folder = tmp_path_factory.mktemp("tiffs")
    rng = np.random.default_rng(7)
    paths, arrays = {}, {}
    for i, (name, options) in enumerate(WRITE.items()):
        pixels = rng.integers(0, 4000, SHAPE).astype(
            np.float32 if i % 3 == 2 and "predictor" not in options else np.uint16
        )
        more = dict(options)
        metadata = {"axes": "ZYX"}
        path = folder / f"{i}{'.ome' if more.pop('ome', False) else ''}.tif"
        apart = more.pop("contiguous", True) is False
        if apart:
            more.pop("compression")
            with tifffile.TiffWriter(path) as writer:
                for plane in pixels:
                    writer.write(plane, contiguous=False, metadata=None, extratags=[(65000, "s", 0, "gap" * 50, False)])
        else:
            tifffile.imwrite(path, pixels, metadata=metadata, photometric="minisblack", **more)
        paths[name], arrays[name] = path, pixels
    colours = rng.integers(0, 255, (3, 70, 53)).astype(np.uint8)
    for name, options in {
        "planar": {"planarconfig": "separate", "compression": "lzw", "rowsperstrip": 9},
        "planar tiles": {"planarconfig": "separate", "compression": "zlib", "tile": (16, 16)},
        "planar raw": {"planarconfig": "separate"},
    }.items():
        paths[name], arrays[name] = folder / f"{name}.tif", colours
        tifffile.imwrite(paths[name], colours, photometric="rgb", **options)
    paths["contig"], arrays["contig"] = folder / "contig.tif", colours
    tifffile.imwrite(
        paths["contig"], colours.transpose(1, 2, 0), photometric="rgb", compression="zlib", rowsperstrip=13
    )
    return paths, arrays


@pytest.mark.parametrize("name", [*WRITE, "planar", "planar tiles", "planar raw", "contig"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_any_region_equals_numpy_slicing(files, name, draw):
    """A random region, empty ones too, of every structure is the same part of the array that was written."""
    path, pixels = files[0][name], files[1][name]
    image = open_image(path, axes="zyx" if name == "raw pages apart" else None)
    assert image.shape == pixels.shape
    assert image.dtype == pixels.dtype
    region = {}
    for letter, size in image.sizes.items():
        start = draw.draw(st.integers(0, size))
        region[letter] = slice(start, draw.draw(st.integers(start, size)))
    part = image.read(region)
    assert np.array_equal(part, pixels[tuple(region[a] for a in image.axes)])
    assert part.dtype.isnative
    assert part.flags.writeable


@pytest.mark.parametrize("name", [*WRITE, "planar", "contig"])
def test_pickle_is_small_and_reads_the_same(files, name):
    """An image travels to another process as a few hundred bytes, without handles or pixels."""
    path, pixels = files[0][name], files[1][name]
    image = open_image(path, axes="zyx" if name == "raw pages apart" else None)
    image.read()
    parcel = pickle.dumps(image)
    assert len(parcel) < 2000
    other = pickle.loads(parcel)
    assert np.array_equal(other.read(), pixels)
    assert (other.axes, other.pixel_size, other.notes) == (image.axes, image.pixel_size, image.notes)


@pytest.mark.parametrize("name", ["raw", "LZW, one row a strip", "zstd tiles", "volumetric tiles"])
def test_threads_read_the_same(files, name):
    """Many threads on one image, also one that was just unpickled, read what one thread reads."""
    image = pickle.loads(pickle.dumps(open_image(files[0][name])))
    pixels = files[1][name]
    rng = np.random.default_rng(3)
    regions = [{a: slice(*np.sort(rng.integers(0, n + 1, 2))) for a, n in image.sizes.items()} for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for region, part in zip(regions, pool.map(image.read, regions), strict=True):
            assert np.array_equal(part, pixels[tuple(region[a] for a in image.axes)])


def test_sparse_tiles_are_filled(tmp_path):
    """A tile that was never written (byte count 0) reads as the nodata value, 0."""

    def tiles():
        yield np.full((16, 16), 5, np.uint8)
        yield None
        yield None
        yield np.full((16, 16), 7, np.uint8)

    tifffile.imwrite(tmp_path / "a.tif", tiles(), shape=(32, 32), dtype=np.uint8, tile=(16, 16), compression="zlib")
    pixels = open_image(tmp_path / "a.tif").read()
    assert (pixels[:16, :16] == 5).all()
    assert (pixels[16:, 16:] == 7).all()
    assert not pixels[:16, 16:].any()


def test_jpeg_tiles_equal_tifffile(tmp_path):
    """JPEG tiles with shared tables decode as tifffile decodes them."""
    y, x = np.mgrid[:100, :90]
    pixels = np.stack([y + x, 2 * y, 2 * x], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="jpeg", tile=(32, 48))
    image = open_image(tmp_path / "a.tif")
    whole = tifffile.imread(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(image), whole)
    assert np.array_equal(image.read({"y": slice(30, 70), "c": slice(1, 2)})[0], whole[30:70, :, 1])


def test_a_region_decodes_only_what_it_touches(files, monkeypatch):
    """One pixel of a tiled page decodes one tile, the next pixel none."""
    image = open_image(files[0]["zstd tiles"])
    keyframe = image.source.array.layout.first.keyframe
    decoded = []
    original = keyframe.decode
    monkeypatch.setitem(
        keyframe.__dict__, "decode", lambda data, index, **k: decoded.append(index) or original(data, index, **k)
    )
    image.read({"z": slice(2, 3), "y": slice(20, 21), "x": slice(40, 41)})
    image.read({"z": slice(2, 3), "y": slice(21, 22), "x": slice(41, 42)})
    assert decoded == [3]  # second row, second column of 2 columns


def sparse_tiff(path: Path, shape: tuple[int, int, int], *, imagej: bool) -> None:
    """A TIFF of `shape` uint16 whose pixels are a hole in the file, with three written values."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * 2
    if imagej:
        # ImageJ's way above 4 GB: one page, the others implied
        text = f"ImageJ=1.54f\nimages={shape[0]}\nslices={shape[0]}\nunit=micron\nspacing=2.0\n"
        tifffile.imwrite(
            path, np.zeros(shape[1:], np.uint16), description=text, metadata=None, resolution=(4, 4), byteorder=">"
        )
    else:
        tifffile.imwrite(path, shape=shape, dtype=np.uint16, metadata={"axes": "ZYX"}, bigtiff=True)
        return
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[0].dataoffsets[0]
    with path.open("r+b") as file:
        file.truncate(offset + nbytes)
        file.seek(offset + nbytes - 2)
        file.write((4321).to_bytes(2, "big"))


@pytest.mark.parametrize("imagej", [True, False])
def test_opening_10_gb_costs_nothing(tmp_path, imagej):
    """A 10-GB stack opens and gives its last pixel within a few MB; ImageJ's single page above 4 GB works."""
    shape = (1300, 2000, 2000)  # 10.4 GB
    sparse_tiff(tmp_path / "big.tif", shape, imagej=imagej)
    assert (tmp_path / "big.tif").stat().st_size > 10e9
    if (tmp_path / "big.tif").stat().st_blocks * 512 > 1e9:
        pytest.skip("this file system writes the holes of a file out")
    open_image(tmp_path / "big.tif")  # imports are not what is measured
    tracemalloc.start()
    image = open_image(tmp_path / "big.tif")
    corner = image.read({"z": slice(1299, 1300), "y": slice(1990, 2000), "x": slice(1990, 2000)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert image.shape == shape
    assert peak < 4e6
    assert corner[0, -1, -1] == (4321 if imagej else 0)
    if imagej:
        assert (image.pixel_size.z, image.pixel_size.y) == (2.0, 0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_stays_flat_over_a_large_stack(tmp_path):
    """Walking over 2 GB of uncompressed planes in blocks keeps resident memory below 100 MB more than at the start."""
    sparse_tiff(tmp_path / "big.tif", (250, 2000, 2000), imagej=False)
    code = f"""
import resource
from voidzoo.zoo.open import open_image
image = open_image({str(tmp_path / "big.tif")!r})
image.read({{"z": slice(0, 1)}})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for z in range(0, 250, 5):
    image.read({{"z": slice(z, z + 5), "y": slice(0, 1000)}})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100_000  # kB


def test_opening_a_tiff_imports_no_zarr_dask_xarray(data):
    """The heavy libraries stay out until their formats come up."""
    code = f"""
import sys
from voidzoo.zoo.open import open_image
open_image({str(data / "gen/yx_int16.tif")!r}).read()
print([m for m in ("zarr", "dask", "xarray", "torch", "onnxruntime") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
