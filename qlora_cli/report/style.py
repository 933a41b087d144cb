"""How a report looks: one column of calm cards, in light and dark, on a phone and on paper.

The colours of curves are those of Okabe and Ito (2008, jfly.uni-koeln.de/color), told apart by colour-blind people;
in the dark they are brighter. Nothing is said by colour alone.
"""

from __future__ import annotations

LIGHT = ("#0072b2", "#d55e00", "#007a5a", "#a2477f", "#4d4d4d", "#8a6d00")
DARK = ("#5cb3f0", "#ff9a52", "#35c79b", "#e59ac6", "#c0c4c9", "#e3c04b")

_CURVES = "\n".join(
    f".c{n} {{ stroke: var(--k{n}); }} .f{n} {{ fill: var(--k{n}); }} .k{n} i {{ border-color: var(--k{n}); }}"
    for n in range(6)
)
_DASHES = "\n".join(
    f".laid .c{n}, .laid .k{n} i {{ stroke-dasharray: {dash}; border-top-style: {border}; }}"
    for n, dash, border in ((1, "7 3", "dashed"), (2, "2 3", "dotted"), (3, "9 3 2 3", "dashed"), (4, "4 2", "dashed"))
)


def _colours(curves: tuple[str, ...], rest: str) -> str:
    return " ".join(f"--k{number}: {colour};" for number, colour in enumerate(curves)) + f" {rest}"


_IN_LIGHT = _colours(
    LIGHT,
    "--better: #00695c; --worse: #b3261e; --heat: 0, 114, 178; --card: #fff; --ground: #f6f8fa; "
    "--ins: #d9f2e6; --del: #fde3dc; --trained: #0a4f24; --trained-paper: #d3f5dc;",
)
_IN_DARK = _colours(
    DARK,
    "--better: #5fd0b5; --worse: #ff9a8d; --heat: 92, 179, 240; --card: #12181f; --ground: #0d1117; "
    "--ins: #123d30; --del: #4a211c; --trained: #a6f0b8; --trained-paper: #123420;",
)
_PAPER_COLOURS = "--ink: #1f2328; --calm: #59636e; --paper: #fff; --line: #d1d9e0; --edge: #f6f8fa;"

