"""The exported ONNX graph is one that old readers load, and computes what the torch network computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from tests.packages import micrograph, random_network
from voidzoo.export.graph import denoiser_of, evaluate, to_onnx
from voidzoo.export.onnx_file import read_back
from voidzoo.zoo.errors import ProofFailed
from voidzoo.zoo.normalise import Normalisation

NETWORKS: dict[str, dict[str, Any]] = {
    "2d": {"dims": 2, "depth": 2},
    "2d-residual-two-channels": {"dims": 2, "depth": 1, "residual": True, "channels_in": 2, "channels_out": 2},
    "2d-depth3": {"dims": 2, "depth": 3, "kernel": [5, 5]},
    "n2v2": {"dims": 2, "depth": 2, "top_skip": False, "pooling": "blur"},
    "n2v2-3d": {"dims": 3, "depth": 1, "filters": 2, "top_skip": False, "pooling": "blur", "kernel": [3, 5, 5]},
    "3d-flat": {"dims": 3, "depth": 2, "filters": 2},
    "3d-pooled": {"dims": 3, "depth": 1, "filters": 2, "pool": [2, 2, 2]},
}


def make(name: str) -> tuple[Any, int, str, tuple[int, ...]]:
    """Random weights and statistics -> network, channels, axes, divisors."""
    rng = np.random.default_rng()
    config = {"network": "unet", "filters": 4, "channels_in": 1, "channels_out": 1, **NETWORKS[name]}
    network = random_network(int(rng.integers(2**31)), **config)
    channels, dims = config["channels_in"], config["dims"]
    mean, std = rng.uniform(-100, 3000, channels), rng.uniform(1, 400, channels)
    wrapped = denoiser_of(network, Normalisation(tuple(mean), tuple(std)))
    steps = tuple(p ** config["depth"] for p in config.get("pool", [1, 2, 2][-dims:]))
    return wrapped, channels, "zyx"[-dims:], steps


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_is_portable_and_equals_torch_at_odd_legal_sizes(name: str) -> None:
    """Opset 17, IR 8, one file, any batch and size; outputs differ by rounding only, at sizes never traced."""
    network, channels, axes, steps = make(name)
    data = to_onnx(network, channels, axes, {a: 8 * s for a, s in zip(axes, steps, strict=True)})
    model = onnx.load_from_string(data)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert not any(t.external_data for t in model.graph.initializer)
    for tensor in (model.graph.input[0], model.graph.output[0]):
        dims = tensor.type.tensor_type.shape.dim
        assert [d.dim_param or d.dim_value for d in dims] == ["batch", channels, *axes]
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng()
    for batch in (1, 3):
        sides = [int(s * rng.integers(3, 12)) for s in steps]
        x = micrograph(rng, (batch, channels, *sides), "float32")
        (found,) = session.run(None, {"input": x})
        expected = evaluate(network, x)
        assert found.shape == expected.shape == x.shape
        # some random weights leave a std of 1 on a mean of 2000, where float32 has steps of 0.0001
        limit = 1e-4 * expected.std() + 4 * np.finfo(np.float32).eps * np.abs(expected).max()
        assert np.abs(found - expected).max() <= limit


def test_raw_intensities_in_raw_intensities_out() -> None:
    """Scaling the image together with the statistics scales the result: nobody has to normalise."""
    network, _, _, _ = make("2d")
    x = micrograph(np.random.default_rng(), (1, 1, 32, 40), "float32")
    y = evaluate(network, x)
    for mean, std in ((network.mean, network.std), (network.mean_out, network.std_out)):
        mean.mul_(3).add_(50)
        std.mul_(3)
    assert np.allclose(evaluate(network, 3 * x + 50), 3 * y + 50, rtol=1e-3, atol=1e-3 * y.std())


def test_what_old_readers_cannot_load_is_refused() -> None:
    """A newer opset or file version, weights beside the file, and fixed sizes are noticed in the file itself."""
    network, channels, axes, _ = make("2d")
    data = to_onnx(network, channels, axes, {"y": 32, "x": 32})
    facts = read_back(data)
    assert facts == {"opset": 17, "ir_version": 8, "bytes": len(data)}

    newer = onnx.load_from_string(data)
    newer.ir_version = 10
    with pytest.raises(ProofFailed, match=r"opset 17, IR 10; Fiji reads opset 17, IR 8"):
        read_back(newer.SerializeToString())

    fixed = onnx.load_from_string(data)
    fixed.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    with pytest.raises(ProofFailed, match="input has fixed axes"):
        read_back(fixed.SerializeToString())

    converted = onnx.version_converter.convert_version(onnx.load_from_string(data), 18)
    with pytest.raises(ProofFailed, match="opset 18"):
        read_back(converted.SerializeToString())


def test_the_normalisation_lies_in_the_graph() -> None:
    """The file holds mean and std: without voidzoo, onnxruntime alone undoes them."""
    network, channels, axes, _ = make("2d")
    model = onnx.load_from_string(to_onnx(network, channels, axes, {"y": 32, "x": 32}))
    stored = [numpy_helper.to_array(t) for t in model.graph.initializer]
    stored += [numpy_helper.to_array(n.attribute[0].t) for n in model.graph.node if n.op_type == "Constant"]
    for value in (network.mean, network.std):
        assert any(np.array_equal(np.ravel(s), value.numpy().ravel()) for s in stored)
