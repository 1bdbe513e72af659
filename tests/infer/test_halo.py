"""Halos are decided by what the network sees; smaller ones by what they are measured to do on the image itself."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.packages import make_package, micrograph
from voidzoo.infer.probe_regions import PLACES, ProbeSize, probe_regions, probe_size
from voidzoo.infer.sight.halo import HaloErrors, check_halos, measured_error, smallest_halo
from voidzoo.infer.sight.receptive import Reach, receptive_field
from voidzoo.zoo.image import Image
from voidzoo.zoo.open import open_image
from voidzoo.zoo.package import Package

SAMPLE = Path(__file__).parents[2] / "zoo" / "samples" / "giga_mito60x_n1_low.tif"


def reach(aligned: int, grid: int = 1, why: str = "") -> Reach:
    return Reach(aligned, aligned, aligned, not why, why, grid, Fraction(1), Fraction(0))


def test_package_that_declares_what_its_network_sees_is_taken_as_it_is() -> None:
    check = check_halos({"y": 24}, {"y": reach(22, 4)}, {"y": 4})["y"]
    assert (check.used, check.reach, check.note, check.exact) == (24, 24, None, True)


def test_halo_that_is_absent_is_filled_in() -> None:
    check = check_halos({"y": 0}, {"y": reach(22, 4)}, {"y": 8})["y"]
    assert (check.used, check.warn) == (24, False)
    assert check.note == "the package declares no halo along y: 24 is used, what the network sees"
    assert check_halos({"y": 0}, {"y": reach(0)}, {})["y"].note is None


def test_halo_that_is_too_small_is_a_warning_with_the_measured_error() -> None:
    table = np.linspace(0.5, 0, 25)[:, None] + np.zeros((1, 25))
    errors = HaloErrors(("y", "x"), {"y": 24, "x": 24}, table, 6)
    checks = check_halos({"y": 16, "x": 24}, {"y": reach(22, 4), "x": reach(22, 4)}, {}, errors)
    assert (checks["y"].used, checks["y"].warn, checks["y"].exact) == (24, True, True)
    assert checks["y"].note == (
        "the package's halo along y (16) is smaller than what the network sees (24): 24 is used; "
        "with 16 tiles would differ by 0.17 of the output's std (measured)"
    )
    assert checks["x"].note is None


def test_halo_that_is_too_large_is_made_smaller() -> None:
    check = check_halos({"y": 32}, {"y": reach(22, 4)}, {"y": 4})["y"]
    assert (check.used, check.warn, check.exact) == (24, False, True)
    assert "32" in str(check.note)


@pytest.mark.parametrize(("declared", "used"), [(16, 16), (0, 64)])
def test_network_that_sees_everything_is_declared_inexact(declared: int, used: int) -> None:
    check = check_halos({"y": declared}, {"y": reach(60, 16, "GlobalAveragePool se.pool")}, {"y": 16})["y"]
    assert (check.used, check.reach, check.exact, check.warn) == (used, None, False, True)
    assert check.note == f"tiles along y are not exact: GlobalAveragePool se.pool sees all of it; halo {used} is used"
    mixed = check_halos({"y": 0}, {"y": None}, {"y": 16})["y"]
    assert (mixed.used, mixed.exact) == (32, False)


def runner(package: Package) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(package.onnx(), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"input": x})[0]


def probed(package: Package, image: Image, letters: str, voxels: int = 10**7, seed: int = 0) -> tuple[HaloErrors, Any]:
    """The errors as the plan measures them, with the true halo from the graph."""
    shape = (1, len(package.channels_in), *(2 * r.minimum for r in package.rules.values()))
    field = receptive_field(package.onnx(), {"input": shape})["output"]["input"]
    reaches = dict(zip(letters, field[2:], strict=True))
    full = {a: r.halo for a, r in reaches.items() if r}
    steps = {a: r.grid for a, r in reaches.items() if r}
    size = probe_size(image, full, steps, {a: r.minimum for a, r in package.rules.items()}, voxels)
    assert size is not None
    regions = probe_regions(image, letters, size.size, size.count, steps=steps, channels=shape[1], seed=seed)
    errors = measured_error(runner(package), regions, letters, full)
    assert errors is not None
    return errors, steps


def tiled_error(run: Any, pixels: NDArray[np.float32], halos: dict[str, int], core: int) -> float:
    """Brute force: the whole image (1, c, y, x) in tiles; the largest deviation by the output's std, worst channel."""
    whole = run(pixels)
    worst = np.zeros(whole.shape[1])
    for y, x in product(*(range(0, n, core) for n in pixels.shape[2:])):
        first = max(0, y - halos["y"]), max(0, x - halos["x"])
        tile = pixels[:, :, first[0] : y + core + halos["y"], first[1] : x + core + halos["x"]]
        part = run(np.ascontiguousarray(tile))[:, :, y - first[0] :, x - first[1] :][:, :, :core, :core]
        worst = np.maximum(worst, np.abs(part - whole[:, :, y : y + core, x : x + core]).max(axis=(0, 2, 3)))
    return float((worst / whole.std(axis=(0, 2, 3))).max())


