"""Which characters of a rendered conversation are trained, for any chat template.

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

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from qlora_cli.data.example import Message
from qlora_cli.data.traced_template import AmbiguousTraceError, Span, Trace, TracedTemplate
from qlora_cli.errors import DataError

Tools = list[dict[str, Any]] | None

STAND_IN = "\U0010fa03"
"""A private-use character in place of an answer, to see what the template prints around it."""

NUM_ROWS_PROVEN = 8
"""Rows of each shape whose generation prompt is rendered anew, before the shape's prompt is taken from memory."""

_BOUNDARY = re.compile(r"[\s>\])}]")

# What a template may raise on messages it was not written for: its own refusals, and Python's from inside it.
_TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    AmbiguousTraceError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ValueError,
)


def common_prompt(prompt: str, turn: str) -> int:
    """Number of characters of `turn` that the generation prompt already holds.

    Where the two part in the middle of a word or token, the count goes back to the last space or closing bracket.

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


class ChatMask:
    """Renders conversations and finds the characters to train."""

    def __init__(self, template: str, special_tokens: Mapping[str, str]) -> None:
        """
        Raises:
            DataError: if the template is no valid Jinja.
        """
        try:
            self._traced = TracedTemplate(template, special_tokens)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(
                f"line {error.lineno} of the chat template: {error.message}",
                hint="correct the template, or name another in `model.chat_template`",
            ) from error
        self._prompts: dict[tuple[Any, ...], tuple[str, int]] = {}  # shape -> prompt, rows that proved it
        self._prompt_depends_on_text = False

    def trace(self, messages: Sequence[Message], tools: Tools = None, *, add_generation_prompt: bool = False) -> Trace:
        """Render with each message's characters.

        Raises:
            DataError: what the template refuses, or a template that cannot be traced.
        """
        try:
            return self._traced.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except _TEMPLATE_ERRORS as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error

    def trained_spans(self, trace: Trace, messages: Sequence[Message], tools: Tools = None) -> list[Span]:
        """Characters to train, in order, one span for each assistant turn or `{% generation %}` block.

        Raises:
            DataError: if the assistant's words cannot be told from the rest.
        """
        if self._traced.has_generation_blocks:
            return trace.generated
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant" or index not in trace.turns:
                continue
            start, end = trace.turns[index]
            if index == len(messages) - 1:
                end = len(trace.text)  # e.g. Phi-3 prints eos_token after its loop
            start += self._num_prompt_characters(trace.text[start:end], messages, index, tools)
            # A closing space ("</s> ") only parts the turn from the next one, and merges into its first word.
            end -= len(trace.text[start:end]) - len(trace.text[start:end].rstrip(" "))
            if end > start:
                spans.append((start, end))
        if not trace.turns:
            raise DataError(
                "the chat template does not loop over the messages, so the assistant's words cannot be found",
                hint="put {% generation %} and {% endgeneration %} around the assistant's text in the template, "
                "and name it in `model.chat_template`",
            )
        if any(message["role"] == "tool" for message in messages):
            self._refuse_tool_results_inside(messages, tools)
        return spans

    def _num_prompt_characters(self, turn: str, messages: Sequence[Message], index: int, tools: Tools) -> int:
        """How much of the assistant turn at `index` the generation prompt already holds."""
        prompt = self._generation_prompt(messages[:index], tools)
        if turn.startswith(prompt):
            return len(prompt)
        # The turn begins otherwise, e.g. without the "<think>" that the prompt opens, or with a default system turn.
        # An answer that happens to begin like the rest of the prompt must not count as prompt: it is put out.
        if not messages[index].get("content"):
            return common_prompt(prompt, turn)
        stood_in = [*messages]
        stood_in[index] = {**messages[index], "content": STAND_IN}
        trace = self.trace(stood_in, tools)
        start, end = trace.turns.get(index, (0, 0))
        head, answer, _ = trace.text[start:end].partition(STAND_IN)
        if prompt and answer and prompt in head and turn.startswith(head):
            return head.rindex(prompt) + len(prompt)
        return min(common_prompt(prompt, trace.text[start:end]), common_prompt(prompt, turn))

    def _generation_prompt(self, messages: Sequence[Message], tools: Tools) -> str:
        """What the template prints after `messages` to make the assistant speak.

        It depends on roles and tool calls and hardly ever on text, so conversations of one shape share it, once the
        first `NUM_ROWS_PROVEN` of that shape agreed. Where any did not, nothing is shared.
        """
        shape = (bool(tools), *((message["role"], "tool_calls" in message) for message in messages))
        known, num_proven = self._prompts.get(shape, ("", 0))
        if num_proven >= NUM_ROWS_PROVEN and not self._prompt_depends_on_text:
            return known
        before = messages or [{"role": "user", "content": STAND_IN}]
        trace = self.trace(before, tools, add_generation_prompt=True)
        prompt = trace.text[trace.end_of_turns :]
        if num_proven and prompt != known:
            self._prompt_depends_on_text = True
        self._prompts[shape] = (prompt, num_proven + 1)
        return prompt

    def _refuse_tool_results_inside(self, messages: Sequence[Message], tools: Tools) -> None:
        """Some templates print a tool's result inside the assistant's turn that called it."""
        probe = [{**message, "content": STAND_IN} if message["role"] == "tool" else message for message in messages]
        trace = self.trace(probe, tools)
        for index, (start, end) in trace.turns.items():
            if messages[index]["role"] == "assistant" and STAND_IN in trace.text[start:end]:
                raise DataError(
                    "the chat template prints tool results inside the assistant's turn, where they would be trained",
                    hint="put {% generation %} blocks around what the assistant says in the template",
                )
