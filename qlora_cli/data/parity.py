"""Whether inference sends what training saw: some chat templates open an answer in one way and print it in another."""

from __future__ import annotations

from qlora_cli.data.example import Conversation, Example
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.report import Finding
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import SourceSection

NUM_ROWS_TRIED = 64
"""Of each source; the template decides, so rows of one kind behave alike."""

PROMPT_DIFFERS = "prompt of the answer differs from the one at inference"


def begins_as_its_prompt(example: Example, renderer: Renderer) -> bool:
    """Whether the tokens sent to get the last answer are those that the trained row begins with.

    Raises:
        DataError: if the template refuses the conversation.
    """
    if not isinstance(example, Conversation) or len(example.messages) < 2:
        return True
    [row] = renderer.render([example])
    prompt = renderer.prompt_ids(example.messages[:-1], example.tools)
    return row.input_ids[: len(prompt)] == prompt


def compare_prompts(source: SourceSection, renderer: Renderer) -> list[Finding]:
    """A finding if any of the source's first rows begins otherwise than its prompt; faulty rows are passed over."""
    try:
        examples = read_examples(source, NUM_ROWS_TRIED)
    except DataError:
        return []
    differing = []
    for example in examples:
        try:
            if not begins_as_its_prompt(example, renderer):
                differing.append(example.place)
        except DataError:
            continue
    if not differing:
        return []
    text = f"of the first {len(examples)} rows; eval, chat and generate send other tokens before the answer"
    hint = (
        "the chat template prints an answer otherwise than its generation prompt begins it, often by a `<think>`: give "
        "the answers their reasoning, or name a corrected copy of the template in `model.chat_template`"
    )
    return [Finding(PROMPT_DIFFERS, "noted", len(differing), str(differing[0]), text, hint)]
