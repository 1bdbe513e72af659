"""A checkpoint of CAREamics as one torch network from raw to denoised intensities, by CAREamics' own API."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..zoo.errors import DependencyError, PackageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FAR = 1e4
"""Grey values at which the normalisation is looked at: far apart, so that its slope is exact in float32."""


class RawToRaw(torch.nn.Module):  # type: ignore[misc]  # torch is not typed here
    """A network between two straight lines, one a channel: x -> gain * x + offset, before and after."""

    def __init__(self, network: torch.nn.Module, before: Any, after: Any, dims: int) -> None:
        super().__init__()
        self.network = network
        for name, (gain, offset) in (("before", before), ("after", after)):
            for word, values in (("gain", gain), ("offset", offset)):
                shape = [1, -1, *[1] * dims]
                self.register_buffer(f"{name}_{word}", torch.from_numpy(values.astype(np.float32)).reshape(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: raw float32 (b, c, [z], y, x) -> the same, denoised."""
        return self.network(x * self.before_gain + self.before_offset) * self.after_gain + self.after_offset


def denoiser_of_checkpoint(path: Path) -> tuple[torch.nn.Module, str]:
    """The denoiser of a checkpoint, and the letters of its spatial axes: `"yx"` or `"zyx"`.

    Raises DependencyError without CAREamics, PackageError for a checkpoint that it cannot load.
    """
    if importlib.util.find_spec("careamics") is None:
        raise DependencyError(
            f"{path} is a checkpoint of CAREamics, which is not installed.", mend="pip install careamics"
        )
    if not path.is_file():
        raise PackageError(f"there is no checkpoint {path}.", mend="voidzoo pack MODEL.ckpt ...")
    try:
        lightning = importlib.import_module("careamics.lightning")
        factory = importlib.import_module("careamics.dataset.normalization.normalization_factory")
        config = lightning.load_config_from_checkpoint(path)
        network = lightning.load_module_from_checkpoint(path).model.cpu().eval()
        normalisation = factory.create_normalization(config.data_config.normalization)
    except Exception as error:  # of CAREamics, lightning and torch, in many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise PackageError(f"CAREamics cannot load {path}.", where=lines[0][:300]) from error
    settings = config.algorithm_config.model
    dims = int(settings.conv_dims)
    before = _line(lambda x: np.asarray(normalisation(x, None)[0]), int(settings.in_channels), dims, FAR)
    after = _line(lambda x: _denormalised(normalisation, x), int(settings.num_classes), dims, 1.0)
    return RawToRaw(network, before, after, dims), "zyx"[3 - dims :]


def _denormalised(normalisation: Any, x: NDArray[np.float64]) -> NDArray[Any]:
    return np.asarray(normalisation.denormalize(torch.from_numpy(x)[None])[0].numpy())


def _line(apply: Any, channels: int, dims: int, far: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(gain, offset) of each channel of a normalisation, which is a straight line whatever it is called."""
    shape = (channels, *[1] * dims)
    ends = [apply(np.full(shape, value)).astype(np.float64).reshape(-1) for value in (0.0, far)]
    return (ends[1] - ends[0]) / far, ends[0]
