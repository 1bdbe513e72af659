"""What a package says of itself, in the words that the table of `consumers` is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..zoo.errors import PackageError
from ..zoo.loose import listed, mapped
from ..zoo.onnx_data import refuse_strange
from ..zoo.onnx_wire import contents
from ..zoo.package import Package, Step, Tensor

FIJI_OPSETS = range(6, 19)
"""Opsets for which JDLL knows an onnxruntime (availableDLVersions.json)."""

TASKS = (
    "denoising", "image-restoration", "image-to-image", "image-reconstruction", "pix2pix", "super-resolution",
    "semantic-segmentation", "instance-segmentation", "detection", "classification", "self-supervision",
)  # fmt: skip
"""Tags that name what a model is for, as BiaPy knows them."""


def facts_of(package: Package) -> dict[str, Any]:
    """Fact -> value: a word, a number, a truth, or a frozenset of words. Weights are read, nothing is run.

    Raises PackageError for ONNX weights that reach beyond themselves.
    """
    rdf, tensors = package.rdf, (*package.inputs, *package.outputs)
    opset, ir = _onnx_versions(package)
    weights = frozenset((*(w.kind for w in package.weights), *package.other_weights))
    old = not package.format.startswith("0.5")
    return {
        "format": ".".join(package.format.split(".")[:2]),
        "covers and documentation": _kinds([*listed(rdf.get("covers")), rdf.get("documentation")]),
        "description": package.files.description,
        "identity": _identity(rdf),
        "authors": bool(rdf.get("authors")),
        "weights": weights,
        "weights as described": _as_described(package),
        "weights for Fiji": weights & {"torchscript", "tensorflow_saved_model_bundle"}
        | ({"onnx"} if opset in FIJI_OPSETS and not _in_two_files(package) else frozenset()),
        "ONNX file": "unreadable" if "onnx" in weights and not opset else "readable",
        "IR version": ir,
        "state dict": _state_dict(package),
        "classes": _classes(package),
        "library of the network": _library(package),
        "inputs": len(package.inputs),
        "outputs": len(package.outputs),
        "layouts": frozenset(t.letters for t in tensors),
        "axes": frozenset(a for t in tensors for a in t.letters),
        "space axes": max(sum(a.letter in "zyx" for a in t.axes) for t in tensors),
        "axes of the output": _order(package.inputs[0], package.outputs[0]),
        "output has channels": all("c" in t.letters for t in package.outputs),
        "space axes without id": False if old else _without_id(rdf),
        "sizes": frozenset(_size(t, a) for t in tensors for a in t.letters if a in "tzyx"),
        "fixed output with halo": old and any(a.halo and a.size is not None for t in package.outputs for a in t.axes),
        "operations": frozenset(_operation(s) for t in tensors for s in t.steps if s.name != "ensure_dtype"),
        "preprocessing": frozenset(_operation(s) for t in package.inputs for s in t.steps if s.name != "ensure_dtype"),
        "preprocessing steps": sum(s.name != "ensure_dtype" for t in package.inputs for s in t.steps),
        "tags": frozenset(str(t).lower() for t in listed(rdf.get("tags"))),
        "attachments": frozenset(_attachments(rdf)),
    }


def _as_described(package: Package) -> bool:
    """Whether the weights that can be run, and the code that they need, are the files that the description tells."""
    try:
        for weights in package.weights:
            package.files.read(weights.source, weights.sha256)
            code = mapped(weights.options.get("architecture"))
            if code.get("source"):
                package.files.read(str(code["source"]), code.get("sha256"))
    except PackageError:
        return False
    return True


def _in_two_files(package: Package) -> bool:
    """Whether the tensors of the ONNX weights lie beside them, which Java's readers do not know."""
    return any(w.options.get("external_data") for w in package.weights if w.kind == "onnx")


def _kinds(values: list[Any]) -> str:
    """Strings, as until 0.5.10, or maps with source and sha256, as from 0.5.11 on."""
    return "maps" if any(isinstance(v, Mapping) for v in values) else "strings"


