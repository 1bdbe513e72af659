"""Run a package on images that its training has not seen, and measure it square by square."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.planning import make_plan
from ..infer.run import run_in_memory
from ..zoo.axes import permutation
from ..zoo.errors import AxesError, SizeError, ValuesError
from ..zoo.metrics import affine_fit, psnr, ssim
from ..zoo.pictures import contrast, side_by_side
from .measured import PICTURES, Case, Figure, Measured

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..zoo.image import Image
    from ..zoo.package import Package

SMALLEST, SMALL, LARGEST = 32, 64, 256
"""Sides (pixels) of the squares that are measured one by one; below SMALL only where the image has no more."""
SQUARES = 16
"""About so many of a plane, if it is large enough: enough for a spread."""


@dataclass(frozen=True)
class _Square:
    """One square of one plane. noisy, result, truth: (y, x) float64, on the grey scale of the truth if there is one.

    grey: black and white of its whole plane. values: before (None where that means nothing) and after, by the names of
    `measured`.
    """

    image: str
    where: str
    noisy: NDArray[np.float64]
    result: NDArray[np.float64]
    truth: NDArray[np.float64] | None
    grey: tuple[float, float]
    values: dict[str, tuple[float | None, float]]

    @property
    def rank(self) -> float:
        """The higher the better."""
        if self.truth is None:
            return -abs(self.values["leak"][1])
        before, after = self.values["psnr"]
        assert before is not None
        return after - before

    @property
    def contents(self) -> float:
        """How much there is to be seen."""
        return float((self.result if self.truth is None else self.truth).std())

    @property
    def case(self) -> Case:
        """For the text."""
        if self.truth is not None:
            before, after = self.values["psnr"]
            said = f"{before:.1f} dB as it came, {after:.1f} dB denoised"
        else:
            said = f"correlation of what was taken away with the result {self.values['leak'][1]:.2f}"
        return Case(self.image, self.where, said)


def measure(
    package: Package, images: Sequence[Image], truths: Sequence[Image] = ()
) -> tuple[Measured, dict[str, bytes]]:
    """Run a denoiser on held-out images -> figures, and two pictures (PNG) by file name: the best and the worst square.

    truths: the clean or high-SNR partner of each image, in their order, or none. Every plane of every channel counts.
    Raises SizeError where an image and its partner differ in shape or are too small, AxesError for other axes,
    ValuesError for a partner with NaN or without any contrast.
    """
    check_partners(images, truths)
    squares: list[_Square] = []
    side = min(map(_side_for, images))  # one for all, or their figures could not be averaged
    for i, image in enumerate(images):
        squares += _squares(package, image, truths[i] if truths else None, side)
    # squares without anything in them say little: the fuller half
    shown = sorted(squares, key=lambda s: -s.contents)[: (len(squares) + 1) // 2]
    best, worst = (pick(shown, key=lambda s: s.rank) for pick in (max, min))
    names = list(squares[0].values)
    figures = tuple(_figure(n, [s.values[n] for s in squares]) for n in names)
    found = Measured(
        tuple(i.name for i in images), tuple(t.name for t in truths), len(squares), side, figures, best.case, worst.case
    )
    return found, {PICTURES["best"]: _picture(best), PICTURES["worst"]: _picture(worst)}


def check_partners(images: Sequence[Image], truths: Sequence[Image]) -> None:
    """Raise SizeError where held-out images and their partners do not go together, or are too small to be measured."""
    if truths and len(truths) != len(images):
        raise SizeError(
            f"{len(images)} held-out images have {len(truths)} partners.", mend="--held-out and --truth, one each"
        )
    for image, truth in zip(images, truths, strict=False):
        if truth.sizes != image.sizes:
            raise SizeError(
                f"{image.name} and its partner {truth.name} differ: {image.sizes} and {truth.sizes}.",
                mend="partners of equal shape and axes",
            )
    for image in images:
        _side_for(image)


def _side_for(image: Image) -> int:
    """The side of the squares that an image is measured in. Raises SizeError where it is too small."""
    height, width = image.size("y"), image.size("x")
    side = int(min(LARGEST, height, width, max(SMALL, (height * width / SQUARES) ** 0.5)))
    if side < SMALLEST:
        raise SizeError(
            f"the held-out image {image.name} is {height} x {width}; {SMALLEST} pixels each way are needed."
        )
    return side


def _figure(name: str, values: Sequence[tuple[float | None, float]]) -> Figure:
    after = [a for _, a in values]
    before = [b for b, _ in values if b is not None]
    if not before:
        return Figure(name, _spread(after))
    return Figure(name, _spread(after), _spread(before), _spread([a - b for a, b in zip(after, before, strict=True)]))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation to seven digits: what is stored, so that every text is made of the same numbers."""
    mean, spread = np.mean(values), np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(f"{mean:.7g}"), float(f"{spread:.7g}")


