import dataclasses

import pytest
import torch

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ArgumentError
from qlora_cli.serve.generation import SamplingOptions, generate_answer

GREEDY = SamplingOptions(max_new_tokens=24)
SAMPLED = SamplingOptions(temperature=0.9, top_p=0.95, max_new_tokens=24, seed=5)
QUESTION = [{"role": "user", "content": "Count to three."}]


def ask(tuned, options=GREEDY, messages=QUESTION, on_text=lambda text: None):
    return generate_answer(tuned, Renderer(tuned.tokenizer), messages, options, on_text)


def test_streamed_pieces_are_the_answer(tuned):
    pieces = []
    answer = ask(tuned, on_text=pieces.append)
    assert len(pieces) > 1
    assert "".join(pieces) == answer.text


def test_greedy_answer_is_the_likeliest_token_at_each_step(tuned):
    ids = Renderer(tuned.tokenizer).prompt_ids(QUESTION)
    start = len(ids)
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(tuned.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    answer = ask(tuned, dataclasses.replace(GREEDY, max_new_tokens=6))
    assert answer.num_prompt_tokens == start
    assert answer.text == tuned.tokenizer.decode(ids[start:], skip_special_tokens=True).rstrip("\ufffd")


def test_a_seed_repeats_a_sampled_answer_and_another_does_not(tuned):
    first, second = ask(tuned, SAMPLED), ask(tuned, SAMPLED)
    assert first.text == second.text
    assert ask(tuned, dataclasses.replace(SAMPLED, seed=6)).text != first.text


def test_sampling_settings_of_the_base_play_no_part(tuned):
    expected = ask(tuned).text
    tuned.model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=9.0)
    assert ask(tuned).text == expected


def test_answer_ends_with_the_turn(tuned):
    end_of_turn = tuned.tokenizer.eos_token_id
    head = tuned.model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[end_of_turn] = 1e4
    answer = ask(tuned)
    assert (answer.text, answer.num_new_tokens, answer.stopped_by) == ("", 1, "end_of_turn")


def test_answer_stops_at_its_length(tuned):
    answer = ask(tuned, dataclasses.replace(GREEDY, max_new_tokens=3))
    assert (answer.num_new_tokens, answer.stopped_by) == (3, "length")


def test_answer_never_leaves_the_context(tuned):
    long = [{"role": "user", "content": "x" * 220}]
    answer = ask(tuned, SamplingOptions(max_new_tokens=500), long)
    assert answer.num_prompt_tokens + answer.num_new_tokens <= 256


def test_a_conversation_that_fills_the_context_is_refused(tuned):
    with pytest.raises(ArgumentError, match="the model's context is 256"):
        ask(tuned, messages=[{"role": "user", "content": "x" * 300}])


def test_ctrl_c_ends_the_answer_and_keeps_what_was_said(tuned):
    pieces = []

    def stop_at_third(text):
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = ask(tuned, on_text=stop_at_third)
    assert answer.stopped_by == "interrupt"
    assert answer.text == "".join(pieces)
