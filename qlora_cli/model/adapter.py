"""LoRA adapters on the frozen base: attached new, or loaded from a folder."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import save_file
from transformers import PreTrainedModel

from qlora_cli import compat
from qlora_cli.constants import INITS_AGAINST_ROUNDING
from qlora_cli.errors import IdentityError, RecipeError
from qlora_cli.model.adapter_fit import fit_vocabulary, fitting, refuse_unloadable
from qlora_cli.model.adapter_kind import ADAPTER_WEIGHTS, read_adapter_kind
from qlora_cli.model.adapter_tensors import put_beside, put_on_base
from qlora_cli.model.experts.attaching import experts_shown_whole
from qlora_cli.model.integer.adapter import with_integer_layers
from qlora_cli.model.integer.linear import IntegerLinear
from qlora_cli.model.towers.own_names import with_loaded_names, with_own_names
from qlora_cli.model.towers.targets import check_targets, fused_targets, modules_to_exclude, settle_config
from qlora_cli.recipe.schema import LoraSection

LEAVE_EXPERTS_OUT = "or leave the experts out: --set lora.target_modules=[q_proj,v_proj]"

# A learned magnitude is near 1 and moves by less than bfloat16 can hold, so it is always kept in float32.
MAGNITUDE_KEY = "lora_magnitude_vector"


def attach_adapter(base: PreTrainedModel, lora: LoraSection) -> PeftModel:
    """Put a new adapter on `base`; only the adapter (and `modules_to_save`) can be trained.

    The adapter starts as PEFT's default or Gaussian init says; `model/initialization.py` and
    `model/calibration.py` do the others.

    Raises:
        RecipeError: if a target matches no linear module, a module to save does not exist, or PEFT refuses the base.
    """
    compat.name_backbone(base)
    try:
        with experts_shown_whole(base):
            check_targets(base, lora)
            model = get_peft_model(base, lora_config(lora, base), autocast_adapter_dtype=lora.autocast_adapter_dtype)
    except ValueError as fault:
        raise _refusal(lora, fault) from fault
    _refuse_init_of_experts(model, lora)
    settle_config(model, base)
    adapter_dtype = torch.float32 if lora.autocast_adapter_dtype else base.dtype
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32 if MAGNITUDE_KEY in name else adapter_dtype)
    return model


def _refuse_init_of_experts(model: PeftModel, lora: LoraSection) -> None:
    """LoftQ, CLoQ and PiSSA take weight matrices apart; PEFT's wrappers of fused experts have none of their own."""
    has_experts = any(isinstance(module, ParamWrapper) for module in model.modules())
    if lora.init_lora_weights in (*INITS_AGAINST_ROUNDING, "pissa") and has_experts:
        raise RecipeError(
            f"lora.init_lora_weights is {lora.init_lora_weights}, which is for linear layers, and this adapter is on "
            "fused experts too",
            hint=f"--set lora.init_lora_weights=default, {LEAVE_EXPERTS_OUT}",
        )


def _refusal(lora: LoraSection, fault: ValueError) -> RecipeError:
    """PEFT's reason, in words that name the recipe's keys."""
    reason = " ".join(str(fault).split())[:300]
    if "ParamWrapper" in reason and "lora_dropout" in reason:
        return RecipeError(
            "this base keeps its experts in fused weights, and PEFT's adapters on such weights take no dropout: "
            f"lora.lora_dropout is {lora.lora_dropout:g}",
            hint=f"--set lora.lora_dropout=0, {LEAVE_EXPERTS_OUT}",
        )
    if "ParamWrapper" in reason and "use_dora" in reason:
        return RecipeError(
            "this base keeps its experts in fused weights, for which PEFT has no DoRA: lora.use_dora is true",
            hint=f"--set lora.use_dora=false, {LEAVE_EXPERTS_OUT}",
        )
    return RecipeError(f"no adapter can be put on this base: {reason}", hint="see the keys under lora")


