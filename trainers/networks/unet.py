"""The U-Net of CSBDeep (Weigert et al. 2018) in 2D and 3D, and the arithmetic of what one of its pixels sees."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...zoo.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONVS = 2  # a level, on the way down, at the bottom and on the way up


class UNet(nn.Module):  # type: ignore[misc]
    """A U-Net. x: float32 (b, c, [z], y, x) -> float32 (b, channels_out, [z], y, x); sides multiples of the step.

    Two convolutions a level ('same' zero padding, with bias), batch norm, ReLU; max pooling down, nearest upsampling
    up, skip connections at every level, a linear 1x1 head; with `residual` the input is added to the result.
    `kernel` and `pool` have one entry a spatial axis; `pool` is 1 or 2, the same at every level. `filters` double a
    level; the last convolution of the bottom already halves them. Batch norm has Keras' constants, which matter in
    short trainings (momentum 0.01 in torch's sense, eps 1e-3); weights start Glorot uniform, biases at zero.
    Architecture: Weigert et al. 2018; Krull et al. 2019.
    """

    def __init__(
        self,
        dims: int,
        *,
        channels_in: int = 1,
        channels_out: int = 1,
        depth: int = 2,
        filters: int = 32,
        kernel: Sequence[int] | None = None,
        pool: Sequence[int] | None = None,
        residual: bool = False,
        batch_norm: bool = True,
    ) -> None:
        """Raise RecipeError for settings that contradict each other."""
        super().__init__()
        self.dims, self.depth, self.filters = dims, depth, filters
        self.channels_in, self.channels_out = channels_in, channels_out
        self.kernel = tuple(kernel or (3,) * dims)
        self.pool = tuple(pool or default_pool(dims))
        self.residual, self.batch_norm = residual, batch_norm
        if len(self.kernel) != dims or len(self.pool) != dims:
            raise RecipeError(f"kernel {self.kernel} and pool {self.pool} need one number for each of {dims} axes.")
        if residual and channels_in != channels_out:
            raise RecipeError(
                f"a residual network has as many outputs as inputs, not {channels_out} for {channels_in}."
            )
        width = [filters * 2**n for n in range(depth + 1)]
        self.down = nn.ModuleList(
            self._level(channels_in if n == 0 else width[n - 1], width[n], width[n]) for n in range(depth)
        )
        self.bottom = self._level(width[depth - 1] if depth else channels_in, width[depth], width[max(0, depth - 1)])
        self.up = nn.ModuleList(
            self._level(2 * width[n], width[n], width[max(0, n - 1)]) for n in reversed(range(depth))
        )
        self.head = _conv(dims)(filters, channels_out, 1)
        self.shrink = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2](self.pool)
        self.grow = nn.Upsample(scale_factor=tuple(float(p) for p in self.pool), mode="nearest")
        for module in self.modules():
            if isinstance(module, _conv(dims)):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def _level(self, *channels: int) -> Any:
        """Convolutions from channels[0] over channels[1] to channels[2], each with batch norm and ReLU."""
        norm = (nn.BatchNorm2d, nn.BatchNorm3d)[self.dims - 2]
        layers: list[Any] = []
        for before, after in pairwise(channels):
            layers.append(_conv(self.dims)(before, after, self.kernel, padding=tuple(k // 2 for k in self.kernel)))
            if self.batch_norm:
                layers.append(norm(after, eps=1e-3, momentum=0.01))
            layers.append(nn.ReLU(inplace=True))
        return nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 (b, channels_in, [z], y, x) -> float32 (b, channels_out, [z], y, x)."""
        skips = []
        h = x
        for level in self.down:
            h = level(h)
            skips.append(h)
            h = self.shrink(h)
        h = self.bottom(h)
        for level in self.up:
            h = level(torch.cat([self.grow(h), skips.pop()], dim=1))
        h = self.head(h)
        return h + x if self.residual else h

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this network again (without its weights); plain JSON values."""
        return {
            "network": "unet",
            "dims": self.dims,
            "channels_in": self.channels_in,
            "channels_out": self.channels_out,
            "depth": self.depth,
            "filters": self.filters,
            "kernel": list(self.kernel),
            "pool": list(self.pool),
            "residual": self.residual,
            "batch_norm": self.batch_norm,
        }


class ChannelNets(nn.Module):  # type: ignore[misc]
    """One U-Net a channel, outputs side by side. x: float32 (b, c, [z], y, x) -> the same shape.

    No channel can leak into another (what one shared network does when it is stopped early); the cost is c times.
    """

    def __init__(self, channels: int, **settings: Any) -> None:
        """`settings` are those of one UNet."""
        super().__init__()
        self.nets = nn.ModuleList(UNet(**settings) for _ in range(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 (b, c, [z], y, x) -> the same shape."""
        return torch.cat([net(x[:, i : i + 1]) for i, net in enumerate(self.nets)], dim=1)

    def config(self) -> dict[str, Any]:
        """Everything `build` needs to make this network again."""
        inner = {k: v for k, v in self.nets[0].config().items() if k != "network"}
        return {"network": "channel_nets", "channels": len(self.nets), **inner}


NETWORKS = {"unet": UNet, "channel_nets": ChannelNets}


def build(config: Mapping[str, Any]) -> Any:
    """The network that `config()` described, with fresh weights. Raises RecipeError for an unknown kind."""
    settings = dict(config)
    kind = settings.pop("network", None)
    if kind not in NETWORKS:
        raise RecipeError(f"there is no network {kind!r}; there are: {', '.join(NETWORKS)}.")
    return NETWORKS[kind](**settings)


def default_pool(dims: int) -> tuple[int, ...]:
    """Pooling per spatial axis: 2 in y and x, 1 in z (stacks are shallow and sampled more coarsely along z)."""
    return (2, 2) if dims == 2 else (1, 2, 2)


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
    return {
        letter: _axis_geometry(depth, int(kernel) // 2, int(pool))
        for letter, kernel, pool in zip(letters, config["kernel"], config["pool"], strict=True)
    }


def _axis_geometry(depth: int, half: int, pool: int) -> AxisGeometry:
    """Radius = sum over all convolutions in series of half * pool^level, plus the phase within a pooling window."""
    reach = CONVS * half
    step = pool**depth
    radius = reach * (2 * sum(pool**n for n in range(depth)) + step) + step - 1
    aligned = _needed(0, 0, depth, reach, pool)
    return AxisGeometry(step, radius, aligned, -(-aligned // step) * step)


def _needed(level: int, extent: int, depth: int, reach: int, pool: int) -> int:
    """Pixels before a tile's edge that level's input must have when its output is needed `extent` pixels before it.

    Interval arithmetic from the output back to the input; units are pixels of that level.
    """
    if level == depth:
        return extent + reach
    extent += reach  # the convolutions on the way up; the same pixels are needed of the skip connection
    below = _needed(level + 1, -(-extent // pool), depth, reach, pool)
    return max(extent, pool * below) + reach


def _conv(dims: int) -> Any:
    return (nn.Conv2d, nn.Conv3d)[dims - 2]
