"""Fine-tune a language model with QLoRA: the commands of `qlora` as functions, as docs/python.md shows.

`train`, `evaluate` and `report` are also the names of packages in here. These are imported first, since a package takes
its name in its parent when it is imported; later imports such as `from qlora_cli.train.session import TrainOptions`
find both.
"""

import qlora_cli.evaluate
import qlora_cli.report
import qlora_cli.train  # noqa: F401
from qlora_cli.api import chat, export, generate, merge, train
from qlora_cli.api_reports import compare, evaluate, push, report
from qlora_cli.errors import QloraError

__all__ = ["QloraError", "chat", "compare", "evaluate", "export", "generate", "merge", "push", "report", "train"]
