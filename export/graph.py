"""torch -> one ONNX graph that takes raw intensities and returns denoised ones: nobody can normalise it wrongly."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from ..trainers.networks.unet import RawToDenoised
from ..zoo.errors import ProofFailed

if TYPE_CHECKING:
    from ..zoo.normalise import Normalisation

OPSET = 17
IR_VERSION = 8
"""The newest opset and file version that every consumer reads: Fiji's onnxruntime is 1.12, newer files do not load."""


def denoiser_of(network: Any, normalisation: Normalisation, target: Normalisation | None = None) -> RawToDenoised:
    """The network between normalisation and its inverse, in eval mode. target: that of the result, if it is another."""
    with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced at once
        raw = RawToDenoised(**network.config())
    raw.network = network
    target = target or normalisation
    for end, scale in (("", normalisation), ("_out", target)):
        for name, values in (("mean", scale.mean), ("std", scale.std)):
            buffer = getattr(raw, f"{name}{end}")
            buffer.copy_(torch.tensor(values, dtype=torch.float32).reshape(buffer.shape))
    return raw.eval()


def to_onnx(network: RawToDenoised, channels: int, space: str, sizes: dict[str, int]) -> bytes:
    """Export with dynamic batch and space. sizes: a legal size along each letter of `space`, to trace with.

    Raises ProofFailed when the file that was written is not of the opset, version or kind that was asked for.
    """
    network.eval()
    # two planes of unequal sides: what the tracer takes for constant is then noticed
    shape = [2, channels, *(sizes[a] * (2 if a == space[-1] else 1) for a in space)]
    names = {0: "batch", **{i + 2: a for i, a in enumerate(space)}}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # the tracing exporter is the one that writes version 8 in a single file; that it will go is known
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(shape),),
            buffer,
            input_names=["input"],
            output_names=["output"],
            dynamic_axes={"input": names, "output": names},
            opset_version=OPSET,
            dynamo=False,
        )
    data = buffer.getvalue()
    read_back(data)
    return data


def read_back(data: bytes) -> dict[str, Any]:
    """What an ONNX file says of itself: opset, ir_version, dynamic axes. Raises ProofFailed where old readers fail."""
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    external = [t.name for t in model.graph.initializer if t.external_data]
    dynamic = {
        tensor.name: [not d.HasField("dim_value") for d in tensor.type.tensor_type.shape.dim]
        for tensor in (*model.graph.input, *model.graph.output)
    }
    if opset > OPSET or model.ir_version > IR_VERSION or external:
        raise ProofFailed(
            f"the ONNX file has opset {opset}, IR {model.ir_version}"
            + (" and weights outside of the file" if external else "")
            + f"; Fiji reads opset {OPSET}, IR {IR_VERSION}, one file."
        )
    for name, axes in dynamic.items():
        if axes != [True, False, *(True,) * (len(axes) - 2)]:
            raise ProofFailed(f"the ONNX file's {name} has fixed axes: batch and space must be of any size.")
    return {"opset": opset, "ir_version": model.ir_version, "bytes": len(data)}


def evaluate(network: RawToDenoised, x: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The torch network on an array. float32 (b, c, [z], y, x) -> the same."""
    with torch.inference_mode():
        return network(torch.from_numpy(x)).numpy()
