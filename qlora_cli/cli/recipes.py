"""Commands around the recipe: `init`, `recipes`, `validate`, `schema`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlora_cli.cli.options import AsJson
from qlora_cli.progress import loading_libraries

if TYPE_CHECKING:
    from qlora_cli.recipe.starter import StarterValues


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    for command in (init, recipes, validate, schema):
        app.command()(command)


def init(
    context: typer.Context,
    base: Annotated[str, typer.Option(help="Base model: Hub id or local folder.")] = "Qwen/Qwen3-8B",
    data: Annotated[str, typer.Option(help="Training data: file, folder or Hub id.")] = "data/train.jsonl",
    out: Annotated[Path, typer.Option(help="File to write; its name names the run.")] = Path("recipe.yaml"),
    gpu: Annotated[
        str | None, typer.Option(help="Card that it is to fit, e.g. 4090; values are chosen by the base's size.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Translate this config of axolotl, LLaMA-Factory or TRL.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented starter recipe."""
    from qlora_cli import console

    if source is not None:
        given = {"base": base, "data": data, "gpu": gpu}
        named = {option for option in given if _is_typed(context, option)}
        _translate(source, out, {option: value for option, value in given.items() if option in named}, force=force)
        return
    from qlora_cli.hub import start_asking
    from qlora_cli.model.at_hand import refuse_missing_folder
    from qlora_cli.recipe.starter import StarterValues, refuse_name, write_starter
    from qlora_cli.recipe.starter_base import fitted_to_base

    refuse_name(out, overwrite=force)
    values = None
    if gpu is not None:
        from qlora_cli.plan.machine.gpus import find_card

        hint = f"For another card leave --gpu out; then `qlora plan {out} --memory-gb 24` says whether it fits"
        card = find_card(gpu, otherwise=hint)
        refuse_missing_folder(base)
        start_asking(base)
        with loading_libraries():
            from qlora_cli.plan.recommend import recommend_values

        console.note(f"planning {base} on {card.name}")
        with console.library_noise_to(None):
            values = recommend_values(base, data, card)
    values = fitted_to_base(_fitted_to_data(values, base, data) or StarterValues(), base)
    write_starter(out, base, data, overwrite=force, values=values)
    console.result(f"wrote {out}" + (f": {values.planned[0].lower()}{values.planned[1:-1]}" if values.planned else ""))
    console.note(f"next: qlora validate {quote(str(out))} && qlora train {quote(str(out))}")


def _fitted_to_data(values: StarterValues | None, base: str, data: str) -> StarterValues | None:
    """The values with what the data ask for, where they are on this machine."""
    from qlora_cli import console

    if not Path(data).expanduser().exists():
        console.note(f"{data} is not a file or folder here, so its columns were not looked at")
        return values
    from qlora_cli.plan.first_look import look_at

    with console.library_noise_to(None):
        look = look_at(data, base)
    for line in look.notes:
        console.note(line)
    return look.laid_into(values)


def _is_typed(context: typer.Context, option: str) -> bool:
    """Whether an option was given, and is not at its default."""
    origin = context.get_parameter_source(option)
    return origin is not None and origin.name != "DEFAULT"


def _translate(source: Path, out: Path, given: dict[str, Any], *, force: bool) -> None:
    """Write the recipe that another tool's config becomes; a base or data given here take the place of its own."""
    from qlora_cli import console
    from qlora_cli.errors import ArgumentError
    from qlora_cli.recipe.foreign_file import translate
    from qlora_cli.recipe.foreign_text import told, write_translation
    from qlora_cli.recipe.starter import refuse_name

    if "gpu" in given:
        hint = f"leave --gpu out; `qlora plan {out} --gpu {given['gpu']}` says what fits"
        raise ArgumentError("--from and --gpu exclude each other", hint=hint)
    refuse_name(out, overwrite=force)
    settings = {
        "model.base_model": given.get("base"),
        "data.train": [{"path": given["data"]}] if "data" in given else None,
    }
    translation = translate(source, {key: value for key, value in settings.items() if value})
    write_translation(translation, source, out, overwrite=force)
    num_read = len({key for keys in translation.origins.values() for key in keys})
    console.result(f"wrote {out}: {num_read} keys of {translation.tool.name} translated")
    for outcome in translation.lost:
        console.note(f"no counterpart: {told(outcome)}")
    if translation.needless:
        names = ", ".join(outcome.key for outcome in translation.needless)
        console.note(f"needs nothing here ({out} says why): {names}")
    console.note(f"next: read the comments at its end, then `qlora validate {out}` and `qlora train {out}`")


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
    """Check a recipe and what it names on this machine, and report every problem."""
    from dataclasses import asdict

    from qlora_cli import console
    from qlora_cli.errors import RecipeError
    from qlora_cli.recipe.local_checks import recipe_as_stored_here, unchecked
    from qlora_cli.recipe.reader import check_recipe
    from qlora_cli.recipe.summary import summarize
    from qlora_cli.run.overview import what_is_there

    try:
        checked, notes = check_recipe(recipe, overrides or ())
    except RecipeError as error:
        if not as_json:
            raise
        console.data({"valid": False, "problems": [asdict(problem) for problem in error.problems]})
        raise typer.Exit(error.exit_code) from None
    notes += what_is_there(checked.name)
    if names := unchecked(checked):
        notes.append(f"not checked, since only the Hub could tell: {', '.join(names)}")
    if as_json:
        console.data({"valid": True, "problems": [], "notes": notes})
        return
    console.result(f"{recipe}: valid")
    console.facts(summarize(recipe_as_stored_here(checked)))
    for note in notes:
        console.note(f"note: {note}")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from qlora_cli import console
    from qlora_cli.recipe.json_schema import recipe_json_schema

    console.data(recipe_json_schema())
