"""ONNX weights in two files are one model again, and what does not fit is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper

from tests.descriptions import model
from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.package import open_package


def split_model(folder: Path, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Write y = x * gain + offset with both in `weights.data` and a package around it; gain and offset."""
    gain, offset = (rng.standard_normal((1, 3, 1, 1)).astype(np.float32) for _ in range(2))
    sizes = [None, 3, None, None]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "gain"], ["scaled"]), helper.make_node("Add", ["scaled", "offset"], ["y"])],
        "affine",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(gain, "gain"), numpy_helper.from_array(offset, "offset")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(
        proto, folder / "weights.onnx", save_as_external_data=True, location="weights.data", size_threshold=0
    )
    files = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in ("weights.onnx", "weights.data")}
    external = {"source": "weights.data", "sha256": files["weights.data"]}
    rdf = model(
        weights={"onnx": {"source": "weights.onnx", "sha256": files["weights.onnx"], "external_data": external}}
    )
    (folder / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    return gain, offset


def test_weights_in_two_files_are_one_model(tmp_path: Path) -> None:
    """What `onnx()` returns runs by itself, from memory, and computes what the two files do."""
    rng = np.random.default_rng()
    gain, offset = split_model(tmp_path, rng)
    with pytest.raises(Exception, match=r"weights\.data|[Ee]xternal"):
        ort.InferenceSession((tmp_path / "weights.onnx").read_bytes(), providers=["CPUExecutionProvider"])
    session = ort.InferenceSession(open_package(tmp_path).onnx(), providers=["CPUExecutionProvider"])
    x = rng.standard_normal((1, 3, 5, 4)).astype(np.float32)
    assert np.allclose(session.run(None, {"x": x})[0], x * gain + offset, atol=1e-6)


def test_a_second_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Changed: by its sha256. Too short, although it is what the description says: by the tensor that it cuts."""
    split_model(tmp_path, np.random.default_rng())
    data = (tmp_path / "weights.data").read_bytes()
    (tmp_path / "weights.data").write_bytes(data[:-4])
    with pytest.raises(PackageError, match=r"weights\.data has sha256"):
        open_package(tmp_path).onnx()
    rdf = yaml.safe_load((tmp_path / "rdf.yaml").read_text())
    rdf["weights"]["onnx"]["external_data"].pop("sha256")
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    with pytest.raises(
        PackageError, match=rf"weights\.data has {len(data) - 4:,} bytes; the tensor \w+ ends at {len(data):,}"
    ):
        open_package(tmp_path).onnx()
    (tmp_path / "weights.onnx").write_bytes(b"no model")
    rdf["weights"]["onnx"]["sha256"] = hashlib.sha256(b"no model").hexdigest()
    (tmp_path / "rdf.yaml").write_text(yaml.safe_dump(rdf))
    with pytest.raises(PackageError, match=r"cannot be joined with weights\.data"):
        open_package(tmp_path).onnx()
