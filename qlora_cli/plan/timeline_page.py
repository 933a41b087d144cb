"""Memory over one training step as a page: areas by what the memory is for. Nothing in it runs or is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from math import ceil
from pathlib import Path

from qlora_cli.constants import GIB, MIB
from qlora_cli.errors import ArgumentError
from qlora_cli.plan.figures import in_gib, in_mib, size
from qlora_cli.plan.report import PlanReport
from qlora_cli.plan.report_view import verdict
from qlora_cli.plan.trace.live_memory import MemoryKind, Stage
from qlora_cli.plan.trace.timeline import Moment
from qlora_cli.run.files import refuse_foreign_page, write_text
from qlora_cli.web_page import document

NUM_POINTS = 400
TOP, BOTTOM = 24, 34
LETTER_WIDTH = 6.6
"""Units of the drawing that a letter takes, about."""

MAX_LINES = 6
NICE_STEPS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
"""Units between two lines of the grid."""

COLOURS: dict[MemoryKind, tuple[str, str]] = {
    MemoryKind.BASE_QUANTIZED: ("#1d4e89", "#3b78c2"),
    MemoryKind.QUANTIZATION_CONSTANTS: ("#4c86c6", "#7db0e8"),
    MemoryKind.BASE_16BIT: ("#8db8e2", "#2b5a8f"),
    MemoryKind.ADAPTER: ("#6d4c9f", "#9a79cf"),
    MemoryKind.GRADIENTS: ("#a97fd0", "#c9a6ea"),
    MemoryKind.GRADIENT_SUMS: ("#8c6bb1", "#b794d8"),
    MemoryKind.OPTIMIZER: ("#d2b5e8", "#6f4d94"),
    MemoryKind.INPUTS: ("#777e87", "#a2a9b3"),
    MemoryKind.ACTIVATIONS: ("#2f855a", "#4fb286"),
    MemoryKind.LOSS: ("#d97706", "#f0a23c"),
    MemoryKind.DEQUANTIZED: ("#c2410c", "#f0764a"),
    MemoryKind.KERNEL_WORKSPACE: ("#b45f7c", "#dd8aa6"),
    MemoryKind.TEMPORARY: ("#b7c24a", "#ccd66b"),
}
"""In the order of the areas, from below: on light paper and on dark. Paged state is on the host."""

STYLE = """\
:root { --limit: #c0152f;
%s}
@media (prefers-color-scheme: dark) {
  :root { --limit: #ff7b83;
%s}
}
body { max-width: 68rem; }
p { margin: .25rem 0 1rem; color: var(--calm); }
svg { width: 100%%; height: auto; display: block; }
svg.narrow { display: none; }
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
td { overflow-wrap: anywhere; }
td:not(:first-child) { white-space: nowrap; }
@media (max-width: 40rem) {
  body { padding: 1rem .75rem 2rem; }
  svg.wide { display: none; }
  svg.narrow { display: block; }
  th, td { padding: .3rem .3rem; }
}
.key { display: inline-block; width: .8rem; height: .8rem; margin-right: .5rem; border-radius: 2px;
  vertical-align: -1px; }
