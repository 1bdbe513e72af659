"""OME-TIFFs of one and of several arrays: the same bytes each time, the pixels of all levels, each chunk decoded once."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.infer.test_outputs import LAYERS, filled
from tests.infer.test_store import axes_of, example_layer
from voidzoo.infer.output import tiff
from voidzoo.infer.output.array import DurableArray
from voidzoo.infer.output.chunks import Spec
from voidzoo.infer.output.layer import Layer
from voidzoo.infer.output.store import Store
from voidzoo.infer.output.tiff import read_provenance, write_tiff
from voidzoo.zoo.image import PixelSize


def written(folder: Path, layers: list[Layer], **settings_: Any) -> tuple[Path, dict[str, np.ndarray]]:
    """Random pixels, staged and streamed into a TIFF -> its path and the pixels of each layer."""
    store = Store(folder / "staged.zarr")
    pixels = filled(store, layers)
    path = folder / "o.ome.tif"
    write_tiff(path, layers, [store.arrays(layer) for layer in layers], "sample", {"version": "1"}, **settings_)
    return path, pixels


def description(path: Path) -> str:
    with tifffile.TiffFile(path) as opened:
        assert opened.ome_metadata is not None
        return opened.ome_metadata


@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_an_image_is_what_was_written(tmp_path: Path, axes: str, dtype: str) -> None:
    size = PixelSize(z=0.5 if "z" in axes else None, y=0.25, x=0.2, t=3.0 if "t" in axes else None)
    names = tuple(f"stain {i}" for i in range(LAYERS[axes]["shape"][axes.index("c")])) if "c" in axes else ()
    layer = example_layer(**LAYERS[axes], dtype=dtype, pixel_size=size, channels=names)
    path, pixels = written(tmp_path, [layer], memory=2**18, threads=3)
    image = vz.open_image(path)
    assert (image.axes, image.shape, image.dtype, image.pixel_size) == (axes, layer.shape, np.dtype(dtype), size)
    assert image.channels == (names or image.channels)
    staged = vz.open_image(tmp_path / "staged.zarr")
    with tifffile.TiffFile(path) as opened:
        (series,) = opened.series
        assert (series.axes, series.name) == (axes.upper(), "sample")
        assert np.array_equal(series.asarray(), pixels[""])
        assert [level.shape for level in series.levels] == [level.shape for level in layer.levels]
        for i in range(1, len(layer.levels)):
            assert np.array_equal(series.levels[i].asarray(), staged.level(i).read())


LAYER_SETS: dict[str, list[dict[str, Any]]] = {
    "two images and labels": [
        {"name": "denoised", "axes": "zyx", "shape": (7, 300, 280), "chunk": (4, 64, 64), "block": (4, 128, 128)},
        {"name": "probability", "axes": "czyx", "shape": (2, 7, 150, 140), "dtype": "float32", "chunk": (1, 3, 64, 64),
         "block": (2, 6, 64, 64), "channels": ("inside", "border"), "pixel_size": PixelSize(z=1, y=0.4, x=0.4)},
        {"name": "denoised/labels/cells", "labels": True, "dtype": "uint32", "axes": "zyx", "shape": (7, 300, 280),
         "chunk": (4, 64, 64), "block": (4, 128, 128)},
    ],
    "single planes of 3 and 4 columns": [
        {"name": "a", "axes": "zyx", "shape": (1, 40, 3), "chunk": (1, 16, 2), "block": (1, 40, 3)},
        {"name": "b", "axes": "cyx", "shape": (1, 40, 4), "chunk": (1, 16, 2), "block": (1, 40, 4)},
        {"name": "c", "axes": "yx", "shape": (1, 5), "chunk": (1, 5), "block": (1, 5)},
        {"name": "d", "axes": "tczyx", "shape": (1, 3, 1, 9, 8), "chunk": (1, 1, 1, 9, 8), "block": (1, 3, 1, 9, 8)},
    ],
    "pyramids of different depth": [
        {"name": "large", "axes": "yx", "shape": (1100, 900), "chunk": (64, 64), "block": (512, 512)},
        {"name": "small", "axes": "yx", "shape": (90, 1), "chunk": (64, 1), "block": (90, 1)},
        {"name": "deep", "axes": "tyx", "shape": (3, 270, 520), "chunk": (2, 64, 64), "block": (2, 256, 256)},
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", LAYER_SETS)
def test_several_arrays_are_the_series_of_one_file(tmp_path: Path, case: str) -> None:
    """Named, in order, each with its own axes, um, dtype and pyramid, for tifffile and for voidzoo."""
    layers = [example_layer(**facts) for facts in LAYER_SETS[case]]
    path, pixels = written(tmp_path, layers)
    with tifffile.TiffFile(path) as opened:
        assert [series.name for series in opened.series] == [layer.title for layer in layers]
        assert len(opened.pages) == sum(prod(layer.shape[:-2]) for layer in layers)
        for series, layer in zip(opened.series, layers, strict=True):
            assert series.dtype == layer.dtype
            assert np.array_equal(series.asarray().reshape(layer.shape), pixels[layer.name])
            assert [level.shape for level in series.levels] == [series.shape, *(e.shape for e in layer.levels[1:])]
    for i, layer in enumerate(layers):
        image = vz.open_image(path, series=i)
        assert np.array_equal(image.read().reshape(layer.shape), pixels[layer.name])
        assert (image.pixel_size.y, image.pixel_size.x) == (layer.pixel_size.y, layer.pixel_size.x)
    assert read_provenance(path) == {"version": "1"}


AGAIN = """
import json, sys, time
from pathlib import Path
import numpy as np
from voidzoo.infer.output.store import Layer, Store
from voidzoo.infer.output.tiff import write_tiff
from voidzoo.zoo.image import PixelSize

