"""Descriptions of formats 0.3 and 0.4 mean here what bioimageio.spec makes of them, and are read where it cannot."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptions import JUNK, mangled, nodes, tried
from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.package import AxisRule, Package, SizeOf, Step, Tensor, open_package
from voidzoo.zoo.rdf import read_package


def description(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A description in format 0.4 that bioimageio.spec takes, around some tensors."""
    return {
        "type": "model", "format_version": "0.4.10", "name": "an old model", "description": "of long ago",
        "authors": [{"name": "Ada Ito"}], "cite": [{"text": "a paper", "doi": "10.1000/182"}], "license": "MIT",
        "documentation": "README.md", "covers": ["cover.png"], "tags": ["old"], "timestamp": "2022-02-02T22:22:22",
        "inputs": inputs, "outputs": outputs,
        "test_inputs": [f"in{i}.npy" for i in range(len(inputs))],
        "test_outputs": [f"out{i}.npy" for i in range(len(outputs))],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": "0" * 64, "opset_version": 15}},
        **more,
    }  # fmt: skip


def tensor(name: str, axes: str, shape: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "axes": axes, "shape": shape, "data_type": "float32", **more}


ARCHITECTURE = {"architecture": "./net.py:Net", "architecture_sha256": "1" * 64, "kwargs": {"width": 4}}
RAW = tensor("raw", "bcyx", {"min": [1, 2, 64, 64], "step": [0, 0, 16, 16]})
OUT = tensor("out", "bcyx", {"reference_tensor": "raw", "scale": [1.0] * 4, "offset": [0.0] * 4}, halo=[0, 0, 8, 8])


def random_step(rng: np.random.Generator, axes: str, channels: int, *, output: bool) -> dict[str, Any]:
    """One processing step of format 0.4 as bioimageio.spec converts it faithfully."""
    space = "".join(a for a in axes if a in "zyx")
    name = str(rng.choice(["binarize", "clip", "scale_linear", "sigmoid", "zero_mean_unit_variance", "fixed",
                           "scale_range", *(["scale_mean_variance"] if output else [])]))  # fmt: skip
    numbers = [float(v) for v in rng.uniform(0.5, 9, 2 * channels).round(2)]
    lists = channels > 1 and "c" in axes and bool(rng.integers(2))
    values: Any = (numbers[:channels], numbers[channels:]) if lists else (numbers[0], numbers[1])
    measured = {"mode": "per_sample", "axes": "".join(rng.permutation([a for a in axes if a in "czyx"])),
                "eps": float(rng.choice([1e-6, 1e-3]))}  # fmt: skip
    kwargs: dict[str, Any] = {
        "binarize": {"threshold": numbers[0]},
        "clip": {"min": -numbers[0], "max": numbers[1]},
        "scale_linear": {"gain": values[0], "offset": values[1], "axes": space + ("" if lists else "c")},
        "sigmoid": None,
        "zero_mean_unit_variance": {**measured, "mode": str(rng.choice(["per_sample", "per_dataset"]))},
        "fixed": {"mode": "fixed", "mean": values[0], "std": values[1], "axes": space + ("" if lists else "c"),
                  "eps": 1e-6},
        "scale_range": {**measured, "min_percentile": numbers[0], "max_percentile": 100 - numbers[1]},
        "scale_mean_variance": {**measured, "reference_tensor": "raw"},
    }[name]  # fmt: skip
    step: dict[str, Any] = {"name": "zero_mean_unit_variance" if name == "fixed" else name}
    if name in ("fixed", "scale_linear"):
        kwargs["axes"] = "".join(a for a in kwargs["axes"] if a in axes)
    return step if kwargs is None else {**step, "kwargs": kwargs}


