"""Where a package opens: the table's verdicts on descriptions of others, on ours, and on each thing that can be wrong."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
import yaml
from onnx import TensorProto, helper

import voidzoo as vz
from tests.export.tiny import tiny_run
from voidzoo.cli import main as command
from voidzoo.export import proof
from voidzoo.export.consumers import CONSUMERS, TABLE, verdicts
from voidzoo.export.facts import facts_of
from voidzoo.export.proof import Check
from voidzoo.export.upload import ready
from voidzoo.zoo.package import open_package

DATA = Path(__file__).parents[1] / "data" / "models"


def identity(opset: int, ir: int) -> bytes:
    """A graph of one Identity in these versions."""
    sides = ["b", 1, "y", "x"]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, sides) for n in ("input", "output")]
    graph = helper.make_graph([helper.make_node("Identity", ["input"], ["output"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    return bytes(model.SerializeToString())


def written(folder: Path, rdf: dict[str, Any], name: str = "rdf.yaml", onnx_file: bytes | None = None) -> Path:
    """A package folder with this description; its weights are an identity where nothing else is given."""
    folder.mkdir(parents=True, exist_ok=True)
    rdf = copy.deepcopy(rdf)
    for kind, entry in rdf["weights"].items():
        data = b"not read"
        if kind == "onnx":
            data = identity(17, 8) if onnx_file is None else onnx_file
        made = entry.get("architecture")
        if isinstance(made, dict) and "source" in made:
            (folder / made["source"]).write_bytes(b"not read")
            made["sha256"] = hashlib.sha256(b"not read").hexdigest()
        file = Path(entry["source"]).name
        (folder / file).write_bytes(data)
        entry["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / name).write_text(yaml.safe_dump(rdf))
    return folder


def answers(path: Path) -> dict[str, str]:
    return {v.consumer: v.answer for v in verdicts(open_package(path))}


@pytest.mark.parametrize(
    ("name", "file", "versions", "expected"),
    [
        # a nuclei U-Net of others: space axes without id, opset 20, IR 9, zero_mean_unit_variance, sigmoid
        ("nuclei_broad_v05", "rdf.yaml", (20, 9), "yes, with loss, no, no, no, no, with loss"),
        # the same in format 0.4, which ilastik and JDLL do read
        ("nuclei_broad_v049", "rdf.yaml", (20, 9), "with loss, with loss, with loss, with loss, no, no, with loss"),
        # the same in 0.3, which bioimageio.core does not read
        # CAREamics 0.3.5's own export: its network lives in careamics, one state dict, maps for covers, no nickname
        ("careamics_n2v", "rdf.yaml", (17, 8), "with loss, no, no, no, with loss, yes, no"),
        ("nuclei_broad_v03", "UNet2DNucleiBroad.model.yaml", (9, 4), "no, no, no, no, no, no, with loss"),
    ],
)
def test_packages_of_others(name: str, file: str, versions: tuple[int, int], expected: str, tmp_path: Path) -> None:
    """As measured with the programs themselves (bioimageio.core, tiktorch, JDLL's and QuPath's parsers)."""
    rdf = yaml.safe_load((DATA / f"{name}.yaml").read_text())
    path = written(tmp_path / "m", rdf, file, identity(*versions))
    found = verdicts(open_package(path))
    assert ", ".join(v.answer for v in found) == expected
    for verdict in found:
        assert bool(verdict.reasons) == (verdict.answer != "yes")


README = {
    "n2v, n2v2, structn2v, care in 2D": None, "n2v, n2v2 in 3D": None,
    "CAREamics 0.3.5's own export of n2v": ("careamics_n2v", "rdf.yaml", (17, 8)),
    "nuclei U-Net, format 0.5": ("nuclei_broad_v05", "rdf.yaml", (20, 9)),
    "the same, format 0.4": ("nuclei_broad_v049", "rdf.yaml", (20, 9)),
    "the same, format 0.3": ("nuclei_broad_v03", "UNet2DNucleiBroad.model.yaml", (9, 4)),
}  # fmt: skip
"""The rows of the README's table, and the descriptions that they are about; those of ours are shipped."""


