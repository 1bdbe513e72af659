"""Anybody's network becomes a portable package: sizes and halo are measured, the rest is said, all of it is proved."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..infer.networks.graph import working_bytes
from ..infer.probe_regions import probe_regions
from ..zoo.errors import AxesError, ProofFailed, RecipeError, ValuesError, nearest
from ..zoo.image import Image
from ..zoo.open import open_image
from ..zoo.package import KINDS, Package
from ..zoo.version import __version__
from .about import About, about_of, suggest_name
from .along import at_legal_size
from .describe import channel_ids, words_of
from .layout import LETTERS
from .measure import Said, facts, fitting_size, legal_shape, runner
from .networks import Network, Wanted, from_module, from_onnx, from_torch
from .portable import End, Parts, check_place, write_proved
from .proof import Check, compare, prove
from .tensors import lively, tensor_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEST = {2: {"y": 256, "x": 256}, 3: {"t": 16, "z": 24, "y": 96, "x": 96}}
"""Pixels that a test tensor has where the image is as large, by the number of axes behind the channels."""


def pack(
    model: str | Path,
    out: str | Path,
    *,
    image: Any,
    axes: str | None = None,
    output_axes: str | None = None,
    image_axes: str | None = None,
    weights: str | Path | None = None,
    kwargs: Mapping[str, Any] | None = None,
    kinds: Sequence[str] = (),
    channels: Sequence[str] = (),
    output_channels: Sequence[str] = (),
    name: str | None = None,
    about: str | Path | About | None = None,
    halo: int | Sequence[int] | None = None,
    minimum: Sequence[int] | None = None,
    step: Sequence[int] | None = None,
    overwrite: bool = False,
    watch: Callable[[Check], None] | None = None,
) -> Package:
    """Make a portable package of a network: an ONNX file, `ARCH.py:CLASS` (which runs), or a CAREamics checkpoint.

    image: what it reads, raw; a part of it becomes the test tensor. axes, output_axes: letters of the network's axes,
    in its order, e.g. `"bzyxc"` (of a checkpoint: b c [z] y x). image_axes: as in `open_image`. weights, kwargs: the
    state dict and arguments of CLASS. kinds: of the output channels: intensity, probability, distance, logit; one word
    for all of them. minimum, step, halo: along the axes t z y x that it has, in this order; measured where not given.
    about: as in `export`. Raises OutputError, RecipeError, AxesError, SizeError, PackageError, DependencyError;
    ProofFailed (the differing tensors are kept) when package and network differ.
    """
    out = Path(out)
    check_place(out, overwrite)
    given = {"name": name} if name else {}
    said = about_of(about, given)
    opened = image if isinstance(image, Image) else open_image(image, axes=image_axes)
    sizes = {"minimum": minimum, "step": step, "halo": halo}
    made = _network(str(model), weights, kwargs or {}, (axes, output_axes, len(channels)), sizes, opened)
    names = (_ids(channels, _channels_in(made), "channels"), _ids(output_channels, made.outputs, "output_channels"))
    kinds = _kinds(kinds, made.outputs)
    keep_notes = [*made.notes, *(f"tiles are not exact: {why}" for why in made.found.why)]
    try:
        return write_proved(
            lambda: _parts(made, said, opened, names, kinds, keep_notes, Path(str(model).partition(":")[0]).stem), out,
            lambda draft, keep: prove(draft, made.reference, keep, watch or (lambda _check: None), trust_code=True,
                                      name="network", more=_more(draft, made, keep)),
        )  # fmt: skip
    except ProofFailed as error:
        if halo is None or "whole = tiled" not in error.what:
            raise
        raise ProofFailed(
            error.what, error.where, "--halo auto: the network sees further than what was said"
        ) from error


def _network(
    model: str, weights: str | Path | None, kwargs: Mapping[str, Any], layout: tuple[str | None, str | None, int],
    sizes: Mapping[str, Any], image: Image,
) -> Network:  # fmt: skip
    """Whatever kind of network it is."""
    axes, output_axes, named = layout
    path, _, cls = model.rpartition(":")
    kind = "ckpt" if model.endswith(".ckpt") else "py" if path.endswith(".py") else "onnx"
    if kind != "py" and (weights or kwargs):
        raise RecipeError(f"{model} takes no --weights and --kwargs; a Python class does.", mend="ARCH.py:CLASS")
    if kind == "ckpt":
        from .careamics_checkpoint import denoiser_of_checkpoint

        module, space = denoiser_of_checkpoint(Path(model))
        wanted = _wanted(axes or "bc" + space, output_axes, named or image.size("c"), sizes)
        return from_module(module, wanted, Path(model).name)
    if axes is None:
        raise AxesError("which axes the network has is not said.", mend="--axes bcyx or bczyx, in its order")
    if kind == "py":
        wanted = _wanted(axes, output_axes, named or image.size("c"), sizes)
        return from_torch(Path(path), cls, Path(weights) if weights else None, kwargs, wanted)
    if not model.endswith(".onnx"):
        raise RecipeError(f"{model} is no network that can be packed.", mend="MODEL.onnx, ARCH.py:CLASS or MODEL.ckpt")
    return from_onnx(Path(model), lambda told: _wanted(axes, output_axes, told or named or image.size("c"), sizes))


def _wanted(axes: str, output_axes: str | None, channels: int, sizes: Mapping[str, Any]) -> Wanted:
    space = "".join(a for a in LETTERS[2:] if a in axes)
    found: dict[str, dict[str, Any]] = {a: {} for a in space}
    for key, values in sizes.items():
        if values is None:
            continue
        many = [values] * len(space) if isinstance(values, int) else list(values)
        many = many * len(space) if len(many) == 1 else many
        option = {"minimum": "--min"}.get(key, f"--{key}")
        if len(many) != len(space) or any(n < (0 if key == "halo" else 1) for n in many):
            raise RecipeError(
                f"{option} {','.join(map(str, many))}: one number for each of {', '.join(space)} is needed.",
                mend=f"{option} {','.join('16' for _ in space)}",
            )
        for a, n in zip(space, many, strict=True):
            found[a][key] = n
    return Wanted(axes, output_axes or axes, channels, {a: Said(**given) for a, given in found.items()})


def _channels_in(made: Network) -> int:
    import onnx

    graph = onnx.load_model_from_string(made.onnx).graph
    return int(graph.input[0].type.tensor_type.shape.dim[1].dim_value)


def _ids(given: Sequence[str], many: int, option: str) -> list[str]:
    if given and len(given) != many:
        word = option.replace("_", "-")
        raise RecipeError(
            f"--{word} names {len(given)} channels; the network has {many}.",
            mend=f"--{word} {','.join(f'channel{i}' for i in range(many))}",
        )
    return channel_ids(given or [f"channel{i}" for i in range(many)])


def _kinds(given: Sequence[str], many: int) -> list[str]:
    kinds = list(given) * many if len(given) == 1 else list(given)
    for kind in kinds:
        if kind not in KINDS:
            raise RecipeError(f"there is no kind {kind!r}{nearest(kind, KINDS)}.", mend=f"--kinds {' or '.join(KINDS)}")
    if kinds and len(kinds) != many:
        raise RecipeError(f"--kinds names {len(kinds)} channels; {many} come out.", mend=f"--kinds {kinds[0]}")
    return kinds


def _parts(
    made: Network, about: About, image: Image, names: tuple[list[str], list[str]], kinds: list[str], notes: list[str],
    stem: str,
) -> Parts:  # fmt: skip
    rules, along = made.found.rules, made.found.along
    test = _test_tensor(image, made, len(names[0]))
    title = about.name or suggest_name(stem)
    words = words_of(about, title)
    words["description"] = about.description or f"A network of others: {made.made_of}."[:512]
    words["tags"] = [f"{len(rules)}d", "onnx", *(["pytorch"] if made.torch else []), "voidzoo", *about.tags]
    shape = (1, len(names[0]), *legal_shape(rules))
    exact = {"working_bytes_per_voxel": round(working_bytes(made.onnx, [shape], prod(shape[2:])), 1)}
    packed = {"from": made.made_of, "sha256": hashlib.sha256(made.onnx).hexdigest(), "measured": facts(made.found),
              "test_image": image.name, "notes": notes}  # fmt: skip
    one = made.found.one
    return Parts(
        words=words,
        readme=_readme(title, words["description"], packed),
        ours={
            "version": __version__, **({"kinds": kinds} if kinds else {}), **(exact if made.found.exact else {}),
            "packed": packed,
        },
        input=End("raw intensities", names[0], {a: n.input() for a, n in along.items()}, test, (), one),
        output=End("results", names[1], {a: n.output(a) for a, n in along.items()}, made.reference(test), (), one),
        onnx=made.onnx, opset=made.opset, torchscript=made.torchscript, state=made.state, torch=made.torch,
    )  # fmt: skip


def _test_tensor(image: Image, made: Network, channels: int) -> NDArray[np.float32]:
    """The brightest place of the image, of a legal size, raw: float32 (1, c, *space)."""
    rules = made.found.rules
    if missing := [a for a in rules if a not in image.axes]:
        raise AxesError(
            f"{image.name} has the axes {image.axes}; the network also reads {', '.join(missing)}.",
            mend="--image-axes with the letters of the image's axes in its order, or another --input",
        )
    if image.size("c") != channels:
        raise AxesError(
            f"{image.name} has {image.size('c')} channels; the network reads {channels}.", mend="another --input"
        )
    wanted = TEST[min(3, max(2, len(rules)))]
    size = fitting_size(rules, {a: min(image.size(a), wanted.get(a, 96)) for a in rules})
    steps = {a: r.step for a, r in rules.items()}
    (region,) = probe_regions(image, list(rules), size, 1, steps=steps, channels=channels)
    test = at_legal_size(region[0], rules)
    if not np.ptp(test) > 0:
        raise ValuesError(
            f"{image.name} has one grey value where there is most in it: nothing could be proved on that.",
            mend="--input with an image as the network is to read it",
        )
    return test


def _more(draft: Package, made: Network, keep: Path) -> list[Callable[[], Check]]:
    """What `prove` cannot ask of a network of a fixed size, or whose output has another size: that it is the same."""
    if draft.plain:
        return []

    def same() -> Check:
        rng, run, test = np.random.default_rng(), runner(made.onnx), tensor_of(draft, draft.test_input)
        shapes = [(1, len(draft.channels_in), *legal_shape(made.found.rules, n)) for n in (0, 1, 3)]
        tensors = [rng.choice(lively(test), shape).astype(np.float32) for shape in shapes]
        checks = [compare("network = onnx", made.reference(x), run(x), keep) for x in tensors]
        return max(checks, key=lambda c: (not c.passed, c.difference))

    return [same]


def _readme(name: str, description: str, packed: Mapping[str, Any]) -> str:
    sizes = "\n".join(
        f"| {a} | {m['min']}{'' if m['fixed'] else ' + n * ' + str(m['step'])} | {m['halo']} |"
        for a, m in packed["measured"].items()
    )
    notes = "".join(f"- {note}\n" for note in packed["notes"])
    return f"""# {name}

{description}

It takes raw intensities. Packed by voidzoo {__version__} from {packed["from"]}; sizes and halo were measured:

| axis | sizes | halo |
|---|---|---|
{sizes}

{notes}
## Validation

How good its results are was not measured here. The package was written only after it had given what the network gives,
at several sizes: the largest difference was below 1e-4 standard deviations of the output.
"""


__all__ = ["pack"]
