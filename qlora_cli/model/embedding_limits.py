"""Tables in which a base looks up tokens and positions, checked against what it is to be given.

An index beyond a table is an error deep in the model on a CPU, and on a GPU one that ends the process without saying
where it came from.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli.errors import ArgumentError, RecipeError

UNBOUNDED = 1 << 30
"""Tokens of a model whose configuration names no bound."""

LARGEST_OFFSET = 2
"""OPT and its like keep as many rows before the first position, for padding."""


def num_positions(config: PreTrainedConfig) -> int | None:
    """Positions that a base was made for; None where its configuration does not say."""
    number = getattr(config.get_text_config(), "max_position_embeddings", None)
    return number if isinstance(number, int) else None


def room_for_answer(num_prompt_tokens: int, context: int | None, hint: str) -> int:
    """Tokens between a prompt and the end of a model's context.

    Args:
        num_prompt_tokens: tokens of the conversation so far.
        context: positions of the model, as `num_positions` finds them.
        hint: what to do about a conversation that is too long.

    Raises:
        ArgumentError: if there is no room.

    >>> room_for_answer(100, 128, ""), room_for_answer(100, None, "") == UNBOUNDED
    (28, True)
    """
    if context is None:
        return UNBOUNDED
    if num_prompt_tokens >= context:
        raise ArgumentError(
            f"the conversation has {num_prompt_tokens} tokens and the model's context is {context}", hint=hint
        )
    return context - num_prompt_tokens


def has_position_table(base: PreTrainedModel) -> bool:
    """Whether positions are looked up, as in GPT-2, OPT and GPT-J, and not computed, as by RoPE in Llama.

    Args:
        base: with or without an adapter, of real or of fake weights.
    """
    positions = num_positions(base.config)
    if positions is None:
        return False
    tokens = set(base.get_input_embeddings().modules())
    tables = [module.weight for module in base.modules() if isinstance(module, nn.Embedding) and module not in tokens]
    tables += [buffer for buffer in base.buffers() if buffer.dim() == 2]
    return any(positions <= table.shape[0] <= positions + LARGEST_OFFSET for table in tables)


def check_tokens(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, largest_id: Callable[[], int]
) -> None:
    """Refuse tokens that the base has no embeddings for.

    Args:
        base: with or without an adapter.
        tokenizer: it may know more tokens than the base, as long as none of them is met.
        name: of the base, for the error.
        largest_id: finds the largest token id that will be met; called only if there is doubt.

    Raises:
        RecipeError: with the token and its id.
    """
    num_known = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= num_known:
        return
    token_id = max(largest_id(), tokenizer.pad_token_id)
    if token_id >= num_known:
        raise RecipeError(
            f"model.base_model '{name}' has embeddings for {num_known:,} tokens, and its tokenizer makes token "
            f"{token_id}, {tokenizer.convert_ids_to_tokens(token_id)!r}",
            hint="use the tokenizer that the base was trained with: tokens that were added to it have no embeddings",
        )


def tokens_without_rows(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens of the tokenizer that the base has no embeddings for, in the order of their ids.

    Args:
        base: with or without an adapter.
        tokenizer: which may have been extended beside an adapter.
    """
    num_known = base.get_input_embeddings().weight.shape[0]
    vocabulary = tokenizer.get_vocab() if len(tokenizer) > num_known else {}
    return sorted(
        (token for token, token_id in vocabulary.items() if token_id >= num_known), key=vocabulary.__getitem__
    )


def check_length(base: PreTrainedModel, name: str, num_tokens: int, *, remedy: str | None = None) -> None:
    """Refuse rows that reach beyond the table of positions, if the base has one.

    Args:
        base: with or without an adapter.
        name: of the base, for the error.
        num_tokens: of the longest row that the base will be given.
        remedy: the hint; by default to shorten rows by the recipe.

    Raises:
        RecipeError: with both numbers.
    """
    positions = num_positions(base.config)
    if positions is not None and num_tokens > positions and has_position_table(base):
        raise RecipeError(
            f"model.base_model '{name}' has {positions:,} positions, and the longest row has {num_tokens:,} tokens",
            hint=remedy or f"--set data.max_length={positions}",
        )
