"""What an ONNX graph tells before it runs: how much memory its tensors take at once, and whether that can be."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ...zoo.errors import PackageError
from ...zoo.onnx_data import MAX_TENSOR
from ...zoo.onnx_growth import values_a_voxel
from ...zoo.onnx_wire import contents

IN_PLACE = {"Relu", "LeakyRelu", "Sigmoid", "BatchNormalization", "Clip", "Identity", "Elu", "PRelu", "HardSwish"}
"""Steps that onnxruntime fuses into the one before, or runs in the same memory."""


def working_bytes(weights: bytes, shapes: Sequence[Sequence[int]], voxels: int) -> float:
    """Bytes per voxel that tensors take at the worst moment of a run over `voxels` voxels of the main input.

    shapes: one an input, in the axes of the graph. Nodes run in the order of the file, a tensor is freed after its last
    use. onnxruntime's arena and its blocked layouts come on top (`planning.ARENA`). 0 where the sizes of the tensors
    cannot be told before the run.
    """
    found = _inferred(weights, shapes)
    return 0.0 if found is None else _peak(*found) / voxels


def refuse_absurd(weights: bytes, shapes: Sequence[Sequence[int]], path: str) -> None:
    """Raise PackageError for a graph with a tensor above MAX_TENSOR where its inputs have these, its smallest, shapes.

    onnxruntime makes what depends on constants alone when it loads, and fills the memory without a word. Sizes that the
    graph computes from pixels are known to nobody before it runs.
    """
    if 4 * values_a_voxel(contents(weights)) * max(prod(s) for s in shapes) <= MAX_TENSOR:
        return  # plain networks are spared the fifth of a second that importing onnx takes
    found = _inferred(weights, shapes)
    if found is None:
        return
    name, size = max(found[1].items(), key=lambda item: item[1], default=("", 0))
    if size > MAX_TENSOR:
        raise PackageError(
            f"{path}: its network makes a tensor of {size:,} bytes on the smallest image that it takes; "
            f"{MAX_TENSOR:,} are the most.",
            where=f"tensor {name[:100]!r}",
        )


def _inferred(weights: bytes, shapes: Sequence[Sequence[int]]) -> tuple[Any, dict[str, int]] | None:
    """The graph, and the bytes of each of its tensors by name; None where they cannot be told."""
    import onnx

    try:
        model = onnx.load_from_string(weights)
    except Exception:  # of protobuf: what is no ONNX is told where it is loaded
        return None
    graph = model.graph
    stored = {i.name for i in graph.initializer}
    for value, shape in zip((i for i in graph.input if i.name not in stored), shapes, strict=False):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            dim.dim_value = size
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):  # RuntimeError: of its C++
        return None
    return inferred, {v.name: _bytes(v) for v in (*inferred.value_info, *inferred.input, *inferred.output)}


def _bytes(value: Any) -> int:
    kind = value.type.tensor_type
    if any(d.dim_value < 0 for d in kind.shape.dim):
        return 0
    width = {10: 2, 11: 8, 7: 8, 9: 1, 2: 1, 3: 1}.get(kind.elem_type, 4)
    return int(prod(d.dim_value for d in kind.shape.dim)) * width


def _peak(graph: Any, sizes: dict[str, int]) -> int:
    """The largest sum of tensors that are alive together."""
    last: dict[str, int] = {}
    for i, node in enumerate(graph.node):
        last.update(dict.fromkeys(node.input, i))
    keep = {o.name for o in graph.output}
    alive = {v.name: sizes.get(v.name, 0) for v in graph.input}
    peak = sum(alive.values())
    for i, node in enumerate(graph.node):
        done = [n for n in node.input if n in alive and last[n] == i and n not in keep]
        if node.op_type in IN_PLACE:
            for n in done:
                alive.pop(n)
        alive.update((n, sizes.get(n, 0)) for n in node.output)
        peak = max(peak, sum(alive.values()))
        for n in done:
            alive.pop(n, None)
    return peak
