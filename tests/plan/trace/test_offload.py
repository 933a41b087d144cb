"""What goes to host memory leaves the count, all but the latest few and what is too small."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from qlora_cli.plan.trace.live_memory import MemoryKind, Stage
from qlora_cli.plan.trace.offload import LEAST_BYTES, NUM_STASHED, FakeOffload, OnHost
from qlora_cli.plan.trace.step import fake_step
from tests.plan.bases import AMPERE, request_for

LAYERS, HIDDEN, LENGTH, ROWS = 6, 256, 128, 2
ONE_INPUT = ROWS * LENGTH * HIDDEN * 2
"""Bytes of a layer's input in bfloat16."""


@pytest.fixture(scope="module")
def request_16bit():
    config = LlamaConfig(
        vocab_size=512, hidden_size=HIDDEN, intermediate_size=512, num_hidden_layers=LAYERS, num_attention_heads=4
    )
    return request_for(config, AMPERE, data__max_length=LENGTH)


@pytest.fixture(scope="module")
def plain(request_16bit):
    return fake_step(request_16bit)


@pytest.fixture(scope="module")
def offloaded(request_16bit):
    return fake_step(request_16bit.changed({"training.activation_offloading": True}))


def kept_at_the_loss(trace) -> int:
    start = next(phase.start for phase in trace.phases if phase.stage is Stage.LOSS)
    return trace.at(start).by_kind[MemoryKind.ACTIVATIONS]


def test_with_checkpointing_all_inputs_of_layers_but_the_latest_leave_the_device(plain, offloaded):
    """The input of each layer and of the last norm is saved; five of them are still on their way."""
    assert kept_at_the_loss(plain) - kept_at_the_loss(offloaded) == (LAYERS + 1 - NUM_STASHED) * ONE_INPUT


def test_without_checkpointing_more_leaves(request_16bit):
    kept = request_16bit.changed({"training.gradient_checkpointing": False})
    plain, offloaded = fake_step(kept), fake_step(kept.changed({"training.activation_offloading": True}))
    assert offloaded.peak.num_bytes < plain.peak.num_bytes
    assert kept_at_the_loss(offloaded) < 0.5 * kept_at_the_loss(plain)


def test_the_weights_and_what_is_trained_stay_as_they_are(plain, offloaded):
    for kind in (
        MemoryKind.BASE_QUANTIZED,
        MemoryKind.QUANTIZATION_CONSTANTS,
        MemoryKind.BASE_16BIT,
        MemoryKind.ADAPTER,
        MemoryKind.GRADIENTS,
    ):
        assert offloaded.largest[kind] == plain.largest[kind]


def packed(offload: FakeOffload, *tensors: torch.Tensor):
    return [offload._pack(tensor) for tensor in tensors]


def test_small_tensors_parameters_and_what_is_on_its_way_already_stay():
    offload = FakeOffload()
    large = torch.empty(LEAST_BYTES // 4)
    for tensor in (torch.empty(LEAST_BYTES // 4 - 1), torch.nn.Parameter(torch.empty(LEAST_BYTES))):
        assert packed(offload, tensor)[0] is tensor
    first, again, elsewhere = packed(offload, large, large[:], torch.empty(2 * LEAST_BYTES)[LEAST_BYTES:])
    assert first is not large
    assert again.data_ptr() == large.data_ptr()
    assert isinstance(elsewhere, OnHost)


def test_a_tensor_comes_back_with_its_shape_and_strides():
    offload = FakeOffload()
    tensors = [torch.empty(40, 30).t() for _ in range(NUM_STASHED + 1)]
    tokens = packed(offload, *tensors)
    back = offload._unpack(tokens[0])
    assert (back.shape, back.stride(), back.dtype) == ((30, 40), (1, 30), torch.float32)
    assert back.data_ptr() != tensors[0].data_ptr()
