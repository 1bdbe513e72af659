"""Receptive fields that are known: by hand, from the U-Net's own arithmetic, and of networks that torch exports."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from tests.infer.test_receptive_oracle import check_halo, check_sees, check_tiles
from voidzoo.infer.sight.receptive import Reach, receptive_field, widest
from voidzoo.trainers.networks.geometry import geometry
from voidzoo.trainers.networks.unet import build
from voidzoo.zoo.errors import PackageError


def graph(nodes: list[Any], weights: dict[str, NDArray[Any]], opset: int = 17, rank: int = 4, **inputs: int) -> bytes:
    """An ONNX file with float inputs (default `x`) and the output `y`."""
    dims: list[int | str | None] = [None] * rank
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, dims) for n in inputs or ["x"]]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    made = helper.make_graph(nodes, "g", values, [out], constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString()


def rows(weights: bytes, size: int = 32, channels: int = 1) -> Reach:
    """The reach of output y along axis 2 of x."""
    reach = receptive_field(weights, {"x": (1, channels, size, size)})["y"]["x"][2]
    assert reach is not None
    return reach


def sizes(reach: Reach) -> tuple[int, int, int, int]:
    return reach.before, reach.after, reach.aligned, reach.grid


def conv(x: str, y: str, **attrs: Any) -> Any:
    return helper.make_node("Conv", [x, "w"], [y], **attrs)


W3 = {"w": np.ones((1, 1, 3, 3), np.float32)}


def test_convolutions_add_up() -> None:
    assert sizes(rows(graph([conv("x", "y", pads=[1, 1, 1, 1])], W3))) == (1, 1, 1, 1)
    two = [conv("x", "a", pads=[1, 1, 1, 1]), conv("a", "y", pads=[2, 2, 2, 2], dilations=[2, 2])]
    assert sizes(rows(graph(two, W3))) == (3, 3, 3, 1)
    skewed = [conv("x", "y", pads=[2, 2, 0, 0])]
    assert sizes(rows(graph(skewed, W3))) == (2, 0, 2, 1)


@pytest.mark.parametrize(("mode", "expected"), [("SAME_UPPER", (1, 2)), ("SAME_LOWER", (2, 1)), ("VALID", (1, 1))])
def test_padding_by_word(mode: str, expected: tuple[int, int]) -> None:
    weights = {"w": np.ones((1, 1, 4, 4), np.float32)}
    reach = rows(graph([conv("x", "y", auto_pad=mode)], weights))
    assert (reach.before, reach.after) == expected
    check_sees(graph([conv("x", "y", auto_pad=mode)], weights), reach, [1, 1, 32, 32], 2)


def test_convolution_without_padding_is_centred_and_cuts_spoil_nothing_of_its_output() -> None:
    reach = rows(graph([conv("x", "a"), conv("a", "y")], W3))
    assert (sizes(reach), reach.scale, reach.offset) == ((2, 2, 0, 1), 1, -4)


def test_crop_and_pad_spoil_pixels_that_depend_on_nothing_else() -> None:
    nodes = [
        helper.make_node("Slice", ["x", "from", "to", "axes"], ["a"]),
        helper.make_node("Pad", ["a", "pads"], ["y"]),
    ]
    weights = {"from": np.array([2]), "to": np.array([-2]), "axes": np.array([2]), "pads": np.array([0, 0, 2, 0] * 2)}
    assert sizes(rows(graph(nodes, weights))) == (0, 0, 2, 1)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pool_and_nearest_upsampling_see_their_window(op: str) -> None:
    pool = helper.make_node(op, ["x"], ["a"], kernel_shape=[2, 2], strides=[2, 2])
    half = rows(graph([pool, helper.make_node("Identity", ["a"], ["y"])], {}))
    assert (sizes(half), half.scale, half.offset) == ((0, 0, 0, 2), Fraction(1, 2), 0)
    grown = helper.make_node("Resize", ["a", "", "s"], ["y"], mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric")  # fmt: skip
    assert sizes(rows(graph([pool, grown], {"s": np.array([1, 1, 2, 2], np.float32)}))) == (1, 1, 0, 2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_unet_reach_is_its_own_arithmetic(dims: int, depth: int, kernel: int) -> None:
    settings = {"kernel": (3,) * (dims - 2) + (kernel, 3), "pool": (1,) * (dims - 2) + (2, 2)}
    network = build({"network": "unet", "dims": dims, "depth": depth, "filters": 1, **settings})
    expected = geometry({"dims": dims, "depth": depth, **settings})
    shape = (1, 1, *(2 * g.step for g in expected.values()))
    field = receptive_field(exported(network.eval(), shape), {"x": shape})["y"]["x"]
    assert field[1] is None
    for reach, rule in zip(field[2:], expected.values(), strict=True):
        assert reach is not None
        assert (reach.radius, reach.aligned, reach.halo, reach.grid) == (
            rule.radius,
            rule.aligned,
            rule.halo,
            rule.step,
        )
        assert reach.bounded
        assert (reach.scale, reach.offset) == (1, 0)


def test_old_files_that_list_weights_as_inputs() -> None:
    model = onnx.load_from_string(graph([conv("x", "y", pads=[1, 1, 1, 1])], W3))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 1, 3, 3]))
    assert sizes(rows(model.SerializeToString())) == (1, 1, 1, 1)


def test_nodes_without_order_are_followed_all_the_same() -> None:
    """onnxruntime sorts them for itself; taken as they stand, what comes later would seem to depend on nothing."""
    nodes = [*(conv(*ends, pads=[1, 1, 1, 1]) for ends in ("xa", "ab")), helper.make_node("Add", ["a", "b"], ["y"])]
    assert sizes(rows(graph(nodes[::-1], W3))) == sizes(rows(graph(nodes, W3))) == (2, 2, 2, 1)
    waiting = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["x", "a"], ["b"])]
    with pytest.raises(PackageError, match="wait for each other"):
        rows(graph([*waiting, conv("a", "y")], W3))


def test_a_missing_shape_is_refused_by_name() -> None:
    weights = graph([helper.make_node("Add", ["x", "mask"], ["y"])], {}, x=1, mask=1)
    with pytest.raises(PackageError, match=r"inputs are x, mask; no shape is given for mask"):
        receptive_field(weights, {"x": (1, 1, 8, 8)})


def test_two_inputs_are_told_apart() -> None:
    nodes = [conv("x", "a", pads=[1, 1, 1, 1]), helper.make_node("Add", ["a", "mask"], ["y"])]
    field = receptive_field(graph(nodes, W3, x=1, mask=1), {"x": (1, 1, 8, 8), "mask": (1, 1, 8, 8)})["y"]
    reaches = [field["x"][2], field["mask"][2]]
    assert [(r.before, r.after) for r in reaches if r] == [(1, 1), (0, 0)]
    assert widest(reaches) == field["x"][2]
    assert widest([None]) is None


def unbounded(nodes: list[Any], weights: dict[str, Any] | None = None, **options: Any) -> str:
    reach = rows(graph(nodes, weights or {}, **options), 16, channels=options.get("channels", 1))
    assert not reach.bounded
    return reach.why


def test_what_sees_everything_is_named() -> None:
    node = helper.make_node
    gate = [node("GlobalAveragePool", ["x"], ["a"], name="/se/pool/GlobalAveragePool"), node("Mul", ["x", "a"], ["y"])]
    assert unbounded(gate) == "GlobalAveragePool se.pool"
    mean = [node("ReduceMean", ["x"], ["a"], axes=[2, 3], name="mu"), node("Sub", ["x", "a"], ["y"])]
    assert unbounded(mean) == "ReduceMean mu"
    norm = [node("InstanceNormalization", ["x", "one", "one"], ["y"], name="norm")]
    assert unbounded(norm, {"one": np.ones(1, np.float32)}) == "InstanceNormalization norm"
    assert unbounded([node("Softmax", ["x"], ["y"], axis=2, name="s")]) == "Softmax s"
    assert unbounded([node("Softmax", ["x"], ["y"], axis=1, name="s")], opset=11) == "Softmax s"  # and all that follow
    assert rows(graph([node("Softmax", ["x"], ["y"], axis=1)], {}, opset=13)).bounded
    assert unbounded([node("Einsum", ["x", "x"], ["y"], equation="bcij,bckj->bcik", name="e")]) == "Einsum e"
    assert unbounded([node("Mystery", ["x"], ["y"], name="m", domain="com.example")]) == "Mystery m"


def test_what_depends_on_the_position_is_named() -> None:
    ramp = {"ramp": np.arange(16, dtype=np.float32).reshape(1, 1, 16, 1)}
    assert unbounded([helper.make_node("Add", ["x", "ramp"], ["y"], name="place")], ramp) == "Add place"
    flat = {"flat": np.ones((1, 1, 16, 1), np.float32)}
    assert rows(graph([helper.make_node("Add", ["x", "flat"], ["y"])], flat), 16).bounded
    corners = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", name="up",
                               coordinate_transformation_mode="align_corners")  # fmt: skip
    assert unbounded([corners], {"s": np.array([1, 1, 2, 2], np.float32)}) == "Resize up"
    end = [helper.make_node("Slice", ["x", "from", "to", "axes"], ["y"], name="tail")]
    assert unbounded(end, {"from": np.array([-5]), "to": np.array([99]), "axes": np.array([2])}) == "Slice tail"


def test_an_unbounded_network_still_has_the_reach_of_its_local_part() -> None:
    gate = helper.make_node("GlobalMaxPool", ["a"], ["g"]), helper.make_node("Mul", ["a", "g"], ["y"])
    pool = helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[2, 2])
    reach = rows(graph([pool, conv("p", "a", pads=[1, 1, 1, 1]), *gate], W3))
    assert not reach.bounded
    assert (*sizes(reach), reach.scale) == (2, 2, 2, 2, Fraction(1, 2))


def test_a_condition_that_is_known_is_followed() -> None:
    def branch(name: str, pad: int) -> Any:
        node = helper.make_node("Conv", ["x", "w"], [name], pads=[pad] * 4, dilations=[pad] * 2)
        return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ReduceMax", ["shape"], ["n"], keepdims=0),
        helper.make_node("Greater", ["n", "limit"], ["large"]),
        helper.make_node("If", ["large"], ["y"], name="if", then_branch=branch("a", 3), else_branch=branch("b", 1)),
    ]
    limit = {"limit": np.array(40), **W3}
    assert sizes(rows(graph(nodes, limit), 32)) == (1, 1, 1, 1)
    assert sizes(rows(graph(nodes, limit), 64)) == (3, 3, 3, 1)
    computed = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "z"], ["large"]),
    ]
    assert unbounded([*computed, nodes[-1]], {"z": np.array(0, np.float32), **W3}) == "ReduceMax m"


class Sized(nn.Module):  # type: ignore[misc]
    """A U-Net that resizes to the size of its skip connection: arithmetic on shapes in the graph."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.first, self.below = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Conv2d(4, 1, 1)

    def forward(self, x: Any) -> Any:
        skip = torch.relu(self.first(x))
        h = torch.relu(self.below(functional.max_pool2d(skip, 2)))
        h = functional.interpolate(h, size=skip.shape[2:], mode=self.mode)
        return self.last(torch.cat([h, skip], 1))


