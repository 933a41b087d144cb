"""A recipe in four lines, for people."""

from __future__ import annotations

from qlora_cli.recipe.schema import LoraSection, QuantizationSection, Recipe, TrainingSection
from qlora_cli.recipe.stored_weights import grouping


def summarize(recipe: Recipe) -> dict[str, str]:
    """Label and value of what a reader wants to see first."""
    sources = [source.path for source in recipe.data.train]
    return {
        "run": recipe.name,
        "base": recipe.model.base_model,
        "method": f"{_method(recipe.quantization, recipe.lora)}, r {recipe.lora.r}",
        "data": ", ".join(sources) + f", max_length {recipe.data.max_length}",
        "training": _length(recipe.training),
    }


def _method(quantization: QuantizationSection | None, lora: LoraSection) -> str:
    adapter = "DoRA" if lora.use_dora else "LoRA"
    if quantization is None:
        return f"{adapter} on the 16-bit base"
    if quantization.is_in_integers:
        name = "QA-LoRA" if lora.use_qalora else adapter
        grouped = (
            ""
            if quantization.method == "w4a16" and quantization.group_size is None
            else " in " + grouping(quantization.weights_in_group)
        )
        return f"{name} on the {quantization.kind} base{grouped}"
    if quantization.is_int8:
        return f"{adapter} on the int8 base"
    constants = "" if quantization.double_quant is False else " with double quantization"
    return f"Q{adapter} on the {quantization.kind} base{constants}"


def _length(training: TrainingSection) -> str:
    length, unit = training.length
    return (
        f"{length:g} {unit} of {training.rows_per_step} rows a step, {training.optim}, "
        f"learning rate {training.learning_rate:g}"
    )
