"""`voidzoo check PACKAGE`: its proof, in which programs it opens, whether it is ready to be uploaded."""

from __future__ import annotations

import json
import shlex
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .export.consumers import CONSUMERS, Verdict, verdicts
from .screen import fetching, say
from .zoo.errors import RecipeError, nearest
from .zoo.files import replace_file
from .zoo.package import Package, open_package

if TYPE_CHECKING:
    from .export.proof import Check

WIDTH = 100


def check(path: str, keep: Path | None, report: Path | None, *, trust_code: bool, as_json: bool) -> None:
    """Prove it, and write all that can be told of it into a report if one is wanted, also where the proof fails."""
    from .export.proof import prove, summary

    package = open_package(path, watch=fetching(quiet=as_json))
    checks: list[Check] = []

    def tell(check: Check) -> None:
        checks.append(check)
        if not as_json:
            say(f"check    {check}")

    with tempfile.TemporaryDirectory() as folder:
        try:
            prove(package, None, keep or Path(folder), tell, trust_code=trust_code)
        finally:
            if report is not None and checks:
                _report(package, checks, sorted((keep or Path(folder)).glob("*.png")), report)
    if as_json:
        say(json.dumps({"package": package.named, "name": package.name, "checks": summary(checks)}))
    else:
        say(f"proved   {package.name}")
        if report is not None:
            say(f"report   {report}")


def _report(package: Package, checks: Sequence[Check], pictures: Sequence[Path], report: Path) -> None:
    from .export.report import page_of
    from .export.upload import ready

    text = page_of(package, checks, verdicts(package), ready(package), pictures)
    report.parent.mkdir(parents=True, exist_ok=True)
    replace_file(report, lambda p: p.write_text(text, encoding="utf-8"))


def opens(path: str, names: str, *, as_json: bool) -> None:
    """Tell it. Exit 1 where a program that was named, and not all, does not open the package, or it is not ready."""
    if names == "upload":
        _upload(path, as_json=as_json)
        return
    package = open_package(path, watch=fetching(quiet=as_json))
    found = verdicts(package, _chosen(names))
    if as_json:
        say(json.dumps({"package": package.named, "verdicts": [v.as_json() for v in found]}))
    else:
        say(opens_text(found))
    if names != "all" and any(v.answer == "no" for v in found):
        raise typer.Exit(1)


def opens_text(found: list[Verdict]) -> str:
    """One program a line, the reasons under it."""
    width = max(len(CONSUMERS[v.consumer]) for v in found)
    lines = []
    for verdict in found:
        lines.append(f"{CONSUMERS[verdict.consumer]:<{width}}  {verdict.answer}")
        for rule in verdict.reasons:
            lines += textwrap.wrap(
                f"{rule.reason} ({rule.source})", WIDTH, initial_indent="    ", subsequent_indent="    "
            )
    return "\n".join(lines)


def _upload(path: str, *, as_json: bool) -> None:
    from .export.proof import check_in_core
    from .export.upload import Item, ready

    package = open_package(path, watch=fetching(quiet=as_json))
    items = ready(package)
    tested = check_in_core(package)
    mend = "" if tested.passed else shlex.join(["bioimageio", "test", package.path])
    items.insert(0, Item("own test", tested.passed, f"{tested.name}: {tested.detail}", mend))
    if as_json:
        say(
            json.dumps(
                {"package": package.named, "ready": all(i.done for i in items), "items": [i.as_json() for i in items]}
            )
        )
    else:
        for item in items:
            say(f"{'ok' if item.done else 'MISSING':<8} {item.name:<14} {item.detail}")
            if not item.done:
                say(f"{'':<8} {'':<14} mend: {item.mend}")
    if not all(i.done for i in items):
        raise typer.Exit(1)


def _chosen(names: str) -> list[str]:
    """`all`, or names with commas; `upload` is one by itself. Raises RecipeError for one that is not known."""
    chosen = list(CONSUMERS) if names == "all" else names.split(",")
    for name in chosen:
        if name not in CONSUMERS:
            raise RecipeError(
                f"{name!r} is no program that packages are checked for{nearest(name, CONSUMERS)}.",
                mend=f"--for all, upload, or some of {', '.join(CONSUMERS)}",
            )
    return chosen
