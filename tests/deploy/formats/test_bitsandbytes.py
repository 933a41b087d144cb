import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from qlora_cli.compat import keep_four_bit_weights_unpacked
from qlora_cli.deploy.formats.bitsandbytes import FORMAT
from tests.deploy.formats.jobs import written
from tests.deploy.models import logits
from tests.model.bases import save_toy


def opened(folder, **options):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    assert not any(report.values()), report
    keep_four_bit_weights_unpacked(model)
    return model


def test_nf4_is_what_transformers_makes_of_the_same_model(llama_folder, tmp_path):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    expected = opened(llama_folder, quantization_config=settings)
    model = opened(written(FORMAT, llama_folder, tmp_path / "out", quant="nf4"))
    assert (logits(expected) - logits(model)).abs().max() < 1e-4


def test_int8_is_what_transformers_makes_of_the_same_model(tied_llama_folder, tmp_path):
    expected = opened(tied_llama_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    model = opened(written(FORMAT, tied_llama_folder, tmp_path / "out", quant="int8"))
    assert (logits(expected) - logits(model)).abs().max() < 1e-2 * logits(expected).abs().max()


def test_experts_stay_as_they_are_and_the_folder_loads(tmp_path):
    out = written(FORMAT, save_toy("qwen3_moe", tmp_path / "base"), tmp_path / "out")
    assert opened(out).model.layers[0].self_attn.q_proj.weight.dtype is torch.uint8
