"""How much memory a training takes, and whether its images fit beside it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import psutil
import torch

from ..zoo.errors import ResourceError
from ..zoo.memory import peak_memory

if TYPE_CHECKING:
    from .data import Data
    from .loop import Loss
    from .recipe import Recipe

SHARE = 0.5
"""Of the free memory, or of a GPU's, what images may take unasked; the rest is the network's."""
BESIDE = 0.9
"""Of the memory that was given, what is handed out: allocators leave gaps."""


def fitting(
    data: Data, network: Any, loss: Loss, recipe: Recipe, device: torch.device, memory: int | None
) -> int | None:
    """Bytes for a pool of image parts; None where all images fit.

    memory: bytes of the process, None: as many as there are. What a step takes is measured by making one, on a copy of
    the network. Raises ResourceError where a step alone takes more.
    """
    free = psutil.virtual_memory().available
    if device.type != "cpu":
        there = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free
        if data.nbytes <= SHARE * there:
            return None
        return _coarse(SHARE * free if memory is None else BESIDE * memory)
    if memory is None:
        return None if data.nbytes <= SHARE * free else _coarse(SHARE * free)
    if data.nbytes * 50 < memory:  # not worth a measurement
        return None
    taken = _step_peak(data.channels, network, loss, recipe)
    room = BESIDE * memory - taken
    if room <= 0:
        raise ResourceError(
            f"a step of {recipe.batch} patches takes {taken / 1e6:.0f} MB; --memory is {memory / 1e6:.0f} MB.",
            mend=f"--memory {-(-taken * 1.2 // 1e8) / 10:.1f}GB, or a smaller batch or patch",
        )
    return None if data.nbytes <= room else _coarse(room)


def _coarse(room: float) -> int:
    """Rounded down to an eighth of a power of two, so that a few MB more or less train the same network."""
    unit = 2 ** max(0, int(room).bit_length() - 4)
    return int(room) // unit * unit


def _step_peak(channels: int, network: Any, loss: Loss, recipe: Recipe) -> int:
    """Bytes of the process at the worst moment of a training step, by making one on a copy of the network."""
    trial = copy.deepcopy(network).train()
    optimiser = torch.optim.Adam(trial.parameters())
    batch = torch.rand((recipe.batch, channels, *recipe.patch), generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # the second has the optimiser's moments beside it
        value, _parts = loss(trial, batch, torch.Generator().manual_seed(0))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        optimiser.step()
    return peak_memory()
