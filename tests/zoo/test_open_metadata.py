"""Pixel sizes in um and s, channel names and kinds, from what files say; nothing where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from voidzoo.zoo.errors import AxesError
from voidzoo.zoo.image import PixelSize
from voidzoo.zoo.open import open_image
from voidzoo.zoo.readers.units import micrometres, scaled, seconds


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("\u00b5m", 1), ("\u03bcm", 1), ("um", 1), ("micron", 1), ("Microns", 1), ("\\u00B5m", 1),
        ("micrometer", 1), ("micrometre", 1),
        ("nm", 1e-3), ("nanometer", 1e-3), ("mm", 1e3), ("millimeter", 1e3), ("cm", 1e4), ("m", 1e6), ("meter", 1e6),
        ("inch", 25400), ("in", 25400), ("\u00c5", 1e-4), ("\u212b", 1e-4), ("angstrom", 1e-4),
        ("pm", 1e-6), ("MM", 1e3),
        ("pixel", None), ("pixels", None), ("", None), (None, None), ("reference frame", None),
    ],
)  # fmt: skip
def test_units_of_length(unit, um):
    """Every spelling of a unit is so many um; pixels and unknown words are none."""
    assert micrometres(unit) == (pytest.approx(um) if um else None)


@pytest.mark.parametrize(
    ("unit", "s"),
    [("s", 1), ("sec", 1), ("ms", 1e-3), ("msec", 1e-3), ("µs", 1e-6), ("min", 60), ("hour", 3600), ("x", None)],
)
def test_units_of_time(unit, s):
    """Every spelling of a unit of time is so many s."""
    assert seconds(unit) == (pytest.approx(s) if s else None)


@pytest.mark.parametrize(
    ("value", "size"), [("0.5", 0.5), (-2.0, 2.0), (0, None), ("nan", None), ("inf", None), ("?", None), (None, None)]
)
def test_sizes_that_cannot_be_are_none(value, size):
    """Zero, NaN, infinite and unreadable sizes are unknown; ImageJ's negative spacing is a size."""
    assert scaled(value, 1.0) == size


@pytest.mark.parametrize(
    ("unit", "factor"), [("nm", 1e-3), ("µm", 1), ("mm", 1e3), ("pixel", None), ("Å", 1e-4), ("in", 25400)]
)
def test_ome_tiff(tmp_path, rng, unit, factor):
    """OME-TIFF: sizes in um whatever the unit, TimeIncrement in s, channel names."""
    metadata = {
        "axes": "TCZYX",
        "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": unit, "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": unit,
        "PhysicalSizeZ": 2.0, "PhysicalSizeZUnit": unit, "TimeIncrement": 500.0, "TimeIncrementUnit": "ms",
        "Channel": {"Name": ["nuclei", "membrane"]},
    }  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", rng.integers(0, 9, (3, 2, 4, 16, 20), dtype=np.uint8), metadata=metadata)
    image = open_image(tmp_path / "a.ome.tif")
    wanted = PixelSize(t=0.5) if factor is None else PixelSize(2 * factor, 0.25 * factor, 0.5 * factor, 0.5)
    assert [image.pixel_size.get(a) for a in "zyxt"] == pytest.approx([wanted.get(a) for a in "zyxt"])
    assert image.channels == ("nuclei", "membrane")
    assert image.kind == "OME-TIFF"


def test_each_ome_series_has_its_own_sizes(tmp_path, rng):
    """The metadata of a series is that of its Image element."""
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        for size in (0.5, 0.125):
            metadata = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
            writer.write(rng.integers(0, 9, (16, 20), dtype=np.uint8), metadata=metadata)
    assert open_image(tmp_path / "a.ome.tif", series=0).pixel_size.x == 0.5
    assert open_image(tmp_path / "a.ome.tif", series=1).pixel_size.x == 0.125


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("micron", 1),
        ("um", 1),
        ("\\u00B5m", 1),
        ("nm", 1e-3),
        ("mm", 1e3),
        ("cm", 1e4),
        ("inch", 25400),
        ("pixel", None),
    ],
)
def test_imagej(tmp_path, rng, unit, factor):
    """ImageJ: resolution tags count pixels in `unit`; spacing and finterval beside them."""
    metadata = {"axes": "TZYX", "unit": unit, "spacing": 2.0, "finterval": 59.86}
    pixels = rng.integers(0, 9, (2, 5, 16, 20), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, resolution=(4, 2), metadata=metadata)
    image = open_image(tmp_path / "a.tif")
    if factor is None:
        assert image.pixel_size == PixelSize(t=59.86)
    else:
        assert [image.pixel_size.get(a) for a in "zyx"] == pytest.approx([2 * factor, 0.5 * factor, 0.25 * factor])
    assert image.kind == "ImageJ TIFF"


