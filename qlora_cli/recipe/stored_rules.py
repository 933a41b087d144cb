"""A base whose weights are stored quantized, against the recipe on it: what clashes, and what the base decides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_cli.constants import INITS_AGAINST_ROUNDING
from qlora_cli.hub import is_hub_id
from qlora_cli.recipe.foreign_integers import BITS, GROUP_SIZES, WHOLE_ROW
from qlora_cli.recipe.schema import QuantizationSection, Recipe
from qlora_cli.recipe.stored_weights import StoredWeights, stored_weights
from qlora_cli.recipe.written import Conflict, RawRecipe, at, conflict

KEY = "model.base_model"
DEQUANTIZE = "model.dequantize"

PACKED_SUFFIX = re.compile(
    r"[-_.](unsloth[-_.])?(bnb[-_.]?[48]bits?|[48]bits?|gptq|awq|hqq|fp8|nvfp4|mxfp[48]|aqlm|w\d+a\d+|int[48]|fp4|nf4"
    r"|quantized|dynamic|block|marlin|autoround|eetq|torchao|\d+g|g\d+|q[48])$",
    re.IGNORECASE,
)
"""The endings that quantized copies of a model get."""

BASE_IN_CARD = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-[ \t]*)?[\"']?([^\s\"']+)", re.MULTILINE)

README_BYTES = 20_000


def check_stored(config: Mapping[str, Any], written: RawRecipe) -> Iterator[Conflict]:
    """Conflicts of a recipe with the form in which its base is stored.

    Args:
        config: the base's config.json.
        written: the recipe as written, or with every default written out.
    """
    stored = stored_weights(config)
    name = at(written, KEY)
    if stored is None:
        if at(written, "lora.use_qalora") and at(written, "quantization") is None:
            text = f"'lora.use_qalora' needs a base in integers, and the weights of '{KEY}: {name}' are not quantized"
            hint = "write `quantization: {method: int}`, or --set quantization.method=int"
            yield conflict("lora.use_qalora", ("quantization",), text, hint, weaker=("lora.use_qalora",))
        if at(written, DEQUANTIZE):
            text = f"'{DEQUANTIZE}: true' has no effect: the weights of '{KEY}: {name}' are not quantized"
            yield conflict(DEQUANTIZE, (KEY,), text, f"take '{DEQUANTIZE}' out", weaker=(DEQUANTIZE,))
        if at(written, "quantization.method") == "w4a16":
            text = f"'quantization.method: w4a16' takes codes over, and '{KEY}: {name}' is not quantized"
            hint = "--set quantization.method=int, or name what `qlora export --format compressed-tensors` writes"
            yield conflict("quantization.method", (KEY,), text, hint)
    elif stored.is_taken_over and not (stored.can_be_dequantized and at(written, DEQUANTIZE)):
        original = original_hint(str(name), config)
        yield from _check_for_original(stored, written, original)
        yield from _check_integers(stored, written, original)
        yield from _check_layers_and_groups(stored, written)
    elif stored.is_trained_as_stored:
        original = original_hint(str(name), config)
        yield from _check_for_original(stored, written, original)
        check = _check_integers if stored.is_in_integers else _check_bitsandbytes
        yield from check(stored, written, original)
    elif not stored.can_be_dequantized:
        text = f"the weights of '{KEY}: {name}' are stored in {stored}, which cannot be trained on here"
        yield conflict(KEY, (), f"{text}{_why(stored)}", original_hint(str(name), config))
    elif not at(written, DEQUANTIZE):
        text = f"the weights of '{KEY}: {name}' are stored in {stored}, which cannot be trained on as they are"
        hint = f"--set {DEQUANTIZE}=true, or write `dequantize: true` under `model:`; 'quantization' then applies"
        yield conflict(KEY, (DEQUANTIZE,), f"{text}{_why(stored)}", hint)
    elif at(written, "quantization.method") == "w4a16":
        text = f"'quantization.method: w4a16' takes codes over, and with '{DEQUANTIZE}: true' there are none"
        hint = (
            f"--set quantization.method=bitsandbytes{f', or take {DEQUANTIZE!r} out' if stored.is_taken_over else ''}"
        )
        yield conflict("quantization.method", (DEQUANTIZE,), text, hint)


def _why(stored: StoredWeights) -> str:
    return f" ({stored.obstacle})" if stored.obstacle else ""


def _check_layers_and_groups(stored: StoredWeights, written: RawRecipe) -> Iterator[Conflict]:
    """Keys against which layers of others are in integers, and in which groups."""
    if at(written, "quantization.skip_modules"):
        key = "quantization.skip_modules"
        text = f"'{key}' has no effect: which layers are stored in {stored} is decided in the base"
        yield conflict(key, (KEY,), text, f"take '{key}' out", weaker=(key,))
    if at(written, "lora.use_qalora") and stored.group_size == WHOLE_ROW:
        text = f"'lora.use_qalora' needs groups of weights, and the base is stored in {stored} with a scale a row"
        hint = "--set lora.use_qalora=false, or name a base in groups"
        yield conflict("lora.use_qalora", (KEY,), text, hint, weaker=("lora.use_qalora",))


def _check_for_original(stored: StoredWeights, written: RawRecipe, original: str) -> Iterator[Conflict]:
    """Keys that need the weights as they were before they were quantized."""
    name = at(written, KEY)
    if at(written, DEQUANTIZE):
        text = f"'{DEQUANTIZE}: true' cannot work: the base is trained as it is stored, in {stored}"
        yield conflict(DEQUANTIZE, (KEY,), text, f"take '{DEQUANTIZE}' out", weaker=(DEQUANTIZE,))
    init = at(written, "lora.init_lora_weights")
    if init in (*INITS_AGAINST_ROUNDING, "pissa"):
        key = "lora.init_lora_weights"
        text = f"'{key}: {init}' needs weights that were not quantized, and those of '{name}' are stored in {stored}"
        yield conflict(key, (KEY,), text, f"write `init_lora_weights: default`, or {original}")


def _check_integers(stored: StoredWeights, written: RawRecipe, original: str) -> Iterator[Conflict]:
    name, asked = at(written, KEY), at(written, "quantization")
    if stored.num_bits not in BITS or stored.group_size not in GROUP_SIZES:
        text = f"the config.json of '{KEY}: {name}' names integers that are not known here: {stored}"
        yield conflict(KEY, (), text, "download or merge the model again")
        return
    if asked is None:
        return
    wanted = {"method": stored.integer_method, "bits": stored.num_bits, "group_size": stored.group_size}
    for part, value in wanted.items():
        key, written_value = f"quantization.{part}", at(written, f"quantization.{part}")
        if part == "method":
            written_value = written_value or "bitsandbytes"
        if written_value is not None and written_value != value:
            text = f"'{key}: {written_value}' cannot be had: the weights of '{KEY}: {name}' are stored in {stored}"
            hint = f"--set {key}={value}, or --set {DEQUANTIZE}=true" if stored.can_be_dequantized else ""
            yield conflict(key, (KEY,), text, hint or f"--set {key}={value}, or {original}")
            return
    if stored.is_in_integers:
        yield from _check_skipped(stored, written, original)
    key = "quantization.calibration"
    if at(written, key) == "rows":
        text = f"'{key}: rows' needs weights that were not quantized, and those of '{name}' are stored in {stored}"
        yield conflict(key, (KEY,), text, f"take '{key}' out, or {original}", weaker=(key,))


def _check_bitsandbytes(stored: StoredWeights, written: RawRecipe, original: str) -> Iterator[Conflict]:
    name, asked = at(written, KEY), at(written, "quantization")
    if asked is None:
        return
    if (method := at(written, "quantization.method")) in ("int", "w4a16"):
        key = "quantization.method"
        text = f"'{key}: {method}' cannot be had: the weights of '{KEY}: {name}' are stored in {stored.quant_type}"
        yield conflict(key, (KEY,), text, f"take '{key}' out, or {original}")
        return
    key, wanted = "quantization.quant_type", at(written, "quantization.quant_type") or "nf4"
    if wanted != stored.quant_type:
        text = f"'{key}: {wanted}' cannot be had: the weights of '{KEY}: {name}' are stored in {stored.quant_type}"
        hint = f"--set {key}={stored.quant_type}, or {original}"
        yield conflict(key, (KEY,), text, hint)
        return
    key, double = "quantization.double_quant", at(written, "quantization.double_quant")
    if double is not None and double != stored.double_quant:
        text = f"'{key}: {str(double).lower()}' cannot be had: the base's weights are stored in {stored}"
        if not stored.double_quant:
            text += " without double quantization"
        yield conflict(key, (KEY,), text, f"take '{key}' out, or {original}", weaker=(key,))
    yield from _check_skipped(stored, written, original)


def _check_skipped(stored: StoredWeights, written: RawRecipe, original: str) -> Iterator[Conflict]:
    key = "quantization.skip_modules"
    names = at(written, key)
    kept = {name.rpartition(".")[2] for name in stored.skipped or ()} if stored.is_in_integers else stored.skipped or ()
    packed = [one for one in names if one not in kept] if isinstance(names, list | tuple) else []
    if packed:
        kind = f"int{stored.num_bits}" if stored.is_in_integers else stored.quant_type
        text = f"'{key}' names '{packed[0]}', whose weights are stored in {kind} in the base"
        yield conflict(key, (KEY,), text, f"take it out, or {original}", weaker=(key,))


def as_stored(
    quantization: QuantizationSection | None, config: Mapping[str, Any], *, dequantize: bool = False
) -> QuantizationSection | None:
    """How the frozen weights will be kept: as the base stores them where it is trained as it is, else as asked.

    Args:
        quantization: the recipe's, which does not clash with the base.
        config: the base's config.json.
        dequantize: `model.dequantize`: integers of others become plain weights, and are not taken over.

    >>> config = {"quantization_config": {"load_in_8bit": True}}
    >>> as_stored(None, config).quant_type, as_stored(None, {})
    ('int8', None)
    """
    stored = stored_weights(config)
    if stored is None:
        return quantization
    if stored.is_in_integers or (stored.is_taken_over and not dequantize):
        return QuantizationSection.model_validate(
            {"method": stored.integer_method, "bits": stored.num_bits, "group_size": stored.group_size}
        )
    if not stored.is_trained_as_stored:
        return quantization
    assert stored.quant_type is not None
    skipped = () if quantization is None else quantization.skip_modules
    return QuantizationSection(quant_type=stored.quant_type, double_quant=stored.double_quant, skip_modules=skipped)


def recipe_as_stored(recipe: Recipe, config: Mapping[str, Any]) -> Recipe:
    """The recipe with `quantization` as the base decides it, so that whoever reads it says what is loaded."""
    stored = as_stored(recipe.quantization, config, dequantize=recipe.model.dequantize)
    return recipe.model_copy(update={"quantization": stored})


def original_hint(name: str, config: Mapping[str, Any]) -> str:
    """Hint that leads to the weights before they were quantized."""
    found = unquantized_name(name, config)
    if found is None:
        return "name the original, unquantized model as `base_model`"
    return f"name the original, unquantized model: --set {KEY}={found}"


def unquantized_name(name: str, config: Mapping[str, Any] | None = None) -> str | None:
    """The model that a quantized copy was made of: as its files say, else its name without the ending; None if neither.

    >>> unquantized_name("Qwen/Qwen3-8B-AWQ"), unquantized_name("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit")
    ('Qwen/Qwen3-8B', 'unsloth/Llama-3.2-1B-Instruct')
    >>> unquantized_name("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"), unquantized_name("openai/gpt-oss-20b")
    ('Qwen/Qwen2.5-7B-Instruct', None)
    """
    for known in (_name_in_card(Path(name)), (config or {}).get("_name_or_path")):
        if isinstance(known, str) and known != name and is_hub_id(known) and not PACKED_SUFFIX.search(known):
            return known
    short = name.rstrip("/")
    while cut := PACKED_SUFFIX.search(short):
        short = short[: cut.start()]
    if short == name.rstrip("/") or not short.rpartition("/")[2]:
        return None
    is_here = Path(name).exists()
    return short if not is_here or Path(short).is_dir() else None


def _name_in_card(folder: Path) -> str | None:
    """`base_model` in the head of the model card."""
    try:
        with (folder / "README.md").open("rb") as file:
            head = file.read(README_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    if not head.startswith("---"):
        return None
    found = BASE_IN_CARD.search(head.partition("\n---")[0])
    return found[1] if found else None
