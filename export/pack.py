"""From a run folder to a proved package: graph, test tensors, description, proof, and only then the name."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
import torch

from ..infer.grid import Axis, round_up
from ..infer.networks.graph import working_bytes
from ..trainers.record import Run, load_run
from ..zoo.errors import OutputError, RecipeError
from ..zoo.files import replace_file
from ..zoo.open import open_image
from ..zoo.package import AxisRule, Package, open_package
from .about import About, find_about
from .cover import cover
from .describe import channel_ids, describe, readme
from .graph import denoiser_of, evaluate, read_back, to_onnx
from .held_out import measure
from .proof import Check, prove
from .torch_weights import ARCHITECTURE, architecture, state_dict, to_torchscript

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..trainers.networks.geometry import AxisGeometry
    from ..trainers.networks.unet import RawToDenoised
    from ..zoo.image import Image
    from .measured import Measured

SMALLEST = 64
"""The least size along a pooled axis that packages declare; with it every legal tile keeps more than its halo."""


def export_run(
    run: Run | str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    description: str | None = None,
    authors: Sequence[str] = (),
    license: str | None = None,  # noqa: A002  (the field's word)
    about: str | Path | About | None = None,
    which: str = "best",
    held_out: Sequence[Any] = (),
    truth: Sequence[Any] = (),
    overwrite: bool = False,
    watch: Callable[[Check], None] | None = None,
) -> Package:
    """Make a bioimage.io package (a .zip) of a training run, and prove it.

    about: what is said of the model besides: an `About`, or a voidzoo.yaml; by default the one of the current folder or
    the nearest above it, if there is one. name, description, authors and license come before what it says.
    which: `best` weights (by validation loss) or `last`. held_out: images that the training has not seen, truth: their
    clean partners; what the package does there stands in it with its spread (`measure`).
    watch gets each `Check` of the proof.
    Raises OutputError when OUT exists or cannot be written, RecipeError for words that the format does not take,
    ProofFailed (the differing tensors are kept) when the runs do not agree; nothing lies at OUT then.
    """
    run = run if isinstance(run, Run) else load_run(run)
    out = Path(out)
    if out.suffix != ".zip":
        raise OutputError(f"{out}: a package is a .zip.", mend=f"-o {out}.zip")
    if out.is_dir():
        raise OutputError(f"{out} is a folder.", mend="another -o")
    if out.exists() and not overwrite:
        raise OutputError(f"{out} exists.", mend="another -o, or --overwrite")
    given = {"name": name, "description": description, "authors": tuple(authors) or None, "license": license}
    images, partners = ([open_image(i) for i in group] for group in (held_out, truth))
    _refuse_seen(run, images)
    said = _said(about, {key: value for key, value in given.items() if value is not None})
    draft = out.with_name(out.stem + ".part.zip")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        network = _write(run, said, draft, which)
        if held_out:
            network = _write(run, said, draft, which, measure(open_package(draft), images, partners))
        prove(open_package(draft), lambda x: evaluate(network, x), failed_folder(out), watch or (lambda _check: None))
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    shutil.rmtree(failed_folder(out), ignore_errors=True)
    return replace(open_package(out))


def _said(about: str | Path | About | None, given: dict[str, Any]) -> About:
    if isinstance(about, About):
        return About(**(about.model_dump(exclude_defaults=True) | given))
    path = find_about(Path.cwd()) if about is None else Path(about)
    return About(**given) if path is None else About.read(path, given)


def _refuse_seen(run: Run, images: Sequence[Image]) -> None:
    """Figures on what was trained on say nothing. Raises RecipeError."""
    seen = {(i["name"], tuple(i["shape"])) for i in run.info["images"]}
    for image in images:
        if (image.name, image.shape) in seen:
            raise RecipeError(
                f"{image.name} was trained on; figures on it would say nothing.",
                mend="--held-out with an image, or a part of one, that the training has not seen",
            )


def failed_folder(out: Path) -> Path:
    """Where the tensors of a failed proof are kept."""
    return out.with_name(out.stem + ".failed")


def _write(
    run: Run, about: About, path: Path, which: str, measured: tuple[Measured | None, dict[str, bytes]] = (None, {})
) -> RawToDenoised:
    from ..trainers.networks.geometry import geometry

    rules = axis_rules(geometry(run.info["network"]))
    network = denoiser_of(run.network(which), run.normalisation, run.target_normalisation)
    channels = channel_ids(run.info["channels"])
    trace = (len(channels), "".join(rules), {a: r.minimum for a, r in rules.items()})
    onnx = to_onnx(network, *trace)
    test_input = test_tensor(run.validation, rules)
    test_output = evaluate(network, test_input)
    files = {
        "README.md": readme(run, about, measured[0]).encode(),
        **measured[1],
        "cover.png": cover(test_input[0], test_output[0]),
        "sample_input.tif": _tiff(test_input[0]),
        "sample_output.tif": _tiff(test_output[0]),
        "test_input.npy": _npy(test_input),
        "test_output.npy": _npy(test_output),
        "weights.onnx": onnx,
        "weights.torchscript.pt": to_torchscript(network, *trace),
        "weights.pt": state_dict(network),
        ARCHITECTURE: architecture(),
    }
    shape = (1, len(channels), *(r.minimum for r in rules.values()))
    facts = {
        "opset": read_back(onnx)["opset"],
        "working_bytes": round(working_bytes(onnx, [shape], prod(shape[2:])), 1),
        "torch": torch.__version__.partition("+")[0],
        "architecture": ARCHITECTURE,
    }
    rdf = describe(run, about, rules, channels, files, facts, measured[0])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in {"rdf.yaml": rdf.encode(), **files}.items():
            archive.writestr(file, content)
    replace_file(path, lambda p: p.write_bytes(buffer.getbuffer()))
    return network


def axis_rules(geometry: dict[str, AxisGeometry]) -> dict[str, AxisRule]:
    """Legal sizes and halo of a network: min a multiple of the step, at least 64 where pooled, above twice the halo."""
    rules = {}
    for letter, g in geometry.items():
        least = max(2 * g.halo + 1, SMALLEST if g.step > 1 else 1)
        rules[letter] = AxisRule(minimum=round_up(least, g.step), step=g.step, halo=g.halo)
    return rules


def test_tensor(patch: NDArray[Any], rules: dict[str, AxisRule]) -> NDArray[np.float32]:
    """A real held-out patch (c, [z], y, x) as test input: float32 (1, c, [z], y, x), mirrored up to a legal size."""
    pad = [(0, 0)]
    for n, rule in zip(patch.shape[1:], rules.values(), strict=True):
        pad.append((0, Axis(n, rule.step, rule.minimum).extended - n))
    return np.ascontiguousarray(np.pad(patch.astype(np.float32), pad, mode="symmetric")[None])


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _tiff(pixels: NDArray[np.float32]) -> bytes:
    """(c, [z], y, x) -> a TIFF for people, without axes of length 1."""
    buffer = io.BytesIO()
    letters = "cyx" if pixels.ndim == 3 else "czyx"
    axes = "".join(a for a, n in zip(letters, pixels.shape, strict=True) if n > 1 or a in "yx").upper()
    tifffile.imwrite(buffer, np.squeeze(pixels), metadata={"axes": axes}, compression="zlib")
    return buffer.getvalue()
