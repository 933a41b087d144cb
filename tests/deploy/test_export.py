import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.export import export_run
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import IdentityError, NumericError
from tests.deploy.models import logits, save_run

READ_WITHOUT_PEFT = """
import sys
sys.modules["peft"] = sys.modules["bitsandbytes"] = sys.modules["qlora_cli"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(model.generate(**inputs, max_new_tokens=4).shape[1] > inputs["input_ids"].shape[1])
"""


@pytest.fixture
def run(tmp_path, llama_folder):
    return save_run(tmp_path / "run", llama_folder)


def test_exported_folder_works_without_peft_and_without_us(run, tmp_path):
    exported = export_run(run.path, tmp_path / "out", ExportOptions())
    assert exported.is_merged_anew
    command = [sys.executable, "-c", READ_WITHOUT_PEFT, str(tmp_path / "out")]
    reader = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert reader.stdout.strip() == "True", reader.stderr


def test_a_folder_is_loaded_and_compared_with_the_trained_model(run, tmp_path):
    exported = export_run(run.path, tmp_path / "out", ExportOptions())
    proof = json.loads((tmp_path / "out" / "qlora_merge.json").read_text())["export"]
    assert (exported.format, proof["format"]) == ("hf", "hf")
    assert proof["agreement"]["num_positions"] > 0


def test_the_merged_model_of_the_run_is_reused(run, tmp_path):
    merge_run(run.path, None, MergeOptions(dtype="float32"))
    exported = export_run(run.path, tmp_path / "out", ExportOptions())
    assert not exported.is_merged_anew
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.float32
    assert exported.agreement.max_logit_difference < 1e-4


def test_a_merged_model_of_an_older_adapter_is_not_reused(run, tmp_path, llama_folder):
    merge_run(run.path, None, MergeOptions(dtype="float32"))
    save_run(run.path, llama_folder, r=8)
    exported = export_run(run.path, tmp_path / "out", ExportOptions())
    assert exported.is_merged_anew


def test_a_merged_model_that_was_changed_since_is_not_exported(run, tmp_path):
    merge_run(run.path, None, MergeOptions(dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(run.merged_path)
    model.get_output_embeddings().weight.data.mul_(-1)
    model.save_pretrained(run.merged_path)
    with pytest.raises(NumericError, match="above the bound"):
        export_run(run.path, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_a_template_that_was_changed_since_is_not_exported(run, tmp_path):
    merge_run(run.path, None, MergeOptions(dtype="float32"))
    template = run.merged_path / "chat_template.jinja"
    template.write_text("Please: " + template.read_text())
    with pytest.raises(IdentityError, match="renders another prompt than training saw: 'Please: "):
        export_run(run.path, tmp_path / "out", ExportOptions())


def test_logits_of_the_exported_model_are_those_of_the_merged_one(run, tmp_path):
    merge_run(run.path, None, MergeOptions())
    export_run(run.path, tmp_path / "out", ExportOptions())
    merged, exported = (AutoModelForCausalLM.from_pretrained(f) for f in (run.merged_path, tmp_path / "out"))
    assert torch.equal(logits(merged), logits(exported))


def test_the_record_says_in_which_precision_both_models_were_compared(run, tmp_path):
    exported = export_run(run.path, tmp_path / "out", ExportOptions())
    record = json.loads((tmp_path / "out" / "qlora_merge.json").read_text())
    assert record["compared_in"] == record["export"]["compared_in"]
    assert record["export"]["compared_in"] == {"tuned": "float32 on cpu", "plain": "float32 on cpu"}
    assert record["export"]["agreement"]["mean_kl"] == exported.agreement.mean_kl
    assert exported.figures()["compared in"] == "float32 on cpu (base and adapter), float32 on cpu (merged)"
