"""One training in a process of its own, for `training.py`: when its steps ended, and where their time went.

    steps.py voidzoo IMAGE OUT --batch 16 --patch 64 --epochs 3 --steps 20 --precision fp32     the command, as users type it
    steps.py bare --batch 16 --patch 64 --steps 40 --precision fp32                             the network alone

`bare`: forward, backward and Adam of the same network on one random tensor, in the same memory layout, precision and with the same
allocator: what no training with this network can be faster than. The last line of stdout is JSON: `ends`, the time (seconds
since 1970) at the end of each step, an inner list an epoch; `sampling` and `masking`, seconds a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    """One or the other."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("what", choices=("voidzoo", "bare"))
    known.add_argument("files", nargs="*")
    for name, default in (("batch", 16), ("patch", 64), ("epochs", 3), ("steps", 20), ("seed", 1)):
        known.add_argument(f"--{name}", type=int, default=default)
    known.add_argument("--precision", default="fp32")
    known.add_argument("--memory")
    given = known.parse_args()
    found = bare(given) if given.what == "bare" else voidzoo(given)
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def voidzoo(given: Any) -> dict[str, Any]:
    """`voidzoo train n2v`, with a clock at the end of the optimiser's steps."""
    import voidzoo.trainers  # noqa: F401  (before torch: it sets how its threads wait)

    image, out = given.files
    settings = {
        "patch": [given.patch] * 2, "batch": given.batch, "epochs": given.epochs, "steps": given.steps, "dims": 2,
        "depth": 2, "filters": 32, "seed": given.seed, "precision": given.precision, "mask_percent": 0.2,
    }  # fmt: skip
    words = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
    words += ["--memory", given.memory] if given.memory else []

    import torch

    from voidzoo.cli import main as command
    from voidzoo.trainers import denoisers, loop, patches, pool

    ends: list[list[float]] = [[]]
    step = torch.optim.Adam.step

    def clocked(self: Any, *values: Any, **named: Any) -> Any:
        done = step(self, *values, **named)
        if self.param_groups[0]["params"][0].grad is not None and counting[0]:
            ends[-1].append(time.time())
        return done

    counting = [False]
    fit = loop.fit

    def fitted(*values: Any, **named: Any) -> None:
        counting[0] = True  # what was measured before it was no training
        fit(*values, **named)

    torch.optim.Adam.step = clocked
    from voidzoo.trainers import training

    training.fit = fitted  # type: ignore[attr-defined]
    validate = loop.validate

    def between(*values: Any) -> float:
        ends.append([])
        counting[0] = False
        loss = validate(*values)
        counting[0] = True
        return loss

    loop.validate = between
    seconds: dict[str, list[float]] = {"masking": [], "sampling": []}
    denoisers.hide = _timed(denoisers.hide, seconds["masking"], counting)
    patches.Patches.batch = _timed(patches.Patches.batch, seconds["sampling"], counting)  # type: ignore[method-assign]
    pool.Pool.batch = _timed(pool.Pool.batch, seconds["sampling"], counting)  # type: ignore[method-assign]
    code = command(["train", "n2v", image, "-o", out, "--quiet", *words])
    if code:
        raise SystemExit(code)
    ends = [e for e in ends if e]
    steps = sum(map(len, ends))
    return {"ends": ends, **{k: sum(v) / steps for k, v in seconds.items()}}


def _timed(call: Callable[..., Any], seconds: list[float], counting: list[bool]) -> Callable[..., Any]:
    def measured(*values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = call(*values, **named)
        if counting[0]:
            seconds.append(time.perf_counter() - start)
        return found

    return measured


def bare(given: Any) -> dict[str, Any]:
    """Forward, backward and Adam on random numbers."""
    import voidzoo.trainers  # noqa: F401, I001  (before torch: it sets how its threads wait)
    import torch

    from voidzoo.trainers.networks.unet import UNet
    from voidzoo.zoo.memory import kept

    torch.manual_seed(given.seed)
    network = UNet(dims=2, channels_in=1, channels_out=1, depth=2, filters=32).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7)
    batch = torch.randn(given.batch, 1, given.patch, given.patch)
    mixed = torch.autocast("cpu", torch.bfloat16) if given.precision == "bf16" else nullcontext()
    ends = []
    with kept():
        for _ in range(given.steps):
            with mixed:
                loss = (network(batch).float() - batch).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            ends.append(time.time())
    return {"ends": [ends], "sampling": 0.0, "masking": 0.0}


if __name__ == "__main__":
    main()
