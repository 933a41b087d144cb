"""The page shows what the run holds, says what is missing, and takes nothing of it for HTML."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.report.advice.all_rules import advice_for
from qlora_cli.report.page import page
from qlora_cli.report.record import read_record
from qlora_cli.report.write import watch_report, write_report
from qlora_cli.run.directory import RunDirectory
from tests.report.runs import HOSTILE, add_results, lines_of, write_run

PLOTS = ["Training loss", "Eval loss", "Learning rate", "Gradient norm", "Speed", "Peak memory"]
KNOWN_TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "section", "footer", "h1", "h2", "h3", "h4", "p"),
    *("ul", "li", "span", "b", "a", "div", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td", "br"),
    *("pre", "code", "dl", "dt", "dd", "details", "summary", "ins", "del", "i"),
    *("svg", "line", "path", "circle", "rect", "g", "text"),
}


class Tags(HTMLParser):
    """The tags and attributes of a page, as a browser sees them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes = set(), set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def text_of(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def drawn(run):
    record = read_record(run)
    return page(record, advice_for(record))


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "made", lines_of(200))


def test_every_plot_is_drawn_with_its_unit(run):
    html = drawn(run)
    assert re.findall(r"<figcaption><b>([^<]+)</b>", html)[:6] == PLOTS
    assert len(re.findall(r'<path class="curve', html)) == 7  # the training loss twice: each step, and smoothed
    assert '<circle class="ring"' in html


def test_the_parts_come_in_their_order(run):
    add_results(run)
    titles = re.findall(r"<h2>([^<]+)</h2>", drawn(run))
    assert titles == [
        "Verdict",
        "Curves",
        "Data",
        "Before and after",
        "Comparison",
        "Adapter",
        "Setup",
        "What to change",
    ]


def test_a_run_that_was_not_measured_says_what_to_type(run):
    assert f"not measured yet: <code>qlora eval {run.path}</code>" in drawn(run)


def test_the_sentences_of_the_evaluation_stand_on_top(run):
    add_results(run)
    html = drawn(run)
    assert html.index("sums: better, 42") < html.index("Training loss")


def test_figures_of_the_evaluation_stand_in_the_table(run):
    add_results(run)
    text = text_of(drawn(run))
    for figure in ("10.0%", "80.0%", "50.0% to 95.0%", "+70.0%", "+30.0% to +90.0%"):
        assert figure in text
    assert "10 questions: 8 better, 1 worse, 1 the same" in text


def test_words_that_differ_are_marked_on_their_side(run):
    add_results(run)
    html = drawn(run)
    assert "it <del>is</del> 42" in html
    assert "it <ins>was</ins> 42" in html
    assert html.index("sums42, number match: sums: better, 42") < html.index("<h2>Curves")


def test_the_heat_map_has_a_cell_for_each_module(run):
    add_results(run)
    assert len(re.findall(r"<td style=\"background", drawn(run))) == 12


def test_the_commands_repeat_the_run_where_it_was_started(run):
    text = drawn(run)
    assert "pip install torch==2.13.0\ncd &#x27;/home/me/my project&#x27;\nqlora train" in text


def test_nothing_of_the_data_becomes_html(run):
    add_results(run, text=HOSTILE, tuned=f"tuned{HOSTILE}")
    rows = {"rows": [{"place": HOSTILE, "pieces": [{"text": HOSTILE, "is_trained": True, "is_special": True}]}]}
    (run.data_path / "first_rows.json").write_text(json.dumps(rows), encoding="utf-8")
    manifest = json.loads(run.manifest_path.read_text("utf-8"))
    manifest |= {"versions": {HOSTILE: HOSTILE}, "hardware": {HOSTILE: HOSTILE}, "base": {"base_model": HOSTILE}}
    run.manifest_path.write_text(json.dumps(manifest), encoding="utf-8")
    run.recipe_path.write_text(f"name: {json.dumps(HOSTILE)}\n", encoding="utf-8")
    html = drawn(run)
    found = Tags(html)
    assert found.tags <= KNOWN_TAGS
    assert not {name for name in found.attributes if name.startswith("on")}
    assert html.count("<style>") == 1
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_the_page_may_load_and_run_nothing(run):
    html = drawn(run)
    assert "default-src 'none'" in html
    assert not re.search(r"<script|<link|<img|src=|url\(|https?://", html.replace("http-equiv", ""))


