"""Is the exported model the one that was trained? What its engine says, beside the base written the same way."""

from __future__ import annotations

from dataclasses import dataclass

from qlora_cli.deploy.engines.engine import Answers
from qlora_cli.deploy.export_reference import Reference, cut_alike
from qlora_cli.deploy.verify import Agreement, compare
from qlora_cli.errors import NumericError

SHARE_OF_BASE = 1.2
"""How many times the base's own loss a tuned model may lose in the same format: rounding knows nothing of adapters."""


@dataclass(frozen=True)
class Proof:
    """What an engine made of the exported files."""

    engine: str
    """Name and version."""

    agreement: Agreement
    """Base and adapter against the exported model, on the run's rows."""

    base_agreement: Agreement | None
    """The base against the base written the same way; None where the format rounds nothing."""

    max_kl: float
    """Bound on the mean KL that it was held to, in nats per token; what `--max-kl` says where it was given."""

    num_equal_texts: int
    """Answers that are token for token those of base and adapter."""

    num_stopped: int
    """Answers in which the engine saw a token that ends them."""

    num_stopped_as_trained: int
    """Answers of base and adapter that end so within the same number of tokens."""

    num_texts: int
    tokens_per_second: float
    precision: str

    @property
    def is_within(self) -> bool:
        """Whether the model is as near to the trained one as is allowed."""
        return self.agreement.mean_kl <= self.max_kl

    def figures(self) -> dict[str, str]:
        """Label and value, for people."""
        base = self.base_agreement
        own = {} if base is None else {"the base's own loss": f"mean KL {base.mean_kl:.3g}, written the same way"}
        return {
            "opened by": self.engine,
            **self.agreement.figures(),
            **own,
            "mean KL allowed": f"{self.max_kl:.3g}",
            "greedy answers": f"{self.num_equal_texts} of {self.num_texts} equal to the trained model's",
            "stop token": f"seen in {self.num_stopped} of {self.num_texts} answers, "
            f"{self.num_stopped_as_trained} of the trained model's",
            "speed": f"{self.tokens_per_second:.0f} tokens/s, one prompt after the other",
        }


def prove(engine: str, answers: Answers, reference: Reference, base: Answers | None, max_kl_of_merge: float) -> Proof:
    """Hold an engine's answers against the trained model's.

    Args:
        engine: name and version.
        answers: what it said of the exported files.
        reference: what base and adapter said.
        base: what the engine said of the base written the same way; None where the format rounds nothing.
        max_kl_of_merge: bound that the merge is held to.
    """
    agreement = compare(*cut_alike(reference.logits, answers.logits))
    base_agreement = None if base is None else compare(*cut_alike(reference.base_logits, base.logits))
    max_kl = max_kl_of_merge if base_agreement is None else max(SHARE_OF_BASE * base_agreement.mean_kl, max_kl_of_merge)
    ends = reference.questions.end_ids
    pairs = zip(answers.texts, reference.texts, strict=True)
    return Proof(
        engine,
        agreement,
        base_agreement,
        max_kl,
        sum(mine == trained for mine, trained in pairs),
        sum(text[-1:] != [] and text[-1] in ends for text in answers.texts),
        sum(text[-1] in ends for text in reference.texts),
        len(reference.texts),
        answers.tokens_per_second,
        answers.precision,
    )


def refuse_unlike(proof: Proof, way_on: str) -> None:
    """Refuse an exported model that is further from the trained one than its bound.

    Args:
        proof: what was measured.
        way_on: what to type instead.

    Raises:
        NumericError: if the mean KL is above the bound, or not a number.
    """
    if proof.is_within:
        return
    base = proof.base_agreement
    beside = "" if base is None else f"; the base loses {base.mean_kl:.3g} in this format"
    raise NumericError(
        f"the exported model is not the model that was trained: {proof.engine} finds a mean KL of "
        f"{proof.agreement.mean_kl:.3g} nats per token, above the bound {proof.max_kl:.3g} "
        f"(top-1 agreement {proof.agreement.top1_agreement:.1%}){beside}; nothing was written",
        hint=way_on,
    )
