"""A complete plan: the memory budget against a memory, the time, the disk, the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from qlora_cli.constants import GIB
from qlora_cli.errors import ArgumentError
from qlora_cli.plan.auto_batch_size import with_auto_batch_size
from qlora_cli.plan.budget import MemoryBudget, plan
from qlora_cli.plan.dataset_size import TrainingSize, find_workload
from qlora_cli.plan.disk import Disk, disk_of
from qlora_cli.plan.machine.calibration import find_overheads
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.machine.gpus import Gpu, card_of, find_card
from qlora_cli.plan.throughput import Throughput, estimate_pace
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Target:
    """The device and memory that the plan is compared with."""

    name: str
    device: Device
    memory_bytes: int | None
    """None: nothing is said about whether it fits."""

    card: Gpu | None = None


@dataclass(frozen=True)
class PlanReport:
    """Everything that `qlora plan` shows."""

    asked: Recipe
    request: PlanRequest
    """The planned request: in place of `per_device_train_batch_size: auto` it has the rows that fit."""

    bill: MemoryBudget
    target: Target
    workload: TrainingSize | None
    why_no_workload: str
    pace: Throughput | None
    disk: Disk

    @property
    def device_bytes(self) -> int:
        """All that the process takes at its fullest."""
        return self.bill.needs.device_bytes

    @property
    def fits(self) -> bool | None:
        """Whether it fits the target's memory; None where none is known."""
        memory = self.target.memory_bytes
        return None if memory is None else self.device_bytes <= memory

    @property
    def lines(self) -> list[tuple[str, int]]:
        """The budget: what takes memory at the peak, in bytes. They add up to `device_bytes`."""
        tensors = [
            (str(kind), size) for kind, size in self.bill.peak.by_kind.items() if kind is not MemoryKind.PAGED_OPTIMIZER
        ]
        overheads = [(each.name, each.num_bytes) for each in self.bill.needs.overheads]
        return [(name, size) for name, size in (*tensors, *overheads) if size]

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step, of all GPUs together."""
        return self.asked.training.rows_per_step * self.request.device.num_gpus

    @property
    def seconds(self) -> float | None:
        """Of the whole run, where data and pace are known."""
        if self.pace is None or self.workload is None:
            return None
        return self.pace.seconds_per_step * self.workload.num_steps

    def noted(self, note: str) -> PlanReport:
        """The report with a note before the others; as it is where the note is empty."""
        bill = replace(self.bill, notes=(note, *self.bill.notes)) if note else self.bill
        return replace(self, bill=bill)

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it; sizes in bytes."""
        facts, needs, overheads = self.bill.facts, self.bill.needs, self.target.device.overheads
        return {
            "fits": self.fits,
            "target": {
                "name": self.target.name,
                "memory_bytes": self.target.memory_bytes,
                "compute_capability": list(self.target.device.capability),
                "num_gpus": self.target.device.num_gpus,
                "overheads": None if overheads is None else asdict(overheads),
            },
            "rows_per_step": self.rows_per_step,
            "device_bytes": self.device_bytes,
            "allocated_bytes": needs.allocated_bytes,
            "reserved_bytes": needs.reserved_bytes,
            "paged_bytes": self.bill.paged_bytes,
            "peak": str(self.bill.peak.phase),
            "rows_at_once": self.request.batch_size,
            "bill": [{"what": name, "num_bytes": size} for name, size in self.lines],
            "parameters": {
                "base": facts.num_base,
                "quantized": facts.num_quantized,
                "trained": facts.num_trained,
                "trained_share": facts.trained_share,
            },
            "workload": None if self.workload is None else asdict(self.workload),
            "pace": None if self.pace is None else asdict(self.pace),
            "seconds": self.seconds,
            "disk": asdict(self.disk) | {"checkpoints_bytes": self.disk.checkpoints_bytes},
            "notes": list(self.bill.notes),
        }


def choose_target(gpu: str | None, memory_gb: float | None, num_gpus: int = 1) -> Target:
    """The card that is named, or a memory in GiB, or this machine's GPU, or none; `num_gpus` of it.

    What was measured of the card on this machine goes with it.

    Raises:
        ArgumentError: if the card is not known.
    """
    target = _single_target(gpu, memory_gb)
    return replace(target, device=replace(target.device, num_gpus=num_gpus))


def card_target(card: Gpu) -> Target:
    """A card, with what was measured of it on this machine."""
    overheads = find_overheads(lambda name: card_of(name) == card)
    memory = card.memory_bytes if overheads is None else overheads.memory_bytes
    return Target(card.name, replace(card.device, overheads=overheads), memory, card)


def _single_target(gpu: str | None, memory_gb: float | None) -> Target:
    if gpu is not None and memory_gb is not None:
        raise ArgumentError("--gpu and --memory-gb exclude each other", hint="leave one of them out")
    if memory_gb is not None:
        return Target(f"{memory_gb:g} GiB", Device(), int(memory_gb * GIB))
    if gpu is not None:
        return card_target(find_card(gpu))
    if not torch.cuda.is_available():
        return Target("a GPU of compute capability 8.0", Device(), None)
    return this_gpu()


def this_gpu() -> Target:
    """The current GPU of this machine, with all its memory."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    overheads = find_overheads(lambda name: name == found.name)
    device = Device("cuda", (found.major, found.minor), found.multi_processor_count, overheads=overheads)
    memory = found.total_memory if overheads is None else overheads.memory_bytes
    return Target(found.name, device, memory, card_of(found.name))


def make_report(request: PlanRequest, target: Target, *, with_data: bool = True) -> PlanReport:
    """Trace the step and put beside it what is known of data, time and disk.

    Raises:
        RecipeError: if the base cannot be built.
    """
    asked = request.recipe
    request = with_auto_batch_size(request, target.memory_bytes)
    bill = plan(request)
    num_gpus = request.device.num_gpus
    workload, why = find_workload(asked, num_gpus) if with_data else (None, "a sketch has no data")
    length = None if workload is None or request.recipe.data.packing else workload.tokens_per_row
    pace = None if target.card is None else estimate_pace(request, bill.facts, target.card, length)
    disk = disk_of(asked, bill.facts.trained, bill.facts.num_base, bill.facts.num_integers)
    return PlanReport(asked, request, bill, target, workload, why, pace, disk)
