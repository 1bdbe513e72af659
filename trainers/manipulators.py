"""What the network is shown in the place of a hidden pixel: a value made from the pixels around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 2**22
"""Window pixels that are gathered together; a 3D window has 1331, and a batch hides tens of thousands of pixels."""


@dataclass(frozen=True)
class Windows:
    """The neighbourhoods of hidden pixels: cubes of `radius` around them, cropped (not shifted) at the patch's border.

    flat: float32 (n, pixels), unmodified patches of `shape`. points: int64 (n, k, axes). hidden: int64 (m, axes),
    offsets in raster order that give nothing: those of the blind mask, with the point itself.
    """

    flat: Tensor
    points: Tensor
    shape: tuple[int, ...]
    radius: int
    hidden: Tensor | None = None

    def picked(self, generator: torch.Generator, *, without_centre: bool, times: int = 1) -> Tensor:
        """Pixels of each window, all with the same probability. -> float32 (n, k, times), NaN where nothing is left.

        The k-th pixel that is not left out is found by counting: every left-out one before it moves it on by one.
        """
        low, sides = self._cropped()
        count = sides.prod(dim=2)
        out = self._left_out(without_centre)
        if out is None:
            pick = _below(count, times, generator)
            return self._at(low[:, :, None] + _unravel(pick, sides))
        place = self.points[:, :, None] + out - low[:, :, None]  # within the window, (n, k, m, axes)
        inside = ((place >= 0) & (place < sides[:, :, None])).all(dim=3)
        rank = place[..., 0]
        for axis in range(1, len(self.shape)):
            rank = rank * sides[:, :, None, axis] + place[..., axis]
        rank = torch.where(inside, rank, (2 * self.radius + 1) ** len(self.shape)).sort(dim=2).values
        room = count - inside.sum(dim=2)
        pick = _below(room.clamp(min=1), times, generator)
        before = rank - torch.arange(rank.shape[2], device=rank.device)  # how many that stay come before each
        pick = pick + torch.searchsorted(before.contiguous(), pick, right=True)
        found = self._at(low[:, :, None] + _unravel(pick.minimum(count[..., None] - 1), sides))
        return torch.where((room > 0)[..., None], found, torch.nan)

    def reduced(self, reduce: Callable[[Tensor], Tensor], *, without_centre: bool) -> Tensor:
        """reduce: float32 (pieces, w) with NaN where a window has no pixel -> (pieces,); of all windows (n, k)."""
        sides = (2 * self.radius + 1,) * len(self.shape)
        offsets = torch.cartesian_prod(*(torch.arange(s, device=self.points.device) - self.radius for s in sides))
        out = self._left_out(without_centre)
        if out is not None:
            offsets = offsets[~(offsets[:, None] == out).all(dim=2).any(dim=1)]
        n, k, axes = self.points.shape
        if not offsets.shape[0] or not k:
            return self.flat.new_full((n, k), torch.nan)
        rows = torch.arange(n, device=self.points.device).repeat_interleave(k)
        points = self.points.reshape(n * k, axes)
        size = torch.tensor(self.shape, device=points.device)
        results = []
        for first in range(0, n * k, max(1, AT_ONCE // offsets.shape[0])):
            part = slice(first, first + max(1, AT_ONCE // offsets.shape[0]))
            place = points[part, None] + offsets
            inside = ((place >= 0) & (place < size)).all(dim=2)
            index = torch.where(inside, ravel(place, self.shape), 0)
            found = self.flat[rows[part, None], index]
            results.append(reduce(torch.where(inside, found, torch.nan)))
        return torch.cat(results).reshape(n, k)

    def _at(self, places: Tensor) -> Tensor:
        """The pixels at int64 (n, k, times, axes) -> float32 (n, k, times)."""
        index = ravel(places, self.shape)
        return self.flat.gather(1, index.flatten(1)).reshape(index.shape)

    def _cropped(self) -> tuple[Tensor, Tensor]:
        """First pixel and sides of each window, int64 (n, k, axes)."""
        low = (self.points - self.radius).clamp(min=0)
        high = (self.points + self.radius).minimum(torch.tensor(self.shape, device=self.points.device) - 1)
        return low, high - low + 1

    def _left_out(self, without_centre: bool) -> Tensor | None:
        """Offsets that give nothing and could lie in a window, in raster order."""
        if self.hidden is not None:
            return self.hidden[(self.hidden.abs() <= self.radius).all(dim=1)]
        if without_centre:
            return torch.zeros((1, len(self.shape)), dtype=torch.int64, device=self.points.device)
        return None


Manipulator = Callable[[Windows, torch.Generator], Tensor]
"""windows, generator -> replacements float32 (n, k); NaN where a window has nothing to offer."""


def uniform_with_centre(windows: Windows, generator: torch.Generator) -> Tensor:
    """Any pixel of the window, the centre included (1 of 121 in 2D stays as it is, and counts in the loss)."""
    return windows.picked(generator, without_centre=False)[..., 0]


def uniform_without_centre(windows: Windows, generator: torch.Generator) -> Tensor:
    """Any pixel of the window but the centre."""
    return windows.picked(generator, without_centre=True)[..., 0]


def median(windows: Windows, _: torch.Generator) -> Tensor:
    """The median of the window without its centre, the mean of the two middle values of an even count (Höck 2022)."""
    return windows.reduced(_median, without_centre=True)


def mean(windows: Windows, _: torch.Generator) -> Tensor:
    """The mean of the window without its centre."""
    return windows.reduced(_mean, without_centre=True)


def normal_fitted(windows: Windows, generator: torch.Generator) -> Tensor:
    """A draw from the normal distribution with the window's mean and population std, the centre included."""
    centre = windows.reduced(_mean, without_centre=False)
    spread = windows.reduced(_std, without_centre=False)
    noise = torch.randn(centre.shape, generator=generator, device=centre.device)
    return centre + spread * noise


