"""Quantiles of more numbers than memory holds: order-preserving integer keys, histograms of them, one refinement.

The first pass counts the upper bits of every key. Where a key has at most 16 bits that is the whole answer. Otherwise
the counts name the bins that hold the wanted ranks, and a second pass looks into those alone. Keys of floats are as
dense as the floats, so a hot pixel or a heavy tail costs nothing; many close numbers far from 0 share a bin, and are
told apart in the second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DtypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

RANK_ERROR = 1e-4
"""How far the rank of a returned value may lie from the wanted one, as a fraction of the count; most are exact."""
FEWEST_BITS, MOST_BITS = 16, 22
"""How many bits of a longer key the first pass counts: 512 kB to 32 MB of counts a group."""
PIECE = 2**18
"""How many numbers are worked on at once: 2 MB as float64, which stay in the cache."""
GATHER_BYTES = 2**22
"""What a bin of 64-bit keys may hold in the second pass, at least, before it is thinned out."""

Quantile = tuple[float, str]
"""q from 0 to 1, and how to choose between two values: `linear` or `inverted_cdf`, as in numpy.quantile."""


def percentiles(values: NDArray[Any], wanted: Sequence[float]) -> NDArray[np.float64]:
    """Percentiles (0 to 100, linear) of finite numbers that memory holds, any axes, at least one.

    As numpy.percentile, which would load masked arrays first: 25 ms for a command that has nothing else to do.
    """
    ranks = np.asarray(wanted) / 100 * (values.size - 1)
    return np.interp(ranks, np.arange(values.size), np.sort(values, axis=None))


def key_bits(dtype: np.dtype[Any]) -> int:
    """Bits of the key of a dtype: 8, 16, 32 or 64. Raises DtypeError for what cannot be ordered by such keys."""
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise DtypeError(f"{dtype} numbers cannot be put in order.", mend="bool, (u)int8 to 64 or float16 to 64")
    return dtype.itemsize * 8


def keys(values: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers of the same size and order as `values` (native byte order); NaN keys lie beyond infinity.

    Floats: a positive number's bits with the sign set, a negative one's bits inverted (IEEE 754 totalOrder).
    """
    bits = key_bits(values.dtype)
    raw: NDArray[Any] = np.ascontiguousarray(values).view(f"u{bits // 8}")
    if values.dtype.kind in "bu":
        return raw
    sign = raw.dtype.type(1 << (bits - 1))
    if values.dtype.kind == "i":
        return raw ^ sign
    negative = (raw.view(f"i{bits // 8}") >> (bits - 1)).view(raw.dtype)  # all bits set, or none
    return raw ^ (negative | sign)


