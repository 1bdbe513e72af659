"""What the verbs that make packages do: export, convert, pack."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import api
from .infer.report import size_text
from .screen import say
from .zoo.package import Package


def export(run_folder: Path, out: Path, settings: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo export`."""
    api.need_torch("export")
    from .export.about import find_about
    from .export.pack import export_run

    about = settings["about"] or find_about(Path.cwd())
    if about is not None and not as_json:
        say(f"about    {about}")
    checks, tell = _told(as_json)
    package = export_run(run_folder, out, watch=tell, **settings)
    _say_written(package, out, checks, as_json=as_json)


def convert(path: str, out: Path, settings: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo convert`."""
    checks, tell = _told(as_json)
    package = api.convert(path, out, watch=tell, **settings)
    _say_written(package, out, checks, package.ours["source"]["changes"], as_json=as_json)


def pack(model: str, out: Path, settings: dict[str, Any], *, as_json: bool) -> None:
    """`voidzoo pack`."""
    checks, tell = _told(as_json)
    package = api.pack(model, out, watch=tell, **settings)
    packed = package.ours["packed"]
    sizes = [
        f"{a}: size {m['min']}{'' if m['fixed'] else ' + n * ' + str(m['step'])}, halo {m['halo']}"
        for a, m in packed["measured"].items()
    ]
    _say_written(package, out, checks, [*sizes, *packed["notes"]], as_json=as_json)


def _told(as_json: bool) -> tuple[list[Any], Callable[[Any], None]]:
    """The checks of a proof, and a listener that collects and says them."""
    checks: list[Any] = []

    def tell(check: Any) -> None:
        checks.append(check)
        if not as_json:
            say(f"check    {check}")

    return checks, tell


def _say_written(
    package: Package, out: Path, checks: list[Any], notes: Sequence[str] = (), *, as_json: bool
) -> None:  # fmt: skip
    """A package that got its name: what there is to say of it, where it lies, and what comes next."""
    if as_json:
        from .export.proof import summary

        found = {"package": str(out), "name": package.name, "checks": summary(checks)}
        say(json.dumps(found | ({"notes": list(notes)} if notes else {})))
        return
    for note in notes:
        say(f"note     {note}")
    say(f"written  {out}   {size_text(out.stat().st_size)}   {package.name}")
    say("next     " + shlex.join(["voidzoo", "predict", str(out), "IMAGE", "-o", "OUT.ome.zarr"]))
