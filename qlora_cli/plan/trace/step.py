"""One training step, run and counted: forward, loss, backward, clipping, optimizer.

The step is the one that every micro-batch after the first ones takes: the optimizer's state is there from the start,
and with gradient accumulation so are the gradients, for it is the last of the micro-batches that costs most.

The model may be made of real or of fake tensors. `fake_step` plans; real ones are for tests of the plan.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from qlora_cli.errors import RecipeError
from qlora_cli.garbage import collector_off
from qlora_cli.model.experts.passes import keep_experts_packed
from qlora_cli.model.experts.wanted import keeps_experts_packed
from qlora_cli.model.model_support import require_gradient_checkpointing
from qlora_cli.model.noise import add_embedding_noise
from qlora_cli.plan.trace.cuda_kernels import FAKE_KERNELS, AsOnCuda, cuda_autocast, use_cuda_int8, workspaces
from qlora_cli.plan.trace.fake_model import fake_model, fake_tensors
from qlora_cli.plan.trace.fused_loss import fused_loss
from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind, Stage
from qlora_cli.plan.trace.offload import FakeOffload
from qlora_cli.plan.trace.optimizers import make_optimizer
from qlora_cli.plan.trace.persistent import count_model, count_optimizer
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.plan.trace.stages import checkpoint_contexts, record_stages
from qlora_cli.plan.trace.timeline import MemoryTrace, finished_trace

TRACE_FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of a base's code on tensors that hold no values, or on a configuration that contradicts itself."""

Loss = Callable[[PeftModel, dict[str, torch.Tensor]], torch.Tensor]
"""From the model and a batch to the loss; it calls the model's backbone itself."""


def fake_step(request: PlanRequest, loss: Loss | None = None) -> MemoryTrace:
    """The memory of one step of the recipe, from its base's configuration alone.

    Args:
        request: what is planned.
        loss: as in `count_step`.

    Raises:
        RecipeError: if the base cannot be built, the recipe names modules that it does not have, or its code fails on
            tensors without values.
    """
    mode = fake_tensors()
    model = fake_model(request, mode)
    with mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if request.device.kind == "cuda":
            use_cuda_int8(model)
        try:
            return count_step(model, request, loss)
        except TRACE_FAULTS as fault:
            base = type(model.get_base_model()).__name__
            reason = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
            raise RecipeError(
                f"a step of {base} cannot be planned without its weights: {reason}",
                hint="train a few steps with `--set training.max_steps=3` and read peak_memory_bytes in metrics.jsonl",
            ) from fault


def count_step(model: PeftModel, request: PlanRequest, loss: Loss | None = None) -> MemoryTrace:
    """Run one step of `model` and count what lives.

    Args:
        model: the base with its adapter, in training mode.
        request: the batch, the optimizer and the device that the step stands for.
        loss: computes the loss; by default a stand-in for trl's that makes the same tensors.
    """
    is_fake = isinstance(next(model.parameters()), FakeTensor)
    memory = LiveMemory(workspaces(request), FAKE_KERNELS if is_fake else {})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with unset_fake_temporarily():  # bitsandbytes makes its code tables from numbers that fake tensors do not have
        optimizer = make_optimizer(request, trained)
    if request.recipe.training.neftune_noise_alpha is not None:
        add_embedding_noise(model, request.recipe.training.neftune_noise_alpha)
    if keeps_experts_packed(request.recipe.training):
        keep_experts_packed(model)
    if request.recipe.training.gradient_checkpointing:
        _turn_on_checkpointing(model, request, memory)
    if request.recipe.training.num_passes > 1:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    count_model(memory, model)
    with ExitStack() as stack:
        # Storages then die when the last reference goes, not when the collector happens to run. It finds next to
        # nothing, and would take a quarter of the time of a plan.
        stack.enter_context(collector_off())
        stack.enter_context(record_stages(memory, model))
        for parameter in trained:
            stack.callback(parameter.register_post_accumulate_grad_hook(_counts_gradient(memory)).remove)
        stack.enter_context(memory)
        _run(model, request, memory, optimizer, loss or _stand_in_loss(request))
    count_optimizer(memory, model, request, optimizer)
    return finished_trace(memory)


def _run(
    model: PeftModel, request: PlanRequest, memory: LiveMemory, optimizer: torch.optim.Optimizer, loss: Loss
) -> None:
    batch = _batch(request)
    for tensor in batch.values():
        memory.add(tensor, MemoryKind.INPUTS)
    memory.enter(Stage.FORWARD)
    with FakeOffload() if request.recipe.training.activation_offloading else nullcontext():
        with _computing(request):
            value = loss(model, batch)
        memory.enter(Stage.BACKWARD)
        value.backward()
    del value, batch
    memory.enter(Stage.OPTIMIZER)
    on_cuda = request.device.kind == "cuda"
    limit = request.recipe.training.max_grad_norm
    if limit > 0:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, limit, foreach=True if on_cuda else None)
    optimizer.step()
    optimizer.zero_grad()


def _stand_in_loss(request: PlanRequest) -> Loss:
    on_cuda = request.device.kind == "cuda"
    has_softcap = getattr(request.config.get_text_config(), "final_logit_softcapping", None) is not None

    def compute(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        base = model.get_base_model()
        hidden_BLH = base.base_model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).last_hidden_state
        head, labels_BL = base.get_output_embeddings(), batch["labels"]
        return fused_loss(hidden_BLH, head, labels_BL, on_cuda=on_cuda, has_softcap=has_softcap)

    return compute


def _batch(request: PlanRequest) -> dict[str, torch.Tensor]:
    """A batch as the collator makes it: rows of two documents, or without a mask of one; flat for varlen kernels."""
    num_rows, length = request.batch_size, request.recipe.data.max_length
    if request.recipe.model.attn_implementation.startswith("flash_attention"):
        num_rows, length = 1, num_rows * length
    document = -(-length // 2) if request.has_mask else length
    return {
        "input_ids": torch.zeros(num_rows, length, dtype=torch.int64),
        "labels": torch.ones(num_rows, length, dtype=torch.int64),
        "position_ids": (torch.arange(length) % document).repeat(num_rows, 1),
    }


def _turn_on_checkpointing(model: PeftModel, request: PlanRequest, memory: LiveMemory) -> None:
    """As the trainer does; trl then has the embeddings' output require a gradient."""
    require_gradient_checkpointing(model.get_base_model())
    on_cuda = request.device.kind == "cuda"
    arguments: dict[str, Any] = {
        "use_reentrant": False,
        "preserve_rng_state": not on_cuda,  # on CUDA the state of the random generators is in host memory
        "context_fn": checkpoint_contexts(memory, lambda: _computing(request)),
    }
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=arguments)
    model.enable_input_require_grads()


@contextmanager
def _computing(request: PlanRequest) -> Iterator[None]:
    """The modes that a forward pass or its recomputation runs in."""
    dtype = request.autocast_dtype
    if request.device.kind == "cuda":
        with AsOnCuda(request.device), cuda_autocast(dtype):
            yield
    else:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            yield


def _counts_gradient(memory: LiveMemory) -> Callable[[torch.Tensor], None]:
    def count(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            memory.add(parameter.grad, MemoryKind.GRADIENTS)

    return count
