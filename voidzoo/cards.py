"""`voidzoo card PACKAGE`: the proof and the verdicts of a package, and with them its card."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from .export.card import Card, check_place, make_card
from .export.consumers import verdicts
from .export.proof import prove
from .screen import fetching, say
from .zoo.package import open_package

FOLDER = Path("model_cards")
"""Where cards lie unless another place is named."""


def card(path: str, out: Path | None, *, overwrite: bool, as_json: bool) -> Card:
    """Prove the package, write its card, tell what the card lacks."""
    package = open_package(path, watch=fetching(quiet=as_json))
    out = out or FOLDER / f"{package.name.replace(' ', '-')}.md"
    check_place(out, overwrite=overwrite)
    with tempfile.TemporaryDirectory() as folder:
        checks = prove(package, None, Path(folder), (lambda _c: None) if as_json else lambda c: say(f"check    {c}"))
    made = make_card(package, checks, verdicts(package), out.stem)
    made.write(out, overwrite=overwrite)
    if as_json:
        say(json.dumps({"card": str(out), "pictures": list(made.pictures), "missing": made.missing}))
        return made
    say(f"card     {out}" + (f"   and {len(made.pictures)} pictures" if made.pictures else ""))
    for part, mend in made.missing.items():
        say(f"draft    {part}: TODO\n         mend: {mend}")
    return made