class Shuffled(nn.Module):  # type: ignore[misc]
    """Pixels to channels and back, twice the size at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.conv = nn.PixelUnshuffle(2), nn.Conv2d(4, 16, 3, padding=1)
        self.up = nn.PixelShuffle(4)

    def forward(self, x: Any) -> Any:
        return self.up(self.conv(self.down(x)))


class Tokens(nn.Module):  # type: ignore[misc]
    """ConvNeXt's block: depthwise, then normalised and mixed over channels with space flattened away."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(1, 4, 2, stride=2), nn.Conv2d(4, 4, 5, padding=2, groups=4)
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
        self.head = nn.ConvTranspose2d(4, 1, 2, stride=2)

    def forward(self, x: Any) -> Any:
        h = self.depthwise(self.stem(x))
        tokens = self.mix(self.norm(h.flatten(2).transpose(1, 2)))
        return self.head(tokens.transpose(1, 2).reshape(h.shape))


def positive(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for name, p in network.named_parameters():
        nn.init.uniform_(p, 0.5, 1.5) if name.endswith("weight") else nn.init.zeros_(p)
    return network.eval()


def exported(network: nn.Module, shape: tuple[int, ...], *, dynamo: bool = False) -> bytes:
    axes = {a: n for a, n in {0: "b", 2: "h", 3: "w", 4: "d"}.items() if a < len(shape)}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"dynamic_axes": {"x": axes, "y": axes}, "opset_version": 17, "dynamo": False}
        if dynamo:
            options = {"dynamo": True, "optimize": True, "verbose": False,
                       "dynamic_shapes": ({0: "b", 2: torch.export.Dim("h", min=2) * 4, 3: torch.export.Dim("w", min=2) * 4},)}  # fmt: skip
        program = torch.onnx.export(network, (torch.rand(shape),), None if dynamo else buffer, input_names=["x"],
                                    output_names=["y"], **options)  # fmt: skip
    return program.model_proto.SerializeToString() if dynamo else buffer.getvalue()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int, int]]] = {
    "nearest": (lambda: Sized("nearest"), (4, 4, 3, 2)),
    "bilinear": (lambda: Sized("bilinear"), (5, 5, 5, 2)),
    "shuffle": (Shuffled, (3, 3, 2, 2)),
    "reflect": (lambda: nn.Conv2d(1, 1, 5, padding=2, padding_mode="reflect"), (2, 2, 2, 1)),
    "unfold": (lambda: nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 5)), (3, 3, 3, 1)),
    "transposed": (lambda: nn.Sequential(nn.Conv2d(1, 2, 4, 2, 1), nn.ConvTranspose2d(2, 1, 4, 2, 1)), (3, 3, 3, 2)),
}


