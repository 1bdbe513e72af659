"""What follows the blocks: the pyramids, the metadata, and the move to OUT."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.memory import peak_memory
from ..zoo.version import __version__
from .blocks import BlockReport
from .events import StageStarted, Watch
from .output.durable import GroupCommit, sync_file
from .output.layer import Layer, safe_name
from .output.pyramid import Cascade
from .output.store import Store
from .output.tiff import write_tiff
from .place import Place
from .plan import Plan, Target
from .schedulers.tasks import share_out

if TYPE_CHECKING:
    from fractions import Fraction


def layers_of(plan: Plan, targets: Sequence[Target]) -> list[Layer]:
    """The arrays that a plan fills, as the store makes them."""
    found = []
    for target in targets:
        ratio = target.port.ratio
        one = dict.fromkeys(plan.grid, 1)
        found.append(Layer(
            name=safe_name(target.name) if target.name else "", axes=plan.axes_of(target),
            shape=plan.shape_of(target), dtype=target.dtype,
            chunk=plan.sizes_in(target, {**one, **plan.chunk}, channels=1),
            block=plan.sizes_in(target, {**one, **plan.block}),
            pixel_size=plan.pixel_size_of(target), channels=target.names,
            origin={a: _first(span.start, ratio.get(a)) for a, span in plan.part.items() if span.start},
        ))  # fmt: skip
    return found


def _first(start: int, ratio: Fraction | None) -> int:
    return start if ratio is None else int(start * ratio)


def complete_pyramid(plan: Plan, cascade: Cascade, tell: Watch) -> None:
    """Make the levels that blocks did not cover in whole chunks, each from the one above."""
    if cascade.ready < len(cascade.levels):
        tell(StageStarted("pyramid"))
    for i in range(cascade.ready, len(cascade.levels)):
        with GroupCommit[None](lambda _done: None) as commits:
            share_out(partial(cascade.shrink, i), cascade.rest(i), plan.lanes, heard=partial(commits.add, None))


def publish(
    plan: Plan, place: Place, store: Store, layers: Sequence[Layer], cascades: Sequence[Cascade],
    happened: dict[str, Any], tell: Watch,
) -> None:  # fmt: skip
    """Describe the staged result, or stream it into a TIFF, and move it to OUT. happened: see `what_happened`."""
    for cascade in cascades:
        complete_pyramid(plan, cascade, tell)
    name = place.out.name.split(".")[0]
    ours = provenance(plan)
    if place.format == "zarr":
        store.describe(layers, {**ours, "plan": plan.to_json(), "happened": happened}, name)
        place.publish(place.staged)
        return
    tell(StageStarted("tiff"))
    if happened["holes"]:
        ours["holes"] = happened["holes"]
    made = place.part / "image.ome.tif"
    write_tiff(made, layers, [c.arrays for c in cascades], name, ours, threads=plan.lanes)
    sync_file(made)
    place.publish(made)


def provenance(plan: Plan) -> dict[str, Any]:
    """What decided a result, as it is stored inside: versions, model, plan. The same plan on the same machine gives
    the same, whatever was measured on the way.
    """
    import onnxruntime

    versions = {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    if plan.runtime:
        versions[plan.runtime] = importlib.metadata.version(plan.runtime)
    record = {
        "version": __version__,
        "versions": versions,
        "plan": {"identity": plan.identity, **plan.facts(), "device": plan.device_name},
        "package": dict(plan.package.origin),
    }
    return json.loads(json.dumps(record))


def what_happened(reports: Sequence[BlockReport], seconds: float, holes: Sequence[str]) -> dict[str, Any]:
    """What a run found and took."""
    return {
        "clipped": sum(r.clipped for r in reports),
        "mapped": sum(r.mapped for r in reports),
        "skipped": sum(r.skipped for r in reports),
        "holes": list(holes),
        "halved_tile": min((r.tile for r in reports if r.tile), default=()),
        "seconds_of_last_run": round(seconds, 2),
        "peak_memory": peak_memory(),
    }
