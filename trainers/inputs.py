"""What a training is given: images, partners, those to validate on; checked, split, measured before anything else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.axes import describe
from ..zoo.errors import AxesError, RecipeError, SizeError
from ..zoo.image import Image
from ..zoo.normalise import Normalisation, Statistics
from .data import Data, raw_sample
from .split import Box, Split, place_of, shape_of, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .recipe import Recipe

PATCH_2D = (128, 192)
PATCH_3D = (16, 64, 96)


@dataclass(frozen=True)
class Inputs:
    """Images with the same channels, those to validate on last; partners: of care, one each, else none.

    normalisation: by mean and standard deviation (grey values) of the training part alone; left_out: pixels of each
    channel that are not finite, where they are allowed.
    """

    images: Sequence[Image]
    partners: Sequence[Image]
    parts: Split
    normalisation: Normalisation
    target_normalisation: Normalisation | None
    left_out: tuple[int, ...]

    def data(self, recipe: Recipe) -> Data:
        """The pixels, to be read sample by sample."""
        return Data(self.images, recipe.dims, self.normalisation, self.partners, self.target_normalisation)

    def facts(self, recipe: Recipe) -> dict[str, Any]:
        """What run.json says of them."""
        axes = "zyx"[-recipe.dims :]
        found = {
            "images": [_facts(i) for i in self.images],
            "channels": list(self.images[0].channel_names()),
            "pixel_size": asdict(self.images[0].pixel_size),
            "normalisation": _numbers(self.normalisation),
            "left_out": list(self.left_out),
            "split": {
                "rule": self.parts.rule,
                "train": [b.describe(axes) for b in self.parts.train],
                "validation": [b.describe(axes) for b in self.parts.validation],
            },
        }
        if self.target_normalisation is not None:
            found["targets"] = [_facts(i) for i in self.partners]
            found["target_normalisation"] = _numbers(self.target_normalisation)
        return found

    def held_out(self, recipe: Recipe) -> NDArray[Any]:
        """A raw patch (c, [z], y, x) of the held-out part, to be shown: PATCH_2D or PATCH_3D or what fits.

        Sides are multiples of the step. Of at most 60 places the one with the most contrast, so that it does not show
        an empty corner.
        """
        want = PATCH_2D if recipe.dims == 2 else PATCH_3D
        found: list[NDArray[Any]] = []
        places = [
            (b, n)
            for b in self.parts.validation
            for n in np.unique(np.linspace(b.samples[0], b.samples[1] - 1, 4, dtype=int))
        ]
        for box, sample in places[:: -(-len(places) // 12)]:
            image = self.images[box.image]
            pixels = raw_sample(image, recipe.dims, int(sample), box.space)
            sides = [min(w, n) // s * s for w, n, s in zip(want, box.sides, recipe.step, strict=True)]
            for share in (0.5, 0.0, 0.25, 0.75, 1.0):
                corner = [int(share * (n - side)) for n, side in zip(box.sides, sides, strict=True)]
                part = tuple(slice(c, c + side) for c, side in zip(corner, sides, strict=True))
                found.append(pixels[(slice(None), *part)])
        best = max(found, key=lambda patch: float(np.nanstd(patch[0].astype(np.float32))))
        if best.dtype.kind != "f" or np.isfinite(best).all():
            return best
        return np.where(np.isfinite(best), best, best[np.isfinite(best)].mean()).astype(best.dtype)


def inputs_of(recipe: Recipe, images: Sequence[Image], beside: Sequence[Image], partners: Sequence[Image]) -> Inputs:
    """beside: images to validate on, none: a part of the others is held out. partners: of all, in this order.

    Raises RecipeError for partners that a method does not take or lacks and for images both trained and validated on,
    AxesError, SizeError and ValuesError for images that cannot be trained on.
    """
    _not_twice(images, beside)
    images = [*images, *beside]
    _same_channels(images)
    _check_partners(recipe, images, partners)
    parts = split(
        [shape_of(i, recipe.dims) for i in images],
        recipe.patch,
        recipe.step,
        fraction=recipe.validation,
        seed=recipe.seed,
        names=[i.name for i in images],
        given=len(beside),
    )
    normalisation, left_out = _fit_normalisation(images, parts, recipe)
    targets = _fit_normalisation(partners, parts, recipe)[0] if partners else None
    return Inputs(images, partners, parts, normalisation, targets, left_out)


def _not_twice(images: Sequence[Image], beside: Sequence[Image]) -> None:
    """Refuse to validate on what is trained on."""
    for other in beside:
        if any(i is other or (i.path is not None and i.path == other.path) for i in images):
            raise RecipeError(
                f"{other.name} is given to train on and to validate on.",
                mend="other images after --validate, or none: then a part of the images is held out",
            )


def _same_channels(images: Sequence[Image]) -> None:
    counts = {i.size("c") for i in images}
    if len(counts) > 1:
        first, other = images[0], next(i for i in images if i.size("c") != images[0].size("c"))
        raise AxesError(
            f"{first.name} has {first.size('c')} channels, {other.name} has {other.size('c')}; "
            "one model is trained on images with the same channels.",
            where=f"{other.name} is {describe(other.axes, other.shape)}",
        )


def _check_partners(recipe: Recipe, images: Sequence[Image], given: Sequence[Image]) -> None:
    """Refuse targets that do not belong to the images, in their order."""
    if (recipe.method == "care") != bool(given):
        raise RecipeError(
            f"{recipe.method} learns from the images alone; it takes no target."
            if given
            else "care learns from pairs: each image needs its clean or second noisy partner.",
            mend="voidzoo train care NOISY --target CLEAN -o RUN",
        )
    if given and len(given) != len(images):
        raise RecipeError(
            f"{len(images)} images and {len(given)} targets are no pairs.",
            mend="one --target for each image, in its order",
        )
    for image, target in zip(images, given, strict=False):
        if (image.axes, image.shape) != (target.axes, target.shape):
            raise SizeError(
                f"{target.name} is {describe(target.axes, target.shape)}, "
                f"but {image.name} is {describe(image.axes, image.shape)}.",
                mend="a target of the same field, channels and size",
            )


def _regions(image: Image, box: Box, dims: int) -> list[dict[str, slice]]:
    """A box as regions of the image by letter, one a sample (one in all when it is the whole image)."""
    samples, sides = shape_of(image, dims)
    if box.samples == (0, samples) and box.sides == sides:
        return [{}]
    space = {a: slice(*span) for a, span in zip("zyx"[-dims:], box.space, strict=True) if a in image.axes}
    return [space | {a: slice(i, i + 1) for a, i in place_of(image, dims, n).items()} for n in range(*box.samples)]


def _fit_normalisation(images: Sequence[Image], parts: Split, recipe: Recipe) -> tuple[Normalisation, tuple[int, ...]]:
    """Mean and std of the training pixels only, and how many pixels of each channel are not finite.

    The held-out pixels are looked at too, so that a NaN among them is refused now.
    """

    def statistics(boxes: Sequence[Box]) -> Statistics:
        found = [
            Statistics.of(images[i], regions, allow_nan=recipe.allow_nan)
            for i in sorted({b.image for b in boxes})
            if (regions := [r for b in boxes if b.image == i for r in _regions(images[i], b, recipe.dims)])
        ]
        total = found[0]
        for other in found[1:]:
            total = total.merge(other)
        return total

    training = statistics(parts.train)
    left_out = training.left_out
    if any(i.dtype.kind == "f" for i in images):
        left_out = training.merge(statistics(parts.validation)).left_out
    names = ", ".join(i.name for i in images[:3]) + (", ..." if len(images) > 3 else "")
    return Normalisation.fit(training, names, images[0].channel_names()), left_out


def _numbers(normalisation: Normalisation) -> dict[str, list[float]]:
    return {"mean": list(normalisation.mean), "std": list(normalisation.std)}


def _facts(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "axes": image.axes,
        "shape": list(image.shape),
        "dtype": str(image.dtype),
        "pixel_size": asdict(image.pixel_size),
        "channels": list(image.channel_names()),
        "fingerprint": image.fingerprint,
    }
