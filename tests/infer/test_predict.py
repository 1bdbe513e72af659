"""The result does not depend on blocks and tiles: it is that of the network run once on the whole image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import voidzoo as vz
from tests.packages import make_package, micrograph, whole
from voidzoo.infer import planning
from voidzoo.zoo.package import Package

NETWORKS: dict[str, dict[str, Any]] = {
    "2d-depth1": {"dims": 2, "depth": 1},
    "2d-depth2": {"dims": 2, "depth": 2},
    "2d-depth3": {"dims": 2, "depth": 3, "filters": 2},
    "2d-depth4": {"dims": 2, "depth": 4, "filters": 2},
    "2d-kernel5": {"dims": 2, "depth": 2, "kernel": [5, 5]},
    "2d-residual": {"dims": 2, "depth": 2, "residual": True},
    "3d-flat": {"dims": 3, "depth": 2, "filters": 2},
    "3d-pooled": {"dims": 3, "depth": 2, "filters": 2, "pool": [2, 2, 2]},
    "3d-anisotropic": {"dims": 3, "depth": 1, "filters": 2, "kernel": [3, 5, 5]},
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {name: make_package(root / name, seed=i, **config) for i, (name, config) in enumerate(NETWORKS.items())}


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for float rounding, relative to the spread of the output."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("2d")])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tiled_equals_whole_2d(name: str, packages: dict[str, Package], data: st.DataObject) -> None:
    package = packages[name]
    step, smallest = package.rules["y"].step, max(package.rules["y"].minimum, 2 * package.rules["y"].halo + 16)
    shape = [
        data.draw(st.integers(1, 3), "z"),
        data.draw(st.integers(5, 330), "y"),
        data.draw(st.integers(5, 330), "x"),
    ]
    tile = [(smallest + data.draw(st.integers(0, 100))) // step * step + step for _ in "yx"]
    block = [data.draw(st.integers(1, 150)) * step for _ in "yx"]
    x = micrograph(np.random.default_rng(data.draw(st.integers(0, 999))), shape)
    y = vz.predict(package, x, axes="zyx", tile=tuple(tile), block=tuple(block), dtype="float32", device="cpu")
    same(y, np.concatenate([whole(package, plane[None]) for plane in x]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in NETWORKS if n.startswith("3d")])
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tiled_equals_whole_3d(name: str, packages: dict[str, Package], data: st.DataObject) -> None:
    package = packages[name]
    rules = package.rules
    shape = [
        data.draw(st.integers(3, 60), "z"),
        data.draw(st.integers(5, 150), "y"),
        data.draw(st.integers(5, 150), "x"),
    ]
    tile = tuple(
        (max(r.minimum, 2 * r.halo + r.step) + data.draw(st.integers(8, 60))) // r.step * r.step + r.step
        for r in rules.values()
    )
    block = tuple(data.draw(st.integers(10, 40)) * r.step for r in rules.values())
    x = micrograph(np.random.default_rng(data.draw(st.integers(0, 999))), shape)
    y = vz.predict(package, x, axes="zyx", tile=tile, block=block, dtype="float32", device="cpu")
    same(y, whole(package, x[None])[0])


def test_automatic_plan_equals_whole(packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing asked for: the tile that is chosen for little memory is right too."""
    package = packages["2d-depth2"]
    x = micrograph(np.random.default_rng(5), (2, 1100, 900))
    process = planning._process_memory()  # it grows and shrinks from plan to plan
    monkeypatch.setattr(planning, "_process_memory", lambda: process)
    memory = process + 40_000_000
    p = vz.plan(package, x, axes="zyx", memory=memory, device="cpu")
    assert p.tile["y"] * p.tile["x"] < 1100 * 900, "the memory forces tiles"
    y = vz.predict(package, x, axes="zyx", memory=memory, dtype="float32", device="cpu")
    same(y, np.concatenate([whole(package, plane[None]) for plane in x]))


@pytest.mark.parametrize("shape", [(5, 7), (1, 300), (64, 64), (65, 63)])
def test_any_size_is_extended_never_refused(packages: dict[str, Package], shape: tuple[int, int]) -> None:
    x = micrograph(np.random.default_rng(2), (64, 300))[: shape[0], : shape[1]]
    y = vz.predict(packages["2d-depth2"], x, axes="yx", dtype="float32", device="cpu")
    same(y, whole(packages["2d-depth2"], x[None])[0])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64", "float16", "int8"])
