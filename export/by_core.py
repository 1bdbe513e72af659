"""What bioimageio.core makes of tensors with a package: the oracle of what is converted."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..zoo.errors import PackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCRIPT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
from loguru import logger
logger.remove()
from bioimageio.core import create_prediction_pipeline
from bioimageio.core.digest_spec import create_sample_for_model, get_member_ids
from bioimageio.spec import load_model_description
path, folder, weights, count = json.loads(sys.argv[1])
model = load_model_description(path, perform_io_checks=False)
(member,) = get_member_ids(model.inputs)
with create_prediction_pipeline(model, weight_format=weights) as pipeline:
    for i in range(count):
        sample = create_sample_for_model(model, inputs={member: np.load(f"{folder}/in{i}.npy")}, sample_id=str(i))
        found = pipeline.predict_sample_without_blocking(sample, skip_input_padding=True, skip_output_cropping=True)
        (values,) = (t.data.values for t in found.members.values())
        np.save(f"{folder}/out{i}.npy", values)
"""


def by_core(path: str | Path, tensors: Sequence[NDArray[Any]], weights: str) -> list[NDArray[Any]]:
    """Tensors in the axes of the package -> its outputs, processing included. One input, one output.

    weights: the kind that runs, so that no other code of the package does. In a process of its own: bioimageio leaves
    files open. Raises PackageError with the last line of what it said, where it cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        for i, x in enumerate(tensors):
            np.save(Path(folder) / f"in{i}.npy", x)
        job = json.dumps([str(path), folder, weights, len(tensors)])
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", SCRIPT, job], capture_output=True, text=True, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise PackageError(f"bioimageio.core cannot run {path}.", where=last[:300])
        return [np.load(Path(folder) / f"out{i}.npy") for i in range(len(tensors))]
