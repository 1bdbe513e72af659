"""Training on more than memory holds: the pool draws from everything alike, can be resumed, and keeps to its room."""

from __future__ import annotations

import subprocess
import sys
import types
from math import prod

import numpy as np
import psutil
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from voidzoo.trainers import EpochDone, Recipe, load_run, train
from voidzoo.trainers.data import Data
from voidzoo.trainers.pool import BEING_READ, SLOTS, Pool, _span
from voidzoo.trainers.split import Box
from voidzoo.zoo.errors import ResourceError
from voidzoo.zoo.normalise import Normalisation
from voidzoo.zoo.open import open_image


def gen(seed):
    return torch.Generator().manual_seed(seed)


def numbered(*shapes):
    """Images (planes, y, x) in which each pixel says where it is, and the data of them."""
    images, first = [], 0
    for shape in shapes:
        images.append(open_image(np.arange(first, first + prod(shape), dtype=np.float32).reshape(shape), axes="zyx"))
        first += prod(shape)
    return Data(images, 2, Normalisation((0.0,), (1.0,)))


BOXES = [Box(0, (0, 2), ((0, 12), (0, 9))), Box(1, (0, 1), ((2, 10), (0, 16))), Box(1, (1, 3), ((0, 10), (4, 16)))]


@given(low=st.integers(0, 50), firsts=st.integers(1, 400), side=st.integers(4, 120))
@settings(max_examples=200, deadline=None)
def test_each_first_pixel_belongs_to_one_part(low, firsts, side):
    """Parts along an axis: no larger than they may be, and the cells of first pixels that they stand for tile the axis."""
    patch = 4
    high = low + firsts + patch - 1
    parts = [_span(c, low, high, side, patch) for c in range(low, low + firsts)]
    cells = dict.fromkeys(parts)
    covered = [c for start, stop in cells for c in range(start, stop - patch + 1)]
    assert covered == list(range(low, low + firsts))
    assert all(start <= c <= stop - patch for c, (start, stop) in zip(range(low, low + firsts), parts, strict=True))
    assert all(stop - start <= max(side, patch) and stop <= high for start, stop in cells)


