"""A model folder that plain `transformers` loads: weights, tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from qlora_cli.console import size_in_words
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import ResourceError
from qlora_cli.progress import progress
from qlora_cli.run.disk_errors import final_name


def save_model_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, renderer: Renderer, folder: Path
) -> None:
    """Write everything that inference needs, so that `generate` stops where the trained answers stop.

    The chat template in force is saved even where the base had none, so no other prompt format can slip in.

    Raises:
        ResourceError: if the disk has no room for the weights.
    """
    _refuse_full_disk(folder, model.get_memory_footprint())
    model.generation_config = _generation_config(model.generation_config, tokenizer, renderer)
    with progress("writing the merged model"):
        model.save_pretrained(folder)
    tokenizer.chat_template = renderer.template
    tokenizer.save_pretrained(folder)


def _generation_config(
    base: GenerationConfig, tokenizer: PreTrainedTokenizerBase, renderer: Renderer
) -> GenerationConfig:
    config = GenerationConfig.from_dict(base.to_dict())
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    config.eos_token_id = sorted({*known, *renderer.end_of_turn_ids} - {None})
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    # `transformers` refuses to save sampling values beside do_sample=False, which older models ship.
    if not config.do_sample and (config.temperature not in (None, 1.0) or config.top_p not in (None, 1.0)):
        config.do_sample = True
    return config


def _refuse_full_disk(folder: Path, num_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < num_bytes:
        raise ResourceError(
            f"the disk is full: the weights take {size_in_words(num_bytes)}, and {size_in_words(free_bytes)} are free",
            place=final_name(str(folder)),
            hint="make room, or name a folder on another disk with --out",
        )
