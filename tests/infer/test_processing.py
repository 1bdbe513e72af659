"""Every step of the format, tile by tile with statistics from out of core, is what numpy and bioimageio.core make of the
whole sample at once.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from voidzoo.infer.networks.processing import Processing
from voidzoo.zoo.errors import DependencyError, PackageError
from voidzoo.zoo.rdf import read_package
from voidzoo.zoo.statistics import statistics

EPS = 1e-6
SIZES = {"b": 1, "c": 3, "t": 3, "z": 5, "y": 41, "x": 53}
TILE = {"z": 2, "y": 16, "x": 23, "t": 2}
IDS = {"b": "batch", "c": "channel", "t": "time", "z": "z", "y": "y", "x": "x"}


@pytest.fixture
def rng():
    return np.random.default_rng(21)


def described(name, letters, steps, dtype="float32"):
    """A tensor as rdf.yaml of format 0.5 has it."""
    out = name == "output"
    axes = []
    for a in letters:
        axis = {"type": {"b": "batch", "c": "channel", "t": "time"}.get(a, "space"), "id": IDS[a]}
        if a == "c":
            axis["channel_names"] = [f"c{i}" for i in range(SIZES["c"])]
        elif a != "b":
            axis["size"] = {"tensor_id": "input", "axis_id": IDS[a]} if out else {"min": 1, "step": 1}
        axes.append(axis)
    return {"id": name, "axes": axes, "data": {"type": dtype}, "postprocessing" if out else "preprocessing": steps}


def step(name, **kwargs):
    return {"id": name, **({"kwargs": kwargs} if kwargs else {})}


@dataclass
class Model:
    """One description, read by us and by bioimageio.spec."""

    pre: list[dict[str, Any]] = field(default_factory=list)
    post: list[dict[str, Any]] = field(default_factory=list)
    letters: str = "bcyx"
    out: str = ""
    dtype: str = "float32"

    @property
    def tensors(self):
        return described("input", self.letters, self.pre, self.dtype), described(
            "output", self.out or self.letters, self.post
        )

    @property
    def package(self):
        inner, outer = self.tensors
        weights = {"onnx": {"source": "weights.onnx", "sha256": "0" * 64}}
        rdf = {"type": "model", "format_version": "0.5.4", "name": "steps", "inputs": [inner], "outputs": [outer]}
        return read_package("steps.zip", rdf | {"weights": weights})

    def core(self, raw, returned=None):
        """bioimageio.core's own pipeline, in memory, on the whole sample."""
        from bioimageio.core.proc_setup import setup_pre_and_postprocessing
        from bioimageio.core.sample import Sample
        from bioimageio.core.stat_calculators import StatsCalculator
        from bioimageio.core.tensor import Tensor
        from bioimageio.spec import ValidationContext
        from bioimageio.spec.model import v0_5

        inner, outer = self.tensors
        with ValidationContext(perform_io_checks=False):
            model = SimpleNamespace(inputs=[v0_5.InputTensorDescr.model_validate(inner)],
                                    outputs=[v0_5.OutputTensorDescr.model_validate(outer)])  # fmt: skip
        setup = setup_pre_and_postprocessing(model, [])
        tensors = {"input": Tensor(raw, [IDS[a] for a in self.letters])}
        if returned is None:
            sample = Sample(members=tensors, stat={}, id=0)
            operators = setup.pre
        else:  # core 0.11 measures only inputs, so its calculator is called here
            tensors["output"] = Tensor(returned, [IDS[a] for a in self.out or self.letters])
            measures = {m for op in setup.post for m in op.required_measures}
            stat = StatsCalculator(measures).update_and_get_all(Sample(members=tensors, stat={}, id=0))
            sample = Sample(members={"output": tensors["output"]}, stat=stat, id=0)
            operators = setup.post
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Computed dataset percentiles naively")
            for operator in operators:
                operator(sample)
        return sample.members["input" if returned is None else "output"].to_numpy()


