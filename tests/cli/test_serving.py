"""`qlora serve` as it is typed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from qlora_cli.cli import serving
from tests.cli.conftest import Forked
from tests.deploy.models import save_llama, save_run
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SECONDS_TO_START = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)
    return save_run(tmp_path_factory.mktemp("run"), base, quantization="none").path


@pytest.fixture
def run_of_long_answers(tmp_path):
    base = save_llama(tmp_path / "base", tie_word_embeddings=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return save_run(tmp_path / "run", base, quantization="none").path


def line_of_address(process: Forked) -> str:
    """What the server says when it listens."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.is_running():
        for line in process.err.read_text().splitlines(keepends=True):
            if "/v1" in line and line.endswith("\n"):
                return line
        time.sleep(0.02)
    raise AssertionError(f"the server was not ready: {process.err.read_text()}")


def address_in(line: str) -> str:
    """Where the server says that it listens; "" for another line."""
    found = re.search(r"(http://127\.0\.0\.1:\d+)/v1", line)
    return found[1] if found else ""


def begin_an_answer(address: str, stop: Callable[[], None]) -> None:
    """Ask for one, stop the server at its first word, and see that it comes to its end."""
    body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 150, "temperature": 1.5}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        stop()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")


def test_a_stop_signal_lets_begun_answers_finish(start, run):
    process = start("serve", f"mine={run}", "--port", "0")
    address = next(address for line in process.stderr if (address := address_in(line)))
    begin_an_answer(address, lambda: process.send_signal(signal.SIGTERM))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert err.splitlines()[-1].endswith("the server has stopped")
    assert "Traceback" not in err


def test_ctrl_c_lets_begun_answers_finish(fork, run):
    process = fork("serve", f"mine={run}", "--port", "0")
    address = address_in(line_of_address(process))
    begin_an_answer(address, lambda: os.kill(process.child.pid, signal.SIGINT))
    assert process.child.wait() == 130
    assert process.err.read_text().splitlines()[-1].endswith("the server has stopped")
    assert "Traceback" not in process.err.read_text()


def test_a_second_signal_ends_it_at_once(fork, run_of_long_answers):
    process = fork("serve", f"mine={run_of_long_answers}", "--port", "0")
    address = address_in(line_of_address(process))
    with ExitStack() as connections:
        answers = [connections.enter_context(begun_answer(address, seed)) for seed in range(8)]
        os.kill(process.child.pid, signal.SIGINT)
        wait_until(lambda: "once more ends at once" in process.err.read_text(), SECONDS_TO_START)
        assert process.stop(signal.SIGINT).code in (-signal.SIGINT, 130)
        with pytest.raises(httpx.RemoteProtocolError):
            for answer in answers:  # one may have come to its end before
                list(answer)


@contextmanager
def begun_answer(address: str, seed: int) -> Iterator[Iterator[str]]:
    """The lines of an answer of up to 4,000 tokens, the first of which has come."""
    body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4000, "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"temperature": 2, "seed": seed}) as answer:
        lines = answer.iter_lines()
        assert "content" in next(lines)
        yield lines


def test_other_machines_need_a_key(call, run, monkeypatch):
    monkeypatch.delenv("QLORA_API_KEY", raising=False)
    ran = call("serve", run, "--host", "0.0.0.0", "--port", "0")
    assert ran.code == 2
    assert "QLORA_API_KEY holds no key" in ran.err
    assert "hint: export QLORA_API_KEY=" in ran.err


def test_an_address_that_is_taken_is_named(call, run):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ran = call("serve", run, "--port", port)
    assert ran.code == 2
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in ran.err


def test_names_must_tell_models_apart(call, run):
    for arguments, told in (
        ((f"a={run}", f"a={run}"), "the name 'a' is given twice"),
        ((f"={run}",), "no model with a name"),
    ):
        ran = call("serve", *arguments)
        assert (ran.code, told in ran.err) == (2, True), ran.err


def test_what_is_not_there_is_said_before_any_library_is_loaded(call, run):
    ran = call("serve", f"a={run}", "b=runs/nothing")
    assert (ran.code, "runs/nothing" in ran.err) == (2, True)
    assert "Traceback" not in ran.err


def test_a_base_that_has_moved_is_named_and_loaded_as_asked(fork, tmp_path):
    base = save_llama(tmp_path / "base", tie_word_embeddings=False)
    run = save_run(tmp_path / "run", base, quantization="none").path
    moved = base.rename(tmp_path / "moved")
    process = fork("serve", f"mine={run}", "--port", "0", "--base-model", moved, "--set", "model.dtype=bfloat16")
    said = line_of_address(process)
    process.stop(signal.SIGTERM)
    assert said.startswith("mine, base in bfloat16")


def test_print_is_for_vllm(call, run):
    ran = call("serve", run, "--print")
    assert (ran.code, ran.out) == (2, "")
    assert "--engine vllm" in ran.err


def test_without_the_extra_it_is_one_line_that_says_what_to_install(call, monkeypatch):
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    ran = call("serve")
    assert (ran.code, ran.out) == (5, "")
    assert ran.err == "error: fastapi and uvicorn not installed\nhint: pip install 'qlora-cli[serve]'\n"
