"""Conversations as text, as the chat template prints them, with what the assistant says in them."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.example import Message
from qlora_cli.data.rejection import RowError
from qlora_cli.data.render.frames import Frames
from qlora_cli.data.render.generation_prompt import STAND_IN, Tools
from qlora_cli.data.render.leaves import LeafKind, markup_pattern
from qlora_cli.data.render.mask import TEMPLATE_ERRORS, AnswerSpan, ChatMask
from qlora_cli.data.render.placement import Places, find_places
from qlora_cli.data.render.printed import LATE, Row, check_printed
from qlora_cli.data.render.proof import check_starts, must_take_whole
from qlora_cli.data.render.shapes import AS_GIVEN, Shape, first_shape, shapes_to_try
from qlora_cli.data.render.special_text import Originals, SpecialText
from qlora_cli.data.render.traced_template import RenderTrace
from qlora_cli.data.render.trained_turns import without_choice
from qlora_cli.data.token_row import Unprinted
from qlora_cli.errors import DataError

NUM_COMPARED = 32
"""Conversations whose text and prompts are compared with transformers' own, before only one in so many is:"""

ROWS_BETWEEN_COMPARISONS = 256

MAX_MESSAGES_COMPARED = 64
"""Longer conversations are rendered no third time: their marked copy is printed by the unchanged template anyway."""


@dataclass(slots=True)
class _Fitted:
    """A conversation in a shape that the template takes, and its rendering."""

    messages: list[Message]
    tools: Tools
    shape: Shape
    trace: RenderTrace
    is_sampled: bool
    """Whether more is compared than in other rows."""

    places: Places | None = None
    """Places where its texts are printed; None while they are not looked for."""


@dataclass(slots=True)
class ChatText:
    """A rendered conversation before it is tokens."""

    text: str
    answers: list[AnswerSpan]
    originals: Originals = field(default_factory=dict)
    """Special tokens that the messages spell, by the characters that stand for them in `text`."""

    fitted: _Fitted | None = None
    """The rendering; of the messages with those characters."""


