"""The one way from examples to tokens, for training, evaluation, chat and serving alike."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qlora_cli.constants import IGNORE_INDEX
from qlora_cli.data.example import Example, Message, PlainText
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.rejection import RejectionReason, RowError
from qlora_cli.data.render.answer_frame import AnswerFrame, find_answer_frame, marks_of_tokens
from qlora_cli.data.render.chat_text import ChatText, ChatTexts
from qlora_cli.data.render.encoding import Encoded, Encoder
from qlora_cli.data.render.generation_prompt import STAND_IN, Tools
from qlora_cli.data.render.special_text import Originals
from qlora_cli.data.render.traced_template import Span
from qlora_cli.data.render.trained_turns import TrainOn, choose, untrained_turns
from qlora_cli.data.token_row import TokenRow, Unprinted, mask_labels
from qlora_cli.errors import DataError

__all__ = ["Renderer", "TokenRow"]

ALPACA_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.jinja"

BATCH_ROWS = 2048
"""Rows tokenized in one call."""


@dataclass(slots=True)
class _Text:
    """A rendered example before it is tokens."""

    text: str
    spans: list[Span]
    """Text of the assistant, or the completion; the text is cut there."""

    is_trained: list[bool]
    """Of each span."""

    originals: Originals
    """Special tokens that messages spell, by their stand-ins in `text`."""

    unprinted: tuple[Unprinted, ...] = ()
    """Texts that the template left out by design."""


class Renderer:
    """Renders with the tokenizer's chat template and masks what the assistant does not say.

    For one thread at a time; it starts none before its first batch, so processes may be forked with it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        *,
        train_on: TrainOn = "assistant",
        date: datetime.date | None = None,
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer with an end-of-sequence token.
            template: Jinja text instead of the tokenizer's own. Without either, the Alpaca template stands in.
            train_on: every assistant turn, only the last one (of plain text: the completion), or every token.
            date: what a template that prints today's date takes for today; by default the clock's, as inference does.

        Raises:
            DataError: a tokenizer or template that rows cannot be masked with.
        """
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so a model could not learn to stop",
                hint="set `eos_token` in the base model's tokenizer_config.json",
            )
        self.tokenizer = tokenizer
        self._train_on = train_on
        self._encoder = Encoder(tokenizer)
        self.template: str = template or self._own_template()
        """The Jinja text in force. Save it with the tokenizer, so that inference prints the same."""
        self._date = date
        self._texts = ChatTexts(tokenizer, self.template, date)

    def _own_template(self) -> str:
        if self.tokenizer.chat_template is not None:
            try:
                return str(self.tokenizer.get_chat_template())
            except ValueError as error:  # several named templates and none of them the default
                raise DataError(
                    f"the tokenizer has no default chat template: {str(error).splitlines()[0]}",
                    hint="name the file of one in `model.chat_template`",
                ) from error
        alpaca = ALPACA_TEMPLATE.read_text(encoding="utf-8")
        return "{{- bos_token -}}\n" + alpaca if self._encoder.prefix_ids else alpaca

    def render(self, examples: Sequence[Example]) -> list[TokenRow]:
        """Tokens and labels of each example, in order.

        Raises:
            DataError: every example that the template refuses (the first 20 in full).
        """
        rows = []
        problems = RowProblems()
        for outcome in self.render_each(examples):
            if isinstance(outcome, DataError):
                problems.add_error(outcome)
            else:
                rows.append(outcome)
        problems.raise_if_any()
        return rows

    def render_each(self, examples: Sequence[Example]) -> list[TokenRow | DataError]:
        """Tokens and labels of each example, or why there are none, in order.

        Rows of which no token is trained are rows like any other.
        """
        outcomes: list[TokenRow | DataError] = []
        for start in range(0, len(examples), BATCH_ROWS):
            batch = examples[start : start + BATCH_ROWS]
            texts = [self._text_or_error(example) for example in batch]
            encoded = iter(self._encode([text for text in texts if isinstance(text, _Text)]))
            outcomes += [
                self._token_row(example, text, next(encoded)) if isinstance(text, _Text) else text
                for example, text in zip(batch, texts, strict=True)
            ]
        return outcomes

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """The tokens that make the assistant answer `messages`: the exact prefix of a row that was trained on them.

        Raises:
            DataError: if the template refuses the messages.
        """
        rendered = self._texts.render_prompt(messages, tools)
        # A training row is cut at the start of each answer; the one that follows the prompt is at its end.
        end = len(rendered.text)
        spans = [*_spans(rendered), (end, end)]
        return self._encode([_Text(rendered.text, spans, [], rendered.originals)])[0].input_ids

    def text_of(self, input_ids: Sequence[int]) -> str:
        """Text of tokens, special ones with their names."""
        return str(self.tokenizer.decode(list(input_ids)))

    @property
    def bos_token_id(self) -> int | None:
        """The tokenizer's token for the beginning of a document."""
        token: int | None = self.tokenizer.bos_token_id
        return token

    @property
    def printed_date(self) -> datetime.date | None:
        """Today, as given to the template; None where it does not ask."""
        return (self._date or datetime.date.today()) if self._texts.mask.reads_clock else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash over what shapes tokens and labels here: tokenizer, template, what is trained, and the date."""
        special_tokens = sorted(map(str, self.tokenizer.special_tokens_map.items()))
        if self.printed_date is not None:
            special_tokens.append(f"date {self.printed_date}")
        parts = (self.tokenizer.backend_tokenizer.to_str(), self.template, self._train_on, *special_tokens)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens that end an assistant turn: end of sequence, and what the template closes the turn with."""
        ids = {self.tokenizer.eos_token_id}
        messages = [{"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN * 2}]
        try:
            trace = self._texts.mask.trace(self._texts.as_template_reads(messages))
        except DataError:
            return frozenset(ids)
        _, answer, closing = trace.text.rpartition(STAND_IN)
        if answer:
            [closing_ids] = self._encoder.encode([closing], [[]])
            added = self.tokenizer.added_tokens_decoder
            ids.update(token for token in closing_ids.input_ids if token in added and added[token].content.strip())
        return frozenset(ids)

    @cached_property
    def answer_frame(self) -> AnswerFrame:
        """Text that the template prints around an answer, and the mark behind reasoning."""
        mask, as_read = self._texts.mask, self._texts.as_template_reads
        frame = find_answer_frame(
            self.template, lambda messages, asks: mask.plain(as_read(messages), add_generation_prompt=asks)
        )
        marks = marks_of_tokens(token.content for token in self.tokenizer.added_tokens_decoder.values())
        return frame if frame.closing or marks is None else replace(frame, opening=marks[0], closing=marks[1])

    def _text_or_error(self, example: Example) -> _Text | RowError:
        try:
            return self._text(example)
        except DataError as error:
            cause = error.cause if isinstance(error, RowError) else RejectionReason.TEMPLATE
            problem = error.problems[0]
            return RowError(cause, problem.text, place=str(example.place), hint=problem.hint)

    def _text(self, example: Example) -> _Text:
        """The example as text with the characters to train."""
        if isinstance(example, PlainText):
            start, end = len(example.prompt), len(example.prompt) + len(example.completion)
            return _Text(example.prompt + example.completion, [(start, end)], [True], {})
        untrained = untrained_turns(example.messages)
        rendered = self._texts.render(example.messages, example.tools)
        is_trained = choose(rendered.answers, untrained, self._train_on)
        trained = {answer.turn for answer, is_in in zip(rendered.answers, is_trained, strict=True) if is_in}
        unprinted = self._texts.check(rendered, trained)
        return _Text(rendered.text, _spans(rendered), is_trained, rendered.originals, tuple(unprinted))

    def _encode(self, texts: Sequence[_Text]) -> list[Encoded]:
        encoded = iter(
            self._encoder.encode(
                [item.text for item in texts if not item.originals],
                [item.spans for item in texts if not item.originals],
            )
        )
        return [
            self._encoder.encode_with_plain_text(
                item.text, item.spans, self._texts.special.plain_stretches(item.text, item.originals), item.originals
            )
            if item.originals
            else next(encoded)
            for item in texts
        ]

    def _token_row(self, example: Example, text: _Text, encoded: Encoded) -> TokenRow:
        input_ids, spans = encoded.input_ids, encoded.spans
        if isinstance(example, PlainText):
            input_ids, spans = self._as_document(input_ids, spans)
        if self._train_on == "all":
            labels = mask_labels(input_ids, [(0, len(input_ids))])
            for (start, end), is_trained in zip(spans, text.is_trained, strict=True):
                if not is_trained:
                    labels[start:end] = [IGNORE_INDEX] * (end - start)
        elif all(text.is_trained):
            labels = mask_labels(input_ids, spans)
        else:
            labels = mask_labels(input_ids, [span for span, is_in in zip(spans, text.is_trained, strict=True) if is_in])
        return TokenRow(input_ids, labels, example.place, text.unprinted, has_special_text=bool(text.originals))

    def _as_document(self, input_ids: list[int], spans: list[Span]) -> tuple[list[int], list[Span]]:
        """Plain text between the tokens that begin and end a document, each once; the end is trained."""
        prefix = self._encoder.prefix_ids
        if input_ids[: len(prefix)] == prefix:
            prefix = []
        if input_ids[-1:] != [self.tokenizer.eos_token_id]:
            input_ids = [*input_ids, self.tokenizer.eos_token_id]
        [(start, _)] = spans
        return prefix + input_ids, [(len(prefix) + start, len(prefix) + len(input_ids))]


def _spans(rendered: ChatText) -> list[Span]:
    return [(answer.start, answer.end) for answer in rendered.answers]
