"""voidzoo: self-supervised denoisers and few-label segmenters for microscopy, from training to images of any size.

Nothing is imported before it is used: `import voidzoo` loads neither torch nor onnxruntime.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# onnxruntime reports to Microsoft which models are run, from its first import on, in every process that it is not told
# not to (docs/decisions/0012)
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .api import check, convert, evaluate, pack, plan, predict, study_noise, train, verdicts
    from .infer.events import BlockDone, BlockFailed, Done, PlanMade, StageStarted
    from .infer.plan import Plan
    from .infer.run import Result
    from .trainers.recipe import Recipe
    from .trainers.record import Run, load_run
    from .zoo.errors import NetworkError, ProofFailed, VoidzooError
    from .zoo.evaluation.evaluation import Evaluation
    from .zoo.image import Image, PixelSize
    from .zoo.listing import Model, list_models
    from .zoo.open import open_image
    from .zoo.package import Package, open_package
    from .zoo.version import __version__

_WHERE = {
    "BlockDone": "infer.events",
    "BlockFailed": "infer.events",
    "Done": "infer.events",
    "Evaluation": "zoo.evaluation.evaluation",
    "Image": "zoo.image",
    "Model": "zoo.listing",
    "NetworkError": "zoo.errors",
    "Package": "zoo.package",
    "PixelSize": "zoo.image",
    "Plan": "infer.plan",
    "PlanMade": "infer.events",
    "ProofFailed": "zoo.errors",
    "Recipe": "trainers.recipe",
    "Result": "infer.run",
    "Run": "trainers.record",
    "StageStarted": "infer.events",
    "VoidzooError": "zoo.errors",
    "__version__": "zoo.version",
    "check": "api",
    "evaluate": "api",
    "list_models": "zoo.listing",
    "convert": "api",
    "load_run": "trainers.record",
    "study_noise": "api",
    "open_image": "zoo.open",
    "open_package": "zoo.package",
    "pack": "api",
    "plan": "api",
    "predict": "api",
    "train": "api",
    "verdicts": "api",
}

__all__ = [  # noqa: PLE0604  (names of the lazy table; `export` is the room, which can be called)
    *(name for name in _WHERE if not name.startswith("_")),
    "export",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".{_WHERE[name]}", __name__), name)
    if name in ("export", "infer", "trainers", "zoo"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module 'voidzoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