class ChatTexts:
    """Renders conversations with one template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, date: datetime.date | None = None) -> None:
        """
        Args:
            tokenizer: of the base model.
            template: Jinja text.
            date: what the template takes for today; by default the clock's.

        Raises:
            DataError: if the template is not valid Jinja.
        """
        self._tokenizer = tokenizer
        self._template = template
        self.mask = ChatMask(template, tokenizer.special_tokens_map, date)
        self.special = SpecialText(list(tokenizer.added_tokens_decoder.values()), self.mask.markup_read)
        self._markup = markup_pattern(self.mask.markup_read)
        self._frames = Frames()
        self._num_rendered = 0
        self._is_proven = False

    def render(self, messages: Sequence[Message], tools: Tools = None) -> ChatText:
        """The text of a conversation that ends with an answer, the first ones compared with transformers' own.

        Raises:
            DataError: what the template refuses, or what it would drop silently.
        """
        if not self._is_proven:
            self.mask.prompts.takes_whole = must_take_whole(self.mask, self.as_template_reads)
            self._is_proven = True
        self._num_rendered += 1
        is_compared = self._num_rendered <= NUM_COMPARED or self._num_rendered % ROWS_BETWEEN_COMPARISONS == 0
        return self._render(messages, tools, is_compared=is_compared, add_generation_prompt=False)

    def render_prompt(self, messages: Sequence[Message], tools: Tools = None) -> ChatText:
        """The text that makes the assistant answer.

        Raises:
            DataError: as `render`.
        """
        return self._render(messages, tools, is_compared=False, add_generation_prompt=True)

    def check(self, rendered: ChatText, trained: Collection[int | None]) -> list[Unprinted]:
        """Texts of a conversation that the template leaves out by design.

        Args:
            rendered: what `render` gave.
            trained: messages whose answers are trained.

        Raises:
            RowError: what it leaves out of what is trained, or of what that follows from.
        """
        fitted = rendered.fitted
        assert fitted is not None  # `render` sets it
        late = [LATE] if any(answer.starts_late for answer in rendered.answers) else []
        is_compared_here = fitted.is_sampled and len(fitted.messages) > MAX_MESSAGES_COMPARED
        if (
            fitted.places is None
            and not is_compared_here
            and self._frames.hold(fitted.trace, fitted.messages, rendered.answers)
        ):
            return late
        places = fitted.places or self._places(fitted.trace.text, fitted.messages, fitted.tools, fitted.shape)
        row = Row(fitted.messages, fitted.tools, rendered.answers, trained, self.mask.has_generation_blocks)

        def find(first: Sequence[Message]) -> Places | None:
            try:
                text = self.mask.plain(*self._handed(first, fitted.tools, fitted.shape))
            except DataError:
                return None
            return self._places(text, first, fitted.tools, fitted.shape)

        try:
            notes = check_printed(row, places, find)
        except RowError as error:
            problem = error.problems[0]
            raise RowError(error.cause, problem.text.translate(rendered.originals), hint=problem.hint) from error
        self._frames.learn(fitted.trace, fitted.messages, places)
        return late + notes

    def _render(
        self, messages: Sequence[Message], tools: Tools, *, is_compared: bool, add_generation_prompt: bool
    ) -> ChatText:
        if any(len(message) > 2 or message.get("content") is None for message in messages):
            messages = [_without_nulls(message) for message in without_choice(messages)]
        stood_in, stood_in_tools = list(messages), tools
        originals: Originals = {}
        if self.special.find(messages, tools) is not None:
            stood_in, stood_in_tools, originals = self.special.stand_in(messages, tools)
        fitted = self._fit(stood_in, stood_in_tools, add_generation_prompt, is_compared)
        trace = fitted.trace
        if (is_compared and len(messages) <= MAX_MESSAGES_COMPARED) or originals:
            handed = self._handed(messages, tools, fitted.shape)
            self._compare(trace.text, *handed, originals, add_generation_prompt)
        answers = []
        if not add_generation_prompt or any(message["role"] == "assistant" for message in messages):
            handed = self._handed(stood_in, stood_in_tools, fitted.shape)
            answers = self.mask.answers(trace, *handed)
            if is_compared:
                check_starts(self.mask, trace, *handed, answers)
        return ChatText(trace.text, answers, originals, fitted)

    def _fit(self, messages: list[Message], tools: Tools, add_generation_prompt: bool, is_sampled: bool) -> _Fitted:
        """The conversation in the first shape in which the template prints its calls and tools, as far as one does.

        Raises:
            DataError: if the template refuses all of them.
        """
        asks_for_shape = bool(tools) or any("tool_calls" in message for message in messages)
        if not asks_for_shape:
            trace = self.mask.trace(self.as_template_reads(messages), None, add_generation_prompt=add_generation_prompt)
            return _Fitted(messages, tools, AS_GIVEN, trace, is_sampled)
        best: _Fitted | None = None
        fault: DataError | None = None
        for shape in shapes_to_try(messages, tools, self._first_shape):
            handed = self._handed(messages, tools, shape)
            try:
                trace = self.mask.trace(*handed, add_generation_prompt=add_generation_prompt)
            except DataError as error:
                fault = fault or error
                continue
            places = self._places(trace.text, messages, tools, shape, add_generation_prompt)
            fitted = _Fitted(messages, tools, shape, trace, is_sampled, places)
            if _shows_calls(places):
                return fitted
            best = best or fitted
        if best is None:
            assert fault is not None  # one shape at least was tried
            raise fault
        return best

    @cached_property
    def _first_shape(self) -> Shape:
        return first_shape(lambda messages, tools: self.mask.plain(self.as_template_reads(messages), tools))

    def _handed(self, messages: Sequence[Message], tools: Tools, shape: Shape) -> tuple[list[Message], Tools]:
        """Messages and tools as the template gets them."""
        return self.as_template_reads(shape.messages(messages)), shape.tools(tools)

    def _places(
        self, text: str, messages: Sequence[Message], tools: Tools, shape: Shape, add_generation_prompt: bool = False
    ) -> Places:
        def render(marked: list[Message], marked_tools: Tools) -> str:
            handed = self._handed(marked, marked_tools, shape)
            return self.mask.plain(*handed, add_generation_prompt=add_generation_prompt)

        return find_places(text, messages, tools, render, self._markup)

    def _compare(
        self, text: str, messages: list[Message], tools: Tools, originals: Originals, add_generation_prompt: bool
    ) -> None:
        """Inference renders with `apply_chat_template`; what is trained must be the same to the character."""
        theirs = self._as_transformers(messages, tools, add_generation_prompt)
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

    def _as_transformers(self, messages: list[Message], tools: Tools, add_generation_prompt: bool) -> str:
        if self.mask.reads_clock:  # `apply_chat_template` can be given no other clock
            return self.mask.plain(messages, tools, add_generation_prompt=add_generation_prompt)
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self._template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        except TEMPLATE_ERRORS as error:
            raise DataError(f"the chat template refuses the conversation: {error}") from error
        return text

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


def _shows_calls(places: Places) -> bool:
    """Whether the calls and the names of the tools are printed."""
    shown = (LeafKind.CALL, LeafKind.ARGUMENT, LeafKind.TOOL)
    return all(found for leaf, found in zip(places.leaves, places.of, strict=True) if leaf.kind in shown)


def _without_nulls(message: Message) -> Message:
    """A key that is null says nothing."""
    if None not in message.values():
        return message
    return {key: value for key, value in message.items() if value is not None}
