"""Listeners: a progress bar in a terminal, a line a minute in a log, a JSON object a line for programs."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .infer.events import BlockDone, BlockFailed, Done, PlanMade, StageStarted
from .infer.report import duration, plan_text, size_text
from .zoo.errors import visible

if TYPE_CHECKING:
    from .zoo.download import Fetching

EVERY = 60.0
"""Seconds between two progress lines where no terminal is watching."""


def listener(*, as_json: bool = False, quiet: bool = False, log: Path | None = None) -> Callable[[Any], None]:
    """Who tells the person or program at the other end of stdout what happens."""
    tell: Callable[[Any], None] = _silent if quiet else _as_json if as_json else Screen()
    return tell if log is None else Logged(tell, log)


def for_people(watch: Callable[[Any], None]) -> bool:
    """Whether a person reads stdout: not after --quiet, and not after --json, whose lines must all be JSON."""
    return isinstance(watch.tell if isinstance(watch, Logged) else watch, Screen)


class Logged:
    """A listener whose events also go into a file, one JSON object a line, behind those that are there."""

    def __init__(self, tell: Callable[[Any], None], path: Path) -> None:
        self.tell = tell
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()  # a path that cannot be written is refused before the work, not after

    def __call__(self, event: Any) -> None:
        """Write, then show."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(event_json(event) + "\n")
        self.tell(event)


def say(text: str = "") -> None:
    """A line on stdout; names and texts of strangers cannot steer the terminal."""
    sys.stdout.write(visible(text) + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(visible(text) + "\n")
    sys.stderr.flush()


def plain(text: str) -> str:
    """Text of a stranger without anything that moves the cursor, colours, or turns the direction of writing."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\\\)?|.)", "", text, flags=re.DOTALL)
    return "".join(c for c in text if c == "\n" or c.isprintable())


def fetching(*, quiet: bool) -> Callable[[Fetching], None] | None:
    """Who tells of downloads, on stderr: results and JSON keep stdout."""
    return None if quiet else Downloads()


class Downloads:
    """One line a download, which rewrites itself in a terminal."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def __call__(self, event: Fetching) -> None:
        """Show how far it is."""
        done = event.done == event.total
        of = "" if done or event.total is None else f" of {size_text(event.total)}"
        text = f"fetch    {plain(event.url)}   {size_text(event.done)}{of}"
        if self.terminal:
            sys.stderr.write("\r\x1b[2K" + text + ("\n" if done else ""))
            sys.stderr.flush()
        elif done or time.monotonic() - self._last >= EVERY:
            warn(text)
            self._last = time.monotonic()


def _silent(event: Any) -> None:
    if isinstance(event, BlockFailed):
        warn(_failed(event))


def _as_json(event: Any) -> None:
    say(event_json(event))


def event_json(event: Any) -> str:
    """An event as one line of JSON, with its name under `event` and the time in s since 1970 under `at`."""
    if isinstance(event, PlanMade):
        fields: dict[str, Any] = {"done": event.done, "plan": event.plan.to_json()}
    elif isinstance(event, BlockFailed):
        fields = {"index": event.index, "where": event.where, "error": str(event.error)}
    elif dataclasses.is_dataclass(event) and not isinstance(event, type):
        fields = dataclasses.asdict(event)
    else:
        fields = {"text": str(event)}
    return json.dumps({"event": type(event).__name__, "at": round(time.time(), 3), **fields}, default=str)


class Screen:
    """For people: the plan, one line of progress that rewrites itself, failures, stages."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self._last = 0.0
        self._open = False

    def __call__(self, event: Any) -> None:
        """Show an event."""
        name = type(event).__name__
        shown = getattr(self, f"_{name}", None)
        if shown is not None:
            shown(event)

    def _line(self, text: str, *, final: bool = False) -> None:
        """Progress: rewritten in a terminal, now and then elsewhere."""
        now = time.monotonic()
        if self.terminal:
            sys.stdout.write("\r\x1b[2K" + text)
            sys.stdout.flush()
            self._open = True
            if final:
                self._close()
        elif final or now - self._last >= EVERY:
            say(text)
            self._last = now

    def _close(self) -> None:
        if self._open:
            sys.stdout.write("\n")
            self._open = False

    def _PlanMade(self, event: PlanMade) -> None:  # noqa: N802  (named after the event)
        say(plan_text(event.plan))
        self._last = time.monotonic()
        if event.done:
            say(f"Continuing: {event.done:,} of {event.plan.n_blocks:,} blocks are done.")

    def _BlockDone(self, event: BlockDone) -> None:  # noqa: N802
        share = event.done / event.total
        rate = event.seconds / max(1, event.done)
        left = f"   left {duration((event.total - event.done) * rate)}" if event.done < event.total else ""
        self._line(f"blocks   {event.done:,}/{event.total:,}   {share:.0%}   {duration(event.seconds)}{left}",
                   final=event.done == event.total)  # fmt: skip

    def _BlockFailed(self, event: BlockFailed) -> None:  # noqa: N802
        self._close()
        warn(_failed(event))

    def _StageStarted(self, event: StageStarted) -> None:  # noqa: N802
        say({"pyramid": "pyramid  smaller levels", "tiff": "tiff     writing pages"}.get(event.name, event.name))

    def _Done(self, event: Done) -> None:  # noqa: N802
        self._close()
        if not event.seconds:
            say(f"{event.path} is complete already.")

    def _TrainingStarted(self, event: Any) -> None:  # noqa: N802
        say(f"network  {event.parameters:,} parameters on {event.device}")
        if event.pool_bytes is not None:
            say(f"images   {size_text(event.image_bytes)} as float32, read part by part: "
                f"{size_text(event.pool_bytes)} are held at a time")  # fmt: skip
        if event.epoch:
            say(f"Continuing after epoch {event.epoch}.")
        self._last = time.monotonic()

    def _EpochDone(self, event: Any) -> None:  # noqa: N802
        best = "   best so far" if event.best else ""
        of = f"/{event.epochs}" if event.epochs else ""
        self._line(
            f"epoch    {event.epoch}{of}   train {event.train_loss:.4f}   validation {event.val_loss:.4f}"
            f"   {event.seconds:.1f} s{best}",
            final=event.epoch == event.epochs,
        )

    def _TrainingDone(self, _event: Any) -> None:  # noqa: N802
        self._close()


def _failed(event: BlockFailed) -> str:
    return f"failed   block {event.index} ({event.where}): {event.error}"


__all__ = [
    "Screen", "duration", "event_json", "fetching", "for_people", "listener", "plain", "say", "size_text", "warn",
]  # fmt: skip
