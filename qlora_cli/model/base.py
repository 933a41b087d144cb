"""The frozen base model: 4-bit, 8-bit or 16-bit weights, loaded as `transformers` loads them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from qlora_cli import compat, upstream
from qlora_cli.errors import RecipeError
from qlora_cli.model.at_hand import look_for_base
from qlora_cli.model.dequantized_loading import DequantizingConfig, dequantizing_config, one_by_one
from qlora_cli.model.device import pick_device, pick_dtype
from qlora_cli.model.experts.packed import expert_parameters
from qlora_cli.model.experts.wanted import for_experts, refuse_experts_that_are_none
from qlora_cli.model.fingerprint import base_folder, has_only_pickles, weight_files
from qlora_cli.model.integer.making import in_integers, stored_base
from qlora_cli.model.linear_layers import linear_names
from qlora_cli.model.own_code import refuse_code_from_elsewhere
from qlora_cli.model.prequantized import fit_stored, quantization_on, refuse_other_storage
from qlora_cli.model.source_error import source_error
from qlora_cli.model.towers.auto_class import auto_class
from qlora_cli.model.towers.own_names import note_own_class
from qlora_cli.model.towers.skeleton import kept_modules
from qlora_cli.progress import progress
from qlora_cli.recipe.schema import ModelSection, QuantizationSection
from qlora_cli.recipe.stored_weights import stored_weights
from qlora_cli.secrets import redacted_values

READ_FAULTS = (
    *(OSError, ValueError, ImportError, TypeError, LookupError, AttributeError, RuntimeError),
    *(SafetensorError, StrictDataclassError, pickle.UnpicklingError),
)
"""Errors of libraries on files that are missing, damaged or made to do harm."""


class reading:  # noqa: N801 - reads like a function: `with reading(name):`
    """Turns what a library raises while it reads the base `name` into one line with a hint.

    A base that is not on this machine while the Hub does not answer is refused before any library waits for it.
    """

    def __init__(self, name: str, revision: str | None = None) -> None:
        self._name, self._revision = name, revision

    def __enter__(self) -> None:
        look_for_base(self._name, self._revision)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_of_memory = isinstance(fault, torch.OutOfMemoryError)
        # `tokenizers` raises plain Exception for a file that it cannot read.
        if (isinstance(fault, READ_FAULTS) and not is_of_memory) or (kind is Exception and fault is not None):
            raise source_error(self._name, fault) from fault


def read_config(model: ModelSection, *, source: str | None = None) -> PreTrainedConfig:
    """The base's configuration from the Hub, its cache or a local folder; no weights are fetched.

    Args:
        model: which model, which revision, and whether its own code may run.
        source: folder that stands in for `model.base_model`.

    Raises:
        RecipeError: if it cannot be found or read, or if it names code of another repository.
    """
    name, revision = (source, None) if source else (model.base_model, model.revision)
    with progress(where_from(name)), reading(name, revision):
        if model.trust_remote_code:
            refuse_code_from_elsewhere(name, PreTrainedConfig.get_config_dict(name, revision=revision)[0])
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=model.trust_remote_code)


def load_base(
    model: ModelSection,
    quantization: QuantizationSection | None,
    *,
    source: str | None = None,
    device: torch.device | None = None,
    max_memory: Mapping[int | str, int] | None = None,
    offloaded: Path | None = None,
) -> PreTrainedModel:
    """The base model with every parameter frozen, on one device.

    Args:
        model: which model, in which precision.
        quantization: how its linear weights are stored; None keeps them in `model.dtype`.
        source: folder that stands in for `model.base_model`: PiSSA's residual, or a run's own base in integers.
        device: where to; the GPU where there is one when None.
        max_memory: bytes of each device instead; what fits in none of them stays on the disk.
        offloaded: empty folder for weights that the disk holds in another form than the model.

    Raises:
        RecipeError: if the model cannot be found, read or quantized, or if weights of it are missing.
        IdentityError: if its index of weights is damaged.
        ResourceError: if an installed library lacks what this needs of it.
    """
    upstream.check(upstream.Road.BASE)
    if quantization is not None:
        upstream.check(upstream.Road.QUANTIZED)
    device = device or pick_device()
    dtype = pick_dtype(model.dtype, device)
    config = _config_to_load(model, source)
    model, quantization, config = _as_stored(model, quantization, config, source)
    name, revision = (source, None) if source else (model.base_model, model.revision)
    packing, is_packed = _packing(model, quantization, config, dtype)
    with one_by_one(packing), progress(f"loading {shown_name(name)}"), reading(name, revision):
        config._attn_implementation = model.attn_implementation  # a base's own choice, if any, would win over ours
        base, report = auto_class(config).from_pretrained(
            name,
            config=config,
            revision=revision,
            trust_remote_code=model.trust_remote_code,
            dtype=dtype,
            quantization_config=packing,
            **_placement(device, max_memory, offloaded),
            use_safetensors=not (model.allow_pickle and source is None and has_only_pickles(base_folder(model))),
            output_loading_info=True,
        )
    fit_stored(base, dtype if is_packed else None)
    note_own_class(base, config)
    return _frozen(base, name, quantization, report["missing_keys"])


def _as_stored(
    model: ModelSection, quantization: QuantizationSection | None, config: PreTrainedConfig, source: str | None
) -> tuple[ModelSection, QuantizationSection | None, PreTrainedConfig]:
    """What is loaded: the base itself, or the folder of our integers that stands in for it."""
    if source is not None:
        is_int = quantization is not None and quantization.is_in_integers
        return in_integers(model, source) if is_int else model, quantization, config
    quantization = quantization_on(model, quantization, config)
    with reading(model.base_model, model.revision):
        stored = stored_base(model, quantization)
    return stored, quantization, config if stored is model else _config_to_load(stored, None)


def _placement(
    device: torch.device, max_memory: Mapping[int | str, int] | None, offloaded: Path | None
) -> dict[str, Any]:
    """Where `from_pretrained` is to put the weights."""
    if max_memory is None:
        return {"device_map": {"": device}}
    return {"device_map": "auto", "max_memory": dict(max_memory), "offload_folder": offloaded}


def _frozen(
    base: PreTrainedModel, name: str, quantization: QuantizationSection | None, missing: set[str]
) -> PreTrainedModel:
    """The loaded base, if its weights are all there and stored as they were to be, ready for adapters."""
    _refuse_parts(name, base, missing)
    refuse_other_storage(base, name, quantization)
    refuse_experts_that_are_none(quantization, name, base)
    compat.keep_four_bit_weights_unpacked(base)
    base.requires_grad_(False)
    return base


def where_from(name: str) -> str:
    """Source of a base's small files, as the name of a phase."""
    return f"reading {shown_name(name)}" if Path(name).exists() else f"asking the Hub for {name}"


