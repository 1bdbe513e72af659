"""Where a model and an image meet: samples, channels, further inputs, outputs, what is said when they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from ome_zarr_models import open_ome_zarr

import voidzoo as vz
from tests.model_zoo import MODELS, Model, micrograph
from tests.packages import make_package
from tests.trained import smooth, trained
from voidzoo.infer import samples
from voidzoo.infer.fit import grey_notes, pixel_notes
from voidzoo.infer.networks.device import PROVIDERS, find_device, openvino_installed
from voidzoo.infer.plan import Plan
from voidzoo.zoo.errors import AxesError, DeviceError, DtypeError, SizeError
from voidzoo.zoo.open import open_image
from voidzoo.zoo.package import open_package

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "memory": "4GB"}
STD = 1e-5
"""How far results may be off, in units of the output's std."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("meeting")


def near(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= STD * expected.std() + 1e-6


# --- --sample

OVER = {"plane": "yx", "volume": "zyx", "series": "tyx", "image": "tzyx"}
LETTERS = "tzcyx"


def standardised(x: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    return (x - x.mean(axes, keepdims=True)) / (x.std(axes, keepdims=True) + 1e-6)


def ranged(low: float, high: float) -> Callable[[NDArray[Any], tuple[int, ...]], NDArray[Any]]:
    def scaled(x: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
        a, b = np.percentile(x, (low, high), axis=axes, keepdims=True)
        return (x - a) / (b - a + 1e-6)

    return scaled


MEASURE: dict[str, tuple[int, bool, Callable[[NDArray[Any], tuple[int, ...]], NDArray[Any]]]] = {
    "before_zero_mean": (2, True, standardised),
    "before_zero_mean_each": (2, False, standardised),
    "before_scale_range": (1, True, ranged(1.0, 99.8)),
    "before_scale_range_minmax": (1, True, ranged(0.0, 100.0)),
    "before_scale_range_clip": (2, False, lambda x, axes: np.clip(ranged(5.0, 95.0)(x, axes), 0, 1)),
}
"""Channels, whether these are measured together, and the step by numpy."""


def through(model: Model, x: NDArray[Any]) -> NDArray[np.float32]:
    """The bare network on (t, z, c, y, x), plane by plane."""
    session = ort.InferenceSession(model.onnx, providers=["CPUExecutionProvider"])
    planes = x.reshape(-1, *x.shape[2:]).astype(np.float32)
    y = np.concatenate([session.run(None, {model.main: p[None]})[0] for p in planes])
    return y.reshape(*x.shape[:2], *y.shape[1:])


@pytest.mark.parametrize("sample", OVER)
@pytest.mark.parametrize("name", MEASURE)
def test_a_sample_is_what_is_measured(name: str, sample: str, folder: Path) -> None:
    """Statistics by numpy over plane, volume, series or image; blocks that hold a plane, a part of one, several."""
    channels, together, step = MEASURE[name]
    model = MODELS[name](folder)
    rng = np.random.default_rng()
    brightness = 1 + rng.random((2, 3, channels, 1, 1))  # every plane is another sample
    x = (micrograph(rng, (2, 3, channels, 45, 62)) * brightness).astype(np.uint16)
    axes = tuple(LETTERS.index(a) for a in OVER[sample] + ("c" if together else ""))
    expected = through(model, step(x.astype(np.float64), tuple(sorted(axes))))
    image = vz.open_image(x if channels > 1 else x[:, :, 0], axes="tzcyx" if channels > 1 else "tzyx")
    for more in ({}, {"block": (16, 20)}, {"block": (45, 62)}, {"block": (16, 62), "tile": (16, 24)}):
        plan = vz.plan(model.path, image, sample=sample, **more, **CPU)
        found = np.asarray(vz.predict(model.path, image, sample=sample, **more, **CPU).read())
        near(found.reshape(expected[:, :, 0].shape), expected[:, :, 0])
        assert plan.samples_in_blocks == (sample == "plane" and more.get("block", (45, 62)) == (45, 62))
    said = {"plane": "the plane", "volume": "the volume", "series": "the series", "image": "the image"}[sample]
    assert f"sample: {said}" in str(plan).splitlines()[0]


def test_a_sample_may_span_many_blocks_and_dtypes(folder: Path, tmp_path: Path) -> None:
    """float32 planes of a file, with NaN that are read as 0, in small blocks: percentiles to a rank error of 1e-4."""
    model = MODELS["before_scale_range"](folder)
    x = np.random.default_rng().gamma(2.0, 300.0, (3, 190, 210)).astype(np.float32)
    x[1, 3, 7] = np.nan
    tifffile.imwrite(tmp_path / "x.ome.tif", x, metadata={"axes": "ZYX"}, photometric="minisblack")
    for sample, axes in (("plane", (1, 2)), ("volume", (0, 1, 2))):
        result = vz.predict(model.path, tmp_path / "x.ome.tif", sample=sample, out=tmp_path / f"{sample}.ome.zarr",
                            block=(64, 64), allow_nan=True, **CPU)  # fmt: skip
        assert not result.plan.samples_in_blocks
        raw = np.nan_to_num(x.astype(np.float64))
        expected = through(model, ranged(1.0, 99.8)(raw, axes)[:, None, None])[:, 0, 0]
        assert np.abs(result.image.read() - expected).max() <= 2e-3 * expected.std()
        assert result.mapped == 1


def test_only_the_samples_of_a_part_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--only z=3 of a model that measures planes reads that plane alone; one that measures the volume reads all."""
    model = MODELS["before_scale_range"](folder)
    x = micrograph(np.random.default_rng(), (6, 50, 60))
    whole = {s: vz.predict(model.path, x, axes="zyx", sample=s, **CPU) for s in ("plane", "volume")}
    measured: list[tuple[int, ...]] = []
    count = samples._tables

    def seen(letters: str, wanted: Any, values: Any, origin: Mapping[str, int] | None) -> Any:
        measured.append(np.asarray(values[0]).shape)
        return count(letters, wanted, values, origin)

    monkeypatch.setattr(samples, "_tables", seen)
    for sample, planes in (("plane", (1,)), ("volume", ())):
        measured.clear()
        part = vz.predict(model.path, x, axes="zyx", sample=sample, only="z=3,y=9:40", **CPU)
        near(part, whole[sample][3:4, 9:40])
        assert measured[0] == planes


def test_channels_are_samples_of_their_own(folder: Path) -> None:
    """--channel all: each channel with its own statistics; --channel NAME: that one, as if it were alone."""
    model = MODELS["before_scale_range"](folder)
    rng = np.random.default_rng()
    x = np.stack([micrograph(rng, (3, 40, 52)) * k for k in (1, 3, 7)])  # c z y x
    image = vz.open_image(x, axes="czyx")
    expected = through(model, ranged(1.0, 99.8)(x.astype(np.float64), (2, 3))[:, :, None])[:, :, 0]
    for more in ({}, {"block": (16, 20)}):
        near(vz.predict(model.path, image, channel="all", **more, **CPU).read(), expected)
        one = vz.predict(model.path, image, channel="channel 1", **more, **CPU)
        assert one.channels == ("channel 1",)
        near(one.read(), expected[1:2])
        near(vz.predict(model.path, image, channel=2, **more, **CPU).read(), expected[2:])
    volume = through(model, ranged(1.0, 99.8)(x.astype(np.float64), (1, 2, 3))[:, :, None])[:, :, 0]
    near(vz.predict(model.path, image, channel="all", sample="volume", **CPU).read(), volume)
    result = vz.predict(model.path, image, channel="all", **CPU)
    assert result.channels == ("channel 0", "channel 1", "channel 2")


@pytest.mark.parametrize(
    ("axes", "sample", "legal"),
    [
        ("zyx", "series", "plane or volume or image"),
        ("tyx", "volume", "plane or series or image"),
        ("yx", "series", "plane or image"),
        ("zyx", "everything", "plane or volume or image"),
    ],
)
def test_samples_that_cannot_be(folder: Path, axes: str, sample: str, legal: str) -> None:
    """A sample along an axis that the image has not is refused, with those that there are."""
    model = MODELS["before_scale_range"](folder)
    with pytest.raises(AxesError, match=rf"--sample {sample}: .* reads y x at once, and array is") as caught:
        vz.plan(model.path, np.ones([3] * (len(axes) - 2) + [40, 50], np.uint16), axes=axes, sample=sample, **CPU)
    assert caught.value.mend == f"--sample {legal}"
    for word in legal.split(" or "):
        vz.plan(model.path, np.ones([3] * (len(axes) - 2) + [40, 50], np.uint16), axes=axes, sample=word, **CPU)


def test_a_3d_model_has_no_plane(folder: Path) -> None:
    package = make_package(folder / "v", dims=3, depth=1, filters=2)
    with pytest.raises(AxesError, match="--sample plane") as caught:
        vz.plan(package, np.ones((20, 40, 50), np.uint16), axes="zyx", sample="plane", **CPU)
    assert caught.value.mend == "--sample volume or image"


# --- further inputs


def test_two_inputs(folder: Path, tmp_path: Path) -> None:
    """A second image pixel over pixel, plane by plane, or one plane for all; in memory and to a file."""
    model = MODELS["two_images"](folder)
    rng = np.random.default_rng()
    raw, mask = micrograph(rng, (3, 70, 80)), micrograph(rng, (3, 70, 80))
    expected = np.stack([model.oracle({"raw": r[None], "mask": m[None]})["out"][0]
                         for r, m in zip(raw, mask, strict=True)])  # fmt: skip
    given = {"mask": vz.open_image(mask, axes="zyx")}
    near(vz.predict(model.path, raw, axes="zyx", inputs=given, block=(32, 32), **CPU), expected)
    tifffile.imwrite(tmp_path / "mask.tif", mask, metadata={"axes": "ZYX"}, imagej=True)
    result = vz.predict(model.path, raw, axes="zyx", inputs={"mask": tmp_path / "mask.tif"}, out=tmp_path / "o.ome.tif",
                        **CPU)  # fmt: skip
    near(result.image.read(), expected)
    assert "input    mask: mask.tif   z 3, y 70, x 80" in str(result.plan)
    one = np.stack([model.oracle({"raw": r[None], "mask": mask[0][None]})["out"][0] for r in raw])
    near(vz.predict(model.path, raw, axes="zyx", inputs={"mask": vz.open_image(mask[0], axes="yx")}, **CPU), one)


def test_inputs_that_do_not_fit(folder: Path) -> None:
    """Missing, unknown, of another size, with too many channels, for a model that takes none: each with its mend."""
    two, half, single = (MODELS[n](folder).path for n in ("two_images", "half_size_input", "pooled"))
    x = np.ones((60, 64), np.uint16)
    for path, inputs, kind, text, mend in (
        (two, {}, AxesError, r"two images takes 2 inputs; mask is missing\.", "--input mask=IMAGE"),
        (two, {"foo": x}, AxesError, r"has no further input 'foo'; it takes: mask\.", "--input mask=IMAGE"),
        (two, {"mask": x[:50]}, SizeError, r"input mask of two images needs y 60; array has y 50\.",
         "an image of y 60, x 64"),
        (two, {"mask": x[None]}, SizeError, r"needs z 1; array has z 4", "an image of z 1, y 60, x 64"),
        (two, {"mask": np.stack([x, x])}, AxesError, r"takes 1 channel; array has 2\.", "an image with 1 channel"),
        (half, {"coarse": x}, SizeError, r"input coarse of half size input needs y 30; array has y 60\.",
         "an image of y 30, x 32"),
        (single, {"mask": x}, AxesError, r"no further input 'mask'; it takes: none beside the image\.",
         "leave --input out"),
    ):  # fmt: skip
        axes = {2: "yx", 3: "zyx" if "z 4" in text else "cyx"}
        given = {n: open_image(np.repeat(i, 4, axis=0) if "z 4" in text else i, axes=axes[i.ndim])
                 for n, i in inputs.items()}  # fmt: skip
        with pytest.raises(kind, match=text) as caught:
            vz.plan(path, x, axes="yx", inputs=given, **CPU)
        assert caught.value.mend == mend  # type: ignore[attr-defined]


# --- outputs


@pytest.mark.parametrize(("out", "version"), [("o.ome.zarr", "0.5"), ("o.ome.zarr", "0.4"), ("o.ome.tif", "0.5")])
def test_two_outputs_lie_in_one_result(folder: Path, tmp_path: Path, out: str, version: str) -> None:
    """Named arrays, each with its own size, channels and um: subgroups that are OME-Zarr images, or TIFF series."""
    model = MODELS["two_outputs"](folder)
    images = model.images(np.random.default_rng(), {"y": 91, "x": 103})
    image = vz.open_image(images["raw"][0], axes="yx", pixel_size=(0.5, 0.25))
    result = vz.predict(model.path, image, out=tmp_path / out, ome_zarr=version, block=(32, 64), **CPU)
    assert list(result.images) == ["probability", "distance"]
    for name, expected in model.oracle(images).items():
        found = result.images[name]
        near(found.read().reshape(expected.shape), expected)
    assert result.image.shape == (91, 103)
    fine, coarse = result.images.values()
    assert (fine.pixel_size.y, fine.pixel_size.x) == (0.5, 0.25)
    assert (coarse.pixel_size.y, coarse.pixel_size.x) == (1.0, 0.5)
    assert coarse.channels == ("distance0", "distance1")
    if out.endswith(".tif"):
        with tifffile.TiffFile(tmp_path / out) as tiff:
            assert [s.shape for s in tiff.series] == [(91, 103), (2, 46, 52)]
            assert [s.name for s in tiff.series] == ["probability", "distance"]
        assert vz.open_image(tmp_path / out, series=1).shape == (2, 46, 52)
        return
    for name in result.images:
        group = zarr.open_group(tmp_path / out / name, mode="r")
        assert type(open_ome_zarr(group)).__name__ == "Image"
        assert vz.open_image(tmp_path / out / name).sizes == result.images[name].sizes
        assert (group.metadata.zarr_format == 2) == (version == "0.4")


def test_channels_of_different_kinds_are_arrays_of_their_own(folder: Path, tmp_path: Path) -> None:
    """An intensity keeps the input's dtype, a probability is float32: one output becomes two named arrays."""
    path = trained(folder / "mixed", kinds=("intensity", "probability", "intensity"))
    x = np.stack([micrograph(np.random.default_rng(), (40, 50)) for _ in range(3)])
    result = vz.predict(path, x, axes="cyx", out=tmp_path / "o.ome.zarr", device="cpu")
    found = {name: (i.dtype, i.shape) for name, i in result.images.items()}
    assert found == {"intensity": (np.uint16, (2, 40, 50)), "probability": (np.float32, (40, 50))}
    assert np.array_equal(result.images["intensity"].read(), x[[0, 2]])
    in_memory = vz.predict(path, x, axes="cyx", device="cpu")
    assert np.array_equal(in_memory["probability"], x[1])


def test_dtypes_that_cannot_be_stored_are_refused(folder: Path) -> None:
    """A bool image with --dtype same is stored as 0 and 1; complex and nonsense are refused with what there is."""
    path = trained(folder / "plain", kinds=("probability",))
    x = np.random.default_rng().random((40, 50)) > 0.5
    assert np.array_equal(vz.predict(path, x, axes="yx", device="cpu", dtype="same"), x.astype(np.uint8))
    for word in ("complex64", "nonsense", "bool", "U5"):
        with pytest.raises(DtypeError, match=f"--dtype {word}: results are whole numbers or floats") as caught:
            vz.plan(path, x, axes="yx", device="cpu", dtype=word)
        assert caught.value.mend == "--dtype same, uint16 or float32"


# --- how well they fit


def noted(path: Path, x: NDArray[Any], um: tuple[float, float] | None = None, **more: Any) -> list[str]:
    return [n for n in vz.plan(path, x, axes="yx", pixel_size=um, device="cpu", **more).notes if "trained" in n]


def test_pixel_sizes_that_are_far_off_suggest_what_to_do(folder: Path, tmp_path: Path) -> None:
    """More than a factor of 1.25: both sizes, the factor, --rescale, and the level of a pyramid that fits."""
    path = trained(folder / "fit", um={"y": 0.5, "x": 0.5})
    rng = np.random.default_rng()
    x = smooth(rng, (256, 256))
    for um in ((0.5, 0.5), (0.41, 0.62), (0.45, 0.4)):
        assert not noted(path, x, um)
    (note,) = noted(path, x, (0.065, 0.065))
    assert note == ("array has 0.065 um pixels along y, x; fit-- was trained at 0.5 um: everything looks 7.7 times too "
                    "large to it (mend: --rescale).")  # fmt: skip
    (note,) = noted(path, x, (2.0, 0.5))
    assert "has 2 um pixels along y; " in note
    assert "4 times too small" in note
    assert len(noted(path, x, (2.0, 0.1))) == 2
    vz.predict(path, vz.open_image(smooth(rng, (2100, 2100)), axes="yx", pixel_size=(0.13, 0.13)),
               out=tmp_path / "p.ome.zarr", device="cpu")  # fmt: skip
    image = vz.open_image(tmp_path / "p.ome.zarr")
    assert len(image.levels) >= 2
    (note,) = pixel_notes(open_package(path), image)
    assert "(mend: --level 2 reads the pyramid level with 0.52 um, or --rescale)" in note
    assert not noted(path, image.level(2).read(), (0.52, 0.52))


def test_a_missing_pixel_size_is_noted_for_files(folder: Path, tmp_path: Path) -> None:
    path = trained(folder / "fit2", um={"y": 0.5, "x": 0.5})
    tifffile.imwrite(tmp_path / "a.tif", smooth(np.random.default_rng(), (64, 64)))
    notes = vz.plan(path, tmp_path / "a.tif", device="cpu").notes
    assert any("a.tif has no pixel size; the result will have none either" in n for n in notes)
    assert not vz.plan(path, np.ones((64, 64), np.uint16), axes="yx", device="cpu").notes


def test_grey_values_that_are_far_off_are_told(folder: Path) -> None:
    """Normalised, 8-bit, stretched, shifted and constant copies of a fitting image; a dim or bright one is no news."""
    path = trained(folder / "grey", grey=[(400.0, 1600.0)])
    x = smooth(np.random.default_rng(), (300, 320), 4.0, "float32")
    for fitting in (x, 0.7 * x + 300, 1.6 * x - 400, np.where(x > 1500, np.nan, x)):
        assert not noted(path, fitting.astype(np.float32), allow_nan=True)
    for far, why in (
        ((x - x.min()) / np.ptp(x), "most of them lie outside of that"),
        (x / 16, "most of them lie outside of that"),
        (x + 3000, "most of them lie outside of that"),
        ((x - 1000) * 12 + 1000, "times as wide"),
        ((x - 1000) * 0.05 + 1000, "times as narrow"),
        (np.full_like(x, 1000), "all pixels looked at are the same"),
    ):
        (note,) = noted(path, far)
        assert why in note
        assert "trained on 400 to 1600" in note
        assert "mend: the raw image" in note


def test_grey_values_of_each_channel_are_compared(folder: Path) -> None:
    """The second channel of two is far off and named; of one channel among many, that one is looked at."""
    rng = np.random.default_rng()
    pair = trained(folder / "pair", grey=[(400.0, 1600.0), (40.0, 160.0)], kinds=("intensity", "intensity"))
    x = np.stack([smooth(rng, (100, 120), 4.0), smooth(rng, (100, 120), 4.0)])
    notes = [n for n in vz.plan(pair, x, axes="cyx", device="cpu").notes if "trained" in n]
    assert len(notes) == 1
    assert "was trained of raw1 on 40 to 160" in notes[0]
    single = trained(folder / "single", grey=[(400.0, 1600.0)])
    image = vz.open_image(np.stack([x[0] // 20, x[1]]), axes="cyx")
    assert [len(vz.plan(single, image, channel=c, device="cpu").notes) for c in (0, 1)] == [1, 0]


def test_a_place_that_cannot_be_read_is_no_reason_to_refuse(folder: Path, tmp_path: Path) -> None:
    """Looking at grey values never fails: a damaged page is told by its block, which may be left out."""
    path = trained(folder / "grey2", grey=[(400.0, 1600.0)])
    x = smooth(np.random.default_rng(), (6, 64, 64), (0, 4, 4))
    file = tmp_path / "a.tif"
    tifffile.imwrite(file, x, compression="zlib", photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(file) as tiff:
        places = [(p.dataoffsets[0], p.databytecounts[0]) for p in tiff.pages]  # type: ignore[union-attr]
    data = bytearray(file.read_bytes())
    for at, n in places:
        data[at : at + n] = bytes(n)
    file.write_bytes(bytes(data))
    plan = vz.plan(path, file, axes="zyx", device="cpu")
    assert not [n for n in plan.notes if "trained" in n]
    assert grey_notes(plan.package, plan.feeds[0]) == []


# --- devices


@pytest.mark.parametrize("word", ["tensorrt", "openvino", "directml", "coreml", "mps", "cuda"])
def test_a_provider_that_is_not_there_lists_those_that_are(word: str) -> None:
    """By its name: either this onnxruntime has it, or the error says which words it can use."""
    available = ort.get_available_providers()
    if PROVIDERS[word] in available or (word == "openvino" and openvino_installed()):
        assert find_device(word).kind == word
        return
    with pytest.raises(
        DeviceError, match=rf"^{word} was asked for, but this onnxruntime .* can use only: cpu"
    ) as caught:
        find_device(word)
    assert caught.value.exit_code == 3
    assert "--device cpu" in caught.value.mend
    listed = caught.value.what.partition("only: ")[2].rstrip(".").split(", ")
    assert ("openvino" in listed) == openvino_installed()
    assert {PROVIDERS[w] for w in listed if w != "openvino"} == {p for p in available if p in PROVIDERS.values()}


def test_words_that_are_no_device() -> None:
    for word in ("gpu", "CUDA", "cpu:1", "cuda:x", "openvino:1", ""):
        with pytest.raises(DeviceError, match=f"there is no device '{word}'") as caught:
            find_device(word)
        for known in ("auto", "cpu", "cuda:1", *PROVIDERS):
            assert known in caught.value.mend


def test_a_session_is_used_again_with_its_workers(folder: Path) -> None:
    """A plan that is given a session of two workers shares its blocks between them, and says so."""
    from voidzoo.infer.networks.device import Device
    from voidzoo.infer.networks.session import Session

    package = make_package(folder / "again", depth=1)
    x = micrograph(np.random.default_rng(), (4, 90, 96))
    two = Session(package, Device("cpu"), 2)
    plan: Plan = vz.plan(package, x, axes="zyx", session=two, device="cpu")
    assert (plan.workers, plan.session) == (2, two)
    assert "2 x " in plan.device_name
