"""The tensors of an adapter folder, put on a base by PEFT and accounted for, each in the dtype it was stored in."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from qlora_cli.errors import IdentityError
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterKind
from qlora_cli.model.integer.adapter import with_integer_layers
from qlora_cli.model.stored_dtypes import DTYPES
from qlora_cli.model.towers.own_names import adapter_key_mapping, with_loaded_names

ADAPTER = "default"
"""The name that `PeftModel.from_pretrained` gives the one adapter it loads."""

SHARED = ("vblora_vector_bank", "unilora_theta_d", "tinylora_v")
"""Parts of the whole model to which each layer refers; PEFT stores them once and misses them in every layer."""

TOKENS = ".token_adapter.trainable_tokens_delta"
"""The end of the names of rows of `trainable_token_indices`."""

SEED = 0
"""Of PEFT's randomized initializations, which it repeats as it loads: two loads give the same model."""

NUM_NAMED = 3


def put_on_base(base: PreTrainedModel, kind: AdapterKind) -> PeftModel:
    """The adapter on `base`, as plain PEFT loads it, but nothing left out and LoRA's factors not rounded.

    PEFT converts what older versions of transformers named or cut otherwise (experts that are fused by now), drops
    tensors that no module takes without a word, and reads into the base's dtype.

    Raises:
        IdentityError: if a tensor of the file would not be used, or one that the configuration asks for is missing.
    """
    config = _config(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = PeftModel.from_pretrained(
            base,
            str(kind.folder),
            config=config,
            autocast_adapter_dtype=not _keeps_dtypes(kind),
            key_mapping=adapter_key_mapping(base),
        )
    _set_tensors(model, kind, ADAPTER)
    return model


def put_beside(model: PeftModel, kind: AdapterKind, name: str) -> None:
    """One more adapter on the base of `model`, with the same care; it is not switched on.

    Args:
        model: a base with an adapter of the same method.
        kind: the adapter that comes.
        name: its name in PEFT, which is no part of any other adapter's.

    Raises:
        IdentityError: as `put_on_base`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model.add_adapter(name, _config(kind), autocast_adapter_dtype=not _keeps_dtypes(kind))
    _set_tensors(model, kind, name)


def _config(kind: AdapterKind) -> PeftConfig:
    config = PeftConfig.from_pretrained(str(kind.folder))
    config.task_type = "CAUSAL_LM"  # which is what it is used for; some programs write another or none
    config.inference_mode = True
    return with_integer_layers(config)


def _set_tensors(model: PeftModel, kind: AdapterKind, name: str) -> None:
    """Every tensor of the file in its place and its dtype, or an error."""
    base = model.get_base_model()
    if _keeps_dtypes(kind):
        _set_dtypes(model, dict.fromkeys(_updates(model, name), torch.float32))
    if kind.method == "ADALORA":
        model.peft_config[name].rank_pattern = None  # the layers have shrunk to it, and PEFT would shrink them again
    # The same tensors once more: from_pretrained does not say what it has found, and float32 holds any stored dtype.
    found = model.load_adapter(
        str(kind.folder), name, autocast_adapter_dtype=False, key_mapping=adapter_key_mapping(base)
    )
    _refuse_unused(kind, found.unexpected_keys)
    _refuse_missing(kind, found.missing_keys, name)
    if _keeps_dtypes(kind):
        _set_dtypes(model, _stored_dtypes(model, kind, name))


def _keeps_dtypes(kind: AdapterKind) -> bool:
    """Whether the method computes in its factors' dtype whatever the base's is; the others are as plain PEFT's."""
    return kind.method in ("LORA", "ADALORA")


def _updates(model: PeftModel, adapter: str) -> list[str]:
    """Names of an adapter's own parameters. What replaces a weight of the base stays in the base's dtype."""
    names = [name for name, _ in model.named_parameters()]
    return [name for name in names if "lora_" in name and f".{adapter}" in name.partition("lora_")[2]]


def _set_dtypes(model: PeftModel, dtypes: dict[str, torch.dtype]) -> None:
    for name, parameter in model.named_parameters():
        if name in dtypes:
            parameter.data = parameter.data.to(dtypes[name])


def _stored_dtypes(model: PeftModel, kind: AdapterKind, adapter: str) -> dict[str, torch.dtype]:
    """Parameter -> its dtype in the file; of what PEFT has converted, the widest in the file."""
    with safe_open(kind.folder / ADAPTER_WEIGHTS, framework="pt") as file:
        stored = {
            name.removesuffix(".weight"): DTYPES[file.get_slice(name).get_dtype()]
            for name in file.keys()  # noqa: SIM118 - no mapping
        }
    stored = with_loaded_names(model.get_base_model(), stored)
    widest = max(stored.values(), key=lambda dtype: dtype.itemsize)
    names = {name: name.replace(f".{adapter}", "").removesuffix(".weight") for name in _updates(model, adapter)}
    return {name: stored.get(plain, widest) for name, plain in names.items()}


def _refuse_unused(kind: AdapterKind, names: list[str]) -> None:
    unused = sorted(name for name in names if name != "prompt_embeddings" and not _is_second_copy(kind, name))
    if not unused:
        return
    modules = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name in unused if ".lora_" in name})
    hint = "its two files do not belong together: copy both from where it was made"
    if modules:
        hint += f"; or add {', '.join(modules[:8])} to its target_modules, if they were trained"
    raise IdentityError(
        f"{len(unused)} of the {len(kind.shapes)} tensors of the adapter are for no module that {ADAPTER_CONFIG} "
        f"names, and would be left out: {_named(unused)}",
        place=str(kind.folder),
        hint=hint,
    )


def _is_second_copy(kind: AdapterKind, name: str) -> bool:
    """Whether a tensor is stored under another name too.

    PEFT saves resized embeddings in `modules_to_save` twice, and trained tokens of tied tables once for each table.
    """
    others = {name.replace(".modules_to_save.", ".")} & kind.shapes.keys() - {name}
    if name.endswith(TOKENS):
        others |= {other for other in kind.shapes if other.endswith(TOKENS) and other != name}
    with safe_open(kind.folder / ADAPTER_WEIGHTS, framework="pt") as file:
        return any(torch.equal(file.get_tensor(name), file.get_tensor(other)) for other in sorted(others))


def _refuse_missing(kind: AdapterKind, names: list[str], adapter: str) -> None:
    missing = sorted(name for name in names if not any(part in name for part in SHARED))
    if missing:
        raise missing_tensors(kind.folder, [name.replace(f".{adapter}", "") for name in missing])


def missing_tensors(folder: Path, names: list[str]) -> IdentityError:
    """The error of a folder whose weights lack what its configuration names."""
    return IdentityError(
        f"the adapter in '{folder}' has no weights for {_named(names)}, which its {ADAPTER_CONFIG} names",
        hint="its two files do not belong together: copy both from where it was made",
    )


def _named(names: list[str]) -> str:
    """
    >>> _named(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
