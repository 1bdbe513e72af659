"""What ONNX nodes do to the axes of their tensors: elementwise ones, reductions, normalisations, products.

Operators: https://onnx.ai/onnx/operators/ (opsets 7 to 23).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .receptive_axis import Along, Lost, Sees, Tensor, union

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Node:
    """A node with all that is known of it. label: for people. inputs: None where left out. shapes: of the outputs."""

    op: str
    label: str
    version: int
    attrs: Mapping[str, Any]
    inputs: Sequence[Tensor | None]
    shapes: Sequence[tuple[int, ...]]

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """Shape of an input."""
        tensor = self.inputs[index]
        return (tensor.shape or ()) if tensor else ()

    @property
    def rank(self) -> int:
        """Axes of the first input."""
        return len(self.shape())

    def constant(self, index: int) -> NDArray[Any] | None:
        """The value of an input, None if it is left out."""
        tensor = self.inputs[index] if index < len(self.inputs) else None
        return tensor.value if tensor else None

    def numbers(self, name: str, index: int) -> list[int] | None:
        """Whole numbers that are an attribute in old opsets and an input in new ones; None if not given."""
        value = self.attrs.get(name)
        if value is None:
            value = self.constant(index)
        return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]

    def axes(self, index: int = 1) -> list[int] | None:
        """The attribute or input `axes`, counted from 0; None if not given."""
        axes = self.numbers("axes", index)
        return None if axes is None else [a % self.rank for a in axes]


def text(value: Any) -> str:
    """An attribute that is a word."""
    return value.decode() if isinstance(value, bytes) else str(value)


def everything(node: Node) -> Sees:
    """Every output element depends on every input element."""
    keys = [key for t in node.inputs if t for key in t.sees]
    return {key: Lost(_reason(node, key)) for key in keys}


def _reason(node: Node, key: tuple[str, int]) -> str:
    """The first node that lost the axis, else this one."""
    states = [t.sees[key] for t in node.inputs if t and key in t.sees]
    return next((s.why for s in states if s.why and not (isinstance(s, Lost) and s.channel)), node.label)


def follow(node: Node, along: Callable[[Along], Along | Lost], source: int = 0) -> Sees:
    """The axes of one input go through `along`; what other inputs depend on is lost (weights that are computed)."""
    tensor = node.inputs[source]
    sees: Sees = {k: along(s) if isinstance(s, Along) else s for k, s in (tensor.sees if tensor else {}).items()}
    for i, other in enumerate(node.inputs):
        if i != source and other and other.sees:
            sees.update({k: Lost(_reason(node, k)) for k in other.sees})
    return sees


def pointwise(node: Node) -> Sees:
    """Elementwise with broadcasting, of any number of inputs."""
    return together(node, [t for t in node.inputs if t], node.shapes[0])


def together(node: Node, tensors: Sequence[Tensor], out: Sequence[int], but: int | None = None) -> Sees:
    """Elements of several tensors at the same place are put together. but: an axis that is not broadcast."""
    fixed = {a for t in tensors if not t.sees for a in range(-len(t.shape or ()), 0) if t.varies(a)}
    found: dict[tuple[str, int], list[Along | Lost]] = {}
    for tensor in tensors:
        shape = tensor.shape or ()
        for key, state in tensor.sees.items():
            here = state
            if isinstance(state, Along):
                axis = state.axis + len(out) - len(shape)
                here = replace(state, axis=axis)
                if axis != but and shape[state.axis] != out[axis]:
                    here = Lost(state.why or node.label)  # one element is put to use everywhere
                elif axis != but and axis - len(out) in fixed:
                    here = replace(here, why=here.why or node.label)  # a constant that knows the position
            found.setdefault(key, []).append(here)
    return {key: union(states, node.label) for key, states in found.items()}


def unchanged(node: Node) -> Sees:
    """The output is the first input as it is."""
    return follow(node, lambda s: s)


def over(axes: Callable[[Node], Collection[int]]) -> Callable[[Node], Sees]:
    """Normalisations and the like: each element sees all others along some axes; the axes remain."""

    def handler(node: Node) -> Sees:
        which = axes(node)
        return follow(node, lambda s: replace(s, why=s.why or node.label) if s.axis in which else s)

    return handler


def _softmax_axes(node: Node) -> Collection[int]:
    if node.version >= 13:
        return {node.attrs.get("axis", -1) % node.rank}
    return range(node.attrs.get("axis", 1) % node.rank, node.rank)  # before opset 13: all from this one on


def _from_axis(node: Node) -> Collection[int]:
    return range(node.attrs.get("axis", -1) % node.rank, node.rank)


def _one_axis(node: Node) -> Collection[int]:
    return {node.attrs.get("axis", -1) % node.rank}


def _given_axes(node: Node) -> Collection[int]:
    return {a % node.rank for a in node.attrs.get("axes", (0, 2, 3))}


def _input_axis(node: Node) -> Collection[int]:
    value = node.constant(1)
    return range(node.rank) if value is None else {int(value) % node.rank}


def reduction(node: Node) -> Sees:
    """Reduce*, ArgMax, ArgMin: elements along the axes become one."""
    if node.op.startswith("Arg"):
        axes: Collection[int] = {node.attrs.get("axis", 0) % node.rank}
    elif len(node.inputs) > 1 and node.inputs[1] and node.inputs[1].value is None:
        return everything(node)
    else:
        given = node.axes()
        none = () if node.attrs.get("noop_with_empty_axes") else range(node.rank)
        axes = given or none
    keep = node.attrs.get("keepdims", 1)

    def along(s: Along) -> Along | Lost:
        if s.axis in axes:
            return Lost(s.why or node.label)
        return s if keep else replace(s, axis=s.axis - sum(a < s.axis for a in axes))

    return follow(node, along)


def global_pool(node: Node) -> Sees:
    """Global*Pool: every spatial axis becomes one element."""
    return follow(node, lambda s: Lost(s.why or node.label) if s.axis >= 2 else s)


def matrix_product(node: Node) -> Sees:
    """MatMul: (..., m, k) with (..., k, n). A constant on one side is a linear layer over channels."""
    a, b = (t for t in node.inputs[:2] if t)
    out = len(node.shapes[0])
    linear = not (a.sees and b.sees)

    def side(tensor: Tensor, contracted: int) -> Sees:
        rank = len(tensor.shape or ())
        sees: Sees = {}
        for key, s in tensor.sees.items():
            if isinstance(s, Lost) or s.axis != max(0, rank + contracted):
                sees[key] = s if isinstance(s, Lost) else replace(s, axis=s.axis + out - rank)
            else:
                sees[key] = Lost(s.why or node.label, channel=linear)
        return sees

    first, second = side(a, -1), side(b, -2)
    both = {k: [s[k] for s in (first, second) if k in s] for k in (*first, *second)}
    return {key: union(states, node.label) for key, states in both.items()}


def linear_layer(node: Node) -> Sees:
    """Gemm: (m, k) with (k, n) and a bias."""
    kept = 1 if node.attrs.get("transA") else 0

    def along(s: Along) -> Along | Lost:
        return replace(s, axis=0) if s.axis == kept else Lost(s.why or node.label, channel=True)

    return follow(node, along)


POINTWISE = """
Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Celu Clip Cos
Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less
LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin
Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
"""

REDUCTIONS = """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
ArgMax ArgMin
"""

SIMPLE: dict[str, Callable[[Node], Sees]] = {
    **dict.fromkeys(POINTWISE.split(), pointwise),
    **dict.fromkeys(["BatchNormalization", "Cast", "CastLike", "Dropout", "Identity"], unchanged),
    **dict.fromkeys(["DequantizeLinear", "QuantizeLinear"], unchanged),
    **dict.fromkeys(["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"], global_pool),
    **dict.fromkeys(REDUCTIONS.split(), reduction),
    **dict.fromkeys(["Softmax", "LogSoftmax", "Hardmax"], over(_softmax_axes)),
    **dict.fromkeys(["LayerNormalization", "RMSNormalization"], over(_from_axis)),
    "CumSum": over(_input_axis),
    "Gemm": linear_layer,
    "GroupNormalization": over(lambda node: range(1, node.rank)),
    "InstanceNormalization": over(lambda node: range(2, node.rank)),
    "LRN": over(lambda _: (1,)),
    "LpNormalization": over(_one_axis),
    "MatMul": matrix_product,
    "MeanVarianceNormalization": over(_given_axes),
}
"""What each kind does to the axes that its outputs see."""
