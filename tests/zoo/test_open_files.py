"""Real files read back bit for bit; structures without a free original are made here from random pixels."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest
import tifffile

from voidzoo.zoo.errors import AxesError, ImageError, VoidzooError
from voidzoo.zoo.open import open_image


def test_real_file_equals_its_truth(true_file, data):
    """Axes, shape, dtype and every pixel of a real file are those written down before voidzoo was."""
    truth = json.loads((data / "truth.json").read_text())[true_file]
    image = open_image(data / true_file)
    pixels = np.asarray(image)
    assert image.source_axes == truth["axes"]
    assert list(pixels.shape) == truth["shape"]
    assert str(pixels.dtype) == truth["dtype"]
    assert hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest() == truth["sha256"]
    assert pixels.dtype.isnative


def test_axes_are_canonical_inside(true_file, data):
    """Inside, axes are in tczyx order whatever the file's, and a corner region equals that of the whole."""
    image = open_image(data / true_file)
    assert image.axes == "".join(a for a in "tczyx" if a in image.axes)
    region = {a: slice(n // 3, max(n // 3 + 1, n - 1)) for a, n in image.sizes.items()}
    whole = image.read()
    assert np.array_equal(
        image.read(region), whole[tuple(region[a] for a in image.axes)], equal_nan=whole.dtype.kind == "f"
    )


@pytest.mark.parametrize(
    ("name", "what", "where"),
    [
        ("empty.tif", "empty.tif is empty: 0 bytes.", "empty.tif"),
        ("text_named.tif", "text_named.tif is not a TIFF file: it begins with b'this is '.", "text_named.tif"),
        ("header_only.tif", "header_only.tif holds no image", "header_only.tif"),
        (
            "truncated.tif",
            "truncated.tif is cut: strip 511 of page 0 should end at byte 441795, the file has 294530.",
            "bad",
        ),
    ],
)
def test_broken_file_is_one_error_at_opening(data, name, what, where):
    """A broken file is an ImageError when opened, and says what, where and how to mend it."""
    with pytest.raises(ImageError) as caught:
        open_image(data / "bad" / name)
    assert what in caught.value.what
    assert where in caught.value.where
    assert caught.value.mend
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize(("axes", "stored"), [("TZCYX", "tzcyx"), ("CTZYX", "ctzyx"), ("ZTCYX", "ztcyx")])
def test_ome_tiff_of_any_order(tmp_path, rng, axes, stored):
    """An OME-TIFF whose dimensions lie in another order is read by letter."""
    sizes = dict(zip("tczyx", (4, 2, 3, 20, 30), strict=True))
    pixels = rng.integers(0, 255, [sizes[a] for a in stored], dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": axes}, compression="zlib")
    image = open_image(tmp_path / "a.ome.tif")
    assert (image.axes, image.source_axes, image.kind) == ("tczyx", stored, "OME-TIFF")
    assert np.array_equal(np.asarray(image), pixels)
    assert np.array_equal(image.read(), pixels.transpose([stored.index(a) for a in "tczyx"]))


def test_pages_without_axes_are_asked_for(tmp_path, rng):
    """A plain stack of pages is t, z or c: nobody knows, so the user is asked, in the words of the guide."""
    pixels = rng.integers(0, 255, (10, 24, 16), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "scan.tif", pixels, metadata=None)
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "scan.tif")
    assert caught.value.what == "scan.tif has shape 10 x 24 x 16 but does not say which axis is which."
    assert caught.value.mend == "add --axes zyx (or tyx, if the first is time)"
    for axes in ("tyx", "zyx", "CYX"):
        image = open_image(tmp_path / "scan.tif", axes=axes)
        assert image.axes == axes.lower()
        assert np.array_equal(image.read(), pixels)


def test_shaped_tiff_without_axes_is_asked_for(tmp_path, rng):
    """tifffile's own shape without letters (Q) is as unknown as plain pages."""
    tifffile.imwrite(tmp_path / "scan.tif", rng.integers(0, 9, (40, 2, 10, 24), dtype=np.uint8))
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "scan.tif")
    assert caught.value.what == "scan.tif has shape 40 x 2 x 10 x 24 but does not say which axis is which."
    assert caught.value.mend == "add --axes zcyx (or tcyx, if the first is time)"


def test_contradicting_axes_are_refused_with_the_right_ones(tmp_path, rng):
    """A number of axes that does not fit is refused, with a line that would fit."""
    tifffile.imwrite(tmp_path / "scan.tif", rng.integers(0, 9, (40, 2, 10, 24), dtype=np.uint8))
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "scan.tif", axes="zyx")
    assert caught.value.what == "--axes zyx names 3 axes, but scan.tif has 4: 40 x 2 x 10 x 24."
    assert caught.value.mend == "--axes zcyx"


