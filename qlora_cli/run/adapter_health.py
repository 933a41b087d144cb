"""Figures of each adapted module, as `eval/adapter_health.json` holds them, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from qlora_cli.errors import IdentityError
from qlora_cli.run.files import read_json_object, write_json

FORMAT = 1
MEASURE_AGAIN = "measure again with `qlora eval`"

SATURATED = 0.9
"""Effective rank over r from which on a module counts as using all of its directions."""

LARGE_UPDATE = 0.5
"""Norm of an update over that of its weight from which on what the base knew is in danger. A rule of ours."""

HEALTH_NAME = "adapter_health.json"
NUM_MODULES_NAMED = 3


@dataclass(frozen=True)
class ModuleHealth:
    """One module that the adapter changes."""

    name: str
    """Path in the plain model: `model.layers.0.self_attn.q_proj`."""

    kind: str
    """lora, dora, experts (all of a layer together), or whole: a copy of the weight that was trained."""

    update_norm: float
    """Frobenius norm of what is added to the weight."""

    weight_norm: float
    """Frobenius norm of the frozen weight, with the values that the forward pass multiplies by."""

    has_moved: bool
    """Whether the update is anything but zero."""

    r: int | None = None
    """None for whole."""

    effective_rank: float | None = None
    """exp of the entropy of the update's singular values over their sum (Roy and Vetterli 2007); 0 where all are 0."""

    rank_90: int | None = None
    """Directions that hold 90% of the update's squared norm."""

    magnitude_change: float | None = None
    """DoRA: mean over output features of |m / ||W|| - 1|."""

    @property
    def relative_norm(self) -> float:
        """Norm of the update over that of the weight; 0 for a weight of zeros."""
        return self.update_norm / self.weight_norm if self.weight_norm else 0.0


@dataclass(frozen=True)
class AdapterHealth:
    """Figures of an adapter."""

    title: str
    """The method's name for people: LoRA, DoRA, (IA)^3."""

    modules: tuple[ModuleHealth, ...]
    """Empty where the method is no update of weight matrices."""

    starts_at_zero: bool
    """False after PiSSA, LoftQ and the like, whose update is not zero before training: the figures include it."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it, with what the figures say in words."""
        modules = [{**asdict(module), "relative_norm": module.relative_norm} for module in self.modules]
        values = {"format": FORMAT, "title": self.title, "starts_at_zero": self.starts_at_zero, "modules": modules}
        return {**values, "lines": health_lines(self)}


def write_adapter_health(path: Path, health: AdapterHealth) -> None:
    """Write the figures, with what they say in words."""
    write_json(path, health.as_dict())


def read_adapter_health(path: Path) -> AdapterHealth | None:
    """The figures that were written there; None where there is no such file.

    Raises:
        IdentityError: if the file is damaged, or of another version.
    """
    if not path.exists():
        return None
    values = read_json_object(path, hint=MEASURE_AGAIN)
    if values.get("format") != FORMAT:
        raise IdentityError(
            f"has the format {values.get('format')!r}, not {FORMAT}", place=str(path), hint=MEASURE_AGAIN
        )
    try:
        modules = tuple(_module(one) for one in values["modules"])
        return AdapterHealth(str(values["title"]), modules, bool(values["starts_at_zero"]))
    except (KeyError, TypeError, AttributeError) as fault:
        raise IdentityError(f"is damaged: {fault!r}", place=str(path), hint=MEASURE_AGAIN) from fault


def _module(values: dict[str, Any]) -> ModuleHealth:
    return ModuleHealth(**{field.name: values[field.name] for field in fields(ModuleHealth)})


def health_lines(health: AdapterHealth) -> list[str]:
    """What the figures say, a line each, with what follows from it.

    >>> module = ModuleHealth("model.layers.0.mlp.up_proj", "lora", 0.0, 8.0, False, 4, 0.0, 0)
    >>> health_lines(AdapterHealth("LoRA", (module,), starts_at_zero=True))[-1]
    'no module has moved: the adapter does nothing yet; train longer, or with a higher training.learning_rate'
    """
    if not health.modules:
        return [f"{health.title} is no update of weight matrices, so there are no norms and ranks to show"]
    lines = [_norms(health)]
    still = [module for module in health.modules if not module.has_moved]
    if len(still) == len(health.modules):
        return [
            *lines,
            "no module has moved: the adapter does nothing yet; train longer, or with a higher training.learning_rate",
        ]
    if still:
        lines.append(
            f"{_share(still, health)} never moved: {_named(still)}; no gradient reached them, and lora.target_modules "
            "may leave them out"
        )
    return [*lines, *_ranks(health), *_large(health)]


def _norms(health: AdapterHealth) -> str:
    shares = [module.relative_norm for module in health.modules]
    largest = max(health.modules, key=lambda module: module.relative_norm)
    counted = "" if health.starts_at_zero else ", what it started with included"
    return (
        f"{health.title}: the update is {median(shares):.2%} of its weight's norm in the median of "
        f"{len(shares)} modules, {max(shares):.2%} at most ({largest.name}){counted}"
    )


def _ranks(health: AdapterHealth) -> list[str]:
    """What r was, how much of it is used, and which r would do."""
    moved = [
        (module.r, module.effective_rank, module.rank_90)
        for module in health.modules
        if module.has_moved and module.r and module.effective_rank is not None and module.rank_90 is not None
    ]
    if not moved:
        return []
    used = median(effective / r for r, effective, _ in moved)
    largest, needed = max(r for r, _, _ in moved), sorted(rank for _, _, rank in moved)[(9 * len(moved) - 1) // 10]
    line = (
        f"rank: {used:.0%} of r is used (effective rank, median); 90% of the update lies in "
        f"{median(rank for _, _, rank in moved):g} of {largest} directions"
    )
    num_saturated = sum(effective >= SATURATED * r for r, effective, _ in moved)
    if largest > 1 and 2 * num_saturated > len(moved):
        advice = f"{num_saturated} of {len(moved)} modules use all they have: a larger r may learn more, "
        return [f"{line}; {advice}lora.r={2 * largest}"]
    if 4 * needed <= largest:
        return [f"{line}; a smaller adapter would hold nearly the same, lora.r={_power_of_two(needed)}"]
    return [line]


def _large(health: AdapterHealth) -> list[str]:
    large = [module for module in health.modules if module.relative_norm > LARGE_UPDATE]
    if not large or not health.starts_at_zero:
        return []
    return [
        f"{_share(large, health)} changed by more than {LARGE_UPDATE:.0%} of the weight: {_named(large)}; look whether "
        "the general text got worse, and lower training.learning_rate or lora.lora_alpha if it did"
    ]


def _share(modules: Sequence[ModuleHealth], health: AdapterHealth) -> str:
    return f"{len(modules)} of {len(health.modules)} modules"


def _named(modules: Sequence[ModuleHealth]) -> str:
    more = f" and {len(modules) - NUM_MODULES_NAMED} more" if len(modules) > NUM_MODULES_NAMED else ""
    return ", ".join(module.name for module in modules[:NUM_MODULES_NAMED]) + more


def _power_of_two(rank: int) -> int:
    """
    >>> _power_of_two(1), _power_of_two(3), _power_of_two(8)
    (1, 4, 8)
    """
    return 1 << max(0, rank - 1).bit_length()
