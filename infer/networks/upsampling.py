"""Nearest upsampling and the convolution after it, as one transposed convolution: the same sums in fewer steps.

After upsampling by s, a kernel reads each pixel several times; the weights of those taps can be added before. A kernel
of 3 over s = 2 has 3 taps an output pixel and axis, the transposed one 2: 4 of 9 in 2D, 8 of 27 in 3D, and neither the
upsampled image nor its concatenation with the skip connection is ever made. In OpenVINO a U-Net becomes an eighth
faster, and smaller; onnxruntime's transposed convolution is slow, there the graph stays as it is (docs/decisions/0012).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ratios = tuple[int, ...]
LARGEST = 16
"""The largest ratio that is merged: the kernel grows with it, in each axis, and a package may say any number."""
NEAREST = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""Ways of `Resize` in which output pixel o is input pixel o // s, for every whole s."""


def with_merged_upsampling(weights: bytes) -> bytes:
    """The graph with each nearest upsampling merged into the convolution behind it, where that is possible.

    With y = conv(up(x), w), kernel 2p + 1, padding p: y = conv_transpose(x, v), stride s, padding p, where
    v[t] = sum of w[j] over 0 <= t + j - 2p < s, for t = 0 ... s + 2p - 1 (along each axis). If x is one of several
    concatenated tensors, its channels of w are taken out, and the convolution of the others is added.
    """
    import onnx

    model = onnx.load_from_string(weights)
    graph = _Graph(model)
    for node in list(model.graph.node):
        if node.op_type == "Conv" and node.domain in ("", "ai.onnx"):
            graph.merge(node)
    if not graph.changed:
        return weights
    graph.write()
    return model.SerializeToString()


def merged_kernel(kernel: NDArray[np.float32], ratios: Ratios) -> NDArray[np.float32]:
    """(out, in, *space), odd sides, after upsampling by `ratios` -> the transposed kernel (in, out, *space)."""
    found = kernel.astype(np.float64)
    for axis, s in enumerate(ratios, start=2):
        p = found.shape[axis] // 2
        taps = [
            sum(np.take(found, j, axis) for j in range(2 * p + 1) if 0 <= t + j - 2 * p < s) for t in range(s + 2 * p)
        ]
        found = np.stack(taps, axis)
    return np.ascontiguousarray(found.swapaxes(0, 1), dtype=np.float32)


