"""Upsampling merged into the convolution behind it: the same numbers as onnxruntime makes of the graph as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from voidzoo.infer.networks.upsampling import with_merged_upsampling

SHORT: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor", "mode": "nearest"}


def run(weights: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """In onnxruntime, as the graph stands."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def ops(weights: bytes) -> list[str]:
    """The kinds of a graph's nodes, in order."""
    return [node.op_type for node in onnx.load_from_string(weights).graph.node]


def graph(
    rng: np.random.Generator, space: int, ratios: list[tuple[int, ...]], channels: list[int], sides: list[int],
    resize: dict[str, Any] = SHORT, conv: dict[str, Any] | None = None, *, bias: bool = True, twice: bool = False,
) -> bytes:  # fmt: skip
    """in0, in1, ... -> each upsampled by its ratios (all 1: as it is) -> joined -> convolution."""
    letters = ["z", "y", "x"][-space:]
    names = [f"in{i}" for i in range(len(channels))]
    nodes, stored, parts = [], [], []
    for name, ratio in zip(names, ratios, strict=True):
        parts.append(name)
        if max(ratio) > 1:
            stored.append(numpy_helper.from_array(np.array([1, 1, *ratio], np.float32), f"{name}/scales"))
            nodes.append(helper.make_node("Resize", [name, "", f"{name}/scales"], [f"{name}/up"], **resize))
            parts[-1] = f"{name}/up"
    joined = parts[0]
    if len(parts) > 1:
        joined = "joined"
        nodes.append(helper.make_node("Concat", parts, [joined], axis=1))
    kernel = rng.standard_normal((3, sum(channels), *sides)).astype(np.float32)
    stored += [numpy_helper.from_array(kernel, "w"), numpy_helper.from_array(np.float32([1, -2, 3]), "b")]
    pads = [n // 2 for n in sides]
    how = {"pads": [*pads, *pads], **(conv or {})}
    nodes.append(helper.make_node("Conv", [joined, "w", *(["b"] if bias else [])], ["out"], **how))
    ends = ["out", *([parts[0]] if twice else [])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, *(f"{a} of {name}" for a in letters)])
        for name in ends
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, *(f"{a}{name}" for a in letters)])
        for name, c in zip(names, channels, strict=True)
    ]
    made = helper.make_model(helper.make_graph(nodes, "test", inputs, outputs, stored),
                             opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
    onnx.checker.check_model(made)
    return made.SerializeToString()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_merged_graph_computes_the_same(data: st.DataObject) -> None:
    """Any whole ratios, odd kernels, 1D to 3D, several inputs of which some are upsampled, with and without a bias."""
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    space = data.draw(st.integers(1, 3), "axes")
    count = data.draw(st.integers(1, 3), "inputs")
    size = [data.draw(st.integers(1, 5)) * 12 for _ in range(space)] if space < 3 else [12] * 3
    ratios = [tuple(data.draw(st.sampled_from([1, 2, 3, 4])) for _ in range(space)) for _ in range(count)]
    channels = [data.draw(st.integers(1, 4)) for _ in range(count)]
    sides = [data.draw(st.sampled_from([1, 3, 5])) for _ in range(space)]
    ways = data.draw(st.sampled_from(["floor", "round_prefer_floor", "round_prefer_ceil"]))
    mode = "asymmetric" if ways == "floor" else "half_pixel"
    weights = graph(rng, space, ratios, channels, sides, {**SHORT, "nearest_mode": ways,
                    "coordinate_transformation_mode": mode}, bias=data.draw(st.booleans()))  # fmt: skip
    feeds = {f"in{i}": rng.standard_normal((2, c, *(n // r for n, r in zip(size, ratio, strict=True)))).astype("f4")
             for i, (c, ratio) in enumerate(zip(channels, ratios, strict=True))}  # fmt: skip
    merged = with_merged_upsampling(weights)
    upsampled = sum(max(r) > 1 for r in ratios)
    assert ops(merged).count("ConvTranspose") == upsampled
    assert "Resize" not in ops(merged)
    if not upsampled:
        assert merged == weights
    expected = run(weights, feeds)
    found = run(merged, feeds)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-5 * expected.std()


@pytest.mark.parametrize(
    "change",
    [
        {"resize": {**SHORT, "mode": "linear", "coordinate_transformation_mode": "half_pixel"}},
        {"resize": {**SHORT, "nearest_mode": "ceil"}},
        {"resize": {**SHORT, "coordinate_transformation_mode": "align_corners"}},
        {"conv": {"pads": [0, 0, 0, 0]}},
        {"conv": {"strides": [2, 2]}},
        {"conv": {"dilations": [2, 2], "pads": [2, 2, 2, 2]}},
        {"conv": {"pads": [2, 2, 0, 0]}},
        {"twice": True},
        {"sides": [2, 3], "conv": {"pads": [1, 1, 0, 1]}},
        {"ratios": [(2.5, 2), (1, 1)]},
        {"ratios": [(5000, 5000), (1, 1)]},
    ],
    ids=str,
)
def test_what_is_not_the_same_is_left_alone(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    given = {"ratios": [(2, 2), (1, 1)], "channels": [2, 3], "sides": [3, 3], **change}
    weights = graph(rng, 2, **given)
    assert with_merged_upsampling(weights) == weights


def test_a_tensor_without_known_channels_is_left_alone() -> None:
    """Nothing says which channels of the kernel belong to which input."""
    model = onnx.load_from_string(graph(np.random.default_rng(2), 2, [(2, 2), (1, 1)], [2, 3], [3, 3]))
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_param = f"channels of {value.name}"
    weights = model.SerializeToString()
    assert with_merged_upsampling(weights) == weights