def test_user_may_override_metadata_with_a_note(tmp_path, rng):
    """Axes that contradict clear metadata are obeyed and noted; the file's size of the renamed axis is not kept."""
    pixels = rng.integers(0, 9, (5, 10, 24), dtype=np.uint8)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata=metadata)
    image = open_image(tmp_path / "a.ome.tif", axes="tyx")
    assert image.axes == "tyx"
    assert image.notes == ("a.ome.tif says its axes are zyx; read as tyx, as you asked.",)
    assert (image.pixel_size.x, image.pixel_size.z, image.pixel_size.t) == (0.5, None, None)
    assert open_image(tmp_path / "a.ome.tif", axes="zyx").notes == ()


def test_singletons_may_be_named_or_left_out(tmp_path, rng):
    """An axis of size 1 without a letter is dropped; named by the user, it stays."""
    pixels = rng.integers(0, 9, (1, 10, 24), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    assert open_image(tmp_path / "a.tif").axes == "yx"
    assert open_image(tmp_path / "a.tif", axes="yx").shape == (10, 24)
    assert open_image(tmp_path / "a.tif", axes="zyx").shape == (1, 10, 24)
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.5, "PhysicalSizeZ": 2.0}
    stack = rng.integers(0, 9, (6, 10, 24), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=metadata)  # OME-TIFF always has t and c, here of size 1
    image = open_image(tmp_path / "a.ome.tif", axes="tzyx")
    assert (image.axes, image.shape, image.pixel_size.z, image.notes) == ("tzyx", (1, 6, 10, 24), 2.0, ())
    assert np.array_equal(image.read()[0], stack)
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "a.ome.tif", axes="yx")
    assert caught.value.mend == "--axes zyx"


def test_trailing_channels_and_rgb(tmp_path, rng):
    """Samples of a pixel are channels, first inside; only RGB has colour names."""
    two = rng.integers(0, 255, (30, 20, 2), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "two.tif", two, photometric="minisblack", planarconfig="contig", metadata=None)
    image = open_image(tmp_path / "two.tif")
    assert (image.axes, image.source_axes, image.channels) == ("cyx", "yxc", ())
    assert image.channel_names() == ("channel 0", "channel 1")
    assert np.array_equal(image.read(), two.transpose(2, 0, 1))
    rgba = rng.integers(0, 255, (4, 30, 20), dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "rgba.tif",
        rgba,
        photometric="rgb",
        planarconfig="separate",
        extrasamples=["unassalpha"],
        compression="lzw",
    )
    image = open_image(tmp_path / "rgba.tif")
    assert image.channels == ("red", "green", "blue", "alpha")
    assert np.array_equal(image.read(), rgba)
    contig = rgba[:3].transpose(1, 2, 0)
    tifffile.imwrite(tmp_path / "rgb.tif", contig, photometric="rgb", tile=(16, 16), compression="zlib")
    image = open_image(tmp_path / "rgb.tif")
    assert (image.channels, image.source_axes) == (("red", "green", "blue"), "yxc")
    assert np.array_equal(np.asarray(image), contig)


