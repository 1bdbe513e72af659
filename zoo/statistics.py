"""Statistics of a region of an image of any size: exact, grouped by the axes that are kept, in one or two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .axes import describe
from .errors import ValuesError, nearest
from .quantiles import PIECE, Histograms, Quantile, WholeGroups, bytes_a_group, key_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Read = Callable[[Mapping[str, slice]], NDArray[Any]]
    Rows = Iterator[tuple[NDArray[Any], NDArray[np.intp]]]
    Box = Mapping[str, slice]

MOMENTS = ("mean", "var", "std")
METHODS = ("linear", "inverted_cdf")
READ_BYTES = 2**26
"""What is read at once, if it is no more than a quarter of the memory allowed."""


@dataclass(frozen=True)
class Wanted:
    """One statistic.

    kind: `mean`, `var`, `std` (of the population: divided by the count) or `quantile`. over: letters of the axes that
    are reduced, in any order; those that the region lacks count as axes of size 1. q: 0 to 1, for a quantile; 0 is the
    minimum and 1 the maximum. method: between two values, `linear` or `inverted_cdf`, as in numpy.quantile.
    Raises ValuesError for another kind, method or q.
    """

    kind: str
    over: str
    q: float = 0.0
    method: str = "linear"

    def __post_init__(self) -> None:
        """Refuse what cannot be computed."""
        for word, legal in ((self.kind, (*MOMENTS, "quantile")), (self.method, METHODS)):
            if word not in legal:
                raise ValuesError(f"there is no statistic {word!r}{nearest(word, legal)}.", mend=", ".join(legal))
        if not 0.0 <= self.q <= 1.0:
            raise ValuesError(f"quantile {self.q} does not lie between 0 and 1.", mend="0.998 for 99.8 percent")


@dataclass(frozen=True)
class Counted:
    """What `statistics` found.

    values: for each Wanted a float64 array over the letters that are kept, in the order of the region; NaN for a group
    without finite numbers. rank_errors: for each Wanted the largest rank error that it can have, as a fraction of the
    count; 0 is exact. passes: how many times the pixels were read. left_out: how many NaN and infinities were left out.
    """

    values: tuple[NDArray[np.float64], ...]
    rank_errors: tuple[float, ...]
    passes: int
    left_out: int


def statistics(
    read: Read,
    letters: str,
    shape: Sequence[int],
    chunks: Sequence[int],
    dtype: np.dtype[Any],
    wanted: Sequence[Wanted],
    *,
    memory: int = 2**28,
    offset: Sequence[int] = (),
) -> Counted:
    """Statistics of a region: means and variances to float64 rounding, quantiles exact or to a rank error of 1e-4.

    read: {letter: slice within the region} -> the pixels, axes in the order of `letters`. shape, chunks: one size an
    axis; offset: where in its chunk the region begins, one an axis, 0 by default. dtype: of the pixels. memory: bytes
    that are worked in, beside one chunk.

    Each pixel is read once, or twice where the second look is needed for a quantile of numbers of more than 16 bits
    that do not fit into memory. Groups (one index along each letter that is kept) are worked on in batches, so that
    there can be any number. Statistics that keep different letters share the passes, as long as memory allows.
    Raises DtypeError for complex numbers and text, ValuesError for an empty region.
    Source: Chan, Golub and LeVeque 1983 (variances are merged pairwise); `quantiles` for the rest.
    """
    dtype = np.dtype(dtype)
    key_bits(dtype)
    sizes = dict(zip(letters, map(int, shape), strict=True))
    if not prod(sizes.values()):
        raise ValuesError(f"a region of {describe(letters, shape)} has no pixels.")
    chunk = {a: max(1, int(c)) for a, c in zip(letters, chunks, strict=True)}
    begin = dict(zip(letters, map(int, offset or [0] * len(letters)), strict=True))
    region = _Region(read, letters, sizes, chunk, begin, dtype, memory)
    sets: dict[str, dict[int, Wanted]] = {}
    for i, w in enumerate(wanted):
        sets.setdefault("".join(a for a in letters if a not in w.over), {})[i] = w
    tallies = [_Tally(region, kept, these) for kept, these in sets.items()]
    passes = left_out = 0
    rest = sorted(tallies, key=lambda tally: -tally.groups)
    while rest:
        traversal = _Traversal.of(region, rest)
        rest = [tally for tally in rest if tally not in (*traversal.closed, *traversal.opened)]
        passes += traversal.run()
        left_out = traversal.left_out
    values = {i: v for tally in tallies for i, v in tally.values.items()}
    errors = {i: e for tally in tallies for i, e in tally.errors.items()}
    order = range(len(wanted))
    return Counted(tuple(values[i] for i in order), tuple(errors[i] for i in order), passes, left_out)


@dataclass(frozen=True)
class _Region:
    """What is read, and how much of it at once."""

    read: Read
    letters: str
    sizes: Mapping[str, int]
    chunks: Mapping[str, int]
    offset: Mapping[str, int]
    dtype: np.dtype[Any]
    memory: int

    @property
    def quarter(self) -> int:
        """Bytes: one is read, one is for copies of it, two are for counts."""
        return self.memory // 4

    @property
    def whole(self) -> dict[str, slice]:
        return {a: slice(0, n) for a, n in self.sizes.items()}

    def nbytes(self, size: Mapping[str, int]) -> int:
        """Of a part with these sizes, whole along the other axes."""
        return (
            self.count(self.sizes)
            // self.count({a: self.sizes[a] for a in size})
            * self.count(size)
            * self.dtype.itemsize
        )

    def count(self, size: Mapping[str, int]) -> int:
        """How many there are in a part with these sizes, which may reach beyond the region."""
        return prod(min(n, self.sizes[a]) for a, n in size.items())

    def grown(self, size: Mapping[str, int]) -> dict[str, int]:
        """The sizes multiplied, the last axis first, as long as such a part may be read at once."""
        grown = dict(size)
        for a in reversed(grown):
            room = min(READ_BYTES, self.quarter) // self.nbytes(grown)
            grown[a] *= max(1, min(room, -(-self.sizes[a] // grown[a])))
        return grown

    def cut(self, box: Box, size: Mapping[str, int]) -> Iterator[dict[str, slice]]:
        """Parts of a box, in raster order, that begin and end on multiples of `size`, counted from a chunk's edge."""
        along = []
        for a, span in box.items():
            step = size.get(a)
            if step is None:
                along.append([span])
                continue
            first = (span.start + self.offset[a]) // step * step - self.offset[a]
            edges = range(first, span.stop, step)
            along.append([slice(max(e, span.start), min(e + step, span.stop)) for e in edges])
        for parts in product(*along):
            yield dict(zip(box, parts, strict=True))


