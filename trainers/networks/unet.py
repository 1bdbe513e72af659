"""The U-Net of CSBDeep (Weigert et al. 2018) in 2D and 3D, and the denoiser around it that takes raw intensities.

This file imports torch alone: it lies in every package as the architecture of its state dict.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

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
    Noise2Void's checkerboards come from the top skip connection and from max pooling: N2V2 leaves out the first
    (`top_skip` false) and blurs before it subsamples (`pooling` "blur", see MaxBlurPool).
    Architecture: Weigert et al. 2018; Krull et al. 2019; Höck et al. 2022.
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
        top_skip: bool = True,
        pooling: str = "max",
    ) -> None:
        """Raise ValueError for settings that contradict each other."""
        super().__init__()
        self.dims, self.depth, self.filters = dims, depth, filters
        self.channels_in, self.channels_out = channels_in, channels_out
        self.kernel = tuple(kernel or (3,) * dims)
        self.pool = tuple(pool or default_pool(dims))
        self.residual, self.batch_norm = residual, batch_norm
        self.top_skip, self.pooling = top_skip, pooling
        if len(self.kernel) != dims or len(self.pool) != dims:
            raise ValueError(f"kernel {self.kernel} and pool {self.pool} need one number for each of {dims} axes.")
        if residual and channels_in != channels_out:
            raise ValueError(f"a residual network has as many outputs as inputs, not {channels_out} for {channels_in}.")
        width = [filters * 2**n for n in range(depth + 1)]
        self.down = nn.ModuleList(
            self._level(channels_in if n == 0 else width[n - 1], width[n], width[n]) for n in range(depth)
        )
        self.bottom = self._level(width[depth - 1] if depth else channels_in, width[depth], width[max(0, depth - 1)])
        self.up = nn.ModuleList(
            self._level((2 if n or top_skip else 1) * width[n], width[n], width[max(0, n - 1)])
            for n in reversed(range(depth))
        )
        self.head = _conv(dims)(filters, channels_out, 1)
        maximum = (nn.MaxPool2d, nn.MaxPool3d)[dims - 2]
        self.shrink = nn.ModuleList(
            MaxBlurPool(self.pool, width[n]) if pooling == "blur" else maximum(self.pool) for n in range(depth)
        )
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
        skips: list[torch.Tensor | None] = []
        h = x
        for n, level in enumerate(self.down):
            h = level(h)
            skips.append(h if n or self.top_skip else None)
            h = self.shrink[n](h)
        h = self.bottom(h)
        for level in self.up:
            h, skip = self.grow(h), skips.pop()
            h = level(h if skip is None else torch.cat([h, skip], dim=1))
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
            "top_skip": self.top_skip,
            "pooling": self.pooling,
        }


class MaxBlurPool(nn.Module):  # type: ignore[misc]
    """Max pooling that does not alias: a maximum at every pixel, then [1, 2, 1] / 4 along each pooled axis, then every
    second. x: float32 (b, c, [z], y, x) -> half as many pixels along the axes where `pool` is 2.

    Output i sees the inputs 2i-1 to 2i+2 and so lies in the middle of 2i and 2i+1, where nearest upsampling puts it
    back; the original code pads at one side only, which moves each level by a pixel. Zero outside of the image, as in
    the convolutions. Source: Zhang 2019; Höck et al. 2022.
    """

    def __init__(self, pool: Sequence[int], channels: int) -> None:
        """pool: 1 or 2 for each spatial axis. channels: c, fixed, so that the exported convolution knows its shape."""
        super().__init__()
        self.pool = tuple(pool)
        kernel = torch.ones((1,) * len(self.pool))
        for axis, p in enumerate(self.pool):
            taps = torch.tensor([1.0, 2.0, 1.0]) / 4 if p == 2 else torch.ones(1)
            kernel = kernel * taps.reshape([-1 if a == axis else 1 for a in range(len(self.pool))])
        self.register_buffer("kernel", kernel.repeat(channels, 1, *(1 for _ in self.pool)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 (b, c, [z], y, x), even sides where pooled."""
        plane = len(self.pool) == 2
        x = (functional.max_pool2d if plane else functional.max_pool3d)(x, self.pool, stride=1)
        convolve = functional.conv2d if plane else functional.conv3d
        padding = tuple(p - 1 for p in self.pool)
        return convolve(x, self.kernel, stride=self.pool, padding=padding, groups=self.kernel.shape[0])


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
    """The network that `config()` described, with fresh weights. Raises ValueError for an unknown kind."""
    settings = dict(config)
    kind = settings.pop("network", None)
    if kind not in NETWORKS:
        raise ValueError(f"there is no network {kind!r}; there are: {', '.join(NETWORKS)}.")
    return NETWORKS[kind](**settings)


class RawToDenoised(nn.Module):  # type: ignore[misc]
    """Normalise, run the network, put the result on the scale of the image (or of what it was trained to predict).

    x: float32 (b, c, [z], y, x), raw intensities -> float32, same shape, denoised intensities. mean, std, mean_out and
    std_out, one a channel in grey values, are buffers: 0 and 1 until a state dict is loaded.
    """

    def __init__(self, **network: Any) -> None:
        """`network`: what `build` takes."""
        super().__init__()
        self.network = build(network)
        nets = self.network.nets if isinstance(self.network, ChannelNets) else [self.network]
        sizes = [sum(net.channels_in for net in nets), sum(net.channels_out for net in nets)]
        for end, channels in zip(("", "_out"), sizes, strict=True):
            self.register_buffer(f"mean{end}", torch.zeros(1, channels, *(1,) * nets[0].dims))
            self.register_buffer(f"std{end}", torch.ones(1, channels, *(1,) * nets[0].dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 (b, c, [z], y, x) -> the same shape."""
        return self.network((x - self.mean) / self.std) * self.std_out + self.mean_out


def default_pool(dims: int) -> tuple[int, ...]:
    """Pooling per spatial axis: 2 in y and x, 1 in z (stacks are shallow and sampled more coarsely along z)."""
    return (2, 2) if dims == 2 else (1, 2, 2)


def _conv(dims: int) -> Any:
    return (nn.Conv2d, nn.Conv3d)[dims - 2]
