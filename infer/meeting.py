"""Where a package and an image meet: which axes, which channels, which dtype; what does not fit is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite

import numpy as np

from ..zoo.axes import describe
from ..zoo.errors import AxesError, DtypeError, PackageError, SizeError
from ..zoo.image import Image
from ..zoo.package import Package
from .geometry import Geometry, Port
from .grid import Axis
from .plan import Choices, Feed, Plan, Target
from .restore import to_model_size

PRECISIONS = ("fp32", "fp16", "bf16")


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


def feeds(
    package: Package, shape: Geometry, image: Image, channel: str | int | None, others: Mapping[str, Image]
) -> tuple[tuple[Feed, ...], bool]:
    """What goes into each input, the main image first, and whether each channel of it is run by itself.

    Raises AxesError, SizeError, PackageError for an input that is missing, unknown or does not lie on the image.
    """
    _refuse_axes(package, shape, image)
    index, each = choose_channel(package, image, channel)
    main, *rest = shape.inputs
    if unknown := [name for name in others if name not in {p.id for p in rest}]:
        taken = ", ".join(p.id for p in rest) or "none beside the image"
        raise AxesError(f"{package.name} has no further input {unknown[0]!r}; it takes: {taken}.",
                        mend=f"--input {rest[0].id}=IMAGE" if rest else "leave --input out")  # fmt: skip
    found = [Feed(main, image, index)]
    for port in rest:
        if port.id in others:
            found.append(_second(package, port, others[port.id], image))
        elif not port.tensor.optional:
            raise AxesError(f"{package.name} takes {len(shape.inputs)} inputs; {port.id} is missing.",
                            mend=f"--input {port.id}=IMAGE")  # fmt: skip
    return tuple(found), each


def _refuse_axes(package: Package, shape: Geometry, image: Image) -> None:
    missing = [a for a in shape.space if a not in image.axes]
    if missing:
        raise AxesError(
            f"{package.name} needs {', '.join(shape.space)}; {image.name} is {describe(image.axes, image.shape)}.",
            mend="a model for 2D images" if missing == ["z"] else "",
        )
    if 0 in image.shape:
        raise SizeError(f"{image.name} is empty: {describe(image.axes, image.shape)}.")


def _second(package: Package, port: Port, other: Image, image: Image) -> Feed:
    """A further input: pixel over pixel on the main one, or the same for all of it."""
    if other.size("c") != port.channels:
        many = "channel" if port.channels == 1 else "channels"
        raise AxesError(f"input {port.id} of {package.name} takes {port.channels} {many}; {other.name} has "
                        f"{other.size('c')}.", mend=f"an image with {port.channels} {many}")  # fmt: skip
    needed = {}
    for a in port.space if port.whole else "tzyx":
        if port.whole:
            axis = port.tensor.axis(a)
            wanted = None if axis is None else axis.size
        else:
            wanted = port.span(0, image.size(a), a)[1]
        if wanted is not None and (a in image.axes or a in other.axes or port.whole):
            needed[a] = wanted
    for a, wanted in needed.items():
        has = other.size(a)
        if has != wanted and not (has == 1 and a not in port.space):
            raise SizeError(f"input {port.id} of {package.name} needs {a} {wanted}; {other.name} has {a} {has}.",
                            mend=f"an image of {', '.join(f'{b} {n}' for b, n in needed.items())}")  # fmt: skip
    return Feed(port, other)


def targets(
    package: Package, shape: Geometry, image: Image, channel: int | None, dtype: str | None, *, each: bool
) -> tuple[Target, ...]:
    """The arrays of the result: one an output, or several where an output mixes kinds of channels."""
    found: list[Target] = []
    kinds = list(package.kinds)
    for port in shape.outputs:
        own, kinds = kinds[: port.channels], kinds[port.channels :]
        axis = port.tensor.axis("c")
        names = axis.names if axis is not None and len(axis.names) == port.channels else ()
        for kind, channels in _by_kind(own, port.channels):
            if each:
                labels = image.channel_names()
            elif len(channels) > 1:
                labels = tuple(names[i] if names else f"{port.id} {i}" for i in channels)
            else:
                labels = () if channel is None else (image.channel_names()[channel],)
            name = port.id if len(channels) == port.channels else kind or "other"
            found.append(Target(name, port, channels, labels, out_dtype(kind, image, dtype), kind))
    if len(found) == 1:
        return (replace(found[0], name=""),)
    return tuple(found)


def _by_kind(kinds: list[str], channels: int) -> list[tuple[str, tuple[int, ...]]]:
    if len(set(kinds)) < 2:
        return [(kinds[0] if kinds else "", tuple(range(channels)))]
    return [(k, tuple(i for i, kind in enumerate(kinds) if kind == k)) for k in dict.fromkeys(kinds)]


def model_axes(shape: Geometry, image: Image) -> dict[str, Axis]:
    """The axes that the network reads at once, as `grid` sees them."""
    return {
        a: Axis(image.size(a), rule.step, rule.minimum, rule.halo, shape.leads[a], rule.fixed)
        for a, rule in shape.rules.items()
    }


def out_dtype(kind: str, image: Image, dtype: str | None) -> str:
    """Intensities take the input's dtype; everything else, and what the package does not say, is float32."""
    if dtype in (None, "same"):
        intensity = kind == "intensity" and image.dtype != bool
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


