"""The place of a result: OUT, and OUT.part beside it while it is being made. Nothing half-written is ever at OUT."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from ..zoo.errors import OutputError, ResourceError
from .lock import LOCK, held
from .output.durable import sync_file, sync_folder
from .plan import raw_targets

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
PLAN, LEDGER, RAW_LEDGER, RESTORE_LEDGER = "plan.json", "ledger.jsonl", "raw.jsonl", "restore.jsonl"
IMAGE_STATISTICS, RAW_STATISTICS = "statistics.npz", "results.npz"
_DONE = (LEDGER, RAW_LEDGER, RESTORE_LEDGER, IMAGE_STATISTICS, RAW_STATISTICS)
"""What says that something need not be done again: it goes before what it speaks of."""


def stem(name: str | PurePath) -> str:
    """The name of a file without its ending: `a.b.ome.tif` -> `a.b`."""
    name = PurePath(name).name
    ending = next(
        (e for e in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(e)), PurePath(name).suffix
    )
    return name[: -len(ending)] or name if ending else name


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
        with contextlib.suppress(FileNotFoundError):  # another process may just be finishing
            if (self.part / PLAN).is_file():
                return json.loads((self.part / PLAN).read_text())
            if self.part.exists():
                found = {p.name for p in self.part.iterdir()} if self.part.is_dir() else {""}
                if found - {PLAN + ".tmp", LOCK}:  # these alone are left by a kill before anything was begun
                    raise _not_ours(self.part)
        return None

    def finished(self) -> dict[str, Any] | None:
        """The plan of a finished result. Raises OutputError when OUT is something else."""
        if not self.out.exists():
            return None
        plan = (_provenance(self.out) or {}).get("plan")
        if plan is None:
            raise _not_ours(self.out)
        return dict(plan)

    def is_done(self, plan: Plan) -> bool:
        """Whether the result of this plan is complete, and nothing is left of its making."""
        return not self.part.exists() and self.out.exists() and (self.finished() or {}).get("identity") == plan.identity

    def version_for(self, version: str, overwrite: bool) -> str:
        """The version of OME-Zarr for what is made here: a TIFF's staging copy goes on as it was begun.

        Raises OutputError for a result of another version.
        """
        staged = _version(self.staged)
        if self.format == "tiff":
            return staged or version
        if not overwrite and (found := staged or _version(self.out)) not in (None, version):
            raise OutputError(f"{self.out} was begun as OME-Zarr {found}, not {version}.",
                              mend=f"--ome-zarr {found}, another -o, or --overwrite")  # fmt: skip
        return version

    def forget(self, names: Sequence[str]) -> None:
        """Remove ledgers and statistics that are true no more."""
        there = [path for name in names if (path := self.part / name).exists()]
        for path in there:
            path.unlink()
        if there:
            sync_folder(self.part)

    def holes(self) -> tuple[str, ...]:
        """The blocks of a finished result that failed and hold 0."""
        found = _provenance(self.out) or {}
        return tuple(found.get("holes") or found.get("happened", {}).get("holes", ()))

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
                mend=_touch(stored, plan)
                or _model(stored, plan)
                or "continue it with the first, choose another -o, or --overwrite",
            )
        if not overwrite and finished is not None and finished.get("identity") == plan.identity:
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
        if needed > free and needed - _size(self.part) > free:
            smaller = " (half of it)" if plan.dtype.endswith("32") else ""
            raise ResourceError(
                f"the result needs up to {needed / 1e9:.3g} GB; {folder} has {free / 1e9:.3g} GB free.",
                mend=f"another -o, or --dtype uint16{smaller}" if smaller else "another -o",
            )

    def disk(self, plan: Plan) -> int:
        """Bytes that the result takes at the worst moment, uncompressed: with its staging copy for a TIFF."""
        raw = 4 * prod(plan.out_shape) * len(plan.targets) if plan.original is not None else 0
        if plan.staged:  # what the network returned lies there too, until its statistics are known
            raw += sum(prod(plan.shape_of(t)) * 4 for t in raw_targets(plan))
        return raw + plan.disk * (2 if self.format == "tiff" else 1)

    def begin(self, plan: Plan, version: str) -> bool:
        """Make OUT.part with the plan in it, so that the same command continues. -> whether it was there already.

        A part of another plan or version is taken away: `check` has refused it unless it is to be overwritten.
        """
        begun = self.begun()
        same = begun is not None and begun.get("identity") == plan.identity
        if same and _version(self.staged) in (None, version):
            # a ledger whose array is gone counts for nothing
            scaled = self.part / "scaled.zarr" if plan.original is not None else self.staged
            places = {LEDGER: scaled, RAW_LEDGER: self.part / "raw.zarr", RESTORE_LEDGER: self.staged}
            for ledger, array in places.items():
                if not array.exists():
                    (self.part / ledger).unlink(missing_ok=True)
            return self.staged.exists()
        self.clear()
        self.part.mkdir(parents=True, exist_ok=True)
        temporary = self.part / (PLAN + ".tmp")
        temporary.write_text(json.dumps(plan.to_json(), indent=1))
        sync_file(temporary)
        temporary.replace(self.part / PLAN)
        sync_folder(self.part)
        return False

    def publish(self, made: Path) -> None:
        """Move what was made to OUT in one step, and empty OUT.part. What was at OUT is whole until then, or gone."""
        if self.out.is_dir():  # a file is replaced in one step, a folder has to go first
            before = self.part / "replaced"
            _remove(before)
            self.out.rename(before)
        made.replace(self.out)
        sync_folder(self.out.absolute().parent)
        self.clear()

    def clear(self) -> None:
        """Empty OUT.part, but for the lock. Cut off at any moment, it leaves what is still known as ours, and nothing
        that is half there but counts as done.
        """
        inside = {p.name for p in self.part.iterdir()} if self.part.is_dir() else set()
        self.forget(_DONE)
        gone = [n for n in inside if n.endswith(".gone")]  # by a clear that was cut off
        for name in [*gone, *sorted(inside - {*gone, *_DONE, PLAN, LOCK}), *sorted(inside & {PLAN})]:
            path = self.part / name
            if path.is_dir() and name not in gone:
                path = path.rename(path.with_name(name + ".gone"))
            _remove(path)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep OUT.part for this process alone. Raises OutputError while another one has it."""
        self.begun()  # nothing is written into a folder that is not ours
        with held(self.part / LOCK, self.out):
            yield