class _Moments:
    """Count, mean and sum of squared differences from the mean, for several groups."""

    def __init__(self, groups: int) -> None:
        self.count, self.mean, self.m2 = np.zeros((3, groups))

    def add(self, rows: NDArray[Any], groups: NDArray[np.intp]) -> None:
        """rows: (row, number), finite; groups: the group of each row, none twice."""
        n = rows.shape[1]
        x = rows.astype(np.float64)
        mean = x.mean(axis=1)
        x -= mean[:, None]
        drift = x.mean(axis=1)  # what rounding left of the mean
        x *= x  # not a dot product: the threads of a BLAS cost more than they give here
        m2 = x.sum(axis=1) - n * drift**2
        before = self.count[groups]
        total = before + n
        delta = mean + drift - self.mean[groups]
        self.count[groups] = total
        self.mean[groups] += delta * (n / total)
        self.m2[groups] += m2 + delta**2 * (before / total) * n

    def get(self, kind: str) -> NDArray[np.float64]:
        """`mean`, `var` or `std`, one a group; NaN for a group without numbers."""
        empty = np.where(self.count > 0, 0.0, np.nan)
        if kind == "mean":
            return self.mean + empty
        variance = self.m2 / np.maximum(self.count, 1) + empty
        return np.sqrt(variance) if kind == "std" else variance


