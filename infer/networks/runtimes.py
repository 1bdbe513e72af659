"""Which runtime and how many sessions: measured on small tiles, for jobs that are long enough to win it back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from ...zoo.errors import PackageError
from .device import cpu_count, openvino_installed
from .graph import working_bytes
from .precision import differs_by
from .probe import Probe, probe, random_feeds
from .session import make_session, refuse_large
from .upsampling import with_merged_upsampling

if TYPE_CHECKING:
    from ..plan import Plan
    from .session import Session

WORTH_IT = {1: 3.0, 2: 3.0, 3: 1.0}
"""Seconds of network time in onnxruntime from which on OpenVINO is tried, by the number of axes: it takes a third of a
second to be loaded and compared. Volumes are done 2 to 3 times as fast, planes an eighth (docs/decisions/0012)."""
FILES = 100e6
"""Voxels a second from file to file with a network that does nothing (benchmarks, row overhead-null2d): one that is
faster waits for its files, and no runtime helps."""
SAME = 1e-3
"""How far OpenVINO may be from onnxruntime, in units of the output's std: rounding makes it 1e-5 to 1e-4."""
AS_FAST = 1.25
"""It is taken unless a small tile takes this much longer there, by the clock and in processor time, twice: on larger
ones it gains a tenth to a fifth, and needs half the memory."""
SPINNING = 0.1
"""Seconds in which onnxruntime's threads have stopped waiting in a loop for the next run, which takes them 35 ms."""
LIBRARIES = 60e6
"""Bytes that OpenVINO's libraries take for themselves: 55 to 65 MB. It is not loaded where that is more than a quarter
of what tiles may take: larger tiles gain more."""
WORTH_PROBING = 20.0
"""Seconds of network time from which on several single-threaded sessions are tried: they may be faster by a tenth."""
CLEARLY = 0.92
"""A short probe is off by some percent, and several sessions take their memory each: the share of the time that they
must promise."""
ARENA = 1.5
"""How far onnxruntime's arena and blocked layouts exceed the tensors themselves: 1.3 to 1.5, measured on U-Nets."""
OPENVINO, FIXED = 1.3, 1.0
"""The same for OpenVINO and its merged graph: 1.1 to 1.4; compiled for one shape 0.8 to 1; and 8 bytes a voxel."""
PROBE_SIDE = {1: (512,), 2: (128, 128), 3: (16, 64, 64), 4: (4, 16, 32, 32)}
"""Small, so that it is over in a blink: larger tiles are up to 8 % faster per voxel."""


def measure(session: Session, draft: Plan) -> Probe:
    """Speed and memory of a small run; where the process had freed memory to give, the graph's arithmetic holds."""
    if session.batch_limit not in (None, 1):
        raise PackageError(f"{draft.package.path} takes only batches of {session.batch_limit}; batches of any size, "
                           "or of 1, can be run.")  # fmt: skip
    shape = _probe_shape(draft)
    refuse_large(draft.package, shape)
    if shape in session.probed:
        return session.probed[shape]
    if session.runtime == "openvino":
        session.probed[shape] = _in_openvino(draft, session, shape, probe(session, shape))
        return session.probed[shape]
    tensors = float(draft.package.ours.get("working_bytes_per_voxel") or 0)
    if not tensors and session.runtime != "torch":
        tensors = _tensors(draft, session, shape, draft.package.onnx())
    measured = probe(session, shape)
    measured = replace(measured, bytes_per_voxel=max(measured.bytes_per_voxel, ARENA * tensors))
    session.probed[shape] = measured
    return measured


@dataclass(frozen=True)
class Alternative:
    """A session that may be faster. measured: by a small run. bias: the share of the time that it must promise; inf
    where that run decided for it, 0 where it was found not to do.

    libraries: bytes by which the process grew when it was loaded; they are not given back.
    """

    session: Session
    measured: Probe
    bias: float
    libraries: int = 0


