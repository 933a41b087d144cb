import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_cli.deploy.merge import MergeOptions, merge_run
from qlora_cli.errors import ArgumentError, IdentityError, NumericError
from qlora_cli.model.adapter import ADAPTER_WEIGHTS
from qlora_cli.model.tuned import load_tuned
from qlora_cli.run.files import sha256_file
from qlora_cli.run.manifest import write_manifest
from tests.deploy.models import load_base, logits, save_gpt2, save_llama, save_run

FLOAT32 = MergeOptions(dtype="float32")


@pytest.fixture(scope="module")
def run(tmp_path_factory, llama_folder):
    return save_run(tmp_path_factory.mktemp("run"), llama_folder)


@pytest.fixture(scope="module")
def merged(run):
    return merge_run(run.path, None, FLOAT32)


def test_the_model_on_disk_is_the_tuned_model(run, merged):
    tuned = logits(load_tuned(run.path).model)
    assert (tuned - logits(AutoModelForCausalLM.from_pretrained(run.merged_path))).abs().max() < 1e-4
    assert merged.agreement.max_logit_difference < 1e-4
    assert merged.agreement.mean_kl < 1e-7


def test_the_adapter_does_far_more_than_the_merge_costs(merged):
    assert merged.effect.mean_kl > 1000 * merged.agreement.mean_kl


def test_prompts_of_the_run_are_what_is_compared(merged):
    rows = 4 * len("<bos>Suser\nCount to 0.E\nSassistant\n1 2 3E\n")
    assert abs(merged.agreement.num_positions - rows) < 4 * 8


def test_record_names_base_adapter_and_figures(run, merged):
    record = json.loads((run.merged_path / "qlora_merge.json").read_text())
    assert record["adapter_sha256"] == sha256_file(run.adapter_path / ADAPTER_WEIGHTS)
    assert record["onto"] == "dequantized"
    assert record["quantization"]["quant_type"] == "nf4"
    assert record["agreement"]["mean_kl"] == merged.agreement.mean_kl
    assert record["compared_in"] == {"tuned": "float32 on cpu", "plain": "float32 on cpu"}


def test_folder_stops_at_the_end_of_turn_and_keeps_the_template(run, merged, llama_folder):
    model = AutoModelForCausalLM.from_pretrained(run.merged_path)
    tokenizer = AutoTokenizer.from_pretrained(run.merged_path)
    assert model.generation_config.eos_token_id == 3
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(llama_folder).chat_template


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}])
def test_other_adapters_merge_exactly(tmp_path, llama_folder, settings):
    run = save_run(tmp_path / "run", llama_folder, **settings)
    assert merge_run(run.path, None, FLOAT32).agreement.mean_kl < 1e-7


def test_conv1d_base_merges_exactly(tmp_path):
    run = save_run(tmp_path / "run", save_gpt2(tmp_path / "gpt2"))
    assert merge_run(run.path, None, FLOAT32).agreement.mean_kl < 1e-7


def test_the_precision_of_the_base_is_the_default(tmp_path, run):
    merged = merge_run(run.path, tmp_path / "out", MergeOptions())
    assert merged.dtype == "float32"
    assert AutoModelForCausalLM.from_pretrained(merged.path).dtype is torch.float32


def test_bfloat16_is_held_to_its_bound(tmp_path, run):
    merged = merge_run(run.path, tmp_path / "out", MergeOptions(dtype="bfloat16"))
    assert AutoModelForCausalLM.from_pretrained(merged.path).dtype is torch.bfloat16
    assert 0 < merged.agreement.mean_kl <= merged.max_kl


def test_onto_original_adds_the_update_to_the_16_bit_weights(tmp_path, run, llama_folder):
    merge_run(run.path, tmp_path / "out", MergeOptions(onto="original", dtype="float32", max_kl=10.0))
    tuned = load_tuned(run.path).model.base_model.model.model.layers[0].mlp.up_proj
    update = 2.0 * tuned.lora_B["default"].weight @ tuned.lora_A["default"].weight
    original = load_base(llama_folder).model.layers[0].mlp.up_proj.weight
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers[0].mlp.up_proj.weight
    assert torch.allclose(merged, original + update, atol=1e-6)


def test_plain_adapter_folder_merges_where_out_says(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder, quantization="none")
    adapter = run.adapter_path.rename(tmp_path / "adapter")
    with pytest.raises(ArgumentError, match="no default place"):
        merge_run(adapter, None, FLOAT32)
    assert merge_run(adapter, tmp_path / "out", FLOAT32).agreement.mean_kl < 1e-7


def test_a_merge_that_fails_its_bound_leaves_nothing(tmp_path, run):
    with pytest.raises(NumericError, match="above the bound") as failure:
        merge_run(run.path, tmp_path / "out", MergeOptions(dtype="bfloat16", max_kl=0.0))
    assert failure.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_a_second_merge_of_the_same_adapter_is_refused(tmp_path, run, merged):
    again = save_run(tmp_path / "run", run.merged_path)
    adapter = (run.adapter_path / ADAPTER_WEIGHTS).read_bytes()
    (again.adapter_path / ADAPTER_WEIGHTS).write_bytes(adapter)
    with pytest.raises(IdentityError, match="already merged") as failure:
        merge_run(again.path, None, FLOAT32)
    assert failure.value.exit_code == 3


