"""Random patches for training, and the held-out part as fixed windows for validation."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .data import Space
    from .split import Box


VALIDATION_PIXELS = 2**18
"""About how many pixels the validation looks at in each epoch."""


class Positions:
    """The first pixels of patches in boxes: every one of every box is equally likely."""

    def __init__(self, boxes: Sequence[Box], patch: tuple[int, ...]) -> None:
        """The boxes must hold at least one patch each."""
        self.boxes = list(boxes)
        room = [[b.samples[1] - b.samples[0], *(s - p + 1 for s, p in zip(b.sides, patch, strict=True))] for b in boxes]
        start = [[b.samples[0], *(s for s, _ in b.space)] for b in boxes]
        self.room = torch.tensor(room, dtype=torch.float64)
        self.start = torch.tensor(start, dtype=torch.int64)
        self.image = torch.tensor([b.image for b in boxes])
        self.cumulative = self.room.prod(dim=1).cumsum(0)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(box, (sample, [z], y, x) of the first pixel) of n random patches, int64 (n,) and (n, 1 + axes)."""
        where = torch.rand(n, generator=generator, dtype=torch.float64) * self.cumulative[-1]
        box = torch.searchsorted(self.cumulative, where, right=True).clamp(max=len(self.boxes) - 1)
        u = torch.rand((n, self.room.shape[1]), generator=generator, dtype=torch.float64)
        return box, self.start[box] + (u * self.room[box]).long()


class Patches:
    """Random patches of the training boxes: `batch(n)` -> float32 (n, c, [z], y, x), turned and mirrored.

    images: float32 (samples, c, [z], y, x), of any sizes, on the device that trains. `generator` is on the CPU: it
    decides where, so that nothing waits for the device.
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
        self.generator, self.turns = generator, torch.tensor(turns)
        self.images, self.patch = images, patch
        self.views = [_windows(image, patch) for image in images]
        self.positions = Positions(boxes, patch)

    def places(self, n: int) -> tuple[Tensor, Tensor]:
        """(image, (sample, [z], y, x) of the first pixel) of n random patches, int64 (n,) and (n, 1 + axes)."""
        box, at = self.positions.draw(n, self.generator)
        return self.positions.image[box], at

    def at(self, image: Tensor, at: Tensor) -> Tensor:
        """The patches at places: float32 (n, c, [z], y, x) on the device of the images."""
        first = self.images[0]
        out = first.new_empty((len(image), first.shape[1], *self.patch))
        for i in image.unique().tolist():
            chosen = (image == i).nonzero()[:, 0]
            sample, *corner = at[chosen].T.to(out.device)
            out[chosen.to(out.device)] = self.views[i][(sample, slice(None), *corner)]
        return out

    def batch(self, n: int) -> Tensor:
        """float32 (n, c, [z], y, x) on the device of the images."""
        out = self.at(*self.places(n))
        return turned_each(out, self.turns, self.generator) if len(self.turns) > 1 else out

    def sample(self) -> Sequence[Tensor]:
        """All images: float32 (samples, c, [z], y, x) each."""
        return self.images

    def close(self) -> None:
        """Nothing to let go."""


def turned_each(x: Tensor, turns: Tensor, generator: torch.Generator) -> Tensor:
    """Turn and mirror each patch of (n, c, [z], y, x) in the y-x plane at random (never z), in place."""
    codes = turns[torch.randint(len(turns), (x.shape[0],), generator=generator)]
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
    read: Callable[[int, int, Space], Tensor],
    boxes: Sequence[Box],
    patch: tuple[int, ...],
    step: tuple[int, ...],
    batch: int,
) -> list[Tensor]:
    """The held-out part as fixed windows: a list of float32 (n, c, [z], y, x), n * pixels at most a training batch's.

    read: image, sample, space -> float32 (c, [z], y, x). Windows tile the boxes (up to twice the patch a side,
    multiples of the step); when they hold more than VALIDATION_PIXELS, evenly spaced ones are taken; when they hold
    less, they come again (up to 16 times: each time other pixels of them will be hidden, which steadies the loss).
    """
    windows: list[tuple[int, int, Space]] = []
    for box in boxes:
        sides = [min(2 * p, s // d * d) for p, s, d in zip(patch, box.sides, step, strict=True)]
        sides = [s // d * d for s, d in zip(sides, step, strict=True)]
        grid = [range(a, b - s + 1, s) for (a, b), s in zip(box.space, sides, strict=True)]
        for sample in range(*box.samples):
            for corner in product(*grid):
                windows.append((box.image, sample, tuple((c, c + s) for c, s in zip(corner, sides, strict=True))))
    first = read(*windows[0])
    most = max(1, VALIDATION_PIXELS // first.numel())
    chosen = [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, min(most, len(windows))).astype(int))]
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for w in (read(*window) for window in chosen):
        by_shape.setdefault(tuple(w.shape), []).append(w)
    batches = []
    for shape, group in by_shape.items():
        n = max(1, batch * prod(patch) // prod(shape[1:]))
        batches += [torch.stack(group[i : i + n]) for i in range(0, len(group), n)]
    again = min(16, max(1, VALIDATION_PIXELS // sum(b.numel() for b in batches)))
    return batches * again
