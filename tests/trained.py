"""Packages that say on what they were trained, and return what they read: what comes back is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from tests.model_zoo import write
from tests.onnx_net import Net
from tests.whole_image import Design, In, Out


def trained(
    folder: Path,
    letters: str = "yx",
    *,
    um: Mapping[str, float] | None = None,
    grey: Sequence[Sequence[float]] | None = None,
    kinds: Sequence[str] = ("intensity",),
    **more: Any,
) -> Path:
    """A package folder whose network returns its input, channel by channel. um: of the training, by letter.

    grey: the range of grey values of the training, one a channel. more: for `write`.
    """
    channels = len(kinds)
    sizes = dict.fromkeys(letters, (1, 1))
    design = Design([In("raw", "bc" + letters, sizes, channels)], [Out("out", "bc" + letters, channels=channels)])

    def same(net: Net, raw: str) -> list[str]:
        return [net.scaled(raw, 1.0)]

    model = write(folder, design, same, **more)
    described = yaml.safe_load((folder / "rdf.yaml").read_text())
    facts = {"pixel_size": dict(um or {}), **({"intensity_range": [list(g) for g in grey]} if grey else {})}
    described["config"] = {"voidzoo": {"kinds": list(kinds), "training": facts}}
    (folder / "rdf.yaml").write_text(yaml.safe_dump(described))
    return model.path


def smooth(
    rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float] | float = 6.0, dtype: str = "uint16"
) -> NDArray[Any]:
    """Blobs of sigma pixels without noise, mean 1000, std 200, never below 0: what resampling keeps."""
    values = gaussian_filter(rng.standard_normal(shape), sigma)
    return np.clip(1000 + 200 * values / values.std(), 0, None).astype(dtype)
