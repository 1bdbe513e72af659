"""The eight turns of a plane, their inverses, and those that a blind mask allows."""

from __future__ import annotations

import numpy as np
import pytest

from voidzoo.zoo.blind import BlindMask
from voidzoo.zoo.dihedral import ALL, group, turned, turned_back


@pytest.mark.parametrize("shape", [(5, 5), (3, 4, 4), (2, 3, 4, 6)])
def test_turning_back_is_the_inverse(shape):
    x = np.random.default_rng().random(shape)
    for code in ALL:
        np.testing.assert_array_equal(turned_back(turned(x, code), code), x)


def test_eight_different_ones_and_closed():
    """They are a group: eight different elements, and one after another is again one of them."""
    x = np.arange(16).reshape(4, 4)
    seen = {turned(x, c).tobytes() for c in ALL}
    assert len(seen) == 8
    assert {turned(turned(x, a), b).tobytes() for a in ALL for b in ALL} == seen


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("1x9", 4), ("9x1", 4), ("3x3", 8), ("3x5", 4), ("[[0,1,0],[1,1,1],[0,1,0]]", 8),
        ("[[0,0,0,0,0],[0,0,1,0,0],[0,0,1,1,1]]", 1),
        ("[[0,1,0],[0,1,1],[0,0,0]]", 2), ("[[1,0,0],[0,1,0],[0,0,1]]", 4), ("1x17x1", 4), ("1x5x5", 8), ("5x1x1", 8),
    ],
)  # fmt: skip
def test_the_group_of_a_mask(mask, count):
    """Known answers: a line 4, a square and a symmetric cross 8, an L with equal legs 2, with unequal ones 1."""
    hidden = BlindMask.of(mask).hidden
    codes = group(hidden)
    assert len(codes) == count
    assert all(np.array_equal(turned(hidden, c), hidden) for c in codes)
    assert set(group(hidden, square=False)) <= {0, 2, 4, 6}


def test_without_a_mask():
    assert group() == ALL
    assert group(square=False) == (0, 2, 4, 6)
