"""A result and its truth as parts that are judged by themselves, each read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

from ..axes import ORDER, SPACE, describe
from ..errors import SizeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..image import Image

    Box = Mapping[str, slice]


@dataclass(frozen=True)
class Pair:
    """An image that was predicted and the true one. Raises SizeError where their axes or sizes differ.

    Axes of size 1 that only one of them has count for nothing. planes: each plane of a stack is a part; else each
    volume. Times and channels are always parts of their own.
    """

    prediction: Image
    truth: Image
    planes: bool = False

    def __post_init__(self) -> None:
        """Refuse images that cannot be laid over each other."""
        found, true = ({a: n for a, n in i.sizes.items() if n > 1 or a in "yx"} for i in (self.prediction, self.truth))
        if found != true:
            each = (self.prediction, self.truth)
            where = " and ".join(f"{i.name} has {describe(i.axes, i.shape)}" for i in each)
            raise SizeError("a prediction and its truth differ in shape.", where, _mend(found, true))

    @property
    def name(self) -> str:
        """That of the prediction."""
        return self.prediction.name

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Of the axes that both have, and y and x: what is not 1."""
        return {a: n for a, n in self.truth.sizes.items() if n > 1 or a in "yx"}

    @cached_property
    def space(self) -> dict[str, int]:
        """The sizes of a part."""
        return {a: n for a, n in self.sizes.items() if a in (SPACE[1:] if self.planes else SPACE)}

    def parts(self) -> Iterator[dict[str, int]]:
        """Where each part lies along the other axes, in raster order."""
        others = {a: n for a, n in self.sizes.items() if a not in self.space}
        for at in product(*map(range, others.values())):
            yield dict(zip(others, at, strict=True))

    def blocks(self, most: int) -> Iterator[dict[str, slice]]:
        """A part in pieces of at most about `most` pixels, in raster order, of whole chunks where these are small."""
        side = {}
        for a, n in self.space.items():
            chunks = (i.chunks[i.axes.index(a)] for i in (self.prediction, self.truth))
            side[a] = min(n, max(chunks))
        while prod(side.values()) > most:
            longest = max(side, key=lambda a: side[a])
            side[longest] = -(-side[longest] // 2)
        for a in reversed(side):
            side[a] = min(self.space[a], side[a] * max(1, most // prod(side.values())))
        edges = [[slice(s, min(s + side[a], n)) for s in range(0, n, side[a])] for a, n in self.space.items()]
        for box in product(*edges):
            yield dict(zip(self.space, box, strict=True))

    def middle(self, most: int) -> tuple[dict[str, int], dict[str, slice]]:
        """Where the square of at most `most` x `most` pixels in the middle lies: in which plane, and its y and x."""
        at = {a: n // 2 for a, n in self.sizes.items() if a not in "yx"}
        box = {}
        for a in "yx":
            start = max(0, (self.sizes[a] - most) // 2)
            box[a] = slice(start, min(start + most, self.sizes[a]))
        return at, box

    def read(self, part: Mapping[str, int], box: Box) -> tuple[NDArray[Any], NDArray[Any]]:
        """(truth, prediction) of a box of a part, with the axes of `space`."""
        return read(self.truth, part, box), read(self.prediction, part, box)

    def close(self) -> None:
        """Drop handles and decoded pixels of both."""
        self.prediction.close()
        self.truth.close()


def read(image: Image, part: Mapping[str, int], box: Box) -> NDArray[Any]:
    """The pixels of a box, its axes alone; one index along each other axis."""
    region = {a: slice(part.get(a, 0), part.get(a, 0) + 1) for a in ORDER if a in image.axes} | dict(box)
    pixels = image.read({a: s for a, s in region.items() if a in image.axes})
    return pixels.reshape([s.stop - s.start for a, s in box.items()])


def _mend(found: Mapping[str, int], true: Mapping[str, int]) -> str:
    if sorted(found.values()) == sorted(true.values()) and set(found) != set(true):
        return f"--axes {''.join(true)}, if these are the axes of the prediction; --truth-axes for those of the truth"
    return "the truth of this image, of the same shape"
