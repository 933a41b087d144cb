"""The token rows that a merged model is verified on."""

from __future__ import annotations

from dataclasses import replace

from qlora_cli import console
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer, TokenRow
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection
from qlora_cli.recipe.schema import Recipe

NUM_ROWS = 8
MAX_ROW_TOKENS = 512

FIXED_QUESTIONS = (
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "A train goes 60 km in 45 minutes. How fast is it? Think step by step.",
    "Explain to a child why the sky is blue.",
)
"""For an adapter that brings no data: knowledge, style, arithmetic and explanation, one each."""


def probe_rows(recipe: Recipe | None, renderer: Renderer) -> list[list[int]]:
    """Rows of the run's held-out data (of its training data where none is held out), else the fixed questions.

    Rows with their answers are better probes than prompts alone: the answers are where the adapter acts.
    """
    if recipe is not None:
        try:
            return [list(row.input_ids) for row in own_rows(recipe, renderer, NUM_ROWS)]
        except DataError as fault:
            console.note(
                f"the run's data cannot be read any more, so fixed questions are used instead: {fault.problems[0].text}"
            )
    return [renderer.prompt_ids([{"role": "user", "content": question}]) for question in FIXED_QUESTIONS]


def own_rows(recipe: Recipe | None, renderer: Renderer, num_rows: int) -> list[TokenRow]:
    """The first rows of the run's held-out data, of its training data where none is held out; none without a recipe.

    Raises:
        DataError: if they cannot be read any more.
    """
    if recipe is None:
        return []
    return rows_of((recipe.data.eval or recipe.data.train)[0], renderer, num_rows)


def rows_of(source: SourceSection, renderer: Renderer, num_rows: int) -> list[TokenRow]:
    """The first rows of a source, at most MAX_ROW_TOKENS long.

    Raises:
        DataError: if they cannot be read.
    """
    rows = renderer.render(read_examples(source, num_rows))
    return [replace(row, input_ids=row.input_ids[:MAX_ROW_TOKENS], labels=row.labels[:MAX_ROW_TOKENS]) for row in rows]
