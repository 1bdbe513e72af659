"""Training: recipes, patches, blind spots, networks, the loop and the run folder. torch lives here.

`import voidzoo.trainers` is cheap; torch is imported with the first name that is asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# torch's OpenMP threads spin while they wait for each other. Beside any other busy process that makes a training step
# take 5 to 10 times as long (mean 385 and 774 ms for a step of 70 ms, two cores); short spinning costs nothing when
# alone (71 ms) and keeps it at 78 ms beside one. It must be set before torch is imported; what a user has set stays.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_WHERE = {
    "EpochDone": "loop",
    "Recipe": "recipe",
    "Run": "record",
    "TrainingDone": "loop",
    "TrainingStarted": "loop",
    "choose_device": "device",
    "denoise": "training",
    "load_run": "record",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(_WHERE)
