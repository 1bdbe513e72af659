"""The page of one model of a site: what a card tells, for a browser, with the zip to download."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .export.card import FIJI, ILASTIK, array_axes, images_of, measured_of, settings_of, told_of
from .export.consumers import CONSUMERS, Verdict
from .export.measured import NAMES, PICTURES, SPREAD, Measured
from .infer.report import size_text
from .models import people, predict_line
from .site_index import footer, head, marks
from .zoo import html
from .zoo.errors import ImageError, PackageError
from .zoo.html import Markup, shown
from .zoo.listing import trained_on, validation_of
from .zoo.loose import listed, mapped
from .zoo.package_files import MAX_COVER
from .zoo.pictures import redrawn

if TYPE_CHECKING:
    from .site import Entry
    from .zoo.package import Package

SIDE = 2000
"""Pixels of a picture, at most."""
STYLE = """<style>
.top{display:grid;grid-template-columns:fit-content(300px) minmax(0,1fr);gap:1.6rem;align-items:start;margin:1.4rem 0}
.top:not(:has(img)){grid-template-columns:minmax(0,1fr)}
.top img{border-radius:8px}
.top table{margin:0}
.get{display:inline-block;background:var(--mark);color:var(--back);font-weight:600;text-decoration:none;
border-radius:6px;padding:.55rem 1rem;overflow-wrap:anywhere}
.pictures.wide{grid-template-columns:minmax(0,1fr)}
pre.prose{font:inherit;font-size:.94rem}
li{max-width:76ch;overflow-wrap:anywhere}
th{overflow-wrap:break-word}
@media (max-width:700px){.top{grid-template-columns:minmax(0,1fr)}tbody th{white-space:normal}
th,td{padding-right:.8rem}}
</style>"""


def model_page(entry: Entry) -> str:
    """The page. Everything in it is what the package says of itself, but for size, sha256 and where it opens."""
    package = entry.package
    measured, fault = _measured(package)
    parts = [
        _top(entry),
        html.section("Measured on images that it has not seen" if measured else "Validation",
                     *_figures(package, measured, fault)),
        html.section("Limits", _limits(package)),
        html.section("Training data", *_data(package)),
        html.section("Training", *_training(package)),
        html.section("Where it opens", _opens(entry)),
        html.section("How to run it", *_how(entry)),
        html.section("Who made it, what to cite", *_people(package)),
        footer(),
    ]  # fmt: skip
    back = f"<nav>{html.link('All models', '../../index.html')}</nav>"
    title = f"{entry.name} {entry.version}".strip()
    return html.page(title, package.description, parts, head=head() + STYLE, above=back)


def _top(entry: Entry) -> str:
    cover = f'<img src="cover.png" alt="cover of {shown(entry.name)}">' if entry.cover is not None else ""
    rows = {**told_of(entry.package), "licence of the model": entry.licence or "not told"}
    get = html.link(f"Download {entry.zip}, {size_text(entry.size)}", entry.zip, 'class="get" download')
    sha = f'<p class="lead">sha256 <code>{entry.sha256}</code></p>'
    return f'<div class="top">{cover}<div>{html.facts(rows)}</div></div><p>{get}</p>{sha}{marks(entry)}'


def _measured(package: Package) -> tuple[Measured | None, str]:
    try:
        return measured_of(package), ""
    except PackageError:
        return None, "The package has figures that cannot be read."


def _figures(package: Package, measured: Measured | None, fault: str) -> list[str]:
    """Figures with their spread and the best and worst picture; else what the package says of its validation."""
    if measured is None:
        said = validation_of(package)
        words = "The package's own words:" if said else fault or "The package tells no figures."
        return [html.paragraph(words), *([f'<pre class="prose">{shown(said)}</pre>'] if said else [])]
    large = [
        (f"{f.gain[0]:+.3g} ± {f.gain[1]:.2g}{' dB' if f.name == 'psnr' else ''}",
         f"{NAMES[f.name]}: {f.before[0]:.3g} as it came, {f.after[0]:.3g} denoised")
        for f in measured.figures if f.gain and f.before
    ]  # fmt: skip
    cases = {"best": measured.best, "worst": measured.worst}
    pictures = [
        html.Picture(png, f"the {which} square", f"{case.image}, {case.where}: {case.said}")
        for which, case in cases.items() if (png := picture_of(package, PICTURES[which], SIDE)) is not None
    ]  # fmt: skip
    return [
        *([html.numbers(large)] if large else []),
        html.paragraph(measured.how()),
        html.table(*measured.table()),
        html.paragraph(f"{SPREAD} best and worst. Click a picture for every pixel."),
        html.pictures(pictures, "wide zoom"),
    ]


def picture_of(package: Package, name: str, side: int) -> bytes | None:
    """A picture of the package as a PNG of at most `side` pixels each way, None where there is none to show."""
    try:
        return redrawn(package.files.read(name, limit=MAX_COVER), side)
    except (PackageError, ImageError):
        return None


def _limits(package: Package) -> str:
    limits = listed(mapped(package.ours.get("card")).get("limits"))
    return _bullets([str(limit) for limit in limits]) if limits else html.paragraph("The package tells none.")


def _data(package: Package) -> list[str]:
    said = mapped(package.ours.get("card"))
    told = {
        "what": trained_on(package) or "not told",
        "from": str(said.get("data_link") or ""),
        "licence": str(said.get("data_license") or ""),
        "held out": str(mapped(package.ours.get("training")).get("split") or ""),
    }
    images = images_of(package.ours)
    rows = {k: _address(v) for k, v in told.items() if v}
    return [html.facts(rows), *([_bullets(images)] if images else [])]


def _training(package: Package) -> list[str]:
    ours, settings = package.ours, settings_of(package.ours)
    if not settings:
        return [html.paragraph("Not trained with voidzoo; its own documentation tells how.")]
    training = mapped(ours.get("training"))
    told = {
        "voidzoo": ours.get("version"), "seed": ours.get("seed"), "epochs": training.get("epochs_done"),
        "weights": f"of epoch {training['best_epoch']}, with the smallest loss on the part that was held out"
        if training.get("best_epoch") is not None else None,
    }  # fmt: skip
    recipe = f"<details><summary>recipe.yaml</summary>{html.commands([settings])}</details>"
    return [html.facts({k: str(v) for k, v in told.items() if v is not None}), recipe]


def _opens(entry: Entry) -> str:
    how = {"fiji": FIJI, "ilastik": ILASTIK, "core": f"bioimageio predict {entry.zip} --inputs IMAGE.tif"}

    def row(verdict: Verdict) -> tuple[str, str, str]:
        told = [how[verdict.consumer]] if verdict.answer != "no" and verdict.consumer in how else []
        return CONSUMERS[verdict.consumer], verdict.answer, "; ".join([*told, *(r.reason for r in verdict.reasons)])

    return html.table(("program", "opens", "how; or why not, or what is lost"), [row(v) for v in entry.verdicts])


def _how(entry: Entry) -> list[str]:
    line = predict_line(entry.package, entry.zip)
    if not line:
        return [html.paragraph("Its weights are of a kind that voidzoo does not run.")]
    python = [
        "import voidzoo",
        "",
        f'result = voidzoo.predict("{entry.zip}", array, axes="{array_axes(entry.package)}")',
    ]
    return [
        html.commands([line]),
        html.paragraph("takes images of any size, also larger than memory. In Python:"),
        html.commands(python),
        html.paragraph("From a server, with ADDRESS for that of this folder, and nothing but this very file:"),
        html.commands([predict_line(entry.package, f"ADDRESS/{entry.zip}#sha256={entry.sha256}")]),
    ]


def _people(package: Package) -> list[str]:
    rdf, rows = package.rdf, dict[str, str]()
    if names := people(package):
        rows["authors"] = ", ".join(names)
    for number, entry in enumerate(map(mapped, listed(rdf.get("cite"))), 1):
        if entry.get("text"):
            rows[f"cite {number}"] = _cited(entry)
    for what, key in (("source", "git_repo"), ("documentation", "documentation")):
        if isinstance(address := rdf.get(key), str) and address.startswith("http"):
            rows[what] = html.outside(address)
    return [html.facts(rows) if rows else html.paragraph("The package does not tell.")]


def _cited(entry: Any) -> Markup:
    doi, address = str(entry.get("doi") or ""), str(entry.get("url") or "")
    if re.fullmatch(r"10\.\d+/\S+", doi):
        address = f"https://doi.org/{doi}"
    return Markup(f"{shown(str(entry['text']))} {html.outside(doi or address, address)}".rstrip())


def _address(text: str) -> str:
    """A link where the whole text is an address or a DOI, else text."""
    doi = re.fullmatch(r"10\.\d+/\S+", text)
    return html.outside(text, f"https://doi.org/{text}" if doi else text)


def _bullets(lines: Sequence[str]) -> str:
    """A list; `code` as Markdown has it."""
    told = (re.sub("`([^`]+)`", r"<code>\1</code>", shown(line)) for line in lines)
    return "<ul>" + "".join(f"<li>{line}</li>" for line in told) + "</ul>"
