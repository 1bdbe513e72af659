"""The description of a model in bioimage.io format 0.5, read and checked: rdf.yaml -> Package.

Source: https://github.com/bioimage-io/spec-bioimage-io, model description 0.5. What cannot be is a ValueError, KeyError
or TypeError inside, and one PackageError outside.
"""

from __future__ import annotations

import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import PackageError, nearest
from .package import KINDS, RUNNABLE, Package, SizeOf, Step, Tensor, TensorAxis, Weights

LETTERS = {"batch": "b", "channel": "c", "time": "t", "index": "i"}
SPACE = {"x": "x", "y": "y", "z": "z", "w": "x", "h": "y", "d": "z", "width": "x", "height": "y", "depth": "z"}
IDS = {"b": "batch", "c": "channel", "t": "time", "i": "index"}
"""The letters of format 0.4, which the format takes as axis ids too."""
DTYPES = ("float32", "float64", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "bool")
STEPS: dict[str, tuple[str, ...] | None] = {
    "binarize": ("threshold", "axis"),
    "clip": ("min", "max", "min_percentile", "max_percentile", "axes"),
    "ensure_dtype": ("dtype",),
    "fixed_zero_mean_unit_variance": ("mean", "std", "axis"),
    "scale_linear": ("gain", "offset", "axis"),
    "scale_mean_variance": ("reference_tensor", "axes", "eps"),
    "scale_range": ("axes", "min_percentile", "max_percentile", "eps", "reference_tensor"),
    "sigmoid": (),
    "softmax": ("axis",),
    "zero_mean_unit_variance": ("axes", "eps"),
    "stardist_postprocessing": None,
    "cellpose_flow_dynamics": None,
    "custom": None,
}
"""The processing steps of the format and the settings that each takes; None: any."""
MAX_WHOLE = 2**31 - 1
"""Of sizes, steps, halos, offsets."""
MAX_TEXT = 1024
"""Characters of names, ids and sources."""
MAX_TENSORS, MAX_AXES, MAX_CHANNELS = 64, 8, 2**16
MAX_RATIO = 64
"""How many times finer or coarser an axis may be than the one that its size follows."""
PREFIXES = {
    "yocto": 1e-24, "zepto": 1e-21, "atto": 1e-18, "femto": 1e-15, "pico": 1e-12, "nano": 1e-9, "micro": 1e-6,
    "milli": 1e-3, "centi": 1e-2, "deci": 1e-1, "": 1.0, "hecto": 1e2, "kilo": 1e3, "mega": 1e6, "giga": 1e9,
    "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21, "yotta": 1e24,
}  # fmt: skip
UM = {f"{prefix}meter": factor * 1e6 for prefix, factor in PREFIXES.items()} | {
    "angstrom": 1e-4, "inch": 25400.0, "foot": 304800.0, "yard": 914400.0, "mile": 1.609344e9, "parsec": 3.0857e22,
}  # fmt: skip
SECONDS = {f"{prefix}second": factor for prefix, factor in PREFIXES.items()} | {
    "minute": 60.0, "hour": 3600.0, "day": 86400.0,
}  # fmt: skip


def read_package(path: str, rdf: Mapping[str, Any]) -> Package:
    """The package at `path` from its description in format 0.3, 0.4 or 0.5. Raises PackageError for any other."""
    version = str(rdf.get("format_version", ""))
    minor = ".".join(version.split(".")[:2])
    kind = rdf.get("type", "model" if minor == "0.3" else "resource")  # a type came with 0.3.2
    if kind != "model" or minor not in ("0.3", "0.4", "0.5"):
        raise PackageError(
            f"{path} is a {kind} in format {version or 'unknown'}; models in format 0.3, 0.4 and 0.5 can be run.",
            mend=f"bioimageio update-format {path} NEW.zip" if kind == "model" else "",
        )
    try:
        if minor == "0.5":
            package = _package(path, rdf, rdf)
        else:
            from .rdf_old import to_05

            package = _package(path, to_05(rdf), rdf)
        _check(package)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, PackageError):
            raise
        raise PackageError(
            f"{path}: rdf.yaml does not describe a model as bioimage.io format {minor} does.",
            where=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            mend=f"bioimageio validate-format {path}",
        ) from error
    return package


