"""Images that are made up freshly for each test, with an exact truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from voidzoo.zoo.open import open_image

torch.set_num_threads(1)  # tiny networks; two processes that share the cores would wait for each other


def blobs(shape: tuple[int, ...], seed: int, count: int = 60) -> np.ndarray:
    """Smooth discs of different brightness, float64, between 0 and about 1."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    out = np.zeros(shape)
    for _ in range(count):
        centre = [rng.uniform(0, n) for n in shape]
        radius = rng.uniform(4, 10)
        square = sum((g - c) ** 2 for g, c in zip(grids, centre, strict=True))
        out = np.maximum(out, rng.uniform(0.3, 1) / (1 + np.exp((np.sqrt(square) - radius) / 0.7)))
    return out


def noisy_pair(shape: tuple[int, ...], seed: int, sigma: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """(truth float64, noisy uint16) in grey values around 200 to 600."""
    rng = np.random.default_rng(seed + 1000)
    truth = 300 + 400 * blobs(shape, seed)
    return truth, np.clip(np.rint(truth + rng.normal(0, sigma, shape)), 0, 65535).astype(np.uint16)


@pytest.fixture
def make_pair():
    return noisy_pair


@pytest.fixture
def make_image():
    def make(seed: int = 0, shape: tuple[int, ...] = (128, 160), axes: str = "yx"):
        return open_image(noisy_pair(shape, seed)[1], axes=axes)

    return make


@pytest.fixture
def tiny():
    """Settings of a training that takes a second."""
    return {"patch": [32, 32], "epochs": 2, "steps": 3, "batch": 2, "filters": 4, "depth": 2, "mask_percent": 2.0}
