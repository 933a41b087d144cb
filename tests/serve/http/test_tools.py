"""Tools through the official client, with a model that has learned to call one: whole and streamed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qlora_cli.data.example import Conversation, Place
from qlora_cli.data.render.renderer import Renderer
from tests.deploy.models import save_run
from tests.tiny_models import byte_tokenizer, tiny_llama

TEMPLATE = Path(__file__).parents[2] / "data" / "render" / "shapes" / "tools_and_calls_as_json" / "hermes.jinja"
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASKED = {"role": "user", "content": "Oslo?"}
CALLED = {"role": "assistant", "tool_calls": [{"function": {"name": "look_up", "arguments": {"city": "Oslo"}}}]}
FOUND = {"role": "tool", "content": "4 degrees"}
TOLD = {"role": "assistant", "content": "It is 4."}
STEPS = 120


@pytest.fixture(scope="module")
def caller(tmp_path_factory):
    """A run on a base that has learned one conversation by heart (4 s); its adapter changes nothing."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.read_text("utf-8")
    base = tmp_path_factory.mktemp("caller")
    tokenizer.save_pretrained(base)
    model = tiny_llama(len(tokenizer))
    conversation = Conversation([ASKED, CALLED, FOUND, TOLD], [TOOL], Place("x", 1, 1))
    [row] = Renderer(tokenizer).render([conversation])
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(base)
    return save_run(tmp_path_factory.mktemp("run"), base, quantization="none", is_inert=True).path


@pytest.fixture(scope="module")
def client(caller, start_server):
    return start_server(folders=[caller]).client()


def test_a_call_its_result_and_the_answer_go_through_the_client(client):
    request = {"model": "first", "tools": [TOOL], "temperature": 0, "max_tokens": 128}
    first = client.chat.completions.create(messages=[ASKED], **request).choices[0]
    assert first.finish_reason == "tool_calls"
    assert not first.message.content
    [call] = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"city": "Oslo"})
    result = {"role": "tool", "tool_call_id": call.id, "content": FOUND["content"]}
    messages = [ASKED, first.message, result]  # as the client's own examples send them back
    second = client.chat.completions.create(messages=messages, **request).choices[0]
    assert (second.message.content, second.finish_reason) == (TOLD["content"], "stop")


def test_a_streamed_call_is_the_whole_one(client):
    request = {"model": "first", "messages": [ASKED], "tools": [TOOL], "temperature": 0, "max_tokens": 128}
    with client.chat.completions.stream(**request) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    [call] = final.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("look_up", {"city": "Oslo"})


def test_tools_that_may_not_be_called_are_not_shown_to_the_model(client):
    request = {"model": "first", "messages": [ASKED], "temperature": 0, "max_tokens": 16}
    without = client.chat.completions.create(**request)
    refused = client.chat.completions.create(tools=[TOOL], tool_choice="none", **request)
    assert refused.usage.prompt_tokens == without.usage.prompt_tokens
    assert refused.choices[0].message.tool_calls is None