def numbers(key: NDArray[np.uint64], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """The numbers that keys stand for (the nearest float64, for integers beyond 2**53)."""
    bits = key_bits(dtype)
    raw: NDArray[Any] = key.astype(f"u{bits // 8}")
    sign = raw.dtype.type(1 << (bits - 1))
    if dtype.kind in "bu":
        return raw.astype(np.float64)
    if dtype.kind == "i":
        return (raw ^ sign).view(dtype).astype(np.float64)
    return np.where(raw & sign, raw ^ sign, ~raw).view(dtype).astype(np.float64)


def ranks(count: int, quantile: Quantile) -> tuple[int, int, float]:
    """The ranks (0 to count - 1) that a quantile lies between, and the weight of the upper one.

    Source: Hyndman and Fan 1996, definitions 7 (`linear`) and 1 (`inverted_cdf`), rounded as numpy does.
    """
    q, method = quantile
    if method == "inverted_cdf":
        rank = min(max(int(np.ceil(count * q - 1)), 0), count - 1)
        return rank, rank, 0.0
    at = q * (count - 1)
    lower = int(np.floor(at))
    return lower, lower + (at > lower), at - lower


def between(lower: NDArray[np.float64], upper: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear interpolation as numpy.quantile does it, also where the difference is too large for float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        step = upper - lower
        value = np.where(weight < 0.5, lower + step * weight, upper - step * (1 - weight))
        return np.where(np.isfinite(step), value, lower * (1 - weight) + upper * weight)


class WholeGroups:
    """Exact quantiles of groups that come whole, one a row."""

    def __init__(self, groups: int, quantiles: Sequence[Quantile]) -> None:
        self.quantiles = quantiles
        self.errors = np.zeros((len(quantiles), groups))
        self._values = np.full((len(quantiles), groups), np.nan)

    pending = False

    def add(self, rows: NDArray[Any], groups: NDArray[np.intp]) -> None:
        """rows: (row, number), finite: all numbers of each group; groups: which one each row is."""
        length = rows.shape[1]
        if length >= 1 << min(key_bits(rows.dtype) - 2, 17):  # counting is faster than sorting
            for row, group in zip(rows, groups.tolist(), strict=True):
                self._values[:, group] = self._counted(row[None])
            return
        found = [ranks(length, quantile) for quantile in self.quantiles]
        lower, upper = [low for low, _, _ in found], [up for _, up, _ in found]
        ordered = np.partition(rows, np.unique(lower + upper), axis=1)
        low, high = (ordered[:, at].T.astype(np.float64) for at in (lower, upper))
        self._values[:, groups] = between(low, high, np.array([[weight] for _, _, weight in found]))

    def _counted(self, row: NDArray[Any]) -> NDArray[np.float64]:
        counts = Histograms(1, row.dtype, self.quantiles, 8 * row.size, tolerance=0.0)
        parts = [row[:, start : start + PIECE] for start in range(0, row.size, PIECE)]
        for part in parts:
            counts.add(part, np.zeros(1, np.intp))
        counts.close()
        for part in parts if counts.pending else ():
            counts.refine(part, np.zeros(1, np.intp))
        return counts.finish()[:, 0]

    def close(self) -> None:
        """Nothing is left to do."""

    def refine(self, rows: NDArray[Any], groups: NDArray[np.intp]) -> None:
        """There is no second pass."""

    def finish(self) -> NDArray[np.float64]:
        """The quantiles, (quantile, group); NaN for a group that did not come."""
        return self._values


class CountedBin:
    """A bin in which every key is counted by its lower bits, which lie from `first` to `last`: exact."""

    error = 0

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self._table = np.zeros(last - first + 1, np.int64)

    def add(self, low: NDArray[Any]) -> None:
        """Count keys by their lower bits."""
        np.add.at(self._table, (low - low.dtype.type(self._first)).astype(np.intp), 1)

    def at(self, rank: int) -> int:
        """The lower bits of the key of a rank within the bin."""
        return self._first + int(np.searchsorted(np.cumsum(self._table), rank, side="right"))


@dataclass
class ThinnedBin:
    """A bin of 64-bit keys: all of them while they fit into one buffer, then every second one of sorted buffers.

    A buffer on level k stands for 2**k keys each. Merging two drops every second key and moves a rank by 2**k at most;
    `error` is the sum. Source: Munro and Paterson 1980; Manku, Rajagopalan and Lindsay 1998.
    """

    buffer: int
    error: int = 0
    odd: int = 0
    levels: list[NDArray[np.uint64] | None] = field(default_factory=list)
    fresh: list[NDArray[np.uint64]] = field(default_factory=list)

    @classmethod
    def expecting(cls, inside: int, room: int, drift: float) -> ThinnedBin:
        """For `inside` numbers: all are kept if `room` bytes allow, else no rank moves by more than `drift`."""
        buffer = max(room // 16, 2**12)  # 8 bytes a key, held twice while they are joined
        while buffer < inside and _drift(inside, buffer) > drift:
            buffer *= 2
        return cls(buffer)

    def add(self, low: NDArray[Any]) -> None:
        """Keep keys; thin out what fills a buffer."""
        self.fresh.append(low.copy())
        if sum(part.size for part in self.fresh) <= self.buffer:
            return
        joined = np.concatenate(self.fresh)
        full = joined.size // self.buffer * self.buffer
        for start in range(0, full, self.buffer):
            self._carry(np.sort(joined[start : start + self.buffer]))
        self.fresh = [joined[full:].copy()]

    def _carry(self, keys: NDArray[np.uint64]) -> None:
        for level, other in enumerate(self.levels):
            if other is None:
                self.levels[level] = keys
                return
            keys = np.sort(np.concatenate([other, keys]))[self.odd :: 2]
            self.odd ^= 1  # so that one side loses as often as the other
            self.error += 1 << level
            self.levels[level] = None
        self.levels.append(keys)

    def at(self, rank: int) -> int:
        """The lower bits of the key whose weight covers a rank within the bin."""
        kept = [(part, 1) for part in self.fresh]
        kept += [(part, 1 << level) for level, part in enumerate(self.levels) if part is not None]
        low = np.concatenate([part for part, _ in kept])
        weight = np.concatenate([np.full(part.size, w, np.int64) for part, w in kept])
        order = np.argsort(low)
        at = int(np.searchsorted(np.cumsum(weight[order]), rank, side="right"))
        return int(low[order[min(at, low.size - 1)]])


def _drift(inside: int, buffer: int) -> float:
    """The most that ThinnedBin moves a rank: on each level, 2**k for each of inside / buffer / 2**(k + 1) merges."""
    return float(np.ceil(np.log2(inside / buffer))) * inside / (2 * buffer)


def bytes_a_group(dtype: np.dtype[Any], quantiles: Sequence[Quantile]) -> int:
    """The least memory that the quantiles of one group need, whichever pass needs more."""
    bits, inner = key_bits(dtype), sum(q not in (0.0, 1.0) for q, _ in quantiles)
    if not inner:
        return 16
    second = {32: 8 << (32 - FEWEST_BITS), 64: GATHER_BYTES}.get(bits, 0)
    return (8 << min(bits, FEWEST_BITS)) + 2 * inner * second


@dataclass
class _Sought:
    """A bin that holds wanted ranks: how many numbers lie in it, and (quantile, side, rank within) of the ranks."""

    inside: int
    wanted: list[tuple[int, int, int]] = field(default_factory=list)
    bin: CountedBin | ThinnedBin | None = None


class Histograms:
    """Quantiles of several groups at once: `add` everything, `close`; if `pending`, `refine` everything; `finish`.

    Where a second pass is made, all ranks are refined in it, also those that were near enough.

    memory: bytes for the counts, in each pass. tolerance: the rank error, as a fraction of the count, that needs no
    second pass. errors: a bound for that of each (quantile, group); 0 where the value is exact.
    """

    def __init__(
        self,
        groups: int,
        dtype: np.dtype[Any],
        quantiles: Sequence[Quantile],
        memory: int,
        tolerance: float = RANK_ERROR,
    ) -> None:
        self.dtype, self.quantiles, self.memory, self.tolerance = dtype, quantiles, memory, tolerance
        bits = key_bits(dtype)
        if all(q in (0.0, 1.0) for q, _ in quantiles):
            upper = 0  # minimum and maximum need no counts
        else:
            room = int(np.log2(max(1, memory // (8 * groups))))
            upper = min(bits, max(FEWEST_BITS, min(MOST_BITS, room)))
        self._upper, self._shift = upper, bits - upper
        self._count = np.zeros(groups, np.int64)
        self._least = np.full(groups, 2**64 - 1, np.uint64)
        self._most = np.zeros(groups, np.uint64)
        self._table = np.zeros((groups, 1 << upper if upper else 0), np.int64)
        self._keys = np.zeros((len(quantiles), groups, 2), np.uint64)
        self._weight = np.zeros((len(quantiles), groups))
        self._sought: dict[int, dict[int, _Sought]] = {}
        self.errors = np.zeros((len(quantiles), groups))
        self.pending = False

    def add(self, rows: NDArray[Any], groups: NDArray[np.intp]) -> None:
        """First pass. rows: (row, number), finite; groups: the group of each row, none twice."""
        key = keys(rows)
        self._count[groups] += rows.shape[1]
        self._least[groups] = np.minimum(self._least[groups], key.min(axis=1))
        self._most[groups] = np.maximum(self._most[groups], key.max(axis=1))
        if self._upper:
            index = (key >> key.dtype.type(self._shift)).astype(np.intp)
            index += (groups << self._upper)[:, None]
            np.add.at(self._table.reshape(-1), index.reshape(-1), 1)

    def close(self) -> None:
        """End the first pass: find the key of each rank, or the bin in which a second pass is to look for it."""
        for group in np.flatnonzero(self._count).tolist():
            before = np.cumsum(self._table[group])
            for k, quantile in enumerate(self.quantiles):
                lower, upper, self._weight[k, group] = ranks(int(self._count[group]), quantile)
                for side, rank in enumerate((lower, upper)):
                    self._find(before, group, (k, side, rank))
        self._table = np.zeros((0, 0), np.int64)
        if not self.pending:
            self._sought = {}

    def _find(self, before: NDArray[np.int64], group: int, wanted: tuple[int, int, int]) -> None:
        k, side, rank = wanted
        count, least, most = int(self._count[group]), int(self._least[group]), int(self._most[group])
        if rank in (0, count - 1):
            self._keys[k, group, side] = most if rank else least
            return
        number = int(np.searchsorted(before, rank, side="right"))
        below = int(before[number - 1]) if number else 0
        inside = int(before[number]) - below
        middle = (number << self._shift) + (1 << self._shift >> 1)
        self._keys[k, group, side] = min(max(middle, least), most)
        if self._shift:
            self.errors[k, group] = max(self.errors[k, group], inside / count)
            self.pending |= inside > self.tolerance * count
            sought = self._sought.setdefault(group, {}).setdefault(number, _Sought(inside))
            sought.wanted.append((k, side, rank - below))

    def refine(self, rows: NDArray[Any], groups: NDArray[np.intp]) -> None:
        """Second pass over the same numbers."""
        for row, group in zip(rows, groups.tolist(), strict=True):
            if not (sought := self._sought.get(group)):
                continue
            key = keys(row)
            number = key >> key.dtype.type(self._shift)
            for at, what in sought.items():
                if (low := key[number == key.dtype.type(at)]).size:
                    self._bin(group, at, what).add(low & low.dtype.type((1 << self._shift) - 1))

    def _bin(self, group: int, number: int, what: _Sought) -> CountedBin | ThinnedBin:
        if what.bin is None:
            start = number << self._shift
            first = max(int(self._least[group]) - start, 0)
            last = min(int(self._most[group]) - start, (1 << self._shift) - 1)
            room = self.memory // sum(map(len, self._sought.values()))
            if 8 * (last - first + 1) <= max(8 << FEWEST_BITS, room):
                what.bin = CountedBin(first, last)
            else:
                drift = self.tolerance * int(self._count[group])
                what.bin = ThinnedBin.expecting(what.inside, max(GATHER_BYTES, room), drift)
        return what.bin

    def finish(self) -> NDArray[np.float64]:
        """The quantiles, (quantile, group); NaN for a group without numbers."""
        for group, bins in self._sought.items():
            for k in {k for what in bins.values() for k, _, _ in what.wanted}:
                self.errors[k, group] = 0.0
            for number, what in bins.items():
                found = self._bin(group, number, what)
                for k, side, rank in what.wanted:
                    self._keys[k, group, side] = (number << self._shift) + found.at(rank)
                    self.errors[k, group] = max(self.errors[k, group], found.error / int(self._count[group]))
        self._sought = {}
        value = numbers(self._keys, self.dtype)
        return np.where(self._count > 0, between(value[..., 0], value[..., 1], self._weight), np.nan)