def _package(path: str, rdf: Mapping[str, Any], raw: Mapping[str, Any]) -> Package:
    inputs = tuple(
        _tensor(t, f"inputs[{i}]", "input") for i, t in enumerate(_list(rdf["inputs"], "inputs", MAX_TENSORS))
    )
    outputs = tuple(
        _tensor(t, f"outputs[{i}]", "output") for i, t in enumerate(_list(rdf["outputs"], "outputs", MAX_TENSORS))
    )
    weights = _mapping(rdf.get("weights") or {}, "weights")
    entries = {str(kind): _mapping(entry, f"weights.{kind}") for kind, entry in weights.items() if entry is not None}
    config = _mapping(rdf.get("config") or {}, "config")
    return Package(
        path=path,
        name=_text(rdf["name"], "name"),
        version=str(rdf.get("version") or "")[:MAX_TEXT],
        format=str(raw["format_version"]),
        inputs=inputs,
        outputs=outputs,
        weights=tuple(_weights(kind, entries[kind]) for kind in RUNNABLE if kind in entries),
        other_weights=tuple(kind for kind in entries if kind not in RUNNABLE),
        description=str(rdf.get("description") or ""),
        config=config,
        rdf=raw,
    )


def _weights(kind: str, entry: Mapping[str, Any]) -> Weights:
    sha256 = entry.get("sha256")
    options = {k: v for k, v in entry.items() if k not in ("source", "sha256")}
    if options.get("external_data") is not None:
        second = _mapping(options["external_data"], f"weights.{kind}.external_data")
        _text(second["source"], f"weights.{kind}.external_data.source")
    return Weights(kind, _text(entry["source"], f"weights.{kind}.source"), sha256 and str(sha256), options)


def _tensor(raw: Any, where: str, default: str) -> Tensor:
    """An input or output; `default` is its id where it has none, as the format says."""
    raw = _mapping(raw, where)
    axes = [_axis(a, f"{where}.axes[{i}]") for i, a in enumerate(_list(raw["axes"], f"{where}.axes", MAX_AXES))]
    _unique([a.id for a in axes], f"{where}.axes")
    _unique([a.letter for a in axes if a.letter != "i"], f"{where}.axes")
    key = "preprocessing" if default == "input" else "postprocessing"
    steps = raw.get(key) or []
    test = raw.get("test_tensor")
    return Tensor(
        id=_text(raw.get("id", default), f"{where}.id"),
        axes=tuple(axes),
        dtype=_dtype(raw.get("data"), f"{where}.data"),
        optional=_typed(raw.get("optional", False), bool, f"{where}.optional"),
        steps=tuple(_step(s, f"{where}.{key}[{i}]") for i, s in enumerate(_typed(steps, list, f"{where}.{key}"))),
        test=None if test is None else _text(test["source"] if isinstance(test, Mapping) else test, where),
    )


def _dtype(data: Any, where: str) -> str:
    """The dtype of a tensor's values; the same for all channels where they are described one by one."""
    described = [_mapping(d, where) for d in (data if isinstance(data, list) else [data or {}])]
    found = {str(d.get("type", "uint8" if "values" in d else "float32")) for d in described}
    if len(found) != 1 or not found <= set(DTYPES):
        raise ValueError(f"{where} has the type {' and '.join(sorted(found))}; one of {', '.join(DTYPES)} is needed")
    return found.pop()


def _axis(raw: Any, where: str) -> TensorAxis:
    raw = _mapping(raw, where)
    kind = raw["type"]
    if kind not in (*LETTERS, "space"):
        raise ValueError(f"{where}.type is {kind!r}; batch, channel, time, index and space are known")
    name = _axis_id(_text(raw.get("id", "x" if kind == "space" else kind), f"{where}.id"))
    if not name.isidentifier() or keyword.iskeyword(name) or len(name) > 16 or name != name.lower():
        raise ValueError(f"{where}.id is {name!r}; up to 16 small letters, digits and _ are needed")
    followed = raw["size"].get("axis_id") if isinstance(raw.get("size"), dict) else None
    letter = LETTERS.get(kind) or SPACE.get(name) or SPACE.get(str(followed))
    if letter is None:
        raise ValueError(f"{where} is a space axis with the id {name!r}; x, y and z are known")
    if kind == "batch":
        size = raw.get("size")
        if size not in (None, 1):
            raise ValueError(f"{where}.size is {size!r}; a batch has the size 1 or any")
        return TensorAxis(letter, name, size=size)
    if kind == "channel":
        place = f"{where}.channel_names"
        names = tuple(_text(n, place) for n in _list(raw["channel_names"], place, MAX_CHANNELS))
        return TensorAxis(letter, name, size=len(names), names=names)
    scale = _number(raw.get("scale", 1.0), f"{where}.scale")
    if not 0 < scale < float("inf"):
        raise ValueError(f"{where}.scale is {scale}; a positive number is needed")
    return TensorAxis(
        letter,
        name,
        **_size(raw["size"], f"{where}.size"),
        scale=1.0 if kind == "index" else scale,
        halo=_whole(raw.get("halo") or 0, f"{where}.halo"),
        pixel_size=_pixel_size(raw, scale, f"{where}.unit"),
    )


