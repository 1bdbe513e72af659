"""A card says all that a package knows, and names what only a person can add."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import voidzoo as vz
from tests.export.test_consumers import DATA, identity, written
from tests.export.tiny import tiny_run
from tests.packages import make_package, micrograph
from voidzoo.cli import main as command
from voidzoo.export import proof
from voidzoo.export.about import About
from voidzoo.export.card import make_card
from voidzoo.export.consumers import verdicts
from voidzoo.export.proof import Check
from voidzoo.zoo.errors import OutputError, PackageError

SAID = {"license": "CC-BY-4.0", "data": "Cells, 60x", "data_license": "CC0-1.0", "limits": ("Not for tissue.",)}
CHECKS = [Check("whole = tiled", True, "max difference 1e-06 std")]


@pytest.fixture(autouse=True)
def _no_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with everything that a card tells."""
    folder = tmp_path_factory.mktemp("card")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proof, "check_consumer", lambda *_, **__: Check("bioimageio.core", True, "left out"))
        held_out = vz.open_image(micrograph(np.random.default_rng(), (64, 70)), axes="yx")
        vz.export(
            tiny_run(folder / "run"), folder / "m.zip", about=About(name="tiny cells", **SAID), held_out=[held_out]
        )
    return folder / "m.zip"


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_a_card_is_complete_or_names_what_is_missing(measured: Path, tmp_path: Path) -> None:
    package = vz.open_package(measured)
    card = make_card(package, CHECKS, verdicts(package), "tiny")
    assert card.missing == {}
    assert "TODO" not in card.text
    found = sections(card.text)
    assert list(found) == [
        "Training data", "Training", "Validation", "Proof", "Where it opens", "Limits", "How to run it",
    ]  # fmt: skip
    assert hashlib.sha256(measured.read_bytes()).hexdigest() in card.text
    assert "Cells, 60x" in found["Training data"]
    assert "Licence: CC0-1.0" in found["Training data"]
    assert "* Not for tissue." in found["Limits"]
    settings = yaml.safe_load(found["Training"].split("```yaml")[1].split("```")[0])
    assert vz.Recipe(**settings) == vz.load_run(measured.parent / "run").recipe
    card.write(tmp_path / "cards" / "tiny.md")
    for link in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (tmp_path / "cards" / link).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(OutputError, match="exists"):
        card.write(tmp_path / "cards" / "tiny.md")
    card.write(tmp_path / "cards" / "tiny.md", overwrite=True)


@pytest.mark.parametrize(
    ("left_out", "part"),
    [("license", "licence"), ("data", "training data"), ("data_license", "licence of the data"), ("limits", "limits")],
)
def test_each_thing_that_is_not_said_is_named(left_out: str, part: str, measured: Path) -> None:
    """Nothing but it, and the line that mends it."""
    package = vz.open_package(measured)
    rdf = dict(package.rdf)
    package.ours["card"].pop(left_out, None)
    if left_out == "license":
        rdf.pop("license")
        object.__setattr__(package, "rdf", rdf)
    card = make_card(package, CHECKS, [], "tiny")
    assert list(card.missing) == [part]
    assert f"TODO: voidzoo.yaml: {left_out}" in card.text


def test_packages_of_others_get_drafts(tmp_path: Path) -> None:
    rdf = yaml.safe_load((DATA / "nuclei_broad_v05.yaml").read_text())
    rdf["description"] = "<img src=x onerror=alert(1)>"
    package = vz.open_package(written(tmp_path / "m", rdf, "rdf.yaml", identity(17, 8)))
    card = make_card(package, [], verdicts(package), "nuclei")
    assert set(card.missing) == {"training data", "licence of the data", "numbers", "limits"}
    assert package.name in card.text
    assert "&lt;img src=x" in card.text  # words of strangers are words


def test_how_to_run_it_is_true_of_the_package(measured: Path, tmp_path: Path) -> None:
    """Several channels are an axis of the array; a program that does not open it is not named; steps are not denied."""
    package = make_package(tmp_path / "two channels", channels=2, outputs=2, depth=1)
    how = sections(make_card(package, CHECKS, verdicts(package), "two").text)["How to run it"]
    assert "    voidzoo predict 'two channels' IMAGE.tif" in how
    assert 'result = voidzoo.predict("two channels", array, axes="cyx")' in how
    assert "Fiji" not in how, "it has no nickname, without which Fiji opens nothing"
    assert "declares no steps" in how
    array = micrograph(np.random.default_rng(), (2, 40, 50))
    assert vz.predict(package, array, axes="cyx").shape == array.shape
    rdf = yaml.safe_load((DATA / "nuclei_broad_v049.yaml").read_text())
    package = vz.open_package(written(tmp_path / "m", rdf, "rdf.yaml", identity(17, 8)))
    how = sections(make_card(package, [], verdicts(package), "nuclei").text)["How to run it"]
    assert "what the description declares (zero_mean_unit_variance, sigmoid) is done by the program" in how
    assert "* Fiji: " in how
    package = vz.open_package(measured)
    how = sections(make_card(package, [], verdicts(package), "tiny").text)["How to run it"]
    assert 'denoised = voidzoo.predict("m.zip", array, axes="yx")' in how
    assert "its normalisation lies in the network" in how


def test_what_was_converted_has_its_figures_and_pictures_still(measured: Path, tmp_path: Path) -> None:
    package = vz.open_package(measured)
    new = vz.convert(package, tmp_path / "new.zip")
    cards = [make_card(p, CHECKS, [], "tiny") for p in (package, new)]
    assert cards[0].pictures == cards[1].pictures
    assert len(cards[1].pictures) == 2
    assert "](my%20%28new%29%20card/best.png)" in make_card(new, CHECKS, [], "my (new) card").text


def test_words_of_strangers_are_words(measured: Path) -> None:
    package = vz.open_package(measured)
    package.ours["card"]["data_link"] = package.ours["training"]["split"] = "<script>alert(1)</script>"
    package.ours["training"]["images"] = [{"name": "<img src=x>"}]
    text = make_card(package, CHECKS, [], "tiny").text
    assert "<script>" not in text
    assert "<img src=x>" not in text


def test_figures_that_are_none_are_a_fault_of_the_package(measured: Path) -> None:
    package = vz.open_package(measured)
    package.ours["measured"]["figures"] = 7
    with pytest.raises(PackageError, match="measured cannot be read"):
        make_card(package, [], [], "tiny")


def test_the_verb(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default the card lies in model_cards, under the model's name."""
    monkeypatch.chdir(tmp_path)
    assert command(["card", str(measured)]) == 0
    out = capsys.readouterr().out
    assert "card     model_cards/tiny-cells.md" in out
    assert "draft" not in out
    assert "| bioimageio.core | left out | ok |" in (tmp_path / "model_cards" / "tiny-cells.md").read_text()
    assert command(["card", str(measured)]) == 2
    told = capsys.readouterr()
    assert "exists" in told.err
    assert not told.out
    assert command(["card", str(measured), "-o", "x.txt"]) == 2
    assert not capsys.readouterr().out  # before the proof
    assert command(["card", str(measured), "-o", "x.md", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == {}
