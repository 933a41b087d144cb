import json

import pytest
import torch
from safetensors.torch import load_file

from qlora_cli.deploy.formats.format import FormatOptions
from qlora_cli.deploy.formats.gguf_adapter import FORMAT, write_scaled
from qlora_cli.errors import ArgumentError
from qlora_cli.model.tuned import find_tuned
from tests.deploy.models import load_base, with_adapter


def update_of_llama_cpp(folder, module):
    """As `get_scale` of llama.cpp has it: lora_alpha / rank, with the rank of the tensor."""
    tensors = load_file(folder / "adapter_model.safetensors")
    A_RI, B_OR = (tensors[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
    return json.loads((folder / "adapter_config.json").read_text())["lora_alpha"] / len(A_RI) * B_OR @ A_RI


@pytest.mark.parametrize(
    "settings",
    [{}, {"r": 5, "use_rslora": True}, {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"layers.1.mlp.up_proj": 2}}],
    ids=["plain", "rslora", "patterns"],
)
def test_the_scaling_of_each_layer_is_that_of_peft(settings, llama_folder, tmp_path):
    tuned = with_adapter(load_base(llama_folder), **settings)
    tuned.save_pretrained(tmp_path / "adapter")
    (tmp_path / "scaled").mkdir()
    write_scaled(tmp_path / "adapter", tmp_path / "scaled")
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"):
        layer = tuned.base_model.model.get_submodule(name)
        expected = layer.get_delta_weight("default")
        assert torch.allclose(update_of_llama_cpp(tmp_path / "scaled", name), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices"),
        ({"lora_bias": True}, "biases"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "embed_tokens"),
    ],
)
def test_what_llama_cpp_does_not_add_is_refused_in_one_line_with_the_command_that_folds_it(
    llama_folder, tmp_path, settings, reason
):
    with_adapter(load_base(llama_folder), **settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ArgumentError, match=rf"{reason}.*\nhint: .*qlora export .*adapter --format gguf") as caught:
        FORMAT.check(find_tuned(tmp_path / "adapter"), FormatOptions())
    assert len(caught.value.problems) == 1
