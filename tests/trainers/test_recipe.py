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
        ({"method": "n3v"}, "method: 'n3v'; it must be n2v, n2v2, structn2v or care"),
        ({"manipulator": "mode"}, "must be uniform_withCP, uniform_withoutCP, median, mean or normal_fitted"),
        ({"method": "structn2v"}, r"blind_mask: structn2v needs one \(`voidzoo noise IMAGE` proposes one\)"),
        ({"blind_mask": "1x9"}, "blind_mask: n2v hides single pixels"),
        ({"method": "structn2v", "blind_mask": "2x9"}, "blind_mask: its sides 2 x 9 are not odd"),
        ({"method": "structn2v", "blind_mask": [[0, 2, 0]]}, "blind_mask: it holds other values than 0 and 1"),
        ({"method": "structn2v", "blind_mask": "1x1x5"}, "blind_mask: has 3 axes, the network 2"),
        ({"method": "structn2v", "blind_mask": "1x99"}, "blind_mask: 1x99 is larger than a patch"),
        ({"pooling": "mean"}, "pooling: 'mean'; it must be max or blur"),
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


def test_methods_differ_where_the_papers_do(make_image):
    n2v2 = Recipe.guess("n2v2", make_image())
    assert (n2v2.pooling, n2v2.top_skip, n2v2.manipulator, n2v2.residual) == ("blur", False, "median", False)
    struct = Recipe.guess("structn2v", make_image(), blind_mask="1x9")
    assert struct.blind_mask == [[1] * 9]
    assert len(struct.turns) == 4
    assert len(Recipe.guess("n2v", make_image()).turns) == 8
    assert Recipe.guess("structn2v", make_image(shape=(5, 96, 96), axes="zyx"), blind_mask="1x5x1").dims == 3
    assert Recipe.guess("n2v2", make_image(), manipulator="mean").manipulator == "mean"
    with pytest.raises(RecipeError, match=r"no method 'structn2w' \(did you mean structn2v\?\)"):
        Recipe.guess("structn2w", make_image())


def test_blind_masks_survive_yaml(tmp_path, make_image):
    recipe = Recipe.guess("structn2v", make_image(), blind_mask="[[0,1,0],[1,1,1],[0,1,0]]")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_yaml(tmp_path / "r.yaml") == recipe


def test_guesses(make_image):
    """Planes are 2D, deep stacks 3D, shallow ones 2D; the patch shrinks with the image; overrides win."""
    assert Recipe.guess("n2v", make_image()).dims == 2
    assert Recipe.guess("n2v", make_image(shape=(3, 128, 128), axes="zyx")).dims == 2
    deep = Recipe.guess("n2v", make_image(shape=(10, 96, 96), axes="zyx"))
    assert (deep.dims, deep.patch) == (3, (10, 64, 64))
    assert Recipe.guess("n2v", make_image(shape=(40, 52))).patch == (40, 32)
    assert Recipe.guess("n2v", make_image(shape=(40, 52)), depth=1, epochs=7).epochs == 7
    assert Recipe.guess("n2v", make_image(), patch=(32, 32)).patch == (32, 32)
    with pytest.raises(AxesError, match="has no z axis"):
        Recipe.guess("n2v", make_image(), dims=3)
