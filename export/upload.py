"""Whether a package is ready for bioimage.io: what upload, tests and reviewers ask for, and the line that mends it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..zoo.errors import ImageError, PackageError
from ..zoo.loose import listed, mapped
from ..zoo.package_files import MAX_COVER, MAX_TEXT
from ..zoo.pictures import strangers_picture
from .about import FILE, is_spdx, orcid_is_right

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..zoo.package import Package

MOST_COVER = 500_000
"""Bytes of a cover."""
RATIOS = (1.0, 2.0)
"""Width by height of a cover."""
MOST_DETAIL = 300
"""Characters of a line: what was found can be anything."""


@dataclass(frozen=True)
class Item:
    """One point of the list. detail: what was found; mend: the line that mends it, empty where it is done."""

    name: str
    done: bool
    detail: str
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "done": self.done, "detail": self.detail, "mend": self.mend}


def ready(package: Package) -> list[Item]:
    """Every point, done or not, but bioimageio.core's own test (`proof.check_consumer`). Nothing is run."""
    return [check(package) for check in _POINTS]


def _no_id(package: Package) -> Item:
    found = package.rdf.get("id")
    return _item("no id", not found, f"id {found}" if found else "the catalogue gives one", "remove id from rdf.yaml")


def _name(package: Package) -> Item:
    right = bool(re.fullmatch(r"[A-Za-z0-9_+\- ()]{5,64}", package.name))
    return _item("name", right, package.name, f"{FILE}: name: 5 to 64 letters, digits, spaces or _ + - ( )")


def _description(package: Package) -> Item:
    letters = len(package.description)
    return _item("description", 0 < letters <= 512, f"{letters} letters", f"{FILE}: description: one sentence")


def _authors(package: Package) -> Item:
    people = _mappings(package.rdf.get("authors"))
    lacking = sorted({
        key for p in people for key in ("affiliation", "orcid", "github_user")
        if not p.get(key) or (key == "orcid" and not orcid_is_right(str(p[key])))
    })  # fmt: skip
    named = [str(p.get("name")) for p in people if p.get("name") not in (None, "", "unnamed author")]
    detail = ", ".join(named) or "nobody"
    return _item(
        "authors", bool(named) and not lacking, detail + (f" without {', '.join(lacking)}" if lacking else ""),
        f"{FILE}: authors: name, affiliation, orcid, github_user of each",
    )  # fmt: skip


def _maintainers(package: Package) -> Item:
    people = _mappings(package.rdf.get("maintainers"))
    right = bool(people) and all(p.get("github_user") for p in people)
    detail = ", ".join(str(p.get("github_user") or p.get("name")) for p in people) or "nobody"
    return _item(
        "maintainers", right, detail, f"{FILE}: maintainers: name and github_user, or github_user of an author"
    )


def _licence(package: Package) -> Item:
    found = package.rdf.get("license")
    known = isinstance(found, str) and is_spdx(found)
    told = f"{found}{'' if known else ', which is no SPDX id'}" if found else "none"
    return _item("licence", known, told, f"{FILE}: license: CC-BY-4.0, or another SPDX id")


def _citations(package: Package) -> Item:
    cited = _mappings(package.rdf.get("cite"))
    right = bool(cited) and all(c.get("text") and (c.get("doi") or c.get("url")) for c in cited)
    return _item("citations", right, f"{len(cited)} works", f"{FILE}: cite: text and doi of each")


def _tags(package: Package) -> Item:
    from bioimageio.spec._internal.constants import TAG_CATEGORIES  # no public name has it

    tags = {str(t).lower() for t in listed(package.rdf.get("tags"))}
    missing = {kind: words for kind, words in TAG_CATEGORIES["model"].items() if not tags & set(words)}
    detail = f"none for {', '.join(missing)}" if missing else f"{len(tags)} tags, of every kind"
    words = [f"{kind}: {', '.join(known[:4])}, ..." for kind, known in missing.items()]
    return _item("tags", not missing, detail, f"{FILE}: tags: one each of {'; '.join(words)}")


def _cover(package: Package) -> Item:
    covers = listed(package.rdf.get("covers"))
    mend = "export again, or a PNG below 500 KB, 1:1 or 2:1, in covers"
    if not covers:
        return _item("cover", False, "none", mend)
    name = str(covers[0].get("source") if isinstance(covers[0], Mapping) else covers[0])
    try:
        data = package.files.read(name, limit=MAX_COVER)
        (width, height), kind = _picture(data)
    except (PackageError, ImageError) as error:
        return _item("cover", False, f"{name}: {str(error).splitlines()[0]}", mend)
    right = len(data) < MOST_COVER and width / max(height, 1) in RATIOS
    return _item("cover", right, f"{name}, {kind}, {width} x {height}, {len(data) / 1000:.0f} KB", mend)


