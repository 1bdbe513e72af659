"""Blind spots and blind masks: density, positions, windows and blindness (Krull et al. 2019, Broaddus et al. 2020)."""

from __future__ import annotations

import typing
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from voidzoo.trainers.manipulators import MANIPULATORS, Windows
from voidzoo.trainers.masking import FILL, hide, masked_loss, stratified
from voidzoo.trainers.recipe import Recipe
from voidzoo.zoo.blind import BlindMask


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


UNIFORM = ("uniform_withCP", "uniform_withoutCP")
MASKS = ("1x3", "1x9", "5x1", "3x3", "[[0,1,0],[1,1,1],[0,1,0]]", "[[0,0,0,0,0],[0,0,1,0,0],[0,0,1,1,1]]")
MASKS_3D = ("1x1x5", "1x7x1", "3x1x3", "3x3x3")


def window(shape, at, radius, out):
    """The oracle: all places within radius of `at` in a patch of `shape`, without those at the offsets `out`."""
    ranges = [range(max(0, a - radius), min(n, a + radius + 1)) for a, n in zip(at, shape, strict=True)]
    grid = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, len(shape))
    return [tuple(map(int, p)) for p in grid if tuple(int(q) - a for q, a in zip(p, at, strict=True)) not in out]


def left_out(name, blind, dims):
    """Offsets that give no replacement."""
    if blind is not None:
        return {tuple(map(int, o)) for o in blind.offsets}
    return {(0,) * dims} if name in ("uniform_withoutCP", "median", "mean") else set()


@st.composite
def cases(draw):
    """A patch's shape and a blind mask for it, or none."""
    dims = draw(st.sampled_from([2, 3]))
    shape = draw(st.tuples(*[st.integers(1, 24 if dims == 2 else 9)] * dims))
    blind = draw(st.sampled_from([None, *(MASKS if dims == 2 else MASKS_3D)]))
    return shape, None if blind is None else BlindMask.of(blind)


@pytest.mark.slow
@given(
    case=cases(),
    percent=st.floats(0.5, 50),
    radius=st.integers(1, 6),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(MANIPULATORS)),
    fill=st.sampled_from(["window", "uniform"]),
)
@settings(max_examples=200, deadline=None)
def test_what_is_hidden_and_by_what(case, percent, radius, seed, name, fill):
    """Against an oracle in plain Python: every pixel of every patch is what it should be.

    Pixels asked for hold a value of their window (or the window's statistics), without those of the blind mask;
    their neighbours in the mask one of such a window, or a random one; all others are bit-identical, and so is the batch itself.
    """
    shape, blind = case
    n = 2 * 2 * prod(shape)
    x = torch.randperm(n, generator=gen(seed)).float().reshape(2, 2, *shape) + 10  # unique, and above every filling
    before = x.clone()
    hidden, mask = hide(x, gen(seed + 1), percent=percent, radius=radius, manipulator=name, blind=blind, fill=fill)
    assert torch.equal(x, before)  # the target is the original
    out = left_out(name, blind, len(shape))
    for patch, got, asked in zip(*(a.reshape(4, *shape).numpy() for a in (x, hidden, mask)), strict=True):
        points = [tuple(map(int, p)) for p in np.argwhere(asked)]
        around = {tuple(np.add(p, o).tolist()) for p in points for o in out if any(o)} if blind is not None else set()
        filled = {p for p in around if all(0 <= q < m for q, m in zip(p, shape, strict=True))}
        for at in np.ndindex(*shape):
            if at in filled and fill == "uniform":
                assert -FILL <= got[at] <= FILL
            elif at in filled:
                by = [p for p in points if tuple(np.subtract(at, p).tolist()) in out]
                offered = [[patch[q] for q in window(shape, p, radius, out)] for p in by]
                assert any(got[at] in values for values in offered) or (-FILL <= got[at] <= FILL and not all(offered))
            elif asked[at]:
                values = np.array([patch[p] for p in window(shape, at, radius, out)])
                if not values.size:
                    assert -FILL <= got[at] <= FILL
                elif name in UNIFORM:
                    assert got[at] in values
                elif name == "normal_fitted":
                    assert abs(got[at] - values.mean()) <= 7 * values.std() + 1e-3
                else:
                    assert got[at] == pytest.approx(getattr(np, name)(values), rel=1e-5)
            else:
                assert got[at] == patch[at]


@pytest.mark.parametrize("blind", [None, "1x9", "3x3", "[[0,0,0,0,0],[0,0,1,0,0],[0,0,1,1,1]]"])
@pytest.mark.parametrize("name", UNIFORM)
@pytest.mark.parametrize("corner", [(0, 0), (0, 9), (3, 19), (10, 10)])
def test_replacements_are_uniform_over_the_cropped_window(name, corner, blind):
    """Chi-square over the window of a pixel at, near and far from a corner: cropped, not shifted and not clamped."""
    shape, radius = (20, 20), 5
    blind = blind and BlindMask.of(blind)
    values = torch.arange(prod(shape)).float().reshape(1, -1).expand(60_000, -1)
    points = torch.tensor(corner).reshape(1, 1, 2).expand(60_000, 1, 2)
    offsets = None if blind is None else torch.from_numpy(blind.offsets)
    got = MANIPULATORS[name](Windows(values, points, shape, radius, offsets), gen(11)).long().numpy().ravel()
    allowed = [y * 20 + x for y, x in window(shape, corner, radius, left_out(name, blind, 2))]
    counts = np.bincount(got, minlength=400)
    assert counts.sum() == counts[allowed].sum()
    assert stats.chisquare(counts[allowed]).pvalue > 1e-3