def test_imagej_without_unit_is_noted(data):
    """A scale without a unit is no pixel size, and the image says so."""
    image = open_image(data / "gen/zyx_imagej_bigendian.tif")
    assert image.pixel_size == PixelSize()
    assert "10 pixels without a unit" in image.notes[0]


def test_real_imagej_files(data):
    """Two published Fiji files, with `micron` and with the escaped micro sign."""
    assert str(open_image(data / "ij/xyzc_16bit__spots.tif").pixel_size) == "z 0.4 um  y 0.09413 um  x 0.09413 um"
    assert str(open_image(data / "ij/xyc_16bit__cell_dna_mts_actin.tif").pixel_size) == "y 0.1325 um  x 0.1325 um"


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((72, 72), "inch", None), ((96, 96), "inch", None), ((300, 300), "inch", None), ((600, 600), "inch", None),
        ((28.35, 28.35), "centimeter", None),
        ((20000, 20000), "centimeter", 0.5), ((50800, 50800), "inch", 0.5), ((4, 4), None, None),
    ],
)  # fmt: skip
def test_plain_resolution_tags(tmp_path, rng, resolution, unit, size):
    """A printer's dots per inch are no pixel size; a fine resolution in centimetres or inches is."""
    tifffile.imwrite(
        tmp_path / "a.tif",
        rng.integers(0, 9, (16, 20), dtype=np.uint8),
        resolution=resolution,
        resolutionunit=unit or "NONE",
    )
    found = open_image(tmp_path / "a.tif").pixel_size
    assert found.x == (pytest.approx(size) if size else None)
    assert found.known == (size is not None)


def test_the_users_pixel_size_wins(data, tmp_path):
    """Given sizes replace the file's, in the order y, x or z, y, x or by letter; the others stay."""
    path = data / "ij/xyzc_16bit__spots.tif"
    assert open_image(path, pixel_size=(0.2, 0.3)).pixel_size == PixelSize(pytest.approx(0.4), 0.2, 0.3)
    assert open_image(path, pixel_size=(1, 0.2, 0.3)).pixel_size == PixelSize(1.0, 0.2, 0.3)
    assert open_image(path, pixel_size={"z": 5}).pixel_size.z == 5.0
    for wrong in ((1,), {"q": 1}, {"t": 1.0}, (0, 1), (float("nan"), 1), ("a", "b")):
        with pytest.raises(AxesError, match="pixel-size") as caught:
            open_image(path, pixel_size=wrong)
        assert caught.value.mend


@pytest.mark.parametrize(
    ("name", "kind", "compression"),
    [
        ("gen/yx_bigtiff_tiled_zstd.tif", "BigTIFF", "zstd"),
        ("gen/yx_lzw_strips1.tif", "TIFF", "lzw"),
        ("gen/pyramid_subifds.ome.tif", "OME-TIFF", "adobe_deflate"),
        ("ij/xyzc_16bit__spots.tif", "ImageJ TIFF", "none"),
    ],
)
def test_kind_and_compression(data, name, kind, compression):
    """`look` finds the format and the compression."""
    image = open_image(data / name)
    assert (image.kind, image.metadata["compression"]) == (kind, compression)


def test_chunks_are_strips_tiles_and_volumes(data):
    """Chunks are what is decoded at once."""
    assert open_image(data / "gen/yx_lzw_strips1.tif").chunks == (1, 512)
    assert open_image(data / "gen/yx_bigtiff_tiled_zstd.tif").chunks == (128, 128)
    assert open_image(data / "gen/zyx_tiled_deflate_3dchunks.tif").chunks == (8, 64, 64)
    assert open_image(data / "ij/xyzc_16bit__spots.tif").chunks == (1, 1, 88, 89)


def test_palette_and_inverted_images_are_noted(data):
    """Pixels that are no plain intensities come with a note."""
    assert "colour table" in open_image(data / "odd/palette-1c-8b.tiff").notes[0]
    assert "min-is-white" in open_image(data / "odd/miniswhite-1c-1b.tiff").notes[0]
    assert open_image(data / "odd/cmyk-3c-8b.tiff").channels == ("cyan", "magenta", "yellow", "black")
