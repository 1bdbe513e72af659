"""Ctrl-C that waits: what runs is finished and recorded before it is raised."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def ctrl_c_waits() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C is only noted: yields a function that says whether it came.

    KeyboardInterrupt is raised when the block is left; by a second Ctrl-C at once. Nothing is changed where the
    program has a handler of its own, and in threads that Ctrl-C does not reach.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield lambda: False
        return
    came = threading.Event()

    def note(_signal: int, _frame: Any) -> None:
        came.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came.is_set():
        raise KeyboardInterrupt
