"""A plan and a result in words."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..zoo.axes import describe

if TYPE_CHECKING:
    from .plan import Plan, Target
    from .run import Result


def plan_text(plan: Plan) -> str:
    """The plan as `voidzoo plan` prints it."""
    package, image = plan.package, plan.original or plan.image
    extended = [
        f"{a} {axis.size + 2 * axis.lead} -> {axis.extended}"
        for a, axis in plan.model_axes.items()
        if axis.extended != axis.size + 2 * axis.lead
    ]
    lines = [
        f"model    {package.name}{' ' + package.version if package.version else ''}   reads {' '.join(plan.model_axes)}"
        f"   {_processing(plan)}",
        *_origin(plan),
        *(f"step     {step}" for step in plan.steps),
        f"image    {image.name}   {describe(image.axes, image.shape)}   {image.dtype}   {size_text(image.nbytes)}",
        *(f"input    {f.port.id}: {f.image.name}   {describe(f.image.axes, f.image.shape)}" for f in plan.feeds[1:]),
        f"pixel    {image.pixel_size}",
        *([f"rescale  {_rescale(plan)}"] if plan.original is not None else []),
        *(f"result   {_target(plan, t)}" for t in plan.targets),
        *([f"only     {_only(plan)}"] if plan.choices.only else []),
        *([f"skip     {_skip(plan)}"] if plan.mask is not None or plan.choices.skip_below is not None else []),
        *([f"border   mirrored at the end to a legal size: {', '.join(extended)}"] if extended else []),
        f"blocks   {plan.n_blocks:,} of {_by_letter(plan.block)}   chunks {_by_letter(plan.chunk)}",
        f"tiles    {_tiles(plan)}   the network runs on {plan.overhead:.2f} x the pixels",
        f"memory   {size_text(plan.memory.total)}: process {size_text(plan.memory.process)}, "
        f"network {size_text(plan.memory.network)}, blocks in flight {size_text(plan.memory.blocks)}"
        + (f"   GPU {size_text(plan.memory.device)}" if plan.memory.device else ""),
        f"disk     up to {size_text(plan.disk)} with the pyramid, before compression",
        f"device   {plan.device_name} (asked: {plan.device})"
        + (f"   {plan.choices.precision}" if plan.choices.precision != "fp32" else "")
        + (f"   mean over {len(plan.turns)} turns" if plan.choices.tta else ""),
        f"time     about {duration(plan.seconds)}   ({plan.rate / 1e6:.2f} Mvox/s, measured)",
    ]
    lines += [f"note     {note}" for note in plan.notes]
    return "\n".join(lines)


def _origin(plan: Plan) -> list[str]:
    """Where a model that is no path came from, so that the same can be had again."""
    digest = plan.package.origin.get("sha256")
    return [f"from     {plan.package.named}   sha256 {digest[:12]}..."] if digest else []


def _processing(plan: Plan) -> str:
    """Where the normalisation happens, and on what."""
    word = {"": "the plane" if len(plan.model_axes) == 2 else "the volume", "z": "the volume", "t": "the series"}
    sample = word.get(plan.choices.sample, "the image")
    if not plan.steps:
        return "normalisation inside the network"
    if not any("(sample: " in step for step in plan.steps):
        return "nothing of the image is measured"
    return f"sample: {sample}" + ("" if plan.samples_in_blocks else ", measured before the blocks")


def _rescale(plan: Plan) -> str:
    """What the network sees instead of the image that was given."""
    assert plan.original is not None
    seen = [a for a in plan.image.axes if plan.image.size(a) != plan.original.size(a)]
    if not seen:
        return "nothing to do: the image has the pixel size of the training"
    sizes = ", ".join(f"{a} {plan.original.size(a)} -> {plan.image.size(a)}" for a in seen)
    return f"{sizes} for the network ({plan.image.pixel_size}), and back"


def _skip(plan: Plan) -> str:
    """Which blocks are not run."""
    skipped = []
    if plan.mask is not None:
        skipped.append(f"in which {plan.mask.name} is 0 everywhere")
    if plan.choices.skip_below is not None:
        skipped.append(f"of which the network would see no grey value from {plan.choices.skip_below:g} on")
    return "blocks " + ", or ".join(skipped)


def _target(plan: Plan, target: Target) -> str:
    name = f"{target.name}   " if target.name else ""
    names = f"   {', '.join(target.names)}" if target.names else ""
    sizes = plan.written_sizes(target)
    return f"{name}{describe(plan.axes_of(target), tuple(sizes.values()))}   {target.dtype}{names}"


def _only(plan: Plan) -> str:
    return ", ".join(f"{a} {start}:{stop}" for a, (start, stop) in plan.choices.only.items())


def _tiles(plan: Plan) -> str:
    model = plan.model_axes
    whole = all(len(axis.tiles(s, plan.tile[a])) == 1 for a, axis in model.items() for s in plan.spans[a][:1])
    text = f"{plan.n_tiles:,} of {_by_letter(plan.tile)}"
    if whole and all(len(plan.spans[a]) == 1 and plan.part[a].size == axis.size for a, axis in model.items()):
        text += "   whole, no halo"
    else:
        text += f" with a halo of {_by_letter({a: axis.halo for a, axis in model.items()})}"
    return text + (f"   batches of {plan.batch}" if plan.batch > 1 else "")


def result_text(result: Result) -> str:
    """What happened, as `voidzoo predict` prints it at the end."""
    plan = result.plan
    lines = [
        f"done     {duration(result.seconds)}   {result.blocks:,} blocks   peak memory {size_text(result.peak_memory)}"
        f" (planned {size_text(plan.memory.total)})"
    ]
    if result.read_amplification is not None:
        lines.append(f"read     {result.read_amplification:.2f} bytes decoded a byte of the image")
    if result.tile != plan.tile:
        lines.append(f"tiles    halved to {_by_letter(result.tile)}: larger ones did not fit the memory of the device")
    if result.skipped:
        lines.append(f"skipped  {result.skipped:,} of {plan.n_blocks:,} blocks, in which nothing is; they hold 0")
    if result.clipped:
        lines.append(f"clipped  {result.clipped:,} values lay outside of {plan.dtype} (--dtype float32 keeps them)")
    if result.mapped:
        lines.append(f"mapped   {result.mapped:,} NaN or infinite input values were read as 0")
    lines += [f"hole     {hole}; it holds 0" for hole in result.holes]
    lines.append(f"result   {result.path}")
    lines += [f"open     {line}" for line in open_lines(result.path, [t.name for t in plan.targets])]
    return "\n".join(lines)


def open_lines(path: str, arrays: Sequence[str] = ("",)) -> list[str]:
    """How to open a result elsewhere; each of these lines was tried. arrays: the names of several, in one result."""
    if len(arrays) > 1 and not path.lower().endswith((".tif", ".tiff")):
        return [line for name in arrays for line in open_lines(f"{path}/{name}")[:2]]
    if path.lower().endswith((".tif", ".tiff")):
        fiji = f"Fiji, ImageJ: File > Open... > {path}"
        if len(arrays) == 1:
            return [fiji, f'Python: tifffile.imread("{path}")']
        return [fiji, *(f'Python: voidzoo.open_image("{path}", series={i}).to_xarray()   {name}'
                        for i, name in enumerate(arrays))]  # fmt: skip
    return [
        f"napari: napari --plugin napari-ome-zarr {shlex.quote(str(path))}",
        f'Python: voidzoo.open_image("{path}").to_xarray()',
        "Fiji, ImageJ: write a TIFF instead, -o NAME.ome.tif",
    ]


def _by_letter(sizes: dict[str, int]) -> str:
    return " x ".join(f"{a} {n}" for a, n in sizes.items())


def size_text(nbytes: float) -> str:
    """Bytes for people: `412 MB`, `1.3 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if nbytes >= 100 or unit == "bytes" else f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds for people: `8 s`, `12 min 5 s`, `3 h 10 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
