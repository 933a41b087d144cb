"""Merged folders opened by transformers 4.57, which many engines still carry: `make test-engines`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_cli.data.render.renderer import Renderer
from qlora_cli.deploy.model_folder import write_generation_settings, write_tokenizer
from tests.deploy.merging import write_merged
from tests.deploy.models import with_adapter
from tests.deploy.test_merged_model import load
from tests.model.bases import save_toy
from tests.tiny_models import byte_tokenizer

OLDER_PYTHON = os.environ.get("QLORA_OLDER_PYTHON")
"""Interpreter of an environment with transformers 4.57."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not OLDER_PYTHON, reason="needs QLORA_OLDER_PYTHON, which `make test-engines` sets"),
]

SCRIPT = Path(__file__).with_name("open_with_transformers.py")
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128},
}


def save_llama(folder, rope):
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=272, **sizes, max_position_embeddings=512, rope_parameters=ROPES[rope])
    )
    for parameter in model.parameters():
        parameter.data *= 5 if parameter.dim() > 1 else 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def opened_by(python, folder, out):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([python, SCRIPT, folder, out], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), torch.load(out)


@pytest.mark.parametrize("name", [*ROPES, "mixtral", "gpt_oss", "gemma3", "mistral3", "qwen2_5_vl"])
def test_it_computes_what_ours_does(name, tmp_path):
    base = save_llama(tmp_path / "base", name) if name in ROPES else save_toy(name, tmp_path / "base")
    tuned, out = with_adapter(load(base), target_modules=["q_proj"], exclude_modules=r".*vision.*"), tmp_path / "out"
    write_merged(tuned, base, out)
    tokenizer = byte_tokenizer()
    renderer = Renderer(tokenizer)
    write_tokenizer(out, tokenizer, renderer, trust_code=False)
    write_generation_settings(out, tuned.base_model.model, tokenizer, renderer)
    facts, logits = opened_by(sys.executable, out, tmp_path / "ours.pt")
    older, older_logits = opened_by(OLDER_PYTHON, out, tmp_path / "older.pt")
    assert older.pop("version") < facts.pop("version")
    assert older == facts
    assert (logits - older_logits).abs().max() < 1e-3 * logits.abs().max()
