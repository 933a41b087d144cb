"""`qlora plan`: what a recipe needs, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_cli import console
from qlora_cli.cli.options import AsJson, Overrides
from qlora_cli.errors import ArgumentError
from qlora_cli.garbage import collector_off
from qlora_cli.hub import start_asking
from qlora_cli.progress import loading_libraries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qlora_cli.plan.fit import Fit
    from qlora_cli.plan.report import PlanReport
    from qlora_cli.plan.savings import MemorySaving
    from qlora_cli.recipe.schema import Recipe

DOES_NOT_FIT = 5

SKETCH_RECIPE = {
    "name": "sketch",
    "model": {"base_model": "sketch"},
    "quantization": {},
    "data": {"train": "rows.jsonl"},
}

MemoryGb = Annotated[
    float | None, typer.Option(min=0.1, metavar="N", help="Memory in GiB that a process can have, for any card.")
]
NumGpus = Annotated[int, typer.Option(min=1, metavar="N", help="GPUs of that kind in one machine, one process each.")]
Calibrate = Annotated[
    bool, typer.Option("--calibrate", help="First measure this machine's GPU, for this plan and later ones.")
]
Timeline = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the memory over the step.")]


def plan(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe: a YAML file.", show_default=False)] = None,
    gpu: Annotated[str | None, typer.Option(help="Card that it is to run on, e.g. 4090 or a100-80.")] = None,
    memory_gb: MemoryGb = None,
    num_gpus: NumGpus = 1,
    calibrate: Calibrate = False,
    fit: Annotated[bool, typer.Option("--fit", help="Search what fits, and rank what saves memory.")] = False,
    timeline: Timeline = None,
    params: Annotated[float | None, typer.Option(help="Without a config.json: parameters, e.g. 8e9.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Width of the sketch, e.g. 4096.")] = None,
    layers: Annotated[int | None, typer.Option(help="Layers of the sketch, e.g. 32.")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say what memory, time and disk a recipe needs; needs no GPU and no weights. Exit code 5: it does not fit."""
    sketch = (params, hidden, layers)
    is_sketch = any(value is not None for value in sketch)
    if is_sketch and None in sketch:
        raise ArgumentError("a sketch takes --params, --hidden and --layers", hint="give all three of them")
    if calibrate:
        is_all = recipe is None and not is_sketch
        _calibrate(is_all=is_all, as_json=as_json)
        if is_all:
            return
    from qlora_cli.model.at_hand import refuse_missing_folder

    loaded = _load(recipe, overrides or [], is_sketch=is_sketch)
    if not is_sketch:
        refuse_missing_folder(loaded.model.base_model)
        start_asking(loaded.model.base_model)
    report = _work_out(loaded, sketch, (gpu, memory_gb, num_gpus), is_fitted=fit)
    fits, savings = _search(report) if fit else ([], [])
    if timeline is not None:
        from qlora_cli.plan.timeline_page import write_timeline

        write_timeline(timeline, report)
        console.note(f"wrote {timeline}")
    _show(report, fits, savings, is_fitted=fit, as_json=as_json)
    if report.fits is False:
        raise typer.Exit(DOES_NOT_FIT)


def _calibrate(*, is_all: bool, as_json: bool) -> None:
    from dataclasses import asdict

    with loading_libraries():
        from qlora_cli.plan.calibrate import calibrate
        from qlora_cli.plan.machine.calibration import save_overheads
        from qlora_cli.plan.report_view import show_overheads

    with console.library_noise_to(None):
        overheads = calibrate()
    path = save_overheads(overheads)
    if not is_all:
        console.note(f"measured {overheads.gpu}; the figures are kept in {path}")
    elif as_json:
        console.data(asdict(overheads) | {"file": str(path)})
    else:
        show_overheads(overheads, path)


def _load(recipe: Path | None, overrides: list[str], *, is_sketch: bool) -> Recipe:
    from qlora_cli.recipe.reader import load_recipe

    if recipe is None and not is_sketch:
        raise ArgumentError(
            "there is no recipe to plan",
            hint="name one: `qlora plan recipe.yaml`, or a sketch: --params 8e9 --hidden 4096 --layers 32",
        )
    return load_recipe(SKETCH_RECIPE if recipe is None else recipe, overrides)


def _work_out(
    recipe: Recipe,
    sketch: tuple[float | None, int | None, int | None],
    devices: tuple[str | None, float | None, int],
    *,
    is_fitted: bool,
) -> PlanReport:
    with loading_libraries():
        from qlora_cli.model.prequantized import recipe_on
        from qlora_cli.plan.likeness import config_to_plan
        from qlora_cli.plan.report import choose_target, make_report
        from qlora_cli.plan.sketch import sketch_config
        from qlora_cli.plan.trace.request import PlanRequest

    with collector_off(), console.library_noise_to(None):
        target = choose_target(*devices)
        params, hidden, layers = sketch
        if params is not None and hidden is not None and layers is not None:
            config, note = sketch_config(int(params), hidden_size=hidden, num_layers=layers), ""
        else:
            config, note = config_to_plan(recipe.model)
            recipe = recipe_on(recipe, config)
        request = PlanRequest(recipe, config, target.device)
        if is_fitted and target.memory_bytes is None:
            raise ArgumentError("--fit needs to know the memory", hint="name a card: --gpu 4090, or --memory-gb 24")
        return make_report(request, target, with_data=params is None).noted(note)


def _search(report: PlanReport) -> tuple[list[Fit], list[MemorySaving]]:
    from qlora_cli.plan.fit import UNITS, largest_fit
    from qlora_cli.plan.savings import rank_savings
    from qlora_cli.plan.trace_cache import Tracer

    assert report.target.memory_bytes is not None, "--fit was refused without a memory"
    tracer = Tracer()
    fits = []
    with console.library_noise_to(None):
        for key in UNITS:
            fits.append(largest_fit(report.request, key, report.target.memory_bytes, tracer))
        return fits, rank_savings(report.request, tracer)


def _show(
    report: PlanReport, fits: Sequence[Fit], savings: Sequence[MemorySaving], *, is_fitted: bool, as_json: bool
) -> None:
    from dataclasses import asdict

    from qlora_cli.plan.report_view import show_fits, show_knobs, show_plan

    if as_json:
        found = {
            "fit": [{"key": fit.key, "value": fit.value, "num_bytes": fit.num_bytes, "most": fit.most} for fit in fits],
            "knobs": [asdict(saving) | {"override": saving.override} for saving in savings],
        }
        console.data(report.as_dict() | (found if is_fitted else {}))
        return
    show_plan(report)
    if is_fitted:
        show_fits(fits, report)
        show_knobs(savings, report)


def register(app: typer.Typer) -> None:
    """Add this file's command to the app."""
    app.command()(plan)
