"""Large TIFFs: ImageJ hyperstacks above 4 GB with one page entry, and 100,000 pages of one kind or of two."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from voidzoo.zoo.errors import ImageError
from voidzoo.zoo.open import open_image
from voidzoo.zoo.readers import tiff_file

PAGES = 100_000
SIDE = 6


# ---- above 4 GB with one page entry


def imagej_above_4gb(path: Path, sizes: dict[str, int], known: dict[tuple[int, ...], np.ndarray]) -> int:
    """An ImageJ hyperstack of uint16 whose one page entry stands for all planes; a hole but for the `known` planes.

    ImageJ writes it like this from 4 GB on: big-endian, the planes one after another in the order t, z, c.
    """
    planes = sizes["t"] * sizes["z"] * sizes["c"]
    text = (
        f"ImageJ=1.54f\nimages={planes}\nchannels={sizes['c']}\nslices={sizes['z']}\nframes={sizes['t']}\n"
        "hyperstack=true\nmode=grayscale\nunit=micron\nspacing=1.5\nfinterval=2.0\nloop=false\n"
    )
    shape = (sizes["y"], sizes["x"])
    tifffile.imwrite(
        path, np.zeros(shape, np.uint16), description=text, metadata=None, resolution=(5, 5), byteorder=">"
    )
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].dataoffsets[0]
    plane = shape[0] * shape[1] * 2
    with path.open("r+b") as file:
        file.truncate(start + planes * plane)
        for (t, c, z), pixels in known.items():
            file.seek(start + ((t * sizes["z"] + z) * sizes["c"] + c) * plane)
            file.write(pixels.astype(">u2").tobytes())
    return start + planes * plane


def test_imagej_hyperstack_above_4_gb(tmp_path, rng):
    """Any plane of a 5.3-GB hyperstack with a single page entry reads lazily, the last one too, also after pickling."""
    sizes = {"t": 7, "c": 3, "z": 31, "y": 2048, "x": 2000}
    known = {at: rng.integers(1, 60000, (2048, 2000), dtype=np.uint16) for at in [(0, 0, 0), (3, 1, 17), (6, 2, 30)]}
    path = tmp_path / "big.tif"
    nbytes = imagej_above_4gb(path, sizes, known)
    assert nbytes > 2**32
    assert path.stat().st_blocks * 512 < 200e6  # a sparse file: it costs next to no disk
    image = open_image(path)
    assert (image.axes, image.shape, image.kind) == ("tczyx", (7, 3, 31, 2048, 2000), "ImageJ TIFF")
    size = image.pixel_size
    assert (size.t, size.z, size.y, size.x) == (2.0, 1.5, 0.2, 0.2)
    for source in (image, pickle.loads(pickle.dumps(image))):
        for (t, c, z), pixels in known.items():
            region = {"t": slice(t, t + 1), "c": slice(c, c + 1), "z": slice(z, z + 1)}
            assert np.array_equal(source.read(region)[0, 0, 0], pixels)
            part = source.read(region | {"y": slice(1000, 1010), "x": slice(1990, 2000)})
            assert np.array_equal(part[0, 0, 0], pixels[1000:1010, 1990:])
        assert not source.read({"t": slice(5, 6), "c": slice(0, 1), "z": slice(3, 4)}).any()
        assert source.decoded < 40e6
    with path.open("r+b") as file:
        file.truncate(nbytes - 1)
    with pytest.raises(ImageError, match=r"ImageJ promises 651 planes"):
        open_image(path)


# ---- 100,000 pages


def many_pages(path: Path, *, order: str = "<", shuffled: bool = False, odd: int | None = None) -> np.ndarray:
    """A TIFF of 100,000 page entries, each with two strips; -> pixels (100000, 6, 6) uint16.

    Page `odd` has 5 columns instead of 6. Entries lie in the file in the order of the pages, or anyhow.
    """
    kind = np.dtype([("code", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u4"), ("value", f"{order}u4")])
    record = np.dtype(
        [("number", f"{order}u2"), ("tags", kind, 10), ("next", f"{order}u4"), ("starts", f"{order}u4", 2),
         ("sizes", f"{order}u4", 2), ("first", f"{order}u2", (4, SIDE)), ("gap", "u1", 10),
         ("second", f"{order}u2", (2, SIDE))]
    )  # fmt: skip
    rng = np.random.default_rng(12)
    pixels = rng.integers(0, 60000, (PAGES, SIDE, SIDE), dtype=np.uint16)
    records = np.zeros(PAGES, record)
    at = 8 + np.arange(PAGES) * record.itemsize
    if shuffled:
        at[1:] = rng.permutation(at[1:])
    place = {name: record.fields[name][1] for name in record.names}
    tags = [(256, 4, SIDE), (257, 4, SIDE), (258, 4, 16), (259, 4, 1), (262, 4, 1), (277, 4, 1), (278, 4, 4)]
    for i, (code, type_, value) in enumerate(tags):
        records["tags"][:, i] = np.array([(code, type_, 1, value)], kind)
    for i, (code, name) in enumerate([(273, "starts"), (279, "sizes")], start=7):
        records["tags"][:, i] = np.array([(code, 4, 2, 0)], kind)
        records["tags"]["value"][:, i] = at + place[name]
    records["tags"][:, 9] = np.array([(339, 4, 1, 1)], kind)
    records["number"] = 10
    records["next"][:-1] = at[1:]
    records["starts"] = np.stack([at + place["first"], at + place["second"]], axis=1)
    records["sizes"] = [4 * SIDE * 2, 2 * SIDE * 2]
    records["first"], records["second"] = pixels[:, :4], pixels[:, 4:]
    if odd is not None:
        records["tags"]["value"][odd, 0] = SIDE - 1
        records["sizes"][odd] = [4 * (SIDE - 1) * 2, 2 * (SIDE - 1) * 2]
    stored = np.empty_like(records)
    stored[(at - 8) // record.itemsize] = records
    path.write_bytes((b"II*\0" if order == "<" else b"MM\0*") + (8).to_bytes(4, "little" if order == "<" else "big"))
    with path.open("ab") as file:
        stored.tofile(file)
    return pixels


OPENING = """
import resource, sys
import numpy as np, tifffile
from voidzoo.zoo.open import open_image
tifffile.imwrite(sys.argv[2], np.zeros((4, 4), np.uint8))
open_image(sys.argv[2]).read()
parsed, original = [], tifffile.TiffPage.__init__
def counted(self, *arguments, **options):
    parsed.append(1)
    original(self, *arguments, **options)
