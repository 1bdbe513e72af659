"""The first page of a site: a tile a model, and a search that works from a file, without a server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .infer.report import size_text
from .zoo import html
from .zoo.html import Markup, shown
from .zoo.version import __version__

if TYPE_CHECKING:
    from .site import Entry

MARKS = {
    "core": "bioimageio.core", "ilastik": "ilastik", "fiji": "Fiji", "qupath": "QuPath", "biapy": "BiaPy",
    "careamics": "CAREamics", "onnxruntime": "onnxruntime",
}  # fmt: skip
"""Short names of the programs of `export.consumers.CONSUMERS`."""
FILTERS = {"method": "Method", "dims": "Dimensions", "tag": "Tag", "opens": "Opens in"}

STYLE = """
body{overflow-wrap:break-word}
a{color:var(--mark)}
a:focus-visible,input:focus-visible,select:focus-visible,button:focus-visible,summary:focus-visible{
outline:3px solid var(--mark);outline-offset:2px}
code{font:.88em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
[hidden]{display:none!important}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.find{display:grid;grid-template-columns:2fr repeat(4,minmax(0,1fr)) auto;gap:.8rem;align-items:end;
margin:1.4rem 0 .4rem}
.find label{display:block;font-size:.88rem;color:var(--soft)}
.find input,.find select,.find button{font:inherit;color:inherit;width:100%;height:2.5rem;padding:.3rem .6rem;
background:var(--back);border:1px solid var(--soft);border-radius:6px}
.find button{cursor:pointer}
.tiles{list-style:none;margin:1rem 0;padding:0;display:grid;gap:1.2rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr))}
.tile{position:relative;display:flex;flex-direction:column;background:var(--card);border:1px solid var(--line);
border-radius:8px;overflow:hidden}
.tile:hover,.tile:focus-within{border-color:var(--mark)}
.tile img,.tile .none{aspect-ratio:3/2;width:100%;height:auto;object-fit:cover;border:0;
border-bottom:1px solid var(--line)}
.tile .none{display:grid;place-items:center;color:var(--soft);font-size:.9rem;background:var(--back)}
.tile .told{display:flex;flex-direction:column;flex:1;padding:.8rem .9rem .9rem}
.tile h2{font-size:1.05rem;line-height:1.3;margin:0;padding:0;border:0;overflow-wrap:anywhere}
.tile h2 a{text-decoration:none}
.tile h2 a::after{content:"";position:absolute;inset:0}
.tile .version{color:var(--soft);font-weight:400;font-size:.88rem}
.tile p{font-size:.94rem;margin:.4rem 0 .6rem;overflow-wrap:anywhere;display:-webkit-box;-webkit-box-orient:vertical;
-webkit-line-clamp:5;overflow:hidden}
.tile dl{display:flex;flex-wrap:wrap;gap:0 .9rem;margin:auto 0 .6rem;font-size:.88rem;color:var(--soft)}
.tile dd{margin:0;overflow-wrap:anywhere}
.marks{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem;margin:0;padding:0;font-size:.78rem;line-height:1.5}
.marks li{border:1px solid var(--mark);color:var(--mark);border-radius:99px;padding:0 .55rem}
.marks .loss{border-style:dashed;color:var(--soft);border-color:var(--soft)}
nav{margin-bottom:.7rem}
footer{margin-top:3rem;color:var(--soft);font-size:.88rem}
@media (max-width:900px){.find{grid-template-columns:1fr 1fr}.find .words{grid-column:1/-1}}
"""

SCRIPT = """
"use strict";
const models = JSON.parse(document.getElementById("models").textContent);
const form = document.getElementById("find"), count = document.getElementById("count");
const tiles = document.querySelectorAll(".tile"), names = ["q", "method", "dims", "tag", "opens"];
const field = name => form.elements.namedItem(name);
function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const name of names) {
    field(name).value = asked.get(name) || "";
    if (field(name).selectedIndex === -1) field(name).selectedIndex = 0;
  }
}
function show() {
  const words = field("q").value.toLowerCase().split(/\\s+/);
  const chosen = names.slice(1).filter(name => field(name).value);
  let found = 0;
  models.forEach((model, i) => {
    const text = model.text.toLowerCase();
    const fits = words.every(word => text.includes(word)) &&
      chosen.every(name => model[name].includes(field(name).value));
    tiles[i].hidden = !fits;
    found += fits;
  });
  count.textContent = found === models.length ? "" : found + " of " + models.length + " models";
}
function write() {
  const asked = new URLSearchParams();
  for (const name of names) if (field(name).value.trim()) asked.set(name, field(name).value.trim());
  history.replaceState(null, "", "#" + asked);
}
form.hidden = false;
form.addEventListener("input", () => { show(); write(); });
form.addEventListener("reset", () => setTimeout(() => { show(); write(); }));
form.addEventListener("submit", event => event.preventDefault());
addEventListener("hashchange", () => { read(); show(); });
read();
show();
"""


def index(entries: Sequence[Entry]) -> str:
    """The page. The search stands in the address (`#q=mito&opens=fiji`), so that it can be linked."""
    many = f"{len(entries)} models" if len(entries) != 1 else "1 model"
    lead = f"{many} for microscopy images, to download and run. The marks name the programs that open them."
    parts = [
        _form(entries),
        '<ul class="tiles">' + "\n".join(map(_tile, entries)) + "</ul>",
        footer(),
        html.data("models", [_searched(e) for e in entries]),
        f"<script>{SCRIPT}</script>",
    ]
    return html.page("Models", lead, parts, head=head(SCRIPT))


def head(script: str = "") -> str:
    """The style, and what the page may load: its own pictures, and no script but `script`, whatever strangers wrote."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() if script else ""
    policy = {
        "default-src": "'none'", "img-src": "'self' data:", "style-src": "'unsafe-inline'",
        "script-src": f"'sha256-{allowed}'" if allowed else "'none'", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip
    told = "; ".join(f"{what} {where}" for what, where in policy.items())
    return f'<meta http-equiv="Content-Security-Policy" content="{told}"><style>{STYLE}</style>'


def footer() -> str:
    """Who made it."""
    return f"<footer>Made with voidzoo {shown(__version__)}.</footer>"


def marks(entry: Entry) -> str:
    """The programs that open a model."""
    loss = ' <span class="unseen">(with loss)</span>'
    return '<ul class="marks" aria-label="opens in">' + "".join(
        f"<li>{MARKS[v.consumer]}</li>" if v.answer == "yes" else
        f'<li class="loss" title="with loss">{MARKS[v.consumer]}{loss}</li>'
        for v in entry.verdicts if v.answer != "no"
    ) + "</ul>"  # fmt: skip


def _tile(entry: Entry) -> str:
    title, told = shown(entry.name), {
        "method": entry.method,
        "dimensions": entry.dims,
        "channels": f"{entry.channels} channel{'s' * (entry.channels != 1)}",
        "size": size_text(entry.size),
        "licence": entry.licence,
    }  # fmt: skip
    cover = '<div class="none">no picture</div>'
    if entry.cover is not None:
        width, height = html.Picture(entry.cover, "").size
        source = f"{entry.folder}/cover.png"
        cover = f'<img src="{source}" width="{width}" height="{height}" loading="lazy" alt="cover of {title}">'
    facts = "".join(f'<div><dt class="unseen">{k}</dt><dd>{shown(v)}</dd></div>' for k, v in told.items() if v)
    version = f' <span class="version">{shown(entry.version)}</span>' if entry.version else ""
    name = html.link(Markup(title), f"{entry.folder}/index.html")
    return (
        f'<li class="tile">{cover}<div class="told"><h2>{name}{version}</h2><p>{shown(entry.description)}</p>'
        f"<dl>{facts}</dl>{marks(entry)}</div></li>"
    )


def _searched(entry: Entry) -> dict[str, str | list[str]]:
    """What the script looks at: the text that words are looked for in, and the values of each filter."""
    return {"text": "\n".join(entry.words), **{name: _values(entry, name) for name in FILTERS}}


def _values(entry: Entry, name: str) -> list[str]:
    return {
        "method": [entry.method], "dims": [entry.dims], "tag": list(dict.fromkeys(t.lower() for t in entry.tags)),
        "opens": [v.consumer for v in entry.verdicts if v.answer != "no"],
    }[name]  # fmt: skip


def _form(entries: Sequence[Entry]) -> str:
    fields = [
        '<div class="words"><label for="q">Search</label>'
        '<input id="q" name="q" type="search" autocomplete="off" spellcheck="false"></div>'
    ]
    for name, label in FILTERS.items():
        options = "".join(
            f'<option value="{shown(value)}">{shown(_label(name, value))} ({n})</option>'
            for value, n in _counted(v for e in entries for v in _values(e, name))
        )
        fields.append(
            f'<div><label for="{name}">{label}</label>'
            f'<select id="{name}" name="{name}"><option value="">any</option>{options}</select></div>'
        )
    fields.append('<div><button type="reset">Clear</button></div>')
    return (
        f'<form id="find" class="find" role="search" hidden>{"".join(fields)}</form>'
        '<p class="lead" id="count" role="status"></p>'
    )


def _label(name: str, value: str) -> str:
    return MARKS[value] if name == "opens" else value


def _counted(values: Iterable[str]) -> list[tuple[str, int]]:
    """Each value and how often it came, by name."""
    counts: dict[str, int] = {}
    for value in values:
        if value:
            counts[value] = counts.get(value, 0) + 1
    return sorted(counts.items(), key=lambda pair: pair[0].lower())
