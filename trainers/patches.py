"""Random patches for training, and the held-out part as fixed windows for validation."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..zoo.dihedral import turned

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
        cpu = images[0].device.type == "cpu"
        self.arrays = [image.numpy() for image in images] if cpu else []
        self.views = [] if cpu else [_windows(image, patch) for image in images]
        self.positions = Positions(boxes, patch)

    def places(self, n: int) -> tuple[Tensor, Tensor]:
        """(image, (sample, [z], y, x) of the first pixel) of n random patches, int64 (n,) and (n, 1 + axes)."""
        box, at = self.positions.draw(n, self.generator)
        return self.positions.image[box], at

    def at(self, image: Tensor, at: Tensor, codes: Tensor | None = None) -> Tensor:
        """The patches at places: float32 (n, c, [z], y, x) on the device of the images, turned by codes (n,)."""
        first = self.images[0]
        out = first.new_empty((len(image), first.shape[1], *self.patch))
        codes = torch.zeros(len(image), dtype=torch.int64) if codes is None else codes
        if out.device.type != "cpu":
            for i in image.unique().tolist():
                chosen = (image == i).nonzero()[:, 0]
                sample, *corner = at[chosen].T.to(out.device)
                out[chosen.to(out.device)] = self.views[i][(sample, slice(None), *corner)]
            return turned_each(out, codes)
        pixels = out.numpy()  # numpy copies a turned view at once, without waking torch's threads for each
        for k, (i, (sample, *corner), code) in enumerate(zip(image.tolist(), at.tolist(), codes.tolist(), strict=True)):
            space = (slice(c, c + p) for c, p in zip(corner, self.patch, strict=True))
            pixels[k] = turned(self.arrays[i][(sample, slice(None), *space)], code)
        return out

    def batch(self, n: int) -> Tensor:
        """float32 (n, c, [z], y, x) on the device of the images."""
        return self.at(*self.places(n), drawn_turns(self.turns, n, self.generator))

    def sample(self) -> Sequence[Tensor]:
        """All images: float32 (samples, c, [z], y, x) each."""
        return self.images

    def close(self) -> None:
        """Nothing to let go."""


def drawn_turns(turns: Tensor, n: int, generator: torch.Generator) -> Tensor | None:
    """One of the codes for each of n patches, int64 (n,); None where there is nothing to choose."""
    return turns[torch.randint(len(turns), (n,), generator=generator)] if len(turns) > 1 else None


def turned_each(x: Tensor, codes: Tensor) -> Tensor:
    """Each patch of (n, c, [z], y, x) turned in the y-x plane (never z) by its code of zoo.dihedral, int64 (n,)."""
    known, which = codes.unique(return_inverse=True)
    pixels = np.arange(x.shape[-2] * x.shape[-1]).reshape(x.shape[-2:])
    orders = torch.from_numpy(np.stack([turned(pixels, code).reshape(-1) for code in known.tolist()]))
    flat = x.flatten(-2)
    order = orders[which].to(x.device).reshape(x.shape[0], *(1,) * (flat.ndim - 2), -1)
    return flat.gather(-1, order.expand(flat.shape)).reshape(x.shape)


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
