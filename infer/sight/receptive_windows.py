"""What ONNX nodes with a window do to the axes of their tensors: convolutions, pools, resizes.

Operators: https://onnx.ai/onnx/operators/ (opsets 7 to 23).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from .receptive_axis import Along, Lost, Sees
from .receptive_ops import Node, follow, text

if TYPE_CHECKING:
    from numpy.typing import NDArray

FINEST = 128
"""Largest numerator or denominator of a resize that is taken for a fixed ratio."""


def convolution(node: Node) -> Sees:
    """Conv, ConvInteger, QLinearConv: a window along space, all of the channels."""
    weights = {"QLinearConv": 3}.get(node.op, 1)
    kernel = node.attrs.get("kernel_shape") or node.shape(weights)[2:]
    windows = _window(node, kernel, channel=True)
    return follow(node, windows)


def pool(node: Node) -> Sees:
    """MaxPool, AveragePool, LpPool: a window along space."""
    return follow(node, _window(node, node.attrs["kernel_shape"], channel=False))


def _window(node: Node, kernel: Sequence[int], *, channel: bool) -> Callable[[Along], Along | Lost]:
    space = len(kernel)
    strides = node.attrs.get("strides", (1,) * space)
    dilations = node.attrs.get("dilations", (1,) * space)
    pads = [_pad_before(node, k, kernel[k], strides[k], dilations[k]) for k in range(space)]

    def along(s: Along) -> Along | Lost:
        if s.axis < 2:
            return Lost(node.label, channel=True) if channel and s.axis == 1 else s
        k = s.axis - 2
        taps = np.arange(kernel[k])[:, None] * dilations[k] - pads[k]
        return s.window(node.label, 1, strides[k], lambda o: o * strides[k] + taps)

    return along


def _pad_before(node: Node, k: int, kernel: int, stride: int, dilation: int) -> int:
    mode = text(node.attrs.get("auto_pad", "NOTSET"))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        return int(node.attrs["pads"][k]) if mode == "NOTSET" and "pads" in node.attrs else 0
    total = max(0, (node.shapes[0][k + 2] - 1) * stride + (kernel - 1) * dilation + 1 - node.shape()[k + 2])
    return total // 2 if mode == "SAME_UPPER" else total - total // 2


def transposed_convolution(node: Node) -> Sees:
    """ConvTranspose: element o is made of the elements i with o = i * stride + tap * dilation - pad."""
    kernel = node.attrs.get("kernel_shape") or node.shape(1)[2:]
    strides = node.attrs.get("strides", (1,) * len(kernel))
    dilations = node.attrs.get("dilations", (1,) * len(kernel))

    def along(s: Along) -> Along | Lost:
        if s.axis < 2:
            return Lost(node.label, channel=True) if s.axis == 1 else s
        k, stride = s.axis - 2, strides[s.axis - 2]
        taps = np.arange(kernel[k]) * dilations[k]
        places = np.concatenate([taps - pad for pad in _pads_of_transposed(node, k, kernel[k], stride, dilations[k])])

        def places_of(o: NDArray[np.int64]) -> NDArray[np.int64]:
            return o - places[:, None]

        return s.window(node.label, stride, 1, lambda o: places_of(o) // stride, lambda o: places_of(o) % stride == 0)

    return follow(node, along)


def _pads_of_transposed(node: Node, k: int, kernel: int, stride: int, dilation: int) -> set[int]:
    """The pad at the start; where versions of the standard disagree on an odd one, both."""
    mode = text(node.attrs.get("auto_pad", "NOTSET"))
    if mode == "NOTSET" and "output_shape" not in node.attrs:
        return {int(node.attrs["pads"][k]) if "pads" in node.attrs else 0}
    if mode == "VALID":
        return {0}
    extra = node.attrs["output_padding"][k] if "output_padding" in node.attrs else 0
    total = stride * (node.shape()[k + 2] - 1) + extra + (kernel - 1) * dilation + 1 - node.shapes[0][k + 2]
    return {max(0, total) // 2, max(0, total) - max(0, total) // 2}


def resize(node: Node) -> Sees:
    """Resize and Upsample: nearest, linear, cubic, with a fixed ratio; every coordinate mode that is periodic."""
    old = node.op == "Upsample" or node.version < 11
    mode = text(node.attrs.get("mode", "nearest"))
    where = "asymmetric" if old else text(node.attrs.get("coordinate_transformation_mode", "half_pixel"))
    scales = _scales(node, old=old)
    moves = where == "tf_crop_and_resize" or text(node.attrs.get("keep_aspect_ratio_policy", "stretch")) != "stretch"

    def along(s: Along) -> Along | Lost:
        size, out = node.shape()[s.axis], node.shapes[0][s.axis]
        ratio = _ratio(scales.get(s.axis), size, out)
        if moves or ratio is None:
            return Lost(s.why or node.label)
        if ratio == 1 and size == out:
            return s
        if where == "align_corners" or (where == "half_pixel_symmetric" and out != ratio * size):
            return Lost(s.why or node.label)
        up, down = ratio.numerator, ratio.denominator
        return s.window(node.label, up, down, _resized(node, mode, where, old=old, ratio=ratio))

    return follow(node, along)


def _scales(node: Node, *, old: bool) -> dict[int, float]:
    """Scale by axis, of those that are given as scales; the others follow from the sizes."""
    if "scales" in node.attrs:
        scales: Any = node.attrs["scales"]
    else:
        scales = node.constant(1 if old else 2)
    if scales is None or len(scales) == 0:
        return {}
    axes = [a % node.rank for a in node.attrs.get("axes", range(node.rank))]
    return dict(zip(axes, map(float, scales), strict=True))


def _ratio(scale: float | None, size: int, out: int) -> Fraction | None:
    """The resize as a ratio of small numbers; None if it is none."""
    ratio = Fraction(out, size) if scale is None else Fraction(scale).limit_denominator(FINEST)
    if max(ratio.numerator, ratio.denominator) > FINEST or ratio <= 0:
        return None
    return ratio if scale is None or abs(float(ratio) - scale) < 1e-6 * scale else None


def _resized(
    node: Node, mode: str, where: str, *, old: bool, ratio: Fraction
) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """Element o -> the elements that it is interpolated from."""
    up, down = ratio.numerator, ratio.denominator
    inexact = Fraction(float(np.float32(up / down))) != ratio  # a runtime may round to either side of a whole number

    def reads(o: NDArray[np.int64]) -> NDArray[np.int64]:
        # x = top / bottom is the place in the input
        if where == "asymmetric":
            top, bottom = 2 * o * down, 2 * up
        elif where == "tf_half_pixel_for_nn":
            top, bottom = (2 * o + 1) * down, 2 * up
        else:
            top, bottom = (2 * o + 1) * down - up, 2 * up
        low, high = (4 * top - inexact, 4 * top + inexact)
        first, last = _taps(node, mode, (low, high, 4 * bottom), old=old, ratio=ratio)
        return np.minimum(first + np.arange((last - first).max() + 1)[:, None], last)

    return reads


def _taps(
    node: Node, mode: str, place: tuple[Any, Any, int], *, old: bool, ratio: Fraction
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last element read around low/bottom..high/bottom."""
    low, high, bottom = place
    if mode == "nearest":
        if old:  # onnxruntime rounds down, but up where the image shrinks
            return low // bottom, -(-high // bottom) if ratio < 1 else high // bottom
        rounding = text(node.attrs.get("nearest_mode", "round_prefer_floor"))
        return _rounded(low, bottom, rounding), _rounded(high, bottom, rounding)
    more = 1 if mode == "cubic" else 0
    if node.attrs.get("antialias") and ratio < 1:
        reach = int((more + 1) * bottom / ratio)
        return -(-(low - reach) // bottom), (high + reach) // bottom
    between = (low % bottom != 0) | (high % bottom != 0)  # on an element itself, its neighbours have weight 0
    return low // bottom - more * between, -(-high // bottom) + more * between


def _rounded(top: Any, bottom: int, how: str) -> NDArray[np.int64]:
    """The whole number for top / bottom, by the word of the standard."""
    if how == "floor":
        return top // bottom
    if how == "ceil":
        return -(-top // bottom)
    return (2 * top + bottom) // (2 * bottom) if how == "round_prefer_ceil" else -((bottom - 2 * top) // (2 * bottom))


WINDOWS: dict[str, Callable[[Node], Sees]] = {
    **dict.fromkeys(["Conv", "ConvInteger", "QLinearConv"], convolution),
    **dict.fromkeys(["MaxPool", "AveragePool", "LpPool"], pool),
    **dict.fromkeys(["Resize", "Upsample"], resize),
    "ConvTranspose": transposed_convolution,
}
"""What each kind does to the axes that its first output sees."""