def measure(wanted, array, letters):
    """Out of core, in small chunks, of an array with axes `letters`; loop axes may stand before those of the tensor."""
    order = "".join(a for a in "lictzyx" if a in letters)
    canonical = array.transpose([letters.index(a) for a in (*order, *("b" if "b" in letters else ""))])
    canonical = canonical[..., 0] if "b" in letters else canonical
    chunks = [min(n, 7) for n in canonical.shape]

    def read(region):
        return canonical[tuple(region[a] for a in order)]

    return list(statistics(read, order, canonical.shape, chunks, canonical.dtype, wanted, memory=2**14).values)


def tiles(letters, shape):
    """Slices that cover an array in tiles."""
    along = [[slice(i, min(i + TILE.get(a, n), n)) for i in range(0, n, TILE.get(a, n))]
             for a, n in zip(letters, shape, strict=True)]  # fmt: skip
    return product(*along)


def tile_by_tile(model, raw, returned=None, sample=""):
    """What `Processing` makes of the whole, one tile at a time."""
    processing = Processing(model.package, sample)
    out = model.out or model.letters
    measured = {"input": measure(processing.inputs_wanted["input"], raw, model.letters)}
    if returned is not None:
        measured["output"] = measure(processing.outputs_wanted["output"], returned, out)
    name, whole, letters = ("input", raw, model.letters) if returned is None else ("output", returned, out)
    result = None
    for part in tiles(letters, whole.shape):
        at = {a: (s.start, s.stop) for a, s in zip(letters, part, strict=True) if a in TILE}
        spans = {"input": at, "output": at}
        if returned is None:
            done = processing.before({name: whole[part]}, measured, spans)[name]
        else:
            done = processing.after({name: whole[part]}, measured, measured, spans)[name]
        if result is None:
            result = np.empty(whole.shape, done.dtype)
        assert done.dtype == result.dtype
        result[part] = done
    return result


def over(letters, axes):
    return tuple(i for i, a in enumerate(letters) if axes is None or IDS[a] in axes)


def along(letters, values):
    shape = [len(values) if a == "c" else 1 for a in letters]
    return np.reshape(values, shape)


def zmuv(x, letters, axes=None, eps=EPS, of=None):
    ax = over(letters, axes)
    return (x - x.mean(ax, keepdims=True)) / (x.std(ax, keepdims=True) + eps)


def scale_range(x, letters, low=0.0, high=100.0, axes=None, eps=EPS, of=None):
    of = x if of is None else of
    ax = over(letters, axes)
    a, b = (np.percentile(of, p, axis=ax, keepdims=True) for p in (low, high))
    return (x - a) / (b - a + eps)


def clip_percentiles(x, letters, low, high, axes=None, of=None):
    of, ax = x if of is None else of, over(letters, axes)
    method = "linear" if axes is None or "batch" in axes else "inverted_cdf"
    a, b = (np.percentile(of, p, axis=ax, keepdims=True, method=method) for p in (low, high))
    return np.clip(x, a, b)


def scale_mean_variance(x, of, letters, axes=None, eps=EPS):
    ax = over(letters, axes)
    own = (x - x.mean(ax, keepdims=True)) / (x.std(ax, keepdims=True) + eps)
    return own * (of.std(ax, keepdims=True) + eps) + of.mean(ax, keepdims=True)


AXES = [None, ["channel", "y", "x"], ["y", "x"], ["batch", "channel", "y", "x"], ["batch", "y", "x"]]
GAIN, OFFSET, MEAN, STD = [2.0, 0.5, -1.0], [1.0, -3.0, 0.0], [10.0, 200.0, 3000.0], [3.0, 50.0, 700.0]

