"""A model card: one Markdown page from the package alone, what it lacks named with the line that mends it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..zoo.errors import OutputError, PackageError
from ..zoo.files import replace_file
from ..zoo.loose import listed, mapped
from .about import FILE
from .consumers import CONSUMERS, Verdict
from .measured import PICTURES, Measured

if TYPE_CHECKING:
    from ..zoo.package import Package
    from .proof import Check

LETTERS = {"b": "batch", "c": "channel", "t": "time"}
FIJI = "Plugins > DeepImageJ > DeepImageJ Run, after the zip was installed with DeepImageJ Install (from file)"
ILASTIK = "Neural Network Classification (Local), load the zip in Data Processing"
"""How a package is opened there."""


@dataclass(frozen=True)
class Card:
    """text: Markdown that shows the pictures; pictures: PNG by the name it has there; missing: part -> mend."""

    text: str
    pictures: dict[str, bytes]
    missing: dict[str, str]

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """The card, and its pictures beside it. Raises OutputError where a card lies already."""
        check_place(path, overwrite=overwrite)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, data in self.pictures.items():
            (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
            replace_file(path.parent / name, lambda p, data=data: p.write_bytes(data))  # type: ignore[misc]
        replace_file(path, lambda p: p.write_text(self.text, encoding="utf-8"))


def check_place(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a card cannot be written."""
    if path.suffix != ".md":
        raise OutputError(f"{path}: a card is Markdown.", mend=f"-o {path.with_suffix('.md')}")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists.", mend="another -o, or --overwrite")


def make_card(package: Package, checks: Sequence[Check], verdicts: Sequence[Verdict], stem: str) -> Card:
    """The card of a package; checks: its proof. stem: names the folder of its pictures, beside the card.

    What is not known is left open as `TODO` in the text and named in `missing`.
    """
    ours, missing = package.ours, dict[str, str]()

    def need(part: str, found: str, mend: str) -> str:
        if not found:
            missing[part] = mend
        return found or f"TODO: {mend}"

    said = mapped(ours.get("card"))
    measured = measured_of(package)
    pictures = _pictures(package, stem, measured)
    parts = {
        "": _head(package, need("licence", str(package.rdf.get("license") or ""), f"{FILE}: license: CC-BY-4.0")),
        "Training data": _data(said, ours, need),
        "Training": _training(ours),
        "Validation": _validation(ours, measured, pictures, need),
        "Proof": _table(("check", "what was found", ""), [(c.name, _lasting(c), _word(c)) for c in checks]),
        "Where it opens": _opens(verdicts),
        "Limits": need(
            "limits",
            "\n".join(f"* {_plain(str(limit))}" for limit in listed(said.get("limits"))),
            f"{FILE}: limits: [a sentence]",
        ),
        "How to run it": _how(package, verdicts),
    }
    text = "\n\n".join(f"## {name}\n\n{text}" if name else text for name, text in parts.items()) + "\n"
    return Card(text, pictures, missing)


def _word(check: Check) -> str:
    return "FAILED" if not check.passed else "ok" if check.ran else "left out"


def _lasting(check: Check) -> str:
    """What was found; that there was no network on the day is no fact of the package."""
    return check.detail.partition(", not looked up at ")[0]


def _head(package: Package, licence: str) -> str:
    """What it is: a sentence, a table, its cover."""
    path = Path(package.path)
    file = f"`{path.name}`"
    if path.is_file():
        file += f", {path.stat().st_size / 1e6:.1f} MB, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"
    rows = [*told_of(package).items(), ("package", file), ("licence of the model", licence)]
    return f"# {_plain(package.name)}\n\n{_plain(package.description)}\n\n{_table(('', ''), rows)}"


def _plain(text: str) -> str:
    """Words of a package, which may be anybody's, without their effect as HTML."""
    return escape(text, quote=False)


def told_of(package: Package) -> dict[str, str]:
    """What a package is, takes and gives, in words by their head."""
    ours = package.ours
    network = mapped(ours.get("network"))
    drawn = ", ".join(f"{k} {network[k]}" for k in ("depth", "filters") if k in network)
    return {
        "method": " ".join([str(ours.get("method") or "of others"), *([f"(U-Net, {drawn})"] if drawn else [])]),
        "version": package.version,
        "input": _axes(package.main.letters, package.channels_in),
        "legal sizes": "; ".join(f"{a} {r.minimum}" + (f" + n x {r.step}" if not r.fixed else "")
                                 for a, r in package.rules.items()),
        "halo": ", ".join(f"{a} {r.halo}" for a, r in package.rules.items()) + " pixels",
        "output": "; ".join(_axes(t.letters, t.channels) for t in package.outputs)
        + (f", {', '.join(sorted(set(package.kinds)))}" if package.kinds else ""),
        "pixel size (um)": ", ".join(f"{a} {v:g}" for a, v in package.pixel_size.items()) or "not told",
        "grey values of the training": _range(ours),
    }  # fmt: skip


def _axes(letters: str, channels: Sequence[str]) -> str:
    axes = ", ".join(LETTERS.get(a, a) for a in letters)
    return f"{axes}; {len(channels)} channel{'s' * (len(channels) > 1)}: {', '.join(channels)}"


def _range(ours: Mapping[str, Any]) -> str:
    ranges = mapped(ours.get("training")).get("intensity_range")
    if not isinstance(ranges, list) or not ranges:
        return "not told"
    pairs = ranges if isinstance(ranges[0], list) else [ranges]
    # percentiles are found to a part of the span: 0 may be a millionth of it
    return "; ".join(f"{0 if abs(low) < 1e-6 * high else low:.6g} to {high:.6g}" for low, high in pairs)