def random_description(rng: np.random.Generator) -> dict[str, Any]:
    """Any axes in any order, fixed and parametrised inputs, outputs of fixed or following sizes, any processing."""
    axes = "".join(rng.permutation(["b", "y", "x", *(a for a in "ctz" if rng.integers(2))]))
    channels = int(rng.integers(1, 4))
    smallest = {"b": 1, "c": channels, "t": 8, "z": 12, "y": 96, "x": 128}
    steps = {"b": 0, "c": 0, "t": int(rng.integers(2)), "z": 4, "y": 16, "x": 8}
    fixed = bool(rng.integers(2))
    shape: Any = [smallest[a] for a in axes]
    if not fixed:
        shape = {"min": shape, "step": [steps[a] for a in axes]}
    raw = tensor("raw", axes, shape, data_type=str(rng.choice(["float32", "uint8", "uint16"])))
    raw["preprocessing"] = [random_step(rng, axes, channels, output=False) for _ in range(rng.integers(3))]
    inputs = [raw]
    if rng.integers(3) == 0:
        inputs.append(tensor("more", "bc", [1, int(rng.integers(1, 5))]))
    outputs = []
    for i in range(rng.integers(1, 3)):
        scale = {a: float(rng.choice([0.5, 1.0, 2.0])) if a in "zyx" else 1.0 for a in axes}
        offset = {a: float(rng.integers(-6, 7)) / 2 if a in "zyx" else 0.0 for a in axes}
        halo = {a: int(rng.integers(0, 5)) if a in "zyx" else 0 for a in axes}
        if rng.integers(4) == 0 and "c" in axes:  # as many channels as `offset` says
            scale["c"], offset["c"] = 0.0, float(rng.integers(1, 9)) / 2
        following = {"reference_tensor": "raw", "scale": [scale[a] for a in axes], "offset": [offset[a] for a in axes]}
        out = tensor(f"out{i}", axes, following, data_type=str(rng.choice(["float32", "uint8", "float64"])))
        if rng.integers(4) == 0:
            out["shape"] = [smallest[a] for a in axes]
        elif "t" not in axes:  # bioimageio.spec refuses a halo of 0 along t
            out["halo"] = [halo[a] for a in axes]
        channels_out = int(2 * offset["c"]) if "c" in axes and not scale["c"] else channels
        channels_out = channels if isinstance(out["shape"], list) else channels_out
        out["postprocessing"] = [random_step(rng, axes, channels_out, output=True) for _ in range(rng.integers(3))]
        outputs.append(out)
    return description(inputs, outputs)


# in a process of its own: bioimageio.spec leaves files open, which would be a warning here
BY_SPEC = """
import json, sys
from bioimageio.spec import ValidationContext
from bioimageio.spec.model import v0_5
from loguru import logger
logger.remove()
found = []
with ValidationContext(perform_io_checks=False):
    for rdf in json.load(sys.stdin):
        try:
            found.append(v0_5.ModelDescr.model_validate(rdf).model_dump(mode="json"))
            found[-1]["weights"]["onnx"]["sha256"] = "0" * 64  # which that conversion loses
        except (ValueError, NotImplementedError, AssertionError):
            found.append(None)
print(json.dumps(found))
"""


