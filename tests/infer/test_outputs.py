"""OME-Zarr results of one and of several arrays, versions 0.5 and 0.4: readers that nobody here wrote understand them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import voidzoo as vz
from tests.infer.test_store import blocks, example_layer
from voidzoo.infer.output.layer import MANY_CHUNKS, Layer, safe_name
from voidzoo.infer.output.pyramid import steps
from voidzoo.infer.output.store import Store, read_provenance
from voidzoo.zoo.image import PixelSize

DTYPES = {"uint8", "uint16", "int32", "float32"}


def random_image(rng: np.random.Generator, layer: Layer) -> np.ndarray:
    if layer.dtype.startswith("float"):
        return rng.normal(0, 1000, layer.shape).astype(layer.dtype)
    info = np.iinfo(layer.dtype)
    return rng.integers(info.min, info.max, layer.shape, layer.dtype, endpoint=True)


def filled(store: Store, layers: list[Layer], ours: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    """Write random pixels into all layers, block by block, finish their pyramids, and describe them."""
    rng = np.random.default_rng()
    store.create(layers)
    pixels = {}
    for layer in layers:
        values = pixels[layer.name] = random_image(rng, layer)
        cascade = store.cascade(layer)
        for part in blocks(layer):
            cascade.write(part, values[part])
        for i in range(cascade.ready, len(layer.levels)):
            for part in cascade.rest(i):
                cascade.shrink(i, part)
    store.describe(layers, ours or {"version": "1"}, "sample 1")
    return pixels


def reference(kind: str, version: str, folder: Path) -> Any:
    """The metadata as ome-zarr-models reads and checks them."""
    module = {"Image": "image", "ImageLabel": "image_label", "Labels": "labels", "BioFormats2Raw": "bioformats2raw"}
    names = {"0.5": "v05", "0.4": "v04"}
    model = getattr(importlib.import_module(f"ome_zarr_models.{names[version]}.{module[kind]}"), kind)
    found = model.from_zarr(zarr.open_group(folder, mode="r"))
    return found.ome_attributes if version == "0.5" else found.attributes


LAYERS = {
    "yx": {"axes": "yx", "shape": (700, 530), "chunk": (64, 128), "block": (256, 256)},
    "zyx": {"axes": "zyx", "shape": (9, 300, 270), "chunk": (4, 128, 128), "block": (8, 256, 256)},
    "cyx": {"axes": "cyx", "shape": (3, 300, 270), "chunk": (1, 128, 128), "block": (3, 256, 256)},
    "czyx": {"axes": "czyx", "shape": (2, 5, 280, 70), "chunk": (1, 2, 64, 64), "block": (2, 4, 64, 64)},
    "tczyx": {"axes": "tczyx", "shape": (3, 2, 4, 90, 261), "chunk": (1, 1, 4, 32, 64), "block": (1, 2, 4, 96, 261)},
}


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("axes", LAYERS)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
def test_an_image_is_what_was_written(tmp_path: Path, version: str, axes: str, dtype: str) -> None:
    """Axes, um, channel names and the pixels of all levels, as zarr, ome-zarr-models and voidzoo read them."""
    size = PixelSize(z=0.5 if "z" in axes else None, y=0.25, x=0.2, t=3.0 if "t" in axes else None)
    names = tuple(f"stain {i}" for i in range(LAYERS[axes]["shape"][axes.index("c")])) if "c" in axes else ()
    layer = example_layer(**LAYERS[axes], dtype=dtype, pixel_size=size, channels=names)
    path = tmp_path / "o.ome.zarr"
    (values,) = filled(Store(path, version), [layer]).values()
    group = zarr.open_group(path, mode="r")
    assert group.metadata.zarr_format == {"0.5": 3, "0.4": 2}[version]
    image = vz.open_image(path)
    assert (image.axes, image.shape, image.dtype) == (axes, layer.shape, np.dtype(dtype))
    assert image.kind == f"OME-Zarr {version}"
    assert image.pixel_size == size
    assert image.channels == (names or image.channels)
    attributes = reference("Image", version, path)
    (scales,) = attributes.multiscales
    assert [a.name for a in scales.axes] == list(axes)
    assert [a.unit for a in scales.axes if a.name in "zyx"] == ["micrometer"] * sum(a in "zyx" for a in axes)
    for i, level in enumerate(layer.levels):
        theirs = group[str(i)]
        if version == "0.5":
            assert theirs.metadata.dimension_names == tuple(axes)
        assert np.array_equal(theirs[...], image.level(i).read() if i else values)
        scale, translation = scales.datasets[i].coordinateTransformations
        sizes = [size.get(a) or 1.0 for a in axes]
        assert scale.scale == pytest.approx([s * f for s, f in zip(sizes, level.factors, strict=True)])
        # where the first value of a level lies: the middle of the pixels it is the mean of
        centres = [s * np.arange(f).mean() for s, f in zip(sizes, level.factors, strict=True)]
        assert translation.translation == pytest.approx(centres)
    omero = attributes.omero if version == "0.5" else attributes.omero.model_dump()  # 0.5 leaves it as it is
    assert [c["label"] for c in omero["channels"]] == list(names or ["intensity"])
    smallest = image.level(len(layer.levels) - 1).read()
    for i, channel in enumerate(omero["channels"]):
        window = channel["window"]
        plane = smallest.take(i, axes.index("c")) if names else smallest
        assert plane.min() <= window["min"] <= window["start"] < window["end"] <= window["max"] <= plane.max()


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_labels_lie_under_their_image(tmp_path: Path, version: str) -> None:
    """A label image of its own size: listed, leading back to the image, its levels samples and not means."""
    image = example_layer()
    labels = example_layer(name="labels/nuclei", labels=True, dtype="uint32")
    path = tmp_path / "o.ome.zarr"
    pixels = filled(Store(path, version), [image, labels])
    assert np.array_equal(vz.open_image(path).read(), pixels[""])
    assert reference("Labels", version, path / "labels").labels == ["nuclei"]
    attributes = reference("ImageLabel", version, path / "labels" / "nuclei")
    found = attributes.image_label
    assert found.source is not None
    assert (path / "labels" / "nuclei" / found.source.image).resolve() == path.resolve()
    (scales,) = attributes.multiscales
    opened = vz.open_image(path / "labels" / "nuclei")
    above = pixels["labels/nuclei"]
    assert np.array_equal(opened.read(), above)
    for i in range(1, len(labels.levels)):
        above = above[tuple(slice(None, None, s) for s in steps(labels.levels, i))]
        assert np.array_equal(opened.level(i).read(), above)
        translation = scales.datasets[i].coordinateTransformations[1]
        assert translation.translation == [0.0, 0.0, 0.0], "a sample lies where it was"


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_several_images_are_listed_at_the_root(tmp_path: Path, version: str) -> None:
    """Arrays of different axes, sizes and dtypes, with labels under one of them, each an OME-Zarr image by itself."""
    layers = [
        example_layer(name="denoised"),
        example_layer(name="prob-2", axes="czyx", shape=(2, 5, 300, 350), dtype="float32", chunk=(1, 2, 64, 64),
                      block=(2, 2, 128, 128), channels=("inside", "border"), pixel_size=PixelSize(z=1, y=0.4, x=0.4)),
        example_layer(name="denoised/labels/cells", labels=True),
    ]  # fmt: skip
    path = tmp_path / "o.ome.zarr"
    ours = {"version": "7", "plan": {"identity": "abc"}}
    pixels = filled(Store(path, version), layers, ours)
    for layer in layers:
        image = vz.open_image(path / layer.name)
        assert np.array_equal(image.read(), pixels[layer.name])
        assert (image.axes, image.pixel_size) == (layer.axes, layer.pixel_size)
    assert vz.open_image(path / "prob-2").channels == ("inside", "border")
    root = zarr.open_group(path, mode="r")
    attributes = dict(root.attrs)
    assert attributes["voidzoo"] == ours
    assert read_provenance(path) == ours
    listed = dict(root["OME"].attrs)
    if version == "0.5":
        attributes, listed = attributes["ome"], listed["ome"]
        assert (attributes["version"], listed["version"]) == ("0.5", "0.5")
    assert attributes["bioformats2raw.layout"] == 3
    assert listed["series"] == ["denoised", "prob-2"]
    assert reference("Labels", version, path / "denoised" / "labels").labels == ["cells"]
    assert set(root.group_keys()) == {"OME", "denoised", "prob-2"}


def test_provenance_of_others_is_none(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "theirs")
    (tmp_path / "folder").mkdir()
    for name in ("theirs", "folder", "missing"):
        assert read_provenance(tmp_path / name) is None


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_part_lies_where_it_was_cut_out(tmp_path: Path, version: str) -> None:
    """--only: the translation of every level is that of the part's first pixel, in um and s; channels have none."""
    size = PixelSize(z=2.0, y=0.5, x=0.25, t=3.0)
    layer = example_layer(
        **LAYERS["tczyx"], pixel_size=size, channels=("a", "b"), origin={"t": 2, "z": 10, "x": 100, "c": 1}
    )
    path = tmp_path / "o.ome.zarr"
    filled(Store(path, version), [layer])
    (scales,) = reference("Image", version, path).multiscales
    first, second = (d.coordinateTransformations[1].translation for d in scales.datasets)
    assert first == pytest.approx([6.0, 0.0, 20.0, 0.0, 25.0])
    assert second == pytest.approx([6.0, 0.0, 20.0, 0.25, 25.125])


