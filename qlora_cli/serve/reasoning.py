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

    White space at the beginning of each part is left out, since it stands beside a mark. Text that may still become a
    mark is held back.
    """

    def __init__(self, frame: AnswerFrame) -> None:
        """
        Args:
            frame: of the template; one without a closing mark makes all of the text an answer.
        """
        self._frame = frame
        self._state: Literal["start", "reasoning", "answer"] = "start" if frame.closing else "answer"
        self._held = ""
        self._is_fresh = bool(frame.closing)  # nothing of this part but white space has come yet

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
            before, mark, behind = self._held.partition(self._frame.closing)
            if not mark:
                num_held = length_of_start(self._held, self._frame.closing)
                before, behind = self._held[: len(self._held) - num_held], self._held[len(self._held) - num_held :]
            parts += self._part(before, is_reasoning=True)
            self._held = behind
            if not mark:
                return parts
            self._state, self._is_fresh = "answer", True
        parts += self._part(self._held, is_reasoning=False)
        self._held = ""
        return parts

    def finish(self) -> list[Part]:
        """The rest when no text follows."""
        rest, self._held = self._held, ""
        return self._part(rest, is_reasoning=self._state == "reasoning")

    def _leave_start(self) -> bool:
        """Whether it is certain now what the text begins with."""
        seen, opening = self._held.lstrip(), self._frame.opening
        if opening and len(seen) < len(opening) and opening.startswith(seen):
            return False
        if opening and seen.startswith(opening):
            self._state, self._held = "reasoning", seen.removeprefix(opening)
        else:
            self._state = "reasoning" if self._frame.opens_in_prompt else "answer"
            self._is_fresh = self._frame.opens_in_prompt
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
