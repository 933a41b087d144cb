"""What is made again from memory is what torch's own fake tensors give, for every operator of a step."""

from __future__ import annotations

from collections import Counter

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

    def __init__(self, **options):
        super().__init__(**options)
        self.cache_enabled = False  # torch's own memory forgets that a view without elements is one

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        quick = super().__torch_dispatch__(func, types, args, kwargs)
        if isinstance(func, torch._ops.OpOverload) and torch.Tag.inplace_view not in func.tags:
            slow = FakeTensorMode.__torch_dispatch__(self, func, types, args, kwargs or {})
            given = list(tensors_in((args, kwargs or {})))
            assert described(quick, given) == described(slow, given), func
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


class Memory(dict):
    """Counts by operator what was made from it."""

    def __init__(self):
        super().__init__()
        self.uses = Counter()

    def get(self, form):
        make = super().get(form)
        self.uses[form[0]] += make is not None
        return make


@pytest.fixture
def memory(monkeypatch):
    """One that knows nothing yet."""
    empty = Memory()
    monkeypatch.setattr(quick_fakes, "_known", empty)
    return empty


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.every(9)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_result_of_a_step_is_torchs_own(memory, monkeypatch, name, step):
    device, settings = STEPS[step]
    monkeypatch.setattr(fake_model, "QuickFakes", Checked)
    fake_step(request_for(config_of(name), device, **settings))
    assert memory.uses.total() > 200
    assert len(+memory.uses) > 20


def rows(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype)


def second_with(first, second):
    """Operators whose result says nothing of which argument it came from where both are the same."""
    return [first.add_(second), torch.ops.aten.copy_.default(first, second), torch.where(first > 0, first, second)]


AWKWARD = {
    "of arguments that are one, then two": lambda: [
        second_with(x := rows(3, 4), x),
        second_with(rows(3, 4), rows(3, 4)),
        second_with(x := rows(3, 4), x.view(3, 4)),
    ],
    "without elements": lambda: [rows(0, 8).view(8, 0), rows(0, 8).as_strided((0, 2), (2, 1)), rows(0).clone()],
    "views that are not called so": lambda: [torch.ops.aten._unsafe_view.default(rows(4, 6), [2, 12])],
    "of storages larger than a tensor": lambda: [rows(100)[10:20].as_strided((3,), (2,)), rows(4, 8)[:, ::2].clone()],
    "in another dtype": lambda: [rows(4, 8).view(torch.int16), rows(4, dtype=torch.complex64).real],
    "of numbers read as others": lambda: [rows(4, dtype=torch.complex64).conj().imag + 1, rows(4).neg() + 1],
    "in place of the form": lambda: [rows(4, 8).t_(), rows(4, 1).squeeze_(1), rows(4).unsqueeze_(0), rows(4).t_()],
    "in another order": lambda: [rows(2, 3, 4, 5).to(memory_format=torch.channels_last), rows(4, 5).t().contiguous()],
    "several at once": lambda: [*rows(4, 6).split(2, 1), *rows(6, 4).unbind(0), *torch.sort(rows(7))],
    "of numbers that are equal": lambda: [rows(3) * 2, rows(3) * 2.0, rows(3) * True, rows(3, dtype=torch.int64) * 2.0],
    "for other defaults": lambda: [torch.ones(3), rows(3).new_ones(2), torch.arange(4), torch.arange(4.0)],
}
"""Where remembering went wrong in torch's own memory of fake results, or might."""


@pytest.mark.parametrize("results", AWKWARD)
def test_awkward_results_are_torchs_own_the_first_time_and_from_memory(memory, results):
    with Checked(allow_non_fake_inputs=True):
        for _ in range(3):
            AWKWARD[results]()
        torch.set_default_dtype(torch.float64)
        try:
            AWKWARD[results]()
        finally:
            torch.set_default_dtype(torch.float32)
    assert memory.uses.total() > 0


def test_a_memory_that_is_full_begins_again(memory, monkeypatch):
    monkeypatch.setattr(quick_fakes, "MOST_KNOWN", 5)
    with QuickFakes():
        for width in range(1, 20):
            assert (rows(3, width) + 1).shape == rows(3, width).shape == (3, width)
            assert len(memory) <= 5


def memory_over(trace):
    """A trace without the order of what dies together; addresses of checkpoints decide it."""
    births = [(life.allocated_at, life.num_bytes, life.kind, life.layer) for life in trace.lives]
    return births, trace.highest, trace.largest, trace.peak, trace.end


def test_a_trace_from_memory_is_the_first_one_and_that_of_torchs_own_mode(memory, monkeypatch):
    request = request_for(config_of("llama"), AMPERE, training__gradient_checkpointing=True)
    first = fake_step(request)
    num_uses = memory.uses.total()
    again = fake_step(request)
    assert memory.uses.total() - num_uses > num_uses > 0
    monkeypatch.setattr(fake_model, "QuickFakes", FakeTensorMode)
    assert memory_over(first) == memory_over(again) == memory_over(fake_step(request))
