"""Options that choose what is done: a part, blocks to skip, another pixel size, a smaller halo, half the precision.

The oracle is the whole result: what an option leaves must be equal to it, what it takes away must be said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.model_zoo import MODELS
from tests.model_zoo import micrograph as waves
from tests.packages import make_package, micrograph
from tests.trained import smooth, trained
from voidzoo.infer import planning
from voidzoo.infer.networks import openvino_network
from voidzoo.infer.networks.openvino_network import capabilities
from voidzoo.infer.networks.precision import difference
from voidzoo.zoo import rescale
from voidzoo.zoo.errors import AxesError, DeviceError, OutputError, PackageError, SizeError
from voidzoo.zoo.package import Package
from voidzoo.zoo.readers.cache import ChunkCache
from voidzoo.zoo.rescale import rescaled

CPU: dict[str, Any] = {"device": "cpu", "dtype": "float32", "memory": "4GB"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("options")


@pytest.fixture(scope="module")
def plane(folder: Path) -> Package:
    """Depth 1: step 2, halo 8."""
    return make_package(folder / "p2", depth=1)


@pytest.fixture(scope="module")
def volume(folder: Path) -> Package:
    return make_package(folder / "p3", dims=3, depth=1, filters=2)


def near(found: Any, expected: Any) -> None:
    """Equal but for float rounding."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


# --- --only


def test_a_part_of_a_stack_is_that_part_of_the_whole_result(plane: Package) -> None:
    """A 2D model on planes: cuts along loop and network axes, at positions that suit no grid, in one block and many."""
    rng = np.random.default_rng()
    x = micrograph(rng, (5, 131, 150))
    whole = vz.predict(plane, x, axes="zyx", **CPU)
    y, z = int(rng.integers(1, 60)), int(rng.integers(0, 5))
    for only, part in (
        ("z=1:4", np.s_[1:4]),
        (f"z={z}", np.s_[z : z + 1]),
        (f"y={y}:{y + 51}", np.s_[:, y : y + 51]),
        ("z=1:3,y=:50,x=133:", np.s_[1:3, :50, 133:]),
        ({"x": (None, 7)}, np.s_[:, :, :7]),
    ):
        near(vz.predict(plane, x, axes="zyx", only=only, **CPU), whole[part])
        near(vz.predict(plane, x, axes="zyx", only=only, tile=(64, 64), block=(32, 32), **CPU), whole[part])


def test_a_part_along_z_of_a_volume_sees_its_neighbours(volume: Package) -> None:
    """A 3D model on planes 5 to 8 of 20: they differ from the same planes alone, which see no neighbours."""
    x = micrograph(np.random.default_rng(), (20, 70, 80))
    whole = vz.predict(volume, x, axes="zyx", **CPU)
    part = vz.predict(volume, x, axes="zyx", only="z=5:8", **CPU)
    near(part, whole[5:8])
    alone = vz.predict(volume, x[5:8], axes="zyx", **CPU)
    assert np.abs(alone - part).max() > 0.1 * part.std()
    series = np.stack([x, x[::-1]])
    near(
        vz.predict(volume, series, axes="tzyx", only="t=1,z=5:8,y=11:60", **CPU),
        vz.predict(volume, x[::-1], axes="zyx", **CPU)[None, 5:8, 11:60],
    )


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_part_is_that_of_the_whole(data: st.DataObject) -> None:
    """Property: any start and stop along y and x, with any legal block."""
    spans = {}
    for a, n in (("y", 90), ("x", 101)):
        start = data.draw(st.integers(0, n - 1), label=a)
        spans[a] = (start, data.draw(st.integers(start + 1, n), label=f"{a} stop"))
    block = data.draw(st.sampled_from([(32, 32), (16, 64), (128, 128)]))
    part = vz.predict(_shared(), _IMAGE, axes="yx", only=spans, block=block, tile=(64, 64), **CPU)
    near(part, _whole()[slice(*spans["y"]), slice(*spans["x"])])


_IMAGE = micrograph(np.random.default_rng(11), (90, 101))
_KEPT: dict[str, Any] = {}


def _shared() -> Package:
    """One package for all examples of a property."""
    if "package" not in _KEPT:
        import tempfile

        _KEPT["folder"] = tempfile.TemporaryDirectory()
        _KEPT["package"] = make_package(Path(_KEPT["folder"].name) / "p", depth=1)
    return _KEPT["package"]


def _whole() -> Any:
    if "whole" not in _KEPT:
        _KEPT["whole"] = vz.predict(_shared(), _IMAGE, axes="yx", **CPU)
    return _KEPT["whole"]


