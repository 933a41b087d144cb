"""Memory over one training step as a page: areas by what the memory is for. Nothing in it runs or is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil
from pathlib import Path

from qlora_cli.errors import ArgumentError
from qlora_cli.plan.plan_view import in_gib, verdict
from qlora_cli.plan.report import GIB, PlanReport
from qlora_cli.plan.timeline import Moment
from qlora_cli.plan.trace import Kind, Stage
from qlora_cli.run.files import GENERATOR, refuse_foreign_page, write_text

NUM_POINTS = 400
WIDTH, HEIGHT = 1000, 420
LEFT, TOP, BOTTOM = 56, 24, 34
MIN_LABEL_WIDTH = 46
"""Units of the drawing below which the name of a stage finds no room."""

MAX_LINES = 6
NICE_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

COLOURS: dict[Kind, tuple[str, str]] = {
    Kind.BASE_QUANTIZED: ("#1d4e89", "#3b78c2"),
    Kind.QUANTIZATION_CONSTANTS: ("#4c86c6", "#7db0e8"),
    Kind.BASE_16BIT: ("#8db8e2", "#2b5a8f"),
    Kind.ADAPTER: ("#6d4c9f", "#9a79cf"),
    Kind.GRADIENTS: ("#a97fd0", "#c9a6ea"),
    Kind.GRADIENT_SUMS: ("#8c6bb1", "#b794d8"),
    Kind.OPTIMIZER: ("#d2b5e8", "#6f4d94"),
    Kind.INPUTS: ("#777e87", "#a2a9b3"),
    Kind.ACTIVATIONS: ("#2f855a", "#4fb286"),
    Kind.LOSS: ("#d97706", "#f0a23c"),
    Kind.DEQUANTIZED: ("#c2410c", "#f0764a"),
    Kind.KERNEL_WORKSPACE: ("#b45f7c", "#dd8aa6"),
    Kind.TEMPORARY: ("#b7c24a", "#ccd66b"),
}
"""In the order in which the areas lie, from below: on light paper and on dark. Paged state lies on the host."""

STYLE = """\
:root { color-scheme: light dark; --ink: #1f2328; --calm: #59636e; --paper: #fff; --line: #d1d9e0; --limit: #c0152f;
%s}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --calm: #9aa4af; --paper: #0d1117; --line: #30363d; --limit: #ff7b83;
%s}
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.25rem 1.25rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 1rem; color: var(--calm); }
svg { width: 100%%; height: auto; display: block; }
svg text { fill: var(--calm); font: 12px system-ui, sans-serif; }
.grid { stroke: var(--line); stroke-width: 1; }
.stage { stroke: var(--line); stroke-dasharray: 2 3; }
.limit { stroke: var(--limit); stroke-width: 1.5; stroke-dasharray: 7 4; }
svg .limit-text { fill: var(--limit); }
.peak { fill: none; stroke: var(--ink); stroke-width: 1.5; }
svg .peak-text { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
table { border-collapse: collapse; margin-top: 1.25rem; width: 100%%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--calm); font-weight: 600; }
tfoot td { font-weight: 600; }
.key { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; border-radius: 2px;
  vertical-align: -1px; }
"""


@dataclass(frozen=True)
class Scale:
    """From clock and bytes to places in the drawing."""

    first: int
    last: int
    highest: float
    """Bytes at the upper edge."""

    def x(self, clock: int) -> float:
        """
        >>> Scale(0, 100, 1.0).x(100)
        1000.0
        """
        share = (clock - self.first) / max(1, self.last - self.first)
        return LEFT + share * (WIDTH - LEFT)

    def y(self, num_bytes: float) -> float:
        """
        >>> Scale(0, 100, 8.0).y(0), Scale(0, 100, 8.0).y(8)
        (386.0, 24.0)
        """
        return HEIGHT - BOTTOM - num_bytes / self.highest * (HEIGHT - BOTTOM - TOP)


def write_timeline(path: Path, report: PlanReport) -> None:
    """Write the page.

    Raises:
        ArgumentError: if the name is not that of a page, or another file has it.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"'{path}' does not end in .html", hint=f"try `--timeline {path.with_suffix('.html')}`")
    refuse_foreign_page(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page(report))


def page(report: PlanReport) -> str:
    """The page's HTML."""
    recipe = report.request.recipe
    title = f"{recipe.name}: memory over one training step"
    moments = report.bill.trace.timeline(NUM_POINTS)
    present = [kind for kind in COLOURS if any(kind in moment.by_kind for moment in moments)]
    light, dark = (
        "".join(f"  --k{n}: {COLOURS[kind][which]};\n" for n, kind in enumerate(COLOURS)) for which in (0, 1)
    )
    rows = "1 row" if report.request.batch_size == 1 else f"{report.request.batch_size} rows"
    size = f"{recipe.model.base_model}, {rows} of {recipe.data.max_length:,} tokens"
    said = verdict(report).plain
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">""",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            GENERATOR,
            f"<title>{escape(title)}</title>\n<style>\n{STYLE % (light, dark)}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>\n<p>{escape(size)}. {escape(said[0].upper() + said[1:])}.</p>",
            *_drawing(report, moments, present),
            *_table(report, present),
            "<p>The drawing holds the tensors of the last micro-batch of a step, in the order in which they come and "
            "go; its width is not time. What CUDA adds lies in the gap between the areas and the line of the card.</p>",
            "</body>\n</html>\n",
        )
    )


