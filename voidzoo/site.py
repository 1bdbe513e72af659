"""`voidzoo site`: models as a folder of web pages, that needs no server: tiles to search, a page a model, the zips."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from .export.consumers import Verdict, verdicts
from .models import people
from .screen import fetching, plain, say, warn
from .site_index import index
from .site_model import model_page, picture_of
from .zoo.download import sha256_of
from .zoo.errors import OutputError, PackageError, VoidzooError, visible
from .zoo.files import replace_folder
from .zoo.listing import list_models, method_of, trained_on
from .zoo.loose import listed, mapped
from .zoo.package import Package, open_package
from .zoo.version import __version__

RECORD = "site.json"
"""Lists the files of a site: a folder that holds others is not renewed."""
COVER = 640
"""Pixels of a cover's longer side, at most."""
MOST, SHORT = 600, 64
"""Characters of a text on a tile, and of a name, version, method or licence there: a stranger's can be any."""
OTHERS = "of others"
"""The method of a model that does not tell it, as in its card."""


@dataclass(frozen=True)
class Entry:
    """A model as the pages show it. folder: within the site; zip: its file there; size: bytes. cover: a PNG.

    Texts have no characters that a page must not have.
    """

    package: Package
    folder: str
    zip: str
    size: int
    sha256: str
    name: str
    version: str
    description: str
    method: str
    dims: str
    channels: int
    licence: str
    tags: tuple[str, ...]
    words: tuple[str, ...]
    cover: bytes | None
    verdicts: tuple[Verdict, ...]


def site(out: Path, models: Sequence[str], *, overwrite: bool, as_json: bool) -> None:
    """`voidzoo site`."""
    check_place(out, overwrite=overwrite)
    left_out: dict[str, str] = {}
    entries = _entries(models, left_out, as_json=as_json)
    write_site(entries, out, overwrite=overwrite)
    if as_json:
        shown = [{"name": e.name, "version": e.version, "page": f"{e.folder}/index.html",
                  "zip": f"{e.folder}/{e.zip}", "sha256": e.sha256} for e in entries]  # fmt: skip
        say(json.dumps({"site": str(out / "index.html"), "models": shown, "left_out": left_out}))
        return
    for path, why in left_out.items():
        warn(f"note     {plain(path)} is left out: {plain(why)}")
    say(f"site     {out / 'index.html'}   {len(entries)} model{'s' * (len(entries) != 1)}")


def write_site(entries: Sequence[Entry], out: str | Path, *, overwrite: bool = False) -> None:
    """Write the pages of models and copy their zips, whole or not at all. overwrite: renew a site that lies there.

    Raises OutputError for a place that holds anything but a site, or that cannot be written.
    """

    def write(new: Path) -> None:
        for entry in entries:
            folder = new / entry.folder
            folder.mkdir(parents=True)
            (folder / "index.html").write_text(model_page(entry), encoding="utf-8")
            shutil.copyfile(entry.package.path, folder / entry.zip)
            if entry.cover is not None:
                (folder / "cover.png").write_bytes(entry.cover)
        (new / "index.html").write_text(index(entries), encoding="utf-8")
        files = sorted(f.relative_to(new).as_posix() for f in new.rglob("*") if f.is_file())
        told = {"made by": f"voidzoo site {__version__}", "files": [*files, RECORD]}
        (new / RECORD).write_text(json.dumps(told, indent=1), encoding="utf-8")

    replace_folder(check_place(Path(out), overwrite=overwrite), write)


def check_place(out: Path, *, overwrite: bool) -> Path:
    """The folder itself, behind links. Raises OutputError where no site can be written."""
    out = out.resolve()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not out.is_dir():
        raise OutputError(f"{out} is a file; a site is a folder.", mend=f"-o {out.with_suffix('')}-site")
    ours = _recorded(out)
    if not ours:
        raise OutputError(f"{out} is not empty, and not a site of voidzoo.", mend=f"-o {out / 'site'}")
    there = {f.relative_to(out).as_posix() for f in out.rglob("*") if not f.is_dir() or f.is_symlink()}
    if others := sorted(there - ours):
        raise OutputError(
            f"{out} holds what `voidzoo site` did not write: {', '.join(others[:3])}{', ...' * (len(others) > 3)}.",
            mend="another -o; or move it away, then the same command again",
        )
    if not overwrite:
        raise OutputError(f"{out} holds a site.", mend="--overwrite renews it; or another -o")
    return out