class _Graph:
    """A graph whose nodes are replaced one by one."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.onnx = onnx
        self.graph = model.graph
        self.made = {name: node for node in self.graph.node for name in node.output}
        self.stored = {t.name: t for t in self.graph.initializer}
        self.uses = Counter(name for node in self.graph.node for name in node.input)
        self.uses.update(o.name for o in self.graph.output)
        try:
            inferred = onnx.shape_inference.infer_shapes(model).graph
        except onnx.shape_inference.InferenceError:
            inferred = self.graph
        self.channels = {
            v.name: v.type.tensor_type.shape.dim[1].dim_value
            for v in (*inferred.value_info, *inferred.input)
            if len(v.type.tensor_type.shape.dim) > 2
        }
        self.instead: dict[str, list[Any]] = {}
        self.gone: set[str] = set()

    @property
    def changed(self) -> bool:
        return bool(self.instead)

    def merge(self, conv: Any) -> None:
        """Take the upsampling before a convolution into it; leave it as it is where that cannot be."""
        kernel = self.constant(conv.input[1])
        if kernel is None or kernel.dtype != np.float32 or not _plain(self.attributes(conv), kernel.shape[2:]):
            return
        before = self.made.get(conv.input[0])
        joined = before is not None and before.op_type == "Concat" and self.attributes(before).get("axis") == 1
        if joined and self.uses[conv.input[0]] > 1:
            return
        parts = list(before.input) if joined and before is not None else [conv.input[0]]
        ratios = {name: r for name in parts if (r := self.upsampled(name, kernel.ndim - 2)) is not None}
        sizes = [self.channels.get(name, 0) for name in parts] if joined else [kernel.shape[1]]
        if not ratios or len(set(parts)) < len(parts) or not all(sizes) or sum(sizes) != kernel.shape[1]:
            return
        self.replace(conv, parts, sizes, ratios, kernel)
        if joined and before is not None:
            self.gone.add(before.output[0])
        self.gone.update(ratios)

    def replace(
        self, conv: Any, parts: Sequence[str], sizes: Sequence[int], ratios: dict[str, Ratios],
        kernel: NDArray[np.float32],
    ) -> None:  # fmt: skip
        """One convolution for what is not upsampled, one transposed for each part that is, and their sum."""
        make, out = self.onnx.helper.make_node, conv.output[0]
        edges = np.cumsum([0, *sizes])
        share = {name: kernel[:, edges[i] : edges[i + 1]] for i, name in enumerate(parts)}
        bias = list(conv.input[2:3])
        nodes, sums = [], []
        if rest := [name for name in parts if name not in ratios]:
            source = rest[0]
            if len(rest) > 1:
                source = f"{out}/rest"
                nodes.append(make("Concat", rest, [source], axis=1))
            weights = self.store(f"{out}/rest_weights", np.concatenate([share[n] for n in rest], axis=1))
            sums.append(f"{out}/plain")
            nodes.append(make("Conv", [source, weights, *bias], [sums[-1]], **self.attributes(conv)))
            bias = []
        pads = [n // 2 for n in kernel.shape[2:]]
        for i, (name, ratio) in enumerate(ratios.items()):
            weights = self.store(f"{out}/up{i}_weights", merged_kernel(share[name], ratio))
            sums.append(f"{out}/up{i}")
            small = self.made[name].input[0]
            nodes.append(make("ConvTranspose", [small, weights, *bias], [sums[-1]], strides=ratio, pads=[*pads, *pads]))
            bias = []
        while len(sums) > 1:
            total = out if len(sums) == 2 else f"{sums[0]}+"
            nodes.append(make("Add", sums[:2], [total]))
            sums = [total, *sums[2:]]
        nodes[-1].output[0] = out
        self.instead[out] = nodes

    def store(self, name: str, values: NDArray[np.float32]) -> str:
        self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def upsampled(self, name: str, axes: int) -> Ratios | None:
        """By how much a tensor, used once, was upsampled, if that is in whole numbers and to the nearest pixel."""
        node = self.made.get(name)
        if node is None or node.op_type not in ("Resize", "Upsample") or self.uses[name] != 1:
            return None
        how = self.attributes(node)
        if node.op_type == "Resize":
            ways = (_text(how.get("coordinate_transformation_mode", "half_pixel")),
                    _text(how.get("nearest_mode", "round_prefer_floor")))  # fmt: skip
            if ways not in NEAREST or len(node.input) != 3 or how.get("axes"):
                return None
        scales = self.constant(node.input[-1])
        if _text(how.get("mode", "nearest")) != "nearest" or scales is None or scales.shape != (axes + 2,):
            return None
        whole = scales.round().astype(int)
        if not np.array_equal(whole, scales) or (whole < 1).any() or (whole[:2] != 1).any():
            return None
        if whole.max() == 1 or whole.max() > LARGEST:
            return None
        return tuple(int(n) for n in whole[2:])

    def constant(self, name: str) -> NDArray[Any] | None:
        node = self.made.get(name)
        while node is not None and node.op_type == "Identity":
            name = node.input[0]
            node = self.made.get(name)
        if node is not None and node.op_type == "Constant":
            value = self.attributes(node).get("value")
            return None if value is None else self.onnx.numpy_helper.to_array(value)
        return self.onnx.numpy_helper.to_array(self.stored[name]) if name in self.stored else None

    def attributes(self, node: Any) -> dict[str, Any]:
        return {a.name: self.onnx.helper.get_attribute_value(a) for a in node.attribute}

    def write(self) -> None:
        """Put the new nodes in the places of the old ones."""
        nodes = []
        for node in self.graph.node:
            if node.output[0] in self.instead:
                nodes.extend(self.instead[node.output[0]])
            elif node.output[0] not in self.gone:
                nodes.append(node)
        del self.graph.node[:]
        self.graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input}
        kept = [t for t in self.graph.initializer if t.name in used]
        del self.graph.initializer[:]
        self.graph.initializer.extend(kept)
        del self.graph.value_info[:]


def _plain(how: dict[str, Any], sides: tuple[int, ...]) -> bool:
    """Whether a convolution keeps the size of its input: odd kernel, stride and dilation 1, padded by half of it."""
    pads = [n // 2 for n in sides]
    return (
        all(n % 2 for n in sides)
        and how.get("group", 1) == 1
        and set(how.get("strides", [1])) == {1}
        and set(how.get("dilations", [1])) == {1}
        and _text(how.get("auto_pad", "NOTSET")) == "NOTSET"
        and list(how.get("pads", [0] * 2 * len(sides))) == [*pads, *pads]
    )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