def _squares(package: Package, image: Image, truth: Image | None, side: int) -> Iterator[_Square]:
    """All squares of all planes of an image, measured."""
    noisy = image.read({}).astype(np.float64)
    clean = None if truth is None else truth.read({}).astype(np.float64)
    if clean is not None and not np.isfinite(clean).all():
        raise ValuesError(f"{truth.name if truth else ''} holds NaN or infinity, which has no distance from anything.")
    result = _denoised(package, image)
    for where in np.ndindex(*noisy.shape[:-2]):
        place = [f"{a} {i}" for a, i in zip(image.axes, where, strict=False) if image.size(a) > 1]
        planes = (noisy[where], result[where], None if clean is None else clean[where])
        yield from _of_plane(image.name, place, *planes, side)


def _denoised(package: Package, image: Image) -> NDArray[np.float64]:
    """What the package makes of an image, with its axes, float64."""
    plan = make_plan(package, image, dtype="float32", device="cpu")
    (values,) = run_in_memory(plan).values()
    axes = plan.axes_of(plan.targets[0])
    if "c" in axes and "c" not in image.axes and values.shape[axes.index("c")] == 1:
        values, axes = values.squeeze(axes.index("c")), axes.replace("c", "")
    if sorted(axes) != sorted(image.axes) or values.size != np.prod(image.shape):
        raise AxesError(f"{package.name} returns {axes}, the held-out image {image.name} has {image.axes}.",
                        mend="held-out images for models that keep axes and channels")  # fmt: skip
    return values.transpose(permutation(axes, image.axes)).astype(np.float64)


def _of_plane(
    name: str, place: list[str], noisy: NDArray[Any], result: NDArray[Any], truth: NDArray[Any] | None, side: int
) -> Iterator[_Square]:
    height, width = noisy.shape
    fitted, spread = (noisy, result), 0.0
    if truth is not None:
        spread = float(truth.max() - truth.min())
        if not spread > 0:
            raise ValuesError(
                f"the partner of {', '.join([name, *place])} is constant: nothing can be measured there.",
                mend="--held-out and --truth with parts in which there is something",
            )
        fits = [affine_fit(truth, p) for p in fitted]
        fitted = tuple(f * p + o for (f, o), p in zip(fits, fitted, strict=True))  # type: ignore[assignment]
        noisy = fits[1][0] * noisy + fits[1][1]  # to be seen beside the result, on its grey scale
    grey = contrast(noisy if truth is None else truth)
    for y in range(0, height - side + 1, side):
        for x in range(0, width - side + 1, side):
            at = (slice(y, y + side), slice(x, x + side))
            where = ", ".join([*place, f"y {y}:{y + side}", f"x {x}:{x + side}"])
            before, after = (p[at] for p in fitted)
            clean = None if truth is None else truth[at]
            values = _without_truth(before, after) if clean is None else _beside(before, after, clean, spread)
            yield _Square(name, where, noisy[at], after, clean, grey, values)


def _beside(
    noisy: NDArray[Any], result: NDArray[Any], truth: NDArray[Any], spread: float
) -> dict[str, tuple[float | None, float]]:
    """Before and after; spread: the data range."""
    return {
        "psnr": (psnr(truth, noisy, spread), psnr(truth, result, spread)),
        "ssim": (ssim(truth, noisy, spread), ssim(truth, result, spread)),
    }


def _without_truth(noisy: NDArray[Any], result: NDArray[Any]) -> dict[str, tuple[float | None, float]]:
    left = noisy - result
    near = {"lag x": (left[:, 1:], left[:, :-1]), "lag y": (left[1:], left[:-1])}
    return {
        "removed": (None, float(left.std())),
        "leak": (None, _correlation(left, result)),
        **{name: (None, _correlation(*pair)) for name, pair in near.items()},
    }


def _correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Pearson's, 0 where one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _picture(square: _Square) -> bytes:
    """Noisy, denoised, the partner where there is one, on one grey scale; and what was taken away."""
    left = square.noisy - square.result
    truth = [] if square.truth is None else [square.truth]
    most = max(abs(v) for v in contrast(left))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "case.png"
        side_by_side(
            [square.noisy, square.result, *truth, left],
            ["as it came", "denoised", *["high SNR"] * len(truth), f"taken away, +-{most:.3g}"],
            [square.grey] * (2 + len(truth)) + [(-most, most)], path, factor=max(1, LARGEST // square.noisy.shape[0]),
        )  # fmt: skip
        return path.read_bytes()
