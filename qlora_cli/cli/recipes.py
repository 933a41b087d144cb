"""Commands around the recipe: `init`, `recipes`, `validate`, `schema`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from qlora_cli.progress import STARTING, progress

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    for command in (init, recipes, validate, schema):
        app.command()(command)


def init(
    base: Annotated[str, typer.Option(help="Base model: Hub id or local folder.")] = "Qwen/Qwen3-8B",
    data: Annotated[str, typer.Option(help="Training data: file, folder or Hub id.")] = "data/train.jsonl",
    out: Annotated[Path, typer.Option(help="File to write; its name names the run.")] = Path("recipe.yaml"),
    gpu: Annotated[
        str | None, typer.Option(help="Card that it is to fit, e.g. 4090; values are chosen by the base's size.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented starter recipe."""
    from qlora_cli import console
    from qlora_cli.recipe.starter import refuse_name, write_starter

    refuse_name(out, overwrite=force)
    values = None
    if gpu is not None:
        with progress(STARTING):
            from qlora_cli.plan.advice import advise
            from qlora_cli.plan.cards import find_card

        card = find_card(gpu)
        console.note(f"planning {base} on {card.name}")
        with console.library_noise_to(None):
            values = advise(base, data, card)
    write_starter(out, base, data, overwrite=force, values=values)
    console.result(f"wrote {out}" + (f": {values.planned[0].lower()}{values.planned[1:-1]}" if values else ""))
    console.note(f"next: qlora validate {quote(str(out))} && qlora train {quote(str(out))}")


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this recipe.", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes that come with qlora, or print one."""
    from dataclasses import asdict

    from qlora_cli import console
    from qlora_cli.recipe.shipped import find_shipped, list_shipped

    if name is not None:
        recipe = find_shipped(name)
        text = recipe.path.read_text("utf-8")
        if as_json:
            console.data({**asdict(recipe), "path": str(recipe.path), "text": text})
        else:
            console.result(text.rstrip("\n"))
        return
    shipped = list_shipped()
    if as_json:
        console.data([{**asdict(recipe), "path": str(recipe.path)} for recipe in shipped])
    else:
        rows = [(recipe.name, recipe.purpose, recipe.hardware, recipe.time) for recipe in shipped]
        console.table(("recipe", "purpose", "hardware", "time"), rows)


def validate(
    recipe: Annotated[Path, typer.Argument(help="Recipe file.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key: a.b=c; may be repeated.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a recipe and report every problem at once."""
    from dataclasses import asdict

    from qlora_cli import console
    from qlora_cli.errors import RecipeError
    from qlora_cli.recipe.reader import load_recipe
    from qlora_cli.recipe.summary import summarize

    try:
        checked = load_recipe(recipe, overrides or ())
    except RecipeError as error:
        if not as_json:
            raise
        console.data({"valid": False, "problems": [asdict(problem) for problem in error.problems]})
        raise typer.Exit(error.exit_code) from None
    if as_json:
        console.data({"valid": True, "problems": []})
    else:
        console.result(f"{recipe}: valid")
        console.facts(summarize(checked))


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from qlora_cli import console
    from qlora_cli.recipe.json_schema import recipe_json_schema

    console.data(recipe_json_schema())
