"""From a base with an adapter to a plain model: every tensor of the merged model, one module at a time.

Shape letters: O = output features, I = input features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qlora_cli import upstream
from qlora_cli.deploy.lora_math import LowRankUpdate, merged_experts, merged_weight
from qlora_cli.errors import ArgumentError
from qlora_cli.model.dequantize import dequantized_weight, is_quantized
from qlora_cli.progress import progress

ADAPTER = "default"
"""The name that `PeftModel.from_pretrained` gives the one adapter it loads."""

NamedTensors = Iterator[tuple[str, torch.Tensor]]


def merge_adapter(tuned: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """The plain model that computes what `tuned` computes: on the CPU, without adapter and quantization.

    Quantized weights are dequantized whether or not they carry an adapter, and every weight is rounded to `dtype`
    once. Beside `tuned`, which stays as it was, there is never more than one copy of the model and one float32 weight.

    Raises:
        ArgumentError: if the adapter has a part that is not an update of a weight matrix.
        ResourceError: if an installed library lacks what this needs of it.
    """
    upstream.check(upstream.Road.MERGE)
    base = tuned.base_model.model
    plain = _empty_copy(base)
    kept_names = plain.state_dict().keys()
    buffer_names = {name for name, _ in plain.named_buffers()}
    tensors = {}
    with progress("merging", len(kept_names)) as phase:
        for name, tensor in _merged_tensors(base, ""):
            if name in kept_names:
                stored_dtype = tensor.dtype if name in buffer_names else dtype
                tensors[name] = tensor.detach().to("cpu", stored_dtype).contiguous()
                phase.advance()
    _untie_if_different(plain, tensors)
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    return plain


def _empty_copy(base: PreTrainedModel) -> PreTrainedModel:
    """A model of the base's class and sizes with no memory behind its tensors, and not quantized."""
    settings = base.config.to_dict()
    settings.pop("quantization_config", None)
    with torch.device("meta"):
        return type(base)(type(base.config).from_dict(settings))


def _merged_tensors(module: nn.Module, prefix: str) -> NamedTensors:
    """Name and value of each parameter and buffer below `module`, as the plain model names and stores them."""
    if isinstance(module, ParamWrapper):
        yield from _folded_experts(module, prefix)
    elif isinstance(module, LoraLayer):
        yield from _folded_layer(module, prefix)
    elif isinstance(module, ModulesToSaveWrapper):
        yield from _merged_tensors(module.modules_to_save[ADAPTER], prefix)
    elif isinstance(module, AuxiliaryTrainingWrapper):
        raise _unmergeable(prefix, type(module).__name__)
    elif is_quantized(module):
        yield f"{prefix}weight", _as_stored(_weight_oi(module), module)
        yield from _bias(module, prefix)
    else:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{prefix}{name}", tensor
        for name, child in module.named_children():
            yield from _merged_tensors(child, f"{prefix}{name}.")


def _folded_layer(layer: LoraLayer, prefix: str) -> NamedTensors:
    base_layer = layer.get_base_layer()
    is_matrix = is_quantized(base_layer) or isinstance(base_layer, nn.Linear | Conv1D | nn.Embedding)
    is_other_variant = ADAPTER in layer.lora_variant and not layer.use_dora[ADAPTER]
    if not is_matrix or is_other_variant or layer.lora_bias[ADAPTER]:
        raise _unmergeable(prefix, type(layer).__name__)
    weight_OI = merged_weight(_weight_oi(base_layer), _update(layer))
    yield f"{prefix}weight", _as_stored(weight_OI, base_layer)
    yield from _bias(base_layer, prefix)


def _folded_experts(wrapper: ParamWrapper, prefix: str) -> NamedTensors:
    """The tensors of experts or a router whose parameters carry adapters, each in a wrapper around the next."""
    wrappers = {}
    module: nn.Module = wrapper
    while isinstance(module, ParamWrapper):
        wrappers[f"{prefix}{module.parameter_name}"] = module
        module = module.base_layer
    for name, tensor in _merged_tensors(module, prefix):
        if name not in wrappers:
            yield name, tensor
        elif tensor.dim() == 3:
            is_output_first = wrappers[name]._did_swap_in_out_features
            yield name, merged_experts(tensor, _update(wrappers[name]), is_output_first=is_output_first)
        else:  # a router's matrix
            yield name, merged_weight(tensor, _update(wrappers[name]))


def _update(layer: LoraLayer) -> LowRankUpdate:
    magnitude_O = layer.lora_magnitude_vector[ADAPTER].weight if layer.use_dora[ADAPTER] else None
    if isinstance(layer, LoraEmbedding):
        A_RI, B_OR = layer.lora_embedding_A[ADAPTER], layer.lora_embedding_B[ADAPTER]
    else:
        A_RI, B_OR = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return LowRankUpdate(A_RI, B_OR, layer.scaling[ADAPTER], magnitude_O)


def _bias(module: nn.Module, prefix: str) -> NamedTensors:
    bias = getattr(module, "bias", None)
    if isinstance(bias, torch.Tensor):
        yield f"{prefix}bias", bias


def _weight_oi(module: nn.Module) -> torch.Tensor:
    """The weight [O, I] in float32."""
    if is_quantized(module):
        return dequantized_weight(module).float()
    return _as_stored(module.get_parameter("weight"), module).float()


def _as_stored(weight: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """From [O, I] to the layout of the plain module, and back: `Conv1D` and `Embedding` keep [I, O].

    `transformers` notes in `source_cls` what a quantized linear layer was before.
    """
    is_turned = issubclass(getattr(module, "source_cls", type(module)), Conv1D | nn.Embedding)
    return weight.T if is_turned else weight


def _untie_if_different(plain: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> None:
    """Give up the tie of embedding and output head where training has drawn the two apart.

    That happens when only one of them is in `modules_to_save` or has an adapter; loaded as tied, one would be lost.
    """
    names = {module: f"{name}.weight" for name, module in plain.named_modules()}
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    if getattr(plain.config, "tie_word_embeddings", False) and not torch.equal(
        tensors[names[embedding]], tensors[names[head]]
    ):
        plain.config.tie_word_embeddings = False


def _unmergeable(prefix: str, kind: str) -> ArgumentError:
    return ArgumentError(
        f"'{prefix.rstrip('.')}' carries a {kind} with parts that cannot be folded into a weight matrix",
        hint="LoRA, rsLoRA and DoRA on linear and embedding layers can be merged, LoRA on experts, modules_to_save; "
        "serve this adapter unmerged",
    )
