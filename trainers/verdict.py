"""Whether a training went well, in sentences for somebody who has not trained a network before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .loop import EpochDone
    from .residual import Residual

ALIKE = 0.08
"""Correlations that differ by less are called the same: noise is measured to about half of it."""
RISEN = 1.02
"""The last validation loss as a share of the best one, from which on it is called risen."""
FALLING = {"plateau": 0.05, "cosine": 0.2}
"""Share of all that was gained that the last fifth of the epochs brought, from which on more epochs are advised.

Where the learning rate ends at 0, the last epochs always bring something.
"""
NOTHING = 0.98
"""Validation loss (1: the image's variance) from which on nothing was learnt from the neighbours of a pixel."""


def verdict(
    method: str, history: Sequence[EpochDone], residuals: Sequence[Residual], schedule: str = "cosine"
) -> list[str]:
    """Sentences: how the loss went, then what the residual of each channel says. schedule: of the learning rate."""
    said = [_loss(method, history, FALLING[schedule])]
    for r in residuals:
        channel = f"{r.channel}: " if len(residuals) > 1 else ""
        said += [channel + sentence for sentence in _residual(method, r)]
    return said


def _loss(method: str, history: Sequence[EpochDone], falling: float) -> str:
    """One sentence about the validation loss."""
    losses = [e.val_loss for e in history]
    best = min(range(len(losses)), key=losses.__getitem__)
    epochs = f"epoch {best + 1} of {len(losses)}"
    if method != "care" and losses[best] >= NOTHING:
        return (
            f"Nothing was learnt: the validation loss {losses[best]:.3f} is that of a network which answers with the "
            "mean. The image may hold noise alone, or the training was far too short."
        )
    if len(losses) - best > max(3, len(losses) // 5) and losses[-1] > RISEN * losses[best]:
        return (
            f"The validation loss has risen since {epochs}, from {losses[best]:.4f} to {losses[-1]:.4f}: the "
            "network began to learn the images by heart. The best weights are used; more images would help, more "
            "epochs would not."
        )
    last = max(1, len(losses) // 5)
    gained = losses[0] - losses[best]
    if len(losses) > last and gained > 0 and min(losses[:-last]) - losses[best] > falling * gained:
        return f"The validation loss was still falling, to {losses[best]:.4f} in {epochs}: more epochs would help."
    return f"The validation loss settled at {losses[best]:.4f} ({epochs})."


def _residual(method: str, residual: Residual) -> list[str]:
    """What was taken away, beside the noise of the image."""
    pairs = residual.beside_noise()
    if not pairs:
        return [
            "The noise of the image could not be measured by itself. Look at the residual: it must show no outlines."
        ]
    more = max(pairs, key=lambda p: p[2] - p[3])
    less = min(pairs, key=lambda p: p[2] - p[3])
    near = max((abs(p[2]) for p in pairs if p[1] == 1), default=0.0)
    said = []
    if more[2] - more[3] > ALIKE:
        said.append(
            f"What was taken away hangs together more than the noise does ({_said(more)}): some of it was signal. "
            "A longer training or a larger network keeps more of it."
        )
    if less[2] - less[3] < -ALIKE:
        text = (
            f"What was taken away hangs together less than the noise does ({_said(less)}): noise was left in the image."
        )
        if method in ("n2v", "n2v2") and residual.proposed:
            text += f" Its pixels share their noise: train structn2v with --blind-mask {residual.proposed}."
        elif method == "structn2v":
            text += " A wider blind mask may take it away."
        said.append(text)
    if not said:
        said.append(
            f"What was taken away looks like the noise alone: {residual.std:.3g} grey values, and its neighbouring "
            "pixels " + ("have nothing in common." if near < ALIKE else "have in common what those of the noise have.")
        )
    return said


def _said(pair: tuple[str, int, float, float]) -> str:
    axis, lag, found, noise = pair
    return f"{found:.2f} at {lag} pixel{'s' * (lag > 1)} along {axis}, noise {noise:.2f}"
