"""How far two sessions differ, half precision from float32 above all, measured on the image before anything runs."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ...zoo.errors import PackageError
from ..probe_regions import probe_regions
from .network import Network
from .probe import random_feeds
from .session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from ..plan import Plan

REGIONS = 3
"""Places of the image that are run in both: a bright, a textured and a random one."""
NAMES = {"fp16": "float16", "bf16": "bfloat16"}
SIDE = {1: (512,), 2: (128, 128), 3: (16, 64, 64), 4: (4, 16, 32, 32)}
"""About how large they are, by the number of axes."""


_measured: WeakKeyDictionary[Session, tuple[float, str]] = WeakKeyDictionary()
"""The difference, and on what it was measured: once for any number of images."""


def with_measured_precision(plan: Plan, session: Session) -> Plan:
    """The plan with the largest difference of a session in half precision from float32, in units of the output's std.

    A few places of the image are run in both; random pixels where the network has several inputs. Raises PackageError
    where float16 overflows, which makes the difference infinite, and for weights that stay in float32.
    """
    half = NAMES[session.precision]
    if session.precision == "fp16" and session.runtime == "openvino":
        raise PackageError("float16 is made and measured in onnxruntime; OpenVINO was asked for.", mend="--device cpu")
    if session.precision == "fp16" and session.runtime != "onnxruntime":
        raise PackageError(f"{plan.package.name} has no ONNX weights, which float16 is made of.",
                           mend="--precision fp32")  # fmt: skip
    if session not in _measured:
        exact = Session(plan.package, session.device, 1, shape=plan.geometry, trust_code=plan.choices.trust_code)
        _measured[session] = differs_by(plan, session, exact)
    worst, where = _measured[session]
    if not isfinite(worst):
        raise PackageError(
            f"{plan.package.name} cannot run in {half}: its numbers grow beyond 65,504.",
            where=f"measured on {where}", mend="--precision fp32",
        )  # fmt: skip
    note = f"{half} differs from float32 by up to {worst:.2g} of the output's std (measured on {where})"
    return replace(plan, precision_error=float(f"{worst:.3g}"), notes=(*plan.notes, note))


def differs_by(plan: Plan, session: Session, exact: Session, regions: int = REGIONS) -> tuple[float, str]:
    """The largest difference between two sessions in units of the output's std, and on what it was found.

    That is a few places of the image; random pixels where the network has several inputs.
    """
    if len(plan.feeds) == 1:
        places = _regions(plan, regions)
        one, other = Network(plan, session), Network(plan, exact)
        pairs = [p for r in places for p in zip(one.outputs_of(r), other.outputs_of(r), strict=True)]
        return difference(pairs), f"{len(places)} places of {plan.image.name}"
    feeds = random_feeds(session, (1, plan.geometry.inputs[0].channels, *_sizes(plan).values()))
    return difference(list(zip(session.run(feeds), exact.run(feeds), strict=True))), "random pixels"


def difference(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """The largest difference of any value, in units of the std of the second of each pair, channel by channel.

    Arrays (1, c, *space). A channel that is constant is measured by the largest of its own values. inf where a value is
    not finite.
    """
    worst = 0.0
    for found, expected in pairs:
        for one, other in zip(found[0].astype(np.float64), expected[0].astype(np.float64), strict=True):
            if not np.isfinite(one).all():
                return float("inf")
            scale = float(other.std()) or float(np.abs(other).max()) or 1.0
            worst = max(worst, float(np.abs(one - other).max()) / scale)
    return worst


def _sizes(plan: Plan) -> dict[str, int]:
    """A legal size along each axis, no longer than the image where that is legal."""
    sides = SIDE[len(plan.model_axes)]
    return {
        a: axis.minimum if axis.fixed else max(axis.minimum, min(axis.extended, axis.legal(side - axis.step + 1)))
        for (a, axis), side in zip(plan.model_axes.items(), sides, strict=True)
    }


def _regions(plan: Plan, count: int) -> list[NDArray[np.float32]]:
    """Places of the main image, mirrored at the end to a legal size where it is smaller."""
    feed, sizes = plan.feeds[0], _sizes(plan)
    steps = {a: axis.step for a, axis in plan.model_axes.items()}
    found = probe_regions(feed.image, list(plan.model_axes), sizes, count, steps=steps, channels=feed.port.channels,
                          channel=feed.channel)  # fmt: skip
    pads = [[(0, n - have) for n, have in zip(sizes.values(), r.shape[2:], strict=True)] for r in found]
    return [np.pad(r, [(0, 0), (0, 0), *p], mode="symmetric") for r, p in zip(found, pads, strict=True)]


__all__ = ["difference", "differs_by", "with_measured_precision"]
