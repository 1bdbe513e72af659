"""A description in format 0.5 is read in full, what bioimageio.spec takes is taken, and what cannot be is said."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptions import JUNK, Rdf, axis, channels, free, like, mangled, model, nodes, tried
from voidzoo.zoo.errors import DependencyError, PackageError
from voidzoo.zoo.package import AxisRule, Package, SizeOf, Step, TensorAxis, Weights
from voidzoo.zoo.rdf import read_package


def read(rdf: Rdf) -> Package:
    return read_package("p", rdf)


def test_every_word_about_axes_is_read() -> None:
    """Sizes of each kind, scales, halos, units, names; ids that the format lets go are filled in, letters are told."""
    inputs: list[Rdf] = [
        {"id": "raw", "axes": [axis("batch", size=1), axis("time", size=free(1, 1), unit="minute", scale=2),
                               channels("a", "b"), axis("space", "z", 16, unit="nanometer", scale=500),
                               axis("space", "y", free(), unit="micrometer", scale=0.25), axis("space", size=like("y"),
                               unit="micrometer", scale=0.5)],
         "data": [{"type": "uint16"}, {"values": [0, 1], "type": "uint16"}], "test_tensor": {"source": "a.npy"}},
        {"id": "more", "axes": [axis("index", size=3), axis("channel", "c", channel_names=["k"])], "optional": True,
         "data": {"values": ["dead", "alive"]}, "test_tensor": "b.npy"},
    ]  # fmt: skip
    outputs = [{"axes": [axis("batch"), axis("index", "i", {"min": 1, "max": 99}), channels("p"),
                         axis("space", "height", like("y", offset=-4), scale=0.5, halo=3, unit="micrometer"),
                         axis("space", "width", 32)]}]  # fmt: skip
    package = read(model(inputs, outputs))
    assert package.inputs[0].axes == (
        TensorAxis("b", "batch", 1),
        TensorAxis("t", "time", scale=2.0, pixel_size=120.0),
        TensorAxis("c", "channel", 2, names=("a", "b")),
        TensorAxis("z", "z", 16, scale=500.0, pixel_size=0.5),
        TensorAxis("y", "y", minimum=64, step=16, scale=0.25, pixel_size=0.25),
        TensorAxis("x", "x", reference=SizeOf("raw", "y"), scale=0.5, pixel_size=0.5),
    )
    assert [(t.id, t.dtype, t.optional, t.test, t.letters) for t in (*package.inputs, *package.outputs)] == [
        ("raw", "uint16", False, "a.npy", "btczyx"),
        ("more", "uint8", True, "b.npy", "ic"),
        ("output", "float32", False, None, "bicyx"),
    ]
    assert package.inputs[1].axes == (TensorAxis("i", "index", 3), TensorAxis("c", "channel", 1, names=("k",)))
    assert package.outputs[0].axes[1:] == (
        TensorAxis("i", "index", data_dependent=True),
        TensorAxis("c", "channel", 1, names=("p",)),
        TensorAxis("y", "height", reference=SizeOf("raw", "y", -4), scale=0.5, halo=3, pixel_size=0.5),
        TensorAxis("x", "width", 32),
    )
    assert package.axes == "tzyx"
    assert package.pixel_size == pytest.approx({"z": 0.5, "y": 0.25, "x": 0.5})
    assert package.rules == {
        "t": AxisRule(1, 1, 0), "z": AxisRule(16, 1, 0, fixed=True), "y": AxisRule(64, 16, 6), "x": AxisRule(32, 8, 0),
    }  # fmt: skip


@pytest.mark.parametrize(("unit", "um"), [("meter", 1e6), ("millimeter", 1e3), ("angstrom", 1e-4), ("inch", 25400.0)])
def test_units_of_space_are_micrometres(unit: str, um: float) -> None:
    rdf = model()
    for t in (rdf["inputs"][0], rdf["outputs"][0]):
        t["axes"][3].update(unit=unit, scale=3)
    assert read(rdf).pixel_size == {"x": pytest.approx(3 * um)}
    rdf["config"] = {"voidzoo": {"training": {"pixel_size": {"y": 0.5, "x": None}}}}
    assert read(rdf).pixel_size == {"y": 0.5}  # what the training saw goes before


def test_the_halo_of_the_main_input_is_the_largest_in_its_pixels() -> None:
    """Halo 5 of an output of half size is 10 input pixels, of a doubled one 2.5, rounded up; the largest counts."""

    def out(name: str, scale: float, halo: int) -> Rdf:
        return {"id": name, "axes": [axis("batch"), channels("p"), axis("space", "y", like("y"), scale=scale, halo=halo),
                                     axis("space", "x", like("x"), scale=scale)]}  # fmt: skip

    def halo(*outputs: Rdf) -> int:
        return read(model(outputs=list(outputs))).rules["y"].halo

    assert halo(out("half", 2.0, 5)) == 10
    assert halo(out("double", 0.5, 5)) == 3
    assert halo(out("half", 2.0, 5), out("same", 1.0, 11), out("double", 0.5, 20)) == 11
    fixed = model()
    for t, sizes in ((fixed["inputs"][0], (64, 64)), (fixed["outputs"][0], (128, 64))):
        t["axes"][2]["size"], t["axes"][3]["size"] = sizes
    assert read(fixed).rules == {"y": AxisRule(64, 1, 4, fixed=True), "x": AxisRule(64, 1, 8, fixed=True)}


def test_the_main_input_is_the_image() -> None:
    """Not a vector, not one that may be left out, not one that follows another, wherever they stand."""
    plane = [axis("batch"), axis("space", "y", free()), axis("space", "x", free())]
    follows = [axis("batch"), axis("space", "y", like("y"), scale=2), axis("space", "x", like("x"), scale=2)]
    vector: Rdf = {"id": "vector", "axes": [axis("batch"), channels("a", "b")]}
    raw: Rdf = {"id": "raw", "axes": plane}
    hint: Rdf = {"id": "hint", "axes": plane, "optional": True}
    coarse: Rdf = {"id": "coarse", "axes": follows}
    for order in ([vector, hint, coarse, raw], [raw, vector, coarse, hint], [coarse, raw]):
        assert read(model(order)).main.id == "raw"
        assert read(model(order)).channels_in == ("raw",)
    outputs = [{"axes": [axis("batch"), axis("space", "y", 8), axis("space", "x", 8)]}]
    with pytest.raises(PackageError, match=r"the axes batch, channel; models of images, with y and x, can be run"):
        read(model([vector], outputs))


NOT_PLAIN: dict[str, Callable[[Rdf, Rdf, Rdf], Any]] = {
    "two outputs": lambda r, i, o: r["outputs"].append({**copy.deepcopy(o), "id": "second"}),
    "fixed size": lambda r, i, o: i["axes"][3].update(size=64),
    "fixed batch": lambda r, i, o: i["axes"][0].update(size=1),
    "scale": lambda r, i, o: o["axes"][2].update(scale=0.5),
    "offset": lambda r, i, o: o["axes"][2]["size"].update(offset=-2),
    "crossed axes": lambda r, i, o: o["axes"][2].update(size=like("x")),
    "order": lambda r, i, o: [t["axes"].append(t["axes"].pop(1)) for t in (i, o)],
    "no channels out": lambda r, i, o: o["axes"].pop(1),
    "processing": lambda r, i, o: o.update(postprocessing=[{"id": "sigmoid"}]),
    "dtype in": lambda r, i, o: i.update(data={"type": "uint8"}),
    "dtype out": lambda r, i, o: o.update(data={"type": "float64"}),
    "time": lambda r, i, o: [i["axes"].insert(2, axis("time", size=free(4, 1))),
                             o["axes"].insert(2, axis("time", size=like("time")))],
}  # fmt: skip


@pytest.mark.parametrize("change", NOT_PLAIN)
def test_plain_is_what_one_array_in_one_array_out_can_run(change: str) -> None:
    """A float32 (b, c, [z], y, x) network of equal sizes is plain, casts to float32 included; anything else is not."""
    rdf = model()
    assert read(rdf).plain
    cast = [{"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]
    rdf["inputs"][0]["preprocessing"] = rdf["outputs"][0]["postprocessing"] = cast
    assert read(rdf).plain
    NOT_PLAIN[change](rdf, rdf["inputs"][0], rdf["outputs"][0])
    assert not read(rdf).plain


def test_processing_is_kept_in_the_words_of_the_format() -> None:
    """Every step with its settings, letters as axis ids; a custom one with its source."""
    rdf = model()
    rdf["inputs"][0]["preprocessing"] = [
        {"id": "zero_mean_unit_variance", "kwargs": {"axes": ["c", "y", "x"], "eps": 1e-3}},
        {"id": "scale_linear", "kwargs": {"axis": "c", "gain": [2.0]}},
        {"id": "clip", "kwargs": {"min": 0.0, "max": None}},
    ]
    custom = {"id": "custom", "callable": "f", "source": "f.py", "sha256": "1" * 64, "kwargs": {"axes": "mine"}}
    rdf["outputs"][0]["postprocessing"] = [
        {"id": "sigmoid"}, {"id": "scale_mean_variance", "kwargs": {"reference_tensor": "raw"}}, custom,
    ]  # fmt: skip
    package = read(rdf)
    assert package.inputs[0].steps == (
        Step("zero_mean_unit_variance", {"axes": ["channel", "y", "x"], "eps": 1e-3}),
        Step("scale_linear", {"axis": "channel", "gain": [2.0]}),
        Step("clip", {"min": 0.0}),
    )
    assert package.outputs[0].steps == (
        Step("sigmoid"), Step("scale_mean_variance", {"reference_tensor": "raw"}),
        Step("custom", {"callable": "f", "source": "f.py", "sha256": "1" * 64, "kwargs": {"axes": "mine"}}),
    )  # fmt: skip


def test_later_patches_and_both_ways_to_name_files_are_read() -> None:
    """0.5.11 turned names of files into maps; what comes after 0.5.12 is read by the same rules."""
    maps: Rdf = {"covers": [{"source": "c.png", "sha256": "0" * 64}], "documentation": {"source": "README.md"}}
    one, two = read(model(covers=["c.png"])), read(model(format_version="0.5.27", **maps, something_new=[1, 2]))
    assert two.format == "0.5.27"
    assert two.rdf["something_new"] == [1, 2]
    assert (one.inputs, one.outputs, one.weights) == (two.inputs, two.outputs, two.weights)


def test_weights_are_chosen_by_what_can_be_run() -> None:
    """ONNX, else TorchScript where torch is there, else a state dict for who trusts the code, else what is offered."""
    onnx = {"source": "a.onnx", "sha256": "0" * 64, "opset_version": 17}
    script = {"source": "a.pt", "sha256": "1" * 64, "pytorch_version": "2.4"}
    state = {"source": "b.pt", "sha256": "2" * 64, "architecture": {"callable": "Net", "source": "net.py"}}
    bundle = {"source": "tf.zip", "sha256": "3" * 64}

    def package(**weights: Any) -> Package:
        return read(model(weights=weights))

    every = package(tensorflow_saved_model_bundle=bundle, pytorch_state_dict=state, torchscript=script, onnx=onnx)
    assert every.chosen_weights(torch=False) == Weights("onnx", "a.onnx", "0" * 64, {"opset_version": 17})
    assert [w.kind for w in every.weights] == ["onnx", "torchscript", "pytorch_state_dict"]
    assert every.other_weights == ("tensorflow_saved_model_bundle",)
    scripted = package(torchscript=script, pytorch_state_dict=state)
    assert scripted.chosen_weights(torch=True).kind == "torchscript"
    assert scripted.chosen_weights() == scripted.chosen_weights(torch=True)  # torch is installed here
    assert scripted.sha256 == "1" * 64
    with pytest.raises(DependencyError, match=r"torchscript weights need torch(.|\n)*pip install torch"):
        scripted.chosen_weights(torch=False)
    with pytest.raises(PackageError, match=r"no ONNX weights; it offers: torchscript, pytorch_state_dict\."):
        scripted.onnx()
    stated = package(pytorch_state_dict=state)
    with pytest.raises(PackageError, match=r"runs Python code of the package(.|\n)*--trust-code"):
        stated.chosen_weights(torch=True)
    assert stated.chosen_weights(trust_code=True, torch=True).options["architecture"]["callable"] == "Net"
    with pytest.raises(DependencyError, match="pytorch_state_dict weights need torch"):
        stated.chosen_weights(trust_code=True, torch=False)
    other = package(tensorflow_saved_model_bundle=bundle, keras_hdf5=bundle, onnx=None)
    for refused in (other.chosen_weights, other.onnx, lambda: other.sha256):
        with pytest.raises(
            PackageError,
            match=r"this model has no ONNX weights; it offers: tensorflow_saved_model_bundle, keras_hdf5\.",
        ):
            refused()


WRONG: dict[str, tuple[Callable[[Rdf, Rdf, Rdf], Any], str]] = {
    "unknown kind of axis": (lambda r, i, o: i["axes"][2].update(type="angle"), r"inputs\[0\]\.axes\[2\]\.type is 'angle'"),
    "unknown space axis": (lambda r, i, o: i["axes"][2].update(id="v"), r"space axis with the id 'v'; x, y and z"),
    "an axis twice": (lambda r, i, o: i["axes"][2].update(id="width"), r"inputs\[0\]\.axes have 'x' twice"),
    "a tensor twice": (lambda r, i, o: o.update(id="raw"), r"inputs and outputs have 'raw' twice"),
    "size as text": (lambda r, i, o: i["axes"][2].update(size="64"), r"axes\[2\]\.size is '64'; a whole number"),
    "half a pixel": (lambda r, i, o: i["axes"][2].update(size=64.5), r"axes\[2\]\.size is 64\.5; a whole number"),
    "true pixels": (lambda r, i, o: i["axes"][2].update(size=True), r"axes\[2\]\.size is True; a whole number"),
    "size 0": (lambda r, i, o: i["axes"][2].update(size=0), r"size 0, halo 0 along raw\.y cannot be"),
    "batch of 4": (lambda r, i, o: i["axes"][0].update(size=4), r"axes\[0\]\.size is 4; a batch has the size 1 or any"),
    "negative halo": (lambda r, i, o: o["axes"][2].update(halo=-1), r"halo -1 along out\.y cannot be"),
    "scale 0": (lambda r, i, o: o["axes"][2].update(scale=0), r"outputs\[0\]\.axes\[2\]\.scale is 0\.0; a positive"),
    "no size": (lambda r, i, o: i["axes"][2].pop("size"), r"KeyError: 'size'"),
    "size of words": (lambda r, i, o: i["axes"][2].update(size={"max": 3, "any": 2}), r"min and step, or tensor_id"),
    "loose input": (lambda r, i, o: i["axes"][2].update(size={"min": 3}), r"the size of raw\.y has no step"),
    "free output": (lambda r, i, o: o["axes"][2].update(size=free()), r"size of out\.y has min and step"),
    "unknown reference": (lambda r, i, o: o["axes"][2].update(size=like("y", "row")), r"KeyError: 'row\.y'"),
    "chain": (lambda r, i, o: i["axes"][2].update(size=like("x")) or i["axes"][3].update(size=like("y")),
              r"size of raw\.y refers to raw\.x, whose size is not given by itself"),
    "itself": (lambda r, i, o: i["axes"][2].update(size=like("y")), r"size of raw\.y refers to raw\.y"),
    "backwards": (lambda r, i, o: (o["axes"][2].update(size=9), i["axes"][2].update(size=like("y", "out"))),
                  r"size of raw\.y refers to an output"),
    "batch reference": (lambda r, i, o: o["axes"][2].update(size=like("batch")), r"not given by itself"),
    "other unit": (lambda r, i, o: (i["axes"][2].update(unit="micrometer"), o["axes"][2].update(unit="nanometer")),
                   r"out\.y and raw\.y have different units"),
    "unknown unit": (lambda r, i, o: i["axes"][2].update(unit="micrometr"), r"'micrometr' \(did you mean micrometer\?\)"),
    "no channels": (lambda r, i, o: i["axes"][1].update(channel_names=[]), r"channel_names is empty"),
    "numbered channels": (lambda r, i, o: i["axes"][1].update(channel_names=[1]), r"channel_names is 1; a str"),
    "dtype": (lambda r, i, o: i.update(data={"type": "float16"}), r"inputs\[0\]\.data has the type float16; one of"),
    "unknown step": (lambda r, i, o: i.update(preprocessing=[{"id": "zero_mean_unit_varianz"}]),
                     r"preprocessing\[0\]\.id is 'zero_mean_unit_varianz' \(did you mean zero_mean_unit_variance\?\)"),
    "unknown setting": (lambda r, i, o: o.update(postprocessing=[{"id": "softmax", "kwargs": {"axes": ["y"]}}]),
                        r"kwargs has 'axes' \(did you mean axis\?\)"),
    "unknown axis of a step": (lambda r, i, o: o.update(postprocessing=[{"id": "softmax", "kwargs": {"axis": "z"}}]),
                               r"softmax of out names the axis z"),
    "output as reference": (
        lambda r, i, o: i.update(preprocessing=[{"id": "scale_range", "kwargs": {"reference_tensor": "out"}}]),
        r"scale_range of raw refers to 'out', which is no input",
    ),
    "weights as text": (lambda r, i, o: r.update(weights={"onnx": "weights.onnx"}), r"weights\.onnx is 'weights\.onnx'"),
    "weights without source": (lambda r, i, o: r["weights"]["onnx"].pop("source"), r"KeyError: 'source'"),
    "optional as text": (lambda r, i, o: i.update(optional="no"), r"inputs\[0\]\.optional is 'no'; a bool"),
}  # fmt: skip


@pytest.mark.parametrize("change", WRONG)
def test_what_cannot_be_is_said_with_its_place(change: str) -> None:
    """A wrong type, size, name or reference is one PackageError that names the field and what it holds."""
    rdf = model()
    WRONG[change][0](rdf, rdf["inputs"][0], rdf["outputs"][0])
    with pytest.raises(PackageError, match=WRONG[change][1]) as caught:
        read(rdf)
    assert "\n" not in caught.value.what


def rich() -> Rdf:
    """A description in which much can be wrong."""
    rdf = model()
    rdf["inputs"][0] |= {"preprocessing": [{"id": "scale_range", "kwargs": {"axes": ["y", "x"], "max_percentile": 99.0}}],
                         "data": {"type": "uint16"}, "test_tensor": {"source": "t.npy", "sha256": "0" * 64}}  # fmt: skip
    rdf["inputs"].append({"id": "more", "optional": True, "axes": [axis("batch"), axis("index", size=3)]})
    rdf["outputs"][0]["axes"][3].update(scale=0.5, size=like("x", offset=4))
    rdf["outputs"][0]["postprocessing"] = [{"id": "softmax", "kwargs": {"axis": "channel"}}]
    return rdf


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_spoilt_description_is_read_or_refused_in_words(data: st.DataObject) -> None:
    """Any part missing or replaced by junk: a package that knows its rules, or a PackageError; never anything else."""
    rdf = rich()
    for _ in range(data.draw(st.integers(1, 3))):
        rdf = mangled(rdf, data.draw(st.sampled_from(nodes(rdf))), data.draw(JUNK), drop=data.draw(st.booleans()))
    package = tried(read, rdf)
    if isinstance(package, PackageError):
        assert "\n" not in package.what
        return
    assert repr(package).startswith("Package(")
    assert set(package.rules) == set(package.axes)
    assert isinstance(package.plain, bool)


# in a process of its own: bioimageio.spec leaves files open, which would be a warning here
VALID = """
import json, sys
from bioimageio.spec import ValidationContext
from bioimageio.spec.model import v0_5
from pydantic import ValidationError
found = []
with ValidationContext(perform_io_checks=False):
    for rdf in json.load(sys.stdin):
        try:
            v0_5.ModelDescr.model_validate(rdf)
            found.append("valid")
        except ValidationError as error:
            found.append(str(error))
