"""A server that streams as vLLM, llama.cpp and others do, and servers that do not behave."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.serve.chat import chat
from qlora_cli.serve.chat_input import Said
from qlora_cli.serve.generation import SamplingOptions
from qlora_cli.serve.remote import KEY_VARIABLE, RemoteSession

OPTIONS = SamplingOptions(max_new_tokens=8, seed=3)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


def chunk(reason=None, **delta):
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}) + "\n\n"


@contextmanager
def serving(*events, status=200, models=("only",), after=b""):
    """A server with one answer; yields its URL and the requests that came."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, code, body):
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(200, json.dumps({"data": [{"id": name} for name in models]}).encode())

        def do_POST(self):
            asked.append((self.headers, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.answer(status, "".join(events).encode() + after)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def heard(url, *texts, model=None):
    session, out, aside = RemoteSession(url, model, OPTIONS), [], []
    chat(session, [Said(text, text.startswith("/")) for text in texts], out.append, aside.append)
    return session, "".join(out), "".join(aside)


def test_pieces_are_shown_and_the_next_question_has_the_turns_before_it():
    events = [": comment\n\n", chunk(role="assistant"), chunk(content="hé"), chunk(content="y"), chunk(reason="stop")]
    with serving(*events, 'data: {"choices": [], "usage": {}}\n\n', "data: [DONE]\n\n") as (url, asked):
        session, out, _ = heard(url, "hello", "again", "/retry")
    assert out == "héy\nhéy\nhéy\n"
    assert [len(body["messages"]) for _, body in asked] == [1, 3, 3]
    assert [body["seed"] for _, body in asked] == [3, 3, 4]
    assert {(body["model"], body["max_tokens"], body["stream"]) for _, body in asked} == {("only", 8, True)}
    assert [turn["content"] for turn in session.turns] == ["hello", "héy", "again", "héy"]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_that_comes_apart_is_shown_apart_and_not_sent_back(key):
    events = [chunk(**{key: "so "}), chunk(**{key: "it is"}), chunk(content=""), chunk(content="4", reason="stop")]
    with serving(*events) as (url, _):
        session, out, aside = heard(url, "2 + 2?")
    assert (out, aside) == ("4\n", "so it is\n\n")
    assert session.turns[1]["content"] == "4"


def test_reasoning_in_the_text_is_shown_apart():
    with serving(chunk(content="<think>so</th"), chunk(content="ink>\n4")) as (url, _):
        assert heard(url, "2 + 2?")[1:] == ("4\n", "so\n\n")


def test_an_answer_that_the_server_cut_is_said_to_be(capsys):
    with serving(chunk(content="a", reason="length")) as (url, _):
        heard(url, "hello")
    assert "`--max-new-tokens 16`" in capsys.readouterr().err


def test_the_key_of_the_environment_goes_to_the_server(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    with serving(chunk(content="a")) as (url, asked):
        heard(url, "hello")
    assert asked[0][0]["Authorization"] == "Bearer sesame"
    with pytest.raises(ArgumentError, match="unencrypted"):
        RemoteSession("http://example.com/v1", "m", OPTIONS)


def test_several_models_are_named_and_none_is_guessed():
    with serving(models=("base", "tickets")) as (url, _), pytest.raises(ArgumentError, match="base, tickets"):
        RemoteSession(url, None, OPTIONS)


BAD = {
    "no model of that name": ((json.dumps({"error": {"message": "no such model"}}),), 404, "status 404: no such model"),
    "an error in plain text": (("Internal\nServer Error",), 500, "status 500: Internal Server Error"),
    "an error in the stream": (
        (chunk(content="a"), 'data: {"error": {"message": "out of memory"}}\n\n'),
        200,
        "out of memory",
    ),
    "no JSON": (("data: <html>\n\n",), 200, "no chat completion: <html>"),
    "a whole answer at once": (('{"choices": []}',), 200, "no chat completion"),
    "a number": (("data: 7\n\n",), 200, "no chat completion"),
    "a redirect": ((), 302, "status 302"),
}


@pytest.mark.parametrize(("events", "status", "words"), BAD.values(), ids=BAD)
def test_a_fault_of_the_server_is_one_line_and_the_conversation_stays_as_it_was(events, status, words, capsys):
    with serving(*events, status=status) as (url, _):
        session, _, _ = heard(url, "hello", model="m")
    error, hint = capsys.readouterr().err.strip().split("\n")
    assert error.startswith(f"error: {url}: ")
    assert words in error
    assert hint.startswith("hint: ")
    assert session.turns == []


ODD = ["data: {}\n\n", 'data: {"choices": null}\n\n', 'data: {"choices": [{"delta": null}]}\n\n', chunk(content=None)]


def test_chunks_without_text_are_passed_over():
    with serving(*ODD, chunk(content="a")) as (url, _):
        assert heard(url, "hello")[1] == "a\n"


def test_a_server_that_is_not_there_is_one_line():
    with serving() as (url, _):
        pass
    with pytest.raises(ResourceError, match="does not answer"):
        RemoteSession(url, None, OPTIONS)


def test_base_is_another_model_of_a_server(capsys):
    with serving() as (url, _):
        heard(url, "/base")
    assert f"`qlora chat --url {url} --model NAME`" in capsys.readouterr().err
