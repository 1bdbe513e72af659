"""From a run folder to a proved package: graph, test tensors, description, proof, and only then the name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..infer.networks.graph import working_bytes
from ..trainers.record import Run, load_run
from ..zoo.errors import RecipeError
from ..zoo.open import open_image
from ..zoo.package import AxisRule, Package, open_package
from . import denoiser
from .about import About, about_of
from .along import Along, at_legal_size, rule_of
from .describe import channel_ids
from .graph import denoiser_of, evaluate, to_onnx
from .held_out import check_partners, measure
from .onnx_file import read_back
from .portable import End, Parts, StateDict, check_place, draft_of, write, write_proved
from .proof import Check, prove
from .torch_weights import ARCHITECTURE, architecture, state_dict, to_torchscript

if TYPE_CHECKING:
    from ..trainers.networks.geometry import AxisGeometry
    from ..trainers.networks.unet import RawToDenoised
    from ..zoo.image import Image
    from .measured import Measured


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
    clean partners; what the package does there stands in it with its spread (`held_out.measure`).
    watch gets each `Check` of the proof.
    Raises OutputError when OUT exists or cannot be written, RecipeError for words that the format does not take,
    ProofFailed (the differing tensors are kept) when the runs do not agree; nothing lies at OUT then.
    """
    run = run if isinstance(run, Run) else load_run(run)
    out = Path(out)
    check_place(out, overwrite)
    given = {"name": name, "description": description, "authors": tuple(authors) or None, "license": license}
    images, partners = ([open_image(i) for i in group] for group in (held_out, truth))
    _refuse_seen(run, images)
    check_partners(images, partners)
    said = about_of(about, {key: value for key, value in given.items() if value is not None})
    network = denoiser_of(run.network(which), run.normalisation, run.target_normalisation)

    def parts() -> Parts:
        made = _parts(run, said, network)
        if not images:
            return made
        found, pictures = measured_on(made, images, partners, out)
        ours = {**made.ours, "measured": found.to_json()}
        return replace(made, readme=denoiser.readme(run, said, found), ours=ours, pictures=pictures)

    return write_proved(
        parts,
        out,
        lambda draft, keep: prove(draft, lambda x: evaluate(network, x), keep, watch or (lambda _check: None)),
    )


def _refuse_seen(run: Run, images: Sequence[Image]) -> None:
    """Figures on what was trained on say nothing. Raises RecipeError."""
    facts = run.info["images"]
    prints = {i["fingerprint"] for i in facts if "fingerprint" in i}
    names = {(i["name"], tuple(i["shape"])) for i in facts if "fingerprint" not in i}  # of an older run
    for image in images:
        if (image.name, image.shape) in names or image.fingerprint in prints:
            raise RecipeError(
                f"{image.name} was trained on; figures on it would say nothing.",
                mend="--held-out with an image, or a part of one, that the training has not seen",
            )


def measured_on(
    parts: Parts, images: Sequence[Image], truths: Sequence[Image], out: Path
) -> tuple[Measured, dict[str, bytes]]:  # fmt: skip
    """What the package does on held-out images, and pictures of it; a draft lies beside OUT as long as it runs."""
    draft = draft_of(out, "measured")
    try:
        write(parts, draft)
        return measure(open_package(draft), images, truths)
    finally:
        draft.unlink(missing_ok=True)


def _parts(run: Run, about: About, network: RawToDenoised) -> Parts:
    from ..trainers.networks.geometry import geometry

    rules = axis_rules(geometry(run.info["network"]))
    channels = channel_ids(run.info["channels"])
    trace = (len(channels), "".join(rules), {a: r.minimum for a, r in rules.items()})
    onnx = to_onnx(network, *trace)
    test_input = at_legal_size(run.validation, rules)
    shape = (1, len(channels), *(r.minimum for r in rules.values()))
    along = {a: Along(r, um=run.info["pixel_size"].get(a)) for a, r in rules.items()}
    texts = denoiser.texts(run)
    return Parts(
        words=denoiser.words(run, about, len(rules)),
        readme=denoiser.readme(run, about),
        ours={
            **denoiser.ours(run, about, len(channels)),
            "working_bytes_per_voxel": round(working_bytes(onnx, [shape], prod(shape[2:])), 1),
        },
        input=End(texts[0], channels, {a: one.input() for a, one in along.items()}, test_input),
        output=End(
            texts[1], channels, {a: one.output(a) for a, one in along.items()}, evaluate(network, test_input)
        ),
        onnx=onnx,
        opset=read_back(onnx)["opset"],
        torchscript=to_torchscript(network, *trace),
        state=StateDict(
            state_dict(network), {"callable": "RawToDenoised", "kwargs": run.info["network"]},
            ARCHITECTURE, architecture(),
        ),
        torch=torch.__version__.partition("+")[0],
    )  # fmt: skip


def axis_rules(geometry: Mapping[str, AxisGeometry]) -> dict[str, AxisRule]:
    """Legal sizes and halo of a network, by letter."""
    return {letter: rule_of(g.halo, g.step) for letter, g in geometry.items()}
