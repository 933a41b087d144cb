"""Does an adapter go onto a base: the method, the base's weights, the vocabulary; and PEFT's refusals in one line."""

from __future__ import annotations

from dataclasses import fields
from types import TracebackType

import torch
from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from qlora_cli import console
from qlora_cli.errors import ArgumentError, IdentityError
from qlora_cli.model.adapter_kind import ADAPTER_CONFIG, INPUT_EMBEDDINGS, OUTPUT_HEADS, AdapterKind, read_settings
from qlora_cli.model.adapter_tensors import missing_tensors
from qlora_cli.model.dequantize import is_quantized

NEEDS_MORE = {
    "POLY": "mixes its skills by a task id that comes with each prompt",
    "MULTITASK_PROMPT_TUNING": "chooses its virtual tokens by a task id that comes with each prompt",
    "XLORA": "mixes other adapters, which are loaded beside it",
}
"""Methods that PEFT loads and that a prompt alone does not run."""

NEEDS_STATISTICS = ("corda", "lora_ga")
"""Values of `init_lora_weights` that PEFT computes from data, which it does not have when it loads the adapter."""

OTHER_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Tasks whose adapters bring a head of their own. Other words in `task_type` say nothing: some programs write
SEQ_2_SEQ_LM or nothing for adapters of causal language models."""

MAX_TOKENS_NAMED = 4


def refuse_unloadable(kind: AdapterKind, base: PreTrainedModel) -> None:
    """Refuse, by name, what PEFT cannot put on this base or what would not be a language model then.

    Raises:
        ArgumentError: with the way on.
    """
    place = str(kind.folder)
    if kind.method not in {method.value for method in PEFT_TYPE_TO_CONFIG_MAPPING}:
        raise ArgumentError(
            f"is made by the method {kind.method}, which the installed PEFT does not know",
            place=place,
            hint=f"it was saved by PEFT {kind.peft_version or 'of another version'}: load it with that one",
        )
    if kind.method in NEEDS_MORE:
        raise ArgumentError(
            f"is {kind.title}, which {NEEDS_MORE[kind.method]}: qlora has no place for that",
            place=place,
            hint="load it in Python with `peft.PeftModel.from_pretrained`, as PEFT's documentation of the method says",
        )
    if kind.task_type in OTHER_TASKS or (kind.is_prompt and kind.task_type not in (None, "CAUSAL_LM")):
        raise ArgumentError(
            f"was trained for the task {kind.task_type} and is no adapter of a causal language model",
            place=place,
            hint=f"load it in Python with PEFT's class for {kind.task_type}; qlora takes CAUSAL_LM",
        )
    if kind.init.startswith(NEEDS_STATISTICS):
        raise ArgumentError(
            f"starts from {kind.init}, which PEFT computes from data that is not stored with the adapter",
            place=place,
            hint="convert it to a plain LoRA where it was trained: `save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=...)`, with the adapter as it was before training",
        )
    if kind.init != "default" and kind.changes_base and any(map(is_quantized, base.modules())):
        raise ArgumentError(
            f"starts from {kind.init}: PEFT takes that part out of the base's weights, and cannot from quantized ones",
            place=place,
            hint="load the base unquantized: --quantization none",
        )
    known = {field.name for field in fields(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind.method)])}
    for key, value in read_settings(kind.folder).items():
        if key not in known and value:
            console.note(f"{kind.folder / ADAPTER_CONFIG}: the installed PEFT has no key '{key}' and leaves it out")
    if "niter" in kind.init:
        console.note(
            f"{kind.init} in {kind.folder / ADAPTER_CONFIG}: PEFT repeats a randomized decomposition whenever it loads "
            "this adapter, so the model is close to the one that was trained and not the same"
        )


def fit_vocabulary(base: PreTrainedModel, kind: AdapterKind) -> None:
    """Resize the embeddings of `base` to the rows that the adapter was trained on, if it holds all of them.

    Raises:
        IdentityError: if it does not, with the tokens that are in neither.
    """
    num_rows = base.get_input_embeddings().weight.shape[0]
    vocabulary = kind.vocabulary
    if vocabulary is None or vocabulary <= kind.last_trained_token:
        vocabulary = max(num_rows, kind.last_trained_token + 1)
    if vocabulary == num_rows:
        return
    is_tied = bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))
    if not _holds_rows(kind, range(num_rows, vocabulary), is_tied):
        raise _without_rows(kind, num_rows, vocabulary)
    console.note(f"the adapter brings embeddings of {vocabulary:,} tokens, in place of the base's {num_rows:,}")
    base.resize_token_embeddings(vocabulary, mean_resizing=False)
    with torch.no_grad():  # the adapter's rows take their place; with the adapter switched off they are nothing
        for table in (base.get_input_embeddings(), base.get_output_embeddings()):
            table.weight[num_rows:] = 0


def _holds_rows(kind: AdapterKind, added: range, is_tied: bool) -> bool:
    """Whether embeddings and head of all tokens are in the adapter, or in the base for those that are not `added`."""
    tokens = {name.rpartition(".")[2]: set(rows) for name, rows in (kind.trainable_token_indices or {}).items()}
    has_added = {name for name, rows in tokens.items() if added and rows.issuperset(added)}
    is_head_apart = not kind.ensure_weight_tying and any(name in INPUT_EMBEDDINGS for name in kind.modules_to_save)
    holds_embeddings = kind.holds_input_embeddings or bool(has_added.intersection(INPUT_EMBEDDINGS))
    holds_head = kind.holds_output_head or bool(has_added.intersection(OUTPUT_HEADS))
    return holds_embeddings and (holds_head or (is_tied and not is_head_apart))


def _without_rows(kind: AdapterKind, num_rows: int, vocabulary: int) -> IdentityError:
    if vocabulary < num_rows:
        return IdentityError(
            f"was trained on a base of {vocabulary:,} tokens, and this one has {num_rows:,}",
            place=str(kind.folder),
            hint="name the base that it was trained on: --base-model, --revision",
        )
    return IdentityError(
        f"was trained on a base with {vocabulary - num_rows:,} tokens more than this one's {num_rows:,}, and "
        f"does not hold all of their rows: {_tokens(kind, num_rows, vocabulary)}",
        place=str(kind.folder),
        hint="save it where it was trained with `save_pretrained(folder, save_embedding_layers=True)`, or name the "
        "base with those tokens: --base-model",
    )


def _tokens(kind: AdapterKind, first: int, end: int) -> str:
    """The tokens `first` to `end` as the adapter's tokenizer calls them, if it has one."""
    path = kind.folder / "tokenizer.json"
    names = []
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
        names = [repr(tokenizer.id_to_token(token_id)) for token_id in range(first, end)[:MAX_TOKENS_NAMED]]
    return ", ".join(names) if names and "None" not in names else f"tokens {first:,} to {end - 1:,}"


