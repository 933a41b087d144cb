"""The next token of one answer, and the log-probabilities that go with it."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase, TemperatureLogitsWarper, TopPLogitsWarper

from qlora_cli.errors import NumericError
from qlora_cli.serve.engine.requests import GenerationRequest, TokenLogprob


class Sampler:
    """Chooses the tokens of one answer with a random generator of its own.

    The steps are those of `generate` in transformers, on logits in float32: a seed gives the answer that
    `qlora generate --seed` gives, whatever is computed beside it.
    """

    def __init__(self, request: GenerationRequest, device: torch.device) -> None:
        self._is_greedy = request.temperature <= 0
        self._warpers = [] if self._is_greedy else _warpers(request.temperature, request.top_p)
        self._generator = torch.Generator(device)
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token.

        Args:
            logits: of one position, float32, of shape [vocabulary].

        Raises:
            NumericError: if one of them is not a number.
        """
        if bool(torch.isnan(logits).any()):
            raise NumericError("the model's output is not a number", hint="serve in another precision: model.dtype")
        if self._is_greedy:
            return int(logits.argmax())
        scores = logits[None]
        for warper in self._warpers:
            scores = warper(None, scores)
        return int(torch.multinomial(scores.softmax(dim=-1), 1, generator=self._generator))


def _warpers(temperature: float, top_p: float) -> list[TemperatureLogitsWarper | TopPLogitsWarper]:
    cut = [TopPLogitsWarper(top_p=top_p)] if top_p < 1 else []
    return [TemperatureLogitsWarper(temperature), *cut]


def token_logprobs(
    logits: torch.Tensor, token_id: int, num_alternatives: int, tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenLogprob, tuple[TokenLogprob, ...]]:
    """The chosen token and the most likely ones, with log-probabilities under the model itself.

    Args:
        logits: of one position, float32, of shape [vocabulary].
        token_id: the chosen token.
        num_alternatives: how many of the most likely tokens are wanted.
        tokenizer: it says the tokens' texts.
    """
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(num_alternatives, len(logprobs)))
    ids = [token_id, *best.indices.tolist()]
    values = [float(logprobs[token_id]), *best.values.tolist()]
    chosen, *alternatives = (
        TokenLogprob(one, str(tokenizer.decode([one])), value) for one, value in zip(ids, values, strict=True)
    )
    return chosen, tuple(alternatives)
