"""The renderer of a recipe's data: what is trained, and the day that it is rendered on."""

from __future__ import annotations

import datetime

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.recipe.data_schema import DataSection


def told_date(data: DataSection) -> datetime.date:
    """The day that is given to templates which print today's date: the recipe's, or that of the clock."""
    return datetime.date.fromisoformat(data.date) if data.date else datetime.date.today()


def data_renderer(tokenizer: PreTrainedTokenizerBase, data: DataSection, date: datetime.date | None = None) -> Renderer:
    """
    Args:
        tokenizer: of the base model, with the chat template that is to be used.
        data: the recipe's section.
        date: day that a run began on, where one is resumed or evaluated.

    Raises:
        DataError: a tokenizer or template that rows cannot be masked with.
    """
    return Renderer(tokenizer, train_on=data.train_on, date=date or told_date(data))
