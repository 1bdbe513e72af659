"""Each page and chunk of the image is decoded about once, however blocks and halos lie on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.zoo.package import Package

MOST = 1.3


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Package]:
    root = tmp_path_factory.mktemp("packages")
    return {dims: make_package(root / str(dims), dims=dims, depth=2, filters=2, pool=[2] * dims) for dims in (2, 3)}


def tiff(path: Path, x: np.ndarray, **how: Any) -> Path:
    tifffile.imwrite(path, x, photometric="minisblack", metadata={"axes": "ZYX"}, **how)
    return path


def ome_zarr(path: Path, x: np.ndarray, chunks: tuple[int, ...], shards: tuple[int, ...] | None = None) -> Path:
    group = zarr.open_group(path, mode="w")
    array = group.create_array("0", shape=x.shape, dtype=x.dtype, chunks=chunks, shards=shards)
    array[:] = x
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [
        {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}]}  # fmt: skip
    return path


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "kind",
    ["strips", "pages", "tiles", "chunks 1 128 128", "chunks 32 64 64", "chunks 48 300 300", "shards 16 64 64"],
)
def test_read_once(kind: str, dims: int, packages: dict[int, Package], tmp_path: Path) -> None:
    x = micrograph(np.random.default_rng(3), (50, 310, 330))
    word, *sizes = kind.split()
    chunk = tuple(map(int, sizes))
    if word == "strips":
        image = tiff(tmp_path / "in.tif", x, compression="zlib", rowsperstrip=16)
    elif word == "pages":
        image = tiff(tmp_path / "in.tif", x, compression="zlib", rowsperstrip=310)
    elif word == "tiles":
        image = tiff(tmp_path / "in.tif", x, compression="zlib", tile=(64, 64))
    elif word == "chunks":
        image = ome_zarr(tmp_path / "in.zarr", x, chunk)
    else:
        image = ome_zarr(tmp_path / "in.zarr", x, chunk, tuple(2 * n for n in chunk))
    whole = vz.predict(packages[dims], image, out=tmp_path / "whole.ome.zarr", device="cpu")
    assert whole.read_amplification is not None
    assert 0.99 <= whole.read_amplification <= MOST
    block = (64, 128) if dims == 2 else (16, 64, 128)
    cut = vz.predict(packages[dims], image, out=tmp_path / "cut.ome.zarr", device="cpu", block=block)
    assert cut.plan.n_blocks > 10
    assert cut.read_amplification is not None
    assert 0.99 <= cut.read_amplification <= MOST
    assert np.abs(cut.image.read().astype(int) - whole.image.read()).max() <= 1, "rounding apart"
