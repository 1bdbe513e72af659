"""Patches for training and the held-out part for validation; the split comes before anything else."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..zoo.errors import AxesError, ResourceError, SizeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..zoo.image import Image
    from ..zoo.normalise import Normalisation


STACK = 10
"""From this many planes on, a block of planes is held out instead of a strip of each."""
VALIDATION_PIXELS = 2**18
"""About how many pixels the validation looks at in each epoch."""


@dataclass(frozen=True)
class Box:
    """A part of one image: samples (planes or volumes) and one range a spatial axis, as (start, stop)."""

    image: int
    samples: tuple[int, int]
    space: tuple[tuple[int, int], ...]

    @property
    def sides(self) -> tuple[int, ...]:
        """Pixels along each spatial axis."""
        return tuple(stop - start for start, stop in self.space)

    def describe(self, axes: str) -> str:
        """`"image 0, planes 0:1, y 448:552, x 0:1024"`."""
        parts = [f"{a} {start}:{stop}" for a, (start, stop) in zip(axes, self.space, strict=True)]
        return ", ".join([f"image {self.image}", f"samples {self.samples[0]}:{self.samples[1]}", *parts])


@dataclass(frozen=True)
class Split:
    """What is trained on and what is held out: boxes that share no pixel."""

    train: tuple[Box, ...]
    validation: tuple[Box, ...]
    rule: str


def sample_axes(image: Image, dims: int) -> str:
    """The axes along which samples lie: t and z for a 2D model, t for a 3D one.

    Raises AxesError when a 3D model is asked for an image without z.
    """
    if dims == 3 and "z" not in image.axes:
        raise AxesError(f"{image.name} has no z axis; a 3D model needs one.", mend="dims: 2")
    return "".join(a for a in ("t", "z")[: 4 - dims] if a in image.axes)


def shape_of(image: Image, dims: int) -> tuple[int, tuple[int, ...]]:
    """(number of samples, spatial sides) of an image for a model of `dims` dimensions."""
    samples = prod((image.size(a) for a in sample_axes(image, dims)), start=1)
    return samples, tuple(image.size(a) for a in "zyx"[-dims:])


def split(
    shapes: Sequence[tuple[int, tuple[int, ...]]],
    patch: tuple[int, ...],
    step: tuple[int, ...],
    *,
    fraction: float,
    seed: int,
    names: Sequence[str] = (),
) -> Split:
    """Hold out `fraction` of the pixels. shapes: (samples, sides) of each image; patch, step: one a spatial axis.

    Two or more images: whole images, at least one. One image of at least STACK samples: a contiguous block of
    samples in the middle. Otherwise a strip across the middle of the longer of y and x, from every sample, at
    least half a patch thick; where the halves left would hold no patch, a strip at the end.
    Raises SizeError for an image that does not hold a patch beside the strip, saying the largest that does.
    """
    for i, (_, sides) in enumerate(shapes):
        name = names[i] if i < len(names) else f"image {i}"
        _check_patch(patch, step, sides, fraction, name=name, alone=len(shapes) == 1)
    whole = [Box(i, (0, n), tuple((0, s) for s in sides)) for i, (n, sides) in enumerate(shapes)]
    if len(shapes) >= 2:
        count = max(1, round(fraction * len(shapes)))
        held = set(np.random.default_rng(seed).permutation(len(shapes))[:count].tolist())
        return Split(
            tuple(b for b in whole if b.image not in held),
            tuple(b for b in whole if b.image in held),
            f"{count} of {len(shapes)} images held out",
        )
    samples, sides = shapes[0]
    if samples >= STACK:
        count = max(1, round(fraction * samples))
        first = (samples - count) // 2
        parts = [(0, first), (first + count, samples)]
        return Split(
            tuple(Box(0, p, whole[0].space) for p in parts if p[1] > p[0]),
            (Box(0, (first, first + count), whole[0].space),),
            f"{count} of {samples} samples held out, a contiguous block",
        )
    axis = _strip_axis(sides)
    thick = _strip(sides[axis], patch[axis], step[axis], fraction)
    middle = (sides[axis] - thick) // 2 // step[axis] * step[axis]
    start = middle if middle >= patch[axis] else sides[axis] - thick
    spans = [(0, start), (start + thick, sides[axis])]
    return Split(
        tuple(_along(whole[0], axis, span) for span in spans if span[1] - span[0] >= patch[axis]),
        (_along(whole[0], axis, (start, start + thick)),),
        f"a strip of {thick} of {sides[axis]} pixels held out along {'zyx'[-len(sides) :][axis]}",
    )


def largest_patch(sides: Sequence[int], step: Sequence[int], fraction: float, alone: bool) -> tuple[int, ...]:
    """The largest patch (multiples of step) that fits into an image beside the held-out strip; 0 where none does."""
    axis = _strip_axis(sides)
    best = [side // s * s for side, s in zip(sides, step, strict=True)]
    while alone and best[axis] and best[axis] + _strip(sides[axis], best[axis], step[axis], fraction) > sides[axis]:
        best[axis] -= step[axis]
    return tuple(best)


def _check_patch(
    patch: tuple[int, ...], step: tuple[int, ...], sides: tuple[int, ...], fraction: float, *, name: str, alone: bool
) -> None:
    axes = "zyx"[-len(sides) :]
    best = largest_patch(sides, step, fraction, alone)
    size = ", ".join(f"{a} {n}" for a, n in zip(axes, sides, strict=True))
    if not all(best):
        raise SizeError(
            f"{name} ({size}) is too small to train on: no patch fits beside the held-out part.",
            mend=f"an image of at least {max(3 * s for s in step)} pixels a side, or a smaller depth",
        )
    for p, s in zip(patch, step, strict=True):
        if p % s or p < 1:
            raise SizeError(
                f"patch {' x '.join(map(str, patch))}: {p} is not a multiple of {s}.",
                mend=f"use {max(s, p // s * s)} or {(p // s + 1) * s}",
            )
    if any(p > b for p, b in zip(patch, best, strict=True)):
        raise SizeError(
            f"{name} ({size}) is too small for patches of {' x '.join(map(str, patch))}"
            + (" beside the part held out for validation." if alone else "."),
            mend=f"patch: [{', '.join(str(min(p, b)) for p, b in zip(patch, best, strict=True))}]  "
            "is the largest that fits",
        )


def _strip_axis(sides: Sequence[int]) -> int:
    """The longer of y and x, counted from the front."""
    return len(sides) - 2 if sides[-2] >= sides[-1] else len(sides) - 1


def _strip(side: int, patch: int, step: int, fraction: float) -> int:
    """How thick the held-out strip is: the fraction, at least half a patch, rounded up to the step."""
    return max(step, ceil(max(fraction * side, patch / 2) / step) * step)


def _along(box: Box, axis: int, span: tuple[int, int]) -> Box:
    space = list(box.space)
    space[axis] = span
    return Box(box.image, box.samples, tuple(space))


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
    """Random patches of the training boxes: `batch(n)` -> float32 (n, c, [z], y, x), dihedrally augmented.

    images: float32 (samples, c, [z], y, x), of any sizes, on the device that trains. Every position of every box is
    equally likely. `generator` is on the CPU: it decides where, so that nothing waits for the device.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        boxes: Sequence[Box],
        patch: tuple[int, ...],
        generator: torch.Generator,
        augment: bool = True,
    ) -> None:
        """Nothing is copied; the boxes must hold at least one patch each."""
        self.patch, self.generator, self.augment = patch, generator, augment
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
        return self._turn(out) if self.augment else out

    def _turn(self, x: Tensor) -> Tensor:
        """Turn and mirror each patch in the y-x plane at random (never z); only by half turns if it is not square."""
        code = torch.randint(8, (x.shape[0],), generator=self.generator)
        if x.shape[-1] != x.shape[-2]:
            code &= 6  # quarter turns out: 0, 2 turns; mirrored or not
        for c in code.unique().tolist():
            chosen = (code == c).nonzero()[:, 0].to(x.device)
            turned = torch.rot90(x[chosen], c % 4, dims=(-2, -1))
            x[chosen] = turned.flip(-1) if c >= 4 else turned
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
