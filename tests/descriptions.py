"""Descriptions of models as dicts, and how to spoil them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.package import Package

Rdf = dict[str, Any]


def axis(kind: str, name: str | None = None, size: Any = None, **more: Any) -> Rdf:
    """One axis; kind: batch, channel, time, index, space."""
    return {"type": kind, **({} if name is None else {"id": name}), **({} if size is None else {"size": size}), **more}


def channels(*names: str) -> Rdf:
    return axis("channel", channel_names=list(names))


def free(minimum: int = 64, step: int = 16) -> Rdf:
    return {"min": minimum, "step": step}


def like(name: str, tensor: str = "raw", offset: int | None = None) -> Rdf:
    return {"tensor_id": tensor, "axis_id": name, **({} if offset is None else {"offset": offset})}


def model(inputs: list[Rdf] | None = None, outputs: list[Rdf] | None = None, **more: Any) -> Rdf:
    """A description around some tensors; those of a 2D denoiser where none are given."""
    raw = {
        "id": "raw",
        "axes": [axis("batch"), channels("signal"), axis("space", "y", free()), axis("space", "x", free())],
    }
    out = {"id": "out", "axes": [axis("batch"), channels("clean"), axis("space", "y", like("y"), halo=8),
                                 axis("space", "x", like("x"), halo=8)]}  # fmt: skip
    return {
        "type": "model", "format_version": "0.5.4", "name": "a model", "description": "it does something",
        "authors": [{"name": "Ada Ito"}], "cite": [{"text": "a paper", "doi": "10.1000/182"}], "license": "MIT",
        "documentation": "README.md", "timestamp": "2026-02-02T22:22:22",
        "inputs": copy.deepcopy(inputs or [raw]), "outputs": copy.deepcopy(outputs or [out]),
        "weights": {"onnx": {"source": "weights.onnx", "sha256": "0" * 64, "opset_version": 17}},
        **more,
    }  # fmt: skip


JUNK: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -3,
        2.5,
        float("nan"),
        float("inf"),
        "",
        "y",
        "raw",
        [],
        ["x"],
        [[]],
        {},
        {"min": 1},
        {1: 2},
        10**30,
    ]
)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to all parts of a description."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [inner for k, v in items for inner in ((*path, k), *nodes(v, (*path, k)))]


def mangled(rdf: Rdf, path: tuple[Any, ...], junk: Any, *, drop: bool) -> Rdf:
    """A copy with one part left out or something else in its place."""
    rdf = copy.deepcopy(rdf)
    place = rdf
    for key in path[:-1]:
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = junk
    return rdf


def tried(read: Callable[[Rdf], Package], rdf: Rdf) -> Package | PackageError:
    """The package, or the refusal; any other error is one of the test."""
    try:
        return read(rdf)
    except PackageError as error:
        return error
