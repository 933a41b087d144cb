import json

import pytest
import torch
from safetensors.torch import load_file

from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.formats.adapter import FORMAT
from qlora_cli.deploy.formats.format import FormatOptions, WriteJob
from qlora_cli.deploy.verify import compare, record_logits
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import find_tuned, load_tuned
from tests.deploy.models import load_base, save_run, with_adapter

ROWS = [list(range(1, 40)), list(range(5, 60))]


def exported(path, out):
    out.mkdir()
    FORMAT.write(WriteJob(out, out, find_tuned(path), ROWS))
    return out


def test_a_folder_holds_the_adapter_of_training_and_nothing_of_training(llama_folder, tmp_path):
    run = save_run(tmp_path / "run", llama_folder)
    (run.adapter_path / "training_args.bin").write_bytes(b"pickle")
    out = exported(run.path, tmp_path / "out")
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (run.adapter_path, out))
    assert all(torch.equal(after.pop(name), value) for name, value in before.items())
    assert after == {}
    assert not (out / "training_args.bin").exists()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(llama_folder)
    assert {"tokenizer.json", "chat_template.jinja"} <= {path.name for path in out.iterdir()}


@pytest.mark.slow
def test_plain_peft_in_another_process_computes_what_was_trained(llama_folder, tmp_path):
    run = save_run(tmp_path / "run", llama_folder, quantization="nf4")
    out = exported(run.path, tmp_path / "out")
    expected = record_logits(load_tuned(run.path).model, ROWS)
    answers = FORMAT.engine.ask(out, Questions(ROWS, ROWS[:1], frozenset({3}), max_new_tokens=4))
    assert compare(expected, answers.logits).max_logit_difference < 1e-3
    assert 0 < len(answers.texts[0]) <= 4


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"lora_bias": True}, "lora_bias"),
    ],
)
def test_what_vllm_does_not_serve_is_refused_with_a_command_that_works(llama_folder, tmp_path, settings, reason):
    with_adapter(load_base(llama_folder), **settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ArgumentError, match=rf"{reason}[\s\S]*qlora merge .*adapter --out"):
        FORMAT.check(find_tuned(tmp_path / "adapter"), FormatOptions())
