"""Parts of a description that nobody has checked, as what they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def listed(value: Any) -> list[Any]:
    """A list as it is, one thing as a list of it, anything that is no list as none."""
    if isinstance(value, list | tuple):
        return list(value)
    return [value] if isinstance(value, str | Mapping) and value else []


def mapped(value: Any) -> Mapping[str, Any]:
    """A mapping as it is, anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}