def fitting_mask(image: Image, mask: Image) -> Image:
    """A mask pixel over pixel on the image, or the same for all positions along axes that it lacks.

    Raises AxesError for an axis that the image has not, SizeError for another size.
    """
    if extra := [a for a in mask.axes if a != "c" and mask.size(a) > 1 and a not in image.axes]:
        raise AxesError(f"--mask {mask.name} has an axis {extra[0]}, which {image.name} has not: "
                        f"{describe(image.axes, image.shape)}.", mend="a mask of the image's size")  # fmt: skip
    for a in (a for a in mask.axes if a != "c" and a in image.axes):
        has, needed = mask.size(a), image.size(a)
        if has != needed and (has > 1 or a in "yx"):
            raise SizeError(f"--mask {mask.name} has {a} {has}; {image.name} has {a} {needed}.",
                            where=f"{describe(mask.axes, mask.shape)} on {describe(image.axes, image.shape)}",
                            mend="a mask of the image's size; one plane does for a whole stack")  # fmt: skip
    return mask


def only_part(draft: Plan, only: Mapping[str, tuple[int | None, int | None]]) -> dict[str, tuple[int, int]]:
    """The part to do, filled in. Raises AxesError, SizeError for one that is not in the image."""
    found = {}
    for a, (first, last) in only.items():
        if a not in draft.grid:
            example = next(iter(draft.grid))
            mend = "--channel NAME" if a == "c" else f"e.g. --only {example}=0:{max(1, draft.sizes[example] // 2)}"
            raise AxesError(f"--only {a}: {draft.image.name} is done along {', '.join(draft.grid)}.", mend=mend)
        size = draft.sizes[a]
        start, stop = 0 if first is None else first, size if last is None else last
        coarse = max(t.port.ratio[a].denominator if a in t.port.ratio else 1 for t in draft.targets)
        if not 0 <= start < stop <= size:
            raise SizeError(f"--only {a}={start}:{stop} is not a part of {a} 0:{size}.",
                            mend=f"--only {a}={_next_part(start, stop, size, coarse)}")  # fmt: skip
        if start % coarse:
            raise SizeError(f"--only {a}={start}:{stop} begins within a pixel of the result, which is {coarse} times "
                            "coarser.", mend=f"--only {a}={start // coarse * coarse}:{stop}")  # fmt: skip
        if (start, stop) != (0, size):
            found[a] = (start, stop)
    return found


def _next_part(start: int, stop: int, size: int, coarse: int) -> str:
    """The legal part that is nearest to one that is none; all where none of it lies in the image."""
    first = max(0, start) // coarse * coarse
    return f"{first}:{min(max(stop, first + coarse), size)}" if first < size else f"0:{size}"


def sample_letters(draft: Plan, word: str | None) -> str:
    """The loop axes that belong to the statistical sample beside the model's own. Raises AxesError for another word."""
    letters = {"plane": "", "volume": "z", "series": "t", "image": "tz"}
    if word is None:
        return ""
    has = {*draft.model_axes, *draft.loops}
    legal = [w for w, more in letters.items() if w == "image" or set(more) <= has]
    legal = legal if len(draft.model_axes) == 2 else [w for w in legal if w != "plane"]
    if word not in legal:
        raise AxesError(f"--sample {word}: {draft.package.name} reads {' '.join(draft.model_axes)} at once, and "
                        f"{draft.image.name} is {describe(draft.image.axes, draft.image.shape)}.",
                        mend="--sample " + " or ".join(legal))  # fmt: skip
    return "".join(a for a in letters[word] if a in draft.loops)


def refuse_choices(choices: Choices) -> None:
    """Raise SizeError for numbers that cannot be, PackageError for a precision that there is none of."""
    if choices.precision not in PRECISIONS:
        raise PackageError(f"there is no precision {choices.precision!r}.", mend="--precision fp32, fp16 or bf16")
    if choices.tolerance is not None and not 0 <= choices.tolerance < 1:
        raise SizeError(
            f"--tolerance {choices.tolerance:g} is no error in units of the result's std: 0 (exact) to below 1.",
            mend="--tolerance 1e-3",
        )
    if choices.tolerance and choices.tta:
        raise SizeError("--tolerance cuts halos for speed, --tta takes 8 times as long for quality.", mend="choose one")
    if choices.skip_below is not None and not isfinite(choices.skip_below):
        raise SizeError(f"--skip-below {choices.skip_below:g} is no grey value.", mend="e.g. --skip-below 100")


def at_model_size(package: Package, image: Image, *, whole: bool) -> Image:
    """The image at the pixel size of the training. Raises SizeError where one of them is unknown."""
    if not whole:
        raise SizeError("--only names pixels of the image, which --rescale changes.", mend="leave one of them out")
    known = package.pixel_size
    trained = {a: known[a] for a in "zyx" if a in package.axes and a in known}
    if not {"y", "x"} <= set(trained):
        raise SizeError(f"{package.name} does not say at which pixel size it was trained.", mend="leave --rescale out")
    unknown = [a for a in trained if not image.pixel_size.get(a)]
    if unknown:
        example = "2,0.5,0.5  (um, z,y,x)" if "z" in trained else "0.5,0.5  (um, y,x)"
        raise SizeError(f"{image.name} does not say how large its pixels are along {', '.join(unknown)}.",
                        mend=f"--pixel-size {example}")  # fmt: skip
    return to_model_size(image, trained)