print(json.dumps(found))
"""


def test_what_bioimageio_spec_takes_is_taken() -> None:
    """Descriptions spoilt at random: of those that bioimageio.spec still takes none is refused here."""
    rng = np.random.default_rng()
    base = rich()
    paths = [p for p in nodes(base) if p[0] in ("inputs", "outputs", "weights", "config")]
    junk = [None, 0, 1, 7, 2.5, "y", "raw", "channel", [], ["x"], {"min": 1}, {"min": 9, "step": 1}, like("x"), False]
    rdfs = [base]
    for _ in range(400):
        path, value = paths[rng.integers(len(paths))], junk[rng.integers(len(junk))]
        rdfs.append(mangled(base, path, value, drop=bool(rng.integers(2))))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", VALID], input=json.dumps(rdfs), capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout.splitlines()[-1])
    taken = [rdf for rdf, verdict in zip(rdfs, verdicts, strict=True) if verdict == "valid"]
    assert verdicts[0] == "valid"
    assert len(taken) > 30
    # the direction of a space axis must be known here, weights whole, words for yes are none, a step would fail later
    known = r"x, y and z are known|'[yx]' twice|with y and x|gives no sha256|softmax of out names|optional is"
    for rdf in taken:
        package = tried(read, rdf)
        assert isinstance(package, Package) or re.search(known, str(package)), package


def test_a_package_travels_to_other_processes() -> None:
    """What is sent to workers is a copy that equals the package, whatever was looked up before."""
    package = read(rich())
    assert package.rules
    assert package.main is package.inputs[0]
    again = pickle.loads(pickle.dumps(package))
    assert (again, again.rules) == (package, package.rules)
    assert replace(package, name="other").rules == package.rules


def test_reading_imports_nothing_heavy() -> None:
    """Formats 0.5 and 0.4 are read without numpy, onnx, torch or bioimageio."""
    old = {"format_version": "0.4.9", "type": "model", "name": "old", "weights": {"onnx": {"source": "w.onnx"}},
           "inputs": [{"name": "raw", "axes": "byx", "shape": [1, 8, 8]}],
           "outputs": [{"name": "out", "axes": "byx", "shape": [1, 8, 8]}]}  # fmt: skip
    code = (
        "import json, sys; from voidzoo.zoo.rdf import read_package\n"
        "for rdf in json.load(sys.stdin): assert read_package('p', rdf).chosen_weights().kind == 'onnx'\n"
        "print('loaded', *sorted({'numpy', 'onnx', 'onnxruntime', 'torch', 'bioimageio', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps([model(), old]), capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["loaded"], "")