def shown_name(name: str) -> str:
    """A Hub id as it is, of a folder its last part.

    >>> shown_name("Qwen/Qwen3-8B"), shown_name("/data/models/llama")
    ('Qwen/Qwen3-8B', 'llama')
    """
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _forget_secrets(config: PreTrainedConfig) -> None:
    """Take out what somebody left in a base's settings, which go to trackers and into merged folders."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _forget_secrets(value)
        elif (clean := redacted_values(value)) != value:
            setattr(config, name, clean)


def _refuse_parts(name: str, base: PreTrainedModel, missing: set[str]) -> None:
    """Refuse a model that the library filled up with random weights, or put an adapter on that lay beside them."""
    if missing:
        shown = ", ".join(sorted(missing)[:3]) + (", …" if len(missing) > 3 else "")
        raise RecipeError(
            f"model.base_model '{name}' lacks {len(missing)} of its weights: {shown}",
            hint="its files do not belong to its config.json, or some are missing: download it again",
        )
    if base._hf_peft_config_loaded:
        raise RecipeError(
            f"model.base_model '{name}' holds an adapter beside its weights (adapter_config.json)",
            hint="merge the adapter with `qlora merge` and name the merged folder, or take the adapter out of it",
        )


def bitsandbytes_config(
    quantization: QuantizationSection, compute_dtype: torch.dtype, skip_modules: list[str] | None = None
) -> BitsAndBytesConfig:
    """The recipe's quantization as transformers takes it.

    Args:
        skip_modules: names of layers that stay as they are; None leaves the choice to the library.
    """
    if quantization.quant_type == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip_modules)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.quant_type,
        bnb_4bit_use_double_quant=quantization.double_quant is not False,
        bnb_4bit_compute_dtype=compute_dtype,
        llm_int8_skip_modules=skip_modules,
    )


def _config_to_load(model: ModelSection, source: str | None) -> PreTrainedConfig:
    """The base's configuration, where its files may be read."""
    folder = Path(source or model.base_model)
    if folder.is_dir() and not has_only_pickles(folder):
        weight_files(folder)  # an index that leads out of the folder is refused
    config = read_config(model, source=source)
    _forget_secrets(config)
    return config


def _packing(
    model: ModelSection, quantization: QuantizationSection | None, config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[BitsAndBytesConfig | DequantizingConfig | None, bool]:
    """What `from_pretrained` is to do with the weights, pack them, dequantize them first, or neither; and whether they
    stay as they are stored."""
    is_stored = stored_weights(config.to_dict()) is not None
    if is_stored and not model.dequantize:
        return None, True
    packing = None
    if quantization is not None:
        settings = bitsandbytes_config(quantization, dtype, _modules_to_skip(model, quantization, config))
        packing = for_experts(quantization, settings)
    return dequantizing_config(config, packing, dtype) if is_stored else packing, False


def _modules_to_skip(
    model: ModelSection, quantization: QuantizationSection, config: PreTrainedConfig
) -> list[str] | None:
    """The recipe's modules and those that `transformers` leaves alone by itself, the output head first of all.

    A list that is given replaces the library's own, so both must be in it; None leaves the choice to the library.
    """
    if not quantization.skip_modules:
        return None
    with torch.device("meta"):
        skeleton = auto_class(config).from_config(config, trust_remote_code=model.trust_remote_code)
    names = [name for name, _ in skeleton.named_modules()] + [name for name, _, _ in expert_parameters(skeleton)]
    for skipped in quantization.skip_modules:
        if not any(name.split(".")[-1] == skipped for name in names):
            raise RecipeError(
                f"quantization.skip_modules: '{model.base_model}' has no module named '{skipped}'",
                hint=f"its linear modules are {', '.join(linear_names(skeleton))}",
            )
    return [*kept_modules(skeleton), *quantization.skip_modules]
