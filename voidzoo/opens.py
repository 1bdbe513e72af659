"""`voidzoo check PACKAGE --for all`: in which programs a package opens, and why not in the others."""

from __future__ import annotations

import json
import textwrap

import typer

from .export.consumers import CONSUMERS, Verdict, verdicts
from .screen import say
from .zoo.errors import RecipeError, nearest
from .zoo.package import open_package

WIDTH = 100


def opens(path: str, names: str, *, as_json: bool) -> None:
    """Tell it. Exit 1 where a program that was named, and not all, does not open the package."""
    found = verdicts(open_package(path), _chosen(names))
    if as_json:
        say(json.dumps({"package": path, "verdicts": [v.as_json() for v in found]}))
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


def _chosen(names: str) -> list[str]:
    """`all`, or names with commas. Raises RecipeError for one that is not known."""
    chosen = list(CONSUMERS) if names == "all" else names.split(",")
    for name in chosen:
        if name not in CONSUMERS:
            raise RecipeError(
                f"{name!r} is no program that packages are checked for{nearest(name, CONSUMERS)}.",
                mend=f"--for all, or some of {', '.join(CONSUMERS)}",
            )
    return chosen
