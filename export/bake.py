"""Processing and layout of a model, put into its ONNX graph: what comes out takes and returns b c [t] [z] y x."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from ..zoo.errors import PackageError
from ..zoo.package import Step
from .onnx_file import opset_of

OLDEST = 13
"""The first opset whose nodes have the form that is written here."""
EPS = 1e-6
"""What bioimageio.core adds to the std of fixed_zero_mean_unit_variance."""
FIXED = (
    "binarize", "clip", "ensure_dtype", "fixed_zero_mean_unit_variance", "scale_linear", "sigmoid", "softmax",
)  # fmt: skip
"""Steps that need to know nothing of the image, and can be part of a graph."""
TYPES = {
    "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8,
    "uint16": TensorProto.UINT16, "int16": TensorProto.INT16, "uint32": TensorProto.UINT32, "int32": TensorProto.INT32,
    "uint64": TensorProto.UINT64, "int64": TensorProto.INT64, "bool": TensorProto.BOOL,
}  # fmt: skip
WIDE = (TensorProto.UINT32, TensorProto.INT32, TensorProto.UINT64, TensorProto.INT64)
"""Whole numbers that float32 does not hold."""
REAL = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def is_fixed(step: Step) -> bool:
    """Whether a step does the same to every image."""
    return step.name in FIXED and not {"min_percentile", "max_percentile"} & set(step.kwargs)


def baked(
    model: onnx.ModelProto,
    layouts: tuple[str, str],
    space: str,
    channels: tuple[int, int],
    steps: tuple[Sequence[Step], Sequence[Step]] = ((), ()),
    sizes: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """The model between its fixed steps, with the input and output `input`, `output`: float32 (b, c, *space).

    layouts: the letters of the axes that the network takes and returns. channels: how many there are. steps: before and
    after the network; an `axis` is named by its letter. sizes: of axes that cannot be free, `b` among them.
    Raises PackageError for a file that is too old to be written to.
    """
    opset = opset_of(model)
    if opset < OLDEST:
        raise PackageError(
            f"the ONNX file has opset {opset}, which onnx's converter cannot raise to {OLDEST}.",
            mend="export the network again with opset 17",
        )
    model = onnx.compose.add_prefix(model, "net/")
    graph, axes = model.graph, "bc" + space
    inner, outer = graph.input[0], graph.output[0]
    before = _Chain("before", "input", TensorProto.FLOAT, axes)
    before.steps(steps[0])
    before.cast(inner.type.tensor_type.elem_type)
    before.laid_out(layouts[0])
    before.close(inner.name)
    after = _Chain("after", outer.name, outer.type.tensor_type.elem_type, axes)
    after.from_layout(layouts[1])
    after.steps(steps[1])
    after.cast(TensorProto.FLOAT)
    after.close("output")
    nodes = [*before.nodes, *graph.node, *after.nodes]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.constants, *after.constants])
    fixed = sizes or {}
    taken = [channels[0] if a == "c" else fixed.get(a, a) for a in axes]
    given = [fixed.get("b", "b"), channels[1], *(f"{a}_out" for a in space)]  # told by the run
    graph.input.append(helper.make_tensor_value_info("input", TensorProto.FLOAT, taken))
    graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, given))
    return model


class _Chain:
    """Nodes one after the other. value: the name of what the last one makes; kind: its element type."""

    def __init__(self, prefix: str, value: str, kind: int, axes: str) -> None:
        self.prefix, self.value, self.kind, self.axes = prefix, value, kind, axes
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, *more: str, **attributes: Any) -> None:
        made = f"{self.prefix}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.value, *more], [made], name=f"{made}/{op}", **attributes))
        self.value = made

    def constant(self, values: Any, axis: str | None = None) -> str:
        """A number, a list along an axis, or (with axis `-`) whole numbers that are no pixels."""
        dtype = np.dtype(np.int64) if axis == "-" else helper.tensor_dtype_to_np_dtype(self.kind)
        array = np.asarray(values, dtype)
        if axis not in (None, "-"):
            array = array.reshape([-1 if a == axis else 1 for a in self.axes])
        name = f"{self.prefix}/k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def close(self, name: str) -> None:
        """Call what was made by a name."""
        if not self.nodes:
            self.add("Identity")
        self.nodes[-1].output[0] = self.value = name

    def cast(self, kind: int) -> None:
        if self.kind != kind:
            self.add("Cast", to=kind)
            self.kind = kind

    def real(self) -> None:
        """Whole numbers become real ones, as wide as they need."""
        if self.kind not in REAL:
            self.cast(TensorProto.DOUBLE if self.kind in WIDE else TensorProto.FLOAT)

    def laid_out(self, letters: str) -> None:
        """(b, c, *space) -> the axes that a network has, in its order."""
        have = self.axes
        if gone := [i for i, a in enumerate(have) if a not in letters]:
            self.add("Squeeze", self.constant(gone, "-"))
            have = "".join(a for a in have if a in letters)
        if have != letters:
            self.add("Transpose", perm=[have.index(a) for a in letters])

    def from_layout(self, letters: str) -> None:
        """The axes of a network -> (b, c, *space)."""
        want = "".join(a for a in self.axes if a in letters)
        if want != letters:
            self.add("Transpose", perm=[letters.index(a) for a in want])
        if new := [i for i, a in enumerate(self.axes) if a not in letters]:
            self.add("Unsqueeze", self.constant(new, "-"))

    def steps(self, steps: Sequence[Step]) -> None:
        """Processing, as bioimageio.core 0.11 does it (proc_ops.py). Raises PackageError for settings that lack."""
        for step in steps:
            try:
                self.step(step)
            except (KeyError, TypeError, ValueError) as error:
                raise PackageError(
                    f"the step {step.name} cannot be done as described.", where=f"{type(error).__name__}: {error}"[:200]
                ) from error

    def step(self, step: Step) -> None:
        given, axis = step.kwargs, step.kwargs.get("axis")
        if step.name == "ensure_dtype":
            self.cast(TYPES[str(given["dtype"])])
            return
        self.real()
        if step.name == "scale_linear":
            self.add("Mul", self.constant(given.get("gain", 1.0), axis))
            self.add("Add", self.constant(given.get("offset", 0.0), axis))
        elif step.name == "fixed_zero_mean_unit_variance":
            self.add("Sub", self.constant(given["mean"], axis))
            self.add("Div", self.constant(np.asarray(given["std"], np.float64) + EPS, axis))
        elif step.name == "clip":
            self.add("Clip", *[self.constant(given[k]) if k in given else "" for k in ("min", "max")])
        elif step.name == "binarize":
            self.add("Greater", self.constant(given["threshold"], axis))
            self.kind = TensorProto.BOOL
        elif step.name == "sigmoid":
            self.add("Sigmoid")
        else:
            self.add("Softmax", axis=self.axes.index(axis or "c"))
