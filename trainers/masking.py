"""Blind spots: which pixels are hidden from the network (Krull et al. 2019), and which neighbours with them
(Broaddus et al. 2020)."""

from __future__ import annotations

from math import ceil, prod

import torch
from torch import Tensor

from ..zoo.blind import BlindMask
from .manipulators import MANIPULATORS, Windows, ravel

FILL = 2.0
"""Uniform random values go from -FILL to FILL (normalised pixels: standard deviations)."""


def hide(
    x: Tensor,
    generator: torch.Generator,
    *,
    percent: float,
    radius: int = 5,
    manipulator: str = "uniform_withCP",
    blind: BlindMask | None = None,
    fill: str = "window",
) -> tuple[Tensor, Tensor]:
    """Hide pixels. x: float32 (b, c, [z], y, x), normalised -> (hidden, mask), same shape; mask True where asked for.

    Each item of the batch and each channel gets its own pixels. With a blind mask their neighbours in it are hidden
    too and not asked for: fill "window" shows random pixels of the window that the mask does not hide, "uniform" random
    numbers from -FILL to FILL, as published (docs/decisions/0015). Neighbours outside of the patch are dropped, and a
    pixel that another one's mask hides stays asked for. `generator` must live on the device of x.
    Raises KeyError for an unknown manipulator. Source: Krull et al. 2019, section 3.3 (stratified sampling);
    Broaddus et al. 2020, section 2.
    """
    shape = tuple(x.shape[2:])
    pixels = prod(shape)
    flat = x.reshape(x.shape[0] * x.shape[1], pixels)
    points, inside = stratified(flat.shape[0], shape, percent, generator)
    offsets = None if blind is None else torch.from_numpy(blind.offsets).to(x.device)
    windows = Windows(flat, points, shape, radius, offsets)
    values = _or_noise(MANIPULATORS[manipulator](windows, generator), generator)
    index = torch.where(
        inside, ravel(points, shape), pixels
    )  # one spare place behind the patch takes what fell outside
    index = _first_only(index, pixels)
    hidden = torch.cat([flat, flat.new_zeros(flat.shape[0], 1)], dim=1).scatter_(1, index, values)
    mask = torch.zeros(hidden.shape, dtype=torch.bool, device=x.device).scatter_(1, index, True)
    if offsets is not None:
        around = _first_only(_neighbours(points, index, offsets, shape), pixels)
        others = hidden.new_full((flat.shape[0], points.shape[1], offsets.shape[0] - 1), torch.nan)
        if fill == "window":
            others = windows.picked(generator, without_centre=True, times=offsets.shape[0] - 1)
        hidden.scatter_(1, around, _or_noise(others, generator).flatten(1))
    return hidden[:, :-1].reshape(x.shape), mask[:, :-1].reshape(x.shape)


def stratified(count: int, shape: tuple[int, ...], percent: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random pixel in each box of a grid -> (points int64 (count, boxes, axes), inside bool (count, boxes)).

    The boxes have the (not whole) side (100 / percent)^(1 / axes), so that `percent` is exact in 2D and 3D and in
    patches that no box divides: the last boxes hang over the edge and their points outside are dropped. Points
    outside are clamped to the edge and marked False in `inside`.
    """
    side = (100.0 / percent) ** (1.0 / len(shape))
    device = generator.device
    corners = torch.cartesian_prod(*(torch.arange(ceil(n / side), device=device) for n in shape))
    corners = corners.reshape(1, -1, len(shape))
    offset = torch.rand((count, corners.shape[1], len(shape)), generator=generator, device=device)
    points = ((corners + offset) * side).floor().long()
    size = torch.tensor(shape, device=device)
    return points.minimum(size - 1), (points < size).all(dim=2)


def masked_loss(prediction: Tensor, target: Tensor, mask: Tensor, kind: str = "mse") -> Tensor:
    """Mean squared (`mse`) or absolute (`mae`) error over the pixels asked for, in float32 over the whole batch.

    0 when none is asked for. prediction, target: (b, c, [z], y, x); mask: bool, same shape.
    Source: Krull et al. 2019, equation 8.
    """
    m = mask.float()
    off = prediction.float() - target.float()
    return (m * (off.abs() if kind == "mae" else off.square())).sum() / m.sum().clamp(min=1.0)


def _neighbours(points: Tensor, index: Tensor, offsets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Where the masks around the hidden pixels reach, without the pixels themselves. -> places, int64 (n, k (m - 1)).

    index: places of the points, the spare one for those that are not hidden, and for what lies outside.
    """
    around = offsets[(offsets != 0).any(dim=1)]
    place = points[:, :, None] + around  # (n, k, m, axes)
    inside = ((place >= 0) & (place < torch.tensor(shape, device=place.device))).all(dim=3)
    pixels = prod(shape)
    inside &= (index < pixels)[..., None]
    return torch.where(inside, ravel(place, shape), pixels).flatten(1)


def _or_noise(values: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform random numbers from -FILL to FILL in the place of NaN."""
    noise = (torch.rand(values.shape, generator=generator, device=values.device) * 2 - 1) * FILL
    return torch.where(values.isnan(), noise, values)


def _first_only(index: Tensor, spare: int) -> Tensor:
    """Send all but one of equal entries of a row to the spare place, so that writing does not depend on the order.

    Two neighbouring boxes share the pixels that their common edge cuts, and can (rarely) both choose the same one.
    """
    order = torch.arange(index.shape[1], device=index.device).expand_as(index).contiguous()
    winner = torch.full((index.shape[0], spare + 1), -1, dtype=torch.int64, device=index.device)
    winner.scatter_reduce_(1, index, order, reduce="amax")
    return torch.where(winner.gather(1, index) == order, index, spare)
