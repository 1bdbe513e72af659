"""What ONNX nodes that only move elements do to the axes of their tensors: slices, pads, reshapes, shuffles.

Operators: https://onnx.ai/onnx/operators/ (opsets 7 to 23).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from .receptive_axis import Along, Lost, Sees, Tensor, reshaped
from .receptive_ops import Node, everything, follow, text, together


def transpose(node: Node) -> Sees:
    """Transpose: axes in another order."""
    order = list(node.attrs.get("perm", range(node.rank)[::-1]))
    return follow(node, lambda s: replace(s, axis=order.index(s.axis)))


def reshape(node: Node) -> Sees:
    """Reshape, Flatten: axes put together or parted, the order of elements kept."""
    old, new = node.shape(), node.shapes[0]
    return follow(node, lambda s: reshaped(s, node.label, old, new))


def squeeze(node: Node) -> Sees:
    """Squeeze: axes of size 1 go."""
    axes = node.axes()
    gone: Collection[int] = [a for a, n in enumerate(node.shape()) if n == 1] if axes is None else axes

    def along(s: Along) -> Along | Lost:
        return Lost(s.why or node.label) if s.axis in gone else replace(s, axis=s.axis - sum(a < s.axis for a in gone))

    return follow(node, along)


def unsqueeze(node: Node) -> Sees:
    """Unsqueeze: axes of size 1 come in."""
    rank = len(node.shapes[0])
    new = {a % rank for a in node.numbers("axes", 1) or ()}
    kept = [a for a in range(rank) if a not in new]
    return follow(node, lambda s: replace(s, axis=kept[s.axis]))


def concatenate(node: Node) -> Sees:
    """Concat: beside one another along one axis, together along all others.

    Along the axis itself a tensor may be lengthened by constants, as a Pad does.
    """
    axis = node.attrs["axis"] % len(node.shapes[0])
    tensors, start = [], 0
    lone = sum(bool(t.sees) for t in node.inputs if t) == 1
    for tensor in node.inputs:
        if tensor is None or tensor.shape is None:
            continue
        sees = {k: _placed(node, s, axis, start if lone else None) for k, s in tensor.sees.items()}
        tensors.append(replace(tensor, sees=sees))
        start += tensor.shape[axis]
    return together(node, tensors, node.shapes[0], but=axis)


def _placed(node: Node, s: Along | Lost, axis: int, start: int | None) -> Along | Lost:
    if isinstance(s, Lost) or s.axis != axis:
        return s
    return Lost(s.why or node.label) if start is None else s.window(node.label, 1, 1, lambda o: o[None] - start)


def split(node: Node) -> Sees:
    """Split: parts at fixed places of one axis."""
    axis = node.attrs.get("axis", 0) % node.rank
    return follow(node, lambda s: Lost(s.why or node.label) if s.axis == axis else s)


def cut(node: Node) -> Sees:
    """Slice: a range of each axis, counted from its start; one counted from the end moves with the size."""
    starts, ends = node.numbers("starts", 1), node.numbers("ends", 2)
    if starts is None or ends is None:
        return everything(node)
    axes = node.axes(3) or list(range(len(starts)))
    steps = node.numbers("steps", 4) or [1] * len(starts)
    ranges = {a: (start, step) for a, start, step in zip(axes, starts, steps, strict=True)}

    def along(s: Along) -> Along | Lost:
        start, step = ranges.get(s.axis, (0, 1))
        whole = node.shape()[s.axis] == node.shapes[0][s.axis]
        if whole and step == 1:
            return s
        if step < 0 or start < 0:
            return Lost(s.why or node.label)
        return s.window(node.label, 1, step, lambda o: o[None] * step + start)

    return follow(node, along)


def gather(node: Node) -> Sees:
    """Gather: one element or a regular series of one axis; other axes stay."""
    axis, index = node.attrs.get("axis", 0) % node.rank, node.constant(1)
    if index is None:
        return everything(node)
    steps = np.unique(np.diff(index)) if index.ndim == 1 else np.array([])

    def along(s: Along) -> Along | Lost:
        if s.axis != axis:
            return replace(s, axis=s.axis + (index.ndim - 1) * (s.axis > axis))
        if len(steps) != 1 or steps[0] < 1 or index[0] < 0:
            return Lost(s.why or node.label)
        start, step = int(index[0]), int(steps[0])
        return s.window(node.label, 1, step, lambda o: o[None] * step + start)

    return follow(node, along)


def pad(node: Node) -> Sees:
    """Pad: an axis is lengthened or shortened at both ends."""
    pads = node.numbers("pads", 1)
    if pads is None:
        return everything(node)
    axes = node.axes(3) or list(range(node.rank))
    ends = {a: (pads[i], pads[i + len(axes)]) for i, a in enumerate(axes)}
    mode = text(node.attrs.get("mode", "constant"))

    def along(s: Along) -> Along | Lost:
        before, after = ends.get(s.axis, (0, 0))
        if (before, after) == (0, 0):
            return s
        if mode == "wrap":
            return Lost(s.why or node.label)
        if mode == "reflect":
            flat = s.flat(node.label)
            if isinstance(flat, Lost):
                return flat
            size = node.shape()[s.axis]
            s = flat.mirrored(before, after, size)
        return s.window(node.label, 1, 1, lambda o: o[None] - before)

    return follow(node, along)


def depth_to_space(node: Node) -> Sees:
    """DepthToSpace: channels become pixels between pixels."""
    size = node.attrs["blocksize"]
    return _regrouped(node, lambda s: s.window(node.label, size, 1, lambda o: o[None] // size))


def space_to_depth(node: Node) -> Sees:
    """SpaceToDepth: pixels of a square become channels."""
    size = node.attrs["blocksize"]
    return _regrouped(node, lambda s: s.window(node.label, 1, size, lambda o: o * size + np.arange(size)[:, None]))


def _regrouped(node: Node, moved: Callable[[Along], Along | Lost]) -> Sees:
    """Pixels move as told, channels are lost, the batch stays."""

    def along(s: Along) -> Along | Lost:
        if s.axis < 2:
            return Lost(node.label, channel=True) if s.axis == 1 else s
        return moved(s)

    return follow(node, along)


def expand(node: Node) -> Sees:
    """Expand: broadcasting to a shape."""
    source: list[Tensor] = [t for t in node.inputs[:1] if t]
    return together(node, source, node.shapes[0])


def tile(node: Node) -> Sees:
    """Tile: repeated as a whole."""
    shape, out = node.shape(), node.shapes[0]
    return follow(node, lambda s: s if shape[s.axis] == out[s.axis] else Lost(s.why or node.label))


MOVES: dict[str, Callable[[Node], Sees]] = {
    "Concat": concatenate,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "Flatten": reshape,
    "Gather": gather,
    "Pad": pad,
    "Reshape": reshape,
    "Slice": cut,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
"""What each kind does to the axes that its outputs see."""
