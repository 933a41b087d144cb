"""Loss mask: the characters of a rendered conversation that are trained, for any chat template.

Trained is what the model itself must produce: of each assistant turn, all text that the template prints for it after
the generation prompt, with the end-of-turn token and a line end that the template closes the turn with. Templates
with `{% generation %}` blocks say it themselves; for all others it follows from two renderings:

    the conversation          <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello<|im_end|>\\n
    the assistant turn        (traced)                          [--------------------------------------]
    the generation prompt     (messages before it, add_generation_prompt=True)
                              <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n
    trained                                                                           [----------------]
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jinja2

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import STAND_IN, GenerationPrompts, Tools, what_matters
from qlora_cli.data.render.traced_template import AmbiguousTraceError, RenderTrace, Span, TracedTemplate
from qlora_cli.errors import DataError

_BOUNDARY = re.compile(r"[\s>\])}]")

# What a template may raise on messages it was not written for: its own refusals, and Python's from inside it.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    AmbiguousTraceError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ValueError,
    ArithmeticError,
)


def common_prompt(prompt: str, turn: str) -> int:
    """Number of characters of `turn` that the generation prompt already holds.

    Where the two differ in the middle of a word or token, the count goes back to the last space or closing bracket.

    >>> common_prompt("<|im_start|>assistant\\n", "<|im_start|>assistant\\nHello<|im_end|>")
    22
    >>> common_prompt("<|Assistant|><think>\\n", "<|Assistant|><tool_call>")
    13
    """
    if turn.startswith(prompt):
        return len(prompt)
    length = next(
        (at for at, (ours, theirs) in enumerate(zip(prompt, turn, strict=False)) if ours != theirs),
        min(len(prompt), len(turn)),
    )
    while length and not _BOUNDARY.match(prompt, length - 1):
        length -= 1
    return length


class AnswerSpan(NamedTuple):
    """Text that the model is to produce in one go."""

    start: int
    """First character."""

    end: int
    """The one after the last."""

    turn: int | None
    """Index of the message; None for a `{% generation %}` block that is not inside of one message's text."""

    starts_late: bool = False
    """Whether its `{% generation %}` block leaves out what the model must produce first."""