class fitting:  # noqa: N801 - reads like a function: `with fitting(kind):`
    """Turns what PEFT raises while it loads an adapter into one line with a hint."""

    def __init__(self, kind: AdapterKind) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(fault, torch.OutOfMemoryError):
            return
        if isinstance(fault, KeyError) and str(fault.args[0]).startswith("base_model."):
            raise missing_tensors(self._kind.folder, [str(fault.args[0])]) from fault
        if isinstance(fault, FAULTS):
            raise _refusal(self._kind, fault) from fault


FAULTS = (
    *(RuntimeError, ValueError, TypeError, LookupError, AttributeError, ImportError, OSError, AssertionError),
    SafetensorError,
)
"""Errors of PEFT and of what it calls."""


def _refusal(kind: AdapterKind, fault: BaseException) -> IdentityError:
    reason = " ".join(str(fault).split())[:300]
    if "4bit" in reason or "8bit" in reason:
        hint = f"PEFT's {kind.title} does not go onto such weights: load the base unquantized with --quantization none"
    elif isinstance(fault, ImportError):
        hint = "install what PEFT asks for"
    else:
        hint = "an adapter belongs to the base model that it was trained on: name that one with --base-model"
    return IdentityError(f"the adapter in '{kind.folder}' does not fit the base model: {reason}", hint=hint)