def test_dtype_of_the_input_is_kept(packages: dict[str, Package], dtype: str, tmp_path: Path) -> None:
    x = micrograph(np.random.default_rng(3), (90, 110), "float64")
    x = (x / 10).astype(dtype) if dtype == "int8" else x.astype(dtype)
    package = packages["2d-depth2"]
    expected = whole(package, x[None])[0]
    result = vz.predict(package, x, axes="yx", out=tmp_path / "o.ome.zarr", device="cpu")
    y = zarr.open_array(tmp_path / "o.ome.zarr" / "0", mode="r")[:]
    assert y.dtype == dtype
    if np.dtype(dtype).kind == "f":
        assert np.allclose(y, expected, rtol=2e-3, atol=1e-3 * expected.std())
        assert result.clipped == 0
        return
    limits = np.iinfo(dtype)
    assert np.abs(y.astype(float) - np.clip(np.rint(expected), limits.min, limits.max)).max() <= 1
    assert result.clipped == pytest.approx(
        ((np.rint(expected) < limits.min) | (np.rint(expected) > limits.max)).sum(), abs=3
    )


def test_bool_becomes_float32(packages: dict[str, Package]) -> None:
    x = np.random.default_rng(0).random((70, 70)) > 0.5
    assert vz.predict(packages["2d-depth1"], x, axes="yx", device="cpu").dtype == np.float32


