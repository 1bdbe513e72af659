"""How work is shared out over dask.distributed: a bounded window in flight, whatever happens to the workers."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

from .interrupt import ctrl_c_waits
from .trouble import PREFIX, Lost, deserted, gone, killed, paused, plug_in, told_in_words, unplug

if TYPE_CHECKING:
    from .remote import Crew

TICK = 0.5
"""Seconds between two looks at the workers and at `stopped`."""
PATIENCE = 60.0
"""Seconds to wait for a worker when the last has gone: a nanny needs a few to start another."""
STUCK = 5.0
"""Seconds that a task may wait on a paused worker until another gets it."""


class Distributed:
    """The workers of a scheduler of dask.distributed, as a `cluster.Scheduler`.

    client: a connected `distributed.Client`. call: its name for people, from the number of workers. gpu: only workers
    that declare the resource GPU count. patience: seconds without a worker until it is an error. tend: called every
    few seconds with the number of workers and of all items done so far, to start new workers where that can be done.
    """

    distributed = True

    def __init__(
        self,
        client: Any,
        call: Callable[[int], str],
        *,
        gpu: bool = False,
        patience: float = PATIENCE,
        tend: Callable[[int, int], None] = lambda _workers, _done: None,
    ) -> None:
        self.client = client
        self.gpu = gpu
        self.patience = patience
        self.tend = tend
        self.done = 0
        self._call = call
        self._serial = count()

    @property
    def name(self) -> str:
        """For people."""
        return self._call(self.workers)

    @property
    def workers(self) -> int:
        """How many workers could start something now."""
        return self.crew().workers

    def crew(self, token: str = PREFIX) -> Crew:
        """The workers now, and what of a token is stuck. Raises SchedulerError when the scheduler is gone."""
        from .remote import count_crew

        with told_in_words(self.client):
            return self.client.run_on_scheduler(count_crew, self.gpu, token)

    @property
    def kind(self) -> str:
        """What one of them is called."""
        return "GPU worker" if self.gpu else "worker"

    def share_out(
        self,
        work: Callable[[Any], Any],
        items: Iterable[Any],
        lanes: int,
        *,
        heard: Callable[[Any], None] = lambda _outcome: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Do `work(item)` for all items on the workers; `heard(outcome)` in this thread, exactly once for each item.

        work: picklable; sent once to each worker process, also to those that join late. Up to `lanes` tasks for each
        thread of a worker are in flight, running or on their way. An item may be done more than once, even twice at
        the same time: when a worker dies or is cut off, dask gives its tasks to another. So `work` must leave the
        same behind however often it is done. An item whose workers keep dying is tried alone at the end, and `heard`
        gets a `Lost` if they still do. When `stopped()` is true, no further item is taken, and this returns after the
        running ones. An error in `work` and the first Ctrl-C are raised after the running ones, too, and those are
        still heard.

        Raises SchedulerError when the scheduler is gone, or no worker has been there for `patience` seconds.
        """
        import cloudpickle

        from .remote import Send

        sent = Send(f"{self.client.id}-{next(self._serial)}", cloudpickle.dumps(work))
        plug_in(self.client, sent)
        flight = _Flight(self, sent.token, lanes, heard)
        try:
            with ctrl_c_waits() as interrupted:
                flight.fly_all(items, lambda: interrupted() or stopped())
        finally:
            flight.land()
            unplug(self.client, sent.name)


