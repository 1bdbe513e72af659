"""Overlap tables and matchings against brute force, the numbers of the papers' code, and stardist's own matching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from tests.export.environments import make_environment, told
from voidzoo.zoo.errors import DtypeError, RecipeError, SizeError, ValuesError
from voidzoo.zoo.evaluation.matching import Matching, match
from voidzoo.zoo.evaluation.objects import Objects
from voidzoo.zoo.evaluation.overlaps import Counting, Overlaps

ROOT = Path(__file__).resolve().parents[2]
IDS = (1, 2, 255, 65_535, 65_536, 65_537, 2**31, 2**32, 2**32 + 1, 2**63 + 1)
"""Labels that wrap, or become equal, in 16 or 32 bits or as float64."""


def squares(*boxes: tuple[int, int, int, int, int]) -> np.ndarray[Any, Any]:
    """(label, y, x, height, width) of each -> a plane."""
    plane = np.zeros((20, 40), np.uint16)
    for label, y, x, height, width in boxes:
        plane[y : y + height, x : x + width] = label
    return plane


def judged(truth: np.ndarray[Any, Any], prediction: np.ndarray[Any, Any], iou: float = 0.5) -> dict[str, float]:
    """The figures at one threshold, without its name."""
    found = Objects.of(Overlaps.of(truth, prediction), [iou]).figures
    return {name.removesuffix(f"_{iou:g}"): value for name, value in found.items()}


def two() -> np.ndarray[Any, Any]:
    return squares((1, 5, 5, 10, 10), (2, 5, 15, 10, 10))


@pytest.mark.parametrize(
    ("prediction", "ap", "seg"),
    [
        (two(), 1, 1),
        (squares((7, 5, 5, 10, 20)), 0, 0.5),  # merged: an IoU of exactly 0.5 with each, and all of each is covered
        (squares((1, 5, 10, 10, 10), (2, 5, 20, 10, 10)), 0, 0),  # shifted by half: exactly half of each is covered
    ],
    ids=["identical", "merged", "shifted"],
)
def test_the_numbers_of_the_papers_code(prediction: np.ndarray[Any, Any], ap: float, seg: float) -> None:
    """DenoiSeg's metric and the Cell Tracking Challenge's, where an IoU or a share is exactly one half: it is no match."""
    found = judged(two(), prediction)
    assert (found["ap"], found["seg"]) == (ap, seg)


def test_what_nothing_can_be_said_of_is_nan() -> None:
    """0/0 is no figure; a prediction of nothing, and one where there is nothing, are wrong."""
    none = np.zeros((20, 40), np.uint8)
    both = judged(none, none)
    assert all(np.isnan(both[n]) for n in ("ap", "precision", "recall", "f1", "pq", "seg", "ap_mean"))
    missed = judged(two(), none)
    assert [missed[n] for n in ("ap", "recall", "f1", "pq", "seg", "fn")] == [0, 0, 0, 0, 0, 2]
    assert np.isnan(missed["precision"])
    made_up = judged(none, two())
    assert [made_up[n] for n in ("ap", "precision", "f1", "pq", "fp")] == [0, 0, 0, 0, 2]
    assert np.isnan(made_up["recall"])
    assert np.isnan(made_up["seg"])
    assert Overlaps.of(np.zeros((0, 4), int), np.zeros((0, 4), int)).pixels.size == 0


def brute(truth: np.ndarray[Any, Any], prediction: np.ndarray[Any, Any], iou: float) -> dict[str, float]:
    """The same with Python's integers, sets of pixels and a dense assignment."""

    def objects(labels: np.ndarray[Any, Any]) -> list[set[int]]:
        flat = [int(v) for v in labels.ravel()]
        return [{i for i, v in enumerate(flat) if v == label} for label in sorted(set(flat) - {0})]

    true, found = objects(truth), objects(prediction)
    table = np.array([[len(g & p) / len(g | p) for p in found] for g in true]).reshape(len(true), len(found))
    able = table > iou
    # one more pair is worth more than any sum of IoUs
    rows, columns = linear_sum_assignment(-np.where(able, 1000.0 + table, 0))
    pairs = [(i, j) for i, j in zip(rows, columns, strict=True) if able[i, j]]
    seg = [max((len(g & p) / len(g | p) for p in found if 2 * len(g & p) > len(g)), default=0.0) for g in true]
    return {"tp": len(pairs), "fn": len(true) - len(pairs), "fp": len(found) - len(pairs),
            "ious": sum(table[i, j] for i, j in pairs), "seg": sum(seg), "truth": len(true)}  # fmt: skip


