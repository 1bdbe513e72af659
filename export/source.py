"""The package that is converted: whether it can be, its network as ONNX, its steps, and what it gives."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.geometry import geometry
from ..infer.networks.processing import with_casts
from ..zoo.errors import PackageError
from ..zoo.loose import mapped
from ..zoo.package import Package, Step, Tensor, Weights
from .bake import TYPES, is_fixed
from .by_core import by_core
from .layout import LETTERS, canonical, declared
from .tensors import tensor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

IDS = {"b": "batch", "c": "channel", "t": "time"}
MEASURED = ("zero_mean_unit_variance", "scale_range", "clip")
"""Steps that measure the image and that the profile's programs know."""


def refuse(package: Package) -> None:
    """Raise PackageError for a package that cannot be brought into the portable profile."""
    inputs, outputs = package.inputs, package.outputs
    if len(inputs) != 1 or len(outputs) != 1:
        raise _refusal(package, f"it has {len(inputs)} inputs and {len(outputs)} outputs; the profile has one of each")
    if not package.weights:
        package.chosen_weights()  # says what it offers
    if package.weights[0].kind == "pytorch_state_dict":
        raise _refusal(
            package, "it has a state dict alone, whose network only its own Python code can make",
            _packing(package),
        )  # fmt: skip
    for tensor in (inputs[0], outputs[0]):
        if strange := [a.id for a in tensor.axes if a.letter not in LETTERS]:
            raise _refusal(package, f"{tensor.id} has the axis {strange[0]}, which the profile does not know")
    geometry(package)  # says which outputs do not lie on the image
    for tensor in (inputs[0], outputs[0]):
        for step in tensor.steps:
            possible = is_fixed(step) or (tensor is inputs[0] and step.name in MEASURED)
            if not possible or step.kwargs.get("reference_tensor"):
                raise _refusal(package, f"{tensor.id} asks for {step.name}, which needs more than the network's input")
            if step.name == "ensure_dtype" and step.kwargs.get("dtype") not in TYPES:
                raise _refusal(package, f"{tensor.id} is cast to {step.kwargs.get('dtype')}")


def _packing(package: Package) -> str:
    """The line that makes a portable package of a state dict and the code beside it, once the package is unzipped."""
    weights, (inner, outer) = package.weights[0], (package.inputs[0], package.outputs[0])
    made = mapped(weights.options.get("architecture"))
    source = PurePosixPath(str(made.get("source") or "ARCHITECTURE.py")).name
    words = ["voidzoo", "pack", f"{source}:{made.get('callable') or 'CLASS'}", "--weights", weights.source]
    words += ["--kwargs", json.dumps(made["kwargs"], default=str)] if made.get("kwargs") else []
    words += ["--axes", inner.letters] + (["--output-axes", outer.letters] if outer.letters != inner.letters else [])
    return shlex.join([*words, "--input", "IMAGE", "-o", "NEW.zip"])


def _refusal(package: Package, why: str, mend: str = "") -> PackageError:
    return PackageError(
        f"{package.path} cannot be made portable: {why}.",
        where="one graph cannot hold it, and not every program that opens packages does it" if not mend else "",
        mend=mend or f"voidzoo predict {package.path} IMAGE -o OUT.ome.zarr   runs it as it is",
    )


def onnx_of(package: Package) -> tuple[Weights, bytes]:
    """The weights that are converted, as ONNX."""
    weights = package.chosen_weights()
    if weights.kind == "onnx":
        return weights, package.onnx()
    from .graph import script_to_onnx

    return weights, script_to_onnx(
        package.files.read(weights.source, weights.sha256), _test_array(package), package.path
    )


def _test_array(package: Package) -> NDArray[Any]:
    return np.asarray(tensor_of(package, package.test_input), np.float32)


def split(tensor: Tensor) -> tuple[tuple[Step, ...], list[Step]]:
    """The steps before a network: those that stay declared, up to the last that measures the image; and the others."""
    steps = with_casts(tensor, first=True)
    last = max((i for i, s in enumerate(steps) if not is_fixed(s)), default=-1)
    return _named(steps[: last + 1], tensor), lettered(steps[last + 1 :], tensor)


def lettered(steps: Sequence[Step], tensor: Tensor) -> list[Step]:
    """Steps whose `axis` is a letter."""
    letters = {a.id: a.letter for a in tensor.axes}
    return [
        Step(s.name, {k: letters[str(v)] if k == "axis" else v for k, v in s.kwargs.items() if v is not None})
        for s in steps
    ]


def _named(steps: Sequence[Step], tensor: Tensor) -> tuple[Step, ...]:
    """Steps whose axes have the ids of the profile."""
    ids = {a.id: IDS.get(a.letter, a.letter) for a in tensor.axes}
    found = []
    for step in steps:
        kwargs = dict(step.kwargs)
        if "axes" in kwargs:
            kwargs["axes"] = [ids[a] for a in kwargs["axes"]]
        if "axis" in kwargs:
            kwargs["axis"] = ids[kwargs["axis"]]
        found.append(Step(step.name, kwargs))
    return tuple(found)


def raw(step: Step) -> dict[str, Any]:
    """A step as rdf.yaml has it."""
    return {"id": step.name, **({"kwargs": dict(step.kwargs)} if step.kwargs else {})}


def _by_engine(package: Package, item: NDArray[np.float32], space: str) -> NDArray[np.float32]:
    """What voidzoo's own engine makes of one raw item (c, *space) -> (1, c, *space): for what core cannot run."""
    from ..infer.planning import make_plan
    from ..infer.run import run_in_memory
    from ..zoo.open import open_image

    many = len(item) > 1
    given = (item if many else item[0]).astype(_numpy(package.inputs[0].dtype))
    plan = make_plan(package, open_image(given, axes=("c" if many else "") + space), dtype="float32", device="cpu")
    (found,) = run_in_memory(plan).values()
    return np.asarray(found, np.float32).reshape(1, -1, *found.shape[-len(space) :])


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype("?" if dtype == "bool" else dtype)


def test_input(package: Package, space: str) -> NDArray[np.float32]:
    """The test input of a package, raw: float32 (b, c, *space). Raises PackageError for one of other axes, or none."""
    letters, found = package.inputs[0].letters, tensor_of(package, package.test_input)
    try:
        if 0 in found.shape:
            raise ValueError(f"it has the shape {found.shape}")
        return canonical(found, letters, space).astype(np.float32)
    except ValueError as error:
        raise PackageError(
            f"{package.path}: the test tensor {package.test_input} is not one of axes {letters}.",
            where=str(error)[:200],
        ) from error


def by_source(
    package: Package, weights: str, tensors: Sequence[NDArray[np.float32]], space: str
) -> tuple[list[NDArray[np.float32]], str]:
    """What a package makes of raw tensors (b, c, *space), and who ran it: bioimageio.core; voidzoo where it cannot."""
    inner, outer = package.inputs[0], package.outputs[0]
    if not package.format.startswith("0.3"):
        given = [declared(x, inner.letters, space).astype(_numpy(inner.dtype)) for x in tensors]
        try:
            found = by_core(package.path, given, weights)
            return [canonical(y, outer.letters, space).astype(np.float32) for y in found], "bioimageio.core"
        except PackageError:  # it stumbles over packages that can be run
            pass
    return [np.concatenate([_by_engine(package, item, space) for item in x]) for x in tensors], "voidzoo"
