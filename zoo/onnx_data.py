"""ONNX weights of strangers: refused where they reach beyond themselves; put together where they lie in two files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from .errors import PackageError
from .onnx_wire import contents

DOMAINS = ("", "ai.onnx.ml", "com.microsoft")
"""Where operators come from that onnxruntime brings along; functions of the file itself may have any."""
FORBIDDEN = (("com.microsoft", "EPContext"),)
"""Operators that open files, compiled code of devices."""
MAX_TENSOR = 8 * 2**30
"""Bytes of a constant, as its dimensions say."""
MAX_JOINED = 2**31 - 1
"""What protobuf can hold."""


def refuse_strange(data: bytes, path: str) -> None:
    """Raise PackageError for ONNX weights of the package at `path` that read other files, need operators of no runtime,
    hold constants of more than MAX_TENSOR, or are no ONNX. Nothing is run or loaded.
    """
    try:
        found = contents(data)
    except ValueError as error:
        raise PackageError(f"{path}: its ONNX weights cannot be read.", where=str(error)[:200]) from error
    if found.external:
        one = found.external[0]
        location = one.place.get("location", "")[:200]
        raise PackageError(
            f"{path}: its ONNX weights read another file, {location!r}, which rdf.yaml does not name as external_data.",
            where=f"tensor {one.name[:100]!r}", mend="get the whole package from its makers",
        )  # fmt: skip
    own = {domain for domain, _ in found.functions}
    if foreign := sorted(found.domains - own - set(DOMAINS)):
        raise PackageError(
            f"{path}: its ONNX weights need operators of {foreign[0][:100]!r}, which are code from elsewhere.",
            mend="a package of operators of ONNX alone",
        )
    if files := sorted(found.operators & set(FORBIDDEN)):
        raise PackageError(f"{path}: its ONNX weights have the operator {files[0][1]}, which loads compiled code.")
    if found.largest > MAX_TENSOR:
        raise PackageError(
            f"{path}: its ONNX weights hold a tensor of {found.largest:,} bytes; {MAX_TENSOR:,} are the most."
        )


def embed(model: bytes, data: bytes, name: str) -> bytes:
    """The model with the tensors that lie in `data` (the file `name`) inside. Raises PackageError if they do not fit,
    or lie in any other file.

    Source of the layout: https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    try:
        proto = onnx.load_model_from_string(model)
        left = MAX_JOINED - len(model)
        for tensor in _tensors(proto):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, stop = _span(place, len(data), name, tensor.name)
            left -= stop - start
            if left < 0:
                raise ValueError(f"together they have more than {MAX_JOINED:,} bytes")
            tensor.raw_data = data[start:stop]
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return proto.SerializeToString()
    except (DecodeError, EncodeError, ValueError) as error:  # more than 2 GB cannot be encoded
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"the ONNX weights cannot be joined with {name}.", where=str(error)[:200]) from error


def _span(place: dict[str, str], size: int, name: str, tensor: str) -> tuple[int, int]:
    """Where a tensor lies in the second file. Raises PackageError for another file, or beyond its ends."""
    location = PurePosixPath(place.get("location", ""))
    if location.name != PurePosixPath(name).name or location.is_absolute() or ".." in location.parts:
        raise PackageError(f"the tensor {tensor} lies in {str(location)[:200]!r}; rdf.yaml names {name} alone.")
    start = int(place.get("offset", 0))
    stop = start + int(place["length"]) if "length" in place else size
    if not 0 <= start <= stop <= size:
        raise PackageError(f"{name} has {size:,} bytes; the tensor {tensor} ends at {stop:,}.")
    return start, stop


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, of the graphs inside of its nodes, and of its functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for inner in (attribute.g, *attribute.graphs):
                yield from _of_graph(inner)
