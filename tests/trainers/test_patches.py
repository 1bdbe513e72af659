"""Patches come from the training part, all of it equally, and never from what is held out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from voidzoo.trainers.data import Data, raw_sample
from voidzoo.trainers.patches import Patches, validation_batches
from voidzoo.trainers.recipe import Recipe
from voidzoo.trainers.split import largest_patch, shape_of, split
from voidzoo.zoo.blind import BlindMask
from voidzoo.zoo.errors import AxesError, SizeError
from voidzoo.zoo.normalise import Normalisation
from voidzoo.zoo.open import open_image


def gen(seed):
    return torch.Generator().manual_seed(seed)


def pixels(boxes):
    """Every pixel of some boxes, as (image, sample, ...)."""
    for b in boxes:
        yield from product([b.image], range(*b.samples), *(range(*s) for s in b.space))


@given(
    samples=st.integers(1, 14),
    sides=st.one_of(st.tuples(*[st.integers(8, 40)] * 2), st.tuples(*[st.integers(4, 16)] * 3)),
    patch=st.sampled_from([4, 8, 12]),
    fraction=st.floats(0.01, 0.5),
)
@settings(max_examples=60, deadline=None)
def test_train_and_validation_share_no_pixel(samples, sides, patch, fraction):
    """Split: disjoint, both not empty; and 500 patches drawn from it touch no held-out pixel."""
    dims = len(sides)
    patches, step = (patch,) * dims, (4,) * dims
    best = largest_patch(sides, step, fraction, alone=True)
    assume(all(p <= b for p, b in zip(patches, best, strict=True)))
    parts = split([(samples, sides)], patches, step, fraction=fraction, seed=0)
    train, held = set(pixels(parts.train)), set(pixels(parts.validation))
    assert train
    assert held
    assert not train & held
    secret = torch.zeros((samples, 1, *sides))
    for _, s, *at in held:
        secret[(s, 0, *at)] = 1
    drawn = Patches([secret], parts.train, patches, gen(0)).batch(500)
    assert drawn.shape == (500, 1, *patches)
    assert not drawn.any()

    def read(_image, sample, space):
        return secret[(sample, slice(None), *(slice(*s) for s in space))]

    assert all(w.all() for w in validation_batches(read, parts.validation, patches, step, 4))


def test_whole_files_are_held_out():
    shapes = [(1, (64, 64 + 4 * i)) for i in range(20)]
    parts = split(shapes, (32, 32), (4, 4), fraction=0.1, seed=3)
    held = {b.image for b in parts.validation}
    assert len(held) == 2
    assert {b.image for b in parts.train} == set(range(20)) - held
    assert split(shapes, (32, 32), (4, 4), fraction=0.1, seed=3) == parts
    assert split(shapes, (32, 32), (4, 4), fraction=0.1, seed=4) != parts
    assert len(split(shapes[:2], (32, 32), (4, 4), fraction=0.1, seed=0).validation) == 1


def test_every_position_is_equally_likely():
    """Chi-square over all first pixels of two training boxes of two images of different size."""
    shapes = [(2, (12, 9)), (1, (8, 16)), (1, (10, 10))]
    parts = split(shapes, (4, 4), (4, 4), fraction=0.1, seed=0)
    tensors = [torch.rand(n, 1, *s) for n, s in shapes]
    image, at = Patches(tensors, parts.train, (4, 4), gen(1)).places(60_000)
    found = torch.cat([image[:, None], at], dim=1).numpy()
    _, counts = np.unique(found, axis=0, return_counts=True)
    expected = sum(
        (s[0] - 3) * (s[1] - 3) * n for i, (n, s) in enumerate(shapes) if i in {b.image for b in parts.train}
    )
    assert len(counts) == expected
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("patch", "blind"),
    [((8, 8), None), ((8, 16), None), ((2, 8, 8), None), ((8, 8), "1x5"), ((8, 8), "3x3"), ((8, 8), "[[0,1,0],[0,1,1],[0,0,0]]"),
     ((2, 8, 8), "1x5x1"), ((8, 16), "3x3"), ((8, 8), "[[0,0,0,0,0],[0,0,1,0,0],[0,0,1,1,1]]")],
)  # fmt: skip
def test_augmentation_is_the_group_that_fits(patch, blind):
    """Square patches: all 8 turns and mirrors; others: 4; under a blind mask those that keep it; never along z."""
    method = {"method": "structn2v", "blind_mask": blind} if blind else {}
    recipe = Recipe(dims=len(patch), patch=patch, depth=1, **method)
    image = torch.randperm(int(np.prod(patch))).float().reshape(1, 1, *patch)
    box = split([(1, tuple(2 * s for s in patch))] * 2, patch, (1,) * len(patch), fraction=0.1, seed=0).train[0]
    box = type(box)(0, (0, 1), tuple((0, s) for s in patch))
    drawn = Patches([image], [box], patch, gen(0), recipe.turns).batch(400)
    seen = {tuple(d.reshape(-1).tolist()) for d in drawn}
    hidden = torch.from_numpy(BlindMask.of(blind).hidden) if blind else torch.ones(len(patch) * (1,))
    allowed = set()
    for k in range(4) if patch[-1] == patch[-2] else (0, 2):
        for mirrored in (0, 1):
            lay = lambda x, k=k, m=mirrored: torch.rot90(x, k, (-2, -1)).flip(-1) if m else torch.rot90(x, k, (-2, -1))  # noqa: E731
            if lay(hidden).shape == hidden.shape and torch.equal(lay(hidden), hidden):
                allowed.add(tuple(lay(image[0]).reshape(-1).tolist()))
    assert seen == allowed
    plain = recipe.with_settings({"augment": False}).turns
    assert all(torch.equal(p, image[0]) for p in Patches([image], [box], patch, gen(0), plain).batch(5))


def test_too_small_says_the_largest_that_fits():
    for sides, patch, best in [
        ((64, 64), (64, 64), (40, 64)),
        ((40, 52), (64, 64), (40, 32)),
        ((9, 9), (8, 8), (4, 8)),
    ]:
        with pytest.raises(SizeError, match=str(list(best)).replace("[", r"\[").replace("]", r"\]")) as e:
            split([(1, sides)], patch, (4, 4), fraction=0.1, seed=0, names=["a.tif"])
        assert "a.tif" in e.value.what
        split([(1, sides)], best, (4, 4), fraction=0.1, seed=0)  # what was proposed works
    with pytest.raises(SizeError, match="too small to train on"):
        split([(1, (3, 64))], (4, 4), (4, 4), fraction=0.1, seed=0)
    with pytest.raises(SizeError, match="6 is not a multiple of 4"):
        split([(1, (64, 64))], (6, 8), (4, 4), fraction=0.1, seed=0)


@pytest.mark.parametrize(("axes", "shape"), [("tzcyx", (2, 3, 2, 6, 5)), ("czyx", (2, 4, 5, 6)), ("yx", (7, 9))])
def test_samples_of_all_axes(axes, shape):
    """Against plain numpy: 2D samples run over t then z; 3D ones over t; channels first; normalised per channel."""
    array = np.random.default_rng().integers(0, 1000, shape).astype(np.uint16)
    image = open_image(array, axes=axes)
    full = array
    source = axes
    for letter in "tczyx":
        if letter not in source:
            full, source = full[None], letter + source
    full = full.transpose([source.index(a) for a in "tzcyx"])
    t, z, c, y, x = full.shape
    n = Normalisation(tuple(float(i + 3) for i in range(c)), tuple(float(2 * i + 1) for i in range(c)))
    planes = full.reshape(t * z, c, y, x)
    np.testing.assert_array_equal(np.stack([raw_sample(image, 2, i) for i in range(t * z)]), planes)
    mean, std = (np.array(v)[:, None, None] for v in (n.mean, n.std))
    np.testing.assert_allclose(Data([image], 2, n).whole(0).numpy(), (planes - mean) / std, rtol=1e-5)
    assert shape_of(image, 2) == (t * z, (y, x))
    if "z" in axes:
        volumes = full.transpose(0, 2, 1, 3, 4)
        np.testing.assert_array_equal(np.stack([raw_sample(image, 3, i) for i in range(t)]), volumes)
    else:
        with pytest.raises(AxesError, match="no z axis"):
            shape_of(image, 3)
