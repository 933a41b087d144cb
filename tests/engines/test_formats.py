"""Formats that other programs write or open, on a toy: `make test-engines`."""

import os

import pytest
import torch
from safetensors.torch import load_file

from qlora_cli.deploy.formats.table import FORMATS
from tests.deploy.formats.jobs import written
from tests.deploy.models import save_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (os.environ.get("QLORA_MLX_PYTHON") and os.environ.get("QLORA_GPTQ_PYTHON")),
        reason="needs QLORA_MLX_PYTHON and QLORA_GPTQ_PYTHON, which `make test-engines` sets",
    ),
]


@pytest.mark.parametrize(("name", "quant"), [("mlx", "bf16"), ("mlx", "4bit"), ("gptq", "w4a16")])
def test_it_is_written_and_keeps_tokenizer_template_and_settings(name, quant, tmp_path):
    base = save_llama(tmp_path / "base", tie_word_embeddings=True)
    options = {} if quant == "bf16" else {"group_size": 32}
    out = written(FORMATS[name], base, tmp_path / "out", quant=quant, **options)
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (out / file).read_bytes() == (base / file).read_bytes()
    assert list(out.glob("*.safetensors"))


def test_mlx_in_16_bits_has_16_bits_of_a_base_in_float32_too(tmp_path):
    base = save_llama(tmp_path / "base", tie_word_embeddings=False)
    assert {tensor.dtype for tensor in load_file(base / "model.safetensors").values()} == {torch.float32}
    out = written(FORMATS["mlx"], base, tmp_path / "out", quant="bf16")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