"""


@dataclass(frozen=True)
class Canvas:
    """Size of a drawing, in units of which a letter is 12 high."""

    name: str
    """Class of the drawing, which is shown on screens of its width."""

    width: int
    height: int
    left: int = 64
    """Room for the figures of the grid."""


WIDE, NARROW = Canvas("wide", 1000, 420), Canvas("narrow", 360, 400)


@dataclass(frozen=True)
class Scale:
    """From clock and bytes to places in the drawing."""

    first: int
    last: int
    highest: float
    """Bytes at the upper edge."""

    canvas: Canvas = WIDE

    def x(self, clock: int) -> float:
        """
        >>> Scale(0, 100, 1.0).x(100)
        1000.0
        """
        share = (clock - self.first) / max(1, self.last - self.first)
        return self.canvas.left + share * (self.canvas.width - self.canvas.left)

    def y(self, num_bytes: float) -> float:
        """
        >>> Scale(0, 100, 8.0).y(0), Scale(0, 100, 8.0).y(8)
        (386.0, 24.0)
        """
        return self.floor - num_bytes / self.highest * (self.floor - TOP)

    @property
    def is_in_gib(self) -> bool:
        """Whether sizes are given in GiB, not in MiB."""
        return self.highest >= GIB

    @property
    def floor(self) -> int:
        """Height at which nothing is held."""
        return self.canvas.height - BOTTOM


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
    step = f"{recipe.model.base_model}, {rows} of {recipe.data.max_length:,} tokens"
    said = verdict(report).plain
    body = "\n".join(
        (
            f"<h1>{escape(title)}</h1>\n<p>{escape(step)}. {escape(said[0].upper() + said[1:])}.</p>",
            *_drawing(report, moments, present, WIDE),
            *_drawing(report, moments, present, NARROW),
            *_table(report, present),
            "<p>The drawing holds the tensors of the last micro-batch of a step, in the order in which they come and "
            "go; its width is not time. What CUDA adds is the gap between the areas and the line of the card.</p>",
        )
    )
    return document(title, STYLE % (light, dark), body)


def _drawing(
    report: PlanReport, moments: Sequence[Moment], present: Sequence[MemoryKind], canvas: Canvas
) -> Iterator[str]:
    limit = report.target.memory_bytes
    peak = report.bill.peak
    reach = max(peak.num_bytes, limit if limit is not None and limit <= 2.5 * peak.num_bytes else 0)
    scale = Scale(moments[0].clock, moments[-1].clock, reach * 1.08, canvas)
    box = f"0 0 {canvas.width} {canvas.height}"
    yield f'<svg class="{canvas.name}" viewBox="{box}" role="img" aria-label="memory over the step">'
    yield from _grid(scale)
    yield from _areas(scale, moments, present)
    yield from _stages(scale, moments)
    x, y = scale.x(peak.clock), scale.y(peak.num_bytes)
    yield f'<circle class="peak" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    told = f"{in_gib(peak.num_bytes)} GiB" if scale.is_in_gib else f"{in_mib(peak.num_bytes)} MiB"
    text = f"peak {told}: {peak.phase}"
    length = LETTER_WIDTH * len(text)
    place = max(canvas.left, min(x - length / 2, canvas.width - length))
    yield f'<text class="peak-text" x="{place:.1f}" y="{y - 9:.1f}">{escape(text)}</text>'
    if limit is not None and limit <= scale.highest:
        y = scale.y(limit)
        yield f'<line class="limit" x1="{canvas.left}" x2="{canvas.width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        text = f"{report.target.name}: {size(limit)} for a process"
        yield f'<text class="limit-text" x="{canvas.left + 6}" y="{y - 5:.1f}">{escape(text)}</text>'
    yield "</svg>"


def _grid(scale: Scale) -> Iterator[str]:
    unit, unit_bytes = ("GiB", GIB) if scale.is_in_gib else ("MiB", MIB)
    highest = scale.highest / unit_bytes
    step = next((step for step in NICE_STEPS if highest / step <= MAX_LINES), NICE_STEPS[-1])
    left = scale.canvas.left
    for number in range(ceil(scale.highest / unit_bytes / step)):
        y = scale.y(number * step * unit_bytes)
        yield f'<line class="grid" x1="{left}" x2="{scale.canvas.width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number * step:g} {unit}</text>'


def _areas(scale: Scale, moments: Sequence[Moment], present: Sequence[MemoryKind]) -> Iterator[str]:
    floor = [0] * len(moments)
    numbers = {kind: number for number, kind in enumerate(COLOURS)}
    for kind in present:
        ceiling = [low + moment.by_kind.get(kind, 0) for low, moment in zip(floor, moments, strict=True)]
        there = [(scale.x(moment.clock), scale.y(high)) for moment, high in zip(moments, ceiling, strict=True)]
        back = [(scale.x(moment.clock), scale.y(low)) for moment, low in zip(moments, floor, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (*there, *reversed(back)))
        most = max(moment.by_kind.get(kind, 0) for moment in moments)
        told = escape(f"{kind}: up to {size(most)}")
        yield f'<polygon fill="var(--k{numbers[kind]})" points="{points}"><title>{told}</title></polygon>'
        floor = ceiling


def _stages(scale: Scale, moments: Sequence[Moment]) -> Iterator[str]:
    """Names of the stages along the lower edge; backward and recomputation take turns and are one."""
    has_recomputation = any(moment.phase.stage is Stage.RECOMPUTE for moment in moments)
    backward = "backward with recomputation" if has_recomputation else str(Stage.BACKWARD)
    for name, run in groupby(moments, key=lambda moment: _stage_name(moment.phase.stage, backward)):
        clocks = [moment.clock for moment in run]
        left, right = scale.x(clocks[0]), scale.x(clocks[-1])
        yield f'<line class="stage" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{scale.floor + 8}"/>'
        names = (name, name.partition(" with")[0])
        shown = next((each for each in names if LETTER_WIDTH * len(each) <= right - left), "")
        if shown:
            middle = (left + right) / 2
            yield f'<text x="{middle:.1f}" y="{scale.canvas.height - 10}" text-anchor="middle">{escape(shown)}</text>'


def _stage_name(stage: Stage, backward: str) -> str:
    if stage is Stage.SETUP:
        return str(Stage.FORWARD)
    return backward if stage in (Stage.BACKWARD, Stage.RECOMPUTE) else str(stage)


def _table(report: PlanReport, present: Sequence[MemoryKind]) -> Iterator[str]:
    peak, largest = report.bill.peak.by_kind, report.bill.trace.largest
    numbers = {kind: number for number, kind in enumerate(COLOURS)}
    yield "<table>\n<thead><tr><th>memory</th><th>at the peak</th><th>at its own most</th></tr></thead>"
    yield "<tbody>"
    for kind in reversed(present):
        key = f'<span class="key" style="background: var(--k{numbers[kind]})"></span>'
        cells = f"<td>{size(peak.get(kind, 0))}</td><td>{size(largest.get(kind, 0))}</td>"
        yield f"<tr><td>{key}{escape(kind)}</td>{cells}</tr>"
    for each in report.bill.needs.overheads:
        yield f"<tr><td>{escape(each.name)} ({escape(each.source)})</td><td>{size(each.num_bytes)}</td><td></td></tr>"
    yield f"</tbody>\n<tfoot><tr><td>all</td><td>{size(report.device_bytes)}</td><td></td></tr></tfoot>\n</table>"