def _drawing(report: PlanReport, moments: Sequence[Moment], present: Sequence[Kind]) -> Iterator[str]:
    limit = report.target.memory_bytes
    peak = report.bill.peak
    reach = max(peak.num_bytes, limit if limit is not None and limit <= 2.5 * peak.num_bytes else 0)
    scale = Scale(moments[0].clock, moments[-1].clock, reach * 1.08)
    yield f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="memory over the step">'
    yield from _grid(scale)
    yield from _areas(scale, moments, present)
    yield from _stages(scale, moments)
    x, y = scale.x(peak.clock), scale.y(peak.num_bytes)
    anchor = "end" if x > WIDTH - 260 else "start"
    place = x - 9 if anchor == "end" else x + 9
    yield f'<circle class="peak" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    text = f"peak {in_gib(peak.num_bytes)} GiB: {peak.phase}"
    yield f'<text class="peak-text" x="{place:.1f}" y="{y - 6:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    if limit is not None and limit <= scale.highest:
        y = scale.y(limit)
        yield f'<line class="limit" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        text = f"{report.target.name}: {in_gib(limit)} GiB for a process"
        yield f'<text class="limit-text" x="{LEFT + 6}" y="{y - 5:.1f}">{escape(text)}</text>'
    yield "</svg>"


def _grid(scale: Scale) -> Iterator[str]:
    highest = scale.highest / GIB
    step = next((step for step in NICE_STEPS if highest / step <= MAX_LINES), NICE_STEPS[-1])
    for number in range(ceil(highest / step)):
        y = scale.y(number * step * GIB)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number * step:g} GiB</text>'


def _areas(scale: Scale, moments: Sequence[Moment], present: Sequence[Kind]) -> Iterator[str]:
    floor = [0] * len(moments)
    numbers = {kind: number for number, kind in enumerate(COLOURS)}
    for kind in present:
        ceiling = [low + moment.by_kind.get(kind, 0) for low, moment in zip(floor, moments, strict=True)]
        there = [(scale.x(moment.clock), scale.y(high)) for moment, high in zip(moments, ceiling, strict=True)]
        back = [(scale.x(moment.clock), scale.y(low)) for moment, low in zip(moments, floor, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*there, *reversed(back)))
        most = max(moment.by_kind.get(kind, 0) for moment in moments)
        told = escape(f"{kind}: up to {in_gib(most)} GiB")
        yield f'<polygon fill="var(--k{numbers[kind]})" points="{points}"><title>{told}</title></polygon>'
        floor = ceiling


def _stages(scale: Scale, moments: Sequence[Moment]) -> Iterator[str]:
    """Names of the stages along the lower edge; backward and recomputation take turns and are one."""
    has_recomputation = any(moment.phase.stage is Stage.RECOMPUTE for moment in moments)
    backward = "backward with recomputation" if has_recomputation else str(Stage.BACKWARD)
    for name, run in groupby(moments, key=lambda moment: _stage_name(moment.phase.stage, backward)):
        clocks = [moment.clock for moment in run]
        left, right = scale.x(clocks[0]), scale.x(clocks[-1])
        yield f'<line class="stage" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM + 8}"/>'
        if right - left >= MIN_LABEL_WIDTH:
            middle = (left + right) / 2
            yield f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(name)}</text>'


def _stage_name(stage: Stage, backward: str) -> str:
    if stage is Stage.SETUP:
        return str(Stage.FORWARD)
    return backward if stage in (Stage.BACKWARD, Stage.RECOMPUTE) else str(stage)


def _table(report: PlanReport, present: Sequence[Kind]) -> Iterator[str]:
    peak, largest = report.bill.peak.by_kind, report.bill.trace.largest
    numbers = {kind: number for number, kind in enumerate(COLOURS)}
    yield "<table>\n<thead><tr><th>memory</th><th>at the peak, GiB</th><th>at its own most, GiB</th></tr></thead>"
    yield "<tbody>"
    for kind in reversed(present):
        key = f'<span class="key" style="background: var(--k{numbers[kind]})"></span>'
        cells = f"<td>{in_gib(peak.get(kind, 0))}</td><td>{in_gib(largest.get(kind, 0))}</td>"
        yield f"<tr><td>{key}{escape(kind)}</td>{cells}</tr>"
    for each in report.bill.needs.overheads:
        yield f"<tr><td>{escape(each.name)} ({escape(each.source)})</td><td>{in_gib(each.num_bytes)}</td><td></td></tr>"
    yield f"</tbody>\n<tfoot><tr><td>all</td><td>{in_gib(report.device_bytes)}</td><td></td></tr></tfoot>\n</table>"
