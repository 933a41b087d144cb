"""What is made again from memory is what torch's own fake tensors give, for every operator of a step."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qlora_cli.plan.trace import fake_model, quick_fakes
from qlora_cli.plan.trace.quick_fakes import QuickFakes
from qlora_cli.plan.trace.step import fake_step
from tests.plan.bases import AMPERE, CONFIGS, CPU, config_of, request_for

STEPS = {
    "on a CPU": (CPU, {}),
    "checkpointed on CUDA": (AMPERE, {"training__gradient_checkpointing": True, "lora__target_modules": "all-linear"}),
    "plain weights, in passes": (AMPERE, {"quantized": False, "training__gradient_accumulation_steps": 2}),
    "with noise, offloaded": (
        AMPERE,
        {"training__neftune_noise_alpha": 5.0, "training__activation_offloading": True},
    ),
}


class Checked(QuickFakes):
    """Computes everything twice, from memory where it can and as torch does, and compares."""

    remembered: ClassVar[Counter] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        num_known = len(quick_fakes._known)
        quick = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(func, torch._ops.OpOverload) and torch.Tag.inplace_view not in func.tags:
            slow = FakeTensorMode.__torch_dispatch__(self, func, types, args, kwargs or {})
            given = list(tensors_in((args, kwargs or {})))
            assert described(quick, given) == described(slow, given), func
            self.remembered[func] += len(quick_fakes._known) == num_known
        return quick


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors_in(tuple(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)


def described(result, given):
    """All that a later operator, or who counts memory, can see of a result."""
    if isinstance(result, list | tuple):
        return isinstance(result, list), [described(item, given) for item in result]
    if not isinstance(result, torch.Tensor):
        return type(result), result if isinstance(result, quick_fakes.PLAIN) else None
    storage = result.untyped_storage()
    same = [index for index, tensor in enumerate(given) if tensor is result]
    shared = [index for index, tensor in enumerate(given) if tensor.untyped_storage()._cdata == storage._cdata]
    form = (result.dtype, result.shape, result.stride(), result.storage_offset(), storage.nbytes(), result.layout)
    kind = (type(result), result.device, result.requires_grad, torch._C._dispatch_keys(result))
    return form, tuple(map(str, kind)), same, shared


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(quick_fakes, "_known", {})


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.every(9)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_result_of_a_step_is_torchs_own(nothing_known, monkeypatch, name, step):
    device, settings = STEPS[step]
    monkeypatch.setattr(fake_model, "QuickFakes", Checked)
    monkeypatch.setattr(Checked, "remembered", Counter())
    fake_step(request_for(config_of(name), device, **settings))
    assert Checked.remembered.total() > 200
    assert len(Checked.remembered) > 20


def memory_over(trace):
    """A trace without the order of what dies together; addresses of checkpoints decide it."""
    births = [(life.allocated_at, life.num_bytes, life.kind, life.layer) for life in trace.lives]
    return births, trace.highest, trace.largest, trace.peak, trace.end


def test_a_trace_from_memory_is_the_first_one_and_that_of_torchs_own_mode(nothing_known, monkeypatch):
    request = request_for(config_of("llama"), AMPERE, training__gradient_checkpointing=True)
    first, again = fake_step(request), fake_step(request)
    monkeypatch.setattr(fake_model, "QuickFakes", FakeTensorMode)
    assert memory_over(first) == memory_over(again) == memory_over(fake_step(request))
