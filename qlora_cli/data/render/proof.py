"""The proof of a template's mask: trained text starts exactly where the generation prompt of the same turns ends.

Tried on conversations that hold nothing but probes, before the first row, and on rows: the text that
`add_generation_prompt=True` gives for the turns before an answer is rendered. Where the conversation begins with
it, the answer must start right there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from qlora_cli.data.example import Message
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.generation_prompt import Tools
from qlora_cli.data.render.mask import AnswerSpan, ChatMask
from qlora_cli.data.render.traced_template import RenderTrace
from qlora_cli.errors import DataError

MAX_TURNS_BEFORE = 32
"""Of an answer of a row that is held against its prompt: all of these are rendered once more."""

_PARAMETERS = {"type": "object", "properties": {"place": {"type": "string", "description": "Place."}}}
_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": _PARAMETERS}}
_CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"place": "There"}}}


def probes() -> Iterator[tuple[list[Message], Tools]]:
    """Three exchanges: plain, with a system turn, with thinking, and with tools, a call and its result."""
    asked = [{"role": "user", "content": f"Question {number}?"} for number in (1, 2, 3)]
    said = [{"role": "assistant", "content": f"Answer {number}."} for number in (1, 2, 3)]
    thought = [{**message, "reasoning_content": f"Thought {number}."} for number, message in enumerate(said, 1)]
    system = {"role": "system", "content": "Instruction."}
    call = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    result = {"role": "tool", "content": "Result.", "tool_call_id": "abcdefghi", "name": "look"}
    plain = [message for pair in zip(asked, said, strict=True) for message in pair]
    yield plain, None
    yield [system, *plain], None
    yield [message for pair in zip(asked, thought, strict=True) for message in pair], None
    yield [*plain[:2], asked[1], call, result, said[1], asked[2], said[2]], [_TOOL]
    yield [system, asked[0], call, result, call, result, said[0]], [_TOOL]


def must_take_whole(mask: ChatMask, as_template_reads: Callable[[Sequence[Message]], list[Message]]) -> bool:
    """Whether a template's generation prompt follows from more than what comes right before the answer."""
    for messages, tools in probes():
        shown = as_template_reads(messages)
        try:
            trace = mask.trace(shown, tools)
            answers = mask.answers(trace, shown, tools)
        except DataError:
            continue  # turns or tools that the template does not take
        if any(wrong_start(mask, trace, shown, tools, answer) is not None for answer in answers):
            return True
    return False


def check_starts(
    mask: ChatMask, trace: RenderTrace, messages: Sequence[Message], tools: Tools, answers: Sequence[AnswerSpan]
) -> None:
    """Hold the first, a middle and the last answer of a row against their generation prompts, those far in left out.

    Raises:
        RowError: if one starts elsewhere.
    """
    answers = [answer for answer in answers if answer.turn is not None and answer.turn <= MAX_TURNS_BEFORE]
    for number in sorted({0, len(answers) // 2, len(answers) - 1} if answers else ()):
        answer = answers[number]
        end = wrong_start(mask, trace, messages, tools, answer)
        if end is not None and answer.turn is not None:
            seen, expected = trace.text[answer.start : answer.start + 20], trace.text[end : end + 20]
            raise RowError(
                RejectionReason.TEMPLATE,
                f"the mask of message {answer.turn + 1} begins at {seen!r}, "
                f"but its generation prompt ends before {expected!r}",
                hint="put {% generation %} blocks around the assistant's text in a copy of the template, and name it "
                "in `model.chat_template`",
            )


def wrong_start(
    mask: ChatMask, trace: RenderTrace, messages: Sequence[Message], tools: Tools, answer: AnswerSpan
) -> int | None:
    """End of the generation prompt, if that is known and is not where the answer starts.

    Templates that begin a turn differently from their generation prompt leave it unknown; the rows of data that
    this concerns are noted (`parity.py`). Inside of `{% generation %}` blocks the template may leave out more.
    """
    if answer.turn is None or answer.turn == 0 or messages[answer.turn]["role"] != "assistant":
        return None
    try:
        prompt = mask.plain(messages[: answer.turn], tools, add_generation_prompt=True)
    except DataError:
        return None
    if not trace.text.startswith(prompt) or answer.start == len(prompt):
        return None
    if mask.has_generation_blocks and answer.start > len(prompt):
        return None
    return len(prompt)
