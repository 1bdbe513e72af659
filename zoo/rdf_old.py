"""Descriptions of models in bioimage.io formats 0.3 and 0.4, put into the words of format 0.5.

What 0.4 says otherwise: axes are letters (`bczyx`); a size that follows another is `size * scale + 2 * offset`, the
scale being output over input; `axes` of a processing step are those that are reduced.
Source: https://github.com/bioimage-io/spec-bioimage-io, model descriptions 0.3 and 0.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {"b": "batch", "i": "index", "t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
MODES = {
    "zero_mean_unit_variance": ("fixed", "per_sample", "per_dataset"),
    "scale_range": ("per_sample", "per_dataset"),
    "scale_mean_variance": ("per_sample", "per_dataset"),
}
"""The steps that measure the image, and over what; the first is meant where none is given."""
MOST_CHANNELS = 2**16


def to_05(rdf: Mapping[str, Any]) -> dict[str, Any]:
    """A description in format 0.3 or 0.4 as one in 0.5. Raises KeyError, TypeError, ValueError for what cannot be."""
    inputs = [_named(t) for t in rdf["inputs"]]
    outputs = [_named(t) for t in rdf["outputs"]]
    tests = {"inputs": rdf.get("test_inputs") or [], "outputs": rdf.get("test_outputs") or []}
    sizes = {t["name"]: _smallest(t) for t in (*inputs, *outputs)}
    return {
        **{k: v for k, v in rdf.items() if k in ("name", "description", "version", "config")},
        "inputs": [_tensor(t, sizes, "preprocessing", test) for t, test in _with(inputs, tests["inputs"])],
        "outputs": [_tensor(t, sizes, "postprocessing", test) for t, test in _with(outputs, tests["outputs"])],
        "weights": _weights(rdf),
    }


def _named(tensor: Mapping[str, Any]) -> dict[str, Any]:
    """A copy in which an output's size says `reference_tensor`, as it does from 0.3.3 on, and lists are complete."""
    shape = tensor["shape"]
    if isinstance(shape, dict) and "reference_input" in shape:
        shape = {**shape, "reference_tensor": shape["reference_input"]}
    axes = str(tensor["axes"])
    if unknown := [a for a in axes if a not in TYPES]:
        raise ValueError(f"the axes {axes!r} of {tensor['name']}: {unknown[0]!r} is none of b i t c z y x")
    lists = [v for v in (shape.values() if isinstance(shape, dict) else [shape]) if isinstance(v, list)]
    halo = tensor.get("halo") or [0] * len(axes)
    for values in (*lists, halo):
        if len(values) != len(axes):
            raise ValueError(f"{tensor['name']} has the axes {axes!r} and {len(values)} numbers for them: {values}")
    return {**tensor, "axes": axes, "shape": shape, "halo": halo}


def _with(tensors: list[dict[str, Any]], tests: list[Any]) -> list[tuple[dict[str, Any], Any]]:
    return [(t, tests[i] if i < len(tests) else None) for i, t in enumerate(tensors)]


def _smallest(tensor: Mapping[str, Any]) -> dict[str, int]:
    """The smallest size by letter, where the tensor says it by itself."""
    shape = tensor["shape"]
    sizes = shape.get("min", ()) if isinstance(shape, dict) else shape
    return dict(zip(tensor["axes"], sizes, strict=False))


def _tensor(tensor: Mapping[str, Any], sizes: Mapping[str, Any], key: str, test: Any) -> dict[str, Any]:
    steps = [_step(s, tensor) for s in tensor.get(key) or []]
    if key == "preprocessing":  # a network of format 0.4 takes float32, whatever data_type says
        steps.append({"id": "ensure_dtype", "kwargs": {"dtype": "float32"}})
    return {
        "id": tensor["name"],
        "axes": [_axis(tensor, i, sizes, output=key == "postprocessing") for i in range(len(tensor["axes"]))],
        "data": {"type": tensor.get("data_type", "float32")},
        key: steps,
        **({} if test is None else {"test_tensor": test}),
    }


def _axis(tensor: Mapping[str, Any], i: int, sizes: Mapping[str, Any], *, output: bool) -> dict[str, Any]:
    letter = tensor["axes"][i]
    kind = TYPES[letter]
    axis = {"type": kind, "id": letter}
    if kind == "batch":  # weights of a fixed shape often take no other batch than the one they were exported with
        return {**axis, "size": tensor["shape"][i]} if isinstance(tensor["shape"], list) and not output else axis
    size, scale = _size(tensor, i, sizes)
    if kind == "channel":
        if not isinstance(size, int) or not 0 < size <= MOST_CHANNELS:
            raise ValueError(f"the number of channels of {tensor['name']} is {size}; a fixed number is needed")
        return {**axis, "channel_names": [f"channel{n}" for n in range(size)]}
    halo = tensor["halo"][i] if output and kind != "index" else 0
    return {**axis, "size": size, "scale": scale, "halo": halo}


