"""Microscope makers' files, written here after their formats and read through bioio's readers: CZI, LIF, ND2."""

from __future__ import annotations

import itertools
import pickle
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pylibCZIrw import czi

from voidzoo.zoo.errors import AxesError, ImageError
from voidzoo.zoo.image import PixelSize
from voidzoo.zoo.open import open_image

SHAPE = (3, 2, 4, 70, 83)  # t c z y x


def write_czi(path: Path, pixels: np.ndarray, scenes: int = 1, **options: Any) -> None:
    """A CZI of tczyx pixels; further scenes hold 1, 2, ... more in each pixel, beside each other."""
    with czi.create_czi(str(path)) as writer:
        for scene, t, c, z in itertools.product(range(scenes), *(range(n) for n in pixels.shape[:3])):
            plane = (pixels[t, c, z] + np.asarray(scene, pixels.dtype))[..., None]
            where = (scene * 1000, 0)
            writer.write(np.ascontiguousarray(plane), where, {"T": t, "C": c, "Z": z}, scene=scene, **options)
        names = {0: "nuclei", 1: "membrane"}
        writer.write_metadata("made", channel_names=names, scale_x=0.25e-6, scale_y=0.5e-6, scale_z=2e-6)
    if scenes > 1:
        list_scenes(path, scenes)


def list_scenes(path: Path, scenes: int) -> None:
    """Put the list of scenes, which ZEN writes and pylibCZIrw does not, into the metadata: a new segment at the end.

    Layout: ZISRAW (CZI) file format, file header and metadata segment.
    """
    with czi.open_czi(str(path)) as reader:
        text = reader.raw_metadata
    entries = "".join(f'<Scene Index="{i}" Name="scene {i}"/>' for i in range(scenes))
    text = text.replace("</Image>", f"<Dimensions><S><Scenes>{entries}</Scenes></S></Dimensions></Image>", 1)
    body = text.encode()
    with path.open("r+b") as file:
        end = (file.seek(0, 2) + 31) // 32 * 32
        file.seek(end)
        size = 256 + len(body)
        file.write(
            b"ZISRAWMETADATA".ljust(16, b"\0") + struct.pack("<qqii", size, size, len(body), 0) + bytes(248) + body
        )
        file.seek(32 + 60)  # where the header points to the metadata
        file.write(struct.pack("<q", end))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    pixels = np.random.default_rng(6).integers(0, 60000, SHAPE, dtype=np.uint16)
    path = tmp_path_factory.mktemp("czi") / "made.czi"
    write_czi(path, pixels)
    return path, pixels


def test_czi(made):
    """Axes, um, channel names, one plane a chunk; random regions equal what was written; threads; pickling; counting."""
    path, pixels = made
    image = open_image(path)
    assert (image.axes, image.shape, image.dtype, image.kind) == ("tczyx", SHAPE, np.dtype("u2"), "Zeiss CZI")
    assert image.pixel_size == PixelSize(z=2.0, y=0.5, x=0.25)
    assert image.channels == ("nuclei", "membrane")
    assert image.chunks == (1, 1, 1, 70, 83)
    assert image.decoded == 0  # nothing is decoded at opening
    rng = np.random.default_rng(2)
    regions = [{a: slice(*np.sort(rng.integers(0, n + 1, 2))) for a, n in image.sizes.items()} for _ in range(30)]
    for source in (image, pickle.loads(pickle.dumps(image))):
        with ThreadPoolExecutor(4) as pool:
            for region, part in zip(regions, pool.map(source.read, regions), strict=True):
                assert np.array_equal(part, pixels[tuple(region[a] for a in "tczyx")])
        assert source.decoded <= source.nbytes  # each plane once
        source.close()
        assert np.array_equal(source.read({"t": slice(1, 2)}), pixels[1:2])
    assert len(pickle.dumps(image)) < 3000
    assert image.identity["bytes"] == path.stat().st_size


