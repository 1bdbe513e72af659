"""Test-time augmentation: the mean of what a network makes of a tile turned and mirrored, each laid back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.blind import BlindMask
from ..zoo.dihedral import group, turned, turned_back
from ..zoo.errors import PackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .plan import Plan

Run = Callable[[Sequence["NDArray[Any]"]], list["NDArray[Any]"]]


def turns_of(plan: Plan) -> tuple[int, ...]:
    """The codes (zoo.dihedral) under which a plan's network runs: (0,) without --tta.

    All eight; without quarter turns where y and x differ in legal sizes, halo or scale of an output; and only those
    that keep the blind mask that the network was trained with, since it knows noise of that direction alone.
    Raises PackageError for a network that has no y and x, and for results that have no mean.
    """
    if not plan.choices.tta:
        return (0,)
    name, axes = plan.package.name, plan.model_axes
    if not {"y", "x"} <= set(axes) or any(f.port.whole for f in plan.feeds):
        raise PackageError(f"--tta turns planes, but {name} does not read y and x of each input.", mend="leave it out")
    for port in plan.geometry.outputs:
        kinds = {t.kind for t in plan.targets if t.port.id == port.id}
        if np.dtype(port.tensor.dtype).kind not in "f" or kinds & {"distance", "label"}:
            raise PackageError(
                f"--tta takes the mean over turned images, which {port.id} of {name} does not have "
                f"({', '.join(sorted(kinds)) or port.tensor.dtype}).",
                mend="leave it out",
            )
    y, x = axes["y"], axes["x"]
    same = (y.step, y.minimum, y.halo, y.fixed) == (x.step, x.minimum, x.halo, x.fixed) and all(
        p.ratio.get("y", 1) == p.ratio.get("x", 1) for p in (*plan.geometry.inputs, *plan.geometry.outputs)
    )
    return group(_blind_mask(plan), square=same)


def _blind_mask(plan: Plan) -> NDArray[np.bool_] | None:
    """That of the package's training. Raises PackageError for something else in its place."""
    recipe = plan.package.ours.get("recipe")
    given = recipe.get("blind_mask") if isinstance(recipe, Mapping) else None
    try:
        return None if given is None else BlindMask.of(given).hidden
    except ValueError as error:
        raise PackageError(
            f"{plan.package.path}: config.voidzoo.recipe.blind_mask: {error}.",
            mend="leave --tta out, or export it again",
        ) from None


def averaged(run: Run, feeds: Sequence[NDArray[Any]], turns: Sequence[int]) -> list[NDArray[Any]]:
    """run, on (n, c, *space) arrays, under each turn: the mean of the results, float32.

    Source: Timofte et al. 2016 (self-ensemble).
    """
    total: list[NDArray[Any]] = []
    for code in turns:
        back = [turned_back(y, code) for y in run([np.ascontiguousarray(turned(f, code)) for f in feeds])]
        if not total:
            total = [np.array(y, np.float32) for y in back]
        else:
            for sum_, y in zip(total, back, strict=True):
                np.add(sum_, y, out=sum_)
    return [np.divide(sum_, np.float32(len(turns)), out=sum_) for sum_ in total]
