"""The training loop, top to bottom on one page. It knows a loss, a network and where to save, but no method.

The same seed, machine and thread count give the same weights on the CPU, also over a kill and a resume: all
randomness comes from two generators whose states are saved with everything else after each epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from math import cos, isfinite, pi
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..zoo.errors import TrainingError

if TYPE_CHECKING:
    from .patches import Patches
    from .pool import Pool
    from .recipe import Recipe


Loss = Callable[[Any, Tensor, torch.Generator], tuple[Tensor, dict[str, Tensor]]]
"""(network, batch, generator) -> (scalar, parts); parts["pixels"] says how many pixels the scalar is a mean over."""

MEMORY, RECENT = 0.01, 4
"""What a step changes of batch norm's memory in the end; until then it holds one in RECENT of the steps before."""
VALIDATION_SEED = 20181127
"""The validation hides the same pixels in every epoch and every run."""


@dataclass(frozen=True)
class TrainingStarted:
    """The first step is about to be made; `epoch` epochs were done before (0 unless resumed).

    image_bytes: of all images as float32. pool_bytes: what of them is held at a time, None: all.
    """

    folder: str
    device: str
    epochs: int
    steps: int
    epoch: int
    parameters: int
    image_bytes: int = 0
    pool_bytes: int | None = None