def test_scenes_are_series(tmp_path, rng):
    """Scenes are series, the others are named in a note; a number too high is refused with those there are."""
    pixels = rng.integers(0, 60000, (1, 1, 2, 30, 40), dtype=np.uint16)
    write_czi(tmp_path / "a.czi", pixels, scenes=3)
    for scene in range(3):
        image = open_image(tmp_path / "a.czi", series=scene)
        assert image.axes == "zyx"
        assert np.array_equal(image.read(), pixels[0, 0] + scene)
        assert image.notes == ()
        assert image.identity["series"] == scene
    assert "holds 3 series; this is series 0" in open_image(tmp_path / "a.czi").notes[0]
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.czi", series=3)
    assert caught.value.what == "a.czi has no series 3."
    assert caught.value.mend == "--series 0 to 2"


def test_a_mosaic_is_put_together(tmp_path, rng):
    """Tiles that overlap are one plane, the same that libCZI composes; a region decodes the tiles it touches."""
    tiles = rng.integers(0, 60000, (2, 2, 3, 64, 80), dtype=np.uint16)  # c, rows, columns, y, x
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        for c, row, column in itertools.product(range(2), range(2), range(3)):
            place = {"C": c, "M": row * 3 + column}
            writer.write(np.ascontiguousarray(tiles[c, row, column][..., None]), (column * 70, row * 54), place)
        writer.write_metadata("made", scale_x=1e-6, scale_y=1e-6)
    with czi.open_czi(str(tmp_path / "a.czi")) as reader:
        expected = np.stack([reader.read(plane={"C": c})[..., 0] for c in range(2)])
    image = open_image(tmp_path / "a.czi")
    assert (image.axes, image.shape) == ("cyx", (2, 118, 220))
    assert np.array_equal(image.read(), expected)
    assert "mosaic" in image.notes[0]
    region = {"c": slice(1, 2), "y": slice(20, 40), "x": slice(5, 60)}
    small = image.with_cache(0)
    assert np.array_equal(small.read(region), expected[1:, 20:40, 5:60])
    assert small.decoded <= 64 * 80 * 2


