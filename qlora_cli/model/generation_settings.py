"""Settings of generation: the caller's only, without those that the base ships."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel


def generation_settings(
    end_of_turn_ids: Collection[int],
    pad_token_id: int,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> GenerationConfig:
    """Settings that end an answer at the end of the turn.

    Args:
        end_of_turn_ids: tokens that end an answer.
        pad_token_id: fills finished rows of a batch.
        max_new_tokens: longest answer.
        temperature: 0 takes the most likely token; 1 samples from the model's own distribution.
        top_p: sample from the most likely tokens that together have this probability (arXiv:1904.09751).
    """
    settings = GenerationConfig(
        do_sample=temperature > 0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(end_of_turn_ids),
        pad_token_id=pad_token_id,
    )
    if temperature > 0:
        settings.temperature, settings.top_p = temperature, top_p
        settings.top_k = 0  # the library's default of 50 would cut what top_p alone should
    return settings


@contextmanager
def only_these_settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Make `settings` the model's own while the block runs.

    `generate` fills what its argument leaves open from the model's own settings, and a base may ship a repetition
    penalty or a sampling temperature. Under an adapter it is the base that generates, and of prompt methods PEFT hands
    it no settings (peft 0.21.2: they go to the backbone), so they are laid on both.
    """
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    before = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = settings
    try:
        yield
    finally:
        for holder, its_own in zip(holders, before, strict=True):
            holder.generation_config = its_own
