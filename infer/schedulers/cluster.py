"""Where blocks are done, by the words of `--scheduler`: threads, processes:N, tcp://host:port, slurm:..."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ...zoo.errors import RecipeError
from .connect import connected, counted, kept, quiet, wait_for_workers, without_ctrl_c
from .dispatch import Distributed, Lost
from .once import once_per_process
from .tasks import share_out
from .trouble import SchedulerError, first_line

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
    if kind == "processes":
        return _processes(_number(word, rest), cpus or 1, memory, gpu)
    if kind in ("tcp", "tls"):
        return _existing(_address(word), gpu, tell)
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


@contextlib.contextmanager
def _processes(n: int, cpus: int, memory: int | None, gpu: bool) -> Iterator[Scheduler]:
    """Workers that are children of this process; they end with it, also when it is killed."""
    import dask
    from distributed import LocalCluster  # its import fills in dask's configuration

    settings = {
        # a worker that dask pauses at 80 % of its memory would never go on: what it holds are not dask's results
        "memory": {"target": False, "spill": False, "pause": False, "terminate": 0.95},
        "profile": {"enabled": False},
    }
    meanwhile = {
        # the children are quiet from their first import on
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
        # what a child had done when it died is asked for in vain for so long
        "distributed.comm.timeouts.connect": "5s",
    }
    start = partial(
        _start_children,
        LocalCluster,
        n_workers=n,
        threads_per_worker=cpus,
        memory_limit=memory // n if memory else 0,
        host="127.0.0.1",
        silence_logs=logging.CRITICAL,
        # a lost block is tried again alone; two deaths are enough to do that
        scheduler_kwargs={"allowed_failures": 1, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
        resources={"GPU": cpus} if gpu else None,
        config=dask.config.merge(dask.config.config, {"distributed": {"worker": settings}}),
    )
    with quiet(), dask.config.set(meanwhile), contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(kept(start))
        except Exception as error:  # whatever kept the children from starting
            raise SchedulerError(
                f"{n} worker processes could not be started.",
                where=first_line(error),
                mend='a script that uses processes needs its calls under   if __name__ == "__main__":',
            ) from error
        client = stack.enter_context(connected(cluster, ours=True))
        call = f"{n} process{'es' if n > 1 else ''}"
        yield Distributed(client, lambda _workers: call, gpu=gpu)


def _start_children(cluster: Callable[..., Any], **settings: Any) -> Any:
    if os.name == "posix":
        from multiprocessing.resource_tracker import ensure_running

        ensure_running()  # else the first child does it, and that lets Ctrl-C through again
        without_ctrl_c()
    return cluster(**settings)


@contextlib.contextmanager
def _existing(address: str, gpu: bool, tell: Callable[[str], None]) -> Iterator[Scheduler]:
    with quiet(), connected(address) as client:
        scheduler = Distributed(client, partial(counted, address), gpu=gpu)
        wait_for_workers(scheduler, address, tell)
        yield scheduler


__all__ = ["LEGAL", "Lost", "Scheduler", "SchedulerError", "Threads", "Work", "once_per_process", "open_scheduler"]
