"""Random patches for training, and the held-out part as fixed windows for validation."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..zoo.errors import ResourceError
from .split import Box, sample_axes, shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..zoo.image import Image
    from ..zoo.normalise import Normalisation


VALIDATION_PIXELS = 2**18
"""About how many pixels the validation looks at in each epoch."""


def load(image: Image, dims: int, normalisation: Normalisation) -> Tensor:
    """A whole image, normalised. -> float32 (samples, c, [z], y, x); NaN and infinity become NaN.

    Raises ResourceError when it does not fit into the memory that is free.
    """
    import psutil

    samples, sides = shape_of(image, dims)
    channels = image.size("c")
    needed = 4 * samples * channels * prod(sides)
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ResourceError(
            f"{image.name} needs {needed / 1e9:.1f} GB as float32; {free / 1e9:.1f} GB of memory are free.",
            mend="train on a part of it: a crop, fewer planes or fewer files",
        )
    out = np.empty((samples, channels, *sides), np.float32)
    for i, plane in enumerate(raw_samples(image, dims)):
        out[i] = normalisation.apply(plane)
    if image.dtype.kind == "f":
        out[~np.isfinite(out)] = np.nan
    return torch.from_numpy(out)


def raw_samples(image: Image, dims: int) -> Iterator[NDArray[Any]]:
    """Yield the samples of an image as they are: (c, [z], y, x), dtype of the image, always with a channel axis."""
    letters = sample_axes(image, dims)
    for index in np.ndindex(*(image.size(a) for a in letters)):
        yield raw_sample(image, dims, dict(zip(letters, index, strict=True)))


def raw_sample(image: Image, dims: int, at: dict[str, int], box: Box | None = None) -> NDArray[Any]:
    """One sample (c, [z], y, x), dtype of the image, or the part of it that lies in `box`."""
    region = {a: slice(i, i + 1) for a, i in at.items()}
    if box is not None:
        region |= {a: slice(*span) for a, span in zip("zyx"[-dims:], box.space, strict=True)}
    pixels = image.read(region)[tuple(0 if a in at else slice(None) for a in image.axes)]
    return pixels if "c" in image.axes else pixels[None]


class Patches:
    """Random patches of the training boxes: `batch(n)` -> float32 (n, c, [z], y, x), turned and mirrored.

    images: float32 (samples, c, [z], y, x), of any sizes, on the device that trains. Every position of every box is
    equally likely. `generator` is on the CPU: it decides where, so that nothing waits for the device.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        boxes: Sequence[Box],
        patch: tuple[int, ...],
        generator: torch.Generator,
        turns: Sequence[int] = (0,),
    ) -> None:
        """Nothing is copied; the boxes must hold at least one patch each. turns: codes of zoo.dihedral to draw from."""
        self.patch, self.generator = patch, generator
        self.turns = torch.tensor(turns)
        self.boxes = list(boxes)
        self.views = [_windows(image, patch) for image in images]
        room = [[b.samples[1] - b.samples[0], *(s - p + 1 for s, p in zip(b.sides, patch, strict=True))] for b in boxes]
        start = [[b.samples[0], *(s for s, _ in b.space)] for b in boxes]
        self.room = torch.tensor(room, dtype=torch.float64)
        self.start = torch.tensor(start, dtype=torch.int64)
        self.image = torch.tensor([b.image for b in boxes])
        self.cumulative = self.room.prod(dim=1).cumsum(0)

    def positions(self, n: int) -> tuple[Tensor, Tensor]:
        """(image, (sample, [z], y, x) of the first pixel) of n random patches, int64 (n,) and (n, 1 + axes)."""
        where = torch.rand(n, generator=self.generator, dtype=torch.float64) * self.cumulative[-1]
        box = torch.searchsorted(self.cumulative, where, right=True).clamp(max=len(self.boxes) - 1)
        u = torch.rand((n, self.room.shape[1]), generator=self.generator, dtype=torch.float64)
        return self.image[box], self.start[box] + (u * self.room[box]).long()

    def batch(self, n: int) -> Tensor:
        """float32 (n, c, [z], y, x) on the device of the images."""
        image, at = self.positions(n)
        device = self.views[0].device
        out = None
        for i in image.unique().tolist():
            chosen = (image == i).nonzero()[:, 0]
            sample, *corner = at[chosen].T.to(device)
            found = self.views[i][(sample, slice(None), *corner)]
            if out is None:
                out = found.new_empty((n, *found.shape[1:]))
            out[chosen.to(device)] = found
        return self._turn(out) if len(self.turns) > 1 else out

    def _turn(self, x: Tensor) -> Tensor:
        """Turn and mirror each patch in the y-x plane at random (never z)."""
        codes = self.turns[torch.randint(len(self.turns), (x.shape[0],), generator=self.generator)]
        for code in codes.unique().tolist():
            chosen = (codes == code).nonzero()[:, 0].to(x.device)
            turned = torch.rot90(x[chosen], code % 4, dims=(-2, -1))
            x[chosen] = turned.flip(-1) if code >= 4 else turned
        return x


def _windows(image: Tensor, patch: tuple[int, ...]) -> Any:
    """A view (samples, c, [positions], [patch]): indexing it at a position gives the patch there; nothing is copied."""
    view = image
    for axis, side in enumerate(patch):
        view = view.unfold(2 + axis, side, 1)
    return view


def validation_batches(
    images: Sequence[Tensor], boxes: Sequence[Box], patch: tuple[int, ...], step: tuple[int, ...], batch: int
) -> list[Tensor]:
    """The held-out part as fixed windows: a list of float32 (n, c, [z], y, x), n * pixels at most a training batch's.

    Windows tile the boxes (up to twice the patch a side, multiples of the step); when they hold more than
    VALIDATION_PIXELS, evenly spaced ones are taken; when they hold less, they come again (up to 16 times: each time
    other pixels of them will be hidden, which steadies the loss).
    """
    windows: list[Tensor] = []
    for box in boxes:
        sides = [min(2 * p, s // d * d) for p, s, d in zip(patch, box.sides, step, strict=True)]
        sides = [s // d * d for s, d in zip(sides, step, strict=True)]
        grid = [range(a, b - s + 1, s) for (a, b), s in zip(box.space, sides, strict=True)]
        for sample in range(*box.samples):
            for corner in np.array(np.meshgrid(*grid, indexing="ij")).reshape(len(grid), -1).T:
                part = tuple(slice(int(c), int(c) + s) for c, s in zip(corner, sides, strict=True))
                windows.append(images[box.image][(sample, slice(None), *part)])
    most = max(1, VALIDATION_PIXELS // prod(windows[0].shape))
    chosen = [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).astype(int))]
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for w in chosen:
        by_shape.setdefault(tuple(w.shape), []).append(w)
    batches = []
    for shape, group in by_shape.items():
        n = max(1, batch * prod(patch) // prod(shape[1:]))
        batches += [torch.stack(group[i : i + n]) for i in range(0, len(group), n)]
    again = min(16, max(1, VALIDATION_PIXELS // sum(b.numel() for b in batches)))
    return batches * again
