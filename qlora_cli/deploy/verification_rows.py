"""The token rows that a merged model is verified on."""

from __future__ import annotations

from qlora_cli import console
from qlora_cli.data.example import Example
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.errors import DataError
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
            rows = [row.input_ids for row in renderer.render(_own_examples(recipe))]
        except DataError as fault:
            console.note(
                f"the run's data cannot be read any more, so fixed questions are used instead: {fault.problems[0].text}"
            )
        else:
            return [row[:MAX_ROW_TOKENS] for row in rows]
    return [renderer.prompt_ids([{"role": "user", "content": question}]) for question in FIXED_QUESTIONS]


def _own_examples(recipe: Recipe) -> list[Example]:
    source = (recipe.data.eval or recipe.data.train)[0]
    return read_examples(source, NUM_ROWS)
