"""Where blocks are done, by the words of `--scheduler`: threads, processes:N, tcp://host:port, slurm:..."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ...zoo.errors import RecipeError
from .tasks import share_out

LEGAL = "threads, processes:N, tcp://host:port, tls://host:port or slurm:partition=...,cpus=4,memory=8GB,..."
Work = Callable[[Any], Any]
"""`work(item) -> outcome`. For a distributed scheduler it is pickled, once; errors come back as outcomes."""


class Scheduler(Protocol):
    """Where blocks are done.

    name: for people. distributed: in other processes, so that work is pickled and nothing is shared with them. workers:
    processes that could start something now.
    """

    @property
    def name(self) -> str:
        """E.g. `threads`, `2 processes`, `tcp://10.0.0.1:8786 (3 workers)`."""

    @property
    def distributed(self) -> bool:
        """Whether work is done in other processes."""

    @property
    def workers(self) -> int:
        """Processes, now."""

    def share_out(
        self,
        work: Work,
        items: Iterable[Any],
        lanes: int,
        *,
        heard: Callable[[Any], None] = ...,
        stopped: Callable[[], bool] = ...,
    ) -> None:
        """Do all items. See `tasks.share_out` (lanes: threads) and `dispatch.Distributed.share_out` (lanes: tasks in
        flight for each thread of a worker).
        """


@dataclass(frozen=True)
class Threads:
    """The threads of this process."""

    name: str = "threads"
    distributed: bool = False
    workers: int = 1

    def share_out(
        self,
        work: Work,
        items: Iterable[Any],
        lanes: int,
        *,
        heard: Callable[[Any], None] = lambda _outcome: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """See `tasks.share_out`."""
        share_out(work, items, lanes, heard=heard, stopped=stopped)


def open_scheduler(
    word: str,
    *,
    cpus: int | None = None,
    memory: int | None = None,
    gpu: bool = False,
    tell: Callable[[str], None] = lambda _line: None,
) -> AbstractContextManager[Scheduler]:
    """The scheduler for a word of `--scheduler`, closed with the block; workers that it started end with it.

    cpus: tasks that each process of processes:N runs at once (default 1). memory: bytes that all of them may take
    together; one that takes more than its share is started again (default: no limit). gpu: tasks go only to workers
    that declare the resource GPU; workers started here do. tell: hears, in words, what is waited for.

    Raises RecipeError for an unknown word, at once; on entering SchedulerError for a scheduler that cannot be reached
    or has no workers, and DependencyError for slurm without dask-jobqueue.
    """
    kind, _, rest = word.partition(":")
    if word == "threads":
        return contextlib.nullcontext(Threads())
    # each brings asyncio and more, for which a prediction on threads need not wait
    if kind == "processes":
        from .workers import child_processes

        return child_processes(_number(word, rest), cpus or 1, memory, gpu)
    if kind in ("tcp", "tls"):
        from .workers import existing_cluster

        return existing_cluster(_address(word), gpu, tell)
    if kind == "slurm":
        from .slurm import Jobs, run_jobs

        return run_jobs(Jobs.parse(rest), gpu, tell)
    raise RecipeError(f"there is no scheduler {word!r}.", mend=f"--scheduler {LEGAL}")


def _number(word: str, rest: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", rest):
        raise RecipeError(f"{word!r} does not say how many processes.", mend="--scheduler processes:2   (1 or more)")
    return int(rest)


def _address(word: str) -> str:
    found = re.fullmatch(r"(tcp|tls)://(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})/?", word)
    if not found or not 0 < int(found[3]) < 2**16:
        raise RecipeError(
            f"{word!r} is not the address of a scheduler.",
            mend="--scheduler tcp://host:8786, as 'dask scheduler' prints it",
        )
    return word.rstrip("/")
