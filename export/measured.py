"""What a package did on images that its training has not seen: figures with their spread, and the words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

UNITS = {"psnr": "dB", "ssim": "", "removed": "grey values", "leak": "", "lag x": "", "lag y": ""}
SPREAD = "Mean and standard deviation over the squares. Of the half of them that shows most:"
"""What stands under the table and above the best and the worst square."""
PICTURES = {"best": "best.png", "worst": "worst.png"}
"""Of the best and the worst square, in packages that `export` measured."""
NAMES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "removed": "taken away (standard deviation)",
    "leak": "correlation of what was taken away with the result",
    "lag x": "correlation of what was taken away with its neighbours along x",
    "lag y": "correlation of what was taken away with its neighbours along y",
}


@dataclass(frozen=True)
class Figure:
    """Mean and standard deviation over all squares, after the network, and before it where that means something."""

    name: str
    after: tuple[float, float]
    before: tuple[float, float] | None = None
    gain: tuple[float, float] | None = None


@dataclass(frozen=True)
class Case:
    """One square: where it is, and what was measured there, in words."""

    image: str
    where: str
    said: str


@dataclass(frozen=True)
class Measured:
    """images, truths: their names; squares: how many, of what side (pixels). best, worst: by the gain in PSNR, or
    where there is no truth by how much of the result is found again in what was taken away."""

    images: tuple[str, ...]
    truths: tuple[str, ...]
    squares: int
    side: int
    figures: tuple[Figure, ...]
    best: Case
    worst: Case

    def to_json(self) -> dict[str, Any]:
        """For `config.voidzoo.measured`."""
        return {
            "images": list(self.images), "truths": list(self.truths), "squares": self.squares, "side": self.side,
            "figures": {
                f.name: {k: list(pair) for k in ("before", "after", "gain") if (pair := getattr(f, k)) is not None}
                for f in self.figures
            },
            **{k: vars(getattr(self, k)) for k in ("best", "worst")},
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """The opposite of `to_json`. Raises KeyError, TypeError, ValueError, AttributeError for anything else."""
        figures = tuple(
            Figure(name, _pair(pairs["after"]), *(_pair(pairs[k]) if k in pairs else None for k in ("before", "gain")))
            for name, pairs in found["figures"].items()
        )
        if unknown := [f.name for f in figures if f.name not in NAMES]:
            raise KeyError(*unknown)
        return cls(
            tuple(map(str, found["images"])), tuple(map(str, found["truths"])), int(found["squares"]),
            int(found["side"]), figures, Case(**found["best"]), Case(**found["worst"]),
        )  # fmt: skip

    def how(self) -> str:
        """What was measured how, in words."""
        images, truths = ", ".join(self.images), ", ".join(self.truths)
        squares = f"{self.squares} squares of {self.side} x {self.side} pixels"
        how = f"Measured in {squares} of {images}, which the training has not seen"
        if truths:
            how += (
                f", against {truths}. PSNR in dB and SSIM after the factor and the offset that bring each plane "
                "nearest to its partner; data range: largest minus smallest grey value of the partner. The partner has "
                "noise of its own: it is a reference and not the truth."
            )
        else:
            how += (
                ". There is no clean image of this place, so what was taken away is looked at: white noise has no "
                "correlation with the result or with its neighbours, so numbers near 0 are good."
            )
        return how

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads, and a row a figure: its name, and mean and standard deviation over the squares."""
        rows = [
            (f"{NAMES[f.name]}{f' ({UNITS[f.name]})' * bool(UNITS[f.name])}",
             *([_said(f.before), _said(f.after), _said(f.gain)] if self.truths else [_said(f.after)]))
            for f in self.figures
        ]  # fmt: skip
        return ("", "as it came", "denoised", "gain") if self.truths else ("", ""), rows

    def text(self) -> str:
        """Markdown: what was measured how, a table, what the two pictures show."""
        head, rows = self.table()
        top = ["| " + " ".join(f"{h} |" if h else "|" for h in head), "|---" * len(head) + "|"]
        return "\n".join([
            self.how(), "", *top, *("| " + " | ".join(row) + " |" for row in rows), "", SPREAD, "",
            f"Best: {self.best.image}, {self.best.where}: {self.best.said}.", "",
            f"Worst: {self.worst.image}, {self.worst.where}: {self.worst.said}.",
        ])  # fmt: skip


def _pair(found: Sequence[Any]) -> tuple[float, float]:
    mean, spread = found
    return float(mean), float(spread)


def _said(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:.3g} ± {pair[1]:.2g}"
