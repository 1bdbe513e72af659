"""What runs in the scheduler's and the workers' processes of dask.distributed. Imported there: light, no numpy.

The work travels once to each worker process, also to one that joins late or is started again, as a plugin that the
scheduler keeps; a task carries only its item. When a client leaves, even by a kill, the scheduler takes back what it
sent out, so that a worker that lives on holds neither its plans nor its sessions.
"""

from __future__ import annotations

import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from ...zoo.version import __version__
from .once import forget_all
from .trouble import PREFIX


@dataclass(frozen=True)
class Crew:
    """The workers at a moment. threads: what they run at once; paused, working: those that dask keeps from starting
    tasks for want of memory, and those of them that are still in one; stuck: the keys of tasks that wait on the others
    (dask does not give them to somebody else).
    """

    workers: int = 0
    threads: int = 0
    paused: int = 0
    working: int = 0
    stuck: tuple[str, ...] = ()


def count_crew(gpu: bool, token: str, dask_scheduler: Any) -> Crew:
    """Count the workers, with `gpu` those that declare the resource GPU. Runs in the scheduler."""
    workers = [ws for ws in dask_scheduler.workers.values() if not gpu or ws.resources.get("GPU", 0) >= 1]
    running = [ws for ws in workers if ws.status.name == "running"]
    paused = [ws for ws in workers if ws.status.name == "paused"]
    return Crew(
        len(running),
        sum(min(ws.nthreads, int(ws.resources["GPU"])) if gpu else ws.nthreads for ws in running),
        len(paused),
        sum(bool(ws.executing) for ws in paused),
        tuple(ts.key for ws in paused if not ws.executing for ts in ws.processing if token in ts.key),
    )


def version() -> str:
    """The version of voidzoo in this process."""
    return __version__


@dataclass
class _Parcel:
    """The work as it was sent, and as it is."""

    sent: bytes
    lock: threading.Lock
    work: Callable[[Any], Any] | None = None
    halted: bool = False


_PARCELS: dict[str, _Parcel] = {}
_CLIENTS: set[str] = set()


def do(token: str, item: Any) -> tuple[Any, ...]:
    """A task: do the work of that token -> (its outcome,); () when it was halted before."""
    parcel = _PARCELS[token]
    if parcel.halted:
        return ()
    with parcel.lock:
        if parcel.work is None:
            parcel.work = pickle.loads(parcel.sent)
    return (parcel.work(item),)


def halt(token: str) -> None:
    """From now on tasks of that token do nothing; those that run are finished."""
    if token in _PARCELS:
        _PARCELS[token].halted = True


class Send(WorkerPlugin):
    """Brings the work to a worker process. It is unpickled by its first task: an error there is an error of a task."""

    def __init__(self, token: str, sent: bytes) -> None:
        self.name = f"{PREFIX}-{token}"
        self.token = token
        self.sent = sent

    def setup(self, worker: Any) -> None:  # noqa: ARG002  (dask calls it by name)
        """The worker has joined, or the work was sent."""
        _PARCELS[self.token] = _Parcel(self.sent, threading.Lock())

    def teardown(self, worker: Any) -> None:  # noqa: ARG002  (dask calls it by name)
        """The work is done, or its client has gone."""
        _PARCELS.pop(self.token, None)


class Attend(WorkerPlugin):
    """Keeps what `once_per_process` made as long as a client is there.

    ours: the worker is a child of the client. Ctrl-C reaches it, too, but it is for the client to decide what ends.
    """

    def __init__(self, token: str, ours: bool) -> None:
        self.name = f"{PREFIX}-{token}"
        self.token = token
        self.ours = ours

    def setup(self, worker: Any) -> None:  # noqa: ARG002  (dask calls it by name)
        """The client or the worker has joined."""
        _CLIENTS.add(self.token)
        if self.ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def teardown(self, worker: Any) -> None:  # noqa: ARG002  (dask calls it by name)
        """The client has gone."""
        _CLIENTS.discard(self.token)
        if not _CLIENTS:
            forget_all()


class TidyUp(SchedulerPlugin):
    """Takes back a client's plugins when it leaves, however it does."""

    def __init__(self, client: str) -> None:
        self.name = f"{PREFIX}-tidy-{client}"
        self.client = client

    def remove_client(self, scheduler: Any, client: str) -> None:
        """A client has gone."""
        if client == self.client:
            scheduler.loop.add_callback(self._take_back, scheduler)

    async def _take_back(self, scheduler: Any) -> None:
        for name in [n for n in scheduler.worker_plugins if n.startswith(f"{PREFIX}-{self.client}")]:
            await scheduler.unregister_worker_plugin(None, name)
        scheduler.remove_plugin(name=self.name)
