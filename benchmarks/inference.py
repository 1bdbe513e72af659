"""Inference of voidzoo beside the bare network and its peers: one command makes the whole table.

    python benchmarks/inference.py --json benchmarks/results/inference.json       everything, several hours
    python benchmarks/inference.py --rows efficiency --contenders voidzoo         one group, voidzoo and the floor alone
    python benchmarks/inference.py --toy                                          every row at toy size, in minutes
    python benchmarks/inference.py --device cuda --json benchmarks/results/inference-gpu.json

Every contender runs as a process of its own from file to file, start included. Floor (onnxruntime alone on random tiles
that are there already, the fastest of several tile shapes and thread arrangements) and contenders alternate; ratios are
taken within a round, and the median of the rounds counts. `efficiency` is floor time by process time; `limit` is the share
that the halo's arithmetic leaves of the floor with the best tiling in the memory given. Errors are the largest difference to
the network's own result, in its standard deviations. Memory is the kernel's high-water mark of the largest process.
Peers live in environments of their own, which are made in the cache folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from compare import measure
from contenders import CONTENDERS, OURS, PEERS, Workshop, environments
from machine import machine, versions
from rows import ROWS, Row, toy

ROOT = Path(__file__).parent.parent
__all__ = ["machine", "versions"]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the rows, measure nothing")
    parser.add_argument("--rows", default="", help="names or groups with commas; default: all")
    parser.add_argument("--contenders", default="", help="only these, with commas: " + ", ".join(CONTENDERS))
    parser.add_argument("--repeats", action="append", default=[], metavar="N or ROW=N", help="rounds; default 5")
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--shape", action="append", default=[], metavar="ROW=ZxYxX", help="another size for a row")
    parser.add_argument("--toy", action="store_true", help="toy sizes, one round: does everything work?")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    parser.add_argument("--floor-seconds", type=float, default=3.0, help="for each arrangement in each round")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds for one process")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench", help="packages, images, environments, results")
    parser.add_argument("--environments", type=Path, help="of the peers; default: CACHE/environments")
    parser.add_argument("--offline", action="store_true", help="make no environments; peers without one are left out")
    parser.add_argument("--json", type=Path, help="where to write the report, after every row")
    parser.add_argument("--keep", action="store_true", help="keep the rows of that report that are not measured again")
    return parser.parse_args()


def chosen_rows(given: argparse.Namespace) -> list[Row]:
    """The rows that were asked for, with the contenders and sizes that were asked for. Raises SystemExit for unknown names."""
    wanted = [word for word in given.rows.split(",") if word]
    known = {row.name for row in ROWS} | {row.group for row in ROWS}
    only = [word for word in given.contenders.split(",") if word]
    sizes = dict(word.rpartition("=")[::2] for word in given.shape)
    counted = {name for word in given.repeats if (name := word.rpartition("=")[0])}
    if not all(word.rpartition("=")[2].isdigit() for word in given.repeats):
        raise SystemExit(f"--repeats takes N or ROW=N, not {' '.join(given.repeats)}")
    asked = [*((w, known) for w in [*wanted, *sizes, *counted]), *((c, set(CONTENDERS)) for c in only)]
    for word, among in asked:
        if word not in among:
            raise SystemExit(f"there is no {word!r}: {', '.join(sorted(among))}")
    rows = [row for row in ROWS if not wanted or row.name in wanted or row.group in wanted]
    return [_adapted(row, given, only, sizes.get(row.name, "")) for row in rows]


def _adapted(row: Row, given: argparse.Namespace, only: list[str], size: str) -> Row:
    row = toy(row) if given.toy else row
    cases = []
    for case in row.cases:
        names = [c for c in case.contenders if c in only] if only else list(case.contenders)
        if not only and given.device != "cpu":  # their environments have no CUDA
            names = [c for c in names if c in OURS or not PEERS[c].environment]
        picture = replace(case.picture, shape=shape_of(size)) if size else case.picture
        cases.append(replace(case, contenders=tuple(names), picture=picture))
    return replace(row, cases=tuple(cases))


def shape_of(word: str) -> tuple[int, int, int]:
    """`16x1024x1024` -> its numbers. Raises SystemExit for anything else."""
    numbers = word.split("x")
    if len(numbers) != 3 or not all(n.isdigit() and int(n) for n in numbers):
        raise SystemExit(f"{word!r} is no shape: ROW=16x1024x1024")
    z, y, x = (int(n) for n in numbers)
    return z, y, x


def repeats_of(given: argparse.Namespace, row: Row) -> int:
    """Rounds of a row: its own, the general one, or 5 (3 with --quick, 1 with --toy)."""
    count = 1 if given.toy else 3 if given.quick else 5
    for word in sorted(given.repeats, key=lambda word: "=" in word):  # a row's own after the general one
        name, _, number = word.rpartition("=")
        if name in ("", row.name, row.group):
            count = int(number)
    return count


def show(row: dict[str, Any]) -> None:
    """A row in words."""
    if "failure" in row:
        print(f"{row['row']}: {row['failure']}", flush=True)
        return
    for case in row["cases"]:
        floor = case.get("floor")
        print(f"{row['row']} {case['label']}" + (
            f"   floor {floor['mvox_s']} Mvox/s ({floor['best']}), limit {case['limit']}" if floor else ""))  # fmt: skip
        for name, found in case["contenders"].items():
            print(f"    {name:20}" + (_in_words(found) if "seconds" in found else found["failure"]))
    for name, value in row["figures"].items():
        print(f"    = {name}: {value}")
    sys.stdout.flush()


def _in_words(found: dict[str, Any]) -> str:
    words = f"{found['seconds']:9.2f} s {found['mvox_s']:9.3f} Mvox/s {found['peak_mb']:8.0f} MB"
    words += f" ({found['tree_mb']:.0f} MB with its children)" if found["tree_mb"] > 1.05 * found["peak_mb"] else ""
    words += f"   efficiency {found['efficiency']:.3f}" if "efficiency" in found else ""
    words += f"   planned {found['planned_mb']:.0f} MB" if "planned_mb" in found else ""
    words += (
        f"   error {found['errors']['inside']:.2g} (border {found['errors']['all']:.2g})" if "errors" in found else ""
    )
    return (
        words
        + (f"   {found['note']}" if "note" in found else "")
        + (f"   {found['failure']}" if "failure" in found else "")
    )


def report(rows: list[dict[str, Any]], given: argparse.Namespace, peers: dict[str, Any]) -> dict[str, Any]:
    """The whole report: figures first, then all that was measured, and on what."""
    return {
        "figures": {row["row"]: row["figures"] for row in rows if "figures" in row},
        "device": given.device,
        "toy": given.toy,
        "machine": machine(),
        "versions": versions(),
        "peers": peers,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": rows,
    }


def peer_versions(shop: Workshop) -> dict[str, Any]:
    """The versions in the environments that are there."""
    found = {}
    for name in environments.STEPS:
        if (shop.environments / name / ".complete").exists():
            found[name] = environments.versions(environments.python_of(shop.environments, name), name)
    return found


def main() -> int:
    """Measure the rows one after the other; the report is written after each. -> 1 if a row or voidzoo failed, else 0."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else peers and floor would send reports, and voidzoo not
    given = arguments()
    rows = chosen_rows(given)
    if given.list:
        for row in rows:
            print(f"{row.group:12} {row.name:36} {', '.join(row.cases[0].contenders)}")
        return 0
    shop = Workshop(
        cache=given.cache.resolve(), environments=(given.environments or given.cache / "environments").resolve(),
        device=given.device, offline=given.offline, toy=given.toy, timeout=given.timeout,
        floor_seconds=0.1 if given.toy else given.floor_seconds,
    )  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    if given.keep and given.json and given.json.exists():
        found = {row["row"]: row for row in json.loads(given.json.read_text()).get("rows", [])}
    for row in rows:
        found[row.name] = measure(row, shop, repeats_of(given, row), lambda text: print(text, flush=True))
        show(found[row.name])
        if given.json:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(report(list(found.values()), given, peer_versions(shop)), indent=1) + "\n")
    return int(any(failed(found[row.name]) for row in rows))


def failed(row: dict[str, Any]) -> bool:
    """Whether a row, or voidzoo in it, failed. A peer may; and what is not available is no failure."""
    several = [row, *(case["contenders"].get("voidzoo", {}) for case in row.get("cases", []))]
    return any(one.get("failure", "").startswith("failed") for one in several)


if __name__ == "__main__":
    sys.exit(main())
