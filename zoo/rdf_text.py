"""rdf.yaml as text -> plain values, whoever wrote it: bounded in size, depth and number before anything is built."""

from __future__ import annotations

import datetime
from typing import Any

import yaml

from .errors import visible

MAX_DEPTH = 64
MAX_PARTS = 100_000
"""Values of a description, those that aliases repeat counted each time."""
MAX_NUMBER = 64
"""Characters of a number: PyYAML takes hours for one of a million digits in base 60."""

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """PyYAML's safe loader without what no description needs: keys twice, merge keys, endless numbers."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ValueError("'<<' is used, which JSON and other readers of packages do not have")
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise ValueError(f"the key {key.value[:60]!r} is there twice, line {key.start_mark.line + 1}")
                keys.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def _short(kind: str) -> None:
    """Numbers and dates of a kind only up to MAX_NUMBER characters."""
    usual = getattr(_Base, f"construct_yaml_{kind}")

    def construct(loader: Any, node: Any) -> Any:
        if len(str(node.value)) > MAX_NUMBER:
            raise ValueError(f"a number of {len(node.value):,} characters, line {node.start_mark.line + 1}")
        return usual(loader, node)

    _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", construct)


for _kind in ("int", "float", "timestamp"):
    _short(_kind)


def read_yaml(raw: bytes) -> Any:
    """Plain values: dicts, lists, texts, numbers, truths, dates, None; nothing is shared, control characters in texts
    are replaced. Raises yaml.YAMLError or ValueError for no YAML, for tags of Python, more than MAX_DEPTH levels or
    MAX_PARTS values, a key that is there twice, a list that contains itself.
    """
    _look_through(raw)
    return _plain(yaml.load(raw, Loader=_Loader), 0, [MAX_PARTS])


def _look_through(raw: bytes) -> None:
    """Events alone, one by one: libyaml's composer ends the process on 100,000 brackets."""
    depth = parts = 0
    for event in yaml.parse(raw, Loader=_Base):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        parts += isinstance(event, yaml.NodeEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        if parts > MAX_PARTS:
            raise ValueError(f"it has more than {MAX_PARTS:,} values")


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A copy of its own; `left`: how many values more there may be, long texts counted as several."""
    left[0] -= 1 + (len(value) // 100 if isinstance(value, str) else 0)
    if left[0] < 0:
        raise ValueError(f"it has more than {MAX_PARTS:,} values where its aliases stand for what they repeat")
    if depth > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep, or contains itself")
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {_plain(k, depth + 1, left): _plain(v, depth + 1, left) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, depth + 1, left) for v in value]
    if value is None or isinstance(value, bool | int | float | datetime.date):
        return value
    raise ValueError(f"it holds a {type(value).__name__}; texts, numbers, lists and mappings are known")
