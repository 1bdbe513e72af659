"""Trainings that take a second, on images made up freshly, for the tests that need a real run or package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import voidzoo as vz
from tests.packages import micrograph

torch.set_num_threads(1)  # tiny networks; two processes that share the cores would wait for each other

SETTINGS: dict[str, Any] = {"epochs": 1, "steps": 2, "batch": 2, "filters": 4, "depth": 2, "mask_percent": 2.0}


def tiny_run(
    folder: Path,
    shape: tuple[int, ...] = (96, 116),
    axes: str = "yx",
    method: str = "n2v",
    pixels: Any = None,
    **settings: Any,
) -> vz.Run:
    """Train for two steps on a random micrograph, or on pixels; for care with a target on another scale."""
    pixels = micrograph(np.random.default_rng(), shape) if pixels is None else pixels
    image = vz.open_image(pixels, axes=axes)
    patch = [32, 32] if "z" not in axes else [8, 32, 32]
    recipe = vz.Recipe.guess(method, image, **{"patch": patch, **SETTINGS, **settings})
    targets = [vz.open_image(pixels.astype(np.float32) * 0.01 - 5, axes=axes)] if method == "care" else []
    return vz.train(recipe, image, folder, device="cpu", targets=targets)
