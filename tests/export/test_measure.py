"""Legal sizes are those at which a network runs, halos are what its graph sees; nothing is guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.onnx_net import Net
from voidzoo.export.measure import FLAT, Said, measured
from voidzoo.zoo.errors import SizeError


def graph(build: Any, rank: int, channels: int = 1) -> bytes:
    """A graph of free sizes: input and output called so."""
    net = Net(int(np.random.default_rng().integers(1 << 30)))
    free: list[int | None] = [None, channels, *[None] * (rank - 2)]
    return net.model({"input": free}, {"output": (build(net, "input"), [None, None, *[None] * (rank - 2)])})


def deep(net: Net, x: str) -> str:
    """Pooled by 2 along all axes, a convolution of 9 below: it sees far along z, too."""
    small = net.pool(net.conv(x, 1, 2, (3, 3, 3)), (2, 2, 2))
    return net.node("Add", x, net.conv(net.up(net.conv(small, 2, 2, (9, 9, 9)), (2, 2, 2)), 2, 1, (1, 1, 1)))


def test_a_halo_along_z_is_as_long_as_the_graph_sees() -> None:
    """Nine coarse pixels and a fine convolution: 4 x 2 + 1 to either side, on the grid of 2; more than FLAT gives."""
    found = measured(graph(deep, 5), 1, "zyx", {})
    assert {a: (r.halo, r.step) for a, r in found.rules.items()} == dict.fromkeys("zyx", (10, 2))
    assert found.exact
    assert found.rules["z"].halo > FLAT["z"]
    assert all(r.minimum == 64 for r in found.rules.values())


def test_a_network_that_sees_everything_is_not_exact() -> None:
    """Global pooling: the reason is named, short axes get a short halo."""

    def pooled(net: Net, x: str) -> str:
        return net.node("Mul", x, net.node("GlobalAveragePool", x))

    found = measured(graph(pooled, 5), 1, "zyx", {})
    assert not found.exact
    assert any("GlobalAveragePool" in why for why in found.why)
    assert found.rules["z"].halo <= FLAT["z"]


def test_sizes_off_the_grid_are_found_by_trial() -> None:
    """A network that runs at odd sizes alone (4 n + 1): min and step say so, without a word from the user."""

    def odd_sizes(net: Net, x: str) -> str:
        kernel = net.constant(np.ones((1, 1, 4, 4), np.float32) / 16)
        small = net.node("Conv", x, net.constant(np.ones((1, 1, 5, 5), np.float32) / 25), strides=[4, 4], pads=[2] * 4)
        big = net.node("ConvTranspose", small, kernel, strides=[4, 4], pads=[1, 1, 2, 2])
        return net.node("Add", net.node("Add", x, big), net.constant(np.float32([0.5])))

    found = measured(graph(odd_sizes, 4), 1, "yx", {})
    assert {(r.minimum % 4, r.step) for r in found.rules.values()} == {(1, 4)}


def test_what_was_said_and_does_not_run_is_refused() -> None:
    """A step between the legal ones."""
    with pytest.raises(SizeError, match="does not run at"):
        measured(graph(deep, 5), 1, "zyx", {"y": Said(minimum=64, step=2), "x": Said(minimum=64, step=2),
                                            "z": Said(minimum=33, step=3)})  # fmt: skip
