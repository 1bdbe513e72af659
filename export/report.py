"""What `check` found out about a package as one HTML page: the proof, where it opens, whether it is ready to upload."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..zoo import html
from .consumers import CONSUMERS, Verdict
from .proof import Check

if TYPE_CHECKING:
    from ..zoo.package import Package
    from .upload import Item


def page_of(
    package: Package,
    checks: Sequence[Check],
    verdicts: Sequence[Verdict],
    items: Sequence[Item],
    kept: Sequence[Path] = (),
) -> str:
    """The page. kept: pictures (PNG) of tensors that differ, where the proof failed."""
    passed, ran = (sum(getattr(c, k) for c in checks) for k in ("passed", "ran"))
    answers = [v.answer for v in verdicts]
    figures = [
        (
            f"{passed} of {len(checks)}",
            "checks passed" + (f", {len(checks) - ran} left out" if ran < len(checks) else ""),
        ),
        (f"{answers.count('yes')} of {len(answers)}", "programs open it without loss"),
        (f"{answers.count('with loss')}", "with loss"),
        (f"{sum(i.done for i in items)} of {len(items)}", "points of an upload done"),
    ]
    words = {True: "ok", False: "FAILED"}
    proof = html.table(
        ("check", "what was found", ""),
        [(c.name, c.detail, words[c.passed] if c.ran or not c.passed else "left out") for c in checks],
    )
    rows = [
        (
            CONSUMERS[v.consumer],
            v.answer,
            "\n".join(r.reason for r in v.reasons),
            "\n".join(r.source for r in v.reasons),
        )
        for v in verdicts
    ]
    pictures = [html.Picture(p.read_bytes(), p.stem, "expected, found, difference") for p in kept]
    parts = [
        html.numbers(figures),
        html.section("Proof", proof, *([html.pictures(pictures, "zoom")] if pictures else [])),
        html.section("Where it opens", html.table(("program", "opens", "why not, or what is lost", "seen in"), rows)),
        html.section("Ready to upload", html.table(
            ("point", "", "what was found", "the line that mends it"),
            [(i.name, "ok" if i.done else "MISSING", i.detail, i.mend) for i in items])),
    ]  # fmt: skip
    lead = f"{package.description}  {package.path}, format {package.format}, version {package.version}"
    return html.page(package.name, lead, parts)
