"""Help pages: usage, what the command does, its options and examples to paste, at any width of the screen."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from qlora_cli import console

EXAMPLES: dict[str, tuple[str, ...]] = {
    "qlora": (
        "qlora init --data train.jsonl",
        "qlora train recipe.yaml",
        "qlora eval",
        "qlora chat",
    ),
    "qlora init": ("qlora init --base Qwen/Qwen3-8B --data train.jsonl", "qlora init --data train.jsonl --gpu 4090"),
    "qlora recipes": ("qlora recipes", "qlora recipes smoke > recipe.yaml"),
    "qlora validate": ("qlora validate recipe.yaml", "qlora validate recipe.yaml --set lora.r=64"),
    "qlora schema": ("qlora schema > recipe.schema.json",),
    "qlora data": ("qlora data show recipe.yaml", "qlora data check recipe.yaml"),
    "qlora data show": ("qlora data show recipe.yaml -n 5", "qlora data show recipe.yaml --html rows.html"),
    "qlora data check": ("qlora data check recipe.yaml", "qlora data check recipe.yaml --set data.max_length=1024"),
    "qlora data cache": ("qlora data cache", "qlora data cache --clear"),
    "qlora plan": (
        "qlora plan recipe.yaml --gpu 4090",
        "qlora plan recipe.yaml --memory-gb 24 --fit",
        "qlora plan --params 8e9 --hidden 4096 --layers 32 --gpu a100-80",
    ),
    "qlora train": (
        "qlora train recipe.yaml",
        "qlora train recipe.yaml --resume",
        "qlora train recipe.yaml --set training.learning_rate=1e-4 --run-dir runs/second",
    ),
    "qlora tiny": ("qlora tiny tiny-base", "qlora tiny tiny-base --corpus docs.md --steps 1000"),
    "qlora eval": (
        "qlora eval",
        "qlora eval runs/recipe --task questions.jsonl --metric number_match --limit 100",
    ),
    "qlora merge": ("qlora merge", "qlora merge runs/recipe --out merged --dtype float32"),
    "qlora export": (
        "qlora export --out exported",
        "qlora export --out exported --format gguf --quant q4_k_m",
        "qlora export --out exported --format gguf --max-kl 0.01",
    ),
    "qlora serve": (
        "qlora serve runs/recipe",
        "qlora serve poems=runs/poems letters=runs/letters --port 8001",
        "qlora serve runs/recipe --engine vllm --print",
    ),
    "qlora push": (
        "qlora push runs/recipe owner/name --dry-run",
        "qlora push runs/recipe/merged owner/name --private",
    ),
    "qlora chat": (
        "qlora chat",
        "qlora chat runs/recipe --system 'You are terse.'",
        "qlora chat --base",
        "qlora chat --url http://localhost:8000/v1 --model base",
    ),
    "qlora generate": (
        "qlora generate --prompt 'What is LoRA?'",
        "qlora generate runs/recipe --prompt 'What is LoRA?' --max-new-tokens 64 --json",
    ),
    "qlora report": ("qlora report", "qlora report runs/recipe --out page.html", "qlora report --watch"),
    "qlora compare": ("qlora compare runs/recipe runs/second",),
    "qlora runs": ("qlora runs", "qlora runs --sort eval"),
    "qlora doctor": ("qlora doctor",),
    "qlora env": ("qlora env", "qlora env mlx", "qlora env gptq --print"),
}
"""Command -> lines to paste. `tests/cli/test_help.py` takes each of them through the parser."""

WIDEST = 100
TWO_COLUMNS_FROM = 60
"""Columns of the screen; below it an option's help stands under the option."""

WIDEST_TERM = 26
ARGUMENT, OPTION = "argument", "option"
DEBUG = ("--debug", "Show the traceback of an error.")

Rows = Sequence[tuple[str, str]]


def help_page(command: Any, ctx: Any) -> str:
    """The page of a command or a group of commands, in colour where the screen has it.

    Args:
        command: as typer makes it.
        ctx: its context.
    """
    arguments, options = _records(command, ctx, ARGUMENT), _records(command, ctx, OPTION)
    if ctx.parent is not None:
        options.insert(-1, DEBUG)  # --help comes last
    commands = [(name, _first_paragraph(each.help)) for name, each in getattr(command, "commands", {}).items()]
    width = min(console.out.width, WIDEST)
    page = Text("Usage: ", style="bold").append(f"{ctx.command_path} {_usage(command)}\n")
    page.append("\n").append(textwrap.fill(_first_paragraph(command.help), width)).append("\n")
    for title, rows in (("Arguments", arguments), ("Commands", commands), ("Options", options)):
        if rows:
            page.append(f"\n{title}\n", style="bold")
            for line in _laid_out(rows, width):
                page.append(line)
    if examples := EXAMPLES.get(ctx.command_path):
        page.append("\nExamples\n", style="bold")
        page.append("".join(f"  {example}\n" for example in examples))  # never broken, so that they can be pasted
    with console.out.capture() as captured:
        console.out.print(page, end="")
    return captured.get()


def _usage(command: Any) -> str:
    if hasattr(command, "commands"):
        return "[OPTIONS] COMMAND ..."
    names = [
        each.name.upper() if each.required else f"[{each.name.upper()}]"
        for each in command.params
        if each.param_type_name == ARGUMENT
    ]
    return " ".join([*names, "[OPTIONS]"])


def _records(command: Any, ctx: Any, kind: str) -> list[tuple[str, str]]:
    """Each parameter of the kind as it is written, and what it is for."""
    rows = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx) if parameter.param_type_name == kind else None
        if record is None:
            continue
        term, text = record
        if kind == ARGUMENT:
            term, text = parameter.name.upper(), text.removesuffix("[required]").rstrip()
        term = re.sub(r"<(\w+) range>", r"<\1>", term)  # the text says which
        text = text.replace("\\[", "[")  # some versions of typer write it for rich
        rows.append((term, re.sub(r"\[default: \((.*)\)", r"[default: \1", text)))
    return rows


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].split())


def _laid_out(rows: Rows, width: int) -> Iterator[Text]:
    """The rows in two columns, or with the second below the first on a narrow screen."""
    column = min(max(len(term) for term, _ in rows), WIDEST_TERM) if width >= TWO_COLUMNS_FROM else 0
    indent = column + 4
    for term, text in rows:
        lines = textwrap.wrap(text, max(width - indent, 20), break_on_hyphens=False) or [""]
        shown = Text("  ").append(term, style="cyan")
        if len(term) > column:
            yield shown.append("\n")
        else:
            yield shown.append(f"{'':{column - len(term)}}  {lines.pop(0)}\n")
        for line in lines:
            yield Text(f"{'':{indent}}{line}\n")