def test_every_position_is_equally_likely():
    """Chi-square over all positions of three boxes of two images, drawn from a pool that holds a few of them at a time."""
    data = numbered((2, 12, 9), (3, 10, 16))
    pool = Pool(data, BOXES, (4, 4), gen(1), room=4 * (SLOTS + BEING_READ) * 70, batch=1, seed=3)
    assert pool.sides == (8, 8)
    assert pool.slots >= SLOTS
    counts: dict[float, int] = {}
    expected = sum((b.samples[1] - b.samples[0]) * prod(s - 3 for s in b.sides) for b in BOXES)
    per_step = 4
    pool.every = 1  # a new part in each step: the draws are then nearly independent
    for _ in range(60 * expected // per_step):
        for value in pool.batch(per_step)[:, 0, 0, 0].tolist():
            counts[value] = counts.get(value, 0) + 1
    pool.close()
    assert len(counts) == expected
    found = np.array(list(counts.values()))
    # four draws of a step come from few parts, so that counts vary a little more than those of independent draws
    assert stats.chisquare(found).statistic < 1.5 * expected
    assert found.min() > 0.4 * found.mean()


def test_patches_are_those_of_the_image():
    """Each patch is a window of the image that it says it is, wherever its part was cut."""
    data = numbered((2, 12, 9), (3, 10, 16))
    pool = Pool(data, BOXES, (4, 4), gen(1), room=20_000, batch=2, seed=0)
    wholes = [data.whole(i) for i in range(2)]
    for patch in torch.cat([pool.batch(8) for _ in range(40)])[:, 0]:
        first = int(patch[0, 0])
        image = 0 if first < 216 else 1
        where = np.unravel_index(first - 216 * image, wholes[image][:, 0].shape)
        s, y, x = map(int, where)
        assert torch.equal(patch, wholes[image][s, 0, y : y + 4, x : x + 4])
        assert any(
            b.image == image and b.samples[0] <= s < b.samples[1]
            and all(lo <= c <= hi - 4 for c, (lo, hi) in zip((y, x), b.space, strict=True)) for b in BOXES
        )  # fmt: skip
    pool.close()


def test_a_pool_goes_on_where_it_was():
    """At any step the pool is what it would have been: the same patches with the same generator."""
    data = numbered((4, 60, 60))
    boxes = [Box(0, (0, 4), ((0, 60), (0, 60)))]
    how = {"room": 60_000, "batch": 4, "seed": 7}
    straight = Pool(data, boxes, (8, 8), gen(0), **how)
    for _ in range(50):
        straight.batch(4)
    resumed = Pool(data, boxes, (8, 8), gen(0), **how)
    resumed.generator.set_state(straight.generator.get_state())
    resumed.step = straight.step
    for _ in range(30):
        assert torch.equal(straight.batch(4), resumed.batch(4))
    assert straight.every < 50  # parts were exchanged
    straight.close()
    resumed.close()


def test_too_little_room_is_refused():
    with pytest.raises(ResourceError, match="left for the images"):
        Pool(numbered((2, 12, 9)), BOXES[:1], (4, 4), gen(0), room=300, batch=1, seed=0)


class StopHere(Exception):  # noqa: N818
    pass


def free_memory(monkeypatch, nbytes):
    """What the system says is free."""
    system = types.SimpleNamespace(available=nbytes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: system)


def stop_after(epoch):
    def watch(event):
        if isinstance(event, EpochDone) and event.epoch == epoch:
            raise StopHere

    return watch


def test_training_from_a_pool_resumes_bit_equal(make_image, tiny, tmp_path, monkeypatch):
    """Images that do not fit: a stop and a resume give the weights of an undisturbed training, however much is free
    on the second day; the pool that it was begun with is part of the run.
    """
    images = [make_image(i, (6, 128, 120), "zyx") for i in range(3)]
    recipe = Recipe.guess("n2v", images, **(tiny | {"epochs": 4, "steps": 12}))
    events = []
    free_memory(monkeypatch, 400_000)
    straight = train(recipe, images, tmp_path / "straight", watch=events.append, device="cpu")
    assert events[0].image_bytes == 4 * 3 * 6 * 128 * 120
    assert 150_000 < events[0].pool_bytes <= 200_000
    with pytest.raises(StopHere):
        train(recipe, images, tmp_path / "broken", watch=stop_after(2), device="cpu")
    free_memory(monkeypatch, 400_000_000)  # now everything would fit
    resumed = train(recipe, images, tmp_path / "broken", device="cpu")
    for which in ("best", "last"):
        a, b = (r.network(which).state_dict() for r in (straight, resumed))
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert load_run(tmp_path / "broken").losses[-1].val_loss == straight.losses[-1].val_loss
    assert resumed.info["intensity_range"] == straight.info["intensity_range"]
    low, high = straight.info["intensity_range"][0]
    assert 0 < low < 300 < high < 1200
    assert train(recipe, images, tmp_path / "whole", device="cpu").info["pool_bytes"] is None


def test_a_training_that_held_everything_is_not_continued_with_less(make_image, tiny, tmp_path, monkeypatch):
    images = [make_image(i, (6, 128, 120), "zyx") for i in range(3)]
    recipe = Recipe.guess("n2v", images, **tiny)
    with pytest.raises(StopHere):
        train(recipe, images, tmp_path / "run", watch=stop_after(1), device="cpu")
    free_memory(monkeypatch, 400_000)
    with pytest.raises(ResourceError, match="all of which this training was begun with"):
        train(recipe, images, tmp_path / "run", device="cpu")


LIMITED = """
import sys
from voidzoo.cli import main
from voidzoo.zoo.memory import peak_memory
code = main(["train", "n2v", sys.argv[1], "--axes", "tyx", "-o", sys.argv[2], "--memory", "700MB",
             "--set", "epochs=2", "--set", "steps=20", "--set", "filters=16", "-q"])
print(code, peak_memory())
"""


@pytest.mark.slow
def test_a_real_training_keeps_to_its_memory(tmp_path):
    """1.6 GB of float32 in a process of its own with --memory 700MB: never more than 15 % above it."""
    rng = np.random.default_rng()
    with tifffile.TiffWriter(tmp_path / "big.tif", bigtiff=True) as file:
        for _ in range(24):
            plane = rng.integers(100, 900, (4096, 4096), np.uint16)
            file.write(plane, metadata=None, tile=(512, 512), photometric="minisblack")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "big.tif"), str(tmp_path / "run")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (tmp_path / "big.tif").unlink()
    code, peak = map(int, done.stdout.split()[-2:])
    assert code == 0, done.stderr
    assert load_run(tmp_path / "run").info["pool_bytes"] > 0
    assert peak <= 1.15 * 700e6
