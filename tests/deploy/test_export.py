import json
import shutil
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_cli.deploy.export import attempts_for, export_run, undoes_update
from qlora_cli.deploy.export_options import ExportOptions
from qlora_cli.deploy.formats.bitsandbytes import FORMAT
from qlora_cli.deploy.formats.format import WriteJob
from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import IdentityError, NumericError
from qlora_cli.model.tuned import find_tuned
from qlora_cli.run.directory import RunDirectory
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


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, llama_folder):
    """A run that nobody changes."""
    return save_run(tmp_path_factory.mktemp("whole") / "run", llama_folder)


@pytest.fixture(scope="module")
def exported(whole_run, tmp_path_factory):
    """What comes of exporting that run."""
    return export_run(whole_run.path, tmp_path_factory.mktemp("exported") / "out", ExportOptions())


@pytest.fixture(scope="module")
def merged_once(whole_run, tmp_path_factory):
    """That run, merged in float32."""
    folder = tmp_path_factory.mktemp("merged") / "run"
    shutil.copytree(whole_run.path, folder)
    merge_run(folder, None, MergeOptions(dtype="float32"))
    return folder


@pytest.fixture
def merged_run(merged_once, tmp_path):
    """A copy of it, for a test to change."""
    shutil.copytree(merged_once, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_exported_folder_works_without_peft_and_without_us(exported, tmp_path):
    assert exported.is_merged_anew
    command = [sys.executable, "-c", READ_WITHOUT_PEFT, str(exported.path)]
    reader = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert reader.stdout.strip() == "True", reader.stderr


def test_a_folder_is_loaded_and_compared_with_the_trained_model(exported):
    proof = json.loads((exported.path / "qlora_merge.json").read_text())["export"]
    assert (exported.format, proof["format"]) == ("hf", "hf")
    assert proof["agreement"]["num_positions"] > 0


def test_the_merged_model_of_the_run_is_reused(merged_run, tmp_path):
    exported = export_run(merged_run.path, tmp_path / "out", ExportOptions())
    assert not exported.is_merged_anew
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.float32
    assert exported.agreement.max_logit_difference < 1e-4


def test_a_merged_model_of_an_older_adapter_is_not_reused(merged_run, tmp_path, llama_folder):
    save_run(merged_run.path, llama_folder, r=8)
    exported = export_run(merged_run.path, tmp_path / "out", ExportOptions())
    assert exported.is_merged_anew


def test_a_merged_model_that_was_changed_since_is_not_exported(merged_run, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(merged_run.merged_path)
    model.get_output_embeddings().weight.data.mul_(-1)
    model.save_pretrained(merged_run.merged_path)
    with pytest.raises(NumericError, match="above the bound"):
        export_run(merged_run.path, tmp_path / "out", ExportOptions())
    assert not (tmp_path / "out").exists()


def test_a_template_that_was_changed_since_is_not_exported(merged_run, tmp_path):
    template = merged_run.merged_path / "chat_template.jinja"
    template.write_text("Please: " + template.read_text())
    with pytest.raises(IdentityError, match="renders another prompt than training saw: 'Please: "):
        export_run(merged_run.path, tmp_path / "out", ExportOptions())


def test_logits_of_the_exported_model_are_those_of_the_merged_one(run, tmp_path):
    merge_run(run.path, None, MergeOptions())
    export_run(run.path, tmp_path / "out", ExportOptions())
    merged, exported = (AutoModelForCausalLM.from_pretrained(f) for f in (run.merged_path, tmp_path / "out"))
    assert torch.equal(logits(merged), logits(exported))


def test_the_record_says_in_which_precision_both_models_were_compared(exported):
    record = json.loads((exported.path / "qlora_merge.json").read_text())
    assert record["compared_in"] == record["export"]["compared_in"]
    assert record["export"]["compared_in"] == {"tuned": "float32 on cpu", "plain": "float32 on cpu"}
    assert record["export"]["agreement"]["mean_kl"] == exported.agreement.mean_kl
    assert exported.figures()["compared in"] == "float32 on cpu (base and adapter), float32 on cpu (merged)"


def in_nf4(weight):
    packed, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
    return bnb.functional.dequantize_4bit(packed, state)


def test_an_update_below_a_step_of_nf4_survives_the_export_of_an_nf4_run_to_nf4(run, llama_folder, tmp_path):
    path = run.adapter_path / "adapter_model.safetensors"
    adapter = load_file(path)
    for name in adapter:
        if "lora_B" in name:
            adapter[name] *= 0.02
    save_file(adapter, path, metadata={"format": "pt"})
    source, options = find_tuned(run.path), ExportOptions("bnb", "nf4")
    out, stage = tmp_path / "out", tmp_path / "stage"
    out.mkdir()
    with attempts_for(source, options, tmp_path / "exported", stage) as attempts:
        FORMAT.write(WriteJob(attempts.plain, out, source, [], options.of_format))
    exported, base = AutoModelForCausalLM.from_pretrained(out), load_file(llama_folder / "model.safetensors")
    kept, whole = 0.0, 0.0
    for name in (name for name in adapter if "lora_A" in name):
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        update = 2 * adapter[name.replace("lora_A", "lora_B")] @ adapter[name]
        weight = exported.get_submodule(module).weight
        moved = bnb.functional.dequantize_4bit(weight, weight.quant_state).float() - in_nf4(base[f"{module}.weight"])
        kept += (moved * update).sum().item()
        whole += update.square().sum().item()
    assert 0.7 < kept / whole < 1.3


def test_only_the_type_of_training_is_rounded_onto_the_original(run, tmp_path, llama_folder):
    source = find_tuned(run.path)
    assert undoes_update(source, ExportOptions("bnb"))
    assert undoes_update(source, ExportOptions("bnb", "nf4"))
    for others in (
        ExportOptions("bnb", "int8"),
        ExportOptions("bnb", max_kl=0.1),
        ExportOptions("mlx"),
        ExportOptions(),
    ):
        assert not undoes_update(source, others)
    plain = save_run(tmp_path / "plain", llama_folder, quantization="none")
    assert not undoes_update(find_tuned(plain.path), ExportOptions("bnb"))
