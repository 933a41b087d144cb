"""`qlora tiny` and `qlora eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.text import Text

from qlora_cli import api_reports, console
from qlora_cli.choices import MetricName
from qlora_cli.cli.options import BaseModel, LoadingOverrides, Quantization, Revision
from qlora_cli.errors import ArgumentError
from qlora_cli.progress import loading_libraries, progress

if TYPE_CHECKING:
    from qlora_cli.run.eval_results import EvalResults

Data = Annotated[
    Path | None, typer.Option(help="Rows to measure loss and perplexity on.", show_default="the recipe's eval rows")
]
Models = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RUN]...", help="Run directories, PEFT adapters or model folders.", show_default="the latest run"
    ),
]
Against = Annotated[
    str, typer.Option(metavar="base|RUN|FOLDER", help="Compare with the base, or with another run or folder.")
]
Tasks = Annotated[
    list[Path] | None,
    typer.Option(
        "--task",
        "--tasks",
        metavar="FILE|NAME",
        help="File of prompts and answers, or a benchmark of lm-eval; may be repeated.",
        show_default="the recipe's tasks",
    ),
]
GeneralText = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|shipped|none", help="Text that shows what was forgotten.", show_default="the recipe's, or shipped"
    ),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help=f"One of {', '.join(get_args(MetricName))}; may be repeated.",
        show_default="exact_match",
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD=COLUMN",
        help="Column of --data and --task files, e.g. output=answer; may be repeated.",
        show_default="as the run's data",
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Rows or prompts in a batch.", show_default="the recipe's, or 8")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N questions of each task.", metavar="N")]
NumFewshot = Annotated[
    int | None, typer.Option(min=0, help="Examples before each question of a benchmark.", show_default="its own")
]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer.", show_default="the recipe's, or 256")]


def tiny(
    out: Annotated[Path, typer.Argument(help="Folder to write the base model to.", show_default=False)],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Text to learn from (.txt, .md, .json, .jsonl).", show_default="Python's help pages"),
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps.")] = 300,
    hidden: Annotated[int, typer.Option(min=64, help="Width, a multiple of 64.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers.")] = 4,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    vocab: Annotated[int, typer.Option(help="Most tokens that the tokenizer may learn.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and windows.")] = 42,
    force: Annotated[bool, typer.Option("--force", help="Replace a base that this command made.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Make a small Llama-style base model and its tokenizer, without a network."""
    with loading_libraries():
        from qlora_cli.model.tiny import TinyOptions, make_tiny_base

    options = TinyOptions(tuple(corpus or ()), hidden, layers, heads, vocab, steps=steps, seed=seed)
    with console.library_noise_to(None), progress("training the base", steps) as phase:
        summary = make_tiny_base(out, options, lambda step, loss: phase.update(step, f"loss {loss:.2f}"), force=force)
    if as_json:
        console.data(summary.as_dict())
        return
    console.result(f"wrote {summary.path}: {summary.num_parameters:,} parameters, {summary.vocab_size:,} tokens")
    if summary.last_loss is not None:
        console.result(
            f"loss {summary.first_loss:.2f} -> {summary.last_loss:.2f} in {steps} steps, "
            f"{summary.tokens_per_second:,.0f} tokens/s, corpus of {summary.num_corpus_tokens:,} tokens"
        )


def evaluate(
    run: Models = None,
    against: Against = "base",
    data: Data = None,
    task: Tasks = None,
    metric: Metrics = None,
    columns: Columns = None,
    general_text: GeneralText = None,
    batch_size: BatchSize = None,
    max_new_tokens: MaxNewTokens = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    judge: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible server that compares answers.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Its model; the key is in QLORA_JUDGE_API_KEY.")
    ] = None,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Did it help? Measure tuned models beside their base."""
    outcome = api_reports.evaluate(
        run,
        against=against,
        data=data,
        tasks=task or (),
        metrics=metric or (),
        columns=columns or (),
        general_text=general_text,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        limit=limit,
        num_fewshot=num_fewshot,
        judge=_judge(judge, judge_model),
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides or (),
    )
    if as_json:
        console.data(outcome.as_dict())
        return
    _show(outcome.results)


def _judge(url: str | None, model: str | None) -> tuple[str, str] | None:
    if url is None and model is None:
        return None
    if url is None or model is None:
        missing = "--judge URL" if url is None else "--judge-model NAME"
        raise ArgumentError("a judge is a server and a model of it", hint=f"add {missing}")
    return url, model


def _show(results: EvalResults) -> None:
    from qlora_cli.evaluate.table import forgotten, remarks, tables

    for number, table in enumerate(tables(results)):
        if number:
            console.result("")
        console.table(table.columns, table.rows)
    console.result("")
    for line in remarks(results):
        console.result(line)
    for line in forgotten(results):
        console.result(Text(line, style="bold red"))


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    app.command()(tiny)
    app.command("eval")(evaluate)
