"""How work is shared out: dask runs it on threads, in order, in windows that keep the cost of its graph flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

WINDOW = 256
"""Tasks handed to dask at once."""


def share_out(
    work: Callable[[Any], Any],
    items: Iterable[Any],
    threads: int,
    *,
    heard: Callable[[Any], None] = lambda _result: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Do `work(item)` for all items on `threads` threads; `heard(result)` in this thread as each is done.

    An error in `work` is raised here after the running items; `stopped` is asked before every window of items.
    """
    from dask.callbacks import Callback
    from dask.threaded import get

    def posttask(_key: Any, value: Any, *_rest: Any) -> None:
        heard(value)

    with ThreadPoolExecutor(threads, thread_name_prefix="voidzoo") as pool, Callback(posttask=posttask):
        for window in _windows(items):
            if stopped():
                return
            # tasks take the next item as they start: dask promises no order, and files are read front to back
            task = _Next(work, deque(window))
            get(
                {("item", i): (task,) for i in range(len(window))}, [("item", i) for i in range(len(window))], pool=pool
            )


def _windows(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while window := list(islice(iterator, WINDOW)):
        yield window


class _Next:
    """A task without arguments (dask would look into them): what to work on is taken when it starts."""

    def __init__(self, work: Callable[[Any], Any], waiting: deque[Any]) -> None:
        self.work = work
        self.waiting = waiting

    def __call__(self) -> Any:
        return self.work(self.waiting.popleft())