class _Tally:
    """The statistics that keep the same letters: what is wanted, and where the results go."""

    def __init__(self, region: _Region, kept: str, wanted: Mapping[int, Wanted]) -> None:
        self.region, self.kept, self.wanted = region, kept, wanted
        shape = tuple(region.sizes[a] for a in kept)
        self.groups = prod(shape)
        self.quantiles: list[Quantile] = [(w.q, w.method) for w in wanted.values() if w.kind == "quantile"]
        self.moments = any(w.kind in MOMENTS for w in wanted.values())
        self.values = {i: np.full(shape, np.nan) for i in wanted}
        self.errors = dict.fromkeys(wanted, 0.0)

    @property
    def bytes_a_group(self) -> int:
        return 24 + (bytes_a_group(self.region.dtype, self.quantiles) if self.quantiles else 0)


class _Batch:
    """The groups of a tally in a box. in_one: all pixels of the box come in one piece."""

    def __init__(self, tally: _Tally, box: Box, *, in_one: bool = False) -> None:
        self.tally = tally
        self.box = {a: box[a] for a in tally.kept}
        self.shape = tuple(s.stop - s.start for s in self.box.values())
        groups = prod(self.shape)
        region = tally.region
        self.moments = _Moments(groups) if tally.moments else None
        self.quantiles: WholeGroups | Histograms | None = None
        if tally.quantiles and in_one:
            self.quantiles = WholeGroups(groups, tally.quantiles)
        elif tally.quantiles:
            self.quantiles = Histograms(groups, region.dtype, tally.quantiles, region.quarter)

    @property
    def pending(self) -> bool:
        """Whether a second pass is needed."""
        return self.quantiles is not None and self.quantiles.pending

    def add(self, pixels: NDArray[Any], part: Box) -> int:
        """First pass: the pixels of a part of the box. -> how many of them are finite."""
        rows, groups = self._rows(pixels, part)
        finite = 0
        for some, which in _finite(rows, groups):
            finite += some.size
            if isinstance(self.quantiles, WholeGroups):
                self.quantiles.add(some, which)
            for block, of in _blocks(some, which):
                if self.moments:
                    self.moments.add(block, of)
                if isinstance(self.quantiles, Histograms):
                    self.quantiles.add(block, of)
        return finite

    def refine(self, pixels: NDArray[Any], part: Box) -> None:
        """Second pass: the same pixels again."""
        if self.quantiles is not None:
            for some, which in _finite(*self._rows(pixels, part)):
                for block, of in _blocks(some, which):
                    self.quantiles.refine(block, of)

    def close(self) -> None:
        """End the first pass."""
        if self.quantiles is not None:
            self.quantiles.close()

    def finish(self) -> None:
        """Put the results where they belong."""
        found = iter(zip(self.quantiles.finish(), self.quantiles.errors, strict=True) if self.quantiles else ())
        for i, w in self.tally.wanted.items():
            if w.kind == "quantile":
                values, errors = next(found)
                self.tally.errors[i] = max(self.tally.errors[i], float(errors.max()))
            elif self.moments:
                values = self.moments.get(w.kind)
            self.tally.values[i][tuple(self.box.values())] = values.reshape(self.shape)

    def _rows(self, pixels: NDArray[Any], part: Box) -> tuple[NDArray[Any], NDArray[np.intp]]:
        """Pixels -> (group, pixel), and which group of the batch each row belongs to."""
        letters, kept = self.tally.region.letters, self.tally.kept
        order = [letters.index(a) for a in (*kept, *(a for a in letters if a not in kept))]
        along = [np.arange(part[a].start - s.start, part[a].stop - s.start) for a, s in self.box.items()]
        groups = np.ravel_multi_index(np.ix_(*along), self.shape).reshape(-1) if along else np.zeros(1, np.intp)
        return pixels.transpose(order).reshape(groups.size, -1), groups