PRE = {
    "ensure_dtype": ([step("ensure_dtype", dtype="float64")], lambda x, a: x),
    "binarize": ([step("binarize", threshold=900.0)], lambda x, a: x > 900),
    "clip": ([step("clip", min=500.0, max=1500.0)], lambda x, a: np.clip(x, 500, 1500)),
    "clip min": ([step("clip", min=500.0)], lambda x, a: np.maximum(x, 500)),
    "fixed zmuv": ([step("fixed_zero_mean_unit_variance", mean=900.0, std=120.0)], lambda x, a: (x - 900) / (120 + EPS)),
    "fixed zmuv channel": (
        [step("fixed_zero_mean_unit_variance", mean=MEAN, std=STD, axis="channel")],
        lambda x, a: (x - along(a, MEAN)) / (along(a, STD) + EPS),
    ),
    "scale_linear": ([step("scale_linear", gain=0.01, offset=-3.0)], lambda x, a: 0.01 * x - 3),
    "scale_linear channel": (
        [step("scale_linear", gain=GAIN, offset=OFFSET, axis="channel")],
        lambda x, a: along(a, GAIN) * x + along(a, OFFSET),
    ),
    "scale_linear channel, one gain": (
        [step("scale_linear", gain=2.0, offset=OFFSET, axis="channel")],
        lambda x, a: 2.0 * x + along(a, OFFSET),
    ),
    "sigmoid": ([step("scale_linear", gain=0.01, offset=-9.0), step("sigmoid")], lambda x, a: expit(0.01 * x - 9)),
    "softmax": (
        [step("scale_linear", gain=0.001), step("softmax", axis="channel")],
        lambda x, a: softmax(0.001 * x, axis=a.index("c")),
    ),
    "scale_range default": ([step("scale_range")], scale_range),
    "zmuv eps": (
        [step("zero_mean_unit_variance", axes=["channel", "y", "x"], eps=0.1)],
        lambda x, a: zmuv(x, a, ["channel", "y", "x"], 0.1),
    ),
    "scale_range eps": (
        [step("scale_linear", gain=0.001), step("scale_range", axes=["y", "x"], eps=0.05)],
        lambda x, a: (0.001 * x - x.min(over(a, ["y", "x"]), keepdims=True))
        / (np.ptp(x, over(a, ["y", "x"]), keepdims=True) + 0.05),
    ),
    "scale_range, clip, uint8": (
        [step("scale_range", axes=["y", "x"], min_percentile=5.0, max_percentile=99.8), step("clip", min=0.0, max=1.0),
         step("scale_linear", gain=255.0), step("ensure_dtype", dtype="uint8")],
        lambda x, a: np.clip(scale_range(x, a, 5, 99.8, ["y", "x"]), 0, 1).astype("f4") * 255,
    ),
    "two steps that measure": (
        [step("clip", min_percentile=2.0, max_percentile=98.0, axes=["y", "x"]),
         step("zero_mean_unit_variance", axes=["channel", "y", "x"])],
        lambda x, a: (clip_percentiles(x, a, 2, 98, ["y", "x"]) - x.mean()) / (x.std() + EPS),  # both of the raw image
    ),
}  # fmt: skip
for axes in AXES:
    word = "all" if axes is None else " ".join(axes)
    kwargs: dict[str, Any] = {} if axes is None else {"axes": axes}
    PRE[f"zmuv {word}"] = ([step("zero_mean_unit_variance", **kwargs)], lambda x, a, axes=axes: zmuv(x, a, axes))
    PRE[f"scale_range {word}"] = (
        [step("scale_range", min_percentile=1.0, max_percentile=99.8, **kwargs)],
        lambda x, a, axes=axes: scale_range(x, a, 1, 99.8, axes),
    )
    PRE[f"clip percentiles {word}"] = (
        [step("clip", min_percentile=1.0, max_percentile=99.5, **kwargs)],
        lambda x, a, axes=axes: clip_percentiles(x, a, 1, 99.5, axes),
    )


def spatial(steps, letters):
    """The same steps over z too, where the tensor has it."""
    if "z" not in letters:
        return steps

    def wider(kwargs):
        axes = kwargs.get("axes")
        return kwargs if not axes else {**kwargs, "axes": [*axes, "z"]}

    return [{**s, "kwargs": wider(s["kwargs"])} if "kwargs" in s else s for s in steps]


def image(rng, letters, dtype):
    """Channels of very different brightness, some structure, a hot pixel."""
    shape = [SIZES[a] for a in letters]
    pixels = rng.gamma(4, 200, shape) * (1 + 0.5 * np.sin(np.arange(shape[-1]) / 7))
    if "c" in letters:
        pixels *= along(letters, [1.0, 3.0, 0.2])
    pixels.flat[777] = 50000
    return pixels.astype(dtype)


