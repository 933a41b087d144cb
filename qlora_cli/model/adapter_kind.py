"""What an adapter folder holds, read from adapter_config.json and the header of its weights before anything is loaded.

PEFT has some forty methods that share a file format, and LoRA itself comes with parts that are no update of a weight
matrix. Whoever loads or merges an adapter looks here first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from safetensors import SafetensorError, safe_open

from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.run.files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_WEIGHTS = "adapter_model.bin"

TITLES = {
    "LORA": "LoRA",
    "ADALORA": "AdaLoRA",
    "IA3": "(IA)^3",
    "LOHA": "LoHa",
    "LOKR": "LoKr",
    "VERA": "VeRA",
    "XLORA": "X-LoRA",
    "VBLORA": "VB-LoRA",
    "FOURIERFT": "FourierFT",
    "LN_TUNING": "layer norm tuning",
    "TRAINABLE_TOKENS": "trainable tokens",
    "PROMPT_TUNING": "prompt tuning",
    "MULTITASK_PROMPT_TUNING": "multitask prompt tuning",
    "P_TUNING": "p-tuning",
    "PREFIX_TUNING": "prefix tuning",
    "ADAPTION_PROMPT": "LLaMA-Adapter (adaption prompt)",
    "POLY": "Poly",
}
"""Names of PEFT's methods as papers write them; the others are called as PEFT calls them."""

VARIANTS = {
    "use_qalora": "QA-LoRA",
    "velora_config": "VeLoRA",
    "alora_invocation_tokens": "aLoRA",
    "monteclora_config": "MonteCLoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
}
"""Keys of LoRA's configuration that make another method of it, DoRA apart."""

FOLDED = ("LORA", "ADALORA", "TRAINABLE_TOKENS")
"""Methods that a merge of ours folds."""

INPUT_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "embeddings")
OUTPUT_HEADS = ("lm_head", "embed_out")

WRAPPED = ("base_layer", "modules_to_save", "original_module", "token_adapter")
"""Parts that PEFT puts into the name of a module that it has wrapped."""

INITS_THAT_CHANGE_THE_BASE = ("pissa", "corda", "olora", "mica", "loftq", "lora_ga")
"""Values of `init_lora_weights` with which PEFT rewrites the base's weights whenever the adapter is put on it."""


@dataclass(frozen=True)
class AdapterKind:
    """What an adapter is; the words are those of PEFT's adapter_config.json."""

    folder: Path

    method: str
    """PEFT's name of the method in capitals: LORA, ADALORA, IA3, PROMPT_TUNING."""

    shapes: Mapping[str, tuple[int, ...]]
    """Tensor name -> shape, of all that the weights file holds."""

    base_model: str | None = None
    revision: str | None = None
    task_type: str | None = None
    peft_version: str | None = None
    """Of the PEFT that saved it."""

    init: str = "default"
    """`init_lora_weights` in lower case; "default" for true, false, and where there is none."""

    variant: str | None = None
    """A method made of LoRA whose update is not scaling * B @ A, by its name."""

    lora_bias: bool = False
    trainable_token_indices: Mapping[str, tuple[int, ...]] | None = None
    """Embedding module -> rows that were trained; a plain list stands under "embed_tokens"."""

    layer_replication: tuple[tuple[int, int], ...] = ()
    """Ranges of the base's layers that make up the layers of the model, in order."""

    modules_to_save: tuple[str, ...] = ()
    ensure_weight_tying: bool = False
    num_virtual_tokens: int = 0

    @property
    def title(self) -> str:
        """The method's name for people."""
        return TITLES.get(self.method, self.method)

    @property
    def is_prompt(self) -> bool:
        """Whether virtual tokens go in front of each prompt, so that no weight of the base holds the adapter."""
        return self.num_virtual_tokens > 0 or "prompt_embeddings" in self.shapes

    @property
    def changes_base(self) -> bool:
        """Whether the base with the adapter switched off is not the base that was loaded.

        PEFT takes the principal part out of the weights as it puts a PiSSA adapter on them, and so for the like.
        """
        return bool(self.layer_replication) or self.init.startswith(INITS_THAT_CHANGE_THE_BASE)

    @property
    def vocabulary(self) -> int | None:
        """Rows of the embeddings that the adapter was trained on; None where none of its tensors shows them."""
        sizes = [shape[1] for name, shape in self.shapes.items() if name.endswith("lora_embedding_A")]
        sizes += [
            shape[0]
            for name, shape in self.shapes.items()
            if _stored_whole(name, (*INPUT_EMBEDDINGS, *OUTPUT_HEADS)) or _is_head_update(name)
        ]
        return max(sizes, default=None)

    @property
    def last_trained_token(self) -> int:
        """The largest id in `trainable_token_indices`; -1 without any."""
        return max((token for rows in (self.trainable_token_indices or {}).values() for token in rows), default=-1)

    @property
    def holds_input_embeddings(self) -> bool:
        """Whether every row of the input embeddings is in the file."""
        return any(_stored_whole(name, INPUT_EMBEDDINGS) for name in self.shapes)

    @property
    def holds_output_head(self) -> bool:
        """Whether every row of the output head is in the file."""
        return any(_stored_whole(name, OUTPUT_HEADS) for name in self.shapes)


