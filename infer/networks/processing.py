"""The steps before and after a network that its package asks for, done by bioimageio.core's own operators.

What bioimageio.core 0.11 does (proc_setup.py, `setup_pre_and_postprocessing`): one `UpdateStats` stands before the
first preprocessing step, so that all statistics are those of the tensors as they came, in their own dtype, before
`ensure_dtype` and before any other step. So it is done here, for outputs too: a postprocessing step sees the statistics
of what the network returned (core 0.11 itself ends in a KeyError there: it looks for outputs among the inputs).
A tensor is cast to its described dtype at the beginning of preprocessing and at the end of both, unless another cast
or `binarize` stands there (bioimageio.spec, model/v0_5.py, `_validate_preprocessing_kwargs`).

The statistics themselves come from outside, exact for the whole sample; nothing is ever measured on a tile.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...zoo.errors import DependencyError, PackageError
from ...zoo.package import Step
from ...zoo.package_files import MAX_TEXT
from ...zoo.statistics import Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...zoo.package import Package, Tensor

    Arrays = Mapping[str, NDArray[Any]]
    Values = Mapping[str, Sequence[NDArray[np.float64]]]
    Spans = Mapping[str, Mapping[str, tuple[int, int]]]

ORDER = "ictzyx"
"""The letters of a statistic, reduced or kept, in this order."""
SAMPLES = {"yx": "the plane", "zyx": "the volume", "tyx": "the series", "tzyx": "the whole image"}
WHOLE = {"stardist_postprocessing": "stardist", "cellpose_flow_dynamics": "cellpose", "custom": ""}
"""The steps that see a whole sample at once, and what must be installed for them."""


@dataclass(frozen=True)
class Need:
    """A statistic that a step asks for. measure: bioimageio.core's name for it; index: in the wanted of its tensor.

    kept: letters and ids of the axes along which it has several values. dataset: the package joins samples for it
    (`batch` is among the axes; format 0.4: `mode: per_dataset`).
    """

    measure: Any
    tensor: str
    index: int
    kept: tuple[tuple[str, Any], ...]
    dataset: bool


@dataclass
class Stage:
    """All steps before the network, or all after it. dims: axis ids by tensor. casts: instead of operators, if that is
    all there is.
    """

    tensors: Sequence[Tensor]
    operators: list[Any] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    dims: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    casts: dict[str, list[str]] = field(default_factory=dict)


class Processing:
    """The pre- and postprocessing of a package.

    sample: letters of axes beside those of the model over which statistics are taken together (`""`: what the model
    reads at once, `"z"`: the volume of a 2D model, ...). A batch axis counts as these letters: one item is one sample.
    inputs_wanted, outputs_wanted: by tensor, the statistics that are to be measured on it before any step, in the
    order in which their values are to be given; an item has its own along letters that the tensor lacks.
    dataset: alike, whether the package asks for that one over several samples. keeps: by tensor, the letters but c
    along which some statistic has several values, so that a tile needs its part of them.

    trust_code: whether `custom` steps may run the package's Python code. Raises PackageError for a step that does not
    exist or has wrong settings and for custom code that is not trusted, DependencyError for a step whose library is not
    installed. Safe to use from any number of threads.
    """

    def __init__(self, package: Package, sample: str = "", *, trust_code: bool = False) -> None:
        self.package, self.sample, self.trust_code = package, sample, trust_code
        self._steps = {t.id: with_casts(t, first=t in package.inputs) for t in (*package.inputs, *package.outputs)}
        self._wanted: dict[str, list[Wanted]] = {id_: [] for id_ in self._steps}
        self._before = self._stage(package.inputs)
        self._after = self._stage(package.outputs)
        self.inputs_wanted = {t.id: tuple(self._wanted[t.id]) for t in package.inputs}
        self.outputs_wanted = {t.id: tuple(self._wanted[t.id]) for t in package.outputs}
        needs = [*self._before.needs, *self._after.needs]
        self.dataset = {
            id_: tuple(any(n.dataset for n in needs if (n.tensor, n.index) == (id_, i)) for i in range(len(wanted)))
            for id_, wanted in self._wanted.items()
        }
        self.keeps = {
            id_: "".join(a for a in "tzyx" if any(n.tensor == id_ and a in dict(n.kept) for n in needs))
            for id_ in self._wanted
        }

    def before(self, tensors: Arrays, measured: Values, spans: Spans | None = None) -> dict[str, NDArray[Any]]:
        """Preprocess one item of a sample, or a tile of it. tensors: by id, in their own axes, batch of 1.

        measured: by tensor, the values of `inputs_wanted` as float64, over the tensor's letters that are kept, in the
        order of `ORDER`. spans: by tensor and letter, where the tile lies (start, stop) in values that are kept for the
        whole image along `keeps`; beyond the end they are mirrored, like the pixels. Raises PackageError for values
        that do not fit the tile.
        """
        return self._run(self._before, tensors, measured, spans or {})

    def after(
        self, tensors: Arrays, measured_in: Values, measured_out: Values, spans: Spans | None = None
    ) -> dict[str, NDArray[Any]]:
        """Postprocess what the network returned, as `before` does; steps may refer to statistics of raw inputs too."""
        measured = {t.id: measured_in[t.id] for t in self.package.inputs if t.id in measured_in}
        measured |= {t.id: measured_out[t.id] for t in self.package.outputs if t.id in measured_out}
        return self._run(self._after, tensors, measured, spans or {})

    def needs_whole(self) -> tuple[str, ...]:
        """The names of the steps that must see a sample whole, not in tiles."""
        found = []
        for tensor in (*self.package.inputs, *self.package.outputs):
            letters = {a.id: a.letter for a in tensor.axes}
            for step in tensor.steps:
                along = letters.get(step.kwargs.get("axis", "channel")) if step.name == "softmax" else None
                if step.name in WHOLE or (along is not None and along in "tzyx"):
                    found.append(step.name)
        return tuple(dict.fromkeys(found))

    def text(self) -> tuple[str, ...]:
        """One line a step, e.g. `"input: zero_mean_unit_variance over c y x (sample: the plane)"`."""
        space = self.package.axes
        sample = SAMPLES.get("".join(a for a in "tzyx" if a in space or a in self.sample), "the sample")
        lines = []
        for tensor in (*self.package.inputs, *self.package.outputs):
            for step in tensor.steps:
                if not step.is_float32_cast:
                    lines.append(f"{tensor.id}: {step.name}{_settings(step, tensor, sample)}")
        return tuple(lines)

    def _stage(self, tensors: Sequence[Tensor]) -> Stage:
        stage = Stage(tensors)
        steps = [(tensor, step) for tensor in tensors for step in self._steps[tensor.id]]
        if all(step.name == "ensure_dtype" for _, step in steps):
            for tensor, step in steps:
                stage.casts.setdefault(tensor.id, []).append(str(step.kwargs["dtype"]))
            return stage
        from bioimageio.core.axis import AxisId

        stage.dims = {t.id: tuple(AxisId(a.id) for a in t.axes) for t in tensors}
        for tensor, step in steps:
            operator = self._operator(tensor, step)
            stage.operators.append(operator)
            for measure in sorted(operator.required_measures, key=repr):  # sets have another order in each process
                if all(need.measure != measure for need in stage.needs):
                    stage.needs.append(self._need(measure))
        return stage

    def _operator(self, tensor: Tensor, step: Step) -> Any:
        """bioimageio.core's operator for a step."""
        if (library := WHOLE.get(step.name)) and importlib.util.find_spec(library) is None:
            raise DependencyError(f"{self.package.path}: the step {step.name} needs {library}, which is not installed.",
                                  mend=f"pip install {library}")  # fmt: skip
        if step.name == "custom" and not self.trust_code:
            raise PackageError(
                f"{self.package.path} ends in Python code of its own ({step.kwargs.get('callable', 'custom')}).",
                mend="--trust-code  if you trust where the package came from",
            )
        try:
            return _custom(self.package, tensor, step) if step.name == "custom" else _operator(tensor, step)
        except PackageError:
            raise
        except Exception as error:  # of pydantic, of core's assertions, or of the package's own code
            raise PackageError(
                f"{self.package.path}: {tensor.id} asks for the step {step.name!r}, which cannot be done as described.",
                where=" ".join(str(error).split())[:300],
                mend=f"bioimageio validate-format {self.package.path}",
            ) from error

    def _need(self, measure: Any) -> Need:
        id_ = str(measure.member_id)
        tensor = next((t for t in (*self.package.inputs, *self.package.outputs) if t.id == id_), None)
        if tensor is None:
            raise PackageError(f"{self.package.path}: a step refers to {id_!r}, which is no input.")
        reduced = {a.letter for a in tensor.axes if measure.axes is None or a.id in measure.axes}
        over = "".join(a for a in ORDER if a in reduced or a in self.sample)
        method = getattr(measure, "method", "linear")
        wanted = Wanted(measure.name, over, getattr(measure, "q", 0.0), method)
        listed = self._wanted[id_]
        if wanted not in listed:
            listed.append(wanted)
        from bioimageio.core.axis import AxisId

        kept = sorted((a for a in tensor.axes if a.letter not in over + "b"), key=lambda a: ORDER.index(a.letter))
        dataset = measure.axes is not None and "batch" in measure.axes
        return Need(measure, id_, listed.index(wanted), tuple((a.letter, AxisId(a.id)) for a in kept), dataset)

    def _run(self, stage: Stage, tensors: Arrays, measured: Values, spans: Spans) -> dict[str, NDArray[Any]]:
        given = [t.id for t in stage.tensors if t.id in tensors]
        with np.errstate(over="ignore", invalid="ignore"):  # exp of a large number, a cast of NaN
            if not stage.operators:
                return {id_: _cast(tensors[id_], stage.casts.get(id_, ())) for id_ in given}
            from bioimageio.core.sample import Sample
            from bioimageio.core.tensor import Tensor as CoreTensor

            members = {id_: CoreTensor(tensors[id_], stage.dims[id_]) for id_ in given}
            sizes = {axis: n for id_ in given for axis, n in zip(stage.dims[id_], tensors[id_].shape, strict=True)}
            stat = {n.measure: CoreTensor(self._part(n, measured, spans, sizes), [i for _, i in n.kept])
                    for n in stage.needs}  # fmt: skip
            sample = Sample(members=members, stat=stat, id=None)
            for operator in stage.operators:
                operator(sample)
            return {id_: sample.members[id_].data.transpose(*stage.dims[id_]).to_numpy() for id_ in given}

    def _part(self, need: Need, measured: Values, spans: Spans, sizes: Mapping[Any, int]) -> NDArray[np.float64]:
        """The values of a statistic for a tile."""
        values = np.asarray(measured[need.tensor][need.index], np.float64)
        for axis, (letter, _) in enumerate(need.kept):
            if values.ndim == len(need.kept) and letter in spans.get(need.tensor, {}):
                values = values.take(_mirrored(*spans[need.tensor][letter], values.shape[axis]), axis)
        wanted = tuple(sizes.get(id_, n) for (_, id_), n in zip(need.kept, values.shape, strict=False))
        if values.shape != wanted or values.ndim != len(need.kept):
            raise PackageError(
                f"{self.package.path}: the {need.measure.name} of {need.tensor} for each "
                f"{', '.join(id_ for _, id_ in need.kept) or 'sample'} has the shape {values.shape}, "
                f"but what it is to be applied to has {wanted}.",
                mend="choose a tile that holds these axes whole",
            )
        return values


