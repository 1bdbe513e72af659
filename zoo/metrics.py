"""How far an image is from the truth: PSNR, SSIM and the affine fit that forgives another grey scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import SizeError, ValuesError

if TYPE_CHECKING:
    from numpy.typing import NDArray


REACH = 3
"""How far SSIM's windows of 7 pixels reach from their centre."""


def psnr(truth: NDArray[Any], image: NDArray[Any], data_range: float) -> float:
    """Peak signal-to-noise ratio in dB: 20 log10(data_range) - 10 log10(mean squared error). Same axes, any dtype.

    `data_range` has no default on purpose: 255, max - min of the truth and 65535 differ by tens of dB.
    Raises SizeError for different shapes, ValuesError for a range that is not positive. Equal images give infinity.
    """
    _same_shape(truth, image)
    if not data_range > 0:
        raise ValuesError(f"a data range of {data_range:g} gives no PSNR; it must be above 0.")
    return decibels(float(np.mean(((truth.astype(np.float64) - image.astype(np.float64)) / data_range) ** 2)))


def decibels(error: float) -> float:
    """A mean squared error in squared ranges -> its PSNR in dB, infinity for 0."""
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def affine_fit(truth: NDArray[Any], image: NDArray[Any]) -> tuple[float, float]:
    """(alpha, beta) for which alpha * image + beta is nearest to truth in the least squares sense. Same axes.

    Raises SizeError for different shapes. A constant image is fitted by alpha 0 and the mean of the truth.
    """
    _same_shape(truth, image)
    x = image.astype(np.float64)
    y = truth.astype(np.float64)
    variance = float(x.var())
    alpha = float(np.mean((x - x.mean()) * (y - y.mean()))) / variance if variance > 0 else 0.0
    return alpha, float(y.mean() - alpha * x.mean())


def psnr_affine(truth: NDArray[Any], image: NDArray[Any], data_range: float) -> float:
    """PSNR in dB after the best affine fit of the image to the truth: for pairs with another gain and offset."""
    alpha, beta = affine_fit(truth, image)
    return psnr(truth, alpha * image.astype(np.float64) + beta, data_range)


def ssim(truth: NDArray[Any], image: NDArray[Any], data_range: float) -> float:
    """Structural similarity, 1 for equal images, of arrays (y, x) or (z, y, x). Source: Wang et al. 2004.

    Raises SizeError for different shapes and for sides under the 7 pixels of its window.
    """
    _same_shape(truth, image)
    if min(truth.shape) <= 2 * REACH:
        raise SizeError(f"SSIM looks at windows of 7 pixels; the image is {' x '.join(map(str, truth.shape))}.")
    return float(ssim_map(truth, image, data_range).mean())


def ssim_map(truth: NDArray[Any], image: NDArray[Any], data_range: float) -> NDArray[np.float64]:
    """SSIM of every window that lies inside, at its centre: sides are 6 pixels shorter. (y, x) or (z, y, x)."""
    from skimage.metrics import structural_similarity

    _, found = structural_similarity(
        truth.astype(np.float64), image.astype(np.float64), data_range=float(data_range), full=True
    )
    return np.asarray(found[(slice(REACH, -REACH),) * truth.ndim], np.float64)


def _same_shape(truth: NDArray[Any], image: NDArray[Any]) -> None:
    if truth.shape != image.shape:
        raise SizeError(f"the truth is {truth.shape}, the image {image.shape}: they must have the same shape.")
