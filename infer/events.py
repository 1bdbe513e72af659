"""What the engine tells whoever watches: plain dataclasses. Progress bars, logs and reports are listeners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .blocks import BlockReport
    from .plan import Plan


@dataclass(frozen=True)
class PlanMade:
    """The plan stands and blocks begin. done: those finished by an earlier run of the same plan."""

    plan: Plan
    done: int


@dataclass(frozen=True)
class BlockDone:
    """A block is durable. done counts all finished blocks, seconds since the start of this run."""

    report: BlockReport
    done: int
    total: int
    seconds: float


@dataclass(frozen=True)
class BlockFailed:
    """A block could not be done; error says what, where, mend."""

    index: int
    where: str
    error: Exception


@dataclass(frozen=True)
class StageStarted:
    """Something after the blocks begins: `pyramid` or `tiff`."""

    name: str


@dataclass(frozen=True)
class Done:
    """The result is in its place."""

    path: str
    seconds: float


Event = PlanMade | BlockDone | BlockFailed | StageStarted | Done
Watch = Callable[[Event], None]
