"""The place of a result: OUT, and OUT.part beside it while it is being made. Nothing half-written is ever at OUT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..zoo.errors import OutputError, ResourceError
from .store import sync_file, sync_folder

if TYPE_CHECKING:
    from .plan import Plan

ENDINGS = {
    ".ome.zarr": "zarr",
    ".zarr": "zarr",
    ".ome.tif": "tiff",
    ".ome.tiff": "tiff",
    ".tif": "tiff",
    ".tiff": "tiff",
}
PLAN, LEDGER = "plan.json", "ledger.jsonl"


class Place:
    """Where a result goes. Raises OutputError for an ending that names no format."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)
        name = self.out.name.lower()
        ending = next((e for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e)), None)
        if ending is None or name == ending:
            raise OutputError(
                f"{out}: the ending chooses the format.", mend=f"-o {Path(out).stem or 'result'}.ome.zarr  or  .ome.tif"
            )
        self.format = ENDINGS[ending]
        self.part = self.out.with_name(self.out.name + ".part")
        self.staged = self.part / "image.zarr"

    def stored(self) -> dict[str, Any] | None:
        """The plan of a result that is finished or begun here, None where there is nothing.

        Raises OutputError when something is here that voidzoo did not write.
        """
        begun = self.begun()
        return self.finished() if begun is None else begun

    def begun(self) -> dict[str, Any] | None:
        """The plan of a result that is begun in OUT.part. Raises OutputError when OUT.part is something else."""
        if (self.part / PLAN).is_file():
            return json.loads((self.part / PLAN).read_text())
        if self.part.exists():
            found = {p.name for p in self.part.iterdir()} if self.part.is_dir() else {""}
            if found - {PLAN + ".tmp"}:  # that one alone is left by a kill before anything was begun
                raise OutputError(
                    f"{self.part} exists and was not made by voidzoo.", mend="another -o, or move it away"
                )
        return None

    def finished(self) -> dict[str, Any] | None:
        """The plan of a finished result. Raises OutputError when OUT is something else."""
        if not self.out.exists():
            return None
        plan = _plan_of_zarr(self.out) if self.out.is_dir() else _plan_of_tiff(self.out)
        if plan is None:
            raise _not_ours(self.out)
        return plan

    def check(self, plan: Plan, overwrite: bool = False) -> bool:
        """Whether the result is complete already. Raises OutputError, ResourceError: taken, another plan, disk full."""
        if plan.image.path is not None and self.out.exists() and self.out.samefile(plan.image.path):
            raise OutputError(f"{self.out} is the image itself.", mend="another -o")
        begun = self.begun()
        finished = self.finished()  # refuses what is not ours, also when it is to be overwritten
        stored = begun if overwrite or begun is not None else finished
        if stored is not None and stored.get("identity") != plan.identity and not overwrite:
            raise OutputError(
                f"{self.out} was begun with another plan.",
                where=_difference(stored, plan.to_json()),
                mend="continue it with the first, choose another -o, or --overwrite",
            )
        if not overwrite and finished is not None and finished.get("identity") == plan.identity:
            _remove(self.part)  # left by a kill between the move to OUT and the clean-up
            return True
        self._check_disk(plan)
        return False

    def _check_disk(self, plan: Plan) -> None:
        """A TIFF is streamed from a staged copy, so both lie on the disk for a while."""
        folder = self.out.absolute().parent
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        needed = self.disk(plan)
        already = _size(self.part)
        if needed - already > free:
            smaller = " (half of it)" if plan.dtype.endswith("32") else ""
            raise ResourceError(
                f"the result needs up to {needed / 1e9:.3g} GB; {folder} has {free / 1e9:.3g} GB free.",
                mend=f"another -o, or --dtype uint16{smaller}" if smaller else "another -o",
            )

    def disk(self, plan: Plan) -> int:
        """Bytes that the result takes at the worst moment, uncompressed: with its staging copy for a TIFF."""
        return plan.disk * (2 if self.format == "tiff" else 1)

    def begin(self, plan: Plan) -> bool:
        """Make OUT.part with the plan in it, so that the same command continues. -> whether it was there already.

        A part of another plan is taken away: `check` has refused it unless it is to be overwritten.
        """
        begun = self.begun()
        if begun is not None and begun.get("identity") == plan.identity:
            if not self.staged.exists():
                (self.part / LEDGER).unlink(missing_ok=True)  # what it counts as done is not there
            return self.staged.exists()
        _remove(self.part)
        self.part.mkdir(parents=True)
        temporary = self.part / (PLAN + ".tmp")
        temporary.write_text(json.dumps(plan.to_json(), indent=1))
        sync_file(temporary)
        temporary.replace(self.part / PLAN)
        sync_folder(self.part)
        return False

    def publish(self, made: Path) -> None:
        """Move what was made to OUT in one step, and take OUT.part away."""
        if self.out.exists():
            _remove(self.out)
        made.replace(self.out)
        sync_folder(self.out.absolute().parent)
        _remove(self.part)


def _not_ours(path: Path) -> OutputError:
    return OutputError(f"{path} exists and was not made by voidzoo.", mend="another -o, or move it away")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else 0


def _plan_of_zarr(path: Path) -> dict[str, Any] | None:
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        return attributes["voidzoo"]["plan"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plan_of_tiff(path: Path) -> dict[str, Any] | None:
    from .tiff import read_provenance

    found = read_provenance(path)
    return None if found is None else found.get("plan")


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings that differ, e.g. `model: n2v-cells 1.1, now 1.2`."""
    found = []
    for key in ("model", "image", "channel", "dtype", "tile", "block", "chunk", "batch", "workers"):
        then, new = stored.get(key), now.get(key)
        if then != new:
            if isinstance(then, dict) and isinstance(new, dict):
                keys = [k for k in {**then, **new} if then.get(k) != new.get(k)]
                then, new = ({k: d.get(k) for k in keys} for d in (then, new))
            found.append(f"{key}: {_plain(then)}, now {_plain(new)}")
    return "; ".join(found) or "the plan differs"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return str(value)
