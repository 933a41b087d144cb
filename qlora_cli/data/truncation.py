"""Makes rows that are longer than `max_length` fit, without ever touching what the assistant says last.

cut_prompt takes out the middle of the longest text that is not the assistant's and leaves a mark there. Both ends stay,
since instructions are at one or the other (as LongBench cuts its inputs; Bai et al. 2023, arXiv:2308.14508). The next
longest follows where that is not enough:

    user: "Summarize this report: ... In two sentences, please."
      ->  "Summarize this report: The\\n[...]\\nend of it. In two sentences, please."

cut_middle_turns takes out whole exchanges: a user's turn with all that follows it up to the next one, tool calls and
their results included. The oldest go first; what comes before the first user's turn stays, the first exchange goes last
of all, and the last one never goes:

    system  user assistant  user assistant tool assistant  user assistant
            [   first    ]  [          goes first       ]  [    last    ]

Running text is split instead, and nothing of it lost: see `pieces.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from qlora_cli.data.clean import text_keys, with_texts
from qlora_cli.data.example import Conversation, Example, PlainText
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.token_row import TokenRow

MARK = "\n[...]\n"
"""Stands where text was taken out."""

NUM_KEPT_CHARS = 64
"""Characters that stay of a text at least, half at either end: a prompt that is all mark teaches to answer nothing."""

CHARS_A_TOKEN = 4.0
"""First guess, for English; what a text really has shows with the first cut."""

MAX_RENDERINGS = 12
"""Of one text, to find how much of it fits; 3 to 5 do as a rule."""

Cut = tuple[Example, TokenRow]
Spot = tuple[int, str]
"""Place of a text in a row: index of the message and key, or (0, "prompt")."""


def is_splittable(example: Example) -> bool:
    """Whether `truncation: split` cuts the row into pieces (`pieces.py`): running text, of which any part is text."""
    return isinstance(example, PlainText) and not example.prompt


class Cutter:
    """Cuts rows as `data.truncation` says."""

    def __init__(self, renderer: Renderer, max_length: int, how: Literal["cut_prompt", "cut_middle_turns"]) -> None:
        self._renderer = renderer
        self._max_length = max_length
        self._how = how

    def cut(self, example: Example) -> Cut | None:
        """A row longer than `max_length` as one that fits, with its tokens; None where no cut makes it fit."""
        if self._how == "cut_prompt":
            return self._cut_texts(example)
        return self._cut_exchanges(example) if isinstance(example, Conversation) else None

    def _rendered(self, example: Example) -> Cut | None:
        """With its tokens; None where the template refuses it."""
        [row] = self._renderer.render_each([example])
        return (example, row) if isinstance(row, TokenRow) else None

    def _fits(self, cut: Cut | None) -> bool:
        return cut is not None and len(cut[1].input_ids) <= self._max_length

    def _cut_texts(self, example: Example) -> Cut | None:
        texts = _texts(example)
        for spot in sorted(texts, key=lambda spot: -len(texts[spot])):
            text = texts[spot]
            if len(text) <= NUM_KEPT_CHARS + len(MARK):
                return None
            shortest = self._rendered(_with_text(example, spot, without_middle(text, NUM_KEPT_CHARS)))
            if shortest is None:
                return None
            if self._fits(shortest):
                return self._most_kept(example, spot, text, shortest)
            example = shortest[0]
        return None

    def _most_kept(self, example: Example, spot: Spot, text: str, shortest: Cut) -> Cut:
        """Keep about as much of one text as fits, to 1% of `max_length`: what is searched for is characters."""
        best, low, low_tokens = shortest, NUM_KEPT_CHARS, len(shortest[1].input_ids)
        high = len(text) - len(MARK)  # the whole text again, which does not fit
        chars_a_token = CHARS_A_TOKEN
        for _ in range(MAX_RENDERINGS):
            room = self._max_length - low_tokens
            if room <= self._max_length // 100 or high - low <= 1:
                break
            guess = min(max(low + int(room * chars_a_token), low + 1), high - 1)
            cut = self._rendered(_with_text(example, spot, without_middle(text, guess)))
            if cut is None:
                break
            num_tokens = len(cut[1].input_ids)
            chars_a_token = (guess - low) / max(1, num_tokens - low_tokens)
            if self._fits(cut):
                best, low, low_tokens = cut, guess, num_tokens
            else:
                high = guess
        return best

    def _cut_exchanges(self, example: Conversation) -> Cut | None:
        starts = [index for index, message in enumerate(example.messages) if message["role"] == "user"]
        if len(starts) < 2:
            return None

        def without(number: int) -> Cut | None:
            """The row less this many exchanges: those after the first, and with the greatest number the first too."""
            first = starts[0] if number == len(starts) - 1 else starts[1]
            last = starts[min(number + 1, len(starts) - 1)]
            return self._rendered(replace(example, messages=example.messages[:first] + example.messages[last:]))

        best = without(len(starts) - 1)
        return self._fewest_taken(without, len(starts) - 1, best) if best and self._fits(best) else None

    def _fewest_taken(self, without: Callable[[int], Cut | None], most: int, best: Cut) -> Cut:
        """Bisect for the smallest number of exchanges that must go; `best` is without `most` of them."""
        low = 0  # the whole row, which does not fit
        while most - low > 1:
            number = (low + most) // 2
            cut = without(number)
            if cut is not None and self._fits(cut):
                most, best = number, cut
            else:
                low = number
        return best


def without_middle(text: str, num_kept: int) -> str:
    """Both ends of a text, with a mark for what was between.

    >>> without_middle("one two three", 6)
    'one\\n[...]\\nree'
    """
    num_after = num_kept // 2
    return text[: num_kept - num_after] + MARK + text[len(text) - num_after :]


def _texts(example: Example) -> dict[Spot, str]:
    """The texts that may be cut: all but the assistant's."""
    if isinstance(example, PlainText):
        return {(0, "prompt"): example.prompt}
    return {
        (index, key): message[key]
        for index, message in enumerate(example.messages)
        if message["role"] != "assistant"
        for key in text_keys(message)
        if isinstance(message.get(key), str)
    }


def _with_text(example: Example, spot: Spot, text: str) -> Example:
    if isinstance(example, PlainText):
        return replace(example, prompt=text)
    index, key = spot
    messages = list(example.messages)
    messages[index] = with_texts(messages[index], {key: text})
    return replace(example, messages=messages)
