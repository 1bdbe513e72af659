"""ONNX files that every consumer reads: their opset and version, and those of others brought to them."""

from __future__ import annotations

from typing import Any

import onnx

from ..zoo.errors import ProofFailed

OPSET = 17
IR_VERSION = 8
"""The newest opset and file version that every consumer reads: Fiji's onnxruntime is 1.12, newer files do not load."""


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
