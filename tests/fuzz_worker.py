"""`python -m tests.fuzz_worker IMAGE`: all that is done with a package of strangers, for each path that comes on stdin.

Its answer is a line of JSON: how it ended, or the traceback of what is no refusal. Memory is bounded.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

MEMORY = 12 * 2**30
"""Bytes of addresses: what libraries map is 3 GB, tensors of 8 GB are refused before."""


def main(image: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "w")  # what libraries print must not be taken for an answer
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    for library in ("bioimageio.core", "onnx", "onnxruntime", "zarr"):  # paid once
        importlib.import_module(library)

    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(tried(Path(line.rstrip("\n")), image)) + "\n")
        answers.flush()


def tried(path: Path, image: str) -> dict[str, Any]:
    from voidzoo import api
    from voidzoo.export import foreign, source
    from voidzoo.export.card import make_card
    from voidzoo.export.consumers import verdicts
    from voidzoo.export.tensors import test_tensors
    from voidzoo.export.upload import ready
    from voidzoo.opens import opens_text
    from voidzoo.zoo.errors import VoidzooError
    from voidzoo.zoo.package import open_package

    out = path.parent / "out.ome.zarr"

    def predict() -> None:
        made = api.plan(package, image, device="cpu", axes="yx")
        str(made)
        json.dumps(made.to_json())
        api.predict(made, out)

    def described() -> None:
        """What `convert` looks at before it runs anything."""
        words, lost = foreign.words_of_package(package)
        kinds = [w.kind for w in package.weights] or ["none"]
        foreign.readme_of(package, words, foreign.source_of(package, kinds[0], lost))
        foreign.picture_of(package)
        foreign.pictures_of(package)
        source.refuse(package)
        source.split(package.inputs[0])
        source.test_input(package, package.axes)

    ended = []
    try:
        package = open_package(path)
        steps = [
            lambda: opens_text(verdicts(package)), lambda: ready(package), lambda: test_tensors(package), described,
            lambda: make_card(package, [], verdicts(package), "m"), predict,
        ]  # fmt: skip
        for step in steps:
            try:
                step()
                ended.append("done")
            except VoidzooError as error:
                ended.append(refusal(error))
    except VoidzooError as error:
        ended.append(refusal(error))
    except BaseException:
        return {"fault": traceback.format_exc()}
    finally:
        for left in path.parent.glob("out.ome.zarr*"):
            shutil.rmtree(left, ignore_errors=True)
    odd = next((e for e in ended if any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in e.replace("\n", ""))), None)
    return {"ended": ended} if odd is None else {"fault": f"control characters in {odd!r}"}


def refusal(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(sys.argv[1])
