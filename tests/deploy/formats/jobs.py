"""Jobs for the writers of formats, on toys."""

from __future__ import annotations

from qlora_cli.deploy.formats.format import FormatOptions, WriteJob
from qlora_cli.model.tuned import find_tuned


def written(format, plain, out, **options):
    """The folder `plain`, itself a whole model, written in a format into `out`."""
    source, settings = find_tuned(plain), FormatOptions(**options)
    format.check(source, settings)
    out.mkdir()
    format.write(WriteJob(plain, out, source, [list(range(1, 60))] * 4, settings))
    return out
