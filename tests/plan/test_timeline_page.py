"""The page of a step: what it draws adds up, and nothing in it is loaded or runs."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from qlora_cli.errors import ArgumentError
from qlora_cli.plan.report import choose_target, make_report
from qlora_cli.plan.timeline_page import NARROW, TOP, WIDE, page, write_timeline
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.request import PlanRequest
from tests.plan.bases import config_of, request_for


@pytest.fixture(scope="module")
def report():
    target = choose_target("t4", None)
    request = request_for(config_of("llama"), target.device)
    return make_report(PlanRequest(request.recipe, request.config, target.device), target, with_data=False)


@pytest.fixture(scope="module")
def drawn(report):
    return page(report)


def test_every_kind_of_memory_is_an_area_and_a_line_of_the_table(report, drawn):
    present = [kind for kind in report.bill.trace.largest if kind is not MemoryKind.PAGED_OPTIMIZER]
    assert len(present) > 6
    for kind in present:
        assert f"<title>{kind}: up to" in drawn
        assert f"</span>{kind}</td>" in drawn


@pytest.fixture(params=[WIDE, NARROW], ids=lambda canvas: canvas.name)
def drawing(request, drawn):
    """One of the two drawings of the page, and its size."""
    return request.param, re.search(rf'<svg class="{request.param.name}".*?</svg>', drawn, flags=re.DOTALL).group(0)


def test_the_areas_lie_on_each_other_without_gap(drawing):
    edges = []
    for points in re.findall(r'<polygon [^>]*points="([^"]+)"', drawing[1]):
        pairs = points.split()
        half = len(pairs) // 2
        edges.append((pairs[:half], pairs[half:][::-1]))
    assert len(edges) > 6
    for (ceiling, _), (_, floor) in pairwise(edges):
        assert ceiling == floor


def test_the_peak_is_marked_at_the_highest_point_of_the_areas(report, drawing):
    canvas, drawn = drawing
    heights = [float(y) for points in re.findall(r'points="([^"]+)"', drawn) for y in re.findall(r",([\d.]+)", points)]
    marked = float(re.search(r'class="peak" cx="[\d.]+" cy="([\d.]+)"', drawn).group(1))
    assert TOP < marked == pytest.approx(min(heights), abs=0.11)
    assert max(heights) < canvas.height
    assert str(report.bill.peak.phase) in drawn


def test_no_text_runs_out_of_the_drawing_at_either_side(drawing):
    canvas, drawn = drawing
    letter = 6.0  # the narrowest that 12-pixel letters of a system font are on average
    texts = re.findall(r'<text [^>]*x="([\d.]+)"[^>]*>([^<]+)</text>', drawn)
    anchors = re.findall(r"<text [^>]*?(?:text-anchor=\"(\w+)\")?>", drawn)
    assert len(texts) == len(anchors) > 5
    for (x, text), anchor in zip(texts, anchors, strict=True):
        start = float(x) - letter * len(text) * {"": 0, "middle": 0.5, "end": 1}[anchor]
        assert start >= 0, text
        assert start + letter * len(text) <= canvas.width, text


def test_each_screen_shows_one_drawing(drawn):
    narrow = drawn.partition("@media (max-width: 40rem) {")[2].partition("\n}")[0]
    assert "svg.narrow { display: none; }" in drawn.partition("@media (max-width")[0]
    assert "svg.wide { display: none; }" in narrow
    assert "svg.narrow { display: block; }" in narrow


def test_what_is_not_nothing_is_not_shown_as_zero(drawn):
    cells = re.findall(r"<td>([^<]*(?:GiB|MiB|KiB|bytes))</td>", drawn)
    assert len(cells) > 10
    assert not [cell for cell in cells if re.match(r"0\.0+ ", cell)]


def test_nothing_is_loaded_and_nothing_runs(drawn):
    assert "default-src 'none'" in drawn
    assert not re.search(r"<script|<link|<img|\bsrc=|url\(|https?://|\son\w+=", drawn)


def test_there_is_a_light_and_a_dark_palette(drawn):
    light, dark = re.findall(r"--k0: (#\w+);", drawn)
    assert light != dark


def test_text_of_the_recipe_is_text(report):
    named = report.request.recipe.model.model_copy(update={"base_model": "<script>alert(1)</script>"})
    recipe = report.request.recipe.model_copy(update={"model": named})
    request = PlanRequest(recipe, report.request.config, report.request.device)
    drawn = page(make_report(request, report.target, with_data=False))
    assert "<script" not in drawn


def test_a_name_that_is_no_page_is_refused(report, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        write_timeline(tmp_path / "step.svg", report)
    assert "step.html" in caught.value.problems[0].hint


@pytest.mark.parametrize(("checkpointing", "name"), [(True, "backward with recomputation"), (False, "backward")])
def test_recomputation_is_named_where_there_is_some(report, checkpointing, name):
    request = report.request.changed(
        {"training.gradient_checkpointing": checkpointing, "training.per_device_train_batch_size": 1}
    )
    drawn = page(make_report(request, report.target, with_data=False))
    assert f">{name}</text>" in drawn
    assert "1 row of 64 tokens. Fits: " in drawn
