"""The merged model as it is: a folder that plain `transformers` loads."""

from __future__ import annotations

import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

from transformers import AutoConfig, PreTrainedModel

from qlora_cli.deploy.engines.engine import Answers, Engine, Questions
from qlora_cli.deploy.formats.format import Format
from qlora_cli.deploy.greedy import greedy_answers
from qlora_cli.deploy.verify import record_logits
from qlora_cli.model.device import precision_of
from qlora_cli.model.towers.auto_class import own_auto_class


def load_with_transformers(folder: Path, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model as plain `transformers` loads it: whole, as the class that the base's files are made of."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model: PreTrainedModel = own_auto_class(config).from_pretrained(folder, trust_remote_code=trust_remote_code)
    return model


def ask_transformers(folder: Path, questions: Questions) -> Answers:
    """Open a folder with transformers alone and answer."""
    model = load_with_transformers(folder, trust_remote_code=questions.trust_remote_code).eval()
    logits = record_logits(model, questions.rows)
    started = time.perf_counter()
    texts = greedy_answers(model, questions)
    seconds = time.perf_counter() - started
    return Answers(logits, texts, sum(map(len, texts)) / seconds if texts else 0.0, precision_of(model))


TRANSFORMERS = Engine("transformers", "pip install transformers", partial(version, "transformers"), ask_transformers)

HUGGING_FACE = Format(None, TRANSFORMERS, loses_nothing=True)