def test_normal_fitted_follows_its_window():
    """Mean and population std of the window, the centre included; without the pixels of a blind mask where there is one."""
    patch = torch.randn(1, 400, generator=gen(3))
    points = torch.tensor([10, 3]).reshape(1, 1, 2).expand(1, 50_000, 2)
    for blind in (None, BlindMask.of("1x5")):
        offsets = None if blind is None else torch.from_numpy(blind.offsets)
        got = MANIPULATORS["normal_fitted"](Windows(patch, points, (20, 20), 5, offsets), gen(4)).numpy().ravel()
        places = window((20, 20), (10, 3), 5, left_out("normal_fitted", blind, 2))
        values = patch.reshape(20, 20).numpy()[tuple(np.transpose(places))]
        assert stats.kstest(got, "norm", args=(values.mean(), values.std())).pvalue > 1e-3


def test_hidden_neighbours_are_uniform_and_independent():
    """From -2 to 2 whatever the pixels are, and no two of them related."""
    x = torch.full((1, 1, 512, 512), 7.0)
    blind = BlindMask.of("1x5")
    hidden, mask = hide(x, gen(8), percent=1.0, blind=blind, manipulator="uniform_withoutCP", fill="uniform")
    filled = hidden[(hidden != 7) & ~mask]
    assert stats.kstest(filled.numpy(), "uniform", args=(-2, 4)).pvalue > 1e-3
    pairs = (hidden[..., :-1] != 7) & (hidden[..., 1:] != 7)
    left, right = hidden[..., :-1][pairs], hidden[..., 1:][pairs]
    assert abs(float(np.corrcoef(left, right)[0, 1])) < 4 / np.sqrt(len(left))


@pytest.mark.parametrize("fill", ["window", "uniform"])
@pytest.mark.parametrize("blind", ["1x9", "5x5", "1x17x1"])
def test_nothing_under_a_blind_mask_reaches_the_network(blind, fill):
    """One hidden pixel a patch: whatever lies under its mask may change, the input of the network stays bit-identical."""
    blind = BlindMask.of(blind)
    shape = (48, 40) if blind.dims == 2 else (9, 30, 24)
    x = torch.randn(1, 1, *shape, generator=gen(1))
    for name in MANIPULATORS:
        for seed in range(40):
            how = {"percent": 100 / prod(shape), "manipulator": name, "blind": blind, "fill": fill}
            hidden, mask = hide(x, gen(seed), **how)
            if int(mask.sum()) != 1:
                continue
            at = mask[0, 0].nonzero()[0]
            under = at + torch.from_numpy(blind.offsets)
            under = under[((under >= 0) & (under < torch.tensor(shape))).all(dim=1)]
            other = x.clone()
            other[0, 0][tuple(under.T)] += 100
            again, where = hide(other, gen(seed), **how)
            assert torch.equal(where, mask)
            assert torch.equal(again, hidden)


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
    """sum(M * |y - t|^p) / sum(M) over the whole batch, and 0 (not NaN) where nothing is hidden."""
    rng = np.random.default_rng()
    y, t = rng.normal(size=(2, 3, 2, 9, 7)).astype(np.float32)
    m = rng.random((3, 2, 9, 7)) < 0.2
    for kind, power in (("mse", 2), ("mae", 1)):
        expected = (m * abs(y.astype(float) - t) ** power).sum() / m.sum()
        got = masked_loss(torch.from_numpy(y), torch.from_numpy(t), torch.from_numpy(m), kind)
        assert float(got) == pytest.approx(expected, rel=1e-5)
    assert float(masked_loss(torch.ones(4), torch.zeros(4), torch.zeros(4, dtype=torch.bool))) == 0


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
    assert float(masked_loss(hidden, x, mask)) == pytest.approx(2.0, rel=0.05)


def test_the_recipe_knows_every_manipulator():
    annotation = Recipe.model_fields["manipulator"].annotation
    assert set(typing.get_args(annotation)) == set(MANIPULATORS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("2x9", "not odd"), ([[1, 1], [1]], "unequal lengths"), ("1x1", "hides no neighbour"), ("[[0,2,0]]", "other values"),
        ("nine", "neither sides nor lists"), ([1, 1, 1], "list of lists"), ("1x3x3x3", "neither"), ("1x999", "reaches farther"),
    ],
)  # fmt: skip
def test_impossible_blind_masks_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        BlindMask.of(given)


def test_blind_masks_in_words_and_lists():
    """Sides, lists, JSON and arrays are the same mask; empty edges go, the centre is always hidden."""
    line = BlindMask.of("1x9")
    assert line.hidden.shape == (1, 9)
    assert str(line) == "1x9"
    assert line.axes == "x"
    padded = BlindMask.of([[0] * 11, [0, *[1] * 4, 0, *[1] * 4, 0], [0] * 11])
    assert np.array_equal(padded.hidden, line.hidden)
    cross = BlindMask.of("[[0,1,0],[1,0,1],[0,1,0]]")
    assert str(cross) == "[[0,1,0],[1,1,1],[0,1,0]]"
    assert cross.offsets.tolist() == [[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0]]
    assert BlindMask.of("1x17x1").axes == "y"
