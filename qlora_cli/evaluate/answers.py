"""Greedy answers of a model to many prompts, in batches."""

# B = prompts in a batch, L = longest prompt, G = generated tokens

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from qlora_cli.model.generation_settings import generation_settings, only_these_settings


@dataclass(frozen=True)
class AnswerOptions:
    """Settings of generation."""

    end_of_turn_ids: Collection[int]
    """Tokens that end an answer; the ending one is not part of its text."""

    pad_token_id: int
    max_new_tokens: int = 256


class Generated(NamedTuple):
    """The tokens of an answer."""

    token_ids: list[int]
    """Without the one that ends the turn."""

    is_ended: bool
    """Whether the model ended the turn; False where the answer ran into its longest length."""


def generate_answers(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], options: AnswerOptions
) -> list[Generated]:
    """The most likely continuation of each prompt, token by token; all prompts are one batch.

    Answers do not depend on what shares a batch, but for the rounding of 16 bit: the attention mask hides the padding,
    and positions count from each prompt's first token.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids of each prompt.
        options: when an answer ends.
    """
    input_ids_BL, attention_mask_BL = pad_left(prompts, options.pad_token_id)
    settings = generation_settings(options.end_of_turn_ids, options.pad_token_id, max_new_tokens=options.max_new_tokens)
    with torch.no_grad(), only_these_settings(model, settings):
        sequences = model.generate(
            input_ids=input_ids_BL.to(model.device), attention_mask=attention_mask_BL.to(model.device)
        )
    generated_BG = sequences[:, input_ids_BL.shape[1] :].tolist()
    return [until_end(token_ids, options.end_of_turn_ids) for token_ids in generated_BG]


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


def until_end(token_ids: Sequence[int], end_of_turn_ids: Collection[int]) -> Generated:
    """The tokens before the first that ends the turn.

    >>> until_end([5, 6, 2, 0, 0], end_of_turn_ids={2}), until_end([5, 6], end_of_turn_ids={2})
    (Generated(token_ids=[5, 6], is_ended=True), Generated(token_ids=[5, 6], is_ended=False))
    """
    end = next((index for index, token_id in enumerate(token_ids) if token_id in end_of_turn_ids), None)
    return Generated(list(token_ids[:end]), end is not None)