def test_another_base_than_that_of_training_is_refused(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder)
    write_manifest(run, {"base": {"fingerprint": "0" * 64}})
    with pytest.raises(IdentityError, match="its weights have changed"):
        merge_run(run.path, None, FLOAT32)
    assert not run.merged_path.exists()


def test_an_adapter_that_does_not_fit_is_refused(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder, r=4)
    config = json.loads((run.adapter_path / "adapter_config.json").read_text())
    (run.adapter_path / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(IdentityError, match="does not fit"):
        merge_run(run.path, None, FLOAT32)


def test_an_inert_adapter_is_refused(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder, is_inert=True)
    with pytest.raises(NumericError, match="inert: all 14 of its B matrices are zero"):
        merge_run(run.path, None, FLOAT32)


def test_an_adapter_without_safetensors_is_refused(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder)
    (run.adapter_path / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ArgumentError, match="holds no adapter_model"):
        merge_run(run.path, None, FLOAT32)


@pytest.mark.parametrize("init", ["loftq", "calibrated"])
def test_what_makes_up_for_rounding_is_not_merged_onto_the_original(tmp_path, llama_folder, init):
    run = save_run(tmp_path / "run", llama_folder)
    text = run.recipe_path.read_text().replace("init_lora_weights: default", f"init_lora_weights: {init}")
    run.recipe_path.write_text(text)
    with pytest.raises(ArgumentError, match=init):
        merge_run(run.path, None, MergeOptions(onto="original"))


def test_a_model_folder_has_nothing_to_merge(tmp_path, llama_folder):
    with pytest.raises(ArgumentError, match="nothing to merge"):
        merge_run(llama_folder, tmp_path / "out", FLOAT32)


def test_a_folder_with_content_is_replaced_only_by_force(tmp_path, run):
    out = tmp_path / "out"
    merge_run(run.path, out, FLOAT32)
    with pytest.raises(ArgumentError, match="not empty"):
        merge_run(run.path, out, FLOAT32)
    (out / "model.safetensors").touch()  # its time is not its content
    merge_run(run.path, out, MergeOptions(dtype="float32", force=True))
    assert (out / "qlora_merge.json").is_file()


def test_a_model_that_qlora_did_not_write_is_not_replaced_by_force(tmp_path, run):
    out = save_llama(tmp_path / "out", tie_word_embeddings=False)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ArgumentError, match="was not written by qlora"):
        merge_run(run.path, out, MergeOptions(dtype="float32", force=True))
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_verification_goes_on_without_the_data(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder)
    (run.path / "eval.jsonl").unlink()
    assert merge_run(run.path, None, FLOAT32).agreement.num_positions > 100


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_run_on_the_gpu_merges_within_its_bound(tmp_path, run):
    assert load_tuned(run.path).model.device.type == "cuda"
    merged = merge_run(run.path, tmp_path / "out", MergeOptions())
    assert merged.agreement.mean_kl <= merged.max_kl < merged.effect.mean_kl


def test_onto_auto_takes_the_weights_with_the_lower_loss_and_prints_both(tmp_path, run):
    merged = merge_run(run.path, tmp_path / "out", MergeOptions(onto="auto", max_kl=10.0))
    assert set(merged.losses) == {"dequantized", "original"}
    assert merged.onto == min(merged.losses, key=merged.losses.get)
    assert merged.figures()["held-out loss onto original"] == f"{merged.losses['original']:.4f}"
    assert json.loads((merged.path / "qlora_merge.json").read_text())["held_out_loss"] == merged.losses


def test_onto_auto_needs_data(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder, quantization="none")
    adapter = run.adapter_path.rename(tmp_path / "adapter")
    with pytest.raises(ArgumentError, match="brings no data"):
        merge_run(adapter, tmp_path / "out", MergeOptions(onto="auto"))


def test_the_base_alone_carries_every_adapter_that_was_trained_on_it(tmp_path, run, llama_folder):
    merged = merge_run(run.path, tmp_path / "base", MergeOptions(base_only=True))
    assert merged.agreement.max_logit_difference < 1e-4
    other = save_run(tmp_path / "other", llama_folder, target_modules=["q_proj"])
    served = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(merged.path), other.adapter_path)
    assert (logits(served) - logits(load_tuned(other.path).model)).abs().max() < 1e-4
    assert json.loads((merged.path / "qlora_merge.json").read_text())["adapter_sha256"] is None


def test_the_base_alone_is_refused_where_nothing_was_quantized(tmp_path, llama_folder):
    run = save_run(tmp_path / "run", llama_folder, quantization="none")
    with pytest.raises(ArgumentError, match="was not quantized in training"):
        merge_run(run.path, tmp_path / "out", MergeOptions(base_only=True))


def test_the_base_alone_needs_a_place(run):
    with pytest.raises(ArgumentError, match="needs a folder"):
        merge_run(run.path, None, MergeOptions(base_only=True))
