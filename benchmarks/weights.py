"""Short trainings, seeds fixed: the weights of the rows that ask for a tolerance, which random weights cannot judge.

The denoisers go voidzoo's own way, from recipe to proved package. voidzoo trains no segmenter yet, so that of `seg2d` is
trained here: the same U-Net, cross entropy, four classes (background, nucleus, its rim inside, its rim outside) made of
the clean images by a threshold.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from images import blobs, clean_nuclei, noisy
from nets import MEAN, NETS, STD, config_of, unet_onnx, write_package

SEED = 0


def train(path: Path, name: str, *, toy: bool) -> None:
    """Train network `name` of `nets.NETS` and write its package. toy: a few steps, for tests."""
    if NETS[name].kind == "logit":
        write_package(path, name, NETS[name], unet_onnx(NETS[name], segmenter(name, steps=2 if toy else 160)))
    else:
        denoiser(path, name, toy=toy)


def denoiser(path: Path, name: str, *, toy: bool) -> None:
    """N2V on noisy nuclei (2D) or on a volume of blobs (3D), by voidzoo's recipe, export and proof."""
    import voidzoo as vz

    net = NETS[name]
    rng = np.random.default_rng(SEED)
    if net.dims == 2:
        images = [vz.open_image(noisy(clean, rng), axes="yx") for clean in clean_nuclei()]
        length = {"epochs": 1, "steps": 2} if toy else {"epochs": 12, "steps": 30}
        settings: dict[str, Any] = {"dims": 2, "depth": net.depth, "filters": net.filters}
    else:
        images = [vz.open_image(blobs((48, 128, 128), seed=1), axes="zyx")]
        length = {"epochs": 1, "steps": 2} if toy else {"epochs": 8, "steps": 20}
        settings = {"dims": 3, "depth": net.depth, "filters": net.filters, "patch": (16, 64, 64), "pool": (2, 2, 2),
                    "batch": 4}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = vz.train(
            vz.Recipe.guess("n2v", images, seed=SEED, **settings, **length), images, Path(folder) / "run", device="cpu"
        )
        vz.export(run, path, name=f"benchmark {name} trained")


def segmenter(name: str, steps: int) -> Any:
    """A U-Net trained to tell four classes in noisy nuclei. -> the network, in evaluation mode."""
    import torch

    from voidzoo.trainers.networks.unet import build

    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    clean = clean_nuclei()
    raw = np.stack([noisy(image, rng) for image in clean]).astype(np.float32)
    classes = np.stack([classes_of(image) for image in clean])
    # rare classes count more, or the network would call everything background
    weights = 1 / np.sqrt(np.bincount(classes.ravel(), minlength=4) / classes.size)
    loss_of = torch.nn.CrossEntropyLoss(torch.from_numpy((weights / weights.sum()).astype(np.float32)))
    network = build(config_of(NETS[name])).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.1  # its own of 0.01 is for trainings ten times as long
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        corners = np.column_stack([rng.integers(0, len(raw), 4), rng.integers(0, raw.shape[1] - 128 + 1, (4, 2))])
        x, truth = (np.stack([of[i, y : y + 128, x : x + 128] for i, y, x in corners]) for of in (raw, classes))
        optimiser.zero_grad()
        loss_of(network(torch.from_numpy((x[:, None] - MEAN) / STD)), torch.from_numpy(truth)).backward()
        optimiser.step()
    return network.eval()


def classes_of(clean: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """0 background, 1 nucleus, 2 its rim inside, 3 its rim outside; (y, x)."""
    from scipy.ndimage import binary_dilation, binary_erosion
    from skimage.filters import threshold_otsu

    nucleus = clean > threshold_otsu(clean)
    inner = nucleus & ~binary_erosion(nucleus, iterations=2)
    outer = binary_dilation(nucleus, iterations=2) & ~nucleus
    return np.select([inner, nucleus, outer], [2, 1, 3], 0).astype(np.int64)
