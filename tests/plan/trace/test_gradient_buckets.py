"""The buffers of several processes, against the code that sums gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qlora_cli.plan.budget import plan
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace import gradient_buckets as planned
from qlora_cli.plan.trace.live_memory import LiveMemory, MemoryKind, Stage
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.plan.trace.timeline import finished_trace
from qlora_cli.plan.trace.trace_step import trace_step
from qlora_cli.train.processes import collectives as trained
from tests.plan.bases import config_of, request_for

TWO_GPUS = Device("cuda", (8, 0), num_gpus=2)


def test_buckets_are_as_large_as_in_training():
    assert trained.buckets is planned.buckets


@pytest.mark.parametrize("adapter", [{}, {"lora__autocast_adapter_dtype": False}], ids=str)
def test_the_buffers_are_those_that_training_makes(monkeypatch, adapter):
    """The same parameters through `ProcessGroup.sum_gradients`, its messages left out, counted."""
    monkeypatch.setattr(planned, "MAX_ELEMENTS", 5000)
    monkeypatch.setattr(trained.distributed, "all_reduce", lambda *args, **kwargs: None)
    request = request_for(config_of("llama"), TWO_GPUS, **adapter)
    alone = fake_step(request)
    together = planned.with_gradient_sums(alone, request)

    width = 4 if request.recipe.lora.autocast_adapter_dtype else 2
    dtype = torch.float32 if width == 4 else torch.bfloat16
    parameters = []
    for life in alone.lives:
        if life.kind is MemoryKind.ADAPTER:
            parameters.append(nn.Parameter(torch.zeros(life.num_bytes // width, dtype=dtype)))
            parameters[-1].grad = torch.zeros_like(parameters[-1])
    processes = trained.ProcessGroup()
    processes.world_size = 2
    memory = LiveMemory()
    for parameter in parameters:
        memory.settle(parameter, MemoryKind.ADAPTER)
        memory.settle(parameter.grad, MemoryKind.GRADIENTS)
    with memory:
        processes.sum_gradients(parameters)
    counted = finished_trace(memory)
    assert len(planned.buckets([parameter.numel() for parameter in parameters])) > 2
    assert together.largest[MemoryKind.GRADIENT_SUMS] == counted.peak.num_bytes - counted.at(0).num_bytes


def test_the_rest_of_the_step_stays_as_it_was():
    request = request_for(config_of("llama"), TWO_GPUS)
    alone = trace_step(replace(request, device=Device("cuda", (8, 0))))
    together = trace_step(request)
    others = {kind: size for kind, size in together.largest.items() if kind is not MemoryKind.GRADIENT_SUMS}
    assert others == alone.largest
    for (phase, height), (other, other_height) in zip(alone.highest, together.highest, strict=True):
        assert (phase.stage, phase.layer) == (other.stage, other.layer)
        assert other_height >= height if phase.stage is Stage.OPTIMIZER else other_height == height


def test_each_gpu_holds_the_whole_model():
    request = request_for(config_of("llama"), TWO_GPUS)
    one = plan(replace(request, device=Device("cuda", (8, 0))))
    assert plan(request).needs.device_bytes >= one.needs.device_bytes
    assert plan(request).peak.by_kind[MemoryKind.BASE_QUANTIZED] == one.peak.by_kind[MemoryKind.BASE_QUANTIZED]


def test_where_the_adapter_is_large_the_sums_make_the_peak():
    settings = {"lora__r": 512, "data__max_length": 8, "training__per_device_train_batch_size": 1}
    peak = plan(request_for(config_of("llama"), TWO_GPUS, **settings)).peak
    assert peak.phase.stage in (Stage.OPTIMIZER, Stage.LOSS, Stage.BACKWARD)
    assert trace_step(request_for(config_of("llama"), TWO_GPUS, **settings)).largest[MemoryKind.GRADIENT_SUMS] > 0
