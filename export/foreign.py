"""What a package of others says of itself, as far as the portable profile takes it: words, documentation, cover."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..zoo.errors import ImageError, PackageError, RecipeError
from ..zoo.loose import listed, mapped
from ..zoo.package_files import MAX_COVER, MAX_TEXT
from ..zoo.pictures import strangers_picture
from ..zoo.version import __version__
from .about import About, Citation, Person, suggest_name
from .describe import nickname
from .measured import PICTURES
from .upload import MOST_COVER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..zoo.package import Package

KINDS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif"}
KEPT = {
    "name", "description", "version", "authors", "maintainers", "cite", "license", "git_repo", "training_data", "tags",
    "links", "config", "attachments", "covers", "documentation", "id",
}  # fmt: skip
"""Keys of a description whose words are kept, or told of one by one."""
MADE_ANEW = {
    "type", "format_version", "inputs", "outputs", "weights", "timestamp", "test_inputs", "test_outputs",
    "sample_inputs", "sample_outputs", "source", "sha256", "kwargs", "language", "framework", "dependencies",
}  # fmt: skip
"""Keys that the new description has of its own; the last six are those of format 0.3 for its state dict."""


def words_of_package(package: Package) -> tuple[dict[str, Any], list[str]]:
    """Name, authors, licence, citations, tags, ... in the words of format 0.5.4, and what could not be kept."""
    rdf, lost = package.rdf, []
    people: dict[str, list[dict[str, Any]]] = {"authors": [], "maintainers": []}
    for key, found in people.items():
        for raw in listed(rdf.get(key)):
            person = _person(raw)
            if person is None or (key == "maintainers" and "github_user" not in person):
                lost.append(f"one of the {key} is left out: {str(raw)[:60]}")
            else:
                found.append(person)
    cite = []
    for raw in listed(rdf.get("cite")):
        work = _citation(mapped(raw))
        if work is None:
            lost.append(f"a citation without doi or address is left out: {str(raw)[:60]}")
        else:
            cite.append(work)
    words: dict[str, Any] = {
        "name": package.name, "description": " ".join(package.description.split())[:512], "version": package.version,
        **people, "cite": cite, "license": rdf.get("license"), "git_repo": rdf.get("git_repo"),
        "training_data": _training_data(rdf), "tags": [str(t) for t in listed(rdf.get("tags"))],
        "links": [link for link in listed(rdf.get("links")) if isinstance(link, str)],
    }  # fmt: skip
    for key in ("name", "version", "license", "git_repo"):
        if words[key] and not _taken(key, str(words[key])):
            lost.append(f"{key} {words[key]!r} is not what the format takes")
            words[key] = suggest_name(str(words[key])) if key == "name" else None
    lost += [f"config.{key} is left out" for key in package.config if key not in ("bioimageio", "voidzoo")]
    lost += ["the description is cut after 512 characters"] if len(" ".join(package.description.split())) > 512 else []
    lost += ["the attachments are left out"] if rdf.get("attachments") else []
    lost += (
        ["training_data has no id and is left out"] if rdf.get("training_data") and not words["training_data"] else []
    )
    lost += ["of the covers one is kept"] if len(listed(rdf.get("covers"))) > 1 else []
    lost += [f"{str(key)[:60]} is left out" for key, value in rdf.items() if value and key not in KEPT | MADE_ANEW]
    return words, lost


def _taken(key: str, value: str) -> bool:
    try:
        About(**{key: value})
    except RecipeError:
        return False
    return True


def _person(raw: Any) -> dict[str, Any] | None:
    """`Ada Ito;@institute` (format 0.3) or a mapping -> what of it the format takes; None without a name."""
    if isinstance(raw, str):
        name, _, place = raw.partition(";")
        raw = {"name": name, "affiliation": place.lstrip("@") or None}
    name = str(mapped(raw).get("name") or "").replace("/", "-").replace("\\", "-")
    if not name:
        return None
    found: dict[str, Any] = {"name": name}
    for key in ("affiliation", "email", "github_user", "orcid"):
        if raw.get(key) is not None:
            try:
                Person(name=name, **{key: str(raw[key])})
            except ValidationError:
                continue
            found[key] = str(raw[key])
    return found


def _citation(raw: Mapping[str, Any]) -> dict[str, Any] | None:
    given = {k: str(raw[k]) for k in ("text", "doi", "url") if raw.get(k)}
    for keys in (("text", "doi", "url"), ("text", "doi"), ("text", "url")):
        try:
            return Citation(**{k: given[k] for k in keys if k in given}).model_dump(exclude_none=True)
        except ValidationError:
            continue
    return None


def _training_data(rdf: Mapping[str, Any]) -> dict[str, str] | None:
    found = mapped(rdf.get("training_data")).get("id")
    return {"id": str(found)} if found else None


def nickname_of(package: Package) -> str:
    """The name under which the catalogue has it, else one made of its name."""
    given = mapped(package.config.get("bioimageio")).get("nickname") or package.rdf.get("id")
    return nickname(str(given or package.name))


def source_of(package: Package, kind: str, changes: Sequence[str]) -> dict[str, Any]:
    """What a package was made from: `config.voidzoo.source`."""
    return {
        **({"id": str(package.rdf["id"])} if package.rdf.get("id") else {}),
        "name": package.name, "version": package.version, "format_version": package.format,
        "weights": kind, "sha256": package.sha256, "changes": list(changes),
    }  # fmt: skip


def picture_of(package: Package) -> tuple[str, bytes] | None:
    """The first cover that catalogues show: its name here, and content."""
    for given in listed(package.rdf.get("covers")):
        try:
            data = package.files.read(_source(given), limit=MAX_COVER)
            with strangers_picture(data) as picture:
                kind = str(picture.format)
        except (PackageError, ImageError):
            continue
        if len(data) < MOST_COVER:
            return f"cover.{KINDS[kind]}", data
    return None


def pictures_of(package: Package) -> dict[str, bytes]:
    """What a package shows of its own figures, by file name: its README and `config.voidzoo.measured` need them."""
    found = {}
    for name in PICTURES.values() if package.ours.get("measured") else ():
        with suppress(PackageError):  # what it lacks it lacks afterwards
            found[name] = package.files.read(name, limit=MAX_COVER)
    return found


def _source(given: Any) -> str:
    return str(mapped(given).get("source") if isinstance(given, Mapping) else given)


def readme_of(package: Package, words: Mapping[str, Any], source: Mapping[str, Any]) -> str:
    """The README of what was made of a package: where it came from, what was changed, what its makers say."""
    try:
        given = package.rdf.get("documentation")
        text = package.files.read(_source(given), limit=MAX_TEXT).decode("utf-8", "replace").strip() if given else ""
    except PackageError:
        text = ""
    known = ", ".join(f"{k} {source[k]}" for k in ("id", "version", "format_version") if source.get(k))
    changes = "\n".join(f"- {c}" for c in source["changes"]) or "- nothing but the description"
    return f"""# {words["name"]}

{words["description"]}

Rewritten by voidzoo {__version__} from the bioimage.io package "{package.name}" ({known}),
whose {source["weights"]} weights have the sha256 {source["sha256"]}.

{changes}

## Validation

It was written only after it had given what the package of its makers gives, with its processing, on the test
tensors and on random images: the largest difference was below 1e-4 standard deviations of the output.

## What its makers say

{text or "Nothing."}
"""
