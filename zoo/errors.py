"""What went wrong, where, and how to mend it: every refusal of voidzoo is one of these.

The kinds are builtins too, so that a caller who knows no voidzoo can catch `ValueError` or `OSError`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")
"""What moves the cursor, colours, rings, turns the writing direction, or cannot be written as UTF-8 or XML."""


def visible(text: str) -> str:
    """A text of strangers as it may be printed: line breaks and tabs stay, other control characters become U+FFFD."""
    return UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n")) if UNSEEN.search(text) else text


class VoidzooError(Exception):
    """A refusal in three parts: `what` (one line, with numbers), `where` or why, and a `mend` that can be pasted."""

    exit_code = 2

    def __init__(self, what: str, where: str = "", mend: str = "") -> None:
        super().__init__(what, where, mend)
        self.what = what
        self.where = where
        self.mend = mend

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return visible("\n".join(lines))


class AxesError(VoidzooError, ValueError):
    """Axes unknown, contradicting, or not those that the model reads."""


class ImageError(VoidzooError, OSError):
    """A file that is missing, truncated or not an image."""


class DtypeError(VoidzooError, TypeError):
    """A dtype that is no intensity: complex, text, records."""


class ValuesError(VoidzooError, ValueError):
    """Pixels that no model can take: NaN, infinity, a constant image."""


class SizeError(VoidzooError, ValueError):
    """An image, patch, tile or block of a size that cannot work."""


class RecipeError(VoidzooError, ValueError):
    """A setting that does not exist, or a value that it cannot have."""


class PackageError(VoidzooError, ValueError):
    """A model package that is broken, changed since it was written, or of a kind that cannot be run."""


class OutputError(VoidzooError, OSError):
    """A place to write to that is taken, full, or holds the result of something else."""


class NetworkError(VoidzooError, ConnectionError):
    """An address that cannot be reached, refuses, or does not send what it should."""


class ResourceError(VoidzooError, MemoryError):
    """More memory or disk than there is."""


class DeviceError(VoidzooError, RuntimeError):
    """A device that was asked for and is not there."""

    exit_code = 3


class DependencyError(VoidzooError, ImportError):
    """A library that this verb needs and that is not installed."""

    exit_code = 3


class TrainingError(VoidzooError, RuntimeError):
    """A training that cannot go on, e.g. a loss that became NaN."""

    exit_code = 1


class ProofFailed(VoidzooError, ArithmeticError):  # noqa: N818  (public name of the API)
    """The runs of a package that must agree do not; the differing tensors were kept."""

    exit_code = 1


class BlocksFailed(VoidzooError, RuntimeError):  # noqa: N818
    """Some blocks could not be predicted; the finished ones are kept."""

    exit_code = 1


def nearest(word: str, legal: Iterable[str]) -> str:
    """The legal word closest to `word`, as a hint: `' (did you mean epochs?)'`, or an empty string."""
    match = difflib.get_close_matches(word, list(legal), n=1, cutoff=0.6)
    return f" (did you mean {match[0]}?)" if match else ""