@pytest.mark.parametrize("channels", [1, 2])
def test_error_is_that_of_tiling_a_real_image(tmp_path: Path, channels: int) -> None:
    """Measured on a few regions, checked against the whole of a real image in tiles: within a factor of 4."""
    package = make_package(tmp_path / "p", depth=2, filters=4, channels=channels, outputs=channels, mean=67, std=51)
    real = open_image(SAMPLE)
    pixels = real.read({"y": slice(0, 512), "x": slice(0, 512)})
    image = real if channels == 1 else open_image(np.stack([pixels, pixels.T]), axes="cyx")
    errors, steps = probed(package, image, "yx")
    run = runner(package)
    x = (pixels[None] if channels == 1 else np.stack([pixels, pixels.T])).astype(np.float32)[None]
    assert (steps, errors.full) == ({"y": 4, "x": 4}, {"y": 24, "x": 24})
    for halos in ({"y": 4, "x": 4}, {"y": 16, "x": 16}, {"y": 8, "x": 24}, {"y": 20, "x": 20}):
        brute = tiled_error(run, x, halos, 64)
        assert brute / 4 < errors.at(halos) < 2 * brute
    assert errors.at({}) < 1e-5
    assert tiled_error(run, x, errors.full, 64) < 1e-5


def test_tolerance_holds_on_other_regions_of_the_image(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", depth=3, filters=4, mean=67, std=51)
    image = open_image(SAMPLE)
    errors, steps = probed(package, image, "yx", 4 * 10**5)
    for tolerance in (0.3, 0.1, 0.03):
        choice = smallest_halo(errors, tolerance, errors.full, steps)
        assert choice.smaller
        assert choice.error is not None
        assert choice.error <= tolerance
        assert choice.full == {"y": 48, "x": 48}
        other, _ = probed(package, image, "yx", 4 * 10**5, seed=99)
        assert other.at(choice.halos) <= 3 * tolerance


def test_errors_fall_with_the_halo_and_vanish_at_the_full_one_in_3d(tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", dims=3, depth=1, filters=2)
    stack = micrograph(np.random.default_rng(3), (2, 60, 100, 90))
    errors, steps = probed(package, open_image(stack, axes="tzyx"), "zyx", 8 * 10**5)
    assert errors.letters == ("z", "y", "x")
    assert errors.full == {"z": 6, "y": 8, "x": 8}
    assert steps == {"z": 1, "y": 2, "x": 2}
    for axis in range(3):
        assert np.all(np.diff(errors.table, axis=axis) <= 0)
    for letter in "zyx":
        along = errors.along(letter)
        assert along[0] > 0.1
        assert along[-1] < 1e-5
        assert along[-2] > 1e-5 or letter != "z"  # z is not pooled: not a pixel too much


class Smooth:
    """A network that is known: a Gaussian blur with zeros beyond the border, 3 sigma wide."""

    def __init__(self, sigma: float, gain: float = 1.0) -> None:
        t = np.arange(-3 * int(sigma), 3 * int(sigma) + 1)
        self.radius = 3 * int(sigma)
        self.taps = np.exp(-0.5 * (t / sigma) ** 2)
        self.taps /= self.taps.sum()
        self.gain = gain
        self.voxels = 0

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        from scipy.ndimage import correlate1d

        self.voxels += x.size
        y = x.astype(np.float64)
        for axis in range(2, x.ndim):
            y = correlate1d(y, self.taps, axis, mode="constant")
        return (self.gain * y).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.0, 3.0]), st.floats(1e-4, 0.3), st.floats(1, 1000))