class _Flight:
    """The tasks of one `share_out` that are in flight. All but the coroutines runs in the thread that called it."""

    def __init__(self, office: Distributed, token: str, lanes: int, heard: Callable[[Any], None]) -> None:
        self.client = office.client
        self.office = office
        self.token = token
        self.lanes = lanes
        self.heard = heard
        self.resources = {"GPU": 1} if office.gpu else None
        self.crew = office.crew()
        self.serial = count()
        self.flying: dict[str, tuple[Any, Any]] = {}
        self.box: queue.SimpleQueue[tuple[str, Any, BaseException | None]] = queue.SimpleQueue()
        self.halted = self.landed = False
        self.errors: list[BaseException] = []
        self.suspects: list[tuple[Any, BaseException]] = []
        self.stuck: dict[str, float] = {}
        self.manned = self.tended = time.monotonic()
        self.client.loop.add_callback(self._count)

    def fly_all(self, items: Iterable[Any], stopped: Callable[[], bool]) -> None:
        """Do the items, and those whose workers died again."""
        for item, _ in self.fly(items, stopped):
            # a worker that dies takes its neighbours along: only alone is it sure who did it
            for lost, error in self.fly([item], stopped):
                self.heard(Lost(lost, killed(error)))

    def fly(self, items: Iterable[Any], stopped: Callable[[], bool]) -> list[tuple[Any, BaseException]]:
        """Do the items -> those whose workers died, each with dask's error."""
        self.suspects = []
        waiting = iter(items)
        while self._going(waiting, stopped):
            self._listen()
        if self.errors:
            raise self.errors[0]
        return self.suspects

    def land(self) -> None:
        """Whatever is in flight is let go of."""
        self.landed = True
        if self.flying:
            self._halt()
            with contextlib.suppress(OSError, CancelledError):
                self.client.cancel([future for _, future in self.flying.values()], force=True)

    def _going(self, waiting: Iterator[Any], stopped: Callable[[], bool]) -> bool:
        self._look_after()
        if self.errors or stopped():
            self._halt()
        if not self.halted:
            window = self.lanes * max(1, self.crew.threads)
            if items := list(islice(waiting, max(0, window - len(self.flying)))):
                self._submit(items)
        return bool(self.flying)

    def _submit(self, items: list[Any]) -> None:
        from .remote import do

        keys = [f"{PREFIX}-{self.token}-{next(self.serial)}" for _ in items]
        # without a fifo_timeout all that come within 100 ms have the same rank: files are read front to back
        settings: dict[str, Any] = {"pure": False, "resources": self.resources, "fifo_timeout": "0s"}
        for key, item, future in zip(
            keys, items, self.client.map(partial(do, self.token), items, key=keys, **settings), strict=True
        ):
            self.flying[key] = item, future
            self.client.loop.add_callback(self._fetch, key, future)

    async def _fetch(self, key: str, future: Any) -> None:
        """Runs in the client's loop, which asks for all that are ready at once."""
        try:
            self.box.put((key, await self.client.gather(future), None))
        except BaseException as error:
            self.box.put((key, (), error))

    def _listen(self) -> None:
        try:
            landed = [self.box.get(timeout=TICK)]
        except queue.Empty:
            return
        with contextlib.suppress(queue.Empty):
            while True:
                landed.append(self.box.get_nowait())
        for key, answer, error in landed:
            self._take(key, answer, error)

    def _take(self, key: str, answer: tuple[Any, ...], error: BaseException | None) -> None:
        from distributed import KilledWorker

        if key not in self.flying:  # it was given to another worker
            return
        item, _future = self.flying.pop(key)
        if isinstance(error, KilledWorker):
            self.suspects.append((item, error))
        elif isinstance(error, CancelledError | asyncio.CancelledError):
            self.errors.append(gone(self.client, error))
        elif error is not None:
            self.errors.append(error)
        else:
            self.office.done += 1
            for outcome in answer:
                self.heard(outcome)

    def _halt(self) -> None:
        """Tasks that have not begun do nothing."""
        if not self.halted:
            self.halted = True
            self.client.loop.add_callback(self._tell_workers)

    async def _tell_workers(self) -> None:
        from .remote import halt

        with contextlib.suppress(Exception):  # those that do not hear of it do what they have
            await self.client.run(halt, self.token, on_error="ignore")

    async def _count(self) -> None:
        """Runs in the client's loop: keeps `crew` up to date."""
        from .remote import count_crew

        while not self.landed:
            try:
                async with asyncio.timeout(self.office.patience):
                    self.crew = await self.client.run_on_scheduler(count_crew, self.office.gpu, self.token)
            except Exception as error:
                if not self.landed:
                    self.errors.append(gone(self.client, error))
                return
            await asyncio.sleep(TICK)

    def _look_after(self) -> None:
        now = time.monotonic()
        if self.crew.workers or self.crew.working:
            self.manned = now
        elif now - self.manned > self.office.patience:
            raise paused(self.office) if self.crew.paused else deserted(self.office)
        self.stuck = {key: self.stuck.get(key, now) for key in self.crew.stuck if key in self.flying}
        if self.crew.workers and (late := [key for key, since in self.stuck.items() if now - since > STUCK]):
            items, futures = zip(*(self.flying.pop(key) for key in late), strict=True)
            self.client.cancel(list(futures))
            self._submit(list(items))
        if now - self.tended > 5 * TICK:
            self.tended = now
            self.office.tend(self.crew.workers, self.office.done)