def _recorded(folder: Path) -> set[str]:
    """The files of the site in a folder; empty where there is none."""
    try:
        found = mapped(json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return set()
    return set(map(str, listed(found.get("files")))) if "made by" in found else set()


def _entries(words: Sequence[str], left_out: dict[str, str], *, as_json: bool) -> list[Entry]:
    """The models that are named, else those that come with voidzoo and those of VOIDZOO_MODELS; each file once.

    left_out: gets path -> why of those that only lie in a folder and cannot be shown. Raises PackageError where one
    that is named cannot be, or none is left.
    """
    named = [w for word in words for w in _zips(word)] if words else _here(left_out)
    found: list[Entry] = []
    seen: set[Path] = set()
    for word, in_folder in named:
        try:
            package = open_package(word, watch=fetching(quiet=as_json))
            if (path := Path(package.path).resolve()) not in seen:
                found.append(entry_of(package, {e.folder.lower() for e in found}))
                seen.add(path)
        except VoidzooError as error:
            if not in_folder:
                raise
            left_out[str(word)] = error.what
    if not found:
        why = "; ".join(f"{path}: {said}" for path, said in list(left_out.items())[:3])
        raise PackageError("there are no models to show.", why, "--models FOLDER with zips, or --models MODEL.zip")
    return found


def _here(left_out: dict[str, str]) -> list[tuple[str | Path, bool]]:
    """Fetched models are those of others: who wants them on a page of his own names them."""
    models = [m for m in list_models() if m.where == "here"]
    left_out |= {m.path: m.problem for m in models if m.problem}
    return [(Path(m.path), True) for m in models if not m.problem]


def _zips(word: str) -> list[tuple[str | Path, bool]]:
    """The zips of a folder; any other word of a model as it is. Raises PackageError for a folder without any."""
    folder = Path(word)
    if not folder.is_dir() or (folder / "rdf.yaml").is_file():
        return [(word, False)]
    zips = sorted(p for p in folder.glob("*.zip") if not p.name.startswith("."))
    if not zips:
        raise PackageError(f"{word} holds no package (.zip).", mend="--models FOLDER with zips, or --models MODEL.zip")
    return [(p, True) for p in zips]


def entry_of(package: Package, taken: Collection[str] = ()) -> Entry:
    """What is shown of a package. taken: folders of others, in small letters, as some systems know no large ones.

    Raises PackageError for one that is no zip, or whose weights reach beyond themselves.
    """
    path = Path(package.path)
    if not package.files.is_zip:
        raise PackageError(
            f"{path} is a folder; a site has zips to download.", mend=f"bioimageio package {path} {path.name}.zip"
        )
    stem = re.sub(r"[^A-Za-z0-9._]+", "-", path.stem)[:80].strip(".-") or "model"
    names = (f"models/{stem}{f'-{n}' * (n > 1)}" for n in range(1, len(taken) + 2))
    folder = next(name for name in names if name.lower() not in taken)
    opens = tuple(verdicts(package))
    covers = [c.get("source") if isinstance(c, dict) else c for c in listed(package.rdf.get("covers"))]
    pictures = (picture_of(package, str(c), COVER) for c in covers)
    cover = next((p for p in pictures if p is not None), None)
    tags = tuple(_text(t, SHORT) for t in listed(package.rdf.get("tags")))
    licence, method = _text(package.rdf.get("license") or "", SHORT), _text(method_of(package), SHORT) or OTHERS
    words = (package.name, path.stem, package.description, method, *tags, *package.channels_in, trained_on(package),
             licence, *people(package))  # fmt: skip
    return Entry(
        package, folder, f"{Path(folder).name}.zip", path.stat().st_size, sha256_of(path), _text(package.name, SHORT),
        _text(package.version, SHORT), _text(package.description), method, _dims(package.axes),
        len(package.channels_in), licence, tags, tuple(map(_text, words)), cover, opens,
    )  # fmt: skip


def _text(value: object, most: int = MOST) -> str:
    text = " ".join(visible(str(value)).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _dims(axes: str) -> str:
    return ("3D" if "z" in axes else "2D") + (" and time" if "t" in axes else "")