def _size(tensor: Mapping[str, Any], i: int, sizes: Mapping[str, Any]) -> tuple[Any, float]:
    """The size of an axis in the words of 0.5, and its scale."""
    shape, letter = tensor["shape"], tensor["axes"][i]
    if isinstance(shape, list):
        return shape[i], 1.0
    if "step" in shape:
        step = shape["step"][i]
        return ({"min": shape["min"][i], "step": step} if step else shape["min"][i]), 1.0
    reference, scale, offset = shape["reference_tensor"], shape["scale"][i], 2 * shape["offset"][i]
    if not scale:  # an axis that the reference does not have
        return _pixels(offset, tensor), 1.0
    if letter in "ci":  # counts, which have no scale
        if letter not in sizes[reference]:
            raise ValueError(f"{tensor['name']}: the size of {letter} in {reference} is not given by itself")
        number = int(scale * sizes[reference][letter] + offset)
        return (number, 1.0) if letter == "c" else _index_size(reference, letter, scale, offset, number)
    return {"tensor_id": reference, "axis_id": letter, "offset": _pixels(offset, tensor)}, 1.0 / scale


def _index_size(reference: str, letter: str, scale: float, offset: float, number: int) -> tuple[Any, float]:
    if scale != 1:
        return number, 1.0
    return {"tensor_id": reference, "axis_id": letter, "offset": int(offset)}, 1.0


def _pixels(offset: float, tensor: Mapping[str, Any]) -> int:
    if offset != int(offset):
        raise ValueError(f"an offset of {tensor['name']} is {offset / 2}; it counts in half pixels")
    return int(offset)


def _step(step: Mapping[str, Any], tensor: Mapping[str, Any]) -> dict[str, Any]:
    name, kwargs = step["name"], dict(step.get("kwargs") or {})
    axes = kwargs.pop("axes", None)
    if name in MODES:
        mode = kwargs.pop("mode", MODES[name][0])
        if mode not in MODES[name]:
            raise ValueError(f"{name} has the mode {mode!r}; {', '.join(MODES[name])} are known")
    if name == "scale_linear":
        return {"id": name, "kwargs": _along(tensor, axes, kwargs, {"gain": 1.0, "offset": 0.0})}
    if name == "zero_mean_unit_variance" and mode == "fixed":
        eps_free = {k: v for k, v in kwargs.items() if k != "eps"}
        return {"id": f"fixed_{name}", "kwargs": _along(tensor, axes, eps_free, {"mean": None, "std": None})}
    if name in MODES:
        reduced = [a for a in (tensor["axes"] if axes is None else axes) if a != "b"]
        kwargs["axes"] = ["b", *reduced] if mode == "per_dataset" else reduced
    elif axes is not None:
        kwargs["axes"] = list(axes)  # read_package says whether the step takes them
    return {"id": name, "kwargs": kwargs}


def _along(
    tensor: Mapping[str, Any], axes: str | None, kwargs: Mapping[str, Any], defaults: Mapping[str, float | None]
) -> dict[str, Any]:
    """Values that are given once, or as a list along the one axis that `axes` leaves: scalars, or lists and `axis`."""
    if unknown := set(kwargs) - set(defaults):
        raise ValueError(f"{sorted(unknown)[0]!r} is not known; {' and '.join(defaults)} are")
    values = {k: kwargs.get(k, default) for k, default in defaults.items()}
    if missing := [k for k, v in values.items() if v is None]:
        raise ValueError(f"{' and '.join(missing)} of fixed values are missing")
    length = max(len(v) if isinstance(v, list) else 1 for v in values.values())
    if length == 1:
        return {k: v[0] if isinstance(v, list) else v for k, v in values.items()}
    left = [a for a in tensor["axes"] if a != "b" and a not in (axes if axes is not None else "tzyxi")]
    if len(left) != 1:
        raise ValueError(f"{length} values for {tensor['name']}, whose axes {', '.join(left) or 'none'} are left")
    return {"axis": left[0], **{k: v if isinstance(v, list) else [v] * length for k, v in values.items()}}


def _weights(rdf: Mapping[str, Any]) -> dict[str, Any]:
    weights = {k: dict(v) for k, v in (rdf.get("weights") or {}).items() if v is not None}
    if "pytorch_script" in weights:  # its name before 0.4
        weights["torchscript"] = weights.pop("pytorch_script")
    if state := weights.get("pytorch_state_dict"):
        for old, key in (("source", "architecture"), ("sha256", "architecture_sha256"), ("kwargs", "kwargs")):
            if key not in state and str(rdf["format_version"]).startswith("0.3") and rdf.get(old) is not None:
                state[key] = rdf[old]
        state["architecture"] = _architecture(
            str(state.get("architecture", "")), state.pop("architecture_sha256", None), state.pop("kwargs", None)
        )
    return weights


def _architecture(text: str, sha256: str | None, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`file.py:Class` or `module.Class` in the words of 0.5."""
    place, colon, name = text.rpartition(":")
    if colon:
        return {"source": place, "callable": name, "sha256": sha256, "kwargs": dict(kwargs or {})}
    module, _, name = text.rpartition(".")
    return {"import_from": module, "callable": name, "kwargs": dict(kwargs or {})}
