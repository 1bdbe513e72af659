"""`voidzoo noise`, and the blind mask of `voidzoo train structn2v` where none was given."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from .screen import for_people, say, warn
from .zoo.errors import OutputError, RecipeError
from .zoo.noise import CORRELATED, Noise, study_noise
from .zoo.open import open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from .zoo.image import Image


def noise(
    paths: list[str], dark: str | None, channel: int, out: Path | None, how: dict[str, Any], *, as_json: bool
) -> None:
    """`voidzoo noise`."""
    if out is not None and out.suffix.lower() != ".png":
        raise OutputError(f"{out}: the picture is a PNG.", mend=f"-o {out.with_suffix('.png')}")
    images = [open_image(p, **how) for p in paths]
    found = study_noise(images, dark=None if dark is None else open_image(dark), channel=channel)
    if out is not None:
        from .zoo.pictures import noise_curves

        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = None if found.mask is None else found.mask.hidden
        noise_curves(found.autocorrelation, found.error, CORRELATED, hidden, out)
    if as_json:
        say(json.dumps(found.as_json()))
        return
    say(noise_text(found, paths))
    for warning in found.warnings:
        warn(f"note     {warning}")
    if out is not None:
        say(f"picture  {out}")


def noise_text(found: Noise, paths: Sequence[str]) -> str:
    """What was found, for people: the correlations by axis, and the next command."""
    lines = [f"looked at {found.source}, {found.tiles} places; noise is {found.share:.0%} of the variance there"]
    for axis, values in found.autocorrelation.items():
        reach = 0 if found.mask is None else found.mask.hidden.shape["yx".index(axis)] // 2
        numbers = " ".join(f"{round(v, 2) + 0.0:.2f}" for v in values[1 : max(4, reach + 2)])
        unclear = not reach and abs(values[1]) >= CORRELATED
        words = (
            f"correlated to {reach} pixel{'s' * (reach > 1)}" if reach else "unclear" if unclear else "not correlated"
        )
        lines.append(f"along {axis}  {words}   ({numbers})")
    names = shlex.join(paths)
    if found.mask is None:
        return "\n".join([*lines, f"proposal n2v: voidzoo train n2v {names} -o run"])
    sides = " x ".join(map(str, found.mask.hidden.shape))
    lines.append(f"proposal structn2v with a blind mask of {sides} (y x x):")
    lines += [f"         {' '.join('#' if v else '.' for v in row)}" for row in found.mask.hidden]
    return "\n".join(
        [*lines, f"next     voidzoo train structn2v {names} -o run --blind-mask {shlex.quote(str(found.mask))}"]
    )


def measured_mask(images: list[Image], watch: Callable[[Any], None]) -> list[Any]:
    """The blind mask (y, x) that the noise of the images asks for. Raises RecipeError where it asks for none."""
    found = study_noise(images)
    if found.mask is None:
        near = ", ".join(f"{v[1]:.2f} along {a}" for a, v in found.autocorrelation.items())
        raise RecipeError(
            f"the noise of neighbouring pixels is not correlated ({near}): there is nothing to mask.",
            mend="voidzoo train n2v; or --blind-mask 1x9, if you know better",
        )
    if for_people(watch):
        say(f"noise    correlated along {' and '.join(found.axes)}: blind mask {found.mask} (`voidzoo noise` shows it)")
        for warning in found.warnings:
            warn(f"note     {warning}")
    return found.mask.lists()
