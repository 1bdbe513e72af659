"""The arithmetic of what one pixel of a network sees, and how many numbers the network has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .unet import CONVS


def parameter_count(network: Any) -> int:
    """Numbers in the network, batch norm counted as 4 a channel (weight, bias, running mean and variance)."""
    return sum(v.numel() for name, v in network.state_dict().items() if not name.endswith("num_batches_tracked"))


@dataclass(frozen=True)
class AxisGeometry:
    """How tiles must lie along one spatial axis; all in pixels.

    step: sides and tile origins are multiples of it. radius: how far the worst output pixel sees to either side.
    aligned: the same for a tile whose edges lie on multiples of the step. halo: `aligned` rounded up to the step.
    """

    step: int
    radius: int
    aligned: int
    halo: int


def geometry(config: Mapping[str, Any]) -> dict[str, AxisGeometry]:
    """The geometry along each spatial axis by letter, from a `config()`; no network is built."""
    letters = "zyx"[-int(config["dims"]) :]
    depth = int(config["depth"])
    blur = config.get("pooling", "max") == "blur"
    return {
        letter: _axis_geometry(depth, int(kernel) // 2, int(pool), blur=int(blur and int(pool) == 2))
        for letter, kernel, pool in zip(letters, config["kernel"], config["pool"], strict=True)
    }


def _axis_geometry(depth: int, half: int, pool: int, *, blur: int) -> AxisGeometry:
    """Radius = sum over all convolutions in series of half * pool^level, plus the phase within a pooling window, plus
    the pixel to either side that a blurred pooling (blur 1) sees at each level.
    """
    reach = CONVS * half
    step = pool**depth
    levels = sum(pool**n for n in range(depth))
    radius = reach * (2 * levels + step) + step - 1 + blur * levels
    aligned = _needed(0, 0, depth, reach, pool, blur)
    return AxisGeometry(step, radius, aligned, -(-aligned // step) * step)


def _needed(level: int, extent: int, depth: int, reach: int, pool: int, blur: int) -> int:
    """Pixels before a tile's edge that level's input must have when its output is needed `extent` pixels before it.

    Interval arithmetic from the output back to the input; units are pixels of that level.
    """
    if level == depth:
        return extent + reach
    extent += reach  # the convolutions on the way up; the same pixels are needed of the skip connection
    below = _needed(level + 1, -(-extent // pool), depth, reach, pool, blur)
    return max(extent, pool * below + blur) + reach
