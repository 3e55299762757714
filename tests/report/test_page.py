"""The page: whole in one file, its figures in the page's colours, and alive in a browser of its own."""

from __future__ import annotations

import html
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from jaxstab.report import figures, picture
from jaxstab.report.claims import make_claim
from jaxstab.report.page import write_report
from jaxstab.report.record import Entry, environment
from jaxstab.report.runner import configure, run_experiment

NAMES = ("explorer", "sigmoid_gradient", "matrix_product")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
in_a_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed: pages are only read, not opened"
)
PROBE = """<script>
const seen = {}, told = message => { seen.error = String(message); };
const svg = () => document.querySelector(".chart svg").outerHTML, all = what => [...document.querySelectorAll(what)];
addEventListener("error", e => told(e.message));
addEventListener("unhandledrejection", e => told(e.reason));
addEventListener("securitypolicyviolation", e => told(e.blockedURI + " " + e.violatedDirective));
const choices = [["[name=the_activation]", "relu"], ["[name=the_depth]", "10"], ["[type=range]", "0.5"]];
const choose = i => {
  seen.drawn.push(svg());
  if (i === choices.length) return parent.postMessage(JSON.stringify(seen), "*");
  const input = document.querySelector(".vega-bindings " + choices[i][0]);
  input.value = choices[i][1];
  input.dispatchEvent(new Event(input.type === "range" ? "input" : "change"));
  setTimeout(choose, 300, i + 1);
};
setTimeout(() => {
  seen.width = [document.documentElement.scrollWidth, innerWidth];
  seen.fetched = performance.getEntriesByType("resource").map(e => e.name);
  seen.ids = all("[id]").map(e => e.id);
  seen.headings = all("h1,h2,h3,h4").map(e => +e.tagName[1]);
  seen.drawn = [];
  choose(0);
}, 1500);
</script>"""
"""Looks at the page, chooses in the explorer as a reader would, and tells the frame around it what it saw."""
PHONE = """<!doctype html><pre></pre><iframe src="probed.html" style="width: 390px; height: 800px; border: 0"></iframe>
<script>addEventListener("message", e => { document.querySelector("pre").textContent = e.data; });</script>"""
"""Chromium's own windows are never as narrow as a phone."""


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("report")
    modules = [importlib.import_module(f"experiments.{name}") for name in NAMES]
    entries = [run_experiment(m, configure(m, "smoke"), out) for m in modules]
    write_report(entries, out / "report.html", environment())
    return out / "report.html"


@pytest.fixture(scope="module")
def seen(report) -> dict:
    """What the probe saw in a copy of the page, as wide as a phone."""
    report.with_name("probed.html").write_text(report.read_text() + PROBE)
    phone = report.with_name("phone.html")
    phone.write_text(PHONE)
    (told,) = re.findall(r"<pre>(.*?)</pre>", open_in_chromium(phone, "--dump-dom"), re.S)
    return json.loads(html.unescape(told))


def open_in_chromium(page: Path, *options: str, width: int = 1280, dark: bool = False) -> str:
    """Standard output of a headless Chromium that no name is resolved for."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},900",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=8000", f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri(),
    ]  # fmt: skip  # many short words
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_page_asks_for_nothing_outside_itself(report):
    page = re.sub(r"<script>.*?</script>", "", report.read_text(), flags=re.S)
    assert not re.search(
        r"""(src|href|action|poster)=["']?(?!["'#]|data:)|@import|url\((?!#)""", page.replace("xlink:", "")
    )
    assert "default-src 'none'" in page
    assert len(report.read_bytes()) < 4_000_000


def test_the_page_says_question_answer_figures_and_numbers(report):
    page = report.read_text()
    for name in NAMES:
        module = importlib.import_module(f"experiments.{name}")
        assert f'<article id="{name}"' in page
        assert html.escape((module.__doc__ or "").splitlines()[0]) in page
    assert page.index('id="explorer"') < page.index('id="sigmoid_gradient"') < page.index('id="published"')
    scoreboard = page[page.index('id="published"') :]
    assert "largest derivative of the sigmoid" in scoreboard
    assert "log10 growth a step" not in scoreboard  # nobody published it
    assert "log10 growth a step" in page
    assert page.count('role="img" aria-label="') == len(list(report.parent.rglob("*.svg")))


def test_an_entry_is_escaped_and_its_backticks_are_code(tmp_path):
    made = make_claim("stack", "a < b", np.arange(9.0), 3.0, source="notes", theory=4.0)
    entry = Entry("stack", "Is <it> `stable`?", "It <is>.", "", (), (made,), ("digits instead",), 1.0)
    write_report([entry], tmp_path / "report.html", environment())
    page = (tmp_path / "report.html").read_text()
    for text in (
        "Is &lt;it&gt; <code>stable</code>?",
        "It &lt;is&gt;.",
        "digits instead",
        "a &lt; b",
        "as predicted",
    ):
        assert text in page
    assert "vegaEmbed" not in page  # no chart, no library
    for tag in ("h2", "h3", "p", "small", "details", "table", "article", "section", "div", "svg"):
        assert len(re.findall(rf"<{tag}\b", page)) == page.count(f"</{tag}>"), tag
    assert not list(tmp_path.glob(".*"))


