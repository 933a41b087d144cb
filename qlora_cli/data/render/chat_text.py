"""Conversations as text, as the chat template prints them, with what the assistant says in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.example import Message
from qlora_cli.data.render.generation_prompt import STAND_IN, Tools
from qlora_cli.data.render.mask import TEMPLATE_ERRORS, Answer, ChatMask
from qlora_cli.data.render.special_text import Originals, SpecialText
from qlora_cli.data.render.turn_choice import without_choice
from qlora_cli.errors import DataError

NUM_COMPARED = 32
"""Conversations whose text is compared with that of `apply_chat_template`, before only one in so many is:"""

ROWS_BETWEEN_COMPARISONS = 256

_TOOLS_HINT = "use a base model or `model.chat_template` whose template prints tools, or leave such rows out"


@dataclass(slots=True)
class ChatText:
    """A rendered conversation before it is tokens."""

    text: str
    answers: list[Answer]
    originals: Originals = field(default_factory=dict)
    """Special tokens that the messages spell, by the characters that stand for them in `text`."""


class ChatTexts:
    """Renders conversations with one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        """
        Raises:
            DataError: if the template is no valid Jinja.
        """
        self._tokenizer = tokenizer
        self._template = template
        self._reads_tools = "tools" in template
        self._reads_calls = "tool_calls" in template
        self.mask = ChatMask(template, tokenizer.special_tokens_map)
        self.special = SpecialText(list(tokenizer.added_tokens_decoder.values()), self.mask.markup_read)
        self._num_rendered = 0

    def render(self, messages: Sequence[Message], tools: Tools = None) -> ChatText:
        """The text of a conversation that ends with an answer, the first ones compared with transformers' own.

        Raises:
            DataError: what the template refuses, or what it would drop without a word.
        """
        self._num_rendered += 1
        is_compared = self._num_rendered <= NUM_COMPARED or self._num_rendered % ROWS_BETWEEN_COMPARISONS == 0
        return self._render(messages, tools, is_compared=is_compared, add_generation_prompt=False)

    def render_prompt(self, messages: Sequence[Message], tools: Tools = None) -> ChatText:
        """The text that makes the assistant answer.

        Raises:
            DataError: as `render`.
        """
        return self._render(messages, tools, is_compared=False, add_generation_prompt=True)

    def _render(
        self, messages: Sequence[Message], tools: Tools, *, is_compared: bool, add_generation_prompt: bool
    ) -> ChatText:
        self._refuse_ignored_tools(messages, tools)
        messages = without_choice(messages)
        messages = self.as_template_reads(messages)
        stood_in, stood_in_tools = messages, tools
        originals: Originals = {}
        if self.special.find(messages, tools) is not None:
            stood_in, stood_in_tools, originals = self.special.stand_in(messages, tools)
        trace = self.mask.trace(stood_in, stood_in_tools, add_generation_prompt=add_generation_prompt)
        if is_compared or originals:
            self._compare(trace.text, messages, tools, originals, add_generation_prompt)
        has_answers = not add_generation_prompt or any(message["role"] == "assistant" for message in messages)
        answers = self.mask.answers(trace, stood_in, stood_in_tools) if has_answers else []
        return ChatText(trace.text, answers, originals)

    def _compare(
        self, text: str, messages: list[Message], tools: Tools, originals: Originals, add_generation_prompt: bool
    ) -> None:
        """Inference renders with `apply_chat_template`; what is trained must be the same to the character."""
        try:
            theirs = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TEMPLATE_ERRORS as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        ours = text.translate(originals)
        if ours == theirs:
            return
        if originals:
            raise DataError(
                f"{next(iter(originals.values()))!r} in the text changes what the chat template prints around it",
                hint="take it out of the text, or leave the row out",
            )
        pairs = enumerate(zip(ours, theirs, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
        raise DataError(
            "the chat template prints other text when it is traced: "
            f"{ours[at : at + 20]!r} instead of {theirs[at : at + 20]!r}",
            hint="put {% generation %} blocks around the assistant's text, outside of {% set %} blocks and filters",
        )

    def _refuse_ignored_tools(self, messages: Sequence[Message], tools: Tools) -> None:
        """A template that never reads tools or calls would drop them without a word."""
        if tools and not self._reads_tools:
            raise DataError("the row has tools, and the chat template leaves them out", hint=_TOOLS_HINT)
        if not self._reads_calls and any("tool_calls" in message for message in messages):
            raise DataError("the row has tool calls, and the chat template leaves them out", hint=_TOOLS_HINT)

    def as_template_reads(self, messages: Sequence[Message]) -> list[Message]:
        """Content as strings, or as lists of text parts for templates that read nothing else."""
        if not self._reads_only_parts:
            return list(messages)
        return [
            {**message, "content": [{"type": "text", "text": message["content"]}]}
            if isinstance(message.get("content"), str)
            else message
            for message in messages
        ]

    @cached_property
    def _reads_only_parts(self) -> bool:
        """Templates of vision models may loop over content parts and print nothing of a string."""
        shown = []
        for content in (STAND_IN, [{"type": "text", "text": STAND_IN}]):
            try:
                shown.append(STAND_IN in self.mask.trace([{"role": "user", "content": content}]).text)
            except DataError:
                shown.append(False)
        return shown == [False, True]
