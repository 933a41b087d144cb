"""`qlora serve` as it is typed."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time

import httpx
import pytest

from qlora_cli.cli import serving
from tests.deploy.models import save_llama, save_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = save_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)
    return save_run(tmp_path_factory.mktemp("run"), base, quantization="none").path


def address_of(process) -> str:
    """Where the server says that it listens."""
    for line in process.stderr:
        if found := re.search(r"(http://127\.0\.0\.1:\d+)/v1", line):
            return found[1]
    raise AssertionError("the server ended before it was ready")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_signal_lets_begun_answers_finish(start, run, number, code):
    process = start("serve", f"mine={run}", "--port", "0")
    address = address_of(process)
    body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 150, "temperature": 1.5}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines()[-1].endswith("the server has stopped")
    assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(start, run):
    process = start("serve", f"mine={run}", "--port", "0")
    address = address_of(process)
    body = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 480, "temperature": 2}
    threading.Thread(target=lambda: _ask(address, body), daemon=True).start()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode in (-signal.SIGINT, 130)


def _ask(address: str, body: dict) -> None:
    try:
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)
    except httpx.HTTPError:
        return


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


def test_a_base_that_has_moved_is_named_and_loaded_as_asked(start, tmp_path):
    base = save_llama(tmp_path / "base", tie_word_embeddings=False)
    run = save_run(tmp_path / "run", base, quantization="none").path
    moved = base.rename(tmp_path / "moved")
    process = start("serve", f"mine={run}", "--port", "0", "--base-model", moved, "--set", "model.dtype=bfloat16")
    said = next(line for line in process.stderr if "/v1" in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
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
