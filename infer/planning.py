"""Makes the plan, before anything runs: every refusal of a prediction happens here or in `meeting`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..zoo.errors import ResourceError, SizeError
from ..zoo.image import Image
from ..zoo.package import Package
from ..zoo.rescale import rescaled
from .fit import grey_notes, pixel_notes
from .geometry import geometry
from .layout import chunk_shape
from .meeting import (
    at_model_size,
    feeds,
    fitting_mask,
    model_axes,
    only_part,
    refuse_choices,
    sample_letters,
    targets,
)
from .networks.device import Device, cpu_count, find_device, openvino_installed
from .networks.network import Network, processing_of
from .networks.precision import with_measured_precision
from .networks.probe import Probe
from .networks.runtimes import Alternative, alternatives, measure
from .networks.session import Session, make_session
from .plan import Choices, Plan
from .report import size_text
from .shaping import FREE, SPARING, Sizes, asked_block, asked_tile, cached, shaped, with_costs
from .sight.plan_halos import with_known_halos, with_nothing_cut, with_tolerance
from .turns import turns_of

if TYPE_CHECKING:
    from .networks.processing import Processing

LIBRARIES = 55 * 2**20
"""What a prediction adds to the process after planning beside blocks and tiles: 30 MB for zarr, dask and codecs, 25 MB
for the smaller levels of a result. Measured with a network that does nothing."""
PROBED = 0.05
"""The share of the work that may go into measuring which halo is enough for a tolerance."""


def make_plan(
    package: Package,
    image: Image,
    *,
    channel: str | int | None = None,
    inputs: Mapping[str, Image] | None = None,
    dtype: str | None = None,
    memory: int | None = None,
    tile: tuple[int, ...] | None = None,
    block: tuple[int, ...] | None = None,
    device: str = "auto",
    only: Mapping[str, tuple[int | None, int | None]] | None = None,
    mask: Image | None = None,
    sample: str | None = None,
    rescale: bool = False,
    scheduler: str = "threads",
    choices: Choices | None = None,
    facts: Mapping[str, Any] | None = None,
    session: Session | None = None,
) -> Plan:
    """Decide everything: blocks, tiles, halo, memory, disk, time, device. Nothing is written.

    inputs: the images of further inputs by name. memory: bytes that the process may take. tile, block: sizes along the
    model's axes. only: start and stop by letter of the part to do. mask: an image of which nothing but zeros means
    that a block need not be run. sample: plane, volume, series or image: what steps that measure their input measure;
    by default the axes of the model. rescale: the network sees the image at its training pixel size, and the result
    comes back at the image's own. scheduler: where blocks will be done; the processes of `processes:N` share out the
    processors and the memory of this machine. facts: those of a stored plan; if it is about the same job its sizes are
    taken as they are, without a probe. session: one of this package to use again.
    Raises AxesError, DtypeError, SizeError, ResourceError, DeviceError, PackageError.
    """
    choices = choices or Choices()
    refuse_choices(choices)
    original = image
    mask = None if mask is None else fitting_mask(image, mask)
    if rescale:
        feeds(package, geometry(package), image, channel, inputs or {})  # what does not fit is refused as it is
        image = at_model_size(package, image, whole=not only)
        mask, inputs = laid_on(package, image, mask, inputs or {})
    draft, wanted = _draft(package, image, channel, inputs or {}, dtype, device, original)
    if (wanted.kind == "openvino" and openvino_installed()) or choices.precision == "bf16":
        draft = replace(draft, runtime="openvino")
    processes = _processes(scheduler)
    draft, processing = _chosen(
        replace(draft, choices=choices, mask=mask, threads=max(1, cpu_count() // processes) if processes else None,
                asked=tuple(n for n, sizes in (("tile", tile), ("block", block)) if sizes is not None)),
        only or {}, sample,
    )  # fmt: skip
    turns_of(draft)  # a network that cannot be turned is refused before anything is measured
    process = _process_memory()
    if facts is not None and _same_job(draft, facts) and _as_asked(draft.pinned(facts), tile, block):
        # a finished TIFF does not hold what was measured, and nothing of it is to be done any more
        measured = Probe(float(facts.get("voxels_per_second") or 1.0), float(facts.get("bytes_per_voxel") or 0.0))
        pinned = draft.pinned(facts)
        plan = with_costs(cached(pinned, ((memory or default_memory()) - process) // 4), measured, process)
        same = session is not None and (session.workers, session.runtime) == (plan.workers, _runtime(plan))
        return _with_samples(_on(plan, session if same and session else make_session(plan)), processing)
    if session is not None:  # what was measured to be faster for another image is taken for this one
        draft = replace(draft, workers=session.workers, runtime="openvino" * (session.runtime == "openvino"))
    session = session or make_session(draft)
    measured = measure(session, draft)
    draft = replace(draft, notes=(*draft.notes, *grey_notes(package, draft.feeds[0])))
    draft = with_known_halos(draft, session)
    if choices.precision != "fp32":
        draft = with_measured_precision(draft, session)
    room = (process, (memory or default_memory()) // max(1, processes))
    if choices.tolerance and shaped(draft, session, measured, room, (tile, block)).overhead <= 1:
        draft = with_nothing_cut(draft)
    elif choices.tolerance:
        voxels = prod(span.size for span in draft.part.values())
        draft = with_tolerance(draft, Network(draft, session), int(PROBED * voxels))
    more = SPARING if memory is None else FREE
    plan = _on(shaped(draft, session, measured, room, (tile, block), more=more), session)
    plain = session.runtime == "onnxruntime" and session.workers == 1 and choices.precision == "fp32"
    if plain and wanted.kind == "cpu" and not wanted.pinned:
        threads = scheduler == "threads"
        for other in alternatives(draft, session, measured, plan, room[1] - room[0], alone=threads):
            room = (room[0] + other.libraries, room[1])
            plan = _faster(plan, draft, other, room, (tile, block), more)
    plan = _with_samples(plan, processing)
    _refuse_memory(plan, memory)
    return plan


def _chosen(
    draft: Plan, only: Mapping[str, tuple[int | None, int | None]], sample: str | None
) -> tuple[Plan, Processing | None]:  # fmt: skip
    """The plan with the part and the sample that were chosen, and the steps of the package."""
    choices = replace(draft.choices, only=only_part(draft, only), sample=sample_letters(draft, sample))
    draft = replace(draft, choices=choices)
    processing = processing_of(draft)
    if processing is not None and sample is None and any(any(flags) for flags in processing.dataset.values()):
        # the package asks for statistics of a data set: of all that there is of this one
        draft = replace(draft, choices=replace(choices, sample="".join(a for a in draft.loops if a in "tz")))
        processing = processing_of(draft)
    if sample is not None and not _measures(processing):
        note = f"{draft.package.name} measures nothing of the image: --sample changes nothing"
        draft = replace(draft, choices=replace(choices, sample=""), notes=(*draft.notes, note))
    return (draft if processing is None else replace(draft, steps=tuple(processing.text()))), processing


def _measures(processing: Processing | None) -> bool:
    """Whether a step needs statistics of an input or of the result."""
    if processing is None:
        return False
    return any(processing.inputs_wanted.values()) or any(processing.outputs_wanted.values())


def _processes(scheduler: str) -> int:
    """N of `processes:N`, 0 for other words."""
    word, _, count = scheduler.partition(":")
    return int(count) if word == "processes" and count.isdigit() else 0


def laid_on(
    package: Package, image: Image, mask: Image | None, inputs: Mapping[str, Image]
) -> tuple[Image | None, dict[str, Image]]:
    """Mask and further inputs, resampled to lie on an image that is (--rescale)."""
    size = {a: image.size(a) for a in "zyx"}
    if mask is not None:
        mask = rescaled(mask, {a: n for a, n in size.items() if mask.size(a) > 1}, nearest=True)
    found = dict(inputs)
    for port in geometry(package).inputs[1:]:
        if port.id in found and not port.whole:
            other = found[port.id]
            sizes = {a: port.span(0, n, a)[1] for a, n in size.items() if other.size(a) > 1}
            found[port.id] = rescaled(other, sizes, nearest=other.dtype == bool)
    return mask, found


def _with_samples(plan: Plan, processing: Processing | None) -> Plan:
    """Whether the result has to wait for statistics of itself. Raises SizeError where that cannot be."""
    if processing is None or plan.samples_in_blocks:
        return plan
    if whole := processing.needs_whole():
        raise SizeError(
            f"{plan.package.name} ends in {', '.join(whole)}, which sees the whole of {_sample(plan)} at once; "
            f"blocks of {' x '.join(str(n) for n in plan.block.values())} do not hold it.",
            mend="--memory 16GB, or more",
        )
    staged = any(processing.outputs_wanted.values())
    if staged and plan.choices.only.keys() & {*plan.model_axes, *plan.choices.sample}:
        raise SizeError(f"{plan.package.name} normalises its result by the whole of {_sample(plan)}: a part of it "
                        "cannot be done alone.", mend="leave --only out")  # fmt: skip
    if staged and (plan.mask is not None or plan.choices.skip_below is not None):
        raise SizeError(f"{plan.package.name} normalises its result by the whole of {_sample(plan)}: no block of it "
                        "can be skipped.", mend="leave --mask and --skip-below out")  # fmt: skip
    return replace(plan, staged=staged)


def _sample(plan: Plan) -> str:
    return "an image" if plan.choices.sample else {2: "a plane", 3: "a volume"}.get(len(plan.model_axes), "a series")


def _draft(
    package: Package, image: Image, channel: str | int | None, inputs: Mapping[str, Image], dtype: str | None,
    device: str, original: Image,
) -> tuple[Plan, Device]:  # fmt: skip
    """What does not depend on sizes: axes, channels, dtypes, device, notes. original: as given, before --rescale."""
    shape = geometry(package)
    found, each = feeds(package, shape, image, channel, inputs)
    wanted = find_device(device)
    whole = not each
    draft = Plan(
        package=package, geometry=shape, feeds=found,
        targets=targets(package, shape, original, found[0].channel, dtype, each=each),
        model_axes=model_axes(shape, image), grid="".join(a for a in image.axes if not (a == "c" and whole)),
        device=device, device_name=str(wanted), notes=(*image.notes, *pixel_notes(package, image)),
        original=None if original is image else original,
    )  # fmt: skip
    return draft, wanted


def _same_job(draft: Plan, facts: Mapping[str, Any]) -> bool:
    """Whether a stored plan is about this model, image, channel and dtype."""
    return set(facts.get("block", {})) == set(draft.grid) and draft.pinned(facts).identity == facts.get("identity")


def _as_asked(stored: Plan, tile: Sizes, block: Sizes) -> bool:
    """Whether a stored plan has the sizes that are asked for."""
    sizes = {a: span.size for a, span in stored.part.items()}
    chunk = chunk_shape(stored.grid, stored.model_axes, sizes)
    try:
        if tile is not None and asked_tile(stored.model_axes, tile) != stored.tile:
            return False
        return block is None or asked_block(stored, chunk, block) == stored.block
    except SizeError:  # told where sizes are chosen
        return False


def _runtime(plan: Plan) -> str:
    return plan.runtime or ("onnxruntime" if any(w.kind == "onnx" for w in plan.package.weights) else "torch")


def _faster(
    plan: Plan, draft: Plan, other: Alternative, room: tuple[int, int], asked: tuple[Sizes, Sizes], more: float
) -> Plan:  # fmt: skip
    """The plan with another session, if that promises to be faster and fits the room; else as it is, in that room."""
    session = other.session
    changed = replace(draft, workers=session.workers, runtime="openvino" * (session.runtime == "openvino"))
    with contextlib.suppress(ResourceError):
        found = shaped(changed, session, other.measured, room, asked, more=more)
        if found.memory.total <= room[1] and found.seconds < other.bias * plan.seconds:
            return _on(found, session)
    if other.libraries and (before := plan.session) is not None:
        same = replace(draft, workers=plan.workers, runtime=plan.runtime)
        with contextlib.suppress(ResourceError):
            return _on(shaped(same, before, Probe(plan.rate, plan.bytes_per_voxel), room, asked, more=more), before)
    return plan


def _on(plan: Plan, session: Session) -> Plan:
    return replace(plan, session=session, device_name=session.name)


def default_memory() -> int:
    """The memory that a prediction may take unless told otherwise: a quarter of what is free, at most 4 GB."""
    import psutil

    return min(psutil.virtual_memory().available // 4, 4 * 2**30)


def _process_memory() -> int:
    import psutil

    return psutil.Process().memory_info().rss + LIBRARIES


def _refuse_memory(plan: Plan, asked: int | None) -> None:
    import psutil

    available = asked or psutil.virtual_memory().available
    if plan.memory.total > available:
        tile = "x".join(str(n) for n in plan.tile.values())
        raise ResourceError(
            f"this plan needs {size_text(plan.memory.total)} of memory; {size_text(available)} "
            f"{'may be taken' if asked else 'are free'}.",
            where=f"tile {tile}: {size_text(plan.memory.network)}; blocks {size_text(plan.memory.blocks)}; "
            f"process {size_text(plan.memory.process)}",
            mend="leave --tile and --block out, or make them smaller",
        )