def test_the_table_of_the_readme_is_what_check_says(tmp_path: Path) -> None:
    """Every cell: yes, no with the reason, or in other words what is lost."""
    root = Path(__file__).parents[2]
    table = (root / "README.md").read_text(encoding="utf-8").split("| | core 0.11 |")[1].split("\n\n")[0]
    rows = {cells[1]: cells[2:-1] for line in table.splitlines()[2:] if (cells := [c.strip() for c in line.split("|")])}
    assert list(rows) == list(README)
    for number, (row, about) in enumerate(README.items()):
        if about is None:
            models = [vz.open_package(p) for p in (root / "zoo" / "models").glob("*.zip")]
            path = Path(next(m for m in models if ("z" in m.axes) == ("3D" in row)).path)
        else:
            name, file, versions = about
            rdf = yaml.safe_load((DATA / f"{name}.yaml").read_text())
            path = written(tmp_path / str(number), rdf, file, identity(*versions))
        told = [w if (w := re.split(r"[ (]", cell)[0]) in ("yes", "no") else "with loss" for cell in rows[row]]
        told = ["with loss" if cell.startswith("not in tiles") else t for cell, t in zip(rows[row], told, strict=True)]
        assert told == list(answers(path).values()), row


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of ours, 2D."""
    folder = tmp_path_factory.mktemp("ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        vz.export(tiny_run(folder / "run"), folder / "m.zip", authors=["A. B."])
    return folder / "m.zip"


def test_ours_open_everywhere(ours: Path) -> None:
    """But in CAREamics, which opens its own alone."""
    assert answers(ours) == {c: "no" if c == "careamics" else "yes" for c in CONSUMERS}


def first(tensors: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda rdf: rdf[tensors][0]


def step(name: str, **kwargs: Any) -> list[dict[str, Any]]:
    return [{"id": name, "kwargs": kwargs}]


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[str, str], str]] = {
    "maps of 0.5.11": (
        lambda r: r.update(covers=[{"source": "cover.png", "sha256": "0" * 64}]),
        {"ilastik": "no", "fiji": "no", "qupath": "no"}, "maps with a sha256",
    ),
    "no nickname": (lambda r: r["config"].pop("bioimageio"), {"fiji": "no"}, "NullPointerException"),
    "no authors": (lambda r: r.pop("authors"), {"qupath": "no"}, "without authors"),
    "axis without id": (lambda r: r["inputs"][0]["axes"][3].pop("id"), {"fiji": "no", "qupath": "no"}, "an id|the id"),
    "no torch weights": (
        lambda r: [r["weights"].pop(k) for k in ("pytorch_state_dict", "torchscript")],
        {"ilastik": "with loss", "qupath": "with loss", "biapy": "no"}, "ONNX weights|state dicts",
    ),
    "no ONNX": (lambda r: r["weights"].pop("onnx"), {"fiji": "with loss", "onnxruntime": "no"}, "libtorch|no ONNX"),
    "linear a channel": (
        lambda r: r["inputs"][0].update(preprocessing=step("scale_linear", gain=[2.0], offset=[1.0], axis="channel")),
        {"fiji": "no", "biapy": "no", "onnxruntime": "with loss"}, "silently wrong|by hand|gain of scale_linear is ignored",
    ),
    "linear of one number": (
        lambda r: r["inputs"][0].update(preprocessing=step("scale_linear", gain=2.0, offset=1.0)),
        {"qupath": "no", "biapy": "no", "onnxruntime": "with loss"}, "cannot be parsed|by hand|gain of scale_linear",
    ),
    "fixed a channel": (
        lambda r: r["inputs"][0].update(
            preprocessing=step("fixed_zero_mean_unit_variance", mean=[2.0], std=[1.0], axis="channel")),
        {"fiji": "no", "qupath": "no", "onnxruntime": "with loss"}, "ArrayIndex|skips|by hand",
    ),
    "measured": (
        lambda r: r["inputs"][0].update(preprocessing=step("zero_mean_unit_variance", axes=["x", "y"])),
        {"ilastik": "with loss", "qupath": "with loss", "onnxruntime": "with loss"}, "tile by tile|by hand",
    ),
    "softmax": (
        lambda r: r["outputs"][0].update(postprocessing=step("softmax", axis="channel")),
        {"fiji": "no", "qupath": "no", "onnxruntime": "with loss"}, "no class|skips|by hand",
    ),
    "clip": (
        lambda r: r["outputs"][0].update(postprocessing=step("clip", min=0.0)),
        {"fiji": "no", "onnxruntime": "with loss"}, "min and max|by hand",
    ),
    "a step before it that BiaPy does not know": (
        lambda r: r["inputs"][0].update(preprocessing=step("clip", min=0.0, max=9.0)),
        {"biapy": "no", "onnxruntime": "with loss"}, "a step before the network|by hand",
    ),
    "classes": (lambda r: r.update(tags=["semantic-segmentation"]), {"biapy": "no"}, "out_channels or n_classes"),
    "a size that is known after the run": (
        lambda r: r["outputs"][0]["axes"][3].update(size={"min": 1}, halo=0),
        {"ilastik": "no", "fiji": "no", "qupath": "no", "biapy": "no"}, "only known after the run",
    ),
    "another order": (
        lambda r: r["outputs"][0]["axes"].append(r["outputs"][0]["axes"].pop(1)),
        {"ilastik": "no", "biapy": "no"}, "takes the output's axes|must be batch",
    ),
    "no task": (lambda r: r.update(tags=["2d"]), {"biapy": "no"}, "task"),
    "no kwargs": (
        lambda r: r["weights"]["pytorch_state_dict"]["architecture"].pop("kwargs"), {"biapy": "no"}, "kwargs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_each_thing_that_is_wrong_is_named(name: str, ours: Path, tmp_path: Path) -> None:
    """One change of a package that opens everywhere: these programs, for these reasons, and no others."""
    change, expected, reasons = WRONG[name]
    rdf = dict(open_package(ours).rdf)
    rdf = copy.deepcopy(rdf)
    change(rdf)
    found = verdicts(open_package(written(tmp_path / "m", rdf)))
    wrong = {v.consumer: v.answer for v in found if v.consumer != "careamics" and v.answer != "yes"}
    assert wrong == expected
    for verdict in found:
        if verdict.consumer in expected:
            assert re.search(reasons, verdict.reasons[0].reason), verdict.reasons[0].reason


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ((17, 8), {}),
        ((18, 8), {}),
        ((19, 9), {"fiji": "with loss"}),
        ((20, 10), {"fiji": "with loss", "onnxruntime": "with loss"}),
    ],
)
def test_the_versions_of_the_onnx_file_itself_count(
    versions: tuple[int, int], expected: dict[str, str], ours: Path, tmp_path: Path
) -> None:
    """Not what the description says of them; TorchScript stands in where Fiji's onnxruntime is too old."""
    path = written(tmp_path / "m", dict(open_package(ours).rdf), onnx_file=identity(*versions))
    assert {k: v for k, v in answers(path).items() if v != "yes" and k != "careamics"} == expected