tifffile.TiffPage.__init__ = counted
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_image(sys.argv[1], axes="zyx")
print(len(parsed), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def opening(path: Path) -> tuple[int, int]:
    """How many pages tifffile parses whole when a file is opened, and by how many kB memory grows at its peak."""
    command = [sys.executable, "-c", OPENING, str(path), str(path.with_name("small.tif"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    parsed, kilobytes = done.stdout.split()
    return int(parsed), int(kilobytes)


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
@pytest.mark.parametrize("options", [{}, {"order": ">", "shuffled": True}, {"odd": 50_321}], ids=str)
def test_100000_page_entries(tmp_path, options):
    """A plain list of 100,000 pages opens without parsing each, in little memory; random pages are right."""
    path = tmp_path / "many.tif"
    pixels = many_pages(path, **options)
    with tifffile.TiffFile(path) as tif:  # what was written is a TIFF to others, too
        assert np.array_equal(tif.pages[70_000].asarray(), pixels[70_000])
    parsed, kilobytes = opening(path)
    assert parsed <= 12  # a few, to see what kind of file it is
    assert kilobytes < 100_000
    image = open_image(path, axes="zyx")
    if "odd" in options:
        assert "holds 2 series" in image.notes[0]
        assert open_image(path, series=1).shape == (SIDE, SIDE - 1)
        pixels = np.delete(pixels, options["odd"], axis=0)
    assert image.shape == pixels.shape
    rng = np.random.default_rng(1)
    for z in [*rng.integers(0, len(pixels) - 9, 40), 50_316, len(pixels) - 9]:
        assert np.array_equal(image.read({"z": slice(z, z + 9), "y": slice(2, 6)}), pixels[z : z + 9, 2:])
    assert len(pickle.dumps(image)) < 2000


@pytest.mark.skipif(sys.platform == "win32", reason="resource is not there")
@pytest.mark.parametrize("kind", ["ImageJ", "OME", "shaped"])
def test_100000_planes_one_after_another(tmp_path, rng, kind):
    """100,000 planes as ImageJ, OME-TIFF and tifffile write them: little memory, random pages right."""
    pixels = rng.integers(0, 60000, (PAGES, SIDE, SIDE), dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if kind == "OME" else "a.tif")
    tifffile.imwrite(path, pixels, imagej=kind == "ImageJ", metadata={"axes": "ZYX"})
    _, kilobytes = opening(path)
    assert kilobytes < 200_000
    image = open_image(path)
    for z in rng.integers(0, PAGES - 3, 30):
        assert np.array_equal(image.read({"z": slice(z, z + 3)}), pixels[z : z + 3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ImageJ", "OME"])
def test_100000_compressed_pages(tmp_path, rng, kind):
    """100,000 deflated pages with metadata in the first: memory below 300 MB, random pages right."""
    pixels = rng.integers(0, 60000, (PAGES, SIDE, SIDE), dtype=np.uint16)
    path = tmp_path / ("a.ome.tif" if kind == "OME" else "a.tif")
    tifffile.imwrite(path, pixels, imagej=kind == "ImageJ", metadata={"axes": "ZYX"}, compression="zlib")
    _, kilobytes = opening(path)
    assert kilobytes < 250_000
    image = open_image(path)
    for z in rng.integers(0, PAGES - 3, 30):
        assert np.array_equal(image.read({"z": slice(z, z + 3)}), pixels[z : z + 3])


# ---- the list that is read here against tifffile's


def plain(path: Path, planes: list[np.ndarray], options: dict[str, Any]) -> None:
    """A TIFF of pages without any metadata; descriptions of all lengths move the tags about."""
    file = {key: options[key] for key in ("bigtiff", "byteorder") if key in options}
    page = {key: value for key, value in options.items() if key not in file}
    with tifffile.TiffWriter(path, **file) as writer:
        for i, plane in enumerate(planes):
            writer.write(plane, contiguous=False, metadata=None, description="x" * (i * 7 % 50), **page)


STRUCTURES: dict[str, dict[str, Any]] = {
    "raw": {},
    "raw strips": {"rowsperstrip": 7},
    "big-endian": {"byteorder": ">", "rowsperstrip": 9, "compression": "lzw"},
    "BigTIFF": {"bigtiff": True, "compression": "zlib"},
    "BigTIFF big-endian": {"bigtiff": True, "byteorder": ">", "rowsperstrip": 5, "compression": "zstd"},
    "tiles": {"tile": (16, 32), "compression": "zlib", "predictor": True},
    "raw tiles": {"tile": (32, 16), "byteorder": ">"},
    "PackBits": {"compression": "packbits", "rowsperstrip": 3},
    "rgb": {"photometric": "rgb", "compression": "zlib", "rowsperstrip": 8},
    "planar": {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 8, "byteorder": ">"},
    "jpeg": {"photometric": "rgb", "compression": "jpeg", "tile": (32, 32)},
    "bilevel": {},
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_list_of_pages_is_that_of_tifffile(tmp_path, rng, monkeypatch, name):
    """Shape, kind, chunks, notes and pixels are those that tifffile's own list leads to."""
    shape = {"rgb": (50, 41, 3), "jpeg": (50, 41, 3), "planar": (3, 50, 41)}.get(name, (50, 41))
    planes = [rng.integers(0, 255, shape, dtype=np.uint8 if len(shape) > 2 else np.uint16) for _ in range(12)]
    if name == "bilevel":
        planes = [plane % 2 == 0 for plane in planes]
    plain(tmp_path / "a.tif", planes, STRUCTURES[name])
    axes = {2: "zyx", 3: "zcyx" if name == "planar" else "zyxc"}[len(shape)]
    found = []
    for series in (tiff_file.plain_series, lambda _: None):
        calls: list[Any] = []
        monkeypatch.setattr(tiff_file, "plain_series", lambda tif, s=series, c=calls: c.append(s(tif)) or c[-1])
        image = open_image(tmp_path / "a.tif", axes=axes)
        found.append((image.shape, image.chunks, image.dtype, image.notes, image.channels, image.metadata, image.kind))
        region = {"y": slice(5, 30), "x": slice(11, 40), "z": slice(2, 11)}
        found[-1] += (np.asarray(image).tobytes(), image.read(region).tobytes())
        if len(found) == 1:
            assert calls[0] is not None  # it was this list that was tried
    assert found[0] == found[1]
    if name != "jpeg":
        assert found[0][-2] == np.stack(planes).tobytes()


def test_one_page_that_differs_in_the_middle(tmp_path, rng):
    """A list of a few pages of two sizes is two series, wherever the other one lies."""
    pages = [rng.integers(0, 9999, (20, 30), dtype=np.uint16) for _ in range(12)]
    pages[5] = rng.integers(0, 9999, (10, 30), dtype=np.uint16)
    plain(tmp_path / "a.tif", pages, {"compression": "zlib"})
    image = open_image(tmp_path / "a.tif", axes="tyx")
    assert "holds 2 series" in image.notes[0]
    assert np.array_equal(image.read(), np.stack(pages[:5] + pages[6:]))
    assert np.array_equal(open_image(tmp_path / "a.tif", series=1).read(), pages[5])


def test_strips_that_lie_apart_on_a_later_page(tmp_path, rng):
    """Uncompressed strips may lie together on the first page and anyhow on the others: each page is read as it is."""
    pixels = rng.integers(0, 9999, (9, 16, 10), dtype=np.uint16)
    plain(tmp_path / "a.tif", list(pixels), {"rowsperstrip": 8})
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        starts, tag = tif.pages[4].dataoffsets, tif.pages[4].tags[273]
    with (tmp_path / "a.tif").open("r+b") as file:  # the two strips of page 4 change places
        for i, start in enumerate(starts):
            file.seek(start)
            file.write(pixels[4, 8 * (1 - i) : 8 * (2 - i)].tobytes())
        file.seek(tag.valueoffset)
        file.write(np.array(starts[::-1], "<u4").tobytes())
    image = open_image(tmp_path / "a.tif", axes="zyx")
    assert np.array_equal(image.read(), pixels)
    assert np.array_equal(image.read({"z": slice(3, 6), "y": slice(6, 10)}), pixels[3:6, 6:10])


def test_an_error_on_a_page_names_file_page_and_strip(tmp_path, rng):
    """A strip that does not decode: `where` names the file, the page in it, and the strip."""
    pages = [rng.integers(0, 9999, (16, 10), dtype=np.uint16) for _ in range(12)]
    plain(tmp_path / "a.tif", pages, {"compression": "zlib", "rowsperstrip": 8})
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        start, count = tif.pages[7].dataoffsets[1], tif.pages[7].databytecounts[1]
    with (tmp_path / "a.tif").open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * count)
    with pytest.raises(ImageError) as caught:
        open_image(tmp_path / "a.tif", axes="zyx").read()
    assert caught.value.what == "a.tif: strip 1 of page 7 cannot be decoded."
    assert caught.value.where.startswith(f"{tmp_path / 'a.tif'}, strip 1 of page 7: ")


@pytest.mark.parametrize("damage", ["next", "number", "offset"])
def test_a_damaged_entry_among_many_is_an_error_at_opening(tmp_path, damage):
    """A page list that leads nowhere, and pixels beyond the end of the file, are refused when it is opened."""
    path = tmp_path / "many.tif"
    many_pages(path)
    with tifffile.TiffFile(path) as tif:
        entry = tif.pages.first.offset + 60_000 * ((path.stat().st_size - 8) // PAGES)
    with path.open("r+b") as file:
        file.seek(entry + {"next": 2 + 10 * 12, "number": 0, "offset": 2 + 10 * 12 + 4}[damage])
        file.write(b"\xff\xff\xff\x7f"[: 2 if damage == "number" else 4])
    with pytest.raises(ImageError, match="is cut") as caught:
        open_image(path, axes="zyx")
    assert caught.value.mend
    if damage == "offset":
        assert "of page 60000" in caught.value.what