@pytest.mark.parametrize("name", ["doubled", "halved", "two_outputs", "without_padding", "fixed_64"])
def test_parts_of_other_sizes(name: str, folder: Path) -> None:
    """Outputs twice and half as fine, without padding, of a fixed tile: the part lies where the ratio puts it."""
    model = MODELS[name](folder)
    x = waves(np.random.default_rng(), (101, 133))
    whole, part = (vz.predict(model.path, x, axes="yx", **CPU, **more) for more in ({}, {"only": "y=20:63,x=30:"}))
    for output in model.design.outputs:
        r = output.ratio
        cut = (slice(int(20 * r), -int(-63 * r // 1)), slice(int(30 * r), None))
        one = (whole, part) if len(model.design.outputs) == 1 else (whole[output.id], part[output.id])
        near(one[1], one[0][..., *cut])


def test_where_a_part_lies_is_written(plane: Package, folder: Path, tmp_path: Path) -> None:
    """OME-Zarr has a translation in um at every level, OME-TIFF positions of its planes; half-size results too."""
    x = micrograph(np.random.default_rng(), (5, 131, 150))
    image = vz.open_image(x, axes="zyx", pixel_size=(2.0, 0.5, 0.25))
    only = "z=1:4,y=33:121"
    for version in ("0.5", "0.4"):
        out = tmp_path / f"o{version}.ome.zarr"
        vz.predict(plane, image, out=out, only=only, ome_zarr=version, block=(64, 64), **CPU)
        attributes = dict(zarr.open_group(out, mode="r").attrs)
        scales = attributes.get("ome", attributes)["multiscales"][0]["datasets"]
        for level in scales:
            kinds = {t["type"]: t[t["type"]] for t in level["coordinateTransformations"]}
            step = [s / base for s, base in zip(kinds["scale"], (2.0, 0.5, 0.25), strict=True)]
            middle = [0.5 * (f - 1) * um for f, um in zip(step, (2.0, 0.5, 0.25), strict=True)]
            first = [t - m for t, m in zip(kinds["translation"], middle, strict=True)]
            assert first == pytest.approx([2.0, 16.5, 0.0])
    vz.predict(plane, image, out=tmp_path / "o.ome.tif", only=only, **CPU)
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        planes = tifffile.xml2dict(tiff.ome_metadata or "")["OME"]["Image"]["Pixels"]["Plane"]
    assert [p["PositionZ"] for p in planes] == [2.0, 4.0, 6.0]
    assert {(p["PositionY"], p["PositionX"]) for p in planes} == {(16.5, 0.0)}
    half = MODELS["halved"](folder)
    result = vz.predict(half.path, image, out=tmp_path / "h.ome.zarr", only="y=20:64,x=30:", **CPU)
    found = zarr.open_group(result.path, mode="r").attrs["ome"]["multiscales"][0]["datasets"][0]
    scale, move = (t[t["type"]] for t in found["coordinateTransformations"])
    assert (scale, move) == ([2.0, 1.0, 0.5], [0.0, 10.0, 7.5])
    assert result.image.pixel_size == vz.open_image(x, axes="zyx", pixel_size=(2.0, 1.0, 0.5)).pixel_size


@pytest.mark.parametrize(
    ("only", "kind", "text", "mend"),
    [
        ("z=3:99", SizeError, r"--only z=3:99 is not a part of z 0:5", "--only z=3:5"),
        ("z=10:20", SizeError, r"--only z=10:20 is not a part of z 0:5", "--only z=0:5"),
        ("y=7:7", SizeError, r"--only y=7:7 is not a part", "--only y=7:8"),
        ("x=9:4", SizeError, r"--only x=9:4 is not a part", "--only x=9:10"),
        ("t=1", AxesError, r"--only t: array is done along z, y, x\.", "--only z=0:2"),
        ("c=1", AxesError, r"--only c: array is done along", "--channel NAME"),
        ("z=a", SizeError, r"--only 'z=a' names no part", "--only z=10:20"),
        ("z", SizeError, r"--only 'z' names no part", "--only z=10:20"),
        ("z=-2:3", SizeError, r"--only 'z=-2:3' names no part", "--only z=10:20"),
    ],
)
def test_parts_that_cannot_be_name_the_next_that_can(
    plane: Package, only: str, kind: type[Exception], text: str, mend: str
) -> None:
    """In the plan, before a pixel is read; what is named is taken."""
    x = np.ones((5, 40, 50), np.uint16)
    with pytest.raises(kind, match=text) as caught:
        vz.plan(plane, x, axes="zyx", only=only, **CPU)
    assert mend in caught.value.mend  # type: ignore[attr-defined]
    if mend.startswith("--only") and "10:20" not in mend:
        assert vz.plan(plane, x, axes="zyx", only=mend.removeprefix("--only "), **CPU).choices.only is not None


def test_a_part_that_begins_within_a_coarse_pixel(folder: Path) -> None:
    """A result half as fine: an odd start is refused with the even one before it."""
    x = waves(np.random.default_rng(), (60, 64))
    with pytest.raises(SizeError, match="begins within a pixel of the result, which is 2 times coarser") as caught:
        vz.plan(MODELS["halved"](folder).path, x, axes="yx", only="x=7:20", **CPU)
    assert caught.value.mend == "--only x=6:20"


def test_a_part_is_cheaper_than_the_whole(plane: Package) -> None:
    """Blocks, tiles, memory, disk and time of the plan are those of the part."""
    x = np.zeros((4, 2000, 2000), np.uint16)
    whole = vz.plan(plane, x, axes="zyx", **CPU)
    part = vz.plan(plane, x, axes="zyx", only="z=2,y=900:1000,x=50:150", **CPU)
    assert (part.n_blocks, part.n_tiles) == (1, 1)
    assert part.block == {"z": 1, "y": 100, "x": 100}
    assert all(100 < part.tile[a] <= 100 + 2 * 8 + 2 for a in "yx")
    assert part.nbytes == 100 * 100 * 4
    assert part.memory.network < whole.memory.network
    assert part.seconds < whole.seconds
    assert "whole, no halo" in str(whole)
    assert "with a halo of y 8 x x 8" in str(part)
    assert "only     z 2:3, y 900:1000, x 50:150" in str(part)


def test_a_part_continues_and_another_is_refused(
    plane: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the first block, the same line does the rest; another part at the same place is another plan."""
    import threading

    x = micrograph(np.random.default_rng(), (4, 131, 150))
    out, stop = tmp_path / "o.ome.zarr", threading.Event()
    how: dict[str, Any] = {"axes": "zyx", "out": out, "block": (32, 32), **CPU}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(plane, x, only="z=1:3,y=33:", stop=stop, watch=lambda e: stop.set() if _done(e) else None, **how)
    with pytest.raises(OutputError, match="begun with another plan"):
        vz.predict(plane, x, only="z=1:4,y=33:", **how)
    result = vz.predict(plane, x, only="z=1:3,y=33:", **how)
    assert result.blocks < result.plan.n_blocks
    near(result.image.read(), vz.predict(plane, x, axes="zyx", **CPU)[1:3, 33:])


def _done(event: Any) -> bool:
    return isinstance(event, vz.BlockDone)


# --- --mask and --skip-below


@dataclass
class Mined:
    """An array as a source, of which some places cannot be read."""

    values: Any
    forbidden: Any
    axes: str
    chunks: tuple[int, ...]
    cache: ChunkCache = field(default_factory=ChunkCache)
    identity: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def with_cache(self, cache: ChunkCache) -> Any:
        return replace(self, cache=cache)

    def read(self, slices: tuple[slice, ...]) -> Any:
        if self.forbidden[slices].any():
            raise OSError(5, "a place was read that the mask leaves out")
        return self.values[slices]

    def close(self) -> None: ...


def test_masked_blocks_are_0_not_read_and_counted(plane: Package, tmp_path: Path) -> None:
    """A mask as large as the image: a block is skipped where it is 0, and not a pixel of it is read."""
    rng = np.random.default_rng()
    x = micrograph(rng, (4, 128, 160))
    mask = np.zeros(x.shape, np.uint8)
    mask[1, 5, 7] = mask[2, 127, 159] = 3
    image = vz.Image(Mined(x, ~np.isin(np.arange(4), (1, 2))[:, None, None] & np.ones(x.shape, bool), "zyx",
                           (1, 128, 160)), "mined")  # fmt: skip
    given_mask = vz.open_image(mask, axes="zyx")
    block = {"block": (32, 32)}
    result = vz.predict(plane, image, out=tmp_path / "o.ome.zarr", mask=given_mask, **block, **CPU)
    whole = vz.predict(plane, x, axes="zyx", **block, **CPU)
    expected = np.zeros_like(whole)
    expected[1, :32, :32] = whole[1, :32, :32]
    expected[2, 96:, 128:] = whole[2, 96:, 128:]
    near(result.image.read(), expected)
    assert np.array_equal(result.image.read() == 0, expected == 0)
    assert result.skipped == result.plan.n_blocks - 2 == 4 * 4 * 5 - 2
    happened = zarr.open_group(result.path, mode="r").attrs["voidzoo"]["happened"]
    assert happened["skipped"] == result.skipped
    assert "skip     blocks in which array is 0 everywhere" in str(result.plan)


def test_one_plane_masks_a_stack(plane: Package) -> None:
    """A mask without z holds for every plane; one with channels counts where any of them is set."""
    x = micrograph(np.random.default_rng(), (3, 128, 96))
    mask = np.zeros((128, 96), bool)
    mask[64:, :10] = True
    whole = vz.predict(plane, x, axes="zyx", block=(64, 32), **CPU)
    expected = np.zeros_like(whole)
    expected[:, 64:, :32] = whole[:, 64:, :32]
    for given_mask in (vz.open_image(mask, axes="yx"), vz.open_image(np.stack([mask * 0, mask]), axes="cyx"),
                       vz.open_image(mask[None], axes="zyx")):  # fmt: skip
        near(vz.predict(plane, x, axes="zyx", mask=given_mask, block=(64, 32), **CPU), expected)


def test_masks_that_do_not_fit_are_refused_in_the_plan(plane: Package) -> None:
    """Another size, fewer planes, an axis that the image has not: both sizes are told."""
    x = np.ones((5, 100, 120), np.uint16)
    for shape, axes, kind, text in (
        ((100, 110), "yx", SizeError, r"--mask array has x 110; array has x 120\.(.|\n)*y 100, x 110 on z 5, y 100"),
        ((3, 100, 120), "zyx", SizeError, r"has z 3; array has z 5"),
        ((1, 120), "yx", SizeError, r"has y 1; array has y 100"),
        ((2, 100, 120), "tyx", AxesError, r"has an axis t, which array has not: z 5, y 100, x 120"),
    ):
        with pytest.raises(kind, match=text):
            vz.plan(plane, x, axes="zyx", mask=vz.open_image(np.ones(shape, bool), axes=axes), **CPU)


def test_dark_blocks_are_skipped(plane: Package, tmp_path: Path) -> None:
    """Blocks of which the network sees nothing from the value on are 0; where a halo sees some, they are not."""
    x = micrograph(np.random.default_rng(), (3, 192, 256))
    x[:, :, 64:] = 90
    x[2] = 99
    x[1, 70, 160] = 100
    result = vz.predict(plane, x, axes="zyx", out=tmp_path / "o.ome.zarr", skip_below=100, block=(64, 64), **CPU)
    whole = vz.predict(plane, x, axes="zyx", block=(64, 64), **CPU)
    expected = np.zeros_like(whole)
    expected[:2, :, :128] = whole[:2, :, :128]  # the halo of the second column lies in the bright part
    expected[1, :128, 128:192] = whole[1, :128, 128:192]  # so does one pixel in the halo of the block above it
    near(result.image.read(), expected)
    assert result.skipped == 3 * 12 - (2 * 3 * 2 + 2)
    assert "no grey value from 100 on" in str(result.plan)


def test_blocks_cannot_be_skipped_where_the_whole_result_is_measured(folder: Path) -> None:
    """A model that normalises its result by a plane: --mask, --skip-below and --only of a plane are refused."""
    path = MODELS["after_zero_mean"](folder).path
    x = waves(np.random.default_rng(), (3, 60, 64))
    mask = vz.open_image(np.ones((60, 64), bool), axes="yx")
    for more, text in (({"mask": mask}, "--mask and --skip-below"), ({"skip_below": 5.0}, "--mask and --skip-below"),
                       ({"only": "y=3:20"}, "leave --only out")):  # fmt: skip
        with pytest.raises(SizeError, match="normalises its result by the whole of a plane") as caught:
            vz.plan(path, x, axes="zyx", block=(16, 16), **more, **CPU)
        assert text in caught.value.mend
    whole = vz.predict(path, x, axes="zyx", **CPU)
    near(vz.predict(path, x, axes="zyx", block=(16, 16), only="z=1:3", **CPU), whole[1:3])


# --- --rescale


def test_what_is_resampled_does_not_depend_on_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions of any size, in pieces of any size, up and down, linear and nearest: bit for bit the whole."""
    rng = np.random.default_rng()
    x = rng.integers(0, 5000, (2, 9, 61, 83)).astype(np.uint16)
    image = vz.open_image(x, axes="czyx")
    for sizes in ({"z": 5, "y": 140, "x": 83}, {"z": 20, "y": 30, "x": 31}, {"x": 200}):
        for nearest in (False, True):
            whole = rescaled(image, sizes, nearest=nearest).read()
            monkeypatch.setattr(rescale, "PIECE", int(rng.integers(20, 3000)))
            again = rescaled(image, sizes, nearest=nearest)
            assert np.array_equal(again.read(), whole)
            for _ in range(5):
                spans = {a: sorted(rng.choice(n + 1, 2, replace=False)) for a, n in again.sizes.items()}
                part = {a: slice(int(s), int(e)) for a, (s, e) in spans.items()}
                assert np.array_equal(again.read(part), whole[tuple(part[a] for a in "czyx")])
            monkeypatch.undo()
            assert whole.dtype == (np.uint16 if nearest else np.float32)
            if nearest:
                assert set(np.unique(whole)) <= set(np.unique(x))
            else:
                assert whole.mean() == pytest.approx(x.mean(), rel=0.02)


def test_nearest_is_the_pixel_under_the_middle_and_linear_keeps_a_ramp() -> None:
    """Known answers: labels doubled and halved; a ramp along x is a ramp again, but for half a pixel at the ends."""
    labels = np.arange(1, 7).reshape(2, 3)
    image = vz.open_image(labels.astype(np.uint8), axes="yx")
    double = rescaled(image, {"y": 4, "x": 6}, nearest=True).read()
    assert np.array_equal(double, labels.repeat(2, 0).repeat(2, 1))
    assert np.array_equal(rescaled(vz.open_image(double, axes="yx"), {"y": 2, "x": 3}, nearest=True).read(), labels)
    ramp = np.tile(np.arange(40.0, dtype=np.float32), (3, 1))
    for n in (17, 20, 80, 133):
        found = rescaled(vz.open_image(ramp, axes="yx"), {"x": n}).read()[1]
        expected = (np.arange(n) + 0.5) * 40 / n - 0.5
        inside = (expected > 40 / n + 1) & (expected < 38 - 40 / n)
        assert np.allclose(found[inside], expected[inside], atol=1e-4 if n > 40 else 0.05)  # pixels are discrete
        assert found.min() >= 0
        assert found.max() <= 39


@pytest.mark.parametrize("um", [0.25, 0.31, 0.5, 0.9])
def test_a_rescaled_image_comes_back_as_large_as_it_was(folder: Path, um: float, tmp_path: Path) -> None:
    """A network that returns its input, trained at 0.5 um: the image again, at its own size and um, in its dtype."""
    path = trained(folder / f"same{um}", um={"y": 0.5, "x": 0.5})
    x = smooth(np.random.default_rng(), (301, 223))
    image = vz.open_image(x, axes="yx", pixel_size=(um, um))
    plan = vz.plan(path, image, rescale=True, device="cpu")
    assert plan.image.sizes == {a: round(n * um / 0.5) for a, n in image.sizes.items()}
    assert not plan.notes
    result = vz.predict(plan, tmp_path / "o.ome.zarr").image
    assert (result.sizes, result.dtype, result.pixel_size) == (image.sizes, image.dtype, image.pixel_size)
    error = (result.read().astype(float) - x) / x.std()
    assert np.abs(error[20:-20, 20:-20]).max() < (0.35 if um < 0.5 else 0.1)
    assert np.abs(error).max() < 1.0  # in the corners a blob may be twice as bright and as curved
    assert error.std() < 0.04
    in_memory = vz.predict(path, image, rescale=True, device="cpu", block=(64, 64))
    assert in_memory.pixel_size == image.pixel_size
    assert np.array_equal(in_memory.read(), result.read())
    if um != 0.5:
        assert f"rescale  y 301 -> {plan.image.size('y')}, x 223 -> {plan.image.size('x')}" in str(plan)
        assert "result   y 301, x 223   uint16" in str(plan)


def test_a_volume_is_rescaled_along_z_and_a_stack_is_not(folder: Path, tmp_path: Path) -> None:
    """What the model reads at once is resampled; loop axes stay. OME-TIFF, with a scaled output and a mask."""
    x = smooth(np.random.default_rng(), (12, 81, 70), (3, 7, 7)) + np.uint16(500)  # 0 is what a mask hides
    image = vz.open_image(x, axes="zyx", pixel_size=(2.0, 0.3, 0.3))
    um = {"z": 1.0, "y": 0.5, "x": 0.5}
    for letters, depth in (("zyx", 24), ("yx", 12)):
        path = trained(folder / f"of_{letters}", letters, um={a: um[a] for a in letters})
        plan = vz.plan(path, image, rescale=True, device="cpu")
        assert plan.image.sizes == {"z": depth, "y": 49, "x": 42}
        result = vz.predict(plan, tmp_path / f"{letters}.ome.tif").image
        assert (result.sizes, result.pixel_size) == (image.sizes, image.pixel_size)
        error = (result.read().astype(float) - x) / x.std()
        assert np.abs(error).max() < 1.0  # linear interpolation there and back is a slight blur
        assert error.std() < 0.15
    mask = np.zeros((81, 70), np.uint8)
    mask[:40] = 1
    masked = vz.predict(path, image, rescale=True, mask=vz.open_image(mask, axes="yx"), block=(12, 42), device="cpu")
    assert (masked.read()[:, :38] > 0).all()
    assert not masked.read()[:, -20:].any()
    with pytest.raises(SizeError, match="--mask array has y 80; array has y 81"):
        vz.plan(path, image, rescale=True, mask=vz.open_image(mask[:80], axes="yx"), device="cpu")


def test_what_rescaling_cannot_do_is_refused(folder: Path, plane: Package) -> None:
    """Without a pixel size of the image, or of the training, or together with a part."""
    x = smooth(np.random.default_rng(), (60, 64))
    path = trained(folder / "same", um={"y": 0.5, "x": 0.5})
    with pytest.raises(SizeError, match=r"array does not say how large its pixels are along y, x\.") as caught:
        vz.plan(path, x, axes="yx", rescale=True, **CPU)
    assert caught.value.mend.startswith("--pixel-size 0.5,0.5")
    with pytest.raises(SizeError, match=r"test p2 does not say at which pixel size it was trained\."):
        vz.plan(plane, x, axes="yx", pixel_size=(1.0, 1.0), rescale=True, **CPU)
    with pytest.raises(SizeError, match="--only names pixels of the image, which --rescale changes"):
        vz.plan(path, x, axes="yx", pixel_size=(1.0, 1.0), rescale=True, only="y=0:5", **CPU)


def test_a_rescaled_second_input_lies_on_the_first(folder: Path) -> None:
    """It is checked against the image as it is, and resampled with it; a wrong size is not resampled away."""
    import yaml

    path = MODELS["half_size_input"](folder).path
    described = yaml.safe_load((path / "rdf.yaml").read_text())
    described["config"] = {"voidzoo": {"training": {"pixel_size": {"y": 0.5, "x": 0.5}}}}
    (path / "rdf.yaml").write_text(yaml.safe_dump(described))
    rng = np.random.default_rng()
    image = vz.open_image(smooth(rng, (120, 128)), axes="yx", pixel_size=(0.25, 0.25))
    coarse = vz.open_image(smooth(rng, (60, 64), 3.0), axes="yx")
    plan = vz.plan(path, image, inputs={"coarse": coarse}, rescale=True, **CPU)
    assert [f.image.sizes for f in plan.feeds] == [{"y": 60, "x": 64}, {"y": 30, "x": 32}]
    with pytest.raises(SizeError, match="input coarse of half size input needs y 60; array has y 120"):
        vz.plan(path, image, inputs={"coarse": image}, rescale=True, **CPU)


# --- --tolerance


FACTOR = 5.0
"""How much larger the error of a whole image may be than that on the regions that were measured (see halo_probe)."""


def test_a_tolerance_takes_a_smaller_halo_and_keeps_its_word(folder: Path, tmp_path: Path) -> None:
    """The plan tells halo and measured error; the result of a network of known decay deviates by no more.

    The same line again takes the stored halo, and measures nothing.
    """
    path, x = fading(folder / "fading"), micrograph(np.random.default_rng(), (700, 800))
    how: dict[str, Any] = {"axes": "yx", "block": (128, 128), **CPU}
    exact = vz.plan(path, x, **how)
    plan = vz.plan(path, x, tolerance=1e-2, **how)
    used = {a: axis.halo for a, axis in plan.model_axes.items()}
    assert all(0 < used[a] < exact.model_axes[a].halo for a in used)
    error = plan.halo_facts["error"]
    assert 0 < error <= 1e-2
    assert f"halo y {used['y']}, x {used['x']} for" in str(plan)
    assert f"error {error:.2g} of the output's std" in str(plan)
    assert plan.to_json()["halo_facts"]["error"] == error
    whole = vz.predict(path, x, **{**how, "block": (700, 800)})
    result = vz.predict(path, x, tolerance=1e-2, out=tmp_path / "o.ome.zarr", **how)
    found = result.image.read()
    deviation = np.abs(found - whole).max() / whole.std()
    assert 0 < deviation <= FACTOR * 1e-2
    stored = zarr.open_group(result.path, mode="r").attrs["voidzoo"]["plan"]
    assert (stored["halo"], stored["choices"]["tolerance"]) == (used, 1e-2)


def test_a_tolerance_is_not_measured_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the first block: the same line continues with the stored halo, its error is still told."""
    import threading

    path, x = fading(folder / "fading2"), micrograph(np.random.default_rng(), (700, 800))
    stop = threading.Event()
    how: dict[str, Any] = {"axes": "yx", "block": (128, 128), "tolerance": 1e-2, "out": tmp_path / "o.ome.zarr", **CPU}
    with pytest.raises(KeyboardInterrupt):
        vz.predict(path, x, stop=stop, watch=lambda e: stop.set() if _done(e) else None, **how)
    begun = json.loads((tmp_path / "o.ome.zarr.part" / "plan.json").read_text())

    def again(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("it was measured again")

    for name in ("with_tolerance", "with_known_halos", "measure"):
        monkeypatch.setattr(planning, name, again)
    result = vz.predict(path, x, **how)
    assert {a: axis.halo for a, axis in result.plan.model_axes.items()} == begun["halo"]
    assert result.plan.halo_facts == begun["halo_facts"]
    assert any("of the output's std" in note for note in result.plan.notes)


def test_no_tolerance_is_exact_and_one_that_cannot_be_kept_too(plane: Package) -> None:
    """A network of random weights, of which every pixel matters, keeps its exact halo; the plan says so."""
    x = micrograph(np.random.default_rng(), (600, 600))
    plan = vz.plan(plane, x, axes="yx", tolerance=1e-7, block=(128, 128), **CPU)
    assert {axis.halo for axis in plan.model_axes.values()} == {8}
    assert "no smaller halo keeps the error at 1e-07: the exact one is used" in str(plan)
    assert plan.halo_facts["error"] is not None
    small = vz.plan(plane, x[:90, :90], axes="yx", tolerance=1e-2, block=(64, 64), **CPU)
    assert "a smaller one could not be measured" in str(small)
    whole = vz.plan(plane, x, axes="yx", tolerance=1e-2, **CPU)
    assert "nothing is cut: the exact halo is used" in str(whole)
    assert whole.halo_facts["error"] == 0
    for wrong in (-1e-3, 1.0, float("nan")):
        with pytest.raises(SizeError, match=r"--tolerance .* is no error in units of the result's std") as caught:
            vz.plan(plane, x, axes="yx", tolerance=wrong, **CPU)
        assert caught.value.mend == "--tolerance 1e-3"


def fading(folder: Path) -> Path:
    """Twelve blurs in a row: it sees 12 pixels far, and most of what it returns comes from the nearest."""
    from tests.model_zoo import write
    from tests.onnx_net import Net
    from tests.whole_image import Design, In, Out

    def blurs(net: Net, x: str) -> list[str]:
        line = np.array([0.12, 0.76, 0.12])
        kernel = net.constant(np.outer(line, line).astype(np.float32)[None, None])
        for _ in range(12):
            x = net.node("Conv", x, kernel, kernel_shape=[3, 3], pads=[1] * 4)
        return [x]

    sizes = {"y": (16, 1), "x": (16, 1)}
    return write(folder, Design([In("raw", "bcyx", sizes)], [Out("out", "bcyx", {"y": 12, "x": 12})]), blurs).path


# --- --precision


def test_float16_is_measured_on_the_image_and_said(plane: Package, tmp_path: Path) -> None:
    """The difference stands in the notes, the JSON and the result; it is about that of the whole result."""
    x = micrograph(np.random.default_rng(), (300, 320))
    plan = vz.plan(plane, x, axes="yx", precision="fp16", **CPU)
    error = plan.precision_error
    assert error is not None
    said = re.search(
        r"float16 differs from float32 by up to (\S+) of the output's std \(measured on 3 places", str(plan)
    )
    assert said
    assert float(said[1]) == pytest.approx(error, rel=0.06)  # two digits and three: 1.05 may be told as 1.1 or 1
    assert plan.to_json()["precision_error"] == error
    whole = vz.predict(plane, x, axes="yx", **CPU)
    result = vz.predict(plan, tmp_path / "o.ome.zarr")
    real = np.abs(result.image.read() - whole).max() / whole.std()
    assert 0.1 * error < real < 10 * error
    assert 1e-6 < real < 0.2
    stored = zarr.open_group(result.path, mode="r").attrs["voidzoo"]["plan"]
    assert stored["precision_error"] == error
    assert any("float16" in note for note in stored["notes"])
    assert vz.plan(plane, x, axes="yx", **CPU).to_json()["precision_error"] is None


@pytest.mark.parametrize("name", ["two_outputs", "two_images", "fixed_64", "in_time", "before_zero_mean"])
def test_float16_of_any_model(name: str, folder: Path) -> None:
    """Several inputs and outputs, fixed sizes, steps before the network: each has a small difference that is told."""
    model = MODELS[name](folder)
    images = model.images(np.random.default_rng())
    main, *others = model.design.inputs
    letters = model.letters[main.id]
    inputs = {t.id: vz.open_image(images[t.id], axes=model.letters[t.id]) for t in others}
    plan = vz.plan(model.path, images[main.id], axes=letters, inputs=inputs, precision="fp16", **CPU)
    assert plan.precision_error is not None
    assert 0 < plan.precision_error < 0.05


def test_bfloat16_is_measured_and_said_where_the_processor_has_it(plane: Package, tmp_path: Path) -> None:
    """In OpenVINO, for Zarr as for arrays; the difference that the plan tells is about that of the whole result. On
    other processors, devices and runtimes it is refused."""
    x = micrograph(np.random.default_rng(), (300, 320))
    with pytest.raises(DeviceError, match="bfloat16 is run by OpenVINO on the CPU"):
        vz.plan(plane, x, axes="yx", precision="bf16", device="onnxruntime")
    torchscript = MODELS["torchscript"](tmp_path)
    with pytest.raises(PackageError, match="has no ONNX weights"):
        vz.plan(torchscript.path, np.ones((2, 64, 64), np.uint16), axes="cyx", precision="bf16", **CPU)
    if "BF16" not in capabilities():
        with pytest.raises(DeviceError, match="this processor does not multiply in bfloat16") as caught:
            vz.plan(plane, x, axes="yx", precision="bf16", **CPU)
        assert caught.value.mend == "--precision fp32"
        return
    plan = vz.plan(plane, x, axes="yx", precision="bf16", **CPU)
    assert re.search(
        r"bfloat16 differs from float32 by up to \S+ of the output's std \(measured on 3 places", str(plan)
    )
    assert plan.session is not None
    assert (plan.runtime, plan.session.runtime) == ("openvino", "openvino")
    whole = vz.predict(plane, x, axes="yx", **CPU)
    result = vz.predict(plan, tmp_path / "o.ome.zarr")
    real = np.abs(result.image.read() - whole).max() / whole.std()
    assert plan.precision_error is not None
    assert 0.1 * plan.precision_error < real < 10 * plan.precision_error
    assert 1e-4 < real < 0.2
    stored = zarr.open_group(result.path, mode="r").attrs["voidzoo"]["plan"]
    assert (stored["precision_error"], stored["runtime"]) == (plan.precision_error, "openvino")


def test_bfloat16_is_refused_on_other_processors(plane: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_network, "capabilities", lambda: ["FP32", "INT8", "BIN"])
    with pytest.raises(DeviceError, match="this processor does not multiply in bfloat16") as caught:
        vz.plan(plane, np.ones((64, 64), np.uint16), axes="yx", precision="bf16", **CPU)
    assert caught.value.mend == "--precision fp32"
    monkeypatch.setattr(openvino_network, "openvino_installed", lambda: False)
    with pytest.raises(vz.VoidzooError, match=r"bfloat16 on the CPU needs OpenVINO(.|\n)*pip install"):
        vz.plan(plane, np.ones((64, 64), np.uint16), axes="yx", precision="bf16", **CPU)


def test_float16_that_cannot_be_is_refused(folder: Path) -> None:
    """Grey values beyond 65,504 overflow; TorchScript has no float16 here; there is no fp8."""
    path = trained(folder / "wide")
    with pytest.raises(PackageError, match="its numbers grow beyond 65,504") as caught:
        vz.plan(path, np.full((64, 64), 70_000.0, np.float32), axes="yx", precision="fp16", **CPU)
    assert caught.value.mend == "--precision fp32"
    torchscript = MODELS["torchscript"](folder)
    with pytest.raises(PackageError, match="has no ONNX weights"):
        vz.plan(torchscript.path, np.ones((2, 64, 64), np.uint16), axes="cyx", precision="fp16", **CPU)
    with pytest.raises(PackageError, match="there is no precision 'fp8'") as caught:
        vz.plan(path, np.ones((64, 64), np.uint16), axes="yx", precision="fp8", **CPU)
    assert caught.value.mend == "--precision fp32, fp16 or bf16"


def test_the_difference_of_two_results() -> None:
    """In units of each channel's own std, the largest of all; a value that is not finite is infinitely far."""
    rng = np.random.default_rng()
    exact = rng.standard_normal((1, 2, 50, 60)) * np.array([1.0, 100.0])[None, :, None, None]
    off = exact.copy()
    off[0, 1, 3, 4] += 7.0
    expected = 7.0 / exact[0, 1].std()
    assert difference([(off, exact)]) == pytest.approx(expected)
    off[0, 0, 0, 0] += 3.0
    assert difference([(exact, exact), (off, exact)]) == pytest.approx(max(expected, 3.0 / exact[0, 0].std()))
    off[0, 0, 1, 1] = np.inf
    assert difference([(off, exact)]) == np.inf
    constant: Mapping[str, Any] = {"shape": (1, 1, 4, 4), "fill_value": 8.0}
    assert difference([(np.full(**constant) + 2, np.full(**constant))]) == pytest.approx(0.25)
