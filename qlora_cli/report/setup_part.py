"""What the run was: its recipe, versions and hardware, and the commands that do it again."""

from __future__ import annotations

from shlex import quote
from typing import Any

from qlora_cli.progress import in_time
from qlora_cli.recipe.quantization_schema import DEFAULT_BITS
from qlora_cli.report.curve import is_number
from qlora_cli.report.html import card, facts_table, missing
from qlora_cli.report.record import RunRecord
from qlora_cli.secrets import redacted
from qlora_cli.web_page import text_as_html


def setup(record: RunRecord) -> str:
    """Versions and hardware beside the commands, and the recipe to unfold."""
    versions = {name: str(value) for name, value in record.section("versions").items()}
    hardware = _hardware(record)
    cards = (
        f"<h3>Versions</h3>{facts_table(versions)}" if versions else missing("versions are not recorded"),
        f"<h3>Hardware and identity</h3>{facts_table(hardware)}" if hardware else missing("hardware is not recorded"),
    )
    again = "\n".join(commands(record))
    recipe = record.recipe_text or "recipe.yaml is missing"
    return (
        f'<div class="two">{"".join(map(card, cards))}</div>'
        + card(f"<h3>To do it again</h3><pre>{text_as_html(again)}</pre>")
        + card(f"<details><summary>The recipe as it was resolved</summary><pre>{text_as_html(recipe)}</pre></details>")
    )


def _hardware(record: RunRecord) -> dict[str, str]:
    facts: dict[str, str] = {}
    for name, value in record.section("hardware").items():
        facts[name.replace("_", " ")] = str(value)
    for name in ("dtype", "seed", "num_processes", "started_at"):
        if name in record.manifest:
            facts[name.replace("_", " ")] = str(record.manifest[name])
    for name in ("base", "tokenizer", "template", "data"):
        fingerprint = record.section(name).get("fingerprint")
        if isinstance(fingerprint, str):
            facts[f"{name}, SHA-256"] = f"{fingerprint[:16]}…"
    return facts


def commands(record: RunRecord) -> list[str]:
    """The lines to type: libraries, directory, training with the same recipe into a new place, evaluation."""
    origin = record.section("started_in")
    versions = record.section("versions")
    lines = []
    pinned = [f"{name}=={value}" for name, value in versions.items() if name not in ("python", "qlora")]
    if pinned:
        lines.append(f"pip install {' '.join(quote(each.partition('+')[0]) for each in pinned)}")
    directory, run = origin.get("directory"), origin.get("run")
    if isinstance(directory, str):
        lines.append(f"cd {quote(directory)}")
    path = run if isinstance(run, str) else str(record.path)
    program = _program(record.manifest.get("num_processes"))
    lines.append(f"{program} train {quote(f'{path}/recipe.yaml')} --run-dir {quote(f'{path}-again')}")
    lines.append(f"qlora eval {quote(f'{path}-again')}")
    return [redacted(line) for line in lines]


def _program(num_processes: Any) -> str:
    if is_number(num_processes) and num_processes > 1:
        return f"torchrun --nproc-per-node {num_processes} -m qlora_cli"
    return "qlora"


def method(record: RunRecord) -> str:
    """How the base was stored and adapted, in a few words; empty where the recipe does not say."""
    recipe = record.recipe
    if not recipe:
        return ""
    kind = recipe.get("quantization.quant_type")
    if recipe.get("quantization.method") == "int":
        kind = f"int{recipe.get('quantization.bits', DEFAULT_BITS)}"
    elif recipe.get("quantization.method") == "w4a16":
        kind = "w4a16"
    adapter = "DoRA" if recipe.get("lora.use_dora") is True else "LoRA"
    if recipe.get("lora.use_qalora") is True:
        adapter = "QA-LoRA"
    stored = f"{kind}" if kind else "16 bit"
    return f"{adapter} on {stored}, r {recipe.get('lora.r', 'not recorded')}"


def duration(record: RunRecord) -> str:
    """Time of all sessions; empty where it is not recorded."""
    seconds = record.manifest.get("seconds")
    return in_time(seconds) if is_number(seconds) else ""
