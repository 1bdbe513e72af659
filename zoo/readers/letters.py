"""Which dimension of a file is which axis: from its metadata or from the user, never from a guess.

Dimensions of a file are written as one character each: a letter of `tczyx`, `s` (samples of a pixel, e.g. RGB), `?`
(the file does not say), `-` (a dimension of size 1 that the image does not have).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..axes import ORDER, parse
from ..errors import AxesError

if TYPE_CHECKING:
    from collections.abc import Sequence

_WORDS = {"t": "time", "c": "channels", "z": "depth"}


def shape_text(shape: Sequence[int]) -> str:
    """`(40, 2, 1024, 1024)` -> `"40 x 2 x 1024 x 1024"`."""
    return " x ".join(str(size) for size in shape)


def name_dimensions(
    name: str, dims: str, shape: Sequence[int], axes: str | None, where: str = ""
) -> tuple[str, tuple[str, ...]]:
    """The letters of all dimensions, `-` for those that are dropped, and notes on what the user overrode.

    `dims` is what the file says, `axes` what the user says. Raises AxesError where neither tells all, or the two
    cannot fit.
    """
    if axes is not None:
        return _from_user(name, dims, shape, parse(axes))
    if dims == "??":
        return "yx", ()  # a plane needs no name
    known = "".join(d for d in dims if d in ORDER)
    if "y" in known and "x" in known:
        dims = "".join("-" if d == "?" and n == 1 else d for d, n in zip(dims, shape, strict=True))
    visible = [i for i, d in enumerate(dims) if d != "-"]
    letters = "".join(dims[i] for i in visible)
    sizes = [shape[i] for i in visible]
    if "s" in letters and "c" in letters:
        raise AxesError(
            f"{name} has channels and, in each of them, {shape[dims.index('s')]} samples a pixel: two channel axes.",
            where or f"dimensions {letters} = {shape_text(sizes)}",
            "save the colours as channels first, e.g. in Fiji: Image > Type > RGB Stack",
        )
    named = letters.replace("s", "c")
    if "?" in named or len(set(named)) != len(named) or not {"y", "x"} <= set(named):
        raise AxesError(
            f"{name} has shape {shape_text(sizes)} but does not say which axis is which.",
            where,
            f"add --axes {_suggestions(named, sizes)}",
        )
    return dims.replace("s", "c"), ()


def _from_user(name: str, dims: str, shape: Sequence[int], axes: str) -> tuple[str, tuple[str, ...]]:
    """The user's letters on the file's dimensions; singletons may be left out or named."""
    dims = _unfold(dims, axes)
    visible = [i for i, d in enumerate(dims) if d != "-"]
    # a dimension of size 1 may be named or left out, whatever the file calls it
    for chosen in (
        visible,
        [i for i in visible if shape[i] > 1 or dims[i] != "?"],
        [i for i in visible if shape[i] > 1 or dims[i] in "yx"],
        [i for i in visible if shape[i] > 1],
    ):
        if len(chosen) == len(axes):
            break
    else:
        sizes = [shape[i] for i in visible]
        hidden = "".join(d for d in dims if d != "-").replace("s", "c")
        raise AxesError(
            f"--axes {axes} names {len(axes)} axes, but {name} has {len(sizes)}: {shape_text(sizes)}.",
            mend=f"--axes {_suggestions(hidden, sizes, prefer=axes).split(' ')[0]}",
        )
    result = ["-"] * len(dims)
    for i, letter in zip(chosen, axes, strict=True):
        result[i] = letter
    said = "".join(dims[i] for i in chosen).replace("s", "c")
    overridden = any(was not in ("?", now) for was, now in zip(said, axes, strict=True))
    notes = (f"{name} says its axes are {said}; read as {axes}, as you asked.",) if overridden else ()
    return "".join(result), notes


def _unfold(dims: str, axes: str) -> str:
    """`dims` with the letters that the user names beyond the file's put on the dimensions of size 1 it left out."""
    said = dims.replace("-", "").replace("s", "c")
    extra = [a for a in axes if a not in said]
    if "?" in said or "".join(a for a in axes if a in said) != said or len(extra) > dims.count("-"):
        return dims
    letters = list(dims)
    for letter in extra:
        letters[letters.index("-")] = letter
    unfolded = "".join(letters)
    return unfolded if unfolded.replace("-", "").replace("s", "c") == axes else dims


def _suggestions(dims: str, shape: Sequence[int], prefer: str = "") -> str:
    """What the user could mean, e.g. `"zcyx (or tcyx, if the first is time)"`: a hint, never applied."""
    letters = ["?" if d not in ORDER or dims.index(d) != i else d for i, d in enumerate(dims)]
    if "y" not in letters and "x" not in letters:
        open_ = [i for i, d in enumerate(letters) if d == "?"]
        # a short last dimension is more often colours than columns
        spatial = open_[-3:-1] if len(open_) >= 3 and shape[open_[-1]] <= 4 < shape[open_[-2]] else open_[-2:]
        for i, letter in zip(spatial, "yx", strict=False):
            letters[i] = letter
    unknown = [i for i, d in enumerate(letters) if d == "?"]
    free = [a for a in (*[a for a in prefer if a in "tcz"], *"zct") if a not in letters]
    free = list(dict.fromkeys(free))
    if not unknown:
        return "".join(letters)
    if len(unknown) > len(free):
        return "tczyx, one letter for each axis longer than 1"

    def fill(choice: Sequence[str]) -> str:
        result = list(letters)
        for i, letter in zip(unknown, choice, strict=True):
            result[i] = letter
        return "".join(result)

    if len(unknown) == 1 and unknown[0] == len(letters) - 1 and shape[unknown[0]] <= 4 and "c" in free:
        free = ["c", *[a for a in free if a != "c"]]
    chosen = sorted(free[: len(unknown)], key="tzc".index)
    first = fill(chosen)
    others = [fill([a, *chosen[1:]]) + f", if the first is {_WORDS[a]}" for a in "tc" if a in free and a not in chosen]
    return f"{first} (or {others[0]})" if others else first
