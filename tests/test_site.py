"""`voidzoo site`: what its pages tell, that strangers' texts stay text, that a browser finds what is looked for."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from PIL import Image as Pillow

import voidzoo as vz
from tests.browser import Browser, browsing
from tests.packages import make_package, micrograph
from tests.small_disk import SmallDisk
from tests.web import Server, zip_folder
from voidzoo.cli import main
from voidzoo.export.consumers import CONSUMERS
from voidzoo.site_index import MARKS
from voidzoo.zoo.errors import ImageError, OutputError
from voidzoo.zoo.files import replace_folder
from voidzoo.zoo.pictures import redrawn

Run = Callable[..., tuple[int, str, str]]
BAD = "</script><script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">'\u202e&amp;"
VOID = {"meta", "img", "input", "link", "br", "hr"}


class Element:
    """One element of a page. inner: texts and elements, in their order."""

    def __init__(self, tag: str, attributes: dict[str, str]) -> None:
        self.tag, self.attributes = tag, attributes
        self.inner: list[Element | str] = []

    def all(self, tag: str = "", kind: str = "") -> list[Element]:
        """Those inside with a tag or class, in the page's order."""
        found: list[Element] = []
        for one in self.inner:
            if isinstance(one, Element):
                same = (not tag or one.tag == tag) and (not kind or kind in one.attributes.get("class", "").split())
                found += [one] * same + one.all(tag, kind)
        return found

    @property
    def text(self) -> str:
        """What a person reads, but for scripts and styles."""
        parts = (
            one if isinstance(one, str) else f" {one.text} " * (one.tag not in ("script", "style"))
            for one in self.inner
        )
        return " ".join("".join(parts).split())


class Page(HTMLParser):
    """The tree of a page. Fails where tags do not close, as browsers only guess then."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(path.read_text(encoding="utf-8"))
        assert len(self._open) == 1, self._open[-1].tag

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {k: v or "" for k, v in attrs})
        self._open[-1].inner.append(made)
        if tag not in VOID:
            self._open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].inner.append(data)


def picture(side: int) -> bytes:
    pixels = np.random.default_rng().integers(0, 256, (side, side), dtype=np.uint8)
    buffer = BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(made: vz.Package, to: Path, ours: dict[str, Any], files: dict[str, bytes], **rdf: Any) -> Path:
    """A zip of a package that says this of itself."""
    folder = to.parent / f"{to.stem}.made"
    shutil.copytree(made.path, folder)
    told = yaml.safe_load((folder / "rdf.yaml").read_text()) | rdf
    told["config"]["voidzoo"] |= ours
    (folder / "rdf.yaml").write_text(yaml.safe_dump(told))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    zip_folder(folder, to)
    shutil.rmtree(folder)
    return to


MEASURED = {
    "images": ["held.tif"], "truths": ["clean.tif"], "squares": 12, "side": 64,
    "figures": {"psnr": {"before": [21.5, 1.25], "after": [29.75, 2.5], "gain": [8.25, 1.5]}},
    "best": {"image": "held.tif", "where": "y 0:64", "said": "20.1 dB as it came, 33.3 dB denoised"},
    "worst": {"image": "held.tif", "where": "y 64:128", "said": "22.2 dB as it came, 25.5 dB denoised"},
}  # fmt: skip
PICTURES = {name: picture(128) for name in ("cover.png", "best.png", "worst.png")}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four models: a denoiser of mitochondria that tells everything, a 3D one, a stranger's with traps, a broken one."""
    folder, made = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("made")
    flat, deep = make_package(made / "flat", seed=2), make_package(made / "deep", dims=3, seed=3)
    zipped(
        flat, folder / "mito-1.2.zip",
        {
            "method": "n2v", "measured": MEASURED, "recipe": {"method": "n2v", "epochs": 77},
            "training": {"images": [{"name": "raw.tif", "axes": "yx", "shape": [99, 88], "dtype": "uint8"}], "split": "a strip"},
            "card": {"data": "HeLa cells, 60x", "data_link": "https://doi.org/10.5281/zenodo.42", "data_license": "CC0-1.0",
                     "limits": ["Not for tissue; see `voidzoo noise`."]},
        },
        PICTURES, name="Mito denoiser", version="1.2", description="Denoises mitochondria.", license="CC-BY-4.0",
        tags=["Denoising", "mitochondria"], covers=["cover.png"], authors=[{"name": "Ada Ito"}],
        cite=[{"text": "Ito A. 2026.", "doi": "10.1234/ab(c)"}], git_repo="https://example.org/code",
    )  # fmt: skip
    zipped(
        deep, folder / "nuclei-3.zip", {"method": "care"}, {}, name="Nuclei", version="3", tags=["denoising", "nuclei"]
    )
    junk = {**MEASURED, "figures": {BAD: {"after": [BAD, 1]}}}
    zipped(
        flat, folder / "zz [str] änge.zip",
        {"method": BAD, "measured": junk, "recipe": {BAD: BAD}, "network": {"depth": BAD},
         "training": {"images": [{"name": BAD, "axes": BAD, "shape": [BAD], "dtype": BAD}], "split": BAD},
         "card": {"data": BAD, "data_link": "javascript:document.title='gone'", "data_license": BAD, "limits": [BAD, 7, None]}},
        {"cover.png": b"<svg onload='document.title=1'/>", "README.md": f"# x\n\n## Validation\n\n{BAD}\n".encode()},
        name=f"Evil {BAD}", version=BAD, description=BAD, license=BAD, tags=[BAD, 5, None], covers=["cover.png", 3, None],
        authors=[{"name": BAD}], documentation="README.md",
        cite=[{"text": BAD, "url": "javascript:alert(1)"}, {"text": "b", "url": f"https://example.org/{BAD}"}],
        git_repo='https://example.org/" onclick="alert(1)',
    )  # fmt: skip
    (folder / "rotten-1.zip").write_bytes(b"PK no zip")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VOIDZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VOIDZOO_MODELS", raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(["site", *map(str, words)]), *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def site(lab: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of the lab."""
    out = tmp_path_factory.mktemp("pages") / "site"
    assert main(["site", "-o", str(out), "--models", str(lab)]) == 0
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as made:
        yield made