def _picture(data: bytes) -> tuple[tuple[int, int], str]:
    """Width, height and kind, as the header says: no pixel is unpacked. Raises ImageError for what is no picture."""
    with strangers_picture(data) as picture:
        return picture.size, str(picture.format)


def _documentation(package: Package) -> Item:
    given = package.rdf.get("documentation")
    name = str(given.get("source") if isinstance(given, Mapping) else given or "")
    mend = "README.md with a heading '# Validation' and measured numbers below it"
    try:
        text = package.files.read(name, limit=MAX_TEXT).decode("utf-8", "replace") if name else ""
    except PackageError as error:
        return _item("documentation", False, str(error).splitlines()[0], mend)
    part = re.split(r"^#+ *validation.*$", text, maxsplit=1, flags=re.IGNORECASE | re.MULTILINE)
    right = len(part) == 2 and bool(re.search(r"\d", part[1]))
    detail = "Validation with numbers" if right else "no Validation" if len(part) < 2 else "Validation without numbers"
    return _item("documentation", right, f"{name or 'none'}: {detail}", mend)


def _repository(package: Package) -> Item:
    found = package.rdf.get("git_repo")
    return _item("source", bool(found), str(found or "none"), f"{FILE}: git_repo: https://github.com/...")


def _training_data(package: Package) -> Item:
    data = mapped(package.rdf.get("training_data"))
    linked = [c for c in _mappings(package.rdf.get("cite")) if "training data" in str(c.get("text")).lower()]
    found = data.get("id")
    detail = str(found or (linked[0].get("url") or linked[0].get("doi") if linked else "none"))
    return _item("training data", bool(found or linked), detail, f"{FILE}: training_data: https://doi.org/...")


def _test_tensors(package: Package) -> Item:
    tensors = (*package.inputs, *package.outputs)
    lacking = [t.id for t in tensors if t.test is None]
    detail = f"none for {', '.join(lacking)}" if lacking else f"{len(tensors)}"
    return _item("test tensors", not lacking, detail, "a .npy cut from real data for each input and output")


def _samples(package: Package) -> Item:
    raw = [t for key in ("inputs", "outputs") for t in package.rdf[key]]
    old = sum(len(listed(package.rdf.get(key))) for key in ("sample_inputs", "sample_outputs"))
    count = sum(bool(t.get("sample_tensor")) for t in raw) or old
    return _item(
        "sample images", count >= len(raw), f"{count} for {len(raw)} inputs and outputs",
        "export again: sample_tensor, a .tif, for each input and output",
    )  # fmt: skip


def _checksums(package: Package) -> Item:
    wrong = []
    for where, entry in _files(package.rdf):
        if not entry.get("sha256"):
            wrong.append(f"{where} without sha256")
            continue
        try:
            package.files.read(str(entry["source"]), str(entry["sha256"]))
        except PackageError as error:
            wrong.append(str(error).splitlines()[0])
    return _item("checksums", not wrong, "; ".join(wrong[:3]) or "all files as described", "export again")


def _torch_version(package: Package) -> Item:
    weights = mapped(package.rdf.get("weights"))
    found = {k: str(mapped(weights.get(k)).get("pytorch_version", "")) for k in ("pytorch_state_dict", "torchscript")}
    named = {k: v for k, v in found.items() if weights.get(k)}
    wrong = [k for k, v in named.items() if not re.fullmatch(r"\d+\.\d+(\.\d+)?", v)]
    detail = ", ".join(sorted({v or "none" for v in named.values()})) or "no torch weights"
    return _item("torch version", not wrong, detail, "pytorch_version: a plain release such as 2.5.1")


_POINTS: tuple[Callable[[Package], Item], ...] = (
    _no_id, _name, _description, _authors, _maintainers, _licence, _citations, _tags, _cover, _documentation,
    _repository, _training_data, _test_tensors, _samples, _checksums, _torch_version,
)  # fmt: skip


def _item(name: str, done: bool, detail: str, mend: str) -> Item:
    return Item(name, done, " ".join(detail.split())[:MOST_DETAIL], "" if done else mend)


def _mappings(given: Any) -> list[Mapping[str, Any]]:
    return [p for p in listed(given) if isinstance(p, Mapping)]


def _files(value: Any, where: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """Everything in the description that names a file by `source`."""
    if isinstance(value, Mapping):
        own = [(where, value)] if isinstance(value.get("source"), str) else []
        return own + [f for key, inner in value.items() for f in _files(inner, f"{where}.{key}".lstrip("."))]
    if isinstance(value, list):
        return [f for i, inner in enumerate(value) for f in _files(inner, f"{where}[{i}]")]
    return []