@pytest.mark.parametrize(("letters", "dtype"), [("bcyx", "uint16"), ("bczyx", "uint16"), ("byxc", "float32")])
@pytest.mark.parametrize("name", PRE)
def test_preprocessing_in_tiles_is_numpy_and_bioimageio_core_on_the_whole(rng, name, letters, dtype):
    steps, formula = PRE[name]
    model = Model(pre=spatial(steps, letters), letters=letters)
    raw = image(rng, letters, dtype)
    found = tile_by_tile(model, raw)
    wide = raw.astype(np.float64)
    if "z" in letters:  # numpy's formula over z too: z and y are laid together
        flat = wide.reshape(*wide.shape[:2], -1, wide.shape[-1])
        true = np.asarray(formula(flat, "bcyx")).reshape(wide.shape)
    else:
        true = np.asarray(formula(wide, letters))
    whole = model.core(raw) if "eps" not in name else found  # core 0.11 keeps to its default eps
    assert found.dtype == whole.dtype
    if found.dtype.kind == "f":
        scale = max(1.0, float(np.abs(true).max()))
        np.testing.assert_allclose(found, true, rtol=1e-6, atol=1e-7 * scale)
        tolerance = 1e-6 if dtype == "uint16" else 4e-6  # core sums float32 pixels as float32
        np.testing.assert_allclose(found, whole, rtol=tolerance, atol=tolerance * 0.1 * scale)
    else:
        assert (found != true.astype(found.dtype)).mean() < 1e-4  # at a threshold, float32 may round
        assert (found != whole).mean() < 1e-4


POST = {
    "zmuv": ([step("zero_mean_unit_variance", axes=["y", "x"])], lambda y, x, a: zmuv(y, a, ["y", "x"])),
    "zmuv all": ([step("zero_mean_unit_variance")], lambda y, x, a: zmuv(y, a)),
    "scale_mean_variance": (
        [step("scale_mean_variance", reference_tensor="input", axes=["y", "x"])],
        lambda y, x, a: scale_mean_variance(y, x, a, ["y", "x"]),
    ),
    "scale_mean_variance all": (
        [step("scale_mean_variance", reference_tensor="input", eps=0.01)],
        lambda y, x, a: scale_mean_variance(y, x, a, eps=0.01),
    ),
    "scale_range of itself": (
        [step("scale_range", axes=["channel", "y", "x"], min_percentile=3.0, max_percentile=97.0)],
        lambda y, x, a: scale_range(y, a, 3, 97, ["channel", "y", "x"]),
    ),
    "scale_range of the input": (
        [step("scale_range", axes=["y", "x"], max_percentile=99.8, reference_tensor="input")],
        lambda y, x, a: scale_range(y, a, 0, 99.8, ["y", "x"], of=x),
    ),
    "sigmoid, then statistics of what came before it": (
        [step("sigmoid"), step("zero_mean_unit_variance", axes=["channel", "y", "x"])],
        lambda y, x, a: (expit(y) - y.mean()) / (y.std() + EPS),
    ),
    "softmax": ([step("softmax", axis="channel")], lambda y, x, a: softmax(y, axis=a.index("c"))),
    "binarize": ([step("sigmoid"), step("binarize", threshold=0.5)], lambda y, x, a: y > 0),
    "clip": ([step("clip", min=-1.0, max=2.0)], lambda y, x, a: np.clip(y, -1, 2)),
    "scale_linear": ([step("scale_linear", gain=GAIN, offset=OFFSET, axis="channel")],
                     lambda y, x, a: along(a, GAIN) * y + along(a, OFFSET)),
    "uint16": ([step("scale_linear", gain=100.0, offset=1000.0), step("ensure_dtype", dtype="uint16")],
               lambda y, x, a: np.trunc((y * np.float32(100) + np.float32(1000)).astype("f4"))),
}  # fmt: skip