def tiles(site: Path) -> list[Element]:
    return Page(site / "index.html").root.all("li", "tile")


def page_of(site: Path, name: str) -> Element:
    return Page(site / "models" / name / "index.html").root


def test_a_tile_tells_what_the_package_is(site: Path, lab: Path) -> None:
    """Name, version, words, method, dimensions, channels, size, licence, cover, and the programs of the verdicts."""
    found = tiles(site)
    assert [t.all("h2")[0].text for t in found] == ["Mito denoiser 1.2", "Nuclei 3", found[2].all("h2")[0].text]
    mito = found[0]
    size = (lab / "mito-1.2.zip").stat().st_size
    assert [d.text for d in mito.all("dd")] == ["n2v", "2D", "1 channel", f"{size / 1000:.3g} kB", "CC-BY-4.0"]
    assert "Denoises mitochondria." in mito.text
    assert [d.text for d in found[1].all("dd")][:2] == ["care", "3D"]
    for tile, file in zip(found, ("mito-1.2.zip", "nuclei-3.zip", "zz [str] änge.zip"), strict=True):
        opens = {v.consumer: v.answer for v in vz.verdicts(lab / file)}
        marks = [li.text for li in tile.all("ul", "marks")[0].all("li")]
        assert marks == [MARKS[c] + " (with loss)" * (a == "with loss") for c, a in opens.items() if a != "no"]
        assert (site / unquote(tile.all("a")[0].attributes["href"])).is_file()
    (cover,) = mito.all("img")
    with Pillow.open(site / cover.attributes["src"]) as shown, Pillow.open(BytesIO(PICTURES["cover.png"])) as given:
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(given))
    assert [t.all("div", "none")[0].text for t in found[1:]] == ["no picture"] * 2
    assert set(MARKS) == set(CONSUMERS)


