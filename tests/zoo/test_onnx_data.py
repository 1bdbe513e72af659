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
from tests.model_zoo import MODELS
from tests.packages import make_package
from voidzoo.zoo.errors import PackageError
from voidzoo.zoo.onnx_growth import values_a_voxel
from voidzoo.zoo.onnx_wire import contents
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


@pytest.mark.parametrize(
    "name", ["pooled", "anisotropic", "two_outputs", "doubled", "squeeze_excitation", "without_padding"]
)
def test_the_bytes_of_a_file_say_what_onnx_says(name: str, tmp_path: Path) -> None:
    """Operators, constants and their shapes, read without onnx, are those that onnx reads; numbers of scales too."""
    data = (MODELS[name](tmp_path).path / "weights.onnx").read_bytes()
    found, read = contents(data), onnx.load_model_from_string(data).graph
    assert found.operators == {(n.domain, n.op_type) for n in read.node}
    assert found.nodes == len(read.node)
    for tensor in read.initializer:
        values = numpy_helper.to_array(tensor)
        assert found.constants[tensor.name].dims == list(values.shape)
        if values.dtype == np.float32 and values.size <= 8:
            assert np.array_equal(found.constants[tensor.name].values, values.ravel())
    assert found.largest == max(numpy_helper.to_array(t).nbytes for t in read.initializer)


@pytest.mark.parametrize("settings", [{"dims": 2}, {"dims": 3}, {"dims": 2, "depth": 3, "channels": 2, "outputs": 3}])
def test_the_bound_of_a_plain_network_holds(settings: dict[str, int], tmp_path: Path) -> None:
    """No tensor of a U-Net, as onnxruntime makes them, is larger than its file's own numbers promise."""
    package = make_package(tmp_path / "p", filters=4, **settings)
    data = package.onnx()
    proto = onnx.load_model_from_string(data)
    names = [o for n in proto.graph.node for o in n.output]
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    shape = (1, len(package.channels_in), *(r.minimum for r in package.rules.values()))
    x = np.random.default_rng().random(shape, np.float32)
    made = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"input": x})
    most = max(y.size for y in made)
    assert most <= values_a_voxel(contents(data)) * x.size <= 1e5 * most


def grown(kind: str, x: list[str], constants: dict[str, np.ndarray], **attributes: object) -> bytes:
    node = helper.make_node(kind, x, ["y"], **attributes)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, None, None]) for n in ("x", "y")]
    stored = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    proto = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:], stored))
    return bytes(proto.SerializeToString())


def test_the_bound_gives_up_where_sizes_are_computed_or_other_axes_grow() -> None:
    """Everything that could make more than the file says is left to shape inference."""
    k = np.random.default_rng().random((1, 1, 5, 1)).astype(np.float32)
    w = np.random.default_rng().random((2, 1, 3, 3)).astype(np.float32)
    for data in (
        grown("Add", ["x", "k"], {"k": k}),
        grown("Conv", ["x", "w"], {"w": w}, pads=[5, 5, 5, 5]),
        grown("Conv", ["w", "x"], {"w": w}),
        grown("Resize", ["x", "", "x"], {}),
        grown("Resize", ["x", "", "k"], {"k": np.float32([1, 1, np.inf, 1])}),
        grown("Tile", ["x", "k"], {"k": np.array([1, 1, 9, 9])}),
        grown("Concat", ["x", "x", "x"], {}, axis=1),
    ):
        assert values_a_voxel(contents(data)) == np.inf
    assert values_a_voxel(contents(grown("Conv", ["x", "w"], {"w": w}, pads=[1, 1, 1, 1]))) == 2
    assert values_a_voxel(contents(grown("Resize", ["x", "", "k"], {"k": np.float32([1, 1, 3, 3])}))) == 9
