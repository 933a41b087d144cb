"""Whatever the user names (run, adapter, checkpoint, model folder) is loaded as it was trained."""

from __future__ import annotations

import json
import shutil

import bitsandbytes as bnb
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from qlora_cli.errors import ArgumentError, IdentityError, RecipeError
from qlora_cli.model.tuned import find_tuned, load_tuned
from qlora_cli.recipe.schema import Recipe
from qlora_cli.run.directory import RunDirectory
from qlora_cli.train.session import TrainOptions, train_recipe


def train(folder, base, data, *, steps=2, **lora) -> RunDirectory:
    """A short NF4 run; one step of two leaves it unfinished."""
    values = {
        "name": "short",
        "model": {"base_model": str(base)},
        "quantization": {},
        "lora": {"r": 4, **lora},
        "data": {"train": str(data), "max_length": 64},
        "training": {"max_steps": 2, "gradient_accumulation_steps": 1, "learning_rate": 0.1},
    }
    run = RunDirectory(folder)
    train_recipe(Recipe.model_validate(values), run, TrainOptions(stop_after=steps))
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_base, chat_data):
    return train(tmp_path_factory.mktemp("tuned") / "runs" / "short", tiny_base, chat_data)


def adapter_values(model: PeftModel) -> list[float]:
    return sorted(parameter.double().sum().item() for name, parameter in model.named_parameters() if "lora_" in name)


def test_a_run_directory_gives_its_recipe_base_and_adapter(run, tiny_base):
    source = find_tuned(run.path)
    assert (source.run, source.adapter, source.base_source) == (run, run.adapter_path, None)
    assert source.model.base_model == str(tiny_base)
    assert source.quantization is not None
    assert source.recipe.name == "short"


def test_without_a_path_it_is_the_latest_run(run, monkeypatch):
    monkeypatch.chdir(run.path.parent.parent)
    assert find_tuned(None).adapter.resolve() == run.adapter_path


def test_the_adapter_folder_of_a_run_still_knows_its_run(run):
    assert find_tuned(run.adapter_path).run == run
    assert find_tuned(run.adapter_path).quantization is not None


def test_a_checkpoint_of_a_run_is_a_tuned_model_too(run):
    checkpoint = run.checkpoints_path / "step-000002"
    source = find_tuned(checkpoint)
    assert (source.run, source.adapter) == (run, checkpoint)


def test_an_adapter_made_elsewhere_names_its_base_itself(run, tiny_base, tmp_path):
    shutil.copytree(run.adapter_path, tmp_path / "adapter")
    source = find_tuned(tmp_path / "adapter")
    assert (source.run, source.recipe, source.quantization) == (None, None, None)
    assert source.model.base_model == str(tiny_base)
    assert isinstance(load_tuned(tmp_path / "adapter").model, PeftModel)


def test_a_model_folder_is_loaded_without_an_adapter(tiny_base):
    tuned = load_tuned(tiny_base)
    assert tuned.source.adapter is None
    assert not isinstance(tuned.model, PeftModel)
    assert not tuned.model.training


def test_an_empty_folder_is_none_of_them(tmp_path):
    with pytest.raises(ArgumentError, match="not a run directory, an adapter folder or a model folder"):
        find_tuned(tmp_path)


def test_an_unfinished_run_says_how_to_finish_it(tmp_path, tiny_base, chat_data):
    unfinished = train(tmp_path / "run", tiny_base, chat_data, steps=1)
    with pytest.raises(ArgumentError, match="is not finished") as caught:
        find_tuned(unfinished.path)
    assert "--resume" in caught.value.problems[0].hint


NAMES_NO_BASE = ("{", "[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 7}')


@pytest.mark.parametrize("config", NAMES_NO_BASE)
def test_an_adapter_config_that_names_no_base_is_told_with_its_place(tmp_path, config):
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(IdentityError) as caught:
        find_tuned(tmp_path)
    assert caught.value.problems[0].place == str(tmp_path / "adapter_config.json")
    assert caught.value.problems[0].hint


def test_the_loaded_model_is_quantized_as_in_training_and_holds_the_trained_values(run):
    tuned = load_tuned(run.path)
    layer = tuned.model.base_model.model.model.layers[0].self_attn.q_proj.base_layer
    assert isinstance(layer, bnb.nn.Linear4bit)
    stored = load_file(run.adapter_path / "adapter_model.safetensors")
    assert adapter_values(tuned.model) == sorted(tensor.double().sum().item() for tensor in stored.values())
    assert not tuned.model.training


def test_after_pissa_the_residual_stands_in_for_the_base(tmp_path, tiny_base, chat_data):
    run = train(tmp_path / "run", tiny_base, chat_data, init_lora_weights="pissa")
    assert find_tuned(run.path).base_source == str(run.residual_path)
    ids = torch.arange(16)[None]
    with torch.no_grad():
        whole = load_tuned(run.path).model(ids).logits
        shutil.rmtree(run.residual_path)
    assert whole.isfinite().all()
    with pytest.raises(RecipeError, match="cannot be loaded"):
        load_tuned(run.path)


def test_a_run_whose_base_was_replaced_is_refused(tmp_path, tiny_base, chat_data):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    run = train(tmp_path / "run", base, chat_data)
    manifest = json.loads(run.manifest_path.read_text())
    manifest["base"]["fingerprint"] = "0" * 64
    run.manifest_path.write_text(json.dumps(manifest))
    with pytest.raises(IdentityError, match="its weights have changed") as caught:
        load_tuned(run.path)
    assert caught.value.exit_code == 3
