"""The same network for those who run torch: a state dict with its architecture file, and TorchScript."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..trainers.networks import unet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..trainers.networks.unet import RawToDenoised

ARCHITECTURE = "network.py"
"""The file of a package that makes the network of its state dict: `trainers/networks/unet.py` (imports torch alone)."""


def architecture() -> bytes:
    """The Python source of the network."""
    return Path(unet.__file__).read_bytes()


def state_dict(network: RawToDenoised) -> bytes:
    """Tensors alone, as `torch.load(weights_only=True)` reads them, in the layout that every torch since 1.6 knows."""
    buffer = io.BytesIO()
    torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, buffer)
    return buffer.getvalue()


def to_torchscript(network: RawToDenoised, channels: int, space: str, sizes: Mapping[str, int]) -> bytes:
    """Traced, for any batch and legal size. sizes: a legal size along each letter of `space`, to trace with."""
    shape = [2, channels, *(sizes[a] * (2 if a == space[-1] else 1) for a in space)]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # that tracing will go is known; Fiji's and QuPath's engines read nothing else
        torch.jit.save(torch.jit.trace(network.eval(), torch.rand(shape), check_trace=False), buffer)
    return buffer.getvalue()
