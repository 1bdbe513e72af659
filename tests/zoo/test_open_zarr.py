"""OME-Zarr 0.4 and 0.5: axes, units, channels, pyramids, groups inside stores, plain zarr arrays."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pytest
import zarr

from voidzoo.zoo.errors import AxesError, ImageError
from voidzoo.zoo.image import PixelSize
from voidzoo.zoo.open import open_image

SHAPE = (2, 2, 5, 40, 36)


def axes_of(letters: str, length: str = "micrometer", time: str = "millisecond") -> list[dict[str, str]]:
    kinds = {"t": ("time", time), "c": ("channel", "")}
    found = []
    for letter in letters:
        kind, unit = kinds.get(letter, ("space", length))
        found.append({"name": letter, "type": kind} | ({"unit": unit} if unit else {}))
    return found


def write(path, pixels, version="0.5", *, axes=None, scale=(500.0, 1, 2.0, 0.5, 0.25), levels=2, **more):
    """An OME-Zarr of `pixels` with a pyramid by striding; returns the arrays of the levels."""
    fmt = 2 if version == "0.4" else 3
    group = zarr.create_group(path, zarr_format=fmt)
    arrays, datasets = [], []
    for level in range(levels):
        array = pixels[..., :: 2**level, :: 2**level]
        chunks = (*(1 for _ in array.shape[:-2]), 16, 16)
        made = group.create_array(str(level), shape=array.shape, dtype=array.dtype, chunks=chunks)
        made[:] = array
        factors = [*scale[:-2], scale[-2] * 2**level, scale[-1] * 2**level]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": factors}]})
        arrays.append(array)
    scales = [
        {"axes": axes or axes_of("tczyx"), "datasets": datasets} | ({"version": "0.4"} if version == "0.4" else {})
    ]
    meta = {"multiscales": scales} | more
    group.attrs.update(meta if version == "0.4" else {"ome": {"version": version, **meta}})
    return arrays


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 60000, SHAPE, dtype=np.uint16)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path, pixels, version):
    """Both versions: axes, um and s, channel names, pyramid, pixels, regions, pickling."""
    omero = {"channels": [{"label": "nuclei"}, {"label": "membrane"}]}
    levels = write(tmp_path / "a.ome.zarr", pixels, version, levels=3, omero=omero)
    image = open_image(tmp_path / "a.ome.zarr")
    assert (image.axes, image.shape, image.kind) == ("tczyx", SHAPE, f"OME-Zarr {version}")
    assert image.pixel_size == PixelSize(2.0, 0.5, 0.25, 0.5)
    assert image.channels == ("nuclei", "membrane")
    assert image.chunks == (1, 1, 1, 16, 16)
    assert np.array_equal(image.read(), pixels)
    region = {"z": slice(1, 3), "y": slice(7, 33), "c": slice(1, 2)}
    part = pickle.loads(pickle.dumps(image)).read(region)
    assert np.array_equal(part, pixels[:, 1:2, 1:3, 7:33])
    assert len(image.levels) == 2
    for i, level in enumerate(levels):
        assert np.array_equal(open_image(tmp_path / "a.ome.zarr", level=i).read(), level)
    assert open_image(tmp_path / "a.ome.zarr", level=2).pixel_size.x == pytest.approx(1.0)
    assert image.metadata["compression"] != "none"


@pytest.mark.parametrize(
    ("unit", "um"), [("nanometer", 1e-3), ("millimeter", 1e3), ("angstrom", 1e-4), ("inch", 25400)]
)
def test_units(tmp_path, pixels, unit, um):
    """Any unit of length becomes um."""
    write(tmp_path / "a.zarr", pixels, axes=axes_of("tczyx", unit, "minute"))
    size = open_image(tmp_path / "a.zarr").pixel_size
    assert [size.z, size.y, size.x, size.t] == pytest.approx([2 * um, 0.5 * um, 0.25 * um, 30000])


def test_a_scale_without_a_unit_is_no_pixel_size(tmp_path, pixels):
    """Without a unit the scale is not taken, and the image says so."""
    write(
        tmp_path / "a.zarr",
        pixels,
        axes=[
            {"name": a, "type": k} for a, k in zip("tczyx", ("time", "channel", "space", "space", "space"), strict=True)
        ],
    )
    image = open_image(tmp_path / "a.zarr")
    assert image.pixel_size == PixelSize()
    assert "scale without a unit (z 2, y 0.5, x 0.25)" in image.notes[0]


def test_global_scale_and_other_axis_orders(tmp_path, rng):
    """The scale of all levels multiplies; axes in any order and with any names are read by type and letter."""
    pixels = rng.integers(0, 255, (6, 40, 36), dtype=np.uint8)
    axes = [
        {"name": "Channel", "type": "channel"},
        {"name": "Y", "type": "space", "unit": "micrometer"},
        {"name": "X", "type": "space", "unit": "micrometer"},
    ]
    write(tmp_path / "a.zarr", pixels, axes=axes, scale=(1, 0.5, 0.25))
    group = zarr.open_group(tmp_path / "a.zarr")
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1, 2, 2]}]
    group.attrs["ome"] = ome
    image = open_image(tmp_path / "a.zarr")
    assert image.axes == "cyx"
    assert image.pixel_size == PixelSize(y=1.0, x=0.5)


def test_groups_and_levels_inside_a_store(tmp_path, pixels):
    """A path into a store opens labels, or one level with its own pixel size."""
    arrays = write(tmp_path / "a.ome.zarr", pixels)
    write(
        tmp_path / "a.ome.zarr" / "labels" / "nuclei", pixels[:, 0], axes=axes_of("tzyx"), scale=(500.0, 2.0, 0.5, 0.25)
    )
    labels = open_image(tmp_path / "a.ome.zarr" / "labels" / "nuclei")
    assert (labels.axes, labels.name) == ("tzyx", "a.ome.zarr/labels/nuclei")
    assert np.array_equal(labels.read(), pixels[:, 0])
    half = open_image(str(tmp_path / "a.ome.zarr" / "1"))
    assert half.pixel_size == PixelSize(2.0, 1.0, 0.5, 0.5)
    assert np.array_equal(half.read(), arrays[1])
    assert "level 1" in half.notes[0]


def test_plain_zarr_array_needs_axes(tmp_path, rng):
    """A zarr array without OME metadata has no axes, unless its dimensions are named."""
    pixels = rng.integers(0, 255, (5, 20, 24), dtype=np.uint8)
    array = zarr.create_array(tmp_path / "a.zarr", shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 20, 24))
    array[:] = pixels
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "a.zarr")
    assert caught.value.what == "a.zarr has shape 5 x 20 x 24 but does not say which axis is which."
    assert np.array_equal(open_image(tmp_path / "a.zarr", axes="tyx").read(), pixels)
    named = zarr.create_array(
        tmp_path / "b.zarr", shape=pixels.shape, dtype=pixels.dtype, chunks=(1, 20, 24), dimension_names=["t", "y", "x"]
    )
    named[:] = pixels
    assert open_image(tmp_path / "b.zarr").axes == "tyx"


def test_bioformats2raw_series(tmp_path, pixels):
    """The groups 0, 1 of a bioformats2raw store are series."""
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=2)
    group.attrs["bioformats2raw.layout"] = 3
    write(tmp_path / "a.zarr" / "0", pixels, "0.4")
    write(tmp_path / "a.zarr" / "1", pixels[:, :1, :1], "0.4")
    image = open_image(tmp_path / "a.zarr")
    assert image.shape == SHAPE
    assert "holds 2 series; this is series 0" in image.notes[0]
    assert open_image(tmp_path / "a.zarr", series=1).shape == (2, 1, 1, 40, 36)
    with pytest.raises(ImageError, match="no series 2") as caught:
        open_image(tmp_path / "a.zarr", series=2)
    assert caught.value.mend == "--series 0 to 1"


def test_stores_without_an_image(tmp_path, pixels):
    """Plates, empty groups, missing levels and wrong series are told apart."""
    plate = zarr.create_group(tmp_path / "plate.zarr", zarr_format=2)
    plate.attrs["plate"] = {"wells": [{"path": "A/1"}, {"path": "B/2"}]}
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "plate.zarr")
    assert "plate of 2 wells" in caught.value.what
    assert caught.value.mend.endswith("plate.zarr/A/1/0")
    write(tmp_path / "outer.zarr" / "inner", pixels)
    zarr.open_group(tmp_path / "outer.zarr", mode="a")
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "outer.zarr")
    assert "no multiscales metadata" in caught.value.what
    assert caught.value.mend.endswith("outer.zarr/inner")
    write(tmp_path / "gap.zarr", pixels)
    shutil.rmtree(tmp_path / "gap.zarr" / "1")
    with pytest.raises(ImageError, match="a level that is not there"):
        open_image(tmp_path / "gap.zarr")
    with pytest.raises(ImageError, match="no series 4"):
        open_image(tmp_path / "outer.zarr" / "inner", series=4)


def test_damaged_chunk_and_metadata(tmp_path, pixels):
    """A chunk that does not decode and metadata that does not parse are ImageErrors."""
    write(tmp_path / "a.zarr", pixels)
    image = open_image(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0" / "0" / "0"
    chunk.write_bytes(b"\x00\x01broken")
    with pytest.raises(ImageError, match="cannot be decoded"):
        image.read()
    (tmp_path / "a.zarr" / "zarr.json").write_text("{")
    with pytest.raises(ImageError, match="not a zarr store") as caught:
        open_image(tmp_path / "a.zarr")
    assert caught.value.mend


def test_axes_that_do_not_fit_the_pixels(tmp_path, pixels):
    """Metadata naming another number of axes than the pixels have is refused."""
    write(tmp_path / "a.zarr", pixels, axes=axes_of("zyx"))
    with pytest.raises(AxesError, match="names 3 axes, its pixels have 5"):
        open_image(tmp_path / "a.zarr")


def test_sharded_arrays_have_inner_chunks(tmp_path, rng):
    """With shards, what is decoded at once is the inner chunk."""
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 64), dtype="uint8", chunks=(16, 16), shards=(64, 64), dimension_names=["y", "x"]
    )
    array[:] = rng.integers(0, 9, (64, 64), dtype=np.uint8)
    image = open_image(tmp_path / "a.zarr")
    assert image.chunks == (16, 16)
    assert image.metadata["shards"] == (64, 64)


def test_options_without_meaning_are_refused(tmp_path, rng):
    """A stack axis or a series for something that is one image is refused, not dropped."""
    np.save(tmp_path / "a.npy", rng.random((4, 4)))
    for source in (rng.random((4, 4)), tmp_path / "a.npy"):
        with pytest.raises(AxesError, match="--stack t is the axis along the files"):
            open_image(source, stack="t")
        with pytest.raises(ImageError, match="no series 2"):
            open_image(source, series=2)


@pytest.mark.parametrize(
    "scales",
    [[{}], [{"datasets": [{}]}], [{"datasets": []}], "text", [{"axes": 3, "datasets": [{"path": "0"}]}], [None]],
)
def test_malformed_metadata_is_an_error_of_ours(tmp_path, pixels, scales):
    """Whatever stands in the metadata, what comes out is an ImageError or AxesError with a mend."""
    write(tmp_path / "a.zarr", pixels, levels=1)
    zarr.open_group(tmp_path / "a.zarr").attrs["ome"] = {"version": "0.5", "multiscales": scales}
    with pytest.raises((ImageError, AxesError)) as caught:
        open_image(tmp_path / "a.zarr")
    assert caught.value.mend
