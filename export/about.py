"""What only a person can say of a model: who made it, under which licence, what to cite. Kept once, in voidzoo.yaml."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ..zoo.errors import RecipeError, nearest

FILE = "voidzoo.yaml"
EXAMPLE = """\
# voidzoo.yaml: what `voidzoo export` says of all models that are made in this folder and below.
authors:
  - name: Ada Ito
    affiliation: Institute of Cells, Town
    orcid: 0000-0002-1825-0097
    github_user: adaito
license: CC-BY-4.0
git_repo: https://github.com/adaito/models
training_data: https://doi.org/10.5281/zenodo.1234567
data: widefield stacks of mitochondria in fixed HeLa cells, 60x, 0.1 um pixels
data_license: CC0-1.0
limits:
  - Noise of other cameras and gains was not tried.
tags: [fluorescence-light-microscopy, mitochondria]
cite:
  - text: Ito A. Mitochondria at night. 2026.
    doi: 10.1234/abcd
"""


class _Said(BaseModel):
    """Unknown keys are refused, values are not changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, coerce_numbers_to_str=True)


class Person(_Said):
    """An author or maintainer. orcid: sixteen digits in fours; github_user: the account's name."""

    name: str
    affiliation: str | None = None
    email: str | None = None
    github_user: str | None = None
    orcid: str | None = None

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        if not name or "/" in name or "\\" in name:
            raise ValueError("a name without slashes")
        return name

    @field_validator("orcid")
    @classmethod
    def _orcid(cls, orcid: str | None) -> str | None:
        if orcid is not None and not orcid_is_right(orcid):
            raise ValueError("an ORCID such as 0000-0002-1825-0097; its last digit is a checksum, which does not fit")
        return orcid

    @field_validator("github_user")
    @classmethod
    def _account(cls, user: str | None) -> str | None:
        if user is not None and not re.fullmatch(r"[A-Za-z0-9](-?[A-Za-z0-9]){0,38}", user):
            raise ValueError("the name of a GitHub account, not its address")
        return user