def test_masks_are_uint8_and_blocks_that_are_zeros_are_absent(tmp_path: Path) -> None:
    """A mask of bools; of its empty half there is not one file, in any level."""
    layer = example_layer(**LAYERS["zyx"], dtype="uint8", labels=True)
    store = Store(tmp_path / "o.zarr")
    store.create([layer])
    mask = np.random.default_rng().random(layer.shape) < 0.5
    mask[:, :, 128:] = False
    cascade = store.cascade(layer)
    for part in blocks(layer):
        cascade.write(part, mask[part])
    store.describe([layer], {}, "mask")
    assert np.array_equal(vz.open_image(store.path).read(), mask.astype(np.uint8))
    written = sorted(str(p.relative_to(store.path)) for p in store.path.glob("0/c/*/*/*"))
    assert written == [f"0/c/{z}/{y}/0" for z in range(3) for y in range(3)]


def test_a_hole_is_zeros_in_all_levels(tmp_path: Path) -> None:
    """What a run that was cut off left of a block is gone from every level that it wrote."""
    layer = example_layer(**LAYERS["yx"])
    store = Store(tmp_path / "o.zarr")
    store.create([layer])
    cascade = store.cascade(layer)
    assert cascade.ready >= 2
    values = np.random.default_rng().integers(1, 2**16, layer.shape).astype(np.uint16)
    for part in blocks(layer):
        cascade.write(part, values[part])
    before = [array.read(tuple(slice(0, n) for n in array.shape)) for array in cascade.arrays]
    hole = blocks(layer)[1]
    written = cascade.erase(hole)
    assert written.folders
    for i in range(cascade.ready):
        factors = layer.levels[i].factors
        inside = tuple(slice(s.start // f, -(-s.stop // f)) for s, f in zip(hole, factors, strict=True))
        assert before[i][inside].all()
        before[i][inside] = 0
        assert np.array_equal(cascade.arrays[i].read(tuple(slice(0, n) for n in before[i].shape)), before[i])


def test_many_chunks_become_shards_of_blocks(tmp_path: Path) -> None:
    """Above 10,000 chunks a block is one file, in the smaller levels too where a block still makes whole chunks."""
    facts: dict[str, Any] = {"axes": "yx", "shape": (2100, 2000), "chunk": (16, 16), "block": (512, 512)}
    layer = example_layer(**facts)
    assert 131 * 125 > MANY_CHUNKS > 66 * 63
    store, old = Store(tmp_path / "o.zarr"), Store(tmp_path / "old.zarr", "0.4")
    values = filled(store, [layer])[""]
    full = zarr.open_array(store.path / "0", mode="r")
    assert (full.shards, full.chunks) == ((512, 512), (16, 16))
    assert zarr.open_array(store.path / "1", mode="r").shards is None
    assert len(list(store.path.glob("0/c/*/*"))) == 5 * 4
    assert np.array_equal(full[...], values)
    assert store.cascade(layer).ready == len(layer.levels), "written with the blocks down to the last level"
    filled(old, [example_layer(**{**facts, "shape": (300, 300)})])
    assert zarr.open_array(old.path / "0", mode="r").shards is None, "Zarr v2 has none"


def test_shards_of_smaller_levels_follow_the_block() -> None:
    layer = example_layer(axes="yx", shape=(9000, 9000), chunk=(16, 16), block=(1024, 512))
    assert [layer.spec(i).shard for i in range(3)] == [(1024, 512), (512, 256), (256, 128)]
    assert layer.spec(0, version=2).shard is None


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"axes": "zxy"}, vz.VoidzooError, "axes of tczyx in that order"),
        ({"shape": (5, 600)}, ValueError, "do not fit zyx"),
        ({"dtype": "complex64"}, TypeError, r"complex64 cannot be stored(.|\n)*uint32"),
        ({"dtype": "bool"}, TypeError, r"bool cannot be stored(.|\n)*uint8"),
        ({"dtype": "float32", "labels": True}, TypeError, r"labels are whole numbers(.|\n)*uint16"),
        ({"block": (2, 100, 256)}, ValueError, r"not made of whole chunks of \(2, 64, 64\)"),
        ({"name": "../up"}, OSError, r"cannot be named(.|\n)*letters, digits"),
        ({"name": "a/b"}, OSError, "cannot be named"),
        ({"name": "3"}, OSError, r"digits alone(.|\n)*array_3"),
        ({"name": "OME"}, OSError, "cannot be named"),
        ({"name": "labels"}, OSError, "cannot be named"),
        ({"name": ".hidden"}, OSError, r"cannot be named(.|\n)*hidden"),
        ({"name": "output 0"}, OSError, r"cannot be named(.|\n)*output_0"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        example_layer(**changes)
    assert isinstance(caught.value, vz.VoidzooError)


def test_layers_that_cannot_lie_side_by_side_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "o.zarr")
    for names, match in (
        (["a", "A"], "a name of its own"),
        ([], "a name of its own"),
        (["", "a"], "no other images beside it"),
        (["a", "b/labels/c"], "not part of the result"),
    ):
        with pytest.raises(vz.VoidzooError, match=match):
            store.create([example_layer(name=name) for name in names])
    assert not any(tmp_path.iterdir())
    with pytest.raises(vz.VoidzooError, match=r"no OME-Zarr 0.3 here(.|\n)*0.5 or 0.4"):
        Store(tmp_path / "o.zarr", "0.3")
    store.create([example_layer()])
    with pytest.raises(vz.VoidzooError, match=r"holds \(5, 600, 700\) uint16, not \(5, 600, 700\) uint8"):
        store.cascade(example_layer(dtype="uint8"))


