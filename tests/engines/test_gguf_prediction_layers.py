"""Qwen3.5, whose config.json names a layer that predicts further tokens, with and without that layer in its files.

Tuned models that transformers has saved are without (llama.cpp#24737, #26916). `make test-engines`.
"""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_cli.deploy.engines.engine import Questions
from qlora_cli.deploy.export_reference import cut_alike
from qlora_cli.deploy.formats.format import FormatOptions, WriteJob
from qlora_cli.deploy.formats.gguf_adapter import FORMAT
from qlora_cli.deploy.formats.table import FORMATS
from qlora_cli.deploy.verify import compare, record_logits
from qlora_cli.model.base import load_base
from qlora_cli.model.tuned import find_tuned
from qlora_cli.recipe.schema import ModelSection
from tests.deploy.formats.jobs import written
from tests.deploy.models import cut_as_gpt2, save_tokenizer, with_adapter
from tests.model.bases import save_toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("QLORA_GGUF_PYTHON" not in os.environ, reason="needs QLORA_GGUF_PYTHON"),
]

ROWS = [list(range(4, 40)), list(range(5, 60))]
QUESTIONS = Questions(ROWS, ROWS[:1], frozenset({3}), 4)
HIDDEN = 64


def save_base(folder, state):
    """A hybrid of linear and full attention; `state` says what config.json and the files have of the layer."""
    save_toy("qwen3_5_vl", folder, dtype=torch.float32)
    save_tokenizer(folder)
    cut_as_gpt2(folder)
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    text["mtp_num_hidden_layers"] = 0 if state == "neither" else 1
    text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / "model.safetensors.index.json").unlink()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("mtp.")}
    if state == "both":
        tensors |= prediction_layer(tensors, "model.language_model.layers.1.")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def prediction_layer(tensors, layer):
    """A copy of a layer with full attention, and what joins it to the model."""
    copied = {
        f"mtp.layers.0.{name.removeprefix(layer)}": tensor.clone()
        for name, tensor in tensors.items()
        if name.startswith(layer)
    }
    norms = {
        f"mtp.{name}.weight": torch.zeros(HIDDEN) for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    }
    return copied | norms | {"mtp.fc.weight": torch.randn(HIDDEN, 2 * HIDDEN)}


@pytest.mark.parametrize("state", ["named and lost", "both", "neither"])
def test_the_file_opens_and_is_the_model(state, tmp_path):
    base = save_base(tmp_path / "base", state)
    model = load_base(ModelSection(base_model=str(base)), None).eval()
    out = written(FORMATS["gguf"], base, tmp_path / "out", quant="f32")
    answers = FORMATS["gguf"].engine.ask(out, QUESTIONS)
    assert compare(*cut_alike(record_logits(model, ROWS), answers.logits)).mean_kl < 1e-6


def test_an_adapter_is_put_on_it(tmp_path):
    base = save_base(tmp_path / "base", "neither")
    tuned = with_adapter(
        load_base(ModelSection(base_model=str(base)), None), target_modules=r"model\.layers.*self_attn\.[qo]_proj"
    )
    tuned.save_pretrained(tmp_path / "adapter")
    job = WriteJob(
        base, tmp_path / "out", find_tuned(tmp_path / "adapter"), ROWS, FormatOptions("f32", base_quant="f32")
    )
    job.out.mkdir()
    FORMAT.write(job)
    FORMAT.write_base(job)
    answers = FORMAT.engine.ask(
        job.out / "adapter.gguf", Questions(ROWS, [], frozenset({3}), base=job.out / "base-f32.gguf")
    )
    assert compare(*cut_alike(record_logits(tuned, ROWS), answers.logits)).mean_kl < 1e-6
