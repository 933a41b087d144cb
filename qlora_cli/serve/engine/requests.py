"""What the server asks of an engine and what comes back; nothing here knows HTTP or a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "failed"]
"""`stop`: end of the turn or a stop text; `length`: max_new_tokens or the context."""


@dataclass(frozen=True)
class GenerationRequest:
    """One answer that is wanted."""

    prompt_ids: tuple[int, ...]
    model: str
    """Name of an adapter of the engine, or of its base."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most likely token."""

    top_p: float = 1.0
    seed: int | None = None
    """The same answer for the same request, whatever else is computed beside it."""

    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""

    num_top_logprobs: int | None = None
    """Number of alternatives wanted with each token; 0 for the chosen token alone; None for no log-probabilities."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its own text and its log-probability under the model (temperature 1, nothing cut off)."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True)
class Piece:
    """Text that has become certain, with the tokens that made it so."""

    text: str
    """Never half a character, and never text that may still become a stop text."""

    tokens: tuple[TokenLogprob, ...] = ()
    """Empty where no log-probabilities are wanted."""

    alternatives: tuple[tuple[TokenLogprob, ...], ...] = ()
    """For each of `tokens` its most likely alternatives, best first."""


@dataclass(frozen=True)
class Finish:
    """End of an answer; the last of its events."""

    reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int
    """Tokens of the answer, the one that ends the turn included."""

    error: str = ""
    """One line for the client where `reason` is `failed`."""


class Ticket(Protocol):
    """An answer that is being made."""

    def events(self) -> Iterator[Piece | Finish]:
        """Pieces as they come, then one Finish. Blocks; may be called once, from any thread."""

    def cancel(self) -> None:
        """Give the place up; `events` ends soon with `cancelled`. Does nothing to an answer that is finished."""


class QueueFull(Exception):  # noqa: N818 - not a fault: the one who asks may ask again
    """More requests wait than the engine was allowed."""


@dataclass(frozen=True)
class EngineState:
    """What the engine is doing at this moment, and totals since it was started."""

    num_running: int
    num_waiting: int
    num_finished: int
    num_prompt_tokens: int
    num_new_tokens: int


class Engine(Protocol):
    """Answers many requests at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that a request's `model` may have: adapters in the order given, then the base."""

    @property
    def context(self) -> int | None:
        """Most tokens of prompt and answer together; None where the model has no bound."""

    def submit(self, request: GenerationRequest) -> Ticket:
        """Accept a request.

        Raises:
            QueueFull: if too many wait already.
            ArgumentError: if the prompt leaves no room for an answer, or a token has no embedding.
        """

    def state(self) -> EngineState:
        """Counters for /metrics and /health."""

    def close(self, seconds: float) -> None:
        """Accept nothing more, finish what runs within `seconds`, then end. Requests that are left end as `failed`."""
