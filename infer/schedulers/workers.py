"""Workers of dask.distributed: processes of this machine that end with us, and clusters that were there before."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .connect import connected, counted, kept, quiet, wait_for_workers, without_ctrl_c
from .dispatch import Distributed
from .trouble import SchedulerError, first_line

if TYPE_CHECKING:
    from .cluster import Scheduler


@contextlib.contextmanager
def child_processes(n: int, cpus: int, memory: int | None, gpu: bool) -> Iterator[Scheduler]:
    """Workers that are children of this process; they end with it, also when it is killed. See `open_scheduler`."""
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
def existing_cluster(address: str, gpu: bool, tell: Callable[[str], None]) -> Iterator[Scheduler]:
    """The workers of a scheduler that runs already; they are left running. See `open_scheduler`."""
    with quiet(), connected(address) as client:
        scheduler = Distributed(client, partial(counted, address), gpu=gpu)
        wait_for_workers(scheduler, address, tell)
        yield scheduler
