"""A report: one HTML file without scripts or outside links. Page, sections, tables, pictures.

Texts may be those of strangers: all are escaped, but for `Markup`. A page with a script or links is made of the same.
"""

from __future__ import annotations

import json
import re
import struct
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import visible
from .pictures import enlarge, loss_curve, stretch

if TYPE_CHECKING:
    from numpy.typing import NDArray

STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1b1f24;--soft:#59636e;--line:#d5dae0;--card:#f5f7f9;--mark:#0b63b0}
@media (prefers-color-scheme:dark){:root{--back:#14171a;--text:#e6e9ec;--soft:#a2abb5;--line:#363c43;--card:#1e2226;
--mark:#7cbcff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.5rem 4rem;max-width:1136px;background:var(--back);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.25rem;margin:2.6rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
p{max-width:76ch;margin:.5rem 0}
.lead,.caption,figcaption span{color:var(--soft)}
table{border-collapse:collapse;margin:.8rem 0;font-size:.94rem;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.28rem 1.4rem .28rem 0;border-bottom:1px solid var(--line);
overflow-wrap:anywhere}
th{font-weight:600}
tbody th{color:var(--soft);font-weight:400;white-space:nowrap}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.7rem .9rem;white-space:pre-wrap;
overflow-wrap:anywhere;font:.86rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:.8rem;margin:1.2rem 0}
.numbers div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem .9rem}
.numbers b{display:block;font-size:1.35rem;line-height:1.3;color:var(--mark)}
.numbers span{font-size:.88rem;color:var(--soft)}
.pictures{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:1rem;margin:.9rem 0}
figure{margin:0;min-width:0}
figcaption{font-size:.9rem;margin-bottom:.3rem}
figcaption b{display:block}
img{display:block;max-width:100%;height:auto;border:1px solid var(--line)}
.pictures.plot{grid-template-columns:minmax(0,840px)}
.sharp img{image-rendering:pixelated;width:100%}
.zoom input{position:absolute;opacity:0}
.zoom img{cursor:zoom-in}
.zoom input:focus-visible~img{outline:3px solid var(--mark)}
.zoom figure:has(input:checked){grid-column:1/-1;overflow-x:auto}
.zoom input:checked~img{max-width:none;cursor:zoom-out}
@media (max-width:700px){.pictures,.pictures.plot{grid-template-columns:1fr}}
@media print{body{max-width:none;padding:0}figure,table,pre{break-inside:avoid}}
"""


class Markup(str):
    """HTML, taken as it is wherever the functions below take text."""

    __slots__ = ()


def shown(text: str) -> str:
    """Text as HTML: escaped, without characters that turn the direction of writing or cannot be in a page."""
    return text if isinstance(text, Markup) else escape(visible(text))


def link(text: str, address: str, attributes: str = "") -> Markup:
    """A link within the site; attributes: HTML."""
    return Markup(f'<a href="{shown(address)}"{attributes and " " + attributes}>{shown(text)}</a>')


def outside(text: str, address: str = "") -> Markup:
    """A link to an address (by default the text) that a stranger names: only http and https, else the text alone."""
    address = address or text
    if not re.fullmatch(r"https?://[^\s<>\"'`\\]+", address, re.IGNORECASE):
        return Markup(shown(text))
    return link(text, address, 'rel="noopener noreferrer"')


def data(name: str, value: Any) -> str:
    """Values for a script, as JSON in an element with the id `name`: nothing in them ends that element."""
    text = json.dumps(value, ensure_ascii=True)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


@dataclass(frozen=True)
class Picture:
    """A PNG with its title and a caption (plain text, escaped when shown)."""

    png: bytes
    title: str
    caption: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the PNG's header says."""
        width, height = struct.unpack(">II", self.png[16:24])
        return int(width), int(height)


def picture(plane: NDArray[Any], grey: tuple[float, float], title: str, caption: str = "", factor: int = 1) -> Picture:
    """A plane (y, x) of any dtype, stretched between two grey values, each pixel a square of factor x factor."""
    from PIL import Image as Pillow

    buffer = BytesIO()
    Pillow.fromarray(enlarge(stretch(plane, grey), factor)).save(buffer, format="PNG", optimize=True)
    return Picture(buffer.getvalue(), title, caption)


