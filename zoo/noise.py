"""How the noise of neighbouring pixels hangs together, measured on the image itself, and the blind mask that follows.

Optics let fine detail through only up to a limit: at the highest spatial frequencies of one axis there is noise alone,
whatever the frequency along the other. Along that other axis the power then is the noise's own spectrum, free of the
signal, and its cosine transform the noise's autocorrelation. No empty region is needed, and none that looks empty can
mislead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .blind import BlindMask
from .errors import AxesError, SizeError, ValuesError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from .image import Image

TILE = 64
"""Side of the squares that the spectra are taken of; half of it where the image has less than FEW."""
FEW = 16
FINE = 0.35
"""Cycles a pixel from which on an axis is taken to show noise alone (Nyquist: 0.5)."""
CORRELATED = 0.1
"""Smallest correlation of direct neighbours that is worth a mask, if it is also three standard errors."""
TAIL = 0.05
"""The mask reaches as far as the correlation is above this."""
REACH = 12
"""Largest reach of a mask in pixels: 25 wide, beyond which the signal under it cannot be guessed."""
PLANES = 16
"""Planes that are looked at, of all images together, evenly spaced."""
SIDE = 1024
"""Pixels a side of the middle of a plane that is looked at; less of each where there are more than four."""
NOISY = 0.1
"""Share of noise in the variance below which the picture is called dominated by structure."""
MOST = 1024
"""Tiles that are looked at, of all planes together: more would take memory and tell no more."""
RESAMPLED = 40
"""Times that tiles are drawn anew for the standard errors."""


@dataclass(frozen=True)
class Noise:
    """What was found. autocorrelation: by axis, from lag 0 (1.0) to REACH; error: standard errors of the same.

    source: what was looked at. share: of the noise in the variance of a typical tile. signal: half width of the
    signal's own autocorrelation in pixels by axis (0: none to be seen). mask: None where single pixels are hidden.
    """

    source: str
    tiles: int
    autocorrelation: dict[str, tuple[float, ...]]
    error: dict[str, tuple[float, ...]]
    share: float
    signal: dict[str, int]
    mask: BlindMask | None
    warnings: tuple[str, ...] = field(default=())

    @property
    def method(self) -> str:
        """`n2v`, or `structn2v` where there is a mask."""
        return "n2v" if self.mask is None else "structn2v"

    @property
    def axes(self) -> tuple[str, ...]:
        """Letters of the axes along which the noise is correlated, x first."""
        return () if self.mask is None else tuple(a for a in "xy" if a in self.mask.axes)

    def as_json(self) -> dict[str, Any]:
        """Plain values; `mask` as nested lists of 0 and 1 (y, x), `text` as `--blind-mask` takes it."""
        return {
            "method": self.method,
            "axes": list(self.axes),
            "mask": None if self.mask is None else self.mask.lists(),
            "text": None if self.mask is None else str(self.mask),
            "autocorrelation": {a: [round(v, 4) for v in values] for a, values in self.autocorrelation.items()},
            "error": {a: [round(v, 4) for v in values] for a, values in self.error.items()},
            "threshold": CORRELATED,
            "source": self.source,
            "tiles": self.tiles,
            "noise_share": round(self.share, 3),
            "signal_half_width": self.signal,
            "warnings": list(self.warnings),
        }


def study_noise(images: Sequence[Image], *, dark: Image | None = None, channel: int = 0) -> Noise:
    """Measure the noise of images that one microscope took in one way.

    dark: a frame without light, which shows the noise of the detector alone. Without one, frames of a movie are
    subtracted from each other, which leaves their noise; else the finest detail of the images themselves is looked at.
    Raises SizeError for planes smaller than 32 x 32, ValuesError for constant ones, AxesError for a channel that is not
    there.
    """
    for image in images:
        if not 0 <= channel < image.size("c"):
            raise AxesError(f"{image.name} has channels 0 to {image.size('c') - 1}, not {channel}.", mend="--channel 0")
    some = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, min(PLANES, len(images))).astype(int))]
    each = PLANES // len(some)
    if dark is not None:
        planes, source, fine = list(_planes(dark, 0, PLANES)), f"dark frame {dark.name}", 0.0
    elif all(image.size("t") >= 2 for image in images):
        planes, source, fine = [d for i in some for d in _differences(i, channel, each)], "differences of frames", FINE
    else:
        planes = [p for i in some for p in _planes(i, channel, each)]
        source, fine = "the finest detail of the image", FINE
    tiles = _tiles(planes, ", ".join(i.name for i in images[:3]))
    power = _power(tiles)
    found = {a: _autocorrelation(power if a == "x" else power.transpose(0, 2, 1), fine) for a in "xy"}
    share, signal = _signal(tiles, power, {a: v for a, (v, _) in found.items()})
    mask = _proposed(found)
    unclear = dark is None and share < NOISY and mask is not None and min(mask.hidden.shape) > 1
    return Noise(
        source,
        len(tiles),
        {a: tuple(map(float, v)) for a, (v, _) in found.items()},
        {a: tuple(map(float, e)) for a, (_, e) in found.items()},
        share,
        signal if dark is None else dict.fromkeys("xy", 0),
        None if unclear else mask,
        () if dark is not None else _warnings(mask, share, signal, unclear=unclear),
    )


def _planes(image: Image, channel: int, count: int) -> Iterator[NDArray[np.float64]]:
    """Planes (y, x) of one channel, evenly spaced over all others; their middles where they are large."""
    places = list(np.ndindex(image.size("t"), image.size("z")))
    chosen = np.unique(np.linspace(0, len(places) - 1, min(count, len(places))).astype(int))
    middle = _middle(image, len(chosen) * (PLANES // count))
    for n in chosen:
        t, z = places[n]
        region = {**middle, "t": slice(t, t + 1), "z": slice(z, z + 1), "c": slice(channel, channel + 1)}
        yield _read(image, region)


def _differences(image: Image, channel: int, count: int) -> Iterator[NDArray[np.float64]]:
    """Each of some frames less the next: what stands still goes, noise stays (with twice its variance)."""
    chosen = np.unique(np.linspace(0, image.size("t") - 2, min(count, image.size("t") - 1)).astype(int))
    middle = _middle(image, len(chosen) * (PLANES // count))
    z = image.size("z") // 2
    for t in chosen:
        region = {**middle, "z": slice(z, z + 1), "c": slice(channel, channel + 1)}
        first, second = (_read(image, region | {"t": slice(n, n + 1)}) for n in (int(t), int(t) + 1))
        yield first - second


def _read(image: Image, region: dict[str, slice]) -> NDArray[np.float64]:
    pixels = image.read({a: s for a, s in region.items() if a in image.axes})
    return pixels.reshape(pixels.shape[-2:]).astype(np.float64 if pixels.dtype.itemsize > 4 else np.float32)


def _middle(image: Image, planes: int) -> dict[str, slice]:
    """The part of each of so many planes (of all images together) that is looked at."""
    most = min(SIDE, int((4 * SIDE**2 / planes) ** 0.5))
    first = {a: max(0, (image.size(a) - most) // 2) for a in "yx"}
    return {a: slice(n, min(image.size(a), n + most)) for a, n in first.items()}


def _tiles(planes: Sequence[NDArray[np.float64]], names: str) -> NDArray[np.float64]:
    """Squares side by side, without those that are constant, clipped or not finite. -> (n, side, side), mean 0."""
    smallest = min(min(p.shape) for p in planes)
    if smallest < 32:
        raise SizeError(
            f"{names}: {smallest} pixels are too few to tell noise from structure.", mend="at least 32 x 32"
        )
    room = sum((p.shape[0] // TILE) * (p.shape[1] // TILE) for p in planes)
    side = TILE if room >= FEW else TILE // 2
    cut = []
    for plane in planes:
        rows, columns = (n // side for n in plane.shape)
        part = plane[: rows * side, : columns * side].reshape(rows, side, columns, side).swapaxes(1, 2)
        taken = np.linspace(0, rows * columns - 1, min(rows * columns, max(1, MOST // len(planes)))).astype(int)
        cut.append(part[taken // columns, taken % columns].astype(np.float64))
    tiles = np.concatenate(cut)
    tiles = tiles[np.isfinite(tiles).all(axis=(1, 2))]
    tiles = tiles[tiles.std(axis=(1, 2)) > 0]
    if not len(tiles):
        raise ValuesError(
            f"{names}: every part of it is constant or not finite.", mend="choose another image or channel"
        )
    clipped = np.maximum(*((tiles == end(tiles)).mean(axis=(1, 2)) for end in (np.min, np.max)))
    kept = tiles[clipped < 0.05] if (clipped < 0.05).sum() >= 4 else tiles
    return np.asarray(kept - kept.mean(axis=(1, 2), keepdims=True), np.float64)


def _power(tiles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Power spectra under a Hann window, which keeps strong low frequencies from spilling into the high ones."""
    window = np.hanning(tiles.shape[1] + 2)[1:-1]
    parts = [tiles[i : i + 64] * window[:, None] * window for i in range(0, len(tiles), 64)]
    return np.concatenate([np.abs(np.fft.fft2(part)) ** 2 for part in parts])


