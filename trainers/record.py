"""The run folder: it says by itself what was trained, on what, how far it came and how good it is.

recipe.yaml run.json best.pt last.pt checkpoint.pt loss.csv validation.npy, and of `report`: progress/ loss.png
validation.png residual.png report.html.
Every file is written beside and renamed, so that a kill at any time leaves a folder that can be resumed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..zoo.errors import OutputError
from ..zoo.files import replace_file
from ..zoo.normalise import Normalisation
from .loop import EpochDone
from .networks.unet import build
from .recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from .loop import State

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """A training on disk. `info` is what run.json says: normalisation, network, geometry, split, ..."""

    folder: Path
    recipe: Recipe
    info: dict[str, Any]

    @property
    def losses(self) -> list[EpochDone]:
        """One entry an epoch."""
        return [EpochDone(**e) for e in self.info["history"]]

    @property
    def normalisation(self) -> Normalisation:
        """What the network was trained with; the same for every image it will ever see."""
        n = self.info["normalisation"]
        return Normalisation(tuple(n["mean"]), tuple(n["std"]))

    @property
    def target_normalisation(self) -> Normalisation:
        """That of what the network predicts: of the partners for care, else of the images themselves."""
        n = self.info.get("target_normalisation", self.info["normalisation"])
        return Normalisation(tuple(n["mean"]), tuple(n["std"]))

    @property
    def state(self) -> str:
        """`running` (or killed), `stopped` or `done`."""
        return str(self.info["state"])

    @property
    def validation(self) -> NDArray[Any]:
        """A patch that was held out: (c, [z], y, x), grey values and dtype of the image."""
        return np.load(self.folder / "validation.npy")

    def network(self, which: str = "best") -> Any:
        """The trained network in eval mode on the CPU; `best` by validation loss or `last`.

        Raises OutputError before the first epoch is done.
        """
        path = self.folder / f"{which}.pt"
        if not path.is_file():
            raise OutputError(f"{self.folder} has no {which}.pt: no epoch was finished.", mend="train it further")
        with torch.random.fork_rng(devices=[]):  # the fresh weights are replaced at once
            network = build(self.info["network"])
        network.load_state_dict(_load_torch(path))
        return network.eval()

    def __repr__(self) -> str:
        """Folder, method, state and how many epochs are done."""
        done = len(self.info["history"])
        return f"Run({str(self.folder)!r}, {self.recipe.method} {self.recipe.dims}D, {self.state}, {done} epochs)"


def load_run(folder: str | Path) -> Run:
    """Open a run folder. Raises OutputError for one that is not a run of voidzoo."""
    folder = Path(folder)
    info = _info(folder)
    if info is None:
        raise OutputError(f"{folder} is no run folder: it has no run.json.", mend="the folder that train wrote to")
    return Run(folder, Recipe.make(info["recipe"]), info)


class Recorder:
    """Writes a run folder while it grows. `resumed` is the checkpoint to continue from, if there is one."""

    def __init__(self, folder: str | Path, recipe: Recipe, info: Mapping[str, Any]) -> None:
        """Take a new or empty folder, or continue the same training in it.

        Raises OutputError for a folder with other files, and for another recipe or other data. With the
        schedule `plateau` the number of epochs may be raised: that continues the run.
        """
        self.folder = Path(folder)
        self.resumed: dict[str, Any] | None = None
        self.info: dict[str, Any] = {
            "format": FORMAT,
            "state": "running",
            "recipe": recipe.model_dump(mode="json"),
            "history": [],
            **json.loads(json.dumps(dict(info))),
        }
        old = _info(self.folder)
        if old is None:
            _refuse_foreign(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
        else:
            _refuse_other(self.folder, old, self.info)
            self.info = old | self.info | {"history": old["history"], "state": old["state"]}
            if (self.folder / "checkpoint.pt").is_file():
                self.resumed = _load_torch(self.folder / "checkpoint.pt")
                self._count([EpochDone(**e) for e in self.resumed["history"]])  # run.json may be one epoch behind

    @property
    def run(self) -> Run:
        """The folder as it is now."""
        return Run(self.folder, Recipe.make(self.info["recipe"]), self.info)

    @property
    def done(self) -> bool:
        """It came to its end before, and everything is written."""
        early = self.info.get("ended", "epochs") != "epochs"
        return self.info["state"] == "done" and (early or len(self.info["history"]) >= self.info["recipe"]["epochs"])

    def begin(self, recipe: Recipe, patch: NDArray[Any]) -> None:
        """Write what is known before the first step; patch: raw (c, [z], y, x) from the held-out part."""
        self.info["state"] = "running"
        self.info["validation_patch"] = {
            "axes": "czyx" if patch.ndim == 4 else "cyx",
            "shape": list(patch.shape),
            "dtype": str(patch.dtype),
        }
        replace_file(self.folder / "recipe.yaml", lambda p: p.write_text(recipe.to_yaml(), encoding="utf-8"))
        replace_file(self.folder / "validation.npy", lambda p: _save_npy(p, patch))
        self._write_info()

    def save(self, state: State) -> None:
        """After an epoch: weights first, then the checkpoint that counts them as done, then what people read."""
        weights = state.network.state_dict()
        last = state.history[-1]
        if last.best:
            replace_file(self.folder / "best.pt", lambda p: _save_torch(p, weights))
        replace_file(self.folder / "last.pt", lambda p: _save_torch(p, weights))
        replace_file(self.folder / "checkpoint.pt", lambda p: _save_torch(p, state.dump()))
        self._count(state.history)
        replace_file(self.folder / "loss.csv", lambda p: p.write_text(_csv(state.history), encoding="utf-8"))
        self._write_info()

    def compiled(self, how: str) -> None:
        """Note whether the steps of this sitting are compiled; it is written with the next epoch."""
        self.info["compiled"] = how

    def _count(self, history: list[EpochDone]) -> None:
        best = min(history, key=lambda e: e.val_loss)
        self.info |= {
            "history": [asdict(e) for e in history],
            "epochs_done": history[-1].epoch,
            "best_epoch": best.epoch,
            "best_val_loss": best.val_loss,
            "seconds": sum(e.seconds for e in history),
        }

    def end(self, state: str, finish: Callable[[Run], None] | None = None, *, why: str = "epochs") -> Run:
        """The last words: `done` (and why) or `stopped`; `finish` writes what belongs to a training that is done."""
        run = self.run
        if finish is not None:
            finish(run)
        self.info["state"] = state
        self.info["ended"] = why if state == "done" else ""
        self._write_info()
        return run

    def _write_info(self) -> None:
        replace_file(
            self.folder / "run.json", lambda p: p.write_text(json.dumps(self.info, indent=1), encoding="utf-8")
        )


def _info(folder: Path) -> dict[str, Any] | None:
    """What run.json says, None without one. Raises OutputError when it is not one of ours."""
    path = folder / "run.json"
    if not path.is_file():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(info, dict) and info.get("format") == FORMAT and "recipe" in info
    except ValueError:
        known = False
    if not known:
        raise OutputError(f"{path} was not written by this version of voidzoo.", mend="choose another folder")
    return info


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; a run is a folder.", mend="choose another folder")
    others = sorted(p.name for p in folder.iterdir() if p.suffix != ".part") if folder.is_dir() else []
    if others:
        raise OutputError(
            f"{folder} holds other files ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''}) and no run.",
            mend="choose another folder",
        )


def _refuse_other(folder: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuse to continue a training with another recipe or other images, saying what differs."""
    mend = "choose another folder, or continue it with what it was begun with"
    begun = Recipe.make(old["recipe"]).model_dump(mode="json")  # with the defaults of settings that it did not know
    keys = [k for k in new["recipe"] if begun[k] != new["recipe"][k]]
    plateau = new["recipe"]["schedule"] == "plateau"  # a cosine would have been another one from the start
    if plateau and keys == ["epochs"] and new["recipe"]["epochs"] >= len(old["history"]):
        keys = []
    if keys:
        differ = ", ".join(f"{k} {begun[k]}, now {new['recipe'][k]}" for k in keys)
        raise OutputError(f"{folder} was begun with another recipe: {differ}.", mend=mend)
    was, now = (str(info.get("device", "cpu")).split(":")[0].split()[0] for info in (old, new))
    if was != now and old["state"] != "done":  # random numbers of one kind of device cannot be continued on another
        raise OutputError(f"{folder} was begun on {was}, not on {now}.", mend=f"--device {was}, or another folder")
    for part in ("images", "normalisation", "targets", "target_normalisation"):
        if _known(old.get(part), new.get(part)) != _known(new.get(part), old.get(part)):
            names = ", ".join(i["name"] for i in old.get("images", []))
            raise OutputError(f"{folder} was begun with other images: {names}.", where=f"the {part} differ", mend=mend)


def _known(facts: Any, other: Any) -> Any:
    """Facts, those of images only as far as both know them: runs that were begun earlier hold fewer."""
    if not isinstance(facts, list) or not isinstance(other, list) or len(facts) != len(other):
        return facts
    return [{k: v for k, v in one.items() if k in more} for one, more in zip(facts, other, strict=True)]


def _csv(history: list[EpochDone]) -> str:
    rows = [f"{e.epoch},{e.train_loss:.8g},{e.val_loss:.8g},{int(e.best)},{e.lr:.6g},{e.seconds:.3f}" for e in history]
    return "\n".join(["epoch,train_loss,val_loss,best,lr,seconds", *rows, ""])


def _save_torch(path: Path, content: Any) -> None:
    """By way of memory: of a full disk torch tells nothing that could be understood."""
    buffer = BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getbuffer())


def _load_torch(path: Path) -> Any:
    """Tensors and plain values, nothing that runs. Raises OutputError for a damaged file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers raise
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise OutputError(
            f"{path} is damaged: {why}",
            mend="train anew in another folder, or copy the run again from where it came",
        ) from error


def _save_npy(path: Path, array: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array)
