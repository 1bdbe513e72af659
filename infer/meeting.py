"""Where a package and an image meet: which axes, which channels, which dtype; what does not fit is refused here."""

from __future__ import annotations

import numpy as np

from ..zoo.axes import describe
from ..zoo.errors import AxesError, DtypeError, SizeError
from ..zoo.image import Image
from ..zoo.package import Package
from .grid import Axis


def choose_channel(package: Package, image: Image, channel: str | int | None) -> tuple[int | None, bool]:
    """The index of the one channel to read (None: all that the network takes), and whether each is run by itself."""
    needs, has = len(package.channels_in), image.size("c")
    names = image.channel_names()
    if needs > 1:
        if has != needs:
            raise AxesError(
                f"{package.name} takes {needs} channels ({', '.join(package.channels_in)}); {image.name} has {has}"
                + (f": {', '.join(names)}." if "c" in image.axes else "."),
                mend="an image with these channels in this order",
            )
        return None, False
    if channel == "all" and has > 1:
        if len(package.channels_out) > 1:
            raise AxesError(f"{package.name} returns {len(package.channels_out)} channels; it runs on one channel of "
                            f"{image.name} at a time.", mend=f"--channel {names[0]}")  # fmt: skip
        return None, True
    if channel is None or channel == "all":
        if has > 1:
            raise AxesError(
                f"{package.name} takes 1 channel; {image.name} has {has}: {', '.join(names)}.",
                mend=f"--channel {_quoted(names[0])}   or  --channel all  (each by itself)",
            )
        return (0 if "c" in image.axes else None), False
    return find_channel(image, channel), False


def find_channel(image: Image, channel: str | int) -> int:
    """The index of a channel by name or number. Raises AxesError that lists the names."""
    names, has = image.channel_names(), image.size("c")
    if isinstance(channel, str) and channel in names:
        return names.index(channel)
    if str(channel).isdigit() and int(channel) < has:
        return int(channel)
    raise AxesError(
        f"{image.name} has no channel {channel!r}.", mend="--channel " + " or ".join(_quoted(n) for n in names)
    )


def _quoted(name: str) -> str:
    return f'"{name}"' if " " in name else name


def model_axes(package: Package, image: Image) -> dict[str, Axis]:
    """The axes that the network reads at once, as `grid` sees them. Raises AxesError, SizeError for an empty image."""
    missing = [a for a in package.axes if a not in image.axes]
    if missing:
        raise AxesError(
            f"{package.name} needs {', '.join(package.axes)}; {image.name} is {describe(image.axes, image.shape)}.",
            mend="a model for 2D images" if missing == ["z"] else "",
        )
    if 0 in image.shape:
        raise SizeError(f"{image.name} is empty: {describe(image.axes, image.shape)}.")
    rules = package.rules
    return {a: Axis(image.size(a), rules[a].step, rules[a].minimum, rules[a].halo) for a in package.axes}


def out_dtype(package: Package, image: Image, dtype: str | None) -> str:
    """Intensities take the input's dtype; everything else, and what the package does not say, is float32."""
    if dtype in (None, "same"):
        intensity = bool(package.kinds) and set(package.kinds) == {"intensity"} and image.dtype != bool
        return str(image.dtype) if intensity or dtype == "same" else "float32"
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype("O")
    if found.kind not in "uif" or found.itemsize > 8:
        raise DtypeError(
            f"--dtype {dtype}: results are whole numbers or floats.", mend="--dtype same, uint16 or float32"
        )
    return str(found)


def notes(package: Package, image: Image) -> tuple[str, ...]:
    """Warnings about pixel sizes that do not fit the training, or are missing."""
    notes = list(image.notes)
    if not image.pixel_size.known and image.path is not None:
        notes.append(f"{image.name} has no pixel size; the result will have none either "
                     "(mend: --pixel-size 0.5,0.5 in um, y,x).")  # fmt: skip
    for a, trained in package.pixel_size.items():
        size = image.pixel_size.get(a)
        if size and trained and not 0.8 <= size / trained <= 1.25:
            notes.append(
                f"{image.name} has {size:.4g} um pixels along {a}; {package.name} was trained at {trained:.4g} um."
            )
    return tuple(notes)
