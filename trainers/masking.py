"""Blind spots: which pixels are hidden from the network, and what it is shown instead (Krull et al. 2019)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, prod

import torch
from torch import Tensor

Manipulator = Callable[[Tensor, Tensor, tuple[int, ...], int, torch.Generator], Tensor]
"""flat float32 (n, pixels), points int64 (n, k, axes), shape, radius, generator -> replacements float32 (n, k).

It reads the unmodified patch only; what it returns is written afterwards.
"""


def hide(
    x: Tensor,
    generator: torch.Generator,
    *,
    percent: float,
    radius: int = 5,
    manipulator: str = "uniform_withCP",
) -> tuple[Tensor, Tensor]:
    """Hide pixels. x: float32 (b, c, [z], y, x) -> (hidden, mask), same shape; mask True where hidden.

    Each item of the batch and each channel gets its own pixels. `generator` must live on the device of x.
    Raises KeyError for an unknown manipulator. Source: Krull et al. 2019, section 3.3 (stratified sampling).
    """
    shape = tuple(x.shape[2:])
    flat = x.reshape(x.shape[0] * x.shape[1], prod(shape))
    points, inside = stratified(flat.shape[0], shape, percent, generator)
    values = MANIPULATORS[manipulator](flat, points, shape, radius, generator)
    index = _ravel(points, shape)
    index = torch.where(inside, index, prod(shape))  # one spare place behind the patch takes what fell outside
    index = _first_only(index, prod(shape))
    hidden = torch.cat([flat, flat.new_zeros(flat.shape[0], 1)], dim=1).scatter_(1, index, values)
    mask = torch.zeros(hidden.shape, dtype=torch.bool, device=x.device).scatter_(1, index, True)
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


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over hidden pixels, summed in float32 over the whole batch; 0 when none is hidden.

    prediction, target: (b, c, [z], y, x); mask: bool, same shape. Source: Krull et al. 2019, equation 8.
    """
    m = mask.float()
    return (m * (prediction.float() - target.float()) ** 2).sum() / m.sum().clamp(min=1.0)


def _uniform_with_centre(
    flat: Tensor, points: Tensor, shape: tuple[int, ...], radius: int, generator: torch.Generator
) -> Tensor:
    """Any pixel of the window, the centre included (1 of 121 in 2D stays as it is, and counts in the loss)."""
    low, window = _window(points, shape, radius)
    count = window.prod(dim=2)
    pick = _below(count, generator)
    return flat.gather(1, _ravel(low + _unravel(pick, window), shape))


def _uniform_without_centre(
    flat: Tensor, points: Tensor, shape: tuple[int, ...], radius: int, generator: torch.Generator
) -> Tensor:
    """Any pixel of the window but the centre (a window of one pixel has only that)."""
    low, window = _window(points, shape, radius)
    count = window.prod(dim=2)
    pick = _below((count - 1).clamp(min=1), generator)
    offset = points - low
    centre = offset[..., 0]
    for axis in range(1, len(shape)):
        centre = centre * window[..., axis] + offset[..., axis]
    pick = torch.where(pick >= centre, (pick + 1).minimum(count - 1), pick)  # skip over the centre
    return flat.gather(1, _ravel(low + _unravel(pick, window), shape))


MANIPULATORS: dict[str, Manipulator] = {
    "uniform_withCP": _uniform_with_centre,
    "uniform_withoutCP": _uniform_without_centre,
}


def _window(points: Tensor, shape: tuple[int, ...], radius: int) -> tuple[Tensor, Tensor]:
    """The windows around points, cropped at the patch's border -> (first pixel, sides), int64 (n, k, axes)."""
    low = (points - radius).clamp(min=0)
    high = (points + radius).minimum(torch.tensor(shape, device=points.device) - 1)
    return low, high - low + 1


def _below(count: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform whole numbers from 0 to count - 1, int64, one an entry of `count`."""
    u = torch.rand(count.shape, generator=generator, device=count.device)
    return (u * count).long().minimum(count - 1)


def _unravel(pick: Tensor, window: Tensor) -> Tensor:
    """Flat positions within windows -> int64 (n, k, axes), last axis fastest."""
    parts = []
    for axis in reversed(range(window.shape[2])):
        parts.append(pick % window[..., axis])
        pick = pick // window[..., axis]
    return torch.stack(parts[::-1], dim=2)


def _ravel(points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int64 (n, k, axes) -> flat positions in a patch of `shape`, int64 (n, k)."""
    flat = points[..., 0]
    for axis in range(1, len(shape)):
        flat = flat * shape[axis] + points[..., axis]
    return flat


def _first_only(index: Tensor, spare: int) -> Tensor:
    """Send all but one of equal entries of a row to the spare place, so that writing does not depend on the order.

    Two neighbouring boxes share the pixels that their common edge cuts, and can (rarely) both choose the same one.
    """
    order = torch.arange(index.shape[1], device=index.device).expand_as(index).contiguous()
    winner = torch.full((index.shape[0], spare + 1), -1, dtype=torch.int64, device=index.device)
    winner.scatter_reduce_(1, index, order, reduce="amax")
    return torch.where(winner.gather(1, index) == order, index, spare)
