"""What a read decodes: counted in bytes, once for each strip, tile or chunk, kept within a bound, right from threads."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voidzoo.zoo.errors import ImageError
from voidzoo.zoo.image import Image
from voidzoo.zoo.open import open_image
from voidzoo.zoo.readers.cache import ChunkCache

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (6, 150, 130)


def write_tiff(path: Path, pixels: np.ndarray, **options: Any) -> None:
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata={"axes": "ZYX"[-pixels.ndim :]}, **options)


def write_zarr(path: Path, pixels: np.ndarray, chunks: tuple[int, ...], shards: tuple[int, ...] | None = None) -> None:
    names = list("zyx"[-pixels.ndim :])
    array = zarr.create_array(
        path, shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, shards=shards, dimension_names=names
    )
    array[:] = pixels


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], np.ndarray]:
    """The same pixels as strips, tiles, one strip a page, chunks and shards, none of which fits the image's size."""
    folder = tmp_path_factory.mktemp("decoded")
    pixels = np.random.default_rng(5).integers(0, 60000, SHAPE, dtype=np.uint16)
    write_tiff(folder / "strips.tif", pixels, compression="zlib", rowsperstrip=16)
    write_tiff(folder / "tiles.tif", pixels, compression="lzw", tile=(48, 32))
    write_tiff(folder / "pages.tif", pixels, compression="zlib")
    write_zarr(folder / "chunks.zarr", pixels, (2, 37, 41))
    write_zarr(folder / "shards.zarr", pixels, (2, 25, 26), (4, 75, 130))
    return {path.stem: path for path in folder.iterdir()}, pixels


KINDS = ["strips", "tiles", "pages", "chunks", "shards"]


def blocks(shape: tuple[int, ...], block: int, halo: int) -> Iterator[dict[str, slice]]:
    """Regions of `block` + `halo` on both sides along y and x, in raster order, cut at the border."""
    for z in range(shape[0]) if len(shape) == 3 else [0]:
        for y, x in itertools.product(*(range(0, n, block) for n in shape[-2:])):
            region = {
                "y": slice(max(0, y - halo), min(shape[-2], y + block + halo)),
                "x": slice(max(0, x - halo), min(shape[-1], x + block + halo)),
            }
            yield region | ({"z": slice(z, z + 1)} if len(shape) == 3 else {})


@pytest.mark.parametrize("kind", ["deflate strips", "deflate page", "OME-Zarr", "shards"])
def test_overlapping_blocks_in_raster_order_decode_everything_once(tmp_path, kind):
    """Blocks of 512 + 48 over 1024 x 1024: bytes decoded / bytes of the image is 1 with a cache of a row of blocks,
    and, so that the test can fail, well above 1 with none."""
    pixels = np.random.default_rng(8).integers(0, 4000, (1024, 1024), dtype=np.uint16)
    path = tmp_path / ("a.tif" if kind.startswith("deflate") else "a.ome.zarr")
    if kind == "OME-Zarr":
        axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
        scales = [{"axes": axes, "datasets": [{"path": "0"}]}]
        zarr.create_group(path, attributes={"ome": {"version": "0.5", "multiscales": scales}})
        write_zarr(path / "0", pixels, (256, 256))
    elif kind == "shards":
        write_zarr(path, pixels, (128, 128), (512, 512))
    else:
        rows = 1024 if kind == "deflate page" else 8
        write_tiff(path, pixels, compression="zlib", rowsperstrip=rows)
    image = open_image(path)
    amplification = {}
    for nbytes in (0, 2 * 2**20):
        cached = image.with_cache(nbytes)
        for region in blocks(pixels.shape, 512, 24):
            assert np.array_equal(cached.read(region), pixels[region["y"], region["x"]])
        amplification[nbytes] = cached.decoded / image.nbytes
    assert amplification[2 * 2**20] <= 1.05
    assert amplification[0] > 1.15
    assert image.decoded == 0


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_counts_whole_chunks_each_time(sources, kind):
    """One pixel costs the strip, tile or chunk it lies in; nothing more while that is kept; without a cache again."""
    paths, pixels = sources
    image = open_image(paths[kind])
    pixel = {"z": slice(1, 2), "y": slice(20, 21), "x": slice(40, 41)}
    lengths = [min(n, size) for n, size in zip(image.chunks, SHAPE, strict=True)]
    chunk = int(np.prod(lengths)) * 2
    for nbytes, counts in ((2**20, [chunk] * 3), (0, [chunk, 2 * chunk, 3 * chunk])):
        cached = image.with_cache(nbytes)
        for count in counts:
            assert cached.read(pixel)[0, 0, 0] == pixels[1, 20, 40]
            assert cached.decoded == count
    whole = image.with_cache(0)
    whole.read()
    assert whole.decoded == image.nbytes  # what pads the last chunks is not counted