@pytest.mark.parametrize("name", POST)
def test_postprocessing_in_tiles_is_numpy_and_bioimageio_core_on_the_whole(rng, name):
    steps, formula = POST[name]
    model = Model(post=steps)
    raw = image(rng, model.letters, "uint16")
    returned = rng.normal(0, 3, raw.shape).astype(np.float32)
    found, whole = tile_by_tile(model, raw, returned), model.core(raw, returned)
    true = np.asarray(formula(returned.astype(np.float64), raw.astype(np.float64), model.letters))
    assert found.dtype == whole.dtype
    if found.dtype.kind == "f":
        scale = max(1.0, float(np.abs(true).max()))
        np.testing.assert_allclose(found, true, rtol=1e-6, atol=2e-7 * scale)
        np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-6 * scale)
    else:
        assert (found != true).mean() < 1e-4
        np.testing.assert_array_equal(found, whole)


def test_binarize_along_an_axis_compares_each_channel_with_its_own_threshold(rng):
    """core 0.11 compares them with the last axis: it fails, or is silently wrong where the sizes agree."""
    thresholds = [0.2, -0.3, 1.0]
    model = Model(post=[step("binarize", threshold=thresholds, axis="channel")])
    returned = rng.normal(0, 1, (1, 3, 41, 53)).astype(np.float32)
    found = tile_by_tile(model, image(rng, "bcyx", "uint16"), returned)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, returned > along("bcyx", np.float32(thresholds)))


def test_one_input_is_scaled_by_the_range_of_another(rng):
    reference = {"reference_tensor": "second", "axes": ["y", "x"], "min_percentile": 1.0, "max_percentile": 99.0}
    first = described("input", "bcyx", [step("scale_range", **reference)])
    second = {**described("input", "bcyx", [step("clip", min=300.0)]), "id": "second"}
    weights = {"onnx": {"source": "weights.onnx", "sha256": "0" * 64}}
    package = read_package("two.zip", {"type": "model", "format_version": "0.5.4", "name": "two", "weights": weights,
                                       "inputs": [first, second], "outputs": [described("output", "bcyx", [])]})  # fmt: skip
    x, of = image(rng, "bcyx", "uint16"), image(rng, "bcyx", "float32")
    processing = Processing(package)
    assert processing.inputs_wanted["input"] == ()
    measured = {"second": measure(processing.inputs_wanted["second"], of, "bcyx")}
    found = processing.before({"input": x, "second": of}, measured)
    low, high = (np.percentile(of.astype(float), p, axis=(2, 3), keepdims=True) for p in (1, 99))
    np.testing.assert_allclose(found["input"], (x - low) / (high - low + EPS), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["second"], np.maximum(of, 300))


def test_a_statistic_a_plane_in_a_volume_goes_with_the_tile(rng):
    """Axes y and x in a model that reads z y x: each plane has its own mean, also where the tile is extended."""
    model = Model(pre=[step("zero_mean_unit_variance", axes=["y", "x"])], letters="bczyx")
    raw = image(rng, "bczyx", "uint16") + (1000 * np.arange(5, dtype=np.uint16))[None, None, :, None, None]
    np.testing.assert_allclose(
        tile_by_tile(model, raw), zmuv(raw.astype(float), "bczyx", ["y", "x"]), rtol=1e-6, atol=1e-6
    )
    processing = Processing(model.package)
    assert processing.keeps == {"input": "z", "output": ""}
    measured = {"input": measure(processing.inputs_wanted["input"], raw, "bczyx")}
    longer = np.pad(raw, [(0, 0), (0, 0), (0, 4), (0, 0), (0, 0)], mode="symmetric")
    found = processing.before({"input": longer[:, :, 3:]}, measured, {"input": {"z": (3, 9)}})["input"]
    ax = (3, 4)
    true = (longer - longer.mean(ax, keepdims=True)) / (longer.std(ax, keepdims=True) + EPS)
    np.testing.assert_allclose(found, true[:, :, 3:], rtol=1e-6, atol=1e-6)
    with pytest.raises(PackageError, match=r"mean of input for each channel, z has the shape \(3, 5\)"):
        processing.before({"input": longer[:, :, 3:]}, measured)