def test_a_model_page_tells_what_its_card_tells(site: Path, lab: Path) -> None:
    """Figures with spread, both pictures, limits, data, training, programs, the lines that run it, and the very zip."""
    root = page_of(site, "mito-1.2")
    assert root.all("h1")[0].text == "Mito denoiser 1.2"
    parts = {s.all("h2")[0].text: s for s in root.all("section")}
    measured = parts["Measured on images that it has not seen"]
    assert [c.text for c in measured.all("tbody")[0].all("td")] == ["21.5 ± 1.2", "29.8 ± 2.5", "8.25 ± 1.5"]
    assert measured.all("b")[0].text == "+8.25 ± 1.5 dB"
    assert "12 squares of 64 x 64 pixels of held.tif" in measured.text
    assert [f.all("span")[0].text for f in measured.all("figure")] == [
        "held.tif, y 0:64: 20.1 dB as it came, 33.3 dB denoised", "held.tif, y 64:128: 22.2 dB as it came, 25.5 dB denoised",
    ]  # fmt: skip
    assert parts["Limits"].all("li")[0].text == "Not for tissue; see voidzoo noise ."
    data = parts["Training data"]
    assert [a.attributes["href"] for a in data.all("a")] == ["https://doi.org/10.5281/zenodo.42"]
    for word in ("HeLa cells, 60x", "CC0-1.0", "a strip", "raw.tif: yx, 99 x 88, uint8"):
        assert word in data.text
    assert "epochs: 77" in parts["Training"].all("details")[0].text
    rows = {r.all("th")[0].text: r.all("td")[0].text for r in parts["Where it opens"].all("tbody")[0].all("tr")}
    assert rows == {CONSUMERS[v.consumer]: v.answer for v in vz.verdicts(lab / "mito-1.2.zip")}
    sha256 = hashlib.sha256((lab / "mito-1.2.zip").read_bytes()).hexdigest()
    lines = [pre.text for pre in parts["How to run it"].all("pre")]
    assert lines[0] == "voidzoo predict mito-1.2.zip IMAGE -o OUT.ome.zarr"
    assert lines[2] == f"voidzoo predict 'ADDRESS/mito-1.2.zip#sha256={sha256}' IMAGE -o OUT.ome.zarr"
    (get,) = root.all("a", "get")
    assert "download" in get.attributes
    assert (site / "models/mito-1.2" / get.attributes["href"]).read_bytes() == (lab / "mito-1.2.zip").read_bytes()
    assert sha256 in root.all("code")[0].text
    cited = [a.attributes["href"] for a in parts["Who made it, what to cite"].all("a")]
    assert cited == ["https://doi.org/10.1234/ab(c)", "https://example.org/code"]
    assert "Ada Ito" in parts["Who made it, what to cite"].text


