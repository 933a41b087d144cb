"""One answer from a model: prompt in, text out while it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import torch
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from qlora_cli.data.example import Message
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.model.device import precision_of
from qlora_cli.model.embedding_limits import check_tokens, num_positions, room_for_answer
from qlora_cli.model.generation_settings import generation_settings, only_these_settings
from qlora_cli.model.tuned import Tuned
from qlora_cli.serve.decoding import StreamDecoder

StopReason = Literal["end_of_turn", "length", "interrupt"]

OnText = Callable[[str], None]
"""Receives each piece of an answer as soon as it is certain."""


@dataclass(frozen=True)
class SamplingOptions:
    """Settings of sampling."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 samples from the model's own distribution."""

    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability (arXiv:1904.09751)."""

    max_new_tokens: int = 512
    seed: int | None = None


@dataclass(frozen=True)
class Answer:
    """Answer of the model."""

    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    """Tokens of the answer, the one that ends the turn included."""

    seconds: float
    stopped_by: StopReason
    computed_in: str
    """Precision and kind of device, as `float32 on cpu`; in another precision a close choice can fall otherwise."""


def why_cut(answer: Answer, max_new_tokens: int) -> str:
    """Reason why an answer was cut, and the option that lets it continue.

    >>> why_cut(Answer("", 5, 64, 1.0, "length", "float32 on cpu"), max_new_tokens=64)
    'cut after 64 tokens; `--max-new-tokens 128` lets it continue'
    >>> why_cut(Answer("", 500, 12, 1.0, "length", "float32 on cpu"), max_new_tokens=64)
    "cut after 12 tokens: the model's context of 512 is full"
    """
    if answer.num_new_tokens < max_new_tokens:
        context = answer.num_prompt_tokens + answer.num_new_tokens
        return f"cut after {answer.num_new_tokens} tokens: the model's context of {context} is full"
    return f"cut after {max_new_tokens} tokens; `--max-new-tokens {2 * max_new_tokens}` lets it continue"


class _AnswerStream(BaseStreamer):
    """Receives the tokens from `generate` and passes their text on."""

    def __init__(self, decoder: StreamDecoder, end_ids: frozenset[int], on_text: OnText) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._decoder = decoder
        self._end_ids = end_ids
        self._on_text = on_text
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """The prompt first, then each new token, as `transformers` calls it."""
        if self._is_prompt:
            self._is_prompt = False
            return
        for token_id in value.flatten().tolist():
            self.ids.append(token_id)
            if token_id not in self._end_ids:
                self._pass_on(self._decoder.push(token_id))

    def end(self) -> None:
        """Pass on what is left."""
        self._pass_on(self._decoder.finish())

    def _pass_on(self, text: str) -> None:
        if text:
            self.text += text
            self._on_text(text)


def generate_answer(
    tuned: Tuned, renderer: Renderer, messages: Sequence[Message], options: SamplingOptions, on_text: OnText
) -> Answer:
    """The assistant's next turn, streamed to `on_text`. Ctrl-C ends the answer and keeps what was said.

    The base's own sampling settings (its generation_config.json) play no part: the options say it all.

    Args:
        tuned: the model, in eval mode.
        renderer: of the model's tokenizer.
        messages: the conversation so far, ending with the user's turn.
        options: how tokens are chosen.
        on_text: called with each piece of text; the pieces together are `Answer.text`.

    Raises:
        ArgumentError: if the conversation fills the model's context.
        DataError: if the chat template refuses the messages.
        RecipeError: if a token of them has no embedding.
    """
    prompt_ids = renderer.prompt_ids(messages)
    check_tokens(tuned.model, tuned.tokenizer, tuned.source.model.base_model, lambda: max(prompt_ids))
    context = num_positions(tuned.model.config)
    room = room_for_answer(len(prompt_ids), context, "start over with /reset, or shorten the prompt")
    settings = generation_settings(
        renderer.end_of_turn_ids,
        tuned.tokenizer.pad_token_id,
        max_new_tokens=min(options.max_new_tokens, room),
        temperature=options.temperature,
        top_p=options.top_p,
    )
    stream = _AnswerStream(StreamDecoder(tuned.tokenizer), renderer.end_of_turn_ids, on_text)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    start = perf_counter()
    stopped_by: StopReason = "length"
    try:
        _generate(tuned, prompt_ids, settings, stream)
    except KeyboardInterrupt:
        stream.end()
        stopped_by = "interrupt"
    if stream.ids and stream.ids[-1] in renderer.end_of_turn_ids:
        stopped_by = "end_of_turn"
    seconds = perf_counter() - start
    return Answer(stream.text, len(prompt_ids), len(stream.ids), seconds, stopped_by, precision_of(tuned.model))


def _generate(tuned: Tuned, prompt_ids: list[int], settings: GenerationConfig, stream: _AnswerStream) -> None:
    input_ids = torch.tensor([prompt_ids], device=tuned.model.device)
    with only_these_settings(tuned.model, settings):
        tuned.model.generate(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), streamer=stream)