def test_chosen_halo_is_the_smallest_that_brute_force_finds(
    seed: int, sigma: float, tolerance: float, gain: float
) -> None:
    """On the same regions, cut and run by hand for every halo; units and gain of the output do not matter."""
    network = Smooth(sigma, gain)
    regions = [micrograph(np.random.default_rng([seed, k]), (1, 1, 70, 70), "float32") for k in range(2)]
    full = {"y": network.radius, "x": network.radius}
    errors = measured_error(network, regions, "yx", full)
    assert errors is not None
    choice = smallest_halo(errors, tolerance, full, {"y": 1, "x": 1})

    r = network.radius
    whole = [network(region)[0, 0, r:-r, r:-r].astype(float) for region in regions]
    cut = [network(region[:, :, r:-r, r:-r])[0, 0].astype(float) for region in regions]
    std = np.concatenate([w.ravel() for w in whole]).std()

    def error(y: int, x: int) -> float:
        inside = np.s_[y : whole[0].shape[0] - y, x : whole[0].shape[1] - x]
        return max(float(np.abs(w - c)[inside].max()) for w, c in zip(whole, cut, strict=True)) / std

    fits = [(y, x) for y, x in product(range(r + 1), repeat=2) if error(y, x) <= tolerance and (y, x) != (r, r)]
    cost = min(((1 + 2 * y / 256) * (1 + 2 * x / 256) for y, x in fits), default=0.0)
    chosen = choice.halos["y"], choice.halos["x"]
    assert choice.smaller == bool(fits)
    if fits:
        assert chosen in fits
        assert np.isclose((1 + 2 * chosen[0] / 256) * (1 + 2 * chosen[1] / 256), cost)
        assert choice.error is not None
        assert np.isclose(choice.error, error(*chosen))


def test_axes_that_cannot_be_cut_keep_the_full_halo() -> None:
    network = Smooth(2.0)
    region = micrograph(np.random.default_rng(0), (1, 1, 10, 64, 64), "float32")
    full = {"z": 6, "y": 6, "x": 6}
    errors = measured_error(network, [region], "zyx", full)
    assert errors is not None
    assert errors.letters == ("y", "x")
    choice = smallest_halo(errors, 0.3, full, {"z": 1, "y": 2, "x": 2})
    assert choice.halos["z"] == 6
    assert choice.halos["y"] < 6
    assert choice.halos["y"] % 2 == 0
    assert measured_error(network, [region], "zyx", {"z": 0, "y": 32, "x": 32}) is None


def test_what_cannot_help_is_not_run() -> None:
    """Regions end as soon as it is settled; what was seen until then is what the same regions alone would show."""
    network = Smooth(2.0)
    regions = [micrograph(np.random.default_rng(k), (1, 1, 64, 64), "float32") for k in range(6)]
    full = {"y": network.radius, "x": network.radius}
    asked = []
    few = measured_error(network, regions, "yx", full, lambda e: asked.append(e.regions) or e.regions == 3)
    alone = measured_error(network, regions[:3], "yx", full)
    assert few is not None
    assert alone is not None
    assert (asked, few.regions) == ([1, 2, 3], 3)
    assert np.array_equal(few.table, alone.table)


def test_output_of_another_size_is_not_measured() -> None:
    region = micrograph(np.random.default_rng(0), (1, 1, 64, 64), "float32")
    assert measured_error(lambda x: x[:, :, ::2, ::2], [region], "yx", {"y": 4, "x": 4}) is None
    choice = smallest_halo(None, 1e-3, {"y": 4, "x": 4}, {"y": 2, "x": 2})
    assert (choice.halos, choice.error, choice.smaller) == ({"y": 4, "x": 4}, None, False)


def test_a_shallow_axis_weighs_more_than_a_long_one() -> None:
    table = np.full((9, 9), 1.0)
    table[2:, 6:] = table[6:, 2:] = 0.0
    errors = HaloErrors(("z", "y"), {"z": 8, "y": 8}, table, 1)
    steps = {"z": 2, "y": 2}
    assert smallest_halo(errors, 1e-3, errors.full, steps, {"z": 20, "y": 1000}).halos == {"z": 2, "y": 6}
    assert smallest_halo(errors, 1e-3, errors.full, steps, {"z": 1000, "y": 20}).halos == {"z": 6, "y": 2}


