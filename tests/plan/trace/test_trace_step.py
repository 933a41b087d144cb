"""Plans of whole recipes, and when a whole model is traced."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from qlora_cli.plan.budget import plan
from qlora_cli.plan.machine.device import Device
from qlora_cli.plan.trace import trace_step as tracing
from qlora_cli.plan.trace.live_memory import MemoryKind, Phase, Stage
from qlora_cli.plan.trace.step import fake_step
from qlora_cli.plan.trace.timeline import MemoryTrace
from qlora_cli.plan.trace.trace_step import trace_step
from tests.plan.bases import AMPERE, config_of, request_for

NO_LAYERS = MemoryTrace((), (Phase(Stage.SETUP, None, 0),), 1)


@pytest.fixture
def traced(monkeypatch):
    """The numbers of layers of the models that are asked for; each leaves a trace that nothing can be made of."""
    counts = []

    def count(request):
        counts.append(request.config.num_hidden_layers)
        return NO_LAYERS

    monkeypatch.setattr(tracing, "fake_step", count)
    return counts


def test_a_long_model_is_as_full_as_the_short_one_says():
    request = request_for(config_of("llama", 19), AMPERE)
    assert tracing.WORTHWHILE * 19 > 5 + 6
    assert trace_step(request).peak.by_kind == fake_step(request).peak.by_kind


def test_a_proof_that_fails_has_all_traced(traced):
    trace_step(request_for(config_of("llama", 20), AMPERE))
    assert traced == [5, 6, 20]


def test_a_short_model_is_traced_as_it_is(traced):
    trace_step(request_for(config_of("llama", 6), AMPERE))
    assert traced == [6]


def test_layers_that_are_not_alike_are_all_traced(traced):
    config = config_of("gemma3", 20)
    config.layer_types = ["sliding_attention"] * 19 + ["full_attention"]
    trace_step(request_for(config, AMPERE))
    assert traced == [20]


def test_a_recipe_that_names_one_layer_has_all_traced(traced):
    trace_step(request_for(config_of("llama", 20), AMPERE, lora__target_modules=("model.layers.3.self_attn.q_proj",)))
    assert traced == [20]


LLAMA_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.fixture(scope="module")
def bill_8b():
    config = LlamaConfig(**LLAMA_8B)
    settings = {"lora__r": 16, "data__max_length": 2048, "training__per_device_train_batch_size": 4}
    return plan(request_for(config, AMPERE, **settings))


def test_an_8b_model_has_its_published_parameters(bill_8b):
    assert bill_8b.facts.num_base == 8_030_261_248
    assert bill_8b.facts.num_trained == 41_943_040
    assert bill_8b.facts.trained_share == pytest.approx(0.0052, abs=1e-4)


def test_an_8b_model_takes_4_127_bits_a_quantized_weight(bill_8b):
    """QLoRA paper, section 3: 0.127 bit of constants; the code tables add 1.1 KiB a matrix."""
    stored = bill_8b.peak.by_kind[MemoryKind.BASE_QUANTIZED] + bill_8b.peak.by_kind[MemoryKind.QUANTIZATION_CONSTANTS]
    assert stored * 8 / bill_8b.facts.num_quantized == pytest.approx(4.127, abs=1e-3)


def test_the_sums_of_the_bill_agree(bill_8b):
    needs = bill_8b.needs
    by_name = {overhead.name: overhead.num_bytes for overhead in needs.overheads}
    tensors = bill_8b.peak.num_bytes
    assert tensors + by_name["cuBLAS workspaces"] + by_name["rounding"] == needs.allocated_bytes
    assert needs.allocated_bytes + by_name["fragmentation"] == needs.reserved_bytes
    assert needs.reserved_bytes + by_name["CUDA context"] == needs.device_bytes
    assert all(overhead.source for overhead in needs.overheads)
    assert bill_8b.paged_bytes == bill_8b.peak.by_kind[MemoryKind.PAGED_OPTIMIZER]


def test_an_8b_model_trains_on_a_16_gib_card(bill_8b):
    assert 9 * 2**30 < bill_8b.needs.device_bytes < 16 * 2**30


def test_its_timeline_can_be_drawn(bill_8b):
    moments = bill_8b.trace.timeline(300)
    assert len(moments) <= 300
    assert max(moment.num_bytes for moment in moments) == bill_8b.peak.num_bytes


def test_a_cpu_adds_nothing():
    bill = plan(request_for(config_of("llama")))
    assert bill.needs.device_bytes == bill.peak.num_bytes
    assert bill.needs.overheads == ()


def test_hopper_has_larger_cublas_workspaces():
    bills = [plan(request_for(config_of("llama"), Device("cuda", capability))) for capability in ((8, 0), (9, 0))]
    ampere, hopper = (bill.needs.overheads[0].num_bytes for bill in bills)
    assert hopper > ampere
