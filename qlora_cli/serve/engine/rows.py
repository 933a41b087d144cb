"""One answer inside the engine: its tokens so far, and what becomes of the next logits."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from qlora_cli.serve.engine.answer_text import AnswerText, Scored
from qlora_cli.serve.engine.requests import Finish, FinishReason, GenerationRequest
from qlora_cli.serve.engine.sampling import Sampler, token_logprobs
from qlora_cli.serve.engine.tickets import QueuedTicket


class Row:
    """A request with the state of its answer. The state does not lie in the cache, which can be computed again."""

    def __init__(
        self,
        request: GenerationRequest,
        ticket: QueuedTicket,
        max_new_tokens: int,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        device: torch.device,
    ) -> None:
        """
        Args:
            request: what is wanted.
            ticket: where events go.
            max_new_tokens: as wanted, or as many as the context has room for.
            tokenizer: of the model.
            end_ids: tokens that end a turn.
            device: of the logits.
        """
        self.request = request
        self.ticket = ticket
        self.ids = list(request.prompt_ids)
        """Prompt and answer so far."""

        self.is_finished = False
        self.num_faults = 0
        """Steps that failed with this row in them."""

        self._max_new_tokens = max_new_tokens
        self._tokenizer = tokenizer
        self._end_ids = end_ids | _special_ids(tokenizer, request.stop)
        self._sampler = Sampler(request, device)
        self._text = AnswerText(tokenizer, request.stop)

    @property
    def num_new_tokens(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def most_tokens(self) -> int:
        """Tokens of prompt and answer, if the answer becomes as long as it may."""
        return len(self.request.prompt_ids) + self._max_new_tokens

    def take(self, logits: torch.Tensor) -> None:
        """Choose the next token, and pass on what becomes certain.

        Args:
            logits: behind the last token, float32, of shape [vocabulary].

        Raises:
            NumericError: if one of them is not a number.
        """
        token_id = self._sampler.choose(logits)
        self.ids.append(token_id)
        if token_id in self._end_ids:
            self.finish("stop")
            return
        piece = self._text.push(token_id, self._scored(logits, token_id))
        if piece is not None:
            self.ticket.put(piece)
        if self._text.is_stopped:
            self.finish("stop")
        elif self.num_new_tokens >= self._max_new_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """End the answer; what is held back is passed on first."""
        if self.is_finished:
            return
        self.is_finished = True
        piece = self._text.finish()
        if piece is not None:
            self.ticket.put(piece)
        if reason == "length" and self._text.is_stopped:
            reason = "stop"
        self.ticket.put(Finish(reason, len(self.request.prompt_ids), self.num_new_tokens, error))

    def _scored(self, logits: torch.Tensor, token_id: int) -> Scored | None:
        wanted = self.request.num_top_logprobs
        return None if wanted is None else token_logprobs(logits, token_id, wanted, self._tokenizer)


def _special_ids(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> frozenset[int]:
    """The special tokens among texts: what is said never has them in its text, so they are known by their ids."""
    if not texts:  # most requests; some tokenizers have thousands of added tokens
        return frozenset()
    return frozenset(
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special and token.content in texts
    )
