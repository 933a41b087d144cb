"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_cli.choices import LoadedAs

Run = Annotated[
    Path | None, typer.Argument(help="Run directory or PEFT adapter folder.", show_default="the latest run")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. data.max_length=1024."),
]
BaseModel = Annotated[
    str | None,
    typer.Option("--base-model", help="Hub id or folder of the adapter's base.", show_default="the saved one"),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the base on the Hub.", show_default="the saved one")
]
Quantization = Annotated[
    LoadedAs | None, typer.Option(help="Storage of the base's weights.", show_default="as it was trained")
]
LoadingOverrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="How the base is loaded, e.g. model.dtype=float32."),
]
