"""A plan as a person reads it: the verdict, the bill with bars, then time, disk and data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from qlora_cli import console
from qlora_cli.console import size_in_words
from qlora_cli.data.show.report_view import bar, show_lines
from qlora_cli.plan.fit import Fit
from qlora_cli.plan.knobs import Knob
from qlora_cli.plan.overheads import Overheads
from qlora_cli.plan.report import GIB, PlanReport
from qlora_cli.plan.trace import Kind
from qlora_cli.recipe.summary import summarize

BAR_WIDTH = 32
"""With the names of the lines and the figures it fits into 80 columns."""

NARROW = 0.05
"""Share of the memory below which what is left is no more than the estimates in the bill may be wrong by."""

SMALL = 0.005
"""GiB below which a line of the bill is added to others; with a small model they would all be zeros."""


def show_plan(report: PlanReport) -> None:
    """Print the report."""
    recipe = report.request.recipe
    console.result(verdict(report))
    console.result("")
    console.table(("memory at the peak", "GiB", _bar_title(report)), _bill_rows(report))
    console.result("")
    told = summarize(recipe)
    facts = {
        "base": told["base"],
        "method": told["method"],
        "rows": _rows(report),
        **_facts(report),
    }
    console.facts(facts)
    for note in report.bill.notes:
        console.result("")
        console.result(Text.assemble(("note: ", "yellow"), note))


def _rows(report: PlanReport) -> str:
    training, asked = report.request.recipe.training, report.asked.training
    num_gpus = report.request.device.num_gpus
    text = f"{training.rows_at_once} of {report.asked.data.max_length:,} tokens at once, "
    if asked.per_device_train_batch_size == "auto":
        passes = "1 pass" if training.num_passes == 1 else f"{training.num_passes} passes"
        text += f"the {asked.rows_per_step} of a step in {passes} (auto)"
    else:
        text += f"{training.num_passes} times a step"
    return text if num_gpus == 1 else f"{text}, on each of {num_gpus} GPUs: {report.rows_per_step:,} a step"


def verdict(report: PlanReport) -> Text:
    """One line: whether it fits, in what, and where the peak lies."""
    num_gpus = report.request.device.num_gpus
    needed = f"{in_gib(report.device_bytes)} GiB"
    each = f", on each of {num_gpus} GPUs" if num_gpus > 1 else ""
    at = f"the peak falls in {report.bill.peak.phase}"
    memory = report.target.memory_bytes
    if memory is None:
        return Text(
            f"{needed} on {report.target.name}{each}; {at} (name a card: --gpu 4090, or its memory: --memory-gb 24)"
        )
    of = f"{in_gib(memory)} GiB" + (f" of {report.target.name}" if not report.target.name.endswith("GiB") else "")
    of += each
    if report.fits and memory - report.device_bytes < NARROW * memory:
        return Text.assemble(("fits narrowly", "bold yellow"), f": {needed} of the {of}; {at}")
    if report.fits:
        return Text.assemble(("fits", "bold green"), f": {needed} of the {of}; {at}")
    missing = in_gib(report.device_bytes - memory)
    return Text.assemble(("does not fit", "bold red"), f": {needed}, {missing} more than the {of}; {at}")


def _bar_title(report: PlanReport) -> str:
    return "of the peak" if report.target.memory_bytes is None else "of what a process can have"


def _bill_rows(report: PlanReport) -> list[tuple[str, str, str]]:
    whole = report.target.memory_bytes or report.device_bytes
    rows = [(name, size) for name, size in report.lines if size >= SMALL * GIB]
    if rest := sum(size for _, size in report.lines if size < SMALL * GIB):
        rows.append((f"each below {SMALL:g} GiB", rest))
    rows.append(("all", report.device_bytes))
    drawn = [(name, in_gib(size), _bar(size / whole)) for name, size in rows]
    return [*drawn, ("free", in_gib(whole - report.device_bytes), "")] if report.fits else drawn


def _bar(share: float) -> str:
    """A bar; one that is longer than there is room ends in dots."""
    return bar(min(1.0, share), BAR_WIDTH) + ("…" if share > 1 else "")


def _facts(report: PlanReport) -> dict[str, str]:
    facts, disk = report.bill.facts, report.disk
    num_all = facts.num_base + facts.num_trained
    told = {"trained": f"{facts.num_trained:,} parameters, {facts.trained_share:.2%} of {num_all:,}"}
    if report.bill.paged_bytes:
        told["paged"] = f"{in_gib(report.bill.paged_bytes)} GiB optimizer state, in host memory when the GPU is full"
    if report.request.device.num_gpus > 1:
        told["GPUs"] = _gpus(report)
    if report.request.device.overheads is not None:
        told["measured"] = f"CUDA context, cuBLAS workspaces and rate, {report.request.device.overheads.source}"
    work = report.workload
    if work is None:
        told["data"] = f"steps are not known: {report.why_no_workload}"
    else:
        filled = f", {work.fill:.1%} of their places filled" if report.request.recipe.data.packing else ""
        told["data"] = f"{work.num_rows:,} rows and {work.num_tokens:,} tokens an epoch{filled}"
        told["steps"] = f"{work.num_steps:,}"
    told["time"] = _time(report)
    told["disk"] = (
        f"adapter {size_in_words(disk.adapter_bytes)}, checkpoints {size_in_words(disk.checkpoints_bytes)}, "
        f"merged model {size_in_words(disk.merged_bytes)}"
    )
    return told


def _gpus(report: PlanReport) -> str:
    """What several GPUs share and what they do not."""
    sums = report.bill.trace.largest.get(Kind.GRADIENT_SUMS, 0)
    is_at_peak = Kind.GRADIENT_SUMS in report.bill.peak.by_kind
    return (
        f"each holds the whole model; gradients are summed in {in_gib(sums)} GiB more after the backward pass, "
        f"{'where the peak falls' if is_at_peak else 'below the peak'}; what NCCL takes is not in the bill"
    )


def _time(report: PlanReport) -> str:
    pace = report.pace
    if pace is None:
        return "no estimate: it needs a card with a known rate (--gpu) and 16-bit computation"
    num_gpus = report.request.device.num_gpus
    together = "" if num_gpus == 1 else f" on {num_gpus} GPUs"
    text = f"about {pace.tokens_per_second:,.0f} tokens/s{together}, {duration(pace.seconds_per_step)} a step"
    if report.seconds is not None:
        text += f", {duration(report.seconds)} in all"
    unmeasured = "" if num_gpus == 1 else "; without the time to sum gradients"
    return f"{text} (estimate: {pace.operations.total / 1e9:,.1f} GFLOP a token at {pace.rate}{unmeasured})"


def show_fits(fits: Sequence[Fit], report: PlanReport) -> None:
    """Print the largest settings that fit, each with all else unchanged."""
    rows = [
        (fit.key, "none fits" if fit.value is None else f"{fit.value:,}", in_gib(fit.num_bytes), fit.override)
        for fit in fits
    ]
    console.result("")
    show_lines((f"largest on {report.target.name}", "value", "GiB", "add to the command"), rows)


def show_knobs(knobs: Sequence[Knob], report: PlanReport) -> None:
    """Print what each change saves when it alone is made, and whether the plan fits then."""
    room = (report.target.memory_bytes or 0) - report.device_bytes
    rows = [
        (knob.what, in_gib(knob.saved_bytes), "yes" if room + knob.saved_bytes >= 0 else "no", knob.override)
        for knob in knobs
    ]
    console.result("")
    if rows:
        show_lines(("what saves memory", "GiB", "fits then", "add to the command"), rows)
    else:
        console.result("no change of a setting saves memory")


def show_overheads(overheads: Overheads, path: Path) -> None:
    """Print what a calibration measured and where it is kept."""
    console.facts(
        {
            "CUDA context": f"{in_gib(overheads.context_bytes)} GiB, with what the driver and the screen take",
            "cuBLAS": f"{overheads.cublas_bytes / 2**20:,.1f} MiB of workspaces",
            "memory": f"{in_gib(overheads.memory_bytes)} GiB",
            "rate": f"{overheads.reached_tflops:,.1f} TFLOPS in a short NF4 training step",
            "kept in": str(path),
        },
        title=f"{overheads.gpu}, driver {overheads.driver}, torch {overheads.torch}",
    )


def in_gib(num_bytes: float) -> str:
    """
    >>> in_gib(3 * 2**30), in_gib(1_000_000)
    ('3.00', '0.00')
    """
    return f"{num_bytes / GIB:,.2f}"


def duration(seconds: float) -> str:
    """
    >>> duration(0.31), duration(42), duration(600), duration(5400), duration(200_000)
    ('0.31 s', '42 s', '10 min', '1.5 h', '2.3 days')
    """
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= (2 if unit == "days" else 1) * length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
