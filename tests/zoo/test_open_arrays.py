"""Arrays in memory, .npy files, xarray and folders of TIFFs."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile

from voidzoo.zoo.errors import AxesError, DtypeError, ImageError, SizeError
from voidzoo.zoo.image import PixelSize
from voidzoo.zoo.open import open_image


def test_planes_need_no_axes_and_stacks_do(rng):
    """A two-dimensional array is yx; more dimensions must be named."""
    plane = rng.random((20, 30)).astype(">f4")
    image = open_image(plane)
    assert (image.axes, image.dtype, image.kind) == ("yx", np.dtype("f4"), "array")
    assert np.array_equal(image.read(), plane)
    with pytest.raises(AxesError) as caught:
        open_image(np.zeros((5, 20, 30)))
    assert caught.value.what == "array has shape 5 x 20 x 30 but does not say which axis is which."
    assert caught.value.mend == "add --axes zyx (or tyx, if the first is time)"
    with pytest.raises(AxesError):
        open_image(np.zeros((5, 1, 7)))  # y and x are not named: nothing may be dropped
    image = open_image(np.zeros((20, 30, 3)), axes="yxc")
    assert (image.axes, image.source_axes, image.shape) == ("cyx", "yxc", (3, 20, 30))


@pytest.mark.parametrize(
    ("shape", "mend"),
    [
        ((20, 30, 3), "add --axes yxc"),
        ((9, 4, 20, 30), "add --axes zcyx (or tcyx, if the first is time)"),
        ((9, 5, 4, 20, 30), "add --axes tzcyx"),
        ((2, 9, 5, 4, 20, 30), "add --axes tczyx, one letter for each axis longer than 1"),
    ],
)
def test_the_mend_fits_the_shape(shape, mend):
    """The proposed axes have as many letters as the array has dimensions."""
    with pytest.raises(AxesError) as caught:
        open_image(np.zeros(shape, np.uint8))
    assert caught.value.mend.startswith(mend)


@pytest.mark.parametrize("axes", ["zyq", "zz", "yxx", "zc", ""])
def test_letters_that_cannot_be(axes):
    """Unknown or repeated letters and axes without y and x are refused."""
    with pytest.raises(AxesError) as caught:
        open_image(np.zeros((3, 4, 5)), axes=axes)
    assert caught.value.mend


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.zeros((4, 4), np.complex64), DtypeError),
        (np.zeros((4, 4), "U3"), DtypeError),
        (np.zeros((4, 4), [("a", "u1")]), DtypeError),
        (np.zeros((4, 4), object), DtypeError),
        (np.zeros((0, 4), np.uint8), SizeError),
        (np.zeros(4), ImageError),
        (3, DtypeError),
        ([["a"]], DtypeError),
        (["a.tif", "b.tif"], ImageError),
    ],
)
def test_what_is_no_image(array, kind):
    """Complex numbers, text, records, no pixels, one dimension and other objects are refused, each in its kind."""
    with pytest.raises(kind) as caught:
        open_image(array)
    assert caught.value.what


def test_reading_never_lends_out_the_users_pixels(rng):
    """What a read returns may be written to without changing the array."""
    pixels = rng.random((20, 30))
    before = pixels.copy()
    open_image(pixels).read()[:] = 0
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(tmp_path, rng, order):
    """A .npy file is mapped, in either order, big-endian too, and travels by path."""
    pixels = np.asarray(rng.integers(0, 9999, (5, 20, 30)).astype(">u2"), order=order)
    np.save(tmp_path / "a.npy", pixels)
    image = open_image(tmp_path / "a.npy", axes="zyx")
    assert (image.kind, image.dtype) == ("npy", np.dtype("u2"))
    parcel = pickle.dumps(image)
    assert len(parcel) < 1500
    region = {"z": slice(1, 4), "x": slice(3, 9)}
    assert np.array_equal(pickle.loads(parcel).read(region), pixels[1:4, :, 3:9])
    with pytest.raises(AxesError, match=r"a.npy has shape 5 x 20 x 30"):
        open_image(tmp_path / "a.npy")


def test_broken_npy(tmp_path):
    """Cut .npy files and such with Python objects are refused."""
    np.save(tmp_path / "a.npy", np.zeros((40, 40)))
    raw = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(raw[:3000])
    with pytest.raises(ImageError, match="broken"):
        open_image(tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", np.array([[{}, {}]], dtype=object), allow_pickle=True)
    with pytest.raises(DtypeError, match="Python objects"):
        open_image(tmp_path / "b.npy")


def test_an_image_is_itself_and_may_get_a_pixel_size(rng):
    """Opening an Image gives it back; a pixel size is put in; other axes are refused."""
    image = open_image(rng.random((20, 30)))
    assert open_image(image) is image
    assert open_image(image, pixel_size={"x": 0.5, "y": 0.5}).pixel_size == PixelSize(y=0.5, x=0.5)
    with pytest.raises(AxesError, match="was opened with yx"):
        open_image(image, axes="zyx")


def test_dask(rng):
    """A dask array is computed where it is read; its blocks are the chunks."""
    import dask.array as da

    pixels = rng.integers(0, 9, (6, 40, 50), dtype=np.uint8)
    image = open_image(da.from_array(pixels, chunks=(2, 40, 25)), axes="zyx")
    assert image.chunks == (2, 40, 25)
    assert np.array_equal(image.read({"z": slice(1, 3)}), pixels[1:3])
    assert np.array_equal(image.dask.compute(), pixels)


def test_xarray_round_trip(rng):
    """A DataArray in gives the same DataArray out: dims, um, names and the coordinates to the last bit."""
    import xarray as xr

    pixels = rng.random((2, 5, 20, 30)).astype(np.float32)
    coords = {
        "c": ["nuclei", "membrane"],
        "z": 7.0 + np.arange(5) * 2.0,
        "y": np.arange(20) * 0.1 + 0.3,
        "x": np.arange(30) * 0.1,
    }
    array = xr.DataArray(pixels, dims=("c", "z", "y", "x"), coords=coords, name="cells")
    array["y"].attrs["units"] = "um"
    image = open_image(array)
    assert (image.axes, image.channels, image.name) == ("czyx", ("nuclei", "membrane"), "cells")
    assert image.pixel_size.z == pytest.approx(2.0)
    assert image.pixel_size.x == pytest.approx(0.1)
    xr.testing.assert_identical(image.to_xarray().compute(), array)
    flipped = open_image(array.transpose("y", "x", "z", "c"))
    assert (flipped.axes, flipped.source_axes) == ("czyx", "yxzc")
    assert flipped.to_xarray().dims == ("y", "x", "z", "c")
    assert open_image(flipped.to_xarray()).pixel_size == flipped.pixel_size
    # a pixel size from the user replaces the coordinates
    scaled = open_image(array, pixel_size=(1.0, 1.0)).to_xarray()
    assert scaled.x.values.tolist() == list(range(30))


def test_xarray_units_and_doubtful_coordinates(rng):
    """Units are obeyed; pixel numbers and uneven coordinates are no pixel size; foreign dims are asked for."""
    import xarray as xr

    array = xr.DataArray(
        rng.random((3, 20, 30)),
        dims=("t", "y", "x"),
        coords={"t": np.array([0.0, 500.0, 1000.0]), "y": np.arange(20), "x": np.arange(30.0) ** 2},
    )
    array["t"].attrs["units"] = "ms"
    image = open_image(array)
    assert image.pixel_size == PixelSize(t=0.5)
    assert "along x are not evenly spaced" in image.notes[0]
    with pytest.raises(AxesError) as caught:
        open_image(array.rename(t="frame"))
    assert caught.value.where == "its dims are frame, y, x"
    assert open_image(array.rename(t="frame"), axes="tyx").axes == "tyx"
    lazy = open_image(array.chunk({"t": 1}))
    assert lazy.chunks == (1, 20, 30)


@pytest.fixture
def folder(tmp_path, rng):
    """Twelve planes t1.tif ... t12.tif and the array of them all."""
    pixels = rng.integers(0, 9999, (12, 20, 30), dtype=np.uint16)
    (tmp_path / "movie").mkdir()
    for i, plane in enumerate(pixels):
        tifffile.imwrite(
            tmp_path / "movie" / f"t{i + 1}.tif", plane, resolution=(20000, 20000), resolutionunit="centimeter"
        )
    (tmp_path / "movie" / "notes.txt").write_text("not an image")
    (tmp_path / "movie" / "._t1.tif").write_bytes(b"a resource fork")
    return tmp_path / "movie", pixels


def test_a_folder_is_one_axis(folder):
    """Files in counting order along the axis that axes adds or stack names; only touched files are read."""
    path, pixels = folder
    for options in ({"axes": "tyx"}, {"stack": "t"}, {"stack": "t", "axes": "tyx"}):
        image = open_image(path, **options)
        assert (image.axes, image.shape, image.chunks) == ("tyx", (12, 20, 30), (1, 20, 30))
        assert np.array_equal(image.read(), pixels)
    assert (image.kind, image.name, image.pixel_size.x) == ("12 x TIFF", "movie", pytest.approx(0.5))
    part = pickle.loads(pickle.dumps(image)).read({"t": slice(8, 11), "y": slice(3, 9)})
    assert np.array_equal(part, pixels[8:11, 3:9])
    assert open_image(str(path / "t1*.tif"), axes="zyx").shape == (4, 20, 30)
    channels = open_image(str(path / "t[12].tif"), stack="c")
    assert (channels.axes, channels.channels) == ("cyx", ("t1", "t2"))
    (path / "t7.tif").unlink()
    assert np.array_equal(image.read({"t": slice(0, 3)}), pixels[:3])
    with pytest.raises(ImageError, match=r"t7\.tif is (cut or )?gone"):
        image.read({"t": slice(5, 8)})


def test_a_folder_without_an_axis_is_asked_for(folder):
    """Which axis files go along is not guessed."""
    with pytest.raises(AxesError) as caught:
        open_image(folder[0])
    assert caught.value.what == "movie holds 12 TIFFs of y 20, x 30, but does not say along which axis they go."
    assert caught.value.mend == "add --axes zyx (or tyx, if they are time points)"
    for wrong in ({"axes": "tczyx"}, {"axes": "yx"}, {"stack": "q"}):
        with pytest.raises(AxesError) as caught:
            open_image(folder[0], **wrong)
        assert caught.value.mend


def test_a_file_that_differs_is_named(folder):
    """One file of another shape or dtype is an error that names it."""
    tifffile.imwrite(folder[0] / "t5.tif", np.zeros((20, 31), np.uint16))
    with pytest.raises(ImageError) as caught:
        open_image(folder[0], axes="tyx")
    assert caught.value.what == "t5.tif differs from t1.tif: y 20, x 31, uint16 instead of y 20, x 30, uint16."


def test_stacks_of_stacks(tmp_path, rng):
    """Files with axes of their own get one more; unlabelled files go along the first letter."""
    pixels = rng.integers(0, 255, (3, 5, 20, 30), dtype=np.uint8)
    for i, volume in enumerate(pixels):
        tifffile.imwrite(tmp_path / f"{i}.ome.tif", volume, metadata={"axes": "ZYX"})
    image = open_image(tmp_path, axes="tzyx")
    assert np.array_equal(image.read({"t": slice(1, 3), "z": slice(2, 4)}), pixels[1:3, 2:4])
    with pytest.raises(AxesError, match="already have an axis z"):
        open_image(tmp_path, stack="z")
    (tmp_path / "plain").mkdir()
    for i, volume in enumerate(pixels):
        tifffile.imwrite(tmp_path / "plain" / f"{i}.tif", volume, metadata=None)
    image = open_image(tmp_path / "plain", axes="ctyx")
    assert (image.axes, image.source_axes, image.shape) == ("tcyx", "ctyx", (5, 3, 20, 30))
    assert np.array_equal(np.asarray(image), pixels)


def test_folders_and_patterns_without_tiffs(tmp_path):
    """An empty folder, a pattern that fits nothing, and one that fits other files are refused."""
    (tmp_path / "a.txt").write_text("x")
    for source, what in (
        (tmp_path, "holds no TIFF"),
        (tmp_path / "*.tif", "no file fits"),
        (tmp_path / "*.txt", "a.txt is not a TIFF"),
    ):
        with pytest.raises(ImageError, match=what) as caught:
            open_image(str(source))
        assert caught.value.mend