def test_the_line_and_the_python_of_a_page_run(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with the zip that was downloaded."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(site / "models/mito-1.2/mito-1.2.zip", tmp_path)
    pixels = micrograph(np.random.default_rng(), (70, 81))
    told = next(e for e in Page(site / "models/mito-1.2/index.html").root.all("pre") if "import voidzoo" in e.text)
    names: dict[str, Any] = {"array": pixels}
    exec("".join(t for t in told.inner if isinstance(t, str)), names)
    assert names["result"].shape == pixels.shape


def test_a_copy_on_a_server_is_a_place_to_take_models_from(site: Path, lab: Path, web: Server) -> None:
    """The address with the sha256 that the page tells opens the model; with another one it does not."""
    shutil.copytree(site, web.folder / "ours")
    line = page_of(site, "mito-1.2").all("pre")[-1].text
    word = line.split("'")[1].replace("ADDRESS", f"{web.url}/ours/models/mito-1.2")
    assert vz.open_package(word).sha256 == vz.open_package(lab / "mito-1.2.zip").sha256
    with pytest.raises(vz.VoidzooError, match="sha256"):
        vz.open_package(word.replace("mito-1.2.zip#", "../nuclei-3/nuclei-3.zip#"))


def test_texts_of_strangers_stay_text(site: Path) -> None:
    """Whatever a package says, its pages have our scripts alone, no handlers, no addresses but of the web, and the words."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) == 4
    for path in pages:
        root = Page(path).root
        every = root.all()
        first = path == site / "index.html"
        assert [e.attributes for e in root.all("script")] == [{"type": "application/json", "id": "models"}, {}] * first
        assert len(root.all("img")) == (1 if first else 3 if "mito" in str(path) else 0)
        assert not [k for e in every for k in e.attributes if k.startswith("on") or k == "style"]
        policy = next(m.attributes["content"] for m in root.all("meta") if "http-equiv" in m.attributes)
        assert "default-src 'none'" in policy
        assert first or "script-src 'none'" in policy
        for element in every:
            for key in ("href", "src"):
                address = element.attributes.get(key, "data:")
                kind = urlsplit(address).scheme
                assert kind in ("https", "data", ""), address
                assert kind or (path.parent / unquote(address)).is_file()
        assert "\u202e" not in path.read_text(encoding="utf-8")
    evil, shown = next(p for p in pages if "zz" in str(p)), BAD.replace("\u202e", "\ufffd")
    root = Page(evil).root
    assert root.all("h1")[0].text.startswith("Evil </script><script>document")
    assert root.text.count(shown) >= 8
    assert "javascript:document.title" in root.text
    assert shown in tiles(site)[2].text
    (block,) = (e for e in Page(site / "index.html").root.all("script") if e.attributes)
    found = json.loads(block.inner[0] if isinstance(block.inner[0], str) else "")
    assert [m["dims"] for m in found] == [["2D"], ["3D"], ["2D"]]
    assert shown in found[2]["text"]


def test_pages_can_be_heard_and_have_no_secrets(site: Path, lab: Path) -> None:
    """Every picture has words, every field a label, headings go down step by step; no path of this machine is told."""
    for path in site.rglob("*.html"):
        root = Page(path).root
        assert root.all("html")[0].attributes["lang"] == "en"
        assert len(root.all("main")) == len(root.all("h1")) == 1
        assert all(i.attributes["alt"] for i in root.all("img"))
        labels = {e.attributes.get("for") for e in root.all("label")}
        assert {e.attributes["id"] for e in (*root.all("select"), *root.all("input")) if "id" in e.attributes} <= labels
        assert str(lab.parent) not in path.read_text(encoding="utf-8")
    assert str(lab.parent) not in (site / "site.json").read_text()


def seen(browser: Browser) -> list[str]:
    """The names on the tiles that are shown."""
    found = browser.value(
        "[...document.querySelectorAll('.tile')].filter(t => t.offsetHeight).map(t => t.querySelector('h2').innerText)"
    )
    return [" ".join(name.split()[:1]) for name in found]


@pytest.mark.parametrize(
    ("asked", "names", "count"),
    [
        ("", ["Mito", "Nuclei", "Evil"], ""),
        ("#q=mito", ["Mito"], "1 of 3 models"),
        ("#q=HELA+ito", ["Mito"], "1 of 3 models"),
        ("#q=mito+nuclei", [], "0 of 3 models"),
        ("#method=care", ["Nuclei"], "1 of 3 models"),
        ("#dims=2D", ["Mito", "Evil"], "2 of 3 models"),
        ("#tag=denoising", ["Mito", "Nuclei"], "2 of 3 models"),
        ("#tag=denoising&dims=3D&opens=core", ["Nuclei"], "1 of 3 models"),
        ("#opens=qupath", ["Mito", "Evil"], "2 of 3 models"),
        ("#opens=qupath&dims=3D", [], "0 of 3 models"),
        ("#method=nonsense", ["Mito", "Nuclei", "Evil"], ""),
        ("#q=%3C%2Fscript%3E", ["Evil"], "1 of 3 models"),
    ],
)
def test_a_browser_shows_what_the_address_asks_for(
    site: Path, browser: Browser, asked: str, names: list[str], count: str
) -> None:
    """From a file, without a server; the fields show what is asked for."""
    browser.window(1200, 900)
    browser.go(f"{(site / 'index.html').as_uri()}{asked}")
    assert seen(browser) == names
    assert browser.value("document.getElementById('count').textContent") == count
    fields = dict(re.findall(r"(\w+)=([^&]*)", asked))
    for name in ("dims", "tag"):
        assert browser.value(f"document.getElementById('{name}').value") == fields.get(name, "")


def test_a_person_searches_with_the_keyboard(site: Path, browser: Browser) -> None:
    """Typing hides tiles and goes into the address, which shows the same again; Enter on a tile opens its page."""
    browser.window(1200, 900)
    browser.asked.clear()
    browser.said.clear()
    browser.go((site / "index.html").as_uri())
    browser.key("Tab", 9)
    assert browser.value("document.activeElement.id") == "q"
    browser.type("mitoch hela")
    assert seen(browser) == ["Mito"]
    address = browser.value("location.href")
    assert address.endswith("#q=mitoch+hela")
    browser.go(address)
    assert seen(browser) == ["Mito"]
    browser.value("document.querySelector('button').click()")
    browser.until("!location.hash.slice(1)")
    assert seen(browser) == ["Mito", "Nuclei", "Evil"]
    browser.value("location.hash = 'q=nuclei'")
    browser.until("document.getElementById('q').value === 'nuclei'")
    assert seen(browser) == ["Nuclei"]
    for _ in range(7):
        browser.key("Tab", 9)
        if browser.value("document.activeElement.tagName") == "A":
            break
    browser.key("Enter", 13, "\r")
    browser.until("document.readyState === 'complete' && document.querySelector('h1')?.innerText === 'Nuclei 3'")
    assert all(a.startswith((site.as_uri(), "about:", "data:")) for a in browser.asked), browser.asked
    assert not browser.said


def test_no_word_of_a_stranger_runs(site: Path, browser: Browser) -> None:
    """Both pages that show it keep their titles, open no dialog, and break no rule of their policy."""
    browser.said.clear()
    for path, title in ((site / "index.html", "Models"), (next(site.glob("models/zz*/index.html")), "Evil")):
        browser.go(path.as_uri())
        assert browser.value("document.title").startswith(title)
    assert not browser.said


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_window_and_the_hour(site: Path, browser: Browser, width: int, dark: bool) -> None:
    """Nothing is wider than a phone; covers are drawn; the corner is as light or dark as the person wants it."""
    browser.window(width, 800, dark=dark)
    for path in (site / "index.html", *site.glob("models/*/index.html")):
        browser.go(path.as_uri())
        assert browser.value("document.documentElement.scrollWidth") <= width, path
        assert browser.value("[...document.images].every(i => i.complete ? i.naturalWidth : i.loading === 'lazy')")
        with Pillow.open(BytesIO(browser.picture())) as shown:
            assert (np.asarray(shown.convert("L"))[5, 5] < 60) == dark


def test_without_scripts_all_tiles_are_shown(site: Path, browser: Browser) -> None:
    """And no field that would do nothing."""
    browser.window(1200, 900, scripts=False)
    browser.go(f"{(site / 'index.html').as_uri()}#q=mito")
    assert seen(browser) == ["Mito", "Nuclei", "Evil"]
    assert browser.value("document.getElementById('find').offsetHeight") == 0
    browser.window(1200, 900)


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_folder_of_somebody_else_is_never_touched(run: Run, lab: Path, tmp_path: Path) -> None:
    """Not empty, with a file that is not of the site, a file instead of a folder: refused, with nothing changed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    for more in ((), ("--overwrite",)):
        code, _, err = run("-o", "mine", "--models", lab, *more)
        assert (code, "not a site of voidzoo" in err) == (2, True)
        assert run("-o", "mine/thesis.txt", "--models", lab, *more)[0] == 2
    assert files(tmp_path / "mine") == {"thesis.txt": b"words"}
    assert run("-o", "s", "--models", lab / "nuclei-3.zip")[0] == 0
    before = files(tmp_path / "s")
    code, _, err = run("-o", "s", "--models", lab / "mito-1.2.zip")
    assert (code, "--overwrite renews it" in err) == (2, True)
    (tmp_path / "s" / "CNAME").write_text("example.org")
    code, _, err = run("-o", "s", "--models", lab / "mito-1.2.zip", "--overwrite")
    assert (code, "did not write: CNAME" in err) == (2, True)
    (tmp_path / "s" / "CNAME").unlink()
    assert files(tmp_path / "s") == before
    assert run("-o", "s", "--models", lab / "mito-1.2.zip", "--overwrite")[0] == 0
    assert not [name for name in files(tmp_path / "s") if "nuclei" in name]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "s"]


