"""The one way from examples to tokens, for training, evaluation, chat and serving alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.encoding import Encoder
from qlora_cli.data.example import Example, Message, PlainText
from qlora_cli.data.mask import STAND_IN, ChatMask, Tools
from qlora_cli.data.problems import RowProblems
from qlora_cli.data.token_row import IGNORE_INDEX, TokenRow, mask_labels
from qlora_cli.data.traced_template import Span
from qlora_cli.errors import DataError

__all__ = ["IGNORE_INDEX", "Renderer", "TokenRow"]

ALPACA_TEMPLATE = Path(__file__).parent / "templates" / "alpaca.jinja"

NUM_ROWS_COMPARED = 32
"""Rows of each call whose text is compared with that of `apply_chat_template`."""

BATCH_ROWS = 2048
"""Rows tokenized in one call."""

_TOOLS_HINT = "use a base model or `model.chat_template` whose template prints tools, or leave such rows out"


@dataclass(frozen=True)
class _Text:
    """A rendered example before it is tokens."""

    text: str
    spans: list[Span]
    example: Example


class Renderer:
    """Renders with the tokenizer's chat template and masks what the assistant does not say."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> None:
        """
        Args:
            tokenizer: a fast tokenizer with an end-of-sequence token.
            template: Jinja text instead of the tokenizer's own. Without either, the Alpaca template stands in.

        Raises:
            DataError: a tokenizer or template that rows cannot be masked with.
        """
        if tokenizer.eos_token_id is None:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so a model could not learn to stop",
                hint="set `eos_token` in the base model's tokenizer_config.json",
            )
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer)
        self.template: str = template or self._own_template()
        """The Jinja text in force. Save it with the tokenizer, so that inference prints the same."""
        self._mask = ChatMask(self.template, tokenizer.special_tokens_map)

    def _own_template(self) -> str:
        if self._tokenizer.chat_template is not None:
            try:
                return str(self._tokenizer.get_chat_template())
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
        rows: list[TokenRow] = []
        problems = RowProblems()
        for start in range(0, len(examples), BATCH_ROWS):
            texts = []
            for number, example in enumerate(examples[start : start + BATCH_ROWS], start=start):
                try:
                    texts.append(self._text(example, is_compared=number < NUM_ROWS_COMPARED))
                except DataError as error:
                    problem = error.problems[0]
                    problems.add(problem.text, example.place, problem.hint)
            rows.extend(self._token_rows(texts))
        problems.raise_if_any()
        return rows

    def prompt_ids(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """The tokens that make the assistant answer `messages`: the exact prefix of a row that was trained on them.

        Raises:
            DataError: if the template refuses the messages.
        """
        self._refuse_ignored_tools(messages, tools)
        messages = self._as_template_reads(messages)
        trace = self._mask.trace(messages, tools, add_generation_prompt=True)
        spans = self._mask.trained_spans(trace, messages, tools) if _has_assistant(messages) else []
        # A training row is cut at the start of each trained span; the one that follows the prompt is at its end.
        return self._encoder.encode([trace.text], [[*spans, (len(trace.text), len(trace.text))]])[0].input_ids

    @cached_property
    def end_of_turn_ids(self) -> frozenset[int]:
        """Tokens that end an assistant turn: end of sequence, and what the template closes the turn with."""
        ids = {self._tokenizer.eos_token_id}
        messages = [{"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN * 2}]
        try:
            trace = self._mask.trace(self._as_template_reads(messages))
        except DataError:
            return frozenset(ids)
        _, answer, closing = trace.text.rpartition(STAND_IN)
        if answer:
            [closing_ids] = self._encoder.encode([closing], [[]])
            added = self._tokenizer.added_tokens_decoder
            ids.update(token for token in closing_ids.input_ids if token in added and added[token].content.strip())
        return frozenset(ids)

    def _text(self, example: Example, *, is_compared: bool) -> _Text:
        """The example as text with the characters to train."""
        if isinstance(example, PlainText):
            start = len(example.prompt)
            return _Text(example.prompt + example.completion, [(start, start + len(example.completion))], example)
        self._refuse_ignored_tools(example.messages, example.tools)
        messages = self._as_template_reads(example.messages)
        trace = self._mask.trace(messages, example.tools)
        if is_compared:
            self._compare_with_transformers(trace.text, messages, example.tools)
        return _Text(trace.text, self._mask.trained_spans(trace, messages, example.tools), example)

    def _token_rows(self, texts: Sequence[_Text]) -> list[TokenRow]:
        encoded = self._encoder.encode([item.text for item in texts], [item.spans for item in texts])
        rows = []
        for item, tokens in zip(texts, encoded, strict=True):
            input_ids, spans = tokens.input_ids, tokens.spans
            if isinstance(item.example, PlainText):
                input_ids, spans = self._as_document(input_ids, spans)
            rows.append(TokenRow(input_ids, mask_labels(input_ids, spans), item.example.place))
        return rows

    def _as_document(self, input_ids: list[int], spans: list[Span]) -> tuple[list[int], list[Span]]:
        """Plain text between the tokens that begin and end a document, each once; the end is trained."""
        prefix = self._encoder.prefix_ids
        if input_ids[: len(prefix)] == prefix:
            prefix = []
        if input_ids[-1:] != [self._tokenizer.eos_token_id]:
            input_ids = [*input_ids, self._tokenizer.eos_token_id]
        [(start, _)] = spans
        return prefix + input_ids, [(len(prefix) + start, len(prefix) + len(input_ids))]

    def _compare_with_transformers(self, text: str, messages: list[Message], tools: Tools) -> None:
        """Inference renders with `apply_chat_template`; what is trained must be the same to the character."""
        theirs = self._tokenizer.apply_chat_template(messages, tools=tools, chat_template=self.template, tokenize=False)
        if text != theirs:
            pairs = enumerate(zip(text, theirs, strict=False))
            at = next((at for at, (one, other) in pairs if one != other), min(len(text), len(theirs)))
            raise DataError(
                "the chat template prints other text when it is traced: "
                f"{text[at : at + 20]!r} instead of {theirs[at : at + 20]!r}",
                hint="put {% generation %} blocks around the assistant's text, outside of {% set %} blocks and filters",
            )

    def _refuse_ignored_tools(self, messages: Sequence[Message], tools: Tools) -> None:
        """A template that never reads tools or calls would drop them without a word."""
        if tools and "tools" not in self.template:
            raise DataError("the row has tools, and the chat template leaves them out", hint=_TOOLS_HINT)
        if "tool_calls" not in self.template and any("tool_calls" in message for message in messages):
            raise DataError("the row has tool calls, and the chat template leaves them out", hint=_TOOLS_HINT)

    def _as_template_reads(self, messages: Sequence[Message]) -> list[Message]:
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
                shown.append(STAND_IN in self._mask.trace([{"role": "user", "content": content}]).text)
            except DataError:
                shown.append(False)
        return shown == [False, True]


def _has_assistant(messages: Sequence[Message]) -> bool:
    return any(message["role"] == "assistant" for message in messages)
