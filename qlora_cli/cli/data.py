"""`qlora data show`, `check` and `cache`: the data of a recipe, before a model is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_cli import console
from qlora_cli.cli.options import AsJson, Overrides
from qlora_cli.console import size_in_words
from qlora_cli.hub import start_asking
from qlora_cli.progress import loading_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qlora_cli.data.render.renderer import Renderer
    from qlora_cli.recipe.schema import Recipe

RecipePath = Annotated[Path, typer.Argument(help="Recipe file.", show_default=False)]


def show(
    recipe: RecipePath,
    number: Annotated[int, typer.Option("-n", min=1, metavar="N", help="The first N rows of each source.")] = 3,
    row: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Only the K-th row of the first source.", show_default=False)
    ] = None,
    is_eval: Annotated[bool, typer.Option("--eval", help="Rows of `data.eval`.")] = False,
    with_ids: Annotated[bool, typer.Option("--ids", help="One token a line, with its id.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page instead, for long rows.", show_default=False)
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Show rows as the model reads them, with what is trained."""
    from qlora_cli.data.show.preview import show_row
    from qlora_cli.data.show.preview_page import write_page
    from qlora_cli.data.show.select_rows import pick_rows

    with console.library_noise_to(None):
        loaded, tokenizer, renderer = _load(recipe, overrides)
        shown = pick_rows(loaded.data, renderer, number, row=row, is_eval=is_eval)
        if html is not None:
            write_page(html, f"{loaded.name}: rows as {loaded.model.base_model} reads them", list(shown), tokenizer)
            console.result(f"wrote {html}")
            return
        has_colour = console.has_colour(console.out)
        legend = "green" if has_colour else "between ⟦ and ⟧"
        console.note(f"trained tokens are {legend}" + ", special tokens bold" * has_colour)
        for example in shown:
            console.result("")
            console.result(show_row(example, tokenizer, with_ids=with_ids, with_brackets=not has_colour))


def check(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Read all data as training would; exit code 2 where it cannot be trained on."""
    from qlora_cli.data.check import check_data
    from qlora_cli.data.show.report_view import show_report

    with console.library_noise_to(None):
        loaded, _, renderer = _load(recipe, overrides)
        report = check_data(loaded.data, renderer, loaded.training.seed)
    if as_json:
        console.data(report.as_dict())
    else:
        show_report(report)
    if not report.is_trainable:
        raise typer.Exit(2)


def cache(
    is_cleared: Annotated[bool, typer.Option("--clear", help="Delete what is not in use.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the prepared data that is kept for the next run."""
    from qlora_cli.data.cache import cache_root, clear, list_entries
    from qlora_cli.data.show.cache_view import entries_as_dict, show_entries

    freed = clear() if is_cleared else 0
    entries = list_entries()
    if as_json:
        console.data(entries_as_dict(entries, cache_root()) | ({"num_bytes_freed": freed} if is_cleared else {}))
        return
    if is_cleared:
        console.result(f"{size_in_words(freed)} freed in {cache_root()}" + ", in use are still:" * bool(entries))
    if entries or not is_cleared:
        show_entries(entries, cache_root())


def _load(recipe: Path, overrides: Sequence[str] | None) -> tuple[Recipe, PreTrainedTokenizerBase, Renderer]:
    """The recipe, and what makes tokens of its data."""
    from qlora_cli.data.read.places import refuse_missing
    from qlora_cli.model.at_hand import refuse_missing_folder
    from qlora_cli.recipe.reader import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    refuse_missing_folder(loaded.model.base_model)
    refuse_missing(loaded.data)
    start_asking(loaded.model.base_model, *(source.path for source in loaded.data.train))

    with loading_libraries():
        from qlora_cli.data.render.for_data import data_renderer
        from qlora_cli.model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(loaded.model)
    return loaded, tokenizer, data_renderer(tokenizer, loaded.data)


def register(app: typer.Typer) -> None:
    """Add this file's commands to the app."""
    noun = typer.Typer(help="See, check and cache the data of a recipe.", no_args_is_help=True)
    for command in (show, check, cache):
        noun.command()(command)
    app.add_typer(noun, name="data")
