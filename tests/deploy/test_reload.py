import pytest
import torch

from qlora_cli.deploy import reload
from qlora_cli.deploy.reload import is_on_disk, reloaded
from qlora_cli.deploy.verify import record_logits
from qlora_cli.recipe.schema import ModelSection
from tests.model.bases import save_toy

BASE = ModelSection(base_model="base")
ROWS = [list(range(1, 40)), list(range(5, 90)), [7, 8, 9]]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "gemma3"])
def test_a_model_larger_than_the_memory_is_read_in_layers_and_computes_the_same(
    name, llama_folder, tmp_path, monkeypatch
):
    folder = llama_folder if name == "llama" else save_toy(name, tmp_path / "base", dtype=torch.float32)
    with reloaded(folder, BASE, "float32") as model:
        assert not is_on_disk(model)
        expected = record_logits(model, ROWS)
    monkeypatch.setattr(reload, "available_bytes", lambda: 500_000)
    with reloaded(folder, BASE, "float32") as model:
        assert is_on_disk(model)
        recorded = record_logits(model, ROWS, together=True)
    for one, other in zip(expected, recorded, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-4 * one.abs().max()
    assert not list(folder.glob(".offloaded*"))
