"""How work is shared out: dask runs it on threads, in order, in windows that keep the cost of its graph flat."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from .interrupt import ctrl_c_waits

WINDOW = 256
"""Tasks handed to dask at once."""


def share_out(
    work: Callable[[Any], Any],
    items: Iterable[Any],
    threads: int,
    *,
    heard: Callable[[Any], None] = lambda _outcome: None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Do `work(item)` for all items on `threads` threads; `heard(outcome)` in this thread, once for each item done.

    Items are taken in order, each when a thread is free for it, and never more than a window ahead. When `stopped()`
    is true, no further item is taken, and this returns after the running ones. An error in `work` and the first Ctrl-C
    are raised after the running ones, too, and those are still heard.
    """
    from dask.threaded import get

    done: deque[Any] = deque()

    def tell(*_task: Any) -> None:
        while done:
            heard(done.popleft())

    # not dask's Callback: that one is global, and would hear of whatever else dask does in this process
    listening = [(None, None, None, tell, None)]
    with ctrl_c_waits() as interrupted:
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix="voidzoo") as pool:
                for window in _windows(items):
                    task = _Next(work, deque(window), done.append, lambda: interrupted() or stopped())
                    keys = [("item", i) for i in range(len(window))]
                    get(dict.fromkeys(keys, (task,)), keys, pool=pool, callbacks=listening)
                    if interrupted() or stopped():
                        return
        finally:
            tell()


def _windows(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while window := list(islice(iterator, WINDOW)):
        yield window


class _Next:
    """A task without arguments (dask would look into them): what to work on is taken when it starts, as dask promises
    no order, and files are read front to back.
    """

    def __init__(
        self,
        work: Callable[[Any], Any],
        waiting: deque[Any],
        done: Callable[[Any], None],
        stopped: Callable[[], bool],
    ) -> None:
        self.work = work
        self.waiting = waiting
        self.done = done
        self.stopped = stopped

    def __call__(self) -> None:
        if not self.stopped():
            self.done(self.work(self.waiting.popleft()))
