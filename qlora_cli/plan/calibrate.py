"""Measuring what a plan otherwise takes from arithmetic: what CUDA adds to tensors, and the rate that training reaches.

A model of real width and few layers is made on the GPU from random numbers, in NF4 with its adapter, and trained for a
few steps. Then the driver's count of used memory less torch's is the context, what torch gives back when cuBLAS's
workspaces are cleared are these, and the time of a step gives the rate.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import date
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig

from qlora_cli import upstream
from qlora_cli.constants import GIB
from qlora_cli.errors import ArgumentError, ResourceError
from qlora_cli.plan.machine.calibration import Overheads, driver_version
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.machine.gpus import card_of
from qlora_cli.plan.parameter_counts import count_parameters
from qlora_cli.plan.throughput import moved_bytes, operations_per_token
from qlora_cli.plan.trace.fake_model import meta_model
from qlora_cli.plan.trace.optimizers import make_optimizer
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.schema import Recipe

CONFIG = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""Two layers of Llama-3.1-8B: its matrices, in 2 GB of memory and a few seconds."""

BATCH_SIZE, LENGTH = 2, 1024
NUM_WARM_UP_STEPS, NUM_TIMED_STEPS = 3, 10
STANDARD_DEVIATION = 0.02

MOST_CONTEXT_BYTES = 2 * GIB
"""More than this is not the context: other processes hold memory of the GPU."""


def calibrate() -> Overheads:
    """Measure the current GPU, which should have nothing else to do.

    Raises:
        ArgumentError: if torch sees no GPU.
        ResourceError: if other processes hold memory of the GPU, it has too little, or torch lacks what this needs.
    """
    if not torch.cuda.is_available():
        raise ArgumentError(
            "nothing was measured: torch sees no CUDA GPU",
            hint="run it on the machine that trains; `qlora doctor` says what torch sees there",
        )
    upstream.check(upstream.Road.CALIBRATION)
    device = torch.device("cuda", torch.cuda.current_device())
    found = torch.cuda.get_device_properties(device)
    request = calibration_request(Device("cuda", (found.major, found.minor), found.multi_processor_count))
    try:
        step, num_operations, moved = trained_step(request, device)
        seconds = timed(step, lambda: torch.cuda.synchronize(device))
    except torch.OutOfMemoryError as fault:
        raise ResourceError(
            "nothing was measured: the GPU has too little free memory", hint="end what else runs on it"
        ) from fault
    context, memory = _context_bytes(device)
    card = card_of(found.name)
    if card is not None:  # its bandwidth says how much of the time is dequantization, which plans count apart
        seconds -= moved / (card.bandwidth_gb_s * 1e9)
    return Overheads(
        gpu=found.name,
        driver=driver_version(),
        torch=torch.__version__,
        measured_on=date.today().isoformat(),
        memory_bytes=memory,
        context_bytes=context,
        cublas_bytes=_cublas_bytes(device),
        reached_tflops=num_operations / seconds / 1e12,
    )


def _context_bytes(device: torch.device) -> tuple[int, int]:
    """Bytes that the driver counts as used and torch has not reserved, and all memory of the GPU.

    Raises:
        ResourceError: if there are so many that other processes must hold them.
    """
    torch.cuda.synchronize(device)
    free, memory = torch.cuda.mem_get_info(device)
    context = memory - free - torch.cuda.memory_reserved(device)
    if context > MOST_CONTEXT_BYTES:
        raise ResourceError(
            f"nothing was measured: {context / GIB:.1f} GiB of the GPU belong to other processes",
            hint="end them (nvidia-smi lists them), then calibrate again",
        )
    return context, memory


def _cublas_bytes(device: torch.device) -> int:
    """Bytes of cuBLAS's workspaces, of the forward pass's thread and autograd's, measured by clearing them."""
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch._C._cuda_clearCublasWorkspaces()
    return before - torch.cuda.memory_allocated(device)


def calibration_request(device: Device, config: dict[str, Any] | None = None) -> PlanRequest:
    """The step that is timed: NF4 with double quantization, checkpointing, packed rows, rank 16 on all layers."""
    recipe = Recipe.model_validate(
        {
            "name": "calibration",
            "model": {"base_model": "random weights"},
            "quantization": {},
            "lora": {"r": 16, "lora_dropout": 0.0},
            "data": {"train": "random tokens", "max_length": LENGTH},
            "training": {"per_device_train_batch_size": BATCH_SIZE, "gradient_accumulation_steps": 1},
        }
    )
    return PlanRequest(recipe, LlamaConfig(**(config or CONFIG), use_cache=False), device)


def trained_step(request: PlanRequest, device: torch.device) -> tuple[Callable[[], None], int, float]:
    """A function that does one training step, its operations, and the bytes that dequantization moves in it."""
    model = meta_model(request)
    facts = count_parameters(model, is_quantized=True)
    num_tokens = request.batch_size * request.recipe.data.max_length
    num_operations = num_tokens * operations_per_token(request, facts, request.recipe.data.max_length).total
    model = materialized(model, request, device).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = make_optimizer(request, [each for each in model.parameters() if each.requires_grad])
    base = model.get_base_model()
    ids, positions = _rows(request, device)

    def step() -> None:
        with torch.autocast(device.type, request.autocast_dtype, enabled=request.autocast_dtype is not None):
            hidden = base.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            logits = base.get_output_embeddings()(hidden[:, :-1])
            loss = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, num_operations, moved_bytes(request, facts)


def _rows(request: PlanRequest, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and positions that restart in the middle of each row, as where two documents are packed."""
    length = request.recipe.data.max_length
    size = (request.batch_size, length)
    ids = torch.randint(request.config.get_text_config().vocab_size, size, device=device)
    positions = torch.arange(length, device=device) % math.ceil(length / 2)
    return ids, positions.repeat(request.batch_size, 1)


def materialized(model: PeftModel, request: PlanRequest, device: torch.device) -> PeftModel:
    """A model on the meta device, in place, with random weights on `device`; 4-bit layers are quantized there."""
    generator = torch.Generator(device).manual_seed(0)

    def random(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=device).normal_(std=STANDARD_DEVIATION, generator=generator)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if isinstance(parameter, bnb.nn.Params4bit):
                module._parameters[name] = _quantized(parameter, random(parameter.shape, request.dtype), module)
            elif parameter is not None:
                values = random(parameter.shape, parameter.dtype)
                module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.ones(buffer.shape, dtype=buffer.dtype, device=device)
    return model


def _quantized(parameter: Any, values: torch.Tensor, module: nn.Module) -> Any:
    """The values as the layer's 4-bit weight, quantized as `parameter` says."""
    packed, state = bnb.functional.quantize_4bit(
        values,
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
    )
    weight = bnb.nn.Params4bit(
        packed, requires_grad=False, quant_state=state, bnb_quantized=True, quant_type=parameter.quant_type
    )
    module.quant_state = state
    return weight


def timed(step: Callable[[], None], wait: Callable[[], None]) -> float:
    """Median seconds of a step, after some that are not counted.

    Args:
        step: does the step.
        wait: returns when the device has finished all its work.
    """
    seconds = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(NUM_WARM_UP_STEPS + NUM_TIMED_STEPS):
            started = time.perf_counter()
            step()
            wait()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[NUM_WARM_UP_STEPS:])
