"""The base with its adapter on fake tensors: every shape, dtype and module is there, and no memory is.

The way is that of `load_base` and `attach_adapter`, with the weights left out: `transformers` builds the base on the
meta device, its own bitsandbytes integration swaps the linear layers, PEFT attaches the adapter, and at last each
parameter is replaced by a fake one, 4-bit weights by what bitsandbytes' registered fake kernels make of them.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import PreTrainedModel
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.base import HfQuantizer

from qlora_cli import compat, upstream
from qlora_cli.errors import IdentityError, RecipeError
from qlora_cli.model.adapter import attach_adapter
from qlora_cli.model.base import bitsandbytes_config
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.experts.wanted import quantizes_experts
from qlora_cli.model.fingerprint import weight_files
from qlora_cli.model.integer.layers import layers_to_round
from qlora_cli.model.integer.quantizer import set_dtypes, set_stored_dtypes, swap_linear_layers
from qlora_cli.model.integer.taking_over import layout_of
from qlora_cli.model.model_support import require_position_ids
from qlora_cli.model.prequantized import is_kept_in_float32
from qlora_cli.model.source_error import source_error
from qlora_cli.model.towers.auto_class import auto_class
from qlora_cli.model.towers.own_names import note_own_class
from qlora_cli.model.towers.skeleton import kept_modules
from qlora_cli.plan.trace.cuda_attention import attention_on
from qlora_cli.plan.trace.fake_experts import mark_experts, pack_marked, refuse_experts_to_come
from qlora_cli.plan.trace.quick_fakes import QuickFakes
from qlora_cli.plan.trace.request import PlanRequest
from qlora_cli.recipe.base_files import cached_base
from qlora_cli.recipe.schema import QuantizationSection
from qlora_cli.recipe.stored_weights import stored_weights

_FAKE_CLASSES = {name: type(name, (FakeTensor,), {}) for name in ("Params4bit", "Int8Params")}
"""PEFT knows a quantized weight by its class's name, and a fake tensor cannot be of bitsandbytes' classes."""

DYNAMIC_MAP_BYTES = 1024
"""The 256 float32 levels of the map that quantizes block constants."""


def fake_tensors() -> FakeTensorMode:
    """The mode in which a fake model is made and run.

    bitsandbytes makes two code tables when it first quantizes, from real numbers that fake tensors do not have, so a
    real tensor is quantized first.
    """
    bnb.functional.quantize_4bit(torch.zeros(64, 64), quant_type="nf4", compress_statistics=True)
    return QuickFakes(allow_non_fake_inputs=True)


def fake_model(request: PlanRequest, mode: FakeTensorMode) -> PeftModel:
    """The model that the recipe trains, in training mode, with parameters of `mode` that hold nothing.

    Raises:
        RecipeError: if the base cannot be built from its configuration, or a target of the adapter does not exist.
    """
    model = meta_model(request)
    with mode:
        _make_fake(model, request)
    return model.train()


def meta_model(request: PlanRequest) -> PeftModel:
    """The model with its adapter on the meta device, its quantized weights still in their original shape.

    Raises:
        RecipeError: if the base cannot be built from its configuration or cannot be trained, or a target of the adapter
            does not exist.
    """
    base = skeleton(request)
    require_position_ids(base)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization = request.recipe.quantization
        if quantization is not None and quantization.is_in_integers:
            _swap_for_integers(base, request)
        elif quantization is not None:
            _swap_linear_layers(base, quantization, request.dtype)
            refuse_experts_to_come(base, request.recipe)
            if request.recipe.lora.use_dora:
                _quantize_on_meta(base)
        compat.keep_four_bit_weights_unpacked(base)
        base.requires_grad_(False)
        return attach_adapter(base, request.recipe.lora)


def _make_fake(model: PeftModel, request: PlanRequest) -> None:
    has_map_each = request.device.kind == "cuda"
    dtypes = request.dtype, packed_dtype(request)
    made: dict[int, nn.Parameter] = {}
    for packed in pack_marked(model, request.recipe.quantization):
        if has_map_each:
            _give_map(packed.quant_state)
        made[id(packed)] = packed
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _fake_parameter(module, parameter, dtypes, made, has_map_each)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def packed_dtype(request: PlanRequest) -> torch.dtype:
    """What 4-bit weights are unpacked to: the model's dtype, or that of the weights which a stored base was made of."""
    stored = stored_weights(request.config.to_dict())
    is_packed = stored is not None and stored.is_bitsandbytes
    return request.config.dtype if is_packed and isinstance(request.config.dtype, torch.dtype) else request.dtype