def _not_ours(path: Path) -> OutputError:
    return OutputError(f"{path} exists and was not made by voidzoo.", mend="another -o, or move it away")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else 0


def _version(path: Path) -> str | None:
    """The version of an OME-Zarr, None where there is none."""
    return next((v for v, name in (("0.5", "zarr.json"), ("0.4", ".zgroup")) if (path / name).is_file()), None)


def _provenance(path: Path) -> dict[str, Any] | None:
    """What voidzoo wrote about a result, None for those of others."""
    from .output import store, tiff

    return store.read_provenance(path) if path.is_dir() else tiff.read_provenance(path)


def _difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first settings that differ, e.g. `model: n2v-cells 1.1, now 1.2`."""
    found = []
    for key in ("model", "image", "inputs", "channel", "dtype", "mask", "choices", "halo", "tile", "block", "chunk",
                "batch", "workers", "runtime"):  # fmt: skip
        then, new = stored.get(key), now.get(key)
        if then != new:
            if isinstance(then, dict) and isinstance(new, dict):
                keys = [k for k in {**then, **new} if then.get(k) != new.get(k)]
                then, new = ({k: d.get(k) for k in keys} for d in (then, new))
            found.append(f"{key}: {_plain(then)}, now {_plain(new)}")
    return "; ".join(found) or "the plan differs"


def _touch(stored: Mapping[str, Any], plan: Plan) -> str:
    """How to go on with an image of which only the time has changed, e.g. a copy of it; empty if more has."""
    then, now = dict(stored.get("image", {})), dict(plan.image.identity)
    before, after = then.pop("changed", None), now.pop("changed", None)
    if not isinstance(before, int) or before == after or then != now or plan.image.path is None:
        return ""
    return (
        "is it a copy, or only mended where it could not be read? Then give it the time that it had:   "
        f"touch -d @{before // 10**9}.{before % 10**9:09d} {plan.image.path}   else --overwrite, or another -o"
    )


def _model(stored: Mapping[str, Any], plan: Plan) -> str:
    """How to go on with the model that it was begun with, where that has a name of its own; empty for the same one."""
    word = (stored.get("package") or {}).get("model")
    if not word or stored.get("model") == plan.facts()["model"]:
        return ""
    return f"{word}  is the model that it was begun with; or another -o, or --overwrite"


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple) and len(value) == 2:  # --only
        return f"{value[0]}:{value[1]}"
    return str(value)
