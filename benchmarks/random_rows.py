"""Rows of random text, on the road that data takes to `qlora train`, and the trainer over them."""

from __future__ import annotations

import json
import random
import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlora_cli.recipe.schema import Recipe
    from qlora_cli.run.directory import RunDirectory
    from qlora_cli.train.trainer import QloraTrainer

NUM_END_TOKENS = 1
"""Tokens that a document has beside one for each of its letters."""


def write_random_rows(path: Path, num_documents: int, num_tokens: int) -> None:
    """JSON Lines of texts of `num_tokens` tokens each under the tokenizer of `random_base`, one token a byte."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(num_documents):
            text = "".join(generator.choices(string.ascii_uppercase, k=num_tokens - NUM_END_TOKENS))
            file.write(json.dumps({"text": text}) + "\n")


def trainer_on_random_rows(recipe: Recipe, run: RunDirectory, model: Any, documents_per_row: int) -> QloraTrainer:
    """A trainer with full rows for every step of the recipe, written to the file that its `data.train` names.

    Args:
        recipe: with `max_steps`; a row has `max_length` tokens.
        run: where the run is written.
        model: the base with its adapter.
        documents_per_row: documents of equal length that are packed into each row.
    """
    from qlora_cli.data.prepare import prepare_data
    from qlora_cli.data.render.renderer import Renderer
    from qlora_cli.model.tokenizer import load_tokenizer
    from qlora_cli.train.setup import make_collator, setup_trainer
    from qlora_cli.train.trainer import TrainerParts

    training, length = recipe.training, recipe.data.max_length
    assert training.max_steps is not None, "a benchmark says how many steps it does"
    num_rows = training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    [source] = recipe.data.train
    write_random_rows(Path(source.path), num_rows * documents_per_row, length // documents_per_row)
    tokenizer = load_tokenizer(recipe.model)
    prepared = prepare_data(recipe.data, Renderer(tokenizer, train_on=recipe.data.train_on), training.seed)
    assert prepared.report.num_tokens == num_rows * length, "rows are not full"
    parts = TrainerParts(model, tokenizer, make_collator(recipe, tokenizer), prepared)
    return setup_trainer(recipe, run, parts, {})
