"""Whether inference sends what training saw: some chat templates open an answer in one way and print it in another."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_cli.data.answer_rows import rows_per_answer
from qlora_cli.data.example import Conversation, Example
from qlora_cli.data.read.examples import read_examples
from qlora_cli.data.render.printed import PER_ANSWER
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.render.trained_turns import untrained_turns
from qlora_cli.data.report import Finding
from qlora_cli.errors import DataError
from qlora_cli.recipe.data_schema import DataSection, SourceSection

NUM_ROWS_TRIED = 64
"""Of each source; the template decides, so rows of one kind behave alike."""

MAX_MESSAGES_TRIED = 2_000
"""Rendered for one source: long conversations take the time of many rows."""

PROMPT_DIFFERS = "prompt of the answer differs from the one at inference"
EARLIER_PROMPT_DIFFERS = "prompt of an earlier answer differs from the one at inference"

NUM_TOKENS_SHOWN = 8

_HINTS = {
    PROMPT_DIFFERS: "the chat template begins an answer differently from its generation prompt, often by a "
    "`<think>`: give the answers their reasoning, or name a corrected copy of the template in `model.chat_template`",
    EARLIER_PROMPT_DIFFERS: f"the chat template prints turns differently once others follow: {PER_ANSWER}",
}


@dataclass
class _Difference:
    """Rows in which a prompt is another one at inference."""

    first: str
    seen: str
    num_rows: int = 0


def differing_prompts(example: Example, renderer: Renderer, *, only_last: bool = False) -> dict[str, str]:
    """Prompts that the row does not begin with, each with the two texts where they part.

    Tried are the first trained answer, one in the middle, and the last.

    Args:
        example: a row as it is trained.
        renderer: of the row.
        only_last: whether the last answer alone is trained.

    Raises:
        DataError: if the template refuses the conversation.
    """
    if not isinstance(example, Conversation):
        return {}
    untrained = untrained_turns(example.messages)
    answers = [
        index
        for index, message in enumerate(example.messages)
        if index and message["role"] == "assistant" and index not in untrained
    ]
    if not answers:
        return {}
    tried = {answers[-1]} if only_last else {answers[0], answers[len(answers) // 2], answers[-1]}
    [row] = renderer.render([example])
    differing: dict[str, str] = {}
    for index in sorted(tried):
        prompt = renderer.prompt_ids(example.messages[:index], example.tools)
        pairs = enumerate(zip(row.input_ids, prompt, strict=False))
        at = next((at for at, (ours, theirs) in pairs if ours != theirs), None)
        if at is not None:
            what = PROMPT_DIFFERS if index == len(example.messages) - 1 else EARLIER_PROMPT_DIFFERS
            seen, sent = (renderer.text_of(ids[at : at + NUM_TOKENS_SHOWN]) for ids in (row.input_ids, prompt))
            differing.setdefault(what, f"the row continues with {seen!r} where they send {sent!r}")
    return differing


def compare_prompts(source: SourceSection, data: DataSection, renderer: Renderer) -> list[Finding]:
    """A finding if any of the source's first rows begins differently from its prompt; faulty rows are passed over."""
    try:
        examples = read_examples(source, NUM_ROWS_TRIED)
    except DataError:
        return []
    found: dict[str, _Difference] = {}
    num_messages = num_tried = 0
    for example in examples:
        num_tried += 1
        try:
            rows = rows_per_answer(example) if data.row_per == "answer" else [example]
            differing: dict[str, str] = {}
            for row in rows:
                differing |= differing_prompts(row, renderer, only_last=data.train_on == "last_turn")
                num_messages += len(row.messages) if isinstance(row, Conversation) else 1
        except DataError:
            continue
        for what, seen in differing.items():
            found.setdefault(what, _Difference(str(example.place), seen)).num_rows += 1
        if num_messages > MAX_MESSAGES_TRIED:
            break
    of = f"of the first {num_tried} rows; eval, chat and generate send other tokens before the answer"
    return [
        Finding(what, "noted", difference.num_rows, difference.first, f"{of}: {difference.seen}", _HINTS[what])
        for what, difference in found.items()
    ]
