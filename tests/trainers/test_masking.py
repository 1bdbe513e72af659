"""Blind spots: density, positions, windows and blindness (Krull et al. 2019)."""

from __future__ import annotations

import typing
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from voidzoo.trainers.masking import MANIPULATORS, hide, masked_mse, stratified
from voidzoo.trainers.recipe import Recipe


def gen(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("shape", "percent"), [((64, 64), 0.2), ((64, 64), 1.5), ((50, 37), 2.0), ((16, 32, 48), 0.2), ((7, 30, 21), 3.0)]
)
def test_density_is_exact(shape, percent):
    """The mean count over 2000 draws is percent of the pixels within 2 %, also where no box divides the patch."""
    draws = 2000
    _, mask = hide(torch.randn(draws, 1, *shape), gen(3), percent=percent)
    expected = percent / 100 * prod(shape)
    assert mask.sum().item() / draws == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("shape", [(40, 40), (6, 20, 26)])
def test_positions_are_uniform(shape):
    """No position is preferred: chi-square over all positions of 40,000 patches."""
    counts = torch.zeros(shape)
    for seed in range(4):
        _, mask = hide(torch.zeros(10_000, 1, *shape) + 1, gen(seed), percent=1.0, radius=1)
        counts += mask.sum(dim=(0, 1))
    assert stats.chisquare(counts.numpy().ravel()).pvalue > 1e-3


@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 14)] * 3)),
    percent=st.floats(0.1, 50),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=80, deadline=None)
def test_one_point_a_box(shape, percent, seed):
    """Every box gives exactly one point, which lies in that box; what is hidden is one point a box at most."""
    points, inside = stratified(3, shape, percent, gen(seed))
    side = (100 / percent) ** (1 / len(shape))
    grid = [int(np.ceil(n / side)) for n in shape]
    assert points.shape == (3, prod(grid), len(shape))
    box = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing="ij"), -1).reshape(1, -1, len(shape))
    found = points.numpy()
    low, high = np.floor(box * side), np.ceil((box + 1) * side)
    ok = ((found >= low - 1e-3) & (found <= high)).all(axis=2)
    assert ok[inside.numpy()].all()
    _, mask = hide(torch.rand(3, 1, *shape), gen(seed), percent=percent)
    assert (mask.sum(dim=tuple(range(1, mask.ndim))) <= prod(grid)).all()


@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 24)] * 2), st.tuples(*[st.integers(1, 9)] * 3)),
    percent=st.floats(0.5, 50),
    radius=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(MANIPULATORS)),
)
@settings(max_examples=120, deadline=None)
def test_replacements_come_from_the_window(shape, percent, radius, seed, name):
    """With unique values: unselected pixels are bit-identical, hidden ones hold a value of their cropped window."""
    n = 2 * 2 * prod(shape)
    x = torch.randperm(n, generator=gen(seed)).float().reshape(2, 2, *shape)
    before = x.clone()
    hidden, mask = hide(x, gen(seed + 1), percent=percent, radius=radius, manipulator=name)
    assert torch.equal(x, before)  # the target is the original
    assert torch.equal(hidden[~mask], x[~mask])
    place = {float(v): i for i, v in enumerate(x.reshape(-1).tolist())}
    for at in mask.nonzero().tolist():
        source = np.unravel_index(place[float(hidden[tuple(at)])], x.shape)
        assert tuple(source[:2]) == tuple(at[:2])  # same patch, same channel
        assert all(abs(int(s) - a) <= radius for s, a in zip(source[2:], at[2:], strict=True))
        if name == "uniform_withoutCP" and prod(shape) > 1:
            assert tuple(map(int, source)) != tuple(at)


@pytest.mark.parametrize("name", sorted(MANIPULATORS))
@pytest.mark.parametrize("corner", [(0, 0), (0, 9), (3, 19)])
def test_replacements_are_uniform_over_the_cropped_window(name, corner):
    """Chi-square over the window of a pixel at and near a corner: cropped, not shifted and not clamped."""
    shape, radius = (20, 20), 5
    values = torch.arange(prod(shape)).float().reshape(1, -1).expand(60_000, -1)
    points = torch.tensor(corner).reshape(1, 1, 2).expand(60_000, 1, 2)
    got = MANIPULATORS[name](values, points, shape, radius, gen(11)).long().numpy().ravel()
    allowed = [
        y * 20 + x
        for y in range(max(0, corner[0] - 5), min(20, corner[0] + 6))
        for x in range(max(0, corner[1] - 5), min(20, corner[1] + 6))
        if name == "uniform_withCP" or (y, x) != corner
    ]
    counts = np.bincount(got, minlength=400)
    assert counts.sum() == counts[allowed].sum()
    assert stats.chisquare(counts[allowed]).pvalue > 1e-3


def test_batch_items_and_channels_have_their_own_pixels():
    _, mask = hide(torch.randn(3, 2, 64, 64), gen(0), percent=2)
    flat = mask.reshape(6, -1)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(6) for j in range(i))


def test_same_generator_state_same_mask():
    x = torch.randn(2, 1, 48, 48)
    a, b = hide(x, gen(5), percent=20), hide(x, gen(5), percent=20)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(a[1], hide(x, gen(6), percent=20)[1])


def test_masked_loss_against_numpy():
    """sum(M * (y - t)^2) / sum(M) over the whole batch, and 0 (not NaN) where nothing is hidden."""
    rng = np.random.default_rng()
    y, t = rng.normal(size=(2, 3, 2, 9, 7)).astype(np.float32)
    m = rng.random((3, 2, 9, 7)) < 0.2
    expected = (m * (y.astype(float) - t) ** 2).sum() / m.sum()
    got = masked_mse(torch.from_numpy(y), torch.from_numpy(t), torch.from_numpy(m))
    assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(masked_mse(torch.ones(4), torch.zeros(4), torch.zeros(4, dtype=torch.bool))) == 0


def test_the_network_is_blind_to_the_hidden_values():
    """The gradient of the output with respect to the original values at hidden pixels is zero."""
    x = torch.randn(2, 1, 32, 32, requires_grad=True)
    hidden, mask = hide(x, gen(2), percent=0.5, manipulator="uniform_withoutCP")
    torch.nn.functional.avg_pool2d(hidden, 3, 1, 1).square().sum().backward()
    taken = x.grad[mask]
    other = hide(x.detach() + mask * 100.0, gen(2), percent=0.5, manipulator="uniform_withoutCP")[0]
    unread = torch.isclose(other, hidden.detach()).reshape(2, -1).all(dim=1)  # no hidden pixel was another's source
    assert unread.any()
    assert (taken[mask.nonzero()[:, 0].apply_(lambda b: int(unread[b])).bool()] == 0).all()


def test_copying_the_input_scores_twice_the_variance():
    """On white noise an identity network sees independent replacements: E (a - b)^2 = 2 var."""
    x = torch.randn(64, 1, 64, 64, generator=gen(1))
    hidden, mask = hide(x, gen(2), percent=2, manipulator="uniform_withoutCP")
    assert float(masked_mse(hidden, x, mask)) == pytest.approx(2.0, rel=0.05)


def test_the_recipe_knows_every_manipulator():
    annotation = Recipe.model_fields["manipulator"].annotation
    assert set(typing.get_args(annotation)) == set(MANIPULATORS)
