"""What follows the blocks: the pyramid, the metadata, and the move to OUT."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..zoo.version import __version__
from .blocks import BlockReport
from .events import StageStarted, Watch
from .place import Place
from .plan import Plan
from .pyramid import Cascade
from .store import Store, sync_file
from .tasks import share_out
from .tiff import write_tiff


def complete_pyramid(plan: Plan, cascade: Cascade, tell: Watch) -> None:
    """Make the levels that blocks did not cover in whole chunks, each from the one above."""
    if cascade.ready < len(cascade.levels):
        tell(StageStarted("pyramid"))
    for i in range(cascade.ready, len(cascade.levels)):
        share_out(partial(cascade.shrink, i), cascade.rest(i), plan.lanes)


def publish(
    plan: Plan, place: Place, store: Store, cascade: Cascade, reports: list[BlockReport], seconds: float, tell: Watch
) -> None:
    """Describe the staged result, or stream it into a TIFF, and move it to OUT."""
    size = plan.image.pixel_size
    name = place.out.name.split(".")[0]
    ours = provenance(plan, reports, seconds)
    if place.format == "zarr":
        store.describe(name, plan.out_axes, cascade.levels, size, plan.out_channels, ours)
        place.publish(place.staged)
        return
    tell(StageStarted("tiff"))
    made = place.part / "image.ome.tif"
    write_tiff(made, plan.out_axes, cascade.arrays, name, size, plan.out_channels, ours)
    sync_file(made)
    place.publish(made)


def provenance(plan: Plan, reports: list[BlockReport], seconds: float) -> dict[str, Any]:
    """What is stored inside a result: versions, model, plan, and what happened."""
    import onnxruntime

    record = {
        "version": __version__,
        "versions": {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__},
        "plan": plan.to_json(),
        "happened": {
            "clipped": sum(r.clipped for r in reports),
            "mapped": sum(r.mapped for r in reports),
            "seconds_of_last_run": round(seconds, 2),
            "peak_memory": peak_memory(),
        },
    }
    return json.loads(json.dumps(record))


def peak_memory() -> int:
    """The most memory that this process has held so far, in bytes; 0 where the system does not tell."""
    with contextlib.suppress(OSError):  # Linux: getrusage would count what the parent held when it started us
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
        import sys

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
