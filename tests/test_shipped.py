"""The models that come with voidzoo: each proved, opens where we say, and has a card with everything that a card tells."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import voidzoo as vz
from tests.packages import micrograph
from voidzoo.export.card import make_card
from voidzoo.export.measured import Measured
from voidzoo.export.proof import Check

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
MODELS = {p.stem.rpartition("-")[0]: p for p in sorted((ROOT / "zoo" / "models").glob("*.zip"))}
PARTS = ["Training data", "Training", "Validation", "Proof", "Where it opens", "Limits", "How to run it"]

each = pytest.mark.parametrize("name", MODELS)


def test_every_recipe_has_its_model_and_its_card() -> None:
    recipes = {p.stem for p in (CARDS / "recipes").glob("*.yaml")}
    assert recipes == set(MODELS) == {p.stem for p in CARDS.glob("*.md")} - {"TEMPLATE"}
    assert len(MODELS) >= 4


@each
def test_its_card_is_that_of_the_package_and_complete(name: str) -> None:
    """Text, figures and pictures come from the zip that is shipped; nothing is left to be said."""
    package, card = vz.open_package(MODELS[name]), (CARDS / f"{name}.md").read_text(encoding="utf-8")
    assert hashlib.sha256(MODELS[name].read_bytes()).hexdigest() in card
    assert "TODO" not in card
    assert re.findall(r"^## (.*)$", card, flags=re.MULTILINE) == PARTS
    made = make_card(package, [Check("a", True, "b")], vz.verdicts(package), name)
    assert made.missing == {}
    mine, shipped = (re.sub(r"## Proof.*?(?=## Where)", "", text, flags=re.DOTALL) for text in (made.text, card))
    assert mine == shipped
    for link in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert (CARDS / link).read_bytes() == made.pictures[link]
    proof = card.split("## Proof")[1].split("## Where")[0]
    assert "FAILED" not in proof
    assert re.search(r"whole = tiled \| max difference [\d.e+-]+ std", proof)
    assert re.search(r"bioimageio.core [\d.]+ \| status passed", proof)


@each
def test_it_says_how_much_it_gains_on_what_it_has_not_seen(name: str) -> None:
    """Where there is a partner, PSNR and SSIM rise in nearly every square; else what was taken away is no signal."""
    package = vz.open_package(MODELS[name])
    recipe = yaml.safe_load((CARDS / "recipes" / f"{name}.yaml").read_text())
    found = Measured.from_json(package.ours["measured"])
    assert found.squares >= 8
    assert set(found.images).isdisjoint(i["name"] for i in package.ours["training"]["images"])
    by_name = {f.name: f for f in found.figures}
    if found.truths:
        for figure in by_name.values():
            assert figure.gain is not None
            assert figure.gain[0] > figure.gain[1] > 0
    else:
        assert abs(by_name["leak"].after[0]) < 0.2
    for entry in recipe["images"]:
        for axis, span in entry["held_out"].items():
            assert span[0] >= entry["train"][axis][1]


@each
def test_it_opens_everywhere_and_runs(name: str) -> None:
    """In all that takes volumes if it is one, and here by its path on an image whose sides are multiples of nothing."""
    package = vz.open_package(MODELS[name])
    answers = {v.consumer: v.answer for v in vz.verdicts(package)}
    expected = dict.fromkeys(("core", "ilastik", "fiji", "qupath", "biapy", "onnxruntime"), "yes") | {"careamics": "no"}
    assert answers == expected | ({"qupath": "no"} if "z" in package.axes else {})
    shape = (5, 101, 83) if "z" in package.axes else (101, 83)
    x = micrograph(np.random.default_rng(), shape, "uint8")
    result = vz.predict(package, x, axes=package.axes)
    assert result.shape == shape
    assert result.dtype == np.uint8
    assert np.corrcoef(result.ravel(), x.ravel())[0, 1] > 0.5


@pytest.mark.slow
@each
def test_its_proof_and_bioimageios_test_are_green(name: str) -> None:
    """bioimageio.core's own test of all three forms of the weights at its default tolerance, and ours of them."""
    checks = vz.check(MODELS[name])
    assert all(c.passed for c in checks)
    assert all(c.ran for c in checks)
    assert "status passed" in checks[-1].detail