def _identity(rdf: Mapping[str, Any]) -> str:
    config = mapped(rdf.get("config"))
    if rdf.get("id"):
        return "id"
    if mapped(config.get("bioimageio")).get("nickname"):
        return "nickname"
    return "config without either" if config else "none"


def _state_dict(package: Package) -> str:
    """none, with or without kwargs for its architecture."""
    if not isinstance(mapped(package.rdf.get("weights")).get("pytorch_state_dict"), Mapping):
        return "none"
    return "with kwargs" if _kwargs(package) else "without kwargs"


def _kwargs(package: Package) -> Mapping[str, Any]:
    """Of the network of the state dict, in the ways in which formats 0.4 and 0.5 say them."""
    entry = mapped(mapped(package.rdf.get("weights")).get("pytorch_state_dict"))
    architecture = entry.get("architecture")
    return mapped(architecture.get("kwargs") if isinstance(architecture, Mapping) else entry.get("kwargs"))


def _classes(package: Package) -> str:
    """Whether a model whose task is semantic segmentation alone says how many classes it has."""
    tasks = {str(t).lower() for t in listed(package.rdf.get("tags"))} & set(TASKS)
    if tasks != {"semantic-segmentation"}:
        return "not asked for"
    return "told" if {"out_channels", "n_classes"} & set(_kwargs(package)) else "not told"


def _library(package: Package) -> str:
    """The library that a state dict's network is imported from, where no other weights can be run; else none."""
    if {w.kind for w in package.weights} != {"pytorch_state_dict"}:
        return "none"
    return str(mapped(package.weights[0].options.get("architecture")).get("import_from") or "none").partition(".")[0]


def _onnx_versions(package: Package) -> tuple[int, int]:
    """(opset, IR version) as the file itself says; zeros without ONNX weights or where they cannot be read."""
    weights = next((w for w in package.weights if w.kind == "onnx"), None)
    if weights is None:
        return 0, 0
    import onnx
    from google.protobuf.message import DecodeError

    try:
        data = package.files.read(weights.source)
        contents(data)
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError):  # a PackageError is one
        return 0, 0
    if not _in_two_files(package):
        refuse_strange(data, package.path)
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0), model.ir_version


def _order(inner: Tensor, outer: Tensor) -> str:
    """Whether the output's axes come in the order of the input's."""
    shared = [a for a in outer.letters if a in inner.letters]
    return "in the input's order" if shared == [a for a in inner.letters if a in outer.letters] else "in another order"


def _without_id(rdf: Mapping[str, Any]) -> bool:
    axes = [a for key in ("inputs", "outputs") for t in rdf[key] for a in t["axes"]]
    return any(a["type"] == "space" and "id" not in a for a in axes)


def _size(tensor: Tensor, letter: str) -> str:
    axis = tensor.axis(letter)
    assert axis is not None, letter
    if axis.data_dependent:
        return "known after the run"
    if axis.size is not None:
        return "fixed"
    return "by reference" if axis.reference is not None else "with a step"


def _operation(step: Step) -> str:
    """The name of a step, and of its settings what consumers trip over."""
    kwargs = step.kwargs
    if step.name in ("scale_linear", "fixed_zero_mean_unit_variance"):
        return f"{step.name} {'a channel' if kwargs.get('axis') else 'of one number'}"
    if step.name == "scale_range" and kwargs.get("reference_tensor"):
        return "scale_range by another tensor"
    if step.name == "clip" and ("min" not in kwargs or "max" not in kwargs):
        return "clip at one end"
    return step.name


def _attachments(rdf: Mapping[str, Any]) -> list[str]:
    """The names of attached files, in the ways in which formats 0.4 and 0.5 say them."""
    given = rdf.get("attachments")
    files = listed(given.get("files") if isinstance(given, Mapping) and "source" not in given else given)
    sources = [f.get("source") if isinstance(f, Mapping) else f for f in files]
    return [Path(str(s)).name for s in sources]
