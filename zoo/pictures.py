"""Pictures for people: PNG at full resolution on a grey scale that is said, and the curve of a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ImageError, SizeError
from .files import replace_file
from .quantiles import percentiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

KINDS = ("PNG", "JPEG", "GIF")
MOST_PIXELS = 50_000_000
"""Of a stranger's picture: larger ones are not unpacked."""
GAP = 8
"""White pixels between pictures side by side."""
LABEL = 18
"""Height in pixels of the line of text above a picture."""


def contrast(pixels: NDArray[Any], low: float = 0.1, high: float = 99.9) -> tuple[float, float]:
    """The grey values at two percentiles, any axes, at most a million evenly spaced finite pixels looked at."""
    flat = pixels.reshape(-1)
    flat = flat[:: max(1, flat.size // 1_000_000)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        return 0.0, 1.0
    a, b = percentiles(flat, (low, high))
    return float(a), float(b)


@contextmanager
def strangers_picture(data: bytes) -> Iterator[Any]:
    """A stranger's PNG, JPEG or GIF, opened with Pillow: no pixel is unpacked yet.

    Raises ImageError for what is no such picture, also where that is seen only while its pixels are read.
    """
    import struct
    import warnings

    from PIL import Image as Pillow

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is large is said by those who mind
            with Pillow.open(BytesIO(data), formats=KINDS) as picture:
                yield picture
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, OverflowError, MemoryError,
            Pillow.DecompressionBombError) as error:  # fmt: skip
        raise ImageError(f"it is no {', '.join(KINDS)} of a size that can be shown ({error}).") from error


def redrawn(data: bytes, side: int) -> bytes:
    """A stranger's picture -> a PNG of its pixels and nothing else, at most `side` pixels each way.

    Raises ImageError for what is no PNG, JPEG or GIF, or has more than MOST_PIXELS.
    """
    with strangers_picture(data) as picture:
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels")
        drawn = _eight_bits(picture)
        drawn.thumbnail((side, side))
        buffer = BytesIO()
        drawn.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _eight_bits(picture: Any) -> Any:
    """Grey stays grey, 16 and 32 bits are stretched, all else has colours."""
    from PIL import Image as Pillow

    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture, np.float32)
        return Pillow.fromarray(stretch(values, (float(values.min()), float(values.max()))))
    return picture.convert("L" if picture.mode in ("1", "L") else "RGBA")


