"""`voidzoo list` and `voidzoo show`: the catalogue, and one card of it."""

from __future__ import annotations

import json
import shlex
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .export.consumers import CONSUMERS, verdicts
from .infer.report import size_text
from .screen import fetching, plain, say, warn
from .zoo.listing import Model, list_models, method_of, trained_on, validation_of
from .zoo.loose import listed, mapped
from .zoo.package import Package, Tensor, TensorAxis, open_package

if TYPE_CHECKING:
    from collections.abc import Sequence

WIDTH = 100
HEADS = ("model", "version", "method", "axes", "channels", "trained on", "size", "licence")
CUT = 36
"""Letters of a cell of the list."""


def list_(words: Sequence[str], *, online: bool, as_json: bool) -> None:
    """`voidzoo list`."""
    found = list_models(words, online=online, watch=fetching(quiet=as_json))
    if as_json:
        say(json.dumps([m.as_json() for m in found]))
        return
    if found:
        say(list_text(found))
    else:
        of = f" with {' '.join(words)}" if words else ""
        say(f"no models here{of}; a URL or an id of bioimage.io fetches one, --all shows those that it has")
    for model in found:
        if model.problem:
            warn(f"note     {plain(model.word)}: {plain(model.problem)}")


def list_text(models: Sequence[Model]) -> str:
    """One model a line, under a line of heads."""
    rows = [HEADS, *(_row(m) for m in models)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADS))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(model: Model) -> tuple[str, ...]:
    channels = "" if not model.channels else str(len(model.channels))
    size = size_text(model.size) if model.size is not None else "" if model.path else "not here"
    cells = (model.name, model.version, model.method, model.axes, channels, model.trained_on, size, model.licence)
    return tuple(_cut(plain(cell).replace("\n", " ")) for cell in cells)


def _cut(text: str) -> str:
    return text if len(text) <= CUT else text[: CUT - 3] + "..."


def show(word: str, *, as_json: bool) -> None:
    """`voidzoo show`."""
    package = open_package(word, watch=fetching(quiet=as_json))
    say(json.dumps(card_json(package)) if as_json else plain(card_text(package)))


def card_json(package: Package) -> dict[str, Any]:
    """The card for programs."""
    return {
        **package.origin, "model": package.named, "path": package.path,
        "name": package.name, "version": package.version, "description": package.description,
        "method": method_of(package), "format": package.format,
        "inputs": [_tensor_json(t) for t in package.inputs], "outputs": [_tensor_json(t) for t in package.outputs],
        "kinds": list(package.kinds), "sizes": {
            a: {"min": r.minimum, "step": None if r.fixed else r.step, "halo": r.halo} for a, r in package.rules.items()
        },
        "pixel_size": package.pixel_size, "weights": {w.kind: w.sha256 for w in package.weights},
        "other_weights": list(package.other_weights), "trained_on": trained_on(package),
        "licence": str(package.rdf.get("license") or ""), "authors": people(package),
        "validation": validation_of(package), "opens": {v.consumer: v.answer for v in verdicts(package)},
        "predict": predict_line(package, package.named),
    }  # fmt: skip


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {"id": tensor.id, "axes": [a.id for a in tensor.axes], "dtype": tensor.dtype,
            "channels": list(tensor.channels), "optional": tensor.optional}  # fmt: skip


def card_text(package: Package) -> str:
    """The card for people: what it does, takes and gives, where it comes from, where it opens, and how it is run."""
    return "\n".join(_wrapped(_lines(package)))


def _lines(package: Package) -> Iterator[tuple[str, str]]:
    """(head, text) of each line."""
    rdf, origin = package.rdf, package.origin
    yield package.name, package.version
    yield "", package.description
    yield "model", origin.get("model", "")
    yield "from", origin.get("url", "")
    yield "lies at", package.path
    yield "sha256", origin.get("sha256", "")
    yield "method", method_of(package)
    for tensor in package.inputs:
        yield "input", _tensor_text(tensor, main=tensor is package.main) + ("   optional" if tensor.optional else "")
    yield "halo", "   ".join(f"{a} {r.halo}" for a, r in package.rules.items() if r.halo)
    kinds = iter(package.kinds)
    for tensor in package.outputs:
        known = [next(kinds, "") for _ in tensor.channels]
        yield "output", _tensor_text(tensor) + (f"   {', '.join(dict.fromkeys(known))}" if any(known) else "")
    yield "pixel", "   ".join(f"{a} {package.pixel_size[a]:.4g} um" for a in "zyx" if a in package.pixel_size)
    yield "weights", _weights(package)
    yield "trained", trained_on(package)
    yield "licence", str(rdf.get("license") or "none is told")
    yield "authors", ", ".join(people(package))
    for entry in map(mapped, listed(rdf.get("cite"))):
        if entry.get("text"):
            yield "cite", f"{entry['text']} {entry.get('doi') or entry.get('url') or ''}".strip()
    if validation := validation_of(package):
        yield from (("valid" if i == 0 else "", line) for i, line in enumerate(validation.splitlines()[:30]) if line)
    for verdict in verdicts(package):
        why = f": {verdict.reasons[0].reason}" if verdict.reasons else ""
        yield "opens", f"{CONSUMERS[verdict.consumer]}: {verdict.answer}{why}"
    yield "next", predict_line(package, package.named)


def _wrapped(lines: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Lines of at most WIDTH letters, but for paths and lines to paste; those that say nothing are left out."""
    yield " ".join(" ".join(next(lines)).split())
    for head, text in lines:
        if head in ("lies at", "from", "next", "sha256") and text:
            yield f"{head:<8} {text}"
            continue
        wrapped = textwrap.wrap(plain(text), WIDTH - 9) if text else []
        yield from (f"{head if i == 0 else '':<8} {line}".rstrip() for i, line in enumerate(wrapped))


def _tensor_text(tensor: Tensor, *, main: bool = False) -> str:
    named = [a.id + (f" ({', '.join(a.names[:8])})" if a.names else "") for a in tensor.axes if a.letter in "ci"]
    sizes = [f"{a.letter} {_size(a)}" for a in tensor.axes if a.letter not in "bci"] if main else [
        a.letter for a in tensor.axes if a.letter not in "bci"]  # fmt: skip
    return "   ".join([tensor.id, ", ".join(sizes), *named, tensor.dtype])


def _size(axis: TensorAxis) -> str:
    if axis.size is not None:
        return f"{axis.size}"
    if axis.reference is not None:
        return f"as {axis.reference.tensor}.{axis.reference.axis}"
    return f"{axis.minimum} + n * {axis.step}"


def _weights(package: Package) -> str:
    kinds = [w.kind for w in package.weights]
    others = [f"{k} (not run)" for k in package.other_weights]
    return ", ".join([*kinds, *others])


def people(package: Package) -> list[str]:
    """The names of the authors."""
    return [str(p["name"]) for p in map(mapped, listed(package.rdf.get("authors"))) if p.get("name")]


def predict_line(package: Package, word: str) -> str:
    """The command that predicts with it, by a word that names it; empty where nothing does."""
    if not package.weights:
        return ""
    trust = ["--trust-code"] if package.weights[0].kind == "pytorch_state_dict" else []
    return shlex.join(["voidzoo", "predict", word, "IMAGE", "-o", "OUT.ome.zarr", *trust])