class Citation(_Said):
    """Text, and where it is found."""

    text: str
    doi: str | None = None
    url: str | None = None

    @field_validator("doi")
    @classmethod
    def _bare_doi(cls, doi: str | None) -> str | None:
        doi = doi and re.sub(r"^(https?://(dx\.)?doi\.org/|doi:)", "", doi)
        if doi is not None and not re.fullmatch(r"10\.[0-9.]{4,}/\S+", doi):
            raise ValueError("a DOI such as 10.1038/s41592-018-0216-7")
        return doi

    @field_validator("url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        return _checked_url(url)

    @model_validator(mode="after")
    def _found_somewhere(self) -> Self:
        if self.doi is None and self.url is None:
            raise ValueError("a doi or a url beside its text")
        return self


class About(_Said):
    """All that is said. license: SPDX id. training_data: a link or DOI, or the id of a dataset at bioimage.io.

    data: in words, what the training images show; data_license: theirs, SPDX id; limits: sentences, what the model is
    not for. maintainers: by default the authors with a github_user.
    Raises RecipeError for what the format does not take.
    """

    name: str | None = None
    description: str = ""
    version: str = "0.1.0"
    authors: tuple[Person, ...] = ()
    maintainers: tuple[Person, ...] = ()
    license: str | None = None
    cite: tuple[Citation, ...] = ()
    tags: tuple[str, ...] = ()
    git_repo: str | None = None
    training_data: str | None = None
    data: str | None = None
    data_license: str | None = None
    limits: tuple[str, ...] = ()

    def __init__(self, /, **said: Any) -> None:
        """Raise RecipeError that names the key, what it holds and what is legal."""
        try:
            super().__init__(**said)
        except ValidationError as error:
            raise _refusal(error) from None

    @field_validator("authors", "maintainers", mode="before")
    @classmethod
    def _names_alone(cls, people: Any) -> Any:
        """Names without more are persons, too."""
        return (
            [{"name": p} if isinstance(p, str) else p for p in people] if isinstance(people, list | tuple) else people
        )

    @field_validator("name")
    @classmethod
    def _model_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9_+\- ()]{5,64}", name):
            raise ValueError(f"5 to 64 letters, digits, spaces or _ + - ( ), e.g. {suggest_name(name)!r}")
        return name

    @field_validator("description")
    @classmethod
    def _one_sentence(cls, text: str) -> str:
        if len(text) > 512:
            raise ValueError(f"at most 512 letters; it has {len(text)}")
        return text

    @field_validator("version")
    @classmethod
    def _version(cls, text: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?", text):
            raise ValueError("a version such as 0.1.0 or 2.0rc1")
        return text

    @field_validator("license", "data_license")
    @classmethod
    def _spdx(cls, licence: str | None) -> str | None:
        if licence is not None and not is_spdx(licence):
            raise ValueError(
                f"an SPDX id{nearest(licence, spdx_ids())}, e.g. CC-BY-4.0, CC0-1.0, MIT: https://spdx.org/licenses"
            )
        return licence

    @field_validator("git_repo")
    @classmethod
    def _repository(cls, url: str | None) -> str | None:
        return _checked_url(url)

    @property
    def asked(self) -> tuple[Person, ...]:
        """Who maintains it."""
        return self.maintainers or tuple(p for p in self.authors if p.github_user)

    @property
    def training_link(self) -> str | None:
        """Where the training data lie, if that is an address."""
        data = self.training_data
        if data is None or not re.match(r"https?://|doi:|10\.\d{4,}/", data):
            return None
        return data if data.startswith("http") else f"https://doi.org/{data.removeprefix('doi:')}"

    @classmethod
    def read(cls, path: Path, said: Mapping[str, Any]) -> Self:
        """A voidzoo.yaml, with what else was said in its place. Raises RecipeError for one that cannot be read."""
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise RecipeError(f"{path} cannot be read: {error.strerror}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
        if not isinstance(found, dict):
            raise RecipeError(f"{path} has no lines such as 'license: CC-BY-4.0'.")
        try:
            return cls(**{str(k): v for k, v in found.items() if v is not None} | dict(said))
        except RecipeError as error:
            raise RecipeError(error.what, str(path), error.mend) from None


def find_about(folder: Path) -> Path | None:
    """The voidzoo.yaml of a folder, or of the nearest one above it."""
    for place in (folder.resolve(), *folder.resolve().parents):
        with contextlib.suppress(OSError):  # a folder above that may not be looked into
            if (place / FILE).is_file():
                return place / FILE
    return None


def about_of(about: str | Path | About | None, given: Mapping[str, Any]) -> About:
    """What is said: in the file or the nearest one, with what is given in its place. Raises RecipeError."""
    if isinstance(about, About):
        return About(**(about.model_dump(exclude_defaults=True) | dict(given)))
    path = find_about(Path.cwd()) if about is None else Path(about)
    return About(**given) if path is None else About.read(path, given)


def orcid_is_right(orcid: str) -> bool:
    """Form and check digit (ISO 7064, MOD 11-2): https://support.orcid.org/hc/articles/360006897674"""
    if not re.fullmatch(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]", orcid):
        return False
    total = 0
    for digit in orcid.replace("-", "")[:-1]:
        total = (total + int(digit)) * 2
    check = (12 - total % 11) % 11
    return orcid[-1] == ("X" if check == 10 else str(check))


def suggest_name(text: str) -> str:
    """A legal model name from any text: `runs/a` -> `runs-a`."""
    name = re.sub(r"[^A-Za-z0-9_+() -]+", "-", text).strip("-")[:64]
    return name if len(name) >= 5 else f"model-{name or 'n2v'}"


def _checked_url(url: str | None) -> str | None:
    if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc):
        raise ValueError("an address that begins with https://")
    return url


def is_spdx(licence: str) -> bool:
    """Whether a licence is one that the format takes."""
    return licence in spdx_ids()


@cache
def spdx_ids() -> frozenset[str]:
    """bioimageio.spec, which knows all SPDX ids, costs a second to import."""
    from bioimageio.spec.generic.v0_3 import DeprecatedLicenseId, LicenseId

    kinds = (LicenseId, DeprecatedLicenseId)
    return frozenset(word for kind in kinds for word in kind.root_model.model_json_schema()["enum"])


def _refusal(error: ValidationError) -> RecipeError:
    """The first complaint of pydantic in the words of the house; a misspelt key before what it leaves out."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "extra_forbidden":
        key, kinds = str(first["loc"][-1]), {1: About, 3: Person if first["loc"][0] != "cite" else Citation}
        known = kinds[len(first["loc"])].model_fields
        return RecipeError(f"{place}: there is no such key{nearest(key, known)}.", mend=f"keys: {', '.join(known)}")
    legal = str(first["ctx"]["error"]) if first["type"] == "value_error" else _LEGAL.get(first["type"], first["msg"])
    return RecipeError(f"{place}: {first['input']!r} cannot be; it must be {legal}.")


_LEGAL = {
    "missing": "given",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "keys and values, such as name: Ada Ito",
}