def with_casts(tensor: Tensor, *, first: bool) -> tuple[Step, ...]:
    """The steps of a tensor with the casts to its dtype that the format implies."""
    cast = Step("ensure_dtype", {"dtype": tensor.dtype})
    steps = list(tensor.steps)
    if first and (not steps or steps[0].name != "ensure_dtype"):
        steps.insert(0, cast)
    if not steps or steps[-1].name not in ("ensure_dtype", "binarize"):
        steps.append(cast)
    return tuple(steps)


def _cast(values: NDArray[Any], dtypes: Sequence[str]) -> NDArray[Any]:
    for dtype in dtypes:
        values = values.astype(dtype, copy=False)
    return values


def _mirrored(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Positions start to stop of an axis that is continued by its mirror image (numpy.pad: symmetric)."""
    at = np.arange(start, stop) % (2 * size)
    return np.where(at < size, at, 2 * size - 1 - at)


def _operator(tensor: Tensor, step: Step) -> Any:
    """bioimageio.core's operator for a step that is no custom code, mended where core 0.11 leaves out a setting."""
    from bioimageio.core.axis import AxisId
    from bioimageio.core.proc_ops import Binarize, ScaleRange, ZeroMeanUnitVariance, get_proc
    from bioimageio.spec import ValidationContext
    from bioimageio.spec.model import v0_5
    from pydantic import TypeAdapter

    member = v0_5.InputTensorDescr.model_construct(id=v0_5.TensorId(tensor.id))
    described = {"id": step.name, **({"kwargs": dict(step.kwargs)} if step.kwargs else {})}
    with ValidationContext(perform_io_checks=False):
        operator = get_proc(TypeAdapter(v0_5.PostprocessingDescr).validate_python(described), member)
    if isinstance(operator, Binarize) and operator.axis is not None:
        import xarray as xr  # core compares the thresholds with the last axis, whichever `axis` is

        operator.threshold = xr.DataArray(np.asarray(operator.threshold), dims=[AxisId(operator.axis)])
    if isinstance(operator, ScaleRange | ZeroMeanUnitVariance):  # core keeps to the default
        operator.eps = float(step.kwargs.get("eps", operator.eps))
    return operator


def _custom(package: Package, tensor: Tensor, step: Step) -> Any:
    """bioimageio.core's operator for the package's own Python code, read with its sha256 checked, and run."""
    from bioimageio.core.proc_ops import CustomProcessing
    from bioimageio.spec.model import v0_5

    source, name = step.kwargs["source"], step.kwargs["callable"]
    code = package.files.read(source, step.kwargs.get("sha256"), MAX_TEXT)
    module = ModuleType(f"voidzoo_custom_{hashlib.sha256(code).hexdigest()[:16]}")
    sys.modules[module.__name__] = module  # dataclasses, among others, look for the module of a class
    exec(compile(code, source, "exec"), module.__dict__)
    member = v0_5.TensorId(tensor.id)
    factory = getattr(module, name)
    return CustomProcessing(member, member, custom_factory=factory, kwargs=dict(step.kwargs.get("kwargs", {})))


def _settings(step: Step, tensor: Tensor, sample: str) -> str:
    """What a step does, as a reader of the plan wants to know it."""
    kwargs = dict(step.kwargs)
    words = []
    measures = step.name in ("zero_mean_unit_variance", "scale_range", "scale_mean_variance")
    if measures or "min_percentile" in kwargs or "max_percentile" in kwargs:
        axes = kwargs.pop("axes", None) or [a.id for a in tensor.axes]
        letters = {a.id: a.letter for a in tensor.axes}
        words.append("over " + " ".join(letters.get(a, a) for a in axes if letters.get(a) != "b"))
        measures = True
    if step.name == "custom":
        kwargs = {"callable": kwargs.get("callable"), **kwargs.get("kwargs", {})}
    words += [f"{name} {value}" for name, value in kwargs.items() if name != "eps"]
    if measures:
        words.append(f"(sample: {sample})")
    return " " + ", ".join(words).replace(", (", " (") if words else ""
