"""Hostile requests and hostile clients: the server stays, says what is wrong, and prints nothing."""

from __future__ import annotations

import gc
import json
import resource
import socket
import threading
import time
from contextlib import suppress

import pytest

from qlora_cli.serve.engine.scheduler import EngineLimits
from qlora_cli.serve.http.serving import Access
from tests.serve.http.conftest import with_limits
from tests.serve.http.hostile import CHAT, GOOD, REQUESTS, chat
from tests.waiting import wait_until


def sent(port: int, data: bytes, *, seconds: float = 20) -> bytes:
    """What comes back until the server closes the connection, or its headers are there."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as line:
        received = b""
        with suppress(OSError):  # refused before all was sent
            line.sendall(data)
        with suppress(ConnectionResetError):
            while b"\r\n\r\n" not in received and (part := line.recv(1 << 16)):
                received += part
        return received


@pytest.fixture(scope="module")
def guarded(start_server):
    """A server that knows its own name."""
    return start_server(Access(hosts=frozenset(("localhost", "127.0.0.1"))))


def test_hostile_requests_are_refused_with_a_status_of_the_client(guarded, capfd):
    assert len(REQUESTS) >= 100
    wrong = {}
    for name, data in REQUESTS.items():
        answer = sent(guarded.port, data)
        status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
        if not 400 <= status <= 431 or status == 422 or b"Traceback" in answer:
            wrong[name] = answer[:300]
    assert wrong == {}
    assert guarded.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    assert "failed" not in printed.err


def test_a_body_that_cannot_be_read_has_one_answer(server, capfd):
    answer = sent(server.port, REQUESTS["line: length and chunks"])  # the application refuses the method meanwhile
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert server.get("/health").json()["status"] == "ok"
    assert "failed" not in capfd.readouterr().err


def test_errors_have_the_body_of_openai(guarded):
    for method, path, status in (("GET", "/nothing", 404), ("GET", CHAT, 405)):
        answer = guarded.get(path)
        assert answer.status_code == status, method
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_slow_headers_and_slow_bodies_are_cut_off(server):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nhost:")
        assert slow.recv(100) == b""
    assert time.monotonic() - started < 10
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow:
        slow.sendall(chat(json.dumps(GOOD).encode())[:-5])
        assert b" 408 " in slow.recv(1000)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_client_that_goes_away_frees_its_place(server, is_streamed):
    endless = GOOD | {"max_tokens": 400, "stream": is_streamed, "temperature": 1.5, "seed": 3}
    lines = []
    for _ in range(3):
        line = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        line.sendall(chat(json.dumps(endless).encode()))
        lines.append(line)
    wait_until(lambda: server.loaded.engine.state().num_running == 3, 20)
    new_before = server.loaded.engine.state().num_new_tokens
    for line in lines:
        line.close()
    wait_until(lambda: server.loaded.engine.state().num_running == 0, 20)
    assert server.loaded.engine.state().num_new_tokens - new_before < 3 * 400


def test_a_full_queue_says_when_to_come_again(start_server):
    small = start_server(engine=EngineLimits(max_rows=1, max_waiting=1))
    answers = []
    asked = GOOD | {"max_tokens": 200}
    threads = [threading.Thread(target=lambda: answers.append(small.post(CHAT, asked))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["retry-after"]) > 0
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_an_answer_that_takes_too_long_is_a_timeout(start_server):
    hasty = start_server(limits=with_limits(answer_seconds=0.02))
    asked = GOOD | {"max_tokens": 200, "temperature": 0}
    answer = hasty.post(CHAT, asked)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
    streamed = hasty.post(CHAT, asked | {"stream": True})
    assert "timeout_error" in streamed.text
    wait_until(lambda: hasty.loaded.engine.state().num_running == 0, 20)


def test_a_closing_server_takes_nothing_on(start_server):
    closing = start_server()
    closing.serving.is_closing = True
    answer = closing.post(CHAT, GOOD)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert closing.get("/health").status_code == 503


def test_metrics_count_what_was_answered(guarded):
    guarded.post(CHAT, GOOD)
    guarded.get("/made-up-by-a-client")
    text = guarded.get("/metrics").text
    assert 'qlora_requests_total{path="/v1/chat/completions",status="200"} ' in text
    assert 'qlora_requests_total{path="other",status="404"} ' in text
    assert "made-up" not in text


def test_pages_of_allowed_origins_may_ask_and_no_others(start_server):
    open_one = start_server(Access(origins=frozenset(("https://app.example",))))
    asked = {"origin": "https://app.example", "access-control-request-method": "POST"}
    allowed = open_one.get("/v1/models", headers=asked)
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    refused = open_one.get("/v1/models", headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert "access-control-allow-origin" not in refused.headers


def resident_mib(server, num_requests: int) -> float:
    """Memory after good requests in turns with hostile ones."""
    hostile = list(REQUESTS.values())
    for number in range(num_requests):
        if number % 2:
            sent(server.port, hostile[number // 2 % len(hostile)])
        else:
            body = GOOD | {"max_tokens": 1, "stream": number % 4 == 0}
            assert server.post(CHAT, body).status_code == 200
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.parametrize(
    ("num_before", "num_requests"),
    [(20, 40), pytest.param(500, 4000, marks=pytest.mark.torture)],
    ids=["short", "long"],
)
def test_memory_stays_flat(server, num_before, num_requests):
    before = resident_mib(server, num_before)
    num_threads = threading.active_count()
    after = resident_mib(server, num_requests)
    print(f"{before:.1f} MiB, and {after:.1f} MiB after {num_requests} more requests, half of them hostile")
    assert after - before < 20
    wait_until(lambda: threading.active_count() <= num_threads + 1, 20)
