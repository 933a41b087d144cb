"""The official `openai` client, unchanged, against the real engine."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from qlora_cli.data.example import Conversation, Place
from qlora_cli.serve.generation import SamplingOptions, generate_answer
from qlora_cli.serve.speaker import load_speaker

ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi there"}]
GREEDY = {"messages": ASKED, "temperature": 0, "max_tokens": 24}


def content(client, model, **settings) -> str:
    return client.chat.completions.create(model=model, **(GREEDY | settings)).choices[0].message.content


def test_a_chat_is_answered_as_qlora_generate_answers_it(server, folders):
    tuned = load_speaker(folders[0], is_base_wanted=False)
    alone = generate_answer(tuned, server.loaded.renderer, ASKED, SamplingOptions(max_new_tokens=24), lambda _: None)
    answer = server.client().chat.completions.create(model="first", **GREEDY)
    assert answer.choices[0].message.content == alone.text
    assert answer.usage.prompt_tokens == alone.num_prompt_tokens
    assert answer.usage.completion_tokens == alone.num_new_tokens
    assert answer.choices[0].finish_reason == ("stop" if alone.stopped_by == "end_of_turn" else "length")


def test_the_models_are_the_adapters_and_the_base(server):
    assert [model.id for model in server.client().models.list()] == ["first", "second", "base"]


def test_adapters_asked_at_once_answer_as_those_asked_in_turn(server):
    client, names = server.client(), ["first", "second", "base"] * 4
    in_turn = [content(client, name) for name in names]
    with ThreadPoolExecutor(12) as pool:
        at_once = list(pool.map(lambda name: content(client, name), names))
    assert at_once == in_turn
    assert len(set(in_turn)) == 3


def test_a_stream_is_the_whole_answer_and_ends_with_its_usage(server):
    client = server.client()
    chunks = list(
        client.chat.completions.create(model="first", stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    whole = client.chat.completions.create(model="first", **GREEDY)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(c.usage is None for c in chunks[:-1])
    assert len(chunks) > 4


def test_a_seed_gives_the_same_answer_again(server):
    client = server.client()
    drawn = [content(client, "first", temperature=1.5, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_logprobs_are_those_of_the_tokens_said(server):
    answer = server.client().chat.completions.create(model="first", logprobs=True, top_logprobs=3, **GREEDY)
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries).startswith(answer.choices[0].message.content[:5])
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)  # greedy takes the best
        assert entry.logprob <= 0


def test_a_stop_text_ends_the_answer_before_it(server):
    whole = content(server.client(), "first")
    stop = whole[4:6]
    answer = server.client().chat.completions.create(model="first", stop=stop, **GREEDY)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_completions_continue_plain_text_in_text_and_in_tokens(server):
    client, asked = server.client(), {"model": "second", "temperature": 0, "max_tokens": 8}
    text = client.completions.create(prompt="Once upon", logprobs=2, **asked)
    ids = server.loaded.tokenizer("Once upon", add_special_tokens=False).input_ids
    assert text.usage.prompt_tokens in (len(ids), len(ids) + 1)
    streamed = client.completions.create(prompt="Once upon", stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == text.choices[0].text
    assert len(text.choices[0].logprobs.tokens) == len(text.choices[0].logprobs.token_logprobs)
    assert client.completions.create(prompt=ids, **asked).usage.prompt_tokens == len(ids)


def test_what_the_model_gets_is_the_prefix_of_the_row_that_training_sees(server, monkeypatch):
    sent = []
    submit = server.loaded.engine.submit
    monkeypatch.setattr(server.loaded.engine, "submit", lambda request: sent.append(request) or submit(request))
    content(server.client(), "first")
    answered = [*ASKED, {"role": "assistant", "content": "Hello."}]
    [row] = server.loaded.renderer.render([Conversation(answered, None, Place("x", 1, 1))])
    first = next(at for at, label in enumerate(row.labels) if label != -100)
    assert list(sent[0].prompt_ids) == server.loaded.renderer.prompt_ids(ASKED) == row.input_ids[:first]


def test_errors_are_those_that_the_client_knows(server):
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="there are: first, second, base"):
        content(client, "gpt-4o")
    with pytest.raises(openai.BadRequestError, match="logit_bias") as refused:
        content(client, "first", logit_bias={"5": 10})
    assert refused.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="context"):
        content(client, "first", messages=[{"role": "user", "content": "x" * 9000}])


def test_a_key_is_asked_for_where_there_is_one(start_server):
    from qlora_cli.serve.http.serving import Access

    guarded = start_server(Access(api_key="secret"))
    with pytest.raises(openai.AuthenticationError):
        content(guarded.client(), "first")
    assert content(guarded.client(api_key="secret"), "first")
    assert [guarded.get(path).status_code for path in ("/health", "/metrics", "/v1/models")] == [200, 401, 401]


REFUSED = [
    {"n": 2},
    {"presence_penalty": 0.5},
    {"response_format": {"type": "json_object"}},
    {"tool_choice": "required"},
    {"top_k": 5},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"parallel_tool_calls": False},
    {"max_tokens": 0},
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_logprobs": 3},
    {"stop": ""},
    {"messages": []},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "begun"}]},
    {"stream_options": {"include_usage": True}},
    {"unknown_field": 1},
]


@pytest.mark.parametrize("fields", REFUSED, ids=json.dumps)
def test_what_would_change_the_answer_unheard_is_refused_by_name(server, fields):
    answer = server.post("/v1/chat/completions", {"model": "first"} | GREEDY | fields)
    assert answer.status_code == 400
    [name] = fields
    assert name in answer.json()["error"]["param"]
    assert name in answer.json()["error"]["message"]


TAKEN = [
    {"user": "u", "metadata": {"a": "b"}, "store": True},
    {"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}},
    {"stop": None, "tools": None, "seed": None, "max_completion_tokens": 8},
    {"stop": [], "tools": [], "tool_choice": "auto"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]}]},
    {"messages": [{"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hi"}]},
]


@pytest.mark.parametrize("fields", TAKEN, ids=json.dumps)
def test_what_changes_no_answer_is_taken(server, fields):
    asked = {"model": "first"} | GREEDY | fields
    if "max_completion_tokens" in fields:
        del asked["max_tokens"]
    answer = server.post("/v1/chat/completions", asked)
    assert answer.status_code == 200, answer.text