def _autocorrelation(power: NDArray[np.float64], fine: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Along the last axis, from the frequencies of the other from `fine` on. power: (n, y, x) -> lags to REACH, errors.

    Each tile counts the same, and a few with structure finer than that of the optics do not count at all: the median
    over tiles is taken. Errors are from tiles drawn anew.
    """
    side = power.shape[1]
    fine_rows = np.abs(np.fft.fftfreq(side)) >= max(fine, 1 / side)
    spectra = power[:, fine_rows].mean(axis=1)
    spectra /= np.maximum(spectra.mean(axis=1, keepdims=True), np.finfo(float).tiny)

    def lags(chosen: NDArray[np.float64]) -> NDArray[np.float64]:
        values = np.fft.ifft(np.median(chosen, axis=0)).real
        return np.asarray(values[: REACH + 1] / values[0], np.float64)

    rng = np.random.default_rng(0)
    again = [lags(spectra[rng.integers(0, len(spectra), len(spectra))]) for _ in range(RESAMPLED)]
    return lags(spectra), np.std(again, axis=0)


def _signal(
    tiles: NDArray[np.float64], power: NDArray[np.float64], noise: dict[str, NDArray[np.float64]]
) -> tuple[float, dict[str, int]]:
    """(share of the noise in a typical tile's variance, half width of the signal's autocorrelation by axis).

    The signal is looked at in the quarter of the tiles that has most of it; 0 where even there noise is all. The
    noise's variance is that at the finest detail of both axes, if its spectrum is the product of those of the axes.
    """
    side = tiles.shape[1]
    fine = np.abs(np.fft.fftfreq(side)) >= FINE
    window = (np.hanning(side + 2)[1:-1] ** 2).sum() ** 2
    level = power[:, fine][:, :, fine].mean(axis=(1, 2)) / window
    spectrum = {a: np.fft.fft(_even(v, side)).real[fine].mean() for a, v in noise.items()}
    shares = level / max(spectrum["x"] * spectrum["y"], 0.05) / tiles.var(axis=(1, 2))
    structured = np.argsort(shares)[: max(1, len(shares) // 4)]
    share = float(np.clip(np.median(shares[structured]), 0, 1))
    whole = np.fft.ifft2(np.median(power[structured] / power[structured].sum(axis=(1, 2), keepdims=True), axis=0)).real
    widths = {}
    for axis, values in (("x", whole[0]), ("y", whole[:, 0])):
        rest = values[: REACH + 1] / values[0] - share * noise[axis]
        below = np.flatnonzero(rest < 0.5 * (1 - share))
        widths[axis] = 0 if 1 - share < NOISY else int(below[0]) if below.size else REACH
    return float(np.clip(np.median(shares), 0, 1)), widths


def _even(lags: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Lags 0 to REACH as a whole period, the same to both sides."""
    out = np.zeros(side)
    out[: len(lags)] = lags
    out[side - len(lags) + 1 :] = lags[:0:-1]
    return out


def _proposed(found: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> BlindMask | None:
    """The pixels that tell the centre's noise: along one axis a line, along both where the product is above TAIL."""
    reach = {}
    for axis, (values, error) in found.items():
        near = abs(values[1]) >= max(CORRELATED, 3 * error[1])
        far = np.flatnonzero(np.abs(values[1:]) < np.maximum(TAIL, 3 * error[1:]))
        reach[axis] = (max(1, int(far[0])) if far.size else REACH) if near else 0
    if not any(reach.values()):
        return None
    lines = {a: np.abs(_around(found[a][0], n)) for a, n in reach.items()}
    hidden = np.outer(lines["y"], lines["x"]) >= TAIL
    hidden[reach["y"]] = True  # along the axes themselves all of the reach
    hidden[:, reach["x"]] = True
    return BlindMask.of(hidden)


def _around(lags: NDArray[np.float64], reach: int) -> NDArray[np.float64]:
    return np.asarray([lags[abs(n)] for n in range(-reach, reach + 1)])


def _warnings(mask: BlindMask | None, share: float, signal: dict[str, int], *, unclear: bool) -> tuple[str, ...]:
    said = []
    if share < NOISY:
        said.append(
            f"structure dominates: noise is {share:.1%} of the variance; a dark frame (--dark) or a movie guides better"
        )
    if unclear:
        said.append("what hangs together along both axes may be structure finer than the optics: no mask is proposed")
    if mask is None or unclear:
        return tuple(said)
    sides = dict(zip("yx", mask.hidden.shape, strict=True))
    for axis, width in signal.items():
        if sides[axis] > 1 and 0 < width < sides[axis] // 2:
            said.append(
                f"along {axis} the noise reaches {sides[axis] // 2} pixels, the signal's half width is {width}: what "
                "lies under the mask can hardly be guessed from around it"
            )
    if min(sides.values()) > 1:
        said.append("noise hangs together along x and y: was the image resized, rotated or compressed (JPEG)?")
    return tuple(said)