def labels(shape: st.SearchStrategy[tuple[int, ...]] | tuple[int, ...]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    return hnp.arrays(np.uint64, shape, elements=st.sampled_from((0, 0, *IDS)))


@given(data=st.data(), iou=st.sampled_from([0, 0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6, 2 / 3, 0.75, 0.99]))
@settings(max_examples=150, deadline=None)
def test_matchings_are_those_of_brute_force(data: st.DataObject, iou: float) -> None:
    """2D and 3D, labels of up to 64 bits: counts, sums of the IoU and SEG equal those of sets and a dense assignment."""
    shape = data.draw(st.sampled_from([(3, 5), (6, 6), (2, 3, 4)]))
    truth, prediction = data.draw(labels(shape)), data.draw(labels(shape))
    table = Overlaps.of(truth, prediction)
    found, expected = match(table, iou), brute(truth, prediction, iou)
    assert (found.tp, found.fp, found.fn) == (expected["tp"], expected["fp"], expected["fn"])
    assert found.ious == pytest.approx(expected["ious"])
    assert table.seg_ious().sum() == pytest.approx(expected["seg"])
    assert len(table.truth_ids) == expected["truth"]
    assert dict(zip(table.truth_ids.tolist(), table.truth_areas.tolist(), strict=True)) == {
        int(i): int((truth == i).sum()) for i in np.unique(truth[truth > 0])
    }


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_blocks_add_up(data: st.DataObject) -> None:
    """The table of an image is that of its blocks, in any order, whatever integers each of them is stored as."""
    truth, prediction = data.draw(labels((8, 9))), data.draw(labels((8, 9)))
    counting = Counting()
    cuts = sorted(data.draw(st.lists(st.integers(0, 8), max_size=3)))
    blocks = [slice(a, b) for a, b in zip([0, *cuts], [*cuts, 8], strict=True)]
    for rows in data.draw(st.permutations(blocks)):
        part = prediction[rows]
        fits = [d for d in (np.uint8, np.int32, np.int64, np.uint64) if part.max(initial=0) <= np.iinfo(d).max]
        counting.add(truth[rows], part.astype(data.draw(st.sampled_from(fits))))
    whole, found = Overlaps.of(truth, prediction), counting.table()
    for name in ("truth_ids", "truth_areas", "prediction_ids", "prediction_areas", "rows", "columns", "pixels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_many_blocks_take_the_memory_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits is summed again and again; nothing is lost by it."""
    monkeypatch.setattr("voidzoo.zoo.evaluation.overlaps.PENDING", 10)
    rng = np.random.default_rng()
    truth, prediction = rng.integers(0, 6, (2, 300, 40))
    counting = Counting()
    for row in range(300):
        counting.add(truth[row], prediction[row])
        assert sum(len(n) for _, _, n in counting._waiting) <= 50
    assert counting.table().pixels.sum() == ((truth > 0) & (prediction > 0)).sum()


def test_below_a_half_the_assignment_is_the_best_one() -> None:
    """Greedy matching would take the pair with the largest IoU and leave two objects alone."""
    truth = squares((1, 0, 0, 1, 10), (2, 0, 10, 1, 10))
    prediction = squares((1, 0, 0, 1, 4), (2, 0, 4, 1, 10))  # 2 covers 6 of 1 and 4 of 2; 1 covers 4 of 1
    found = match(Overlaps.of(truth, prediction), 0.2)
    assert (found.tp, found.fp, found.fn) == (2, 0, 0)
    assert found.ious == pytest.approx(4 / 10 + 4 / 16)


def test_what_is_no_label_or_threshold_is_refused() -> None:
    """In words, with what would be right."""
    plane = two()
    with pytest.raises(DtypeError, match="float32 numbers; labels are integers"):
        Overlaps.of(plane.astype(np.float32), plane)
    with pytest.raises(ValuesError, match="the prediction holds the label -3"):
        Overlaps.of(plane, np.where(plane == 2, -3, plane.astype(np.int16)))
    with pytest.raises(SizeError, match="same shape"):
        Overlaps.of(plane, plane[1:])
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(RecipeError, match="no threshold"):
            match(Overlaps.of(plane, plane), wrong)


def test_counts_of_several_images_add_up() -> None:
    """Pooled figures are those of the added counts, not the mean of the figures."""
    one, other = Matching(0.5, 3, 1, 0, 2.4), Matching(0.5, 0, 0, 4, 0.0)
    pooled = Matching.pooled([one, other])
    assert (pooled.ap, pooled.precision, pooled.recall) == (3 / 8, 3 / 4, 3 / 7)
    assert pooled.pq == pytest.approx(2.4 / (3 + 5 / 2))


STARDIST = ("stardist==0.9.2", "csbdeep==0.8.2", "numba==0.65.1", "llvmlite==0.47.0")
SCRIPT = """
import json, sys
import numpy as np
from stardist.matching import matching
found = []
with np.load(sys.argv[1]) as file:
    for k in range(len(file.files) // 2):
        for iou in json.loads(sys.argv[2]):
            m = matching(file[f"t{k}"], file[f"p{k}"], thresh=iou + 1e-7)  # in float32 its >= becomes a >
            found.append([m.tp, m.fp, m.fn, m.accuracy, m.precision, m.recall, m.f1, m.panoptic_quality])
print(json.dumps([[float(v) for v in row] for row in found]))
"""


@pytest.mark.slow
def test_figures_are_those_of_stardist(tmp_path: Path) -> None:
    """Its matching on 12 random pairs in 2D and 3D at thresholds below and above a half: all eight figures agree.

    It holds IoUs as float32, so that a threshold that is an IoU would be met or missed by rounding: none of these can be.
    """
    rng = np.random.default_rng()
    ious = [0.1001, 0.3003, 0.4507, 0.5, 0.6007, 0.7511, 0.9001]
    arrays, expected = {}, []
    for k in range(12):
        shape = (48, 64) if k % 2 else (12, 32, 24)
        truth = blobs(rng, shape)
        moved = np.roll(truth, tuple(rng.integers(-2, 3, len(shape))), tuple(range(len(shape))))
        prediction = np.where(rng.random(shape) < 0.1, blobs(rng, shape), moved)
        arrays |= {f"t{k}": truth, f"p{k}": prediction}
        for iou in ious:
            m = match(Overlaps.of(truth, prediction), iou)
            expected.append([m.tp, m.fp, m.fn, m.ap, m.precision, m.recall, m.f1, m.pq])
    np.savez(tmp_path / "pairs.npz", **arrays)
    python = make_environment(tmp_path / "stardist", *STARDIST)
    found = told(python, SCRIPT, tmp_path / "pairs.npz", json.dumps(ious))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def blobs(rng: np.random.Generator, shape: tuple[int, ...], step: int = 8) -> np.ndarray[Any, Any]:
    """Labels: balls of random sizes around the points of a grid, numbered at random."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    cells = grid // step
    numbers = rng.permutation(int(np.prod(cells.max((*range(len(shape)),)) + 1))) + 1
    which = np.ravel_multi_index(tuple(np.moveaxis(cells, -1, 0)), tuple(cells.max((*range(len(shape)),)) + 1))
    distance = np.linalg.norm(grid - cells * step - step / 2 + 0.5, axis=-1)
    radius = rng.uniform(0.2, 0.65, len(numbers)) * step
    return np.where(distance < radius[which], numbers[which], 0).astype(np.int32)