def test_colours_inside_channels_are_refused(tmp_path, rng):
    """Channels of RGB planes would be two channel axes: refused, with the way out."""
    pixels = rng.integers(0, 255, (2, 20, 30, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", metadata={"axes": "CYXS"})
    with pytest.raises(AxesError, match="two channel axes"):
        open_image(tmp_path / "a.tif")


def test_series_are_chosen_and_listed(tmp_path, rng):
    """Three series of other axes, shape and dtype: the first is opened and the others are named; a wrong number too."""
    arrays = [
        rng.integers(0, 255, (4, 3, 16, 20), dtype=np.uint8),
        rng.integers(0, 9999, (33, 44), dtype=np.uint16),
        rng.random((3, 16, 20)).astype(np.float32),
    ]
    with tifffile.TiffWriter(tmp_path / "three.ome.tif") as writer:
        for array, axes, name in zip(arrays, ("TZYX", "YX", "ZYX"), ("four-d", "small", "float"), strict=True):
            writer.write(array, metadata={"axes": axes, "Name": name})
    for i, array in enumerate(arrays):
        image = open_image(tmp_path / "three.ome.tif", series=i)
        assert np.array_equal(image.read(), array)
        assert image.notes == ()
    image = open_image(tmp_path / "three.ome.tif")
    assert image.axes == "tzyx"
    assert "holds 3 series; this is series 0" in image.notes[0]
    assert "1 (small): y 33, x 44, uint16" in image.notes[0]
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "three.ome.tif", series=3)
    assert caught.value.what == "three.ome.tif has no series 3."
    assert "2 (float): z 3, y 16, x 20, float32" in caught.value.where
    assert caught.value.mend == "--series 0 to 2"


def test_pyramid_levels(data):
    """SubIFDs are levels; a level is an image with larger pixels; one too many is refused."""
    image = open_image(data / "gen/pyramid_subifds.ome.tif", pixel_size=(0.1, 0.1))
    assert [level.shape for level in image.levels] == [(256, 256), (128, 128)]
    half = open_image(data / "gen/pyramid_subifds.ome.tif", pixel_size=(0.1, 0.1), level=1)
    assert half.pixel_size.x == pytest.approx(0.2)
    with tifffile.TiffFile(data / "gen/pyramid_subifds.ome.tif") as tif:
        assert np.array_equal(half.read(), tif.series[0].levels[1].asarray())
    with pytest.raises(AxesError, match="levels 0 to 2, not 3"):
        image.level(3)


def test_missing_planes_are_noted(tmp_path, rng):
    """Planes that OME-XML promises and the file lacks read as zeros, and the image says so."""
    pixels = rng.integers(1, 255, (4, 16, 20), dtype=np.uint8)
    xml = tifffile.OmeXml()
    xml.addimage("uint8", (6, 16, 20), (6, 1, 1, 16, 20, 1), axes="ZYX")
    text = xml.tostring().replace('PlaneCount="6"', 'PlaneCount="4"')
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, description=text, metadata=None, photometric="minisblack")
    image = open_image(tmp_path / "a.ome.tif")
    assert image.shape == (6, 16, 20)
    assert image.notes == ("2 of 6 planes of the metadata are not there; they read as zeros",)
    assert np.array_equal(image.read()[:4], pixels)
    assert not image.read({"z": slice(4, 6)}).any()


def test_cut_imagej_stack_is_refused(tmp_path, rng):
    """An ImageJ stack with one page list entry that was cut must not open as a single plane."""
    pixels = rng.integers(0, 255, (20, 32, 40), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "whole.tif", pixels, imagej=True, metadata={"axes": "ZYX"})
    whole = (tmp_path / "whole.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "whole.tif") as tif:
        start = tif.pages[0].dataoffsets[0]
    (tmp_path / "cut.tif").write_bytes(whole[: start + 10 * 32 * 40])
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "cut.tif")
    assert "cut" in caught.value.what
    assert "20 planes" in caught.value.what