def stretch(plane: NDArray[Any], grey: tuple[float, float]) -> NDArray[np.uint8]:
    """A plane (y, x) of any dtype -> uint8: grey[0] and below black, grey[1] and above white, NaN black."""
    if plane.ndim != 2:
        raise SizeError(f"a picture is a plane (y, x); this array has {plane.ndim} axes.")
    low, high = grey
    scaled = (plane.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return (np.nan_to_num(np.clip(scaled, 0, 1)) * 255 + 0.5).astype(np.uint8)


def enlarge(plane: NDArray[Any], factor: int) -> NDArray[Any]:
    """Every pixel as a square of factor x factor pixels, nothing interpolated. (y, x) -> (y * factor, x * factor)."""
    return plane.repeat(factor, axis=0).repeat(factor, axis=1)


def to_png(plane: NDArray[Any], path: str | Path, grey: tuple[float, float] | None = None) -> None:
    """Write a plane (y, x) as a PNG of the same number of pixels, stretched between two grey values."""
    from PIL import Image as Pillow

    write_png(Pillow.fromarray(stretch(plane, grey or contrast(plane))), Path(path))


def side_by_side(
    planes: Sequence[NDArray[Any]],
    labels: Sequence[str],
    greys: Sequence[tuple[float, float]],
    path: str | Path,
    factor: int = 1,
) -> None:
    """Write planes (y, x) next to each other, each under its label, each stretched between its own grey values.

    Give the same pair of grey values to pictures that are to be compared. `factor` enlarges by whole pixels.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    tiles = [enlarge(stretch(p, g), factor) for p, g in zip(planes, greys, strict=True)]
    draw = ImageDraw.Draw(Pillow.new("L", (1, 1)))
    widths = [max(t.shape[1], int(draw.textlength(text)) + 2) for t, text in zip(tiles, labels, strict=True)]
    canvas = Pillow.new("L", (sum(widths) + GAP * (len(tiles) - 1), max(t.shape[0] for t in tiles) + LABEL), 255)
    draw = ImageDraw.Draw(canvas)
    left = 0
    for tile, text, width in zip(tiles, labels, widths, strict=True):
        draw.text((left, 2), text, fill=0)
        canvas.paste(Pillow.fromarray(tile), (left, LABEL))
        left += width + GAP
    write_png(canvas, Path(path))


def loss_curve(
    epochs: Sequence[int], train: Sequence[float], validation: Sequence[float], path: str | Path, ylabel: str
) -> None:
    """Write the curve of a training as a PNG: loss over epochs, the best epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(epochs, train, label="training", color="0.6")
    axes.plot(epochs, validation, label="validation (held-out pixels)", color="C0")
    best = int(np.argmin(validation))
    axes.plot([epochs[best]], [validation[best]], "o", color="C3", label=f"best: epoch {epochs[best]}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(Path(path), lambda p: p.write_bytes(buffer.getvalue()))


def noise_curves(
    autocorrelation: Mapping[str, Sequence[float]], error: Mapping[str, Sequence[float]], threshold: float,
    mask: NDArray[Any] | None, path: str | Path,
) -> None:  # fmt: skip
    """Write a PNG: the noise's autocorrelation over the lag by axis, its standard errors, and the blind mask (y, x)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    curves, shown = figure.subplots(1, 2, width_ratios=[2, 1])
    for colour, (axis, values) in enumerate(autocorrelation.items()):
        lags = np.arange(1, len(values))
        curves.errorbar(lags, values[1:], error[axis][1:], marker="o", label=f"along {axis}", color=f"C{colour}")
    curves.axhspan(-threshold, threshold, color="0.9", label="not worth a mask")
    curves.axhline(0, color="0.4", linewidth=0.8)
    curves.set_xlabel("distance (pixels)")
    curves.set_ylabel("correlation of the noise")
    curves.legend(frameon=False)
    drawn = np.ones((1, 1)) if mask is None else np.asarray(mask, float)
    height, width = drawn.shape
    shown.imshow(drawn, cmap="Greys", vmin=0, vmax=1.6, extent=(-width / 2, width / 2, height / 2, -height / 2))
    shown.add_patch(_centre())
    shown.set_xticks(np.arange(-(width // 2), width // 2 + 1, max(1, width // 6)))
    shown.set_yticks(np.arange(-(height // 2), height // 2 + 1, max(1, height // 6)))
    shown.set_xlabel("x (pixels)")
    shown.set_ylabel("y (pixels)")
    shown.set_title(
        "blind mask (red: the pixel itself)" if mask is not None else "single pixels are hidden", fontsize=10
    )
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(Path(path), lambda p: p.write_bytes(buffer.getvalue()))


def residual_curves(
    residual: Mapping[str, Sequence[float]], noise: Mapping[str, Sequence[float]], error: float, path: str | Path
) -> None:
    """Write a PNG: autocorrelation over the lag by axis, of what was taken away (solid) and of the noise (dashed).

    error: standard error of a correlation that is 0, drawn three times as wide.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for colour, (axis, values) in enumerate(residual.items()):
        lags = range(1, len(values))
        axes.plot(lags, values[1:], "o-", label=f"residual along {axis}", color=f"C{colour}")
        if axis in noise:
            known = noise[axis][1 : len(values)]
            axes.plot(
                range(1, len(known) + 1), known, "s--", mfc="none", label=f"noise along {axis}", color=f"C{colour}"
            )
    axes.axhspan(-3 * error, 3 * error, color="0.9", label="none (three standard errors)")
    axes.axhline(0, color="0.4", linewidth=0.8)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.1), max(high, 0.3))
    axes.set_xlabel("distance (pixels)")
    axes.set_ylabel("correlation")
    axes.legend(frameon=False)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    replace_file(Path(path), lambda p: p.write_bytes(buffer.getvalue()))


def _centre() -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((-0.5, -0.5), 1, 1, color="C3")


def write_png(picture: Any, path: Path) -> None:
    """A picture of Pillow as a PNG, whole or not at all. Raises OutputError."""
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    replace_file(path, lambda p: p.write_bytes(buffer.getvalue()))