@pytest.mark.parametrize("kind", ["TIFF", "raw pages apart", "npy", "array"])
def test_pixels_that_lie_as_they_are_count_what_was_asked(tmp_path, rng, kind):
    """Uncompressed pixels are read straight: a region costs its own bytes, each time."""
    pixels = rng.integers(0, 999, SHAPE, dtype=np.uint16)
    source: Any = tmp_path / "a.tif"
    if kind == "TIFF":
        write_tiff(source, pixels)
    elif kind == "raw pages apart":
        with tifffile.TiffWriter(source) as writer:
            for plane in pixels:
                writer.write(plane, contiguous=False, metadata=None, extratags=[(65000, "s", 0, "gap" * 50, False)])
    elif kind == "npy":
        source = tmp_path / "a.npy"
        np.save(source, pixels)
    else:
        source = pixels
    image = open_image(source, axes="zyx")
    for i in range(1, 3):
        image.read({"z": slice(1, 3), "y": slice(10, 60)})
        assert image.decoded == i * 2 * 50 * 130 * 2


def test_a_dask_array_counts_whole_blocks():
    """Of a dask array the blocks that a region touches are computed whole."""
    import dask.array as da

    image = open_image(da.zeros((100, 90), chunks=((40, 60), (30, 30, 30)), dtype=np.uint8))
    image.read({"y": slice(39, 41), "x": slice(29, 31)})
    assert image.decoded == 100 * 60
    image.read({"y": slice(40, 41), "x": slice(30, 60)})
    assert image.decoded == 100 * 60 + 60 * 30


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_random_regions_from_threads_are_right_whatever_the_cache(sources, kind, draw):
    """Twelve random regions read by four threads equal numpy slicing, with any cache, and are decoded at most as often
    as they were asked for; what is kept stays below the limit (or is one chunk)."""
    paths, pixels = sources
    image = open_image(paths[kind]).with_cache(draw.draw(st.sampled_from([0, 1, 5_000, 20_000, 60_000, 2**20])))
    regions = []
    for _ in range(12):
        region = {}
        for letter, size in image.sizes.items():
            start = draw.draw(st.integers(0, size))
            region[letter] = slice(start, draw.draw(st.integers(start, size)))
        regions.append(region)
    with ThreadPoolExecutor(4) as pool:
        for region, part in zip(regions, pool.map(image.read, regions), strict=True):
            assert np.array_equal(part, pixels[tuple(region[a] for a in "zyx")])
            part[...] = 0  # what was read belongs to the reader
    cache = image.source.cache
    largest = int(np.prod(image.chunks)) * 2
    assert cache.nbytes <= max(cache.limit, largest if cache.limit else 0)
    assert image.decoded <= 12 * image.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_want_the_same_decode_it_once(sources, kind):
    """Eight threads reading the whole image at once decode as much as one."""
    paths, pixels = sources
    image = open_image(paths[kind]).with_cache(2**24)
    start = threading.Barrier(8)

    def read(_: int) -> bool:
        start.wait()
        return np.array_equal(image.read(), pixels)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert image.decoded == image.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_pickles_take_the_limit_along_and_no_pixels(sources, kind):
    """After pickling: the same limit, an empty cache, a count of 0; after close: nothing kept, the next read works."""
    paths, pixels = sources
    image = open_image(paths[kind]).with_cache(123_456)
    image.read()
    assert image.source.cache.nbytes > 0
    parcel = pickle.dumps(image)
    assert len(parcel) < 2500
    other = pickle.loads(parcel)
    assert (other.source.cache.limit, other.source.cache.nbytes, other.decoded) == (123_456, 0, 0)
    assert np.array_equal(other.read(), pixels)
    image.close()
    assert image.source.cache.nbytes == 0
    assert np.array_equal(image.read(), pixels)