@pytest.mark.parametrize("keep", [0.15, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["ome", "plain", "bigtiff", "tiled"])
def test_cut_anywhere_is_an_error_or_reads_right(tmp_path, rng, kind, keep):
    """Wherever it is cut: a VoidzooError at opening or reading, or, where only padding is gone, the pixels."""
    pixels = rng.integers(0, 255, (6, 64, 48), dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.tif")
    more = {
        "ome": {"metadata": {"axes": "ZYX"}},
        "tiled": {"tile": (16, 16), "compression": "zlib"},
        "bigtiff": {"bigtiff": True},
    }
    tifffile.imwrite(path, pixels, **({"compression": "lzw", "metadata": None} | more.get(kind, {})))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    try:
        read = open_image(path, axes="zyx").read()
    except VoidzooError as error:
        refused = error
    else:
        assert np.array_equal(read, pixels)
        return
    assert refused.what
    assert refused.mend


def test_cut_page_list_is_refused_even_when_tifffile_is_silenced(tmp_path, rng):
    """Pages lost with the end of a file are noticed in the file itself, not in what tifffile logs."""
    pixels = rng.integers(0, 255, (9, 16, 20), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for plane in pixels:
            writer.write(plane, contiguous=False, metadata=None, compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        end = tif.pages[5].offset
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:end])
    logger = logging.getLogger("tifffile")
    logger.setLevel(logging.CRITICAL)
    try:
        with pytest.raises(ImageError, match=r"the list of pages leads nowhere.* and 5 readable pages"):
            open_image(tmp_path / "a.tif", axes="tyx")
    finally:
        logger.setLevel(logging.NOTSET)


def test_damaged_strip_names_file_page_and_strip(tmp_path, rng):
    """A strip that does not decode is an ImageError naming it; other strips still read."""
    pixels = rng.integers(0, 255, (4, 64, 48), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, pixels, photometric="minisblack", compression="zlib", rowsperstrip=16, metadata={"axes": "ZYX"}
    )
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[1].dataoffsets[2], tif.pages[1].databytecounts[2]
    raw = bytearray(path.read_bytes())
    raw[offset : offset + count] = b"\xff" * count
    path.write_bytes(raw)
    image = open_image(path)
    assert np.array_equal(image.read({"z": slice(0, 1)}), pixels[:1])
    assert np.array_equal(image.read({"z": slice(1, 2), "y": slice(0, 32)}), pixels[1:2, :32])
    with pytest.raises(ImageError) as caught:
        image.read()
    assert caught.value.what == "a.tif: strip 2 of page 1 cannot be decoded."
    assert caught.value.mend


def test_unknown_codec_names_it(tmp_path, rng, monkeypatch):
    """A compression that nothing here decodes is named when the file is opened, with the package that helps."""
    tifffile.imwrite(
        tmp_path / "a.tif", rng.integers(0, 9, (16, 16), dtype=np.uint8), compression="zlib", metadata=None
    )
    raw = (tmp_path / "a.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        at = tif.pages[0].tags[259].valueoffset
    (tmp_path / "a.tif").write_bytes(raw[:at] + (34676).to_bytes(2, "little") + raw[at + 2 :])  # SGILOG
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.tif")
    assert "SGILOG" in caught.value.what
    assert "pip install imagecodecs" in caught.value.mend


def test_changed_file_is_noticed_by_another_process(tmp_path, rng):
    """An image that was pickled refuses a file that is no longer the one it was made from."""
    import pickle

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rng.integers(0, 9, (16, 16), dtype=np.uint8))
    parcel = pickle.dumps(open_image(path))
    tifffile.imwrite(path, rng.integers(0, 9, (18, 16), dtype=np.uint8))
    with pytest.raises(ImageError, match="was changed after it was opened"):
        pickle.loads(parcel).read()


@pytest.mark.parametrize(("name", "what"), [("none.tif", "none.tif does not exist."), ("scam.tif", "does not exist")])
def test_missing_file(tmp_path, name, what):
    """A path that is not there is an ImageError that names the nearest one."""
    (tmp_path / "scan.tif").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / name)
    assert what in caught.value.what
    if name == "scam.tif":
        assert "did you mean scan.tif?" in caught.value.where


def test_foreign_format_names_the_way_out(tmp_path):
    """A format that is not read is named, with the way to convert it."""
    (tmp_path / "a.ims").write_bytes(b"\x89HDF\r\n")
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.ims")
    assert caught.value.what == "a.ims is a file of Imaris; TIFF, OME-Zarr, CZI, ND2, LIF and .npy are read."
    assert "Bio-Formats" in caught.value.mend


def test_ome_tiff_of_several_files(tmp_path, rng):
    """One OME-TIFF over two files reads as one image, in another process too; a missing file is named in a note."""
    import pickle

    pixels = rng.integers(1, 255, (2, 3, 16, 20), dtype=np.uint8)
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{i}" for i in range(2)]
    parts = "".join(
        f'<TiffData FirstT="{i}" IFD="0" PlaneCount="3"><UUID FileName="{i}.ome.tif">{uuids[i]}</UUID></TiffData>'
        for i in range(2)
    )
    for i, uuid in enumerate(uuids):
        xml = (
            f'<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}"><Image ID="Image:0">'
            '<Pixels ID="Pixels:0" DimensionOrder="XYZTC" Type="uint8" '
            'SizeX="20" SizeY="16" SizeC="1" SizeZ="3" SizeT="2">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{parts}</Pixels></Image></OME>'
        )
        tifffile.imwrite(
            tmp_path / f"{i}.ome.tif",
            pixels[i],
            description=xml,
            metadata=None,
            photometric="minisblack",
            compression="lzw",
        )
    image = open_image(tmp_path / "0.ome.tif")
    assert (image.axes, image.notes) == ("tzyx", ())
    assert np.array_equal(pickle.loads(pickle.dumps(image)).read(), pixels)
    (tmp_path / "1.ome.tif").unlink()
    image = open_image(tmp_path / "0.ome.tif")
    assert "3 of 6 planes of the metadata are not there (1.ome.tif cannot be read)" in image.notes[0]
    assert np.array_equal(image.read({"t": slice(0, 1)}), pixels[:1])


@pytest.mark.parametrize("codec", ["jpeg2000", "jpegxl", "png", "lerc", "lzma", "jpegxr", "packbits", "deflate"])
def test_other_codecs_equal_tifffile(tmp_path, rng, codec):
    """Tiles of every codec that imagecodecs brings decode as tifffile decodes them."""
    tifffile.imwrite(
        tmp_path / "a.tif", rng.integers(0, 255, (70, 50), dtype=np.uint8), compression=codec, tile=(32, 32)
    )
    whole = tifffile.imread(tmp_path / "a.tif")
    image = open_image(tmp_path / "a.tif")
    assert np.array_equal(image.read(), whole)
    assert np.array_equal(image.read({"y": slice(20, 60), "x": slice(10, 45)}), whole[20:60, 10:45])


def test_unlabelled_dimensions_say_what_the_file_calls_them(tmp_path, rng):
    """A file with axes that are none of ours (angles) is asked about, with its own letters shown."""
    pixels = rng.integers(0, 9, (5, 16, 20), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata={"axes": "AYX"})
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "a.tif")
    assert caught.value.where == "it calls them AYX"
    description = "ImageJ=1.53t\nimages=5\nunit=um\nspacing=0.7\n"
    tifffile.imwrite(tmp_path / "b.tif", pixels, description=description, metadata=None, resolution=(2, 2))
    with pytest.raises(AxesError) as caught:
        open_image(tmp_path / "b.tif")
    assert "plain stack" in caught.value.where
    assert open_image(tmp_path / "b.tif", axes="zyx").pixel_size.z == pytest.approx(0.7)
    assert open_image(tmp_path / "b.tif", axes="tyx").pixel_size.z is None


def test_damage_anywhere_is_one_error_or_pixels(tmp_path, data):
    """Random bytes changed in real files: a VoidzooError or an image, never another error."""
    files = sorted(p for p in data.rglob("*.tif*") if p.stat().st_size < 60_000 and p.parent.name != "bad")
    chance = np.random.default_rng(11)
    refused = 0
    for round_ in range(300):
        raw = bytearray(files[round_ % len(files)].read_bytes())
        low, high = [(0, min(400, len(raw))), (0, len(raw)), (max(0, len(raw) - 400), len(raw))][round_ % 3]
        for at in chance.integers(low, high, chance.integers(1, 8)):
            raw[at] = chance.integers(256)
        (tmp_path / "a.tif").write_bytes(raw)
        try:
            image = open_image(tmp_path / "a.tif")
            if image.nbytes < 50e6:
                image.read()
        except VoidzooError:
            refused += 1
    assert refused > 20
