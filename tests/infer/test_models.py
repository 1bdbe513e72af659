"""Any model: packages of every kind, each equal to a whole-image run that knows nothing of tiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import voidzoo as vz
from tests.model_zoo import MODELS, Model
from voidzoo.infer.run import run_in_memory

STD = 1e-5
"""How far results may be off, in units of the output's std."""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


def predicted(model: Model, images: Mapping[str, np.ndarray], **settings: Any) -> dict[str, np.ndarray]:
    """What voidzoo makes of arrays, by output."""
    letters = model.letters
    main = vz.open_image(images[model.main], axes=spatial(letters[model.main]))
    others = {k: vz.open_image(v, axes=spatial(letters[k])) for k, v in images.items() if k != model.main}
    plan = vz.plan(model.path, main, inputs=others, device="cpu", dtype="float32", trust_code=True, **settings)
    found = run_in_memory(plan)
    ordered = {}
    for target, values in zip(plan.targets, found.values(), strict=True):
        ordered[target.port.id] = values
    return ordered


def spatial(letters: str) -> str:
    return letters.replace("i", "")


def same(found: np.ndarray, expected: np.ndarray) -> None:
    expected = expected.reshape(found.shape)
    assert np.abs(found - expected).max() <= STD * expected.std() + 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_whole(name: str, zoo: Path) -> None:
    model = MODELS[name](zoo)
    images = model.images(np.random.default_rng(1))
    found = predicted(model, images)
    for output, expected in model.oracle(images).items():
        same(found[output], expected)


@pytest.mark.parametrize("name", MODELS)
def test_tiles_and_blocks(name: str, zoo: Path) -> None:
    """An image of odd sizes, in blocks that hold no sample whole and tiles as small as is legal."""
    model = MODELS[name](zoo)
    rng = np.random.default_rng(len(name))
    grown = {a: n * 2 + int(rng.integers(3, 40)) if a in "yx" else n + 5 for a, n in model.legal.items() if a in "tzyx"}
    images = model.images(rng, grown)
    plan = plan_of(model, images)
    tile = tuple(axis.smallest_tile for axis in plan.model_axes.values())
    block = tuple(axis.step * max(1, (axis.size // 2) // axis.step) for axis in plan.model_axes.values())
    if model.unbounded:
        assert any("not exact" in note for note in plan.notes)
        return
    assert plan_of(model, images, tile=tile, block=block).n_tiles > 3
    found = predicted(model, images, tile=tile, block=block)
    for output, expected in model.oracle(images).items():
        same(found[output], expected)


def plan_of(model: Model, images: Mapping[str, np.ndarray], **settings: Any) -> vz.Plan:
    main = vz.open_image(images[model.main], axes=spatial(model.letters[model.main]))
    others = {k: vz.open_image(v, axes=spatial(model.letters[k])) for k, v in images.items() if k != model.main}
    return vz.plan(model.path, main, inputs=others, device="cpu", dtype="float32", trust_code=True, **settings)
