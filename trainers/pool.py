"""Training on more than memory holds: a pool of parts of the images, exchanged one by one while the network learns."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..zoo.errors import ResourceError
from .patches import Patches, Positions, drawn_turns, turned_each

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .data import Data, Space
    from .split import Box

SLOTS = 16
"""Parts that are in the pool at once, where memory allows that many that hold a patch; never below FEW."""
FEW = 4
BEING_READ = 3
"""Bricks that the next one takes while it is read, as it is and normalised."""


class Pool:
    """Random patches like those of `Patches`, of images that need not fit into memory.

    A part ("brick") is chosen by a random position in the training boxes, so that over time each position is equally
    likely; the pool holds `slots` of them and gives patches from all alike. After as many steps as use each pixel of a
    brick about once, the oldest makes room for the next, which a thread has read in the meantime. Which brick is n-th
    follows from seed, room and n alone: a training that is resumed with the same room finds the same pool.
    """

    def __init__(
        self,
        data: Data,
        boxes: Sequence[Box],
        patch: tuple[int, ...],
        generator: torch.Generator,
        turns: Sequence[int] = (0,),
        *,
        room: int,
        batch: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """room: bytes that the pool may take. batch: patches a step. Raises ResourceError where that is too little."""
        self.data, self.patch, self.generator, self.seed = data, patch, generator, seed
        self.turns = torch.tensor(turns)
        self.device = torch.device(device)
        self.positions = Positions(boxes, patch)
        files = [i for i in (*data.images, *data.targets) if i.path is not None]
        decoded = max((prod(i.chunks) * i.dtype.itemsize for i in files), default=0)
        self.sides, self.slots = _sides(boxes, patch, data.channels, room - decoded)
        self.every = max(1, ceil(prod(self.sides) / (batch * prod(patch))))
        self.step = 0
        self._first = -1
        self._held: list[tuple[int, Patches]] = []
        self._reader = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Patches]] | None = None

    def batch(self, n: int) -> Tensor:
        """float32 (n, c, [z], y, x) on the device; counts one step."""
        self._fill(self.step // self.every)
        self.step += 1
        slot = torch.randint(self.slots, (n,), generator=self.generator)
        out = torch.empty((n, self.data.channels, *self.patch))
        for i in slot.unique().tolist():
            chosen = (slot == i).nonzero()[:, 0]
            brick = self._held[i][1]
            out[chosen] = brick.at(*brick.places(len(chosen)))
        codes = drawn_turns(self.turns, n, self.generator)
        out = out.to(self.device)
        return out if codes is None else turned_each(out, codes)

    def close(self) -> None:
        """Let the reading thread end, and what is held go."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._held, self._next, self._first = [], None, -1

    def sample(self) -> list[Tensor]:
        """What is in the pool: float32 (1, c, [z], y, x) each."""
        self._fill(self.step // self.every)
        return [image for _, brick in self._held for image in brick.images]

    def _fill(self, first: int) -> None:
        """Bricks number first to first + slots - 1, number n in place n % slots; the next one is being read."""
        if first != self._first:
            wanted = range(first, first + self.slots)
            held = {n: brick for n, brick in self._held if n in wanted}
            self._held = []  # the others make room first
            for n in wanted:
                if n not in held:
                    held[n] = self._take(n)
            self._held = sorted(held.items(), key=lambda one: one[0] % self.slots)
            self._first = first
        if self._next is None:
            after = first + self.slots
            self._next = (after, self._reader.submit(self._brick, after))

    def _take(self, n: int) -> Patches:
        if self._next is not None:
            number, future = self._next
            self._next = None
            brick = future.result()
            if number == n:
                return brick
        return self._brick(n)

    def _brick(self, n: int) -> Patches:
        """Brick number n, read now."""
        generator = torch.Generator().manual_seed(int(np.random.default_rng((self.seed, n)).integers(2**62)))
        which, ((sample, *corner),) = self.positions.draw(1, generator)
        box = self.positions.boxes[int(which)]
        space: Space = tuple(
            _span(int(c), lo, hi, side, p)
            for c, (lo, hi), side, p in zip(corner, box.space, self.sides, self.patch, strict=True)
        )
        pixels = self.data.read(box.image, int(sample), space)[None]
        whole = type(box)(0, (0, 1), tuple((0, b - a) for a, b in space))
        return Patches([pixels], [whole], self.patch, self.generator)


def _span(corner: int, low: int, high: int, side: int, patch: int) -> tuple[int, int]:
    """The part along an axis that holds all patches of one cell of a grid of first pixels: that of `corner`.

    Cells divide the first pixels low to high - patch into equal parts, so that each belongs to one cell.
    """
    firsts = high - low - patch + 1
    cells = ceil(firsts / max(1, side - patch + 1))
    size = ceil(firsts / cells)
    start = low + (corner - low) // size * size
    return start, min(high, start + size + patch - 1)


def _sides(boxes: Sequence[Box], patch: tuple[int, ...], channels: int, room: int) -> tuple[tuple[int, ...], int]:
    """(largest sides of a brick, number of slots). Raises ResourceError where FEW bricks of a patch each do not fit."""
    largest = [max(b.sides[a] for b in boxes) for a in range(len(patch))]
    for slots in range(SLOTS, FEW - 1, -1):
        voxels = room // (4 * channels * (slots + BEING_READ))
        if voxels < prod(patch):
            continue
        sides = list(patch)
        grown = True
        while grown:  # the shortest in units of the patch first, whole axes at last
            grown = False
            for axis in sorted(range(len(patch)), key=lambda a: sides[a] / patch[a]):
                wider = min(largest[axis], 2 * sides[axis])
                if wider > sides[axis] and prod(sides) // sides[axis] * wider <= voxels:
                    sides[axis], grown = wider, True
                    break
        brick = 4 * channels * prod(sides)
        return tuple(sides), max(slots, room // brick - BEING_READ)  # more where whole images are smaller than that
    need = 4 * channels * (FEW + BEING_READ) * prod(patch)
    raise ResourceError(
        f"{max(0, room) / 1e6:.0f} MB are left for the images; parts of one patch each take {need / 1e6:.0f} MB.",
        mend="more --memory, a smaller patch or a smaller batch",
    )