class ChatMask:
    """Renders conversations and finds the characters to train."""

    def __init__(self, template: str, special_tokens: Mapping[str, str], date: datetime.date | None = None) -> None:
        """
        Args:
            template: Jinja text.
            special_tokens: names the template may print, such as `bos_token`.
            date: what the template takes for today; by default the clock's.

        Raises:
            DataError: if the template is not valid Jinja.
        """
        try:
            self._traced = TracedTemplate(template, special_tokens, date)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"line {error.lineno} of the chat template: {error.message}",
                hint="correct the template, or name another in `model.chat_template`",
            ) from error
        self.prompts = GenerationPrompts(self.trace)

    @property
    def markup_read(self) -> frozenset[str]:
        """Words that the template looks for in the messages, such as `</think>`."""
        return self._traced.code.markup_read

    @property
    def reads_clock(self) -> bool:
        """Whether the template may print today's date."""
        return self._traced.code.reads_clock

    @property
    def has_generation_blocks(self) -> bool:
        """Whether the template says itself what the assistant says."""
        return self._traced.code.has_generation_blocks

    def trace(
        self, messages: Sequence[Message], tools: Tools = None, *, add_generation_prompt: bool = False
    ) -> RenderTrace:
        """Render with each message's characters.

        Raises:
            DataError: what the template refuses, or a template that cannot be traced.
        """
        try:
            return self._traced.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            raise _refusal(error, messages, self._traced.printing) from error

    def plain(self, messages: Sequence[Message], tools: Tools = None, *, add_generation_prompt: bool = False) -> str:
        """Render as the unchanged template does.

        Raises:
            DataError: what the template refuses.
        """
        try:
            return self._traced.plain(messages, tools, add_generation_prompt=add_generation_prompt)
        except TEMPLATE_ERRORS as error:
            raise _refusal(error, messages, None) from error

    def answers(self, trace: RenderTrace, messages: Sequence[Message], tools: Tools = None) -> list[AnswerSpan]:
        """Texts that the model is to produce, in order: each assistant turn, or each `{% generation %}` block.

        Raises:
            DataError: if the assistant's words cannot be separated from the rest.
        """
        if self.has_generation_blocks:
            return self._blocks(trace, messages, tools)
        if not trace.turns:
            raise DataError(
                "the chat template does not loop over the messages, so the assistant's words cannot be found",
                hint="put {% generation %} and {% endgeneration %} around the assistant's text in the template, "
                "and name it in `model.chat_template`",
            )
        answers = []
        for index, message in enumerate(messages):
            if message["role"] == "assistant" and index in trace.turns:
                start, end = self._answer_in_turn(trace, messages, index, tools)
                if end > start:
                    answers.append(AnswerSpan(start, end, index))
        return self._without_tool_results(answers, trace, messages, tools)

    def _blocks(self, trace: RenderTrace, messages: Sequence[Message], tools: Tools) -> list[AnswerSpan]:
        """The `{% generation %}` blocks, less what the generation prompt of their turn already holds."""
        answers = []
        seen: set[int | None] = {None}
        for start, end in trace.generated:
            turn = _turn_around(start, end, trace)
            starts_late = False
            if turn not in seen and turn is not None and messages[turn]["role"] == "assistant":
                after_prompt = self._after_prompt(trace, messages, turn, tools)
                starts_late = start > after_prompt
                if start < after_prompt < end:
                    start = after_prompt
            seen.add(turn)
            answers.append(AnswerSpan(start, end, turn, starts_late))
        return answers

    def _answer_in_turn(self, trace: RenderTrace, messages: Sequence[Message], index: int, tools: Tools) -> Span:
        """The characters of an assistant turn that follow its generation prompt."""
        text = trace.text
        end = trace.turns[index][1]
        if index == len(messages) - 1:
            end = len(text)  # e.g. Phi-3 prints eos_token after its loop
        start = self._after_prompt(trace, messages, index, tools)
        # A closing space ("</s> ") only parts the turn from the next one, and merges into its first word.
        while end > start and text[end - 1] == " ":
            end -= 1
        return start, end

    def _after_prompt(self, trace: RenderTrace, messages: Sequence[Message], index: int, tools: Tools) -> int:
        """End of the generation prompt of an assistant turn."""
        start, end = trace.turns[index]
        turn = trace.text[start : end if index < len(messages) - 1 else len(trace.text)]
        prompt = self.prompts.before(trace, messages, index, tools)
        if turn.startswith(prompt):
            return start + len(prompt)
        return start + self._num_prompt_characters(prompt, turn, messages, index, tools)

    def _num_prompt_characters(
        self, prompt: str, turn: str, messages: Sequence[Message], index: int, tools: Tools
    ) -> int:
        """Number of a turn's characters that the generation prompt holds, where the turn does not begin with all of it.

        It begins e.g. without the "<think>" that the prompt opens, or with a default system turn. An answer that
        happens to begin like the rest of the prompt must not count as prompt, so the answer is replaced by a
        placeholder and rendered again.
        """
        if not messages[index].get("content"):
            return common_prompt(prompt, turn)
        stood_in = [*what_matters(messages, index), {**messages[index], "content": STAND_IN}]
        trace = self.trace(stood_in, tools)
        start, end = trace.turns.get(len(stood_in) - 1, (0, 0))
        head, answer, _ = trace.text[start:end].partition(STAND_IN)
        if prompt and answer and prompt in head and turn.startswith(head):
            return head.rindex(prompt) + len(prompt)
        return min(common_prompt(prompt, trace.text[start:end]), common_prompt(prompt, turn))

    def _without_tool_results(
        self, answers: Sequence[AnswerSpan], trace: RenderTrace, messages: Sequence[Message], tools: Tools
    ) -> list[AnswerSpan]:
        """Some templates print a tool's result inside the assistant's turn that called it, and no turn of its own.

        What the assistant says there ends where the text ends that the template prints without the result.
        """
        kept = []
        for answer in answers:
            assert answer.turn is not None  # answers of templates without generation blocks
            after = answer.turn + 1
            if after < len(messages) and messages[after]["role"] == "tool":
                start, _ = trace.turns.get(after, trace.turns[answer.turn])
                if start < answer.end:
                    answer = answer._replace(end=self._end_of_call(trace, messages, answer, tools))
            kept.append(answer)
        return kept

    def _end_of_call(self, trace: RenderTrace, messages: Sequence[Message], answer: AnswerSpan, tools: Tools) -> int:
        """End of the turn, in the full text, of a conversation that is cut after a tool call."""
        assert answer.turn is not None  # answers of templates without generation blocks
        cut = [*what_matters(messages, answer.turn), messages[answer.turn]]
        try:
            shown = self.trace(cut, tools)
            start, _ = shown.turns[len(cut) - 1]
            at, _ = trace.turns[answer.turn]
            for turn in (shown.text[start:], shown.text[start : shown.end_of_turns]):
                if trace.text.startswith(turn, at):
                    return at + len(turn)
        except (DataError, KeyError):
            pass  # a template that wants a result for every call
        raise DataError(
            "the chat template prints tool results inside the assistant's turn, where they would be trained",
            hint="put {% generation %} blocks around what the assistant says in the template",
        )


def _refusal(error: Exception, messages: Sequence[Message], index: int | None) -> DataError:
    """Error of the template, as a sentence: its own, or where Jinja or Python failed inside it."""
    if type(error) in (jinja2.TemplateError, AmbiguousTraceError):
        return DataError(f"the chat template refuses the conversation: {error}")
    where = "before it comes to a message"
    if index is not None:
        message = messages[index]
        where = f"over message {index + 1} ('{message['role']}'{' with tool_calls' if 'tool_calls' in message else ''})"
    return DataError(
        f"the chat template refuses the conversation: it fails {where}, {str(error).rstrip('.')}",
        hint="give the row the keys that the template reads, or name another template in `model.chat_template`",
    )


def _turn_around(start: int, end: int, trace: RenderTrace) -> int | None:
    return next((index for index, turn in trace.turns.items() if turn[0] <= start and end <= turn[1]), None)
