"""The base under a finished adapter, chosen on the command line over what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qlora_cli.choices import LoadedAs
from qlora_cli.errors import ArgumentError
from qlora_cli.recipe.reader import load_recipe
from qlora_cli.recipe.schema import ModelSection, QuantizationSection

SECTIONS = ("model.", "quantization.")


@dataclass(frozen=True)
class BaseChoice:
    """Options of the commands that take an adapter; None stands for what was saved with it."""

    base_model: str | None = None
    revision: str | None = None
    quantization: LoadedAs | None = None
    overrides: Sequence[str] = ()
    """Texts such as `model.dtype=float32`."""

    def apply(
        self, model: ModelSection, quantization: QuantizationSection | None
    ) -> tuple[ModelSection, QuantizationSection | None]:
        """The sections with what was chosen laid over them; a new base has the revision that is named with it.

        Raises:
            ArgumentError: for a key that says nothing about the base.
            RecipeError: for an unknown key, or a value that it cannot have.
        """
        if self.base_model is not None:
            model = ModelSection.model_validate(model.model_dump() | {"base_model": self.base_model, "revision": None})
        if self.revision is not None:
            model = model.model_copy(update={"revision": self.revision})
        if self.quantization is not None:
            same = quantization is not None and quantization.kind == self.quantization
            quantization = quantization if same else _section(self.quantization)
        return self._with_overrides(model, quantization)

    def _with_overrides(
        self, model: ModelSection, quantization: QuantizationSection | None
    ) -> tuple[ModelSection, QuantizationSection | None]:
        for text in self.overrides:
            if not text.strip().startswith(SECTIONS):
                raise ArgumentError(
                    f"--set {text}: a finished adapter is not changed by it",
                    hint="keys under `model` and `quantization` say how the base is loaded, e.g. model.dtype=float32",
                )
        if not self.overrides:
            return model, quantization
        values = {"name": "chosen", "model": model.model_dump(mode="json"), "data": {"train": "rows.jsonl"}}
        if quantization is not None:
            values["quantization"] = quantization.model_dump(mode="json")
        recipe = load_recipe(values, self.overrides, lambda _: None)
        return recipe.model, recipe.quantization


def _section(name: LoadedAs) -> QuantizationSection | None:
    return None if name == "none" else QuantizationSection(quant_type=name)


AS_SAVED = BaseChoice()
"""Nothing is chosen."""