def test_probabilities_are_float32_whatever_the_input(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", outputs=3, kinds=["probability"] * 3, depth=1)
    x = micrograph(np.random.default_rng(1), (70, 66))
    y = vz.predict(package, x, axes="yx", device="cpu")
    assert (y.dtype, y.shape) == (np.float32, (3, 70, 66))
    same(y, whole(package, x[None]))


def test_axes_in_any_order_come_back_in_that_order(packages: dict[str, Package]) -> None:
    package = packages["2d-depth1"]
    x = micrograph(np.random.default_rng(1), (2, 3, 40, 50))  # t z y x
    expected = np.stack([[whole(package, p[None])[0] for p in t] for t in x])
    y = vz.predict(package, x.transpose(2, 0, 3, 1), axes="ytxz", dtype="float32", device="cpu", block=(20, 26))
    same(y.transpose(1, 3, 0, 2), expected)


def test_a_volume_model_runs_each_time_point(packages: dict[str, Package]) -> None:
    package = packages["3d-flat"]
    x = micrograph(np.random.default_rng(1), (2, 12, 40, 50))
    y = vz.predict(package, x, axes="tzyx", dtype="float32", device="cpu")
    same(y, np.stack([whole(package, v[None])[0] for v in x]))


def test_channels(packages: dict[str, Package], tmp_path: Path) -> None:
    package = packages["2d-depth1"]
    x = micrograph(np.random.default_rng(1), (3, 40, 50))
    with pytest.raises(vz.VoidzooError, match=r"takes 1 channel; array has 3.*\n  mend:  --channel"):
        vz.predict(package, x, axes="cyx", device="cpu")
    one = vz.predict(package, x, axes="cyx", channel=1, dtype="float32", device="cpu")
    same(one, whole(package, x[1:2]))
    every = vz.predict(package, x, axes="cyx", channel="all", dtype="float32", device="cpu")
    same(every, np.concatenate([whole(package, c[None]) for c in x]))
    with pytest.raises(vz.VoidzooError, match="no channel 'DAPI'"):
        vz.predict(package, x, axes="cyx", channel="DAPI", device="cpu")
    two = make_package(tmp_path / "two", channels=2, outputs=2, depth=1)
    with pytest.raises(vz.VoidzooError, match=r"takes 2 channels \(in0, in1\); array has 3"):
        vz.predict(two, x, axes="cyx", device="cpu")
    both = vz.predict(two, x[:2], axes="cyx", dtype="float32", device="cpu", block=(20, 20))
    same(both, whole(two, x[:2]))
    mixed = vz.predict(two, x[:2].transpose(1, 2, 0), axes="yxc", dtype="float32", device="cpu")
    same(mixed.transpose(2, 0, 1), whole(two, x[:2]))


def test_dataarray_in_dataarray_out(packages: dict[str, Package]) -> None:
    import xarray as xr

    x = micrograph(np.random.default_rng(1), (2, 40, 50))
    given_ = xr.DataArray(x, dims=("z", "y", "x"), coords={"y": np.arange(40) * 0.2, "x": np.arange(50) * 0.2, "z": [0.0, 1.5]},
                          attrs={"stain": "actin"})  # fmt: skip
    found = vz.predict(packages["2d-depth1"], given_, device="cpu")
    assert found.dims == given_.dims
    assert found.attrs == given_.attrs
    for c in "zyx":
        assert np.array_equal(found.coords[c], given_.coords[c])
    assert np.array_equal(found.values, vz.predict(packages["2d-depth1"], x, axes="zyx", device="cpu"))


def test_a_volume_model_needs_z(packages: dict[str, Package]) -> None:
    with pytest.raises(vz.VoidzooError, match=r"needs z, y, x; array is y 40, x 50"):
        vz.predict(packages["3d-flat"], np.ones((40, 50)), axes="yx", device="cpu")


def test_zarr_and_tiff_carry_metadata_over(packages: dict[str, Package], tmp_path: Path) -> None:
    """um, s, channel names and axes go through both formats; the pyramid is the mean; an independent reader agrees."""
    x = micrograph(np.random.default_rng(8), (2, 3, 2, 300, 270))  # t z c y x
    source = tmp_path / "in.ome.tif"
    metadata = {
        "axes": "TZCYX", "PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.21, "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 900, "PhysicalSizeZUnit": "nm", "TimeIncrement": 3.5, "TimeIncrementUnit": "s",
        "Channel": {"Name": ["DAPI", "GFP"]},
    }  # fmt: skip
    tifffile.imwrite(source, x, metadata=metadata, ome=True)
    package = packages["2d-depth1"]
    for name in ("o.ome.zarr", "o.ome.tif"):
        vz.predict(package, source, channel="all", out=tmp_path / name, device="cpu", block=(128, 128))
        back = vz.open_image(tmp_path / name)
        assert back.sizes == {"t": 2, "c": 2, "z": 3, "y": 300, "x": 270}
        assert back.channels == ("DAPI", "GFP")
        size = back.pixel_size
        assert [size.x, size.y, size.z, size.t] == pytest.approx([0.2, 0.21, 0.9, 3.5])
        assert back.dtype == np.uint16
        assert len(back.levels) == 1
        full = back.read()
        expected = np.stack(
            [[[np.rint(whole(package, x[t, z, c][None])[0]) for z in range(3)] for c in range(2)] for t in range(2)]
        )
        assert np.abs(full - np.clip(expected, 0, 65535)).max() <= 1
        means = full.reshape(2, 2, 3, 150, 2, 135, 2).astype(float).mean((4, 6))
        assert np.abs(back.level(1).read() - means).max() <= 0.5
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "TCZYX"
        assert np.array_equal(tiff.asarray(), full)


def test_written_zarr_is_valid_ome_zarr(packages: dict[str, Package], tmp_path: Path) -> None:
    """ome-zarr-models, which nobody here wrote, reads the metadata and finds nothing wrong."""
    from ome_zarr_models.v05.image import Image as Reference

    x = micrograph(np.random.default_rng(8), (3, 2, 300, 270))
    vz.predict(packages["2d-depth1"], x, axes="czyx", channel="all", pixel_size=(2.0, 0.5, 0.25), out=tmp_path / "o.ome.zarr",
               device="cpu")  # fmt: skip
    reference = Reference.from_zarr(zarr.open_group(tmp_path / "o.ome.zarr", mode="r"))
    multiscales = reference.ome_attributes.multiscales[0]
    assert [a.name for a in multiscales.axes] == list("czyx")
    scale, translation = multiscales.datasets[1].coordinateTransformations
    assert scale.scale == [1.0, 2.0, 1.0, 0.5]
    assert translation.translation == [0.0, 0.0, 0.25, 0.125], "the mean of 2 x 2 pixels lies half a pixel further in"


def test_many_chunks_become_shards(
    packages: dict[str, Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("voidzoo.infer.output.layer.MANY_CHUNKS", 3)
    x = micrograph(np.random.default_rng(8), (2, 600, 520))
    vz.predict(packages["2d-depth1"], x, axes="zyx", out=tmp_path / "o.ome.zarr", device="cpu")
    array = zarr.open_array(tmp_path / "o.ome.zarr" / "0", mode="r")
    assert array.shards is not None
    expected = vz.predict(packages["2d-depth1"], x, axes="zyx", device="cpu")
    assert np.array_equal(array[:], expected)


def test_nan_is_refused_with_its_place_and_mapped_on_demand(packages: dict[str, Package], tmp_path: Path) -> None:
    x = micrograph(np.random.default_rng(8), (2, 90, 80), "float32")
    x[1, 33, 44] = np.nan
    x[1, 34, 44] = np.inf
    with pytest.raises(vz.VoidzooError, match=r"NaN or infinite(.|\n)*z 1, y 33, x 44(.|\n)*--allow-nan"):
        vz.predict(packages["2d-depth1"], x, axes="zyx", out=tmp_path / "o.ome.zarr", device="cpu")
    assert not (tmp_path / "o.ome.zarr").exists()
    result = vz.predict(packages["2d-depth1"], x, axes="zyx", out=tmp_path / "o.ome.zarr", device="cpu", allow_nan=True)
    assert result.mapped == 2
    assert result.blocks == 1, "the plane without NaN was kept from the first try"
    clean = np.where(np.isfinite(x), x, 0)
    assert np.array_equal(result.image.read(), vz.predict(packages["2d-depth1"], clean, axes="zyx", device="cpu"))


def test_predict_needs_no_torch(packages: dict[str, Package], tmp_path: Path) -> None:
    """A process in which torch cannot be imported predicts from TIFF to Zarr."""
    import subprocess

    source = tmp_path / "in.tif"
    tifffile.imwrite(source, micrograph(np.random.default_rng(1), (80, 90)))
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['bioimageio.core'] = None; "
        "from voidzoo.cli import main; "
        f"code = main(['predict', {packages['2d-depth2'].path!r}, {str(source)!r}, '-o', {str(tmp_path / 'o.ome.zarr')!r}]); "
        "assert 'dask.array' not in sys.modules and 'xarray' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout


def test_several_sessions_give_the_same(
    packages: dict[str, Package], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan with two single-threaded sessions, as a long job may get: the whole-image result, and it is pinned."""
    monkeypatch.setattr("voidzoo.infer.networks.runtimes.WORTH_PROBING", 0.0)
    monkeypatch.setattr("voidzoo.infer.networks.runtimes.CLEARLY", float("inf"))
    monkeypatch.setattr("voidzoo.infer.networks.runtimes.cpu_count", lambda: 2)
    package = packages["2d-depth2"]
    x = micrograph(np.random.default_rng(6), (5, 200, 170))
    settings_ = {"axes": "zyx", "device": "cpu", "block": (64, 64), "tile": (80, 80), "dtype": "float32"}
    plan = vz.plan(package, x, **settings_)
    assert plan.workers == 2
    assert plan.lanes == 4
    result = vz.predict(plan, tmp_path / "o.ome.zarr")
    same(result.image.read(), np.concatenate([whole(package, plane[None]) for plane in x]))
    stored = zarr.open_group(tmp_path / "o.ome.zarr", mode="r").attrs["voidzoo"]["plan"]
    assert stored["workers"] == 2


def test_a_tiff_of_nearly_cubic_voxels_keeps_its_planes_in_all_levels(tmp_path: Path) -> None:
    """A Zarr's second level halves z as well (2 um beside 2 x 1.2 um); the levels of a TIFF belong to its pages."""
    package = make_package(tmp_path / "p", depth=1)
    x = micrograph(np.random.default_rng(), (3, 640, 530))
    settings_: dict[str, Any] = {"axes": "zyx", "pixel_size": (2.0, 1.2, 1.3), "device": "cpu"}
    in_zarr = vz.predict(package, x, out=tmp_path / "o.ome.zarr", **settings_).image
    vz.predict(package, x, out=tmp_path / "o.ome.tif", **settings_)
    with tifffile.TiffFile(tmp_path / "o.ome.tif") as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert [level.shape for level in levels] == [(3, 640, 530), (3, 320, 265), (3, 160, 133)]
    assert np.array_equal(levels[0], in_zarr.read())
    assert zarr.open_array(tmp_path / "o.ome.zarr" / "2", mode="r").shape[0] < 3
