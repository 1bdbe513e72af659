"""The models that can be named: those that come with voidzoo, of the lab, fetched before, and of the collection."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import VoidzooError
from .loose import listed, mapped

if TYPE_CHECKING:
    from .download import Watch
    from .package import Package


@dataclass(frozen=True)
class Model:
    """What a list says of a model. word: what names it. where: here, fetched, or bioimage.io (not on this machine).

    axes: letters that it reads at once, e.g. `"yx"`. channels: of its main input. size: bytes of the package. path:
    empty where it is not on this machine. problem: why it cannot be opened.
    """

    word: str
    name: str
    version: str = ""
    title: str = ""
    method: str = ""
    axes: str = ""
    channels: tuple[str, ...] = ()
    trained_on: str = ""
    size: int | None = None
    licence: str = ""
    tags: tuple[str, ...] = ()
    where: str = "here"
    path: str = ""
    problem: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "channels": list(self.channels), "tags": list(self.tags)}


def list_models(words: str | Sequence[str] = (), *, online: bool = False, watch: Watch | None = None) -> list[Model]:
    """The models that `open_package` takes by name: those that come with voidzoo, those of the folders in
    VOIDZOO_MODELS, and those that were fetched. No network is asked but with `online`: then those of the bioimage.io
    collection follow.

    words: all of them must be in a model's name, title, method or tags. watch: gets the events of the index's download.
    Raises PackageError for a folder of VOIDZOO_MODELS that is not there; NetworkError.
    """
    wanted = [words] if isinstance(words, str) else list(words)
    found = [*_here(), *_fetched()]
    if online:
        there = {m.name for m in found if m.where == "fetched"}
        found += [m for m in _listed(watch) if m.name not in there]
    return [m for m in found if _matches(m, wanted)]


def _here() -> Iterator[Model]:
    from .catalogue import shipped_models

    for one in shipped_models():
        yield _model(one.word, one.name, one.version, one.path, "here")


def _fetched() -> Iterator[Model]:
    from .cache import cached

    for one in cached():
        name, _, version = one.model.partition("@")
        yield _model(one.model or one.url, name or Path(one.path).stem, version, Path(one.path), "fetched")


def _model(word: str, name: str, version: str, path: Path, where: str) -> Model:
    from .package import open_package

    try:
        package = open_package(path)
        return Model(
            word, name, version or package.version, package.name, method_of(package), package.axes,
            package.channels_in, trained_on(package), path.stat().st_size, str(package.rdf.get("license") or ""),
            _words(package.rdf.get("tags")), where, str(path),
        )  # fmt: skip
    except (VoidzooError, OSError) as error:
        return Model(word, name, version, where=where, path=str(path), problem=str(error).splitlines()[0])


def _listed(watch: Watch | None) -> Iterator[Model]:
    from .collection import index

    for one in index(watch):
        about = one.about or {}
        version = one.versions[-1] if one.versions else str(about.get("version") or "")
        yield Model(
            one.id, one.id, version, one.title or one.id, axes=_space(about), where="bioimage.io",
            licence=str(about.get("license") or ""), tags=_words(about.get("tags")),
        )  # fmt: skip


def method_of(package: Package) -> str:
    """How it was trained, where the package says it; packages of others have a tag for it at best."""
    return str(package.ours.get("method") or "")


def trained_on(package: Package) -> str:
    """The training data: in words, a DOI or link, else the names of the images, else nothing."""
    if said := mapped(package.ours.get("card")).get("data"):
        return str(said)
    told = mapped(package.rdf.get("training_data"))
    if told.get("id") or told.get("name"):
        return str(told.get("id") or told.get("name"))
    for entry in map(mapped, listed(package.rdf.get("cite"))):
        if str(entry.get("text")).startswith("Training data") and entry.get("url"):
            return str(entry["url"])
    images = map(mapped, listed(mapped(package.ours.get("training")).get("images")))
    names = [str(i["name"]) for i in images if i.get("name")]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def validation_of(package: Package) -> str:
    """The section about validation of the package's README, without its heading; empty where there is none."""
    name = package.rdf.get("documentation")
    name = name.get("source") if isinstance(name, Mapping) else name
    try:
        text = package.files.read(str(name), limit=2**20).decode("utf-8", "replace") if name else ""
    except VoidzooError:
        return ""
    found = re.search(r"^(#+)[^\n]*validation[^\n]*\n(.*?)(?=^#{1,6} |\Z)", text, re.IGNORECASE | re.M | re.S)
    return found[2].strip() if found else ""


def _space(about: Mapping[str, Any]) -> str:
    """The axes of the first input of a description that was not checked."""
    axes = next((mapped(t).get("axes") for t in listed(about.get("inputs"))), None)
    ids = axes if isinstance(axes, str) else [str(mapped(a).get("id", "x")) for a in listed(axes)]
    return "".join(a for a in "tzyx" if a in ids)


def _words(tags: Any) -> tuple[str, ...]:
    return tuple(map(str, listed(tags)))


def _matches(model: Model, words: Sequence[str]) -> bool:
    texts = [t.lower() for t in (model.name, model.title, model.method, *model.tags)]
    return all(any(w.lower() in t for t in texts) for w in words)