MANIPULATORS: dict[str, Manipulator] = {
    "uniform_withCP": uniform_with_centre,
    "uniform_withoutCP": uniform_without_centre,
    "median": median,
    "mean": mean,
    "normal_fitted": normal_fitted,
}
"""Under a blind mask none of them reads a pixel of the mask, nor the centre, which belongs to it."""


def ravel(points: Tensor, shape: tuple[int, ...]) -> Tensor:
    """int64 (..., axes) -> flat positions in a patch of `shape`, int64 (...)."""
    flat = points[..., 0]
    for axis in range(1, len(shape)):
        flat = flat * shape[axis] + points[..., axis]
    return flat


def _median(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1).values  # NaN last
    count = (~ordered.isnan()).sum(dim=1, keepdim=True)
    middle = torch.cat([(count - 1).div(2, rounding_mode="floor").clamp(min=0), count // 2], dim=1)
    return ordered.gather(1, middle.clamp(max=values.shape[1] - 1)).mean(dim=1)


def _mean(values: Tensor) -> Tensor:
    return values.nanmean(dim=1)


def _std(values: Tensor) -> Tensor:
    centre = values.nanmean(dim=1, keepdim=True)
    return (values - centre).square().nanmean(dim=1).sqrt()


def _below(count: Tensor, times: int, generator: torch.Generator) -> Tensor:
    """Uniform whole numbers from 0 to count - 1: count int64 (n, k) -> int64 (n, k, times)."""
    u = torch.rand((*count.shape, times), generator=generator, device=count.device)
    return (u * count[..., None]).long().minimum(count[..., None] - 1)


def _unravel(pick: Tensor, window: Tensor) -> Tensor:
    """Flat positions (n, k, times) within windows (n, k, axes) -> int64 (n, k, times, axes), last axis fastest."""
    parts = []
    for axis in reversed(range(window.shape[2])):
        parts.append(pick % window[..., None, axis])
        pick = pick // window[..., None, axis]
    return torch.stack(parts[::-1], dim=3)
