"""What a request may hold; looked at before it is accepted, where the one who asked can still be told."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_cli.errors import ArgumentError
from qlora_cli.model.embedding_limits import room_for_answer
from qlora_cli.serve.engine.requests import GenerationRequest


@dataclass(frozen=True)
class Bounds:
    """Limits of the model."""

    context: int | None
    """Most tokens of prompt and answer together; None where the model has no bound."""

    num_embeddings: int
    """Tokens that the model has embeddings for."""

    def room_for_answer(self, request: GenerationRequest, names: tuple[str, ...]) -> int:
        """Tokens that an answer may have.

        Args:
            request: what is wanted.
            names: names that its `model` may have.

        Raises:
            ArgumentError: if the model cannot answer it.
        """
        if request.model not in names:
            raise ArgumentError(f"there is no model '{request.model}'", hint=f"there are: {', '.join(names)}")
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise ArgumentError(
                f"the prompt has {len(request.prompt_ids)} tokens and the answer may have {request.max_new_tokens}",
                hint="both must be 1 or more",
            )
        smallest, largest = min(request.prompt_ids), max(request.prompt_ids)
        if smallest < 0 or largest >= self.num_embeddings:
            worst = smallest if smallest < 0 else largest
            raise ArgumentError(
                f"the prompt holds token {worst}, and the model has embeddings for {self.num_embeddings:,}",
                hint="leave the text of that token out: it was added to the tokenizer and has no embedding",
            )
        return room_for_answer(len(request.prompt_ids), self.context, "shorten it, or leave its oldest turns out")
