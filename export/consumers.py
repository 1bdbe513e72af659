"""Where a package opens, and why not: what each program takes, as one table, and its evaluation on any package.

Measured or read in November 2026, in the versions that CONSUMERS names. `RAN` in a source: seen to happen there; else
read in the program's code.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .facts import TASKS, facts_of

if TYPE_CHECKING:
    from ..zoo.package import Package

CONSUMERS = {
    "core": "bioimageio.core 0.11",
    "ilastik": "ilastik 1.4.2 (tiktorch 26.5)",
    "fiji": "Fiji and Icy (deepImageJ, JDLL 0.6)",
    "qupath": "QuPath (bioimageio extension)",
    "biapy": "BiaPy",
    "careamics": "CAREamics 0.3",
    "onnxruntime": "plain onnxruntime 1.15 and later",
}
"""The programs that are asked about, by the word that `--for` takes."""
Answer = Literal["yes", "with loss", "no"]


class Allowed:
    """Which values of a fact a consumer takes: `test` decides, `words` say it."""

    def __init__(self, test: Callable[[Any], bool], words: str) -> None:
        self.test, self.words = test, words

    def __str__(self) -> str:
        return self.words


def one_of(*values: Any) -> Allowed:
    """Exactly these."""
    return Allowed(lambda value: value in values, " or ".join(map(str, values)))


def at_most(limit: int) -> Allowed:
    """Numbers up to this."""
    return Allowed(lambda value: value <= limit, f"at most {limit}")


def only(*words: str) -> Allowed:
    """A set of nothing but these."""
    return Allowed(lambda value: value <= set(words), "only " + ", ".join(words))


def none_of(*words: str) -> Allowed:
    """A set without any of these."""
    return Allowed(lambda value: not value & set(words), "no " + ", ".join(words))


def any_of(*words: str) -> Allowed:
    """A set with at least one of these."""
    return Allowed(lambda value: bool(value & set(words)), "one of " + ", ".join(words))


@dataclass(frozen=True)
class Rule:
    """Some consumers take a package only where one of its `facts` is `allowed`; else they answer `otherwise`."""

    consumers: tuple[str, ...]
    fact: str
    allowed: Allowed
    otherwise: Answer
    reason: str
    source: str


@dataclass(frozen=True)
class Verdict:
    """Whether a consumer opens a package and gets the right numbers. reasons: the rules that it
    breaks and that made the answer; what would be lost is not told of a package that does not open at all.
    """

    consumer: str
    answer: Answer
    reasons: tuple[Rule, ...]
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "consumer": self.consumer,
            "program": CONSUMERS[self.consumer],
            "answer": self.answer,
            "reasons": [
                {
                    "field": r.fact, "value": _plain(self.facts[r.fact]), "allowed": str(r.allowed),
                    "answer": r.otherwise, "reason": r.reason, "source": r.source,
                }
                for r in self.reasons
            ],
        }  # fmt: skip


def verdicts(package: Package, consumers: Collection[str] = tuple(CONSUMERS)) -> list[Verdict]:
    """What each consumer makes of a package, by TABLE. Weights are read, nothing is run."""
    facts, found = facts_of(package), []
    for consumer in consumers:
        broken = tuple(r for r in TABLE if consumer in r.consumers and not r.allowed.test(facts[r.fact]))
        answers = {r.otherwise for r in broken}
        answer: Answer = "no" if "no" in answers else "with loss" if answers else "yes"
        found.append(Verdict(consumer, answer, tuple(r for r in broken if r.otherwise == answer), facts))
    return found


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


PER_TILE = ("zero_mean_unit_variance", "scale_range", "scale_range by another tensor", "scale_mean_variance")
"""Processing steps that measure the image, or what they are shown of it."""
MODEL_V05 = "JDLL ModelDescriptorV05.java"
TIKTORCH = "ilastik bioimageiodl.py, tiktorch process.py"
CORE_OLD = "bioimageio.core#405, #415"
PROCESSING = "JDLL Processing.java, RAN against numpy"
QUPATH = "qupath-bioimageio-spec Model.java"
QUPATH_TOOLS = "QuPath BioimageIoTools.java"
BIAPY = "BiaPy check_bmz_model_compatibility"
BIAPY_STEPS = (
    "zero_mean_unit_variance", "fixed_zero_mean_unit_variance of one number",
    "fixed_zero_mean_unit_variance a channel", "scale_range", "scale_linear of one number", "scale_linear a channel",
)  # fmt: skip

TABLE = (
    Rule(("core",), "format", one_of("0.4", "0.5"), "no",
         "format 0.3 is not read: 'Missing field type'", "bioimageio.core 0.11.0, RAN"),
    Rule(("core",), "format", one_of("0.3", "0.5"), "with loss",
         "models in format 0.4 cannot be run tile by tile: the whole image must fit into memory", CORE_OLD),
    Rule(("ilastik", "fiji", "qupath"), "covers and documentation", one_of("strings"), "no",
         "from format 0.5.11 on they are maps with a sha256, which it cannot read",
         "tiktorch 26.5.0, JDLL ModelDescriptor.java:216, QuPath Model.parse, RAN"),
    Rule(("ilastik",), "format", one_of("0.4", "0.5"), "no", "format 0.3 is not read", TIKTORCH),
    Rule(("ilastik",), "fixed output with halo", one_of(False), "no",
         "an output of fixed size with a halo cannot be brought into format 0.5", "bioimageio.spec 0.5.9, RAN"),
    Rule(("ilastik",), "inputs", one_of(1), "no", "it asserts one input", TIKTORCH),
    Rule(("ilastik",), "outputs", one_of(1), "no", "it asserts one output", TIKTORCH),
    Rule(("ilastik",), "axes", only(*"btczyx"), "no", "it knows batch, time, channel and space axes", TIKTORCH),
    Rule(("ilastik",), "axes of the output", one_of("in the input's order"), "no",
         "it takes the output's axes for the input's", "lazyflow tiktorch/operators.py"),
    Rule(("ilastik",), "output has channels", one_of(True), "no",
         "the output needs a channel axis", "lazyflow tiktorch/operators.py"),
    Rule(("ilastik", "fiji", "qupath", "biapy"), "sizes", none_of("known after the run"), "no",
         "sizes that are only known after the run", f"{TIKTORCH}; JDLL AxisSize.java; QuPath Axes.java; {BIAPY}"),
    Rule(("core", "ilastik", "biapy"), "weights as described", one_of(True), "no",
         "a weights file is missing, or not the one whose sha256 the description tells", "bioimageio.spec"),
    Rule(("core", "biapy"), "library of the network", one_of("none"), "with loss",
         "only where the library is installed that its network comes from", "bioimageio.core model_adapters"),
    Rule(("ilastik",), "library of the network", one_of("none"), "no",
         "its network comes from a library that ilastik does not have", "tiktorch setup.py"),
    Rule(("ilastik",), "weights", any_of("torchscript", "pytorch_state_dict", "onnx"), "no",
         "none of its weights run there", TIKTORCH),
    Rule(("ilastik",), "weights", any_of("torchscript", "pytorch_state_dict"), "with loss",
         "fetched through its window, ONNX weights are dropped; the backend alone runs them",
         "ilastik bioimageiodl.py; tiktorch, RAN"),
    Rule(("ilastik", "qupath"), "operations", none_of(*PER_TILE), "with loss",
         "the image is measured tile by tile there, so that tiles may not fit together",
         "tiktorch process.py; QuPath BioimageIoTools.java"),
    Rule(("fiji",), "format", one_of("0.4", "0.5"), "no", "format 0.3 is not read", "JDLL ModelDescriptorFactory.java"),
    Rule(("fiji",), "identity", one_of("id", "nickname", "none"), "no",
         "a package with a config, but without an id or config.bioimageio.nickname, ends in a NullPointerException",
         f"{MODEL_V05}, RAN; JDLL#53"),
    Rule(("fiji",), "description", one_of("rdf.yaml"), "no",
         "the description must be called rdf.yaml", "JDLL Constants.java"),
    Rule(("fiji",), "space axes without id", one_of(False), "no", "every space axis needs an id", "JDLL AxisV05.java"),
    Rule(("fiji",), "inputs", one_of(1), "no", "the plugin runs models with one input", "DeepImageJ_Run.java:247"),
    Rule(("fiji",), "weights for Fiji", any_of("onnx", "torchscript", "tensorflow_saved_model_bundle"), "no",
         "no engine: it needs ONNX of opset 6 to 18, TorchScript or TensorFlow", "JDLL availableDLVersions.json, RAN"),
    Rule(("fiji",), "weights for Fiji", any_of("onnx", "tensorflow_saved_model_bundle"), "with loss",
         "its newest libtorch is 2.0 (2.7 where installed by hand); newer TorchScript may not load",
         "JDLL supportedVersions.json"),
    Rule(("fiji",), "operations", none_of("fixed_zero_mean_unit_variance a channel"), "no",
         "per-channel fixed_zero_mean_unit_variance ends in an ArrayIndexOutOfBoundsException", PROCESSING),
    Rule(("fiji",), "operations", none_of("scale_linear a channel"), "no",
         "per-channel scale_linear is silently wrong: all channels take the first one's gain", PROCESSING),
    Rule(("fiji",), "operations", none_of("scale_range by another tensor"), "no",
         "scale_range with a reference_tensor is silently wrong", PROCESSING),
    Rule(("fiji",), "operations", none_of("clip at one end"), "no", "clip needs min and max", PROCESSING),
    Rule(("fiji",), "operations", none_of("softmax", "scale_mean_variance", "custom", "stardist_postprocessing",
                                          "cellpose_flow_dynamics"), "no",
         "a step for which it has no class", PROCESSING),
    Rule(("qupath",), "authors", one_of(True), "no", "a package without authors is refused", f"{QUPATH}, RAN"),
    Rule(("qupath",), "description", one_of("rdf.yaml", "model.yaml"), "no",
         "the description must be called rdf.yaml or model.yaml", QUPATH),
    Rule(("qupath",), "inputs", one_of(1), "no", "models with one input", "BioimageIoCommand.java"),
    Rule(("qupath",), "outputs", one_of(1), "no", "models with one output", "BioimageIoCommand.java"),
    Rule(("qupath",), "space axes", at_most(2), "no", "only planes are segmented there", "BioimageIoCommand.java"),
    Rule(("qupath",), "space axes without id", one_of(False), "no",
         "sizes by reference need the id of their axis", "qupath-bioimageio-spec Axes.java"),
    Rule(("qupath",), "operations", none_of("scale_linear of one number"), "no",
         "scale_linear of one number cannot be parsed (lists are expected)", f"{QUPATH}, RAN"),
    Rule(("qupath",), "operations",
         none_of("fixed_zero_mean_unit_variance of one number", "fixed_zero_mean_unit_variance a channel", "softmax",
                 "scale_mean_variance", "scale_range by another tensor", "custom", "stardist_postprocessing",
                 "cellpose_flow_dynamics"), "no",
         "a step that it skips with a line in the log: the numbers are wrong", QUPATH_TOOLS),
    Rule(("qupath",), "weights", any_of("torchscript", "tensorflow_saved_model_bundle", "onnx"), "no",
         "none of its weights run there", QUPATH_TOOLS),
    Rule(("qupath",), "weights", any_of("torchscript", "tensorflow_saved_model_bundle"), "with loss",
         "ONNX weights run there only where its deep-learning engine was built with them", QUPATH_TOOLS),
    Rule(("biapy",), "format", one_of("0.4", "0.5"), "no", "format 0.3 is not read", BIAPY),
    Rule(("biapy",), "state dict", one_of("with kwargs"), "no",
         "it loads state dicts alone, and builds the architecture from its kwargs", BIAPY),
    Rule(("biapy",), "inputs", one_of(1), "no", "models with one input", BIAPY),
    Rule(("biapy",), "layouts", only("bcyx", "bczyx"), "no",
         "axes must be batch, channel, [z], y, x", BIAPY),
    Rule(("biapy",), "preprocessing steps", at_most(1), "no",
         "it takes one preprocessing step at most", BIAPY),
    Rule(("biapy",), "preprocessing", only(*BIAPY_STEPS), "no",
         "a step before the network that it does not know", BIAPY),
    Rule(("biapy",), "preprocessing", none_of("scale_linear of one number", "scale_linear a channel"), "no",
         "the gain of scale_linear is ignored: the numbers are wrong", BIAPY),
    Rule(("biapy",), "classes", one_of("told", "not asked for"), "no",
         "semantic segmentation needs out_channels or n_classes among the kwargs of its network", BIAPY),
    Rule(("biapy",), "tags", any_of(*TASKS), "no",
         "no tag names a task that it knows", BIAPY),
    Rule(("careamics",), "attachments", any_of("careamics.yaml"), "no",
         "it opens its own packages alone: careamics.yaml is missing", "CAREamics model_description.py"),
    Rule(("onnxruntime",), "weights", any_of("onnx"), "no", "there are no ONNX weights", "onnxruntime"),
    Rule(("core", "onnxruntime"), "ONNX file", one_of("readable"), "no", "the ONNX file cannot be read", "onnx"),
    Rule(("onnxruntime",), "IR version", at_most(9), "with loss",
         "IR 10 needs onnxruntime 1.18 or later", "onnxruntime 1.15.1, 1.16.3, RAN"),
    Rule(("onnxruntime",), "operations", only(), "with loss",
         "processing steps lie outside of the ONNX graph: whoever runs it must do them by hand", "onnxruntime"),
)  # fmt: skip
"""Consumer, field, what is allowed, what follows else, why, and where that was seen."""
