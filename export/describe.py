"""rdf.yaml in format 0.5.4 with plain strings: the form that every consumer reads (docs/decisions/0003)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from .about import About
    from .portable import End, Parts

FORMAT = "0.5.4"


class _Plain(yaml.SafeDumper):
    """No anchors: what is there twice is written twice."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def describe(parts: Parts, files: Mapping[str, bytes]) -> str:
    """The text of rdf.yaml. files: name -> content of everything that it names by sha256."""
    words = dict(parts.words)
    rdf = {
        "type": "model",
        "format_version": FORMAT,
        **{k: v for k, v in words.items() if v not in (None, "", [], {})},
        "cite": words.get("cite") or [],
        "authors": words.get("authors") or [{"name": "unnamed author"}],
        "tags": list(dict.fromkeys(words.get("tags") or [])),
        "covers": [parts.picture[0] if parts.picture else "cover.png"],
        "documentation": "README.md",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {
            "bioimageio": {"nickname": parts.nickname or nickname(words["name"])},
            "voidzoo": dict(parts.ours),
        },
        "inputs": [_tensor("input", parts.input, files)],
        "outputs": [_tensor("output", parts.output, files)],
        "weights": _weights(parts, files),
    }
    return yaml.dump(rdf, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)


def words_of(about: About, name: str) -> dict[str, Any]:
    """What a voidzoo.yaml says of a model, in the words of rdf.yaml; the description and tags are the caller's."""
    linked = [{"text": "Training data.", "url": about.training_link}] if about.training_link else []
    return {
        "name": name,
        "description": about.description,
        "version": about.version,
        "authors": [p.model_dump(exclude_none=True) for p in about.authors],
        "maintainers": [p.model_dump(exclude_none=True) for p in about.asked],
        "cite": [*(c.model_dump(exclude_none=True) for c in about.cite), *linked],
        "license": about.license,
        "git_repo": about.git_repo,
        "training_data": {"id": about.training_data} if about.training_data and not linked else None,
        "tags": list(about.tags),
    }


def _tensor(name: str, end: End, files: Mapping[str, bytes]) -> dict[str, Any]:
    """An input or output."""
    steps = {"input": "preprocessing", "output": "postprocessing"}[name]
    return {
        "id": name,
        "description": end.text,
        "axes": [
            {"type": "batch", **({"size": 1} if end.one else {})},
            {"type": "channel", "id": "channel", "channel_names": list(end.channels)},
            *(_axis(letter, said) for letter, said in end.space.items()),
        ],
        "data": {"type": "float32"},
        **({steps: [dict(s) for s in end.steps]} if end.steps else {}),
        "test_tensor": _file(f"test_{name}.npy", files),
        "sample_tensor": _file(f"sample_{name}.tif", files),
    }


def _axis(letter: str, said: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "time", "id": "time", **said} if letter == "t" else {"type": "space", "id": letter, **said}


def _weights(parts: Parts, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The forms of one network; the first of them is what the others were made from."""
    version: dict[str, Any] = {"pytorch_version": parts.torch}
    found: dict[str, dict[str, Any]] = {}
    if parts.state is not None:
        code = _file(parts.state.file, files) if parts.state.code is not None else {}
        found["pytorch_state_dict"] = {
            **_file("weights.pt", files), "architecture": {**code, **parts.state.made}, **version,
        }  # fmt: skip
    if parts.torchscript is not None:
        found["torchscript"] = {**_file("weights.torchscript.pt", files), **version}
    found["onnx"] = {**_file("weights.onnx", files), "opset_version": parts.opset}
    root = next(iter(found))
    return {kind: entry if kind == root else {**entry, "parent": root} for kind, entry in found.items()}


def channel_ids(names: Sequence[str]) -> list[str]:
    """Channel names as the format takes them (identifiers, unique): `DAPI 405` -> `DAPI_405`."""
    found: list[str] = []
    for i, name in enumerate(names):
        word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
        word = word if re.match(r"[a-z]", word) and not iskeyword(word) else f"channel_{word or i}"
        while word in found:
            word = f"{word}_{i}"
        found.append(word)
    return found


def nickname(name: str) -> str:
    """The name that stands for an id, without which Fiji opens nothing: `My model (v1)` -> `my-model-v1`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def _file(name: str, files: Mapping[str, bytes]) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}