def page(title: str, lead: str, parts: Iterable[str], *, head: str = "", above: str = "") -> str:
    """A whole page. title and lead are plain text; parts come from the functions below. head: more of the page's head,
    above: what stands over the title, both HTML.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{shown(title)}</title><style>{STYLE}</style>{head}"
    )
    told = "\n".join(parts)
    body = f'<header>{above}<h1>{shown(title)}</h1><p class="lead">{shown(lead)}</p></header><main>{told}</main>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def section(heading: str, *parts: str) -> str:
    """A heading (plain text) and what comes under it."""
    return f"<section><h2>{shown(heading)}</h2>" + "\n".join(parts) + "</section>"


def paragraph(text: str) -> str:
    """Plain text."""
    return f"<p>{shown(text)}</p>"


def commands(lines: Sequence[str]) -> str:
    """Lines to paste."""
    return f"<pre>{shown(chr(10).join(lines))}</pre>"


def numbers(pairs: Sequence[tuple[str, str]]) -> str:
    """The figures that matter, large: (figure, what it is)."""
    return '<div class="numbers">' + "".join(
        f"<div><b>{shown(value)}</b><span>{shown(label)}</span></div>" for value, label in pairs
    ) + "</div>"  # fmt: skip


def facts(rows: Mapping[str, str]) -> str:
    """Name and value, a line each."""
    return table((), [(k, v) for k, v in rows.items()])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; the first column names the row."""
    top = "<thead><tr>" + "".join(f'<th scope="col">{shown(h)}</th>' for h in head) + "</tr></thead>" if head else ""
    body = "".join(
        f'<tr><th scope="row">{shown(first)}</th>' + "".join(f"<td>{shown(c)}</td>" for c in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def pictures(many: Sequence[Picture], kind: str = "") -> str:
    """Pictures in a row of three. kind: zoom (a click shows every pixel), sharp (enlarged ones), plot (a wide one), or
    words of these with spaces between them.
    """
    return f'<div class="pictures {kind}">' + "".join(_figure(p, zoom="zoom" in kind) for p in many) + "</div>"


def _figure(one: Picture, *, zoom: bool) -> str:
    width, height = one.size
    source = "data:image/png;base64," + b64encode(one.png).decode("ascii")
    title = shown(one.title)
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{title}">'
    if zoom:
        image = f'<label><input type="checkbox" aria-label="every pixel of {title}">{image}</label>'
    caption = f"<span>{shown(one.caption)}</span>" if one.caption else ""
    return f"<figure><figcaption><b>{title}</b>{caption}</figcaption>{image}</figure>"


def loss_plot(history: Sequence[Mapping[str, Any]]) -> Picture:
    """The curve of a training; history: `epoch`, `train_loss`, `val_loss` of each epoch, as in run.json."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "loss.png"
        epochs, training, validation = ([e[key] for e in history] for key in ("epoch", "train_loss", "val_loss"))
        loss_curve(epochs, training, validation, path, "mean squared error (variances)")
        return Picture(path.read_bytes(), "Loss of the hidden pixels", "1 is the variance of the image")


def residual(noisy: NDArray[Any], denoised: NDArray[Any], window: int = 9) -> str:
    """What a denoiser took away from a plane (y, x), as it is and smoothed, in words and two pictures."""
    from scipy.ndimage import uniform_filter

    left = noisy.astype(np.float64) - denoised
    smooth = uniform_filter(left, window)
    wide, narrow = 3 * float(left.std()), 4 * float(smooth.std())
    taken = [
        picture(left, (-wide, wide), "noisy - denoised", f"black to white: ±{wide:.0f} grey values, 0 is mid grey"),
        picture(smooth, (-narrow, narrow), f"its mean over {window} x {window} pixels", f"±{narrow:.1f} grey values"),
    ]
    bright, dark = (left[which].mean() for which in (denoised >= np.percentile(denoised, 95),
                                                     denoised <= np.percentile(denoised, 50)))  # fmt: skip
    text = (
        f"Mean {left.mean():.2f}, standard deviation {left.std():.1f} grey values. Stronger noise at bright places is "
        "expected of photons; outlines of the sample are signal that was taken for noise, and the second picture shows "
        f"what of it hides under the noise. Mean over the brightest 5 % of the denoised pixels {bright:+.2f}, over the "
        f"darker half {dark:+.2f} grey values: above 0, the denoised image is too dark there. Click for every pixel."
    )
    return paragraph(text) + pictures(taken, "zoom")