folder, threads, block = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
layers = [
    Layer("image", "zyx", (5, 600, 500), "uint16", (2, 64, 64), tuple(block), PixelSize(1, 0.3, 0.3), origin={"z": 3}),
    Layer("mask", "yx", (600, 500), "uint8", (64, 64), tuple(block[1:]), labels=True),
]
store = Store(folder / "staged.zarr")
store.create(layers)
rng = np.random.default_rng(7)
for layer in layers:
    values = rng.integers(0, 200, layer.shape).astype(layer.dtype)
    cascade = store.cascade(layer)
    for corner in np.ndindex(*(-(-n // b) for n, b in zip(layer.shape, layer.block))):
        part = tuple(slice(i * b, min(i * b + b, n)) for i, b, n in zip(corner, layer.block, layer.shape))
        cascade.write(part, values[part])
    for i in range(cascade.ready, len(layer.levels)):
        for part in cascade.rest(i):
            cascade.shrink(i, part)
levels = [store.arrays(layer) for layer in layers]
write_tiff(folder / "o.ome.tif", layers, levels, "x", dict.fromkeys({"a", "b", "plan"}, 1), threads=threads)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    """Other blocks, other threads, another order of sets, at another time: the sha256 of the file is the same."""
    found = []
    for seed, threads, block in ((1, 1, (2, 64, 64)), (2, 4, (4, 256, 512))):
        folder = tmp_path / str(seed)
        folder.mkdir()
        subprocess.run(
            [sys.executable, "-c", AGAIN, str(folder), str(threads), json.dumps(block)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "TZ": f"UTC{seed}"}, check=True, timeout=120,
        )  # fmt: skip
        found.append(hashlib.sha256((folder / "o.ome.tif").read_bytes()).hexdigest())
    assert found[0] == found[1]
    with tifffile.TiffFile(folder / "o.ome.tif") as opened:
        assert "DateTime" not in opened.pages[0].tags
        assert "AcquisitionDate" not in opened.ome_metadata


def test_the_uuid_tells_results_apart(tmp_path: Path) -> None:
    """It is a hash: of the same plan the same, of another not."""
    layer = example_layer(**LAYERS["zyx"])
    store = Store(tmp_path / "staged.zarr")
    filled(store, [layer])
    found = []
    for i, ours in enumerate(({"plan": 1}, {"plan": 1}, {"plan": 2})):
        write_tiff(tmp_path / f"{i}.tif", [layer], [store.arrays(layer)], "x", ours)
        found.append(tifffile.xml2dict(description(tmp_path / f"{i}.tif"))["OME"]["UUID"])
    assert found[0] == found[1] != found[2]
    assert all(uuid.startswith("urn:uuid:") for uuid in found)


def test_a_part_says_where_it_lies(tmp_path: Path) -> None:
    """--only: the position of every plane in um; none for a whole image, and none where the um are not known."""
    layer = example_layer(
        **LAYERS["tczyx"], pixel_size=PixelSize(z=2.0, y=0.5, x=0.25), origin={"z": 10, "x": 100, "t": 3}
    )
    path, _ = written(tmp_path, [layer])
    planes = tifffile.xml2dict(description(path))["OME"]["Image"]["Pixels"]["Plane"]
    assert len(planes) == 3 * 2 * 4
    for plane in planes:
        assert (plane["PositionX"], plane["PositionY"]) == (25.0, 0.0)
        assert plane["PositionZ"] == 2.0 * (10 + plane["TheZ"])
        assert {plane[f"Position{a}Unit"] for a in "XYZ"} == {"µm"}
    for i, other in enumerate(({"origin": {}}, {"pixel_size": PixelSize()}, {"origin": {"t": 1}})):
        folder = tmp_path / str(i)
        folder.mkdir()
        path, _ = written(folder, [example_layer(**{**LAYERS["zyx"], "origin": {"z": 1}, **other})])
        assert "Position" not in description(path)


class Watched(DurableArray):
    """Counts what is decoded."""

    held = 0
    decoded: list[tuple[Any, ...]]

    def read(self, part: tuple[slice, ...]) -> np.ndarray:
        touched = [range(s.start // c, -(-s.stop // c)) for s, c in zip(part, self.grid, strict=True)]
        self.decoded.append((part, prod(len(r) for r in touched)))
        values = super().read(part)
        self.held = max(self.held, values.nbytes)
        return values


@pytest.mark.parametrize("shape", [(70, 40, 50), (2, 70, 40, 50), (3, 2, 35, 40, 50)])
def test_a_stack_of_small_planes_decodes_each_chunk_once(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """Chunks of 32 planes, and 32 planes fit: as many chunks are decoded as there are."""
    chunk = (1,) * (len(shape) - 3) + (32, 16, 16)
    layer = example_layer(axes=axes_of[len(shape)], shape=shape, chunk=chunk, block=shape)
    store = Store(tmp_path / "o.zarr")
    pixels = filled(store, [layer])[""]
    array = Watched(store.path / "0")
    array.decoded = []
    memory = 4 * 32 * 40 * 50 * 2
    write_tiff(tmp_path / "o.tif", [layer], [[array]], "x", {}, memory=memory)
    assert sum(n for _, n in array.decoded) == prod(-(-n // c) for n, c in zip(shape, chunk, strict=True))
    assert array.held <= memory // 2
    assert np.array_equal(tifffile.imread(tmp_path / "o.tif"), pixels)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_slabs_are_the_pages_in_order(data: st.DataObject) -> None:
    """One after the other, whole strips or the end of a page, within the memory unless one strip is larger."""
    ndim = data.draw(st.integers(2, 5))
    shape = tuple(data.draw(st.integers(1, 9 if i < ndim - 2 else 60)) for i in range(ndim))
    chunk = tuple(data.draw(st.integers(1, n)) for n in shape)
    memory = data.draw(st.integers(1, 2 * prod(shape) * 2))
    array = DurableArray(Path("nowhere"), Spec(shape, "uint16", chunk))
    rows = tiff._rows(array)
    assert 1 <= rows <= shape[-2]
    numbers = np.arange(prod(shape)).reshape(shape)
    slabs = list(tiff._slabs(array, rows, memory))
    assert np.array_equal(np.concatenate([numbers[part].ravel() for part in slabs]), numbers.ravel())
    for part in slabs:
        assert part[-2].start % rows == 0
        assert part[-2].stop == shape[-2] or part[-2].stop % rows == 0
        size = 2 * numbers[part].size
        assert size <= max(memory, 2 * rows * shape[-1])


def test_the_file_is_never_larger_than_expected(tmp_path: Path) -> None:
    """Pixels that do not compress at all: BigTIFF is decided on a bound that holds, over the sum of the layers."""
    layers = [example_layer(**facts) for facts in LAYER_SETS["pyramids of different depth"]]
    path, _ = written(tmp_path, layers)
    assert 0.9 * sum(layer.nbytes for layer in layers) < path.stat().st_size < tiff._size(layers)
    with tifffile.TiffFile(path) as opened:
        assert not opened.is_bigtiff
    huge = example_layer(name="a", shape=(40, 6000, 6000), chunk=(1, 512, 512), block=(1, 6000, 6000))
    assert tiff._size([huge]) < tiff.BIG < tiff._size([huge, example_layer(name="b", shape=(40, 6000, 6000))])


def test_a_file_that_may_grow_is_bigtiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "BIG", 100_000)
    path, pixels = written(tmp_path, [example_layer(**LAYERS["yx"])])
    with tifffile.TiffFile(path) as opened:
        assert opened.is_bigtiff
        assert np.array_equal(opened.series[0].asarray(), pixels[""])


@pytest.mark.parametrize("dtype", ["int64", "uint64", "float16"])
def test_numbers_that_ome_tiff_does_not_know_are_refused(tmp_path: Path, dtype: str) -> None:
    layer = example_layer(**LAYERS["yx"], dtype=dtype)
    with pytest.raises(vz.VoidzooError, match=rf"OME-TIFF has no {dtype}(.|\n)*--dtype (uint16|float32), or"):
        written(tmp_path, [layer])
    assert not (tmp_path / "o.ome.tif").exists()
    assert np.array_equal(vz.open_image(tmp_path / "staged.zarr").dtype, np.dtype(dtype))


def test_provenance_of_others_is_none(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "plain.tif", np.zeros((4, 4), np.uint8))
    tifffile.imwrite(tmp_path / "theirs.ome.tif", np.zeros((4, 4), np.uint8))
    (tmp_path / "text.tif").write_text("no image")
    for name in ("plain.tif", "theirs.ome.tif", "text.tif", "missing.tif"):
        assert read_provenance(tmp_path / name) is None
