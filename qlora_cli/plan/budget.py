"""Memory budget of a step: its memory at the peak by kind, what CUDA adds, and notes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qlora_cli.constants import MIB
from qlora_cli.plan.loading import loading_bytes, why_loading
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.parameter_counts import ParameterCounts, parameter_counts
from qlora_cli.plan.trace.allocator import allocate_trace
from qlora_cli.plan.trace.live_memory import MemoryKind
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.timeline import MemoryTrace, Moment
from qlora_cli.plan.trace.trace_step import trace_step

LOADING = "while the base is loaded"
CONTEXT = "CUDA context"
BARE_CONTEXT_BYTES = 29 * MIB
CONTEXT_BYTES_A_MULTIPROCESSOR = 28 * MIB // 10
"""Memory that a process takes of a GPU before it allocates anything. Two that were measured lie on this line: 141 MiB
on a T4 (40 multiprocessors; fitcheck-llm), 426 MiB on an RTX 6000 Ada (142; unslothai/unsloth-zoo#1053, torch 2.10)."""

KERNEL_BYTES = 120 * MIB
"""A margin for the kernels of torch, cuBLAS and bitsandbytes, which are loaded at their first use since CUDA 11.7."""

CUBLAS_WORKSPACE_BYTES = 4096 * 1024 * 2 + 16 * 1024 * 8
CUBLAS_WORKSPACE_BYTES_FROM_HOPPER = 32 * MIB
"""By aten/src/ATen/cuda/CublasHandlePool.cpp (`:4096:2:16:8`; 32 MiB from compute capability 9.0 on), for each thread
that multiplies matrices: the one of the forward pass and autograd's."""

NUM_CUBLAS_THREADS = 2


@dataclass(frozen=True)
class Overhead:
    """Memory beyond the step's tensors."""

    name: str
    num_bytes: int
    source: str
    """Source of the figure."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that a step takes of its device."""

    allocated_bytes: int
    """Predicted `torch.cuda.max_memory_allocated`."""

    reserved_bytes: int
    """Predicted `torch.cuda.max_memory_reserved`."""

    overheads: tuple[Overhead, ...]
    """Memory that the device's libraries add to the tensors; nothing on a CPU."""

    @property
    def device_bytes(self) -> int:
        """Everything that the process takes; this must fit."""
        return self.reserved_bytes + sum(each.num_bytes for each in self.overheads if each.name == CONTEXT)

    def as_dict(self) -> dict[str, Any]:
        """The needs as JSON holds them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DeviceMemory:
        """The needs that `as_dict` gave.

        Raises:
            KeyError, TypeError: if it is something else.
        """
        overheads = tuple(Overhead(**each) for each in values["overheads"])
        return cls(values["allocated_bytes"], values["reserved_bytes"], overheads)


@dataclass(frozen=True)
class MemoryBudget:
    """Memory that one training step needs."""

    peak: Moment
    """The fullest moment of the step, with when it is and its bytes of tensors by kind."""

    needs: DeviceMemory

    paged_bytes: int
    """Optimizer state in memory that moves to the host when the GPU is full; in none of the sums."""

    facts: ParameterCounts
    trace: MemoryTrace
    notes: tuple[str, ...]
    """Remarks on the figures, one sentence each."""


def plan(request: PlanRequest) -> MemoryBudget:
    """Memory that one training step of the recipe needs.

    Raises:
        RecipeError: if the base cannot be built from its configuration or run, or the recipe names modules that it does
            not have.
    """
    facts = parameter_counts(request)
    return memory_budget(request, trace_step(request), facts)


def memory_budget(request: PlanRequest, trace: MemoryTrace, facts: ParameterCounts) -> MemoryBudget:
    """The memory budget of a traced step."""
    needs = device_memory(request, trace)
    return MemoryBudget(
        peak=trace.peak,
        needs=needs,
        paged_bytes=trace.largest.get(MemoryKind.PAGED_OPTIMIZER, 0),
        facts=facts,
        trace=trace,
        notes=facts.notes,
    )


def device_memory(request: PlanRequest, trace: MemoryTrace) -> DeviceMemory:
    """Memory that the device must have for a traced step."""
    tensors = trace.peak.num_bytes
    loading = loading_bytes(request, trace)
    if request.device.kind == "cpu":
        return DeviceMemory(tensors, max(tensors, loading), _more_to_load(loading - tensors, request))
    workspace, workspace_source = _cublas(request)
    context, context_source = context_on(request.device)
    allocator = allocate_trace(trace, beforehand=workspace)
    rounding = max(0, allocator.peak_allocated - tensors - workspace)
    reserved = max(allocator.peak_reserved, loading)
    replayed = "the step replayed by the allocator's rules"
    return DeviceMemory(
        allocator.peak_allocated,
        reserved,
        (
            Overhead("cuBLAS workspaces", workspace, workspace_source),
            Overhead("rounding", rounding, replayed),
            Overhead("fragmentation", allocator.peak_reserved - allocator.peak_allocated, replayed),
            *_more_to_load(reserved - allocator.peak_reserved, request),
            Overhead(CONTEXT, context, context_source),
        ),
    )


def _more_to_load(num_bytes: int, request: PlanRequest) -> tuple[Overhead, ...]:
    """What loading takes beyond a step, if it does."""
    return (Overhead(LOADING, num_bytes, why_loading(request)),) if num_bytes > 0 else ()


def _cublas(request: PlanRequest) -> tuple[int, str]:
    """Bytes of cuBLAS's workspaces, and where the figure is from."""
    if request.device.overheads is not None:
        return request.device.overheads.cublas_bytes, request.device.overheads.source
    from_hopper = request.device.capability >= (9, 0)
    size = CUBLAS_WORKSPACE_BYTES_FROM_HOPPER if from_hopper else CUBLAS_WORKSPACE_BYTES
    return NUM_CUBLAS_THREADS * size, "CublasHandlePool.cpp, two threads"


def context_on(device: Device) -> tuple[int, str]:
    """Bytes of the CUDA context, and where the figure is from."""
    if device.overheads is not None:
        return device.overheads.context_bytes, device.overheads.source
    size = BARE_CONTEXT_BYTES + CONTEXT_BYTES_A_MULTIPROCESSOR * device.num_multiprocessors + KERNEL_BYTES
    return size, f"an estimate from {device.num_multiprocessors} multiprocessors; `--calibrate` measures it"