class Counting:
    """An image that counts what is read of it; of any size, nothing is stored: a bright spot, a textured one, noise."""

    def __init__(self, axes: str, shape: tuple[int, ...]) -> None:
        self.axes, self.shape = axes, shape
        self.reads, self.pixels = 0, 0

    def size(self, letter: str) -> int:
        return self.shape[self.axes.index(letter)] if letter in self.axes else 1

    def read(self, region: Any) -> NDArray[Any]:
        starts = [region.get(a, slice(0, self.size(a))) for a in self.axes]
        assert all(0 <= s.start < s.stop <= n for s, n in zip(starts, self.shape, strict=True))
        grids = np.meshgrid(*(np.arange(s.start, s.stop) for s in starts), indexing="ij", sparse=True)
        y, x = grids[self.axes.index("y")], grids[self.axes.index("x")]
        bright = 1000.0 * (x > 0.5 * self.size("x"))
        textured = np.where(y > 0.5 * self.size("y"), 300.0 * ((x + y) % 2), 0)
        out = np.broadcast_to(bright + textured, [s.stop - s.start for s in starts])
        self.reads += 1
        self.pixels += out.size
        return out.astype(np.float32)


def test_places_are_few_bright_textured_and_the_same_every_time() -> None:
    image = Counting("tcyx", (1000, 3, 200_000, 300_000))
    regions = probe_regions(image, "yx", {"y": 96, "x": 128}, 6, steps={"y": 16, "x": 16}, seed=5)
    assert image.reads == 6 * PLACES + 6
    assert image.pixels <= 6 * PLACES * 32 * 32 + 6 * 96 * 128
    assert [r.shape for r in regions] == [(1, 1, 96, 128)] * 6
    assert all(r.dtype == np.float32 for r in regions)
    assert regions[0].mean() > 900
    assert regions[1].std() > 100
    again = probe_regions(Counting("tcyx", image.shape), "yx", {"y": 96, "x": 128}, 6, steps={"y": 16, "x": 16}, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(regions, again, strict=True))


def test_regions_start_on_the_grid_and_give_all_channels_of_the_network() -> None:
    shape = (5, 2, 40, 60, 50)
    values = np.arange(np.prod(shape), dtype=np.int64).reshape(shape)
    image = open_image(values.astype(np.uint32), axes="tczyx")
    options: dict[str, Any] = {"steps": {"z": 4, "y": 4, "x": 4}}
    for region in probe_regions(image, "zyx", {"z": 8, "y": 20, "x": 100}, 5, channels=2, **options):
        assert region.shape == (1, 2, 8, 20, 50)
        t, c, z, y, x = np.unravel_index(int(region[0, 0, 0, 0, 0]), shape)
        assert (c, z % 4, y % 4, x) == (0, 0, 0, 0)
        assert np.array_equal(region[0], values[t, :, z : z + 8, y : y + 20])
    for region in probe_regions(image, "yx", {"y": 20, "x": 20}, 5, channel=1, **options):
        assert np.unravel_index(int(region[0, 0, 0, 0]), shape)[1] == 1
    gap = np.full((40, 40), np.nan, np.float32)
    assert not np.isnan(probe_regions(open_image(gap, axes="yx"), "yx", {"y": 20, "x": 20}, 1, **options)[0]).any()


def test_regions_cost_no_more_than_they_may() -> None:
    image = Counting("zyx", (64, 256, 256))
    full, steps = {"z": 10, "y": 24, "x": 24}, {"z": 1, "y": 4, "x": 4}
    minimum = {"z": 1, "y": 4, "x": 4}
    rich = probe_size(image, full, steps, minimum, 10**8)
    assert rich == ProbeSize({"z": 50, "y": 120, "x": 120}, 12)
    for voxels in (10**7, 10**6, 2 * 10**5):
        size = probe_size(image, full, steps, minimum, voxels)
        assert size is not None
        assert np.prod(list(size.size.values())) * size.count <= voxels
        assert all(size.size[a] > 2 * full[a] for a in full)
    assert probe_size(image, full, steps, minimum, 10**5) is None
    flat = probe_size(Counting("zyx", (7, 256, 256)), full, steps, {**minimum, "z": 3}, 10**8)
    assert flat is not None
    assert flat.size == {"z": 7, "y": 120, "x": 120}