@pytest.mark.parametrize(("name", "dynamo"), [*((n, False) for n in NETWORKS), ("bilinear", True), ("shuffle", True)])
def test_networks_as_torch_exports_them(name: str, dynamo: bool) -> None:
    network, expected = NETWORKS[name]
    weights = exported(positive(network()), (2, 1, 16, 24), dynamo=dynamo)
    shape = [1, 1, 64, 32]
    reach = receptive_field(weights, {"x": (1, 1, 64, 32)})["y"]["x"][2]
    assert reach is not None
    assert sizes(reach) == expected
    check_sees(weights, reach, shape, 2)
    check_halo(weights, reach, shape, 2)
    check_tiles(weights, reach, shape, 2)


def test_space_that_is_flattened_away_and_back_is_followed() -> None:
    weights = exported(positive(Tokens()), (2, 1, 16, 24))
    field = receptive_field(weights, {"x": (2, 1, 64, 48)})["y"]["x"]
    assert [sizes(r) for r in field[2:] if r] == [(5, 5, 4, 2)] * 2
    for axis, reach in zip((2, 3), field[2:], strict=True):
        assert reach is not None
        check_tiles(weights, reach, [1, 1, 64, 48], axis)


class Attention(nn.Module):  # type: ignore[misc]
    def forward(self, x: Any) -> Any:
        tokens = x.flatten(2).transpose(1, 2)
        return x + (torch.softmax(tokens @ tokens.transpose(1, 2), -1) @ tokens).transpose(1, 2).reshape(x.shape)


class Gate(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Any) -> Any:
        return x * torch.sigmoid(self.pool(x))


@pytest.mark.parametrize(
    ("network", "node"),
    [
        (nn.GroupNorm(2, 4), "InstanceNormalization"),
        (nn.InstanceNorm2d(4), "InstanceNormalization"),
        (nn.LayerNorm(24), "LayerNormalization"),
        (Gate(), "GlobalAveragePool pool"),
        (Attention(), "MatMul"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
         "Resize 1"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "Slice"),
    ],
)  # fmt: skip
def test_unbounded_networks_as_torch_exports_them(network: nn.Module, node: str) -> None:
    weights = exported(network.eval(), (2, 4, 16, 24))
    reach = receptive_field(weights, {"x": (2, 4, 16, 24)})["y"]["x"][3]
    assert reach is not None
    assert not reach.bounded
    assert reach.why.startswith(node)
