"""Several images in one call: where each result goes, what became of each, one line on the screen for each."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .infer.place import ENDINGS, stem
from .screen import Logged, Screen, say
from .zoo.errors import OutputError, VoidzooError

TO_DO, DONE, HOLES, FAILED = "to do", "done", "holes", "failed"
"""What can become of an image."""


def places(images: Sequence[str], out: Path) -> list[tuple[str, Path]]:
    """Which image goes where: one to OUT, several into the folder OUT under their own names.

    Raises OutputError for an OUT that cannot take several, and for two images of one name.
    """
    if len(images) == 1:
        return [(images[0], out)]
    if any(out.name.lower().endswith(e) for e in ENDINGS):
        raise OutputError(f"{len(images)} images cannot all become {out}.", mend=f"a folder: -o {stem(out)}")
    named = [(image, out / f"{stem(image)}.ome.zarr") for image in images]
    first: dict[Path, str] = {}
    for image, place in named:
        if place in first:
            raise OutputError("two of these images have the same name; their results would too.",
                              where=f"{first[place]} and {image}", mend="one folder each")  # fmt: skip
        first[place] = image
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; {len(images)} results need a folder.", mend="another -o")
    out.mkdir(parents=True, exist_ok=True)
    return named


def holes_of(place: Path) -> tuple[str, ...]:
    """The holes that a finished OME-Zarr says it has; none where it says nothing."""
    for file, keys in (("zarr.json", ("attributes", "voidzoo")), (".zattrs", ("voidzoo",))):
        try:
            found = json.loads((place / file).read_text())
            for key in keys:
                found = found[key]
            return tuple(found["happened"]["holes"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return ()


class Index:
    """OUT/index.csv: image, result, status and error of every image of a call, in the order of the command.

    It is written when the call ends, also by an error or Ctrl-C: images that were not reached are `to do`. Until then
    the lines grow in index.csv.part, and what an earlier call wrote stays.
    """

    def __init__(self, folder: Path, jobs: Sequence[tuple[str, Path]]) -> None:
        self.path = folder / "index.csv"
        self._draft = folder / "index.csv.part"
        self._left = dict(jobs)
        self.failed: list[str] = []

    def __enter__(self) -> Self:
        self._file = self._draft.open("w", newline="", encoding="utf-8")
        self._rows = csv.writer(self._file)
        self._rows.writerow(("image", "result", "status", "error"))
        return self

    def add(self, image: str, status: str, error: str = "") -> None:
        """What became of an image."""
        self._rows.writerow((image, self._left.pop(image).name, status, " ".join(error.split())))
        self._file.flush()
        if status != DONE:
            self.failed.append(image)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._rows.writerows((image, place.name, TO_DO, "") for image, place in self._left.items())
        self._file.close()
        self._draft.replace(self.path)


class Brief(Screen):
    """For people who run many images: the plan of the first, then a line an image; failures, progress of long ones."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self._planned = 0

    def _PlanMade(self, event: Any) -> None:  # noqa: N802  (named after the event)
        self._planned += 1
        if self._planned == 1:
            super()._PlanMade(event)
            say(f"images   {self.count:,}; the plans of the others are not shown")

    def _BlockDone(self, event: Any) -> None:  # noqa: N802
        if event.done < event.total:
            super()._BlockDone(event)

    def _StageStarted(self, event: Any) -> None:  # noqa: N802
        """Not told."""

    def _Done(self, event: Any) -> None:  # noqa: N802
        """Told by `line`."""

    def line(self, number: int, image: str, status: str, seconds: float) -> None:
        """One image is over."""
        self._close()
        say(f"{status:8} {number:,}/{self.count:,}   {image}   {seconds:.1f} s")


def brief(watch: Any) -> Brief | None:
    """The one of these that listens, if it is one."""
    watch = watch.tell if isinstance(watch, Logged) else watch
    return watch if isinstance(watch, Brief) else None


def in_words(error: Exception) -> str:
    """What went wrong with one image."""
    return str(error) if isinstance(error, VoidzooError) else f"{type(error).__name__}: {error}"
