"""Answers made of the most likely token each time, without any setting of sampling or penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.progress import progress


@torch.no_grad()
def greedy_answers(model: PreTrainedModel, questions: Questions) -> list[list[int]]:
    """New tokens of each prompt, the one that ends the answer included; one prompt after the other."""
    answers = []
    with progress("answering", len(questions.prompts)) as phase:
        for prompt in questions.prompts:
            answers.append(_answer(model, prompt, questions))
            phase.advance()
    return answers


def _answer(model: PreTrainedModel, prompt: Sequence[int], questions: Questions) -> list[int]:
    answer: list[int] = []
    input_ids, past = torch.tensor([list(prompt)], device=model.device), None
    while len(answer) < questions.max_new_tokens:
        output = model(input_ids=input_ids, past_key_values=past, use_cache=True)
        answer.append(int(output.logits[0, -1].argmax()))
        if answer[-1] in questions.end_ids:
            break
        past = output.past_key_values
        input_ids = torch.tensor([[answer[-1]]], device=model.device)
    return answer