def alternatives(
    draft: Plan, session: Session, before: Probe, plan: Plan, room: int, *, alone: bool
) -> Iterator[Alternative]:  # fmt: skip
    """Other sessions on the CPU that may be faster than this one of onnxruntime, as it was measured before and planned.

    None for a network that is faster than files. room: bytes that blocks and tiles may take. alone: the process has
    the machine's processors for itself.
    """
    shape = _probe_shape(draft)
    if before.undisturbed > FILES:
        return
    seconds = plan.seconds * before.got
    if seconds > WORTH_IT.get(len(draft.model_axes), 1.0) and room > 4 * LIBRARIES and openvino_installed():
        other, measured, libraries = _openvino(draft, session, before, shape)
        if other is None or measured is None:
            yield Alternative(session, Probe(plan.rate, plan.bytes_per_voxel), 0.0, libraries)
        else:
            other.probed[shape] = _in_openvino(
                draft, other, shape, replace(measured, bytes_per_voxel=plan.bytes_per_voxel)
            )
            yield Alternative(other, other.probed[shape], float("inf"), libraries)
            return  # several of onnxruntime gain less
    if seconds > WORTH_PROBING and alone and cpu_count() > 1:
        other = make_session(replace(draft, workers=cpu_count(), runtime=""))
        other.probed[shape] = replace(probe(other, shape), bytes_per_voxel=plan.bytes_per_voxel)
        yield Alternative(other, other.probed[shape], CLEARLY)


def _as_fast(other: Session, session: Session, before: Probe, shape: Sequence[int]) -> Probe | None:
    """What a small run of another session measured, if it is about as fast as this one was before; else None."""
    for again in (False, True):
        if again:
            before = probe(session, shape)  # one soon after the other
            time.sleep(SPINNING)
        measured = probe(other, shape)
        slower = before.voxels_per_second / measured.voxels_per_second
        dearer = before.undisturbed / measured.undisturbed
        if min(slower, dearer) <= AS_FAST:
            return measured
    return None


def _in_openvino(draft: Plan, session: Session, shape: Sequence[int], measured: Probe) -> Probe:
    """What was measured, with the memory that the graph's arithmetic asks for, where that can be told."""
    tensors = _tensors(draft, session, shape, with_merged_upsampling(draft.package.onnx()))
    return replace(measured, bytes_per_voxel=OPENVINO * tensors + 8, fixed=FIXED * tensors + 8) if tensors else measured


def _tensors(draft: Plan, session: Session, shape: Sequence[int], weights: bytes) -> float:
    """Bytes per voxel that the tensors of a graph take at once; 0 where that cannot be told."""
    feeds = random_feeds(session, shape)
    given = {p.id: p.declared(x).shape for p, x in zip(session.geometry.inputs, feeds, strict=True)}
    return working_bytes(weights, [given[t.id] for t in draft.package.inputs if t.id in given], prod(shape[2:]))


def _openvino(
    draft: Plan, session: Session, before: Probe, shape: Sequence[int]
) -> tuple[Session | None, Probe | None, int]:
    """A session of OpenVINO that is about as fast and computes on this image what onnxruntime does, what it measured,
    and by how many bytes the process grew when it was loaded. None where it is not, or does not.
    """
    import psutil

    process = psutil.Process()
    resident = process.memory_info().rss
    other = None
    # an operator that it does not know is told when it loads or when it runs; onnxruntime has shown that it can
    with contextlib.suppress(Exception):
        other = make_session(replace(draft, workers=1, runtime="openvino"))
    grown = max(0, process.memory_info().rss - resident)
    with contextlib.suppress(Exception):
        # measured before onnxruntime runs again: its threads wait for more in a loop that takes a processor from others
        measured = None if other is None else _as_fast(other, session, before, shape)
        if other is not None and measured is not None and differs_by(draft, other, session, regions=1)[0] <= SAME:
            return other, measured, grown
    return None, None, grown


def _probe_shape(draft: Plan) -> tuple[int, ...]:
    model = draft.model_axes
    side = PROBE_SIDE[len(model)]
    legal = (
        axis.minimum if axis.fixed else min(axis.extended, max(axis.smallest_tile, axis.legal(s - axis.step + 1)))
        for axis, s in zip(model.values(), side, strict=True)
    )
    return (1, draft.geometry.inputs[0].channels, *legal)
