"""How large the tensors of a plain network can become, from its file alone: a bound that needs no shape inference."""

from __future__ import annotations

from math import inf, isfinite, prod

from .onnx_wire import Constant, Contents, Step

KEEPS = {"Relu", "LeakyRelu", "Sigmoid", "Identity", "MaxPool", "AveragePool"}
"""Their output has the shape of their input, or is smaller."""
EACH = {"Add", "Sub", "Mul", "Div"}


def values_a_voxel(found: Contents) -> float:
    """The most values that any tensor has for each voxel of the input, batch included; inf where that needs more than
    the file's own numbers: operators beside those of a U-Net, sizes that are computed.
    """
    if found.functions or any(domain for domain in found.domains):
        return inf
    growth, channels = 1.0, 1
    known = dict(found.constants)
    for step in found.steps:
        constants = [known[name] for name in step.inputs if name in known]
        if step.inside or (any(step.pads) and step.kind != "Conv"):
            return inf
        if step.kind == "Identity" and constants:  # torch shares equal weights so
            known[step.output] = constants[0]
        elif step.kind == "Conv":
            if len(step.inputs) < 2 or step.inputs[0] in known or step.inputs[1] not in known:
                return inf
            outer, inner, *kernel = [*known[step.inputs[1]].dims, 1, 1]
            if any(sum(step.pads[i :: len(kernel) - 2]) > n - 1 for i, n in enumerate(kernel[:-2])):
                return inf  # it makes its input larger
            channels = max(channels, outer, inner)
        elif step.kind == "Resize":
            growth *= _scaled(known, step)
        elif step.kind in EACH:
            if any(not _a_channel(c.dims) for c in constants):
                return inf
            channels = max(channels, *(prod(c.dims) for c in constants), 1)
        elif step.kind == "Concat" and len(step.inputs) == 2 and not constants:
            growth *= 2
        elif step.kind != "Constant" and (step.kind not in KEEPS or constants):
            return inf
    return growth * channels


def _scaled(known: dict[str, Constant], step: Step) -> float:
    """How many times larger a Resize makes its input."""
    if len(step.inputs) != 3 or step.inputs[0] in known or step.inputs[2] not in known:
        return inf
    values = known[step.inputs[2]].values
    return prod(max(1.0, v) for v in values) if values and all(isfinite(v) for v in values) else inf


def _a_channel(dims: list[int]) -> bool:
    """Whether a constant has one value for all, or one a channel: it then makes nothing longer along other axes."""
    return prod(dims) == 1 or (len(dims) >= 3 and all(n == 1 for i, n in enumerate(dims) if i != 1))
