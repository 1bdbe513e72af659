"""The halos of a plan: what the network sees, read from its graph; or less, measured on the image for a tolerance."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, lcm
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ..geometry import Port
from ..grid import Axis
from .halo import HaloCheck, HaloErrors, check_halos, measured_error, smallest_halo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..networks.network import Network
    from ..networks.session import Session
    from ..plan import Plan
    from .receptive import Reach

ONE_OF_EACH = 3
"""Regions after which a bright, a textured and a random one have been seen."""
QUICK = 2**21
"""Voxels of a first look."""


def with_known_halos(plan: Plan, session: Session) -> Plan:
    """The plan with halos and grid steps that its graph asks for. Packages of our own were proved with theirs."""
    if plan.package.ours.get("working_bytes_per_voxel") and plan.package.plain:
        return plan
    if session.runtime == "torch":
        blind = [a for a, axis in plan.model_axes.items() if not axis.halo]
        note = (
            f"the package declares no halo along {', '.join(blind)}, and its graph cannot be read: tiles may show there"
        )
        return replace(plan, notes=(*plan.notes, note)) if blind else plan
    reaches = _reaches(plan, session)
    declared = {a: axis.spoilt for a, axis in plan.model_axes.items()}
    steps = {a: _step(axis, reaches[a]) for a, axis in plan.model_axes.items()}
    checks = check_halos(declared, reaches, steps)
    axes = {a: _fitted(replace(axis, step=steps[a], halo=max(0, checks[a].used - axis.lead)))
            for a, axis in plan.model_axes.items()}  # fmt: skip
    notes = [c.note for c in checks.values() if c.note and c.warn]
    for a, axis in axes.items():
        if axis.spoilt < checks[a].used:
            notes.append(f"tiles along {a} are not exact: the network sees {checks[a].used} pixels, and runs on "
                         f"{axis.minimum} alone; a halo of {axis.halo} is used")  # fmt: skip
    facts = {a: _facts(c, axes[a]) for a, c in checks.items()}
    return replace(plan, model_axes=axes, notes=plan.notes + tuple(notes), halo_facts=facts)


def _facts(check: HaloCheck, axis: Axis) -> dict[str, Any]:
    exact = check.exact and axis.spoilt >= check.used
    return {"package": check.package, "sees": check.reach, "used": axis.halo, "exact": exact, "note": check.note}


def _step(axis: Axis, reach: Reach | None) -> int:
    return axis.step if reach is None else lcm(axis.step, reach.grid)


def _fitted(axis: Axis) -> Axis:
    """A network of a fixed size has room for no more halo than leaves a step to be kept."""
    while axis.fixed and axis.halo and axis.minimum - axis.margin - axis.spoilt < axis.step:
        axis = replace(axis, halo=max(0, axis.halo - axis.step))
    return axis


_seen: WeakKeyDictionary[Session, dict[str, Reach | None]] = WeakKeyDictionary()
"""What networks see, so that a graph is read once for any number of images."""


def _reaches(plan: Plan, session: Session) -> dict[str, Reach | None]:
    """What all outputs together see of all inputs, in pixels of the main one, by letter."""
    if session not in _seen:
        _seen[session] = _read_reaches(plan, session)
    return _seen[session]


def _read_reaches(plan: Plan, session: Session) -> dict[str, Reach | None]:
    from .receptive import receptive_field, widest

    names_in, names_out = session.tensor_names
    shapes = {names_in[p.id]: _shape(plan, p) for p in plan.geometry.inputs if p.id in names_in}
    field = receptive_field(plan.package.onnx(), shapes)
    found: dict[str, Reach | None] = {}
    for a in plan.model_axes:
        seen = []
        for out in plan.geometry.outputs:
            for port in plan.geometry.inputs:
                if port.whole or a not in port.space or names_in.get(port.id) not in field[names_out[out.id]]:
                    continue
                letters = [axis.letter for axis in port.tensor.axes]
                reach = field[names_out[out.id]][names_in[port.id]][letters.index(a)]
                seen.append(_in_main(reach, port.ratio.get(a, Fraction(1))))
        found[a] = widest(seen)
    return found


def _in_main(reach: Reach | None, ratio: Fraction) -> Reach | None:
    if reach is None or ratio == 1:
        return reach
    longer = {k: ceil(getattr(reach, k) / ratio) for k in ("before", "after", "aligned")}
    return replace(reach, **longer, grid=max(1, ceil(reach.grid / ratio)))


def _shape(plan: Plan, port: Port) -> tuple[int, ...]:
    """A legal shape of an input, some steps long so that no axis shrinks to one pixel by chance."""
    sizes: dict[str, int] = {"b": 1, "c": port.channels, "i": 1}
    for a in port.space:
        if port.whole:
            axis = port.tensor.axis(a)
            sizes[a] = (axis.size or axis.minimum) if axis is not None else 1
        else:
            rule = plan.model_axes[a]
            size = rule.minimum if rule.fixed else rule.legal(rule.minimum + 3 * rule.step + 2 * rule.spoilt)
            sizes[a] = int(size * port.ratio.get(a, 1))
    return tuple(axis.size if axis.letter == "i" and axis.size else sizes[axis.letter] for axis in port.tensor.axes)


def with_nothing_cut(plan: Plan) -> Plan:
    """The plan for a tolerance where tiles hold the whole of the image's axes: the exact halo costs nothing."""
    facts = {**plan.halo_facts, "tolerance": plan.choices.tolerance, "error": 0.0, "exact": True}
    return replace(plan, notes=(*plan.notes, "nothing is cut: the exact halo is used, at no cost"), halo_facts=facts)


