"""The receptive field that is computed from a graph is the one that random networks show when they are run.

All weights are positive and all inputs at least zero: nothing cancels, and an output is exactly zero where it sees
nothing but zeros.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from voidzoo.infer.sight.receptive import Reach, receptive_field

CHANNELS = 2


class Net:
    """A random network with one input `x` and one output `y`, any size of batch and space."""

    def __init__(self, seed: int, dims: int, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.dims, self.opset = dims, opset
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.negative = False  # after a cubic resize values may be: a max would hide them

    def add(self, op: str, inputs: list[str], **attrs: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attrs))
        return name

    def const(self, value: Any) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def pick(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def each(self, low: int, high: int) -> list[int]:
        return [int(n) for n in self.rng.integers(low, high + 1, self.dims)]

    def positive(self, *shape: int) -> str:
        return self.const((self.rng.uniform(0.5, 1.5, shape) / np.prod(shape[1:])).astype(np.float32))

    def parted(self, totals: list[int]) -> list[int]:
        """Pads of these sums, split at random: starts, then ends."""
        starts = [int(self.rng.integers(0, t + 1)) for t in totals]
        return starts + [t - s for s, t in zip(starts, totals, strict=True)]

    def conv(self, x: str, *, same: bool = True, out: int = CHANNELS, inputs: int = CHANNELS) -> str:
        kernel, dilations = self.each(1, 4), self.each(1, 2)
        totals = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        pads = self.parted(totals if same else [int(self.rng.integers(0, t + 2)) for t in totals])
        return self.add(
            "Conv", [x, self.positive(out, inputs, *kernel)], kernel_shape=kernel, dilations=dilations, pads=pads
        )

    def down(self, x: str, factors: list[int]) -> str:
        kernel = [int(self.rng.integers(1, f + 3)) if f > 1 else 1 for f in factors]
        window: dict[str, Any] = {
            "kernel_shape": kernel,
            "strides": factors,
            "pads": self.parted([max(0, k - f) for k, f in zip(kernel, factors, strict=True)]),
        }
        kinds = ["Conv", "AveragePool", "Resize"] + ["MaxPool"] * (not self.negative)
        kind = self.pick(*kinds)
        if kind == "Conv":
            return self.add(kind, [x, self.positive(CHANNELS, CHANNELS, *kernel)], **window)
        if kind == "AveragePool":
            return self.add(kind, [x], count_include_pad=int(self.rng.integers(2)), **window)
        if kind == "Resize" and max(factors) <= 2 and self.opset >= 10:
            return self.resize(x, [Fraction(1, f) for f in factors])
        return self.add("MaxPool" if not self.negative else "LpPool", [x], **window)

    def up(self, x: str, factors: list[int], *, gaps: bool = False) -> str:
        if self.pick(True, False):
            return self.resize(x, [Fraction(f) for f in factors])
        kernel = [int(self.rng.integers(1 if gaps else f, f + 3)) for f in factors]
        extra = [max(0, f - k) for k, f in zip(kernel, factors, strict=True)]
        pads = self.parted([k - f + e for k, f, e in zip(kernel, factors, extra, strict=True)])
        return self.add("ConvTranspose", [x, self.positive(CHANNELS, CHANNELS, *kernel)], kernel_shape=kernel,
                        strides=factors, output_padding=extra, pads=pads)  # fmt: skip

    def resize(self, x: str, factors: list[Fraction]) -> str:
        scales = self.const(np.array([1, 1, *map(float, factors)], np.float32))
        if self.opset < 10:
            return self.add("Upsample", [x, scales], mode=self.pick("nearest", "linear"))
        if self.opset == 10:
            return self.add("Resize", [x, scales], mode=self.pick("nearest", "linear"))
        mode = self.pick("nearest", "linear", "cubic") if self.dims == 2 else self.pick("nearest", "linear")
        attrs = {"coordinate_transformation_mode": self.pick("half_pixel", "asymmetric", "pytorch_half_pixel")}
        if mode == "nearest":
            attrs["nearest_mode"] = self.pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
        self.negative |= mode == "cubic"
        roi = self.const(np.zeros(0, np.float32)) if self.opset < 13 else ""  # not optional then
        return self.add("Resize", [x, roi, scales], mode=mode, **attrs)

    def level(self, x: str, factors: list[list[int]]) -> str:
        """A U: convolutions, down, the levels below, up, maybe a skip connection."""
        for _ in range(self.pick(0, 1, 2)):
            x = self.conv(x)
        if factors:
            below = self.up(self.level(self.down(x, factors[0]), factors[1:]), factors[0])
            how = self.pick("Concat", "Add", "Mul", "none")
            if how == "Concat":
                x = self.conv(self.add("Concat", [below, x], axis=1), inputs=2 * CHANNELS)
            else:
                x = below if how in ("none", "Mul") else self.add(how, [below, x])
        return self.conv(x) if self.pick(True, False) else x

    def chain(self, x: str, steps: int) -> str:
        """Steps that change the size in every way: paddings too large and too small, crops, strides."""
        for _ in range(steps):
            kind = self.pick("conv", "conv", "pad", "crop", "down", "up")
            if kind == "conv":
                x = self.conv(x, same=False)
            elif kind in ("pad", "crop"):
                sign = 1 if kind == "pad" else -1
                pads = [0, 0, *(sign * n for n in self.each(0, 3)), 0, 0, *(sign * n for n in self.each(0, 3))]
                x = self.add("Pad", [x, self.const(np.array(pads))], mode=self.pick("constant", "edge", "reflect"))
            elif kind == "down":
                x = self.down(x, self.each(1, 2))
            else:
                x = self.up(x, self.each(1, 2), gaps=True)
        return x

    def model(self, y: str) -> bytes:
        def value(name: str) -> Any:
            dims: list[int | str | None] = [None, CHANNELS, *[None] * self.dims]
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        graph = helper.make_graph(self.nodes, "net", [value("x")], [value("y")], self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        return made.SerializeToString()


def run(weights: bytes, x: NDArray[np.float32]) -> NDArray[np.float32]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(weights, options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def reach_along(weights: bytes, axis: int, small: list[int]) -> tuple[Reach, list[int]]:
    """The reach along an axis, and a shape (1, c, ...) that is long enough along it to have an inside."""
    first = receptive_field(weights, {"x": (1, CHANNELS, *small)})["y"]["x"][axis]
    assert first is not None
    assert first.bounded
    long = list(small)
    long[axis - 2] = (4 * (first.radius + int(abs(first.offset)) + first.aligned) // first.grid + 8) * first.grid
    reach = receptive_field(weights, {"x": (1, CHANNELS, *long)})["y"]["x"][axis]
    assert reach is not None
    return reach, [1, CHANNELS, *long]


def lines(y: NDArray[np.float32], axis: int) -> NDArray[np.bool_]:
    """(b, c, [z], y, x) -> (b, n): where along the axis anything differs from zero."""
    return np.any(y != 0, axis=tuple(a for a in range(1, y.ndim) if a != axis))


def check_sees(weights: bytes, reach: Reach, shape: list[int], axis: int) -> None:
    """Light up one line of pixels after the other: the outputs that answer are those within the reach, exactly."""
    start = shape[axis] // 2 // reach.grid * reach.grid
    x = np.zeros((reach.grid, *shape[1:]), np.float32)
    for k in range(reach.grid):
        x[(k, slice(None), *(start + k if a == axis else slice(None) for a in range(2, len(shape))))] = 1
    pixel, p = np.nonzero(lines(run(weights, x), axis))
    pixel = pixel + start
    shift = -reach.offset / (2 * reach.scale)
    before = max((floor(int(i) / reach.scale + shift) - int(q) for q, i in zip(pixel, p, strict=True)), default=0)
    after = max((int(q) - ceil((int(i) + 1) / reach.scale + shift) + 1 for q, i in zip(pixel, p, strict=True)),
                default=0)  # fmt: skip
    assert (reach.before, reach.after) == (max(0, before), max(0, after))


def check_halo(weights: bytes, reach: Reach, shape: list[int], axis: int) -> None:
    """Pixels beyond a cut light up: the grid steps of the output that answer are those of the halo, exactly."""
    assert reach.offset == 0
    cut = shape[axis] // 2 // reach.grid * reach.grid
    x = np.zeros((2, *shape[1:]), np.float32)
    x[(0, slice(None), *(slice(0, cut) if a == axis else slice(None) for a in range(2, len(shape))))] = 1
    x[(1, slice(None), *(slice(cut, None) if a == axis else slice(None) for a in range(2, len(shape))))] = 1
    bright = lines(run(weights, x), axis)
    step = reach.grid * reach.scale
    after_cut = max((int(p // step) + 1 for p in np.flatnonzero(bright[0])), default=0) - cut // reach.grid
    before_cut = cut // reach.grid - min((int(p // step) for p in np.flatnonzero(bright[1])), default=cut)
    assert reach.halo == max(0, after_cut, before_cut) * reach.grid


def deviation(weights: bytes, reach: Reach, shape: list[int], axis: int, tile: tuple[int, int], halo: int) -> float:
    """Largest difference between a tile and the whole, where the halo says that there is none, by the largest value."""
    x = np.random.default_rng(0).random(shape, dtype=np.float32) ** 60  # a few bright pixels
    start, stop = tile
    y, part = (
        np.moveaxis(run(weights, x), axis, 0),
        np.moveaxis(run(weights, x.take(range(start, stop), axis)), axis, 0),
    )
    keep_from = (start + halo if start else 0) * reach.scale
    end = stop + reach.offset / reach.scale - (halo if stop < shape[axis] else 0)
    keep_to = (end // reach.grid * reach.grid if stop < shape[axis] else end) * reach.scale
    first, last = ceil(keep_from), min(int(keep_to), floor(start * reach.scale) + len(part))
    assert last > first
    inside = part[first - floor(start * reach.scale) : last - floor(start * reach.scale)]
    return float(np.abs(inside - y[first:last]).max() / max(np.abs(y).max(), 1e-30))


def check_tiles(weights: bytes, reach: Reach, shape: list[int], axis: int) -> None:
    """Tiles on the grid are parts of the whole, at either border and inside; tiles off the grid are not."""
    n, grid = shape[axis], reach.grid
    third = n // 3 // grid * grid
    for tile in [(0, n - third), (third, n), (grid, n - grid)]:
        assert deviation(weights, reach, shape, axis, tile, reach.halo) < 5e-5
    for prime in (2, 3, 5, 7):
        off = grid + grid // prime
        if grid % prime == 0 and off * reach.scale % 1 == 0:
            assert shifted(weights, reach, shape, axis, off) > 1e-3


def shifted(weights: bytes, reach: Reach, shape: list[int], axis: int, start: int) -> float:
    """Largest relative difference of any pixel inside between a tile from `start`, off the grid, and the whole."""
    x = np.moveaxis(np.zeros(shape, np.float32), axis, 0)
    middle = shape[axis] // 2
    x[middle : middle + reach.grid] = np.random.default_rng(0).random((reach.grid, *x.shape[1:]))
    x = np.moveaxis(x, 0, axis)
    length = (shape[axis] - start) // reach.grid * reach.grid
    part = np.moveaxis(run(weights, x.take(range(start, start + length), axis)), axis, 0)
    first, margin = int(start * reach.scale), ceil((reach.halo + reach.grid) * reach.scale)
    part = part[margin : len(part) - margin]
    whole = np.moveaxis(run(weights, x), axis, 0)[first + margin : first + margin + len(part)]
    return float((np.abs(part - whole) / np.maximum(np.maximum(np.abs(part), np.abs(whole)), 1e-30)).max())


@pytest.mark.parametrize("dims", [2, 3])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), opset=st.sampled_from([9, 10, 11, 13, 17]))
def test_reach_of_random_u_networks_is_what_they_show(dims: int, seed: int, opset: int) -> None:
    net = Net(seed, dims, opset)
    levels = [net.each(1, 4 - net.pick(1, 2)) for _ in range(net.pick(1, 1, 2, 2, 3) if dims == 2 else 1)]
    y = net.level("x", levels)
    weights = net.model(net.pick(y, y, net.up(y, net.each(1, 2)) if net.pick(True, False) else y))
    total = [int(np.prod([f[k] for f in levels])) for k in range(dims)]
    small = [4 * t if t > 2 else 12 for t in total]
    axis = 2 + int(net.rng.integers(dims))
    reach, shape = reach_along(weights, axis, small)
    assume(run(weights, np.ones(shape, np.float32)).any())  # strides may step over all that there is
    check_sees(weights, reach, shape, axis)
    check_halo(weights, reach, shape, axis)
    check_tiles(weights, reach, shape, axis)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 5))
def test_reach_where_sizes_change_is_what_networks_show(seed: int, steps: int) -> None:
    net = Net(seed, 2)
    weights = net.model(net.chain("x", steps))
    axis = 2 + int(net.rng.integers(2))
    reach, shape = reach_along(weights, axis, [96, 96])
    assume(run(weights, np.ones(shape, np.float32)).any())  # strides may step over all that there is
    check_sees(weights, reach, shape, axis)
    check_tiles(weights, reach, shape, axis)
