"""The top floor: a training run becomes a bioimage.io package, and is proved before it is called one.

The room is also the verb: `voidzoo.export(run, "model.zip")` (docs/decisions/0002).
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called: `voidzoo.export` names both this room and the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`export.pack.export_run`, imported at the first call."""
        from .pack import export_run

        return export_run(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