def drawn(folder: Path, **mesh: object) -> tuple[str, float]:
    """A figure with a line, and with a mesh where one is given, as the page has it."""
    import matplotlib.pyplot as plt

    with figures.style():
        plt.rcParams.update(picture.STYLE)
        figure, panel = plt.subplots()
        panel.plot([0.0, 1 / 3], [0.0, 1 / 7], color="#0b5fa5")
        panel.set_title("0.123456 of #0b5fa5 is text")
        figure.suptitle("said by the page", gid="notes")
        if mesh:
            panel.pcolormesh(np.eye(3), **mesh)
        figure.savefig(folder / "a.svg", transparent=True, metadata={"Title": 'a < "b"', **picture.SILENT})
        plt.close(figure)
    return picture.inline((folder / "a.svg").read_text())


def test_a_figure_takes_the_colours_of_the_page(tmp_path):
    svg, width = drawn(tmp_path)
    assert width == pytest.approx(7.2 * 72)
    assert 'aria-label="a &lt; &quot;b&quot;"' in svg
    assert "0.123456 of #0b5fa5 is text" in svg
    assert "said by" not in svg
    assert not re.search(r'd="[^"]*\.\d{3}', svg)
    assert "currentColor" in svg
    assert "var(--x0b5fa5, #0b5fa5)" in svg
    assert picture.INK not in svg
    assert "<style" not in svg
    assert "<title" not in svg


def test_a_figure_with_a_mesh_keeps_its_own(tmp_path):
    svg, _ = drawn(tmp_path, rasterized=True)
    assert "stroke: #0b5fa5" in svg
    assert picture.INK in svg
    assert "currentColor" not in svg


@pytest.mark.parametrize("colour", ["#0b5fa5", "#d1603d", "#5b6770", "#4a1a10", "#000080", figures.PUBLISHED])
def test_colours_have_a_twin_that_is_read_in_the_dark(colour):
    assert picture._contrast(picture.lightened(colour), picture.DARK) >= 4.5
    assert picture.lightened("#ffffff") == "#ffffff"


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_colour_of_text_is_read_on_its_paper(scheme):
    style = (Path(picture.__file__).parent / "page.html").read_text()
    rules = re.findall(r":root \{(.*?)\}", style, re.S)[scheme]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6});", rules))
    colours = {k: v if len(v) == 7 else "#" + "".join(2 * x for x in v[1:]) for k, v in colours.items()}
    for paper in ("paper", "shade"):
        for ink in ("ink", "soft", "blue", "good", "bad"):
            assert picture._contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert picture._contrast(colours["ink"], colours["warn"]) >= 4.5


def test_what_the_explorer_shows_is_as_theory_says(report):
    """Medians of 4 networks of width 32 lie within a factor of 3 of theory; of one that is 10 times off, none does."""
    data = xr.load_dataset(report.with_name("explorer") / "data.nc", engine="scipy").isel(layer=0, depth=0)
    for name in ("signal", "gradient"):
        away = (data[name].median("seed") - data[f"{name}_theory"]).values
        away = away[np.isfinite(away)]
        assert away.size > 250
        assert np.all(abs(away) < np.log10(3))
        assert not np.any(abs(away + 1) < np.log10(3))


def test_what_is_said_of_theory_is_of_the_settings_where_it_is_known(report):
    data = xr.load_dataset(report.with_name("explorer") / "data.nc", engine="scipy").isel(layer=0, depth=-1)
    known = int(np.isfinite(data.gradient_theory).sum())
    assert 0 < known < data.gradient_theory.size
    assert f"At half of the {known} that theory is known for" in report.read_text()


@in_a_browser
def test_the_page_opens_without_an_error_and_fetches_nothing(seen):
    assert "error" not in seen, seen["error"]
    assert seen["fetched"] == []
    assert len(seen["ids"]) == len(set(seen["ids"]))


@in_a_browser
def test_the_page_fits_a_phone_and_its_headings_are_in_order(seen):
    assert seen["width"] == [390, 390]
    assert seen["headings"][0] == 1
    assert all(b <= a + 1 for a, b in zip(seen["headings"], seen["headings"][1:], strict=False))


@in_a_browser
def test_the_explorer_answers_to_every_choice(seen):
    assert len(set(seen["drawn"])) == len(seen["drawn"]) == 4
    assert "NaN" not in "".join(seen["drawn"])
    assert "currentColor" in seen["drawn"][0]


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_dark_where_its_reader_is(report, tmp_path, width):
    shades = []
    for dark in (False, True):
        shot = tmp_path / f"{dark}.png"
        open_in_chromium(report, f"--screenshot={shot}", width=width, dark=dark)
        shades.append(np.median(np.asarray(Image.open(shot).convert("L"))))
    assert shades[0] > 200
    assert shades[1] < 60