def _size(size: Any, where: str) -> dict[str, Any]:
    """The fields of a TensorAxis that say its size."""
    if not isinstance(size, Mapping):
        return {"size": _whole(size, where)}
    if "step" in size:
        return {"minimum": _whole(size["min"], f"{where}.min"), "step": _whole(size["step"], f"{where}.step")}
    if "tensor_id" in size:
        offset = _whole(size.get("offset", 0), f"{where}.offset")
        axis = _axis_id(_text(size["axis_id"], f"{where}.axis_id"))
        return {"reference": SizeOf(_text(size["tensor_id"], f"{where}.tensor_id"), axis, offset)}
    if set(size) <= {"min", "max"}:
        return {"data_dependent": True}
    raise ValueError(f"{where} is {dict(size)}; a number, min and step, or tensor_id and axis_id are needed")


def _pixel_size(raw: Mapping[str, Any], scale: float, where: str) -> float | None:
    """um or s a pixel, where a unit is given."""
    unit, known = raw.get("unit"), {"space": UM, "time": SECONDS}.get(raw["type"], {})
    if unit is None or not known:
        return None
    if unit not in known:
        raise ValueError(f"{where} is {unit!r}{nearest(str(unit), known)}")
    return scale * known[unit]


def _axis_id(name: str) -> str:
    return IDS.get(name, name)


def _step(raw: Any, where: str) -> Step:
    raw = _mapping(raw, where)
    name = _text(raw["id"], f"{where}.id")
    if name not in STEPS:
        raise ValueError(f"{where}.id is {name!r}{nearest(name, STEPS)}; {', '.join(STEPS)} are known")
    kwargs = dict(_mapping(raw.get("kwargs") or {}, f"{where}.kwargs"))
    known = STEPS[name]
    if name == "custom":
        return Step(name, {k: raw[k] for k in ("callable", "source", "sha256") if k in raw} | {"kwargs": kwargs})
    if known is not None and (unknown := [k for k in kwargs if k not in known]):
        raise ValueError(f"{where}.kwargs has {unknown[0]!r}{nearest(unknown[0], known)}; {name} takes {known}")
    if kwargs.get("axes") is not None:
        kwargs["axes"] = [_axis_id(_text(a, f"{where}.kwargs.axes")) for a in _sequence(kwargs["axes"], where)]
    if kwargs.get("axis") is not None:
        kwargs["axis"] = _axis_id(_text(kwargs["axis"], f"{where}.kwargs.axis"))
    return Step(name, {k: v for k, v in kwargs.items() if v is not None})


def _check(package: Package) -> None:
    """What can only be seen of the whole: references, sizes, weights, kinds. Raises PackageError or ValueError."""
    tensors = (*package.inputs, *package.outputs)
    _unique([t.id for t in tensors], "inputs and outputs")
    for tensor in tensors:
        for axis in tensor.axes:
            _check_axis(package, tensor, axis)
        for step in tensor.steps:
            _check_step(package, tensor, step)
    for letter, rule in package.rules.items():
        if rule.minimum < 1 or rule.step < 1 or rule.halo < 0:
            raise PackageError(f"{package.path}: min {rule.minimum}, step {rule.step}, halo {rule.halo} along {letter} "
                               "cannot be.")  # fmt: skip
    if not package.weights and not package.other_weights:
        raise PackageError(f"{package.path} has no ONNX weights; it offers: none.")
    if package.format.startswith("0.5.") and package.weights and not package.weights[0].sha256:
        word = {"onnx": "ONNX", "torchscript": "TorchScript"}.get(package.weights[0].kind, "state dict")
        raise PackageError(f"{package.path}: rdf.yaml gives no sha256 for the {word} weights.",
                           mend="export the model again")  # fmt: skip
    _check_ours(package)
    kinds = package.kinds
    if kinds and (len(kinds) != len(package.channels_out) or set(kinds) - set(KINDS)):
        raise PackageError(
            f"{package.path}: config.voidzoo.kinds is {kinds}; it takes one of {', '.join(KINDS)} a channel."
        )


def _check_ours(package: Package) -> None:
    """config.voidzoo holds what export writes: other packages can hold anything there. Raises ValueError, TypeError."""
    where = "config.voidzoo"
    ours = _mapping(package.config.get("voidzoo") or {}, where)
    for kind in _typed(ours.get("kinds") or [], list, f"{where}.kinds"):
        _text(kind, f"{where}.kinds")
    if not 0 <= _number(ours.get("working_bytes_per_voxel") or 0, f"{where}.working_bytes_per_voxel") < 1e9:
        raise ValueError(f"{where}.working_bytes_per_voxel is {ours['working_bytes_per_voxel']}; 0 to 1e9 can be")
    training = _mapping(ours.get("training") or {}, f"{where}.training")
    for letter, size in _mapping(training.get("pixel_size") or {}, f"{where}.training.pixel_size").items():
        if size is not None and not 0 < _number(size, f"{where}.training.pixel_size.{letter}") < float("inf"):
            raise ValueError(f"{where}.training.pixel_size.{letter} is {size}; um are needed")
    for span in _typed(training.get("intensity_range") or [], list, f"{where}.training.intensity_range"):
        low, high = (_number(v, f"{where}.training.intensity_range") for v in _typed(span, list, where))
        if not -float("inf") < low <= high < float("inf"):
            raise ValueError(f"{where}.training.intensity_range has {low} to {high}; the smaller comes first")


