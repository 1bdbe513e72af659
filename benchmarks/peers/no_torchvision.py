"""CAREamics imports torchvision for networks that are not used here, and the one on PyPI wants CUDA."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def without_torchvision() -> None:
    """Empty modules in the place of torchvision, where there is none."""
    if find_spec("torchvision") is not None:
        return
    import torchmetrics  # noqa: F401  (must see that there is none)

    def module(name: str, **content: Any) -> ModuleType:
        made = ModuleType(name)
        made.__spec__ = ModuleSpec(name, None, is_package=True)
        made.__dict__.update(content)
        sys.modules[name] = made
        return made

    functional = module("torchvision.transforms.functional")
    module("torchvision", __version__="0", transforms=module("torchvision.transforms", functional=functional))
