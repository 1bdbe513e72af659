"""Training: recipes, patches, blind spots, networks, the loop and the run folder. torch lives here.

`import voidzoo.trainers` is cheap; torch is imported with the first name that is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "EpochDone": "loop",
    "Recipe": "recipe",
    "Run": "record",
    "TrainingDone": "loop",
    "TrainingStarted": "loop",
    "choose_device": "training",
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
