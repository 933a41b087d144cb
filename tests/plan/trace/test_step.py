"""A step on fake tensors holds what the same step holds on real ones, phase by phase and kind by kind."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, LlamaConfig

from qlora_cli.errors import RecipeError
from qlora_cli.plan.trace.live_memory import MemoryKind, Stage
from qlora_cli.plan.trace.optimizers import make_optimizer
from qlora_cli.plan.trace.step import count_step, fake_step
from tests.model.bases import MULTIMODAL, save_toy
from tests.plan.bases import AMPERE, CONFIGS, config_of, real_model, request_for, trl_loss
from tests.turns import in_turn

WITHIN = 0.001


def assert_same(real, fake):
    """Every phase is as full, and every kind reaches as much."""
    assert [(phase.stage, phase.layer) for phase, _ in fake.highest] == [
        (phase.stage, phase.layer) for phase, _ in real.highest
    ]
    for (phase, expected), (_, height) in zip(real.highest, fake.highest, strict=True):
        assert height == pytest.approx(expected, rel=WITHIN), phase
    assert fake.peak.num_bytes == pytest.approx(real.peak.num_bytes, rel=WITHIN)
    assert set(fake.largest) == set(real.largest)
    for kind, expected in real.largest.items():
        assert fake.largest[kind] == pytest.approx(expected, rel=WITHIN), kind
        assert fake.peak.by_kind.get(kind, 0) == pytest.approx(real.peak.by_kind.get(kind, 0), rel=WITHIN), kind


def mean_square(model, batch):
    """A loss that holds next to nothing, so that the layers make the peak."""
    base = model.get_base_model()
    hidden = base.base_model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    return hidden.last_hidden_state.float().square().mean()


@pytest.mark.parametrize(("name", "checkpointing"), in_turn(CONFIGS, [True, False]))
def test_a_traced_step_holds_what_a_real_one_holds(base_folder, name, checkpointing):
    folder = base_folder(name)
    settings = {"training__gradient_checkpointing": checkpointing}
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    real, fake = count_step(real_model(request, folder), request, trl_loss), fake_step(request)
    assert_same(real, fake)
    assert fake.peak.by_kind == real.peak.by_kind
    assert fake.largest == real.largest


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_base_of_several_parts_is_traced_as_it_is_loaded(tmp_path, name):
    """The tower is loaded, and quantized as bitsandbytes does it, or left out; its adapters are not there."""
    folder = save_toy(name, tmp_path)
    request = request_for(AutoConfig.from_pretrained(folder))
    real, fake = count_step(real_model(request, folder), request, trl_loss), fake_step(request)
    assert_same(real, fake)
    assert fake.peak.by_kind == real.peak.by_kind
    assert fake.largest == real.largest


@pytest.mark.parametrize(
    "settings",
    [
        {"quantization__double_quant": False, "quantization__skip_modules": ("down_proj",)},
        {"quantization__quant_type": "int8"},
        {"quantized": False},
        {"model__dtype": "bfloat16"},
        {"model__dtype": "bfloat16", "lora__autocast_adapter_dtype": False},
        {"model__attn_implementation": "eager"},
        {"lora__lora_dropout": 0.1, "lora__r": 8, "quantization__quant_type": "fp4"},
        {"lora__use_dora": True},
        {"lora__modules_to_save": ("embed_tokens", "lm_head"), "lora__target_modules": ("q_proj",)},
        {"data__packing": False, "training__per_device_train_batch_size": 1},
        {"data__max_length": 96, "training__per_device_train_batch_size": 5},
        {"training__gradient_accumulation_steps": 4, "training__optim": "paged_adamw_32bit"},
        {"training__optim": "adamw_torch_fused", "training__max_grad_norm": 0.0},
        {"training__neftune_noise_alpha": 5.0},
    ],
    ids=str,
)
def test_it_does_so_whatever_the_recipe_says(base_folder, settings):
    folder = base_folder("llama")
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    assert_same(count_step(real_model(request, folder), request, trl_loss), fake_step(request))


@pytest.mark.parametrize(("name", "checkpointing"), in_turn(["llama", "gpt2"], [True, False]))
def test_what_layers_hold_is_the_same_where_the_loss_does_not_hide_it(base_folder, name, checkpointing):
    folder = base_folder(name)
    settings = {"training__gradient_checkpointing": checkpointing, "data__max_length": 128}
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    real = count_step(real_model(request, folder), request, mean_square)
    assert (
        MemoryKind.LOSS not in real.peak.by_kind
        or real.peak.by_kind[MemoryKind.LOSS] < real.peak.by_kind[MemoryKind.ACTIVATIONS]
    )
    assert_same(real, fake_step(request, mean_square))


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_allocator_of_torch_counts_the_same_bytes(base_folder, checkpointing):
    """The profiler sees each allocation, also those that kernels make inside and no dispatch mode sees."""
    folder = base_folder("llama")
    settings = {"training__gradient_checkpointing": checkpointing, "data__max_length": 256}
    request = request_for(AutoConfig.from_pretrained(folder), **settings)
    model = real_model(request, folder)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(request, trained)

    def take_step():
        ids = torch.zeros(2, 256, dtype=torch.int64)
        positions = (torch.arange(256) % 128).repeat(2, 1)
        loss = trl_loss(model, {"input_ids": ids, "labels": torch.ones_like(ids), "position_ids": positions})
        del ids, positions
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, request.recipe.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    take_step()  # makes the optimizer's state, which every later step finds
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        take_step()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)

    trace = fake_step(request)
    steady = sum(life.num_bytes for life in trace.lives if not life.allocated_at)
    assert trace.peak.num_bytes - steady == pytest.approx(peak, rel=WITHIN)


def test_with_accumulation_gradients_are_there_from_the_start():
    config = config_of("llama")
    once = fake_step(request_for(config))
    more = fake_step(request_for(config, training__gradient_accumulation_steps=2))
    assert MemoryKind.GRADIENTS not in once.at(0).by_kind
    assert more.at(0).by_kind[MemoryKind.GRADIENTS] == more.at(0).by_kind[MemoryKind.ADAPTER]
    assert once.largest[MemoryKind.GRADIENTS] == more.largest[MemoryKind.GRADIENTS]


def test_a_step_goes_up_through_the_layers_and_down_again():
    trace = fake_step(request_for(config_of("llama", 3)))
    layers = [(phase.stage, phase.layer) for phase in trace.phases if phase.layer is not None]
    assert layers[:3] == [(Stage.FORWARD, 0), (Stage.FORWARD, 1), (Stage.FORWARD, 2)]
    downward = [layer for stage, layer in layers if stage is Stage.RECOMPUTE]
    assert downward == [2, 1, 0]


def test_with_checkpointing_a_wide_model_is_fullest_when_its_last_layer_is_recomputed():
    config = LlamaConfig(
        vocab_size=2048, hidden_size=2048, intermediate_size=8192, num_hidden_layers=3, num_attention_heads=16
    )
    request = request_for(config, AMPERE, data__max_length=2048)
    kept = fake_step(request.changed({"training.gradient_checkpointing": False}))
    recomputed = fake_step(request)
    assert recomputed.peak.phase.layer == 2
    assert recomputed.peak.phase.stage in (Stage.RECOMPUTE, Stage.BACKWARD)
    assert recomputed.peak.num_bytes < kept.peak.num_bytes


def test_a_base_whose_shapes_depend_on_values_is_refused_in_words():
    config = config_of("mixtral")
    config._experts_implementation = "eager"
    with pytest.raises(RecipeError, match="MixtralForCausalLM cannot be planned without its weights"):
        fake_step(request_for(config))
