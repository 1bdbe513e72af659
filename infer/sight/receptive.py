"""The receptive field of an ONNX graph: how far each output sees along each axis of each input. No pixel is run.

Every tensor is followed from the inputs to the outputs with the interval of input indices that its elements depend on
(`receptive_axis`), one function a kind of node (`receptive_ops`, `_windows`, `_moves`). Shapes come from ONNX's shape
inference with concrete input sizes, constants (the arithmetic on shapes that exporters write) from its reference
evaluator. Interval arithmetic for receptive fields: Araujo et al. 2019, https://distill.pub/2019/computing-receptive-fields
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from graphlib import CycleError, TopologicalSorter
from math import ceil, floor, lcm, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import PackageError
from .receptive_axis import NOTHING, Along, Lost, Sees, Tensor, begin
from .receptive_moves import MOVES
from .receptive_ops import SIMPLE, Node, everything
from .receptive_windows import WINDOWS

if TYPE_CHECKING:
    from numpy.typing import NDArray

HANDLERS = {**SIMPLE, **WINDOWS, **MOVES}
"""What each kind of node does; one that is not here sees everything."""
LARGEST_CONSTANT = 2**16
"""Elements up to which a constant's values are looked at; weights are larger, what exporters compute is smaller."""


@dataclass(frozen=True)
class Reach:
    """How far an output sees along one axis of an input; all in input pixels.

    before, after: what the worst output pixel sees before the first and after the last of the pixels that it covers.
    Output pixel p covers p / scale to (p + 1) / scale, the output centred on the input where it is smaller. aligned:
    what a cut spoils of a tile's output, if the tile starts at a multiple of `grid` and what is kept starts and ends at
    multiples; as a rule a little less than the larger of before and after, where there are strides. bounded: False if
    the output sees everything, or depends on its position; `why` then names the node, and before, after and aligned are
    those of the local part of the network. grid: tiles must start at multiples of it, else strides fall on other
    pixels. The output has size * scale + offset pixels; scale 0: no axis of the output runs along the input's.
    """

    before: int
    after: int
    aligned: int
    bounded: bool
    why: str
    grid: int
    scale: Fraction
    offset: Fraction

    @property
    def radius(self) -> int:
        """How far the worst pixel sees to either side."""
        return max(self.before, self.after)

    @property
    def halo(self) -> int:
        """`aligned`, rounded up to the grid."""
        return -(-self.aligned // self.grid) * self.grid


Field = dict[str, dict[str, tuple[Reach | None, ...]]]
"""Output -> input -> one Reach for each axis of the input."""


def receptive_field(weights: bytes, shapes: Mapping[str, tuple[int, ...]]) -> Field:
    """How far each output sees: output name -> input name -> one Reach for each axis of that input.

    weights: an ONNX file. shapes: a legal shape of every input; a few grid steps long, so that no axis shrinks to one
    element by chance. None stands for an axis that a convolution or linear layer contracts (channels), and for an
    output that does not depend on the input. Raises PackageError if `shapes` leaves an input out.
    """
    import onnx

    model = onnx.load_from_string(weights)
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    known = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    inputs = {v.name: v.type.tensor_type.elem_type for v in model.graph.input if v.name not in known}
    if missing := [name for name in inputs if name not in shapes]:
        raise PackageError(f"the graph's inputs are {', '.join(inputs)}; no shape is given for {', '.join(missing)}.")
    tensors = {}
    for name, kind in inputs.items():
        shape = tuple(shapes[name])
        tensors[name] = Tensor(shape, kind, {(name, a): begin(a, n) for a, n in enumerate(shape)})
    walk = _Walk(onnx, {o.domain: o.version for o in model.opset_import}, model.ir_version)
    walk.graph(model.graph, tensors)
    return {
        o.name: {name: tuple(_reach(tensors[o.name], (name, a)) for a in range(len(shapes[name]))) for name in inputs}
        for o in model.graph.output
    }


def widest(reaches: Iterable[Reach | None]) -> Reach | None:
    """One Reach that is enough for several outputs or inputs of the same pixel grid; None if there is none."""
    all_of_them = [r for r in reaches if r is not None]
    if not all_of_them:
        return None
    main = next((r for r in all_of_them if r.scale), all_of_them[0])
    return replace(
        main,
        before=max(r.before for r in all_of_them),
        after=max(r.after for r in all_of_them),
        aligned=max(r.aligned for r in all_of_them),
        bounded=all(r.bounded for r in all_of_them),
        why=next((r.why for r in all_of_them if r.why), ""),
        grid=lcm(*(r.grid for r in all_of_them)),
    )


def _reach(tensor: Tensor, key: tuple[str, int]) -> Reach | None:
    state = tensor.sees.get(key)
    if state is None or (isinstance(state, Lost) and state.channel):
        return None
    flat = state.flat(state.why or "Reshape") if isinstance(state, Along) else state
    if isinstance(flat, Lost):
        return Reach(0, 0, 0, bounded=False, why=flat.why, grid=1, scale=Fraction(0), offset=Fraction(0))
    size = tensor.shape[flat.axis] if tensor.shape else 0
    scale = Fraction(flat.period, flat.grid)
    offset = size - flat.pixels * scale
    before, after = _seen(flat, scale, offset)
    block = flat.grid - 1  # the last pixel of the first grid step
    spoilt = max(int(flat.last[1].max()), flat.mirror[0]) - block + offset / scale
    return Reach(
        before=before, after=after, aligned=max(0, -int(flat.first[1].min()), flat.mirror[1] - block, ceil(spoilt)),
        bounded=not flat.why, why=flat.why, grid=flat.grid, scale=scale, offset=offset,
    )  # fmt: skip


def _seen(flat: Along, scale: Fraction, offset: Fraction) -> tuple[int, int]:
    """What the worst output pixel depends on before and after the pixels that it covers."""
    shift = -offset / (2 * scale)  # half of what the output lacks lies before it
    before, after = 0, 0
    for p, (first, last) in enumerate(zip(flat.first[0].tolist(), flat.last[0].tolist(), strict=True)):
        if first < NOTHING // 2:  # others see no pixel
            before = max(before, floor(p / scale + shift) - first)
            after = max(after, last - ceil((p + 1) / scale + shift) + 1)
    return before, after


@dataclass
class _Walk:
    """Goes through a graph node by node. onnx: the module, which is slow to import. versions: of the operator sets."""

    onnx: Any
    versions: Mapping[str, int]
    ir_version: int
    opsets: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.opsets = [self.onnx.helper.make_opsetid(d, v) for d, v in self.versions.items()]

    def graph(self, graph: Any, tensors: dict[str, Tensor]) -> None:
        """Add every tensor of the graph to `tensors`, which holds its inputs."""
        for weight in graph.initializer:
            tensors[weight.name] = self.weight(weight)
        for node in _in_order(graph.node):
            tensors.update(self.outputs(node, tensors))

    def weight(self, weight: Any) -> Tensor:
        """A constant of the file; its values only if they are few."""
        few = prod(weight.dims) <= LARGEST_CONSTANT and not weight.external_data
        value = self.onnx.numpy_helper.to_array(weight) if few else None
        return Tensor(tuple(weight.dims), weight.data_type, {}, value)

    def constant(self, value: NDArray[Any]) -> Tensor:
        """A constant that was computed."""
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        return Tensor(value.shape, kind, {}, value if value.size <= LARGEST_CONSTANT else None)

    def outputs(self, node: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that a node makes."""
        inputs = [tensors.get(name) for name in node.input]
        folded = self.folded(node, inputs)
        if folded is not None:
            return dict(zip(node.output, folded, strict=False))
        if node.op_type == "If" and inputs[0] and inputs[0].value is not None:
            return self.branch(node, inputs[0].value, tensors)
        inputs += [tensors[name] for name in _captured(node) if name in tensors]
        types = self.types(node, inputs)
        known = types is not None and all(t is None or t.shape is not None for t in inputs)
        attrs = {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}
        shapes = [shape for _, shape in types.values()] if types else []
        described = Node(node.op_type, _label(node), self.versions.get(node.domain, 1), attrs, inputs, shapes)
        ours = known and node.domain in ("", "ai.onnx")
        handler = HANDLERS.get(node.op_type, everything) if ours else everything
        made = {}
        for k, name in enumerate(node.output):
            kind, shape = (types or {}).get(name, (0, None))
            one = k == 0 or node.op_type in ("Split", "Dropout")
            sees = (handler if one else everything)(replace(described, shapes=[shape]) if shape else described)
            made[name] = Tensor(shape, kind, _existing(sees, shape))
        return made

    def folded(self, node: Any, inputs: list[Tensor | None]) -> list[Tensor] | None:
        """The outputs, if they are constants whose values are known."""
        if node.op_type in ("Shape", "Size") and inputs[0] and inputs[0].shape is not None:
            shape = np.array(inputs[0].shape, np.int64)
            if node.op_type == "Size":
                return [self.constant(np.array(shape.prod()))]
            attrs = {a.name: a.i for a in node.attribute}
            return [self.constant(shape[attrs.get("start", 0) : attrs.get("end", len(shape))])]
        if node.op_type == "Constant":
            return self.written(node.attribute[0])
        given = [t for name, t in zip(node.input, inputs, strict=True) if name]
        values = [t.value for t in given if t and not t.sees]
        if len(values) != len(given) or any(v is None for v in values) or node.op_type.startswith("Random"):
            return None
        from onnx.reference import ReferenceEvaluator

        try:
            results = ReferenceEvaluator(node, opsets=dict(self.versions)).run(
                None, dict(zip([n for n in node.input if n], values, strict=True))
            )
        except Exception:  # an operator that the evaluator lacks raises one of many kinds: not known, then
            return None
        return [self.constant(np.asarray(r)) for r in results]

    def written(self, attribute: Any) -> list[Tensor] | None:
        """The value of a Constant."""
        value = self.onnx.helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return [self.constant(self.onnx.numpy_helper.to_array(value))]
        if attribute.name in ("value_int", "value_ints"):
            return [self.constant(np.array(value, np.int64))]
        return [self.constant(np.array(value, np.float32))] if attribute.name.startswith("value_float") else None

    def types(self, node: Any, inputs: list[Tensor | None]) -> dict[str, tuple[int, tuple[int, ...]]] | None:
        """Element type and shape of the outputs by name; None if they cannot be told before the graph runs."""
        helper, infer = self.onnx.helper, self.onnx.shape_inference
        named = {n: t for n, t in zip(node.input, inputs, strict=False) if n and t}
        kinds = {n: helper.make_tensor_type_proto(t.elem_type, t.shape) for n, t in named.items()}
        data = {n: self.onnx.numpy_helper.from_array(t.value) for n, t in named.items() if t.value is not None}
        try:
            schema = self.onnx.defs.get_schema(node.op_type, self.versions.get(node.domain, 1), node.domain)
            found = infer.infer_node_outputs(
                schema, node, kinds, data, opset_imports=self.opsets, ir_version=self.ir_version
            )
        except (self.onnx.defs.SchemaError, self.onnx.checker.ValidationError, infer.InferenceError):
            return None
        shapes = {}
        for name, kind in found.items():
            dims = kind.tensor_type.shape.dim
            if not kind.tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
                return None
            shapes[name] = (kind.tensor_type.elem_type, tuple(d.dim_value for d in dims))
        return shapes

    def branch(self, node: Any, condition: NDArray[Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of an If whose condition is known."""
        wanted = "then_branch" if bool(np.all(condition)) else "else_branch"
        graph = next(a.g for a in node.attribute if a.name == wanted)
        inside = dict(tensors)
        self.graph(graph, inside)
        return {name: inside[o.name] for name, o in zip(node.output, graph.output, strict=True)}


def _existing(sees: Sees, shape: tuple[int, ...] | None) -> Sees:
    if shape is None:  # nobody knows where its elements lie
        return {k: Lost(s.why) if isinstance(s, Along) else s for k, s in sees.items()}
    return {k: s.existing(shape[s.axis]) if isinstance(s, Along) else s for k, s in sees.items()}


def _in_order(nodes: Sequence[Any]) -> Iterator[Any]:
    """Nodes behind those whose tensors they take, as the format asks for; onnxruntime also runs files without order.

    Raises PackageError for nodes that wait for each other.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = {i: {maker[n] for n in (*node.input, *_captured(node)) if n in maker} - {i} for i, node in enumerate(nodes)}
    if all(max(before, default=-1) < i for i, before in needs.items()):
        return iter(nodes)
    try:
        return iter([nodes[i] for i in TopologicalSorter(needs).static_order()])
    except CycleError:
        raise PackageError("the ONNX file's nodes wait for each other.", mend="export the network again") from None


def _captured(node: Any) -> list[str]:
    """What the graphs inside of a node (If, Loop, Scan) use; names of their own are among it."""
    graphs = [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]
    inner = [n for g in graphs for n in g.node]
    return [name for n in inner for name in (*n.input, *_captured(n))]


def _label(node: Any) -> str:
    """The node for people: `GlobalAveragePool se.pool`."""
    parts = [p for p in (node.name or (node.output[0] if node.output else "")).replace("/", ".").split(".") if p]
    if len(parts) > 1 and parts[-1].split("_")[0] == node.op_type:
        parts.pop()  # torch repeats the kind at the end
    return " ".join((node.op_type, ".".join(parts))).strip()
