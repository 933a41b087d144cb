"""Greedy answers of a model to many prompts, in batches."""

# B = prompts in a batch, L = longest prompt, G = generated tokens

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli.model.generation_settings import generation_settings, only_these_settings


@dataclass(frozen=True)
class AnswerOptions:
    """Settings of generation."""

    end_of_turn_ids: Collection[int]
    """Tokens that end an answer; the ending one is not part of its text."""

    max_new_tokens: int = 256
    batch_size: int = 8


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: AnswerOptions,
    on_answers: Callable[[int], None] | None = None,
) -> list[str]:
    """The most likely continuation of each prompt, token by token, in the order of the prompts.

    Prompts of like length share a batch. Answers do not depend on it: the attention mask hides the padding, and
    positions count from each prompt's first token.

    Args:
        model: a causal language model in eval mode.
        tokenizer: its tokenizer; only `pad_token_id` and decoding are used.
        prompts: token ids of each prompt.
        options: when an answer ends, and how many are generated together.
        on_answers: called after each batch with the number of its prompts.
    """
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(prompts), options.batch_size):
        indices = by_length[start : start + options.batch_size]
        texts = _answer_batch(model, tokenizer, [prompts[index] for index in indices], options)
        for index, text in zip(indices, texts, strict=True):
            answers[index] = text
        if on_answers is not None:
            on_answers(len(indices))
    return answers


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`input_ids` and `attention_mask`, both of shape (B, L), with the prompts at the right edge.

    >>> pad_left([[5, 6], [7]], pad_token_id=0)[0].tolist(), pad_left([[5, 6], [7]], pad_token_id=0)[1].tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    length = max(map(len, prompts))
    gaps = [length - len(prompt) for prompt in prompts]
    input_ids_BL = [[pad_token_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    attention_mask_BL = [[0] * gap + [1] * (length - gap) for gap in gaps]
    return torch.tensor(input_ids_BL), torch.tensor(attention_mask_BL)


def _answer_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: AnswerOptions,
) -> list[str]:
    input_ids_BL, attention_mask_BL = pad_left(prompts, tokenizer.pad_token_id)
    settings = generation_settings(
        options.end_of_turn_ids, tokenizer.pad_token_id, max_new_tokens=options.max_new_tokens
    )
    with torch.no_grad(), only_these_settings(model, settings):
        sequences = model.generate(
            input_ids=input_ids_BL.to(model.device), attention_mask=attention_mask_BL.to(model.device)
        )
    generated_BG = sequences[:, input_ids_BL.shape[1] :].tolist()
    return [
        tokenizer.decode(_until_end(token_ids, options.end_of_turn_ids), skip_special_tokens=True)
        for token_ids in generated_BG
    ]


def _until_end(token_ids: Sequence[int], end_of_turn_ids: Collection[int]) -> Sequence[int]:
    """The tokens before the first that ends the turn.

    >>> _until_end([5, 6, 2, 0, 0], end_of_turn_ids={2})
    [5, 6]
    """
    ends = (index for index, token_id in enumerate(token_ids) if token_id in end_of_turn_ids)
    return token_ids[: next(ends, len(token_ids))]
