"""Rows that begin differently from how inference would begin them are noted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trl

from qlora_cli.data.check import check_data
from qlora_cli.data.parity import PROMPT_DIFFERS
from qlora_cli.data.render.renderer import Renderer
from qlora_cli.recipe.data_schema import DataSection

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


@pytest.mark.parametrize(("name", "num_rows"), [("qwen2_5", 0), ("llama3", 0), ("deepseek_r1_distill", 2)])
def test_a_template_that_opens_an_answer_in_another_way_is_noted(name, num_rows, tokenizer_for, tmp_path, empty_cache):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": messages, "id": number}) + "\n" for number in range(2)))
    renderer = Renderer(tokenizer_for((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")))
    report = check_data(DataSection.model_validate({"train": str(path)}), renderer, 0)
    found = [(finding.num_rows, finding.first) for finding in report.findings if finding.what == PROMPT_DIFFERS]
    assert found == ([(num_rows, f"{path}:1")] if num_rows else [])
    assert report.is_trainable
