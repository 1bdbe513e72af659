"""The rows of the table: which network on which image, run by whom, and what is to be learnt from it.

A row has one case or several that are compared with each other; all that belongs to a row is measured in turn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from images import Picture

PLANE = (2048, 2048)
SIZES = {"0.5GB": 64, "4GB": 512, "32GB": 4096}
"""Planes of 2048 x 2048 uint16."""
ALL_PEERS = (
    "voidzoo-lean",
    "bioimageio-default",
    "bioimageio-tuned",
    "dask",
    "monai-default",
    "monai-tuned",
    "careamics",
)
BEST_PEERS = ("voidzoo-lean", "bioimageio-tuned", "dask", "monai-tuned", "careamics")
PLAIN_PEERS = ("voidzoo-lean", "bioimageio-tuned", "dask", "monai-tuned")
"""Those that run a network which is not their own."""


@dataclass(frozen=True)
class Case:
    """A network on an image. options: what `voidzoo predict` gets. floor: measured beside it.

    lean: the `--memory` of the contender voidzoo-lean, which is to need less than any peer and be ahead all the same.
    cpus: processors that the contenders may use, None: all. stop_after: blocks after which voidzoo is stopped, 0: never.
    log: events with their times are wanted. check: the result is compared with the network's own.
    """

    net: str
    picture: Picture
    contenders: tuple[str, ...] = ("voidzoo",)
    label: str = ""
    options: tuple[str, ...] = ()
    floor: bool = False
    cpus: int | None = None
    stop_after: int = 0
    log: bool = False
    check: bool = True
    lean: str = "300MB"


@dataclass(frozen=True)
class Row:
    """One line of the table. needs: an option, or bf16, without which it cannot be run."""

    name: str
    group: str
    cases: tuple[Case, ...]
    needs: str = ""


def _efficiency(net: str, kind: str, shape: tuple[int, int, int], *options: str, peers: tuple[str, ...] = ()) -> Row:
    case = Case(net, Picture(kind, shape), ("voidzoo", *peers), options=options, floor=True)
    return Row(f"{net}-{'x'.join(str(n) for n in shape)}", "efficiency", (case,))


def _tolerant(row: Row) -> Row:
    """The same with trained weights and `--tolerance 1e-3`."""
    case = row.cases[0]
    case = replace(
        case, net=f"{case.net}-trained", contenders=("voidzoo",), options=(*case.options, "--tolerance", "1e-3")
    )
    return Row(f"{row.name}-tolerance", "tolerance", (case,), needs="--tolerance")


EFFICIENCY = (
    _efficiency("n2v2d", "nuclei", (16, 1024, 1024), peers=ALL_PEERS),
    _efficiency("n2v2d", "nuclei", (4, 4096, 4096), "--memory", "2GB"),
    _efficiency("seg2d", "nuclei", (2, 4096, 4096), "--memory", "2GB"),
    _efficiency("n2v3d", "blobs", (64, 256, 256), peers=BEST_PEERS[1:]),
    _efficiency("n2v3d", "blobs", (64, 512, 512), "--memory", "4GB"),
)


def _bf16(row: Row) -> Row:
    """The same with trained weights and `--precision bf16`."""
    case = replace(
        row.cases[0], net=f"{row.cases[0].net}-trained", contenders=("voidzoo",), options=("--precision", "bf16")
    )
    return Row(f"{row.name}-bf16", "bf16", (case,), needs="bf16")


def _memory(name: str, net: str, contenders: tuple[str, ...]) -> Row:
    cases = [Case(net, Picture("nuclei", (z, *PLANE)), contenders, f"{z * 4.194304:.1f} Mvox") for z in (4, 16, 64)]
    return Row(name, "memory", tuple(cases))


def _growth(net: str) -> Row:
    cases = [Case(net, Picture("sparse", (z, *PLANE)), label=size, log=True, check=False) for size, z in SIZES.items()]
    return Row(f"growth-{net}", "growth", tuple(cases))


def _blocks() -> Row:
    picture = Picture("nuclei", (16, 1024, 1024))
    cases = [
        Case("null2d", picture, label=f"blocks of {n}", options=("--block", f"{n},{n}")) for n in (512, 256, 128, 64)
    ]
    return Row("bookkeeping-blocks", "bookkeeping", tuple(cases))


def _tiles() -> Row:
    picture = Picture("nuclei", (16, 1024, 1024))
    whole = ("--block", "1024,1024")
    cases = [
        Case("null2d", picture, label=f"tiles of {n}", options=(*whole, "--tile", f"{n},{n}"))
        for n in (512, 128, 64, 32)
    ]
    return Row("bookkeeping-tiles", "bookkeeping", tuple(cases))


def _workers() -> Row:
    picture = Picture("nuclei", (16, 1024, 1024))
    cases = (
        Case("n2v2d", picture, label="threads"),
        Case("n2v2d", picture, label="1 process on 1 processor", options=("--scheduler", "processes:1"), cpus=1),
        Case("n2v2d", picture, label="2 processes", options=("--scheduler", "processes:2")),
    )
    return Row("workers", "workers", cases, needs="--scheduler")


ROWS = (
    *EFFICIENCY,
    *(_tolerant(row) for row in EFFICIENCY),
    _bf16(EFFICIENCY[0]),
    Row("peers-n2v2d-64x2048x2048", "peers", (
        Case("n2v2d", Picture("nuclei", (64, *PLANE)), ("voidzoo", *BEST_PEERS), floor=True),
    )),
    _memory("memory-convs2d", "convs2d", ("voidzoo", *PLAIN_PEERS)),
    _memory("memory-tiny2d", "tiny2d", ("voidzoo", *BEST_PEERS, "careamics-disk")),
    Row("overhead-null2d", "overhead", (
        Case("null2d", Picture("nuclei", (64, *PLANE)), ("voidzoo", *PLAIN_PEERS), lean="150MB"),
    )),
    Row("startup-n2v2d", "startup", (Case("n2v2d", Picture("nuclei", (1, 512, 512)), log=True),)),
    Row("startup-million-blocks", "startup", (
        Case("null2d", Picture("sparse", (1024, 1024, 1024)), options=("--block", "32,32"), stop_after=2000, log=True,
             check=False),
    )),
    _blocks(),
    _tiles(),
    _growth("null2d"),
    _growth("convs2d"),
    _workers(),
)  # fmt: skip


def toy(row: Row) -> Row:
    """The same row at a size that takes seconds: to see that everything works, not how fast. Volumes keep their ratios."""
    first = row.cases[0].picture.shape[0]
    return replace(
        row, cases=tuple(_toy_case(case, i, 2 * case.picture.shape[0] // first) for i, case in enumerate(row.cases))
    )


def _toy_case(case: Case, i: int, planes: int) -> Case:
    shape = (64, 96, 96) if case.picture.kind == "blobs" else (planes, 256, 256)
    options = list(case.options)
    side = 16 * 2 ** max(0, 3 - i)
    for option in ("--block", "--tile"):
        if option in options:
            at = options.index(option) + 1
            options[at] = "256,256" if options[at] == "1024,1024" else f"{side},{side}"
    picture = Picture(case.picture.kind, shape)
    return replace(case, picture=picture, options=tuple(options), stop_after=min(case.stop_after, 4))
