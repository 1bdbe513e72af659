"""ONNX files that every consumer reads: their opset and version, and those of others brought to them."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.inliner
import onnx.version_converter

from ..zoo.errors import PackageError, ProofFailed

OPSET = 17
IR_VERSION = 8
"""The newest opset and file version that every consumer reads: Fiji's onnxruntime is 1.12, newer files do not load."""


def read_back(data: bytes) -> dict[str, Any]:
    """What an ONNX file says of itself: opset, ir_version, dynamic axes. Raises ProofFailed where old readers fail."""
    model = onnx.load_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    opset = opset_of(model)
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


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a file asks for."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)


def load(data: bytes, where: str) -> onnx.ModelProto:
    """A model of one file. Raises PackageError for bytes that are none, for parts that lie elsewhere, and nonsense."""
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except DecodeError:
        raise PackageError(f"{where} is no ONNX file.") from None
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        raise PackageError(
            f"{where}: its weights lie in a second file.",
            mend="python -c \"import onnx; onnx.save(onnx.load('MODEL.onnx'), 'ONE.onnx')\"",
        )
    stored = {t.name for t in model.graph.initializer}
    ends = ([i for i in model.graph.input if i.name not in stored], model.graph.output)
    if any(len(end) != 1 for end in ends):
        raise PackageError(
            f"{where} has {len(ends[0])} inputs and {len(ends[1])} outputs; a portable package has one of each.",
            mend="export the network again with one input and one output",
        )
    return model


def modernised(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The model at OPSET and IR_VERSION, its functions inlined, and what there is to say of it.

    onnx's own converter does it. Where it cannot, and every node is the same in OPSET, the number alone is changed:
    the checker says whether that is so, and the proof whether it computes the same. Else the file stays as it is.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    stored = {t.name for t in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in stored]  # IR 3 has the weights among them
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    found = opset_of(model)
    if found == OPSET and model.ir_version <= IR_VERSION:
        model.ir_version = max(model.ir_version, 4)
        return model, []
    for way in (_converted, _renumbered):
        try:
            made = way(model)
            made.ir_version = IR_VERSION
            onnx.checker.check_model(made, full_check=True)
        except Exception:
            continue
        return made, [f"ONNX opset {found} became {OPSET}"] if found != OPSET else []
    return model, [f"the ONNX file stays at opset {found}: it cannot be brought to {OPSET}, which Fiji reads"]


def _converted(model: onnx.ModelProto) -> onnx.ModelProto:
    return model if opset_of(model) == OPSET else onnx.version_converter.convert_version(model, OPSET)


def _renumbered(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    for entry in made.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OPSET
    return made