def skeleton(request: PlanRequest) -> PreTrainedModel:
    """The base on the meta device, in the recipe's precision and not quantized.

    Raises:
        RecipeError: if it cannot be built from its configuration.
        ResourceError: if an installed library lacks what a trace needs of it.
    """
    upstream.check(upstream.Road.PLAN)
    name = request.recipe.model.base_model
    try:
        try:
            return _from_config(request, attention_on(request))
        except KeyError:
            return _from_config(request, "sdpa")  # older models know only the implementations that they list
    except (ValueError, ImportError, KeyError) as fault:
        raise source_error(name, fault) from fault


def _from_config(request: PlanRequest, attention: str) -> PreTrainedModel:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = auto_class(request.config).from_config(
            copy.deepcopy(request.config),
            dtype=request.dtype,
            attn_implementation=attention,
            trust_remote_code=request.recipe.model.trust_remote_code,
        )
    note_own_class(base, request.config)
    _keep_in_float32(base, request.dtype)
    return base


def _keep_in_float32(base: PreTrainedModel, dtype: torch.dtype) -> None:
    """Keep in float32 what `from_pretrained` loads so in any dtype: parts that overflow or are counted in 16 bit."""
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        if tensor.is_floating_point() and is_kept_in_float32(base, name, dtype):
            tensor.data = tensor.data.float()


def _swap_linear_layers(base: PreTrainedModel, quantization: QuantizationSection, dtype: torch.dtype) -> None:
    """Swap the layers as `from_pretrained` does before it loads their weights."""
    fused = [name for name, _, _ in expert_parameters(base)]
    names = {name.split(".")[-1] for name in (*dict(base.named_modules()), *fused)}
    for skipped in quantization.skip_modules:
        if skipped not in names:
            raise RecipeError(
                f"quantization.skip_modules: the base has no module named '{skipped}'",
                hint="name modules by the last part of their name, such as down_proj",
            )
    config = bitsandbytes_config(quantization, dtype)
    kept = kept_plain(base) or [*kept_modules(base), *quantization.skip_modules]
    replace_with_bnb_linear(base, modules_to_not_convert=kept, quantization_config=config)
    for module in base.modules():
        if isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt) and module.bias is not None:
            module.bias.data = module.bias.data.to(dtype)  # the swap makes it in float32, loading does not
    setattr(base, "is_loaded_in_8bit" if config.load_in_8bit else "is_loaded_in_4bit", True)
    if quantizes_experts(quantization, base.config):
        mark_experts(base, kept, double_quant=quantization.double_quant is not False)


def _swap_for_integers(base: PreTrainedModel, request: PlanRequest) -> None:
    """Swap the layers that a folder in integers has codes of."""
    quantization = request.recipe.quantization
    assert quantization is not None
    stored = stored_weights(request.config.to_dict())
    model, here = request.recipe.model, Path(request.recipe.model.base_model)
    layout, folder = None, None
    if stored is not None and stored.is_in_integers:
        kept = stored.skipped or ()
        folder = here if here.is_dir() else cached_base(model.base_model, model.revision)
    elif stored is not None and stored.is_taken_over and not model.dequantize:
        layout = layout_of(model, request.config)
        kept = layout.kept
    else:
        kept = layers_to_round(model, quantization, request.config).kept
    swap_linear_layers(base, quantization.num_bits, quantization.weights_in_group, list(kept))
    if layout is not None:
        set_dtypes(base, layout.scales, layout.offsets)
    if folder is not None:
        with contextlib.suppress(IdentityError):  # a plan needs no weights
            set_stored_dtypes(base, weight_files(folder))


