"""Record of a merge: the line on the screen and the file in the folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_cli.choices import Onto
from qlora_cli.deploy.verify import Agreement
from qlora_cli.model.fingerprint import fingerprint_base
from qlora_cli.model.tuned import TunedSource
from qlora_cli.recipe.schema import ModelSection
from qlora_cli.run.manifest import library_versions


@dataclass(frozen=True)
class Precisions:
    """In which precision, and on which kind of device, two models computed what was compared."""

    tuned: str
    """Base and adapter, as `float32 on cpu`."""

    plain: str
    """The merged or exported model."""

    def __str__(self) -> str:
        return f"{self.tuned} (base and adapter), {self.plain} (merged)"


@dataclass(frozen=True)
class Merged:
    """A merged model folder and how well it agrees with base and adapter."""

    path: Path
    onto: Onto
    onto_in_words: str
    """The weights that the update was added to, and why."""

    dtype: str
    num_parameters: int
    num_tensors: dict[str, int]
    """By what was done with them."""

    left_out: list[str]
    """Files and folders of the base that are not in the merged one."""

    effect: Agreement
    """Effect of the adapter: adapter on against adapter off."""

    agreement: Agreement
    """Error of the merge: adapter on against the merged model."""

    compared_in: Precisions

    losses: dict[Onto, float]
    """Held-out loss in nats a token onto each kind of weights, where `--onto auto` measured them."""

    max_kl: float
    """Bound on the mean KL that it was held to, in nats per token."""

    def figures(self) -> dict[str, str]:
        """Label and value, for people."""
        measured = {f"held-out loss onto {onto}": f"{loss:.4f}" for onto, loss in self.losses.items()}
        ways = {
            "tensors": ", ".join(f"{number:,} {way}" for way, number in self.num_tensors.items()),
            **({"left out": ", ".join(self.left_out)} if self.left_out else {}),
            "compared in": str(self.compared_in),
            "mean KL allowed": f"{self.max_kl:.3g}",
            "the adapter's own effect": f"mean KL {self.effect.mean_kl:.3g}, top-1 {self.effect.top1_agreement:.2%}",
        }
        return measured | self.agreement.figures() | ways


def describe_onto(source: TunedSource, onto: Onto, has_packed_experts: bool = False) -> str:
    """One line: what the adapter is added to, and why.

    Args:
        has_packed_experts: the base has fused experts, and they were quantized too.

    >>> from qlora_cli.recipe.schema import QuantizationSection
    >>> source = TunedSource(Path("runs/a"), ModelSection(base_model="base"), QuantizationSection())
    >>> describe_onto(source, "dequantized")
    'merged onto the dequantized NF4 base, the weights that training saw'
    """
    if source.quantization is None and source.recipe is None:
        return "merged onto the base as it is: an adapter folder does not say whether its base was quantized"
    if source.quantization is None:
        return "merged onto the base as it is, the weights that training saw"
    kind = source.quantization.kind.upper()
    if onto == "original" and source.base_source is not None:
        return f"merged onto PiSSA's residual before it was quantized to {kind}: the figures show the price"
    if onto == "original":
        return f"merged onto the original base, not the {kind} one that training saw: the figures show the price"
    experts = ", experts included" if has_packed_experts else ""
    return f"merged onto the dequantized {kind} base{experts}, the weights that training saw"


def describe_codes(kind: str) -> str:
    """One line on a merge that leaves the integers of the base as they are.

    >>> describe_codes("int4")
    'merged into the offsets of the INT4 base: its codes and scales are as training saw them'
    """
    return f"merged into the offsets of the {kind.upper()} base: its codes and scales are as training saw them"


def describe_base(source: TunedSource) -> str:
    """One line on a base that was written without an adapter."""
    if source.quantization is None:
        return "wrote the base that training saw, without the adapter"
    kind = source.quantization.kind.upper()
    return f"wrote the dequantized {kind} base that training saw, without the adapter: serve adapters of it on this one"


def merge_record(source: TunedSource, merged: Merged, adapter_sha256: str | None) -> dict[str, Any]:
    """The content of qlora_merge.json.

    Args:
        adapter_sha256: None where the base alone was written.
    """
    stood_on = source.model if source.base_source is None else ModelSection(base_model=source.base_source)
    return {
        "base_model": source.model.base_model,
        "base_revision": source.model.revision,
        "base_fingerprint": fingerprint_base(stood_on),
        "quantization": source.quantization and source.quantization.model_dump(),
        "adapter_sha256": adapter_sha256,
        "onto": merged.onto,
        "dtype": merged.dtype,
        "tensors": merged.num_tensors,
        "held_out_loss": merged.losses or None,
        "max_kl": merged.max_kl,
        "agreement": asdict(merged.agreement),
        "compared_in": asdict(merged.compared_in),
        "effect_of_adapter": asdict(merged.effect),
        "versions": library_versions(),
    }
