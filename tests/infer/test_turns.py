"""Test-time augmentation: the mean over the turned image, tiled and whole alike, under exactly the turns that are allowed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import yaml

import voidzoo as vz
from tests.packages import make_package, micrograph
from voidzoo.zoo.dihedral import ALL, KEEPS_SIDES, turned, turned_back
from voidzoo.zoo.errors import OutputError, PackageError, SizeError

BLIND = {"1x9": (0, 2, 4, 6), "3x3": ALL, "[[0,1,0],[0,1,1],[0,0,0]]": None}


def oracle(package: vz.Package, x: np.ndarray, turns: tuple[int, ...]) -> np.ndarray:
    """By numpy and onnxruntime alone: extend at the end, turn, run whole, lay back, mean, crop. x: (c, [z], y, x)."""
    session = ort.InferenceSession(package.onnx(), providers=["CPUExecutionProvider"])
    pad = [(0, 0)]
    for n, rule in zip(x.shape[1:], package.rules.values(), strict=True):
        legal = max(n, rule.minimum)
        pad.append((0, -(-legal // rule.step) * rule.step - n))
    x, keep = np.pad(x.astype(np.float32), pad, mode="symmetric"), x.shape[1:]
    found = [
        turned_back(session.run(None, {"input": np.ascontiguousarray(turned(x, c))[None]})[0][0], c) for c in turns
    ]
    return np.mean(found, axis=0)[(slice(None), *(slice(0, n) for n in keep))]


@pytest.mark.parametrize(
    ("dims", "shape", "sizes", "network"),
    [
        (2, (151, 203), {}, {}),
        (2, (151, 203), {"tile": (112, 112), "block": (128, 128)}, {}),
        (2, (230, 141), {"tile": (160, 112), "block": (128, 128)}, {}),
        (2, (150, 170), {"tile": (112, 112), "block": (64, 64)}, {"pooling": "blur", "top_skip": False}),
        (3, (9, 75, 101), {"tile": (13, 96, 96), "block": (9, 64, 64)}, {"filters": 2, "depth": 1}),
    ],
)
def test_tiled_equals_the_mean_over_the_turned_image(dims, shape, sizes, network, tmp_path: Path) -> None:
    package = make_package(tmp_path / "p", dims=dims, **network)
    x = micrograph(np.random.default_rng(), shape)
    axes = "zyx"[-dims:]
    expected = oracle(package, x[None], ALL)[0]
    got = vz.predict(package, x, axes=axes, tta=True, dtype="float32", device="cpu", **sizes)
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()
    plain = vz.predict(package, x, axes=axes, dtype="float32", device="cpu", **sizes)
    assert np.abs(got - plain).max() > 1e-2 * expected.std()  # random weights know no symmetry


@pytest.mark.parametrize(("mask", "turns"), BLIND.items())
def test_the_blind_mask_of_the_training_decides(mask, turns, tmp_path: Path) -> None:
    """A network that knows noise along x alone is never shown an image whose noise runs along y."""
    package = make_package(tmp_path / "p")
    rdf = yaml.safe_load((tmp_path / "p" / "rdf.yaml").read_text())
    rdf["config"]["voidzoo"]["recipe"] = {"method": "structn2v", "blind_mask": mask}
    (tmp_path / "p" / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    package = vz.open_package(tmp_path / "p")
    x = micrograph(np.random.default_rng(), (128, 128))
    plan = vz.plan(package, x, axes="yx", tta=True, device="cpu")
    assert len(plan.turns) == (2 if turns is None else len(turns))
    assert f"mean over {len(plan.turns)} turns" in str(plan)
    expected = oracle(package, x[None], plan.turns if turns is None else turns)[0]
    got = vz.predict(package, x, axes="yx", tta=True, dtype="float32", device="cpu")
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()


@pytest.mark.parametrize("mask", ["2x2", {"a": 1}, "99999x99999", "[" * 9000], ids=["even", "dict", "huge", "deep"])
def test_a_recipe_that_is_none_is_a_fault_of_the_package(mask, tmp_path: Path) -> None:
    """What stands in a package was written by anybody: a refusal in words, and no memory filled."""
    make_package(tmp_path / "p")
    rdf = yaml.safe_load((tmp_path / "p" / "rdf.yaml").read_text())
    rdf["config"]["voidzoo"]["recipe"] = {"blind_mask": mask}
    (tmp_path / "p" / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    x = micrograph(np.random.default_rng(), (128, 128))
    with pytest.raises(PackageError, match=r"config\.voidzoo\.recipe\.blind_mask"):
        vz.plan(tmp_path / "p", x, axes="yx", tta=True, device="cpu")
    vz.plan(tmp_path / "p", x, axes="yx", device="cpu")


def test_axes_that_differ_are_not_exchanged(tmp_path: Path) -> None:
    """A network that sees further along y than along x is mirrored and turned by half, never by a quarter."""
    package = make_package(tmp_path / "p", kernel=[5, 3])
    x = micrograph(np.random.default_rng(), (160, 180))
    assert vz.plan(package, x, axes="yx", tta=True, device="cpu").turns == KEEPS_SIDES
    expected = oracle(package, x[None], KEEPS_SIDES)[0]
    got = vz.predict(package, x, axes="yx", tta=True, dtype="float32", device="cpu", tile=(144, 128), block=(128, 128))
    assert np.abs(got - expected).max() <= 1e-4 * expected.std()


def test_what_has_no_mean_is_refused(tmp_path: Path) -> None:
    x = micrograph(np.random.default_rng(), (128, 128))
    stars = make_package(tmp_path / "stars", outputs=4, kinds=["distance"] * 4)
    with pytest.raises(PackageError, match="mean over turned images"):
        vz.plan(stars, x, axes="yx", tta=True, device="cpu")
    with pytest.raises(SizeError, match="--tolerance cuts halos for speed"):
        vz.plan(make_package(tmp_path / "p"), x, axes="yx", tta=True, tolerance=1e-3, device="cpu")


def test_it_is_part_of_what_a_result_is(tmp_path: Path) -> None:
    """A result begun with it is not continued without it."""
    package = make_package(tmp_path / "p")
    image = vz.open_image(micrograph(np.random.default_rng(), (128, 128)), axes="yx")
    with_turns, without = (vz.plan(package, image, tta=t, device="cpu") for t in (True, False))
    assert with_turns.identity != without.identity
    runs = [plan.seconds * plan.rate for plan in (with_turns, without)]  # voxels that the network runs on
    assert runs[0] == pytest.approx(8 * runs[1])
    assert with_turns.memory.network > without.memory.network
    vz.predict(with_turns, tmp_path / "out.ome.zarr")
    with pytest.raises(OutputError):
        vz.predict(without, tmp_path / "out.ome.zarr")
