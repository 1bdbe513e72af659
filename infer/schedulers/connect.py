"""A client of dask.distributed that is quiet, says in words what is missing, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ...zoo.version import __version__
from .dispatch import Distributed
from .trouble import PREFIX, SchedulerError, first_line, paused, plug_in

CONNECT = 8.0
"""Seconds to wait for a scheduler to answer."""
WORKERS = 30.0
"""Seconds to wait for the first worker of a scheduler that has none."""
LOGGERS = ("distributed", "distributed.client", "distributed.gc", "tornado.application")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What dask has to say of workers that come and go is told by us, where it matters."""
    before = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def kept(make: Callable[[], Any]) -> Iterator[Any]:
    """What `make()` returns (a cluster or a client of dask), closed with the block.

    Both are done in a thread that Ctrl-C does not reach, nor the processes that it starts: half-made or half-closed
    they would leave processes, and tracebacks at exit. Ctrl-C in the meantime is raised when they are whole.
    """
    with ThreadPoolExecutor(1, initializer=without_ctrl_c) as pool:
        making = pool.submit(make)
        try:
            yield making.result()
        finally:
            if not making.exception():
                pool.submit(making.result().close).result()


def without_ctrl_c() -> None:
    """From now on Ctrl-C does not reach this thread; on Windows nothing is changed."""
    if hasattr(signal, "pthread_sigmask"):  # inherited by threads and processes that are started here
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


@contextlib.contextmanager
def connected(target: Any, *, ours: bool = False) -> Iterator[Any]:
    """A client of an address or of a cluster. ours: the workers are children of this process.

    Raises SchedulerError when nothing answers, or what answers has no voidzoo.
    """
    from distributed import Client

    from .remote import Attend, TidyUp

    address = target if isinstance(target, str) else target.scheduler_address
    if isinstance(target, str):
        _handshake(address)
    client = partial(Client, target, timeout=CONNECT, set_as_default=False, name=PREFIX)
    with contextlib.ExitStack() as stack:
        try:
            opened = stack.enter_context(kept(client))
        except (OSError, TimeoutError) as error:
            raise _no_answer(address, error) from error
        _same_version(opened, address)
        plug_in(opened, TidyUp(opened.id))
        plug_in(opened, Attend(opened.id, ours))
        yield opened


def _handshake(address: str) -> None:
    """Shake hands as dask does: its client would wait for ever for something that listens but does not speak dask."""
    from distributed.comm import connect
    from distributed.security import Security

    async def shake() -> None:
        arguments = Security().get_connection_args("client")
        (await asyncio.wait_for(connect(address, timeout=CONNECT, **arguments), CONNECT)).abort()

    with ThreadPoolExecutor(1) as pool:  # in a notebook this thread has a loop already
        try:
            pool.submit(asyncio.run, shake()).result()
        except Exception as error:  # what speaks something else makes dask raise anything
            if address.startswith("tls") and isinstance(error, TypeError | ValueError):
                raise SchedulerError(
                    f"{address} needs certificates, and dask's configuration has none that fit.",
                    where=first_line(error),
                    mend="DASK_DISTRIBUTED__COMM__TLS__CA_FILE=...   and its like: docs.dask.org, 'TLS/SSL'",
                ) from error
            raise _no_answer(address, error) from error


def _no_answer(address: str, error: BaseException) -> SchedulerError:
    return SchedulerError(
        f"no scheduler of dask answers at {address}.",
        where=first_line(error),
        mend=f"start one:   dask scheduler --port {address.rpartition(':')[2]}",
    )


def _same_version(client: Any, address: str) -> None:
    """Refuse a scheduler or workers that cannot import this voidzoo: no task would run."""
    from .remote import version

    found: dict[str, Any] = {}
    try:
        found["the scheduler"] = client.run_on_scheduler(version)
    except OSError as error:
        raise SchedulerError(f"the scheduler at {address} broke the connection.", where=first_line(error)) from error
    except Exception as error:  # whatever importing it there raises
        found["the scheduler"] = error
    found |= {f"the worker at {place}": answer for place, answer in client.run(version, on_error="return").items()}
    for place, answer in found.items():
        if isinstance(answer, OSError) or answer == __version__:  # a worker that has just gone is no reason
            continue
        told = f"has version {answer}" if isinstance(answer, str) else f"cannot import voidzoo: {first_line(answer)}"
        raise SchedulerError(
            f"{place} {told}; here it is {__version__}.",
            where=address,
            mend=f"in the environment of the scheduler and of every worker:   pip install voidzoo=={__version__}",
        )


def wait_for_workers(scheduler: Distributed, address: str, tell: Callable[[str], None]) -> None:
    """Return when there is a worker. Raises SchedulerError after WORKERS seconds."""
    until = time.monotonic() + WORKERS
    told = False
    while not (crew := scheduler.crew()).workers:
        if not told:
            told = True
            tell(f"waiting up to {WORKERS:g} s for the first {scheduler.kind} of {address}")
        if time.monotonic() > until:
            if crew.paused:
                raise paused(scheduler)
            raise SchedulerError(
                f"the scheduler at {address} has no {scheduler.kind}, and none came within {WORKERS:g} s.",
                mend=f"dask worker {address}" + (' --resources "GPU=1"' if scheduler.gpu else ""),
            )
        time.sleep(0.2)


def counted(address: str, workers: int) -> str:
    """`tcp://10.0.0.1:8786 (3 workers)`."""
    return f"{address} ({workers} worker{'s' if workers != 1 else ''})"
