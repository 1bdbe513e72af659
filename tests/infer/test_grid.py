"""Tiles cover every pixel once, lie on the model's grid, and keep nothing that a cut has spoilt."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voidzoo.infer.grid import Axis, Span, blocks
from voidzoo.infer.layout import HANDY, block_shape, choose_tile, chunk_shape, spared_tile, tiled_length
from voidzoo.zoo.errors import SizeError

axes = st.builds(
    Axis,
    size=st.integers(1, 900),
    step=st.sampled_from([1, 2, 3, 4, 8, 16, 32]),
    minimum=st.integers(1, 120),
    halo=st.integers(0, 60),
    lead=st.sampled_from([0, 0, 0, 1, 6, 20]),
)


@settings(max_examples=1500, deadline=None)
@given(axes, st.integers(1, 40), st.integers(0, 300))
def test_tiles_are_right_along_an_axis(axis: Axis, block_steps: int, more: int) -> None:
    check(axis, block_steps * axis.step, axis.smallest_tile + more)


@settings(max_examples=500, deadline=None)
@given(axes, st.integers(1, 40), st.integers(1, 50))
def test_tiles_of_a_fixed_size(axis: Axis, block_steps: int, more: int) -> None:
    fixed = replace(axis, minimum=axis.margin + axis.spoilt + axis.step * more, fixed=True)
    check(fixed, block_steps * axis.step, fixed.minimum)


def check(axis: Axis, size: int, tile: int) -> None:
    assert axis.extended >= max(axis.size + 2 * axis.lead, axis.minimum)
    assert (axis.extended - axis.minimum) % axis.step == 0
    end = axis.lead + axis.size
    for block in blocks(axis.size, size):
        region = axis.read_for(block)
        assert 0 <= region.start < region.stop <= axis.extended
        assert region.start % axis.step == (region.size - axis.minimum) % axis.step == 0
        if region.stop > end and region.start > 0:  # the mirrored end must be in what is read
            assert end - region.start >= region.stop - end
        if region.start == 0:  # and so the mirrored start
            assert region.stop >= min(2 * axis.lead, axis.extended)
        position = block.start
        for t in axis.tiles(block, tile):
            assert t.keep.start == position
            position = t.keep.stop
            assert region.start <= t.read.start
            assert t.read.stop <= region.stop
            assert t.read.start % axis.step == (t.read.size - axis.minimum) % axis.step == 0
            assert axis.minimum <= t.read.size <= tile
            assert not axis.fixed or t.read.size == axis.minimum
            first, last = t.keep.start + axis.lead, t.keep.stop + axis.lead
            assert first - t.read.start >= (axis.lead if t.read.start == 0 else axis.spoilt)
            assert t.read.stop - last >= (axis.lead if t.read.stop == axis.extended else axis.spoilt)
        assert position == block.stop


def test_whole_axis_has_no_halo() -> None:
    axis = Axis(1024, step=4, minimum=64, halo=24)
    (tile,) = axis.tiles(Span(0, 1024), 1024)
    assert tile.read == tile.keep == Span(0, 1024)


def test_two_tiles_share_the_halo() -> None:
    axis = Axis(1000, step=4, minimum=64, halo=24)
    first, second = axis.tiles(Span(0, 1000), 524)
    assert (first.read, second.read) == (Span(0, 524), Span(476, 1000))
    assert first.keep.stop == second.keep.start == 500


@settings(max_examples=150, deadline=None)
@given(
    st.lists(axes, min_size=2, max_size=3),
    st.integers(10**3, 10**7),
    st.integers(1, 6),
)
def test_chosen_shapes_keep_their_promises(along: list[Axis], limit: int, planes: int) -> None:
    letters = "zyx"[-len(along) :]
    model = dict(zip(letters, along, strict=True))
    sizes = {"t": planes, **{a: axis.size for a, axis in model.items()}}
    chunk = chunk_shape("t" + letters, model, sizes)
    block = block_shape("t" + letters, model, sizes, chunk, limit)
    for a, axis in model.items():
        assert block[a] == axis.size or block[a] % chunk[a] == 0, "no two blocks write one chunk"
        assert chunk[a] == axis.size or chunk[a] % axis.step == 0
    room = max(limit, 1)
    smallest = 1
    for a, axis in model.items():
        smallest *= min(axis.smallest_tile, max(axis.read_for(s).size for s in blocks(axis.size, block[a])))
    if smallest <= room:
        tile = choose_tile(model, block, room).tile
        used = 1
        for n in tile.values():
            used *= n
        assert used <= room
        for a, axis in model.items():
            assert tiled_length(axis, block[a], tile[a]) == sum(
                t.read.size for span in blocks(axis.size, block[a]) for t in axis.tiles(span, tile[a])
            )


@settings(max_examples=150, deadline=None)
@given(st.lists(axes, min_size=2, max_size=3), st.integers(10**3, 10**9), st.floats(1, 1.2))
def test_a_spared_tile_is_much_smaller_and_costs_no_more_than_was_said(
    along: list[Axis], room: int, more: float
) -> None:
    along = [replace(axis, size=axis.size * 8) for axis in along]
    model = dict(zip("zyx"[-len(along) :], along, strict=True))
    block = {a: axis.size for a, axis in model.items()}
    try:
        tile = choose_tile(model, block, room).tile
    except SizeError:
        return
    spared = spared_tile(model, block, tile, more)
    if spared != tile:
        assert HANDY <= prod(spared.values()) <= prod(tile.values()) // 2
    run, before = (prod(tiled_length(axis, block[a], t[a]) for a, axis in model.items()) for t in (spared, tile))
    assert run <= more * before


@pytest.mark.parametrize(("halo", "more", "side"), [(0, 1, 512), (2, 1.015, 515), (24, 1.015, 2048), (24, 1.05, 1048)])
def test_what_is_spared_depends_on_the_halo(halo: int, more: float, side: int) -> None:
    """Known answers: two tiles of half a plane and a halo, four of a quarter."""
    model = {a: Axis(2048, step=4 if halo == 24 else 1, minimum=16, halo=halo) for a in "yx"}
    whole = {"y": 2048, "x": 2048}
    assert choose_tile(model, whole, 2**25).tile == whole
    spared = spared_tile(model, whole, whole, more)
    assert prod(spared.values()) == side**2
