"""The report says what happened, is one file, and the demo's short way on the real sample gains dB without seams."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as Pillow

import voidzoo
from voidzoo import outcome
from voidzoo.demo import SAMPLES, demo
from voidzoo.demo_report import places
from voidzoo.zoo import html
from voidzoo.zoo.errors import OutputError
from voidzoo.zoo.package import AxisRule

PLAN = {
    "memory": {"process": 100_000_000, "network": 20_000_000, "blocks": 3_000_000, "total": 123_000_000},
    "seconds": 4.2, "disk": 1_400_000, "blocks": 16, "block": {"y": 256, "x": 250}, "tiles": 196,
    "tile": {"y": 128, "x": 112}, "halo": {"y": 24, "x": 20}, "overhead": 2.64, "dtype": "uint8",
}  # fmt: skip
HAPPENED = {"seconds": 6.3, "peak_memory": 98_400_000, "disk": 915_000, "blocks": 16, "clipped": 1975, "mapped": 7}


def sources(text: str) -> list[str]:
    """Everything that a browser would fetch."""
    return re.findall(r"""(?:src|href|srcset|action|poster)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", text)


def test_text_from_outside_is_escaped_everywhere():
    bad = "<script>alert('&\"')</script>"
    shown = html.picture(np.zeros((2, 2), np.uint8), (0, 1), bad, bad)
    parts = [
        html.section(bad, html.paragraph(bad), html.commands([bad])),
        html.numbers([(bad, bad)]),
        html.facts({bad: bad}),
        html.table((bad,), [(bad, bad)]),
        html.pictures([shown], "zoom"),
    ]
    text = html.page(bad, bad, parts)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#x27;&amp;&quot;&#x27;)") >= 14


@pytest.mark.parametrize("factor", [1, 4])
def test_pictures_hold_every_pixel_on_the_grey_scale_that_was_asked_for(factor):
    plane = np.arange(5 * 7, dtype=np.uint16).reshape(5, 7) * 100
    shown = html.picture(plane, (0, 3400), "ramp", factor=factor)
    data = re.findall(r'src="data:image/png;base64,([^"]+)"', html.pictures([shown], "sharp"))
    pixels = np.asarray(Pillow.open(BytesIO(b64decode(data[0]))))
    assert pixels.shape == (5 * factor, 7 * factor)
    assert shown.size == (7 * factor, 5 * factor)
    np.testing.assert_allclose(pixels[::factor, ::factor], plane / 3400 * 255, atol=0.5)


def test_a_page_fetches_nothing():
    shown = html.picture(np.zeros((3, 3)), (0, 1), "black")
    history = [{"epoch": i, "train_loss": 1 / i, "val_loss": 2 / i} for i in (1, 2)]
    curve = html.loss_plot(history)
    text = html.page("t", "l", [html.pictures([shown], "zoom"), html.pictures([curve], "plot")])
    assert "http" not in re.sub(r"base64,[^\"]+", "", text)
    assert len(sources(text)) == 2
    assert all(s[0].startswith("data:image/png;base64,") for s in sources(text))
    assert curve.size[0] > 600


def test_the_table_of_plan_and_outcome_says_their_numbers():
    text = outcome.plan_and_outcome(PLAN, HAPPENED)
    for number in ("123 MB", "98.4 MB", "80%", "4.2 s", "6.3 s", "1.4 MB", "915 kB", "16 of 256 x 250 (y, x)",
                   "196 of at most 128 x 112 (y, x)", "24 x 20 (y, x)", "2.64", "1,975 values", "7 values"):  # fmt: skip
        assert number in text, number
    assert "unknown on this system" in outcome.plan_and_outcome(PLAN, HAPPENED | {"peak_memory": 0})