STYLE = f"""\
:root {{ {_IN_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_IN_DARK} }} }}
@media print {{ :root {{ color-scheme: light; {_PAPER_COLOURS} {_IN_LIGHT} --ground: #fff; }} }}
body {{ max-width: 74rem; padding: 2rem 1.5rem 4rem; background: var(--ground); }}
header .eyebrow {{ margin: 0 0 .15rem; color: var(--calm); font-size: .8rem; letter-spacing: .04em; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; font-weight: 650; }}
h2 {{ margin: 2.75rem 0 .9rem; font-size: 1.05rem; font-weight: 650; }}
h3 {{ margin: 0 0 .5rem; font-size: .95rem; font-weight: 600; }}
body {{ overflow-wrap: anywhere; }}
p {{ margin: .25rem 0; }}
a {{ color: inherit; }}
.calm, .none, figure p, .note {{ color: var(--calm); font-size: .85rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: .35rem 1.75rem; margin: .9rem 0 0; padding: 0; list-style: none; }}
.facts span {{ display: block; color: var(--calm); font-size: .78rem; }}
.facts b {{ font-weight: 550; overflow-wrap: anywhere; }}
.card, .plot {{ margin: 0; padding: .85rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }}
.card + .card, .two + .card, .card + h3 {{ margin-top: .75rem; }}
.grid-of {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20.5rem), 1fr)); gap: .75rem; }}
.two {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: .75rem; }}
.two > .card + .card {{ margin-top: 0; }}
.two.wide {{ grid-template-columns: minmax(0, 1fr); }}
@media (min-width: 60rem) {{ .two.wide {{ grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); }} }}
.verdict li {{ display: grid; grid-template-columns: 1.4rem 1fr; padding: .3rem 0; overflow-wrap: anywhere; }}
.verdict ul {{ margin: 0; padding: 0; list-style: none; }}
.verdict li + li {{ border-top: 1px solid var(--line); }}
.better {{ color: var(--better); }} .worse {{ color: var(--worse); }} .open {{ color: var(--calm); }}
.sign {{ font-weight: 700; }}
figcaption {{ display: flex; gap: .5rem; align-items: baseline; margin-bottom: .3rem; }}
figcaption b {{ font-weight: 600; font-size: .92rem; }}
figcaption span {{ color: var(--calm); font-size: .8rem; }}
figure p {{ margin: .35rem 0 0; }}
svg {{ display: block; width: 100%; max-width: 30rem; height: auto; overflow: visible; }}
svg text {{ fill: var(--calm); font: 11px system-ui, sans-serif; font-variant-numeric: tabular-nums; }}
.grid {{ stroke: var(--line); stroke-width: 1; }}
.curve {{ fill: none; stroke-width: 1.75; stroke-linejoin: round; stroke-linecap: round; }}
.curve.faint {{ stroke-width: 1; opacity: .38; }}
.level {{ stroke: var(--calm); stroke-width: 1; stroke-dasharray: 4 3; }}
svg .level-text, svg .ring-text {{ fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }}
.ring {{ fill: var(--card); stroke: var(--ink); stroke-width: 1.75; }}
.bars rect.bar {{ fill: var(--k0); }}
svg g > rect {{ fill: transparent; }}
svg g > path, svg g > circle, svg g > text {{ visibility: hidden; }}
svg g > path {{ stroke: var(--calm); stroke-width: 1; }}
svg g > text {{ fill: var(--ink); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }}
svg g:hover > *, svg:not(:hover) g.last > text {{ visibility: visible; }}
{_CURVES}
{_DASHES}
.legend {{ display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .82rem; }}
.legend span {{ overflow-wrap: anywhere; }}
.legend i {{ display: inline-block; width: 1.3rem; margin-right: .4rem; border-width: 2.5px 0 0; border-style: solid;
  vertical-align: .25em; }}
table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .38rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: baseline;
  overflow-wrap: anywhere; }}
tr:last-child > td, tr:last-child > th[scope=row] {{ border-bottom: 0; }}
th {{ color: var(--calm); font-weight: 550; font-size: .82rem; }}
th[scope=row] {{ color: var(--ink); font-size: inherit; }}
.of-facts th[scope=row] {{ width: 38%; padding-left: 0; color: var(--calm); font-weight: 400; font-size: .88rem; }}
.of-facts td {{ font-size: .92rem; }}
.stack th[scope=row] {{ min-width: 13rem; }}
.num {{ text-align: right; white-space: nowrap; }}
td.span {{ width: 12rem; padding: .2rem .6rem; vertical-align: middle; }}
.zero {{ stroke: var(--calm); stroke-width: 1; stroke-dasharray: 2 2; }}
.whisker {{ stroke-width: 2; stroke: currentcolor; stroke-linecap: round; }} .mean {{ fill: currentcolor; }}
.health {{ overflow-x: auto; }}
.heat {{ border-spacing: 2px; border-collapse: separate; table-layout: fixed; }}
.heat td, .heat th {{ padding: 0 .2rem; border: 0; height: 1.35rem; font-size: .72rem; text-align: center;
  white-space: nowrap; overflow: hidden; vertical-align: middle; }}
.heat th[scope=row] {{ text-align: right; padding-right: .5rem; width: 6.5rem; color: var(--calm); }}
.heat td {{ border-radius: 3px; }}
pre {{ margin: 0; font: 13px/1.6 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }}
code {{ font: .88em ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }}
.row .t {{ color: var(--trained); background: var(--trained-paper); border-bottom: 1.5px solid var(--trained); }}
.row .c {{ color: var(--calm); }}
.row b {{ font-weight: 400; border: 1px solid currentcolor; border-radius: 3px; padding: 0 1px; }}
ins, del {{ text-decoration: none; border-radius: 3px; padding: 0 1px; }}
ins {{ background: var(--ins); border-bottom: 1.5px solid var(--better); }}
del {{ background: var(--del); border-bottom: 1.5px dotted var(--worse); }}
.sides {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: .9rem 1.5rem; }}
.sides h4 {{ margin: 0 0 .25rem; font-size: .82rem; font-weight: 600; color: var(--calm); }}
.asked {{ margin: 0 0 .75rem; padding-left: .75rem; border-left: 3px solid var(--line); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .92rem; }}
.advice dl {{ display: grid; grid-template-columns: auto 1fr; gap: .2rem .9rem; margin: .3rem 0 0; }}
.advice dt {{ color: var(--calm); font-size: .82rem; padding-top: .1rem; }} .advice dd {{ margin: 0; min-width: 0; }}
.advice .changes code {{ display: block; }}
summary {{ cursor: pointer; color: var(--calm); }}
details[open] > summary {{ margin-bottom: .6rem; }}
footer {{ margin-top: 2.5rem; color: var(--calm); font-size: .82rem; }}
@media (max-width: 44rem) {{
  body {{ padding: 1.25rem .75rem 3rem; }}
  h1 {{ font-size: 1.35rem; }} h2 {{ margin-top: 2.1rem; }}
  .card, .plot {{ padding: .75rem .8rem; }}
  .stack thead {{ display: none; }} .stack th[scope=row] {{ min-width: 0; }}
  .stack tr {{ display: grid; grid-template-columns: 1fr 1fr; padding: .55rem 0;
    border-bottom: 1px solid var(--line); }}
  .stack tr:last-child {{ border-bottom: 0; }}
  .stack th, .stack td {{ border: 0; padding: .1rem .2rem; text-align: left; white-space: normal; }}
  .stack th[scope=row], .stack td.span, .stack td.whole {{ grid-column: 1 / -1; width: auto; }}
  .stack td[data-name]::before {{ content: attr(data-name) " "; color: var(--calm); font-size: .8rem; }}
  .heat th[scope=row] {{ width: 4.6rem; }} .heat td {{ font-size: 0; }}
}}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 10.5pt; }}
  .card, .plot, tr, li {{ break-inside: avoid; }} h2 {{ break-after: avoid; }}
  details::details-content {{ content-visibility: visible; display: block; }}
  .plot {{ border-color: #ccc; }}
}}
"""
