"""Report on a recipe's data before it is trained on."""

from __future__ import annotations

import time
from dataclasses import replace

from qlora_cli.cache_folder import CACHE_ELSEWHERE
from qlora_cli.data.cache import SCRATCH, cache_key, cache_root, locked, touch
from qlora_cli.data.parity import compare_prompts
from qlora_cli.data.prepare import build_into
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.data.report import DataReport
from qlora_cli.recipe.data_schema import DataSection
from qlora_cli.run.disk_errors import naming
from qlora_cli.run.folders import put_in_place, scratch_folder, sweep
from qlora_cli.run.inventory import listed_files, write_inventory


def check_data(data: DataSection, renderer: Renderer, seed: int) -> DataReport:
    """Prepare the data, with duplicates looked for and prompts compared; the training that follows takes what is made.

    Raises:
        DataError: if a source cannot be read.
    """
    started = time.monotonic()
    key = cache_key(data, renderer, seed)
    with naming(cache_root(), CACHE_ELSEWHERE):
        cache_root().mkdir(parents=True, exist_ok=True)
        sweep(cache_root(), SCRATCH)
        with scratch_folder(cache_root(), SCRATCH) as folder:
            built = build_into(folder, data, renderer, seed, look_for="near")
            if key is not None and not built.problems:
                with locked(key) as entry:
                    if not touch(entry):
                        write_inventory(folder)
                        put_in_place(folder, entry, listed_files)
    prompts = [finding for source in data.train for finding in compare_prompts(source, data, renderer)]
    seconds = round(time.monotonic() - started, 3)
    return replace(built.report, findings=(*built.report.findings, *prompts), seconds=seconds)