def kept_plain(base: PreTrainedModel) -> list[str]:
    """The modules that a base stored by bitsandbytes keeps plain, as `from_pretrained` finds them; else none."""
    stored = stored_weights(base.config.to_dict())
    if stored is None or not stored.is_bitsandbytes:
        return []
    skipped = None if stored.skipped is None else list(stored.skipped)
    return HfQuantizer.get_modules_to_not_convert(base, skipped, base._keep_in_fp32_modules)


def _quantize_on_meta(base: PreTrainedModel) -> None:
    """DoRA takes the norms of the dequantized weights when it is attached, so there must be something to dequantize."""
    for module in base.modules():
        weight: Any = getattr(module, "weight", None)
        if isinstance(weight, bnb.nn.Params4bit):
            _, weight.quant_state = bnb.functional.quantize_4bit(
                weight.data, compress_statistics=weight.compress_statistics, quant_type=weight.quant_type
            )


def _fake_parameter(
    module: nn.Module,
    parameter: nn.Parameter,
    dtypes: tuple[torch.dtype, torch.dtype],
    made: dict[int, nn.Parameter],
    has_map_each: bool,
) -> nn.Parameter:
    """A fake one in place of a meta one; tied ones stay tied.

    Args:
        dtypes: of the model, and of what 4-bit weights are unpacked to.
    """
    dtype, packed_of = dtypes
    if id(parameter) not in made:
        if isinstance(parameter, bnb.nn.Params4bit):
            fake = _four_bit(module, parameter, packed_of, has_map_each)
        elif isinstance(parameter, bnb.nn.Int8Params):
            fake = _eight_bit(parameter)
        else:
            # A swapped layer's bias comes in float32 and is loaded in the model's dtype.
            is_swapped = isinstance(module, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)
            fake = nn.Parameter(
                torch.empty(parameter.shape, dtype=dtype if is_swapped else parameter.dtype), parameter.requires_grad
            )
        made[id(parameter)] = fake
    return made[id(parameter)]


def _four_bit(module: nn.Module, parameter: Any, dtype: torch.dtype, has_map_each: bool) -> nn.Parameter:
    """A fake tensor cannot be a `Params4bit`, so it carries what the layer reads of one."""
    packed, state = bnb.functional.quantize_4bit(
        torch.empty(parameter.shape, dtype=dtype),
        blocksize=parameter.blocksize,
        compress_statistics=parameter.compress_statistics,
        quant_type=parameter.quant_type,
        quant_storage=parameter.quant_storage,
    )
    if has_map_each:
        _give_map(state)
    fake: Any = nn.Parameter(packed, requires_grad=False)
    fake.quant_state = module.quant_state = state
    fake.compress_statistics = parameter.compress_statistics
    fake.quant_type = parameter.quant_type
    fake.bnb_quantized = True
    fake.__class__ = _FAKE_CLASSES["Params4bit"]
    return fake


def _give_map(state: Any) -> None:
    """The map of the second quantization is in CPU memory and is copied to the GPU for each weight."""
    if state.nested:
        state.state2.code = torch.empty(DYNAMIC_MAP_BYTES // 4)


def _eight_bit(parameter: Any) -> nn.Parameter:
    """One int8 a weight and one float32 a row, as `Int8Params` holds them."""
    fake: Any = nn.Parameter(torch.empty(parameter.shape, dtype=torch.int8), requires_grad=False)
    fake.CB = fake.data
    fake.SCB = torch.empty(parameter.shape[0])
    fake.has_fp16_weights = False
    fake.__class__ = _FAKE_CLASSES["Int8Params"]
    return fake