@pytest.mark.parametrize("axes", AXES)
def test_a_sample_of_several_planes_has_one_statistic_as_core_has_for_a_batch(rng, axes):
    """--sample volume with a 2D model: what core measures over a stack that is given as a batch."""
    model = Model(pre=[step("zero_mean_unit_variance", **({} if axes is None else {"axes": axes}))])
    stack = np.concatenate([image(rng, "bcyx", "uint16") + np.uint16(500 * k) for k in range(4)])
    processing = Processing(model.package, "z")
    wanted = processing.inputs_wanted["input"]
    assert all("z" in w.over for w in wanted)
    values = statistics(lambda r: stack[r["z"], r["c"], r["y"], r["x"]], "zcyx", stack.shape, (1, 3, 20, 53), stack.dtype,
                        wanted)  # fmt: skip
    found = [processing.before({"input": plane[None]}, {"input": values.values})["input"] for plane in stack]
    joined = ["batch", *(axes or ["channel", "y", "x"])]
    np.testing.assert_allclose(np.concatenate(found), zmuv(stack.astype(float), "bcyx", joined), rtol=1e-6, atol=1e-6)
    if axes is None or "batch" in axes:
        np.testing.assert_allclose(np.concatenate(found), model.core(stack), rtol=1e-6, atol=1e-6)
    assert processing.dataset["input"] == tuple("batch" in (axes or ()) for _ in wanted)


def test_statistics_are_those_of_the_raw_tensor_before_it_is_cast(rng):
    """A uint8 model is given uint16: the cast wraps, as core's does, but mean and std are of what came."""
    model = Model(pre=[step("zero_mean_unit_variance", axes=["channel", "y", "x"])], dtype="uint8")
    raw = image(rng, "bcyx", "uint16")
    found = tile_by_tile(model, raw)
    np.testing.assert_array_equal(found, model.core(raw))
    assert found.dtype == np.uint8


def test_tensors_without_a_batch_or_a_channel_axis(rng):
    for letters in ("yx", "byx", "btyx", "zyx"):
        model = Model(pre=[step("zero_mean_unit_variance", axes=["y", "x"]), step("clip", min=-2.0)], letters=letters)
        raw = rng.normal(100, 20, [SIZES[a] for a in letters]).astype(np.float32)
        true = np.maximum(zmuv(raw.astype(float), letters, ["y", "x"]), -2)
        np.testing.assert_allclose(tile_by_tile(model, raw), true, rtol=1e-5, atol=1e-6)


def test_what_is_wanted_is_listed_once_and_in_the_same_order_in_every_process():
    model = Model(
        pre=[step("scale_range", axes=["y", "x"], min_percentile=1.0, max_percentile=99.0),
             step("zero_mean_unit_variance", axes=["y", "x"]), step("zero_mean_unit_variance", axes=["y", "x"])],
        post=[step("scale_mean_variance", reference_tensor="input", axes=["y", "x"])],
    )  # fmt: skip
    processing = Processing(model.package)
    wanted = processing.inputs_wanted["input"]
    assert sorted((w.kind, w.over, w.q) for w in wanted) == [
        ("mean", "yx", 0.0), ("quantile", "yx", 0.01), ("quantile", "yx", 0.99), ("std", "yx", 0.0)]  # fmt: skip
    assert {w.kind for w in processing.outputs_wanted["output"]} == {"mean", "std"}
    program = (
        "from test_processing import *; "
        "m = Model(pre=[step('scale_range', axes=['y', 'x'], min_percentile=1.0, max_percentile=99.0), "
        "step('zero_mean_unit_variance', axes=['y', 'x'])]); "
        "print([(w.kind, w.q) for w in Processing(m.package).inputs_wanted['input']])"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], cwd=__file__.rsplit("/", 1)[0], check=True, capture_output=True,
                       env={**__import__("os").environ, "PYTHONHASHSEED": str(seed)}).stdout
        for seed in (1, 2, 3)
    }  # fmt: skip
    assert len(found) == 1


