"""A plan and a result in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..zoo.axes import describe

if TYPE_CHECKING:
    from .plan import Plan
    from .run import Result


def plan_text(plan: Plan) -> str:
    """The plan as `voidzoo plan` prints it."""
    package, image = plan.package, plan.image
    halo = {a: axis.halo for a, axis in plan.model_axes.items()}
    extended = [
        f"{a} {axis.size} -> {axis.extended}" for a, axis in plan.model_axes.items() if axis.extended != axis.size
    ]
    whole = all(len(axis.tiles(s, plan.tile[a])) == 1 for a, axis in plan.model_axes.items() for s in plan.spans[a][:1])
    whole = whole and all(len(plan.spans[a]) == 1 for a in plan.model_axes)
    tiles = f"{plan.n_tiles:,} of {_by_letter(plan.tile)}"
    tiles += "   whole, no halo" if whole else f" with a halo of {_by_letter(halo)}"
    if plan.batch > 1:
        tiles += f"   batches of {plan.batch}"
    sample = "the plane" if len(package.axes) == 2 else "the volume"
    lines = [
        f"model    {package.name}{' ' + package.version if package.version else ''}   reads {' '.join(package.axes)}"
        f"   normalisation inside the network (sample: {sample})",
        f"image    {image.name}   {describe(image.axes, image.shape)}   {image.dtype}   {size_text(image.nbytes)}",
        f"pixel    {image.pixel_size}",
        f"result   {describe(plan.out_axes, plan.out_shape)}   {plan.dtype}"
        + (f"   {', '.join(plan.out_channels)}" if plan.out_channels else ""),
        f"blocks   {plan.n_blocks:,} of {_by_letter(plan.block)}   chunks {_by_letter(plan.chunk)}",
        f"tiles    {tiles}   the network runs on {plan.overhead:.2f} x the pixels",
        f"memory   {size_text(plan.memory.total)}: process {size_text(plan.memory.process)}, "
        f"network {size_text(plan.memory.network)}, blocks in flight {size_text(plan.memory.blocks)}",
        f"disk     up to {size_text(plan.disk)} with the pyramid, before compression",
        f"device   {plan.device_name} (asked: {plan.device})",
        f"time     about {duration(plan.seconds)}   ({plan.rate / 1e6:.2f} Mvox/s, measured)",
    ]
    if extended:
        lines.insert(6, f"border   mirrored at the end to a legal size: {', '.join(extended)}")
    lines += [f"note     {note}" for note in plan.notes]
    return "\n".join(lines)


def result_text(result: Result) -> str:
    """What happened, as `voidzoo predict` prints it at the end."""
    plan = result.plan
    lines = [
        f"done     {duration(result.seconds)}   {result.blocks:,} blocks   peak memory {size_text(result.peak_memory)}"
        f" (planned {size_text(plan.memory.total)})"
    ]
    if result.clipped:
        lines.append(f"clipped  {result.clipped:,} values lay outside of {plan.dtype} (--dtype float32 keeps them)")
    if result.mapped:
        lines.append(f"mapped   {result.mapped:,} NaN or infinite input values were read as 0")
    lines.append(f"result   {result.path}")
    lines += [f"open     {line}" for line in open_lines(result.path)]
    return "\n".join(lines)


def open_lines(path: str) -> list[str]:
    """How to open a result elsewhere; each of these lines was tried."""
    if path.lower().endswith((".tif", ".tiff")):
        return [f"Fiji, ImageJ: File > Open... > {path}", f'Python: tifffile.imread("{path}")']
    return [
        f"napari: napari --plugin napari-ome-zarr {path}",
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
