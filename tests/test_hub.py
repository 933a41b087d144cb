"""Whether the Hub answers, asked of real sockets."""

from __future__ import annotations

import time

import huggingface_hub
import pytest

from qlora_cli import hub
from tests.hub_stand_ins import UNRESOLVABLE, answering, black_hole, closed_port


@pytest.fixture
def online(monkeypatch):
    """As where nobody said that there is no network; returns what names the Hub's address."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "")  # restored afterwards, also where the code sets it
    monkeypatch.setattr(hub, "_set_here", set())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    hub._question.cache_clear()
    yield lambda address: monkeypatch.setenv("HF_ENDPOINT", address)
    hub._question.cache_clear()


def test_a_closed_port_and_a_name_that_nobody_has_are_known_at_once(online):
    for address in (closed_port(), UNRESOLVABLE):
        online(address)
        started = time.monotonic()
        assert hub.why_offline().startswith(f"{address} cannot be reached: ")
        assert time.monotonic() - started < hub.SECONDS


@pytest.mark.slow
def test_silence_is_given_up_after_the_time_that_is_said(online):
    with black_hole() as address:
        online(address)
        started = time.monotonic()
        assert hub.why_offline() == f"{address} did not answer within 4 s"
        assert time.monotonic() - started == pytest.approx(4, abs=0.5)
        started = time.monotonic()
        assert hub.why_offline() == f"{address} did not answer within 4 s"  # asked once
        assert time.monotonic() - started < 0.1


@pytest.mark.slow
def test_the_wait_counts_from_when_it_was_asked_in_the_background(online):
    with black_hole() as address:
        online(address)
        hub.start_asking("some/base")
        time.sleep(3)
        started = time.monotonic()
        assert hub.why_offline()
        assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("status", [200, 302, 401, 404, 500])
def test_whoever_answers_is_there_whatever_he_says(online, status):
    with answering(status, location=UNRESOLVABLE) as address:
        online(address)
        assert hub.why_offline() == ""
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_without_an_answer_the_libraries_are_offline(online):
    online(closed_port())
    hub.why_offline()
    assert huggingface_hub.constants.is_offline_mode()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_who_says_that_he_is_offline_is_not_asked(online, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with black_hole() as address:
        online(address)
        started = time.monotonic()
        assert hub.why_offline() == f"{name} is set"
        assert time.monotonic() - started < 0.1


def test_an_address_that_is_none_is_said(online):
    online("nonsense")
    assert hub.why_offline().startswith("nonsense cannot be reached: ")


def test_a_proxy_that_only_the_libraries_know_is_left_to_them(online, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    online(closed_port())
    assert hub.why_offline() == ""