def test_the_plan_says_what_each_step_does():
    model = Model(
        pre=[step("ensure_dtype", dtype="float32"), step("zero_mean_unit_variance", axes=["channel", "y", "x"]),
             step("clip", min=-3.0)],
        post=[step("sigmoid"), step("scale_linear", gain=255.0)],
    )  # fmt: skip
    assert Processing(model.package).text() == (
        "input: zero_mean_unit_variance over c y x (sample: the plane)",
        "input: clip min -3.0",
        "output: sigmoid",
        "output: scale_linear gain 255.0",
    )
    assert "(sample: the volume)" in Processing(model.package, "z").text()[0]
    assert "over b" not in Processing(Model(pre=[step("scale_range")]).package).text()[0]


def test_casts_alone_do_not_import_bioimageio():
    program = (
        "import sys, numpy as np\n"
        "from test_processing import Model, step\n"
        "from voidzoo.infer.networks.processing import Processing\n"
        "p = Processing(Model(pre=[step('ensure_dtype', dtype='uint8')]).package)\n"
        "out = p.before({'input': np.full((1, 3, 4, 4), 7.9, 'f4')}, {})['input']\n"
        "assert out.dtype == 'u1' and (out == 7).all()\n"
        "assert not [m for m in sys.modules if m.startswith('bioimageio.core') or m == 'xarray'], 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=__file__.rsplit("/", 1)[0], check=True)


CODE = b"""
import numpy as np

class Brighten:
    def __init__(self, by):
        self.by = by

    def __call__(self, array):
        return array + np.float32(self.by)
"""


def custom(tmp_path, **more):
    (tmp_path / "brighten.py").write_bytes(CODE)
    (tmp_path / "rdf.yaml").touch()
    about = {
        "callable": "Brighten",
        "source": "brighten.py",
        "kwargs": {"by": 2.5},
        "sha256": hashlib.sha256(CODE).hexdigest(),
    }
    package = Model(post=[{"id": "custom", **about, **more}]).package
    object.__setattr__(package, "path", str(tmp_path))
    return package


def test_code_of_the_package_runs_only_when_it_is_trusted_and_what_it_was(tmp_path, rng):
    package = custom(tmp_path)
    with pytest.raises(PackageError, match="--trust-code"):
        Processing(package)
    processing = Processing(package, trust_code=True)
    assert processing.needs_whole() == ("custom",)
    returned = rng.normal(0, 1, (1, 3, 8, 9)).astype(np.float32)
    np.testing.assert_array_equal(processing.after({"output": returned}, {}, {})["output"], returned + np.float32(2.5))
    with pytest.raises(PackageError, match="sha256"):
        Processing(custom(tmp_path, sha256="0" * 64), trust_code=True)


def test_steps_that_see_a_sample_whole_are_named_and_ask_for_their_library():
    assert Processing(Model(post=[step("softmax", axis="x")]).package).needs_whole() == ("softmax",)
    assert Processing(Model(post=[step("softmax", axis="channel")]).package).needs_whole() == ()
    flows = {"cellprob_threshold": 0.0, "flow_threshold": 0.4, "do_3D": False}
    with pytest.raises(DependencyError, match="pip install cellpose"):
        Processing(Model(post=[step("cellpose_flow_dynamics", **flows)]).package)


def test_settings_that_cannot_be_are_refused_by_name():
    with pytest.raises(PackageError, match="'clip'"):
        Processing(Model(pre=[step("clip", min=2.0, max=1.0)]).package)
    with pytest.raises(PackageError, match="'scale_range'"):
        Processing(Model(pre=[step("scale_range", min_percentile=60.0, max_percentile=50.0)]).package)


def test_a_step_that_does_not_exist_is_refused_by_name():
    from dataclasses import replace

    from voidzoo.zoo.package import Step

    package = Model().package
    tensor = replace(package.inputs[0], steps=(Step("sharpen", {"by": 2}),))
    with pytest.raises(PackageError, match="'sharpen'"):
        Processing(replace(package, inputs=(tensor,)))
