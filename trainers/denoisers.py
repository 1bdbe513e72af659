"""What one batch costs a denoiser: Noise2Void and its variants, CARE. The loop knows no more of a method than this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .masking import hide, masked_loss
from .networks.unet import ChannelNets, UNet

if TYPE_CHECKING:
    from .loop import Loss
    from .recipe import Recipe


def network(recipe: Recipe, channels: int) -> Any:
    """The U-Net of a recipe, one for each channel or one for all, with fresh weights from torch's global generator."""
    settings: dict[str, Any] = {
        "dims": recipe.dims,
        "depth": recipe.depth,
        "filters": recipe.filters,
        "kernel": recipe.kernel,
        "pool": recipe.pool,
        "residual": recipe.residual,
        "top_skip": recipe.top_skip,
        "pooling": recipe.pooling,
    }
    if channels == 1 or recipe.channels == "shared":
        return UNet(**settings, channels_in=channels, channels_out=channels)
    return ChannelNets(channels, **settings)


def n2v(recipe: Recipe) -> Loss:
    """Noise2Void, N2V2, StructN2V: batch float32 (b, c, [z], y, x), normalised -> (scalar, {"pixels": how many}).

    The network sees the batch with some pixels replaced, and with a blind mask their neighbours too, and is asked for
    the original (noisy) values of the former. As the noise of a pixel cannot be told from what it sees, what it learns
    to say is the signal. Pixels that are NaN are shown as the mean (0) and never asked for.
    """
    blind = recipe.blind

    def loss(net: Any, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch, finite = _without_nan(batch, recipe)
        hidden, mask = hide(
            batch,
            generator,
            percent=recipe.mask_percent,
            radius=recipe.mask_radius,
            manipulator=recipe.manipulator,
            blind=blind,
            fill=recipe.blind_fill,
        )
        if finite is not None:
            mask = mask & finite
        return masked_loss(net(hidden), batch, mask, recipe.loss), {"pixels": mask.sum()}

    return loss


def care(recipe: Recipe) -> Loss:
    """CARE and Noise2Noise: batch float32 (b, 2 c, [z], y, x), the noisy channels, then their partners', normalised.

    The partner is clean (CARE) or has noise of its own (Noise2Noise): its mean given the noisy one is the same.
    Pixels that are NaN in either are never asked for.
    """

    def loss(net: Any, batch: Tensor, _: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        batch, finite = _without_nan(batch, recipe)
        noisy, target = batch.chunk(2, dim=1)
        mask = torch.ones_like(target, dtype=torch.bool)
        if finite is not None:
            mask = finite.chunk(2, dim=1)[0] & finite.chunk(2, dim=1)[1]
        return masked_loss(net(noisy), target, mask, recipe.loss), {"pixels": mask.sum()}

    return loss


def _without_nan(batch: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """NaN as 0 (the mean), and where there was none; None where the recipe allows none."""
    if not recipe.allow_nan:
        return batch, None
    finite = batch.isfinite()
    return torch.where(finite, batch, 0.0), finite
