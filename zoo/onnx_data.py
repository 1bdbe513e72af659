"""ONNX weights whose tensors lie in a second file, put together again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .errors import PackageError


def embed(model: bytes, data: bytes, name: str) -> bytes:
    """The model with the tensors that lie in `data` (the file `name`) inside. Raises PackageError if they do not fit.

    Source of the layout: https://onnx.ai/onnx/repo-docs/ExternalData.html
    """
    import onnx
    from google.protobuf.message import DecodeError, EncodeError

    try:
        proto = onnx.load_model_from_string(model)
        for tensor in _tensors(proto.graph):
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            place = {entry.key: entry.value for entry in tensor.external_data}
            start = int(place.get("offset", 0))
            stop = start + int(place["length"]) if "length" in place else len(data)
            if stop > len(data):
                raise PackageError(f"{name} has {len(data):,} bytes; the tensor {tensor.name} ends at {stop:,}.")
            tensor.raw_data = data[start:stop]
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        return proto.SerializeToString()
    except (DecodeError, EncodeError, ValueError) as error:  # more than 2 GB cannot be encoded
        if isinstance(error, PackageError):
            raise
        raise PackageError(f"the ONNX weights cannot be joined with {name}.", where=str(error)[:200]) from error


def _tensors(graph: Any) -> Iterator[Any]:
    """All tensors of a graph and of the graphs inside of its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
