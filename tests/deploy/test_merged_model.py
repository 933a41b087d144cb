"""The merged folder against the base's own: whatever the base is, only what was trained may differ."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open

from tests.deploy.merging import write_merged
from tests.deploy.models import with_adapter
from tests.model.bases import MULTIMODAL, TEXT_ONLY, save_toy

IDS = torch.arange(1, 33).view(2, 16)
ATTENTION = ["q_proj", "v_proj", "q_a_proj", "kv_b_proj", "in_proj_qkv"]


def stored(folder):
    """Shard, dtype, shape and bytes of every tensor."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 - it is no dict
                tensor = file.get_tensor(key)
                found[key] = (path.name, tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
    return found


def own_class(folder):
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0])


def load(folder):
    return own_class(folder).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def text_logits(model):
    return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("name", [*MULTIMODAL, *TEXT_ONLY])
def test_the_merged_folder_is_the_bases_with_the_adapted_tensors_changed(name, tmp_path):
    base, out = save_toy(name, tmp_path / "base"), tmp_path / "out"
    names = {module for module, _ in load(base).named_modules()}
    targets = [target for target in ATTENTION if any(module.endswith(f".{target}") for module in names)]
    tuned = with_adapter(load(base), target_modules=targets, exclude_modules=r".*vision.*|.*visual.*")
    weights = write_merged(tuned, base, out)
    before, after = stored(base), stored(out)
    assert {key: facts[:3] for key, facts in after.items()} == {key: facts[:3] for key, facts in before.items()}
    changed = {key for key in before if before[key] != after[key]}
    num_updates = sum("lora_A" in parameter for parameter, _ in tuned.named_parameters())
    assert changed == set(weights.folded)
    assert len(changed) == num_updates > 0
    assert (text_logits(tuned) - text_logits(load(out))).abs().mean() < 0.02 * text_logits(tuned).std()
    others = {path.name: path.read_bytes() for path in base.iterdir() if not path.name.endswith(".safetensors")}
    kept = {path.name: path.read_bytes() for path in out.iterdir() if not path.name.endswith(".safetensors")}
    assert kept.keys() == others.keys()
    assert {name for name in others if others[name] != kept[name]} <= {"config.json"}


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss", "llama4", "gemma4_moe", "qwen3_5_moe_vl"])
def test_updates_of_experts_go_into_the_tensors_that_the_checkpoint_has(name, tmp_path):
    base, out = save_toy(name, tmp_path / "base", dtype=torch.float32), tmp_path / "out"
    model = load(base)
    experts = [name for name, parameter in model.named_parameters() if parameter.dim() == 3 and "experts" in name]
    tuned = with_adapter(model, target_modules=[], target_parameters=experts)
    weights = write_merged(tuned, base, out)
    before, after = stored(base), stored(out)
    assert before.keys() == after.keys()
    assert {key for key in before if before[key] != after[key]} == set(weights.folded)
    assert (text_logits(tuned) - text_logits(load(out))).abs().max() < 1e-4 * text_logits(tuned).abs().max()