def _hopeless(errors: HaloErrors, steps: Mapping[str, int], tolerance: float) -> bool:
    """Whether even one step less than the exact halo, along any axis, is too little, whatever other regions show: only
    the std, which errors are relative to, may still grow.
    """
    least = min(errors.at({a: errors.full[a] - steps[a]}) for a in errors.letters)
    return errors.regions >= ONE_OF_EACH and least > 1.25 * tolerance


def with_tolerance(plan: Plan, network: Network, voxels: int) -> Plan:
    """The plan with the smallest halos whose error, measured on places of the image, stays below the tolerance.

    voxels: how many the network may be run on for that.
    """
    from ..probe_regions import MOST, probe_regions, probe_size

    tolerance = plan.choices.tolerance
    if not tolerance:
        return plan
    model, feed = plan.model_axes, plan.feeds[0]
    letters = list(model)
    steps = {a: axis.step for a, axis in model.items()}
    full = {a: 0 if axis.fixed or axis.lead else axis.margin for a, axis in model.items()}
    errors = None
    smallest = {a: axis.minimum for a, axis in model.items()}
    # a quick look at small places first: most trained networks need their halo
    for lengths, most, count in (((1,), min(QUICK, voxels), 2 * ONE_OF_EACH), ((3, 2, 1), voxels, MOST)):
        size = probe_size(feed.image, full, steps, smallest, most, lengths)
        if size is None or len(plan.feeds) > 1:
            continue
        regions = probe_regions(feed.image, letters, size.size, min(count, size.count), steps=steps,
                                channels=feed.port.channels, channel=feed.channel)  # fmt: skip
        errors = measured_error(network.alone, regions, letters, full, lambda seen: _hopeless(seen, steps, tolerance))
        if errors is None or _hopeless(errors, steps, tolerance):
            break
    extent = {a: min(axis.size, 512) for a, axis in model.items()}
    chosen = smallest_halo(errors, tolerance, full, steps, extent)
    axes = {a: replace(axis, halo=min(axis.halo, chosen.halos[a])) if full[a] else axis for a, axis in model.items()}
    facts = {**plan.halo_facts, "tolerance": tolerance, "error": chosen.error, "exact": chosen.full}
    return replace(plan, model_axes=axes, notes=(*plan.notes, chosen.note), halo_facts=facts)


__all__ = ["with_known_halos", "with_nothing_cut", "with_tolerance"]
