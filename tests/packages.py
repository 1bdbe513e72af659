"""Small packages with random weights, and what a whole-image run of them gives: the oracle of the prediction tests."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import yaml
from numpy.typing import NDArray

from voidzoo.export.graph import denoiser_of, to_onnx
from voidzoo.export.pack import axis_rules
from voidzoo.infer.networks.graph import working_bytes
from voidzoo.trainers.networks.geometry import geometry
from voidzoo.trainers.networks.unet import build
from voidzoo.zoo.normalise import Normalisation
from voidzoo.zoo.package import Package, open_package


def random_network(seed: int, **config: Any) -> torch.nn.Module:
    """A network of which every pixel's neighbourhood matters: He weights, random batch norm statistics."""
    torch.manual_seed(seed)
    network = build(config).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.7, 1.5)
    return network


def make_package(
    folder: Path,
    *,
    dims: int = 2,
    depth: int = 2,
    filters: int = 4,
    channels: int = 1,
    outputs: int = 1,
    kinds: Sequence[str] | None = None,
    seed: int = 1,
    mean: float = 500.0,
    std: float = 100.0,
    **network: Any,
) -> Package:
    """Write a package folder with random weights; raw intensities in and out."""
    config = {"network": "unet", "dims": dims, "depth": depth, "filters": filters, "channels_in": channels,
              "channels_out": outputs, **network}  # fmt: skip
    built = random_network(seed, **config)
    rules = axis_rules(geometry({"kernel": built.kernel, "pool": built.pool, **config}))
    scale = [Normalisation((mean,) * n, (std,) * n) for n in (channels, outputs)]
    raw = denoiser_of(built, *scale)
    onnx = to_onnx(raw, channels, "".join(rules), {a: r.minimum for a, r in rules.items()})
    write_package(folder, onnx, rules, [f"in{i}" for i in range(channels)], [f"out{i}" for i in range(outputs)],
                  kinds=list(kinds or ["intensity"] * outputs))  # fmt: skip
    return open_package(folder)


def write_package(
    folder: Path, onnx: bytes, rules: dict[str, Any], inputs: list[str], outputs: list[str], kinds: list[str]
) -> None:
    """rdf.yaml and weights, as short as the format allows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.onnx").write_bytes(onnx)
    for name in ("test_input.npy", "test_output.npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.zeros(1))
        (folder / name).write_bytes(buffer.getvalue())

    shape = (1, len(inputs), *(r.minimum for r in rules.values()))

    def axes(names: list[str], sizes: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"type": "batch"}, {"type": "channel", "id": "channel", "channel_names": names},
                *({"type": "space", "id": a, **s} for a, s in sizes.items())]  # fmt: skip

    rdf = {
        "type": "model",
        "format_version": "0.5.4",
        "name": f"test {folder.name}",
        "inputs": [
            {"id": "input", "test_tensor": {"source": "test_input.npy"},
             "axes": axes(inputs, {a: {"size": {"min": r.minimum, "step": r.step}} for a, r in rules.items()})}
        ],
        "outputs": [
            {"id": "output", "test_tensor": {"source": "test_output.npy"},
             "axes": axes(outputs, {a: {"size": {"tensor_id": "input", "axis_id": a}, "halo": r.halo}
                                    for a, r in rules.items()})}
        ],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": hashlib.sha256(onnx).hexdigest(), "opset_version": 17}},
        "config": {"voidzoo": {"kinds": kinds, "working_bytes_per_voxel": working_bytes(onnx, [shape], math.prod(shape[2:]))}},
    }  # fmt: skip
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))


def whole(package: Package, x: NDArray[Any]) -> NDArray[np.float32]:
    """The network on a whole image at once, by numpy and onnxruntime alone. x: (c, [z], y, x) -> (c_out, [z], y, x)."""
    session = ort.InferenceSession(package.onnx(), providers=["CPUExecutionProvider"])
    pad = [(0, 0)]
    for n, rule in zip(x.shape[1:], package.rules.values(), strict=True):
        legal = max(n, rule.minimum)
        pad.append((0, -(-legal // rule.step) * rule.step - n))
    y = session.run(None, {"input": np.pad(x.astype(np.float32), pad, mode="symmetric")[None]})[0][0]
    return y[(slice(None), *(slice(0, n) for n in x.shape[1:]))]


def micrograph(rng: np.random.Generator, shape: Sequence[int], dtype: str = "uint16") -> NDArray[Any]:
    """Blobs on a background with shot noise: random, never flat."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.standard_normal(shape), [0.0] * (len(shape) - 2) + [2.0, 2.0])
    values = 500 + 150 * smooth / smooth.std() + 30 * rng.standard_normal(shape)
    if dtype == "uint8":
        values = values / 8
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else np.clip(values, 0, 60000).astype(dtype)