def _finite(rows: NDArray[Any], groups: NDArray[np.intp]) -> Rows:
    """The rows without their NaN and infinities."""
    if rows.dtype.kind != "f":
        yield rows, groups
        return
    finite = np.isfinite(rows)
    whole = finite.all(axis=1)
    if whole.all():
        yield rows, groups
        return
    if whole.any():
        yield rows[whole], groups[whole]
    for i in np.flatnonzero(~whole):
        if (row := rows[i][finite[i]]).size:
            yield row[None], groups[i : i + 1]


def _blocks(rows: NDArray[Any], groups: NDArray[np.intp]) -> Rows:
    """The rows in blocks of at most PIECE numbers."""
    count, length = rows.shape
    high = max(1, PIECE // length)
    for i in range(0, count, high):
        for k in range(0, length, PIECE):
            yield rows[i : i + high, k : k + PIECE], groups[i : i + high]


@dataclass
class _Traversal:
    """One pass over the region, or two: boxes in turn, each cut into what is read at once.

    closed: tallies whose groups lie in one box each and are finished with it. opened: those that go on to the end.
    size: of a box, along the letters that it does not take whole.
    """

    region: _Region
    closed: list[_Tally]
    opened: list[_Tally]
    size: dict[str, int]
    left_out: int = 0

    @classmethod
    def of(cls, region: _Region, tallies: Sequence[_Tally]) -> _Traversal:
        """For the first of the tallies (the one with most groups) and those that can go with it."""
        outer, room = tallies[0].kept, region.quarter
        closed, opened = [], []
        for tally in tallies:
            if set(tally.kept) >= set(outer):
                closed.append(tally)
            elif (need := tally.groups * tally.bytes_a_group) <= room or tally.groups == 1:
                opened.append(tally)
                room -= need
        a_group = sum(tally.bytes_a_group for tally in closed)
        size = {a: region.chunks[a] for a in outer}
        while region.nbytes(size) > region.quarter and region.count(size) * a_group > region.quarter:
            if region.count(size) == 1:
                break
            widest = max(size, key=lambda a: min(size[a], region.sizes[a]))
            size[widest] = -(-min(size[widest], region.sizes[widest]) // 2)
        return cls(region, closed, opened, region.grown(size))

    def run(self) -> int:
        """-> how many passes it took."""
        in_one = self.region.nbytes(self.size) <= self.region.quarter
        opened = [_Batch(tally, self.region.whole) for tally in self.opened]
        again: dict[int, list[_Batch]] = {}
        for i, box in enumerate(self.region.cut(self.region.whole, self.size)):
            closed = [_Batch(tally, box, in_one=in_one) for tally in self.closed]
            for pixels, part in self._read(box, in_one):
                finite = [batch.add(pixels, part) for batch in (*closed, *opened)]
                self.left_out += pixels.size - finite[0]
            again[i] = self._end(closed)
        rest = self._end(opened)
        if not rest and not any(again.values()):
            return 1
        for i, box in enumerate(self.region.cut(self.region.whole, self.size)):
            if rest or again[i]:
                for pixels, part in self._read(box, in_one):
                    for batch in (*rest, *again[i]):
                        batch.refine(pixels, part)
            for batch in again.pop(i):
                batch.finish()
        for batch in rest:
            batch.finish()
        return 2

    @staticmethod
    def _end(batches: Sequence[_Batch]) -> list[_Batch]:
        """End the first pass of batches. -> those that need a second."""
        for batch in batches:
            batch.close()
            if not batch.pending:
                batch.finish()
        return [batch for batch in batches if batch.pending]

    def _read(self, box: Box, in_one: bool) -> Iterator[tuple[NDArray[Any], Box]]:
        parts = [box] if in_one else self.region.cut(box, self.region.grown(self.region.chunks))
        for part in parts:
            yield self.region.read(part), part
