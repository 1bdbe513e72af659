"""Compiled steps, on CUDA as CUDA graphs, for trainings that are long enough to repay the compiling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..zoo.errors import DependencyError

if TYPE_CHECKING:
    from .loop import Loss
    from .recipe import Recipe

COMPILING = 60.0
"""Seconds that compiling takes: forward and backward of the U-Net of depth 2 took 35 to 45 on two cores."""
GAIN = 0.1
"""Share of a step that is counted on to be saved."""
TIMED = 20
"""Steps that are timed before it is decided."""
STEADY = 400
"""Steps after which it is decided, by when batch norm's memory is constant (`loop.settle`): each other one would be
compiled anew."""
Note = Callable[[str], None]
"""Told what was decided: `compiled`, or why not."""


def compiled(
    loss: Loss, recipe: Recipe, device: torch.device, seconds_left: Callable[[float], float], note: Note
) -> Loss:
    """The same loss, by a compiled network in training (validation and pictures have other shapes, and few of them).

    The first STEADY steps are never compiled. `auto` then compiles on CUDA alone, and there if the time that is left,
    `seconds_left(seconds a step)`, repays it: on CPUs it gained nothing in float32 and was a quarter slower in bf16.
    `on` compiles anywhere. Sums are added up in another order than without. note: hears of it.
    Raises DependencyError at step STEADY where `on` was asked for and there is no compiler.
    """
    if recipe.compile == "off" or (recipe.compile == "auto" and device.type != "cuda"):
        return loss
    return _Compiled(loss, recipe.compile == "on", device, seconds_left, note)


class _Compiled:
    """A loss that times its first steps and then decides for good."""

    def __init__(
        self, loss: Loss, asked: bool, device: torch.device, seconds_left: Callable[[float], float], note: Note
    ) -> None:
        self.loss, self.asked, self.device, self.seconds_left, self.note = loss, asked, device, seconds_left, note
        self.steps, self.began = 0, 0.0
        self.decided = False
        self.fast: Any = None

    def __call__(self, net: Any, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        if not net.training:
            return self.loss(net, batch, generator)
        if not self.decided and self._worth_it():
            self.decided = True
            self.fast = torch.compile(net, mode="reduce-overhead" if self.device.type == "cuda" else "default")
            return self._first(net, batch, generator)
        return self.loss(net if self.fast is None else self.fast, batch, generator)

    def _worth_it(self) -> bool:
        self.steps += 1
        if self.asked or self.steps not in (STEADY - TIMED, STEADY):
            return self.asked and self.steps == STEADY
        torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.steps < STEADY:
            self.began = now
            return False
        left = self.seconds_left((now - self.began) / TIMED)
        if left * GAIN > COMPILING:
            return True
        self.decided = True
        self.note(f"not compiled: {left:.0f} s are left, too few to repay it")
        return False

    def _first(self, net: Any, batch: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The step that compiles; without a compiler `auto` goes on as before."""
        drawn = generator.get_state()
        try:
            done = self.loss(self.fast, batch, generator)
        except Exception as error:  # whatever torch's compilers raise, which differs by version
            why = next(iter(str(error).splitlines()), type(error).__name__)
            if self.asked:
                raise DependencyError(
                    f"the network cannot be compiled here: {why}",
                    mend="--set compile=off, or install a C++ compiler (on CUDA also triton)",
                ) from error
            self.fast = None
            generator.set_state(drawn)
            self.note(f"not compiled: {why}")
            return self.loss(net, batch, generator)
        self.note("compiled")
        return done