@pytest.mark.parametrize("compression", ["uncompressed:", "zstd0:ExplicitLevel=2", "zstd1:ExplicitLevel=3"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_compressed_czi(tmp_path, rng, compression, dtype):
    """Lossless compressions give the pixels that were written."""
    pixels = rng.integers(0, 250, (1, 1, 1, 60, 50), dtype=dtype)
    write_czi(tmp_path / "a.czi", pixels, compression_options=compression)
    assert np.array_equal(open_image(tmp_path / "a.czi").read(), pixels[0, 0, 0])


def test_axes_of_the_user(made):
    """The user may say another axis, also for a file of a maker."""
    path, pixels = made
    with pytest.raises(AxesError, match=r"names 3 axes, but made\.czi has 5"):
        open_image(path, axes="zyx")
    assert np.array_equal(open_image(path, axes="ctzyx").read(), pixels.transpose(1, 0, 2, 3, 4))


# ---- LIF


def write_lif(path: Path, images: list[tuple[str, np.ndarray]]) -> None:
    """A LIF of tzcyx images, uint16, 2 um x 0.5 um x 0.25 um, 1.5 s: XML in UTF-16, then one block of memory an image.

    Layout: https://github.com/cgohlke/liffile, which reads it.
    """
    elements, blocks = "", b""
    for number, (name, pixels) in enumerate(images):
        t, z, c, y, x = pixels.shape
        plane = y * x * 2
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
            f'Max="65535" Unit="" LUTName="{colour}" IsLUTInverted="0" BytesInc="{i * plane}" BitInc="0"/>'
            for i, colour in enumerate(["Green", "Red", "Blue"][:c])
        )
        dimensions = "".join(
            f'<DimensionDescription DimID="{id_}" NumberOfElements="{n}" Origin="0" Length="{length * (n - 1)}" '
            f'Unit="{unit}" BitInc="0" BytesInc="{step}"/>'
            for id_, n, length, unit, step in [
                (1, x, 0.25e-6, "m", 2), (2, y, 0.5e-6, "m", 2 * x),
                (3, z, 2e-6, "m", c * plane), (4, t, 1.5, "s", z * c * plane),
            ]
        )  # fmt: skip
        memory = f"MemBlock_{number}"
        elements += (
            f'<Element Name="{name}" Visibility="1" UniqueID="{number}"><Data><Image TextDescription="">'
            f"<ImageDescription><Channels>{channels}</Channels><Dimensions>{dimensions}</Dimensions>"
            f'</ImageDescription></Image></Data><Memory Size="{pixels.nbytes}" MemoryBlockID="{memory}"/></Element>'
        )
        data = np.ascontiguousarray(pixels, "<u2").tobytes()
        label = memory.encode("utf-16-le")
        body = struct.pack("<BQBI", 0x2A, len(data), 0x2A, len(memory)) + label
        blocks += struct.pack("<II", 0x70, len(body)) + body + data
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="made" Visibility="1" UniqueID="x"><Data>'
        f'<Experiment Path="made"/></Data><Memory Size="0" MemoryBlockID="MemBlock_x"/><Children>{elements}</Children>'
        "</Element></LMSDataContainerHeader>"
    )
    text = xml.encode("utf-16-le")
    empty = "MemBlock_x".encode("utf-16-le")
    body = struct.pack("<BQBI", 0x2A, 0, 0x2A, len(empty) // 2) + empty
    head = struct.pack("<BI", 0x2A, len(xml)) + text
    path.write_bytes(struct.pack("<II", 0x70, len(head)) + head + struct.pack("<II", 0x70, len(body)) + body + blocks)


def test_lif(tmp_path, rng):
    """A LIF of two images: axes, um, channel names; random regions equal what was written, plane by plane."""
    first = rng.integers(0, 60000, (3, 4, 2, 40, 52), dtype=np.uint16)
    second = rng.integers(0, 60000, (1, 5, 1, 33, 21), dtype=np.uint16)
    write_lif(tmp_path / "a.lif", [("one", first), ("two", second)])
    image = open_image(tmp_path / "a.lif")
    assert (image.axes, image.shape, image.kind) == ("tczyx", (3, 2, 4, 40, 52), "Leica LIF")
    assert image.pixel_size.z == pytest.approx(2.0)
    assert image.pixel_size.y == pytest.approx(0.5)
    assert image.pixel_size.x == pytest.approx(0.25)
    assert image.channels == ("Green", "Red")
    assert image.chunks == (1, 1, 1, 40, 52)
    assert "1 (" in image.notes[0]
    whole = first.transpose(0, 2, 1, 3, 4)
    chance = np.random.default_rng(3)
    for source in (image, pickle.loads(pickle.dumps(image))):
        for _ in range(10):
            region = {a: slice(*np.sort(chance.integers(0, n + 1, 2))) for a, n in image.sizes.items()}
            assert np.array_equal(source.read(region), whole[tuple(region[a] for a in "tczyx")])
        assert source.decoded <= source.nbytes
    other = open_image(tmp_path / "a.lif", series=1)
    assert other.axes == "zyx"
    assert np.array_equal(other.read(), second[0, :, 0])


# ---- ND2


def clx(name: str, value: Any) -> bytes:
    """One entry of Nikon's lite variant: type, length of the name, name in UTF-16, value; nested for dicts."""
    label = (name + "\0").encode("utf-16-le")
    head = lambda kind: struct.pack("BB", kind, len(label) // 2) + label  # noqa: E731
    if isinstance(value, dict):
        inner = b"".join(clx(k, v) for k, v in value.items())
        return (
            head(11) + struct.pack("<IQ", len(value), len(head(11)) + 12 + len(inner)) + inner + bytes(8 * len(value))
        )
    if isinstance(value, bool):
        return head(1) + struct.pack("B", value)
    if isinstance(value, float):
        return head(6) + struct.pack("<d", value)
    if isinstance(value, str):
        return head(8) + (value + "\0").encode("utf-16-le")
    return head(3) + struct.pack("<I", value)


def write_nd2(path: Path, pixels: np.ndarray, *, calibrated: bool = True) -> None:
    """An ND2 (version 3) of tzyxc pixels: a loop over t with one over z in it, all channels of a frame together.

    Layout: https://github.com/tlambert03/nd2, which reads it.
    """
    t, z, y, x, c = pixels.shape
    bits = pixels.dtype.itemsize * 8
    attributes = {
        "uiWidth": x, "uiWidthBytes": x * c * bits // 8, "uiHeight": y, "uiComp": c, "uiBpcInMemory": bits,
        "uiBpcSignificant": bits, "uiSequenceCount": t * z, "eCompression": 2,
    }  # fmt: skip
    planes = {
        f"a{i}": {"uiSampleIndex": i, "uiCompCount": 1, "sDescription": name, "pFluorescentProbe": {"m_sName": name}}
        for i, name in enumerate(["DAPI", "GFP", "RFP"][:c])
    }
    picture = {
        "bCalibrated": calibrated, "dCalibration": 0.325,
        "sPicturePlanes": {"uiCount": c, "uiCompCount": c, "sPlaneNew": planes},
    }  # fmt: skip
    stack = {"eType": 4, "uLoopPars": {"uiCount": z, "dZStep": 1.5, "dZLow": 0.0, "dZHigh": 1.5 * (z - 1)}}
    series = {"uiCount": t, "dStart": 0.0, "dPeriod": 2500.0, "dDuration": 2500.0 * t}
    experiment = {"eType": 1, "uLoopPars": series, "ppNextLevelEx": {"i0000000000": stack}}
    frames = np.ascontiguousarray(pixels).reshape(t * z, -1)
    chunks = [
        (b"ImageAttributesLV!", clx("SLxImageAttributes", attributes)),
        (b"ImageMetadataLV!", clx("SLxExperiment", experiment)),
        (b"ImageMetadataSeqLV|0!", clx("SLxPictureMetadata", picture)),
        (b"CustomData|AcqTimesCache!", (np.arange(t * z) * 10.0).tobytes()),
        *((f"ImageDataSeq|{i}!".encode(), bytes(8) + frame.tobytes()) for i, frame in enumerate(frames)),
    ]
    places = b""
    with path.open("wb") as file:
        signature = b"ND2 FILE SIGNATURE CHUNK NAME01!"
        file.write(struct.pack("<IIQ", 0x0ABECEDA, 32, 64) + signature + b"Ver3.0".ljust(64, b"\0"))
        for name, data in chunks:
            file.write(bytes(-file.tell() % 4096))
            places += name + struct.pack("<QQ", file.tell(), len(data))
            file.write(struct.pack("<IIQ", 0x0ABECEDA, 4072, len(data)) + name.ljust(4072, b"\0") + data)
        file.write(bytes(-file.tell() % 4096))
        at = file.tell()
        end = b"ND2 CHUNK MAP SIGNATURE 0000001!"
        places += end + struct.pack("<Q", at)
        label = b"ND2 FILEMAP SIGNATURE NAME 0001!"
        file.write(struct.pack("<IIQ", 0x0ABECEDA, len(label), len(places)) + label + places)


def test_nd2(tmp_path, rng):
    """Axes, um, s, channel names; a frame holds all channels and is decoded once; random regions are right."""
    pixels = rng.integers(0, 60000, (3, 4, 40, 52, 2), dtype=np.uint16)  # t z y x c
    write_nd2(tmp_path / "a.nd2", pixels)
    image = open_image(tmp_path / "a.nd2")
    assert (image.axes, image.shape, image.kind) == ("tczyx", (3, 2, 4, 40, 52), "Nikon ND2")
    assert image.pixel_size == PixelSize(z=1.5, y=0.325, x=0.325, t=2.5)
    assert image.channels == ("DAPI", "GFP")
    assert image.chunks == (1, 2, 1, 40, 52)
    whole = pixels.transpose(0, 4, 1, 2, 3)
    chance = np.random.default_rng(3)
    for source in (image, pickle.loads(pickle.dumps(image))):
        for _ in range(10):
            region = {a: slice(*np.sort(chance.integers(0, n + 1, 2))) for a, n in image.sizes.items()}
            assert np.array_equal(source.read(region), whole[tuple(region[a] for a in "tczyx")])
        assert source.decoded <= source.nbytes


def test_an_nd2_without_calibration_has_no_pixel_size(tmp_path, rng):
    """Where NIS-Elements did not calibrate, the size in the file is a placeholder."""
    pixels = rng.integers(0, 60000, (1, 1, 30, 20, 1), dtype=np.uint16)
    write_nd2(tmp_path / "a.nd2", pixels, calibrated=False)
    image = open_image(tmp_path / "a.nd2")
    assert (image.axes, image.pixel_size) == ("yx", PixelSize())
    assert np.array_equal(image.read(), pixels[0, 0, :, :, 0])


# ---- what is wrong


@pytest.mark.parametrize("ending", [".czi", ".nd2", ".lif"])
@pytest.mark.parametrize("content", [b"", b"not at all", b"ZISRAWFILE" + bytes(600), b"\xda\xce\xbe\x0a" + bytes(400)])
def test_broken_files_are_one_error(tmp_path, ending, content):
    """Whatever is in it: an ImageError that names file and path, with a way out."""
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert caught.value.what.startswith("a.")
    assert str(path) in caught.value.where
    assert caught.value.mend
    assert "\n" not in caught.value.where


def test_cut_czi_and_lif(made, tmp_path, rng):
    """A file that was cut is an ImageError when opened or read, wherever it was cut."""
    write_lif(tmp_path / "a.lif", [("one", rng.integers(0, 60000, (2, 2, 2, 40, 52), dtype=np.uint16))])
    for source in (made[0], tmp_path / "a.lif"):
        whole = source.read_bytes()
        for keep in (0.1, 0.5, 0.9):
            path = tmp_path / f"cut{source.suffix}"
            path.write_bytes(whole[: int(len(whole) * keep)])
            with pytest.raises(ImageError):
                open_image(path).read()


def test_a_plane_that_cannot_be_decoded_is_named(tmp_path, rng):
    """A damaged plane names file and plane; the others still read."""
    pixels = rng.integers(0, 200, (1, 1, 6, 60, 50), dtype=np.uint8)
    write_czi(tmp_path / "a.czi", pixels, compression_options="zstd1:ExplicitLevel=3")
    raw = bytearray((tmp_path / "a.czi").read_bytes())
    frames = [i for i in range(len(raw)) if raw.startswith(b"\x28\xb5\x2f\xfd", i)]  # what a zstd frame begins with
    assert len(frames) == 6
    raw[frames[3] : frames[3] + 8] = b"\xff" * 8
    (tmp_path / "a.czi").write_bytes(raw)
    image = open_image(tmp_path / "a.czi")
    assert np.array_equal(image.read({"z": slice(0, 3)}), pixels[0, 0, :3])
    with pytest.raises(ImageError) as caught:
        image.read()
    assert caught.value.what == "a.czi: plane z 3 of series 0 cannot be decoded."
    assert str(tmp_path / "a.czi") in caught.value.where


def test_a_file_that_changed_is_noticed_in_another_process(tmp_path, rng):
    """A pickled image refuses a file that is no longer the one it was made from."""
    write_czi(tmp_path / "a.czi", rng.integers(0, 9, (1, 1, 1, 30, 40), dtype=np.uint8))
    parcel = pickle.dumps(open_image(tmp_path / "a.czi"))
    write_czi(tmp_path / "b.czi", rng.integers(0, 9, (1, 1, 1, 31, 40), dtype=np.uint8))
    (tmp_path / "b.czi").replace(tmp_path / "a.czi")
    with pytest.raises(ImageError, match="was changed after it was opened"):
        pickle.loads(parcel).read()


@pytest.mark.parametrize(("ending", "module"), [(".czi", "bioio_czi"), (".nd2", "bioio_nd2"), (".lif", "bioio_lif")])
def test_without_the_extra(tmp_path, ending, module):
    """Without bioio's readers the error gives the line that installs them; TIFFs do not import them."""
    (tmp_path / f"a{ending}").write_bytes(b"x")
    code = f"""
import sys
import voidzoo.zoo.open
assert not [m for m in sys.modules if m.startswith(("bioio", "nd2", "liffile", "aicspylibczi"))]
sys.modules[{module!r}] = None  # as if it were not installed
from voidzoo.zoo.errors import DependencyError
try:
    voidzoo.zoo.open.open_image({str(tmp_path / f"a{ending}")!r})
except DependencyError as error:
    print(error.mend)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'pip install "voidzoo[formats]"'
