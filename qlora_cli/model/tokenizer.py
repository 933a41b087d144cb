"""The base model's tokenizer, ready for batches."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from qlora_cli.errors import RecipeError
from qlora_cli.model.base import reading, where_from
from qlora_cli.model.own_code import refuse_code_from_elsewhere
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection

MAX_TEMPLATE_BYTES = 1024 * 1024


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.base_model` with a padding token and the recipe's chat template, if it names one.

    A tokenizer without a padding token pads with its end-of-sequence token. That is safe here: the loss mask is
    built from the text, never from the padding id.

    Raises:
        RecipeError: if the tokenizer or the template file cannot be read, or the tokenizer has no vocabulary.
    """
    with progress(where_from(model.base_model)), reading(model.base_model, model.revision):
        if model.trust_remote_code:
            settings = get_tokenizer_config(model.base_model, revision=model.revision)
            refuse_code_from_elsewhere(model.base_model, settings)
        tokenizer = AutoTokenizer.from_pretrained(
            model.base_model, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    # Without its files `transformers` makes one up that knows special tokens alone: every text is "unknown" or empty.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise RecipeError(
            f"the tokenizer of '{model.base_model}' has no vocabulary: its files are missing",
            hint="download the model again, tokenizer.json included",
        )
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
    hint = "give the path of a Jinja file, or leave the key out"
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would be read for ever
            raise RecipeError(f"model.chat_template cannot be read: '{path}' is not a file", hint=hint)
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise RecipeError(
                f"model.chat_template '{path}' has more than {MAX_TEMPLATE_BYTES:,} bytes, templates have 10,000",
                hint=hint,
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(f"model.chat_template cannot be read: {fault}", hint=hint) from fault
