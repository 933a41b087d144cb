"""`qlora merge`, `qlora export` and `qlora generate`: what a trained adapter is for."""

from __future__ import annotations

import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qlora_cli import api, console
from qlora_cli.choices import EXPORT_FORMATS, ExportFormat, MergedDtype, Onto
from qlora_cli.cli.options import AsJson, BaseModel, LoadingOverrides, Quantization, Revision, Run
from qlora_cli.interruption import Interruption, keyboard_interrupts

Model = Annotated[
    Path | None,
    typer.Argument(help="Run directory, PEFT adapter folder or model folder.", show_default="the latest run"),
]
Format = Annotated[
    ExportFormat,
    typer.Option(metavar="FORMAT", help="; ".join(f"{name}: {what}" for name, what in EXPORT_FORMATS.items()) + "."),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a model folder that is there.")]
Base = Annotated[bool, typer.Option("--base", help="Use the base model without the adapter.")]
System = Annotated[str, typer.Option(help="System prompt.", show_default="none")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Sample from the tokens that make up this probability.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Make sampling repeatable.", show_default="none")]


def merge(
    run: Run = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the merged model.", show_default="<run>/merged")] = None,
    onto: Annotated[
        Onto,
        typer.Option(help="The weights that training saw, the base before quantization, or whichever loses less."),
    ] = "dequantized",
    base_only: Annotated[
        bool, typer.Option("--base-only", help="Write the dequantized base without the adapter.")
    ] = False,
    dtype: Annotated[
        MergedDtype,
        typer.Option(help="Precision of the merged weights; auto: as in the base, integers of QA-LoRA too."),
    ] = "auto",
    force: Force = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base model and prove that nothing was lost."""
    merged = api.merge(
        run,
        out=out,
        onto=onto,
        base_only=base_only,
        dtype=dtype,
        force=force,
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides or (),
    )
    if as_json:
        console.data(asdict(merged) | {"path": str(merged.path)})
        return
    console.result(merged.onto_in_words)
    console.facts(
        merged.figures() | {"parameters": f"{merged.num_parameters:,} in {merged.dtype}", "path": str(merged.path)}
    )
    console.next_command("qlora", "chat", str(merged.path))


def export(
    run: Run = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder to make.", show_default=False)],
    format: Format = "hf",
    quant: Annotated[
        str | None, typer.Option(help="Type of the stored numbers, as q4_k_m.", show_default="the format's usual one")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Weights that share a scale.", show_default="the format's")
    ] = None,
    max_kl: Annotated[
        float | None,
        typer.Option(help="Bound on the mean KL: the smallest type within it is taken.", show_default="documented"),
    ] = None,
    base_quant: Annotated[
        str | None,
        typer.Option(help="With gguf-adapter: write its base too, as this type.", show_default="the adapter alone"),
    ] = None,
    force: Force = False,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Write the tuned model for other tools to use."""
    exported = api.export(
        run,
        out=out,
        format=format,
        quant=quant,
        group_size=group_size,
        max_kl=max_kl,
        base_quant=base_quant,
        force=force,
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides or (),
    )
    if as_json:
        console.data(exported.as_dict())
        return
    console.result("merged and exported" if exported.is_merged_anew else "exported the run's merged model")
    console.facts(exported.figures() | {"path": str(exported.path)})
    if exported.format == "hf":
        console.next_command("qlora", "chat", str(exported.path))


def generate(
    run: Model = None,
    *,
    prompt: Annotated[str, typer.Option(help="The user's turn.", show_default=False)],
    system: System = "",
    base: Base = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token.")] = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = None,
    base_model: BaseModel = None,
    revision: Revision = None,
    quantization: Quantization = None,
    overrides: LoadingOverrides = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print while it is made.")] = True,
    as_json: AsJson = False,
) -> None:
    """Print one answer."""
    is_streamed = stream and not as_json
    session = api.chat(
        run,
        system=system,
        base=base,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        seed=seed,
        base_model=base_model,
        revision=revision,
        quantization=quantization,
        overrides=overrides or (),
    )
    with console.library_noise_to(None), keyboard_interrupts():
        answer = session.ask(prompt, console.piece if is_streamed else None)
    if as_json:
        console.data(asdict(answer), is_answer=True)
    else:
        console.piece("\n" if is_streamed else f"{answer.text}\n")
    if answer.stopped_by == "length":
        from qlora_cli.serve.generation import why_cut  # loaded by now

        console.note(why_cut(answer, max_new_tokens))
    if answer.stopped_by == "interrupt":
        raise Interruption(signal.SIGINT)


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    for command in (merge, export, generate):
        app.command()(command)