def _check_axis(package: Package, tensor: Tensor, axis: TensorAxis) -> None:
    where = f"{tensor.id}.{axis.id}"
    output = tensor in package.outputs
    if axis.data_dependent and not output:
        raise ValueError(f"the size of {where} has no step")
    if output and (axis.minimum, axis.step) != (1, 1):
        raise ValueError(f"the size of {where} has min and step; those of outputs are fixed or refer to an input")
    main = not output and tensor is package.main
    if not main and (axis.minimum < 1 or axis.step < 1):  # those of the main input are told with their halo
        raise PackageError(f"{package.path}: min {axis.minimum}, step {axis.step} along {where} cannot be.")
    if (axis.size is not None and axis.size < 1) or axis.halo < 0:
        raise PackageError(f"{package.path}: size {axis.size}, halo {axis.halo} along {where} cannot be.")
    if axis.reference is None:
        return
    other = package.axis(axis.reference.tensor, axis.reference.axis)
    if other is axis or other.reference is not None or other.data_dependent or other.letter == "b":
        raise ValueError(f"the size of {where} refers to {axis.reference.tensor}.{axis.reference.axis}, "
                         "whose size is not given by itself")  # fmt: skip
    if not 1 / MAX_RATIO <= other.scale / axis.scale <= MAX_RATIO:
        raise ValueError(f"the scale of {where} is {axis.scale:g}, that of the axis that it follows {other.scale:g}; "
                         f"up to {MAX_RATIO} times finer or coarser can be")  # fmt: skip
    if not output and axis.reference.tensor in {t.id for t in package.outputs}:
        raise ValueError(f"the size of {where} refers to an output")
    if axis.pixel_size and other.pixel_size:
        units = (axis.pixel_size / axis.scale, other.pixel_size / other.scale)
        if abs(units[0] / units[1] - 1) > 1e-9:
            raise ValueError(f"{where} and {axis.reference.tensor}.{axis.reference.axis} have different units")


def _check_step(package: Package, tensor: Tensor, step: Step) -> None:
    axes = {a.id for a in tensor.axes}
    along = step.kwargs.get("axis", "channel" if step.name == "softmax" else None)
    named = [*step.kwargs.get("axes", ()), *([] if along is None else [along])]
    if STEPS[step.name] is not None and (unknown := [a for a in named if a not in axes]):
        raise ValueError(f"{step.name} of {tensor.id} names the axis {unknown[0]}, which it does not have")
    reference = step.kwargs.get("reference_tensor")
    if reference is not None and reference not in {t.id for t in package.inputs}:
        raise ValueError(f"{step.name} of {tensor.id} refers to {reference!r}, which is no input")


def _unique(names: Sequence[str], where: str) -> None:
    if double := {n for n in names if names.count(n) > 1}:
        raise ValueError(f"{where} have {sorted(double)[0]!r} twice")


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{where} is {value!r}; a {kind.__name__} is needed")
    return value


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    return _typed(value, dict, where)


def _list(value: Any, where: str, most: int) -> Iterator[Any]:
    if not _typed(value, list, where):
        raise ValueError(f"{where} is empty")
    if len(value) > most:
        raise ValueError(f"{where} has {len(value):,} parts; at most {most:,} can be")
    return value


def _sequence(value: Any, where: str) -> list[Any]:
    return _typed(list(value) if isinstance(value, tuple) else value, list, f"{where}.kwargs.axes")


def _text(value: Any, where: str) -> str:
    text: str = _typed(value, str, where).strip()
    if not text:
        raise ValueError(f"{where} is empty")
    if len(text) > MAX_TEXT or len(text.splitlines()) > 1:
        raise ValueError(f"{where} has {len(text):,} characters in {len(text.splitlines())} lines; "
                         f"one line of at most {MAX_TEXT:,} is needed")  # fmt: skip
    return text


def _whole(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where} is {value!r}; a whole number is needed")
    if abs(value) > MAX_WHOLE:
        raise ValueError(f"{where} is {value}; numbers of up to {MAX_WHOLE:,} can be")
    return value


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{where} is {value!r}; a number is needed")
    return float(value)
