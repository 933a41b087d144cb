"""The part of an answer that is scored: what stands behind its reasoning, without what the template adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from qlora_cli.data.render.answer_frame import AnswerFrame
from qlora_cli.evaluate.scores import AnswerText, End


@dataclass(frozen=True)
class ScoredPart:
    """Finds the part of generated tokens that is scored."""

    tokenizer: PreTrainedTokenizerBase
    frame: AnswerFrame

    @property
    def rule(self) -> str | None:
        """In words; None where the whole answer is scored."""
        frame = self.frame
        if frame.closing:
            return f"scored is what stands behind the last {_shown(frame.closing)}; unended reasoning is no answer"
        if frame.lead:
            return f"scored is what stands behind {_shown(frame.lead)}, which the chat template prints"
        return None

    def of(self, token_ids: Sequence[int], *, is_ended: bool) -> AnswerText:
        """The text of an answer and what of it is scored.

        Args:
            token_ids: without the token that ends the turn.
            is_ended: whether the model ended the turn.
        """
        text = self._decode(token_ids)
        ended: End = "end" if is_ended else "length"
        raw = self._decode(token_ids, special=True)
        closing = self.frame.closing
        if closing and closing in raw:
            return AnswerText(text, self._without_tail(self._behind(token_ids, raw, closing)), ended)
        if closing and (self.frame.opens_in_prompt or (self.frame.opening and self.frame.opening in raw)):
            return AnswerText(text, None, "reasoning")
        lead = self.frame.lead
        if lead and raw.lstrip().startswith(lead):
            return AnswerText(text, self._without_tail(self._behind(token_ids, raw, lead)), ended)
        return AnswerText(text, self._without_tail(text), ended)

    def of_reference(self, reference: str) -> str:
        """What of a reference is scored: data with reasoning in it has the same mark.

        >>> ScoredPart(None, AnswerFrame(closing="</think>")).of_reference("<think>2+2</think>\\n4")
        '4'
        """
        closing = self.frame.closing
        return reference.rpartition(closing)[2].lstrip() if closing and closing in reference else reference

    def _behind(self, token_ids: Sequence[int], raw: str, mark: str) -> str:
        """The text behind the last `mark`; only whole tokens are decoded, so that special ones can be left out."""
        wanted = raw.count(mark)
        first, last = 0, len(token_ids)  # the fewest tokens whose text has all of the marks
        while first < last:
            middle = (first + last) // 2
            if self._decode(token_ids[:middle], special=True).count(mark) >= wanted:
                last = middle
            else:
                first = middle + 1
        beginning = self._decode(token_ids[:first], special=True).rpartition(mark)[2]
        return (beginning + self._decode(token_ids[first:])).strip()

    def _without_tail(self, text: str) -> str:
        """Text without what the template prints behind an answer, before the token that ends the turn."""
        tail = self.frame.tail
        for token in self.tokenizer.all_special_tokens:
            tail = tail.replace(token, "")
        return text.rstrip().removesuffix(tail.strip()).rstrip() if tail.strip() else text

    def _decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=not special))


def _shown(mark: str) -> str:
    return " ".join(mark.split())
