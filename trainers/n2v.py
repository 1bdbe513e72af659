"""Noise2Void (Krull et al. 2019): what one batch costs. The loop does not know more of a method than this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .masking import hide, masked_mse
from .networks.unet import ChannelNets, UNet

if TYPE_CHECKING:
    from .loop import Loss
    from .recipe import Recipe


def network(recipe: Recipe, channels: int) -> Any:
    """The U-Net of a recipe, one for each channel, with fresh weights from torch's global generator."""
    settings: dict[str, Any] = {
        "dims": recipe.dims,
        "depth": recipe.depth,
        "filters": recipe.filters,
        "kernel": recipe.kernel,
        "pool": recipe.pool,
        "residual": recipe.residual,
    }
    return UNet(**settings) if channels == 1 else ChannelNets(channels, **settings)


def loss(recipe: Recipe) -> Loss:
    """The loss of Noise2Void: batch float32 (b, c, [z], y, x), normalised -> (scalar, {"pixels": how many counted}).

    The network sees the batch with some pixels replaced by neighbours and is asked for their original (noisy) values.
    As the noise of a pixel cannot be told from its neighbours, what it learns to say is the signal. Pixels that are
    NaN are shown as the mean (0) and never asked for.
    """

    def n2v(network: Any, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        finite = batch.isfinite() if recipe.allow_nan else None
        if finite is not None:
            batch = torch.where(finite, batch, 0.0)
        hidden, mask = hide(
            batch,
            generator,
            percent=recipe.mask_percent,
            radius=recipe.mask_radius,
            manipulator=recipe.manipulator,
        )
        if finite is not None:
            mask = mask & finite
        return masked_mse(network(hidden), batch, mask), {"pixels": mask.sum()}

    return n2v