def test_files_of_a_stack_share_one_cache(tmp_path, rng):
    """A folder of TIFFs has one limit for all of its files, also after pickling, and counts them together."""
    pixels = rng.integers(0, 60000, (8, 40, 50), dtype=np.uint16)
    for i, plane in enumerate(pixels):
        write_tiff(tmp_path / f"{i}.tif", plane, compression="zlib")
    first = open_image(tmp_path, stack="t")
    for image in (first, pickle.loads(pickle.dumps(first)), first.with_cache(10_000)):
        assert np.array_equal(image.read(), pixels)
        assert image.decoded == pixels.nbytes
        assert len({id(file.cache) for file in image.source.files}) == 1
    assert image.source.cache.nbytes <= 10_000
    assert np.array_equal(image.read({"t": slice(7, 8)}), pixels[7:])
    assert image.decoded == pixels.nbytes  # the last ones were kept


def test_the_cache_stays_below_its_limit():
    """Chunks not asked for the longest are dropped first; one larger than all is kept alone; 0 keeps none."""
    cache = ChunkCache(1000)
    for i in range(20):
        cache.take((0, i), lambda: np.zeros(300, np.uint8))
        cache.take((0, 0), lambda: np.zeros(300, np.uint8))  # asked for again and again
        assert cache.nbytes <= 1000
    assert cache.decoded == 20 * 300
    cache.take((1, 0), lambda: np.zeros(5000, np.uint8))
    assert cache.nbytes == 5000
    cache.clear()
    assert (cache.nbytes, cache.decoded) == (0, 11_000)
    none = ChunkCache(0)
    none.take((0, 0), lambda: np.zeros(5, np.uint8))
    assert none.nbytes == 0


def test_a_chunk_that_fails_or_is_interrupted_leaves_nobody_waiting():
    """Those who wait for a chunk get the error of its decoding, or, where that was interrupted, decode it themselves."""
    for error, outcome in ((ImageError("broken"), "broken"), (KeyboardInterrupt(), "decoded")):
        cache = ChunkCache()
        begun, go = threading.Event(), threading.Event()

        def fail(error: BaseException = error, begun: threading.Event = begun, go: threading.Event = go) -> np.ndarray:
            begun.set()
            go.wait(30)
            raise error

        def wait(cache: ChunkCache = cache) -> str:
            try:
                cache.take((0,), lambda: np.ones(3))
            except ImageError as caught:
                return caught.what
            return "decoded"

        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(cache.take, (0,), fail)
            assert begun.wait(30)
            second = pool.submit(wait)
            while not cache.begin([(0,)])[2]:  # still pending
                pass
            go.set()
            assert first.exception(30) is error
            assert second.result(30) == outcome
        assert np.array_equal(cache.take((0,), lambda: np.ones(3)), np.ones(3))


def test_the_identity_tells_files_apart(sources, tmp_path):
    """Another file, series, level or version of a file has another identity; pickling and a cache change nothing."""
    paths, pixels = sources
    images = {kind: open_image(paths[kind]) for kind in KINDS}
    facts = {kind: str(image.identity) for kind, image in images.items()}
    assert len(set(facts.values())) == len(KINDS)
    for kind, image in images.items():
        assert facts[kind] == str(pickle.loads(pickle.dumps(image)).with_cache(5).identity)
    before = images["tiles"].identity
    assert before["bytes"] == paths["tiles"].stat().st_size
    assert before["changed"] == paths["tiles"].stat().st_mtime_ns
    np.save(tmp_path / "a.npy", pixels)
    one = open_image(tmp_path / "a.npy", axes="zyx").identity
    np.save(tmp_path / "a.npy", pixels + 1)
    assert open_image(tmp_path / "a.npy", axes="zyx").identity["changed"] != one["changed"]
    with tifffile.TiffWriter(tmp_path / "two.ome.tif") as writer:
        for _ in range(2):
            writer.write(pixels, metadata={"axes": "ZYX"})
    assert len({str(open_image(tmp_path / "two.ome.tif", series=i).identity) for i in (0, 1)}) == 2
    assert isinstance(open_image(pixels, axes="zyx"), Image)
    assert set(open_image(pixels, axes="zyx").identity) == {"name", "axes", "shape", "dtype", "pixel_size", "channels"}
