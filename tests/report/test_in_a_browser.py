"""The pages in Chromium, on a desk and on a phone, in light and dark: drawn, quiet, and no wider than the screen."""

from __future__ import annotations

import pytest

from qlora_cli.report.compare_page import read_and_compare
from qlora_cli.report.write import write_report
from tests.report.browser import CHROMIUM, browser
from tests.report.runs import HOSTILE, add_results, lines_of, write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine"),
]

CURVES = "[...document.querySelectorAll('path.curve')].map(path => path.getTotalLength())"
TEXT = "document.querySelector('.card').innerText"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report full of hostile text, one without an evaluation, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    full, plain = write_run(folder / "full", lines_of(300)), write_run(folder / "plain", lines_of(120, seed=1))
    add_results(full, text=HOSTILE + "long" * 60)
    found = {run.path.name: write_report(run).path for run in (full, plain)}
    return found | {"compare": read_and_compare([full, plain]).page}


@pytest.fixture(scope="module")
def tab():
    with browser() as opened:
        yield opened


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize(("name", "num_curves"), [("full", 7), ("plain", 7), ("compare", 10)])
def test_a_page_is_drawn_and_fits(tab, pages, name, num_curves, width, theme):
    tab.faults.clear()
    tab.open(pages[name], width=width, theme=theme)
    lengths = tab.ask(CURVES)
    assert len(lengths) == num_curves
    assert min(lengths) > 100
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth")
    assert tab.ask("innerWidth") == width
    assert tab.faults == []


def test_the_themes_differ_and_text_stands_out_in_both(tab, pages):
    seen = []
    for theme in ("light", "dark"):
        tab.open(pages["full"], theme=theme)
        seen.append(tab.ask("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"))
    (ink, paper), (light_ink, dark_paper) = (
        [sum(map(int, colour[4:-1].split(", "))) for colour in pair] for pair in seen
    )
    assert ink < 150 < 700 < paper
    assert dark_paper < 150 < 600 < light_ink


def test_hostile_rows_are_text(tab, pages):
    tab.open(pages["full"])
    assert tab.ask("document.images.length + document.scripts.length + document.styleSheets.length") == 1
    assert "<img src=x onerror=alert(1)>" in tab.ask(TEXT)


def test_pointing_at_a_plot_reads_its_value(tab, pages):
    tab.open(pages["plain"])
    box = tab.ask(
        "(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('svg').getBoundingClientRect())"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])
    shown = tab.ask(
        "[...document.querySelector('svg').querySelectorAll('g > text')]"
        ".filter(text => getComputedStyle(text).visibility == 'visible').map(text => text.textContent)"
    )
    assert len(shown) == 2
    assert shown[0].startswith("step ")
    assert 50 <= int(shown[0].split()[1]) <= 70
