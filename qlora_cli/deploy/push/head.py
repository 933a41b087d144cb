"""The head of the model card: what the Hub searches and links by (huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

import math
import re
from typing import Any

from huggingface_hub.utils import yaml_dump

from qlora_cli.deploy.push.base import last_name
from qlora_cli.deploy.push.folder import PushedFolder
from qlora_cli.hub import HUB_FILES
from qlora_cli.recipe.local_checks import is_on_hub
from qlora_cli.report.curve import is_number
from qlora_cli.report.measures_part import objects
from qlora_cli.report.record import RunRecord

LIBRARIES = {"adapter": "peft", "model": "transformers", "mlx": "mlx"}
"""Kind of folder -> the library that opens it, as the Hub spells it."""


def head(folder: PushedFolder, title: str) -> str:
    """The YAML between two lines of dashes; nothing in it that is not known."""
    values: dict[str, Any] = {}
    base = folder.base
    if base is not None and base.hub_id is not None:
        # A tuned model is a fine-tune of its base in whatever form it is stored: the Hub's `merge` is of several
        # models, and `quantized` promises the base's own answers.
        values["base_model"] = base.hub_id
        values["base_model_relation"] = "adapter" if folder.kind == "adapter" else "finetune"
    if base is not None:
        values |= {key: base.card[key] for key in ("license", "license_name", "license_link") if key in base.card}
    if folder.kind in LIBRARIES:
        values["library_name"] = LIBRARIES[folder.kind]
    values["pipeline_tag"] = "text-generation"
    if datasets := hub_datasets(folder.run):
        values["datasets"] = datasets
    values["tags"] = _tags(folder)
    if results := model_index(folder.run):
        values["model-index"] = [{"name": title, "results": results}]
    return f"---\n{yaml_dump(values, sort_keys=False)}---\n"


def _tags(folder: PushedFolder) -> list[str]:
    tags = ["qlora"]
    if folder.kind == "adapter":
        tags.append("dora" if folder.config.get("use_dora") else str(folder.config.get("peft_type", "lora")).lower())
    if folder.kind == "gguf":
        tags.append("gguf")
    stored = folder.config.get("quantization_config")
    if isinstance(stored, dict) and isinstance(stored.get("quant_method"), str):
        tags.append(stored["quant_method"])
    return tags


def sources(run: RunRecord | None) -> list[str]:
    """Training sources of the recipe, as they are written there."""
    train = run.recipe.get("data.train") if run is not None else None
    entries = train if isinstance(train, list) else [train]
    paths = [entry.get("path") if isinstance(entry, dict) else entry for entry in entries]
    return [path for path in paths if isinstance(path, str)]


def hub_datasets(run: RunRecord | None) -> list[str]:
    """Those of them that the Hub has; it refuses a card that names others. A single word may be a folder that moved."""
    names = []
    for path in sources(run):
        if path.startswith(HUB_FILES):
            names.append("/".join(path.removeprefix(HUB_FILES).split("/")[:2]).partition("@")[0])
        elif "://" not in path and "/" in path and is_on_hub(path):
            names.append(path)
    return list(dict.fromkeys(names))


def model_index(run: RunRecord | None) -> list[dict[str, Any]]:
    """One result for each measured task: the tuned model's figures over all rows."""
    if run is None:
        return []
    tuned = {str(model.get("name")) for model in objects(run.results.get("models")) if model.get("role") == "tuned"}
    tasks: dict[str, list[dict[str, Any]]] = {}
    for measure in objects(run.results.get("measures")):
        values = measure.get("values")
        for name, figure in values.items() if isinstance(values, dict) else ():
            value = figure.get("value") if isinstance(figure, dict) else None
            if name in tuned and not measure.get("source") and is_number(value) and math.isfinite(value):
                metric = str(measure.get("measure"))
                tasks.setdefault(str(measure.get("task")), []).append(
                    {"type": _word(metric), "value": value, "name": metric}
                )
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": last_name(task), "type": _word(last_name(task))},
            "metrics": metrics,
        }
        for task, metrics in tasks.items()
    ]


def _word(text: str) -> str:
    """A text as one word, as the Hub asks of types.

    >>> _word("general text"), _word("ROUGE-L")
    ('general_text', 'rouge-l')
    """
    return re.sub(r"[^\w.-]+", "_", text.strip().lower()) or "unnamed"
