"""The commands of README.md and docs/guide.md, run as a user would: each page in a folder of its own, from the top."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "zoo" / "samples" / "giga_mito60x_n1_low.tif"
CLEAN = SAMPLE.with_name("giga_mito60x_n1_high.tif")
SHORT = "epochs=1, steps=2"


def blocks(page: str) -> list[tuple[str, str]]:
    """(kind, text) of each fenced block."""
    return re.findall(r"```(console|python)\n(.*?)```", (ROOT / page).read_text(), flags=re.S)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_every_command_and_snippet_runs(page: str, tmp_path: Path) -> None:
    """Only the length of the training is changed; a command that the page shows and that fails is a bug."""
    for name in ("noisy.tif", "clean.tif"):
        shutil.copyfile(SAMPLE, tmp_path / name)
    for name, source in (("other.tif", SAMPLE), ("other_clean.tif", CLEAN)):
        tifffile.imwrite(tmp_path / name, tifffile.imread(source)[:256, :320])
    found = blocks(page)
    assert found
    for kind, text in found:
        lines = [line[2:] for line in text.splitlines() if line.startswith("$ ")] if kind == "console" else [text]
        assert lines, text
        for line in lines:
            if kind == "python":
                code = line.replace('"n2v", image)', f'"n2v", image, {SHORT})')
                command = [sys.executable, "-c", code]
            else:
                assert line.startswith("voidzoo "), line
                more = ["--epochs", "1", "--set", "steps=2"] if " train " in line else []
                command = [sys.executable, "-m", *re.findall(r'"[^"]*"|\S+', line), *more]
                command = [word.strip('"') for word in command]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    for name in re.findall(r"-o (\S+\.(?:zarr|tif|zip))", "\n".join(t for k, t in found if k == "console")):
        assert (tmp_path / name).exists()


def test_pages_show_every_verb() -> None:
    """A user finds each verb of the command line in the README or the guide, and every flag that they show exists."""
    from typer.main import get_command

    from voidzoo.cli import app

    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "guide.md").read_text()
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for verb in commands:
        assert f"voidzoo {verb}" in text or f"make {verb}" in text, f"{verb} is not in the README or the guide"
    known = {option for c in commands.values() for p in c.params for option in (*p.opts, *p.secondary_opts)}
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)):
        assert flag in known, f"{flag} is shown and does not exist"