def test_the_seam_check_sees_a_step_at_a_border_and_nothing_in_a_smooth_image():
    package = SimpleNamespace(rules={a: AxisRule(minimum=64, step=4, halo=24) for a in "yx"})
    at = outcome.borders(package, {"y": 512, "x": 300}, {"y": 256, "x": 256}, {"y": 128, "x": 128})
    assert at["y"][0] == [256]
    assert at["x"][0] == [256]
    assert len(at["y"][1]) > 2
    assert not set(at["y"][1]) & set(at["y"][0])
    smooth = np.add.outer(np.arange(512.0), np.arange(300.0))
    even = outcome.seams(smooth, list(at.values()))
    assert (even.block, even.tile, even.elsewhere) == (1.0, 1.0, 1.0)
    assert even.block_pairs == 300 + 512
    stepped = smooth.copy()
    stepped[256:] += 10
    stepped[:, at["x"][1][0] :] += 5
    seen = outcome.seams(stepped, list(at.values()))
    assert seen.block == pytest.approx(1 + 10 * 300 / (300 + 512))
    assert seen.tile > 1
    assert seen.elsewhere == 1.0
    assert outcome.Seams.from_json(seen.to_json()) == seen
    assert "no such border" in outcome.seam_table({"one run": outcome.seams(smooth, [((), ()), ((), ())])})


def test_the_residual_tells_mean_and_spread():
    rng = np.random.default_rng(3)
    clean = np.full((128, 128), 100.0)
    text = html.residual(clean + rng.normal(2, 9, clean.shape), clean)
    assert re.search(r"Mean (1\.9|2\.0)\d, standard deviation (8\.9|9\.0|9\.1) grey values", text)


def test_places_to_enlarge_lie_inside_of_the_image():
    plane = np.arange(1024 * 1024).reshape(1024, 1024) % 251
    for _, y, x in places(plane, {"y": 256, "x": 256}):
        assert 0 <= y <= 1024 - 96
        assert 0 <= x <= 1024 - 96


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds other files"):
        demo(tmp_path, quiet=True)
    (tmp_path / "demo.json").write_text("{}")
    with pytest.raises(OutputError, match="not written by"):
        demo(tmp_path, quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.json", "thesis.txt"]


def test_the_bundled_images_are_real_pairs_of_one_shape():
    from importlib.resources import files

    import tifffile

    low, high = (tifffile.imread(str(files("voidzoo.zoo") / "samples" / name)) for name in SAMPLES.values())
    assert low.shape == high.shape == (1024, 1024)
    assert low.dtype == high.dtype == np.uint8


@pytest.mark.slow
def test_even_a_short_demo_gains_and_leaves_no_seam(tmp_path, capsys):
    folder = tmp_path / "a demo"
    report = demo(folder, quiet=True, epochs=8)
    record = json.loads((folder / "demo.json").read_text())
    assert record["gain_db"] > 0
    assert record["gain_db"] == pytest.approx(record["psnr_denoised"] - record["psnr_raw"], abs=0.002)
    assert record["seams"]["tiled_minus_whole_max"] <= 1
    assert record["seams"]["tiff_equals_zarr"]
    assert record["happened"]["blocks"] == 16
    assert record["plan"]["tiles"] > 16
    assert all(c["passed"] for c in record["checks"])
    assert voidzoo.open_image(folder / "denoised.ome.zarr").shape == (1024, 1024)
    assert voidzoo.open_image(folder / "denoised.ome.tif").shape == (1024, 1024)

    text = report.read_text(encoding="utf-8")
    fetched = sources(text)
    assert len(fetched) == 3 + 4 * 3 + 2 + 1
    assert all(s[0].startswith("data:image/png;base64,") for s in fetched)
    assert f"{record['psnr_denoised']:.2f} dB" in text
    assert "voidzoo predict" in text
    sizes = [Pillow.open(BytesIO(b64decode(s[0].split(",")[1]))).size for s in fetched]
    assert sizes[:3] == [(1024, 1024)] * 3
    assert sizes[3:15] == [(384, 384)] * 12

    seconds = record["seconds"]
    assert demo(folder, quiet=True, epochs=8) == report  # finished stages are not run again
    again = json.loads((folder / "demo.json").read_text())
    assert {k: v for k, v in again["seconds"].items() if k != "report"} == {
        k: v for k, v in seconds.items() if k != "report"
    }
    with pytest.raises(OutputError, match="begun with epochs 8"):
        demo(folder, quiet=True, epochs=3)
    assert capsys.readouterr().out == ""