@pytest.mark.parametrize("name", ["output 0", "3", "", "µ", "a/b", "labels", "OME", "..", "mask.", "_x", "fine-1"])
def test_a_safe_name_is_one(name: str) -> None:
    assert example_layer(name=safe_name(name)).title == safe_name(name)
    assert safe_name("fine-1") == "fine-1"
    assert safe_name("output 0") == "output_0"


def test_the_same_pixels_give_the_same_files(tmp_path: Path) -> None:
    """Whatever the order and the size of the blocks, and whatever was there before: the same bytes."""
    layer = example_layer()
    values = np.random.default_rng().integers(0, 2**16, layer.shape).astype(np.uint16)
    found = []
    for name, block in (("a", (2, 256, 256)), ("b", (4, 128, 512)), ("c", (5, 600, 700))):
        each = example_layer(block=block)
        store = Store(tmp_path / name)
        store.create([each])
        cascade = store.cascade(each)
        for part in blocks(each)[::-1]:
            cascade.write(part, np.zeros_like(values[part]) + 1)
            cascade.write(part, values[part])
        for i in range(cascade.ready, len(each.levels)):
            for part in cascade.rest(i):
                cascade.shrink(i, part)
        store.describe([each], {"version": "1"}, "x")
        found.append({str(p.relative_to(store.path)): p.read_bytes() for p in store.path.rglob("*") if p.is_file()})
    assert found[0] == found[1] == found[2]