@dataclass(frozen=True)
class EpochDone:
    """An epoch is over and saved. Losses are in units of the normalised image's variance; seconds of this epoch.

    epochs: how many there will be, 0 where time decides.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    best: bool
    lr: float
    seconds: float


@dataclass(frozen=True)
class TrainingDone:
    """All epochs are done; `seconds` over all of them, also those before a resume."""

    folder: str
    epochs: int
    best_epoch: int
    best_val_loss: float
    seconds: float


Event = TrainingStarted | EpochDone | TrainingDone
Watch = Callable[[Event], None]


@dataclass
class Plateau:
    """Halve the learning rate when the validation stands still, as Keras does: when `patience` bad epochs are full."""

    factor: float
    patience: int
    min_delta: float
    best: float = float("inf")
    bad: int = 0

    def next(self, loss: float, lr: float) -> float:
        """The learning rate after an epoch with this validation loss."""
        if loss < self.best - self.min_delta:
            self.best, self.bad = loss, 0
            return lr
        self.bad += 1
        if self.bad < self.patience:
            return lr
        self.bad = 0
        return lr * self.factor


def cosine(lr: float, share: float) -> float:
    """The learning rate after a share of the training: along half a cosine to 0 (Loshchilov and Hutter 2017)."""
    return lr * 0.5 * (1 + cos(pi * min(1.0, share)))


@dataclass
class State:
    """How far a training has come: all that a resume needs."""

    network: Any
    optimiser: Any
    plateau: Plateau
    patches: torch.Generator
    masks: torch.Generator
    history: list[EpochDone] = field(default_factory=list)

    def share(self, recipe: Recipe) -> float:
        """How much of the training is done, in epochs or, where it has a time, in time: 1 is all."""
        share = len(self.history) / recipe.epochs
        spent = sum(e.seconds for e in self.history)
        return share if recipe.minutes is None else max(share, spent / (60 * recipe.minutes))

    def seconds_left(self, recipe: Recipe, step: float) -> float:
        """How long the rest takes where a step takes so many seconds; validation comes on top."""
        rest = (recipe.epochs - len(self.history)) * recipe.steps * step
        spent = sum(e.seconds for e in self.history)
        return rest if recipe.minutes is None else min(rest, 60 * recipe.minutes - spent)

    def ended(self, recipe: Recipe) -> str:
        """Why it is over: `epochs`, `minutes` or `early stop`; empty while it is not."""
        if len(self.history) >= recipe.epochs:
            return "epochs"
        if self.share(recipe) >= 1:
            return "minutes"
        best = min(self.history, key=lambda e: e.val_loss).epoch if self.history else 0
        return "early stop" if recipe.early_stop and len(self.history) - best >= recipe.early_stop else ""

    @property
    def best_val_loss(self) -> float:
        """The lowest validation loss so far, infinity before the first epoch."""
        return min((e.val_loss for e in self.history), default=float("inf"))

    def dump(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it can be read without running code."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "plateau": asdict(self.plateau),
            "patches": self.patches.get_state(),
            "masks": self.masks.get_state(),
            "history": [asdict(e) for e in self.history],
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Continue from what `dump` gave."""
        self.network.load_state_dict(saved["network"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.plateau = Plateau(**saved["plateau"])
        self.patches.set_state(saved["patches"])
        self.masks.set_state(saved["masks"])
        self.history = [EpochDone(**e) for e in saved["history"]]


def settle(network: Any, steps: int) -> None:
    """Let batch norm remember the last quarter of the `steps` that were made, in the end the last hundred or so.

    What it remembers is what the network is validated and used with. With a fixed memory of a hundred steps (Keras'), a
    third of its first guess (mean 0, variance 1) is left after a hundred: 20 images of nuclei had 25.6 to 26.5 dB then,
    now 31.1 to 31.2, and 31.0 to 31.9 after 300 steps, now 32.5 to 33.0 (docs/decisions/0016). Source: polynomial-decay
    averaging, Shamir and Zhang 2013.
    """
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = max(MEMORY, RECENT / (steps + RECENT))


def start(network: Any, recipe: Recipe, device: torch.device) -> State:
    """A training that has not begun. Adam with Keras' eps (1e-7), which is ten times torch's."""
    optimiser = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, eps=1e-7)
    plateau = Plateau(recipe.plateau_factor, recipe.plateau_patience, recipe.plateau_min_delta)
    return State(
        network,
        optimiser,
        plateau,
        torch.Generator().manual_seed(recipe.seed),
        torch.Generator(device).manual_seed(recipe.seed + 1),
    )


def fit(
    state: State,
    loss: Loss,
    patches: Patches | Pool,
    validation: list[Tensor],
    recipe: Recipe,
    *,
    save: Callable[[State], None],
    watch: Watch,
) -> None:
    """Train from where `state` is to the end that the recipe says; `save` is called after each epoch, then `watch`.

    patches.batch(n) and validation: float32 (n, c, [z], y, x) on the device of the network.
    Raises TrainingError for a loss that is not finite.
    """
    while not state.ended(recipe):
        epoch = len(state.history) + 1
        began = time.perf_counter()
        lr = state.optimiser.param_groups[0]["lr"]
        total = 0.0
        state.network.train()
        for step in range(1, recipe.steps + 1):
            settle(state.network, (epoch - 1) * recipe.steps + step - 1)
            batch = patches.batch(recipe.batch)
            value, _ = loss(state.network, batch, state.masks)
            state.optimiser.zero_grad(set_to_none=True)
            value.backward()
            if recipe.gradient_clip is not None:
                torch.nn.utils.clip_grad_norm_(state.network.parameters(), recipe.gradient_clip)
            state.optimiser.step()
            total += _finite(float(value.detach()), batch, f"epoch {epoch}, step {step} of {recipe.steps}")

        val_loss = validate(state.network, loss, validation)
        _finite(val_loss, validation[0], f"the validation of epoch {epoch}")
        best = val_loss < state.best_val_loss
        epochs = 0 if recipe.minutes else recipe.epochs
        done = EpochDone(epoch, epochs, total / recipe.steps, val_loss, best, lr, time.perf_counter() - began)
        state.history.append(done)
        after = state.plateau.next(val_loss, lr)
        if recipe.schedule == "cosine":
            after = cosine(recipe.learning_rate, state.share(recipe))
        for group in state.optimiser.param_groups:
            group["lr"] = after
        save(state)
        watch(done)


def validate(network: Any, loss: Loss, batches: list[Tensor]) -> float:
    """The mean loss over the held-out batches with the network in eval mode; the hidden pixels are always the same."""
    generator = torch.Generator(batches[0].device).manual_seed(VALIDATION_SEED)
    network.eval()
    total = pixels = 0.0
    with torch.no_grad():
        for batch in batches:
            value, parts = loss(network, batch, generator)
            count = float(parts["pixels"])
            total += float(value) * count
            pixels += count
    return total / max(pixels, 1.0)


def _finite(value: float, batch: Tensor, where: str) -> float:
    if isfinite(value):
        return value
    raise TrainingError(
        f"the loss became {value} in {where}.",
        where=f"the batch has values from {float(batch.min()):g} to {float(batch.max()):g} (normalised)",
        mend="a smaller learning_rate; look for NaN or extreme pixels in the images",
    )
