"""A recipe is refused when it is made, in words that say what is legal; and it goes through YAML unchanged."""

from __future__ import annotations

import pytest

from voidzoo.trainers.recipe import Recipe
from voidzoo.zoo.errors import AxesError, RecipeError


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epoch": 3}, r"no setting 'epoch' \(did you mean epochs\?\)"),
        ({"epochs": 0}, "epochs: 0; it must be a whole number from 1"),
        ({"epochs": "many"}, "epochs: 'many'; it must be a whole number from 1"),
        ({"batch": 2.5}, "batch: 2.5; it must be a whole number from 1"),
        ({"learning_rate": -1}, "learning_rate: -1; it must be a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: nan; it must be a number above 0"),
        ({"dims": 4}, "dims: 4; it must be 2 or 3"),
        ({"method": "n3v"}, "method: 'n3v'; it must be n2v"),
        ({"manipulator": "median"}, "must be uniform_withCP or uniform_withoutCP"),
        ({"patch": [64, 66]}, "patch: 66 is not a multiple of 4: use 64 or 68"),
        ({"patch": [2, 64]}, "patch: 2 is not a multiple of 4: use 4"),
        ({"patch": [64, "a"]}, "patch: 'a' is not a whole number"),
        ({"patch": [16, 64, 64]}, "patch: has 3 numbers for 2 axes"),
        ({"dims": 3, "patch": [64, 64]}, "patch: has 2 numbers for 3 axes"),
        ({"kernel": [4, 3]}, "kernel: not possible; it must be odd whole numbers"),
        ({"pool": [4, 2]}, "pool: not possible; it must be 1 or 2"),
        ({"mask_percent": 90}, "above 0, at most 50"),
        ({"seed": -1}, "seed: -1; it must be a whole number from 0"),
        ({"augment": "perhaps"}, "augment: 'perhaps'; it must be true or false"),
    ],
)
def test_refusals(settings, text):
    for make in (lambda: Recipe(**settings), lambda: Recipe.make(settings), lambda: Recipe().with_settings(settings)):
        with pytest.raises(RecipeError, match=text):
            make()


def test_yaml_round_trip_with_comments(tmp_path):
    recipe = Recipe(dims=3, batch=3, learning_rate=2.5e-5, pool=(1, 2, 2), residual=True, depth=1)
    text = recipe.to_yaml()
    assert all("  # " in line for line in text.splitlines()[1:])
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert Recipe.from_yaml(path) == recipe


def test_yaml_refusals(tmp_path):
    path = tmp_path / "r.yaml"
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.from_yaml(path)
    path.write_text("epochs: [1")
    with pytest.raises(RecipeError, match="is not YAML"):
        Recipe.from_yaml(path)
    path.write_text("hello")
    with pytest.raises(RecipeError, match="is no recipe"):
        Recipe.from_yaml(path)
    path.write_text("epochs: 3\nlearnig_rate: 4e-4\n")
    with pytest.raises(RecipeError, match="did you mean learning_rate"):
        Recipe.from_yaml(path)
    path.write_text("epochs: 3\nlearning_rate: 4e-4\n")
    assert Recipe.from_yaml(path).learning_rate == 4e-4


def test_numbers_spread_over_the_axes():
    assert Recipe(kernel=5).kernel == (5, 5)
    assert Recipe(dims=3).pool == (1, 2, 2)
    assert Recipe(dims=3, pool=2).pool == (1, 2, 2)
    assert Recipe(dims=3, patch=32).patch == (32, 32, 32)
    assert Recipe(dims=3).step == (1, 4, 4)


def test_guesses(make_image):
    """Planes are 2D, deep stacks 3D, shallow ones 2D; the patch shrinks with the image; overrides win."""
    assert Recipe.n2v(make_image()).dims == 2
    assert Recipe.n2v(make_image(shape=(3, 128, 128), axes="zyx")).dims == 2
    deep = Recipe.n2v(make_image(shape=(10, 96, 96), axes="zyx"))
    assert (deep.dims, deep.patch) == (3, (10, 64, 64))
    assert Recipe.n2v(make_image(shape=(40, 52))).patch == (40, 32)
    assert Recipe.n2v(make_image(shape=(40, 52)), depth=1, epochs=7).epochs == 7
    assert Recipe.n2v(make_image(), patch=(32, 32)).patch == (32, 32)
    with pytest.raises(AxesError, match="has no z axis"):
        Recipe.n2v(make_image(), dims=3)
