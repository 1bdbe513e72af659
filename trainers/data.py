"""Images as a network is trained on them: samples (planes or volumes), normalised, with their targets beside them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .split import place_of, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..zoo.image import Image
    from ..zoo.normalise import Normalisation

Space = tuple[tuple[int, int], ...]
"""Start and stop along each spatial axis, [z], y, x."""


@dataclass(frozen=True)
class Data:
    """What a training reads. targets: the partner of each image, in the same order, or none."""

    images: Sequence[Image]
    dims: int
    normalisation: Normalisation
    targets: Sequence[Image] = ()
    target_normalisation: Normalisation | None = None

    @property
    def channels(self) -> int:
        """Channels of a sample: those of the image, and of its target after them."""
        return self.images[0].size("c") * (2 if self.targets else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of everything as float32."""
        shapes = (shape_of(i, self.dims) for i in self.images)
        return 4 * self.channels * sum(n * prod(sides) for n, sides in shapes)

    def read(self, image: int, sample: int, space: Space) -> Tensor:
        """A part of one sample, float32 (c, [z], y, x), normalised; NaN and infinity become NaN."""
        parts = [(self.images[image], self.normalisation)]
        if self.targets and self.target_normalisation:
            parts.append((self.targets[image], self.target_normalisation))
        read = []
        for source, normalisation in parts:
            pixels = normalisation.apply(raw_sample(source, self.dims, sample, space))
            if source.dtype.kind == "f":
                pixels[~np.isfinite(pixels)] = np.nan
            read.append(pixels)
        return torch.from_numpy(np.concatenate(read) if len(read) > 1 else read[0])

    def whole(self, image: int) -> Tensor:
        """All samples of an image, float32 (samples, c, [z], y, x)."""
        samples, sides = shape_of(self.images[image], self.dims)
        out = torch.empty((samples, self.channels, *sides))
        for sample in range(samples):
            out[sample] = self.read(image, sample, tuple((0, n) for n in sides))
        return out


def raw_sample(image: Image, dims: int, sample: int, space: Space | None = None) -> NDArray[Any]:
    """The n-th sample as it is, or a part of it: (c, [z], y, x), dtype of the image, always with a channel axis."""
    at = place_of(image, dims, sample)
    region = {a: slice(i, i + 1) for a, i in at.items()}
    if space is not None:
        region |= {a: slice(*span) for a, span in zip("zyx"[-dims:], space, strict=True)}
    pixels = image.read(region)[tuple(0 if a in at else slice(None) for a in image.axes)]
    return pixels if "c" in image.axes else pixels[None]