def test_weights_that_were_changed(tmp_path: Path, ours: Path) -> None:
    path = written(tmp_path / "m", dict(open_package(ours).rdf))
    with (path / "weights.pt").open("ab") as file:
        file.write(b"more")
    found = verdicts(open_package(path))
    assert {v.consumer for v in found if v.answer == "no"} == {"core", "ilastik", "biapy", "careamics"}
    assert "sha256" in found[0].reasons[0].reason


ODD = {
    "tags": ["denoising", 5, {"a": 1}], "covers": ["cover.png", 7, {"source": 3}], "authors": ["Ada", 3, {"name": "Ada"}],
    "cite": ["x", 3], "attachments": ["a.yaml", 3, {"files": "a.yaml"}, {"files": [3]}], "documentation": [3, "none.md"],
    "maintainers": [3, "x"], "training_data": ["x", 3], "license": [["MIT"], 3], "git_repo": [3],
}  # fmt: skip


@pytest.mark.parametrize("key", [*ODD, "bioimageio", "architecture"])
def test_descriptions_that_are_of_another_kind_are_judged_not_stumbled_over(
    key: str, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers where lists belong, one thing instead of a list of it: an answer for every program, and no traceback."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    for i, value in enumerate(ODD.get(key, ["x", 3])):
        rdf = copy.deepcopy(dict(open_package(ours).rdf))
        place = {"bioimageio": rdf["config"], "architecture": rdf["weights"]["pytorch_state_dict"]}.get(key, rdf)
        place[key] = value
        path = written(tmp_path / str(i), rdf)
        for names in ("all", "upload"):
            assert command(["check", str(path), "--for", names]) in (0, 1)
            told = capsys.readouterr()
            assert told.err == ""
            assert len(told.out.splitlines()) >= len(CONSUMERS)


@pytest.mark.parametrize("size", [0, 50])
def test_an_onnx_file_that_is_none_does_not_open(size: int, ours: Path, tmp_path: Path) -> None:
    """Cut off, its sha256 told as it is: not even plain onnxruntime reads it."""
    path = written(tmp_path / "m", dict(open_package(ours).rdf), onnx_file=identity(17, 8)[:size])
    found = {k for k, v in answers(path).items() if v == "no"}
    assert {"core", "onnxruntime"} <= found
    assert answers(path)["fiji"] == "with loss", "TorchScript is left"


def test_weights_beside_their_graph_are_for_no_java(ours: Path, tmp_path: Path) -> None:
    rdf = copy.deepcopy(dict(open_package(ours).rdf))
    rdf["weights"]["onnx"]["external_data"] = {"source": "weights.onnx.data", "sha256": "0" * 64}
    assert answers(written(tmp_path / "m", rdf))["fiji"] == "with loss"


def test_two_tensors_and_volumes(tmp_path: Path, ours: Path) -> None:
    rdf = copy.deepcopy(dict(open_package(ours).rdf))
    second = copy.deepcopy(rdf["inputs"][0])
    rdf["inputs"].append(second | {"id": "second"})
    found = answers(written(tmp_path / "two", rdf))
    assert [found[c] for c in ("core", "ilastik", "fiji", "qupath", "biapy")] == ["yes", "no", "no", "no", "no"]
    rdf = copy.deepcopy(dict(open_package(ours).rdf))
    for tensor, size in (("inputs", {"min": 1, "step": 1}), ("outputs", {"tensor_id": "input", "axis_id": "z"})):
        rdf[tensor][0]["axes"].insert(2, {"type": "space", "id": "z", "size": size})
    found = answers(written(tmp_path / "volume", rdf))
    assert {c: a for c, a in found.items() if a != "yes"} == {"qupath": "no", "careamics": "no"}


def test_every_rule_is_about_a_fact_and_a_program(ours: Path) -> None:
    """No rule can be about nothing; each says why and where that was seen."""
    facts = facts_of(open_package(ours))
    for rule in TABLE:
        assert rule.fact in facts
        assert set(rule.consumers) <= set(CONSUMERS)
        assert rule.reason
        assert rule.source
        assert str(rule.allowed)
    assert {c for rule in TABLE for c in rule.consumers} == set(CONSUMERS)


def test_the_command(ours: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`check --for`: all exits 0, a program that does not open it 1, an unknown one 2 with the nearest."""

    def told(*words: str) -> tuple[int, str, str]:
        code = command(["check", str(ours), *words])
        out = capsys.readouterr()
        return code, out.out, out.err

    code, out, _ = told("--for", "all")
    assert code == 0
    assert re.search(r"QuPath.* yes\n", out)
    assert re.search(r"CAREamics.* no\n +it opens its own packages alone", out)
    code, out, _ = told("--for", "fiji,careamics", "--json")
    assert code == 1
    found = {v["consumer"]: v for v in json.loads(out)["verdicts"]}
    assert (found["fiji"]["answer"], found["careamics"]["answer"]) == ("yes", "no")
    assert found["careamics"]["reasons"][0]["field"] == "attachments"
    assert found["careamics"]["reasons"][0]["value"] == []
    code, _, error = told("--for", "figi")
    assert code == 2
    assert "did you mean fiji?" in error


def test_the_report_of_a_check_tells_all_also_of_a_failed_one(
    run: vz.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One page without scripts: every check, every program, every point of an upload, the difference that was found."""
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
    vz.export(run, tmp_path / "m.zip")
    line = ["check", str(tmp_path / "m.zip"), "--report", str(tmp_path / "deep" / "page.html")]
    assert command(line) == 0
    text = (tmp_path / "deep" / "page.html").read_text()
    assert not re.search(r"href=|<script|src=\"(?!data:)", text)
    checks = vz.check(tmp_path / "m.zip")
    named = (*(c.name for c in checks), *CONSUMERS.values(), *(i.name for i in ready(open_package(tmp_path / "m.zip"))))
    assert all(escape(word) in text for word in named)
    assert [v.answer for v in vz.verdicts(tmp_path / "m.zip")] == list(answers(tmp_path / "m.zip").values())
    monkeypatch.setattr(proof, "LIMIT", 1e-30)
    assert command(line) == 1
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "FAILED" in text
    assert "data:image/png;base64," in text
    assert command([*line, "--for", "all"]) == 2
    assert "leave out --for" in capsys.readouterr().err
