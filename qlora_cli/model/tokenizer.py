"""The base model's tokenizer, ready for batches."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import source_error
from qlora_cli.recipe.schema import ModelSection


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.base_model` with a padding token and the recipe's chat template, if it names one.

    A tokenizer without a padding token pads with its end-of-sequence token. That is safe here: the loss mask is
    built from the text, never from the padding id.

    Raises:
        RecipeError: if the tokenizer or the template file cannot be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model.base_model, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as fault:
        raise source_error(model.base_model, fault) from fault
    if model.chat_template is not None:
        tokenizer.chat_template = _read_template(Path(model.chat_template))
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise RecipeError(
                f"the tokenizer of '{model.base_model}' has neither a padding nor an end-of-sequence token",
                hint="add `eos_token` to its tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(
            f"model.chat_template cannot be read: {fault}",
            hint="give the path of a Jinja file, or leave the key out",
        ) from fault
