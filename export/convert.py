"""A package of others in the portable profile, proved to give what the other one gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..infer.networks.graph import working_bytes
from ..infer.networks.processing import with_casts
from ..zoo.errors import PackageError, SizeError
from ..zoo.package import Package, Step, Weights, open_package
from ..zoo.version import __version__
from .along import at_legal_size
from .bake import TYPES, WIDE, baked, is_fixed
from .by_core import by_core
from .describe import channel_ids
from .foreign import nickname_of, picture_of, pictures_of, readme_of, source_of, words_of_package
from .layout import LETTERS
from .measure import Measured, Said, legal_shape, measured, runner
from .onnx_file import load, modernised, opset_of
from .portable import End, Parts, StateDict, check_place, write_proved
from .proof import Check, compare, prove
from .source import by_source, lettered, onnx_of, raw, refuse, split, test_input
from .tensors import lively

if TYPE_CHECKING:
    from numpy.typing import NDArray

FLOAT = Step("ensure_dtype", {"dtype": "float32"})


def convert(
    package: Package | str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    trust_code: bool = False,
    watch: Callable[[Check], None] | None = None,
) -> Package:
    """Rewrite a package of format 0.3 to 0.5 into the portable profile (a .zip), and prove that it gives the same.

    What was changed and lost is in `config.voidzoo.source.changes` of the result. trust_code: let the proof run Python
    code of the package, where its state dict is kept. watch gets each `Check`. Raises PackageError for what the profile
    cannot hold, with what would help; OutputError when OUT exists or cannot be written; DependencyError without torch
    for a package of TorchScript alone; ProofFailed (the differing tensors are kept) when the two differ.
    """
    package = package if isinstance(package, Package) else open_package(package)
    out = Path(out)
    check_place(out, overwrite)
    refuse(package)
    made = _Made.of(package)
    return write_proved(
        made.parts, out,
        lambda draft, keep: prove(draft, None, keep, watch or (lambda _check: None), trust_code=trust_code,
                                  more=[lambda: made.same(draft, keep)]),
    )  # fmt: skip


@dataclass
class _Made:
    """A package on its way: the new graph, what is known of its axes, and all that was changed."""

    package: Package
    weights: Weights
    space: str
    declared: tuple[Step, ...]
    onnx: bytes
    opset: int
    found: Measured
    freed: bool
    touched: bool
    changes: list[str]
    tensors: list[NDArray[np.float32]] = field(default_factory=list)
    expected: list[NDArray[np.float32]] = field(default_factory=list)
    oracle: str = "bioimageio.core"

    @classmethod
    def of(cls, package: Package) -> _Made:
        """Bake, lower and measure. Raises PackageError."""
        weights, data = onnx_of(package)
        model, changes = modernised(load(data, f"{package.path}: {weights.source}"))
        inner, outer = package.inputs[0], package.outputs[0]
        declared, before = split(inner)
        after = lettered(with_casts(outer, first=False), outer)
        space = "".join(a for a in LETTERS[2:] if a in inner.letters)
        real = [s for s in (*before, *after) if s != FLOAT]
        moved = {inner.letters, outer.letters} != {"bc" + space}
        for step in real:
            word = f"the cast to {step.kwargs['dtype']}" if step.name == "ensure_dtype" else step.name
            changes.append(f"{word} is part of the network now")
        if moved:
            changes.append(f"axes {inner.letters} -> {outer.letters} became bc{space}: the network is turned inside")
        if TYPES[outer.dtype] in (*WIDE, TYPES["float64"]):
            changes.append(f"results are float32 instead of {outer.dtype}")
        changes += [_warned(s) for s in declared if not s.is_float32_cast]
        steps = (before, after)

        def bake(sizes: Mapping[str, int] | None) -> bytes:
            channels = (len(inner.channels), len(outer.channels))
            return baked(model, (inner.letters, outer.letters), space, channels, steps, sizes).SerializeToString()

        onnx, found, freed = _measured(package, space, bake, changes)
        _say_halos(package, found, changes)
        return cls(package, weights, space, declared, onnx, opset_of(model), found, freed, bool(real) or moved, changes)

    def parts(self) -> Parts:
        """Everything that the new package is made of."""
        package, inner, outer = self.package, self.package.inputs[0], self.package.outputs[0]
        self.tensors = self.trials()
        self.expected, self.oracle = by_source(package, self.weights.kind, self.tensors, self.space)
        test = self.tensors[0]
        words, lost = words_of_package(package)
        torchscript, state = self.torch_forms()
        source = source_of(package, self.weights.kind, [*self.changes, *lost])
        exact = {"working_bytes_per_voxel": self.working(test.shape)} if self.found.exact else {}
        known = {k: v for k, v in package.ours.items() if k != "working_bytes_per_voxel"}
        words["tags"] = [*words["tags"], "voidzoo"]
        return Parts(
            words=words,
            readme=readme_of(package, words, source),
            ours={**known, "version": __version__, **exact, "source": source},
            input=End(
                _text(package, "inputs", "raw intensities"), channel_ids(inner.channels),
                {a: one.input() for a, one in self.found.along.items()}, test, [raw(s) for s in self.declared],
                self.found.one,
            ),
            output=End(
                _text(package, "outputs", "results"), channel_ids(outer.channels),
                {a: one.output(a) for a, one in self.found.along.items()}, self.expected[0], (), self.found.one,
            ),
            onnx=self.onnx, opset=self.opset, torchscript=torchscript, state=state, torch=_torch_version(package),
            nickname=nickname_of(package), picture=picture_of(package), pictures=pictures_of(package),
        )  # fmt: skip

    def working(self, shape: Sequence[int]) -> float:
        return round(working_bytes(self.onnx, [shape], prod(shape[2:])), 1)

    def test_input(self) -> NDArray[np.float32]:
        """The test input of the source, raw, of a legal size, float32 (b, c, *space)."""
        values = test_input(self.package, self.space)
        return np.concatenate([at_legal_size(v, self.found.rules) for v in values[: 1 if self.found.one else None]])

    def same(self, draft: Package, keep: Path) -> Check:
        """Source and draft agree on the test tensor and on random images of several sizes."""
        if draft.main.steps:
            found = [np.asarray(y, np.float32) for y in by_core(draft.path, self.tensors, "onnx")]
        else:
            run = runner(self.onnx)
            found = [run(x) for x in self.tensors]
        pairs = zip(self.expected, found, strict=True)
        worst = max((compare("source = new", *p, keep) for p in pairs), key=lambda c: (not c.passed, c.difference))
        return replace(worst, detail=f"{worst.detail}, {len(self.tensors)} images, source by {self.oracle}")

    def trials(self) -> list[NDArray[np.float32]]:
        """The test tensor and fresh images with its grey values: at two sizes, and two at once, where that is free."""
        rng, test = np.random.default_rng(), self.test_input()
        sizes = [list(test.shape[2:])] if self.freed else [legal_shape(self.found.rules, n) for n in (0, 1)]
        batches = [1] * len(sizes) + ([] if self.found.one or self.freed else [2])
        shapes = [(b, test.shape[1], *s) for b, s in zip(batches, [*sizes, sizes[0]], strict=False)]
        return [test, *(rng.choice(lively(test), shape).astype(np.float32) for shape in shapes)]

    def torch_forms(self) -> tuple[bytes | None, StateDict | None]:
        """TorchScript and state dict of the source, where they are the same network still."""
        forms = {w.kind: w for w in self.package.weights if w.kind != "onnx"}
        if forms and (self.touched or self.freed):
            names = " and ".join({"torchscript": "TorchScript", "pytorch_state_dict": "state dict"}[k] for k in forms)
            why = "it is another network now" if self.touched else "its sizes were fixed"
            self.changes.append(f"{names} of the source left out: {why}; ilastik's window and QuPath open those first")
            return None, None
        files, state = self.package.files, None
        script = forms.get("torchscript")
        if entry := forms.get("pytorch_state_dict"):
            made = dict(entry.options.get("architecture") or {})
            source = str(made.pop("source", "") or "")
            code = files.read(source, made.pop("sha256", None)) if source else None
            kept = {k: v for k, v in made.items() if k in ("callable", "kwargs", "import_from") and v is not None}
            state = StateDict(files.read(entry.source, entry.sha256), kept, Path(source).name, code)
        return (files.read(script.source, script.sha256) if script else None), state


def _warned(step: Step) -> str:
    if is_fixed(step):
        return f"{step.name} stays declared: it comes before a step that measures the image"
    return f"{step.name} measures the image and stays declared: ilastik and QuPath measure each tile by itself"


def _measured(
    package: Package, space: str, bake: Callable[[Mapping[str, int] | None], bytes], changes: list[str]
) -> tuple[bytes, Measured, bool]:
    """The baked graph and its axes: free where the graph is, else fixed as described."""
    inner = package.inputs[0]
    fixed = {a: r.minimum for a, r in package.rules.items() if r.fixed}
    channels = len(inner.channels)
    said = {a: _said(package, a, free=True) for a in space}
    free = bake(None)
    try:
        found = measured(free, channels, space, said)
        on_the_way = all((n - found.rules[a].minimum) % found.rules[a].step == 0 for a, n in fixed.items())
        enough = all(n >= found.rules[a].minimum for a, n in fixed.items())
        if not fixed or (found.exact and on_the_way and enough):
            if fixed:
                sizes = ", ".join(f"{a} {r.minimum} + n * {r.step}" for a, r in found.rules.items() if a in fixed)
                changes.append(f"sizes are free now: {sizes}; the graph takes them")
            return free, found, bool(fixed)
    except SizeError as error:
        if not fixed:
            raise PackageError(
                f"{package.path}: the network does not take the sizes that its description says.", where=error.what
            ) from error
    shape = {a: fixed.get(a) or package.rules[a].minimum for a in space}
    one = {"b": 1} if (b := inner.axis("b")) is None or b.size == 1 else {}
    kept = bake({**{a: shape[a] for a in fixed}, **one})
    found = measured(kept, channels, space, {a: _said(package, a, free=False) for a in space})
    changes.append(f"sizes stay fixed: {', '.join(f'{a} {n}' for a, n in fixed.items())}")
    return kept, found, False


def _said(package: Package, letter: str, *, free: bool) -> Said:
    rule, axis = package.rules[letter], package.inputs[0].axis(letter)
    um = axis.pixel_size if axis else None
    unit = "second" if letter == "t" else "micrometer"
    if rule.fixed:
        return Said(fixed=None if free else rule.minimum, most=rule.minimum, declared=rule.halo, um=um, unit=unit)
    return Said(rule.minimum, rule.step, declared=rule.halo, um=um, unit=unit)


def _say_halos(package: Package, found: Measured, changes: list[str]) -> None:
    for a, rule in found.rules.items():
        was = package.rules[a]
        if rule.halo != was.halo:
            changes.append(f"halo along {a}: {was.halo} became {rule.halo}" + ("" if not found.exact else
                           ", as far as the network sees"))  # fmt: skip
        if not was.fixed and (rule.minimum, rule.step) != (was.minimum, was.step):
            changes.append(f"sizes along {a}: {was.minimum} + n * {was.step} became {rule.minimum} + n * {rule.step}")
    changes += [f"tiles are not exact: {why}" for why in found.why]


def _text(package: Package, key: str, otherwise: str) -> str:
    return str(package.rdf[key][0].get("description") or otherwise)[:128]


def _torch_version(package: Package) -> str:
    found = [str(w.options.get("pytorch_version") or "") for w in package.weights if w.kind != "onnx"]
    return next((v.partition("+")[0] for v in found if v), "1.10")
