"""Small networks as ONNX graphs, node by node, with random weights: nothing is traced, every size stays free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 17, 8
ONNX_TYPES = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


class Net:
    """A graph that grows: every method adds a node behind the named values and returns the name of the new one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(values, f"k{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, n_in: int, n_out: int, kernel: Sequence[int], *, valid: bool = False) -> str:
        """A convolution, zero-padded to the same size or not at all (valid). He weights."""
        weight = self.rng.standard_normal((n_out, n_in, *kernel)) * np.sqrt(2 / (n_in * np.prod(kernel)))
        bias = 0.1 * self.rng.standard_normal(n_out)
        pads = [0] * (2 * len(kernel)) if valid else 2 * [k // 2 for k in kernel]
        return self.node("Conv", x, self.constant(weight.astype(np.float32)), self.constant(bias.astype(np.float32)),
                         kernel_shape=list(kernel), pads=pads)  # fmt: skip

    def convs(
        self, x: str, n_in: int, n_out: int, kernel: Sequence[int], *, valid: bool = False, width: int = 4
    ) -> str:
        """Two convolutions with a leaky rectifier between them."""
        x = self.node("LeakyRelu", self.conv(x, n_in, width, kernel, valid=valid), alpha=0.1)
        return self.conv(x, width, n_out, kernel, valid=valid)

    def pool(self, x: str, kernel: Sequence[int]) -> str:
        return self.node("AveragePool", x, kernel_shape=list(kernel), strides=list(kernel))

    def up(self, x: str, factors: Sequence[float]) -> str:
        """Nearest-neighbour up-sampling of the axes behind batch and channel."""
        scales = self.constant(np.array([1, 1, *factors], np.float32))
        return self.node("Resize", x, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric",
                         nearest_mode="floor")  # fmt: skip

    def scaled(self, x: str, gain: float, offset: float = 0.0) -> str:
        gained = self.node("Mul", x, self.constant(np.float32([gain])))
        return self.node("Add", gained, self.constant(np.float32([offset])))

    def squeezed(self, x: str, axes: Sequence[int]) -> str:
        return self.node("Squeeze", x, self.constant(np.array(axes, np.int64)))

    def unsqueezed(self, x: str, axes: Sequence[int]) -> str:
        return self.node("Unsqueeze", x, self.constant(np.array(axes, np.int64)))

    def model(
        self, inputs: Mapping[str, Sequence[int | None]], outputs: Mapping[str, tuple[str, Sequence[int | None]]],
        dtypes: Mapping[str, str] | None = None,
    ) -> bytes:  # fmt: skip
        """The ONNX file. inputs: name -> shape, None where it is free. outputs: name -> the value that it is, shape."""
        renamed = [helper.make_node("Identity", [value], [name]) for name, (value, _) in outputs.items()]
        kinds = {name: ONNX_TYPES[(dtypes or {}).get(name, "float32")] for name in inputs}
        graph = helper.make_graph(
            [*self.nodes, *renamed],
            "net",
            [helper.make_tensor_value_info(n, kinds[n], _dims(n, s)) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, _dims(n, s)) for n, (_, s) in outputs.items()],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        onnx.checker.check_model(proto)
        return proto.SerializeToString()


def _dims(name: str, shape: Sequence[int | None]) -> list[int | str]:
    return [f"{name}_{i}" if n is None else n for i, n in enumerate(shape)]


# ---- networks: (net, names of the inputs) -> values of the outputs ---------------------------------------------------


def two_convs(net: Net, x: str, *, n_in: int = 1, n_out: int = 1, gain: float = 0.01) -> list[str]:
    """Raw intensities are brought to about one first, as trained networks do."""
    return [net.convs(net.scaled(x, gain), n_in, n_out, (3, 3))]


normalised = partial(two_convs, gain=1.0)


def anisotropic(net: Net, x: str) -> list[str]:
    fine = net.conv(net.scaled(x, 0.01), 1, 3, (3, 3, 3))
    coarse = net.conv(net.pool(net.node("Relu", fine), (1, 4, 4)), 3, 3, (1, 3, 3))
    return [net.conv(net.node("Add", fine, net.up(coarse, (1, 4, 4))), 3, 1, (1, 3, 3))]


def pooled(net: Net, x: str) -> list[str]:
    fine = net.conv(net.scaled(x, 0.01), 1, 4, (3, 3))
    return [net.conv(net.up(net.conv(net.pool(fine, (2, 2)), 4, 4, (3, 3)), (2, 2)), 4, 1, (3, 3))]


def joined(net: Net, x: str, more: str) -> list[str]:
    return [net.convs(net.node("Concat", net.scaled(x, 0.01), net.scaled(more, 0.02), axis=1), 2, 1, (3, 3))]


def joined_coarse(net: Net, x: str, coarse: str) -> list[str]:
    up = net.up(net.conv(net.scaled(coarse, 0.01), 1, 2, (3, 3)), (2, 2))
    return [net.conv(net.node("Concat", net.scaled(x, 0.01), up, axis=1), 3, 1, (3, 3))]


def fine_and_coarse(net: Net, x: str) -> list[str]:
    fine = net.node("LeakyRelu", net.conv(net.scaled(x, 0.01), 1, 4, (3, 3)), alpha=0.1)
    probability = net.node("Sigmoid", net.conv(fine, 4, 1, (3, 3)))
    return [probability, net.conv(net.pool(fine, (2, 2)), 4, 2, (3, 3))]


def doubled(net: Net, x: str) -> list[str]:
    return [net.conv(net.up(net.conv(net.scaled(x, 0.01), 1, 3, (3, 3)), (2, 2)), 3, 1, (3, 3))]


def halved(net: Net, x: str) -> list[str]:
    return [net.conv(net.pool(net.conv(net.scaled(x, 0.01), 1, 3, (3, 3)), (2, 2)), 3, 1, (3, 3))]


def pointwise(net: Net, x: str) -> list[str]:
    return [net.convs(net.scaled(x, 0.01), 1, 2, (1, 1))]


def in_time(net: Net, x: str) -> list[str]:
    return [net.convs(net.scaled(x, 0.01), 1, 1, (3, 3, 3))]


def last_channels(net: Net, x: str) -> list[str]:
    first = net.node("Transpose", net.scaled(x, 0.01), perm=[0, 3, 1, 2])
    return [net.node("Transpose", net.convs(first, 2, 3, (3, 3)), perm=[0, 2, 3, 1])]


def turned(net: Net, x: str) -> list[str]:
    """Axes x c b y in, y x b c out."""
    first = net.node("Transpose", net.scaled(x, 0.01), perm=[2, 1, 3, 0])
    return [net.node("Transpose", net.convs(first, 2, 3, (3, 3)), perm=[2, 3, 0, 1])]


def without_batch(net: Net, x: str) -> list[str]:
    return [net.squeezed(net.convs(net.unsqueezed(net.scaled(x, 0.01), [0]), 2, 2, (3, 3)), [0])]


def bare(net: Net, x: str) -> list[str]:
    return [net.squeezed(net.convs(net.unsqueezed(net.scaled(x, 0.01), [0, 1]), 1, 1, (3, 3)), [0, 1])]


def indexed(net: Net, x: str) -> list[str]:
    """(b, c, y, x) in, (b, i, c, y, x) out: two maps for each of three indices."""
    wide = net.node("LeakyRelu", net.conv(net.scaled(x, 0.01), 1, 4, (3, 3)), alpha=0.1)
    return [net.node("Concat", *(net.unsqueezed(net.conv(wide, 4, 2, (3, 3)), [1]) for _ in range(3)), axis=1)]


def without_padding(net: Net, x: str) -> list[str]:
    return [net.convs(net.scaled(x, 0.01), 1, 1, (3, 3), valid=True)]


def squeeze_excitation(net: Net, x: str) -> list[str]:
    maps = net.conv(net.scaled(x, 0.01), 1, 4, (3, 3))
    weights = net.node("Sigmoid", net.conv(net.node("GlobalAveragePool", maps), 4, 4, (1, 1)))
    return [net.conv(net.node("Mul", maps, weights), 4, 1, (3, 3))]


def instance_norm(net: Net, x: str) -> list[str]:
    maps = net.conv(net.scaled(x, 0.01), 1, 4, (3, 3))
    gain, offset = (net.constant(net.rng.standard_normal(4).astype(np.float32)) for _ in range(2))
    return [net.conv(net.node("InstanceNormalization", maps, gain, offset), 4, 1, (3, 3))]


def takes_bytes(net: Net, x: str) -> list[str]:
    return two_convs(net, net.node("Cast", x, to=TensorProto.FLOAT))
