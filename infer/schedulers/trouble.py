"""What can go wrong between a client of dask.distributed and its workers, in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...zoo.errors import VoidzooError

if TYPE_CHECKING:
    from .dispatch import Distributed

PREFIX = "voidzoo"
"""How the names of our tasks and plugins begin."""
CONTINUES = "the finished blocks are kept; the same command again continues"


class SchedulerError(VoidzooError, RuntimeError):
    """A scheduler that cannot be reached, or that has no workers (any more)."""

    exit_code = 3


@dataclass(frozen=True)
class Lost:
    """An item that was not done: its worker process died each time, at last with nothing else running beside it."""

    item: Any
    error: SchedulerError


def plug_in(client: Any, plugin: Any) -> None:
    """Register a plugin of dask, also while workers die. Raises SchedulerError when the scheduler is gone."""
    for tries_left in (2, 1, 0):
        try:
            client.register_plugin(plugin)
            return
        except OSError as error:  # a worker died while it was told
            if client.status != "running" or not tries_left:
                raise gone(client, error) from error
            unplug(client, plugin.name)
            time.sleep(0.5)


def unplug(client: Any, name: str) -> None:
    """Unregister a plugin of the workers. If that fails, it goes with the client."""
    if client.status == "running":
        with contextlib.suppress(OSError, ValueError):
            client.unregister_worker_plugin(name)


@contextlib.contextmanager
def told_in_words(client: Any) -> Iterator[None]:
    """A connection that breaks is a SchedulerError."""
    try:
        yield
    except (OSError, TimeoutError, CancelledError) as error:
        raise gone(client, error) from error


def gone(client: Any, error: BaseException) -> SchedulerError:
    """The error of a scheduler that was there before."""
    return SchedulerError(
        "the connection to the scheduler broke, or it was told to drop these blocks.",
        where=f"{_address(client)}: {first_line(error)}",
        mend=CONTINUES,
    )


def paused(office: Distributed) -> SchedulerError:
    """The error of workers that dask does not let begin anything."""
    return SchedulerError(
        f"dask has paused every {office.kind}: each holds more than 80 % of the memory that it was given.",
        where=_address(office.client),
        mend=f"dask worker --memory-limit 0   or with more, or a smaller --block; {CONTINUES}",
    )


def deserted(office: Distributed) -> SchedulerError:
    """The error of a scheduler that lost its last worker."""
    return SchedulerError(
        f"the last {office.kind} has gone, and none has come for {office.patience:g} s.",
        where=_address(office.client),
        mend=CONTINUES,
    )


def killed(error: BaseException) -> SchedulerError:
    """The error of an item whose workers died; `error` is dask's."""
    worker = getattr(error, "last_worker", "unknown")
    return SchedulerError(
        "its worker process died each time it was tried, at last with nothing else running.",
        where=f"the last was {getattr(worker, 'address', worker)}",
        mend="if they ran out of memory: a smaller --block, or workers with more",
    )


def _address(client: Any) -> str:
    return str(getattr(client.scheduler, "address", "the scheduler"))


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