def read_adapter_kind(folder: Path) -> AdapterKind:
    """What the adapter in `folder` is.

    Raises:
        IdentityError: if a file is damaged, or the configuration names no method.
        ArgumentError: if there are no weights, or only pickled ones.
    """
    settings, shapes = read_settings(folder), read_shapes(folder)
    try:
        return _kind(folder, settings, shapes)
    except (TypeError, ValueError, AttributeError) as fault:
        raise IdentityError(
            f"holds a value of another type than PEFT writes: {fault}",
            place=str(folder / ADAPTER_CONFIG),
            hint="copy the adapter again from where it was made",
        ) from fault


def _kind(folder: Path, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> AdapterKind:
    indices = settings.get("trainable_token_indices") or settings.get("token_indices")
    if isinstance(indices, list):
        indices = {"embed_tokens": indices}
    init = settings.get("init_lora_weights")
    return AdapterKind(
        folder=folder,
        method=settings["peft_type"],
        shapes=shapes,
        base_model=settings.get("base_model_name_or_path") or None,
        revision=settings.get("revision") or None,
        task_type=settings.get("task_type") or None,
        peft_version=settings.get("peft_version") or None,
        init=init.lower() if isinstance(init, str) else "default",
        variant="MiCA" if init == "mica" else next((VARIANTS[key] for key in VARIANTS if settings.get(key)), None),
        lora_bias=settings.get("lora_bias") is True,
        trainable_token_indices={name: tuple(rows) for name, rows in indices.items()} if indices else None,
        layer_replication=tuple((first, end) for first, end in settings.get("layer_replication") or ()),
        modules_to_save=tuple(settings.get("modules_to_save") or ()),
        ensure_weight_tying=settings.get("ensure_weight_tying") is True,
        num_virtual_tokens=settings.get("num_virtual_tokens") or 0,
    )


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
        IdentityError: if it is missing or damaged, or names no method.
    """
    path = folder / ADAPTER_CONFIG
    settings = read_json_object(path, hint="copy the adapter again from where it was made")
    if not isinstance(settings.get("peft_type"), str):
        raise IdentityError(
            f"names no method of PEFT: peft_type is {settings.get('peft_type')!r}",
            place=str(path),
            hint='write the method as "peft_type" in that file, for LoRA "LORA", or copy the adapter again',
        )
    return settings


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of the adapter, from the header of its file.

    Raises:
        ArgumentError: if there is no such file; where it is a pickle, with the command that converts it.
        IdentityError: if it is damaged.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        raise _without_weights(folder)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as fault:
        raise IdentityError(
            f"is damaged: {fault}", place=str(path), hint="copy the adapter again from where it was made"
        ) from fault


def _without_weights(folder: Path) -> ArgumentError:
    pickled = folder / PICKLED_WEIGHTS
    if not pickled.is_file():
        return ArgumentError(
            f"'{folder}' holds no {ADAPTER_WEIGHTS}", hint="name a run directory or a PEFT adapter folder"
        )
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "tensors = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
        "save_file({name: value.clone().contiguous() for name, value in tensors.items()}, sys.argv[2])"
    )
    command = f'python -c "{code}" {quote(str(pickled))} {quote(str(folder / ADAPTER_WEIGHTS))}'
    return ArgumentError(
        f"'{folder}' holds its weights as a pickle, {PICKLED_WEIGHTS}, and no {ADAPTER_WEIGHTS}",
        hint=f"write them as safetensors, without running anything in them: `{command}`",
    )


def _stored_whole(name: str, modules: tuple[str, ...]) -> bool:
    """Whether `name` is the weight of one of the modules, and not a part of an update of it.

    >>> _stored_whole("base_model.model.model.embed_tokens.weight", INPUT_EMBEDDINGS)
    True
    >>> _stored_whole("base_model.model.lm_head.lora_B.weight", OUTPUT_HEADS)
    False
    """
    parts = [part for part in name.split(".") if part not in WRAPPED]
    return len(parts) > 1 and parts[-1] == "weight" and parts[-2] in modules


def _is_head_update(name: str) -> bool:
    """
    >>> _is_head_update("base_model.model.lm_head.lora_B.weight")
    True
    """
    return any(name.endswith(f"{head}.lora_B.weight") for head in OUTPUT_HEADS)