@pytest.mark.parametrize("missing", ["manifest.json", "recipe.yaml", "metrics.jsonl", "data/report.json"])
def test_a_run_without_one_of_its_files_has_a_page_that_says_so(run, missing):
    (run.path / missing).unlink()
    text = text_of(drawn(run))
    assert missing.rpartition("/")[2] in text
    assert "What to change" in text


@pytest.mark.parametrize(
    "broken", ["[]", '{"format": 1}', "{", '{"format": 2, "measures": 3, "verdicts": [1], "models": {}}']
)
def test_damaged_or_old_results_leave_the_rest_of_the_page(run, broken):
    run.eval_path.mkdir()
    (run.eval_path / "results.json").write_text(broken)
    html = drawn(run)
    assert "not measured yet" in html
    assert len(re.findall(r'<path class="curve', html)) == 7


@pytest.mark.parametrize("value", ["x", None, True, [], {}, 1e999, -5, HOSTILE])
def test_any_value_under_any_key_still_gives_a_page(tmp_path, value):
    lines = [dict.fromkeys(line, value) | {"step": line["step"]} for line in lines_of(30)]
    lines = [json.loads(json.dumps(line).replace("Infinity", "null")) for line in lines]
    run = write_run(
        tmp_path / "odd", lines, memory=value, versions=value, max_steps=value, early_stop=value, seconds=value
    )
    add_results(run)
    for name in ("eval/results.json", "data/report.json", "data/first_rows.json", "eval/adapter_health.json"):
        stored = json.loads((run.path / name).read_text("utf-8"))
        (run.path / name).write_text(json.dumps(dict.fromkeys(stored, value) | {"format": 2}), encoding="utf-8")
    assert "</html>" in drawn(run)


def test_damaged_lines_of_metrics_are_left_out_and_counted(run):
    with run.metrics_path.open("a") as file:
        file.write('{"step": 201, "lo')
    assert "metrics.jsonl: 1 damaged line is left out" in text_of(drawn(run))


@pytest.mark.slow
def test_a_run_of_100_000_steps_stays_small_and_keeps_its_peaks(tmp_path):
    lines = lines_of(100_000, every=1000)
    lines[51_234]["loss"] = 77.0
    html = drawn(write_run(tmp_path / "long", lines))
    assert len(html) < 2_000_000
    [faint] = re.findall(r'<path class="curve faint c0" d="([^"]+)"', html)
    heights = [float(y) for y in re.findall(r",([\d.]+)", faint)]
    assert min(heights) < 40 < sorted(heights)[1]


def test_a_page_is_written_into_the_run_and_again(run):
    for _ in range(2):
        assert write_report(run).path == run.path / "report.html"
    assert 'http-equiv="refresh"' not in run.report_path.read_text("utf-8")


def test_a_page_that_somebody_else_wrote_is_refused_and_stays(run):
    run.report_path.write_text("<p>mine</p>")
    with pytest.raises(ArgumentError, match="was not written by qlora"):
        write_report(run)
    assert run.report_path.read_text() == "<p>mine</p>"


def test_a_link_is_not_followed(run, tmp_path):
    write_report(run, tmp_path / "other.html")
    before = (tmp_path / "other.html").read_bytes()
    run.report_path.symlink_to(tmp_path / "other.html")
    with pytest.raises(ArgumentError):
        write_report(run)
    assert (tmp_path / "other.html").read_bytes() == before


@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_what_is_no_run_is_refused_with_what_to_type(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError) as raised:
        write_report(RunDirectory(tmp_path / place))
    assert "qlora runs" in raised.value.problems[0].hint


def test_watching_a_run_that_is_over_ends_with_a_page_that_does_not_refresh(run):
    assert watch_report(run).status == "finished"
    assert 'http-equiv="refresh"' not in run.report_path.read_text("utf-8")


def test_a_page_that_is_watched_loads_itself_again(run):
    write_report(run, refreshes=True)
    assert '<meta http-equiv="refresh" content="5">' in run.report_path.read_text("utf-8")
