import pytest
import torch
from transformers import GenerationConfig

from qlora_cli.evaluate.answers import AnswerOptions, generate_answers
from qlora_cli.model.base import load_base
from qlora_cli.model.tokenizer import load_tokenizer
from qlora_cli.recipe.schema import ModelSection

PROMPTS = [list(f"prompt number {n} {'long ' * n}".encode()) for n in range(9)]


@pytest.fixture(scope="module")
def base(tiny_base):
    section = ModelSection(base_model=str(tiny_base), dtype="float32")
    return load_base(section, None).eval(), load_tokenizer(section)


def options(base, end_ids=frozenset(), max_new_tokens=12):
    return AnswerOptions(end_ids, base[1].pad_token_id, max_new_tokens)


def test_answers_do_not_depend_on_the_batch(base):
    alone = [generate_answers(base[0], [prompt], options(base, {257}))[0] for prompt in PROMPTS]
    together = generate_answers(base[0], PROMPTS, options(base, {257}))
    assert len({tuple(one.token_ids) for one in alone}) > 1
    assert together == alone


def test_greedy_answers_are_the_most_likely_tokens_one_by_one(base):
    model, _ = base
    input_ids = list(PROMPTS[3])
    for _ in range(5):
        with torch.no_grad():
            input_ids.append(model(torch.tensor([input_ids])).logits[0, -1].argmax().item())
    [answer] = generate_answers(model, [PROMPTS[3]], options(base, max_new_tokens=5))
    assert answer == (input_ids[len(PROMPTS[3]) :], False)


def test_an_answer_stops_before_the_end_of_turn(base):
    model, _ = base
    with torch.no_grad():
        first = model(torch.tensor([PROMPTS[0]])).logits[0, -1].argmax().item()
    assert generate_answers(model, [PROMPTS[0]], options(base, {first})) == [([], True)]


def test_sampling_settings_that_a_base_ships_do_not_touch_an_answer(base):
    model, _ = base
    plain = generate_answers(model, PROMPTS[:3], options(base, max_new_tokens=24))
    shipped = model.generation_config
    model.generation_config = GenerationConfig(repetition_penalty=5.0, do_sample=True, temperature=9.0)
    try:
        assert generate_answers(model, PROMPTS[:3], options(base, max_new_tokens=24)) == plain
    finally:
        model.generation_config = shipped