def test_a_site_that_cannot_be_written_leaves_the_old_one(run: Run, lab: Path, small_disk: SmallDisk) -> None:
    """A full disk, met while the new pages are written: exit 2, the old pages byte for byte, nothing beside them."""
    out = small_disk.folder / "s"
    assert run("-o", out, "--models", lab / "nuclei-3.zip")[0] == 0
    before = files(out)
    small_disk.fill()
    code, _, err = run("-o", out, "--models", lab, "--overwrite")
    assert (code, "cannot be written: No space left" in err) == (2, True)
    assert files(out) == before
    assert sorted(p.name for p in small_disk.folder.iterdir()) == ["filler", "s"]


def test_a_folder_that_cannot_be_renamed_is_put_back(tmp_path: Path) -> None:
    """The last step fails when the old folder is out of the way: it comes back."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a").write_text("old")
    with pytest.raises(OutputError, match="cannot be written"):
        replace_folder(tmp_path / "s", Path.rmdir)
    assert files(tmp_path) == {"s/a": b"old"}
    replace_folder(tmp_path / "s", lambda new: (new / "b").write_text("new"))
    assert files(tmp_path) == {"s/b": b"new"}


def test_which_models(
    run: Run, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_package: vz.Package
) -> None:
    """Folders, zips and names, each file once; a broken zip is noted in a folder, refused where it is named."""
    code, out, err = run("-o", "a", "--models", lab, "--models", lab / "mito-1.2.zip", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [m["name"].split()[0] for m in told["models"]] == ["Mito", "Nuclei", "Evil"]
    assert list(told["left_out"]) == [str(lab / "rotten-1.zip")]
    for model in told["models"]:
        assert hashlib.sha256((tmp_path / "a" / model["zip"]).read_bytes()).hexdigest() == model["sha256"]
    code, out, err = run("-o", "b", "--models", lab)
    assert "rotten-1.zip is left out: " in err
    assert out == "site     b/index.html   3 models\n"
    assert run("-o", "c", "--models", lab / "rotten-1.zip")[0] == 2
    code, _, err = run("-o", "c", "--models", tiny_package.path)
    assert (code, "bioimageio package" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    assert "holds no package" in run("-o", "c", "--models", "empty")[2]
    assert not (tmp_path / "c").exists()
    shutil.copy(lab / "nuclei-3.zip", tmp_path / "NUCLEI-3.zip")
    assert run("-o", "d", "--models", lab / "nuclei-3.zip", "--models", "NUCLEI-3.zip")[0] == 0
    assert sorted(p.name for p in (tmp_path / "d" / "models").iterdir()) == ["NUCLEI-3-2", "nuclei-3"]
    monkeypatch.setenv("VOIDZOO_MODELS", str(lab))
    assert run("-o", "e", "--models", "mito@1.2")[0] == 0
    code, out, err = run("-o", "f", "--json")
    assert {"Mito denoiser", "Nuclei"} <= {m["name"] for m in json.loads(out)["models"]}
    assert (code, list(json.loads(out)["left_out"])) == (0, [str(lab / "rotten-1.zip")])


def test_descriptions_that_say_nonsense_are_shown(run: Run, tiny_package: vz.Package, tmp_path: Path) -> None:
    """Fields that the network does not need may hold anything: the pages leave them out."""
    for number, junk in enumerate((5, "word", {"a": 1}, [None, 3, {"text": 7, "name": [1]}], True)):
        told = dict.fromkeys(
            (
                "cite",
                "authors",
                "tags",
                "license",
                "training_data",
                "documentation",
                "covers",
                "description",
                "git_repo",
            ),
            junk,
        )
        ours = dict.fromkeys(("card", "measured", "recipe", "network", "method", "version", "seed"), junk)
        zipped(
            tiny_package,
            tmp_path / "junk" / f"j{number}.zip",
            {**ours, "training": {"images": junk, "split": junk}},
            {},
            **told,
        )
    code, out, err = run("-o", "s", "--models", "junk")
    assert (code, err) == (0, "")
    assert out.endswith("   5 models\n")


def test_pictures_of_strangers_are_redrawn() -> None:
    """The pixels stay, what else lies in the file does not; what is no picture, or a bomb, is refused."""
    pixels = np.random.default_rng().integers(0, 60000, (20, 30)).astype(np.uint16)
    buffer = BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG")
    with Pillow.open(BytesIO(redrawn(buffer.getvalue(), 100))) as deep:
        assert (deep.size, deep.mode) == ((30, 20), "L")
        order = np.argsort(pixels.ravel())
        assert (np.diff(np.asarray(deep).ravel()[order].astype(int)) >= 0).all()
    buffer = BytesIO()
    Pillow.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG", comment=b"secret <script>")
    assert b"secret" in buffer.getvalue()
    assert b"secret" not in redrawn(buffer.getvalue(), 100)
    with Pillow.open(BytesIO(redrawn(picture(90), 40))) as small:
        assert small.size == (40, 40)
    bomb = bytearray(picture(8))
    bomb[16:24] = (20_000).to_bytes(4, "big") * 2
    for bad in (b"", b"<svg/>", picture(50)[:300], bytes(bomb)):
        with pytest.raises(ImageError, match="it is no PNG, JPEG, GIF"):
            redrawn(bad, 100)
