"""The adapter's modules as a heat map: how much each changed its weight, over layers and kinds of module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qlora_cli.report.axis import figure
from qlora_cli.report.curve import is_number
from qlora_cli.report.html import card, missing
from qlora_cli.report.measures_part import objects
from qlora_cli.report.record import RunRecord
from qlora_cli.web_page import text_as_html

LAYER = re.compile(r"(?:^|\.)(\d+)\.")
"""The first number in a module's name is its layer."""


def health(record: RunRecord) -> str:
    """The heat map with what it says in words; a sentence where it was not computed."""
    modules = objects(record.health.get("modules"))
    cells = {_place(str(module.get("name"))): module for module in modules}
    if not cells:
        return missing(f"Not computed yet: qlora eval {record.path} looks at the adapter's modules too.")
    lines = record.health.get("lines")
    told = "".join(f"<p>{text_as_html(str(line))}</p>" for line in lines) if isinstance(lines, list) else ""
    return card(f"{_map(cells)}{told}")


def _place(name: str) -> tuple[int, str]:
    """Layer and kind of a module; -1 where its name has no layer.

    >>> _place("model.layers.3.self_attn.q_proj"), _place("lm_head")
    ((3, 'q_proj'), (-1, 'lm_head'))
    """
    found = LAYER.search(name)
    return int(found.group(1)) if found else -1, name.rpartition(".")[2]


def _map(cells: Mapping[tuple[int, str], Mapping[str, Any]]) -> str:
    layers = sorted({layer for layer, _ in cells})
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    values = [value for module in cells.values() if is_number(value := module.get("relative_norm"))]
    highest = max(values, default=0.0) or 1.0
    head = "".join(f"<th>{'' if layer < 0 else layer}</th>" for layer in layers)
    rows = "".join(
        f'<tr><th scope="row">{text_as_html(kind)}</th>'
        + "".join(_cell(cells.get((layer, kind)), highest) for layer in layers)
        + "</tr>"
        for kind in kinds
    )
    return (
        '<p class="note">Norm of the update of each module over that of its weight, in percent.</p>'
        f'<div class="health"><table class="heat"><tr><th scope="row">layer</th>{head}</tr>{rows}</table></div>'
    )


def _cell(module: Mapping[str, Any] | None, highest: float) -> str:
    value = None if module is None else module.get("relative_norm")
    if module is None or not is_number(value):
        return "<td></td>"
    share = max(0.0, min(1.0, float(value) / highest))
    told = f"{module.get('name')}: {value:.2%} of its weight" + ", never moved" * (module.get("has_moved") is False)
    if is_number(module.get("effective_rank")):
        told += f", effective rank {figure(module['effective_rank'])} of {module.get('r')}"
    text = f"{value * 100:.1f}" if value else "0"
    return (
        f'<td style="background: rgba(var(--heat), {0.06 + 0.6 * share:.2f})" title="{text_as_html(told)}">{text}</td>'
    )
