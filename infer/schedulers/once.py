"""What is made once in a process and shared by all its tasks: a session, an open image, an open result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

Made = TypeVar("Made")


@dataclass
class _Slot:
    lock: threading.RLock = field(default_factory=threading.RLock)
    made: list[Any] = field(default_factory=list)


_SLOTS: dict[Hashable, _Slot] = {}
_LOCK = threading.Lock()


def once_per_process(key: Hashable, make: Callable[[], Made]) -> Made:
    """`make()` at the first call with this key in this process, and the same object at every other.

    Threads that ask at the same moment wait for one `make`; other keys do not wait. When `make` raises, so does this,
    and the next call tries again. `key` has to say all that decides what is made (the file, its sha256, the device):
    a worker process lives on from one image to the next. What was made is kept until `forget_all`.
    """
    with _LOCK:
        slot = _SLOTS.setdefault(key, _Slot())
    with slot.lock:
        if not slot.made:
            slot.made.append(make())
        return slot.made[0]


def forget_all() -> None:
    """Let go of everything that was made; workers do so when their last client has gone."""
    with _LOCK:
        _SLOTS.clear()
