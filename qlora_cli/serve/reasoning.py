"""Reasoning and answer told apart while the text arrives."""

from __future__ import annotations

from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.serve.decoding import length_of_start


class Part(NamedTuple):
    """A piece of text and which of the two it is."""

    text: str
    is_reasoning: bool


class ReasoningSplitter:
    """Parts an answer at the marks that a chat template knows; the marks are in neither part.

    White space beside a mark belongs to the template and is left out: at the beginning of each part, and line ends at
    the end of reasoning. Text that may still become a mark is held back.
    """

    def __init__(self, frame: AnswerFrame) -> None:
        """
        Args:
            frame: of the template; one without a closing mark makes an answer of all behind its lead.
        """
        self._closing = frame.closing
        self._is_opened = bool(frame.closing) and frame.opens_in_prompt
        self._lead = "" if self._is_opened else frame.lead
        self._marks = [mark for mark in (self._lead, frame.opening if frame.closing else "") if mark]
        self._state: Literal["start", "reasoning", "answer"] = "start" if frame.closing or frame.lead else "answer"
        self._held = ""
        self._is_fresh = False  # a mark was just passed, and nothing but white space has come yet

    @property
    def is_reasoning(self) -> bool:
        """Whether reasoning has begun and has not ended."""
        return self._state == "reasoning"

    def push(self, text: str) -> list[Part]:
        """What becomes certain with this text, in order."""
        self._held += text
        if self._state == "start" and not self._leave_start():
            return []
        parts = []
        if self._state == "reasoning":
            before, mark, behind = self._held.partition(self._closing)
            if not mark:
                before = self._held[: len(self._held) - length_of_start(self._held, self._closing)]
            before = before.rstrip("\n")
            parts += self._part(before, is_reasoning=True)
            if not mark:
                self._held = self._held[len(before) :]
                return parts
            self._state, self._is_fresh, self._held = "answer", True, behind
        parts += self._part(self._held, is_reasoning=False)
        self._held = ""
        return parts

    def finish(self) -> list[Part]:
        """The rest when no text follows."""
        rest, self._held = self._held, ""
        is_reasoning = self._is_opened if self._state == "start" else self._state == "reasoning"
        return self._part(rest, is_reasoning=is_reasoning)

    def _leave_start(self) -> bool:
        """Whether it is certain now what the text begins with."""
        seen = self._held.lstrip()
        if any(len(seen) < len(mark) and mark.startswith(seen) for mark in self._marks):
            return False
        begun = next((mark for mark in self._marks if seen.startswith(mark)), "")
        if begun:
            self._held = seen.removeprefix(begun)
        self._state = "reasoning" if self._is_opened or begun not in ("", self._lead) else "answer"
        self._is_fresh = bool(begun) or self._is_opened
        return True

    def _part(self, text: str, *, is_reasoning: bool) -> list[Part]:
        if self._is_fresh:
            text = text.lstrip()
        self._is_fresh = self._is_fresh and not text
        return [Part(text, is_reasoning)] if text else []


def visible_frame(frame: AnswerFrame, tokenizer: PreTrainedTokenizerBase) -> AnswerFrame:
    """The frame where its closing mark is printed; else one without marks.

    A mark that is a special token of the tokenizer is not in the text of an answer, which cannot be parted then.
    """
    ids = tokenizer(frame.closing, add_special_tokens=False).input_ids if frame.closing else []
    is_visible = frame.closing in str(tokenizer.decode(ids, skip_special_tokens=True))
    return frame if is_visible else AnswerFrame()
