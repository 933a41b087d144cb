"""The chat page in Chromium: it answers, stops, fits, and shows a model's text as text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.report.browser import CHROMIUM, browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome on this machine")


class Address:
    """A URL where the browser's helper wants a path."""

    def __init__(self, url: str) -> None:
        self._url = url

    def resolve(self) -> Address:
        return self

    def as_uri(self) -> str:
        return self._url


@pytest.fixture(scope="module")
def tab():
    with browser() as opened:
        yield opened


def until(tab, expression: str) -> None:
    end = time.monotonic() + 30
    while not tab.ask(expression):
        assert time.monotonic() < end, tab.faults
        time.sleep(0.1)


@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (360, "dark")])
def test_tuned_and_base_answer_side_by_side(server, tab, width, theme):
    tab.faults.clear()
    tab.open(Address(server.address + "/"), width=width, theme=theme)
    chosen = tab.ask("[...document.querySelectorAll('select')].map(one => one.value)")
    assert chosen == ["first", "base"]
    tab.ask("at('tokens').value = 12; at('prompt').value = '<img src=x onerror=alert(1)>'; at('send').click()")
    until(tab, "!at('send').disabled && document.querySelectorAll('.assistant').length == 2")
    answers = tab.ask("[...document.querySelectorAll('.assistant')].map(one => one.textContent)")
    assert len(answers[0]) > 3
    assert answers[0] != answers[1]
    assert tab.ask("document.images.length") == 0
    assert "<img src=x" in tab.ask("document.querySelector('.user').textContent")
    assert tab.ask("document.documentElement.scrollWidth <= innerWidth")
    assert tab.faults == []


def test_stop_gives_the_places_up(server, tab):
    tab.open(Address(server.address + "/"))
    tab.ask("at('tokens').value = 400; at('temperature').value = 1.9; at('prompt').value = 'Hi'; at('send').click()")
    until(tab, "document.querySelector('.assistant')?.textContent.length > 3")
    tab.ask("at('stop').click()")
    until(tab, "!at('send').disabled")
    assert "stopped" in tab.ask("document.querySelector('main').textContent")
    end = time.monotonic() + 20
    while server.loaded.engine.state().num_running:
        assert time.monotonic() < end


def test_no_script_of_the_page_makes_html_of_text():
    script = (Path(__file__).parents[3] / "qlora_cli/serve/http/chat_page.js").read_text()
    assert not any(word in script for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))
