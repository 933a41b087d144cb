"""The Hub is asked for real: by a server of the test's own, since tests have no network."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from huggingface_hub import constants

from qlora_cli.plan.machine.hub_trial import SECONDS, try_hub


@pytest.fixture
def ask(monkeypatch):
    """Ask the Hub at an address."""

    def ask_at(address):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        return try_hub()

    return ask_at


@pytest.fixture
def serve() -> Iterator:
    """Start a server that answers every request with one status; gives its address."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_offline_the_hub_is_not_asked_and_not_called_ok():
    finding = try_hub()
    assert finding.cells() == ("-", "Hub", "not tested: HF_HUB_OFFLINE is set")


def test_a_hub_that_answers_is_ok(ask, serve):
    finding = ask(serve(200))
    assert finding.cells()[0] == "ok"
    assert " answers in 0." in finding.found


@pytest.mark.parametrize(("status", "said"), [(401, "hf auth login"), (403, "hf auth login"), (503, "HTTP 503")])
def test_a_hub_that_refuses_is_not_ok(ask, serve, status, said):
    finding = ask(serve(status))
    assert finding.cells()[0] == "FAIL"
    assert said in finding.found


@pytest.mark.parametrize("address", ["http://hub.invalid", "http://127.0.0.1:9", "no address", "http://[::1"])
def test_a_hub_that_cannot_be_reached_is_not_ok(ask, address):
    finding = ask(address)
    assert finding.cells()[0] == "FAIL"
    assert f"{address} cannot be reached: " in finding.found


def test_a_hub_that_says_nothing_is_not_waited_for(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        finding = ask(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < SECONDS + 1
    assert finding.cells()[0] == "FAIL"


def test_a_name_server_that_says_nothing_is_not_waited_for(ask, monkeypatch):
    right = socket.getaddrinfo
    # A name server that does not answer cannot be set up without being root; the look-up that waits for it can.
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: time.sleep(5) or right(*given, **named))
    started = time.monotonic()
    finding = ask("http://hub.example")
    assert time.monotonic() - started < SECONDS + 1
    assert "did not answer within 2 s" in finding.found
