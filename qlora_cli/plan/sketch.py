"""The configuration of a base of which only the size is known."""

from __future__ import annotations

from transformers import LlamaConfig, PreTrainedConfig

from qlora_cli.errors import RecipeError

HEAD_DIM = 128
"""Width of an attention head in a sketch, as in Llama and Qwen."""

LLAMA_3_VOCABULARY = 128_256
LLAMA_3_POSITIONS = 131_072


def sketch_config(
    num_params: int, *, hidden_size: int, num_layers: int, vocab_size: int = LLAMA_3_VOCABULARY
) -> PreTrainedConfig:
    """A Llama of about `num_params` parameters, for a base of which only the size is known.

    Heads are 128 wide, four query heads share a key head, and input and output embeddings are two matrices; what is
    left goes into the MLPs, in multiples of 64.

    Raises:
        RecipeError: if the width is not a multiple of 128, or embeddings and attention alone exceed `num_params`.

    >>> sketch_config(8_030_000_000, hidden_size=4096, num_layers=32).intermediate_size
    14336
    """
    if hidden_size % HEAD_DIM:
        raise RecipeError(
            f"--hidden is {hidden_size}, not a multiple of the width of an attention head, {HEAD_DIM}",
            hint=f"try --hidden {max(1, round(hidden_size / HEAD_DIM)) * HEAD_DIM}",
        )
    num_heads = hidden_size // HEAD_DIM
    num_key_heads = num_heads // 4 if num_heads % 4 == 0 else num_heads
    attention = 2 * hidden_size * HEAD_DIM * (num_heads + num_key_heads)
    left = num_params - 2 * vocab_size * hidden_size - num_layers * attention
    intermediate_size = round(left / (3 * hidden_size * num_layers) / 64) * 64
    if intermediate_size <= 0:
        raise RecipeError(
            f"--params {num_params:,} is less than the embeddings and attention of --hidden {hidden_size} and "
            f"--layers {num_layers} take",
            hint="give more parameters, fewer layers or a smaller width",
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_key_heads,
        max_position_embeddings=LLAMA_3_POSITIONS,
        tie_word_embeddings=False,
    )