def _data(said: Mapping[str, Any], ours: Mapping[str, Any], need: Any) -> str:
    words = need(
        "training data", _plain(str(said.get("data") or "")), f"{FILE}: data: what the images show, and where from"
    )
    licence = need(
        "licence of the data", _plain(str(said.get("data_license") or "")), f"{FILE}: data_license: CC-BY-4.0"
    )
    training = mapped(ours.get("training"))
    images = [f"* {_plain(image)}" for image in images_of(ours)]
    lines = [
        words.rstrip(".") + ".",
        *([_plain(str(said["data_link"]))] if said.get("data_link") else []),
        f"Licence: {licence}.",
    ]
    split = _plain(str(training.get("split") or ""))
    split = f"Held out for validation while training: {split}." if split else ""
    return "\n\n".join(["  \n".join(lines), *(["\n".join(images)] if images else []), *([split] if split else [])])


def images_of(ours: Mapping[str, Any]) -> list[str]:
    """The images of the training: name, axes, shape and dtype of each, as far as they are told."""
    found = []
    for image in map(mapped, listed(mapped(ours.get("training")).get("images"))):
        shape = " x ".join(map(str, listed(image.get("shape"))))
        told = [str(part) for part in (image.get("axes"), shape, image.get("dtype")) if part]
        found += [f"{image['name']}: {', '.join(told)}"] if image.get("name") else []
    return found


def settings_of(ours: Mapping[str, Any]) -> str:
    """The recipe, a setting a line; empty where none is told."""
    told = mapped(ours.get("recipe")).items()
    return "\n".join(f"{k}: {json.dumps(v, default=str)}" for k, v in told if v is not None)


def _training(ours: Mapping[str, Any]) -> str:
    recipe = mapped(ours.get("recipe"))
    if not recipe:
        return "Not trained with voidzoo; its own documentation tells how."
    training = mapped(ours.get("training"))
    done = (
        f"`voidzoo train {recipe.get('method')} IMAGES --recipe recipe.yaml`, voidzoo {ours.get('version')}, seed "
        f"{ours.get('seed')}: {training.get('epochs_done')} epochs, the weights of epoch {training.get('best_epoch')}, "
        "with the smallest loss on the part that was held out."
    )
    return f"{done}\n\n<details><summary>recipe.yaml</summary>\n\n```yaml\n{settings_of(ours)}\n```\n\n</details>"


def _validation(
    ours: Mapping[str, Any], measured: Measured | None, pictures: Mapping[str, bytes], need: Any
) -> str:  # fmt: skip
    said = _plain(measured.text()) if measured else ""
    text = need("numbers", said, "export again with --held-out IMAGE --truth IMAGE")
    shown = "\n\n".join(f"![{Path(name).stem}]({quote(name)})" for name in pictures if not name.endswith("cover.png"))
    loss = mapped(ours.get("training")).get("best_validation_loss")
    told = f"Validation loss of the training: {loss:.4g}." if isinstance(loss, float) else ""
    return "\n\n".join(part for part in (text, shown, told) if part)


def _opens(verdicts: Sequence[Verdict]) -> str:
    rows = [
        (CONSUMERS[v.consumer], v.answer, "; ".join(r.reason for r in v.reasons))
        for v in verdicts
    ]  # fmt: skip
    return _table(("program", "opens", "why not, or what is lost"), rows)


def _how(package: Package, verdicts: Sequence[Verdict]) -> str:
    """The lines to paste, and where it is found in the programs that open it."""
    if not package.weights:
        return "Its weights are of a kind that voidzoo does not run."
    name, ours = Path(package.path).name, bool(package.ours.get("method"))
    trust = package.weights[0].kind == "pytorch_state_dict"
    predict = ["voidzoo", "predict", name, "IMAGE.tif", "-o", "OUT.ome.zarr", *["--trust-code"] * trust]
    given = f'{json.dumps(name, ensure_ascii=False)}, array, axes="{array_axes(package)}"{", trust_code=True" * trust}'
    core = shlex.join(["bioimageio", "predict", name, "--inputs", "stack.tif" if "z" in package.axes else "image.tif"])
    ways = {"fiji": f"Fiji: {FIJI}", "ilastik": f"ilastik: {ILASTIK}", "core": f"bioimageio.core: `{core}`"}
    opens = [f"* {ways[v.consumer]}" for v in verdicts if v.consumer in ways and v.answer != "no"]
    steps = [s.name for t in (*package.inputs, *package.outputs) for s in t.steps if s.name != "ensure_dtype"]
    if steps:
        raw = f"what the description declares ({', '.join(steps)}) is done by the program"
    else:
        raw = "its normalisation lies in the network" if ours else "the description declares no steps"
    return "\n\n".join([
        f"    {shlex.join(predict)}",
        "takes images of any size, also larger than memory. In Python:",
        f"```python\nimport voidzoo\n\n{'denoised' if ours else 'result'} = voidzoo.predict({given})\n```",
        *(["\n".join(opens)] if opens else []),
        f"All take the raw image: {raw}.",
    ])  # fmt: skip


def array_axes(package: Package) -> str:
    """The axes of an array as its model reads it: channels first where there are several."""
    return "c" * (len(package.channels_in) > 1) + package.axes


def measured_of(package: Package) -> Measured | None:
    """What `export` measured. Raises PackageError where that cannot be read."""
    found = package.ours.get("measured")
    if not found:
        return None
    try:
        return Measured.from_json(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PackageError(f"{package.path}: config.voidzoo.measured cannot be read: {error}.") from error


def _pictures(package: Package, stem: str, measured: Measured | None) -> dict[str, bytes]:
    return {f"{stem}/{name}": package.files.read(name) for name in PICTURES.values()} if measured else {}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_plain(str(cell)).replace("|", "\\|").replace("\n", " ") for cell in row) + " |"
                     for row in lines)  # fmt: skip