def by_spec(rdfs: list[dict[str, Any]]) -> list[Package | None]:
    """What bioimageio.spec's own conversion to format 0.5 says, or None where it cannot."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BY_SPEC], input=json.dumps(rdfs), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [None if new is None else read_package("p", new) for new in json.loads(done.stdout.splitlines()[-1])]


def comparable(package: Package) -> tuple[Any, ...]:
    """Without what the two may say otherwise: the casts that the format implies, and how it writes one value."""

    def plain(t: Tensor) -> Tensor:
        axes = tuple(replace(a, size=None) if a.letter == "b" else a for a in t.axes)
        return replace(t, axes=axes, steps=tuple(_one(s) for s in t.steps if s.name != "ensure_dtype"))

    tensors = [tuple(plain(t) for t in group) for group in (package.inputs, package.outputs)]
    return (*tensors, package.name, package.description, package.weights[0].source, package.rules, package.channels_out)


def _one(step: Step) -> Step:
    """A list of one value along an axis is that value; what the format sets by itself is not told."""
    defaults = {"eps": 1e-6, "min_percentile": 0.0, "max_percentile": 100.0, "gain": 1.0, "offset": 0.0}
    kwargs = {k: v[0] if isinstance(v, list) and len(v) == 1 and k != "axes" else v for k, v in step.kwargs.items()}
    if "axis" in kwargs and not any(isinstance(v, list) for v in kwargs.values()):
        kwargs.pop("axis")
    return Step(step.name, {k: v for k, v in kwargs.items() if v is not None and defaults.get(k) != v})


def test_a_description_of_04_means_what_bioimageio_spec_says() -> None:
    """Random descriptions, converted here and by bioimageio.spec, give the same tensors, sizes, steps and rules."""
    rng = np.random.default_rng()
    rdfs = [random_description(rng) for _ in range(300)]
    compared = [(rdf, p) for rdf, p in zip(rdfs, by_spec(rdfs), strict=True) if p is not None]
    assert len(compared) >= 100, "the descriptions that bioimageio.spec takes became too few to prove anything"
    for rdf, expected in compared:
        assert comparable(read_package("p", rdf)) == comparable(expected), rdf


def read(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> Package:
    return read_package("p", description(inputs, outputs, **more))


def sizes(t: Tensor) -> dict[str, Any]:
    """What is said of the size of each axis but the batch."""
    return {a.letter: (a.reference.offset, a.scale) if a.reference else a.size for a in t.axes if a.letter != "b"}


def test_a_halo_with_fixed_sizes_is_read() -> None:
    """bioimageio.spec cannot convert it; published models have it."""
    fixed = [tensor("raw", "bcyx", [1, 1, 256, 256])], [tensor("out", "bcyx", [1, 2, 256, 256], halo=[0, 0, 16, 16])]
    assert by_spec([description(*fixed)]) == [None]
    package = read(*fixed)
    assert [a.halo for a in package.outputs[0].axes] == [0, 0, 16, 16]
    assert package.rules["y"] == AxisRule(256, 1, 16, fixed=True)
    assert package.channels_out == ("channel0", "channel1")
    assert package.inputs[0].axes[0].size == 1  # weights of a fixed shape take no other batch


def test_offsets_are_half_pixels_and_scales_output_over_input() -> None:
    """shape = shape(reference) * scale + 2 * offset, as format 0.4 defines it; a scale of nothing is a new axis."""
    shape = {"reference_tensor": "raw", "scale": [1, None, 0.5, 2], "offset": [0, 1.5, -4, 0.5]}
    package = read([RAW], [tensor("out", "bcyx", shape)])
    assert sizes(package.outputs[0]) == {"c": 3, "y": (-8, 2.0), "x": (1, 0.5)}
    shape = {"reference_tensor": "raw", "scale": [1, 2, 1, 1], "offset": [0, 0.5, 0, 0]}
    assert read([RAW], [tensor("out", "bcyx", shape)]).channels_out == tuple(f"channel{i}" for i in range(5))
    with pytest.raises(PackageError, match=r"an offset of out is 0\.25; it counts in half pixels"):
        read([RAW], [tensor("out", "bcyx", {**shape, "offset": [0, 0.5, 0.25, 0]})])
    raw = tensor("raw", "biyx", {"min": [1, 3, 8, 8], "step": [0, 0, 8, 8]})
    shape = {"reference_tensor": "raw", "scale": [1, 1, 1, 1], "offset": [0, 0, 0, 0]}
    assert read([raw], [tensor("out", "biyx", shape)]).outputs[0].axes[1].reference == SizeOf("raw", "index")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"mode": "fixed", "axes": "yx", "mean": [1.0, 2.0], "std": 3},
            {"axis": "channel", "mean": [1.0, 2.0], "std": [3, 3]},
        ),
        ({"mode": "fixed", "axes": "yx", "mean": 1.0, "std": [3.0]}, {"mean": 1.0, "std": 3.0}),
        ({"axes": "cyx", "mean": [1.0], "std": [3.0], "eps": 1e-5}, {"mean": 1.0, "std": 3.0}),
    ],
)
def test_fixed_values_are_one_or_one_a_channel(old: dict[str, Any], new: dict[str, Any]) -> None:
    """A list of values lies along the axis that `axes` leaves; a single one is for all, however it is written."""
    package = read([{**RAW, "preprocessing": [{"name": "zero_mean_unit_variance", "kwargs": old}]}], [OUT])
    assert package.inputs[0].steps[0] == Step("fixed_zero_mean_unit_variance", new)


def test_what_bioimageio_spec_loses_is_kept() -> None:
    """The reference of percentiles, the whole data set as the sample, and what `axes` leaves out by saying nothing."""
    post = [
        {"name": "scale_range", "kwargs": {"mode": "per_sample", "axes": "yx", "reference_tensor": "raw"}},
        {"name": "scale_range", "kwargs": {"mode": "per_dataset", "axes": "cyx", "max_percentile": 99}},
        {"name": "scale_mean_variance", "kwargs": {"mode": "per_sample", "reference_tensor": "raw"}},
    ]
    steps = read([RAW], [{**OUT, "postprocessing": post}]).outputs[0].steps
    assert [s.kwargs for s in steps] == [
        {"axes": ["y", "x"], "reference_tensor": "raw"},
        {"axes": ["batch", "channel", "y", "x"], "max_percentile": 99},
        {"axes": ["channel", "y", "x"], "reference_tensor": "raw"},  # "all non-batch axes jointly"
    ]


def test_a_network_of_04_takes_float32_whatever_its_data_are() -> None:
    package = read([{**RAW, "data_type": "uint8"}], [{**OUT, "data_type": "uint8"}])
    assert (package.inputs[0].dtype, package.inputs[0].steps) == (
        "uint8",
        (Step("ensure_dtype", {"dtype": "float32"}),),
    )
    assert (package.outputs[0].dtype, package.outputs[0].steps) == ("uint8", ())
    assert not package.plain
    assert read([RAW], [OUT]).plain


WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"axes": "bcyq"}, {}, r"the axes 'bcyq' of raw: 'q' is none of b i t c z y x"),
    ({"shape": [1, 1, 8]}, {}, r"raw has the axes 'bcyx' and 3 numbers for them"),
    ({}, {"halo": [0, 8]}, r"out has the axes 'bcyx' and 2 numbers for them"),
    ({"shape": {"min": [1, 1, 8, 8], "step": [0, 1, 8, 8]}}, {}, r"number of channels of raw is .* a fixed number"),
    ({"preprocessing": [{"name": "clip", "kwargs": {"mode": "fixed", "min": 0, "max": 1}}]}, {}, r"kwargs has 'mode'"),
    ({"preprocessing": [{"name": "sharpen"}]}, {}, r"'sharpen'; binarize, clip,"),
    ({"preprocessing": [{"name": "scale_range", "kwargs": {"mode": "fixed"}}]}, {}, r"scale_range has the mode 'fixed'"),
    ({"preprocessing": [{"name": "zero_mean_unit_variance", "kwargs": {"axes": "yx"}}]}, {}, r"mean and std of fixed values"),
    ({"preprocessing": [{"name": "scale_linear", "kwargs": {"axes": "cyx", "gain": [1, 2]}}]}, {}, r"2 values for raw"),
    ({"preprocessing": [{"name": "scale_linear", "kwargs": {"gian": 2}}]}, {}, r"'gian' is not known; gain and offset are"),
    ({}, {"shape": {"reference_tensor": "row", "scale": [1] * 4, "offset": [0] * 4}}, r"KeyError: 'row'"),
    ({}, {"postprocessing": [{"name": "scale_range", "kwargs": {"axes": "zyx"}}]}, r"names the axis z"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "out", "message"), WRONG)
def test_what_cannot_be_is_said(raw: dict[str, Any], out: dict[str, Any], message: str) -> None:
    with pytest.raises(PackageError, match=message) as caught:
        read([{**RAW, **raw}], [{**OUT, **out}])
    assert "as bioimage.io format 0.4 does" in caught.value.what


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_spoilt_description_is_read_or_refused_in_words(data: st.DataObject) -> None:
    """Any part missing or replaced by junk: a package that knows its rules, or a PackageError; never anything else."""
    mode = {"name": "zero_mean_unit_variance", "kwargs": {"mode": "fixed", "axes": "yx", "mean": [1, 2], "std": [3, 4]}}
    linear = {"name": "scale_linear", "kwargs": {"axes": "yx", "gain": [1.0, 2.0]}}
    weights = {"pytorch_state_dict": {"source": "w.pt", **ARCHITECTURE}}
    version = data.draw(st.sampled_from(["0.4.9", "0.3.6"]))
    rdf = description([{**RAW, "preprocessing": [mode, linear]}], [OUT], format_version=version, weights=weights)
    for _ in range(data.draw(st.integers(1, 3))):
        rdf = mangled(rdf, data.draw(st.sampled_from(nodes(rdf))), data.draw(JUNK), drop=data.draw(st.booleans()))
    package = tried(lambda r: read_package("p", r), rdf)
    if isinstance(package, PackageError):
        assert "\n" not in package.what
    else:
        assert set(package.rules) == set(package.axes)


def test_a_state_dict_of_04_names_its_architecture_in_the_words_of_05() -> None:
    """`file.py:Class` and `module.Class`, with settings and sha256; a sha256 that is not given is made from the file."""
    state = {"source": "net.pt", "sha256": "0" * 64, **ARCHITECTURE}
    package = read([RAW], [OUT], weights={"pytorch_state_dict": state})
    expected = {"source": "./net.py", "callable": "Net", "sha256": "1" * 64, "kwargs": {"width": 4}}
    assert package.weights[0].options == {"architecture": expected}
    state = {"source": "net.pt", "architecture": "some.library.Net"}
    package = read([RAW], [OUT], weights={"pytorch_state_dict": state})
    assert package.weights[0].options["architecture"] == {
        "import_from": "some.library",
        "callable": "Net",
        "kwargs": {},
    }


def test_a_model_yaml_of_03_is_read(tmp_path: Path) -> None:
    """No type, tensors by reference_input, the architecture at the root, pytorch_script, ./paths, no sha256."""
    weights = np.random.default_rng().bytes(100)
    rdf = {
        "format_version": "0.3.0", "name": "very old", "description": "of 2019", "authors": ["Ada Ito"],
        "inputs": [{**RAW, "data_range": [float("-inf"), float("inf")], "preprocessing": [
            {"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "yx"}}]}],
        "outputs": [{**OUT, "shape": {"reference_input": "raw", "scale": [1] * 4, "offset": [0] * 4}}],
        "language": "python", "framework": "pytorch", "source": "./net.py:Net", "sha256": "1" * 64,
        "kwargs": {"width": 4}, "test_inputs": ["./test_in.npy"], "test_outputs": ["test_out.npy"],
        "weights": {"pytorch_script": {"source": "./weights.pt"}, "pytorch_state_dict": {"source": "net.pt"},
                    "onnx": None},
    }  # fmt: skip
    (tmp_path / "Old.model.yaml").write_text(yaml.safe_dump(rdf))
    (tmp_path / "weights.pt").write_bytes(weights)
    (tmp_path / "test_in.npy").write_bytes(b"test")
    package = open_package(tmp_path)
    assert (package.name, package.format, package.axes) == ("very old", "0.3.0", "yx")
    assert package.rules == {"y": AxisRule(64, 16, 8), "x": AxisRule(64, 16, 8)}
    assert package.inputs[0].steps[0] == Step("zero_mean_unit_variance", {"axes": ["y", "x"]})
    chosen = package.chosen_weights(torch=True)
    assert (chosen.kind, package.files.read(chosen.source)) == ("torchscript", weights)
    assert package.sha256 == hashlib.sha256(weights).hexdigest()
    assert package.files.read(package.test_input) == b"test"
    architecture = {"source": "./net.py", "callable": "Net", "sha256": "1" * 64, "kwargs": {"width": 4}}
    assert package.weights[1].options == {"architecture": architecture}
    rdf["weights"]["pytorch_script"]["sha256"] = "0" * 64  # type: ignore[index]
    (tmp_path / "Old.model.yaml").write_text(yaml.safe_dump(rdf))
    with pytest.raises(PackageError, match=r"weights\.pt has sha256 \w+\.\.\., Old\.model\.yaml says 00000000"):
        open_package(tmp_path).files.read(chosen.source, open_package(tmp_path).sha256)
