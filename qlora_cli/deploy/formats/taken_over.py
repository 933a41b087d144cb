"""What another program has written becomes the export: its weights and config, and all other files as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from qlora_cli.deploy.formats.format import WriteJob
from qlora_cli.model.other_files import copy_other_files

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def take_over(job: WriteJob, written: Path, others: tuple[str, ...] = (), keys: tuple[str, ...] = ()) -> None:
    """Move weights, and what the program has put into config.json, from `written` to the export.

    The config stays the model's own but for `quantization_config` and `keys`: programs write theirs in the words of the
    library that they load with, which leaves out what older ones read.

    Args:
        job: whose other files stay as they are.
        written: folder of the program.
        others: names of further files that the format needs.
        keys: of config.json that the format needs.
    """
    copy_other_files(job.plain, job.out)
    for path in sorted({path for pattern in (*WEIGHTS, *others) for path in written.glob(pattern)}):
        shutil.move(path, job.out / path.name)
    theirs = json.loads((written / "config.json").read_text(encoding="utf-8"))
    path = job.out / "config.json"
    own = json.loads(path.read_text(encoding="utf-8"))
    own |= {key: theirs[key] for key in ("quantization_config", *keys) if key in theirs}
    path.write_text(json.dumps(own, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