def lora_config(lora: LoraSection, base: PreTrainedModel) -> LoraConfig:
    """PEFT's configuration of the adapter on `base`.

    LoftQ, CLoQ and PiSSA set A and B after the adapter is made, so the configuration that is saved with it says
    nothing of them: PEFT would otherwise repeat the init, and change the base, whenever the adapter is loaded.
    """
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    fused = fused_targets(base, lora)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=[name for name in targets if name not in fused] if fused else targets,
        target_parameters=fused or None,
        exclude_modules=modules_to_exclude(base, targets),
        modules_to_save=list(lora.modules_to_save) or None,
        use_dora=lora.use_dora,
        use_rslora=lora.use_rslora,
        init_lora_weights="gaussian" if lora.init_lora_weights == "gaussian" else True,
    )
    if lora.use_qalora:
        config.use_qalora, config.qalora_group_size = True, _group_size(base)
    with_integer_layers(config)
    return config


def _group_size(base: PreTrainedModel) -> int:
    """Weights in a group of a base in integers.

    Raises:
        RecipeError: if the base is not in integers.
    """
    sizes = {module.group_size for module in base.modules() if isinstance(module, IntegerLinear)}
    if len(sizes) != 1:
        raise RecipeError(
            "lora.use_qalora is true, and the base has no layers in integers",
            hint="--set quantization.method=int, or take 'lora.use_qalora' out",
        )
    return sizes.pop()


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """The adapter in `folder` on `base`, in the dtype it was stored in, ready for inference.

    Any method that PEFT loads for a causal language model; `model/adapter_kind.py` says which it is. A base whose
    vocabulary is not that of the adapter is resized, where all rows are in the adapter.

    Raises:
        ArgumentError: if the folder holds no weights, or the method needs more than a prompt.
        IdentityError: if the adapter does not fit the base, or a file is damaged.
    """
    kind = read_adapter_kind(folder)
    refuse_unloadable(kind, base)
    fit_vocabulary(base, kind)
    with fitting(kind), experts_shown_whole(base):
        model = put_on_base(base, kind)
    return model.eval()


def add_adapter(model: PeftModel, folder: Path, name: str) -> None:
    """The adapter in `folder` beside those that `model` has, as `load_adapter` loads it. It is not switched on.

    Args:
        model: what `load_adapter` returned.
        folder: of an adapter that leaves the base as it is, its vocabulary too.
        name: in PEFT; no part of another adapter's name.

    Raises:
        ArgumentError, IdentityError: as `load_adapter`, also where PEFT cannot have both on one base.
    """
    kind, base = read_adapter_kind(folder), model.get_base_model()
    refuse_unloadable(kind, base)
    with fitting(kind), experts_shown_whole(base):
        put_beside(model, kind, name)
    model.eval()


def save_adapter(model: PeftModel, folder: Path, *, revision: str | None = None) -> None:
    """Write the adapter as a PEFT folder, tensors as they were trained, named as on the base's own class.

    Args:
        revision: of the base, for adapter_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = with_own_names(model.get_base_model(), get_peft_model_state_dict(model, save_embedding_layers=False))
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / ADAPTER_WEIGHTS)
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.revision = revision
    config.save_pretrained(folder)


def set_adapter_tensors(model: PeftModel, tensors: dict[str, torch.Tensor]) -> None:
    """Copy tensors that `save_adapter` wrote into the model's adapter.

    Raises:
        IdentityError: if a name, shape or dtype differs, so that nothing would be the same to the bit.
    """
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = with_loaded_names(model.get_base_model(), tensors)
    described = {name: (tensor.shape, tensor.dtype) for name, tensor in expected.items()}
    if described != {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}:
        raise IdentityError(
            "the checkpoint's adapter does not have the names, shapes and dtypes that the recipe gives",
            hint="resume with the recipe of the run directory, on the kind of device it was started on",
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
