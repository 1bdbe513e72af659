"""What a denoiser took away from held-out pixels, and whether it looks like noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..zoo.noise import Noise

REACH = 10
"""Largest distance (pixels) at which pixels of the residual are compared."""


@dataclass(frozen=True)
class Residual:
    """Of one channel. std: in grey values. autocorrelation: by axis, from lag 0 (1.0) on; error: of one that is 0.

    noise: the same of the image's own noise, as `zoo.noise` measures it, by axis, 0 where it is below three of its
    standard errors; empty where it could not be measured. proposed: the blind mask that this noise asks for, in words,
    empty for none.
    """

    channel: str
    std: float
    autocorrelation: dict[str, tuple[float, ...]]
    error: float
    noise: dict[str, tuple[float, ...]]
    proposed: str = ""

    def beside_noise(self) -> list[tuple[str, int, float, float]]:
        """(axis, lag, correlation of the residual, that of the noise) from lag 1 on, where both are known."""
        return [
            (axis, lag, values[lag], self.noise[axis][lag])
            for axis, values in self.autocorrelation.items()
            if axis in self.noise
            for lag in range(1, min(len(values), len(self.noise[axis])))
        ]

    def to_json(self) -> dict[str, Any]:
        """For run.json."""
        curves = {k: {a: list(v) for a, v in getattr(self, k).items()} for k in ("autocorrelation", "noise")}
        return asdict(self) | curves

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`."""
        curves = {k: {a: tuple(v) for a, v in found[k].items()} for k in ("autocorrelation", "noise")}
        return cls(**(dict(found) | curves))


def residuals(
    network: Any,
    batches: Sequence[Tensor],
    names: Sequence[str],
    stds: Sequence[float],
    noise: Sequence[Noise | None],
    *,
    fitted: bool = False,
) -> list[Residual]:
    """One for each channel. batches: held-out windows, float32 (b, c or 2 c, [z], y, x), normalised by `stds`.

    fitted: the network answers on another scale (that of CARE's partners), which is fitted to that of the image.
    Pixels that are NaN count as 0, the mean. What neighbouring pixels of the residual share is taken over all windows;
    their own means are not taken out, because a residual that is brighter in one place than in another is no noise.
    """
    dims = batches[0].ndim - 2
    axes = "xyz"[:dims]
    device = next(network.parameters()).device
    lags = {a: min(REACH, min(b.shape[-1 - i] for b in batches) - 1) for i, a in enumerate(axes)}
    count = len(names)
    products = {a: torch.zeros(count, n + 1, dtype=torch.float64) for a, n in lags.items()}
    pairs = {a: torch.zeros(n + 1, dtype=torch.float64) for a, n in lags.items()}
    answered = [_answered(network, b[:, :count].to(device)) for b in {id(b): b for b in batches}.values()]
    factors = _factors(answered) if fitted else torch.ones(count, dtype=torch.float64)
    taken = [shown - answer * factors.reshape(1, -1, *(1,) * dims) for shown, answer in answered]
    pixels = sum(r[:, 0].numel() for r in taken)
    centre = sum(r.sum(dim=(0, *range(2, r.ndim))) for r in taken) / pixels
    for r in (t - centre.reshape(1, -1, *(1,) * dims) for t in taken):
        for i, (axis, most) in enumerate(lags.items()):
            side = r.ndim - 1 - i
            for lag in range(most + 1):
                near, far = (r.narrow(side, s, r.shape[side] - lag) for s in (0, lag))
                products[axis][:, lag] += (near * far).sum(dim=(0, *range(2, r.ndim)))
                pairs[axis][lag] += near[:, 0].numel()
    found = []
    for c, (name, std) in enumerate(zip(names, stds, strict=True)):
        variance = float(products["x"][c, 0] / pixels)
        curves = {
            a: tuple(float(v) for v in products[a][c] / pairs[a] / max(variance, 1e-30)) for a in axes
        }  # fmt: skip
        known = noise[c]
        found.append(
            Residual(
                name,
                std * variance**0.5,
                curves,
                pixels**-0.5,
                {} if known is None else {a: _significant(known, a) for a in "xy"},
                "" if known is None or known.mask is None else str(known.mask),
            )
        )
    return found


def _significant(noise: Noise, axis: str) -> tuple[float, ...]:
    values = zip(noise.autocorrelation[axis], noise.error[axis], strict=True)
    return tuple(v if abs(v) > 3 * e else 0.0 for v, e in values)


def _answered(network: Any, batch: Tensor) -> tuple[Tensor, Tensor]:
    """(what the network is shown, what it answers), float64 on the CPU; both 0 where the batch is not finite."""
    network.eval()
    finite = batch.isfinite()
    shown = torch.where(finite, batch, 0.0)
    with torch.inference_mode():
        answer = torch.where(finite, network(shown), 0.0)
    return shown.cpu().double(), answer.cpu().double()  # not every device has float64


def _factors(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """What the answers of each channel are multiplied by to come nearest to what was shown (least squares), (c,)."""
    shown, answer = (torch.cat([p[i].transpose(0, 1).flatten(1) for p in pairs], dim=1) for i in (0, 1))
    shown, answer = (v - v.mean(dim=1, keepdim=True) for v in (shown, answer))
    return (shown * answer).sum(dim=1) / answer.square().sum(dim=1).clamp(min=1e-30)
